"""Cross-validate a stage: train once per fold and seed, and score the held-out samples of all folds together.

python -m recipes.microbiome.cross_validation --folds 5 --seeds 3 --output runs/soil -- --stage predict ...

What follows `--` are settings of `relay train`; data.fold, seed and output_dir are added. `{run}` in them is the name
of the run, seed-S-fold-F, so that each can start from its own of another cross-validation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recipes.microbiome.baselines import Fold, baselines
from recipes.microbiome.fitting import fit, target_values, warn_of_groups
from recipes.microbiome.score import target_scores
from recipes.microbiome.splits import likely_groups, partition
from runner.errors import DataError

if TYPE_CHECKING:
    from recipes.microbiome.prediction import Row
    from recipes.microbiome.settings import DataSettings, StageSettings
    from recipes.microbiome.study import Study
    from recipes.microbiome.target import Fitted


def relay(*words: str) -> None:
    """Run a verb of `relay` in a process of its own, which says what is wrong; ends with its status where it fails."""
    done = subprocess.run([sys.executable, "-m", "runner", *words], stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)


def held_out(run: Path) -> list[Row]:
    """What a run predicts of its validation samples, a row each."""
    rows = run / "validation.jsonl"
    if not rows.is_file():
        relay("evaluate", "--checkpoint", str(run), "--mixed_precision", "no", "--output", str(rows))
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]


def pooled(runs: Sequence[Path]) -> dict[str, float]:
    """Scores over the held-out samples of all folds, each of which is in one."""
    rows = [row for run in runs for row in held_out(run)]
    return target_scores(rows, not isinstance(rows[0].get("predicted"), list), "group" in rows[0])


def compare(settings: StageSettings, study: Study, folds: int, trains: Callable[[int], Path] | None) -> Comparison:
    """Score simple models, and what `trains` trains, on the same folds; `trains` returns the run of a fold."""
    fitted = fit(study, settings.source, np.arange(len(study.sample_ids)), True)
    values = target_values(study, settings.source, fitted)
    assert values is not None
    group = settings.source.group
    found: dict[str, list[Row]] = {}
    per_fold: dict[str, list[dict[str, float]]] = {}
    for number in range(folds):
        own = dataclasses.replace(settings.source, fold=number)
        splits = partition(study, own)
        if number == 0:
            warn_of_groups(likely_groups(study, own, splits), "--group")
        _check_classes(study, settings.source, fitted, values, splits, number)
        fold = Fold(
            settings, study, _refitted(study, own, fitted, splits["train"]), splits["train"], splits["validation"]
        )
        for name, baseline in baselines(study.phylogeny is not None).items():
            rows: list[Row] = []
            for row, guess in zip(fold.out, baseline(fold), strict=True):
                predicted = guess.tolist() if fitted.classes else float(guess[0])
                each: Row = {"sample": study.sample_ids[row], "row": int(row), "embedding": [], "predicted": predicted}
                each["target"] = float(values[row])
                if group is not None:
                    each["group"] = study.metadata[group][row]
                rows.append(each)
            _collect(found, per_fold, name, rows, not fitted.classes)
        if trains is not None:
            _collect(found, per_fold, "relay", held_out(trains(number)), not fitted.classes)
    is_regression = not fitted.classes
    scores = {name: target_scores(rows, is_regression, group is not None) for name, rows in found.items()}
    return Comparison(scores, per_fold, found)


def _check_classes(
    study: Study,
    data: DataSettings,
    fitted: Fitted,
    values: np.ndarray,
    splits: Mapping[str, np.ndarray],
    number: int,
) -> None:
    """Raise DataError for a fold that would train on one class alone; print a note for one that lacks a class."""
    there = {int(value) for value in values[splits["train"]]}
    lacking = [name for place, name in enumerate(fitted.classes) if place not in there]
    if not lacking:
        return
    held_out = ""
    if data.group is not None:
        rows = [row for row in splits["validation"] if study.metadata[str(data.target)][row] in lacking]
        held_out = f": {data.group} {', '.join(sorted({study.metadata[data.group][row] for row in rows})[:4])}"
    listed = ", ".join(map(repr, lacking[:4]))
    if len(there) < 2:
        raise DataError(
            f"Fold {number} would train on one class alone: it holds out all samples of {data.target} "
            f"{listed}{held_out}.\nBring more groups of that class. Without --group, a group would be on both "
            "sides."
        )
    print(f"note: fold {number} trains without {data.target} {listed}, and so cannot find it{held_out}.", flush=True)


def fold_runs(
    data: DataSettings, preset: str, max_steps: int, init_from: str | None, folder: Path
) -> Callable[[int], Path]:
    """What trains stage 2, frozen, on a fold, and returns the folder of its run."""
    words = ["--recipe", "microbiome", "--preset", preset, "--stage", "predict", "--model.freeze_base", "True"]
    words += ["--max_steps", str(max_steps), "--count_penalty", "0", "--eval_steps", "0", "--save_steps", "0"]
    words += ["--init_from", init_from] if init_from is not None else []
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if value != field.default and field.name != "fold":
            words += [f"--data.{field.name}", str(value)]

    def trained(fold: int) -> Path:
        run = folder / f"fold-{fold}"
        if not (run / "final" / "model.safetensors").is_file():
            relay("train", *words, "--data.fold", str(fold), "--output_dir", str(run))
        return run

    return trained


class Comparison(NamedTuple):
    """What simple models and the recipe's own reach in a cross-validation."""

    scores: dict[str, dict[str, float]]
    """By model and score: over the held-out samples of all folds together."""
    per_fold: dict[str, list[dict[str, float]]]
    """By model, the scores of each fold."""
    rows: dict[str, list[Row]]
    """By model, what it predicts of each sample."""

    def text(self) -> str:
        """A table with a model in each row; the worst fold of the first score in brackets."""
        names = [name for name in next(iter(self.scores.values())) if "/" not in name]
        names += [name for name in next(iter(self.scores.values())) if name.endswith("/by_group")]
        lines = [["", *(name.removeprefix("target_") for name in names), "worst fold"]]
        for model, scores in self.scores.items():
            last = "auroc" if "target_auroc" in scores else "mae"
            own = [fold[f"target_{last}"] for fold in self.per_fold[model] if f"target_{last}" in fold]
            worst = (min if last == "auroc" else max)(own, default=float("nan"))
            cells = [f"{scores[name]:.4f}" if name in scores else "" for name in names]
            lines.append([model, *cells, f"{last} {worst:.4f}"])
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def _collect(
    found: dict[str, list[Row]],
    per_fold: dict[str, list[dict[str, float]]],
    name: str,
    rows: list[Row],
    is_regression: bool,
) -> None:
    found.setdefault(name, []).extend(rows)
    per_fold.setdefault(name, []).append(target_scores(rows, is_regression, False))


