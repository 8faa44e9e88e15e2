"""The decoder, a class of transformers; how its tokens are routed to experts, and the losses of its routers."""

from typing import TYPE_CHECKING

from runner.errors import ConfigError, DataError
from runner.parts import adapters
from runner.parts.pretrained import arguments_of, find_pretrained, read_pretrained
from runner.parts.upcycling import is_to_be_upcycled, upcycled

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from recipes.text2sql.settings import LoraSettings, ModelSettings

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn


class DroppingEmbedding(nn.Embedding):
    """Token embeddings with dropout: Mixtral has none outside attention, and small data needs it."""

    dropout = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """(...) int64 -> (..., hidden)."""
        return nn.functional.dropout(super().forward(input), self.dropout, self.training)


def build(
    settings: "ModelSettings", vocab_size: int, max_seq_length: int, pad: int | None, eos: int | None
) -> "PreTrainedModel":
    """A fresh decoder: Mixtral's, or Qwen3's, which also normalises queries and keys."""
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.num_hidden_layers,
        "num_attention_heads": settings.num_attention_heads,
        "num_key_value_heads": settings.num_key_value_heads,
        "num_experts_per_tok": settings.num_experts_per_tok,
        "max_position_embeddings": max(4096, max_seq_length),
        "attention_dropout": settings.dropout,
        "tie_word_embeddings": True,
        # Ours is added, per layer and with padding masked; theirs pools the layers.
        "router_aux_loss_coef": 0.0,
        "pad_token_id": pad,
        "bos_token_id": None,
        "eos_token_id": eos,
    }
    experts, width = settings.num_fresh_experts, settings.intermediate_size
    if settings.family == "mixtral":
        return transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**shape, num_local_experts=experts, intermediate_size=width, sliding_window=None)
        )
    shape |= {"num_experts": experts, "moe_intermediate_size": width, "intermediate_size": width}
    shape |= {"head_dim": settings.hidden_size // settings.num_attention_heads, "norm_topk_prob": True}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**shape))


def drop_embeddings(model: "PreTrainedModel", dropout: float) -> None:
    """Dropout of the token embeddings, under their own name."""
    embedding = model.get_input_embeddings()
    embedding.__class__ = DroppingEmbedding
    assert isinstance(embedding, DroppingEmbedding)
    embedding.dropout = dropout


# A model that was trained before -----------------------------------------------------------------------


def keep_base(
    settings: "ModelSettings", folder: Path, more_tokens: Sequence[str], is_plain: bool, has_adapters: bool
) -> None:
    """Write the tokenizer of a trained model, and its config, or, of a run with adapters, where its weights are.

    Raises DataError where they cannot be read, and ConfigError where the model cannot become a mixture of experts.

    The tokenizer gets the tokens of Relay's prompts and `more_tokens`; where prompts are plain, only if it has them.
    """
    from transformers import AutoConfig, AutoTokenizer

    from recipes.text2sql.prompts import prompt

    requested = settings.pretrained or ""
    place = find_pretrained(requested)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**arguments_of(place))
        config = AutoConfig.from_pretrained(**arguments_of(place))
    # Readers raise errors of their own.
    except Exception as error:
        raise _unreadable(requested, error) from None
    is_to_be_upcycled(config, settings.num_local_experts)
    if tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": "<eos>"})
    if tokenizer.pad_token_id is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    if not is_plain or "<query>" in tokenizer.get_added_vocab():
        ours = [token for token in prompt.SPECIAL_TOKENS if token not in ("<pad>", "<eos>")]
        tokenizer.add_tokens([*ours, *more_tokens], special_tokens=True)
    tokenizer.save_pretrained(folder)
    if has_adapters:
        adapters.record_base(requested, folder)
        return
    (folder / "base_config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(
        f"model.pretrained {path} cannot be loaded: {' '.join(str(error).split())[:200]}\n"
        "Type --model.pretrained with a folder that holds a decoder and its tokenizer, such as final/ of a run."
    )


