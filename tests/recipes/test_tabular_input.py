"""Awkward input by the real command: each works and says what it made of it, or is refused in three lines."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from test_tabular_training import SMALL

from runner.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = 60


def own_table(**columns: Any) -> pd.DataFrame:
    """Sixty rows with a number, a category and a target of two classes."""
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": random.integers(20, 80, ROWS),
            "colour": random.choice(["red", "blue", "green"], ROWS),
            **columns,
            "y": random.choice(["no", "yes"], ROWS),
        }
    )


def train(folder: Path, *words: str, status: int = 0) -> str:
    """What a training of two steps says; refused, at most three lines."""
    arguments = ("train", *SMALL, "--max_steps", "2", "--output_dir", str(folder / "run"), *words)
    return said_by(*arguments, status=status)


def said_by(*arguments: str, status: int = 0) -> str:
    """Run a verb in this process."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as wrong:
        ended = main(list(arguments))
    said = out.getvalue() + wrong.getvalue()
    assert ended == status, said
    assert "Traceback" not in said
    if status:
        assert len(said[said.index("error: ") :].strip().splitlines()) <= 3, said
    return said


# Stages ------------------------------------------------------------------------------------------------


def test_adapters_need_a_trained_model(tmp_path: Path) -> None:
    own_table().to_csv(tmp_path / "own.csv", index=False)
    words = ("--data.train", str(tmp_path / "own.csv"), "--data.target", "y")
    for adapt in ("lora", "full", "frozen_text"):
        said = train(tmp_path, *words, "--stage", "finetune", "--adapt", adapt, status=2)
        assert "--init_from RUN/checkpoint-latest" in said and "leave out --stage finetune" in said
    assert not list((tmp_path / "run").glob("checkpoint*"))
    train(tmp_path, *words)
    adapted = ("--stage", "finetune", "--init_from", str(tmp_path / "run"), "--output_dir", str(tmp_path / "adapted"))
    # Another vocabulary than a new one would be: a dry run, too, takes that of the trained model.
    own_table(word=[f"word{place % 9} more" for place in range(ROWS)]).to_csv(tmp_path / "own.csv", index=False)
    assert "dry run: one step" in train(tmp_path, *words, *adapted, "--dry_run", "True")
    train(tmp_path, *words, *adapted)
    # Going on needs no other weights than the checkpoint's, nor does using it.
    again = [word for word in adapted if word not in ("--init_from", str(tmp_path / "run"))]
    said = train(tmp_path, *words, *again, "--resume_from_checkpoint", "auto", "--max_steps", "3")
    assert "going on from" in said
    said_by("evaluate", "--checkpoint", str(tmp_path / "adapted"), "--mixed_precision", "no")


def test_adapters_on_a_given_encoder_alone_are_told_what_is_random(tmp_path: Path) -> None:
    from test_tabular_model import pretrained_folder

    own_table().to_csv(tmp_path / "own.csv", index=False)
    said = train(
        tmp_path, "--data.train", str(tmp_path / "own.csv"), "--data.target", "y", "--stage", "finetune",
        "--model.text_encoder", str(pretrained_folder(tmp_path / "bert")),
    )  # fmt: skip
    assert "warning: stage finetune without --init_from: only the text encoder" in said
