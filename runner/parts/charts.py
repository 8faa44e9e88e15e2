"""Charts as SVG: curves over steps or learning rates, and heat maps of metrics with many values per step."""

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Place = Callable[[float], float]
"""From a value to a place on an axis, in pixels."""


def rate_chart(curves: dict[str, tuple[Sequence[float], Sequence[float]]], marks: dict[str, float], label: str) -> str:
    """An SVG file: curves over the logarithm of the learning rate, and marked learning rates."""
    width, height, left, right, top, bottom = 760, 360, 70, 20, 30, 50
    across = [math.log10(x) for xs, _ in curves.values() for x in xs]
    up = [y for _, ys in curves.values() for y in ys]
    if not across:
        across, up = [0.0], [0.0]
    # A loss that diverges at the end would make the rest of the curve flat: it is cut off.
    ordered = sorted(up)
    bottom_value, top_value = ordered[0], min(ordered[-1], ordered[len(ordered) // 2] * 1.5 + 1e-9)
    top_value = max(top_value, bottom_value + 1e-9)
    low, high = min(across), max(across) if max(across) > min(across) else min(across) + 1

    def x_of(rate: float) -> float:
        return left + (math.log10(rate) - low) / (high - low) * (width - left - right)

    def y_of(value: float) -> float:
        share = (min(value, top_value) - bottom_value) / (top_value - bottom_value)
        return height - bottom - share * (height - top - bottom)

    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
            f"<style>{html.escape(STYLE, quote=False)} svg {{ background: var(--page); }}</style>",
            *_axes(low, high, bottom_value, top_value, x_of, y_of, (left, width - right, top, height - bottom)),
            f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">learning rate (log scale)'
            "</text>",
            f'<text transform="translate(16 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(label)}</text>",
            *_curves(curves, x_of, y_of, width - right),
            *_marks(marks, x_of, top, height - bottom),
            "</svg>",
        ]
    )


def _axes(
    low: float, high: float, bottom: float, top: float, x_of: Place, y_of: Place, box: tuple[int, int, int, int]
) -> Iterator[str]:
    left, right, upper, lower = box
    for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1):
        x = x_of(10.0**power)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{upper}" y2="{lower}" stroke="var(--line)"/>'
        yield f'<text x="{x:.1f}" y="{lower + 18}" text-anchor="middle">1e{power}</text>'
    for part in range(5):
        value = bottom + (top - bottom) * part / 4
        y = y_of(value)
        yield f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'


def _curves(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]], x_of: Place, y_of: Place, right: int
) -> Iterator[str]:
    # The last curve is the one to read: the strongest colour.
    for number, (name, (xs, ys)) in enumerate(reversed(curves.items())):
        colour, strength = ("var(--first)", 2) if number == 0 else ("var(--quiet)", 0.8)
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in zip(xs, ys, strict=True))
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{strength}"/>'
        if len(xs) < 20:
            for x, y in zip(xs, ys, strict=True):
                yield f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{colour}"/>'
        y = 46 + 16 * number
        yield f'<text x="{right - 8}" y="{y}" text-anchor="end" style="fill:{colour}">{html.escape(name)}</text>'


def _marks(marks: dict[str, float], x_of: Place, top: int, bottom: int) -> Iterator[str]:
    for number, (name, rate) in enumerate(marks.items()):
        x = x_of(rate)
        colour = ("var(--third)", "var(--fourth)", "var(--second)")[number % 3]
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{colour}" stroke-dasharray="5 4"/>'
        y = bottom - 8 - 16 * number
        yield f'<text x="{x + 5:.1f}" y="{y}" style="fill:{colour}">{html.escape(name)} {rate:.1e}</text>'


WIDTH, HEIGHT = 640, 220


LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 34


COLOURS = ("var(--first)", "var(--second)", "var(--third)", "var(--fourth)")


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


def line_chart(title: str, unit: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    """A figure with curves over the steps, axes, and a legend if there are several curves."""
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
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(value)}</text>')
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


def heat_strip(name: str, events: Sequence[Mapping[str, Any]]) -> str:
    """A heat map of a metric with a number per layer (and expert): one column per logged step, darker for more."""
    logged = [(event["step"], _flat(event[name])) for event in events if isinstance(event.get(name), list)]
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
    caption = f"{name}: {short_number(low)} (light) to {short_number(high)} (dark), a row per layer or expert"
    shape = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(name)}">'
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{shape}{''.join(cells)}</svg></figure>"


def _flat(value: object) -> list[float]:
    """All numbers of nested lists; 0 for what is not a number."""
    if isinstance(value, list):
        return [number for each in value for number in _flat(each)]
    return [float(value) if isinstance(value, (int, float)) else 0.0]


def _scale(values: Sequence[float], start: float, end: float) -> Place:
    """A function from values to pixels, which maps the lowest value to `start` and the highest to `end`."""
    low, high = min(values), max(values)
    if high == low:
        # Half of the value, because adding 0.5 to a number above 2^53 changes nothing.
        margin = max(0.5, abs(low) / 2)
        low, high = low - margin, high + margin
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(low: float, high: float, is_log: bool) -> list[float]:
    """About four round numbers from low to high."""
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


def short_number(value: object) -> str:
    """A number with four digits or thousands separators; a dash for what is not a number."""
    if not isinstance(value, (int, float)):
        return "&ndash;"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
