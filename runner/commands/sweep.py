"""`relay sweep`: train with different settings, and find the best ones by the score on the validation split.

--vary names a setting and what to try, once for each setting:

    --vary learning_rate=1e-5..1e-3:log    numbers between two ends, spread over their logarithm
    --vary warmup_steps=0..200             whole numbers between two ends
    --vary model.dropout=0,0.1,0.2         these values; with | between them where a value has commas itself

    relay sweep --recipe text2sql --vary learning_rate=1e-4..1e-2:log --vary model.dropout=0,0.1 --trials 20 \\
        --output_dir runs/sweep --max_steps 400 --eval_steps 50

A trial is a training like any other, in a folder of its own (runs/sweep/trial-001): it can be evaluated, reported and
resumed. Where all settings have lists, each combination is trained once; else Optuna chooses (TPE). A trial that falls
behind the others on the validation split is stopped early. The same command goes on with a sweep that was interrupted,
and with a higher --trials adds to it. --recipe NAME, --preset P, --config FILE and any flag of a training may follow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from runner.command_line import chosen_values
from runner.commands import split_flags
from runner.config import Config, parse, parse_into, settings_of
from runner.errors import ConfigError, DataError, Interrupted
from runner.lanes import key
from runner.log import append_line, read_lines
from runner.parts.charts import Cloud, Curve, Page, short_number
from runner.parts.installation import environment_with_relay, require
from runner.parts.search_space import NOT_VARIED, Variation, combinations, read_variations
from runner.parts.setting_types import AtLeast1
from runner.settings import RunSettings
from runner.signals import CAUGHT, REPEAT_SECONDS, catch, end_with_parent
from runner.yaml_file import read_yaml

if TYPE_CHECKING:
    import optuna

MOST_FAILURES = 3
"""If so many trials fail before one succeeds, the fault is not in the values that were tried."""
ATTEMPTS = 20
"""How often Optuna is asked for values that were not tried before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Settings of the sweep. Any flag of a training may follow."""

    vary: tuple[str, ...] = ()
    """NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C: a setting and what to try; may come several times."""
    trials: AtLeast1 = 20
    """Number of trainings, those of earlier starts of this sweep included."""
    prune: Literal["median", "none"] = "median"
    """median: stop a trial whose best score is below the median of the others' at the same evaluation; none: never."""
    processes: AtLeast1 | None = None
    """Processes of each trial, as relay launch starts them; none: one per GPU, or one."""


