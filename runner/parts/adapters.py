"""Low-rank adapters on frozen weights, by PEFT: their settings, and a model of which only they train.

Source: Hu et al. 2021 (LoRA), arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from runner.errors import ConfigError
from runner.parts.setting_types import Commas

if TYPE_CHECKING:
    from peft import LoraModel, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters on frozen weights."""

    rank: int = 0
    """Rank of the adapters; 0: all weights train."""
    alpha: float = 16.0
    """The adapters' output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout of the adapters' input, as a share."""
    target_modules: Commas | None = None
    """Names of the matrices that get adapters, with commas between them; none: every one but the output."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"lora.rank is {self.rank}: type a number of at least 0.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}: type a number from 0 to below 1.")
        if not self.alpha > 0:
            raise ConfigError(f"lora.alpha is {self.alpha}: type a number above 0.")


def with_adapters(
    model: PreTrainedModel,
    settings: LoraSettings,
    target_modules: str | Sequence[str] = "all-linear",
    target_parameters: Sequence[str] = (),
    new_tokens: Sequence[int] | None = None,
) -> PeftModel:
    """A frozen causal model with adapters that train.

    `target_modules`: the modules to adapt where settings.target_modules is not given. `target_parameters`: names of
    weights that are no modules of their own, such as those of experts. `new_tokens`: ids whose embeddings train too.
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
    adapted.__class__ = _adapted_class()  # type: ignore[assignment]
    # Where the embeddings of new tokens train, they are saved with the adapters, and the full table is not.
    adapted.saved_embeddings = "auto" if new_tokens is None else False  # type: ignore[assignment]
    return adapted


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


@functools.cache
def _adapted_class() -> type[PeftModel]:
    import peft
    from safetensors.torch import save_file

    class Adapted(peft.PeftModelForCausalLM):
        """A model with adapters that is saved and merged as Relay needs it."""

        saved_embeddings: bool | str

        def save_pretrained(  # type: ignore[override]
            self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **more: object
        ) -> None:
            """Write the adapters in PEFT's format, and all weights beside them."""
            # A matrix that is input and output has two names, and is written under the first.
            found: dict[int, tuple[str, Tensor]] = {}
            for name, value in (state_dict or self.state_dict()).items():
                found.setdefault(value.data_ptr(), (name, value.contiguous()))
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
