"""A full or broken disk: one clear message, the last complete checkpoint, no draft.

Run alone: python -m pytest tests/runner/checkpoints/test_disk.py
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

from runner.checkpoints import disk, pointers
from runner.checkpoints.disk import describe, error_number, naming_full_disks, writing
from runner.checkpoints.folders import newest_checkpoint, write_checkpoint
from runner.checkpoints.pointers import write_pointer
from runner.checkpoints.state import State
from runner.errors import DataError, DiskError
from runner.log import Ledger, Metrics
from runner.trials import Trial, free_port
from tests.launching import REPOSITORY, SHORT, train


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def faults(tmp_path: Path) -> dict[str, str]:
    """The variables that let calls fail in a training (tests/torture/faults.c)."""
    library, compiler = tmp_path / "faults.so", shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source = REPOSITORY / "tests" / "torture" / "faults.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "FAULT_AFTER": "0", "FAULT_MARK": str(tmp_path / "mark")}


def drafts(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if ".draft" in path.name]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_fills_up_keeps_the_last_checkpoint(small_disk: Path, tmp_path: Path, processes: int) -> None:
    run = small_disk / "run"
    # Some 130 kB a checkpoint: the disk is full after a few of them.
    words = [*SHORT, "--output_dir", str(run), "--model.hidden_size", "1000", "--save_steps", "2"]
    trial = Trial(words, processes, tmp_path / "log")
    assert trial.wait(120) == [2] * processes, trial.output()
    message = trial.output()[trial.output().index("error: ") :]
    assert "Traceback" not in trial.output() and len(message.strip().splitlines()) == 3, message
    assert "cannot be written into" in message and "the disk is full" in message and "free)" in message
    found, skipped = newest_checkpoint(run)
    assert found is not None and not skipped and not drafts(run)
    # With more room, the same command goes on.
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert (
        Trial([*words, "--resume_from_checkpoint", "auto"], processes, tmp_path / "again").wait(120) == [0] * processes
    )


def test_no_room_for_the_final_model(small_disk: Path, tmp_path: Path) -> None:
    run = small_disk / "run"
    words = [*SHORT, "--output_dir", str(run), "--model.hidden_size", "8000", "--save_steps", "0"]
    trial = Trial(words, 1, tmp_path / "log")
    assert trial.wait(120) == [2], trial.output()
    assert "MB needed" in trial.output() or "kB needed" in trial.output()
    assert "Traceback" not in trial.output() and not drafts(run)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "reports an error"),
        (errno.EROFS, "read-only"),
        (errno.ENOENT, "gone"),
        (errno.ENOTDIR, "a file is where a folder should be"),
    ],
)
def test_what_is_wrong_is_put_into_words(number: int, words: str, tmp_path: Path) -> None:
    for error in (OSError(number, "no"), SafetensorError(f"I/O error: no (os error {number})")):
        with pytest.raises(DiskError) as caught, writing("checkpoint-5", tmp_path, 3_000_000):
            raise error
        message = str(caught.value)
        assert message.startswith(f"checkpoint-5 cannot be written into {tmp_path}: ") and words in message
        assert "3.0 MB needed, " in message and " free)" in message and message.count("\n") == 2


def test_what_has_nothing_to_do_with_the_disk_stays_as_it_is(tmp_path: Path) -> None:
    for error in (ValueError("no"), DataError("no")):
        with pytest.raises(type(error)), writing("x", tmp_path), naming_full_disks(tmp_path):
            raise error
    # A file of the user's that is missing is not the run's disk.
    with pytest.raises(FileNotFoundError), naming_full_disks(tmp_path):
        (tmp_path / "data.csv").read_text()
    with pytest.raises(DiskError, match="the disk is full"), naming_full_disks(tmp_path):
        raise OSError(errno.ENOSPC, "no", "assets/tokenizer.json")
    assert error_number(OSError("no number")) == errno.EIO
    assert "nothing is there" in describe("x", Path("relative/nowhere"), errno.ENOENT, 0) or disk.REASONS


@pytest.mark.parametrize("where", ["a file", "gone"])
def test_a_run_whose_folder_changes_under_it(tmp_path: Path, where: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    metrics, ledger = Metrics(run / "metrics.jsonl", 0), Ledger(run / "ledger.jsonl", 0, {})
    ledger.add(0, 1)
    for path in run.iterdir():
        path.unlink()
    run.rmdir()
    if where == "a file":
        run.write_text("", encoding="utf-8")
    for write in (lambda: metrics.write(1, "train", {"loss": 1.0}), ledger.flush):
        with pytest.raises(DiskError, match="gone" if where == "gone" else "a file is where"):
            write()


def end_of_two(words: list[str], log_file: Path, environment: dict[str, str]) -> list[int]:
    """The exit statuses of a training of two processes.

    Not through Trial: its processes are forked from one that has not loaded the library of `faults`.
    """
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "runner", "train", *words]
    with log_file.open("wb") as log:
        processes = [
            subprocess.Popen(
                command, cwd=REPOSITORY, stdout=log, stderr=log,
                env={**os.environ, **environment, **group, "RANK": rank, "LOCAL_RANK": rank},
            )
            for rank in ("0", "1")
        ]  # fmt: skip
        try:
            return [process.wait(120) for process in processes]
        finally:
            for process in processes:
                process.kill()


@pytest.mark.parametrize("file", [".assets", "config.yaml"])
def test_a_disk_that_breaks_at_the_start_ends_all(file: str, tmp_path: Path, faults: dict[str, str]) -> None:
    run = tmp_path / "run"
    fault = {**faults, "FAULT_CALL": "open", "FAULT_PATH": f"run/{file}", "FAULT_ERRNO": str(errno.EIO)}
    statuses = end_of_two([*SHORT, "--output_dir", str(run)], tmp_path / "log", fault)
    printed = (tmp_path / "log").read_text(encoding="utf-8")
    assert statuses == [2, 2] and "Traceback" not in printed and printed.count("error: ") == 1, printed
    assert f"cannot be written into {run}: the disk reports an error" in printed


@pytest.mark.parametrize(
    ("call", "file"), [("rename", "model.shard-1"), ("rename", "optimizer.shard-0"), ("open", "state.json")]
)
def test_a_process_that_cannot_write_its_shards_ends_all(
    call: str, file: str, tmp_path: Path, faults: dict[str, str]
) -> None:
    run = tmp_path / "run"
    words = [*SHORT, "--output_dir", str(run), "--save_steps", "2"]
    # All of the first checkpoint can be written.
    fault = {**faults, "FAULT_CALL": call, "FAULT_PATH": f"-4-shards/{file}", "FAULT_ERRNO": str(errno.ENOSPC)}
    statuses = end_of_two(words, tmp_path / "log", {**fault, "ACCELERATE_USE_FSDP": "true"})
    printed = (tmp_path / "log").read_text(encoding="utf-8")
    assert statuses == [2, 2], printed
    message = printed[printed.index("error: ") :]
    assert "Traceback" not in printed and message.count("error: ") == 1, message
    assert f"checkpoint-4 cannot be written into {run}: the disk is full" in message
    found, skipped = newest_checkpoint(run)
    assert found == run / "checkpoint-2" and not skipped and not drafts(run)


@pytest.mark.parametrize("link", [False, True])
def test_a_pointer_that_cannot_be_written_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    def full(*arguments: object, **others: object) -> None:
        raise OSError(errno.ENOSPC, "no")

    (tmp_path / "checkpoint-5").mkdir()
    if not link:
        monkeypatch.setattr(Path, "symlink_to", full)
    monkeypatch.setattr(pointers.os, "replace", full)
    with pytest.raises(OSError):
        write_pointer(tmp_path / "checkpoint-latest", tmp_path / "checkpoint-5")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_draft_that_cannot_be_completed_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from runner.checkpoints import folders

    def full(*arguments: object, **others: object) -> None:
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(folders, "write_manifest", full)
    with pytest.raises(OSError):
        write_checkpoint(tmp_path, {"a": torch.zeros(3)}, {}, State(step=5), {}, None)
    assert not list(tmp_path.iterdir())


def test_a_folder_where_a_checkpoint_is_a_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint-5").write_text("", encoding="utf-8")
    trial = Trial([*SHORT, "--output_dir", str(run), "--resume_from_checkpoint", "auto"], 1, tmp_path / "log")
    assert trial.wait(120) == [2] and "Traceback" not in trial.output(), trial.output()
    (run / "checkpoint-5").unlink()
    train(run, "--resume_from_checkpoint", "auto")
