"""`relay doctor`: what hardware is here, and what would be used."""

import dataclasses
import importlib.metadata
import platform

from runner.config import parse_into


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """The doctor has no settings."""


def main(arguments: list[str]) -> None:
    """Print versions, devices, and the choices that a training here would make."""
    parse_into(DoctorSettings, arguments, "relay doctor", __doc__)
    import torch

    from runner.hardware import best_device_type, choose_precision, device_name

    kind = best_device_type()
    precision, reason = choose_precision("auto", kind)
    print(f"python        {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "accelerate", "transformers", "datasets", "peft", "safetensors"):
        print(f"{package:13} {importlib.metadata.version(package)}")
    print(f"device        {device_name(torch.device(kind))}")
    print(f"GPUs          {torch.cuda.device_count() if torch.cuda.is_available() else 0}")
    print(f"precision     {precision}: {reason}")
