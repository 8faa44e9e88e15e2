"""`report.html`: what a run did, as one page that needs nothing but a browser."""

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.log import read_lines

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 34
COLOURS = ("var(--first)", "var(--second)", "var(--third)", "var(--fourth)")
UNITS = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "examples_per_second": "examples per second",
    "tokens_per_second": "tokens per second",
    "seconds_per_step": "seconds per step",
}
NOT_CURVES = {"step", "split", "epoch"}
STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1a1a1a; --quiet: #666; --line: #ddd; --panel: #f6f6f4;
  --first: #2166ac; --second: #d6604d; --third: #1b7837; --fourth: #762a83; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --ink: #e8e8e6; --quiet: #9a9a98; --line: #3a3d42;
  --panel: #1f2227; --first: #6baed6; --second: #f4a582; --third: #7fbf7b; --fourth: #c2a5cf; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 1360px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.quiet, figcaption { color: var(--quiet); } figure { margin: 0; background: var(--panel); padding: 0.8rem;
  border-radius: 6px; } figcaption { font-weight: 600; margin-bottom: 0.3rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--quiet); font-size: 12px; }
table { border-collapse: collapse; } th, td { text-align: right; padding: 0.15rem 0.9rem 0.15rem 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; } th:first-child, td:first-child
  { text-align: left; } tr.best td { font-weight: 700; } .scroll { overflow-x: auto; } details { margin-top: 1.5rem; }
pre { background: var(--panel); padding: 0.8rem; overflow-x: auto; border-radius: 6px; }
"""


def write(run: Path) -> Path:
    """Write `report.html` into a run's folder from what is there; returns its path.

    Raises FileNotFoundError where the folder has no metrics.jsonl.
    """
    if not (run / "metrics.jsonl").is_file():
        raise FileNotFoundError(run / "metrics.jsonl")
    events = read_lines(run / "metrics.jsonl")
    config = (run / "config.yaml").read_text(encoding="utf-8") if (run / "config.yaml").is_file() else ""
    target = run / "report.html"
    target.write_text(page(run.resolve().name, events, config, _state(run)), encoding="utf-8")
    return target


def page(name: str, events: Sequence[dict[str, Any]], config: str, state: dict[str, Any]) -> str:
    """The whole page, from the events of metrics.jsonl, the settings as text, and the newest checkpoint's state."""
    train = [event for event in events if event["split"] == "train"]
    scored = [event for event in events if event["split"] == "eval"]
    parts = [f"<h1>{html.escape(name)}</h1>", f'<p class="quiet">{html.escape(_summary(train, state))}</p>']
    parts += ["<h2>Training</h2>", f'<div class="grid">{"".join(_training_figures(train, scored))}</div>']
    if scored:
        parts += ["<h2>Evaluation</h2>", _table(scored, state), f'<div class="grid">{"".join(_scores(scored))}</div>']
    strips = [_strip(metric, train) for metric in _names(train, list)]
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
    for path in (run / "checkpoint-latest" / "state.json",):
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return {}


def _summary(train: Sequence[dict[str, Any]], state: dict[str, Any]) -> str:
    words = [f"{state['step']:,} steps of {state['batch_size']} examples"] if state else []
    if train and "epoch" in train[-1]:
        words.append(f"{train[-1]['epoch']:.2f} epochs")
    if state.get("best_step"):
        words.append(f"best score {state['best_score']:.4f} at step {state['best_step']:,}")
    wrote = state.get("written_by", {})
    if wrote:
        words.append(f"{wrote.get('processes')} process(es) on {wrote.get('machine')}, torch {wrote.get('torch')}")
    if state.get("excluded"):
        words.append(f"{len(state['excluded'])} examples left out after bad steps")
    return "; ".join(words) or "nothing was logged yet"


def _names(events: Sequence[dict[str, Any]], kind: type | tuple[type, ...]) -> list[str]:
    found = {name for event in events for name, value in event.items() if isinstance(value, kind)}
    return sorted(found - NOT_CURVES)


def _points(events: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(event["step"], event[name]) for event in events if isinstance(event.get(name), (int, float))]


def _training_figures(train: Sequence[dict[str, Any]], scored: Sequence[dict[str, Any]]) -> list[str]:
    curves = {"train": _points(train, "loss"), "eval": _points(scored, "loss")}
    figures = [_figure("loss", "loss", {name: points for name, points in curves.items() if points})]
    names = _names(train, (int, float))
    for name in [*(name for name in UNITS if name in names), *(n for n in names if n not in UNITS and n != "loss")]:
        figures.append(_figure(name, UNITS.get(name, name), {name: _points(train, name)}))
    return figures


def _scores(scored: Sequence[dict[str, Any]]) -> list[str]:
    if len(scored) < 2:
        return []
    return [
        _figure(name, name, {name: _points(scored, name)}) for name in _names(scored, (int, float)) if name != "loss"
    ]


