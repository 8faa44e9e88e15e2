"""The pictures of how costs grow, as SVG: python -m tests.benchmarks.growth_picture NUMBERS.json FOLDER."""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PICTURES = {
    "growth-step.svg": (
        "parameters: CPU",
        "examples in a step",
        "tokens of an example",
        "lanes, 64 examples",
        "experts, 2 of",
        "processes",
    ),
    "growth-memory.svg": ("parameters: peak MB",),
    "growth-data.svg": ("examples of the data", "cursors"),
}
"""File: the beginnings of the names of what grows, one panel each."""


def draw(found: Mapping[str, Sequence[tuple[int, float]]], folder: Path) -> None:
    """One panel for each axis, both scales logarithmic, with a line of linear growth beside; needs matplotlib.

    Beside the time of several processes stands the time of one, divided by their number.
    """
    if importlib.util.find_spec("matplotlib") is None:
        print("No pictures: matplotlib is not installed.")
        return
    import matplotlib  # type: ignore[import-not-found]

    matplotlib.use("Agg")
    # Text stays text, and the same numbers give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "relay", "font.size": 9})
    from matplotlib import pyplot, ticker  # type: ignore[import-not-found]

    folder.mkdir(exist_ok=True)
    for name, beginnings in PICTURES.items():
        axes = [axis for first in beginnings for axis in found if axis.startswith(first)]
        if not axes:
            continue
        columns = min(3, len(axes))
        lines = -(-len(axes) // columns)
        figure, panels = pyplot.subplots(lines, columns, figsize=(3.2 * columns, 2.7 * lines), squeeze=False)
        for panel in panels.flat[len(axes) :]:
            panel.set_visible(False)
        for axis, panel in zip(axes, panels.flat, strict=False):
            sizes, costs = zip(*found[axis], strict=True)
            panel.loglog(sizes, costs, "o-", markersize=4, color="#1f5fa8", label="measured")
            straight = [costs[-1] * size / sizes[-1] for size in sizes]
            if axis.startswith("processes"):
                # The same work, shared.
                straight = [costs[0] * sizes[0] / size for size in sizes]
            panel.loglog(sizes, straight, ":", color="#999999", label="linear")
            panel.set_ylim(min(costs) / 3, max(costs) * 3)
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0)))
            panel.yaxis.set_major_formatter("{x:g}")
            if max(sizes) < 1000:
                panel.set_xticks(sizes, list(map(str, sizes)))
            grows, _, unit = axis.rpartition(": ")
            panel.set_xlabel(grows)
            panel.set_ylabel(unit)
            panel.grid(True, which="major", color="#dddddd", linewidth=0.6)
            panel.minorticks_off()
        panels[0][0].legend(frameon=False)
        figure.tight_layout()
        figure.savefig(folder / name, metadata={"Date": None})
        pyplot.close(figure)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
