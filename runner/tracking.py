"""Logging of a step: to metrics.jsonl, the terminal and the experiment tracker."""

import contextlib
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from runner.config import Config
from runner.energy import Meter
from runner.lanes import has_length
from runner.log import Speed
from runner.run import Run
from runner.schedule import num_warmup_steps


def log_step(
    run: Run,
    loss: torch.Tensor,
    logs: list[dict[str, torch.Tensor]],
    speed: Speed,
) -> None:
    """Write and show the numbers of this step: one small all-reduce. A lane's NaN is left out."""
    step, losses = run.state.step, run.losses
    names = sorted({name for lane in logs for name in lane})
    device = run.hardware.device
    together = torch.stack(losses).sum() if losses else loss
    packed: list[torch.Tensor] = [loss.reshape(1).float(), together.reshape(1).float()]
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
        "grad_norm": run.gradient_norm,
        **epoch_of(run),
        **speed.take(),
        "memory_gb": memory_bytes(device) / 1e9,
    }
    mean_loss = numbers.pop(0) / max(len(losses), 1)
    padded, places = count_padding(run)
    if places:
        values["padding"] = padded / places
        run.watch.add_padding(padded, places)
    add_utilisation(run, values)
    add_energy(run, values)
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
    run.progress.step(step, values, mean_loss, max(len(losses), 1))
    watch_step(run, mean_loss)
    remark = run.recipe.remark(step, values)
    if remark is not None and remark != run.remark:
        run.progress.print_line(remark)
    run.remark = remark
    track(run, "train", values)


def watch_step(run: Run, mean_loss: float) -> None:
    """Print what the numbers of a logged step show, if it is new."""
    can_sort = has_length(run.train_data) and not run.settings.group_by_length
    run.watch.warmup_steps = num_warmup_steps(run.settings, run.max_steps)
    share = memory_share(run.hardware.device)
    for line in run.watch.after_log(run.state.step, mean_loss, run.settings.num_workers, share, can_sort):
        run.progress.print_line(f"note: {line}")


def count_padding(run: Run) -> tuple[int, int]:
    """Places for tokens in this process's micro-batches of the step that are padding, and all such places."""
    masks = [lane.batch.tensors.get("attention_mask") for lane in run.in_hand]
    masks = [mask for mask in masks if mask is not None and mask.ndim == 2 and not mask.is_floating_point()]
    return sum(int((mask == 0).sum()) for mask in masks), sum(mask.numel() for mask in masks)


def memory_share(device: torch.device) -> float | None:
    """The share of the memory that is taken: of the GPU's, or of this machine's; None where it is not known."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # What torch has reserved and does not use is free for it.
        return 1 - (free + torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)) / total
    return None if device.type == "mps" else psutil.virtual_memory().percent / 100


def memory_bytes(device: torch.device) -> int:
    """The most memory that tensors took so far on a GPU, and this process on a CPU; on MPS, what is allocated now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process has had; what it has now, where the system does not say."""
    # getrusage counts the program that started this one, too. The first third of the lines has what is looked for.
    with contextlib.suppress(FileNotFoundError), open("/proc/self/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"VmHWM:"):
                return 1024 * int(line.split()[1])
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)  # The former is Windows' name.


PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "A40": 150.0,
    "A6000": 155.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Peak of dense products in bf16 with sums in fp32, in 10^12 operations a second, by a part of the GPU's name; from
NVIDIA's data sheets. The first that fits counts."""


def peak_flops(name: str, precision: str) -> float | None:
    """The peak operations a second of a device by its name, in 16-bit precision; None where it is not known."""
    if precision not in ("bf16", "fp16"):
        return None
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)


def flops_per_token(model: torch.nn.Module) -> float:
    """Operations of a training step per token, without those of attention: 6 per trained weight of a matrix, 4 per
    frozen one, of experts only those that a token visits; lookups in a table cost nothing.

    Source: Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, appendix B.
    """
    config = getattr(model, "config", None)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    visited = getattr(config, "num_experts_per_tok", None)
    share = visited / experts if visited and experts else 1.0
    tables = {
        f"{name}.weight"
        for name, module in model.named_modules()
        # A table that is also the last layer counts as a matrix.
        if isinstance(module, torch.nn.Embedding) and not getattr(config, "tie_word_embeddings", False)
    }
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and name not in tables:
            part = share if ".experts." in name else 1.0
            total += parameter.numel() * part * (6 if parameter.requires_grad else 4)
    return total


