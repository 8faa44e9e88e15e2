"""Where a run goes on: the checkpoint to take, here or behind a URL, and what of the settings it decides."""

from pathlib import Path
from typing import Any

from runner.checkpoints.bucket import newest_in_bucket
from runner.checkpoints.folders import newest_checkpoint
from runner.checkpoints.manifest import find_damage
from runner.checkpoints.pointers import resolve_pointer
from runner.checkpoints.recorded import BUCKET, with_recorded_settings
from runner.checkpoints.state import State, read_state
from runner.checkpoints.tensors import load_model, load_optimizer, read_tensors
from runner.config import Config
from runner.errors import CheckpointError, ConfigError
from runner.hardware import Hardware
from runner.run import Run
from runner.settings import RunSettings
from runner.urls import is_url


def find_resume_point(settings: RunSettings, output_dir: Path, hardware: Hardware) -> tuple[Path | None, State]:
    """The checkpoint to go on from, checked, and its state; the main process looks, all agree."""
    answer: list[Any] = [None, None]
    if hardware.is_main and settings.resume_from_checkpoint:
        try:
            answer[0] = _find_checkpoint(settings.resume_from_checkpoint, output_dir, settings.upload_to)
        except CheckpointError as error:
            answer[1] = str(error)
        except OSError as error:
            answer[1] = (
                f"{error.filename or settings.resume_from_checkpoint} cannot be read: {error.strerror or error}.\n"
                "Ask its owner for permission, or copy the checkpoint."
            )
    found, wrong = hardware.from_main(answer)
    if wrong:
        raise CheckpointError(wrong)
    return (found, read_state(found)) if found else (None, State())


def _find_checkpoint(requested: str, output_dir: Path, upload_to: str | None) -> Path | None:
    if requested == "auto":
        return _newest_checkpoint(output_dir, upload_to)
    if is_url(requested):
        found, skipped = newest_in_bucket(requested, output_dir)
        _warn(skipped)
        if found is None:
            raise CheckpointError(
                f"There is no whole checkpoint at {requested}: type the URL of a run or of a checkpoint."
            )
        return found
    folder = resolve_pointer(Path(requested))
    if not folder.is_dir():
        raise CheckpointError(
            f"There is no checkpoint folder {requested}: type --resume_from_checkpoint auto, or the path of a folder "
            "checkpoint-<step>."
        )
    wrong = find_damage(folder)
    if wrong is not None:
        raise CheckpointError(
            f"{folder} cannot be used: {wrong}.\nType --resume_from_checkpoint auto for the newest whole one."
        )
    return folder


def _newest_checkpoint(output_dir: Path, upload_to: str | None) -> Path | None:
    """The newest whole one, here or where it was uploaded to; None where there has never been any."""
    found, skipped = newest_checkpoint(output_dir)
    _warn(skipped)
    if upload_to is not None:
        here = read_state(found).step if found is not None else -1
        elsewhere, skipped_there = newest_in_bucket(upload_to, output_dir, newer_than=here)
        _warn(skipped_there)
        found, skipped = elsewhere or found, skipped + skipped_there
    if found is None and skipped:
        raise CheckpointError(
            f"No checkpoint in {output_dir} is whole: {skipped[0]}\n"
            "Start anew with another --output_dir, or restore the files."
        )
    return found


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", flush=True)


def settings_to_go_on_with(
    config: Config, found: Path | None, state: State, output_dir: Path, hardware: Hardware
) -> Config:
    """The settings of the run: those that were typed, and else those that the run to go on with has recorded.

    Prints a line for each setting that differs. Raises ConfigError for one that the run cannot change.
    """
    if not config.run.resume_from_checkpoint:
        return with_checkpoint_settings(config, state, hardware)
    merged, lines = with_recorded_settings(config, found or output_dir, state)
    if found is not None and found.parent.resolve() != output_dir.resolve() and not config.explicit & BUCKET:
        # A second run must not write over the copies of the first.
        merged = merged.with_run(upload_to=None, cloud_provider=None, cloud_bucket=None, cloud_prefix=None)
    if hardware.is_main:
        for line in lines:
            print(line, flush=True)
    return with_checkpoint_settings(merged, state, hardware)


def with_checkpoint_settings(config: Config, state: State, hardware: Hardware) -> Config:
    """The config with what a run keeps for its whole life: seed and batch, as the checkpoint recorded them.

    Raises ConfigError where something else was asked for by name: it would be another run.
    """
    if not state.batch_size:
        return config.with_batch(hardware.num_processes)
    for name in ("seed", "batch_size"):
        asked, recorded = getattr(config.run, name), getattr(state, name)
        if name in config.explicit and asked != recorded:
            raise ConfigError(
                f"{name} is {asked}, but the run to go on with has {recorded}: leave it out,\n"
                "or start a new run from its weights: --init_from CHECKPOINT --output_dir NEW."
            )
    accumulation = config.run.gradient_accumulation_steps
    derived = (accumulation or 0) * config.run.micro_batch_size * hardware.num_processes
    if "gradient_accumulation_steps" in config.explicit and derived not in (0, state.batch_size) and hardware.is_main:
        print(
            f"gradient_accumulation_steps {accumulation} has no effect: the run keeps its batch_size of "
            f"{state.batch_size}.",
            flush=True,
        )
    micro_batch_size = state.micro_batch_size
    if "micro_batch_size" in config.explicit and config.run.micro_batch_size != micro_batch_size:
        if state.cursors:
            raise ConfigError(
                f"micro_batch_size is {config.run.micro_batch_size}, but the run to go on with reads a stream in lanes "
                f"of {micro_batch_size}: leave it out,\nor start a new run from its weights: --init_from."
            )
        # The examples of each step stay what they were; only how they are cut, and what dropout draws, is new.
        micro_batch_size = config.run.micro_batch_size
    return config.with_run(
        seed=state.seed,
        batch_size=state.batch_size,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=None,
    )


def restore(run: Run, found: Path) -> None:
    """Put the weights and the optimiser of a checkpoint into the run; its state is there already."""
    load_model(run.bare_model, read_tensors(found / "model.safetensors"), str(found))
    tensors = read_tensors(found / "optimizer.safetensors")
    load_optimizer(run.bare_model, run.optimizer, tensors)
    scaler = run.hardware.accelerator.scaler
    if run.state.scaler is not None and scaler is not None:
        scaler.load_state_dict(run.state.scaler)
