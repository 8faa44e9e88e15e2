"""Low-rank adapters of experts, computed on the tokens.

PEFT adds the product of the two factors to the weights of all experts at each forward pass, and its backward pass needs
the gradient of these weights: as much work as training them. Here the tokens of an expert go through its two factors,
as they do in the adapters of linear layers: x W + s (x A) B. Only the factors get gradients.
Source: Hu et al. 2021 (LoRA), arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from runner.parts.own_class import put_in_front

if TYPE_CHECKING:
    import torch
    from peft.tuners.lora.layer import ParamWrapper
    from torch import Tensor, nn
    from transformers import PretrainedConfig

# Choices per expert from which on a copy of the weights in bf16 costs less than computing in fp32.
CHOICES_WORTH_A_COPY = 16


class AdaptedExperts:
    """Experts that take the factors of their adapters for one forward pass: in front of transformers' experts."""

    factors: dict[str, tuple[Tensor, Tensor]]
    """Name of a weight -> A (experts, rank, in) and B (experts, rank, out), which holds the scaling too."""
    num_experts: int

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(tokens, hidden), (tokens, k), (tokens, k) -> (tokens, hidden)."""
        import torch

        if not self.factors:
            return super().forward(hidden_states, top_k_index, top_k_weights)  # type: ignore[misc]
        dtype = type_of_products(cast("nn.Module", self), top_k_index)
        # Choices in the order of their experts, as the grouped product needs them.
        chosen, order = top_k_index.reshape(-1).sort()
        numbers = torch.arange(self.num_experts, device=chosen.device)
        ends = torch.searchsorted(chosen, numbers, right=True, out_int32=True)
        per_token = top_k_index.shape[-1]
        inner = hidden_states.index_select(0, order // per_token).to(dtype)
        inner = self._apply_gate(self._product("gate_up_proj", inner, ends))  # type: ignore[attr-defined]
        found = self._product("down_proj", inner, ends) * top_k_weights.reshape(-1)[order, None]
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        found = found.index_select(0, places).unflatten(0, (-1, per_token)).sum(1)
        return found.to(hidden_states.dtype)

    def _product(self, name: str, inputs: Tensor, ends: Tensor) -> Tensor:
        """(choices, in) -> (choices, out), each row with its expert's weight `name` and the adapter of it.

        ends: (experts,), the row behind the last of each expert.
        """
        from transformers.integrations.moe import _grouped_linear

        found = _grouped_linear(inputs, getattr(self, name).to(inputs.dtype), ends)
        if name not in self.factors:
            return found
        first, second = (factor.to(inputs.dtype) for factor in self.factors[name])
        inner = _grouped_linear(inputs, first, ends)
        # Rows of `out` numbers have the alignment that CUDA's product asks for; rows of `rank` may lack it.
        return found.add_(_grouped_linear(inner, second.contiguous(), ends, is_transposed=True))


class TokenAdapter:
    """Gives experts the factors of one weight, instead of adding to the weight: in front of PEFT's ParamWrapper."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(tokens, hidden) and what the experts take more -> (tokens, hidden)."""
        own = cast("ParamWrapper", self)
        experts = cast(AdaptedExperts, own.get_base_layer())
        active = [name for name in own.active_adapters if name in own.lora_A]
        is_apart = not own.disable_adapters and not own.merged
        if not is_apart or len(active) != 1 or not are_grouped(cast("nn.Module", experts)):
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        own._check_forward_args(x, *args, **kwargs)
        first, second = (cast("Tensor", each[active[0]].weight) for each in (own.lora_A, own.lora_B))
        first = first.unflatten(0, (own.num_experts, -1))
        # PEFT has the experts of the second factor in the last place.
        second = second.unflatten(1, (-1, own.num_experts)).permute(2, 1, 0)
        experts.factors[own.parameter_name] = (first, second * own.scaling[active[0]])
        try:
            return own.base_layer(x, *args, **kwargs)
        finally:
            del experts.factors[own.parameter_name]


def type_of_products(experts: nn.Module, top_k_index: Tensor) -> torch.dtype:
    """The type in which experts multiply: autocast's, or that of the weights where few choices make a copy dear.

    Autocast does not know the grouped product, which else computes in the type of the weights.
    """
    import torch

    kind, own = top_k_index.device.type, cast("Tensor", experts.down_proj).dtype
    is_worth_it = top_k_index.numel() >= CHOICES_WORTH_A_COPY * cast(int, experts.num_experts)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and is_worth_it else own


def is_gated(module: nn.Module) -> bool:
    """Whether a module is transformers' experts, with a gate."""
    return all(hasattr(module, name) for name in ("_apply_gate", "gate_up_proj", "down_proj"))


def are_grouped(experts: nn.Module) -> bool:
    """Whether grouped products compute these experts."""
    return cast("PretrainedConfig", experts.config)._experts_implementation == "grouped_mm"


def adapt_tokens(model: nn.Module) -> None:
    """Let PEFT's adapters of experts multiply tokens; their parameters, files and merging stay PEFT's.

    Experts of another layout than (experts, out, in), and products other than the grouped one, stay PEFT's too.
    """
    from peft.tuners.lora.layer import ParamWrapper

    for wrapper in [each for each in model.modules() if type(each) is ParamWrapper]:
        experts = wrapper.get_base_layer()
        others = ("is_transposed", "has_bias", "has_post_expert_norm", "_is_expert_parallel")
        if not is_gated(experts) or any(getattr(experts, each, False) for each in others):
            continue
        put_in_front(TokenAdapter, wrapper)
        if not isinstance(experts, AdaptedExperts):
            put_in_front(AdaptedExperts, experts).factors = {}


def weights_of_experts(model: nn.Module) -> list[nn.Parameter]:
    """The weights that grouped products multiply as they are: none to which PEFT adds its adapters first."""
    from peft.tuners.lora.layer import ParamWrapper

    added_to = {id(each.get_base_layer()) for each in model.modules() if type(each) is ParamWrapper}
    experts = [each for each in model.modules() if is_gated(each) and are_grouped(each) and id(each) not in added_to]
    return [cast("nn.Parameter", weight) for each in experts for weight in (each.gate_up_proj, each.down_proj)]
