"""`relay doctor`: what hardware is here, what would be used, and whether a training could run through."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import RelayError
from runner.parts.installation import DISTRIBUTIONS, is_installed, pip_line

if TYPE_CHECKING:
    import torch

    from runner.config import Config
    from runner.preflight import Check

USAGE = """usage: relay doctor [RECIPE] [--flag value ...]

Shows the hardware, the versions, and the number format that a training here would use, with a measurement. It starts
two processes to see whether they find each other, and lists the extras that are not installed. This takes about ten
seconds. With a recipe and the flags of a training, it also checks what `relay train` checks before it reads data:
packages, the tracker, the metric, the batch, the number format, the data files, the output folder with its space, the
checkpoint to start from, and the bucket. Exit status: 0, or 2 where something has to be mended."""

EXTRAS = {
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "azure": ("adlfs",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "sweep": ("optuna",),
    "tabular": ("charset_normalizer", "openpyxl", "pandas", "pyarrow", "sklearn", "scipy", "threadpoolctl"),
    "microbiome": ("biom", "h5py", "pandas", "skbio", "sklearn", "scipy"),
}
"""The extras of pyproject.toml, and what they bring, by the names of import."""

SIDES = {"a small model": 128, "a large model": 1024}
"""Sides of the matrices that the number formats are timed with."""

PAIR = """
import datetime, os, torch
import torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
total = torch.ones(3)
dist.all_reduce(total)
dist.barrier()
# At once: threads of the process group that are still there would end the process with an error of their own.
os._exit(0 if total.tolist() == [2.0] * 3 else 1)
"""
"""What each of the two processes runs."""


def main(arguments: list[str]) -> int:
    """Print versions, devices, the choices that a training here would make, and the checks of that training."""
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return 0
    import torch

    from runner.hardware import best_device_type, choose_precision, device_name

    kind = best_device_type()
    precision, reason = choose_precision("auto", kind)
    print(f"python        {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "accelerate", "transformers", "datasets", "peft", "safetensors"):
        print(f"{package:13} {importlib.metadata.version(package)}")
    print(f"device        {device_name(torch.device(kind))}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    print(f"GPUs          {gpus}")
    print(f"memory        {memory_in_words(gpus)}")
    print(f"disk          {shutil.disk_usage(Path.cwd()).free / 1e9:,.1f} GB free in this folder")
    is_open = kind == "cpu" and precision == "bf16"
    also = "; auto measures at the start of a training whether it is faster" if is_open else ""
    print(f"precision     {precision}: {reason}{also}")
    for model, side in SIDES.items():
        timed = seconds_of_products(torch.device(kind), formats(kind), side)
        print(f"              {speed_in_words(timed, precision, side, model)}", flush=True)
    wrong = wrong_processes()
    if wrong is None:
        print(f"processes     two start and add up numbers; {how_to_launch(gpus)}")
    else:
        print("processes     WRONG  two processes do not find each other")
        for line in wrong.splitlines():
            print(f"              {line}")
    missing = missing_extras()
    print(f"extras        {extras_in_words(missing)}")
    for extra in missing:
        print(f"              {extra}: {pip_line(extra)}")
    trained = check_training(arguments) if arguments else 0
    return trained or (2 if wrong is not None else 0)


def memory_in_words(gpus: int) -> str:
    """The memory of this machine and of its GPUs."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    words = [f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free, {os.cpu_count()} CPU cores"]
    for number in range(gpus):
        free, total = torch.cuda.mem_get_info(number)
        words.append(f"GPU {number}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    return "; ".join(words)


def formats(kind: str) -> dict[str, torch.dtype]:
    """The number formats that a kind of device can train in, by the values of mixed_precision."""
    import torch

    found = {"no": torch.float32, "bf16": torch.bfloat16}
    return {**found, "fp16": torch.float16} if kind == "cuda" else found


def seconds_of_products(
    device: torch.device, dtypes: Mapping[str, torch.dtype], side: int, limit_seconds: float = 0.5
) -> dict[str, float]:
    """The shortest time of a product of two matrices in each number format, by its name.

    The formats take turns until the limit is over: what else this machine does slows all of them down.
    """
    import torch

    from runner.precision import shortest_in_turns

    def product(matrix: torch.Tensor) -> Callable[[], float]:
        # One number is read, so that a GPU has finished.
        return lambda: float((matrix @ matrix)[0, 0])

    matrices = {name: torch.ones(side, side, dtype=dtype, device=device) for name, dtype in dtypes.items()}
    actions = {name: product(matrix) for name, matrix in matrices.items()}
    # The time of the CPU leaves out what other programs take of it; a GPU's work is not in it.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    return shortest_in_turns(actions, limit_seconds, clock)


def speed_in_words(timed: dict[str, float], precision: str, side: int, model: str) -> str:
    """What was measured of the number formats, and what to type where `precision` is not the fastest."""
    tflops = {name: 2 * side**3 / seconds / 1e12 for name, seconds in timed.items()}
    words = ", ".join(f"{'fp32' if name == 'no' else name} {speed:.3g}" for name, speed in tflops.items())
    line = f"measured: {words} TFLOP/s, {side} x {side} matrices, {model}"
    fastest = max(tflops, key=lambda name: tflops[name])
    if tflops[fastest] > 1.2 * tflops[precision]:
        factor = tflops[fastest] / tflops[precision]
        line += f"; {'fp32' if fastest == 'no' else fastest} is {factor:.1f} times as fast: --mixed_precision {fastest}"
    return line


def how_to_launch(gpus: int) -> str:
    """What to type to train with several processes here."""
    if gpus > 1:
        return f"relay launch uses the {gpus} GPUs"
    return "relay launch --processes 2 starts as many"


def wrong_processes(limit_seconds: float = 60.0, program: str = PAIR) -> str | None:
    """Why two processes cannot train together here, and what to type; None where they can. It starts them."""
    from runner.trials import free_port

    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    environment |= {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        end = time.monotonic() + limit_seconds
        errors = [process.communicate(timeout=max(1.0, end - time.monotonic()))[1] for process in started]
    except subprocess.TimeoutExpired:
        errors = [f"no answer within {limit_seconds:.0f} s"]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()
    if all(process.returncode == 0 for process in started):
        return None
    last = next((text.strip().splitlines()[-1] for text in errors if text.strip()), "they added up wrong numbers")
    return f"{last}\nSet GLOO_SOCKET_IFNAME=lo, let a firewall pass 127.0.0.1, or train with one process."


def missing_extras() -> dict[str, list[str]]:
    """The extras that are not installed, with the packages that they lack."""
    lacking = {extra: [name for name in names if not is_installed(name)] for extra, names in EXTRAS.items()}
    return {extra: [DISTRIBUTIONS.get(each) or each for each in names] for extra, names in lacking.items() if names}


def extras_in_words(missing: dict[str, list[str]]) -> str:
    """Which extras are not installed."""
    return f"not installed: {', '.join(missing)}" if missing else f"installed: {', '.join(EXTRAS)}"


def check_training(arguments: list[str]) -> int:
    """Print each check of the training that these words would start; 2 where one fails."""
    from runner.config import parse
    from runner.preflight import checks_of_places, checks_of_settings
    from runner.run_folder import check_output

    words = arguments if arguments[0].startswith("-") else ["--recipe", *arguments]
    config = parse(words, "relay doctor")
    check_output(config)
    checks = [*checks_of_settings(config), *checks_of_training(config), *checks_of_places(config)]
    print(f"\nrelay train --recipe {config.recipe_name}:")
    for check in checks:
        print(f"  {'ok    ' if check.wrong is None else 'WRONG '}  {check.what}")
        for line in (check.wrong or "").splitlines():
            print(f"          {line}")
    wrong = sum(check.wrong is not None for check in checks)
    print(f"{wrong} of {len(checks)} checks failed." if wrong else f"All {len(checks)} checks passed.")
    return 2 if wrong else 0


def checks_of_training(config: Config) -> list[Check]:
    """What else can be looked at before the data are read: batch, number format, files, space, weights."""
    from runner.checkpoints.trained import find_weights
    from runner.hardware import best_device_type, choose_precision
    from runner.lanes import check_batch
    from runner.preflight import Check

    settings, kind = config.run, best_device_type()

    def batch() -> None:
        resolved = config.with_batch(1).run
        check_batch(resolved.batch_size or 0, resolved.micro_batch_size)

    checks = [
        Check("batch_size and micro_batch_size", failure_of(batch)),
        Check(
            f"mixed_precision {settings.mixed_precision} on {kind}",
            failure_of(lambda: choose_precision(settings.mixed_precision, kind)),
        ),
        Check("data files", wrong_files(config)),
        Check("space on the disk", wrong_space(Path(settings.output_dir or "runs"))),
    ]
    if settings.init_from:
        source = Path(settings.init_from)
        wrong = failure_of(lambda: find_weights(source, for_training=True))
        checks.append(Check(f"init_from {source}", wrong))
    return checks


def failure_of(action: Callable[[], object]) -> str | None:
    """What an action says where it fails; None where it does not."""
    try:
        action()
    except RelayError as error:
        return str(error)
    return None


def wrong_files(config: Config) -> str | None:
    """Which of the files that the settings name are not there."""
    try:
        files = [*config.recipe.data_files("train"), *config.recipe.data_files("validation")]
    except RelayError as error:
        return str(error)
    missing = [str(file) for file in files if "://" not in str(file) and not Path(file).exists()]
    return f"{missing[0]} is not there: check the data settings (--data.*), or type relay data." if missing else None


def wrong_space(folder: Path, least_gb: float = 1.0) -> str | None:
    """Whether the disk has less space than a few small checkpoints take."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    if free >= least_gb:
        return None
    return f"{there} has {free:.2f} GB free: free some, type --output_dir on another disk, or --save_total_limit 2."