def add_utilisation(run: Run, values: dict[str, Any]) -> None:
    """Add the model FLOPs utilisation, where the device's peak is known and the recipe counts tokens."""
    device = run.hardware.device
    if device.type != "cuda" or "tokens_per_second" not in values:
        return
    peak = peak_flops(torch.cuda.get_device_name(device), run.hardware.precision)
    if peak is not None and not run.hardware.is_sharded:
        flops = flops_per_token(run.bare_model) * values["tokens_per_second"]
        values["flops_utilisation"] = flops / (peak * run.hardware.num_processes)


def add_energy(run: Run, values: dict[str, Any]) -> None:
    """Add the joules that the processors of the main process's machine took since the last log line, where known."""
    if not run.hardware.is_main:
        return
    if run.meter is None:
        run.meter = Meter(with_gpus=run.hardware.device.type == "cuda")
        return
    joules = run.meter.take()
    if joules is not None:
        values["energy_joules"] = joules


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
    """Send histograms of weights and of this step's gradients to the experiment tracker before each evaluation.

    Of a larger tensor it gets 65,536 to 131,071 numbers, evenly spread; of weights that are cut over processes, none.
    """
    kind_of_tracker = run.settings.report_to
    if kind_of_tracker == "none" or not run.hardware.is_main or run.hardware.is_sharded:
        return
    writer: Any = run.hardware.accelerator.get_tracker(kind_of_tracker, unwrap=True)
    step, others = run.state.step + 1, {}
    for name, parameter in run.bare_model.named_parameters():
        for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
            if tensor is None:
                continue
            some = tensor.detach().flatten()[:: max(1, tensor.numel() // 65536)].float().cpu()
            some = some[some.isfinite()]
            if some.numel() and kind_of_tracker == "tensorboard":
                writer.add_histogram(f"{kind}/{name}", some.numpy(), step)
            elif some.numel():
                others[f"{kind}/{name}"] = importlib.import_module(kind_of_tracker).Histogram(some.numpy())
    if others:
        writer.log(others, step=step)


def track_samples(run: Run, samples: Sequence[Mapping[str, object]]) -> None:
    """Send answers of an evaluation to the experiment tracker: a table, in TensorBoard as text."""
    kind = run.settings.report_to
    if kind == "none" or not samples or not run.hardware.is_main:
        return
    writer: Any = run.hardware.accelerator.get_tracker(kind, unwrap=True)
    columns = list(dict.fromkeys(name for sample in samples for name in sample))
    rows = [[str(sample.get(name, "")) for name in columns] for sample in samples]
    if kind == "tensorboard":
        # It reads Markdown, where these two characters would end a cell or a row.
        cells = [[cell.replace("|", "&#124;").replace("\n", "<br>") for cell in row] for row in [columns, *rows]]
        cells.insert(1, ["---"] * len(columns))
        writer.add_text("samples", "\n".join(f"| {' | '.join(row)} |" for row in cells), run.state.step)
    else:
        table = importlib.import_module(kind).Table(columns=columns, data=rows)
        writer.log({"samples": table}, step=run.state.step)


def start_trackers(run: Run, config: Config) -> None:
    """Open the experiment tracker; a resumed run continues there, in W&B under its id, in trackio under its name."""
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
    if settings.report_to == "trackio":
        # Read when it is imported, which accelerate does below.
        os.environ.setdefault("TRACKIO_DIR", str((output_dir / "trackio").absolute()))
        options["trackio"] = {"name": output_dir.resolve().name, "resume": "allow"}
    simple = {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in config.flat().items()
    }
    accelerator.init_trackers(project, config=simple, init_kwargs=options)
    if settings.report_to == "wandb" and run.hardware.is_main:
        run.state.trackers["wandb"] = accelerator.get_tracker("wandb", unwrap=True).id  # type: ignore[attr-defined]


def finish_trackers(run: Run) -> None:
    """Let the experiment tracker write what it holds, where a training ends before its time."""
    if run.settings.report_to != "none" and run.hardware.is_main:
        for tracker in run.hardware.accelerator.trackers:
            # A tracker without a network does not hide why the training ended.
            with contextlib.suppress(Exception):
                tracker.finish()
