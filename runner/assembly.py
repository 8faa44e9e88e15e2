"""Build a run from the settings and a checkpoint: recipe, data, lanes, model and optimiser."""

import random
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from runner.checkpoints.manifest import find_damage, has_manifest
from runner.checkpoints.recorded import check_data
from runner.checkpoints.resume import restore
from runner.checkpoints.saver import Saver
from runner.checkpoints.state import State
from runner.checkpoints.tensors import read_tensors
from runner.checkpoints.trained import copy_assets, find_weights
from runner.compiling import compile_model
from runner.config import Config, yaml_of
from runner.deferred import Deferred, built, read_late
from runner.errors import CheckpointError, ConfigError, DataError
from runner.fetching import examples_per_epoch, has_own_order, indexed_split, is_stream, order_of, warnings_of
from runner.hardware import Hardware, open_hardware, seed_everything
from runner.lanes import Lanes, by_length, check_batch, check_world, key, run_length
from runner.parts.fingerprints import digest
from runner.precision import measured_precision
from runner.progress import Progress
from runner.recipe import Data, Recipe
from runner.run import Run
from runner.settings import RunSettings, setting_notes
from runner.sharding import shard
from runner.tree import Tree


def open_run(config: Config, hardware: Hardware | None = None) -> Run:
    """A run as a training builds it, without the parts that write files; on `hardware`, or on what the settings open.

    Raises ConfigError if several processes were started.
    """
    config = config.with_batch(1)
    if hardware is None:
        hardware = open_hardware(config.run)
    else:
        hardware.accelerator.free_memory()
        config = config.with_run(mixed_precision=hardware.precision)
    if hardware.num_processes > 1:
        raise ConfigError("relay find-lr runs on one process: type relay find-lr without accelerate launch.")
    run = build_run(config, hardware, NoSignals(), None, State())
    run.saver = NoSaver()
    run.progress.close()
    run.progress = Progress(False, run.max_steps, None)
    return run


class NoSignals:
    """Stands in for Signals: Ctrl-C ends the program at once, because there is nothing to save."""

    number = 0


class NoSaver:
    """Stands in for Saver: saves nothing."""

    def save(self, run: Any, is_best: bool) -> None:
        """Do nothing."""

    def wait(self, hardware: Hardware | None = None) -> None:
        """Do nothing."""

    def before_update(self, run: Any) -> None:
        """Do nothing."""

    def note_step(self, run: Any, seconds: float) -> None:
        """Do nothing."""


