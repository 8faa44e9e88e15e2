"""The settings of every run, whatever the recipe: names, help and defaults."""

import dataclasses
from typing import Annotated, Literal

from runner.errors import ConfigError
from runner.parts.setting_types import (
    MOST,
    AtLeast0,
    AtLeast1,
    Commas,
    NotNegative,
    Positive,
    Range,
    Share,
    ShareBelow1,
    Size,
    Workers,
    check_ranges,
)
from runner.urls import shown

Precision = Literal["auto", "no", "bf16", "fp16"]


Scheduler = Literal["constant", "linear", "cosine", "step", "one_cycle", "wsd"]


Optimizer = Literal["adamw", "muon"]


Tracker = Literal["none", "tensorboard", "wandb", "trackio"]


Seed = Annotated[int, Range(0, 2**63 - 1)]


TEXTS = ("output_dir", "metric_for_best_model", "resume_from_checkpoint", "init_from", "upload_to", "exclude_examples")
"""Settings that are not text when they are empty, which a shell makes of a variable that is not set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of every run, whatever the recipe; named as in transformers.TrainingArguments where it has them."""

    output_dir: str | None = None
    """Folder for everything the run writes; runs/<recipe>-<date>-<time> when not given."""
    seed: Seed = 0
    """Seed of the weights, the order of the data and every other random number."""
    max_steps: Annotated[int, Range(1, MOST, beside=(-1,))] | None = None
    """Length of the run in optimiser updates; replaces num_train_epochs."""
    num_train_epochs: Positive | None = None
    """Length of the run in passes over the training split; 3 when max_steps is not given either."""
    batch_size: AtLeast1 | None = None
    """Examples per step over all processes; 32 when nothing else sets it."""
    micro_batch_size: AtLeast1 = 8
    """Examples per lane (micro-batch): what one process computes at a time."""
    gradient_accumulation_steps: AtLeast1 | None = None
    """Lanes per process at the first start; sets batch_size, which the run then keeps."""
    group_by_length: bool = False
    """Sort the examples of each step by length before they are cut into lanes, so that less is padded."""
    learning_rate: NotNegative = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay, on matrices only (not on biases, norms or other vectors)."""
    optim: Optimizer = "adamw"
    """muon: matrices inside layers are updated by Muon, everything else by AdamW, at one learning rate."""
    adam_beta1: ShareBelow1 = 0.9
    """AdamW: decay rate of the first moment."""
    adam_beta2: ShareBelow1 = 0.999
    """AdamW: decay rate of the second moment."""
    adam_epsilon: NotNegative = 1e-8
    """AdamW: added to the denominator."""
    max_grad_norm: NotNegative = 1.0
    """Gradient clipping: the largest norm of a step's gradient; 0: no clipping."""
    lr_scheduler_type: Scheduler = "cosine"
    """Shape of the learning rate over the steps."""
    warmup_steps: AtLeast0 = 0
    """Steps of linear warm-up."""
    warmup_ratio: Share = 0.0
    """Share of all steps that is linear warm-up, where warmup_steps is 0."""
    max_warmup_ratio: Share = 1.0
    """Longest warm-up, as a share of all steps; a longer warmup_steps is cut, with a message."""
    min_lr_ratio: Share = 0.0
    """Floor of the learning rate, as a share of the peak."""
    lr_step_size: AtLeast1 | None = None
    """Schedule "step": steps between two drops; a third of the run when not given."""
    lr_gamma: NotNegative = 0.1
    """Schedule "step": factor of each drop."""
    mixed_precision: Precision = "auto"
    """Number format of the arithmetic; auto: bf16 where the hardware has it, if a CPU measures it as faster."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    torch_compile: bool = False
    """Compile the layers of the model with torch.compile; evaluations run as written."""
    deterministic: bool = False
    """Sum the lanes' gradients in a fixed tree: the same weights to the bit for any number of processes."""
    logging_steps: AtLeast1 = 10
    """Steps between two log lines."""
    eval_steps: AtLeast0 = 500
    """Steps between two evaluations; 0: only at the end."""
    eval_every: Literal["steps", "epoch"] = "steps"
    """epoch: evaluate at the end of each epoch, instead of every eval_steps."""
    eval_on_start: bool | None = None
    """Evaluate before the first step, so that checkpoint-best can be the start; the recipe decides when not given."""
    eval_batch_size: AtLeast1 | None = None
    """Examples at a time in evaluation, on each process; micro_batch_size when not given."""
    save_steps: AtLeast0 = 500
    """Steps between two checkpoints; 0: only at the end."""
    save_every: Literal["steps", "epoch"] = "steps"
    """epoch: save a checkpoint at the end of each epoch, instead of every save_steps."""
    save_in_shards: bool | None = None
    """FSDP: every process writes its own shard of a checkpoint; on when not given."""
    save_total_limit: AtLeast1 | None = None
    """How many of the newest checkpoints to keep, beside the best one; none: all."""
    early_stopping_patience: AtLeast1 | None = None
    """Evaluations in a row without a better metric_for_best_model after which the run ends; none: never."""
    early_stopping_min_delta: NotNegative = 0.0
    """Least improvement of metric_for_best_model that early_stopping_patience takes for one."""
    metric_for_best_model: str | None = None
    """Evaluation metric that chooses checkpoint-best; the recipe's own when not given."""
    greater_is_better: bool | None = None
    """Direction of metric_for_best_model; known for losses and errors by name when not given."""
    final: Literal["best", "last"] = "best"
    """Weights in final/: those of the best evaluation (the last ones if there was none), or those of the last step."""
    max_shard_size: Size = "5GB"
    """Largest file of weights in final/, such as 300MB; a larger model is cut over several files with an index."""
    resume_from_checkpoint: str | None = None
    """"auto" (newest complete checkpoint in output_dir, or start), a checkpoint folder, or a URL."""
    allow_changed_data: bool = False
    """Continue a run on other data than it was trained on so far; without it, changed data are refused."""
    init_from: str | None = None
    """Folder of a run or checkpoint whose weights alone to start from: the next stage of a training."""
    report_to: Tracker = "none"
    """Experiment tracker to write to, beside metrics.jsonl."""
    wandb_project: str = "relay"
    """Weights & Biases: project."""
    wandb_run_name: str | None = None
    """Weights & Biases: name of the run; the output folder's name when not given."""
    upload_to: str | None = None
    """URL (s3://, gs://, abfs://, file://, ...) that checkpoints are copied to in the background."""
    cloud_provider: Literal["aws", "s3", "gcp", "gcs", "azure"] | None = None
    """Alternative to upload_to: the provider, with cloud_bucket and cloud_prefix."""
    cloud_bucket: str | None = None
    """Alternative to upload_to: the bucket, or Azure's container."""
    cloud_prefix: str | None = None
    """Alternative to upload_to: the folder in the bucket."""
    cloud_region: str | None = None
    """AWS region of the bucket, where AWS_DEFAULT_REGION does not set it."""
    num_workers: Workers = 0
    """Processes that prepare micro-batches ahead, per training process; 0: prepare them in the loop."""
    loader_timeout: NotNegative = 1800
    """Seconds without a micro-batch from the num_workers processes after which the run ends; 0: never."""
    ddp_timeout: Positive = 1800
    """Seconds without an answer from another process of the run after which it ends."""
    max_train_examples: AtLeast1 | None = None
    """Use only this many training examples."""
    max_eval_examples: AtLeast1 | None = None
    """Use only this many evaluation examples: a fixed random sample."""
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    """When loss or gradient is not finite: stop with status 3, skip the update, or roll back to a checkpoint."""
    max_skipped_steps: AtLeast1 = 10
    """Steps in a row that may teach nothing (skipped by on_bad_step, or without anything to score); then status 3."""
    grad_norm_spike_factor: NotNegative = 0.0
    """A gradient norm this many times its running mean is a bad step as well; 0: never."""
    exclude_examples: Commas | None = None
    """Training examples to leave out: numbers with commas between them, or a file with one per line."""
    empty_cache_steps: AtLeast0 = 0
    """Steps between two releases of the accelerator's unused memory; 0: never."""
    use_expandable_segments: bool = False
    """CUDA: use expandable memory segments, which reduces fragmentation."""
    debug: bool = False
    """Full tracebacks, and torch's anomaly detection."""
    dry_run: bool = False
    """Check settings, data, model and one step, print the plan, and write nothing."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.max_steps == -1:
            # transformers.TrainingArguments writes "not set" as -1.
            object.__setattr__(self, "max_steps", None)
        for name in TEXTS:
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise ConfigError(f"{name} is empty: give it a value, or leave --{name} out.")
        self._resolve_cloud()

    def _resolve_cloud(self) -> None:
        """Make upload_to of cloud_provider, cloud_bucket and cloud_prefix."""
        if self.cloud_provider is None:
            if self.cloud_bucket or self.cloud_prefix:
                raise ConfigError("cloud_bucket came without cloud_provider: type --cloud_provider aws, gcp or azure.")
            return
        if not self.cloud_bucket:
            raise ConfigError("cloud_provider came without a bucket: type --cloud_bucket NAME, or --upload_to URL.")
        scheme = {"gcp": "gs", "gcs": "gs", "azure": "abfs"}.get(self.cloud_provider, "s3")
        url = "/".join(part.strip("/") for part in (self.cloud_bucket, self.cloud_prefix) if part)
        if self.upload_to not in (None, f"{scheme}://{url}"):
            here, there = shown(str(self.upload_to)), shown(f"{scheme}://{url}")
            raise ConfigError(f"upload_to is {here}, cloud_* say {there}: give one of the two.")
        object.__setattr__(self, "upload_to", f"{scheme}://{url}")

    @property
    def examples_per_evaluation_batch(self) -> int:
        """`eval_batch_size`, or what stands in for it."""
        return self.eval_batch_size or self.micro_batch_size


FIRST = {
    "Output": ("output_dir", "resume_from_checkpoint"),
    "Length and batch": ("max_steps", "num_train_epochs", "batch_size", "micro_batch_size"),
    "Learning": ("learning_rate", "warmup_steps", "mixed_precision", "seed"),
    "Evaluation and checkpoints": ("eval_steps", "save_steps"),
}
"""The settings on the first page of help, under their headings."""

RENAMED: dict[str, str] = {}
"""Old name -> new name of the settings of every run. The old one works for one release."""


def setting_notes(settings: RunSettings, changed: frozenset[str]) -> list[str]:
    """A line for each setting that the user changed and that has no effect beside the others."""
    schedule = settings.lr_scheduler_type
    # (names, whether they have no effect, beside what)
    without_effect = [
        (("adam_beta1",), schedule == "one_cycle", "lr_scheduler_type one_cycle sets it at each step"),
        (("lr_step_size", "lr_gamma"), schedule != "step", f"lr_scheduler_type is {schedule}, not step"),
        (("min_lr_ratio",), schedule == "constant", "lr_scheduler_type is constant"),
        (("warmup_ratio",), settings.warmup_steps > 0, "warmup_steps is given"),
        (("num_train_epochs",), settings.max_steps is not None, "max_steps is given"),
        (("wandb_project", "wandb_run_name"), settings.report_to != "wandb", f"report_to is {settings.report_to}"),
        (("eval_steps",), settings.eval_every == "epoch", "eval_every is epoch"),
        (("save_steps",), settings.save_every == "epoch", "save_every is epoch"),
        (("early_stopping_min_delta",), settings.early_stopping_patience is None, "early_stopping_patience is not set"),
        (("cloud_region",), settings.upload_to is None, "nothing is uploaded"),
    ]
    return [
        f"{name} has no effect: {reason}."
        for names, is_idle, reason in without_effect
        for name in names
        if is_idle and name in changed
    ]
