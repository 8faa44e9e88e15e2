"""The recipe as scikit-learn estimators: `fit` starts the same runner as `relay train`, `predict` asks its model."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from recipes.tabular.column_kinds import NOTHING_MISSING, as_text, check_lists, named_kinds
from recipes.tabular.corpus import read
from recipes.tabular.recipe import Recipe
from recipes.tabular.settings import DataSettings, LoraSettings, ModelSettings
from runner.errors import RelayError

if TYPE_CHECKING:
    from sklearn.utils import Tags

    from recipes.tabular.model import TabularModel
    from recipes.tabular.score import Prediction

MOST_IMPORTANCE_ROWS = 500


class TabularEstimator(BaseEstimator):
    """What both estimators share.

    `settings` are those of `relay train`, flat: {"num_train_epochs": 20}. `text_encoder` is the folder or hub id of a
    pre-trained BERT, `init_from` a pre-trained model of this recipe. `verbose` prints what the training prints.
    """

    task = ""
    _split: str | None = None
    """The split of the rows to predict: the linear part then comes from a fit without them."""

    def __init__(
        self,
        settings: Mapping[str, object] | None = None,
        init_from: str | None = None,
        random_state: int = 0,
        text_encoder: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.settings = settings
        self.init_from = init_from
        self.random_state = random_state
        self.text_encoder = text_encoder
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.string = tags.input_tags.categorical = True
        return tags

    @property
    def feature_importances_(self) -> np.ndarray:
        """(features,) by how much the score falls when the cells of a column are shuffled, the mean of five times.

        The score is that of `score`, on the validation rows, or on training rows where there are none. Source: Breiman
        2001, Random Forests, section 10.
        """
        check_is_fitted(self, "model_")
        if not hasattr(self, "_importances"):
            from sklearn.inspection import permutation_importance

            rows, targets = self._held_out
            judged = copy.copy(self)
            judged._split = "validation"
            found = permutation_importance(judged, rows, targets, n_repeats=5, random_state=self.random_state)
            self._importances = np.asarray(found["importances_mean"])
        return self._importances

    def _frame(self, rows: object) -> pd.DataFrame:
        """A frame with strings for names, and cells that Parquet can hold. Raises ValueError."""
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
        names = list(frame.columns)
        twice = [name for place, name in enumerate(names) if name in names[:place]]
        if twice:
            raise ValueError(f"The frame has two columns of the name {twice[0]!r}: rename one.")
        try:
            check_lists("the frame", frame, named_kinds(cast("str | None", (self.settings or {}).get("data.kinds"))))
        except RelayError as error:
            raise ValueError(str(error)) from None
        for name in frame.columns:
            if frame[name].dtype == object or isinstance(frame[name].dtype, pd.CategoricalDtype):
                frame[name] = as_text(frame[name])
        return frame.reset_index(drop=True)

    def _fit(self, rows: object, targets: object, values: np.ndarray) -> None:
        """Train on rows and `values`, which the user gave as `targets`; the target is called as these are."""
        frame = self._frame(rows)
        if len(frame) != len(values):
            raise ValueError(f"Found input variables with inconsistent numbers of samples: {[len(frame), len(values)]}")
        self.n_features_in_ = frame.shape[1]
        self.feature_names_in_ = np.array(frame.columns, dtype=object)
        self.target_name_ = _target_name(targets, frame)
        frame[self.target_name_] = values
        with tempfile.TemporaryDirectory(prefix="relay-tabular-") as name:
            folder = Path(name)
            frame.to_parquet(folder / "rows.parquet")
            flags: dict[str, object] = {
                "data.train": folder / "rows.parquet",
                "data.target": self.target_name_,
                "data.task": self.task,
                "data.missing_values": "",
                "seed": self.random_state,
                "mixed_precision": "no",
                **(self.settings or {}),
                "output_dir": folder / "run",
            }
            if self.text_encoder is not None:
                flags["model.text_encoder"] = self.text_encoder
            if self.init_from is not None:
                flags |= {"init_from": self.init_from, "stage": "finetune"}
            self._run([word for flag, value in flags.items() for word in (f"--{flag}", str(value))])
            self.recipe_, self.model_ = _load(folder / "run" / "final")
            splits = read(self.recipe_.data_settings)[0].splits
        held_out = splits["validation"] if len(splits["validation"]) > 1 else splits["train"]
        held_out = held_out.iloc[:MOST_IMPORTANCE_ROWS]
        self._held_out = held_out.drop(columns=self.target_name_), self._as_given(held_out[self.target_name_])
        if hasattr(self, "_importances"):
            del self._importances

    def _as_given(self, targets: pd.Series) -> np.ndarray:
        """Targets of the training's file as the user gave them."""
        return targets.to_numpy()

    def _run(self, words: list[str]) -> None:
        """Run `relay train`. Raises ValueError with its message where it ends with another status than 0."""
        command = [sys.executable, "-m", "runner", "train", "--recipe", "tabular", *words]
        if self.verbose:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
                printed = ""
                assert process.stdout is not None
                for line in process.stdout:
                    printed += line
                    print(line, end="", flush=True)
            status = process.returncode
        else:
            ended = subprocess.run(command, capture_output=True, text=True)
            printed, status = (ended.stdout or "") + (ended.stderr or ""), ended.returncode
        if status:
            # The message comes last; what stands before it is the progress.
            _, found, message = printed.rpartition("error: ")
            raise ValueError(message.strip() if found else printed.strip())
        if not self.verbose:
            for line in printed.splitlines():
                if line.startswith("warning: "):
                    warnings.warn(line.removeprefix("warning: "), stacklevel=4)

    def _rows(self, rows: object) -> list[Prediction]:
        """What the model predicts for each row. Raises ValueError where the columns are not those of `fit`."""
        check_is_fitted(self, "model_")
        frame = self._frame(rows)
        if frame.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {frame.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )
        try:
            return self.recipe_.predict_frame(self.model_, self.recipe_.tables[0], frame, split=self._split)
        except RelayError as error:
            raise ValueError(str(error)) from None


