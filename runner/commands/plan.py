"""`relay plan`: parameters, memory and steps of a training, before it is started."""

import contextlib
import dataclasses
import datetime
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from runner.commands import split_flags
from runner.config import Config, parse, parse_into
from runner.errors import ConfigError, DataError
from runner.parts.setting_types import AtLeast0, AtLeast1, NotNegative
from runner.recipe import Batch, Data, Recipe
from runner.settings import RunSettings
from runner.yaml_file import read_launch_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
from runner.parts.installation import find_launch_config, shown_launch_config

# A model of at most this many parameters can be computed for real on any machine.
MOST_PARAMETERS = 100_000_000
SECONDS_OF_LANES = 10.0
"""Lanes of other shapes are computed for at most so long."""
MANY_KERNELS = 20e6
"""Bytes of kernels from which on they are told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Settings of the plan. Any flag of a training may follow."""

    accelerate_config: str | None = None
    """The file for accelerate launch. It says how many processes there are, and whether they hold shards."""
    num_processes: AtLeast0 = 0
    """Plan for this many processes that hold shards; 0: as accelerate_config says."""
    device_memory: NotNegative = 0.0
    """Memory of one device in GB; 0: that of the devices here."""
    longest: AtLeast1 = 8
    """Plan with the longest of this many training examples for each place of the micro-batch."""
    timed_steps: AtLeast0 = 0
    """Train this many steps with fresh weights here, to estimate how long the training takes."""


