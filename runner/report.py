"""`report.html`: one page about a run that needs only a browser."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.checkpoints.pointers import resolve_pointer
from runner.log import read_lines
from runner.parts.charts import STYLE, heat_strip, line_chart, short_number

UNITS = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "examples_per_second": "examples per second",
    "tokens_per_second": "tokens per second",
    "seconds_per_step": "seconds per step",
}
Event = Mapping[str, Any]
"""One line of metrics.jsonl: its step, its split, and the values that were logged."""
NOT_CURVES = {"step", "split", "epoch"}


def write(run: Path) -> Path:
    """Write `report.html` into a run's folder from what is there; returns its path.

    Raises FileNotFoundError where the folder has no metrics.jsonl.
    """
    if not (run / "metrics.jsonl").is_file():
        raise FileNotFoundError(run / "metrics.jsonl")
    events = read_lines(run / "metrics.jsonl")
    config = (run / "config.yaml").read_text(encoding="utf-8") if (run / "config.yaml").is_file() else ""
    target = run / "report.html"
    target.write_text(page(run.resolve().name, events, config, _state(run), _origin(run)), encoding="utf-8")
    return target


def page(name: str, events: Sequence[Event], config: str, state: Mapping[str, Any], origin: str = "") -> str:
    """The page, from the events of metrics.jsonl, the settings as text, the newest checkpoint's state, and a sentence
    about the weights in `final/`."""
    train = [event for event in events if event["split"] == "train"]
    scored = [event for event in events if event["split"] == "eval"]
    parts = [f"<h1>{html.escape(name)}</h1>", f'<p class="quiet">{html.escape(_summary(train, state, origin))}</p>']
    parts += ["<h2>Training</h2>", f'<div class="grid">{"".join(_training_figures(train, scored))}</div>']
    if scored:
        parts += ["<h2>Evaluation</h2>", _table(scored, state), f'<div class="grid">{"".join(_scores(scored))}</div>']
    strips = [heat_strip(metric, train) for metric in _names(train, list)]
    if strips:
        parts += ["<h2>By layer</h2>", f'<div class="grid">{"".join(strips)}</div>']
    parts.append(f"<details><summary>Settings</summary><pre>{html.escape(config)}</pre></details>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _state(run: Path) -> dict[str, Any]:
    """state.json of the newest checkpoint; empty before the first one."""
    path = resolve_pointer(run / "checkpoint-latest") / "state.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _origin(run: Path) -> str:
    """Which step the weights in `final/` are of; empty where there is no `final/`."""
    path = run / "final" / "origin.json"
    if not path.is_file():
        return ""
    origin = json.loads(path.read_text(encoding="utf-8"))
    which = "the best" if origin["is_best"] else "the last"
    return f"final/ has the weights of step {origin['step']:,}, {which}"


def _summary(train: Sequence[Event], state: Mapping[str, Any], origin: str = "") -> str:
    words = [f"{state['step']:,} steps of {state['batch_size']} examples"] if state else []
    if train and "epoch" in train[-1]:
        words.append(f"{train[-1]['epoch']:.2f} epochs")
    if state.get("best_step"):
        words.append(f"best score {state['best_score']:.4f} at step {state['best_step']:,}")
    words += [origin] if origin else []
    wrote = state.get("written_by", {})
    if wrote:
        words.append(f"{wrote.get('processes')} process(es) on {wrote.get('machine')}, torch {wrote.get('torch')}")
    if state.get("excluded"):
        words.append(f"{len(state['excluded'])} examples left out after bad steps")
    return "; ".join(words) or "nothing was logged yet"


def _names(events: Sequence[Event], kind: type | tuple[type, ...]) -> list[str]:
    found = {name for event in events for name, value in event.items() if isinstance(value, kind)}
    return sorted(found - NOT_CURVES)


def _points(events: Sequence[Event], name: str) -> list[tuple[float, float]]:
    return [(event["step"], event[name]) for event in events if isinstance(event.get(name), (int, float))]


def _training_figures(train: Sequence[Event], scored: Sequence[Event]) -> list[str]:
    curves = {"train": _points(train, "loss"), "eval": _points(scored, "loss")}
    figures = [line_chart("loss", "loss", {name: points for name, points in curves.items() if points})]
    names = _names(train, (int, float))
    for name in [*(name for name in UNITS if name in names), *(n for n in names if n not in UNITS and n != "loss")]:
        figures.append(line_chart(name, UNITS.get(name, name), {name: _points(train, name)}))
    return figures


def _scores(scored: Sequence[Event]) -> list[str]:
    if len(scored) < 2:
        return []
    return [
        line_chart(name, name, {name: _points(scored, name)}) for name in _names(scored, (int, float)) if name != "loss"
    ]


def _table(scored: Sequence[Event], state: Mapping[str, Any]) -> str:
    names = ["loss", *(name for name in _names(scored, (int, float)) if name != "loss")]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("step", *names))
    rows = []
    for event in scored:
        cells = "".join(f"<td>{short_number(event.get(name))}</td>" for name in names)
        mark = ' class="best"' if event["step"] == state.get("best_step") else ""
        rows.append(f"<tr{mark}><td>{event['step']:,}</td>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div><p></p>'
