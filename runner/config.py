"""The settings of a run: their names, help and defaults, and how presets, YAML and flags make them.

Precedence: recipe's "default" or named preset < YAML < flags. Keys are the flags' names, nested at the dots.
"""

import contextlib
import dataclasses
import difflib
import io
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from runner.errors import ConfigError

Precision = Literal["auto", "no", "bf16", "fp16"]
Scheduler = Literal["constant", "linear", "cosine", "step", "one_cycle", "wsd"]
Optimizer = Literal["adamw", "muon"]
Tracker = Literal["none", "tensorboard", "wandb", "trackio"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of every run, whatever the recipe; named as in transformers.TrainingArguments where it has them."""

    output_dir: str | None = None
    """Folder for everything the run writes; runs/<recipe>-<date>-<time> when not given."""
    seed: int = 0
    """Seed of the weights, the order of the data and every other random number."""
    max_steps: int | None = None
    """Length of the run in optimiser updates; wins over num_train_epochs."""
    num_train_epochs: float | None = None
    """Length of the run in passes over the training split; 3 when max_steps is not given either."""
    batch_size: int | None = None
    """Examples per step over all hardware; 32 when nothing else says it."""
    micro_batch_size: int = 8
    """Examples per lane: what one process holds in memory at a time."""
    gradient_accumulation_steps: int | None = None
    """Lanes per process at the first start, instead of batch_size, which is then derived and kept."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only (not on biases, norms or other vectors)."""
    optim: Optimizer = "adamw"
    """muon: matrices inside layers are updated by Muon, everything else by AdamW, at one learning rate."""
    adam_beta1: float = 0.9
    """AdamW: decay rate of the first moment."""
    adam_beta2: float = 0.999
    """AdamW: decay rate of the second moment."""
    adam_epsilon: float = 1e-8
    """AdamW: added to the denominator."""
    max_grad_norm: float = 1.0
    """Largest gradient norm of a step; longer gradients are scaled down; 0 turns clipping off."""
    lr_scheduler_type: Scheduler = "cosine"
    """Shape of the learning rate over the steps."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    warmup_ratio: float = 0.0
    """Share of all steps that is linear warm-up, where warmup_steps is 0."""
    max_warmup_ratio: float = 1.0
    """Longest warm-up, as a share of all steps; what warmup_steps asks for beyond it is cut, and the run says so."""
    min_lr_ratio: float = 0.0
    """Floor of the learning rate, as a share of the peak."""
    lr_step_size: int | None = None
    """Schedule "step": steps between two drops; a third of the run when not given."""
    lr_gamma: float = 0.1
    """Schedule "step": factor of each drop."""
    mixed_precision: Precision = "auto"
    """Number format of the arithmetic; auto: bf16 where the hardware computes in it natively, else no (fp32)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""
    deterministic: bool = False
    """Sum the lanes' gradients in a fixed tree: the same weights to the bit for any number of processes."""
    logging_steps: int = 10
    """Steps between two log lines."""
    eval_steps: int = 500
    """Steps between two evaluations; 0: only at the end."""
    eval_batch_size: int | None = None
    """Examples at a time in evaluation, on each process; micro_batch_size when not given."""
    save_steps: int = 500
    """Steps between two checkpoints; 0: only at the end."""
    save_in_shards: bool | None = None
    """FSDP: every process writes what it holds, and none gathers the whole; from 2 GB of weights on when not given."""
    save_total_limit: int | None = None
    """Newest checkpoints to keep; the best one is always kept as well; none: all."""
    early_stopping_patience: int | None = None
    """Evaluations in a row without a better metric_for_best_model after which the run ends; none: never."""
    metric_for_best_model: str | None = None
    """Evaluation metric that chooses checkpoint-best; the recipe's own when not given."""
    greater_is_better: bool | None = None
    """Direction of metric_for_best_model; known for losses and errors by name when not given."""
    resume_from_checkpoint: str | None = None
    """"auto" (newest complete checkpoint in output_dir, or start), a checkpoint folder, or a URL."""
    init_from: str | None = None
    """Checkpoint folder to take the weights from, and nothing else: the next stage of a training."""
    report_to: Tracker = "none"
    """Experiment tracker to write to, beside metrics.jsonl."""
    wandb_project: str = "relay"
    """Weights & Biases: project."""
    wandb_run_name: str | None = None
    """Weights & Biases: name of the run; the output folder's name when not given."""
    upload_to: str | None = None
    """URL (s3://, gs://, abfs://, file://, ...) that checkpoints are copied to in the background."""
    cloud_provider: Literal["aws", "s3", "gcp", "gcs", "azure"] | None = None
    """Another spelling of upload_to: the provider; the bucket and the prefix are the two settings below."""
    cloud_bucket: str | None = None
    """Another spelling of upload_to: the bucket, or Azure's container."""
    cloud_prefix: str | None = None
    """Another spelling of upload_to: the folder in the bucket."""
    cloud_region: str | None = None
    """Amazon's region of the bucket, where AWS_DEFAULT_REGION does not say it."""
    num_workers: int = 0
    """Processes that prepare micro-batches ahead, per training process; 0: prepare them in the loop."""
    max_train_examples: int | None = None
    """Use only this many training examples."""
    max_eval_examples: int | None = None
    """Use only this many evaluation examples: a fixed draw."""
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    """What to do when loss or gradient is not finite: end with status 3, leave the update out, or go back."""
    grad_norm_spike_factor: float = 0.0
    """A gradient norm this many times its running mean is a bad step as well; 0: never."""
    exclude_examples: str | None = None
    """Training examples to leave out: numbers with commas between them, or a file with one per line."""
    empty_cache_steps: int = 0
    """Steps between two releases of the accelerator's unused memory; 0: never."""
    use_expandable_segments: bool = False
    """CUDA: let the allocator grow its segments, against fragmentation."""
    debug: bool = False
    """Full tracebacks, and torch's anomaly detection."""
    dry_run: bool = False
    """Check settings, data, model and one step, print the plan, and write nothing."""

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "logging_steps"):
            _at_least(name, getattr(self, name), 1)
        for name in ("warmup_steps", "eval_steps", "save_steps", "num_workers", "empty_cache_steps"):
            _at_least(name, getattr(self, name), 0)
        optional = (
            "batch_size",
            "gradient_accumulation_steps",
            "lr_step_size",
            "save_total_limit",
            "eval_batch_size",
            "early_stopping_patience",
            "max_train_examples",
            "max_eval_examples",
        )
        for name in optional:
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "grad_norm_spike_factor"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: type --{name} with a number of at least 0.")
        for name in ("warmup_ratio", "max_warmup_ratio", "min_lr_ratio", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: type --{name} with a number from 0 to 1.")
        if self.max_steps is not None and self.max_steps < 0:
            # transformers.TrainingArguments writes "not set" as -1.
            object.__setattr__(self, "max_steps", None)
        if self.max_steps is not None:
            _at_least("max_steps", self.max_steps, 1)
        if self.num_train_epochs is not None and not self.num_train_epochs > 0:
            raise ConfigError(f"num_train_epochs is {self.num_train_epochs}: type a number above 0.")

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
            raise ConfigError(f"upload_to is {self.upload_to}, cloud_* say {scheme}://{url}: give one of the two.")
        object.__setattr__(self, "upload_to", f"{scheme}://{url}")

    @property
    def examples_per_evaluation_batch(self) -> int:
        """`eval_batch_size`, or what stands in for it."""
        return self.eval_batch_size or self.micro_batch_size

    @property
    def schedule_names(self) -> tuple[str, ...]:
        """The names of the learning-rate schedules."""
        return typing.get_args(Scheduler)


def _at_least(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise ConfigError(f"{name} is {value}: type --{name} with a whole number of at least {lowest}.")


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a run was told: the runner's settings, the recipe with its own, and where they came from."""

    recipe_name: str
    preset: str | None
    run: RunSettings
    recipe: Any
    """The recipe itself: its fields are its settings."""
    explicit: frozenset[str] = frozenset()
    """The settings that YAML or flags named, as opposed to presets and defaults."""

    def with_run(self, **changes: Any) -> "Config":
        """The same config with some of the runner's settings changed."""
        return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))

    def nested(self) -> dict[str, Any]:
        """Every setting as resolved, nested as in YAML: what `config.yaml` holds."""
        nested: dict[str, Any] = {"recipe": self.recipe_name, "preset": self.preset}
        for owner in (self.run, self.recipe):
            for setting in settings_of(type(owner)):
                place = nested
                for part in setting.flag.split(".")[:-1]:
                    place = place.setdefault(part, {})
                place[setting.flag.split(".")[-1]] = _plain(setting.get(owner))
        return nested

    def flat(self) -> dict[str, Any]:
        """Every setting as resolved, flat with dots: what trackers are told."""
        return dict(flatten(self.nested()))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of the settings: its flag, and where it is in the dataclasses."""

    flag: str
    """Name with dots, as in `--data.dir`."""
    attributes: tuple[str, ...]
    """The way from the outer dataclass to the field."""
    type: Any
    """The annotated type."""

    def get(self, owner: Any) -> Any:
        """The value in `owner`."""
        for attribute in self.attributes:
            owner = getattr(owner, attribute)
        return owner


def group_name(field: str) -> str:
    """The name users see of a nested field: `data_settings` is the group `data` (the verb `data` has the name)."""
    return field.removesuffix("_settings")


def settings_of(owner: type, prefix: str = "", way: tuple[str, ...] = ()) -> list[Setting]:
    """Every setting of a (nested) dataclass, but for the fields that it hides with `tyro.conf.Suppress`."""
    hints = typing.get_type_hints(owner, include_extras=True)
    found = []
    for field in dataclasses.fields(owner):
        hint = hints[field.name]
        if not field.init or "Suppress" in repr(hint):
            continue
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found += settings_of(hint, f"{prefix}{group_name(field.name)}.", (*way, field.name))
        else:
            found.append(Setting(prefix + field.name, (*way, field.name), hint))
    return found


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name with dots, value) for every leaf of nested mappings."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parse(arguments: Sequence[str], program: str = "relay train") -> Config:
    """Read the command line of a training.

    Raises ConfigError for what cannot be understood; prints the help and leaves with status 0 for `--help`.
    """
    from runner import registry

    chosen, flags, wants_help = _split(arguments)
    from_yaml: dict[str, Any] = {}
    if "config" in chosen:
        from_yaml = read_yaml(Path(chosen["config"]))
        for name in ("recipe", "preset"):
            value = from_yaml.pop(name, None)
            if value is not None:
                chosen.setdefault(name, value)
    if "recipe" not in chosen:
        if wants_help:
            _print_general_help(program)
        raise ConfigError(
            f"No recipe was given: type --recipe with one of {', '.join(registry.names())}, or a file of yours."
        )
    recipe_class = registry.find(chosen["recipe"])
    all_settings = _combined(recipe_class)
    known = {setting.flag: setting for owner in (RunSettings, recipe_class) for setting in settings_of(owner)}
    preset = chosen.get("preset")
    values = _preset_values(recipe_class, chosen["recipe"], preset)
    _check_names(values, known, "preset")
    yaml_values = dict(flatten(from_yaml))
    _check_names(yaml_values, known, f"{chosen.get('config')}")
    _check_names([flag for flag, _ in flags], known, "flag")

    arguments_in_order: list[str] = []
    for flag, value in (*values.items(), *yaml_values.items()):
        arguments_in_order += _as_arguments(known[flag], value)
    for flag, given in flags:
        arguments_in_order += _as_arguments(known[flag], given)
    if wants_help:
        arguments_in_order.append("--help")
    settings = _ask_tyro(all_settings, arguments_in_order, f"{program} --recipe {chosen['recipe']}")

    explicit = frozenset(yaml_values) | frozenset(flag for flag, _ in flags)
    run = _part(settings, RunSettings)
    return Config(chosen["recipe"], preset, _resolve_batch(run, explicit), _part(settings, recipe_class), explicit)


def parse_into(owner: type, arguments: Sequence[str], program: str, description: str | None = None) -> Any:
    """Read the command line of a `relay` verb into a dataclass, with the same manners as `parse`."""
    _, flags, wants_help = _split(arguments, own_names=())
    known = {setting.flag: setting for setting in settings_of(owner)}
    _check_names([flag for flag, _ in flags], known, "flag")
    ordered = [word for flag, given in flags for word in _as_arguments(known[flag], given)]
    return _ask_tyro(owner, [*ordered, *(["--help"] if wants_help else [])], program, description)


def read_yaml(path: Path) -> dict[str, Any]:
    """The nested settings in a YAML file. Raises ConfigError where there is none."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}: check the path given to --config.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        summary = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML: {summary}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; wanted: settings as `name: value` lines.")
    return content


