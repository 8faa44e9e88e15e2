"""Initial weights in shards: a model is built without its large tensors, and each is filled only when it is needed.

The calls that fill the large tensors are recorded with the state of the random generator, and repeated later for one
tensor at a time. So the bits are those of a model that is built at once. Tensors of files are read when they are
needed, too.
Source: torchdistX, "Deferred Module Initialization", pytorch.org/torchdistx/latest/deferred_init.html.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only

from runner.checkpoints.tensors import Stored
from runner.parts.pretrained import late_reader

aten = torch.ops.aten
LARGE = 1 << 16
"""Number of elements from which on a tensor is filled later."""
FACTORIES = (aten.empty.memory_format, aten.zeros.default, aten.ones.default, aten.full.default)
OVERWRITES = ("normal_", "uniform_", "zero_", "fill_", "copy_", "random_")
"""Calls after which what a tensor held before does not count."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that wrote to a tensor without content."""

    function: Callable[..., object]
    arguments: tuple[object, ...]
    options: dict[str, object]
    random_state: torch.Tensor | None
    """The state of the CPU's generator before the call; None where it takes no random numbers."""
    written: tuple[torch.Tensor, ...]
    """The results, on the meta device."""
    overwrites: bool
    """Whether what the results held before does not count."""


class Deferred(TorchDispatchMode):
    """While it is active, large tensors get a shape and no content, and what fills them is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.is_inside = False
        self.is_meta_known = False
        self.disguise = ExitStack()

    def __enter__(self) -> "Deferred":
        """Begin to record."""
        self.disguise.enter_context(Disguise(self))
        self.disguise.callback(late_reader.reset, late_reader.set(self))
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        """End it."""
        super().__exit__(*error)
        self.disguise.close()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Perform a call, on the meta device where it concerns a large tensor."""
        self.is_inside = True
        try:
            return self._perform(func, args, dict(kwargs or {}))
        finally:
            self.is_inside = False

    def _perform(self, func: torch._ops.OpOverload, args: tuple[object, ...], options: dict[str, object]) -> object:
        if func in FACTORIES and _elements(args[0]) >= LARGE and _is_on_cpu(options):
            options["device"] = torch.device("meta")
        elif str(options.get("device")) == "meta" and not self.is_meta_known:
            # Such as transformers' `from_pretrained`, which fills its tensors by itself.
            raise NotImplementedError("a model that is built without content by its own code")
        inputs = _meta_tensors((args, options))
        if inputs and func == aten.equal.default:
            return torch.equal(*(self.filled(each) if each.is_meta else each for each in _tensors(args)))
        if inputs and func == aten._to_copy.default and _is_on_cpu(options):
            options["device"] = torch.device("meta")
        is_random = torch.Tag.nondeterministic_seeded in func.tags and bool(inputs) and not self.is_meta_known
        state = torch.get_rng_state() if is_random else None
        found = func(*args, **options)
        results = _meta_tensors(found)
        if not results or func.is_view:
            return found
        if is_random:
            # The generator must go on as if the tensor had been filled.
            func(*tree_map_only(torch.Tensor, _unfilled, args), **options)
        overwrites = func in FACTORIES or _overwrites(func, args)
        self.calls.append(Call(func, args, options, state, tuple(results), overwrites))
        return found

    def later(self, like: torch.Tensor, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A tensor as `like` without content, which `read` returns with its content whenever it is needed."""
        with _disable_current_modes():
            tensor = torch.empty(like.shape, dtype=like.dtype, device="meta")
        self.calls.append(Call(read, (), {}, None, (tensor,), overwrites=True))
        return tensor

    @contextmanager
    def without_disguise(self) -> Iterator[None]:
        """For code that builds models without content by itself, and fills what it finds so: torch's rules for the meta
        device hold."""
        self.is_meta_known = True
        try:
            yield
        finally:
            self.is_meta_known = False

    def filled(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor with its content, on the CPU."""
        needed, calls = {_storage(tensor)}, []
        for call in reversed(self.calls):
            written = {_storage(each) for each in call.written}
            if not written & needed:
                continue
            last_needed = {_storage(each) for each in _meta_tensors((call.arguments, call.options))}
            # Going backwards, the first call that needs a tensor is the last that does.
            calls.append((call, last_needed - needed))
            if call.overwrites:
                needed -= written
                last_needed -= written
            needed |= last_needed
        contents: dict[int, torch.Tensor] = {}
        before = torch.get_rng_state()
        for call, last_needed in reversed(calls):
            _repeat(call, contents)
            for storage in last_needed:
                contents.pop(storage, None)
        torch.set_rng_state(before)
        return _content(tensor, contents)

    def fill(self, model: nn.Module, part: nn.Module) -> None:
        """Fill the tensors of a part of the model, and put each at all places where the model has it."""
        places: dict[int, list[tuple[dict[str, torch.Tensor | None], str]]] = {}
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None and tensor.is_meta:
                        places.setdefault(id(tensor), []).append((held, name))  # type: ignore[arg-type]
        for tensor in [*part.parameters(), *part.buffers()]:
            if not tensor.is_meta:
                continue
            content = self.filled(tensor)
            if isinstance(tensor, nn.Parameter):
                attributes = tensor.__dict__
                content = nn.Parameter(content, tensor.requires_grad)
                for name, value in attributes.items():
                    setattr(content, name, value)
            for held, name in places[id(tensor)]:
                held[name] = content

    def tensors(self, named: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The tensors by name; each is filled anew whenever it is read."""
        return Filled(self, named)


class Disguise(TorchFunctionMode):
    """Lets tensors without content look as if they were on the CPU: torch skips initialisers on the meta device."""

    def __init__(self, deferred: Deferred) -> None:
        super().__init__()
        self.deferred = deferred

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Answer what a tensor's device is."""
        found = func(*args, **(kwargs or {}))
        if not self.deferred.is_inside and not self.deferred.is_meta_known:
            if func == torch.Tensor.is_meta.__get__:  # type: ignore[attr-defined]
                return False
            if func == torch.Tensor.device.__get__ and found == torch.device("meta"):  # type: ignore[attr-defined]
                return torch.device("cpu")
        return found


class _OfDeferred(Mapping[str, torch.Tensor]):
    """Tensors by name that belong to a deferred model."""

    def __init__(self, deferred: Deferred, named: Mapping[str, torch.Tensor]) -> None:
        self.deferred = deferred
        self.named = named

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)


class Filled(_OfDeferred):
    """Tensors by name, of which one at a time is filled."""

    def __getitem__(self, name: str) -> torch.Tensor:
        found = self.named[name]
        return self.deferred.filled(found) if found.is_meta else found


class ReadLate(_OfDeferred):
    """Tensors of files, of which the large ones are read when a deferred model needs them."""

    named: Stored

    def __getitem__(self, name: str) -> torch.Tensor:
        with self.deferred.without_disguise():
            like = self.named.like(name)
        is_large = like.numel() >= LARGE
        read = functools.partial(self.named.__getitem__, name)
        return self.deferred.later(like, read) if is_large else read()


def read_late(stored: Stored) -> Mapping[str, torch.Tensor]:
    """The tensors of files; while a deferred model is built, the large ones are read later."""
    reader = late_reader.get()
    return ReadLate(reader, stored) if isinstance(reader, Deferred) else stored


def built(seed: Callable[[], None], build: Callable[[], nn.Module]) -> tuple[nn.Module, Deferred | None]:
    """A model whose large tensors are deferred; one that is built at once where the code that builds it reads them."""
    seed()
    deferred = Deferred()
    try:
        with deferred:
            return build(), deferred
    except (NotImplementedError, RuntimeError):
        seed()
        return build(), None


def _repeat(call: Call, contents: dict[int, torch.Tensor]) -> None:
    if call.random_state is not None:
        torch.set_rng_state(call.random_state)

    def content(tensor: torch.Tensor) -> torch.Tensor:
        return _content(tensor, contents) if tensor.is_meta else tensor

    arguments, options = tree_map_only(torch.Tensor, content, (call.arguments, call.options))
    if options.get("device") == torch.device("meta"):
        options["device"] = torch.device("cpu")
    result = call.function(*arguments, **options)
    for old, new in zip(call.written, _tensors(result), strict=True):
        if _storage(old) not in contents or not _shares(new, contents[_storage(old)]):
            _content(old, contents).copy_(new)


def _content(tensor: torch.Tensor, contents: dict[int, torch.Tensor]) -> torch.Tensor:
    """The part of its storage's content that a tensor without content stands for."""
    storage = _storage(tensor)
    if storage not in contents:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        contents[storage] = torch.empty(size, dtype=tensor.dtype)
    whole = contents[storage].view(tensor.dtype)
    return whole.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def _shares(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


def _overwrites(function: torch._ops.OpOverload, arguments: tuple[object, ...]) -> bool:
    target = arguments[0] if arguments else None
    return (
        function._schema.name.removeprefix("aten::") in OVERWRITES
        and isinstance(target, torch.Tensor)
        and target.numel() * target.element_size() == target.untyped_storage().nbytes()
    )


def _unfilled(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _meta_tensors(tree: object) -> list[torch.Tensor]:
    return [tensor for tensor in _tensors(tree) if tensor.is_meta]


def _elements(shape: object) -> int:
    assert isinstance(shape, Sequence)
    return torch.Size(shape).numel()


def _is_on_cpu(options: Mapping[str, object]) -> bool:
    return torch.device(options.get("device") or "cpu").type == "cpu"  # type: ignore[arg-type]
