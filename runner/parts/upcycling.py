"""Upcycling: a trained dense decoder becomes a mixture of experts that computes the same.

Each expert begins as a copy of the feed-forward block of its layer. The weights of the chosen experts add up to 1, so
that their sum is what the block computes, whatever the new routers choose.
Source: Komatsuzaki et al. 2022 (sparse upcycling), arXiv 2212.05055, section 3.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol, cast

from runner.errors import ConfigError
from runner.parts.pretrained import late_reader

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel


class Upcycling(Protocol):
    """The settings of a model that say how it is upcycled."""

    @property
    def num_local_experts(self) -> int | None:
        """Experts per layer; None: the model stays as it is."""
        ...

    @property
    def num_experts_per_tok(self) -> int:
        """Experts that process each token."""
        ...

    @property
    def upcycling_noise(self) -> float:
        """Standard deviation of the noise on each expert's weights, as a share of theirs."""
        ...

    @property
    def upcycling_drop(self) -> float:
        """Share of each expert's hidden units that get random weights."""
        ...


MIXTURES = {"llama": "Mixtral", "mistral": "Mixtral", "qwen2": "Qwen2Moe", "qwen3": "Qwen3Moe"}
"""Type of a dense model -> the class of transformers that has the same attention and norms, with experts."""
PASSED_ON = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache", "pad_token_id",
    "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_parameters", "attention_bias", "attention_dropout",
    "use_sliding_window", "sliding_window", "max_window_layers", "layer_types",
)  # fmt: skip
"""Settings that both configs have."""
ROUTER_STD = 1e-3
"""Standard deviation of the new routers' weights: the first choices are random, and all weights nearly equal."""


def is_to_be_upcycled(config: PretrainedConfig, num_experts: int | None) -> bool:
    """Whether the dense model of this config is to become a mixture of so many experts.

    Raises ConfigError where it cannot.
    """
    own = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if num_experts is None or own == num_experts:
        return False
    asked = f"model.num_local_experts is {num_experts}, and model.pretrained"
    if own:
        raise ConfigError(f"{asked} has {own} experts per layer already: leave model.num_local_experts out.")
    if config.model_type not in MIXTURES:
        raise ConfigError(
            f"{asked} is a {config.model_type}, which cannot become a mixture of experts: leave "
            f"model.num_local_experts out, or take a model of the kinds {', '.join(MIXTURES)}."
        )
    has_biases = getattr(config, "mlp_bias", False) or (
        getattr(config, "attention_bias", False) and config.model_type == "llama"
    )
    is_mixed = config.model_type == "qwen3" and len(set(config.layer_types)) > 1
    if has_biases or is_mixed:
        what = "biases" if has_biases else "layers with and without a sliding window"
        raise ConfigError(
            f"{asked} has {what}, which {MIXTURES[config.model_type]} does not: leave model.num_local_experts out."
        )
    return True


def upcycled(dense: PreTrainedModel, settings: Upcycling) -> PreTrainedModel:
    """The mixture of experts that computes what a dense decoder does, or the model itself where none is asked for.

    The dense model's tensors go over to it. Without noise and dropped units the logits are those of the dense model.
    All random numbers depend on the layer and the expert alone, so that a run with adapters finds the same base again.
    Raises ConfigError where the model cannot be upcycled.
    """
    import torch

    if settings.num_local_experts is None or not is_to_be_upcycled(dense.config, settings.num_local_experts):
        return dense
    mixture = _without_weights(dense, settings.num_local_experts, settings.num_experts_per_tok)
    for name, parameter in dense.named_parameters(remove_duplicate=False):
        owner, _, last = name.rpartition(".")
        if ".mlp." not in name:
            setattr(mixture.get_submodule(owner), last, parameter)
    layers = zip(_layers(mixture), _layers(dense), strict=True)
    with torch.no_grad():
        for number, (layer, source) in enumerate(layers):
            _fill(layer.get_submodule("mlp"), source.get_submodule("mlp"), settings, number)
            # Its memory is needed for the next layer.
            source.mlp = torch.nn.Identity()
    mixture.generation_config = dense.generation_config
    return mixture.train(dense.training)


