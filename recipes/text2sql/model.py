"""The decoder, a class of transformers; how its tokens are routed to experts, and the losses of its routers."""

import functools
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from runner.errors import ConfigError, DataError

if TYPE_CHECKING:
    from recipes.text2sql.recipe import LoraSettings, ModelSettings

# transformers' routers that are one matrix, a softmax and its top k, and return (logits, weights, choices).
ROUTERS = ("MixtralTopKRouter", "Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter", "OlmoeTopKRouter")
# Choices per expert from which on a copy of the weights in bf16 costs less than computing in fp32.
CHOICES_WORTH_A_COPY = 16


class DroppingEmbedding(nn.Embedding):
    """Token embeddings with dropout: Mixtral has none outside attention, and small data needs it."""

    dropout = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """(...) int64 -> (..., hidden)."""
        return nn.functional.dropout(super().forward(input), self.dropout, self.training)


# Routing -----------------------------------------------------------------------------------------------


class Router(nn.Module):
    """Chooses the experts of each token, in fp32 also under autocast: what stands in front of transformers' router.

    The weights of the k choices are Mixtral's: the softmax over all experts, divided by the sum of the chosen.
    """

    weight: Tensor
    top_k: int
    balance_bias: Tensor | None
    """(experts,): what is added where experts are chosen, and not where they are weighted; None without it."""
    jitter_noise: float = 0.0
    capacity: float | None = None
    mask: Tensor | None = None
    """(tokens,): 0 for the padding of this micro-batch, which takes no expert's capacity."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., hidden) -> logits (tokens, experts), weights (tokens, k) and choices (tokens, k)."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(hidden_states.device.type, enabled=False):
            hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1]).to(dtype)
            if self.training and self.jitter_noise:
                # Of the router's input alone; transformers' own changes what the experts are given too.
                # Source: Fedus et al. 2021, arXiv 2101.03961, section 2.4.
                noise = torch.empty_like(hidden_states).uniform_(1 - self.jitter_noise, 1 + self.jitter_noise)
                hidden_states = hidden_states * noise
            logits = nn.functional.linear(hidden_states, self.weight.to(dtype))
            probabilities = logits.softmax(-1)
            chosen = choices(probabilities, self.top_k, self.balance_bias)
            weights = probabilities.gather(-1, chosen)
            if getattr(self, "norm_topk_prob", True):
                weights = weights / weights.sum(-1, keepdim=True)
            if self.training and self.capacity is not None:
                weights = weights * within_capacity(chosen, self.mask, probabilities.shape[-1], self.capacity)
        return logits, weights, chosen


class Experts(nn.Module):
    """Dropout inside the experts, and their products in the type of autocast: in front of transformers' experts."""

    dropout: float = 0.0
    config: Any
    num_experts: int
    gate_up_proj: Tensor
    down_proj: Tensor

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(tokens, hidden), (tokens, k), (tokens, k) -> (tokens, hidden)."""
        from transformers.integrations.moe import grouped_mm_experts_forward

        kind, implementation = hidden_states.device.type, self.config._experts_implementation
        is_worth_it = top_k_index.numel() >= CHOICES_WORTH_A_COPY * self.num_experts
        if implementation == "grouped_mm" and torch.is_autocast_enabled(kind) and is_worth_it:
            # Autocast does not know the grouped product, which else computes in the weights' own fp32.
            dtype = torch.get_autocast_dtype(kind)
            cast = types.SimpleNamespace(**{name: getattr(self, name) for name in READ_OF_EXPERTS})
            cast.gate_up_proj, cast.down_proj = self.gate_up_proj.to(dtype), self.down_proj.to(dtype)
            found = grouped_mm_experts_forward(cast, hidden_states.to(dtype), top_k_index, top_k_weights)  # type: ignore[arg-type]
            return found.to(hidden_states.dtype)
        if implementation == "eager" and self.dropout:
            # The eager form knows no `_apply_gate`.
            return grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
        return super().forward(hidden_states, top_k_index, top_k_weights)

    def _apply_gate(self, gate_up_out: Tensor) -> Tensor:
        """Dropout between an expert's two products. Source: Fedus et al. 2021, arXiv 2101.03961, section 2.4."""
        inner = super()._apply_gate(gate_up_out)  # type: ignore[misc]
        return nn.functional.dropout(inner, self.dropout, self.training) if self.dropout else inner


# What transformers' grouped product reads of the module beside its two weights.
READ_OF_EXPERTS = (
    "num_experts",
    "has_gate",
    "has_bias",
    "is_transposed",
    "has_post_expert_norm",
    "_is_expert_parallel",
    "_apply_gate",
)


def choices(probabilities: Tensor, top_k: int, bias: Tensor | None = None) -> Tensor:
    """(tokens, experts) -> (tokens, k): the likeliest experts, after `bias` (experts,) was added."""
    return (probabilities if bias is None else probabilities + bias).topk(top_k, dim=-1).indices


