"""The toy recipe on rows of a file, with something fitted on them: for what a run remembers of its data."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from tyro.conf import Suppress

from runner.recipe import Recipe as Contract
from tests import toy_recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The rows."""

    train: str = "train.txt"
    """File with five numbers per line; the last one is the target."""
    validation: str | None = None
    """The same for validation; none: the training rows."""
    digits: int = 3
    """Digits of the mean that is fitted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(toy_recipe.Recipe):
    """Rows of a file; the mean target is fitted."""

    data_settings: DataSettings = DataSettings()
    stage: str = "first"
    """A stage."""
    assets: Suppress[Path | None] = None

    changeable_settings = frozenset({"data.train", "data.validation"})

    def data_files(self, split: str) -> list[str]:
        """The file of the split."""
        settings = self.data_settings
        return [settings.validation if split == "validation" and settings.validation else settings.train]

    def prepare(self, folder: Path) -> Contract:
        """Fit the mean, unless it is there with these settings."""
        file = folder / "fitted.json"
        fitted = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if fitted.get("digits") != self.data_settings.digits:
            mean = torch.tensor([row[-1] for row in self._rows("train")]).mean().item()
            content = {"digits": self.data_settings.digits, "mean": round(mean, self.data_settings.digits)}
            file.write_text(json.dumps(content), encoding="utf-8")
        return dataclasses.replace(self, assets=folder)

    def data(self, split: str) -> Any:
        """The rows, with the mean taken off the targets."""
        assert self.assets is not None
        mean = json.loads((self.assets / "fitted.json").read_text(encoding="utf-8"))["mean"]
        rows = self._rows(split)
        examples = [(number, torch.tensor(row[:4]), torch.tensor(row[4] - mean)) for number, row in enumerate(rows)]
        return toy_recipe.Rows(examples) if self.streamed and split == "train" else examples

    def _rows(self, split: str) -> list[list[float]]:
        text = Path(self.data_files(split)[0]).read_text(encoding="utf-8")
        return [[float(word) for word in line.split()] for line in text.splitlines()]
