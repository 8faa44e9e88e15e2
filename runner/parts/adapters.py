"""Low-rank adapters on frozen weights, by PEFT: the settings, and the model that learns only them.

Source: Hu et al. 2021 (LoRA), arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ConfigError
from runner.parts.setting_types import Commas

if TYPE_CHECKING:
    from torch import Tensor


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


def with_adapters(
    model: Any,
    settings: LoraSettings,
    target_modules: str | Sequence[str] = "all-linear",
    target_parameters: Sequence[str] = (),
    new_tokens: Sequence[int] | None = None,
) -> Any:
    """A frozen causal model with adapters that train.

    `target_modules`: what settings.target_modules stands for when it is not given. `target_parameters`: names of
    weights that are no modules of their own, such as those of experts. `new_tokens`: ids whose embeddings train too.
    Raises ConfigError where the settings do not fit the model.
    """
    import peft

    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules.split(",") if settings.target_modules else target_modules,  # type: ignore[arg-type]
        target_parameters=list(target_parameters) or None,
        trainable_token_indices=list(new_tokens or ()) or None,
    )
    try:
        with warnings.catch_warnings():
            # PEFT asks for a name that transformers has changed.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("error", "target_modules=.* no module was matched", RuntimeWarning)
            adapted: Any = peft.get_peft_model(model, config)
    except (ValueError, RuntimeWarning) as error:
        raise ConfigError(f"lora.target_modules does not fit this model: {str(error).splitlines()[0]}") from None
    adapted.__class__ = _adapted_class()
    # Where the embeddings of new tokens train, they are saved with the adapters, and the whole table is not.
    adapted.saved_embeddings = "auto" if new_tokens is None else False
    return adapted


@functools.cache
def _adapted_class() -> Any:
    import peft
    from safetensors.torch import save_file

    class Adapted(peft.PeftModelForCausalLM):
        """A model with adapters, whose folder holds the adapters in PEFT's format and all weights beside them."""

        saved_embeddings: bool | str

        def save_pretrained(self, save_directory: Any, state_dict: Any = None, **more: Any) -> None:  # type: ignore[override]
            """Write both."""
            # A matrix that is input and output has two names, and is written under the first.
            found: dict[int, tuple[str, Tensor]] = {}
            for name, value in (state_dict or self.state_dict()).items():
                found.setdefault(value.data_ptr(), (name, value.contiguous()))
            super().save_pretrained(str(save_directory), save_embedding_layers=self.saved_embeddings, **more)
            save_file(dict(found.values()), Path(save_directory) / "model.safetensors", metadata={"format": "pt"})

    return Adapted
