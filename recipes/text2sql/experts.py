"""Experts and routers: how tokens are routed, balanced and counted."""

from typing import TYPE_CHECKING

from runner.errors import ConfigError
from runner.parts.expert_adapters import type_of_products
from runner.parts.own_class import put_in_front

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from recipes.text2sql.settings import ModelSettings

import functools
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import PretrainedConfig

# transformers' routers that are one matrix, a softmax and its top k, and return (logits, weights, choices).
ROUTERS = ("MixtralTopKRouter", "Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter", "OlmoeTopKRouter")


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
    """(tokens,): 0 for the padding of this micro-batch, which takes no expert's capacity; `route` sees to it."""

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
    config: PretrainedConfig
    num_experts: int
    gate_up_proj: Tensor
    down_proj: Tensor

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(tokens, hidden), (tokens, k), (tokens, k) -> (tokens, hidden)."""
        from transformers.integrations.moe import grouped_mm_experts_forward

        implementation, dtype = self.config._experts_implementation, type_of_products(self, top_k_index)
        if implementation == "grouped_mm" and dtype != self.down_proj.dtype:
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
    """(tokens, experts) -> (tokens, k): the most probable experts, after `bias` (experts,) was added."""
    return (probabilities if bias is None else probabilities + bias).topk(top_k, dim=-1).indices


def within_capacity(
    chosen: Int[Tensor, "tokens k"], mask: Shaped[Tensor, " tokens"] | None, num_experts: int, factor: float
) -> Bool[Tensor, "tokens k"]:
    """Which choices are within the capacity of their expert: the first ceil(factor * tokens * k / experts).

    Tokens come in the order of the micro-batch, each with all its choices, so that no later token decides about an
    earlier one. Padding comes never. Source: Fedus et al. 2021, arXiv 2101.03961, eq. 3, in the top-k form.
    """
    tokens = torch.ones(len(chosen), device=chosen.device) if mask is None else mask
    # A little less, so that rounding errors do not raise an integer to the next one.
    room = torch.ceil(factor * tokens.sum() * chosen.shape[-1] / num_experts - 1e-4)
    taken = nn.functional.one_hot(chosen, num_experts) * tokens.to(torch.int64)[:, None, None]
    places = taken.reshape(-1, num_experts).cumsum(0).reshape(taken.shape)  # (tokens, k, experts), counted from 1
    return places.gather(-1, chosen[..., None])[..., 0] <= room


def route(model: "PreTrainedModel", settings: "ModelSettings") -> None:
    """Put our routers and experts in front of transformers': no parameter is renamed, no weight changed.

    Raises ConfigError where a setting asks for what this class of model cannot do.
    """
    routers, experts = 0, 0
    for module in model.modules():
        if type(module).__name__ in ROUTERS:
            router = put_in_front(Router, module)
            router.register_buffer("balance_bias", None)
            router.jitter_noise, router.capacity = settings.router_jitter_noise, settings.expert_capacity
            routers += 1
        elif hasattr(module, "_apply_gate") and not module.is_transposed and not module.has_bias:
            put_in_front(Experts, module).dropout = settings.expert_dropout
            experts += 1
    asked = {
        "model.expert_capacity": settings.expert_capacity is not None and not routers,
        "model.router_jitter_noise": settings.router_jitter_noise and not routers,
        "model.balance bias": settings.balance == "bias" and not routers,
        "model.expert_dropout": settings.expert_dropout and not experts,
    }
    if wrong := [name for name, is_wrong in asked.items() if is_wrong]:
        raise ConfigError(
            f"{type(model).__name__} does not support {wrong[0]}: leave it out, or\n"
            "take a model of the kinds mixtral, qwen2_moe, qwen3_moe or olmoe."
        )
    if settings.expert_capacity is not None:
        model.register_forward_pre_hook(_pass_padding, with_kwargs=True)
    if settings.balance == "bias":
        model.__class__ = _with_bias(type(model))
        add_bias(model)


def _pass_padding(model: nn.Module, _: tuple[object, ...], inputs: Mapping[str, object]) -> None:
    """Give each router the attention mask of the model's call, which transformers does not pass on to it.

    It stays until the next call: gradient checkpointing calls the routers again in the backward pass.
    """
    mask = inputs.get("attention_mask")
    for router in routers_of(model):
        router.mask = mask.reshape(-1) if isinstance(mask, Tensor) else None


def routers_of(model: nn.Module) -> list[Router]:
    """The routers, in the order of their layers."""
    return [module for module in model.modules() if isinstance(module, Router)]


def add_bias(model: nn.Module) -> None:
    """Give each router the bias of balancing without a loss: state that is saved, and no parameter."""
    for router in routers_of(model):
        router.balance_bias = torch.zeros(router.weight.shape[0], device=router.weight.device)


@functools.cache
def _with_bias(kind: type[nn.Module]) -> type:
    """The same class, which has the routers' bias already when `from_pretrained` looks for its tensors."""

    def init(self: nn.Module, *arguments: object, **more: object) -> None:
        kind.__init__(self, *arguments, **more)
        for module in self.modules():
            if type(module).__name__ in ROUTERS:
                router = put_in_front(Router, module)
                router.register_buffer("balance_bias", torch.zeros(len(router.weight)))

    return type(kind.__name__, (kind,), {"__init__": init})


@torch.no_grad()
def move_bias(model: nn.Module, counts: Float[Tensor, "layers experts"], rate: float) -> None:
    """Make experts that got too much less likely, and the others likelier, by `rate`.

    counts: the choices of a whole step. Source: Wang et al. 2024, arXiv 2408.15664, algorithm 1.
    """
    for router, layer in zip(routers_of(model), counts, strict=True):
        if router.balance_bias is not None:
            router.balance_bias += rate * torch.sign(layer.mean() - layer).to(router.balance_bias)


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
    # The largest logits have the largest probabilities; a bias is added to probabilities.
    chosen = choices(logits if bias is None else logits.softmax(-1), top_k, bias)
    counts = torch.zeros(router_logits.shape[-1], device=router_logits.device)
    return counts.index_add_(0, chosen.reshape(-1), mask.to(counts.dtype).repeat_interleave(top_k))


@torch.no_grad()
def dropped(
    layers: list[Tensor], mask: Tensor, top_k: int, biases: list[Tensor | None], capacity: float | None
) -> Float[Tensor, " layers"]:
    """The share of each layer's choices beyond the capacity; layers: logits (tokens, experts)."""
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
