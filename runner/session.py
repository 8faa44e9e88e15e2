"""One run from its settings to its final model: put the parts together, train, and write what others load."""

import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from runner import checkpoint, loop
from runner.checkpoint import State
from runner.config import Config, RunSettings, write_yaml
from runner.errors import CheckpointError, ConfigError, DataError
from runner.hardware import Hardware, open_hardware, seed_everything
from runner.lanes import Lanes, check_batch, check_world, key
from runner.log import Metrics, Progress
from runner.saving import Saver, save_final
from runner.signals import Signals
from runner.tree import Tree


def run(config: Config) -> None:
    """Train from start, or from where a checkpoint left off, to the end."""
    signals = Signals()
    hardware = open_hardware(config.run)
    config = config.with_run(output_dir=_output_dir(config, hardware))
    output_dir = Path(config.run.output_dir or "")
    found, state = _resume_point(config.run, output_dir, hardware)
    config = config.with_run(batch_size=_batch_size(config, state, hardware))
    run_settings = config.run
    check_batch(run_settings.batch_size or 0, run_settings.micro_batch_size)
    check_world((run_settings.batch_size or 0) // run_settings.micro_batch_size, hardware.num_processes)

    recipe = prepare(config, output_dir / "assets", found, hardware)
    train_data = limited(recipe.data("train"), run_settings.max_train_examples)
    eval_data = limited(recipe.data("validation"), run_settings.max_eval_examples)
    if not len(train_data):
        raise DataError("The training split is empty: check the data settings of the recipe.")
    lanes, max_steps = plan(run_settings, len(train_data), state)

    seed_everything(key(run_settings.seed, "weights"))
    model = recipe.model()
    if run_settings.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    _load_weights(model, found, run_settings)
    run = assemble(config, hardware, recipe, model, lanes, train_data, eval_data, max_steps, state, signals)
    if found is not None:
        tensors = checkpoint.read_tensors(found / "optimizer.safetensors")
        checkpoint.load_optimizer(run.bare_model, run.optimizer, tensors)
        if state.scaler is not None and hardware.accelerator.scaler is not None:
            hardware.accelerator.scaler.load_state_dict(state.scaler)
    _introduce(run, config, found)
    if run_settings.dry_run:
        run.progress.say("dry run: settings, data and model are in order; nothing was written.")
        return
    _start_trackers(run, config)
    torch.autograd.set_detect_anomaly(run_settings.debug)
    loop.train(run)
    _finish(run, config, output_dir)


def prepare(config: Config, assets: Path, found: Path | None, hardware: Hardware) -> Any:
    """The recipe, bound to what it fits on the training split; one process fits, the others read."""
    recipe, source = config.recipe, found or (Path(config.run.init_from) if config.run.init_from else None)
    if hardware.is_main and not config.run.dry_run:
        assets.mkdir(parents=True, exist_ok=True)
        if source is not None and (source / "assets").is_dir():
            shutil.copytree(source / "assets", assets, dirs_exist_ok=True)
    if not hasattr(recipe, "prepare"):
        return recipe
    if config.run.dry_run:
        import tempfile

        assets = Path(tempfile.mkdtemp(prefix="relay-dry-run-"))
    if hardware.is_main:
        recipe = recipe.prepare(assets)
    hardware.accelerator.wait_for_everyone()
    return recipe if hardware.is_main else recipe.prepare(assets)


def limited(data: Sequence[Any], most: int | None) -> Sequence[Any]:
    """The first `most` examples."""
    if most is None or len(data) <= most:
        return data
    return torch.utils.data.Subset(data, range(most))  # type: ignore[return-value, arg-type]


def plan(settings: RunSettings, num_examples: int, state: State) -> tuple[Lanes, int]:
    """The lanes and the number of steps of a run. Raises CheckpointError where the data are not those of before."""
    if state.num_examples and state.num_examples != num_examples:
        raise CheckpointError(
            f"The checkpoint's run had {state.num_examples} training examples; now there are {num_examples}.\n"
            "Give the same data settings, or start anew from its weights: --init_from CHECKPOINT --output_dir NEW."
        )
    batch_size = settings.batch_size or 0
    total = None
    max_steps = settings.max_steps
    if max_steps is None:
        total = math.ceil((settings.num_train_epochs or 3.0) * num_examples)
        max_steps = math.ceil(total / batch_size)
    lanes = Lanes(num_examples, batch_size, settings.micro_batch_size, settings.seed, total, frozenset(state.excluded))
    state.batch_size, state.micro_batch_size = batch_size, settings.micro_batch_size
    state.seed, state.num_examples = settings.seed, num_examples
    return lanes, max_steps


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Turn it on where the model has it. Raises ConfigError where it has not: a wish is not dropped silently."""
    if not hasattr(model, "gradient_checkpointing_enable"):
        raise ConfigError(f"{type(model).__name__} has no gradient checkpointing: leave --gradient_checkpointing out.")
    # The reentrant kind drops the gradient of the router's auxiliary loss.
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]


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
    from runner.optim import adamw

    settings, accelerator = config.run, hardware.accelerator
    output_dir = Path(settings.output_dir or "")
    model.train()
    if settings.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        tree = Tree(model, lanes.num_lanes, hardware.process, hardware.num_processes)
        prepared, optimizer = model.to(hardware.device), adamw(model, settings, hardware.device)
    else:
        tree = None
        prepared, optimizer = accelerator.prepare(model, adamw(model, settings, hardware.device))
    bare_model = cast(nn.Module, accelerator.unwrap_model(prepared, keep_torch_compile=False))
    if settings.torch_compile:
        prepared = cast(nn.Module, torch.compile(prepared))
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
        progress=Progress(hardware.is_main, max_steps, len(train_data) / lanes.batch_size),
        saver=Saver(output_dir, _yaml_text(config), output_dir / "assets", settings.save_total_limit, hardware.is_main),
        signals=signals,
        best_metric=best_metric,
        tree=tree,
    )


def _output_dir(config: Config, hardware: Hardware) -> str:
    """The run's folder, the same on every process."""
    name = Path(config.recipe_name).stem if config.recipe_name.endswith(".py") else config.recipe_name
    chosen = config.run.output_dir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return hardware.from_main(chosen)


def _resume_point(settings: RunSettings, output_dir: Path, hardware: Hardware) -> tuple[Path | None, State]:
    """The checkpoint to go on from, checked, and its state; the main process looks, all agree."""
    answer: list[Any] = [None, None]
    if hardware.is_main and settings.resume_from_checkpoint:
        try:
            answer[0] = _find_checkpoint(settings.resume_from_checkpoint, output_dir)
        except CheckpointError as error:
            answer[1] = str(error)
    found, wrong = hardware.from_main(answer)
    if wrong:
        raise CheckpointError(wrong)
    return (found, checkpoint.read_state(found)) if found else (None, State())


def _find_checkpoint(wish: str, output_dir: Path) -> Path | None:
    if wish == "auto":
        found, skipped = checkpoint.newest(output_dir)
        for sentence in skipped:
            print(f"warning: {sentence}", flush=True)
        if found is None and skipped:
            raise CheckpointError(
                f"No checkpoint in {output_dir} is whole: {skipped[0]}\n"
                "Start anew with another --output_dir, or restore the files."
            )
        return found
    folder = checkpoint.follow(Path(wish))
    if not folder.is_dir():
        raise CheckpointError(
            f"There is no checkpoint folder {wish}: type --resume_from_checkpoint auto, or the path of a folder "
            "checkpoint-<step>."
        )
    wrong = checkpoint.damage(folder)
    if wrong is not None:
        raise CheckpointError(
            f"{folder} cannot be used: {wrong}.\nType --resume_from_checkpoint auto for the newest whole one."
        )
    return folder


def _batch_size(config: Config, state: State, hardware: Hardware) -> int:
    """Examples per step: what the checkpoint recorded, else what was asked for."""
    settings = config.run
    accumulation = settings.gradient_accumulation_steps
    derived = accumulation and settings.micro_batch_size * accumulation * hardware.num_processes
    if state.batch_size:
        if "batch_size" in config.explicit and settings.batch_size != state.batch_size:
            raise ConfigError(
                f"batch_size is {settings.batch_size}, but the run to go on with has {state.batch_size}: leave it out, "
                "or start anew with --init_from."
            )
        return state.batch_size
    if derived and settings.batch_size and settings.batch_size != derived:
        raise ConfigError(
            f"batch_size {settings.batch_size} is not micro_batch_size {settings.micro_batch_size} x "
            f"gradient_accumulation_steps {accumulation} x {hardware.num_processes} processes: give only one of them."
        )
    return settings.batch_size or derived or 32


def _load_weights(model: nn.Module, found: Path | None, settings: RunSettings) -> None:
    if found is not None:
        checkpoint.load_model(model, checkpoint.read_tensors(found / "model.safetensors"), str(found))
    elif settings.init_from:
        source = checkpoint.follow(Path(settings.init_from))
        if not source.is_dir():
            raise CheckpointError(
                f"There is no folder {settings.init_from}: type --init_from with a checkpoint folder."
            )
        checkpoint.load_model(model, checkpoint.read_tensors(source / "model.safetensors"), str(source))


def _introduce(run: loop.Run, config: Config, found: Path | None) -> None:
    """Say what will happen, and open the run's files."""
    total = sum(parameter.numel() for parameter in run.bare_model.parameters())
    trained = sum(parameter.numel() for parameter in run.bare_model.parameters() if parameter.requires_grad)
    share = "" if trained == total else f", {trained:,} of them trained ({trained / total:.1%})"
    say = run.progress.say
    say(f"recipe {config.recipe_name}, preset {config.preset or 'default'}, into {run.settings.output_dir}")
    say(f"hardware: {run.hardware.describe()}")
    say(f"model: {type(run.bare_model).__name__}, {total:,} parameters{share}")
    say(
        f"data: {len(run.train_data):,} training and {len(run.eval_data):,} validation examples; "
        f"{run.max_steps:,} steps of {run.lanes.batch_size} examples in {run.lanes.num_lanes} lanes"
    )
    if found is not None:
        say(f"going on from {found} at step {run.state.step}")
    if not run.hardware.is_main or run.settings.dry_run:
        return
    output_dir = Path(run.settings.output_dir or "")
    output_dir.mkdir(parents=True, exist_ok=True)
    write_yaml(config, output_dir / "config.yaml")
    run.metrics = Metrics(output_dir / "metrics.jsonl", run.state.step)


def _yaml_text(config: Config) -> str:
    import yaml

    return yaml.safe_dump(config.nested(), sort_keys=False, allow_unicode=True)


def _start_trackers(run: loop.Run, config: Config) -> None:
    """Open the experiment tracker; a W&B run continues under its id after a resume."""
    settings, accelerator = run.settings, run.hardware.accelerator
    if settings.report_to == "none":
        return
    output_dir = Path(settings.output_dir or "")
    accelerator.project_configuration.set_directories(str(output_dir))
    options: dict[str, Any] = {}
    if settings.report_to == "wandb":
        if not os.environ.get("WANDB_API_KEY") and "WANDB_MODE" not in os.environ:
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
    accelerator.wait_for_everyone()
    if run.hardware.is_main:
        files = {"config.yaml": _yaml_text(config), "README.md": model_card(run, config)}
        final = save_final(output_dir, run.bare_model, output_dir / "assets", files)
        print(f"finished at step {run.state.step}: {final}", flush=True)
    if run.settings.report_to != "none":
        accelerator.end_training()
    accelerator.wait_for_everyone()


def model_card(run: loop.Run, config: Config) -> str:
    """A short README.md for the final model."""
    best = (
        f"best {run.best_metric} {run.state.best_score:.4f} at step {run.state.best_step}"
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