def within_capacity(
    chosen: Int[Tensor, "tokens k"], mask: Shaped[Tensor, " tokens"] | None, num_experts: int, factor: float
) -> Bool[Tensor, "tokens k"]:
    """Which choices an expert still has room for: it takes ceil(factor * tokens * k / experts), the first that come.

    Tokens come in the order of the micro-batch, each with all its choices, so that no later token decides about an
    earlier one. Padding comes never. Source: Fedus et al. 2021, arXiv 2101.03961, eq. 3, in the top-k form.
    """
    tokens = torch.ones(len(chosen), device=chosen.device) if mask is None else mask
    # A little less, so that a product which should be whole is not rounded up beyond it.
    room = torch.ceil(factor * tokens.sum() * chosen.shape[-1] / num_experts - 1e-4)
    taken = nn.functional.one_hot(chosen, num_experts) * tokens.to(torch.int64)[:, None, None]
    places = taken.reshape(-1, num_experts).cumsum(0).reshape(taken.shape)  # (tokens, k, experts), counted from 1
    return places.gather(-1, chosen[..., None])[..., 0] <= room


@functools.cache
def _in_front(own: type, theirs: type) -> type:
    return type(theirs.__name__, (own, theirs), {})


def route(model: Any, settings: "ModelSettings") -> None:
    """Put our routers and experts in front of transformers': no parameter is renamed, no weight changed.

    Raises ConfigError where a setting asks for what this class of model cannot do.
    """
    routers, experts = 0, 0
    for module in model.modules():
        if type(module).__name__ in ROUTERS:
            module.__class__ = _in_front(Router, type(module))
            module.register_buffer("balance_bias", None)
            module.jitter_noise, module.capacity = settings.router_jitter_noise, settings.expert_capacity
            routers += 1
        elif hasattr(module, "_apply_gate") and not module.is_transposed and not module.has_bias:
            module.__class__ = _in_front(Experts, type(module))
            module.dropout = settings.expert_dropout
            experts += 1
    asked = {
        "model.expert_capacity": settings.expert_capacity is not None and not routers,
        "model.router_jitter_noise": settings.router_jitter_noise and not routers,
        "model.balance bias": settings.balance == "bias" and not routers,
        "model.expert_dropout": settings.expert_dropout and not experts,
    }
    if wrong := [name for name, is_wrong in asked.items() if is_wrong]:
        raise ConfigError(
            f"{wrong[0]} was asked for, which {type(model).__name__} cannot do: leave it out, or\n"
            "take a model of the kinds mixtral, qwen2_moe, qwen3_moe or olmoe."
        )
    if settings.balance == "bias":
        model.__class__ = _with_bias(type(model))
        add_bias(model)


def routers_of(model: nn.Module) -> list[Router]:
    """The routers, in the order of their layers."""
    return [module for module in model.modules() if isinstance(module, Router)]


def add_bias(model: nn.Module) -> None:
    """Give each router the bias of balancing without a loss: state that is saved, and no parameter."""
    for router in routers_of(model):
        router.balance_bias = torch.zeros(router.weight.shape[0], device=router.weight.device)


@functools.cache
def _with_bias(kind: type) -> type:
    """The same class, which has the routers' bias already when `from_pretrained` looks for its tensors."""

    def init(self: Any, config: Any, *arguments: Any, **more: Any) -> None:
        kind.__init__(self, config, *arguments, **more)
        for module in self.modules():
            if type(module).__name__ in ROUTERS:
                module.__class__ = _in_front(Router, type(module))
                module.register_buffer("balance_bias", torch.zeros(module.num_experts))

    return type(kind.__name__, (kind,), {"__init__": init})


@torch.no_grad()
def move_bias(model: nn.Module, counts: Float[Tensor, "layers experts"], rate: float) -> None:
    """Make experts that got too much less likely, and the others likelier, by `rate`.

    counts: the choices of a whole step. Source: Wang et al. 2024, arXiv 2408.15664, algorithm 1.
    """
    for router, layer in zip(routers_of(model), counts, strict=True):
        if router.balance_bias is not None:
            router.balance_bias += rate * torch.sign(layer.mean() - layer).to(router.balance_bias)


# The routers' losses -----------------------------------------------------------------------------------