def write_yaml(config: Config, path: Path) -> None:
    """Write all settings as resolved, so that `--config` with the file repeats the run."""
    path.write_text(yaml_of(config), encoding="utf-8")


def yaml_of(config: Config) -> str:
    """All settings as resolved, as text."""
    import yaml

    return yaml.safe_dump(config.nested(), sort_keys=False, allow_unicode=True)


def _split(
    arguments: Sequence[str], own_names: Sequence[str] = ("recipe", "preset", "config")
) -> tuple[dict[str, str], list[tuple[str, list[str]]], bool]:
    """Cut the command line into our own choices, the settings' flags with their words, and whether help is wanted."""
    chosen: dict[str, str] = {}
    flags: list[tuple[str, list[str]]] = []
    wants_help = False
    for argument in arguments:
        if argument in ("-h", "--help"):
            wants_help = True
        elif argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            flags.append((name.replace("-", "_"), [value] if equals else []))
        elif flags:
            flags[-1][1].append(argument)
        else:
            raise ConfigError(f"{argument!r} came where a flag was wanted: settings are typed as --name value.")
    rest = []
    for name, words in flags:
        if name not in own_names:
            rest.append((name, words))
        elif len(words) == 1:
            chosen[name] = words[0]
        else:
            raise ConfigError(f"--{name} takes one value; it came with {len(words)}.")
    return chosen, rest, wants_help


