"""The picture of `relay find-lr`: an SVG file with curves over the logarithm of the learning rate."""

import html
import math
from collections.abc import Callable, Iterator, Sequence

Place = Callable[[float], float]
"""From a value to a place on an axis, in pixels."""

ROW, LETTER = 16, 7
"""Height of a line of text, and width of a letter, in pixels."""

STYLE = """
:root { color-scheme: light dark; --page: #fff; --quiet: #666; --line: #ddd; --first: #2166ac; --second: #d6604d;
  --third: #1b7837; --fourth: #762a83; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --quiet: #9a9a98; --line: #3a3d42; --first: #6baed6;
  --second: #f4a582; --third: #7fbf7b; --fourth: #c2a5cf; } }
svg { background: var(--page); } svg text { fill: var(--quiet); font-size: 12px; }
"""


def rate_chart(curves: dict[str, tuple[Sequence[float], Sequence[float]]], marks: dict[str, float], label: str) -> str:
    """An SVG file: curves over the logarithm of the learning rate, and marked learning rates."""
    # Each label has a row of its own above the curves: those of near rates would lie over each other.
    width, left, right, bottom, top = 760, 70, 20, 50, 16 + ROW * (1 + len(marks))
    height = 310 + top
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
            f"<style>{html.escape(STYLE, quote=False)}</style>",
            *_axes(low, high, bottom_value, top_value, x_of, y_of, (left, width - right, top, height - bottom)),
            f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">learning rate (log scale)'
            "</text>",
            f'<text transform="translate(16 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(label)}</text>",
            *_curves(curves, x_of, y_of, left),
            *_marks(marks, x_of, (left, width - right), height - bottom),
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
    curves: dict[str, tuple[Sequence[float], Sequence[float]]], x_of: Place, y_of: Place, left: int
) -> Iterator[str]:
    # The last curve is the one to read: the strongest colour. The names stand in the first row, beside each other.
    place = float(left)
    for number, (name, (xs, ys)) in enumerate(reversed(curves.items())):
        colour, strength = ("var(--first)", 2) if number == 0 else ("var(--quiet)", 0.8)
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in zip(xs, ys, strict=True))
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{strength}"/>'
        if len(xs) < 20:
            for x, y in zip(xs, ys, strict=True):
                yield f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{colour}"/>'
        yield f'<text x="{place:.1f}" y="{ROW}" style="fill:{colour}">{html.escape(name)}</text>'
        place += LETTER * len(name) + 20


def _marks(marks: dict[str, float], x_of: Place, sides: tuple[int, int], bottom: int) -> Iterator[str]:
    for number, (name, rate) in enumerate(marks.items()):
        x, y = x_of(rate), ROW * (2 + number)
        colour = ("var(--third)", "var(--fourth)", "var(--second)")[number % 3]
        label = f"{name} {rate:.1e}"
        # On the side with more space.
        fits = x + 5 + LETTER * len(label) <= sides[1]
        anchor, place = ("start", x + 5) if fits else ("end", x - 5)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 10}" y2="{bottom}" stroke="{colour}" stroke-dasharray="5 4"/>'
        yield f'<text x="{place:.1f}" y="{y}" text-anchor="{anchor}" style="fill:{colour}">{html.escape(label)}</text>'
