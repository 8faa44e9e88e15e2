"""Figures as SVG inside one HTML page: nothing to install, nothing to load."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT, MARGIN = 640, 460, 56
# Okabe and Ito's colours, which most people can tell apart, and viridis in five stops.
KINDS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999", "#f0e442", "#000000")
SCALE = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], float)


def scatter(
    x: np.ndarray,
    y: np.ndarray,
    cells: Sequence[str] | None,
    x_name: str,
    y_name: str,
    radius: float = 3.5,
    is_comparison: bool = False,
) -> str:
    """Points as SVG, coloured by `cells`: along a scale where all are numbers, else by kind.

    In a comparison, both axes have the same range, and a dashed line shows where both are equal.
    """
    x_low, x_high, y_low, y_high = _range(x), _range(x, True), _range(y), _range(y, True)
    if is_comparison:
        x_low = y_low = min(x_low, y_low)
        x_high = y_high = max(x_high, y_high)
    across = MARGIN + (np.asarray(x) - x_low) / (x_high - x_low) * (WIDTH - 2 * MARGIN)
    down = HEIGHT - MARGIN - (np.asarray(y) - y_low) / (y_high - y_low) * (HEIGHT - 2 * MARGIN)
    colours, legend = _colours(cells, len(across))
    frame = f'<rect x="{MARGIN}" y="{MARGIN}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 2 * MARGIN}" '
    parts = [f'<svg viewBox="0 0 {WIDTH + 170} {HEIGHT}" width="{WIDTH + 170}">', f'{frame}fill="none" stroke="#888"/>']
    parts += [
        f'<circle cx="{one:.1f}" cy="{two:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.7"/>'
        for one, two, colour in zip(across, down, colours, strict=True)
    ]
    if is_comparison:
        ends = f'x1="{MARGIN}" y1="{HEIGHT - MARGIN}" x2="{WIDTH - MARGIN}" y2="{MARGIN}"'
        parts.append(f'<line {ends} stroke="#888" stroke-dasharray="5 4"><title>equal</title></line>')
    for mark in _marks(x_low, x_high):
        place = MARGIN + (mark - x_low) / (x_high - x_low) * (WIDTH - 2 * MARGIN)
        parts.append(_text(place, HEIGHT - MARGIN + 18, f"{mark:.4g}", "middle"))
    for mark in _marks(y_low, y_high):
        place = HEIGHT - MARGIN - (mark - y_low) / (y_high - y_low) * (HEIGHT - 2 * MARGIN)
        parts.append(_text(MARGIN - 6, place + 4, f"{mark:.4g}", "end"))
    parts.append(_text(WIDTH / 2, HEIGHT - 10, x_name, "middle"))
    parts.append(f'<g transform="rotate(-90 14 {HEIGHT / 2})">{_text(14, HEIGHT / 2, y_name, "middle")}</g>')
    for line, (colour, name) in enumerate(legend):
        parts.append(f'<circle cx="{WIDTH - 30}" cy="{MARGIN + 18 * line}" r="5" fill="{colour}"/>')
        parts.append(_text(WIDTH - 20, MARGIN + 18 * line + 4, name[:20], "start"))
    return "\n".join([*parts, "</svg>"])


def _marks(low: float, high: float) -> list[float]:
    """Round numbers between two, at least four: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.ceil(np.log10(high - low))
    steps = (power / each * scale for scale in (1, 0.1, 0.01) for each in (1, 2, 5))
    step = next(step for step in steps if np.floor(high / step) - np.ceil(low / step) >= 3)
    return [float(mark) for mark in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def confusion(true: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> str:
    """An HTML table: a row for each true class, a column for each predicted one; classes of `true` alone come last."""
    names = [*classes, *sorted(set(true) - set(classes))]
    count = {pair: 0 for pair in ((row, column) for row in names for column in classes)}
    for pair in zip(true, predicted, strict=True):
        count[pair] += 1
    head = "".join(f"<th>{html.escape(name)}</th>" for name in classes)
    lines = [f"<tr><th>true \\ predicted</th>{head}</tr>"]
    for row in names:
        cells = "".join(
            f"<td>{'<b>' if row == column else ''}{count[row, column]}{'</b>' if row == column else ''}</td>"
            for column in classes
        )
        lines.append(f"<tr><th>{html.escape(row)}</th>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def roc(is_positive: np.ndarray, scores: np.ndarray, name: str) -> str:
    """The receiver operating characteristic of one class as SVG, with the diagonal of a guess."""
    order = np.argsort(-scores, kind="stable")
    # Samples of equal score are one point.
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.append(0, np.cumsum(is_positive[order])[ends]) / max(1, is_positive.sum())
    alarms = np.append(0, np.cumsum(~is_positive[order])[ends]) / max(1, (~is_positive).sum())
    across = MARGIN + alarms * (WIDTH - 2 * MARGIN)
    down = HEIGHT - MARGIN - hits * (HEIGHT - 2 * MARGIN)
    points = " ".join(f"{one:.1f},{two:.1f}" for one, two in zip(across, down, strict=True))
    ends_of_line = f'x1="{MARGIN}" y1="{HEIGHT - MARGIN}" x2="{WIDTH - MARGIN}" y2="{MARGIN}"'
    frame = f'<rect x="{MARGIN}" y="{MARGIN}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 2 * MARGIN}" '
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">', f'{frame}fill="none" stroke="#888"/>']
    parts.append(f'<line {ends_of_line} stroke="#888" stroke-dasharray="5 4"/>')
    parts.append(f'<polyline points="{points}" fill="none" stroke="{KINDS[0]}" stroke-width="2"/>')
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        parts.append(_text(MARGIN + share * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN + 18, f"{share:g}", "middle"))
        parts.append(_text(MARGIN - 6, HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN) + 4, f"{share:g}", "end"))
    parts.append(_text(WIDTH / 2, HEIGHT - 10, "share of the others taken for it", "middle"))
    side = _text(14, HEIGHT / 2, f"share of {name} that is found", "middle")
    return "\n".join([*parts, f'<g transform="rotate(-90 14 {HEIGHT / 2})">{side}</g>', "</svg>"])


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A self-contained HTML page of (heading, HTML) sections."""
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>body{font:15px sans-serif;max-width:860px;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse}td,th{padding:.2em .9em;border-bottom:1px solid #ccc;text-align:left}"
        "svg{max-width:100%;height:auto}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n"
    )


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values as an HTML table."""
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _range(values: np.ndarray, upper: bool = False) -> float:
    low, high = float(np.min(values)), float(np.max(values))
    space = 0.04 * (high - low) or 0.5
    return high + space if upper else low - space


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="12" text-anchor="{anchor}">{html.escape(text)}</text>'


def _colours(cells: Sequence[str] | None, count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The points' colours, and (colour, name) lines of a legend."""
    if cells is None:
        return [KINDS[0]] * count, []
    try:
        numbers = np.array([float(cell) for cell in cells])
    except ValueError:
        numbers = np.full(1, np.nan)
    if np.isfinite(numbers).all() and len(np.unique(numbers)) > 2:
        low, high = float(numbers.min()), float(numbers.max())
        marks = np.linspace(low, high, 5)
        legend = [(_on_scale((mark - low) / (high - low)), f"{mark:.3g}") for mark in marks]
        return [_on_scale((number - low) / (high - low)) for number in numbers], legend
    kinds, sizes = np.unique(np.asarray(cells, str), return_counts=True)
    # The commonest kinds get a colour each; what is left shares the last.
    ordered = [str(kinds[place]) for place in np.argsort(-sizes)]
    colour = {kind: KINDS[min(place, len(KINDS) - 1)] for place, kind in enumerate(ordered)}
    legend = [(colour[kind], kind) for kind in ordered[: len(KINDS) - 1]]
    legend += [(KINDS[-1], "others")] if len(ordered) >= len(KINDS) else []
    return [colour[str(cell)] for cell in cells], legend


def _on_scale(share: float) -> str:
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    below = min(int(place), len(SCALE) - 2)
    red, green, blue = SCALE[below] + (place - below) * (SCALE[below + 1] - SCALE[below])
    return f"#{round(red):02x}{round(green):02x}{round(blue):02x}"
