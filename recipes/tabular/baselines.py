"""Two simple models of scikit-learn that a run is compared with on the same rows: `--baseline true`.

They share with the recipe how cells are read, and nothing else: neither sees its linear part, its trees or an encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from recipes.tabular.table import Cells, Table

NAMES = {"linear": "linear model", "boosting": "gradient boosting"}
"""The baselines by the name in scores, and in words."""
FEW_LEVELS = 30
"""Texts of a column with at most so many are categories; others are read by their letters."""
DIMENSIONS = 30
"""What boosting sees of a column's letters."""
CLOSE = 0.005
"""A difference in AUROC or R2 below which two models are as good as each other."""

Guesses = dict[str, np.ndarray]
"""For each baseline (rows, classes) probabilities, or (rows,) z of the target."""


def guesses(table: Table, seen: Cells, truth: np.ndarray, asked: Sequence[Cells], seed: int) -> list[Guesses]:
    """Fit both baselines on the training rows, and ask them about others.

    `truth` (rows,): places among the classes, or z. Rows without it are left out. Both models have one thread, and the
    defaults of scikit-learn but for C = 3 and the choice of ridge's penalty.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from threadpoolctl import threadpool_limits

    is_classes = table.task == "classification"
    known = truth >= 0 if is_classes else np.isfinite(truth)
    learned = truth[known].astype(np.int64) if is_classes else truth[known]
    found: list[Guesses] = [{} for _ in asked]
    with threadpool_limits(1):
        sparse, dense, is_category = _inputs(table, seen, asked, known, seed)
        models: dict[str, Any]
        if is_classes:
            models = {
                "linear": LogisticRegression(C=3, max_iter=1000),
                "boosting": HistGradientBoostingClassifier(categorical_features=is_category, random_state=seed),  # type: ignore[arg-type]
            }
        else:
            models = {
                "linear": RidgeCV(alphas=np.logspace(-2, 4, 13)),
                "boosting": HistGradientBoostingRegressor(categorical_features=is_category, random_state=seed),  # type: ignore[arg-type]
            }
        for name, model in models.items():
            rows: Sequence[Any] = sparse if name == "linear" else dense
            model.fit(rows[0][known], learned)
            for guess, own, cells in zip(found, rows[1:], asked, strict=True):
                if is_classes:
                    # 0 for classes that no training row has.
                    guess[name] = np.zeros((len(cells.strings), len(table.classes)))
                    guess[name][:, model.classes_] = model.predict_proba(own)
                else:
                    guess[name] = model.predict(own)
    return found


def _inputs(
    table: Table, seen: Cells, asked: Sequence[Cells], known: np.ndarray, seed: int
) -> tuple[list[csr_matrix], list[np.ndarray], np.ndarray]:
    """What the linear model and what boosting reads, of the training rows and of the others; which are categories."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    sparse: list[list[csr_matrix]] = [[] for _ in (seen, *asked)]
    dense: list[list[np.ndarray]] = [[] for _ in (seen, *asked)]
    is_category: list[bool] = []
    for place, column in enumerate(table.used):
        if column.is_number:
            for number, own in enumerate((seen, *asked)):
                z, missing = own.numbers[:, place, 0], own.numbers[:, place, 4]
                sparse[number].append(csr_matrix(np.stack([z, missing], axis=1)))
                dense[number].append(np.where(missing > 0, np.nan, own.numbers[:, place, 1])[:, None])
            is_category.append(False)
            continue
        texts = [np.array([own.values[text] for text in own.strings[:, place]], dtype=object) for own in (seen, *asked)]
        learned = texts[0][known]
        if len(set(learned)) <= FEW_LEVELS:
            one_hot = OneHotEncoder(handle_unknown="ignore").fit(learned[:, None])
            ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan).fit(learned[:, None])
            for number, own in enumerate(texts):
                sparse[number].append(csr_matrix(one_hot.transform(own[:, None])))
                dense[number].append(ordinal.transform(own[:, None]))
            is_category.append(True)
            continue
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        try:
            first = letters.fit_transform(learned)
        except ValueError:
            # Nothing to read: all cells are empty or too short.
            continue
        size = min(DIMENSIONS, min(first.shape) - 1)
        shorter = TruncatedSVD(size, random_state=seed).fit(first) if size > 0 else None
        for number, own in enumerate(texts):
            grams = csr_matrix(letters.transform(own))
            sparse[number].append(grams)
            if shorter is not None:
                dense[number].append(shorter.transform(grams))
        is_category += [False] * max(size, 0)
    empty = [np.zeros((len(own.strings), 1), np.float32) for own in (seen, *asked)]
    return (
        [csr_matrix(hstack(own or [csr_matrix(none)])) for own, none in zip(sparse, empty, strict=True)],
        [np.concatenate(own or [none], axis=1) for own, none in zip(dense, empty, strict=True)],
        np.array(is_category or [False], dtype=bool),
    )


def write(file: Path, found: Mapping[str, Sequence[Guesses]]) -> None:
    """Write the guesses of each split, table after table."""
    content = {
        split: [{name: values.round(6).tolist() for name, values in own.items()} for own in tables]
        for split, tables in found.items()
    }
    file.write_text(json.dumps(content), encoding="utf-8")


def read(file: Path, split: str) -> list[Guesses] | None:
    """The guesses of a split, table after table; None where there are none."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return [{name: np.array(each) for name, each in own.items()} for own in content.get(split, ())] or None


def verdict(scores: Mapping[str, float]) -> str | None:
    """Which of the models to use, in words, from the scores of one evaluation; None where there are no baselines."""
    others = {name: scores[f"score_{name}"] for name in NAMES if f"score_{name}" in scores}
    if not others or "score" not in scores:
        return None
    own = scores["score"]
    best = max(others, key=others.__getitem__)
    shown = ", ".join(f"{NAMES[name]} {value:.4f}" for name, value in others.items())
    if own > others[best] + CLOSE:
        advice = "use this model"
    elif own > others[best] - CLOSE:
        advice = f"this model and the {NAMES[best]} are as good as each other, so use the simpler one"
    else:
        advice = f"use the {NAMES[best]}"
    return f"baseline: {shown}, this model {own:.4f} on the same rows: {advice}"
