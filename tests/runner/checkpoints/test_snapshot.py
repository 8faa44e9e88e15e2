"""A save that is written while training goes on holds what was saved, and needs copies only where steps are short.

Run alone: python -m pytest tests/runner/checkpoints/test_snapshot.py
"""

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from runner.assembly import open_run
from runner.checkpoints import snapshot
from runner.checkpoints.manifest import find_damage
from runner.checkpoints.saver import Saver
from runner.checkpoints.snapshot import Snapshot
from runner.checkpoints.tensors import model_parts, optimizer_parts, size_of
from runner.config import Config
from runner.errors import CheckpointError
from runner.loop import train
from runner.recipe import Batch, Loss, Recipe
from runner.settings import RunSettings
from tests.launching import same_bits

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]


def tensors_of_all_types() -> dict[str, torch.Tensor]:
    """Large and small ones, one that is empty, one that is not contiguous, and names that sort in another order."""
    generator = torch.Generator().manual_seed(0)
    found = {
        f"{'zyx'[number % 3]}.{number}": torch.randint(0, 2, (300, 7 + number), generator=generator).to(dtype)
        for number, dtype in enumerate(TYPES)
    }
    large = torch.randn(1000, 900, generator=generator)
    return found | {"large": large, "turned": large.T, "empty": torch.zeros(0, 3), "ä": torch.tensor(3.0)}