def _refitted(study: Study, settings: DataSettings, fitted: Fitted, training: np.ndarray) -> Fitted:
    """The mean and the deviation of a fold's training samples; the classes are those of the study."""
    if fitted.classes:
        return fitted
    return fit(study, settings, training, True)


def main(arguments: Sequence[str]) -> None:
    """Read the command line, train, and print a line of scores per seed and their means."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    own, flags = arguments[:place], arguments[place + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", "--into", dest="output", type=Path, required=True)
    given = parser.parse_args(own)
    scores = []
    for seed in range(given.seeds):
        runs = [given.output / f"seed-{seed}-fold-{fold}" for fold in range(given.folds)]
        for fold, run in enumerate(runs):
            if (run / "final" / "model.safetensors").is_file():
                continue
            settings = [flag.replace("{run}", run.name) for flag in flags]
            settings += ["--data.fold", str(fold), "--seed", str(seed), "--output_dir", str(run)]
            relay("train", "--recipe", "microbiome", *settings)
        scores.append(pooled(runs))
        print(f"seed {seed}:  " + "  ".join(f"{name} {value:.4f}" for name, value in scores[-1].items()), flush=True)
    for name in scores[0]:
        values = np.array([each[name] for each in scores])
        print(f"{name}: {values.mean():.4f} +- {values.std(ddof=1) if len(values) > 1 else 0:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
