"""The marks and the picture of a range test. Run alone: python -m pytest tests/runner/test_find_lr.py"""

import itertools
import math
import random
import re
import xml.etree.ElementTree

import pytest

from runner.commands.find_lr import divergence, marks_of, smooth
from runner.parts.rate_chart import LETTER, ROW, rate_chart

RATES = [10 ** (place / 16 - 6) for place in range(97)]


def losses(start: float, end: float, at: float, breaks_at: float, height: float, noise: float = 0.0) -> list[float]:
    """Level, a fall around the rate `at`, and a rise from `breaks_at` on, with noise."""
    some = random.Random(3)
    found = []
    for rate in RATES:
        loss = end + (start - end) / (1 + (rate / at) ** 2)
        loss += height * max(0.0, math.log10(rate / breaks_at))
        found.append(loss + some.gauss(0, noise))
    return found


@pytest.mark.parametrize(
    ("start", "end", "height"),
    # A loss of many classes, one near 0, a negative one, and one that comes back to little more than where it began.
    [(7.0, 2.0, 50.0), (0.7, 0.02, 5.0), (0.0, -4.0, 30.0), (7.0, 5.0, 20.0), (2.3, 1.9, 3.0)],
)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_marks_stand_in_order_and_divergence_where_the_raw_loss_diverges(
    start: float, end: float, height: float, noise: float
) -> None:
    raw = losses(start, end, 1e-4, 3e-2, height, noise * (start - end))
    marks = marks_of(RATES, raw, None)
    careful, steepest, diverged = marks["careful"], marks["steepest"], marks["divergence"]
    assert careful is not None and steepest is not None and diverged is not None
    assert careful < steepest < diverged
    # The raw loss there is that far up for the first time; the smoothed one follows many steps later.
    place = RATES.index(diverged)
    assert raw[place] - min(raw) > start - end > 0.9 * (raw[place - 1] - min(raw)) - height / 16
    assert smooth(raw)[place] < raw[place]
    assert 3e-2 < diverged < 0.5


def test_one_bad_batch_is_no_divergence() -> None:
    raw = losses(7.0, 2.0, 1e-4, 10.0, 0.0)
    assert divergence(RATES, raw) is None
    raw[60] = 50.0
    assert divergence(RATES, raw) is None
    raw[61:63] = [50.0, 50.0]
    assert divergence(RATES, raw) == RATES[60]


def test_a_loss_that_comes_back_half_way_has_diverged_where_it_first_jumped() -> None:
    # What a range test of text2sql shows: a jump, lower losses, and never the lowest ones again.
    raw = losses(7.6, 2.7, 1e-4, 10.0, 0.0)
    raw[70:] = [12.0, 3.6, 3.1, 7.2, 4.4] * 5 + [12.0, 12.0]
    assert divergence(RATES, raw) == RATES[70]
    raw[70:] = [12.0, 2.7, 2.8, 2.7, 2.9] * 5 + [2.7, 2.7]
    assert divergence(RATES, raw) is None


@pytest.mark.parametrize("broken", [None, 0.5])
def test_a_loss_that_is_no_number_is_a_divergence(broken: float | None) -> None:
    raw = losses(7.0, 2.0, 1e-4, 10.0, 0.0)
    assert marks_of(RATES, raw, broken)["divergence"] == broken


def test_a_loss_that_never_falls_has_no_choice() -> None:
    marks = marks_of(RATES, [1.0 + place for place in range(97)], None)
    assert marks["careful"] is None and marks["steepest"] is None


@pytest.mark.parametrize("rates", [(1e-3, 1.1e-3, 1.2e-3), (1e-6, 1e-6, 1e-6), (0.9, 0.95, 1.0), (1e-6, 1e-3, 1.0)])
def test_labels_do_not_overlap_and_stay_inside(rates: tuple[float, float, float]) -> None:
    marks = dict(zip(("careful", "steepest", "divergence"), rates, strict=True))
    raw = losses(7.0, 2.0, 1e-4, 3e-2, 50.0)
    picture = rate_chart({"raw loss": (RATES, raw), "smoothed": (RATES, smooth(raw))}, marks, "loss")
    root = xml.etree.ElementTree.fromstring(picture)
    width = float(root.attrib["viewBox"].split()[2])
    boxes = []
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        words = text.text or ""
        if not re.match("careful|steepest|divergence|raw loss|smoothed", words):
            continue
        x, y, anchor = float(text.attrib["x"]), float(text.attrib["y"]), text.attrib.get("text-anchor", "start")
        left = x - LETTER * len(words) if anchor == "end" else x
        boxes.append((left, left + LETTER * len(words), y - ROW + 2, y))
    assert len(boxes) == 5
    for left, right, _, _ in boxes:
        assert 0 <= left and right <= width
    for one, other in itertools.combinations(boxes, 2):
        assert one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]