def pretrained(
    settings: "ModelSettings", tokenizer: "PreTrainedTokenizerBase | None", assets: Path | None, has_adapters: bool
) -> tuple["PreTrainedModel", list[int], bool]:
    """A trained decoder, which tokens it has not seen before, and whether it has been upcycled.

    Raises DataError where it cannot be read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    requested = settings.pretrained or ""
    kept = assets and assets / "base_config.json"
    if has_adapters and assets and (assets / adapters.BASE).is_file():
        model = read_pretrained(adapters.find_base(requested, assets), settings.load_in)
    elif not Path(requested).exists() and kept and kept.is_file():
        # The base has been moved away; its weights are in the checkpoint as well.
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(kept))
    else:
        model = read_pretrained(find_pretrained(requested), settings.load_in)
    is_upcycled = is_to_be_upcycled(model.config, settings.num_local_experts)
    model = upcycled(model, settings)
    # Ours is added, per layer and with padding masked.
    if hasattr(model.config, "router_aux_loss_coef"):
        model.config.router_aux_loss_coef = 0.0
    if tokenizer is None:
        return model, [], is_upcycled
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    known = len(embedding.weight)
    if len(tokenizer) > known:
        _add_rows(model, tokenizer, known)
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    return model, list(range(known, len(tokenizer))), is_upcycled


@torch.no_grad()
def _add_rows(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", known: int) -> None:
    """Give each new token the mean of the embeddings of its name's pieces, in both tables.

    So the rows depend on the base alone, and a checkpoint with adapters need not hold those that do not train.
    """
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = [cast(Tensor, module.weight) for module in modules if module is not None]
    # Input and output may be one matrix.
    tables = {id(table): table for table in found}.values()
    for token in range(known, len(tokenizer)):
        name = str(tokenizer.convert_ids_to_tokens(token)).strip("<>")
        pieces = [each for each in tokenizer(name, add_special_tokens=False)["input_ids"] if each < known]
        for table in tables:
            table[token] = table[pieces].mean(0) if pieces else 0.0


def config_of(model: nn.Module) -> "PretrainedConfig":
    """The config of a model, also inside data parallelism's wrapper."""
    return cast("PretrainedConfig", (model if hasattr(model, "config") else model.get_submodule("module")).config)


def positions(model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """The `position_ids` of rows padded on the left, from their mask (batch, time); none where a model takes none."""
    from transformers import PreTrainedModel

    decoder = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def ended_together(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The mask and the tensors, (batch, time) each, with the padding of each row before it instead of behind it."""
    length = mask.shape[1]
    source = torch.arange(length, device=mask.device)[None] - (length - mask.sum(1, keepdim=True))
    return tuple(each.gather(1, source % length) for each in (mask, *tensors))


def with_adapters(
    model: "PreTrainedModel", settings: "LoraSettings", new_tokens: list[int], base_is_elsewhere: bool
) -> "PreTrainedModel":
    """Low-rank adapters on a frozen model, of attention and experts alike; the embeddings of new tokens train.

    Raises ConfigError where the settings do not fit the model. Source: Hu et al. 2021 (LoRA), arXiv 2106.09685.
    """
    names = {name for name, _ in model.named_parameters()}
    parameters = [f"experts.{each}" for each in ("gate_up_proj", "down_proj") if settings.experts]
    parameters += ["gate.weight"] if settings.router else []
    parameters = [each for each in parameters if any(name.endswith(f".{each}") for name in names)]
    if settings.router and "gate.weight" not in parameters:
        raise ConfigError("lora.router adapts the routers, and this model has none: leave it out.")
    if settings.dropout and parameters:
        raise ConfigError(
            f"lora.dropout is {settings.dropout}, which adapters of experts and routers cannot have:\n"
            "type --lora.dropout 0, or --lora.experts false and no --lora.router."
        )
    adapted = adapters.with_adapters(
        model, settings, adapters.linear_names(model), parameters, new_tokens, base_is_elsewhere
    )
    # PEFT's class passes on what it does not define itself.
    return cast("PreTrainedModel", adapted)


@torch.no_grad()
def inherit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the weights of another stage into the model. Raises ConfigError where they are another model's."""
    elsewhere = set()
    if getattr(model, "base_is_elsewhere", False):
        elsewhere = {name for name, value in model.named_parameters() if not value.requires_grad}
    if any(name in tensors or _plain_name(name) in tensors for name in elsewhere):
        # The weights that are given hold a base of their own, which checkpoints have to hold from now on.
        model.base_is_elsewhere, elsewhere = False, set()  # type: ignore[assignment]
    persistent = model.state_dict(keep_vars=True).keys() - elsewhere
    named = [*model.named_parameters(), *model.named_buffers()]
    unused, missing = set(tensors), []
    for name, target in [(name, value) for name, value in named if name in persistent]:
        source = name if name in tensors else _plain_name(name)
        if source in tensors and tensors[source].shape == target.shape:
            target.copy_(tensors[source])
            unused.discard(source)
        elif source in tensors or not (".lora_" in name or name.endswith(("balance_bias", "trainable_tokens_delta"))):
            missing.append(name)
    wrong = missing or sorted(name for name in unused if not name.endswith("balance_bias"))
    if wrong:
        raise ConfigError(
            f"--init_from has another model's weights: {len(wrong)} of its tensors do not fit, such as {wrong[0]}.\n"
            "Give the same model settings; of final/, or of a run with adapters, type relay export, and\n"
            "--model.pretrained with the folder that it wrote."
        )


def _plain_name(name: str) -> str:
    """The name that a parameter has in a model without adapters."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".token_adapter", "")
