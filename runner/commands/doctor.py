"""`relay doctor`: what hardware is here, what would be used, and whether a training could run through."""

import importlib.metadata
import platform

USAGE = """usage: relay doctor [RECIPE] [--flag value ...]

Shows the hardware, the versions, and the number format that a training here would use. With a recipe and the flags of a
training, it also checks what `relay train` checks before it reads data: packages, the tracker, the metric, the output
folder, and the bucket. Exit status: 0, or 2 where something has to be mended."""


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
    print(f"GPUs          {torch.cuda.device_count() if torch.cuda.is_available() else 0}")
    print(f"precision     {precision}: {reason}")
    return check_training(arguments) if arguments else 0


def check_training(arguments: list[str]) -> int:
    """Print each check of the training that these words would start; 2 where one fails."""
    from runner.config import parse
    from runner.preflight import checks_of_places, checks_of_settings
    from runner.run_folder import check_output

    words = arguments if arguments[0].startswith("-") else ["--recipe", *arguments]
    config = parse(words, "relay doctor")
    check_output(config)
    checks = [*checks_of_settings(config), *checks_of_places(config)]
    print(f"\nrelay train --recipe {config.recipe_name}:")
    for check in checks:
        print(f"  {'ok    ' if check.wrong is None else 'WRONG '}  {check.what}")
        for line in (check.wrong or "").splitlines():
            print(f"          {line}")
    wrong = sum(check.wrong is not None for check in checks)
    print(f"{wrong} of {len(checks)} checks failed." if wrong else f"All {len(checks)} checks passed.")
    return 2 if wrong else 0
