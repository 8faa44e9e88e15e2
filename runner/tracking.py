"""Logging of a step: to metrics.jsonl, the terminal and the experiment tracker."""

import math
import os
from pathlib import Path
from typing import Any

import torch

from runner.config import Config
from runner.log import Speed
from runner.run import Run


def log_step(run: Run, loss: torch.Tensor, norm: float, logs: list[dict[str, torch.Tensor]], speed: Speed) -> None:
    """Write and show the numbers of this step: one small all-reduce. A lane's NaN is left out."""
    step = run.state.step
    names = sorted({name for lane in logs for name in lane})
    device = run.hardware.device
    packed: list[torch.Tensor] = [loss.reshape(1).float()]
    shapes = []
    for name in names:
        seen = torch.stack(
            [torch.as_tensor(lane[name], dtype=torch.float32, device=device) for lane in logs if name in lane]
        )  # (lanes, ...)
        shapes.append(seen.shape[1:])
        packed += [seen.nansum(0).reshape(-1), (~seen.isnan()).sum(0).reshape(-1)]
    flat = torch.cat(packed)
    if run.hardware.num_processes > 1:
        flat = run.hardware.accelerator.reduce(flat, "sum")
    assert isinstance(flat, torch.Tensor)
    numbers = flat.tolist()
    values: dict[str, Any] = {
        "loss": numbers.pop(0),
        "learning_rate": run.learning_rate(step - 1),
        "grad_norm": norm,
        **epoch_of(run),
        **speed.take(),
    }
    for name, shape in zip(names, shapes, strict=True):
        size = math.prod(shape)
        totals, counts, numbers = numbers[:size], numbers[size : 2 * size], numbers[2 * size :]
        means = [total / count if count else math.nan for total, count in zip(totals, counts, strict=True)]
        if shape:
            values[name] = torch.tensor(means).reshape(shape).tolist()
        elif counts[0]:
            values[name] = means[0]
    if run.metrics is not None:
        run.metrics.write(step, "train", values)
    if run.ledger is not None:
        run.ledger.flush()
    run.progress.step(step, values)
    remark = run.recipe.remark(step, values)
    if remark is not None and remark != run.remark:
        run.progress.print_line(remark)
    run.remark = remark
    track(run, "train", values)


def epoch_of(run: Run) -> dict[str, float]:
    """Passes over the training split so far; nothing for a stream of unknown length."""
    per_epoch = run.progress.examples_per_epoch
    return {"epoch": run.state.examples_seen / per_epoch} if per_epoch else {}


def track(run: Run, split: str, values: dict[str, Any]) -> None:
    """Send values to the experiment tracker. It takes numbers only, so a list becomes one number per place."""
    if run.settings.report_to == "none":
        return
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, list):
            row = torch.tensor(value).reshape(-1).tolist() if value else []
            flat |= {f"{split}/{name}/{place}": number for place, number in enumerate(row)}
        else:
            flat[f"{split}/{name}"] = value
    run.hardware.accelerator.log(flat, step=run.state.step)


def track_histograms(run: Run) -> None:
    """Send histograms of weights and of this step's gradients to TensorBoard before each evaluation.

    Of a tensor it gets up to 65,536 numbers, evenly spread; of weights that are cut over processes, nothing.
    """
    if run.settings.report_to != "tensorboard" or not run.hardware.is_main or run.hardware.is_sharded:
        return
    writer: Any = run.hardware.accelerator.get_tracker("tensorboard", unwrap=True)
    for name, parameter in run.bare_model.named_parameters():
        for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
            if tensor is None:
                continue
            some = tensor.detach().flatten()[:: max(1, tensor.numel() // 65536)].float().cpu()
            some = some[some.isfinite()]
            if some.numel():
                writer.add_histogram(f"{kind}/{name}", some.numpy(), run.state.step + 1)


def start_trackers(run: Run, config: Config) -> None:
    """Open the experiment tracker; a W&B run continues under its id after a resume."""
    settings, accelerator = run.settings, run.hardware.accelerator
    if settings.report_to == "none":
        return
    output_dir = Path(settings.output_dir or "")
    accelerator.project_configuration.set_directories(str(output_dir))
    options: dict[str, Any] = {}
    # TensorBoard makes a folder of that name in the run's folder.
    project = settings.wandb_project if settings.report_to == "wandb" else settings.report_to
    if settings.report_to == "wandb":
        if not os.environ.get("WANDB_API_KEY") and not os.environ.get("WANDB_MODE"):
            # Without a key W&B would end the run; offline it writes a folder that `wandb sync` sends later.
            os.environ["WANDB_MODE"] = "offline"
            run.progress.print_line("W&B: no WANDB_API_KEY, so it writes offline; `wandb sync` sends it later.")
        options["wandb"] = {
            "name": settings.wandb_run_name or output_dir.name,
            "dir": str(output_dir),
            "id": run.state.trackers.get("wandb"),
            "resume": "allow",
        }
    simple = {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in config.flat().items()
    }
    accelerator.init_trackers(project, config=simple, init_kwargs=options)
    if settings.report_to == "wandb" and run.hardware.is_main:
        run.state.trackers["wandb"] = accelerator.get_tracker("wandb", unwrap=True).id  # type: ignore[attr-defined]
