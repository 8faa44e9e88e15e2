"""Cross-validate a stage: train once per fold and seed, and score the held-out predictions of all folds together.

python -m recipes.microbiome.cross_validation --folds 5 --seeds 3 --into runs/soil -- --stage predict ...

What follows `--` are settings of `relay train`; data.fold, seed and output_dir are added. `{run}` in them is the name
of the run, seed-S-fold-F, so that each can start from its own of another cross-validation.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes.microbiome.score import class_scores, regression_scores


def held_out(run: Path) -> tuple[list[str], np.ndarray | None, np.ndarray]:
    """(measured, predicted numbers or None, probabilities of the classes) of a run's validation samples."""
    command = [sys.executable, "-m", "runner", "predict", "--checkpoint", str(run), "--into", str(run / "predictions")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (run / "predictions" / "predictions.tsv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "validation"]
    # The columns are: sample-id, predicted_X, X, probability_..., split.
    names = list(rows[0])
    probabilities = [name for name in names if name.startswith("probability_")]
    measured = [row[names[2]] for row in rows]
    if probabilities:
        return measured, None, np.array([[float(row[name]) for name in probabilities] for row in rows])
    return measured, np.array([float(row[names[1]]) for row in rows]), np.zeros((0, 0))


def pooled(runs: Sequence[Path]) -> dict[str, float]:
    """Scores over the held-out samples of all folds, each of which is in one."""
    parts = [held_out(run) for run in runs]
    measured = [cell for part in parts for cell in part[0]]
    if parts[0][1] is None:
        kinds = sorted(set(measured))
        return class_scores(np.array([kinds.index(cell) for cell in measured]), np.concatenate([p[2] for p in parts]))
    predicted = np.concatenate([part[1] for part in parts if part[1] is not None])
    return regression_scores(np.array([float(cell) for cell in measured]), predicted)


def main(arguments: Sequence[str]) -> None:
    """Read the command line, train, and print a line of scores per seed and their means."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    own, flags = arguments[:place], arguments[place + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--into", type=Path, required=True)
    given = parser.parse_args(own)
    scores = []
    for seed in range(given.seeds):
        runs = [given.into / f"seed-{seed}-fold-{fold}" for fold in range(given.folds)]
        for fold, run in enumerate(runs):
            if (run / "final" / "model.safetensors").is_file():
                continue
            command = [sys.executable, "-m", "runner", "train", "--recipe", "microbiome"]
            command += [flag.replace("{run}", run.name) for flag in flags]
            command += ["--data.fold", str(fold), "--seed", str(seed), "--output_dir", str(run)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(done.returncode)
        scores.append(pooled(runs))
        print(f"seed {seed}:  " + "  ".join(f"{name} {value:.4f}" for name, value in scores[-1].items()), flush=True)
    for name in scores[0]:
        values = np.array([each[name] for each in scores])
        print(f"{name}: {values.mean():.4f} +- {values.std(ddof=1) if len(values) > 1 else 0:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
