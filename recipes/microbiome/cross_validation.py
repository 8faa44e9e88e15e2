"""Cross-validate a stage: train once per fold and seed, and score the held-out samples of all folds together.

python -m recipes.microbiome.cross_validation --folds 5 --seeds 3 --output runs/soil -- --stage predict ...

What follows `--` are settings of `relay train`; data.fold, seed and output_dir are added. `{run}` in them is the name
of the run, seed-S-fold-F, so that each can start from its own of another cross-validation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.microbiome.score import target_scores

if TYPE_CHECKING:
    from recipes.microbiome.prediction import Row


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