def _check_names(names: Any, known: Mapping[str, Setting], source: str) -> None:
    for name in names:
        if name in known:
            continue
        shown = f"--{name}" if source == "flag" else name
        where = "" if source == "flag" else f" in {source}"
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4) or [
            flag for flag in known if flag.split(".")[-1] == name.split(".")[-1]
        ]
        mark = "--" if source == "flag" else ""
        hint = f"Did you mean {mark}{near[0]}?" if near else "--help lists every setting."
        raise ConfigError(f"There is no setting {shown}{where}. {hint}")


def _as_arguments(setting: Setting, value: Any) -> list[str]:
    """One setting as the words that tyro reads: from flags (a list of strings) or from YAML (any value)."""
    flag = f"--{setting.flag}"
    is_switch = setting.type is bool
    if is_switch:
        word = value[0] if isinstance(value, list) and len(value) == 1 else value
        if word in ([], True) or str(word).lower() in ("true", "yes", "on", "1"):
            return [flag]
        if word is False or str(word).lower() in ("false", "no", "off", "0"):
            parent, _, leaf = setting.flag.rpartition(".")
            return [f"--{parent}.no_{leaf}" if parent else f"--no_{leaf}"]
        raise ConfigError(f"{flag} is a switch: type {flag} true or {flag} false; it came with {value!r}.")
    words = value if isinstance(value, (list, tuple)) else [value]
    return [flag, *(_word(word, setting) for word in words)]


