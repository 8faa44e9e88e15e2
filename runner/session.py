"""One run from its settings to its final model: put the parts together, train, and write what others load."""

import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from runner import checkpoint, loop, report
from runner.checkpoint import State
from runner.config import Config, RunSettings, write_yaml, yaml_of
from runner.errors import BadStep, CheckpointError, ConfigError, DataError, DivergedError, UploadError
from runner.fetching import is_stream
from runner.hardware import Hardware, open_hardware, seed_everything
from runner.lanes import Lanes, check_batch, check_world, key
from runner.log import Ledger, Metrics, Progress
from runner.resuming import restore, resume_point, settled, source_of_weights
from runner.saving import Saver, save_final
from runner.schedule import num_warmup_steps
from runner.sharding import shard
from runner.signals import Signals
from runner.storage import Uploader
from runner.tree import Tree


def run(config: Config) -> None:
    """Train from start, or from where a checkpoint left off, to the end."""
    signals = Signals()
    hardware = open_hardware(config.run)
    config = config.with_run(output_dir=_output_dir(config, hardware))
    if config.run.cloud_region:
        os.environ.setdefault("AWS_DEFAULT_REGION", config.run.cloud_region)
    with contextlib.nullcontext() if config.run.dry_run else held(Path(config.run.output_dir or ""), hardware):
        _run(config, hardware, signals)


@contextlib.contextmanager
def held(output_dir: Path, hardware: Hardware, patience: float = 20) -> Iterator[None]:
    """The run's folder, for this run alone: two would write over each other's checkpoints.

    The system lets go of it when the process ends, however that happens. Raises ConfigError where another run still
    has the folder after `patience` seconds: one that was just stopped may be writing its last checkpoint.
    """
    from filelock import FileLock, Timeout

    lock, wrong = FileLock(output_dir / ".lock"), None
    if hardware.is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            wrong = (
                f"Another run is training into {output_dir}: wait for its end, stop it, or type another --output_dir."
            )
        except (OSError, NotImplementedError):
            # Some network folders have no locks.
            pass
    wrong = hardware.from_main(wrong)
    if wrong:
        raise ConfigError(wrong)
    try:
        yield
    finally:
        lock.release()


def _run(config: Config, hardware: Hardware, signals: Signals) -> None:
    """Train with the folder in hand."""
    output_dir = Path(config.run.output_dir or "")
    found, state = resume_point(config.run, output_dir, hardware)
    config = settled(config, state, hardware)
    settings = config.run
    run = put_together(config, hardware, signals, found, state)
    _introduce(run, config, found)
    if settings.dry_run:
        _try_one_step(run)
        return
    run.saver.reserve(run)
    _open_files(run, config)
    _start_trackers(run, config)
    if settings.upload_to and hardware.is_main:
        run.saver.uploader = Uploader(settings.upload_to, output_dir, settings.save_total_limit, run.progress.say)
        if found is not None:
            run.saver.uploader.add(found, state.best_step)
    torch.autograd.set_detect_anomaly(settings.debug)
    try:
        while not _trained(run):
            pass
        _finish(run, config, output_dir)
    except BaseException:
        # What was whole before the trouble is to be found after it.
        with contextlib.suppress(Exception):
            run.saver.wait()
        _close_uploads(run)
        raise
    missing = _close_uploads(run)
    if missing:
        raise UploadError(
            f"Not uploaded to {settings.upload_to}: {'; '.join(f'{name} ({why})' for name, why in missing.items())}.\n"
            f"All of it is in {output_dir}; the same command with --resume_from_checkpoint auto uploads it again."
        )


