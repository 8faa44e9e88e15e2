"""One run from its settings to its final model: put the parts together, train, and write what others load."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import torch

from runner import loop, report
from runner.agreement import agreed_steps
from runner.assembly import build_run, deferred_weights
from runner.checkpoints.branches import take_over
from runner.checkpoints.bucket import Uploader
from runner.checkpoints.disk import naming_full_disks, writing
from runner.checkpoints.final import ORIGIN, choose_weights, model_card, save_final
from runner.checkpoints.recorded import settings_before_the_search
from runner.checkpoints.resume import find_resume_point, restore, settings_to_go_on_with
from runner.checkpoints.tensors import Gathered, load_model, model_parts, size_of
from runner.config import Config, yaml_of
from runner.ending import follow_the_end, naming_lost_processes
from runner.errors import BadStep, CheckpointError, DivergedError, UploadError
from runner.fetching import is_stream
from runner.hardware import Hardware, open_hardware
from runner.parts.setting_types import bytes_of
from runner.preflight import checks_of_places, raise_first
from runner.run import Run
from runner.run_folder import choose_output_dir, empty_assets, lock_run_folder, open_files, open_metrics
from runner.schedule import num_warmup_steps
from runner.settings import RunSettings
from runner.signals import Signals
from runner.step import accumulate
from runner.tracking import finish_trackers, start_trackers


def run(config: Config) -> None:
    """Train from start, or from where a checkpoint left off, to the end."""
    signals = Signals()
    before = settings_before_the_search(config)
    with naming_lost_processes(before.run), naming_full_disks(Path(config.run.output_dir or ".")):
        _open_and_run(config, before, signals)


def _open_and_run(config: Config, before: Config, signals: Signals) -> None:
    """Open the hardware and the folder. `before` has the settings that these need."""
    hardware = open_hardware(before.run)
    follow_the_end()
    if before.run.mixed_precision != config.run.mixed_precision:
        hardware = dataclasses.replace(hardware, reason="as the run recorded it")
    output_dir = choose_output_dir(config, hardware)
    config, search = config.with_run(output_dir=output_dir), before.run
    if search.cloud_region:
        os.environ.setdefault("AWS_DEFAULT_REGION", search.cloud_region)
    places = before.with_run(output_dir=output_dir)
    raise_first(hardware.from_main(checks_of_places(places) if hardware.is_main else []))
    with contextlib.nullcontext() if config.run.dry_run else lock_run_folder(Path(output_dir), hardware):
        _run(config, search, hardware, signals)


def _run(config: Config, search: RunSettings, hardware: Hardware, signals: Signals) -> None:
    """Train with the folder in hand. `search` says where the checkpoint may be, and opened the hardware."""
    output_dir = Path(config.run.output_dir or "")
    found, state = find_resume_point(search, output_dir, hardware)
    config = settings_to_go_on_with(config, found, state, output_dir, hardware)
    settings = config.run
    if not settings.dry_run:

        def empty() -> None:
            with writing("assets", output_dir):
                empty_assets(output_dir)

        hardware.on_main(empty)
    run = build_run(config, hardware, signals, found, state)
    config = dataclasses.replace(config, run=run.settings)
    _introduce(run, config, found)
    if settings.dry_run:
        _try_one_step(run)
        return
    if found is not None:
        found = take_over_checkpoint(run, found, output_dir)
    run.saver.watch(run)

    def open_all() -> None:
        with writing("config.yaml", output_dir):
            open_files(run, config)

    hardware.on_main(open_all)
    start_trackers(run, config)
    if settings.upload_to and hardware.is_main:
        run.saver.uploader = Uploader(
            settings.upload_to, output_dir, settings.save_total_limit, run.progress.print_line
        )
        if found is not None:
            if settings.resume_from_checkpoint != "auto":
                run.saver.uploader.set_aside(newer_than=state.step)
            run.saver.uploader.add(found, state.best_step)
    torch.autograd.set_detect_anomaly(settings.debug)
    try:
        while not _trained(run):
            pass
        _finish(run, config, output_dir)
    except BaseException:
        run.progress.close()
        # What was whole before the trouble is to be found after it.
        with contextlib.suppress(Exception):
            run.saver.wait()
        finish_trackers(run)
        _close_uploads(run, limit_seconds=20.0)
        raise
    missing = _close_uploads(run)
    if missing:
        raise UploadError(
            f"Not uploaded to {settings.upload_to}: {'; '.join(f'{name} ({why})' for name, why in missing.items())}.\n"
            f"All of it is in {output_dir}; the same command with --resume_from_checkpoint auto uploads it again."
        )


def take_over_checkpoint(run: Run, found: Path, output_dir: Path) -> Path:
    """Make the checkpoint the newest of the run's folder, on the main process; returns its place there."""
    is_auto = run.settings.resume_from_checkpoint == "auto"

    def take() -> tuple[Path, str | None]:
        try:
            return take_over(found, output_dir, run.state, is_auto, run.progress.print_line)
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint {found} cannot be taken over into {output_dir}: {error.strerror or error}."
            ) from None

    place, run.set_aside = run.hardware.on_main(take)
    return place


def _trained(run: Run) -> bool:
    """Train to the end; False where the run went back, and is to train again."""
    try:
        loop.train(run)
    except BadStep as bad:
        go_back(run, str(bad))
        return False
    return True