def _word(value: Any, setting: Setting) -> str:
    # YAML reads the words no, off, yes and on as truth values: give a setting that wants the word its word.
    if isinstance(value, bool) and "Literal" in repr(setting.type):
        return "yes" if value else "no"
    if "bool" in repr(setting.type) and str(value).lower() in ("true", "yes", "on", "false", "no", "off"):
        return str(str(value).lower() in ("true", "yes", "on"))
    if isinstance(value, str) and value.lower() in ("none", "null") and "None" in repr(setting.type):
        return "None"
    return str(value)


def _combined(recipe_class: type) -> type:
    """One dataclass of the runner's and the recipe's settings, which inherits so that help texts are found."""
    import tyro

    shared = {field.name for field in dataclasses.fields(RunSettings)}
    clash = shared.intersection(field.name for field in dataclasses.fields(recipe_class))
    if clash:
        raise ConfigError(f"The recipe has settings of the runner's own names: rename {', '.join(sorted(clash))}.")
    hints = typing.get_type_hints(recipe_class, include_extras=True)
    renamed = []
    for field in dataclasses.fields(recipe_class):
        if field.name != group_name(field.name):
            hint = typing.Annotated[hints[field.name], tyro.conf.arg(name=group_name(field.name))]
            default = {"default_factory": field.default_factory} if field.default is dataclasses.MISSING else {}
            default = default or {"default": field.default}
            renamed.append((field.name, hint, dataclasses.field(**default)))  # type: ignore[call-overload]
    return dataclasses.make_dataclass("Settings", renamed, bases=(RunSettings, recipe_class), frozen=True, kw_only=True)


