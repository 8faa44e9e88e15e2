"""Which samples train and which validate: by a file, by groups, or by a share drawn from the seed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.microbiome.study import Study
from recipes.microbiome.target import is_missing
from runner.errors import ConfigError, DataError

if TYPE_CHECKING:
    from recipes.microbiome.settings import DataSettings

# Names of columns that number what samples are taken from, in small letters and without other signs. Names like
# body_site, subject_type or host_sex are of properties, and do not match.
_OF = r"(?:host|qiita|source|collection|sampling|unique)*"
_NUMBER = r"s?(?:ids?|names?|numbers?|no|nr|num|codes?|keys?|identifiers?|accessions?)?"
_STRONG = "subject|patient|participant|individual|person|donor|volunteer|proband|mouse|cage|family|household"
_STRONG += "|twin|study|bioproject|cohort"
_WEAK = "site|station|location|plot|pit|field|farm|village|hospital|clinic|lake|animal|plant"
STRONG_NAME = re.compile(rf"{_OF}(?:(?:{_STRONG}){_NUMBER}|hostid|anonymi[sz]edname)")
WEAK_NAME = re.compile(rf"{_OF}(?:host|(?:{_WEAK}){_NUMBER})")
# Two subjects or studies can be told apart by a split; a column "site" with few values may say where on a body.
FEWEST_VALUES = {STRONG_NAME: 2, WEAK_NAME: 5}


def partition(study: Study, settings: DataSettings) -> dict[str, np.ndarray]:
    """The rows of each split: by a file, by folds, or by shares; whole groups where there are groups.

    Raises ConfigError for what does not fit, DataError where training would have nothing.
    """
    groups = np.array(study.metadata[settings.group]) if settings.group is not None else None
    size = len(study.sample_ids)
    if settings.split_file is not None:
        held_out = _from_file(study, settings)
    else:
        # Units are groups, or samples where there are none or they are to be ignored.
        by_group = groups is not None and settings.split == "grouped"
        units = np.unique(groups, return_inverse=True)[1] if groups is not None and by_group else np.arange(size)
        held_out = _by_share(units, settings)
    train = np.ones(size, bool)
    for rows in held_out.values():
        train[rows] = False
    splits = {"train": np.flatnonzero(train), **held_out}
    if len(splits["train"]) < 2:
        raise DataError(
            f"{size} samples leave {len(splits['train'])} to train on: lower --data.validation_fraction, or bring more."
        )
    return splits


def number_of_folds(settings: DataSettings) -> int:
    """The folds of the split file, or those that were asked for. Raises ConfigError where there are fewer than two."""
    count = settings.num_folds
    if settings.split_file is not None:
        try:
            count = len(json.loads(Path(settings.split_file).read_text(encoding="utf-8")).get("folds", ()))
        except (OSError, json.JSONDecodeError, AttributeError) as error:
            raise DataError(f"{settings.split_file} cannot be read as JSON: {error}") from None
    if count < 2:
        raise ConfigError(f"A cross-validation of {count} folds: type --folds 5, or a split file with folds.")
    return count


def _from_file(study: Study, settings: DataSettings) -> dict[str, np.ndarray]:
    path = Path(settings.split_file or "")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    place = {name: row for row, name in enumerate(study.sample_ids)}
    if "folds" in content:
        if not 0 <= settings.fold < len(content["folds"]):
            raise ConfigError(f"fold is {settings.fold}: {path} has folds 0 to {len(content['folds']) - 1}.")
        named = {"validation": content["folds"][settings.fold], "test": []}
    else:
        named = {"validation": content.get("validation_ids", []), "test": content.get("test_ids", [])}
        if not named["validation"]:
            # Two parts: what is held out is what training is judged by.
            named = {"validation": named["test"], "test": []}
    if not named["validation"]:
        raise DataError(f"{path} has neither folds nor validation_ids nor test_ids; wanted: lists of sample ids.")
    splits = {split: np.array([place[name] for name in names if name in place], int) for split, names in named.items()}
    if not len(splits["validation"]):
        raise DataError(f"No sample that {path} holds out is in the table: it names {named['validation'][0]!r}.")
    return splits


def _by_share(units: np.ndarray, settings: DataSettings) -> dict[str, np.ndarray]:
    """Shuffle the units, and give each fold, or each share, the next of them."""
    random = np.random.default_rng((settings.split_seed, 7))
    order = random.permutation(units.max() + 1)
    rows = [np.flatnonzero(units == unit) for unit in order]
    if settings.num_folds:
        if not 0 <= settings.fold < settings.num_folds or settings.num_folds < 2:
            raise ConfigError(
                f"fold is {settings.fold} of {settings.num_folds}: type --data.fold from 0 to num_folds - 1."
            )
        # The largest units first, each to the smallest fold, so that folds are alike in size.
        folds: list[list[int]] = [[] for _ in range(settings.num_folds)]
        for own in sorted(rows, key=len, reverse=True):
            min(folds, key=len).extend(own)
        return {"validation": np.sort(np.array(folds[settings.fold], int)), "test": np.zeros(0, int)}
    splits, start = {}, 0
    for split, share in (("validation", settings.validation_fraction), ("test", settings.test_fraction)):
        taken: list[int] = []
        while start < len(rows) and len(taken) < round(share * len(units)):
            taken.extend(rows[start])
            start += 1
        splits[split] = np.sort(np.array(taken, int))
    return splits


def leaking_groups(study: Study, settings: DataSettings, splits: Mapping[str, np.ndarray]) -> int:
    """How many groups have samples both in training and held out."""
    if settings.group is None:
        return 0
    groups = np.array(study.metadata[settings.group])
    held_out = np.concatenate([rows for split, rows in splits.items() if split != "train"])
    return len(np.intersect1d(groups[splits["train"]], groups[held_out]))


def likely_groups(study: Study, settings: DataSettings, splits: Mapping[str, np.ndarray]) -> list[str]:
    """Columns whose values look like subjects, studies or sites with samples both in training and held out.

    The one with the most values first. None where a group is given. Columns with a value of its own for most samples
    do not count, and neither do those that divide the samples as the target's classes do.
    """
    if settings.group is not None:
        return []
    held_out = np.concatenate([rows for split, rows in splits.items() if split != "train"])
    target = study.metadata.get(settings.target or "")
    found: dict[str, int] = {}
    for name, cells in list(study.metadata.items()):
        bare = re.sub("[^a-z]", "", name.lower())
        fewest = next((least for pattern, least in FEWEST_VALUES.items() if pattern.fullmatch(bare)), None)
        known = np.array([not is_missing(cell, settings.missing_values) for cell in cells], bool)
        if fewest is None or name == settings.target or not _repeats(np.array(cells)[known], fewest):
            continue
        sides = [{cells[row] for row in rows if known[row]} for rows in (splits["train"], held_out)]
        is_target = target is not None and len({*cells}) == len({*target}) == len({*zip(cells, target, strict=True)})
        if not is_target and sides[0] & sides[1]:
            found[name] = len({*cells})
    return sorted(found, key=lambda name: -found[name])


def _repeats(cells: np.ndarray, fewest: int) -> bool:
    """Whether there are enough different values, and most samples share theirs with another."""
    values, numbers = np.unique(cells, return_counts=True)
    return len(values) >= fewest and numbers[numbers > 1].sum() > len(cells) / 2