def go_back(run: Run, wrong: str) -> None:
    """Return to the last good checkpoint, or to the start, and leave out the examples of the bad step from there on."""
    run.saver.wait()
    hardware, state = run.hardware, run.state
    examples = run.lanes.everything(state.step) if run.lanes.num_examples else _stream_examples(run)
    found, before = find_resume_point(
        dataclasses.replace(run.settings, resume_from_checkpoint="auto"), run.saver.output_dir, hardware
    )
    if not examples:
        raise DivergedError(
            f"{wrong} All of its examples were left out before: the data are not what is wrong.\n"
            "Lower --learning_rate or lengthen --warmup_steps, and start anew."
        )
    run.progress.print_line(
        f"{wrong} Going back to step {before.step} ({found or 'the start'}), without its {len(examples)} examples: "
        f"{', '.join(map(str, examples[:8]))}{' ...' if len(examples) > 8 else ''}."
    )
    run.lanes = dataclasses.replace(run.lanes, excluded=run.lanes.excluded.union(examples))
    before.record(run.lanes)
    before.trackers = state.trackers
    before.data, before.data_changes = state.data, state.data_changes
    run.state = before
    run.optimizer.zero_grad()
    run.optimizer.state.clear()
    if found is not None:
        restore(run, found)
    else:
        fresh, deferred = deferred_weights(run.recipe, run.settings)
        tensors = model_parts(fresh) if deferred is None else deferred.tensors(model_parts(fresh))
        load_model(run.bare_model, tensors, "the fresh model")
    run.saver.saved_step = -1
    open_metrics(run)


def _stream_examples(run: Run) -> list[str]:
    """The examples of the step that just went bad, as `Lanes.excluded` names those of a stream."""
    own = {str(lane.lane): [json.dumps([lane.lane, cursor]) for cursor in lane.consumed] for lane in run.in_hand}
    together = run.hardware.merged(own)
    return [name for lane in sorted(together, key=int) for name in together[lane]]


def _try_one_step(run: Run) -> None:
    """Dry run: forward and backward of one step, without an update."""
    step = next(agreed_steps(run))
    loss, _ = accumulate(run, step.lanes, step.totals)
    (total,) = run.hardware.sum([float(loss)])
    run.progress.print_line(f"dry run: one step has a loss of {total:.4f}; nothing was written.")


def _introduce(run: Run, config: Config, found: Path | None) -> None:
    """Say what will happen."""
    total = sum(parameter.numel() for parameter in run.bare_model.parameters())
    trained = sum(parameter.numel() for parameter in run.bare_model.parameters() if parameter.requires_grad)
    share = "" if trained == total else f", {trained:,} of them trained ({trained / total:.1%})"
    say = run.progress.print_line
    say(f"recipe {config.recipe_name}, preset {config.preset or 'default'}, into {run.settings.output_dir}")
    say(f"hardware: {run.hardware.describe()}")
    say(f"model: {type(run.bare_model).__name__}, {total:,} parameters{share}")
    training = "a stream of" if is_stream(run.train_data) else f"{len(run.train_data):,}"
    say(
        f"data: {training} training and {len(run.eval_data):,} validation examples; "
        f"{run.max_steps:,} steps of {run.lanes.batch_size} examples in {run.lanes.num_lanes} lanes"
    )
    if not len(run.eval_data) and (run.settings.early_stopping_patience or run.settings.metric_for_best_model):
        run.notes.append(
            "the validation split is empty, so nothing is evaluated: early_stopping_patience and "
            "metric_for_best_model have no effect."
        )
    for note in run.notes:
        say(f"warning: {note}")
    warmup_steps = num_warmup_steps(run.settings, run.max_steps)
    if warmup_steps < run.settings.warmup_steps:
        most = f"{run.settings.max_warmup_ratio:.0%} of all"
        say(f"warm-up: {warmup_steps:,} steps, {most}, instead of {run.settings.warmup_steps:,}")
    if found is not None:
        say(f"going on from {found} at step {run.state.step}")


def _finish(run: Run, config: Config, output_dir: Path) -> None:
    """Write `final/` and the report, and close what is open."""
    run.progress.close()
    accelerator = run.hardware.accelerator
    tensors, origin = choose_weights(run)
    if run.hardware.is_main:
        files = {"config.yaml": yaml_of(config), "README.md": model_card(run, config, origin)}
        files[ORIGIN] = json.dumps(dataclasses.asdict(origin), indent=1)
        with writing("final", output_dir, size_of(model_parts(run.bare_model))):
            limit = bytes_of(run.settings.max_shard_size, "max_shard_size")
            final = save_final(output_dir, run.bare_model, tensors, output_dir / "assets", files, limit)
        with writing("report.html", output_dir):
            page = report.write(output_dir)
        if origin.step != origin.last_step:
            note = f". {origin.note}" if origin.note else ""
            print(f"final/ has the weights of {origin}; --final last keeps the last ones{note}", flush=True)
        print(f"finished at step {run.state.step}: {final}, {page}", flush=True)
        if run.saver.uploader is not None:
            run.saver.uploader.add(final)
    elif isinstance(tensors, Gathered):
        for name in tensors:
            # The main process gets it.
            tensors[name]
    if run.settings.report_to != "none":
        accelerator.end_training()
    accelerator.wait_for_everyone()


def _close_uploads(run: Run, limit_seconds: float = 600.0) -> dict[str, str]:
    """Wait for the last copies, after a signal no longer than torchrun does; returns what is missing, and why."""
    if run.saver.uploader is None:
        return {}
    return run.saver.uploader.close(min(limit_seconds, 20.0) if run.signals.number else limit_seconds)
