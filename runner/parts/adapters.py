"""Low-rank adapters on frozen weights, by PEFT: their settings, and a model of which only they train.

Source: Hu et al. 2021 (LoRA), arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from runner.errors import CheckpointError, ConfigError
from runner.parts.pretrained import find_pretrained, is_path
from runner.parts.setting_types import AtLeast0, Commas, Positive, ShareBelow1, check_ranges

if TYPE_CHECKING:
    from peft import LoraModel, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters on frozen weights."""

    rank: AtLeast0 = 0
    """Rank of the adapters; 0: all weights train."""
    alpha: Positive = 16.0
    """The adapters' output is multiplied by alpha / rank."""
    dropout: ShareBelow1 = 0.0
    """Dropout of the adapters' input, as a share."""
    target_modules: Commas | None = None
    """Names of the matrices that get adapters, with commas between them; none: every one but the output."""

    def __post_init__(self) -> None:
        check_ranges(self, "lora.")


def with_adapters(
    model: PreTrainedModel,
    settings: LoraSettings,
    target_modules: str | Sequence[str] = "all-linear",
    target_parameters: Sequence[str] = (),
    new_tokens: Sequence[int] | None = None,
    base_is_elsewhere: bool = False,
) -> PeftModel:
    """A frozen causal model with adapters that train.

    `target_modules`: the modules to adapt where settings.target_modules is not given. `target_parameters`: names of
    weights that are no modules of their own, such as those of experts. `new_tokens`: ids whose embeddings train too.
    `base_is_elsewhere`: the base was loaded from a folder that stays as it is, so that checkpoints leave it out.
    Raises ConfigError where the settings do not fit the model.
    """
    import peft

    requested = [name.strip() for name in (settings.target_modules or "").split(",") if name.strip()]
    if new_tokens:
        _check_tables(model, requested)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=requested or target_modules,  # type: ignore[arg-type]
        target_parameters=list(target_parameters) or None,
        trainable_token_indices=list(new_tokens or ()) or None,
    )
    try:
        with warnings.catch_warnings():
            # PEFT uses a name that transformers has changed.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("error", "target_modules=.* no module was matched", RuntimeWarning)
            # `merge_and_unload` below unties the weights.
            warnings.filterwarnings("ignore", ".*tie_word_embeddings")
            # PEFT sets it as GPT-2 needs it.
            warnings.filterwarnings("ignore", "fan_in_fan_out")
            adapted = peft.get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeWarning) as error:
        raise ConfigError(f"lora.target_modules does not fit this model: {str(error).splitlines()[0]}") from None
    if target_parameters:
        from runner.parts.expert_adapters import adapt_tokens

        adapt_tokens(adapted)
    adapted.__class__ = _adapted_class()  # type: ignore[assignment]
    # Where the embeddings of new tokens train, they are saved with the adapters, and the full table is not.
    adapted.saved_embeddings = "auto" if new_tokens is None else False  # type: ignore[assignment]
    adapted.base_is_elsewhere = base_is_elsewhere  # type: ignore[assignment]
    return adapted


def linear_names(model: PreTrainedModel) -> list[str]:
    """The names of all matrices that are modules, but the output.

    PEFT's own "all-linear" adds experts and routers of some classes, with twice the rank.
    """
    import torch

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    output = model.get_output_embeddings()
    return sorted({name.rpartition(".")[2] for name in linear if model.get_submodule(name) is not output})


