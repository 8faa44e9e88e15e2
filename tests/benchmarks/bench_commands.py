"""How long each command takes, from its start to its end, as the table of docs/durations.md.

CPU seconds are those of all its processes. They grow little where other programs use the cores too.

python -m pytest tests/benchmarks/bench_commands.py -s -o 'python_files=bench_*.py'
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.launching import REPOSITORY

RUN = "runs/nano"
COMMANDS = [
    "relay --help",
    "relay train --recipe text2sql --help",
    "relay recipes",
    "relay doctor",
    "relay new my_task",
    "relay plan --recipe text2sql --preset small-2b",
    "relay check --recipe text2sql --preset nano",
    "relay find-lr --recipe text2sql --preset nano --batch_size 8 --steps 60",
    f"relay train --recipe text2sql --preset nano --max_steps 100 --eval_steps 50 --save_steps 50"
    f" --max_eval_examples 8 --output_dir {RUN}",
    f"relay launch --processes 2 --recipe text2sql --preset nano --max_steps 100 --eval_steps 0"
    f" --max_eval_examples 8 --output_dir {RUN}-2",
    f"relay predict {RUN} --question 'show the crime books published after 2010'",
    f"relay evaluate {RUN} --split test --max_eval_examples 16",
    f"relay average {RUN} --best 2 --output {RUN}-mean",
    f"relay export {RUN} --output exported",
    f"relay report {RUN}",
    f"relay checkpoints {RUN}",
]


def cpu_seconds_of_children() -> float:
    """The CPU time of the processes that have ended, in user and in system mode."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_how_long_each_command_takes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment["RELAY_CACHE"] = str(tmp_path / "cache")
    (tmp_path / "relay").write_text(f'#!/bin/sh\nexec {sys.executable} -m runner "$@"\n', encoding="utf-8")
    (tmp_path / "relay").chmod(0o755)
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    print(f"\nload {os.getloadavg()[0]:.1f} at the start, {os.cpu_count()} cores, one thread per process")
    print("| command | seconds | CPU seconds |\n| --- | --- | --- |")
    for command in COMMANDS:
        start, before = time.perf_counter(), cpu_seconds_of_children()
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        assert done.returncode == 0, done.stdout + done.stderr
        print(f"| `{command}` | {seconds:.1f} | {cpu_seconds_of_children() - before:.1f} |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end")
