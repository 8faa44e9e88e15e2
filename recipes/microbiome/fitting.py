"""What is fitted on the training samples before the first step, and its file in the folder of assets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recipes.microbiome.examples import Examples, batches
from recipes.microbiome.model import MicrobiomeModel
from recipes.microbiome.readout import Readout, fit_readout
from recipes.microbiome.sequences import tokenize
from recipes.microbiome.splits import leaking_groups, likely_groups
from recipes.microbiome.study import Study, unread
from recipes.microbiome.target import Fitted, is_number, read_target
from recipes.microbiome.unifrac import as_rows
from runner.errors import DataError

if TYPE_CHECKING:
    from recipes.microbiome.settings import DataSettings, StageSettings

FILE = "microbiome.json"
READOUT = "readout.npz"
# Settings that leave what is fitted as it is; files are known by their content.
NOT_FITTED = ("distance_from", "table", "sequences", "tree", "metadata", "split_file")


def fingerprint(settings: StageSettings) -> dict[str, object]:
    """The settings that what is fitted depends on."""
    values = dataclasses.asdict(settings.source)
    return {"stage": settings.stage, **{name: values[name] for name in values if name not in NOT_FITTED}}


def content_of(study: Study, training: np.ndarray) -> str:
    """A hash of the study's content and of which samples train."""
    found = hashlib.sha256()
    counts = study.counts
    for part in (counts.indptr, counts.indices, counts.data, training):
        found.update(np.ascontiguousarray(part).astype(np.float64).tobytes())
    found.update(json.dumps([study.sample_ids, study.sequences, dict(study.metadata)]).encode())
    if study.phylogeny is not None:
        found.update(study.phylogeny.lengths.tobytes())
    return found.hexdigest()[:32]


def read_fitted(folder: Path | None, settings: StageSettings) -> tuple[Fitted, str | None] | None:
    """What was fitted with these settings, and a hash of the study; None where it was fitted with others, or not yet.

    A file of an older version names fewer settings, and no hash.
    """
    content = read_file(folder)
    wanted = fingerprint(settings)
    if content is None or any(
        wanted.get(name, value) != value for name, value in _mapping(content["settings"]).items()
    ):
        return None
    content_hash = content.get("content")
    return Fitted.from_json(_mapping(content["fitted"])), str(content_hash) if content_hash else None


def read_file(folder: Path | None) -> dict[str, object] | None:
    """The content of the file in a folder of assets, where it is there."""
    file = folder / FILE if folder is not None else None
    return json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else None


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value