@dataclasses.dataclass
class Trial:
    """One training of a sweep, as trials.jsonl records it."""

    trial: int
    """Its number, counted from 1."""
    values: dict[str, str]
    """The settings that were varied, as typed."""
    state: str = "running"
    """running, finished, stopped early, diverged or failed."""
    score: float | None = None
    """The best score of its evaluations."""
    step: int | None = None
    """The step of that score."""
    scores: list[float] = dataclasses.field(default_factory=list)
    """The score of each evaluation."""
    seconds: float = 0.0
    reason: str = ""
    """Why it failed."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"trial-{self.trial:03d}"

    def words(self) -> str:
        """What was varied, for people."""
        return "  ".join(f"{name} {value}" for name, value in self.values.items())


def main(arguments: list[str]) -> None:
    """Train the trials that are missing; print the table, and write the picture."""
    own, others = split_flags(SweepSettings, arguments)
    settings: SweepSettings = parse_into(SweepSettings, own, "relay sweep", __doc__)
    config = parse(others, "relay sweep")
    known = {each.flag: each for owner in (RunSettings, type(config.recipe)) for each in settings_of(owner)}
    variations = read_variations(settings.vary, known)
    typed = [each.flag for each in variations if each.flag in config.flags]
    if typed:
        raise ConfigError(f"{typed[0]} is varied, and --{typed[0]} has a value for all trials: leave one of them out.")
    if config.run.cloud_provider:
        raise ConfigError("A sweep gives each trial a place of its own in the bucket: type --upload_to URL instead.")
    require(["optuna"], "relay sweep", "sweep")
    from runner.preflight import Check, check_settings, raise_first, wrong_folder
    from runner.run_folder import choose_output_name

    config = check_settings(config)
    folder = Path(config.run.output_dir or choose_output_name(config, "sweep-"))
    if config.run.dry_run:
        print(_introduction(config, folder, variations, settings))
        return
    raise_first([Check("output_dir", wrong_folder(folder, False))])
    with _locked(folder):
        sweep = Sweep.open(config, folder, variations, settings, others)
        print(_introduction(config, folder, variations, settings), flush=True)
        sweep.run()
        print("\n".join(sweep.table()))
        print(f"picture: {sweep.write_page()}")


class Sweep:
    """The trials of one folder: what was tried, and what comes next."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        variations: Sequence[Variation],
        settings: SweepSettings,
        words: Sequence[str],
    ) -> None:
        self.config, self.folder, self.variations, self.settings = config, folder, variations, settings
        self.words = words
        self.metric = metric_of(config)
        self.rises = rises(config)
        self.trials: dict[int, Trial] = {}
        self.file = folder / "trials.jsonl"
        for line in read_lines(self.file):
            self.trials[line["trial"]] = Trial(**line)
        self.grid = combinations(variations)

    @classmethod
    def open(
        cls,
        config: Config,
        folder: Path,
        variations: Sequence[Variation],
        settings: SweepSettings,
        words: Sequence[str],
    ) -> Sweep:
        """A new sweep, or the one of this folder. Raises ConfigError where that one has other settings."""
        file = folder / "sweep.json"
        if any(folder.glob("checkpoint-*")) or (folder / "metrics.jsonl").exists():
            raise ConfigError(f"{folder} is the folder of a run: type another --output_dir for the sweep.")
        own = NOT_VARIED - {"metric_for_best_model", "greater_is_better"}
        flat = {name: value for name, value in config.flat().items() if name not in own and name != "preset"}
        now = {"vary": {each.flag: str(each) for each in variations}, "settings": {**flat, "preset": config.preset}}
        now = json.loads(json.dumps(now, default=str))
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            differing = [f"vary {name}" for name in {**before["vary"], **now["vary"]}
                         if before["vary"].get(name) != now["vary"].get(name)]  # fmt: skip
            differing += [name for name, value in before["settings"].items() if now["settings"].get(name) != value]
            if differing:
                raise ConfigError(
                    f"{folder} holds a sweep with other settings: {', '.join(differing[:5])}.\n"
                    "Type them as before to go on with it, or another --output_dir for a new sweep."
                )
        else:
            file.write_text(json.dumps(now, indent=1), encoding="utf-8")
        return cls(config, folder, variations, settings, words)

    @property
    def number_of_trials(self) -> int:
        """How many trainings there are to be."""
        return min(self.settings.trials, len(self.grid)) if self.grid is not None else self.settings.trials

    def run(self) -> None:
        """Train what is missing. Raises Interrupted after a signal, and DataError where no trial has a score."""
        with _passing_signals_on() as started:
            for number in range(1, self.number_of_trials + 1):
                trial = self.trials.get(number)
                if trial is None or trial.state == "running":
                    self._try(number, started)
                self._check_sense()

    def _try(self, number: int, started: Started) -> None:
        asked = self._ask(number)
        known = self.trials.get(number)
        trial = known or Trial(number, self._typed(asked.params))
        self._record(trial)
        again = "  (going on)" if known is not None else ""
        print(f"{trial.name} of {self.number_of_trials}  {trial.words()}{again}", flush=True)
        begun = time.monotonic()
        status = self._train(trial, asked, started)
        trial.seconds += time.monotonic() - begun
        if started.signal:
            self._record(trial)
            raise Interrupted(
                f"Stopped in {trial.name}; saved. The same command, with --output_dir {self.folder}, goes on."
            )
        self._judge(trial, status, asked)
        self._record(trial)
        score = "" if trial.score is None else f"{self.metric} {trial.score:.4f} at step {trial.step}, "
        print(
            f"    {score}{trial.state}{trial.reason and ': '}{trial.reason}  ({_duration(trial.seconds)})", flush=True
        )

    def _train(self, trial: Trial, asked: optuna.trial.Trial, started: Started) -> int:
        """Run the training, and stop it where it falls behind; returns its exit status."""
        place, seen, is_told = self.folder / trial.name, 0, False
        metrics, read = place / "metrics.jsonl", None
        command = [sys.executable, "-m", "runner", "launch", *self._launch_words(), *self._training_words(trial)]
        with (self.folder / f"{trial.name}.log").open("ab") as log:
            process = started.start(command, environment_with_relay(), log)
        while True:
            # In this order: what it wrote before its end is read after it.
            status = process.poll()
            written = metrics.stat().st_size if metrics.is_file() else None
            if written != read or status is not None:
                # Read only when it has grown: a long run's file would take a core from the training.
                read = written
                trial.scores, trial.step = self._scores(place)
            for score in trial.scores[seen:]:
                asked.report(score, seen)
                seen += 1
                if status is None and not is_told and self.settings.prune == "median" and asked.should_prune():
                    is_told = True
                    process.send_signal(signal.SIGTERM)
            if status is not None:
                return status
            time.sleep(0.1)

    def _launch_words(self) -> list[str]:
        return [] if self.settings.processes is None else ["--processes", str(self.settings.processes)]

    def _training_words(self, trial: Trial) -> list[str]:
        """The flags of a trial: what was typed for the sweep, with a folder of its own."""
        own = ("output_dir", "resume_from_checkpoint", "upload_to", "wandb_run_name")
        words = chosen_values(self.words, own)[1]
        run, name = self.config.run, f"{self.folder.name}-{trial.name}"
        words += [f"--output_dir={self.folder / trial.name}", "--resume_from_checkpoint=auto"]
        words += [f"--upload_to={run.upload_to.rstrip('/')}/{trial.name}"] if run.upload_to else []
        words += [f"--wandb_run_name={name}"] if run.report_to == "wandb" else []
        if "save_total_limit" not in self.config.explicit:
            # The checkpoints of many trials would fill the disk.
            words.append("--save_total_limit=1")
        first = self.folder / "trial-001" / "config.yaml"
        if run.mixed_precision == "auto" and "mixed_precision" not in trial.values and first.is_file():
            # All trials are compared in the number format that the first one chose.
            words.append(f"--mixed_precision={read_yaml(first).get('mixed_precision') or 'auto'}")
        return words + [f"--{flag}={value}" for flag, value in trial.values.items()]

    def _scores(self, place: Path) -> tuple[list[float], int | None]:
        """The score of each evaluation so far, and the step of the best one."""
        events = [event for event in read_lines(place / "metrics.jsonl") if event["split"] == "eval"]
        pairs = [(event["step"], event[self.metric]) for event in events if is_number(event.get(self.metric))]
        best = (max if self.rises else min)(pairs, key=lambda pair: pair[1], default=(None, None))
        return [score for _, score in pairs], best[0]

    def _judge(self, trial: Trial, status: int, asked: optuna.trial.Trial) -> None:
        """Say how a trial ended. Raises Interrupted where somebody else stopped it."""
        trial.score = (max if self.rises else min)(trial.scores, default=None)
        if status == 0:
            trial.state = "finished"
        elif status == 75 and self.settings.prune == "median" and trial.scores and asked.should_prune():
            trial.state = "stopped early"
        elif status == 75:
            self._record(trial)
            raise Interrupted(f"Somebody stopped {trial.name}; saved. The same command goes on.")
        else:
            trial.state = "diverged" if status == 3 else "failed"
            trial.score = trial.step = None
            trial.reason = last_error(self.folder / f"{trial.name}.log", status)

    def _check_sense(self) -> None:
        """Raises DataError where no score can come, or where every trial failed."""
        ended = [trial for trial in self.trials.values() if trial.state != "running"]
        scored = [trial for trial in ended if trial.score is not None]
        silent = next((trial for trial in ended if trial.state == "finished" and trial.score is None), None)
        if silent is not None and not scored:
            events = read_lines(self.folder / silent.name / "metrics.jsonl")
            names = sorted({name for event in events if event["split"] == "eval" for name in event} - {"step", "split"})
            measured = f"its evaluations have {', '.join(names)}" if names else "it has no validation split"
            raise DataError(
                f"{silent.name} ended without a number for {self.metric}: {measured}.\n"
                "Type --metric_for_best_model with what it measures, and another --output_dir."
            )
        failed = [trial for trial in ended if trial.state == "failed"]
        if not scored and len(failed) >= min(MOST_FAILURES, self.number_of_trials):
            raise DataError(
                f"The first {len(failed)} trials failed, the last one with: {failed[-1].reason}\n"
                f"All that it printed is in {self.folder / failed[-1].name}.log."
            )

    def _record(self, trial: Trial) -> None:
        self.trials[trial.trial] = trial
        append_line(self.file, dataclasses.asdict(trial))

    def _ask(self, number: int) -> optuna.trial.Trial:
        """The values of a trial. They depend on the seed and on the trials before it, not on interruptions."""
        before = [trial for place, trial in sorted(self.trials.items()) if place < number]
        tried = [trial.values for trial in before]
        for attempt in range(ATTEMPTS):
            study = self._study(before, key(self.config.run.seed, "sweep", number, attempt) % 2**32)
            fixed = self.trials[number].values if number in self.trials else None
            if fixed is None and self.grid is not None and len(self.grid) <= self.settings.trials:
                fixed = self.grid[number - 1]
            if fixed is not None:
                study.enqueue_trial({each.flag: each.value(fixed[each.flag]) for each in self.variations})
            asked = study.ask(self._distributions())
            if fixed is not None or self._typed(asked.params) not in tried:
                break
        return asked

    def _study(self, before: Sequence[Trial], seed: int) -> optuna.Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        states = optuna.trial.TrialState
        study = optuna.create_study(
            direction="maximize" if self.rises else "minimize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            # The first evaluation comes too early to judge by, and four trials are needed to know what is usual.
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        )
        for trial in before:
            is_complete = trial.state == "finished" and trial.score is not None
            study.add_trial(
                optuna.trial.create_trial(
                    # Values with which a training fails are taken for bad ones.
                    state=states.COMPLETE if is_complete else states.PRUNED,
                    params={each.flag: each.value(trial.values[each.flag]) for each in self.variations},
                    distributions=self._distributions(),
                    value=trial.score if is_complete else None,
                    intermediate_values=dict(enumerate(trial.scores)) if trial.score is not None else {},
                )
            )
        return study

    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        from optuna import distributions

        found: dict[str, distributions.BaseDistribution] = {}
        for each in self.variations:
            if each.choices:
                found[each.flag] = distributions.CategoricalDistribution(each.choices)
            elif each.is_whole:
                found[each.flag] = distributions.IntDistribution(int(each.low), int(each.high), log=each.is_log)
            else:
                found[each.flag] = distributions.FloatDistribution(each.low, each.high, log=each.is_log)
        return found

    def _typed(self, params: Mapping[str, float | str]) -> dict[str, str]:
        return {each.flag: each.typed(params[each.flag]) for each in self.variations}

    def ranked(self) -> list[Trial]:
        """All trials, the best first, and those without a score at the end."""
        sign = -1 if self.rises else 1
        return sorted(
            self.trials.values(),
            key=lambda trial: (trial.score is None, sign * (trial.score or 0.0), trial.trial),
        )

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The head and the lines of the table."""
        head = [
            "trial",
            *(each.flag for each in self.variations),
            self.metric,
            "at step",
            "evaluations",
            "state",
            "time",
        ]
        lines = []
        for trial in self.ranked():
            score = "–" if trial.score is None else f"{trial.score:.4f}"
            step = "–" if trial.step is None else f"{trial.step:,}"
            values = [trial.values[each.flag] for each in self.variations]
            lines.append(
                [trial.name, *values, score, step, str(len(trial.scores)), trial.state, _duration(trial.seconds)]
            )
        return head, lines

    def table(self) -> list[str]:
        """What a terminal shows at the end: the trials, the best one, and what to type next."""
        head, lines = self.rows()
        widths = [max(len(line[place]) for line in (head, *lines)) for place in range(len(head))]
        shown = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in (head, *lines)
        ]
        return ["", *shown, "", *self.findings()]

    def findings(self) -> list[str]:
        """The best trial, and what the sweep cannot know."""
        best = self.ranked()[0]
        if best.score is None:
            return [f"No trial has a number for {self.metric}: look at the logs in {self.folder}."]
        flags = " ".join(f"--{name} {value}" for name, value in best.values.items())
        found = [f"best {self.metric}: {best.score:.4f}, {best.name} at step {best.step}: {flags}"]
        for each in self.variations:
            if not each.choices and not 0.05 < each.place(best.values[each.flag]) < 0.95:
                found.append(
                    f"note: the best {each.flag} is at the end of {each}: a wider range may have a better one."
                )
        if self.settings.prune == "median" and max(len(trial.scores) for trial in self.trials.values()) < 3:
            found.append(
                "note: trials were evaluated less than three times, so none was stopped early: see --eval_steps."
            )
        return found

    def write_page(self) -> Path:
        """Write sweep.html: the score over each setting, the validation curves, and the table."""
        page = Page(f"sweep {self.folder.resolve().name}")
        for line in self.findings():
            page.paragraph(line)
        ended = [trial for trial in self.ranked() if trial.score is not None]
        page.heading(f"{self.metric} by setting")
        page.grid([self._cloud(page, each, ended) for each in self.variations])
        curves = []
        for place, trial in enumerate(ended[:6]):
            events = read_lines(self.folder / trial.name / "metrics.jsonl")
            points = [(event["step"], event.get(self.metric)) for event in events if event["split"] == "eval"]
            curves.append(Curve(trial.name, points, place))
        page.heading(f"{self.metric} on the validation split{', the six best trials' if len(ended) > 6 else ''}")
        page.grid([page.curves(self.metric, curves)])
        page.heading("Trials")
        head, lines = self.rows()
        page.table(head, lines, best=0)
        file = self.folder / "sweep.html"
        file.write_text(page.html(), encoding="utf-8")
        return file

    def _cloud(self, page: Page, each: Variation, ended: Sequence[Trial]) -> str:
        def place(trial: Trial) -> float:
            typed = trial.values[each.flag]
            return each.choices.index(typed) if each.choices else float(typed)

        clouds = []
        groups: list[tuple[str, int, Callable[[Trial], bool]]] = [
            ("best", 1, lambda trial: trial is ended[0]),
            ("finished", 0, lambda trial: trial.state == "finished" and trial is not ended[0]),
            ("stopped early", 4, lambda trial: trial.state == "stopped early" and trial is not ended[0]),
        ]
        for name, colour, belongs in groups:
            own = [trial for trial in ended if belongs(trial)]
            if own:
                points = [(place(trial), trial.score or 0.0) for trial in own]
                labels = [f"{trial.name}: {trial.words()}, {short_number(trial.score)}" for trial in own]
                clouds.append(Cloud(name, points, labels, colour, is_hollow=name == "stopped early"))
        return page.points(each.flag, clouds, (each.flag, self.metric), each.choices, each.is_log)


class Started:
    """The training that goes on, which gets the signals that come."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.signal = 0
        self.since = 0.0

    def start(self, command: Sequence[str], environment: dict[str, str], log: object) -> subprocess.Popen[bytes]:
        """Start a training that ends with this process."""
        self.process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,  # type: ignore[arg-type]
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
        if self.signal:
            self.process.send_signal(self.signal)
        return self.process

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Let the training save and stop."""
        # Ctrl-C reaches the training as well: for it, it is the same request.
        if self.signal and time.monotonic() - self.since < REPEAT_SECONDS:
            return
        self.signal, self.since = number, time.monotonic()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[Started]:
    started = Started()
    before = {number: signal.getsignal(number) for number in CAUGHT}
    catch(started.pass_on)
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if started.process is not None and started.process.poll() is None:
            # Something went wrong here: the training saves and stops.
            started.process.terminate()
            started.process.wait()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder of the sweep, for this process alone. Raises ConfigError where another one has it."""
    from filelock import FileLock, Timeout

    from runner.run_folder import is_locked

    lock = FileLock(folder / ".lock")
    taken = ConfigError(f"Another sweep is at work in {folder}: wait for it, or type another --output_dir.")
    try:
        if is_locked(folder / ".lock"):
            raise taken
        lock.acquire(timeout=0)
    except Timeout:
        raise taken from None
    except (OSError, NotImplementedError):
        # Some network folders have no locks.
        pass
    try:
        yield
    finally:
        lock.release()


