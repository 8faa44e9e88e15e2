"""What the seeds' loops got wrong, by way of Relay's: precision, dropout in validation, accumulation in the loss."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from recipes.language_model import demo
from runner import loop
from runner.assembly import open_run
from runner.config import parse
from runner.evaluation import evaluate
from runner.run import Run

SMALL = (
    "--recipe", "language_model", "--tokenizer.kind", "char", "--model.hidden_size", "16", "--model.num_hidden_layers",
    "1", "--model.num_attention_heads", "2", "--model.intermediate_size", "32", "--data.max_seq_length", "32",
    "--batch_size", "8", "--max_steps", "2", "--logging_steps", "1", "--data.document_separator", "\\n\\n",
    "--data.packing", "document", "--mixed_precision", "no",
)  # fmt: skip


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stories") / "stories.txt"
    file.write_text(demo.stories(60), encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    """Accelerate remembers the precision of the first run of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def opened(folder: Path, stories: Path, *words: str) -> Run:
    folder.mkdir(exist_ok=True)
    flags = [*SMALL, "--data.source", str(stories), "--output_dir", str(folder), "--micro_batch_size", "4", *words]
    return open_run(parse(flags))


class Seen:
    """Stands in for metrics.jsonl."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Keep the loss of a training step."""
        if split == "train":
            self.losses.append(values["loss"])


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_mixed_precision_is_computed_in(precision: str, dtype: torch.dtype, tmp_path: Path, stories: Path) -> None:
    run = opened(tmp_path / "a", stories, "--mixed_precision", precision)
    found = set()
    model: Any = run.bare_model
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, given, made: found.add(made.dtype))
    run.eval_data = []
    loop.train(run)
    assert found == {dtype}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_validation_has_no_dropout_and_training_has(tmp_path: Path, stories: Path) -> None:
    run = opened(tmp_path / "a", stories, "--model.dropout", "0.5")
    scores = [evaluate(run.recipe, run.bare_model, run.eval_data, run.hardware, 4, lambda: False) for _ in range(2)]
    assert scores[0] == scores[1]
    batch = run.recipe.collate([run.train_data[0]])
    one, other = (float(run.recipe.loss(run.bare_model.train(), batch).sum.detach()) for _ in range(2))
    assert one != other


def test_the_logged_loss_does_not_depend_on_accumulation(tmp_path: Path, stories: Path) -> None:
    found = []
    for number, size in enumerate(("1", "2", "8")):
        run = opened(tmp_path / str(number), stories, "--micro_batch_size", size)
        seen = Seen()
        run.metrics, run.eval_data = seen, []  # type: ignore[assignment]
        loop.train(run)
        found.append(seen.losses)
    # Rows are of unlike lengths here: a mean of means would differ.
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] == pytest.approx(found[2], rel=1e-5)
