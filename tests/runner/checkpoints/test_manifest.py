"""A checkpoint whose content cannot be is named and passed over, even where its manifest agrees with it.

Run alone: python -m pytest tests/runner/checkpoints/test_manifest.py
"""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.checkpoints import folders
from runner.checkpoints.final import save_final
from runner.checkpoints.folders import list_checkpoints, newest_checkpoint, write_checkpoint
from runner.checkpoints.manifest import MANIFEST, find_damage, write_manifest
from runner.checkpoints.state import State
from runner.checkpoints.tensors import load_model
from runner.checkpoints.trained import find_weights
from runner.errors import CheckpointError
from tests.launching import mistaken, output, train
from tests.toy_recipe import Recipe


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints 5 and 10."""
    folder = tmp_path_factory.mktemp("original") / "run"
    train(folder, "--max_steps", "10", "--eval_steps", "0")
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def of_state(**changes: object) -> Callable[[Path], None]:
    """Other values in state.json; ... removes one."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8")) | changes
        content = {name: value for name, value in content.items() if value is not ...}
        (folder / "state.json").write_text(json.dumps(content), encoding="utf-8")

    return change


def of_tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file)

    return make


def of_header(**changes: object) -> Callable[[Path], None]:
    """Another entry for every tensor in the header of the weights."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        for name in header.keys() - {"__metadata__"}:
            header[name] |= changes
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        of_state(layout=...)(folder)

    return change


def as_integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {name: value.round().long() for name, value in tensors.items()}


def half(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors)[::2]:
        del tensors[name]


def without_second_moments(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("exp_avg_sq")]:
        del tensors[name]


BOMB = "recipe: x\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n" for before, after in itertools.pairwise("abcdefghi")
)


def of_settings(text: str) -> Callable[[Path], object]:
    """A change that replaces the settings of a checkpoint."""
    return lambda folder: (folder / "config.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")


SEALED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another step": (of_state(step=7), "state.json is of step 7, not 10"),
    "no step": (of_state(step=...), "state.json has no step"),
    "a step in words": (of_state(step="ten"), "state.json has a step of 'ten'"),
    "a step that is true": (of_state(step=True), "state.json has a step of 'True'"),
    "a fraction of a batch": (of_state(batch_size=16.5), "state.json has a batch_size of '16.5'"),
    "no batch at all": (of_state(batch_size=0), "batch_size 0"),
    "cursors that are a list": (of_state(cursors=[1]), "state.json has a cursors of"),
    "cursors of rows that have an index": (of_state(cursors={"0": 5}), "state.json has cursors"),
    "a stream without cursors": (of_state(num_examples=0), "cursors of 0 lanes, not of 4"),
    "a stream that lacks a lane": (of_state(num_examples=0, cursors={"0": 5, "1": 5, "3": 5}), "cursors of 3 lanes"),
    "a lane too many": (of_state(num_examples=0, cursors=dict.fromkeys("01234", 5)), "cursors of 5 lanes"),
    "a lane below none": (
        of_state(num_examples=0, cursors={"0": 5, "1": 5, "2": 5, "-1": 5}),
        "state.json has no cursor of lane 3",
    ),
    "a cursor that is nothing": (of_state(num_examples=0, cursors=dict.fromkeys("0123")), "no cursor of lane 0"),
    "a best score in words": (of_state(best_score="good"), "state.json has a best_score of 'good'"),
    "a number in place of files": (of_state(data={"train": 5}), "state.json has a data of"),
    "a data file without a hash": (of_state(data={"train": [["a.csv"]]}), "data files without a name or a hash"),
    "a hash that is a list": (of_state(data={"train": [["a.csv", []]]}), "state.json has a data of"),
    "changes without words": (of_state(data_changes=[[5]]), "state.json has a data_changes of"),
    "a tracker's id that is a number": (of_state(trackers={"wandb": 5}), "state.json has a trackers of"),
    "a loss scale in words": (of_state(scaler={"scale": "large"}), "state.json has a scaler of"),
    "an example without an id": (of_state(excluded=[{}]), "state.json has a excluded of"),
    "no part of a lane": (of_state(parts=0), "state.json has a parts of 0"),
    "examples below none": (of_state(examples_seen=-1), "state.json has a examples_seen of -1"),
    "a best step to come": (of_state(best_step=11), "best_step of 11, after its step 10"),
    "a state that is a list": (lambda folder: (folder / "state.json").write_text("[]"), "state.json holds no state"),
    "no JSON": (lambda folder: (folder / "state.json").write_text("{"), "state.json is not JSON"),
    "deep nesting": (lambda folder: (folder / "state.json").write_text("[" * 100_000), "state.json is not JSON"),
    "a state that is missing": (lambda folder: (folder / "state.json").unlink(), "does not list state.json"),
    "no settings": (lambda folder: (folder / "config.yaml").unlink(), "does not list config.yaml"),
    "settings of nothing": (of_settings(""), "config.yaml names no recipe"),
    "settings in a list": (of_settings("[recipe]"), "config.yaml holds a list"),
    "settings cut short": (of_settings("recipe: [x"), "config.yaml cannot be read as YAML"),
    "settings in another encoding": (of_settings("recipe: \udcff"), "config.yaml cannot be read as YAML"),
    "settings that call": (of_settings("recipe: !!python/object/apply:os.system ['x']"), "settings have no tags"),
    "settings that multiply": (of_settings(BOMB), "config.yaml holds more than 10,000 values"),
    "settings nested deeply": (of_settings("recipe: " + "[" * 3000 + "]" * 3000), "config.yaml is nested too deeply"),
    "no optimiser": (lambda folder: (folder / "optimizer.safetensors").unlink(), "does not list optimizer.safetensors"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "does not list model.safetensors"),
    "integer weights": (of_tensors("model.safetensors", as_integers), "I64"),
    "integer moments": (of_tensors("optimizer.safetensors", as_integers), "I64"),
    "half an optimiser": (of_tensors("optimizer.safetensors", half), "optimizer.safetensors"),
    "no second moments": (of_tensors("optimizer.safetensors", without_second_moments), "lacks a part of the state"),
    "an empty optimiser": (of_tensors("optimizer.safetensors", dict.clear), "the tensors are not those"),
    "a weight of another shape": (
        of_tensors("model.safetensors", lambda tensors: tensors.update({"0.bias": torch.zeros(3)})),
        "another shape",
    ),
    "an infinite shape": (of_header(shape=[float("inf"), 4]), "is not a safetensors file"),
    "a shape in words": (of_header(shape="34"), "is not a safetensors file"),
    "a place in words": (of_header(data_offsets=[0, "x"]), "is not a safetensors file"),
    "a place in a list": (of_header(data_offsets=[0, []]), "is not a safetensors file"),
    "an unknown dtype": (of_header(dtype="F99"), "is not a safetensors file"),
    "a cut file": (
        lambda folder: os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2),
        "model.safetensors is not a safetensors file",
    ),
    "no safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04pickle" * 9),
        "model.safetensors is not a safetensors file",
    ),
}


def newest_is_skipped(run: Path, wanted: str) -> None:
    found, skipped = newest_checkpoint(run)
    assert found is not None and found.name == "checkpoint-5"
    assert len(skipped) == 1 and wanted in skipped[0], skipped


@pytest.mark.parametrize("kind", SEALED)
def test_sealed_but_wrong_content_is_named_and_the_one_before_is_used(run: Path, kind: str) -> None:
    change, wanted = SEALED[kind]
    change(run / "checkpoint-10")
    write_manifest(run / "checkpoint-10")
    newest_is_skipped(run, wanted)


@pytest.mark.parametrize("kind", ["integer weights", "half an optimiser", "an empty optimiser"])
def test_a_checkpoint_of_an_older_version_is_checked_as_far_as_it_can(run: Path, kind: str) -> None:
    change, _ = SEALED[kind]
    of_state(layout=...)(run / "checkpoint-10")
    write_manifest(run / "checkpoint-10")
    assert find_damage(run / "checkpoint-10") is None
    change(run / "checkpoint-10")
    write_manifest(run / "checkpoint-10")
    # An optimiser without any state is that of a run that has not taken a step.
    assert (find_damage(run / "checkpoint-10") is None) == (kind == "an empty optimiser")


def manifest_of(content: object) -> Callable[[Path], object]:
    return lambda folder: (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def outside(folder: Path) -> None:
    """A manifest that lists a file of somebody else."""
    from runner.checkpoints import manifest

    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    content["../../secret"] = {"size": 1, "xxh3_128": ""}
    (folder / MANIFEST).write_text(manifest._manifest(content), encoding="utf-8")


def empty(folder: Path) -> None:
    from runner.checkpoints import manifest

    (folder / MANIFEST).write_text(manifest._manifest({}), encoding="utf-8")


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


UNSEALED: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty manifest": (empty, "does not list state.json"),
    "a manifest of nothing": (lambda folder: (folder / MANIFEST).write_text(""), f"{MANIFEST} is damaged"),
    "a manifest that is a list": (manifest_of([]), f"{MANIFEST} is damaged"),
    "files that are a list": (manifest_of({"schema_version": 1, "files": ["model.safetensors"]}), "is damaged"),
    "a manifest of another folder": (outside, f"{MANIFEST} is damaged"),
    "an unlisted file": (lambda folder: (folder / "model.shard-0.safetensors").touch(), "is not listed in"),
    "an unlisted file below": (lambda folder: (folder / "assets" / "more.json").touch(), "assets/more.json is not"),
    "an unlisted pipe": (lambda folder: os.mkfifo(folder / "model.shard-1.safetensors"), "is not listed in"),
    "a pipe for the weights": (instead("model.safetensors", os.mkfifo), "model.safetensors is not a regular file"),
    "a pipe for the manifest": (instead(MANIFEST, os.mkfifo), f"{MANIFEST} is not a regular file"),
    "a pipe for the state": (instead("state.json", os.mkfifo), "state.json is not a regular file"),
    "a device": (instead("state.json", lambda path: path.symlink_to("/dev/zero")), "is not a regular file"),
    "a folder for a file": (instead("config.yaml", Path.mkdir), "config.yaml is not a regular file"),
    "a link to itself": (instead("config.yaml", lambda path: path.symlink_to(path)), "config.yaml is not a regular"),
}


@pytest.mark.parametrize("kind", UNSEALED)
def test_what_is_no_checkpoint_is_named_and_the_one_before_is_used(run: Path, kind: str) -> None:
    change, wanted = UNSEALED[kind]
    change(run / "checkpoint-10")
    newest_is_skipped(run, wanted)


def test_what_file_managers_leave_is_no_damage(run: Path) -> None:
    for name in (".DS_Store", "._model.safetensors", "Thumbs.db", ".nfs0000001"):
        (run / "checkpoint-10" / name).touch()
    assert find_damage(run / "checkpoint-10") is None


@pytest.mark.parametrize("kind", ["integer weights", "a step in words", "a pipe for the weights"])
def test_a_training_passes_over_it_without_a_traceback(run: Path, kind: str) -> None:
    change, wanted = (SEALED | UNSEALED)[kind]
    change(run / "checkpoint-10")
    if kind in SEALED:
        write_manifest(run / "checkpoint-10")
    explicit = mistaken(run, "--resume_from_checkpoint", str(run / "checkpoint-10"))
    assert wanted in explicit and "Traceback" not in explicit
    train(run, "--resume_from_checkpoint", "auto", "--max_steps", "11")
    assert "at step 5" in output(run) and wanted in output(run)


def test_pipes_in_place_of_the_runs_own_files_do_not_hold_it_up(run: Path) -> None:
    for name in ("metrics.jsonl", "ledger.jsonl", "checkpoint-latest"):
        (run / name).unlink()
        os.mkfifo(run / name)
    train(run, "--resume_from_checkpoint", "auto", "--max_steps", "11")
    assert "at step 10" in output(run) and (run / "ledger.jsonl").is_file()


def test_integers_are_not_loaded_as_weights() -> None:
    model: Any = Recipe().model()
    tensors = {name: value.long() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="0.weight is int64 there, float32 here"):
        load_model(model, tensors, "somewhere")


# Permissions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_every_file_of_a_checkpoint_follows_the_umask(tmp_path: Path, umask: int) -> None:
    model: Any = Recipe().model()
    tensors = dict(model.state_dict())
    assets = tmp_path / "fitted"
    assets.mkdir()
    save_file(tensors, assets / "fitted.safetensors")
    before = os.umask(umask)
    try:
        write_checkpoint(
            tmp_path,
            tensors,
            {},
            State(step=1, batch_size=1, micro_batch_size=1, num_examples=1),
            {"config.yaml": "recipe: toy"},
            assets,
        )
        save_final(tmp_path, model, tensors, assets, {"config.yaml": ""})
    finally:
        os.umask(before)
    for folder in (tmp_path / "checkpoint-1", tmp_path / "final"):
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
        assert modes == dict.fromkeys(modes, 0o666 & ~umask), modes
        assert len(modes) >= 4 and find_damage(folder) is None


def forbidden(path: Path) -> Any:
    raise PermissionError(13, "Permission denied", str(path))


def test_a_folder_that_cannot_be_read_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(CheckpointError, match=f"{run} cannot be read: you have no permission"):
        find_weights(run)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_text", lambda path, **options: forbidden(path))
    assert find_damage(run / "checkpoint-10") == f"{MANIFEST} cannot be read: Permission denied"
    monkeypatch.undo()
    monkeypatch.setattr(folders.Path, "iterdir", forbidden)
    with pytest.raises(CheckpointError, match=f"{run} cannot be read: Permission denied"):
        list_checkpoints(run)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_colleagues_folder_is_named(run: Path) -> None:
    (run / "checkpoint-10").chmod(0)
    try:
        said = mistaken(run, "--resume_from_checkpoint", str(run / "checkpoint-10"))
    finally:
        (run / "checkpoint-10").chmod(0o755)
    assert "cannot be read: Permission denied" in said
