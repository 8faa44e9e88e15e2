"""`relay plan`: parameters, memory and steps of a training, before it is started."""

import contextlib
import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

from runner.commands import own_and_others
from runner.config import parse, parse_into
from runner.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Settings of the plan; those of the training stand beside them."""

    accelerate_config: str | None = None
    """The file that would be given to accelerate launch: how many processes, and whether they hold shards."""
    longest: int = 8
    """Take the longest of so many training examples for each place of the micro-batch."""


def main(arguments: list[str]) -> None:
    """Print the plan. Nothing is trained, and the model's weights are not made."""
    own, flags = own_and_others(PlanSettings, arguments)
    if not flags or own[:1] == ["--help"]:
        print("usage: relay plan --recipe NAME [--preset P] [--accelerate_config FILE.yaml] [--flag value ...]\n")
        print(__doc__)
        return
    settings: PlanSettings = parse_into(PlanSettings, own, "relay plan")
    config = parse(flags, "relay plan")
    processes, is_sharded = _world(settings.accelerate_config)
    import torch

    from runner.hardware import best_device_type, choose_precision
    from runner.session import enable_gradient_checkpointing

    run = config.run
    batch_size = run.batch_size or run.micro_batch_size * (run.gradient_accumulation_steps or 4) * processes
    print(f"relay plan: {config.recipe_name}, preset {config.preset or 'default'}, {processes} process(es)")
    with tempfile.TemporaryDirectory(prefix="relay-plan-") as folder:
        recipe, data = config.recipe, None
        try:
            if hasattr(recipe, "prepare"):
                recipe = recipe.prepare(Path(folder))
            data = recipe.data("train")
        except DataError as error:
            print(f"data         not there: {str(error).splitlines()[0]}")
        batch = None
        if data is not None and not hasattr(data, "read"):
            batch = _longest(recipe, data, run.micro_batch_size * settings.longest, run.micro_batch_size)
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model = recipe.model()
            if run.gradient_checkpointing:
                enable_gradient_checkpointing(model)
            total, active, trained = count_parameters(model)
            shown = f"parameters   {_count(total)}"
            shown += f", {_count(active)} of them active for a token" if active != total else ""
            print(shown + (f", {_count(trained)} trained" if trained != total else ""))
            precision, _ = choose_precision(run.mixed_precision, best_device_type())
            activations: Any = None
            if batch is not None:
                activations = _activations(recipe, model, batch, precision, mode)
        share = processes if is_sharded else 1
        parts = {
            "weights": 4 * total / share,
            "gradients": 4 * trained / share,
            "optimiser": 8 * trained / share,
        }
        if precision in ("bf16", "fp16"):
            parts[f"{precision} copies"] = 2 * total / share
        if isinstance(activations, float):
            parts["activations"] = activations
        print(f"memory       {_bytes(sum(parts.values()))} for each process, of which")
        for name, size in parts.items():
            print(f"  {name:11}{_bytes(size):>10}")
        if isinstance(activations, str):
            print(f"  activations  not known: {activations}")
        if data is not None:
            _print_steps(run, data, batch_size)
        if torch.cuda.is_available():
            free = torch.cuda.get_device_properties(0).total_memory
            fits = sum(parts.values()) < 0.9 * free
            print(
                f"device       {_bytes(free)}: {'fits' if fits else 'does not fit: lower --micro_batch_size, or use'}"
            )
    if sum(parts.values()) > 4e9:
        print("to fit       lower --micro_batch_size, set --gradient_checkpointing, or shard: gpus_fsdp2.yaml")


def count_parameters(model: Any) -> tuple[int, int, int]:
    """(all, those that one token meets, those that are trained); experts are stacked along the first axis."""
    settings = getattr(model, "config", None)
    experts = getattr(settings, "num_local_experts", None) or getattr(settings, "num_experts", None)
    chosen = getattr(settings, "num_experts_per_tok", None)
    total = active = trained = 0.0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        total += size
        trained += size if parameter.requires_grad else 0
        is_expert = experts and chosen and ".experts." in f".{name}." and parameter.shape[0] == experts
        active += size * chosen / experts if is_expert else size
    return int(total), int(active), int(trained)


def _world(file: str | None) -> tuple[int, bool]:
    if file is None:
        return 1, False
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        return int(content.get("num_processes", 1)), content.get("distributed_type") == "FSDP"
    except (OSError, yaml.YAMLError, AttributeError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as a config of accelerate launch: {error}") from None


def _longest(recipe: Any, data: Any, sample: int, micro_batch_size: int) -> Any:
    """A micro-batch of the longest among a few examples."""
    from runner.memory import size

    few = [data[index] for index in range(0, len(data), max(1, len(data) // sample))][:sample]
    few.sort(key=lambda example: size(recipe.collate([example])), reverse=True)
    return recipe.collate((few * micro_batch_size)[:micro_batch_size])


def _activations(recipe: Any, model: Any, batch: Any, precision: str, mode: Any) -> float | str:
    """Bytes that autograd keeps for the backward pass of one micro-batch, or why that is not known."""
    import torch

    kept: dict[int, int] = {}
    own = {id(parameter.untyped_storage()) for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    batch.tensors = {name: mode.from_tensor(tensor) for name, tensor in batch.tensors.items()}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    context = torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext()
    # The grouped product knows shapes for bf16 alone; one expert's product keeps the same rows.
    grouped_mm = torch.nn.functional.grouped_mm
    torch.nn.functional.grouped_mm = lambda rows, weights, **options: rows @ weights[0]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), context:
            recipe.loss(model.train(), batch)
    except Exception as error:
        return f"the loss cannot be computed without numbers ({type(error).__name__})"
    finally:
        torch.nn.functional.grouped_mm = grouped_mm
    return float(sum(kept.values()))


def _print_steps(run: Any, data: Any, batch_size: int) -> None:
    if hasattr(data, "read"):
        print(f"steps        {run.max_steps or 'as many as --max_steps says'} of {batch_size} examples, from a stream")
        return
    steps = run.max_steps or math.ceil((run.num_train_epochs or 3.0) * len(data) / batch_size)
    epochs = steps * batch_size / len(data)
    print(f"steps        {steps:,} of {batch_size} examples: {epochs:.2f} passes over {len(data):,}")


def _count(number: float) -> str:
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {name} ({int(number):,})"
    return str(int(number))


def _bytes(number: float) -> str:
    for size, name in ((1e9, "GB"), (1e6, "MB")):
        if number >= size:
            return f"{number / size:,.1f} {name}"
    return f"{number / 1e3:,.1f} kB"