def balance_loss(
    router_logits: Float[Tensor, "tokens experts"],
    mask: Shaped[Tensor, " tokens"],
    top_k: int,
    counts: Float[Tensor, " experts"] | None = None,
) -> Float[Tensor, ""]:
    """Load balance of one layer: E * sum_e f_e P_e, which is 1 when balanced and E / k when collapsed.

    router_logits: (tokens, experts); mask: (tokens,), 0 for padding. f_e is the share of all choices that fell on
    expert e (no gradient), P_e the mean probability. counts: whose shares f is, such as those of a whole step
    (Qiu et al. 2025, arXiv 2501.11873, section 3); these tokens' own, where not given. Source: Fedus et al. 2021,
    arXiv 2101.03961, eq. 4-6, in the top-k form.
    """
    probabilities = router_logits.float().softmax(-1)
    weights = mask.float()
    num_tokens = weights.sum().clamp(min=1)
    counts = expert_counts(router_logits, mask, top_k) if counts is None else counts
    shares = counts / counts.sum().clamp(min=1)
    means = (probabilities * weights[:, None]).sum(0) / num_tokens
    return router_logits.shape[-1] * (shares * means).sum()


def z_loss(router_logits: Float[Tensor, "tokens experts"], mask: Shaped[Tensor, " tokens"]) -> Float[Tensor, ""]:
    """Mean squared log-partition of one layer. Source: Zoph et al. 2022 (ST-MoE), arXiv 2202.08906, eq. 5."""
    weights = mask.float()
    return (router_logits.float().logsumexp(-1).square() * weights).sum() / weights.sum().clamp(min=1)


def expert_counts(
    router_logits: Float[Tensor, "tokens experts"],
    mask: Shaped[Tensor, " tokens"],
    top_k: int,
    bias: Float[Tensor, " experts"] | None = None,
) -> Float[Tensor, " experts"]:
    """(experts,): how often each expert was chosen by the tokens that count."""
    logits = router_logits.detach()
    # The likeliest are those of the largest logits; a bias is added to probabilities.
    chosen = choices(logits if bias is None else logits.softmax(-1), top_k, bias)
    counts = torch.zeros(router_logits.shape[-1], device=router_logits.device)
    return counts.index_add_(0, chosen.reshape(-1), mask.to(counts.dtype).repeat_interleave(top_k))


@torch.no_grad()
def dropped(
    layers: list[Tensor], mask: Tensor, top_k: int, biases: list[Tensor | None], capacity: float | None
) -> Float[Tensor, " layers"]:
    """The share of each layer's choices that found no room; layers: logits (tokens, experts)."""
    shares = torch.zeros(len(layers))
    for number, (logits, bias) in enumerate(zip(layers, biases, strict=True)):
        if capacity is not None:
            chosen = choices(logits.softmax(-1), top_k, bias)
            kept = within_capacity(chosen, mask, logits.shape[-1], capacity) * mask[:, None]
            shares[number] = 1 - kept.sum() / (mask.sum() * top_k).clamp(min=1)
    return shares


def expert_logs(counts: Float[Tensor, "layers experts"]) -> dict[str, Tensor]:
    """Numbers of each layer from counts (layers, experts): utilisation, variation of load, counts, entropy."""
    shares = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(shares).sum(-1) / torch.log(torch.tensor(float(counts.shape[-1])))
    return {
        "expert/utilization": (counts > 0).float().mean(-1),
        "expert/load_balance": counts.std(-1, correction=0) / counts.mean(-1).clamp(min=1e-9),
        "expert/tokens_per_expert": counts,
        "expert/entropy": entropy,
    }


def collapse(tokens_per_expert: list[list[float]], balance: str) -> str | None:
    """What to say where a layer leaves half of its experts without a token; None where none does.

    tokens_per_expert: (layers, experts), of all lanes of a step.
    """
    used = [sum(count > 0 for count in layer) / len(layer) for layer in tokens_per_expert]
    # Fewer choices than experts cannot reach them all.
    enough = [sum(layer) >= 4 * len(layer) for layer in tokens_per_expert]
    poor = [number for number, share in enumerate(used) if share < 0.5 and enough[number]]
    if not poor:
        return None
    setting = "router_aux_loss_coef" if balance == "aux" else "model.balance_bias_rate"
    return (
        f"experts collapse in layer {', '.join(map(str, poor))}: less than half of them get a token (down to "
        f"{min(used[number] for number in poor):.0%}). Raise --{setting}, or lower --learning_rate."
    )


# Building ----------------------------------------------------------------------------------------------