def write_fitted(folder: Path, settings: StageSettings, fitted: Fitted, content: str) -> None:
    """Write what was fitted, and on what. The heads of weights that lie there belong to the file that was there."""
    before = read_file(folder)
    values = {"settings": fingerprint(settings), "content": content, "fitted": fitted.to_json()}
    if before is not None:
        values["inherited"] = {"target": _mapping(before["settings"]).get("target"), "fitted": before["fitted"]}
    (folder / FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")


def has_same_target(folder: Path | None, settings: StageSettings, fitted: Fitted) -> bool:
    """Whether the heads of the weights to start from were trained for this target: its name and its classes."""
    content = read_file(folder)
    inherited = content.get("inherited") if content is not None else None
    if not isinstance(inherited, Mapping):
        return True
    classes = Fitted.from_json(_mapping(inherited["fitted"])).classes
    return inherited["target"] == settings.source.target and classes == fitted.classes


def fit_study(settings: StageSettings, study: Study, splits: Mapping[str, np.ndarray]) -> Fitted:
    """Fit, and print what was left out, what is not read, and which groups leak."""
    data = settings.source
    for note in [*study.notes, *unread(study, data.max_bp, settings.model_settings.token_limit)]:
        print(f"data: {note}", flush=True)
    if (
        settings.stage == "predict"
        and settings.unifrac_penalty > 0
        and not settings.is_frozen
        and not settings.has_tree
    ):
        print("note: without --data.tree this stage learns nothing from UniFrac.", flush=True)
    leaking = leaking_groups(study, data, splits)
    if leaking:
        print(
            f"warning: {leaking} groups ({data.group}) have samples both in training and held out, so the scores are "
            "too good; --data.split grouped without a split_file keeps them together.",
            flush=True,
        )
    if settings.wants_target:
        warn_of_groups(likely_groups(study, data, splits), "--data.group")
    fitted = fit(study, data, splits["train"], settings.wants_target)
    if fitted.classes and data.group is not None:
        cells, groups = study.metadata[str(data.target)], study.metadata[data.group]
        for name in sorted(set(cells)):
            own = {group for cell, group in zip(cells, groups, strict=True) if cell == name}
            if len(own) == 1:
                print(
                    f"warning: all samples of {data.target} {name!r} are of one {data.group} ({own.pop()}), so that "
                    "class is either trained on or held out.",
                    flush=True,
                )
    return fitted


def warn_of_groups(columns: Sequence[str], flag: str) -> None:
    """Print which column may name subjects or sites that are on both sides of the split, and what to type."""
    if columns:
        others = f" (or {', '.join(columns[1:])})" if len(columns) > 1 else ""
        print(
            f"warning: samples with the same {columns[0]} are both in training and held out. Where they are alike, the "
            f"scores are too good: type {flag} {columns[0]}{others} to keep them together.",
            flush=True,
        )


def fit(study: Study, settings: DataSettings, rows: np.ndarray, wants_target: bool) -> Fitted:
    """Fit on the training samples `rows`."""
    own = as_rows(study.counts[rows])
    asvs = np.unique(own.indices)
    tokens = tokenize([study.sequences[asv] for asv in asvs], settings.max_bp)
    votes = np.stack([(tokens == letter).sum(0) for letter in range(1, 5)])
    majority = tuple(int(letter) for letter in votes.argmax(0) + 1)
    letters = tokens.shape[1]
    if not wants_target or settings.target is None:
        return Fitted(majority=majority, letters=letters)
    column = study.metadata[settings.target]
    cells = [column[row] for row in rows]
    if read_target(column, settings.metadata or "the study", study.types.get(settings.target), settings).is_number:
        numbers = np.array([float(cell) for cell in cells])
        return Fitted(float(numbers.mean()), float(numbers.std()) or 1.0, (), majority, letters)
    classes = tuple(sorted(set(cells)))
    if len(classes) < 2:
        raise DataError(f"Every training sample has the {settings.target} {cells[0]!r}: nothing to tell apart.")
    return Fitted(classes=classes, majority=majority, letters=letters)


def target_values(study: Study, settings: DataSettings, fitted: Fitted) -> np.ndarray | None:
    """(samples,): the target in its unit, or the number of its class; -1 for a class that training has not seen."""
    if settings.target is None or settings.target not in study.metadata:
        return None
    cells = study.metadata[settings.target]
    if fitted.classes:
        place = {name: number for number, name in enumerate(fitted.classes)}
        return np.array([place.get(cell, -1) for cell in cells], float)
    return np.array([float(cell) if is_number(cell) else np.nan for cell in cells])


def fit_linear(
    settings: StageSettings, study: Study, training: np.ndarray, fitted: Fitted, prints: bool = True
) -> Readout:
    """Fit the linear readout of the target, and print what was chosen."""
    data = settings.source
    values = target_values(study, data, fitted)
    assert values is not None
    own = values[training]
    if fitted.classes:
        wanted = np.eye(len(fitted.classes))[own.astype(int)]
    else:
        wanted = ((own - fitted.mean) / fitted.deviation)[:, None]
    keeps_groups = data.group is not None and data.split == "grouped"
    groups = [study.metadata[str(data.group)][row] for row in training] if keeps_groups else None
    readout = fit_readout(study, training, wanted, groups, data.max_bp, data.split_seed)
    if prints:
        print(f"{readout.note}.", flush=True)
    return readout


def standardise(settings: StageSettings, study: Study, training: np.ndarray, model: MicrobiomeModel) -> None:
    """Fit the scale of the target's features on (up to 512) training samples, as evaluation sees them."""
    if not model.reads_branches:
        return
    data = settings.source
    rows = np.random.default_rng(data.split_seed).permutation(training)[:512]
    examples = Examples(study, rows, data.rarefy_depth, False, data.split_seed)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        outputs = [model(*given, wants_embeddings=False) for given in batches(settings.reading, study, examples)]
    model.standardise(torch.cat([output.branches for output in outputs]))
    model.train(was_training)
