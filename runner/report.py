"""`report.html`: one page about a run, or about several beside each other, that needs only a browser."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.checkpoints.pointers import resolve_pointer
from runner.log import read_lines
from runner.parts.charts import MOST_COLOURS, Cloud, Curve, Page, Points, flat_values, short_number

UNITS = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "examples_per_second": "examples per second",
    "tokens_per_second": "tokens per second",
    "seconds_per_step": "seconds per step",
    "data_wait": "share of the time that the main process waited for its data",
    "padding": "share of the tokens that are padding, in the main process's lanes of the step",
    "memory_gb": "memory in GB",
    "energy_joules": "energy between two log lines, in joules",
    "flops_utilisation": "model FLOPs utilisation (MFU)",
}
Event = Mapping[str, Any]
"""One line of metrics.jsonl: its step, its split, and the values that were logged."""
NOT_CURVES = {"step", "split", "epoch"}
LINEAR = {
    "learning_rate",
    "seconds_per_step",
    "examples_per_second",
    "tokens_per_second",
    "data_wait",
    "padding",
    "memory_gb",
}
"""Of these the shape counts, which a logarithm bends."""
NOT_COMPARED = {"output_dir", "resume_from_checkpoint"}
"""Settings that differ between any two runs."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run's folder holds of it."""

    name: str
    train: Sequence[Event]
    scored: Sequence[Event]
    config: str
    """config.yaml, as text."""
    state: Mapping[str, Any]
    """state.json of the newest checkpoint; empty before the first one."""
    starts: Sequence[Mapping[str, Any]]
    """Where the ledger says that the run was started, or went on."""
    origin: Mapping[str, Any]
    """Which evaluation the weights in `final/` are of; empty where there is no `final/`."""
    answers: Mapping[str, Any]
    """samples.json: answers or texts of an evaluation, with its step and how many it scored."""

    @classmethod
    def of(cls, run: Path) -> "Record":
        """Read a run's folder. Raises FileNotFoundError where it has no metrics.jsonl."""
        if not (run / "metrics.jsonl").is_file():
            raise FileNotFoundError(run / "metrics.jsonl")
        events = read_lines(run / "metrics.jsonl")
        config = run / "config.yaml"
        return cls(
            run.resolve().name,
            [event for event in events if event["split"] == "train"],
            [event for event in events if event["split"] == "eval"],
            config.read_text(encoding="utf-8") if config.is_file() else "",
            _json(resolve_pointer(run / "checkpoint-latest") / "state.json", {}),
            [line["start"] for line in read_lines(run / "ledger.jsonl") if "start" in line],
            _json(run / "final" / "origin.json", {}),
            _json(run / "samples.json", {}),
        )

    def samples(self, is_right: bool | None) -> list[Mapping[str, Any]]:
        """The right answers, or the wrong ones; None: those that are neither."""
        return [sample for sample in self.answers.get("samples", []) if sample.get("right") is is_right]

    @property
    def settings(self) -> dict[str, object]:
        """Every setting by its flag."""
        import yaml

        return dict(_flags(yaml.safe_load(self.config) or {}))


def write(run: Path, *others: Path, output: Path | None = None) -> Path:
    """Write the page of a run, or of several, from what is there; returns its path.

    It goes to `output`, else into the run's folder, or for several runs beside the first one's. Raises
    FileNotFoundError where a folder has no metrics.jsonl.
    """
    records = [Record.of(folder) for folder in (run, *others)]
    target = output or (run.resolve().parent if others else run) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(records), encoding="utf-8")
    return target


