"""The router's losses and logs, against slow forms."""

import math

import pytest
import torch

from recipes.text2sql.experts import balance_loss, expert_counts, expert_logs, z_loss
from tests.recipes.text2sql.slow_forms import slowly


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (8, 2), (16, 4)])
def test_the_routers_losses_against_slow_forms(experts: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(experts + top_k)
    logits = 3 * torch.randn(30, experts, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    mask = (torch.rand(30, generator=generator) < 0.7).long()
    balance, z, counts = slowly(logits, mask, top_k)
    # Whatever comes in, the losses are computed in fp32.
    fast = balance_loss(logits, mask, top_k), z_loss(logits, mask)
    torch.testing.assert_close(fast[0].double(), balance, rtol=1e-6, atol=0)
    torch.testing.assert_close(fast[1].double(), z, rtol=1e-6, atol=0)
    assert expert_counts(logits, mask, top_k).tolist() == counts
    for ours, theirs in zip(fast, (balance, z), strict=True):
        (found,) = torch.autograd.grad(ours, logits)
        (wanted,) = torch.autograd.grad(theirs, logits, retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)
        assert wanted[mask == 1].abs().max() > 1e-4 and not found[mask == 0].any()


def test_padding_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(12, 8, generator=generator), torch.tensor([1] * 9 + [0] * 3)
    garbage = logits.clone()
    garbage[9:] = 50 * torch.randn(3, 8, generator=generator)
    for padded in (logits, garbage):
        ones = torch.ones(9, dtype=torch.int64)
        assert torch.equal(expert_counts(padded, mask, 2), expert_counts(logits[:9], ones, 2))
        torch.testing.assert_close(balance_loss(padded, mask, 2), balance_loss(logits[:9], ones, 2))
        torch.testing.assert_close(z_loss(padded, mask), z_loss(logits[:9], ones))


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (16, 2)])
def test_balanced_is_one_and_collapsed_is_experts_over_k(experts: int, top_k: int) -> None:
    tokens = torch.arange(5 * experts)
    # Token t likes the experts t, t + 1, ... best, all tokens as much.
    liking = torch.zeros(len(tokens), experts, dtype=torch.float64)
    for place in range(top_k):
        liking[tokens, (tokens + place) % experts] = 2.0 - 0.1 * place
    everyone = torch.ones(len(tokens))
    assert balance_loss(liking, everyone, top_k).item() == pytest.approx(1, rel=1e-6)
    collapsed = torch.full((len(tokens), experts), -60.0, dtype=torch.float64)
    collapsed[:, :top_k] = 60.0
    assert balance_loss(collapsed, everyone, top_k).item() == pytest.approx(experts / top_k, rel=1e-6)
    # Layers are never pooled, where two collapsed ones on other experts would look balanced.
    assert balance_loss(collapsed.flip(-1), everyone, top_k).item() == pytest.approx(experts / top_k, rel=1e-6)


def test_expert_logs_against_slow_forms() -> None:
    counts = torch.tensor([[3.0, 0.0, 5.0, 8.0], [4.0, 4.0, 4.0, 4.0], [0.0, 16.0, 0.0, 0.0]])
    logs = expert_logs(counts)
    for layer, row in enumerate(counts.tolist()):
        mean = sum(row) / 4
        entropy = -sum(n / sum(row) * math.log(n / sum(row)) for n in row if n) / math.log(4)
        deviation = math.sqrt(sum((n - mean) ** 2 for n in row) / 4)
        assert logs["expert/utilization"][layer].item() == sum(n > 0 for n in row) / 4
        assert logs["expert/load_balance"][layer].item() == pytest.approx(deviation / mean, rel=1e-6)
        assert logs["expert/entropy"][layer].item() == pytest.approx(entropy, rel=1e-6, abs=1e-6)
        assert logs["expert/tokens_per_expert"][layer].tolist() == row
    assert logs["expert/entropy"][1].item() == pytest.approx(1) and logs["expert/entropy"][2].item() == 0