def hold_base_in_bf16(model: nn.Module, precision: str) -> None:
    """Hold the frozen matrices of a base in bf16, if `precision` is bf16 and the base lies elsewhere.

    It changes no result under bf16 autocast, which rounds the matrices of linear layers at each forward pass. Experts
    then multiply in bf16 also where they have few tokens.
    Embeddings are held in bf16 if that is exact, as it is where the base was saved in bf16, and if no tokens of their
    own train.
    """
    import torch

    from runner.parts.expert_adapters import weights_of_experts

    if precision != "bf16" or not getattr(model, "base_is_elsewhere", False):
        return
    table = cast("PeftModel", model).get_base_model().get_input_embeddings()  # type: ignore[operator]
    has_new_tokens = hasattr(table, "token_adapter")
    embeddings = _tables(cast("PeftModel", model))[0].weight
    for weight in weights_of_experts(model):
        if weight.dtype == torch.float32 and not weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.nn.Parameter) or weight.requires_grad or weight.dtype != torch.float32:
            continue
        half = weight.data.to(torch.bfloat16)
        if isinstance(module, torch.nn.Linear) and weight is not embeddings:
            weight.data = half
        elif isinstance(module, torch.nn.Embedding) and not has_new_tokens and half.to(weight.dtype).equal(weight.data):
            weight.data = half
            module.register_forward_hook(_in_fp32)


def _in_fp32(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The embeddings of a table in bf16 as one in fp32 gives them: the residual stream stays in fp32."""
    import torch

    table = cast("nn.Embedding", module)
    rows = torch.nn.functional.embedding(inputs[0], table.weight, table.padding_idx).float()
    # Gemma multiplies its embeddings.
    scale = getattr(module, "embed_scale", None)
    return rows if scale is None else rows * scale.float()


def _check_tables(model: PreTrainedModel, requested: Sequence[str]) -> None:
    """Raise ConfigError where embeddings are to have both adapters and new tokens that train: PEFT allows one."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [first, last] if last is not None and first.weight is last.weight else [first]
    names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if any(module is each for each in tables)
    }
    taken = [name for name in requested if name.rpartition(".")[2] in names]
    if taken:
        raise ConfigError(
            f"lora.target_modules names {taken[0]}, in which the new tokens train already: leave it out of "
            "lora.target_modules."
        )


def _tables(adapted: PeftModel) -> list[nn.Module]:
    """The input and the output embeddings, inside of their adapters."""
    base = adapted.get_base_model()
    found = [base.get_input_embeddings(), base.get_output_embeddings()]  # type: ignore[operator]
    return [table.get_base_layer() if hasattr(table, "get_base_layer") else table for table in found]


def are_tied(adapted: PeftModel) -> bool:
    """Whether one matrix is both the input and the output embeddings."""
    first, last = _tables(adapted)
    return first.weight is last.weight


def adapts_a_table(adapted: PeftModel) -> bool:
    """Whether the input or the output embeddings have adapters."""
    from peft.tuners.lora import LoraLayer

    base = adapted.get_base_model()
    return any(isinstance(table, LoraLayer) for table in (base.get_input_embeddings(), base.get_output_embeddings()))  # type: ignore[operator]


@contextlib.contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """While it is active, the adapters are part of the weights, which are faster to compute with.

    Afterwards the weights are the tensors that they were. A model in pieces (FSDP), weights that are not fp32 all
    through, in which adapters would lose digits, and adapters of one of two tied tables stay as they are.
    """
    if not _can_merge(model):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [each for each in model.modules() if isinstance(each, BaseTunerLayer)]
    held = {id(each): (each, each.data) for each in model.parameters() if not each.requires_grad}
    try:
        for layer in layers:
            # What is adapted only: a copy of all weights would double the memory.
            for parameter in layer.get_base_layer().parameters(recurse=False):
                if id(parameter) in held and held[id(parameter)][1].data_ptr() == parameter.data.data_ptr():
                    parameter.data = parameter.data.clone()
            layer.merge()
        yield
    finally:
        for parameter, before in held.values():
            parameter.data = before
        for layer in layers:
            layer.merged_adapters.clear()


