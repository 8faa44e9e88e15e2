"""The hardware of a run: device, number of processes and precision; and the random seeds of a lane."""

import contextlib
import ctypes
import dataclasses
import datetime
import functools
import os
import platform
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list
from torch import nn

from runner.checkpoints.tensors import is_sharded
from runner.errors import ConfigError, RelayError
from runner.parts.installation import launch_line, shown_launch_config
from runner.settings import RunSettings

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The device, the process group and the precision of a run."""

    accelerator: Accelerator
    precision: str
    """"no", "bf16" or "fp16"."""
    reason: str
    """Why this precision."""
    is_sharded: bool = False
    """Whether weights, gradients and optimiser are cut over the processes (FSDP2)."""
    trims: bool = False
    """Whether memory on a CPU goes back to the system after each lane."""
    host_group: torch.distributed.ProcessGroup | None = None
    """What carries the numbers that processes tell each other; None: what carries the gradients."""

    @property
    def num_processes(self) -> int:
        """The real world size."""
        return self.accelerator.num_processes

    @property
    def process(self) -> int:
        """The rank of this process."""
        return self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return self.accelerator.device

    def from_main(self, value: Value) -> Value:
        """The main process's value, on every process."""
        return broadcast_object_list([value], from_process=0)[0] if self.num_processes > 1 else value

    def on_main(self, question: Callable[[], Value]) -> Value:
        """The answer of the main process, on every process; a RelayError that it raises is raised on all of them."""
        answer: Value | None = None
        wrong: RelayError | None = None
        if self.is_main:
            try:
                answer = question()
            except RelayError as error:
                wrong = error
        answer, wrong = self.from_main((answer, wrong))
        if wrong is not None:
            wrong.is_of_one_process = False
            raise wrong
        return cast(Value, answer)

    def sum(self, numbers: list[float]) -> list[float]:
        """Each number, added up over the processes."""
        return self._reduced(numbers, torch.distributed.ReduceOp.SUM)

    def gathered(self, numbers: list[float]) -> list[list[float]]:
        """The numbers of each process, as many of each, in the order of the processes."""
        if self.num_processes == 1:
            return [numbers]
        own = self._packed(numbers)
        together = [torch.empty_like(own) for _ in range(self.num_processes)]
        torch.distributed.all_gather(together, own, self.host_group)
        return torch.stack(together).tolist()

    def summed(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor added up over the processes, as float32, without waiting for the device."""
        if self.num_processes == 1:
            return tensor.float()
        packed = tensor.double()
        torch.distributed.all_reduce(packed)
        return packed.float()

    def max(self, number: float) -> float:
        """The largest of the processes' numbers."""
        return self._reduced([number], torch.distributed.ReduceOp.MAX)[0]

    def any(self, condition: bool) -> bool:
        """Whether it holds on any process."""
        return self.max(float(condition)) > 0

    def any_later(self, condition: bool) -> Callable[[], bool]:
        """Ask whether it holds on any process, and go on; what is returned gives the answer, and waits for it."""
        packed = self._packed([float(condition)])
        work = torch.distributed.all_reduce(packed, torch.distributed.ReduceOp.MAX, self.host_group, async_op=True)
        assert work is not None

        def answer() -> bool:
            work.wait()
            return packed.item() > 0

        return answer

    def _reduced(self, numbers: list[float], how: torch.distributed.ReduceOp.RedOpType) -> list[float]:
        if self.num_processes == 1:
            return [float(number) for number in numbers]
        packed = self._packed(numbers)
        torch.distributed.all_reduce(packed, how, self.host_group)
        return packed.tolist()

    def _packed(self, numbers: list[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self.device if self.host_group is None else "cpu")

    def merged(self, own: dict[str, Any]) -> dict[str, Any]:
        """The entries of every process's dictionary."""
        if self.num_processes == 1:
            return own
        together: list[Any] = [None] * self.num_processes
        torch.distributed.all_gather_object(together, own, self.host_group)
        return {name: value for each in together for name, value in each.items()}

    def post(self, note: str) -> None:
        """Leave a note for all processes, without waiting for them."""
        if torch.distributed.is_initialized():
            torch.distributed.distributed_c10d._get_default_store().set(note, "1")

    def is_posted(self, note: str) -> bool:
        """Whether a process has left this note."""
        if not torch.distributed.is_initialized():
            return False
        return torch.distributed.distributed_c10d._get_default_store().check([note])

    @torch.no_grad()
    def mean_gradients(self, model: nn.Module) -> None:
        """Average the gradients over the processes, as DDP does inside backward."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.num_processes

    def for_size(self, parameters: int) -> "Hardware":
        """This hardware, for a model of so many parameters."""
        return dataclasses.replace(self, trims=self.device.type == "cpu" and parameters >= TRIMMED_PARAMETERS)

    def end_lane(self) -> None:
        """Give memory back to the system where that is worth its time."""
        if self.trims:
            trim_memory()

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which a model computes in this run's precision."""
        # Accelerate's own looks up its state at every call.
        return nullcontext() if self.precision == "no" else self.accelerator.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of a loss; scaled where fp16 needs it. If the loss is not finite, all of them are NaN."""
        # Infinity less infinity is NaN. So this is 1 for a finite loss, and no process waits for the device to tell.
        value = loss.detach()
        first = (value - value).exp()
        # Accelerate's own looks for installed packages at every call, and divides by what the lanes have counted.
        if self.accelerator.scaler is not None:
            self.accelerator.backward(loss, gradient=first)
        elif (run_engine := engine()) is not None:
            run_engine((loss,), (first,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        else:
            loss.backward(first)

    @property
    def runs_behind(self) -> bool:
        """Whether the device works through what it was given while this process goes on, and nothing makes it wait."""
        return self.device.type == "cuda" and self.accelerator.scaler is None and not self.is_sharded

    def clip_unseen(self, parameters: Sequence[nn.Parameter], limit: float) -> torch.Tensor:
        """Scale the gradients down to a norm of at most `limit`; returns the norm that they had, on the device."""
        norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        """Scale the gradients down to a norm of at most `limit`; returns the norm that they had."""
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients()
        norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        value = float(norm.full_tensor() if is_sharded(norm) else norm)
        # torch's clip_grad_norm_ does not wait for the norm, so it multiplies gradients that are small enough by 1.
        # Within a hundredth of the limit, torch's rounding decides.
        if value + ADDED_TO_NORM > 0.99 * limit:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return value

    def in_fp32(self, reason: str) -> "Hardware":
        """This hardware, where the model that follows computes in fp32 and not in bf16."""
        # The accelerator's state cannot be changed; this is what its autocast and its `prepare` ask.
        self.accelerator.native_amp = False
        return dataclasses.replace(self, precision="no", reason=reason)

    def describe(self) -> str:
        """One line for people: device, processes, precision."""
        processes = "1 process" if self.num_processes == 1 else f"{self.num_processes} processes"
        processes += ", sharded (FSDP2)" if self.is_sharded else ""
        return f"{device_name(self.device)}, {processes}, precision {self.precision} ({self.reason})"


@functools.cache
def engine() -> Callable[..., object] | None:
    """What `Tensor.backward` calls after its checks; None in a version of torch where this is something else.

    The checks compare shapes, which are equal here, and import sympy for it: 0.2 s once, and 20 us for each lane.
    """
    try:
        from torch.autograd.graph import _engine_run_backward

        leaf, first = torch.ones((), requires_grad=True), torch.full((), 3.0)
        _engine_run_backward((2 * leaf,), (first,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        return _engine_run_backward if leaf.grad is not None and leaf.grad.item() == 6.0 else None
    except Exception:
        # Whatever another version has under this name, `Tensor.backward` does the same.
        return None


class Arriving:
    """A number on its way from the device to this process, which does not wait for it until it reads it."""

    def __init__(self, number: torch.Tensor) -> None:
        self.on_host = number.detach().to("cpu", non_blocking=True)
        self.arrival = torch.cuda.current_stream(number.device).record_event() if number.is_cuda else None

    def __float__(self) -> float:
        if self.arrival is not None:
            self.arrival.synchronize()
        return float(self.on_host)


ADDED_TO_NORM = 1e-6
"""What torch adds to a norm before it divides the limit by it."""


def _join_again(limit: datetime.timedelta, device_type: str) -> None:
    """Make the process group, if `torchrun --max-restarts` has started the processes of one machine again.

    torchrun starts them with the store of the attempt before. It still has the addresses of processes that are gone,
    and marks of how the run ended. So this attempt gets names of its own. On several machines the counts of restarts
    differ from machine to machine: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun take a new store each time.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not (attempt and has_store and world == local > 1) or torch.distributed.is_initialized():
        return
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=limit)
    torch.distributed.init_process_group(
        "gloo" if device_type == "cpu" else "cpu:gloo,cuda:nccl",
        store=torch.distributed.PrefixStore(f"attempt-{attempt}", store),
        rank=int(os.environ["RANK"]),
        world_size=world,
        timeout=limit,
    )


def open_hardware(settings: RunSettings) -> Hardware:
    """Choose device and precision and join the other processes.

    Raises ConfigError if fewer processes run than requested, or if the device does not support the precision.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    asked = _asked_processes()
    if asked is not None and asked != started:
        raise ConfigError(
            f"{asked} processes were asked for, but accelerate launch started {started}: without GPUs it does so "
            f"silently.\nType {launch_line('cpu_2')} ..., "
            f"or torchrun --standalone --nproc_per_node {asked} -m runner train ..."
        )
    device_type = best_device_type()
    precision, reason = choose_precision(settings.mixed_precision, device_type)
    # Asked for in accelerate's config, done by torch itself: accelerate's own way silently runs plain data
    # parallelism on a CPU.
    is_sharded = os.environ.pop("ACCELERATE_USE_FSDP", "").lower() in ("1", "true") and started > 1
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true"):
        raise ConfigError(
            "DeepSpeed was asked for, whose engine takes the step out of Relay's hands: it is not supported.\n"
            f"Type --config_file {shown_launch_config('gpus_fsdp2')}, which shards as ZeRO-3 does."
        )
    if is_sharded and settings.deterministic:
        raise ConfigError(
            "--deterministic sums whole gradients, which FSDP cuts into shards: leave one of the two out.\n"
            f"Type --config_file {shown_launch_config('gpus_ddp')}, or leave --deterministic out."
        )
    set_allocator(settings, device_type)
    if is_sharded and device_type == "cpu":
        return_large_blocks()
    # The lanes are the accumulation; accelerate would let this variable override the code.
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    limit = datetime.timedelta(seconds=min(settings.ddp_timeout, 1e8))
    _join_again(limit, device_type)
    accelerator = Accelerator(
        cpu=device_type == "cpu",
        mixed_precision=precision,
        log_with=None if settings.report_to == "none" else settings.report_to,
        project_dir=settings.output_dir,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=limit),
        ],
    )
    if accelerator.num_processes != started:
        raise ConfigError(
            f"{started} processes were started, but accelerate joined {accelerator.num_processes} of them.\n"
            f"Type {launch_line('cpu_2')} ..."
        )
    return Hardware(accelerator, precision, reason, is_sharded, host_group=host_group(accelerator.device, limit))


def host_group(device: torch.device, limit: datetime.timedelta) -> torch.distributed.ProcessGroup | None:
    """A group of all processes that carries numbers from host to host; None where the processes need none.

    NCCL carries what is on GPUs, in the order of all other work: a process that reads a sum from it waits until its GPU
    has done all that it was given.
    """
    if device.type != "cuda" or not torch.distributed.is_initialized():
        return None
    group = torch.distributed.new_group(backend="gloo", timeout=limit)
    return cast(torch.distributed.ProcessGroup, group)


def set_allocator(settings: RunSettings, device_type: str) -> None:
    """Let CUDA's allocator grow its segments, if the settings say so. Call it before anything is allocated."""
    if settings.use_expandable_segments and device_type == "cuda":
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""The numbers of glibc's malloc.h."""
LARGE_BLOCK = 1 << 18
"""Bytes from which on memory on a CPU goes back to the system as soon as it is free."""


TRIMMED_PARAMETERS = 100_000_000
"""Models from this size on are trimmed after each lane: it takes about a second, and a lane takes many."""


def trim_memory() -> None:
    """Let glibc give the free pages of its heap back to the system.

    Lanes of changing lengths leave gaps in the heap, which grow from step to step. Source: man 3 malloc_trim.
    """
    if platform.system() == "Linux":
        # Another C library than glibc lacks the function.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks() -> None:
    """Let glibc give large blocks back as soon as they are free.

    By itself it learns to keep blocks of up to 32 MB. Layers that FSDP2 gathers and discards in turn then leave gaps
    between them, which hold twice the memory of the shards. Source: man 3 mallopt, M_MMAP_THRESHOLD.
    """
    if platform.system() == "Linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        # Another C library than glibc lacks the function.
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
                mallopt(parameter, LARGE_BLOCK)


def best_device_type() -> str:
    """The fastest kind of device here: cuda, mps or cpu."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def choose_precision(requested: str, device_type: str) -> tuple[str, str]:
    """The precision for the requested one, and the reason. `runner/precision.py` measures that of `auto` on a CPU.

    Raises ConfigError for fp16 on a CPU: accelerate would silently use fp32.
    """
    if requested == "fp16" and device_type == "cpu":
        raise ConfigError("fp16 was asked for, but a CPU has no fp16 training: type --mixed_precision bf16 or no.")
    # The two instruction sets that multiply bf16 without converting; torch has no public question for them.
    is_native = device_type != "cpu" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if requested != "auto":
        is_slow = requested == "bf16" and not is_native
        return requested, "as asked; this CPU has no native bf16: --mixed_precision no" if is_slow else "as asked"
    if device_type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU computes in it natively") if native else ("no", "the GPU has no native bf16")
    if device_type == "cpu":
        return ("bf16", "the CPU computes in it natively") if is_native else ("no", "the CPU has no native bf16")
    return "no", "bf16 on MPS is not native on every chip; --mixed_precision bf16 turns it on"


def device_name(device: torch.device) -> str:
    """The device as people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kind = "Apple GPU (MPS)" if device.type == "mps" else "CPU"
    return f"{kind} {platform.machine()}, {torch.get_num_threads()} threads"


def seed_everything(seed: int) -> None:
    """Seed every random generator that a recipe may use: random, numpy, and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed does the same, and queues a call with a formatted stack for every kind of device that is not
    # here: 2 ms each time, and memory that grows with the steps.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _asked_processes() -> int | None:
    """How many processes the `accelerate launch` above us was asked for; None where it was not, or is not there."""
    if "WORLD_SIZE" in os.environ:
        return None
    import psutil

    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    if not any(word.endswith(("accelerate", "accelerate.exe")) or "accelerate.commands" in word for word in words[:3]):
        return None
    asked = _flag(words, "--num_processes") or _flag(words, "--num-processes")
    if asked is not None:
        return int(asked)
    config_file = _flag(words, "--config_file") or _flag(words, "--config-file")
    if config_file is None:
        return None
    import yaml

    try:
        with open(config_file, encoding="utf-8") as file:
            return int(yaml.safe_load(file).get("num_processes", 1))
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):
        return None


def _flag(words: list[str], name: str) -> str | None:
    for place, word in enumerate(words):
        if word == name and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