def main(arguments: list[str]) -> None:
    """Print the plan. Weights of a model of more than MOST_PARAMETERS are allocated with timed_steps only."""
    own, flags = split_flags(PlanSettings, arguments)
    if not flags or "--help" in own or "-h" in own:
        print("usage: relay plan --recipe NAME [--preset P] [--accelerate_config FILE.yaml] [--flag value ...]\n")
        print(__doc__)
        print("\nIt reads the training data, and fits the tokenizer on them, as a training does; of the model it needs")
        print(
            "shapes alone. Memory: fp32 weights, gradients and AdamW's two moments, and what the backward pass of one"
        )
        print(
            "lane keeps, from the longest examples of a sample. CUDA's context, fragments and kernels' workspace come"
        )
        print("on top: some 10 %. For a CPU, the process itself is measured here: Python, libraries, data, and for a")
        print("small model what one lane needs beside its tensors.\n")
        print("  --accelerate_config FILE.yaml  the file for accelerate launch: how many processes, whether sharded")
        print("  --num_processes N              plan for N processes that hold shards, in place of the file")
        print("  --device_memory GB             the memory of one device (default: of the devices here)")
        print("  --longest N                    the longest of N examples for each place of the lane (default 8)")
        print("  --timed_steps N                make N steps here, and say how long all would take (default 0)")
        return
    settings: PlanSettings = parse_into(PlanSettings, own, "relay plan")
    config = parse(flags, "relay plan")
    processes, is_sharded = settings.num_processes, settings.num_processes > 1
    if not processes:
        processes, is_sharded = _world(settings.accelerate_config)
    config = config.with_batch(processes)
    run = config.run
    batch_size = run.batch_size or 0
    from runner.lanes import check_batch, check_world

    check_batch(batch_size, run.micro_batch_size)
    check_world(batch_size // run.micro_batch_size, processes)
    print(f"relay plan: {config.recipe_name}, preset {config.preset or 'default'}, {_processes(processes, is_sharded)}")
    with tempfile.TemporaryDirectory(prefix="relay-plan-") as folder:
        recipe, data = _with_data(config.recipe, Path(folder))
        few = _few(data, run.seed, run.micro_batch_size * settings.longest)
        batch = _longest(recipe, few, run.micro_batch_size)
        found = measure(recipe, batch, run)
        others = [few[at :: len(few) // run.micro_batch_size] for at in range(len(few) // run.micro_batch_size)]
        if not settings.device_memory:
            found = with_process(found, recipe, batch, run, others)
    shown = f"parameters   {_count(found.total)}"
    shown += f", {_count(found.active)} of them active for a token" if found.active != found.total else ""
    print(shown + (f", {_count(found.trained)} trained" if found.trained != found.total else ""))
    shards = processes if is_sharded else 1
    parts, moments = found.memory(shards), found.moments(shards)
    total = max(moments.values())
    each = f" on each of {processes} devices" if processes > 1 else ""
    print(f"memory       {_bytes(total)}{each}, computing in {found.precision}")
    for name, size in parts.items():
        print(f"  {name:20}{_bytes(size):>10}")
    print("moments      " + ", ".join(f"{name} {_bytes(size)}" for name, size in moments.items()))
    _print_copies(found, shards)
    if found.logits:
        print(f"  of the activations, {_bytes(found.logits)} are logits")
    if found.kernels > MANY_KERNELS:
        print(
            f"  of the process, {_bytes(found.kernels)} are kernels of oneDNN for {len(others)} lanes of other shapes;"
        )
        print("  it keeps up to 1,024 in further steps; ONEDNN_PRIMITIVE_CACHE_CAPACITY=32 before relay train keeps 32")
    if found.unknown:
        print(f"  activations are not known: {found.unknown}")
    if batch is not None:
        shape = ", ".join(f"{name} {' x '.join(map(str, tensor.shape))}" for name, tensor in batch.tensors.items())
        print(f"lane         {run.micro_batch_size} examples, the longest of a sample: {shape}")
    steps = _print_steps(run, data, batch_size, batch)
    if settings.timed_steps and steps:
        _print_time(config, settings.timed_steps, steps)
    _print_fit(total, found, run.gradient_checkpointing, 1e9 * settings.device_memory)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a model needs, from its shapes."""

    total: int
    active: int
    """Parameters that one token is computed with."""
    trained: int
    precision: str
    """fp32, bf16 or fp16: the dtype of the computation."""
    activations: float = 0.0
    """Bytes that the backward pass of one lane needs, without weights and their copies."""
    copies: float = 0.0
    """Bytes of the copies of the weights in bf16 or fp16, which the backward pass needs too."""
    gathered: float = 0.0
    """Bytes of the weights and gradients that FSDP2 has gathered at once, an estimate."""
    recomputed: float = 0.0
    """Bytes of the layer that the backward pass computes again, with gradient checkpointing."""
    logits: float = 0.0
    """Bytes of those activations whose last axis is the vocabulary."""
    unknown: str | None = None
    """Why the activations could not be measured."""
    process: float = 0.0
    """Bytes of the process itself, on a CPU: Python, libraries, data."""
    kernels: float = 0.0
    """Bytes of those for kernels that lanes of other shapes need."""
    largest: float = 0.0
    """Bytes of the largest weight."""

    def memory(self, shards: int) -> dict[str, float]:
        """Bytes on each device while it trains, by part. Weights, gradients and moments are split into `shards`."""
        parts = {
            **({"process": self.process} if self.process else {}),
            "weights": 4 * self.total / shards,
            "gradients": 4 * self.trained / shards,
            "optimiser (AdamW)": 8 * self.trained / shards,
        }
        if shards > 1:
            parts["gathered layers"] = self.gathered
        elif self.copies:
            parts[f"{self.precision} copies"] = self.copies
        if self.unknown:
            return parts
        parts["activations"] = self.activations
        return {**parts, "recomputed layer": self.recomputed} if self.recomputed else parts

    def moments(self, shards: int) -> dict[str, float]:
        """The most bytes on each device at the start, in training, in an evaluation, at a save and at the end.

        Gradients are there in training only. Activations of an evaluation are not counted.
        """
        parts = self.memory(shards)
        started = self.process + parts["weights"]
        resting = started + parts["optimiser (AdamW)"]
        gathered = self.gathered if shards > 1 else self.copies
        # On a CPU, the end of one process makes a copy of the weights; else one weight at a time is gathered.
        copied = 4 * self.total if self.process and shards == 1 else self.largest
        return {
            "start": started + (self.largest if shards > 1 else 0),
            "training": sum(parts.values()),
            "evaluation": resting + gathered,
            "save": resting + (self.largest if shards > 1 else 0),
            "end": resting + copied,
        }

    def smallest(self, device_bytes: float) -> int | None:
        """The smallest power of 2 of devices over which shards fit, with a tenth to spare; None where none does."""
        counts = (2**power for power in range(11))
        return next((count for count in counts if 1.1 * max(self.moments(count).values()) < device_bytes), None)


def measure(recipe: Recipe, batch: Batch | None, run: RunSettings) -> Measured:
    """Build the model and compute the loss of a micro-batch on fake tensors, which have a shape and no content."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from runner.assembly import enable_gradient_checkpointing
    from runner.hardware import best_device_type, choose_precision

    precision, _ = choose_precision(run.mixed_precision, best_device_type())
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def build() -> "nn.Module":
        model = recipe.model()
        if run.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        return model

    kept: tuple[float, float, float] | None = None
    recomputed = 0.0
    model: nn.Module | None = None
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # PEFT moves adapters to the device of the weights, which fake weights refuse.
    with mode, contextlib.suppress(RuntimeError):
        model = build()
    model = build() if model is None else model
    with mode:
        found = Measured(*count_parameters(model), precision if dtype else "fp32")
        largest = max((4.0 * parameter.numel() for parameter in model.parameters()), default=0.0)
        gathered = gathered_bytes(model, 2 if precision == "bf16" else 4)
        found = dataclasses.replace(found, gathered=gathered, largest=largest)
        if batch is None:
            return dataclasses.replace(found, unknown="there are no data to read")
        with contextlib.suppress(Exception), mock.patch.object(torch.nn.functional, "grouped_mm", _grouped_shapes):
            tensors = {name: mode.from_tensor(tensor) for name, tensor in batch.tensors.items()}
            fake = dataclasses.replace(batch, tensors=tensors)
            kept = kept_for_backward(recipe, model, fake, dtype)
            if run.gradient_checkpointing:
                without = kept_for_backward(recipe, recipe.model(), fake, dtype)
                recomputed = max(without[0] - kept[0], 0.0) / len(largest_list(model))
    if kept is None and found.total <= MOST_PARAMETERS:
        # A loss that reads values cannot be computed on fake tensors: a small model is computed for real.
        kept = kept_for_backward(recipe, build(), batch, dtype)
    if kept is None:
        return dataclasses.replace(found, unknown="the loss reads values, and the model is too large to compute here")
    return dataclasses.replace(found, activations=kept[0], copies=kept[1], logits=kept[2], recomputed=recomputed)


def with_process(
    found: Measured, recipe: Recipe, batch: Batch | None, run: RunSettings, others: Sequence[list[Any]] = ()
) -> Measured:
    """The same with the memory of the process itself, where the training computes on a CPU.

    A model of at most MOST_PARAMETERS computes a lane and an update, so that what kernels take is counted too. In
    bf16, oneDNN keeps a kernel for each shape: `others`, the examples of further lanes, are computed for some seconds.
    """
    import psutil
    import torch

    # What a training imports.
    import runner.session  # noqa: F401
    from runner.assembly import indexed_split
    from runner.hardware import best_device_type
    from runner.optim import optimizer
    from runner.precision import compute_lane
    from runner.tracking import peak_bytes

    if best_device_type() != "cpu":
        return found
    # A training holds this split, too.
    held = indexed_split(recipe, "validation") if batch is not None else None
    is_computed = batch is not None and found.total <= MOST_PARAMETERS and not found.unknown
    model = recipe.model().train() if is_computed else torch.nn.Linear(1, 1)
    tensors = sum(found.memory(1).values()) if is_computed else 0.0
    updates = optimizer(model, run, torch.device("cpu"), recipe.learning_rate_scale)
    # Moments are there from the first update on.
    for _ in range(2):
        if batch is not None and is_computed:
            compute_lane(recipe, model, batch, run.seed, in_bf16=found.precision == "bf16")
        else:
            model(torch.zeros(1, 1)).sum().backward()
        updates.step()
    before, end = peak_bytes(), time.monotonic() + SECONDS_OF_LANES
    for examples in others if is_computed and found.precision == "bf16" else ():
        if time.monotonic() > end:
            break
        compute_lane(recipe, model, recipe.collate(examples), run.seed, in_bf16=True)
    after = peak_bytes() if tensors else psutil.Process().memory_info().rss
    del held
    kernels = max(after - before, 0.0) if tensors and found.precision == "bf16" else 0.0
    return dataclasses.replace(found, process=max(after - tensors, 0.0), kernels=kernels)


def largest_list(model: "nn.Module") -> "list[nn.Module]":
    """The layers of the longest list of modules; the model itself where it has none."""
    from torch import nn

    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[]) or [model]


def _grouped_shapes(input: "Tensor", weight: "Tensor", *, offs: "Tensor | None" = None, **rest: object) -> "Tensor":
    """The grouped matrix product on fake tensors; torch has it for bf16 only.

    input: (tokens, in); weight: (groups, in, out).
    """
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, left: "Tensor", right: "Tensor") -> "Tensor":
            ctx.save_for_backward(left, right)
            return left.new_empty(left.shape[0], right.shape[-1])

    return Product.apply(input, weight)


def kept_for_backward(
    recipe: Recipe, model: "nn.Module", batch: Batch, dtype: "torch.dtype | None"
) -> tuple[float, float, float]:
    """Bytes that autograd saves for the backward pass: (activations, copies of weights in `dtype`, logits).

    Each storage counts once. Those of the parameters do not count.
    """
    import torch

    parameters = list(model.parameters())
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    shapes = {tuple(parameter.shape) for parameter in parameters if parameter.ndim > 1}
    shapes |= {tuple(reversed(shape)) for shape in shapes if len(shape) == 2}
    shapes |= {(*shape[:-2], shape[-1], shape[-2]) for shape in shapes if len(shape) > 2}
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    # Holding the tensors prevents that a storage is freed and its address is used again.
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in own:
            held.setdefault(address, tensor)
        return tensor

    context = torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), context:
        # `loss` must live until everything is counted.
        loss = recipe.loss(model.train(), batch)
    sizes = [0.0, 0.0, 0.0]
    for tensor in held.values():
        is_copy = dtype is not None and tensor.dtype == dtype and tuple(tensor.shape) in shapes
        size = tensor.untyped_storage().nbytes()
        sizes[is_copy] += size
        if vocabulary is not None and tensor.ndim > 1 and tensor.shape[-1] == vocabulary and not is_copy:
            sizes[2] += size
    del loss
    return sizes[0], sizes[1], sizes[2]