def _can_merge(model: nn.Module) -> bool:
    import torch

    adapted = next(
        (each for each in model.modules() if hasattr(each, "peft_config") and hasattr(each, "base_model")), None
    )
    # PEFT is not imported for a model without adapters.
    if adapted is None or torch.is_autocast_enabled(next(model.parameters()).device.type):
        return False
    is_whole = all(type(each) is torch.nn.Parameter for each in model.parameters())
    is_wide = all(each.dtype in (torch.float32, torch.float64) for each in model.parameters())
    if not is_whole or not is_wide:
        return False
    peft_model = cast("PeftModel", adapted)
    return not (are_tied(peft_model) and adapts_a_table(peft_model))


BASE = "base.json"
"""The file in the assets of a run with adapters that says where the weights of its base are."""


class Base(TypedDict):
    """The base of a run with adapters, as `base.json` in its assets records it."""

    path: str
    """Its folder when the run started, or its id on the hub."""
    content: str
    """A hash of all its weights."""


def content_of(folder: Path) -> str:
    """A hash of the weights of a folder, whatever their files are called."""
    import xxhash

    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    content = xxhash.xxh3_128()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                content.update(block)
    return content.hexdigest()


def check_base(base: Base, folder: Path) -> None:
    """Raise CheckpointError where the base of a run with adapters is missing or has other weights than it had."""
    advice = f"type --model.pretrained with a folder of {base['path']} as it was (content {base['content'][:12]})."
    if not folder.exists():
        raise CheckpointError(
            f"The base of these adapters is not at {folder}, and checkpoints hold the adapters alone:\n{advice}"
        )
    found = content_of(folder)
    if found != base["content"]:
        raise CheckpointError(
            f"{folder} holds other weights (content {found[:12]}) than the base of these adapters:\n{advice}"
        )


def record_base(requested: str, assets: Path) -> None:
    """Write which weights `model.pretrained` means into the assets. Raises DataError where they are nowhere."""
    base = Base(path=requested, content=content_of(find_pretrained(requested)))
    (assets / BASE).write_text(json.dumps(base, indent=1) + "\n", encoding="utf-8")


def find_base(requested: str, assets: Path) -> Path:
    """The folder or file of the base that the assets record, looked for where `model.pretrained` says.

    Raises CheckpointError where it is missing or has other weights than it had.
    """
    base = Base(**json.loads((assets / BASE).read_text(encoding="utf-8")))
    place = Path(requested) if is_path(requested) else find_pretrained(requested)
    check_base(base, place)
    return place


@functools.cache
def _adapted_class() -> type[PeftModel]:
    import peft
    from safetensors.torch import save_file

    class Adapted(peft.PeftModelForCausalLM):
        """A model with adapters that is saved and merged as Relay needs it."""

        saved_embeddings: bool | str
        base_is_elsewhere: bool
        """Whether checkpoints leave the base out."""

        def save_pretrained(  # type: ignore[override]
            self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **more: object
        ) -> None:
            """Write the adapters in PEFT's format, and beside them the weights by the names that a checkpoint has."""
            # A matrix that is input and output has two names, and is written under the first.
            found: dict[int, tuple[str, Tensor]] = {}
            for name, value in (state_dict or self.state_dict()).items():
                found.setdefault(value.data_ptr(), (name, value.contiguous()))
            if state_dict is not None:
                more["state_dict"] = state_dict
            super().save_pretrained(str(save_directory), save_embedding_layers=self.saved_embeddings, **more)  # type: ignore[arg-type]
            save_file(dict(found.values()), Path(save_directory) / "model.safetensors", metadata={"format": "pt"})

        def merge_and_unload(self) -> PreTrainedModel:
            """Add the adapters to the weights, and return the model without them.

            An adapter of one of two tied embeddings must not change the other: the merged model has two matrices.
            """
            if are_tied(self) and adapts_a_table(self):
                base, (_, output) = self.get_base_model(), _tables(self)
                shared = cast("nn.Parameter", output.weight)
                output.weight = type(shared)(shared.detach().clone(), False)
                base.config.tie_word_embeddings = False  # type: ignore[union-attr]
            return cast("LoraModel", self.base_model).merge_and_unload()  # type: ignore[return-value]

    return Adapted
