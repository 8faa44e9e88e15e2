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
    x: np.ndarray, y: np.ndarray, cells: Sequence[str] | None, x_name: str, y_name: str, radius: float = 3.5
) -> str:
    """Points as SVG, coloured by `cells`: along a scale where all are numbers, else by kind."""
    x_low, x_high, y_low, y_high = _range(x), _range(x, True), _range(y), _range(y, True)
    across = MARGIN + (np.asarray(x) - x_low) / (x_high - x_low) * (WIDTH - 2 * MARGIN)
    down = HEIGHT - MARGIN - (np.asarray(y) - y_low) / (y_high - y_low) * (HEIGHT - 2 * MARGIN)
    colours, legend = _colours(cells, len(across))
    frame = f'<rect x="{MARGIN}" y="{MARGIN}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 2 * MARGIN}" '
    parts = [f'<svg viewBox="0 0 {WIDTH + 170} {HEIGHT}" width="{WIDTH + 170}">', f'{frame}fill="none" stroke="#888"/>']
    parts += [
        f'<circle cx="{one:.1f}" cy="{two:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.7"/>'
        for one, two, colour in zip(across, down, colours, strict=True)
    ]
    for share in (0, 0.5, 1):
        place = MARGIN + share * (WIDTH - 2 * MARGIN)
        parts.append(_text(place, HEIGHT - MARGIN + 18, f"{x_low + share * (x_high - x_low):.3g}", "middle"))
        place = HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)
        parts.append(_text(MARGIN - 6, place + 4, f"{y_low + share * (y_high - y_low):.3g}", "end"))
    parts.append(_text(WIDTH / 2, HEIGHT - 10, x_name, "middle"))
    parts.append(f'<g transform="rotate(-90 14 {HEIGHT / 2})">{_text(14, HEIGHT / 2, y_name, "middle")}</g>')
    for line, (colour, name) in enumerate(legend):
        parts.append(f'<circle cx="{WIDTH - 30}" cy="{MARGIN + 18 * line}" r="5" fill="{colour}"/>')
        parts.append(_text(WIDTH - 20, MARGIN + 18 * line + 4, name[:20], "start"))
    return "\n".join([*parts, "</svg>"])


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A self-contained HTML page of (heading, HTML) sections."""
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections)
    return (
        f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        "<style>body{font:15px sans-serif;max-width:860px;margin:2em auto;color:#222}table{border-collapse:collapse}"
        "td,th{padding:.2em .9em;border-bottom:1px solid #ccc;text-align:left}svg{max-width:100%;height:auto}</style>\n"
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