def _introduction(config: Config, folder: Path, variations: Sequence[Variation], settings: SweepSettings) -> str:
    """What will be tried, how many times, and by what it is judged."""
    lines = [f"relay sweep: {config.recipe_name}, preset {config.preset or 'default'}, into {folder}"]
    width = max(len(each.flag) for each in variations)
    lines += [f"  {each.flag:{width}}  {each}" for each in variations]
    grid = combinations(variations)
    if grid is not None and len(grid) <= settings.trials:
        count = f"{len(grid)} trials, each combination once"
    else:
        count = f"{settings.trials} trials, chosen by Optuna (TPE)"
    direction = "higher" if rises(config) else "lower"
    lines.append(f"{count}; scored by {metric_of(config)} on the validation split, where {direction} is better")
    return "\n".join(lines)


def metric_of(config: Config) -> str:
    """The metric by which trials are compared."""
    return config.run.metric_for_best_model or config.recipe.best_metric


def rises(config: Config) -> bool:
    """Whether more of the metric is better."""
    from runner.evaluation import is_better

    return is_better(metric_of(config), 1.0, 0.0, config.run.greater_is_better)


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def last_error(log: Path, status: int) -> str:
    """What a training printed when it failed: its line with `error:`, else its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.partition("error:")[2].strip() for line in lines if line.startswith(("error:", "rank "))]
    return (errors or lines or [f"exit status {status}"])[-1]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