class TabularClassifier(ClassifierMixin, TabularEstimator):
    """Classes from tables with text, numbers and missing cells."""

    task = "classification"

    def fit(self, X: object, y: object) -> TabularClassifier:  # noqa: N803
        """Train on rows and their classes, whose names the model reads. Raises ValueError."""
        check_classification_targets(y)
        self.classes_, codes = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if not len(codes):
            raise ValueError("0 sample(s) while a minimum of 1 is required.")
        if len(self.classes_) < 2:
            raise ValueError(f"The target has one class, {self.classes_[0]!r}; wanted: two or more.")
        self.class_names_ = _class_names(self.classes_)
        self._fit(X, y, np.array(self.class_names_, dtype=object)[codes])
        return self

    def predict_proba(self, X: object) -> np.ndarray:  # noqa: N803
        """(rows, classes), in the order of `classes_`."""
        found = self._rows(X)
        # The model does not know a class with so few rows that all are validation rows.
        known = [self.class_names_.index(label) for label in self.recipe_.tables[0].classes]
        probabilities = np.zeros((len(found), len(self.classes_)))
        probabilities[:, known] = [row["probabilities"] for row in found]
        return probabilities

    def predict(self, X: object) -> np.ndarray:  # noqa: N803
        """(rows,) of `classes_`."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def _as_given(self, targets: pd.Series) -> np.ndarray:
        return self.classes_[[self.class_names_.index(str(label)) for label in targets]]


class TabularRegressor(RegressorMixin, TabularEstimator):
    """Numbers from tables with text, numbers and missing cells."""

    task = "regression"

    def fit(self, X: object, y: object) -> TabularRegressor:  # noqa: N803
        """Train on rows and their numbers. Raises ValueError."""
        self._fit(X, y, column_or_1d(y, warn=True).astype(np.float64))
        return self

    def predict(self, X: object) -> np.ndarray:  # noqa: N803
        """(rows,) in the target's unit."""
        return np.array([row["predicted"] for row in self._rows(X)])


def _target_name(targets: object, frame: pd.DataFrame) -> str:
    """The name of the target: its own, or "target", with a mark where a column has that name."""
    own = targets.name if isinstance(targets, pd.Series) else None
    if isinstance(targets, pd.DataFrame):
        own = targets.columns[0]
    name = "target" if own is None or not str(own).strip() else str(own).strip()
    while name in frame:
        name += "'"
    return name


def _class_names(classes: np.ndarray) -> list[str]:
    """A text for each class: the class as it is written. Classes that are written the same way get a number."""
    names: list[str] = []
    for label in as_text(pd.Series(classes.tolist(), dtype=object), NOTHING_MISSING):
        name, times = label or "", 1
        while name in names:
            times += 1
            name = f"{label} ({times})"
        names.append(name)
    return names


def _load(folder: Path) -> tuple[Recipe, TabularModel]:
    """The recipe and model of a finished run, held in memory: the folder may be deleted."""
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
    recipe = recipe.prepare_trained(folder)
    _ = recipe.tables, recipe.tokenizer, recipe.kept_grams
    model = recipe.model()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return recipe, model.eval()
