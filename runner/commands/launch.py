"""`relay launch`: a training on several processes, on this machine or on several."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

from runner.config import parse_into
from runner.errors import ConfigError
from runner.parts.installation import environment_with_relay, find_launch_config
from runner.parts.setting_types import AtLeast0, AtLeast1, Range, check_ranges
from runner.signals import REPEAT_SECONDS, catch
from runner.trials import free_port
from runner.yaml_file import read_launch_config

AFTER_A_FAILURE_SECONDS = 30.0
"""How long the other processes have to end by themselves once one has failed."""
AFTER_A_SIGNAL_SECONDS = 60.0
"""How long they have once one has saved and stopped: the main process copies what is left into a bucket."""
ALIASES = {"--num_processes": "--processes", "--nproc_per_node": "--processes", "--num_machines": "--machines"}
"""What accelerate and torchrun call these flags."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Settings of the launch; every other flag is one of relay train."""

    processes: AtLeast1 | None = None
    """Processes on this machine; none: one per GPU, or one."""
    config_file: str | None = None
    """Configuration of accelerate: a file, or the name of one that Relay brings, such as gpus_fsdp2."""
    cpu: bool = False
    """Train on the CPU, also where there are GPUs."""
    machines: AtLeast1 = 1
    """Machines; each starts the same command with its own --machine_rank."""
    machine_rank: AtLeast0 = 0
    """The number of this machine, counted from 0."""
    main_process_ip: str | None = None
    """Address of machine 0, where there are several."""
    main_process_port: Annotated[int, Range(1, 65535)] | None = None
    """A free port of machine 0; 29500 where there are several machines, any free one where there is one."""


def main(arguments: list[str]) -> int:
    """Start the processes, pass signals on, and return the status that the training ended with."""
    from runner.commands import split_flags

    own, words = split_flags(LaunchSettings, with_own_names(arguments))
    settings: LaunchSettings = parse_into(LaunchSettings, own, "relay launch", __doc__)
    settings, variables = with_config_file(settings)
    processes = count_processes(settings)
    command = [sys.executable, "-m", "runner", "train", *words]
    environment = {**environment_with_relay(), **variables}
    environment.setdefault("OMP_NUM_THREADS", str(threads_per_process(processes)))
    if processes * settings.machines == 1:
        os.execve(sys.executable, command, environment)
    return Launch(command, environment, settings, processes).wait()


def with_own_names(arguments: Sequence[str]) -> list[str]:
    """The words with our names of the flags, and without the `train` that people type out of habit."""
    words = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        words.append(ALIASES.get(flag.replace("-", "_").replace("__", "--", 1), flag) + equals + value)
    return words[1:] if words and words[0] in ("train", "runner/train.py") else words


