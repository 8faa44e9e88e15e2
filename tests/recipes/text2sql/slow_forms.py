"""Slow forms of what the recipe computes fast."""

import torch
from torch import Tensor


def slowly(router_logits: Tensor, mask: Tensor, top_k: int) -> tuple[Tensor, Tensor, list[int]]:
    """Balance loss, z-loss and counts of one layer, token by token."""
    num_experts = router_logits.shape[-1]
    counts, mean, z, tokens = [0] * num_experts, torch.zeros(num_experts, dtype=router_logits.dtype), 0.0, 0
    for logits, is_there in zip(router_logits, mask.tolist(), strict=True):
        if not is_there:
            continue
        tokens += 1
        partition = torch.stack([torch.exp(logit) for logit in logits]).sum()
        mean = mean + torch.stack([torch.exp(logit) / partition for logit in logits])
        z = z + torch.log(partition) ** 2
        for expert in sorted(range(num_experts), key=lambda each: -logits[each].item())[:top_k]:
            counts[expert] += 1
    balance = sum(num_experts * counts[e] / (tokens * top_k) * mean[e] / tokens for e in range(num_experts))
    return torch.as_tensor(balance), torch.as_tensor(z / tokens), counts
