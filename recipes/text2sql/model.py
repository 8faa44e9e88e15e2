"""The decoder, Mixtral from transformers, and the losses of its router."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


class DroppingEmbedding(nn.Embedding):
    """Token embeddings with dropout: Mixtral has none outside attention, and small data needs it."""

    dropout = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """(...) int64 -> (..., hidden)."""
        return nn.functional.dropout(super().forward(input), self.dropout, self.training)


def balance_loss(
    router_logits: Float[Tensor, "tokens experts"], mask: Shaped[Tensor, " tokens"], top_k: int
) -> Float[Tensor, ""]:
    """Load balance of one layer: E * sum_e f_e P_e, which is 1 when balanced and E / k when collapsed.

    router_logits: (tokens, experts); mask: (tokens,), 0 for padding. f_e is the share of the tokens' choices that
    fell on expert e (no gradient), P_e the mean probability. Source: Fedus et al. 2021, arXiv 2101.03961, eq. 4-6,
    in the top-k form.
    """
    probabilities = router_logits.float().softmax(-1)
    weights = mask.float()
    num_tokens = weights.sum().clamp(min=1)
    shares = expert_counts(router_logits, mask, top_k) / (num_tokens * top_k)
    means = (probabilities * weights[:, None]).sum(0) / num_tokens
    return router_logits.shape[-1] * (shares * means).sum()


def z_loss(router_logits: Float[Tensor, "tokens experts"], mask: Shaped[Tensor, " tokens"]) -> Float[Tensor, ""]:
    """Mean squared log-partition of one layer. Source: Zoph et al. 2022 (ST-MoE), arXiv 2202.08906, eq. 5."""
    weights = mask.float()
    return (router_logits.float().logsumexp(-1).square() * weights).sum() / weights.sum().clamp(min=1)


def expert_counts(
    router_logits: Float[Tensor, "tokens experts"], mask: Shaped[Tensor, " tokens"], top_k: int
) -> Float[Tensor, " experts"]:
    """(experts,): how often each expert was chosen by the tokens that count."""
    chosen = router_logits.detach().topk(top_k, dim=-1).indices
    counts = torch.zeros(router_logits.shape[-1], device=router_logits.device)
    return counts.index_add_(0, chosen.reshape(-1), mask.to(counts.dtype).repeat_interleave(top_k))


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