def _without_weights(dense: PreTrainedModel, num_experts: int, per_token: int) -> PreTrainedModel:
    """A mixture of the dense model's dimensions, on the meta device but for its rotary positions."""
    import torch
    import transformers

    kind, own = MIXTURES[dense.config.model_type], dense.config
    shape: dict[str, object] = {name: getattr(own, name) for name in PASSED_ON if hasattr(own, name)}
    shape |= {"num_experts_per_tok": per_token, "intermediate_size": own.intermediate_size}
    if kind == "Mixtral":
        shape["num_local_experts"] = num_experts
    else:
        shape |= {"num_experts": num_experts, "moe_intermediate_size": own.intermediate_size, "norm_topk_prob": True}
    if kind == "Qwen2Moe":
        # The class cannot be without a shared expert. One of width 1 whose weights are 0 computes nothing, and gets no
        # gradient.
        shape["shared_expert_intermediate_size"] = 1
    config = getattr(transformers, f"{kind}Config")(**shape)
    reader = late_reader.get()
    with nullcontext() if reader is None else reader.without_disguise(), torch.device("meta"):
        mixture = getattr(transformers, f"{kind}ForCausalLM")(config)
    rotary = mixture.model.rotary_emb
    mixture.model.rotary_emb = type(rotary)(config)
    return mixture


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    return list(cast("nn.ModuleList", model.get_submodule("model.layers")))


def _fill(block: nn.Module, source: nn.Module, settings: Upcycling, layer: int) -> None:
    """Give the experts of a layer the weights of its feed-forward block, and the router small random ones."""
    import torch

    gate, up, down = (cast("Tensor", source.get_submodule(f"{name}_proj").weight) for name in ("gate", "up", "down"))
    copies = [
        _varied((gate, up, down.T), settings, (layer, expert)) for expert in range(settings.num_local_experts or 0)
    ]
    experts, router = block.get_submodule("experts"), block.get_submodule("gate")
    experts.gate_up_proj = torch.nn.Parameter(torch.stack([torch.cat(copy[:2]) for copy in copies]))
    experts.down_proj = torch.nn.Parameter(torch.stack([copy[2].T for copy in copies]))
    shape = tuple(cast("Tensor", router.weight).shape)
    router.weight = torch.nn.Parameter(_normal(_generator(layer), shape, gate) * ROUTER_STD)
    for name in ("shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj", "shared_expert_gate"):
        if hasattr(block, "shared_expert"):
            linear = block.get_submodule(name)
            linear.weight = torch.nn.Parameter(gate.new_zeros(cast("Tensor", linear.weight).shape))


def _varied(matrices: tuple[Tensor, ...], settings: Upcycling, seed: tuple[int, int]) -> list[Tensor]:
    """One expert's weights: matrices (hidden units, width), with random rows and noise as the settings ask.

    Source of the random rows: Nakamura et al. 2025 (drop-upcycling), arXiv 2502.19261, section 3.
    """
    import torch

    generator, units = _generator(*seed), len(matrices[0])
    dropped = torch.from_numpy(generator.permutation(units)[: round(settings.upcycling_drop * units)])
    found = []
    for matrix in matrices:
        if len(dropped):
            # As the mean and the spread of the weights that they replace.
            old, matrix = matrix[dropped], matrix.clone()
            matrix[dropped] = old.mean() + old.std() * _normal(generator, tuple(old.shape), old)
        if settings.upcycling_noise:
            noise = _normal(generator, tuple(matrix.shape), matrix)
            matrix = matrix + settings.upcycling_noise * matrix.std() * noise
        found.append(matrix)
    return found


def _generator(*seed: int) -> np.random.Generator:
    """A generator of NumPy, whose numbers are the same on every machine; torch's depend on the processor."""
    import numpy as np

    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


def _normal(generator: np.random.Generator, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Standard normal numbers of the type and device of `like`."""
    import numpy as np
    import torch

    reader = late_reader.get()
    if reader is not None and like.untyped_storage().device.type == "meta":
        again = copy.deepcopy(generator)
        generator.standard_normal(shape, dtype=np.float32)
        return reader.later(like.new_empty(shape), lambda: _normal(copy.deepcopy(again), shape, torch.empty(0)))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)).to(like)