def put_together(config: Config, hardware: Hardware, signals: Any, found: Path | None, state: State) -> loop.Run:
    """A run, ready to train from `state`: recipe, data, lanes, model and optimiser, with what `found` holds of them."""
    settings = config.run
    fresh_start(config, found)
    check_batch(settings.batch_size or 0, settings.micro_batch_size)
    check_world((settings.batch_size or 0) // settings.micro_batch_size, hardware.num_processes)
    recipe = prepare(config, Path(settings.output_dir or "") / "assets", found, hardware)
    train_data = training_data(recipe, settings)
    eval_data = drawn(recipe.data("validation"), settings.max_eval_examples)
    lanes, max_steps = plan(settings, train_data, state)
    model = first_weights(recipe, settings)
    run = assemble(config, hardware, recipe, model, lanes, train_data, eval_data, max_steps, state, signals)
    if found is not None:
        restore(run, found)
    return run


def fresh_start(config: Config, found: Path | None) -> str | None:
    """What the recipe says of a training that begins without weights. Raises ConfigError where it refuses to."""
    if found is not None or config.run.init_from or not hasattr(config.recipe, "fresh_start"):
        return None
    return config.recipe.fresh_start()


def _trained(run: loop.Run) -> bool:
    """Train to the end; False where the run went back, and is to train again."""
    try:
        loop.train(run)
    except BadStep as bad:
        go_back(run, str(bad))
        return False
    return True


def first_weights(recipe: Any, settings: RunSettings) -> nn.Module:
    """The model that a run starts with: fresh from the seed, or with the weights of `init_from`."""
    seed_everything(key(settings.seed, "weights"))
    model = recipe.model()
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    if settings.init_from:
        source = source_of_weights(settings.init_from)
        tensors = checkpoint.read_tensors(source / "model.safetensors")
        if hasattr(recipe, "inherit"):
            recipe.inherit(model, tensors)
        else:
            checkpoint.load_model(model, tensors, str(source))
    return model


def go_back(run: loop.Run, wrong: str) -> None:
    """Return to the last good checkpoint, or to the start, and leave out the examples of the bad step from there on."""
    run.saver.wait()
    hardware, state = run.hardware, run.state
    examples = run.lanes.everything(state.step) if run.lanes.num_examples else _stream_examples(run)
    found, before = resume_point(
        dataclasses.replace(run.settings, resume_from_checkpoint="auto"), run.saver.output_dir, hardware
    )
    before.excluded = sorted({*state.excluded, *examples}, key=str)
    if not examples:
        raise DivergedError(
            f"{wrong} All of its examples were left out before: the data are not what is wrong.\n"
            "Lower --learning_rate or lengthen --warmup_steps, and start anew."
        )
    run.progress.say(
        f"{wrong} Going back to step {before.step} ({found or 'the start'}), without its {len(examples)} examples: "
        f"{', '.join(map(str, examples[:8]))}{' ...' if len(examples) > 8 else ''}."
    )
    before.num_examples, before.batch_size = state.num_examples, state.batch_size
    before.micro_batch_size, before.seed, before.trackers = state.micro_batch_size, state.seed, state.trackers
    run.state = before
    run.lanes = dataclasses.replace(run.lanes, excluded=frozenset(before.excluded))
    run.optimizer.zero_grad()
    run.optimizer.state.clear()
    if found is not None:
        restore(run, found)
    else:
        fresh = first_weights(run.recipe, run.settings)
        checkpoint.load_model(run.bare_model, checkpoint.model_tensors(fresh), "the fresh model")
    run.saver.saved_step = -1
    _open_metrics(run)


def _stream_examples(run: loop.Run) -> list[str]:
    """The examples of the step that just went bad, as `Lanes.excluded` names those of a stream."""
    own = {str(lane.lane): [json.dumps([lane.lane, cursor]) for cursor in lane.consumed] for lane in run.in_hand}
    together = run.hardware.merged(own)
    return [name for lane in sorted(together, key=int) for name in together[lane]]


def _try_one_step(run: loop.Run) -> None:
    """Dry run: forward and backward of one step, without an update."""
    fetched = loop.fetch(run)
    lanes = [next(fetched) for _ in run.share]
    loss, _ = loop.accumulate(run, lanes, loop.agree(run, lanes))
    (total,) = run.hardware.sum([float(loss)])
    run.progress.say(f"dry run: one step has a loss of {total:.4f}; nothing was written.")


def prepare(config: Config, assets: Path, found: Path | None, hardware: Hardware) -> Any:
    """The recipe, bound to what it fits on the training split; one process fits, the others read."""
    recipe, source = config.recipe, found
    if source is None and config.run.init_from:
        source = source_of_weights(config.run.init_from)
    if config.run.dry_run:
        import atexit
        import tempfile

        # One for each process, as nothing may be written where the others look.
        assets = Path(tempfile.mkdtemp(prefix="relay-dry-run-"))
        atexit.register(shutil.rmtree, assets, ignore_errors=True)
    if hardware.is_main or config.run.dry_run:
        assets.mkdir(parents=True, exist_ok=True)
        if source is not None and (source / "assets").is_dir():
            shutil.copytree(source / "assets", assets, dirs_exist_ok=True)
        elif source is not None:
            # In `final/` they lie flat, beside the model.
            others = shutil.ignore_patterns("*.safetensors", "manifest.json", "README.md", "config.yaml", "config.json")
            shutil.copytree(source, assets, dirs_exist_ok=True, ignore=others)
    if not hasattr(recipe, "prepare"):
        return recipe
    if hardware.is_main:
        recipe = recipe.prepare(assets)
    hardware.accelerator.wait_for_everyone()
    return recipe if hardware.is_main else recipe.prepare(assets)


def limited(data: Sequence[Any], most: int | None) -> Sequence[Any]:
    """The first `most` examples."""
    if most is None or len(data) <= most:
        return data
    return torch.utils.data.Subset(data, range(most))  # type: ignore[return-value, arg-type]


def drawn(data: Sequence[Any], most: int | None) -> Sequence[Any]:
    """A fixed draw of `most` examples, in their order: the first ones are often all about the same."""
    if most is None or len(data) <= most:
        return data
    return torch.utils.data.Subset(data, sorted(random.Random(0).sample(range(len(data)), most)))  # type: ignore[return-value, arg-type]


def training_data(recipe: Any, settings: RunSettings) -> Any:
    """The training split: examples by index, or a stream. Raises DataError where it is empty."""
    data = recipe.data("train")
    if is_stream(data):
        if settings.max_train_examples is not None:
            raise ConfigError(
                "max_train_examples cannot cut a stream: limit the data at their source, or the run by --max_steps."
            )
        return data
    if settings.max_train_examples is not None and hasattr(data, "order"):
        raise ConfigError(
            "max_train_examples cannot cut data with an order of their own: limit them by the recipe's settings."
        )
    data = limited(data, settings.max_train_examples)
    if not len(data):
        raise DataError("The training split is empty: check the data settings of the recipe.")
    return data


def plan(settings: RunSettings, data: Any, state: State) -> tuple[Lanes, int]:
    """The lanes and the number of steps of a run. Raises CheckpointError where the data are not those of before."""
    num_examples = 0 if is_stream(data) else len(data)
    if state.batch_size and state.num_examples != num_examples:
        raise CheckpointError(
            f"The checkpoint's run had {state.num_examples} training examples; now there are {num_examples}.\n"
            "Give the same data settings, or start anew from its weights: --init_from CHECKPOINT --output_dir NEW."
        )
    batch_size, micro_batch_size = settings.batch_size or 0, settings.micro_batch_size
    order = data.order(batch_size, micro_batch_size, settings.seed) if hasattr(data, "order") else None
    per_epoch = examples_per_epoch(data, order)
    total, max_steps = None, settings.max_steps
    if max_steps is None:
        if per_epoch is None:
            raise ConfigError(
                "The training data are a stream of unknown length: type --max_steps with the updates to make."
            )
        total = math.ceil((settings.num_train_epochs or 3.0) * per_epoch)
        max_steps = math.ceil(total / batch_size)
    state.excluded = state.excluded or _excluded(settings.exclude_examples)
    if num_examples and len(set(state.excluded)) >= num_examples:
        raise ConfigError("exclude_examples leaves no example: check its numbers.")
    lanes = Lanes(
        num_examples,
        batch_size,
        micro_batch_size,
        settings.seed,
        None if order is not None or not num_examples else total,
        frozenset(state.excluded),
        order,
    )
    state.batch_size, state.micro_batch_size = batch_size, micro_batch_size
    state.seed, state.num_examples = settings.seed, num_examples
    return lanes, max_steps


def examples_per_epoch(data: Any, order: Any) -> int | None:
    """What one epoch counts; None where nobody knows."""
    if order is not None:
        return order.examples_per_epoch
    return getattr(data, "examples_per_epoch", None) if is_stream(data) else len(data)


def _excluded(wish: str | None) -> list[Any]:
    """The ids that a user asked to leave out. Raises ConfigError where they are not numbers."""
    if wish is None:
        return []
    path = Path(wish)
    text = path.read_text(encoding="utf-8") if path.is_file() else wish
    try:
        return sorted({int(word) for word in text.replace(",", " ").split()})
    except ValueError:
        raise ConfigError(
            f"exclude_examples is {wish!r}: type numbers with commas between them, or the path of a file of numbers."
        ) from None


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Turn it on where the model has it. Raises ConfigError where it has not: a wish is not dropped silently."""
    # The name of transformers 5.23 on, and the one before it.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    if enable is None:
        raise ConfigError(f"{type(model).__name__} has no gradient checkpointing: leave --gradient_checkpointing out.")
    # The reentrant kind drops the gradient of the router's auxiliary loss.
    enable({"use_reentrant": False})


def assemble(
    config: Config,
    hardware: Hardware,
    recipe: Any,
    model: nn.Module,
    lanes: Lanes,
    train_data: Sequence[Any],
    eval_data: Sequence[Any],
    max_steps: int,
    state: State,
    signals: Any,
) -> loop.Run:
    """Everything that the loop needs, prepared by accelerate."""
    from runner.optim import optimizer as optimizer_of

    settings, accelerator = config.run, hardware.accelerator
    output_dir = Path(settings.output_dir or "")
    model.train()
    if settings.optim == "muon" and (hardware.is_sharded or accelerator.scaler is not None):
        raise ConfigError("Muon needs whole matrices, and no fp16: type --optim adamw, or leave FSDP or fp16 out.")
    if settings.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        tree = Tree(model, lanes.num_lanes, hardware.process, hardware.num_processes)
        prepared, optimizer = model.to(hardware.device), optimizer_of(model, settings, hardware.device)
    elif hardware.is_sharded:
        tree = None
        prepared = shard(model.to(hardware.device), hardware.device.type, hardware.num_processes)
        optimizer = optimizer_of(prepared, settings, hardware.device)
    else:
        tree = None
        prepared = accelerator.prepare(model)
        optimizer = optimizer_of(prepared, settings, hardware.device)
        if accelerator.scaler is not None:
            # Accelerate's wrapper knows of fp16's loss scale, and looks for installed packages at every step.
            optimizer = accelerator.prepare(optimizer)
    bare_model = cast(nn.Module, accelerator.unwrap_model(prepared, keep_torch_compile=False))
    if settings.torch_compile:
        prepared = cast(nn.Module, torch.compile(prepared))
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    in_shards = weight_bytes >= 2e9 if settings.save_in_shards is None else settings.save_in_shards
    best_metric = settings.metric_for_best_model or getattr(recipe, "best_metric", "loss")
    return loop.Run(
        settings=settings,
        recipe=recipe,
        hardware=hardware,
        model=prepared,
        bare_model=bare_model,
        optimizer=optimizer,
        lanes=lanes,
        train_data=train_data,
        eval_data=eval_data,
        max_steps=max_steps,
        state=state,
        metrics=None,
        ledger=None,
        progress=Progress(hardware.is_main, max_steps, examples_per_epoch(train_data, lanes.order)),
        saver=Saver(
            output_dir,
            yaml_of(config),
            output_dir / "assets",
            settings.save_total_limit,
            hardware.is_main,
            in_shards,
        ),
        signals=signals,
        best_metric=best_metric,
        tree=tree,
    )


def _output_dir(config: Config, hardware: Hardware) -> str:
    """The run's folder, the same on every process."""
    name = Path(config.recipe_name).stem if config.recipe_name.endswith(".py") else config.recipe_name
    chosen = config.run.output_dir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return hardware.from_main(chosen)


def _introduce(run: loop.Run, config: Config, found: Path | None) -> None:
    """Say what will happen."""
    total = sum(parameter.numel() for parameter in run.bare_model.parameters())
    trained = sum(parameter.numel() for parameter in run.bare_model.parameters() if parameter.requires_grad)
    share = "" if trained == total else f", {trained:,} of them trained ({trained / total:.1%})"
    say = run.progress.say
    say(f"recipe {config.recipe_name}, preset {config.preset or 'default'}, into {run.settings.output_dir}")
    say(f"hardware: {run.hardware.describe()}")
    say(f"model: {type(run.bare_model).__name__}, {total:,} parameters{share}")
    training = "a stream of" if is_stream(run.train_data) else f"{len(run.train_data):,}"
    say(
        f"data: {training} training and {len(run.eval_data):,} validation examples; "
        f"{run.max_steps:,} steps of {run.lanes.batch_size} examples in {run.lanes.num_lanes} lanes"
    )
    for warning in getattr(run.train_data, "warnings", lambda _: [])(run.max_steps * run.lanes.batch_size):
        say(f"warning: {warning}")
    remark = fresh_start(config, found)
    if remark is not None:
        say(f"warning: {remark}")
    warmup_steps = num_warmup_steps(run.settings, run.max_steps)
    if warmup_steps < run.settings.warmup_steps:
        most = f"{run.settings.max_warmup_ratio:.0%} of all"
        say(f"warm-up: {warmup_steps:,} steps, {most}, instead of {run.settings.warmup_steps:,}")
    if found is not None:
        say(f"going on from {found} at step {run.state.step}")


def _open_files(run: loop.Run, config: Config) -> None:
    """Write the settings, and open metrics and ledger, on the main process."""
    output_dir = Path(run.settings.output_dir or "")
    if run.hardware.is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_yaml(config, output_dir / "config.yaml")
    _open_metrics(run)


def _open_metrics(run: loop.Run) -> None:
    """Open metrics and ledger on the main process where the state is, without what came after it."""
    if not run.hardware.is_main:
        return
    output_dir, state, lanes = Path(run.settings.output_dir or ""), run.state, run.lanes
    run.metrics = Metrics(output_dir / "metrics.jsonl", state.step)
    start = {
        "seed": lanes.seed,
        "num_examples": lanes.num_examples,
        "batch_size": lanes.batch_size,
        "micro_batch_size": lanes.micro_batch_size,
        "total_examples": lanes.total_examples,
        "excluded": state.excluded,
        "processes": run.hardware.num_processes,
    }
    run.ledger = Ledger(output_dir / "ledger.jsonl", state.step, start)


def _start_trackers(run: loop.Run, config: Config) -> None:
    """Open the experiment tracker; a W&B run continues under its id after a resume."""
    settings, accelerator = run.settings, run.hardware.accelerator
    if settings.report_to == "none":
        return
    output_dir = Path(settings.output_dir or "")
    accelerator.project_configuration.set_directories(str(output_dir))
    options: dict[str, Any] = {}
    if settings.report_to == "wandb":
        if not os.environ.get("WANDB_API_KEY") and not os.environ.get("WANDB_MODE"):
            # Without a key W&B would end the run; offline it writes a folder that `wandb sync` sends later.
            os.environ["WANDB_MODE"] = "offline"
            run.progress.say("W&B: no WANDB_API_KEY, so it writes offline; `wandb sync` sends it later.")
        options["wandb"] = {
            "name": settings.wandb_run_name or output_dir.name,
            "dir": str(output_dir),
            "id": run.state.trackers.get("wandb"),
            "resume": "allow",
        }
    simple = {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in config.flat().items()
    }
    accelerator.init_trackers(settings.wandb_project, config=simple, init_kwargs=options)
    if settings.report_to == "wandb" and run.hardware.is_main:
        run.state.trackers["wandb"] = accelerator.get_tracker("wandb", unwrap=True).id  # type: ignore[attr-defined]


def _finish(run: loop.Run, config: Config, output_dir: Path) -> None:
    """Write `final/` and the report, and close what is open."""
    run.progress.close()
    accelerator = run.hardware.accelerator
    # Where weights are cut over the processes, all take part in putting them together.
    is_needed = run.hardware.is_main or run.hardware.is_sharded
    tensors = checkpoint.model_tensors(run.bare_model) if is_needed else {}
    if run.hardware.is_main:
        files = {"config.yaml": yaml_of(config), "README.md": model_card(run, config)}
        final = save_final(output_dir, run.bare_model, tensors, output_dir / "assets", files)
        print(f"finished at step {run.state.step}: {final}, {report.write(output_dir)}", flush=True)
        if run.saver.uploader is not None:
            run.saver.uploader.add(final)
    if run.settings.report_to != "none":
        accelerator.end_training()
    accelerator.wait_for_everyone()


def _close_uploads(run: loop.Run) -> dict[str, str]:
    """Wait for the last copies, after a signal no longer than torchrun does; returns what is missing, and why."""
    if run.saver.uploader is None:
        return {}
    return run.saver.uploader.close(20.0 if run.signals.number else 600.0)


def model_card(run: loop.Run, config: Config) -> str:
    """A short README.md for the final model."""
    best = (
        f", best {run.best_metric} {run.state.best_score:.4f} at step {run.state.best_step}"
        if run.state.best_step
        else ""
    )
    return (
        f"---\nlibrary_name: transformers\ntags: [relay, {config.recipe_name}]\n---\n\n"
        f"# {Path(run.settings.output_dir or 'model').name}\n\n"
        f"Trained with Relay, recipe `{config.recipe_name}`, preset `{config.preset or 'default'}`, "
        f"{run.state.step} steps of {run.lanes.batch_size} examples{best}.\n\n"
        "`config.yaml` repeats the run: `relay train --config config.yaml --output_dir NEW`.\n"
    )