def gathered_bytes(model: "nn.Module", weight_bytes: int) -> float:
    """Bytes that FSDP2 gathers at once in a backward pass, from counted parameters: of the largest layer its weights,
    those of the layer that comes next, its gradients, and in fp32 the gradients of the layer before, which are being
    summed; and, in fp32, weights and gradients of all that is in no layer."""
    from torch import nn

    layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    largest = max((sum(parameter.numel() for parameter in layer.parameters()) for layer in layers), default=0)
    others = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in inside)
    return largest * (3 * weight_bytes + 4) + others * 8


def _processes(processes: int, is_sharded: bool) -> str:
    return "1 process" if processes == 1 else f"{processes} processes" + (", sharded" if is_sharded else "")


def _with_data(recipe: Recipe, folder: Path) -> tuple[Recipe, Data | None]:
    """The recipe, prepared as for a training, and its training split; None if the data are missing."""
    try:
        bound = recipe.prepare(folder)
        return bound, bound.data("train")
    except DataError as error:
        print(f"data         not there: {str(error).splitlines()[0]}")
        return recipe, None


def count_parameters(model: "nn.Module") -> tuple[int, int, int]:
    """(all, active for one token, trained). The weights of experts are stacked along the first axis."""
    settings = getattr(model, "config", None)
    experts = getattr(settings, "num_local_experts", None) or getattr(settings, "num_experts", None)
    chosen = getattr(settings, "num_experts_per_tok", None)
    total = active = trained = 0.0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        total += size
        trained += size if parameter.requires_grad else 0
        if experts and chosen and ".experts." in f".{name}." and parameter.shape[0] == experts:
            active += size * chosen / experts
        else:
            active += size
    return int(total), int(active), int(trained)