def _part(settings: Any, owner: type) -> Any:
    names = [field.name for field in dataclasses.fields(owner) if field.init]
    return owner(**{name: getattr(settings, name) for name in names})


def _ask_tyro(owner: type, arguments: list[str], program: str, description: str | None = None) -> Any:
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(owner, args=arguments, prog=program, description=description, use_underscores=True)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise ConfigError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """The message inside tyro's framed report, without the frame and the long help."""
    lines = [line.strip("│╭╰╮╯─ \n") for line in box.splitlines()]
    # Without a terminal of UTF-8 the frame is made of dashes.
    lines = [line for line in lines if line.strip("-+| ")]
    message = lines[1] if len(lines) > 1 else " ".join(lines)
    for line in lines[2:]:
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        message += f" {line}"
    return f"{message}. --help lists every setting." if "help" not in message else message


def _preset_values(recipe_class: type, recipe_name: str, preset: str | None) -> dict[str, Any]:
    presets = recipe_class.presets() if hasattr(recipe_class, "presets") else {}
    if preset is None:
        return dict(presets.get("default", {}))
    if preset not in presets:
        near = difflib.get_close_matches(preset, presets, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        listed = ", ".join(presets) or "none"
        raise ConfigError(f"{recipe_name} has no preset called {preset!r}. {hint}It has: {listed}.")
    return dict(presets[preset])


def _resolve_batch(run: RunSettings, explicit: frozenset[str]) -> RunSettings:
    """Let what the user named win over what a preset said of the same thing."""
    if "gradient_accumulation_steps" in explicit and "batch_size" not in explicit:
        return dataclasses.replace(run, batch_size=None)
    if "gradient_accumulation_steps" not in explicit:
        batch_size = run.batch_size or 32
        micro_batch_size = run.micro_batch_size
        if batch_size < micro_batch_size and "micro_batch_size" not in explicit:
            micro_batch_size = batch_size
        return dataclasses.replace(run, batch_size=batch_size, micro_batch_size=micro_batch_size)
    return run


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _print_general_help(program: str) -> typing.NoReturn:
    from runner import registry

    listed = ", ".join(registry.names())
    print(f"usage: {program} --recipe NAME [--preset P] [--config FILE.yaml] [--flag value ...]\n")
    print(f"  --recipe NAME  what to train: {listed}; or an entry point, a module, a .py file")
    print("  --preset P     a named set of settings of the recipe (relay recipes lists them)")
    print("  --config FILE  settings from YAML; flags win over it\n")
    print(f"{program} --recipe NAME --help adds the recipe's own settings. Settings of every run:\n")
    _ask_tyro(RunSettings, ["--help"], program)
    raise SystemExit(0)