def build_run(config: Config, hardware: Hardware, signals: Any, found: Path | None, state: State) -> Run:
    """A run, ready to train from `state`: recipe, data, lanes, model and optimiser, with what `found` holds of them."""
    settings = config.run
    check_batch(settings.batch_size or 0, settings.micro_batch_size)
    check_world((settings.batch_size or 0) // settings.micro_batch_size, hardware.num_processes)
    first = check_fresh_start(config, found)
    data_notes = check_data(config, state, hardware)
    recipe = bind_recipe(config, Path(settings.output_dir or "") / "assets", found, hardware)
    train_data = training_data(recipe, settings)
    eval_data = sampled(indexed_split(recipe, "validation"), settings.max_eval_examples)
    lanes, max_steps = plan_steps(settings, train_data, state)
    state.record(lanes)
    deferred = None
    if hardware.is_sharded:
        model, deferred = deferred_weights(recipe, settings, fresh=found is None)
    else:
        model = first_weights(recipe, settings, fresh=found is None)
    if found is None:
        hardware = measured_precision(hardware, settings, recipe, model, train_data, lanes)
        # The run keeps the choice for its life: config.yaml and the checkpoints record it.
        config = config.with_run(mixed_precision=hardware.precision)
    with deferred or nullcontext():
        recipe.use_precision(model, hardware.precision)
    hardware = hardware.for_size(sum(each.numel() for each in model.parameters()))
    run = build_loop_parts(
        config, hardware, recipe, model, lanes, train_data, eval_data, max_steps, state, signals, deferred
    )
    if found is not None:
        restore(run, found)
    run.notes = [*data_notes, *warnings_of(train_data, max_steps * lanes.batch_size), *([first] if first else [])]
    run.notes += setting_notes(settings, config.changed) + config.recipe.setting_notes(config.changed)
    return run


def check_fresh_start(config: Config, found: Path | None) -> str | None:
    """The recipe's line about a training that begins without weights. Raises ConfigError if the recipe refuses it."""
    if found is not None or config.run.init_from:
        return None
    return config.recipe.fresh_start()


def first_weights(recipe: Recipe, settings: RunSettings, fresh: bool = True) -> nn.Module:
    """The model that a run starts with: fresh from the seed, or with the weights of `init_from`.

    A model that is not `fresh` gets the weights of a checkpoint afterwards: `init_from` need not be there any more.
    """
    seed_everything(key(settings.seed, "weights"))
    return _build_first(recipe, settings, fresh)


def deferred_weights(recipe: Recipe, settings: RunSettings, fresh: bool = True) -> tuple[nn.Module, Deferred | None]:
    """The model of `first_weights`, whose large tensors have no content before they are sharded."""
    seed = key(settings.seed, "weights")
    return built(lambda: seed_everything(seed), lambda: _build_first(recipe, settings, fresh))


def _build_first(recipe: Recipe, settings: RunSettings, fresh: bool) -> nn.Module:
    model = recipe.model()
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    if settings.init_from and fresh:
        source = find_weights(Path(settings.init_from), for_training=True)
        recipe.inherit(model, read_late(read_tensors(source / "model.safetensors")))
    return model


def bind_recipe(config: Config, assets: Path, found: Path | None, hardware: Hardware) -> Recipe:
    """The recipe, prepared with what it fits on the training split. One process fits; the others read the files."""
    recipe, source = config.recipe, found
    if source is None and config.run.init_from:
        source = find_weights(Path(config.run.init_from), for_training=True)
        # One process reads every file; all of them stop where one is damaged.
        wrong = hardware.from_main(find_damage(source) if hardware.is_main and has_manifest(source) else None)
        if wrong is not None:
            raise CheckpointError(f"{source} cannot be used: {wrong}.")
    if config.run.dry_run:
        import atexit
        import tempfile

        # One for each process, as nothing may be written where the others look.
        assets = Path(tempfile.mkdtemp(prefix="relay-dry-run-"))
        atexit.register(shutil.rmtree, assets, ignore_errors=True)
    if hardware.is_main or config.run.dry_run:
        assets.mkdir(parents=True, exist_ok=True)
        if source is not None:
            copy_assets(source, assets)
    fitted: list[Recipe] = []
    # The others wait here, and end with the main process where it cannot go on.
    hardware.on_main(lambda: fitted.append(fit(recipe, assets, is_resumed=found is not None)))
    if fitted:
        return fitted[0]
    return recipe.prepare(assets) if found is None else recipe.prepare_trained(assets)


def fit(recipe: Recipe, assets: Path, is_resumed: bool) -> Recipe:
    """The recipe, bound to `assets`, where it fits what is not there yet.

    Raises CheckpointError where the recipe changed something in `assets` that a checkpoint's weights depend on.
    """
    before = contents(assets) if is_resumed else {}
    bound = recipe.prepare_trained(assets) if is_resumed else recipe.prepare(assets)
    now = contents(assets) if before else {}
    refitted = [name for name, content in before.items() if now.get(name) != content]
    if refitted:
        raise CheckpointError(
            f"The settings or the data ask for another {refitted[0]} than the weights were trained with: give the same "
            "as before,\nor start a new run: --init_from CHECKPOINT --output_dir NEW."
        )
    return bound


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder, by its name relative to it."""
    return {str(path.relative_to(folder)): digest(path) for path in folder.rglob("*") if path.is_file()}


def first_examples(data: Sequence[Any], most: int | None) -> Sequence[Any]:
    """The first `most` examples."""
    if most is None or len(data) <= most:
        return data
    return torch.utils.data.Subset(data, range(most))  # type: ignore[return-value, arg-type]


def sampled(data: Sequence[Any], most: int | None) -> Sequence[Any]:
    """A fixed random sample of `most` examples, in their order: the first examples are often alike."""
    if most is None or len(data) <= most:
        return data
    return torch.utils.data.Subset(data, sorted(random.Random(0).sample(range(len(data)), most)))  # type: ignore[return-value, arg-type]


def training_data(recipe: Recipe, settings: RunSettings) -> Data:
    """The training split: examples by index, or a stream. Raises DataError where it is empty."""
    data = recipe.data("train")
    if is_stream(data):
        if settings.max_train_examples is not None:
            raise ConfigError(
                "max_train_examples cannot cut a stream: limit the data at their source, or the run by --max_steps."
            )
        return data
    if settings.max_train_examples is not None and has_own_order(data):
        raise ConfigError(
            "max_train_examples cannot cut data with an order of their own: limit them by the recipe's settings."
        )
    data = first_examples(data, settings.max_train_examples)
    if not len(data):
        raise DataError("The training split is empty: check the data settings of the recipe.")
    return data


def plan_steps(settings: RunSettings, data: Data, state: State) -> tuple[Lanes, int]:
    """The lanes and the number of steps of a run. Raises CheckpointError where the data are not those of before."""
    num_examples = 0 if is_stream(data) else len(data)
    if state.batch_size and state.num_examples != num_examples and not settings.allow_changed_data:
        raise CheckpointError(
            f"The checkpoint's run had {state.num_examples} training examples; now there are {num_examples}.\n"
            "Give the same data settings, type --allow_changed_data to go on with these,\n"
            "or start anew from its weights: --init_from CHECKPOINT --output_dir NEW."
        )
    batch_size, micro_batch_size = settings.batch_size or 0, settings.micro_batch_size
    order = order_of(data, batch_size, micro_batch_size, settings.seed)
    if order is not None and state.micro_batch_size not in (0, micro_batch_size):
        raise ConfigError(
            f"micro_batch_size is {micro_batch_size}, but the run to go on with has {state.micro_batch_size}, and the "
            "order of its data depends on it: leave it out,\n"
            "or start a new run from its weights: --init_from CHECKPOINT --output_dir NEW."
        )
    per_epoch = examples_per_epoch(data, order)
    total, max_steps = run_length(settings, per_epoch, batch_size)
    if max_steps is None:
        raise ConfigError(
            "The training data are a stream of unknown length: type --max_steps with the number of updates."
        )
    by_epoch = [name for name in ("eval_every", "save_every") if getattr(settings, name) == "epoch"]
    if by_epoch and per_epoch is None:
        raise ConfigError(
            f"{by_epoch[0]} is epoch, but the training data are a stream of unknown length: type "
            f"--{by_epoch[0].replace('every', 'steps')} N with a number of steps, and leave --{by_epoch[0]} out."
        )
    earlier = frozenset(state.excluded)
    if num_examples:
        # Of data that became fewer, some are gone.
        earlier = frozenset(number for number in earlier if isinstance(number, int) and number < num_examples)
    excluded = earlier | _requested_exclusions(settings.exclude_examples, num_examples)
    if num_examples and len(excluded) >= num_examples:
        raise ConfigError("exclude_examples leaves no example: check its numbers.")
    ragged_end = None if order is not None or not num_examples else total
    lanes = Lanes(num_examples, batch_size, micro_batch_size, settings.seed, ragged_end, excluded, order)
    return by_length(lanes, data) if settings.group_by_length else lanes, max_steps


def _requested_exclusions(requested: str | None, num_examples: int) -> frozenset[Any]:
    """The numbers of the examples that the user excludes.

    Raises ConfigError if they are not numbers of examples, or if the data are a stream, which has no numbers.
    """
    if requested is None:
        return frozenset()
    if not num_examples:
        raise ConfigError(
            "exclude_examples names examples by number, and a stream has no numbers: leave it out, and remove the\n"
            "examples from the data, or type --on_bad_step rollback."
        )
    path = Path(requested)
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else requested
    except OSError:
        # A long list of numbers is no name that a file can have.
        text = requested
    try:
        numbers = {int(word) for word in text.replace(",", " ").split()}
    except ValueError:
        raise ConfigError(
            f"exclude_examples is {requested[:60]!r}: type numbers with commas between them, or the path of a file of "
            "numbers."
        ) from None
    wrong = sorted(number for number in numbers if not 0 <= number < num_examples)
    if wrong:
        raise ConfigError(f"exclude_examples names example {wrong[0]}; there are 0 to {num_examples - 1}.")
    return frozenset(numbers)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Turn gradient checkpointing on. Raises ConfigError if the model does not support it."""
    # The name of transformers 5.23 on, and the one before it.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    if enable is None:
        raise ConfigError(f"{type(model).__name__} has no gradient checkpointing: leave --gradient_checkpointing out.")
    # The reentrant kind drops the gradient of the router's auxiliary loss.
    enable({"use_reentrant": False})


def build_loop_parts(
    config: Config,
    hardware: Hardware,
    recipe: Any,
    model: nn.Module,
    lanes: Lanes,
    train_data: Data,
    eval_data: Sequence[Any],
    max_steps: int,
    state: State,
    signals: Any,
    deferred: Deferred | None = None,
) -> Run:
    """Everything that the loop needs, prepared by accelerate."""
    from runner.optim import optimizer as optimizer_of

    settings, accelerator = config.run, hardware.accelerator
    scale_of = recipe.learning_rate_scale
    output_dir = Path(settings.output_dir or "")
    model.train()
    if settings.optim == "muon" and (hardware.is_sharded or accelerator.scaler is not None):
        raise ConfigError("Muon needs whole matrices, and no fp16: type --optim adamw, or leave FSDP or fp16 out.")
    if settings.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        tree = Tree(model, lanes.num_lanes, hardware.process, hardware.num_processes)
        prepared, optimizer = model.to(hardware.device), optimizer_of(model, settings, hardware.device, scale_of)
    elif hardware.is_sharded:
        tree = None
        prepared = shard(model, hardware.device, hardware.num_processes, hardware.precision, deferred)
        optimizer = optimizer_of(prepared, settings, hardware.device, scale_of)
    else:
        tree = None
        # Where it is not told, accelerate imports torch's sharding to ask whether the model is sharded.
        prepared = accelerator.prepare(model, device_placement=[True])
        if hardware.num_processes > 1 and not {name for name, _ in model.named_buffers()} & set(model.state_dict()):
            # DDP sends the first process's buffers to the others at each step. What no checkpoint holds is not the
            # state of a training, and every process computes it by itself.
            prepared.broadcast_buffers = False
        optimizer = optimizer_of(prepared, settings, hardware.device, scale_of)
        if accelerator.scaler is not None:
            # Accelerate's wrapper knows of fp16's loss scale, and looks for installed packages at every step.
            optimizer = accelerator.prepare(optimizer)
    # To unwrap a model, accelerate imports torch's compiler. With one process there is often nothing to unwrap.
    is_bare = prepared is model
    bare_model = model if is_bare else cast(nn.Module, accelerator.unwrap_model(prepared, keep_torch_compile=False))
    if settings.torch_compile:
        compile_model(bare_model)
    in_shards = hardware.is_sharded and settings.save_in_shards is not False
    best_metric = settings.metric_for_best_model or recipe.best_metric
    return Run(
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