def _world(file: str | None) -> tuple[int, bool]:
    """The processes that a configuration of accelerate starts, and whether they hold shards."""
    if file is None:
        return 1, False
    path = find_launch_config(file)
    content = read_launch_config(path)
    try:
        return int(str(content.get("num_processes", 1))), content.get("distributed_type") == "FSDP"
    except ValueError as error:
        raise ConfigError(f"{path} holds a number that is none ({error}): write num_processes: 2.") from None


def _few(data: Data | None, seed: int, count: int) -> list[Any]:
    """A sample of the training examples; empty without data."""
    from runner.fetching import is_stream, take

    if data is None:
        return []
    if is_stream(data):
        reader = data.read(0, 1, seed, None)
        return [next(reader)[0] for _ in range(count)]
    return take(data, list(range(0, len(data), max(1, len(data) // count)))[:count])


def _longest(recipe: Recipe, few: list[Any], micro_batch_size: int) -> Batch | None:
    """A micro-batch of the longest of the examples; None without any."""
    from runner.memory import size

    longest = sorted(few, key=lambda example: size(recipe.collate([example])), reverse=True)
    return recipe.collate((longest * micro_batch_size)[:micro_batch_size]) if few else None


def _print_time(config: Config, timed: int, steps: int) -> None:
    """Train a few steps, leave the first out of the mean, and print how long the training would take."""
    from runner.assembly import open_run
    from runner.loop import train

    with tempfile.TemporaryDirectory(prefix="relay-plan-") as folder:
        quiet = config.with_run(output_dir=folder, report_to="none", resume_from_checkpoint=None, upload_to=None)
        run = open_run(quiet.with_run(max_steps=timed + 1, eval_steps=0, save_steps=0))
        run.eval_data, ends = [], []
        run.progress.advance = lambda step: ends.append(time.monotonic())  # type: ignore[method-assign]
        train(run)
    seconds = (ends[-1] - ends[0]) / timed
    whole = datetime.timedelta(seconds=round(seconds * steps))
    print(
        f"time         {whole} at {seconds:.3g} s a step (mean of {timed}, one process), without evaluation and saving"
    )


def _print_steps(run: RunSettings, data: Data | None, batch_size: int, batch: Batch | None) -> int:
    """Print steps, passes over the data and tokens. Returns the number of steps, 0 where it is unknown."""
    from runner.fetching import examples_per_epoch, warnings_of
    from runner.lanes import run_length

    if data is None:
        return 0
    known = examples_per_epoch(data)
    _, steps = run_length(run, known, batch_size)
    if steps is None:
        print("steps        not known: the data are a stream without end, give --max_steps")
        return 0
    passes = f": {steps * batch_size / known:.2f} passes over {known:,}" if known else ""
    print(f"steps        {steps:,} of {batch_size} examples in {batch_size // run.micro_batch_size} lanes{passes}")
    for warning in warnings_of(data, steps * batch_size):
        print(f"warning      {warning}")
    if batch is not None and batch.tokens:
        longest = batch.tokens / run.micro_batch_size
        print(f"tokens       at most {longest * batch_size:,.0f} a step, {longest * batch_size * steps:,.0f} in all")
    return steps


def _print_copies(found: Measured, shards: int) -> None:
    """Print the memory of a save that is still being written when the next update changes the weights."""
    from runner.checkpoints.saver import BYTES_PER_SECOND

    size = 4 * found.total + 8 * found.trained
    if found.process and shards == 1 and size >= 1e8:
        print(f"  {_bytes(size)} more where a step takes less than {size / BYTES_PER_SECOND:.2g} s: copies for saving")


def _print_fit(total: float, found: Measured, is_checkpointed: bool, device_bytes: float) -> None:
    """Print whether the training fits on a device of this memory (0: here), and what would need less memory."""
    import psutil
    import torch

    need = 1.1 * total
    if device_bytes:
        have, name = device_bytes, "the device"
    elif torch.cuda.is_available():
        have, name = torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    else:
        have, name = psutil.virtual_memory().total, "this machine's memory"
    verdict = "yes" if need < have else "no"
    print(f"fits         {verdict}: {_bytes(need)} with a tenth to spare, and {name} has {_bytes(have)}")
    if need < have:
        return
    if found.activations > 0.3 * total:
        if not is_checkpointed:
            print("  --gradient_checkpointing true needs a fraction of the activations")
        print("  a lower --micro_batch_size with the same --batch_size needs proportionally less of them")
    devices = found.smallest(have)
    if devices:
        file = shown_launch_config("gpus_fsdp2")
        print(f"  {file} shards it: that fits on at least {devices} such devices")


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
