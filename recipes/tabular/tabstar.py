"""Weights of the `tabstar` package (v1.0) under our names, so that its published model is a start as any other.

Source: `tabstar` 1.2.2 (MIT), arch/arch.py, fusion.py, interaction.py and prediction.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recipes.tabular.table import CHANNELS

PARTS = (
    ("text_encoder.", "texts.bert."),
    ("numerical_fusion.scalar_embedder.0.", "fusion.up."),
    ("numerical_fusion.scalar_embedder.3.", "fusion.down."),
    ("numerical_fusion.fusion_block.", "fusion.block."),
    ("tabular_encoder.encoder.layers.", "blocks."),
    ("cls_head.layers.0.", "classification.up."),
    ("cls_head.layers.2.", "classification.down."),
    ("reg_head.layers.0.", "regression.up."),
    ("reg_head.layers.2.", "regression.down."),
)


def is_tabstar(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of the package."""
    return "numerical_fusion.scalar_embedder.0.weight" in tensors


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under our names; the pooler, which TabSTAR does not read, is left out."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        for theirs, ours in PARTS:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        if ".pooler." in name or name.endswith("position_ids"):
            continue
        if ".self_attn.in_proj_" in name:
            owner, _, kind = name.partition(".self_attn.in_proj_")
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{owner}.attention.{part}.{kind}"] = piece
        else:
            found[name.replace(".self_attn.out_proj.", ".attention.out.")] = value
    # TabSTAR reads a number as its clipped z alone: the first of our six.
    up = found["fusion.up.weight"]
    found["fusion.up.weight"] = up.new_zeros(len(up), CHANNELS)
    found["fusion.up.weight"][:, :1] = up
    return found
