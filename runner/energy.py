"""The energy that this machine's processors take, where they count it: Intel's and AMD's RAPL, NVIDIA's NVML."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows RAPL: a folder for each package, with a counter in microjoules that begins anew at its limit."""


@dataclasses.dataclass
class Counter:
    """A counter of energy."""

    read: Callable[[], float]
    """The joules so far."""
    limit: float = 0.0
    """The joules at which it begins anew; 0: never."""
    before: float = 0.0

    def take(self) -> float:
        """The joules since the last call. Raises OSError where the counter cannot be read any more."""
        now = self.read()
        taken = now - self.before
        self.before = now
        return taken + self.limit if taken < 0 else taken


class Meter:
    """The joules that processors of this machine took, whatever program used them."""

    def __init__(self, with_gpus: bool, folder: Path = POWERCAP) -> None:
        """Look for counters. There are none where only the administrator may read them."""
        self.counters: list[Counter] = []
        for counter in [*cpu_counters(folder), *(gpu_counters() if with_gpus else [])]:
            try:
                counter.take()
            except (OSError, ValueError):
                continue
            self.counters.append(counter)

    def take(self) -> float | None:
        """The joules since the last call; None where nothing counts them."""
        if not self.counters:
            return None
        try:
            return sum(counter.take() for counter in self.counters)
        except (OSError, ValueError):
            self.counters = []
            return None


def cpu_counters(folder: Path) -> list[Counter]:
    """A counter for each processor package. What lies below a package is part of it."""
    found = []
    for package in sorted(folder.glob("intel-rapl:*")):
        if package.name.count(":") == 1 and (package / "energy_uj").is_file():
            limit = package / "max_energy_range_uj"
            try:
                joules = _joules(limit) if limit.is_file() else 0.0
            except (OSError, ValueError):
                continue
            found.append(Counter(lambda file=package / "energy_uj": _joules(file), joules))
    return found


def _joules(file: Path) -> float:
    return int(file.read_text(encoding="ascii")) / 1e6


def gpu_counters() -> list[Counter]:
    """A counter for each GPU that this process may use, where NVIDIA's library for Python is installed."""
    import torch

    try:
        # Not one of Relay's packages: it is used where it is there.
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        handles = [
            pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(number).uuid}")
            for number in range(torch.cuda.device_count())
        ]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:
        # No library, no driver that it knows, or a GPU that does not count.
        return []

    def joules(handle: object) -> float:
        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from None

    return [Counter(lambda handle=handle: joules(handle)) for handle in handles]
