"""A run's folder that was copied or restored by any tool goes on, and everything reads it.

Run alone: python -m pytest tests/runner/checkpoints/test_copies.py
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.checkpoints.manifest import find_damage
from runner.checkpoints.pointers import resolve_pointer
from runner.checkpoints.state import read_state
from runner.checkpoints.trained import load_trained, model_folder
from runner.commands import average
from tests.launching import metrics, output, train
from tests.toy_recipe import Recipe

POINTERS = ("checkpoint-latest", "checkpoint-best")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps whose best step is not the last one."""
    folder = tmp_path_factory.mktemp("original") / "run"
    train(folder, "--max_steps", "12", "--save_steps", "3", "--eval_steps", "3", "--greater_is_better", "true")
    assert read_state(folder / "checkpoint-12").best_step != 12
    return folder


def with_pointers(copy: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    """A copy in which something else stands in place of each pointer."""

    def make(source: Path, target: Path) -> None:
        shutil.copytree(source, target, symlinks=True)
        for name in POINTERS:
            (target / name).unlink()
            copy(target / name)

    return make


def zipped(source: Path, target: Path) -> None:
    archive = shutil.make_archive(str(target.parent / "packed"), "zip", source)
    shutil.unpack_archive(archive, target)
    assert not (target / "checkpoint-latest").is_symlink()


def tarred(source: Path, target: Path) -> None:
    archive = shutil.make_archive(str(target.parent / "packed"), "tar", source)
    shutil.unpack_archive(archive, target)


def as_git_does(source: Path, target: Path) -> None:
    """Links become small files, where git has no links, and empty folders are left out."""
    with_pointers(lambda link: link.write_text(os.readlink(source / link.name), encoding="utf-8"))(source, target)
    for folder in sorted((path for path in target.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def newest_is_only_a_copied_pointer(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=False)
    shutil.rmtree(target / "checkpoint-12")


def newest_has_a_damaged_twin(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=False)
    (target / "checkpoint-12" / "state.json").unlink()


def checkpoints_are_links_to_another_disk(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)
    (target.parent / "disk").mkdir()
    for folder in target.glob("checkpoint-*[0-9]"):
        folder.rename(target.parent / "disk" / folder.name)
        folder.symlink_to(target.parent / "disk" / folder.name)


COPIES: dict[str, Callable[[Path, Path], object]] = {
    "cp -r": lambda source, target: shutil.copytree(source, target, symlinks=True),
    "cp -rL": lambda source, target: shutil.copytree(source, target, symlinks=False),
    "rsync without links": with_pointers(lambda link: None),
    "zip": zipped,
    "tar": tarred,
    "git": as_git_does,
    "text with a line end": with_pointers(lambda link: link.write_text("checkpoint-12\r\n", encoding="utf-8")),
    "empty files": with_pointers(lambda link: link.touch()),
    "binary files": with_pointers(lambda link: link.write_bytes(b"\xff\xfe\x00")),
    "empty folders": with_pointers(lambda link: link.mkdir()),
    "links to nothing": with_pointers(lambda link: link.symlink_to("checkpoint-99")),
    "links to somewhere else": with_pointers(lambda link: link.symlink_to("/nowhere/at/all/checkpoint-3")),
    "pipes": with_pointers(os.mkfifo),
    "only a copied pointer": newest_is_only_a_copied_pointer,
    "a damaged twin": newest_has_a_damaged_twin,
    "links to another disk": checkpoints_are_links_to_another_disk,
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copied_run_goes_on_and_is_read(original: Path, tmp_path: Path, kind: str) -> None:
    copy = tmp_path / "copy"
    COPIES[kind](original, copy)
    # Read as it is: evaluate, predict and export begin so, and average.
    shutil.rmtree(copy / "final")
    found = model_folder(copy)
    assert find_damage(found) is None
    load_trained(found, Recipe())
    if kind != "a damaged twin":
        average.main(["--checkpoint", str(copy), "--output", str(tmp_path / "mean"), "--best", "2"])
        assert (tmp_path / "mean" / "final").is_dir()
    # Trained on: every later save succeeds, and replaces what stands in place of the pointer.
    train(copy, "--resume_from_checkpoint", "auto", "--max_steps", "15", "--save_steps", "1", "--eval_steps", "3")
    assert "at step 12" in output(copy)
    assert [line["step"] for line in metrics(copy)] == list(range(1, 16))
    latest = copy / "checkpoint-latest"
    assert latest.is_symlink() and resolve_pointer(latest) == copy / "checkpoint-15"
    assert model_folder(copy).name == "final" and (copy / "report.html").is_file()
    assert all(find_damage(copy / f"checkpoint-{step}") is None for step in (3, 13, 14, 15))


def test_a_pointer_to_the_original_leads_to_the_copy(original: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(original, copy, symlinks=True)
    for name in POINTERS:
        target = resolve_pointer(original / name)
        (copy / name).unlink()
        (copy / name).symlink_to(target.resolve())
        assert resolve_pointer(copy / name) == copy / target.name


@pytest.mark.parametrize("broken", ["links to nothing", "empty files", "rsync without links", "empty folders"])
def test_a_broken_best_is_the_one_that_the_newest_names(original: Path, tmp_path: Path, broken: str) -> None:
    COPIES[broken](original, tmp_path / "copy")
    best = read_state(original / "checkpoint-12").best_step
    assert resolve_pointer(tmp_path / "copy" / "checkpoint-best") == tmp_path / "copy" / f"checkpoint-{best}"