@pytest.mark.parametrize("lazily", [True, False])
@pytest.mark.parametrize("metadata", [{"format": "pt"}, None])
def test_the_file_is_the_one_that_safetensors_writes(
    tmp_path: Path, lazily: bool, metadata: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "PIECE_BYTES", 100_000)
    tensors = tensors_of_all_types()
    Snapshot(tensors, {}, lazily).write(tmp_path / "ours", metadata)
    save_file({name: each.contiguous() for name, each in tensors.items()}, tmp_path / "theirs", metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("pieces_before_the_update", [0, 1, 3, 7, 12, 100])
def test_an_update_in_the_middle_of_a_write_does_not_change_what_is_written(
    tmp_path: Path, pieces_before_the_update: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "PIECE_BYTES", 100_000)
    tensors = {f"weight.{number}": torch.randn(200, 400) for number in range(4)}
    before = {name: each.clone() for name, each in tensors.items()}
    saved = Snapshot(tensors, {}, lazily=True)
    assert not saved.copies and len(saved.live) == 4
    pieces, copied = saved._pieces, []

    def updated(after: int) -> Iterator[torch.Tensor]:
        for number, piece in enumerate(pieces()):
            if number == after:
                copied.append(size_of(saved.hold()))
                for each in tensors.values():
                    each.add_(1)
            yield piece

    monkeypatch.setattr(saved, "_pieces", lambda: updated(pieces_before_the_update))
    saved.write(tmp_path / "file")
    found = load_file(tmp_path / "file")
    assert all(found[name].equal(value) for name, value in before.items())
    # What is written by then needs no copy.
    wanted = [320_000 * (4 - pieces_before_the_update // 4)] if pieces_before_the_update < 16 else []
    assert copied == wanted


def test_updates_of_another_thread_wait_for_what_is_being_written(tmp_path: Path) -> None:
    tensors = {f"weight.{number}": torch.full((1 << 20,), 1.0) for number in range(20)}
    for _ in range(5):
        saved = Snapshot(tensors, {}, lazily=True)
        writer = threading.Thread(target=saved.write, args=(tmp_path / "file",))
        writer.start()
        saved.hold()
        value = float(tensors["weight.0"][0])
        for each in tensors.values():
            each.add_(1)
        writer.join()
        assert all((found == value).all() for found in load_file(tmp_path / "file").values())


def test_copies_are_made_in_the_memory_that_is_given(tmp_path: Path) -> None:
    tensor = torch.randn(200, 400)
    memory = {"weight": torch.zeros(200, 400)}
    saved = Snapshot({"weight": tensor}, memory, lazily=True)
    saved.hold()
    assert saved.copies["weight"].data_ptr() == memory["weight"].data_ptr() and memory["weight"].equal(tensor)
    saved.write(tmp_path / "file")
    assert not saved.copies and not saved.hold()


@pytest.mark.parametrize("changing", [frozenset({"weight"}), frozenset()])
def test_a_change_without_a_copy_is_named_unless_the_tensor_was_expected_to_change(
    tmp_path: Path, changing: frozenset[str]
) -> None:
    tensor = torch.zeros(200, 400)
    saved = Snapshot({"weight": tensor}, {}, lazily=True, changing=changing)
    tensor.add_(1)
    if changing:
        saved.write(tmp_path / "file")
        assert not load_file(tmp_path / "file")["weight"].any()
        return
    with pytest.raises(CheckpointError, match="weight was changed by other code than the optimiser"):
        saved.hold()
    with pytest.raises(CheckpointError, match="Change it in the recipe's end_step"):
        saved.write(tmp_path / "file")
    assert not saved.hold()


# In a training ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wide(Recipe):
    """A matrix that is large enough to be read where it is, and a buffer that each forward pass changes."""

    moves: str = ""
    """How `loss` changes the matrix by itself: "" for not at all."""

    def data(self, split: str) -> Sequence[torch.Tensor]:
        """Rows of four numbers."""
        return list(torch.arange(256.0).reshape(64, 4) / 256) if split == "train" else ()

    def collate(self, examples: list[torch.Tensor]) -> Batch:
        """Stack the rows."""
        return Batch({"rows": torch.stack(examples)}, weight=len(examples))

    def model(self) -> nn.Module:
        """The matrix and the buffer."""
        model = nn.Linear(4, 40_000)
        model.register_buffer("passes", torch.zeros(40_000))
        return model

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """A sum of squares."""
        layer = cast("nn.Linear", model)
        with torch.no_grad():
            cast("torch.Tensor", layer.passes).add_(1)
            if self.moves == "data":
                layer.weight.data.mul_(0.99)
            elif self.moves == "no_grad":
                layer.weight.mul_(0.99)
        return Loss(layer(batch["rows"]).square().sum())


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
@pytest.mark.parametrize("moves", ["", "data", "no_grad"])
@pytest.mark.parametrize("pause", [0.0, 0.005])
def test_each_checkpoint_of_a_training_has_the_weights_and_moments_of_its_step(
    tmp_path: Path, moves: str, pause: float, optim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "PIECE_BYTES", 100_000)
    pieces, copied = Snapshot._pieces, []

    def slowly(self: Snapshot) -> Iterator[torch.Tensor]:
        for piece in pieces(self):
            yield piece
            time.sleep(pause)

    hold = Snapshot.hold
    monkeypatch.setattr(Snapshot, "_pieces", slowly)
    monkeypatch.setattr(Snapshot, "hold", lambda self: copied.append(hold(self)) or copied[-1])
    settings = RunSettings(
        output_dir=str(tmp_path), max_steps=5, batch_size=4, micro_batch_size=2, mixed_precision="no", eval_steps=0,
        save_steps=1,
    )  # fmt: skip
    run = open_run(Config("wide", None, settings, Wide(moves=moves)))
    if optim == "sgd":
        # An optimiser with other moments than those that memory is taken for.
        run.optimizer = torch.optim.SGD(run.bare_model.parameters(), lr=0.1, momentum=0.9)
    run.saver = Saver(tmp_path, "recipe: toy", tmp_path / "none", None, True)
    run.saver.watch(run)
    wanted: list[dict[str, torch.Tensor]] = []

    def note(step: int) -> None:
        parts = model_parts(run.bare_model) | optimizer_parts(run.bare_model, run.optimizer)
        wanted.append({name: tensor.clone() for name, tensor in parts.items()})

    run.progress.advance = note  # type: ignore[method-assign]
    train(run)
    assert run.saver.is_lazy == (moves == "")
    for step, tensors in enumerate(wanted, 1):
        folder = tmp_path / f"checkpoint-{step}"
        found = load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")
        assert find_damage(folder) is None and same_bits(found, tensors), step
    # Nothing is copied at an update where the recipe changes weights by itself: it was copied at the save.
    assert not (moves and any(copied)) and len(copied) == 8
    if pause and not moves:
        assert any(copied)


def test_memory_of_copies_is_taken_once(tmp_path: Path) -> None:
    settings = RunSettings(output_dir=str(tmp_path), batch_size=4, micro_batch_size=2, mixed_precision="no")
    run = open_run(Config("wide", None, settings, Wide()))
    saver = Saver(tmp_path, "recipe: toy", tmp_path / "none", None, True)
    # The copy of a short step, which a save has made before the memory is taken.
    made = torch.zeros_like(run.bare_model.weight)  # type: ignore[arg-type]
    saver.memory[0]["weight"] = made
    saver.reserve(run)
    assert saver.memory[0]["weight"] is made
    assert set(saver.memory[0]) == {"weight", "bias"} and len(saver.memory[1]) == 4