def page(records: Sequence[Record]) -> str:
    """The page, as HTML: curves and tables of one run, or of several beside each other."""
    records = _with_own_names(records)
    found = Page(", ".join(record.name for record in records))
    is_one = len(records) == 1
    for record in records:
        found.paragraph(("" if is_one else f"{record.name}: ") + _summary(record), quiet=True)
    if is_one:
        marks = _marks(records[0])
        found.marks = [{"step": step, "label": words.partition(",")[0]} for step, words in marks]
        if marks:
            listed = "; ".join(f"step {step:,}: {words}" for step, words in marks)
            found.paragraph(f"Marked in the charts: {listed}.")
    found.paragraph(
        "Drag over a chart to zoom, click twice to see all of it; all charts show the same step.", quiet=True
    )
    if not is_one:
        _compare(found, records)
    found.heading("Training")
    found.grid([figure for name in _curve_names(records) if (figure := _chart(found, records, name))])
    if any(record.scored for record in records):
        found.heading("Evaluation")
        found.grid(_scores(found, records))
        for record in records:
            _score_table(found, record, is_one)
    for record in records:
        _samples(found, record, is_one)
        _figures(found, record, is_one)
        layers = [_by_layer(found, record, name) for name in _names(record.train, list)]
        if any(layers):
            found.heading("By layer" if is_one else f"By layer: {record.name}")
            found.grid(layers)
    for record in records:
        found.folded("Settings" if is_one else f"Settings of {record.name}", record.config)
    return found.html()


def in_words(run: Path) -> str:
    """A run's scores and answers as text, for a terminal. Raises FileNotFoundError where there is no metrics.jsonl."""
    record = Record.of(run)
    lines = [f"{record.name}: {_summary(record)}"]
    step = record.origin.get("step") or record.state.get("best_step")
    found = [event for event in record.scored if event["step"] == step] or list(record.scored[-1:])
    if found:
        scores = {name: value for name, value in found[-1].items() if name not in ("step", "split")}
        lines += ["", f"scores on the validation split at step {found[-1]['step']:,}"]
        width = max(len(name) for name in scores)
        lines += [f"  {name:{width}}  {short_number(value)}" for name, value in scores.items()]
    for is_right, words in ((True, "a right answer"), (False, "a wrong answer"), (None, "a sample")):
        for sample in record.samples(is_right):
            lines += ["", f"{words}, at step {record.answers['step']:,}"]
            lines += [f"  {name + ':':10} {text}" for name, text in sample.items() if name != "right"]
    return "\n".join(lines)


