"""Texts without padding: a BERT's vectors and gradients, bits that do not depend on neighbours; dropout on a CPU."""

import copy
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from recipes.tabular import model as tabular_model
from recipes.tabular import packed
from recipes.tabular.model import TextEncoder

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 80, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0,
}  # fmt: skip
LENGTHS = [2, 3, 3, 5, 9, 9, 30]


def encoder(frozen_layers: int = 0, pooling: str = "cls", **changes: Any) -> TextEncoder:
    """A small BERT from a fixed seed, without dropout."""
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**{**SIZES, **changes}), add_pooling_layer=False)
    return TextEncoder(bert, 32, pooling, frozen_layers, 64, packs=True)


def texts(lengths: list[int] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids with padding, and their lengths."""
    torch.manual_seed(1)
    tokens = torch.randint(1, 50, (len(lengths), max(lengths)))
    sizes = torch.tensor(lengths)
    return torch.where(torch.arange(max(lengths)) < sizes[:, None], tokens, 0), sizes


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("rate", [0.0, 1e-6])
def test_training_without_padding_has_the_gradients_of_training_with_it(pooling: str, rate: float) -> None:
    # A rate that is rounded to none goes the way of dropout.
    ours = encoder(pooling=pooling, attention_probs_dropout_prob=rate, hidden_dropout_prob=rate).train()
    theirs = copy.deepcopy(ours.bert).eval()
    tokens, sizes = texts()
    mask = torch.arange(tokens.shape[1]) < sizes[:, None]
    states = theirs(tokens, attention_mask=mask.long()).last_hidden_state
    wanted = states[:, 0] if pooling == "cls" else (states * mask[..., None]).sum(1) / sizes[:, None]
    found = ours(tokens, sizes)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    directions = torch.randn_like(found)
    (found * directions).sum().backward()
    (wanted * directions).sum().backward()
    gradients = {name: value.grad for name, value in theirs.named_parameters() if value.grad is not None}
    own = {name: value.grad for name, value in ours.bert.named_parameters() if value.grad is not None}
    assert own.keys() == gradients.keys()
    for name, value in own.items():
        torch.testing.assert_close(value, gradients[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("onednn", [True, False])
def test_a_text_has_the_same_bits_among_others_as_alone(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "HAS_ONEDNN", onednn and packed.HAS_ONEDNN)
    texts_alone = encoder(frozen_layers=2).train()
    together = copy.deepcopy(texts_alone)
    tokens, sizes = texts()
    rows = [ids[:size] for ids, size in zip(tokens, sizes, strict=True)]
    monkeypatch.setattr(TextEncoder, "_is_exact_together", False)
    wanted = texts_alone._lower(rows)
    monkeypatch.setattr(TextEncoder, "_is_exact_together", True)
    runs = []
    together.bert.encoder.layer[0].register_forward_pre_hook(lambda layer, arguments: runs.append(len(arguments[0])))
    found = together._lower(rows)
    assert runs == [sum(LENGTHS)]
    assert all(one.equal(other) for one, other in zip(found, wanted, strict=True))


def test_where_bits_depend_on_neighbours_each_text_is_computed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = packed.linear
    assert encoder(frozen_layers=2)._is_exact_together

    def in_blocks(states: torch.Tensor, *rest: Any) -> torch.Tensor:
        found = plain(states, *rest)
        return found * (1 + 1e-7 * len(states))

    monkeypatch.setattr(packed, "linear", in_blocks)
    own = encoder(frozen_layers=2).train()
    assert not own._is_exact_together
    runs = []
    own.bert.encoder.layer[0].register_forward_pre_hook(lambda layer, arguments: runs.append(len(arguments[0])))
    own(*texts())
    assert runs == [size + 16 * (size < 16) for size in LENGTHS]


def test_what_no_longer_fits_into_memory_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (2**31, 9 * 32 * 4):
        monkeypatch.setattr(tabular_model, "MOST_KEPT_BYTES", most)
        own = encoder(frozen_layers=2)
        found.append([own(*texts()), own(*texts())])
        assert len(own._frozen_states().memory) == (len(LENGTHS) if most == 2**31 else 3)
    assert all(each.equal(found[0][0]) for pair in found for each in pair)


def test_another_kind_of_encoder_is_computed_with_padding() -> None:
    torch.manual_seed(0)
    roberta = RobertaModel(RobertaConfig(**SIZES), add_pooling_layer=False)
    own = TextEncoder(roberta, 32, "cls", 1, 64, packs=True).train()  # type: ignore[arg-type]
    assert not own.packs
    tokens, sizes = texts()
    mask = (torch.arange(tokens.shape[1]) < sizes[:, None]).long()
    torch.testing.assert_close(own(tokens, sizes), roberta(tokens, attention_mask=mask).last_hidden_state[:, 0])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest(rate: float) -> None:
    states = torch.ones(333, 1001, requires_grad=True)
    torch.manual_seed(0)
    found = packed.dropout(states, rate)
    kept = found != 0
    assert float(kept.float().mean()) == pytest.approx(1 - rate, abs=0.004)
    # No place in a word of 64 bits is dropped more often.
    by_place = kept.flatten()[: 333 * 1001 // 4 * 4].view(-1, 4).float().mean(0)
    assert by_place.tolist() == pytest.approx([1 - rate] * 4, abs=0.008)
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / (1 - rate)), rtol=1e-3, atol=0)
    found.sum().backward()
    assert states.grad is not None and states.grad.equal(found.detach())
    torch.manual_seed(0)
    assert packed.dropout(states, rate).equal(found) and not packed.dropout(states, rate).equal(found)


def test_attention_with_dropout_reads_what_attention_without_reads() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    mask = torch.rand(2, 1, 1, 5) < 0.7
    mask[..., 0] = True
    for seen in (None, mask):
        wanted = packed.attention(query, key, value, seen, 0.0)
        torch.testing.assert_close(packed.attention(query, key, value, seen, 1e-6), wanted)
        drawn = torch.stack([packed.attention(query, key, value, seen, 0.2) for _ in range(400)])
        assert not drawn[0].equal(drawn[1])
        torch.testing.assert_close(drawn.mean(0), wanted, rtol=0, atol=0.15)
