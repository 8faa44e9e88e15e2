"""The loop: fetch a step's lanes, forward and backward per lane, clip, update; then log, evaluate, save."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from runner.agreement import Totals, agreed_steps
from runner.checkpoints.disk import writing
from runner.collecting import collect_as_usual
from runner.evaluation import evaluate_rows, is_better
from runner.fetching import Fetched
from runner.log import Speed
from runner.recipe import Row
from runner.run import Run, save_and_stop
from runner.schedule import due
from runner.settings import RunSettings
from runner.step import accumulate, judge, update
from runner.tracking import epoch_of, log_step, track, track_samples


def train(run: Run) -> None:
    """Train from the state's step to the end.

    Raises DivergedError where the numbers go bad, BadStep where they do and the run is to go back, and Interrupted
    after a signal and a complete checkpoint.
    """
    collect_as_usual()
    settings, state, speed = run.settings, run.state, Speed()
    ends_epoch = False
    steps = agreed_steps(run)
    run.losses.clear()
    evaluates_at_start = run.recipe.evaluates_at_start if settings.eval_on_start is None else settings.eval_on_start
    if state.step == 0 and state.best_step is None and evaluates_at_start:
        state.evaluation_due = True
    while state.evaluation_due or (state.step < run.max_steps and not out_of_patience(run)):
        if not state.evaluation_due:
            started = time.monotonic()
            step = next(steps)
            totals, lanes = step.totals, step.lanes
            run.in_hand = lanes
            if totals.stop:
                judge(run)
                save_and_stop(run, totals.stop)
            loss, logs = accumulate(run, lanes, totals)
            update(run, loss, totals)
            record_step(run, lanes, totals)
            seconds = time.monotonic() - started
            speed.add(totals.examples, totals.tokens, seconds, step.waited)
            run.watch.add_step(step.waited, seconds)
            run.saver.note_step(run, seconds)
            run.progress.advance(state.step)
            # Once in a while: say how it goes.
            if due(state.step, settings.logging_steps) or state.step == run.max_steps:
                judge(run)
                log_step(run, loss, logs, speed)
                run.losses.clear()
            state.evaluation_due = run.evaluates_after(state.step, state.examples_seen, totals.examples)
            ends_epoch = run.ends_epoch(state.examples_seen, totals.examples)
        if state.evaluation_due:
            judge(run)
        # Once in a while, and at the end: evaluate, and remember the best.
        is_best = evaluate_and_track_best(run) if state.evaluation_due else False
        finished = state.step >= run.max_steps or out_of_patience(run)
        # Once in a while, at the end, and where it was best: save.
        saves = ends_epoch if settings.save_every == "epoch" else due(state.step, settings.save_steps)
        if saves or finished or is_best:
            judge(run)
            run.saver.save(run, is_best)
        if due(state.step, settings.empty_cache_steps):
            run.hardware.accelerator.clear()
    if out_of_patience(run):
        best, score = "it was never a number", state.best_score
        if score is not None:
            best = f"the best was {score:.4f} at step {state.best_step}"
        run.progress.print_line(
            f"stopping early: {run.best_metric} has not improved{by_least(settings)} for "
            f"{settings.early_stopping_patience} evaluations; {best}."
        )
    run.saver.wait(run.hardware)


def record_step(run: Run, lanes: list[Fetched], totals: Totals) -> None:
    """Count the step as done, and note what it consumed."""
    state = run.state
    if run.ledger is not None:
        run.ledger.add(state.step, totals.checksum)
    state.step += 1
    state.examples_seen += totals.examples
    state.cursors |= {str(lane.lane): lane.cursor for lane in lanes if lane.cursor is not None}
    state.largest_lane = max(state.largest_lane, totals.largest_lane)


def evaluate_and_track_best(run: Run) -> bool:
    """Evaluate, and keep the best score, its step and the patience in the state. True where this is the best.

    A signal interrupts the evaluation; the resumed run does it again.
    """
    state = run.state
    if len(run.eval_data):
        size, signals = run.settings.examples_per_evaluation_batch, run.signals
        found = evaluate_rows(
            run.recipe,
            run.bare_model,
            run.eval_data,
            run.hardware,
            size,
            lambda: signals.number > 0,
            advance=run.progress.evaluating,
        )
        if found is None:
            save_and_stop(run, signals.reason if signals.number else "a signal to another process")
            return False
        scores, rows = found
    else:
        scores, rows = {}, []
    state.evaluation_due = False
    if not scores:
        return False
    is_best = note_best(run, scores)
    if run.metrics is not None:
        run.metrics.write(state.step, "eval", scores)
        write_samples(run, rows, is_best)
    run.progress.evaluation(state.step, scores, run.best_metric, comparison(run, is_best), epoch_of(run).get("epoch"))
    run.progress.best(state.best_score, state.best_step)
    is_sampled = run.settings.max_eval_examples is not None
    loss, examples = scores.get("loss", math.nan), len(run.eval_data)
    for line in run.watch.after_evaluation(state.step, loss, examples, is_sampled, scores):
        run.progress.print_line(f"note: {line}")
    remark = run.recipe.remark(state.step, scores)
    if remark is not None:
        run.progress.print_line(remark)
    track(run, "eval", scores)
    return is_best


def write_samples(run: Run, rows: list[Row], is_best: bool) -> None:
    """Write what the recipe shows and draws of an evaluation's rows: of the weights that `final/` is to have."""
    path = Path(run.settings.output_dir or "") / "samples.json"
    if not (is_best or run.settings.final == "last" or not path.exists()):
        return
    samples, figures = list(run.recipe.samples(rows)), list(run.recipe.figures(rows))
    if samples or figures:
        content = {"step": run.state.step, "examples": len(rows), "samples": samples}
        content |= {"figures": [dataclasses.asdict(figure) for figure in figures]} if figures else {}
        with writing(path.name, path.parent):
            path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        track_samples(run, samples)