def _json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def _flags(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for name, value in settings.items():
        pairs += _flags(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs


def _with_own_names(records: Sequence[Record]) -> list[Record]:
    """The records, with a number behind names that are not the only ones."""
    names = [record.name for record in records]
    return [
        dataclasses.replace(record, name=f"{record.name} ({place})") if names.count(record.name) > 1 else record
        for place, record in enumerate(records, 1)
    ]


def _summary(record: Record) -> str:
    train, state, origin = record.train, record.state, record.origin
    words = [f"{state['step']:,} steps of {state['batch_size']} examples"] if state else []
    if train and "epoch" in train[-1]:
        words.append(f"{train[-1]['epoch']:.2f} epochs")
    seconds = training_seconds(train)
    words += [f"{_duration(seconds)} of training, without evaluations and saving"] if seconds else []
    waiting = waiting_seconds(train)
    words += [f"{waiting / seconds:.1%} of it waiting for data"] if seconds and waiting is not None else []
    joules = sum(event.get("energy_joules") or 0.0 for event in train)
    words += [f"{_energy(joules)} by the processors of the main process's machine"] if joules else []
    memory = [event["memory_gb"] for event in train if event.get("memory_gb") is not None]
    words += [f"peak memory {max(memory):.2f} GB"] if memory else []
    if state.get("best_step"):
        metric = record.settings.get("metric_for_best_model") or origin.get("metric") or "score"
        words.append(f"best {metric} {state['best_score']:.4f} on the validation split at step {state['best_step']:,}")
    if origin:
        which = "the best" if origin["is_best"] else "the last"
        note = f" ({origin['note'].rstrip('.')})" if origin.get("note") else ""
        words.append(f"final/ has the weights of step {origin['step']:,}, {which}{note}")
    wrote = state.get("written_by", {})
    if wrote:
        words.append(f"{wrote.get('processes')} process(es) on {wrote.get('machine')}, torch {wrote.get('torch')}")
    if state.get("excluded"):
        words.append(f"{len(state['excluded'])} examples left out after bad steps")
    return "; ".join(words) or "nothing was logged yet"


def training_seconds(train: Sequence[Event]) -> float:
    """The time that the logged steps took, without evaluations and saving."""
    return sum(seconds for seconds, _ in _times(train))


def waiting_seconds(train: Sequence[Event]) -> float | None:
    """The part of it in which the main process waited for its data; None where an older run did not log that."""
    if not any("data_wait" in event for event in train):
        return None
    return sum(seconds * (event.get("data_wait") or 0.0) for seconds, event in _times(train))


def _times(train: Sequence[Event]) -> Iterator[tuple[float, Event]]:
    """The seconds of the steps that end with each logged one, and its line."""
    before = 0
    for event in train:
        yield (event.get("seconds_per_step") or 0.0) * (event["step"] - before), event
        before = event["step"]


def _energy(joules: float) -> str:
    return f"{joules / 3.6e6:.2f} kWh" if joules >= 3.6e5 else f"{joules / 3600:.3g} Wh"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _marks(record: Record) -> list[tuple[int, str]]:
    """Where the run went on: after a restart, or on another machine or other processes."""
    marks: list[tuple[int, str]] = []
    for before, start in zip(record.starts, record.starts[1:], strict=False):
        words = ["restart"]
        if start.get("machine") != before.get("machine"):
            words = [f"moved to {start.get('machine') or 'another machine'}"]
        if start.get("hardware") != before.get("hardware") and start.get("hardware"):
            words.append(str(start["hardware"]))
        elif start.get("processes") != before.get("processes"):
            words.append(f"{start.get('processes')} processes")
        if start.get("set_aside"):
            words.append("from an older checkpoint")
        marks.append((start["step"], ", ".join(words)))
    return marks


def _compare(found: Page, records: Sequence[Record]) -> None:
    """Tables of what differs between runs: settings, last losses and best scores."""
    names = [record.name for record in records]
    found.heading("What differs")
    every = [record.settings for record in records]
    flags = list(dict.fromkeys(flag for settings in every for flag in settings))
    rows: list[list[object]] = []
    for flag in flags:
        values = [settings.get(flag, "–") for settings in every]
        if flag not in NOT_COMPARED and any(value != values[0] for value in values):
            rows.append([flag, *("none" if value is None else str(value) for value in values)])
    if rows:
        found.table(["setting", *names], rows)
    else:
        found.paragraph("No setting differs.")
    found.heading("Results")
    results: list[list[object]] = [
        ["last step", *(record.train[-1]["step"] if record.train else None for record in records)]
    ]
    results.append(["last train loss", *(record.train[-1].get("loss") if record.train else None for record in records)])
    results.append(["best step", *(record.state.get("best_step") for record in records)])
    results.append(["best score", *(record.state.get("best_score") for record in records)])
    for name in _names([event for record in records for event in record.scored], (int, float)):
        last = [record.scored[-1].get(name) if record.scored else None for record in records]
        results.append([f"last {'validation loss' if name == 'loss' else name}", *last])
    found.table(["", *names], results)


def _names(events: Sequence[Event], kind: type | tuple[type, ...]) -> list[str]:
    found = {name for event in events for name, value in event.items() if isinstance(value, kind)}
    return sorted(found - NOT_CURVES)


def _curve_names(records: Sequence[Record]) -> list[str]:
    names = _names([event for record in records for event in record.train], (int, float))
    return [*(name for name in UNITS if name in names), *(name for name in names if name not in UNITS)]


def _points(events: Sequence[Event], name: str) -> Points:
    return [
        (event["step"], _number(event[name])) for event in events if name in event and not isinstance(event[name], list)
    ]


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _chart(found: Page, records: Sequence[Record], name: str) -> str:
    """A chart of a number of the training; with the loss, that of the validation."""
    curves = []
    for place, record in enumerate(records):
        own = "" if len(records) == 1 else f"{record.name} "
        curves.append(
            Curve(f"{own}train" if name == "loss" else own.strip() or "train", _points(record.train, name), place)
        )
        if name == "loss":
            dashed = len(records) > 1
            curves.append(Curve(f"{own}validation", _points(record.scored, "loss"), place if dashed else 1, dashed))
    return found.curves(UNITS.get(name, name), curves, False if name in LINEAR else None)


def _scores(found: Page, records: Sequence[Record]) -> list[str]:
    """Charts of the evaluations' scores; of a single run, a score and its groups (METRIC/GROUP) share one chart."""
    names = _names([event for record in records for event in record.scored], (int, float))
    together: dict[str, list[str]] = {}
    for name in names:
        if name != "loss" and any(len(_points(record.scored, name)) > 1 for record in records):
            together.setdefault(name.partition("/")[0], []).append(name)
    figures = []
    for metric, parts in together.items():
        if len(records) == 1 and 1 < len(parts) <= MOST_COLOURS:
            curves = [
                Curve(part.partition("/")[2] or "all", _points(records[0].scored, part), place)
                for place, part in enumerate(parts)
            ]
            figures.append(found.curves(metric, curves))
            continue
        for part in parts:
            curves = [
                Curve("validation" if len(records) == 1 else record.name, _points(record.scored, part), place)
                for place, record in enumerate(records)
            ]
            figures.append(found.curves(part, curves))
    return [figure for figure in figures if figure]


def _score_table(found: Page, record: Record, is_one: bool) -> None:
    scored = record.scored
    if not scored:
        return
    found.paragraph(
        ("" if is_one else f"{record.name}: ") + "scores on the validation split; the best in colour.", quiet=True
    )
    names = ["loss", *(name for name in _names(scored, (int, float)) if name != "loss")]
    best = next((place for place, event in enumerate(scored) if event["step"] == record.state.get("best_step")), None)
    found.table(
        ["step", *names],
        [[f"{event['step']:,}", *(_number(event.get(name)) for name in names)] for event in scored],
        best=best,
    )


def _samples(found: Page, record: Record, is_one: bool) -> None:
    """Tables of what an evaluation's model answered or wrote."""
    for is_right, words in ((True, "Right answers"), (False, "Wrong answers"), (None, "Samples")):
        chosen = record.samples(is_right)
        if chosen:
            found.heading(words if is_one else f"{words}: {record.name}")
            found.paragraph(
                f"{len(chosen)} of {record.answers['examples']:,}, at step {record.answers['step']:,}.", True
            )
            names = [name for name in chosen[0] if name != "right"]
            found.table(names, [[sample.get(name, "") for name in names] for sample in chosen], is_text=True)


def _figures(found: Page, record: Record, is_one: bool) -> None:
    """What the recipe draws of the rows of an evaluation."""
    figures = record.answers.get("figures", [])
    if not figures:
        return
    found.heading("Predictions" if is_one else f"Predictions: {record.name}")
    found.paragraph(f"Of {record.answers['examples']:,} validation examples at step {record.answers['step']:,}.", True)
    charts = []
    for figure in figures:
        if figure["kind"] == "scatter":
            clouds = [
                Cloud(name, points, colour=place, is_line=figure["is_line"])
                for place, (name, points) in enumerate(figure["groups"].items())
            ]
            charts.append(found.points(figure["title"], clouds, figure["axes"], is_square=figure["is_square"]))
    found.grid([chart for chart in charts if chart])
    for figure in figures:
        if figure["kind"] == "table":
            found.paragraph(figure["title"])
            found.table(figure["head"], figure["rows"])


def _by_layer(found: Page, record: Record, name: str) -> str:
    """A heat map of a metric with a number per layer, or per layer and expert."""
    logged = [(event["step"], flat_values(event[name])) for event in record.train if isinstance(event.get(name), list)]
    rows = max((values for _, values in logged), key=len)
    columns = [(step, [value for _, value in values]) for step, values in logged if len(values) == len(rows)]
    return found.heat(name, [row for row, _ in rows], columns)