def build(settings: "ModelSettings", vocab_size: int, max_seq_length: int, pad: int | None, eos: int | None) -> Any:
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
    experts, width = settings.num_local_experts, settings.intermediate_size
    if settings.family == "mixtral":
        config: Any = transformers.MixtralConfig(
            **shape, num_local_experts=experts, intermediate_size=width, sliding_window=None
        )
        return transformers.MixtralForCausalLM(config)
    shape |= {"num_experts": experts, "moe_intermediate_size": width, "intermediate_size": width}
    shape |= {"head_dim": settings.hidden_size // settings.num_attention_heads, "norm_topk_prob": True}
    config = transformers.Qwen3MoeConfig(**shape)
    return transformers.Qwen3MoeForCausalLM(config)


def drop_embeddings(model: Any, dropout: float) -> None:
    """Dropout of the token embeddings, under their own name."""
    embedding: Any = model.get_input_embeddings()
    embedding.__class__, embedding.dropout = DroppingEmbedding, dropout


# A model that was trained before -----------------------------------------------------------------------


def keep_base(path: str, folder: Path, more_tokens: Sequence[str]) -> None:
    """Write the tokenizer of a trained model, with the tokens of our prompts, and its config: what a run's folder
    needs to say by itself what its model is. Raises DataError where they cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer

    from recipes.text2sql import prompt

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        config: Any = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": "<eos>"})
    if tokenizer.pad_token_id is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    ours = [token for token in prompt.SPECIAL_TOKENS if token not in ("<pad>", "<eos>")]
    tokenizer.add_tokens([*ours, *more_tokens], special_tokens=True)
    tokenizer.save_pretrained(folder)
    (folder / "base_config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(
        f"model.pretrained {path} cannot be loaded: {' '.join(str(error).split())[:200]}\n"
        "Type --model.pretrained with a folder that holds a decoder and its tokenizer, such as final/ of a run."
    )


def pretrained(path: str, tokenizer: Any, assets: Path | None) -> tuple[Any, list[int]]:
    """A trained decoder in fp32, and which tokens it has not seen before. Raises DataError where it cannot be read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kept = assets and assets / "base_config.json"
    try:
        if not Path(path).exists() and kept and kept.is_file():
            # The base has been moved away; its weights are in the checkpoint as well.
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(kept))
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    # Ours is added, per layer and with padding masked.
    if hasattr(model.config, "router_aux_loss_coef"):
        model.config.router_aux_loss_coef = 0.0
    if tokenizer is None:
        return model, []
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    return model, list(range(known, len(tokenizer)))


def config_of(model: Any) -> Any:
    """The config of a model, also inside data parallelism's wrapper."""
    return (model if hasattr(model, "config") else model.module).config


def with_adapters(model: Any, settings: "LoraSettings", new_tokens: list[int]) -> Any:
    """Low-rank adapters on a frozen model, of attention and experts alike; the embeddings of new tokens train.

    Raises ConfigError where the settings do not fit the model. Source: Hu et al. 2021 (LoRA), arXiv 2106.09685.
    """
    import peft

    names = {name for name, _ in model.named_parameters()}
    parameters = [f"experts.{each}" for each in ("gate_up_proj", "down_proj") if settings.experts]
    parameters += ["gate.weight"] if settings.router else []
    parameters = [each for each in parameters if any(name.endswith(f".{each}") for name in names)]
    if settings.router and "gate.weight" not in parameters:
        raise ConfigError("lora.router was asked for, and the model has none: leave it out.")
    if settings.dropout and parameters:
        raise ConfigError(
            f"lora.dropout is {settings.dropout}, which adapters of experts and routers cannot have:\n"
            "type --lora.dropout 0, or --lora.experts false and no --lora.router."
        )
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules.split(",") if settings.target_modules else _linear(model),
        target_parameters=parameters or None,
        trainable_token_indices=new_tokens or None,
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
    return adapted


def _linear(model: Any) -> list[str]:
    """The names of all matrices that are modules, but the output. PEFT's own "all-linear" adds experts and routers of
    some classes, with twice the rank.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    output = model.get_output_embeddings()
    names = {name.rpartition(".")[2] for name in linear if model.get_submodule(name) is not output}
    return sorted(names)


@functools.cache
def _adapted_class() -> Any:
    import peft

    class Adapted(peft.PeftModelForCausalLM):
        """A model with adapters, whose folder holds the adapters in PEFT's format and all weights beside them."""

        def save_pretrained(self, save_directory: Any, state_dict: Any = None, **more: Any) -> None:  # type: ignore[override]
            """Write both."""
            from safetensors.torch import save_file

            # A matrix that is input and output has two names, and is written under the first.
            found: dict[int, tuple[str, Tensor]] = {}
            for name, value in (state_dict or self.state_dict()).items():
                found.setdefault(value.data_ptr(), (name, value.contiguous()))
            super().save_pretrained(str(save_directory), save_embedding_layers=False, **more)
            save_file(dict(found.values()), Path(save_directory) / "model.safetensors", metadata={"format": "pt"})

    return Adapted


@torch.no_grad()
def inherit(model: Any, tensors: dict[str, Tensor]) -> None:
    """Put the weights of another stage into the model. Raises ConfigError where they are another model's."""
    persistent = model.state_dict(keep_vars=True)
    named = [*model.named_parameters(), *model.named_buffers()]
    unused, missing = set(tensors), []
    for name, target in [(name, value) for name, value in named if name in persistent]:
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".token_adapter", "")
        source = name if name in tensors else plain
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