def note_best(run: Run, scores: Mapping[str, float]) -> bool:
    """Compare an evaluation with the best one so far; True where it takes its place.

    Of two equal scores the lower loss is the better one, and of two equal losses the later step. An equal score does
    not renew the patience: training that has come to a standstill is to end.
    """
    state, name = run.state, run.best_metric
    if name not in scores and name.removeprefix("eval_") in scores:
        # As transformers calls it.
        name = run.best_metric = name.removeprefix("eval_")
    if name not in scores:
        if not run.lacks_best_metric:
            run.progress.print_line(
                f"warning: the evaluation has no metric {name}; it has {', '.join(sorted(scores))}. So no checkpoint "
                "is the best one, and early_stopping_patience has no effect."
            )
        run.lacks_best_metric = True
        return False
    score, loss = scores[name], scores.get("loss", math.nan)
    direction, least = run.settings.greater_is_better, run.settings.early_stopping_min_delta
    improved = is_better(name, score, state.best_score, direction)
    equals = score == state.best_score and not loss > (math.inf if state.best_loss is None else state.best_loss)
    # Many small improvements that add up to the least one renew the patience too.
    before = state.best_score if state.patience_score is None else state.patience_score
    renews = is_better(name, score, before, direction, least)
    state.evaluations_without_improvement = 0 if renews else state.evaluations_without_improvement + 1
    if renews or state.patience_score is None:
        state.patience_score = score if renews else before
    if improved or equals:
        state.best_score, state.best_step = score, state.step
        state.best_loss = loss if math.isfinite(loss) else None
    return improved or equals


def comparison(run: Run, is_best: bool) -> str:
    """How the evaluation that was just noted compares with the best one, in words."""
    state, settings = run.state, run.settings
    if is_best:
        return "new best score: saved"
    if state.best_score is None or state.best_step is None:
        return ""
    waiting = f"best {state.best_score:.4f} at step {state.best_step}"
    if settings.early_stopping_patience:
        without = state.evaluations_without_improvement
        waiting += f", {without} of {settings.early_stopping_patience} evaluations without improvement"
    return waiting


def by_least(settings: RunSettings) -> str:
    """The least improvement that counts, in words."""
    least = settings.early_stopping_min_delta
    return f" by more than {least:g} (early_stopping_min_delta)" if least else ""


def out_of_patience(run: Run) -> bool:
    """Whether evaluation has not improved for as long as the settings allow."""
    patience = run.settings.early_stopping_patience
    return patience is not None and run.state.evaluations_without_improvement >= patience