def with_config_file(settings: LaunchSettings) -> tuple[LaunchSettings, dict[str, str]]:
    """The settings with what accelerate's configuration adds, and the variables that it stands for.

    Typed flags win. Raises ConfigError for a file that is none, or for an engine that Relay does not use.
    """
    variables = {"ACCELERATE_USE_CPU": "true"} if settings.cpu else {}
    if settings.config_file is None:
        return settings, variables
    path = find_launch_config(settings.config_file)
    content = read_launch_config(path)
    if str(content.get("distributed_type")) == "DEEPSPEED":
        raise ConfigError(f"{path} asks for DeepSpeed, which Relay does not use: type --config_file gpus_fsdp2.")
    if str(content.get("distributed_type")) == "FSDP":
        variables["ACCELERATE_USE_FSDP"] = "true"
    if content.get("use_cpu"):
        variables["ACCELERATE_USE_CPU"] = "true"
    gpus = content.get("gpu_ids")
    if gpus not in (None, "all"):
        variables["CUDA_VISIBLE_DEVICES"] = str(gpus)
    try:
        machines = settings.machines if settings.machines > 1 else int(str(content.get("num_machines", 1)))
        total = int(str(content.get("num_processes", machines)))
        changes: dict[str, object] = {"machines": machines}
        if settings.processes is None:
            # accelerate counts the processes of all machines.
            changes["processes"] = max(1, total // machines)
        if not settings.machine_rank:
            changes["machine_rank"] = int(str(content.get("machine_rank", 0)))
        if machines > 1:
            changes["main_process_ip"] = settings.main_process_ip or content.get("main_process_ip")
            changes["main_process_port"] = settings.main_process_port or int(
                str(content.get("main_process_port", 29500))
            )
    except ValueError as error:
        raise ConfigError(f"{path} holds a number that is none ({error}): write num_processes: 2.") from None
    return dataclasses.replace(settings, **changes), variables  # type: ignore[arg-type]


def count_processes(settings: LaunchSettings) -> int:
    """The processes on this machine. Raises ConfigError for numbers that cannot be."""
    check_ranges(settings)
    if settings.machine_rank >= settings.machines:
        raise ConfigError(
            f"machine_rank is {settings.machine_rank} of {settings.machines} machines: type --machine_rank with a "
            f"number from 0 to {settings.machines - 1}."
        )
    if settings.machines > 1 and not settings.main_process_ip:
        raise ConfigError("Several machines need an address: type --main_process_ip with that of machine 0.")
    gpus = 0 if settings.cpu or os.environ.get("ACCELERATE_USE_CPU") else number_of_gpus()
    processes = settings.processes or max(1, gpus)
    if gpus and processes > gpus:
        raise ConfigError(
            f"{processes} processes were asked for, and there are {gpus} GPUs: type --processes {gpus}, or --cpu."
        )
    return processes


def number_of_gpus() -> int:
    """The GPUs that CUDA shows; without torch, whose import takes seconds, where there is no driver."""
    if not (Path("/proc/driver/nvidia").exists() or Path("/dev/kfd").exists() or sys.platform == "win32"):
        return 0
    import torch

    return torch.cuda.device_count()


def threads_per_process(processes: int) -> int:
    """The cores of this process's share, without their second threads, over the processes; at least 1."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable) // processes)


class Launch:
    """The processes of a training on this machine."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], settings: LaunchSettings, processes: int
    ) -> None:
        is_alone = settings.machines == 1
        shared = {
            "MASTER_ADDR": "127.0.0.1" if is_alone else str(settings.main_process_ip),
            "MASTER_PORT": str(settings.main_process_port or (free_port() if is_alone else 29500)),
            "WORLD_SIZE": str(processes * settings.machines),
            "LOCAL_WORLD_SIZE": str(processes),
        }
        self.since = 0.0
        self.processes: list[subprocess.Popen[bytes]] = []
        catch(self._pass_on)
        for place in range(processes):
            rank = {"LOCAL_RANK": str(place), "RANK": str(settings.machine_rank * processes + place)}
            self.processes.append(subprocess.Popen(command, env={**environment, **shared, **rank}))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        # A signal to the process group has reached the processes as well: for them it is the same request.
        if self.since and time.monotonic() - self.since < REPEAT_SECONDS:
            return
        self.since = time.monotonic()
        for each in self.processes:
            if each.poll() is None:
                each.send_signal(number)

    def wait(self) -> int:
        """Wait for all; returns the status of the training."""
        deadline = float("inf")
        order: list[int] = []
        while len(order) < len(self.processes):
            ended = [rank for rank, each in enumerate(self.processes) if each.poll() is not None]
            order += [rank for rank in ended if rank not in order]
            for status in {self.processes[rank].returncode for rank in order} - {0}:
                patience = AFTER_A_SIGNAL_SECONDS if status == 75 else AFTER_A_FAILURE_SECONDS
                deadline = min(deadline, time.monotonic() + patience)
            if time.monotonic() > deadline:
                for rank in set(range(len(self.processes))) - set(order):
                    self.processes[rank].kill()
            time.sleep(0.05)
        statuses = [self.processes[rank].returncode for rank in order]
        for rank, status in zip(order, statuses, strict=True):
            if status == -signal.SIGKILL and rank == order[0]:
                print(f"error: process {rank} was killed (SIGKILL): out of memory?", file=sys.stderr, flush=True)
        return status_of(statuses)


def status_of(statuses: Sequence[int]) -> int:
    """The status of a training from those of its processes, in the order in which they ended.

    A mistake, or numbers that went bad, explain why the others ended. A signal ends all of them with 75. Otherwise it
    is the status of the first one that failed; of a process that a signal ended it is what a shell makes of it.
    """
    failed = [status for status in statuses if status]
    if not failed:
        return 0
    for explained in (2, 3):
        if explained in failed:
            return explained
    others = [status for status in failed if status != 75]
    first = others[0] if others else 75
    return 128 - first if first < 0 else first
