"""What `torchrun --max-restarts` does: all processes start again, with the store of the attempt before.

Run alone: python -m pytest tests/runner/test_restarts.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.launching import SHORT, metrics

LATE = "import sys, time; time.sleep({seconds}); from runner.__main__ import main; sys.exit(main(sys.argv[1:]))"
"""A process of the training that comes so many seconds late."""


def attempt(port: int, number: int, folder: Path, late_rank: int, *flags: str) -> list[tuple[int, str]]:
    """Status and output of two processes that train, started as torchrun starts attempt `number`."""
    words = [
        "train",
        *SHORT,
        "--output_dir",
        str(folder),
        "--resume_from_checkpoint",
        "auto",
        "--ddp_timeout",
        "20",
        *flags,
    ]
    processes = []
    for rank in range(2):
        variables = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "TORCHELASTIC_RESTART_COUNT": number, "TORCHELASTIC_USE_AGENT_STORE": True,
            "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        code = LATE.format(seconds=6 if rank == late_rank else 0)
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *words], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    outputs = [each.communicate(timeout=200)[0] for each in processes]
    return [(each.returncode, output) for each, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize("late_rank", [0, 1])
def test_a_later_attempt_does_not_read_what_an_earlier_one_left_in_the_store(tmp_path: Path, late_rank: int) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    # The first attempt ends with an error that one process alone meets and announces to the other.
    first = attempt(store.port, 0, tmp_path / "broken", -1, "--broken_process", "1")
    assert [status for status, _ in first] == [2, 2], first
    again = attempt(store.port, 1, tmp_path / "run", late_rank)
    assert [status for status, _ in again] == [0, 0], again
    assert len(metrics(tmp_path / "run")) == 24
