"""Charts of pages that need only a browser: uPlot draws them, from numbers that stand in the page.

uPlot 1.6.32 (MIT licence) lies in `uplot/`, beside the page's own style and script.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

PARTS = Path(__file__).parent / "uplot"
MOST_POINTS = 4000
"""Points of a curve in a page; of more, evenly spread ones are taken."""

MOST_COLOURS = 7
"""Colours that the page's style has for curves."""

Points = Sequence[tuple[float, float | None]]
"""(step, value), in the order of the steps."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A named line of a chart."""

    name: str
    points: Points
    colour: int = 0
    is_dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Cloud:
    """A named group of points."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    """What the page shows of each point under the pointer; its two numbers where there are none."""
    colour: int = 0
    is_hollow: bool = False
    is_line: bool = False
    """Whether a line connects the points."""


@dataclasses.dataclass
class Page:
    """A page in the making: text and charts in order."""

    title: str
    parts: list[str] = dataclasses.field(default_factory=list)
    charts: list[dict[str, object]] = dataclasses.field(default_factory=list)
    marks: list[dict[str, object]] = dataclasses.field(default_factory=list)
    """Steps that every chart marks with a dashed line: {"step": 100, "label": "restart"}."""

    def heading(self, text: str) -> None:
        """A heading of a section."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str, quiet: bool = False) -> None:
        """A paragraph of plain text."""
        self.parts.append(f'<p class="quiet">{html.escape(text)}</p>' if quiet else f"<p>{html.escape(text)}</p>")

    def grid(self, figures: Sequence[str]) -> None:
        """Figures beside each other, as many as the width holds."""
        if figures:
            self.parts.append(f'<div class="grid">{"".join(figures)}</div>')

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[object]], best: int | None = None, is_text: bool = False
    ) -> None:
        """A table, which scrolls sideways where it is wider than the page; the row `best` stands out."""
        first = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        lines = []
        for place, row in enumerate(rows):
            cells = "".join(f"<td>{html.escape(shown_cell(cell))}</td>" for cell in row)
            mark = ' class="best"' if place == best else ""
            lines.append(f"<tr{mark}>{cells}</tr>")
        kind = ' class="text"' if is_text else ""
        self.parts.append(f'<div class="scroll"><table{kind}><tr>{first}</tr>{"".join(lines)}</table></div>')

    def folded(self, summary: str, text: str) -> None:
        """Text that opens with a click."""
        self.parts.append(f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>")

    def curves(self, title: str, curves: Sequence[Curve], is_log: bool | None = None) -> str:
        """A figure with curves over the steps; empty where no curve has a point.

        `is_log`: whether the values' axis is logarithmic; None: where they are positive and spread over more than a
        factor of 50. A button changes it.
        """
        curves = [dataclasses.replace(curve, points=thinned(curve.points)) for curve in curves if curve.points]
        values = [y for curve in curves for _, y in curve.points if y is not None]
        if not values:
            return ""
        can_be_log = min(values) > 0
        if is_log is None:
            is_log = can_be_log and max(values) / min(values) > 50
        series = [
            {"x": [x for x, _ in curve.points], "y": [y for _, y in curve.points], "dash": curve.is_dashed}
            for curve in curves
        ]
        spec: dict[str, object] = {"kind": "curves", "title": title, "log": is_log and can_be_log, "series": series}
        spec |= {"keys": [html.escape(curve.name) for curve in curves], "colours": [curve.colour for curve in curves]}
        return self._figure(title, spec, can_be_log)

    def heat(self, title: str, rows: Sequence[str], columns: Sequence[tuple[float, Sequence[float]]]) -> str:
        """A figure with a cell for each step and row, darker for more; a sentence where all values are equal."""
        columns = thinned(columns, 300)
        values = [value for _, column in columns for value in column if math.isfinite(value)]
        if not values:
            return ""
        low, high = min(values), max(values)
        if low == high:
            text = f"{html.escape(title)}: {short_number(low)} at all steps, in every row"
            return f"<figure><figcaption><span>{text}</span></figcaption></figure>"
        spec: dict[str, object] = {
            "kind": "heat",
            "title": title,
            "rows": [html.escape(row) for row in rows],
            "x": [x for x, _ in columns],
            "values": [[value if math.isfinite(value) else None for value in column] for _, column in columns],
            "low": low,
            "high": high,
            "keys": [f"{short_number(low)} (light) to {short_number(high)} (dark)"],
            "colours": [0],
            "log": False,
        }
        return self._figure(title, spec, False)

    def points(
        self,
        title: str,
        clouds: Sequence[Cloud],
        axes: tuple[str, str],
        names: Sequence[str] = (),
        is_log: bool = False,
        is_square: bool = False,
    ) -> str:
        """A figure with points; empty where there are none.

        `axes`: what lies across and up. `names`: what the whole numbers across stand for. `is_log`: whether the axis
        across is logarithmic. `is_square`: whether both axes span the same values, with a line where they are equal.
        """
        clouds = [dataclasses.replace(cloud, points=finite(cloud.points)) for cloud in clouds]
        xs = [x for cloud in clouds for x, _ in cloud.points]
        ys = [y for cloud in clouds for _, y in cloud.points]
        if not xs:
            return ""
        if is_square:
            xs = ys = [*xs, *ys]
        across = (-0.5, len(names) - 0.5) if names else spread(min(xs), max(xs), is_log)
        spec: dict[str, object] = {"kind": "points", "title": title, "log": False, "logAcross": is_log}
        spec |= {"axes": list(axes), "names": [html.escape(name) for name in names], "square": is_square}
        spec |= {"across": list(across), "up": list(spread(min(ys), max(ys)))}
        spec["series"] = [
            {
                "x": [x for x, _ in cloud.points],
                "y": [y for _, y in cloud.points],
                "labels": [html.escape(label) for label in cloud.labels],
                "hollow": cloud.is_hollow,
                "line": cloud.is_line,
            }
            for cloud in clouds
        ]
        spec |= {"keys": [html.escape(cloud.name) for cloud in clouds], "colours": [cloud.colour for cloud in clouds]}
        return self._figure(title, spec, False, has_half=False)

    def _figure(self, title: str, spec: dict[str, object], can_be_log: bool, has_half: bool = True) -> str:
        self.charts.append(spec)
        pressed = "true" if spec["log"] else "false"
        log = f'<button class="log" aria-pressed="{pressed}">log</button>' if can_be_log else ""
        half = '<button class="half" aria-pressed="false">last half</button>' if has_half else ""
        return (
            f'<figure data-chart="{len(self.charts) - 1}"><figcaption><span>{html.escape(title)}</span>{log}{half}'
            '</figcaption><div class="plot"></div><div class="read"></div></figure>'
        )

    def html(self) -> str:
        """The page as a file's text. It fetches nothing."""
        # "<" as an escape: a text in the data cannot end the script.
        data = json.dumps({"charts": self.charts, "marks": self.marks, "across": "step"}).replace("<", "\\u003c")
        style = "\n".join((PARTS / name).read_text(encoding="utf-8") for name in ("uPlot.min.css", "page.css"))
        scripts = [(PARTS / name).read_text(encoding="utf-8") for name in ("uPlot.iife.min.js", "page.js")]
        title = html.escape(self.title)
        return "\n".join(
            [
                f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
                f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>',
                f"<body><h1>{title}</h1>",
                "<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>",
                *self.parts,
                f'<script type="application/json" id="data">{data}</script>',
                *(f"<script>{script}</script>" for script in scripts),
                "</body></html>\n",
            ]
        )


def thinned(points: Sequence[tuple[float, object]], most: int = MOST_POINTS) -> list:
    """At most about `most` of the points, evenly spread; the last one is among them."""
    step = -(-len(points) // most) if points else 1
    return [point for place, point in enumerate(points) if (len(points) - 1 - place) % step == 0]


def finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points whose numbers are finite."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def spread(low: float, high: float, is_log: bool = False) -> tuple[float, float]:
    """The ends of an axis, with a margin beside the lowest and the highest value."""
    if is_log:
        margin = (high / low) ** 0.05 if high > low else 2.0
        return low / margin, high * margin
    margin = (high - low) * 0.05 or abs(low) / 2 or 1.0
    return low - margin, high + margin


def shown_cell(cell: object) -> str:
    """A cell of a table: numbers in short."""
    return short_number(cell) if cell is None or isinstance(cell, float) else str(cell)


def short_number(value: object) -> str:
    """A number with four digits or thousands separators; a dash for what is not a number."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def flat_values(value: object, name: str = "") -> list[tuple[str, float]]:
    """All numbers of nested lists, each with its place in words; not-a-number for what is none."""
    if isinstance(value, list):
        kinds = "expert" if name else "layer"
        return [
            pair for place, each in enumerate(value) for pair in flat_values(each, f"{name} {kinds} {place}".strip())
        ]
    return [(name, float(value) if isinstance(value, (int, float)) else math.nan)]
