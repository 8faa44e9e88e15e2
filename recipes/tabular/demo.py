"""The embedded corpus: three small tables with text, made from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

GOOD = ("lovely", "sturdy", "bright", "quiet", "comfortable", "reliable", "light")
BAD = ("broken", "noisy", "flimsy", "dull", "scratchy", "leaking", "heavy")
THINGS = ("lamp", "kettle", "chair", "radio", "tent", "jacket", "bicycle", "clock")
PLACES = ("kitchen", "garden", "office", "cellar", "attic", "harbour")


def tables(rows: int, seed: int = 0) -> list[tuple[str, str, pd.DataFrame]]:
    """(name, target, frame) of each table; `rows` in each."""
    return [_reviews(rows, seed), _repairs(rows, seed), _prices(rows, seed)]


def _pick(random: np.random.Generator, words: tuple[str, ...], count: int) -> np.ndarray:
    return np.array(words, dtype=object)[random.integers(len(words), size=count)]


def _reviews(rows: int, seed: int) -> tuple[str, str, pd.DataFrame]:
    import pandas as pd

    random = np.random.default_rng([seed, 1])
    good = random.random(rows) < 0.5
    things = _pick(random, THINGS, rows)
    words = np.where(good, _pick(random, GOOD, rows), _pick(random, BAD, rows))
    second = np.where(random.random(rows) < 0.8, words, _pick(random, GOOD + BAD, rows))
    texts = [f"a {one} {thing}, {two} too" for one, thing, two in zip(words, things, second, strict=True)]
    kept = np.where(good ^ (random.random(rows) < 0.1), "yes", "no")
    frame = {"review": texts, "item": things, "days_used": random.integers(1, 400, rows).astype(float), "kept": kept}
    frame["days_used"][random.random(rows) < 0.1] = np.nan
    return "reviews", "kept", pd.DataFrame(frame)


def _repairs(rows: int, seed: int) -> tuple[str, str, pd.DataFrame]:
    import pandas as pd

    random = np.random.default_rng([seed, 2])
    things, places = _pick(random, THINGS, rows), _pick(random, PLACES, rows)
    age = random.gamma(2.0, 4.0, rows).round(1)
    outside = np.isin(places, ("garden", "harbour"))
    points = age + 8 * outside + 2 * random.standard_normal(rows)
    outcome = np.select([points < 7, points < 13], ["as new", "repaired"], "scrapped")
    frame = {
        "thing": things,
        "note": [f"stood in the {place}, {age:.0f} years old" for place, age in zip(places, age, strict=True)],
        "age": age,
        "under_warranty": age < 2,
        "outcome": outcome,
    }
    return "repairs", "outcome", pd.DataFrame(frame)


def _prices(rows: int, seed: int) -> tuple[str, str, pd.DataFrame]:
    import pandas as pd

    random = np.random.default_rng([seed, 3])
    things = _pick(random, THINGS, rows)
    good = random.random(rows) < 0.5
    weight = random.uniform(0.2, 15, rows).round(2)
    price = 20 + 12 * np.array([THINGS.index(thing) for thing in things]) + 2.5 * weight + 25 * good
    words = np.where(good, _pick(random, GOOD, rows), _pick(random, BAD, rows))
    frame = {
        "name": [f"{word} {thing}" for word, thing in zip(words, things, strict=True)],
        "weight_kg": weight,
        "listed": pd.Timestamp("2024-01-01") + pd.to_timedelta(random.integers(0, 700, rows), unit="D"),
        "price": (price + 4 * random.standard_normal(rows)).round(2),
    }
    return "prices", "price", pd.DataFrame(frame)
