"""The recipe as scikit-learn estimators: `fit` starts the same runner as `relay train`, `predict` asks its model."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from recipes.tabular.column_kinds import as_text
from recipes.tabular.recipe import Recipe
from recipes.tabular.settings import DataSettings, LoraSettings, ModelSettings

TARGET = "target of the estimator"


class TabularEstimator(BaseEstimator):
    """What both estimators share; `settings` are those of `relay train`, flat: {"num_train_epochs": 20}."""

    task = ""

    def __init__(
        self, settings: dict[str, Any] | None = None, init_from: str | None = None, random_state: int = 0
    ) -> None:
        self.settings = settings
        self.init_from = init_from
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.string = tags.input_tags.categorical = True
        return tags

    def _frame(self, rows: Any) -> pd.DataFrame:
        """A frame with names of text, and cells that parquet can hold."""
        if issparse(rows):
            raise ValueError("Sparse data came; wanted: a frame or a dense array. Type X.toarray().")
        if isinstance(rows, pd.DataFrame):
            frame = rows.copy()
        else:
            values = np.asarray(rows)
            if np.iscomplexobj(values):
                raise ValueError("Complex data not supported: give numbers or text.")
            if values.ndim != 2:
                raise ValueError(f"Expected 2D array, got {values.ndim}D array instead. Reshape your data.")
            frame = pd.DataFrame(values, columns=[f"feature {place}" for place in range(values.shape[1])])
        for what, count in (("sample(s)", len(frame)), ("feature(s)", frame.shape[1])):
            if not count:
                raise ValueError(f"0 {what} (shape={frame.shape}) while a minimum of 1 is required.")
        frame.columns = [str(name) for name in frame.columns]
        for name in frame.columns:
            if frame[name].dtype == object or isinstance(frame[name].dtype, pd.CategoricalDtype):
                frame[name] = as_text(frame[name])
        return frame.reset_index(drop=True)

    def _fit(self, rows: Any, targets: np.ndarray) -> None:
        frame = self._frame(rows)
        if len(frame) != len(targets):
            raise ValueError(
                f"Found input variables with inconsistent numbers of samples: {[len(frame), len(targets)]}"
            )
        self.n_features_in_ = frame.shape[1]
        self.feature_names_in_ = np.array(frame.columns, dtype=object)
        frame[TARGET] = targets
        with tempfile.TemporaryDirectory(prefix="relay-tabular-") as name:
            folder = Path(name)
            frame.to_parquet(folder / "rows.parquet")
            flags = {
                "data.train": folder / "rows.parquet",
                "data.target": TARGET,
                "data.task": self.task,
                "seed": self.random_state,
                "mixed_precision": "no",
                **(self.settings or {}),
                "output_dir": folder / "run",
            }
            if self.init_from is not None:
                flags |= {"init_from": self.init_from, "stage": "finetune"}
            words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
            ended = subprocess.run(
                [sys.executable, "-m", "runner", "train", "--recipe", "tabular", *words], capture_output=True, text=True
            )
            if ended.returncode:
                raise ValueError(ended.stderr.strip() or ended.stdout.strip())
            self.recipe_, self.model_ = _load(folder / "run" / "final")

    def _rows(self, rows: Any) -> list[Any]:
        check_is_fitted(self, "model_")
        frame = self._frame(rows)
        if frame.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {frame.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )
        return self.recipe_.predict_frame(self.model_, self.recipe_.tables[0], frame)


class TabularClassifier(ClassifierMixin, TabularEstimator):
    """Classes from tables with text, numbers and missing cells."""

    task = "classification"

    def fit(self, X: Any, y: Any) -> TabularClassifier:  # noqa: N803
        """Train on rows and their classes."""
        check_classification_targets(y)
        self.classes_, codes = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if not len(codes):
            raise ValueError("0 sample(s) while a minimum of 1 is required.")
        if len(self.classes_) < 2:
            raise ValueError(f"The target has one class, {self.classes_[0]!r}; wanted: two or more.")
        self._fit(X, codes)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """(rows, classes), in the order of `classes_`."""
        found = self._rows(X)
        # A class with so few rows that all are set aside is not known to the model.
        known = [int(label) for label in self.recipe_.tables[0].classes]
        probabilities = np.zeros((len(found), len(self.classes_)))
        probabilities[:, known] = [row["probabilities"] for row in found]
        return probabilities

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """(rows,) of `classes_`."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]


class TabularRegressor(RegressorMixin, TabularEstimator):
    """Numbers from tables with text, numbers and missing cells."""

    task = "regression"

    def fit(self, X: Any, y: Any) -> TabularRegressor:  # noqa: N803
        """Train on rows and their numbers."""
        self._fit(X, column_or_1d(y, warn=True).astype(np.float64))
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """(rows,) in the target's unit."""
        return np.array([row["predicted"] for row in self._rows(X)])


def _load(folder: Path) -> tuple[Recipe, Any]:
    """The recipe and model of a finished run, held in memory: the folder may go."""
    import yaml
    from safetensors.torch import load_file

    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    recipe = Recipe(
        stage=settings["stage"],
        adapt=settings["adapt"],
        data_settings=DataSettings(**settings["data"]),
        model_settings=ModelSettings(**settings["model"]),
        lora_settings=LoraSettings(**settings["lora"]),
    )
    recipe = recipe.prepare(folder)
    _ = recipe.tables, recipe.tokenizer, recipe.kept_grams
    model = recipe.model()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return recipe, model.eval()