def _table(scored: Sequence[dict[str, Any]], state: dict[str, Any]) -> str:
    names = ["loss", *(name for name in _names(scored, (int, float)) if name != "loss")]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("step", *names))
    rows = []
    for event in scored:
        cells = "".join(f"<td>{_short(event.get(name))}</td>" for name in names)
        mark = ' class="best"' if event["step"] == state.get("best_step") else ""
        rows.append(f"<tr{mark}><td>{event['step']:,}</td>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div><p></p>'


def _figure(title: str, unit: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    """One panel: curves over the steps, with axes and, for more than one curve, a legend."""
    points = [point for curve in curves.values() for point in curve]
    caption = f"<figcaption>{html.escape(title)}</figcaption>"
    if not points:
        return f"<figure>{caption}<p class='quiet'>not logged</p></figure>"
    across = _scale([x for x, _ in points], LEFT, WIDTH - RIGHT)
    values = [y for _, y in points]
    is_log = min(values) > 0 and max(values) / min(values) > 50
    up = _scale([math.log10(y) for y in values] if is_log else values, HEIGHT - BOTTOM, TOP)

    def place(y: float) -> float:
        return up(math.log10(y) if is_log else y)

    drawn = []
    for value in _ticks(min(values), max(values), is_log):
        y = place(value)
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in _ticks(min(x for x, _ in points), max(x for x, _ in points), False):
        text = f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:,.0f}</text>'
        drawn.append(text)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    drawn.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">step</text>')
    label = unit + (" (log scale)" if is_log else "")
    drawn.append(
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{html.escape(label)}</text>'
    )
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        path = " ".join(f"{across(x):.1f},{place(y):.1f}" for x, y in curve)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(curve) < 40:
            drawn += [f'<circle cx="{across(x):.1f}" cy="{place(y):.1f}" r="2.6" fill="{colour}"/>' for x, y in curve]
        if len(curves) > 1:
            y = TOP + 14 + 16 * list(curves).index(name)
            drawn.append(f'<text x="{WIDTH - RIGHT - 6}" y="{y}" text-anchor="end" style="fill:{colour}">{name}</text>')
    shape = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)} over the steps">'
    return f"<figure>{caption}{shape}{''.join(drawn)}</svg></figure>"


def _strip(name: str, train: Sequence[dict[str, Any]]) -> str:
    """One panel for a metric that has a number per layer (and expert): a cell per logged step, darker for more."""
    logged = [(event["step"], _flat(event[name])) for event in train if isinstance(event.get(name), list)]
    logged = logged[:: max(1, len(logged) // 120)]
    rows = max(len(values) for _, values in logged)
    values = [value for _, row in logged for value in row]
    low, high = min(values), max(values)
    cell_width, cell_height = (WIDTH - LEFT - RIGHT) / len(logged), max(6.0, min(18.0, 180 / rows))
    height = rows * cell_height + BOTTOM
    cells = []
    for column, (_, row) in enumerate(logged):
        for number, value in enumerate(row):
            share = 0.08 + 0.92 * ((value - low) / (high - low) if high > low else 1.0)
            x, y = LEFT + column * cell_width, number * cell_height
            cells.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell_width + 0.4:.1f}" height="{cell_height:.1f}" '
                f'fill="var(--first)" fill-opacity="{share:.2f}"/>'
            )
    cells.append(f'<text x="{LEFT - 6}" y="{cell_height - 3:.1f}" text-anchor="end">0</text>')
    cells.append(f'<text x="{LEFT - 6}" y="{rows * cell_height - 3:.1f}" text-anchor="end">{rows - 1}</text>')
    cells.append(f'<text x="{LEFT}" y="{height - 16}">step {logged[0][0]:,}</text>')
    cells.append(f'<text x="{WIDTH - RIGHT}" y="{height - 16}" text-anchor="end">step {logged[-1][0]:,}</text>')
    caption = f"{name}: {_short(low)} (light) to {_short(high)} (dark), a row per layer or expert"
    shape = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(name)}">'
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{shape}{''.join(cells)}</svg></figure>"


def _flat(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for each in value for number in _flat(each)]
    return [float(value) if isinstance(value, (int, float)) else 0.0]


def _scale(values: Sequence[float], start: float, end: float) -> Any:
    low, high = min(values), max(values)
    if high == low:
        # Beside a number over 2^53 a half is nothing.
        room = max(0.5, abs(low) / 2)
        low, high = low - room, high + room
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(low: float, high: float, is_log: bool) -> list[float]:
    """Four or so round numbers from low to high."""
    if is_log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        step = max(1, (last - first) // 4)
        return [10.0**power for power in range(first, last + 1, step)]
    if high == low:
        return [low]
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return "&ndash;"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
