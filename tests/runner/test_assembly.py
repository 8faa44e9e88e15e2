"""Putting a run together: what is left out, which batch, and recipes of version 0.1.

Run alone: python -m pytest tests/runner/test_assembly.py
"""

import json
from pathlib import Path

import pytest

from runner.errors import ConfigError
from runner.lanes import resolve_batch
from runner.settings import RunSettings
from tests.launching import REPOSITORY, TOY, mistaken, output, same_bits, train, weights


@pytest.mark.parametrize(
    ("settings", "explicit", "processes", "wanted"),
    [
        ({}, "", 1, (32, 8)),
        ({"batch_size": 16}, "batch_size", 2, (16, 8)),
        # A batch below the preset's micro-batch wins; one that was typed does not give way.
        ({"batch_size": 4}, "batch_size", 1, (4, 4)),
        ({"batch_size": 4, "micro_batch_size": 8}, "batch_size micro_batch_size", 1, (4, 8)),
        # Accumulation that was typed wins over a preset's batch, and counts the processes.
        ({"batch_size": 64, "gradient_accumulation_steps": 3}, "gradient_accumulation_steps", 2, (48, 8)),
        ({"gradient_accumulation_steps": 3}, "", 2, (48, 8)),
        # A batch that was typed wins over a preset's accumulation.
        ({"batch_size": 64, "gradient_accumulation_steps": 3}, "batch_size", 2, (64, 8)),
        ({"batch_size": 48, "gradient_accumulation_steps": 3}, "batch_size gradient_accumulation_steps", 2, (48, 8)),
    ],
)
def test_the_batch_is_resolved_in_one_place(
    settings: dict[str, int], explicit: str, processes: int, wanted: tuple[int, int]
) -> None:
    assert resolve_batch(RunSettings(**settings), frozenset(explicit.split()), processes) == wanted  # type: ignore[arg-type]


def test_a_batch_that_contradicts_the_accumulation_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size 40 is not micro_batch_size 8 x gradient_accumulation_steps 3"):
        resolve_batch(
            RunSettings(batch_size=40, gradient_accumulation_steps=3),
            frozenset({"batch_size", "gradient_accumulation_steps"}),
            2,
        )


def test_exclusions_of_a_stream_are_refused(tmp_path: Path) -> None:
    said = mistaken(tmp_path / "run", "--streamed", "true", "--exclude_examples", "3,4")
    assert "a stream has no numbers" in said


@pytest.mark.parametrize("numbers", ["203", "-1", "5,9999", "x", "1.5"])
def test_exclusions_that_name_no_example_are_refused(numbers: str, tmp_path: Path) -> None:
    assert "error: exclude_examples" in mistaken(tmp_path / "run", f"--exclude_examples={numbers}")


def test_a_long_list_of_exclusions_is_no_file_name(tmp_path: Path) -> None:
    train(tmp_path / "run", "--max_steps", "2", "--exclude_examples", ",".join(map(str, range(190))))
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "state.json").read_text())
    assert len(state["excluded"]) == 190


def test_a_resumed_run_adds_exclusions_to_those_it_has(tmp_path: Path) -> None:
    train(tmp_path / "run", "--max_steps", "4", "--exclude_examples", "1,2")
    more = ("--resume_from_checkpoint", "auto", "--exclude_examples", "2,7")
    train(tmp_path / "run", "--max_steps", "8", *more)
    state = json.loads((tmp_path / "run" / "checkpoint-8" / "state.json").read_text())
    assert set(state["excluded"]) == {1, 2, 7}


def test_a_recipe_of_version_0_1_trains_to_the_same_bits_and_says_what_to_change(tmp_path: Path) -> None:
    train(tmp_path / "new", "--max_steps", "6")
    train(
        tmp_path / "old", "--recipe", str(REPOSITORY / "tests" / "golden" / "0.1.0" / "recipe.py"), "--max_steps", "6"
    )
    assert same_bits(weights(tmp_path / "old"), weights(tmp_path / "new"))
    printed = output(tmp_path / "old")
    assert printed.count("has no base class: write class Recipe(runner.recipe.Recipe)") == 1
    assert printed.count("leave the weight out") == 1
    # The helper of the tests gives some flags twice.
    others = [line for line in output(tmp_path / "new").splitlines() if "came twice" not in line]
    assert not [line for line in others if "warning" in line]


def test_what_a_fresh_start_says_is_asked_once(tmp_path: Path) -> None:
    text = Path(TOY).read_text(encoding="utf-8")
    recipe = tmp_path / "remarking.py"
    more = (
        '    def fresh_start(self):\n        print("asked")\n        return "these weights are fresh"\n\n    def data('
    )
    recipe.write_text(text.replace("    def data(", more, 1), encoding="utf-8")
    train(tmp_path / "run", "--recipe", str(recipe), "--max_steps", "1")
    assert output(tmp_path / "run").splitlines().count("asked") == 1
    assert output(tmp_path / "run").count("warning: these weights are fresh") == 1


def test_a_damaged_checkpoint_gives_no_weights_to_begin_from(tmp_path: Path) -> None:
    train(tmp_path / "run", "--max_steps", "2")
    path = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = mistaken(tmp_path / "next", "--init_from", str(tmp_path / "run"))
    assert "model.safetensors is damaged" in said


BUFFERED = """
import dataclasses

import torch

from tests.toy_recipe import Recipe as Toy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Toy):
    persistent: bool = False

    def model(self):
        model = super().model()
        model.register_buffer("buffer", torch.zeros(1), persistent=self.persistent)
        return model

    def loss(self, model, batch):
        if model.training:
            print("buffers are sent:", model.broadcast_buffers, flush=True)
        return super().loss(model, batch)
"""


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_that_no_checkpoint_holds_are_not_sent_at_each_step(persistent: bool, tmp_path: Path) -> None:
    (tmp_path / "buffered.py").write_text(BUFFERED, encoding="utf-8")
    flags = ("--recipe", str(tmp_path / "buffered.py"), "--max_steps", "2", "--persistent", str(persistent))
    said = train(tmp_path / "run", *flags, processes=2)
    assert f"buffers are sent: {persistent}" in said and f"buffers are sent: {not persistent}" not in said
    assert "Warning" not in said
