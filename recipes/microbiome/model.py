"""The network: nucleotides to an ASV, ASVs to a sample, a sample to an embedding, and the heads.

Every stack is a pre-norm transformer on scaled dot-product attention. A sample is a set: nothing says in which order
its ASVs come, unless the rank embedding is asked for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from runner.errors import ConfigError
from runner.parts.sending import sent

PAD, MASK = 0, 5
NUM_TOKENS = 6  # pad, A, C, G, T, mask


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a network."""

    hidden_size: int
    num_attention_heads: int
    asv_layers: int
    sample_layers: int
    encoder_layers: int
    target_layers: int
    count_layers: int
    embedding_size: int
    dropout: float
    max_bp: int
    patch_size: int
    token_limit: int
    asv_chunk_size: int
    distance: str
    linear_readout: bool
    count_embedding: bool
    rank_embedding: bool
    target_from: str
    target_dropout: float
    num_outputs: int
    """Numbers that the target head gives; 0: no such head."""
    has_count_head: bool


@dataclasses.dataclass
class Output:
    """What the network says of a micro-batch; None where it was not asked."""

    embeddings: Float[Tensor, "samples size"] | None = None
    lengths: Float[Tensor, " samples"] | None = None
    """The samples' own branch length, in a unit of the model's, as the Tanimoto form has it."""
    asv_embeddings: Float[Tensor, "asvs size"] | None = None
    """The same of ASVs, each as a sample that has nothing else."""
    asv_lengths: Float[Tensor, " asvs"] | None = None
    nucleotides: Float[Tensor, "masked 4"] | None = None
    """Logits of A, C, G, T at the masked positions, in the order of `tokens[mask]`."""
    counts: Float[Tensor, "samples asvs"] | None = None
    """Logits of the relative abundance: a softmax over the sample's ASVs."""
    target: Float[Tensor, "samples outputs"] | None = None
    addition: Float[Tensor, "samples outputs"] | None = None
    """What the network adds to the linear readout, where there is one."""
    branches: Float[Tensor, "samples features"] | None = None
    """What the target is read off, before it is standardised; see UniFracHead.branch_features."""
    features: Float[Tensor, "samples features"] | None = None
    """The same, standardised."""
    scale: float = 1.0
    """What `embedding_distances` divides by in the tanh form."""


def tanh_scale(hidden_size: int) -> float:
    """10 at 128 dimensions, and growing as their root does, so that it suits vectors of any size."""
    return 10 * math.sqrt(hidden_size / 128)


def in_full(values: Tensor) -> Tensor:
    """In fp32 where they are in less, as under autocast; in fp64 they stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(size, eps=1e-6)
        self.queries_keys_values = nn.Linear(size, 3 * size)
        self.attention_output = nn.Linear(size, size)
        self.feed_forward_norm = nn.LayerNorm(size, eps=1e-6)
        self.feed_forward_input = nn.Linear(size, 4 * size)
        self.feed_forward_output = nn.Linear(4 * size, size)

    def forward(
        self, states: Float[Tensor, "rows places size"], mask: Bool[Tensor, "rows places"] | None
    ) -> Float[Tensor, "rows places size"]:
        """Attend among the places where `mask` is True, everywhere if it is None."""
        rows, places, size = states.shape
        projected = self.queries_keys_values(self.attention_norm(states))
        queries, keys, values = projected.view(rows, places, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=None if mask is None else mask[:, None, None, :], dropout_p=rate
        )
        attended = self.attention_output(attended.transpose(1, 2).reshape(rows, places, size))
        states = states + F.dropout(attended, self.dropout, self.training)
        widened = F.gelu(self.feed_forward_input(self.feed_forward_norm(states)))
        changed = self.feed_forward_output(F.dropout(widened, self.dropout, self.training))
        return states + F.dropout(changed, self.dropout, self.training)


class Stack(nn.Module):
    """Layers and a final norm."""

    def __init__(self, size: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(size, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.checkpoints = False

    def forward(
        self, states: Float[Tensor, "rows places size"], mask: Bool[Tensor, "rows places"] | None
    ) -> Float[Tensor, "rows places size"]:
        """Every layer, then the norm."""
        for block in self.blocks:
            if self.checkpoints and self.training and torch.is_grad_enabled():
                states = checkpoint(block, states, mask, use_reentrant=False)  # type: ignore[assignment]
            else:
                states = block(states, mask)
        return self.norm(states)


class AttentionPooling(nn.Module):
    """A weighted mean over the places, with learned weights, then a norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.score = nn.Linear(size, 1, bias=False)
        self.norm = nn.LayerNorm(size, eps=1e-6)

    def forward(
        self, states: Float[Tensor, "rows places size"], mask: Bool[Tensor, "rows places"] | None
    ) -> Float[Tensor, "rows size"]:
        """Pool the places where `mask` is True; a row without any is pooled evenly, so that nothing becomes NaN."""
        scores = in_full(self.score(states).squeeze(-1)) / math.sqrt(states.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).to(states.dtype)
        return self.norm(torch.einsum("rp,rps->rs", weights, states))


@dataclasses.dataclass(frozen=True)
class OnHost:
    """What decides how a micro-batch is computed, as arrays, which DDP does not move to the device."""

    tokens: Int[np.ndarray, "asvs letters"]
    mask: Bool[np.ndarray, "asvs letters"] | None

    def part(self, own: slice) -> OnHost:
        """The same of some ASVs."""
        return OnHost(self.tokens[own], None if self.mask is None else self.mask[own])


class AsvEncoder(nn.Module):
    """The nucleotides of one ASV to a vector, and guesses at those that were hidden.

    With `patch_size` k, k neighbouring nucleotides share one place of the transformer: a k-th of the work and less.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size, patch = shape.hidden_size, shape.patch_size
        self.patch_size, self.chunk_size = patch, shape.asv_chunk_size
        self.max_bp = -(-shape.max_bp // patch) * patch
        # A patch is read letter by letter: one embedding per (place in the patch, letter).
        self.letters = nn.Embedding(patch * NUM_TOKENS, size)
        self.places = nn.Embedding(self.max_bp // patch, size)
        nn.init.normal_(self.letters.weight, std=1 / math.sqrt(patch))
        nn.init.normal_(self.places.weight, std=0.5)
        self.stack = Stack(size, shape.num_attention_heads, shape.asv_layers, shape.dropout)
        self.pooling = AttentionPooling(size)
        self.nucleotide_head = nn.Linear(size, 4 * patch)

    def forward(
        self,
        tokens: Int[Tensor, "asvs letters"],
        mask: Bool[Tensor, "asvs letters"] | None,
        on_host: OnHost | None = None,
    ) -> tuple[Float[Tensor, "asvs size"], Float[Tensor, "masked 4"] | None]:
        """Encode in chunks of `chunk_size` ASVs (0: all at once); in training their activations are computed again.

        `tokens` are 1 to 4, 0 after the end; their number of letters is a multiple of the patch size. `on_host` holds
        the same tokens and mask; without it, the process waits for the device to read them.
        """
        on_host = on_host or OnHost(tokens.cpu().numpy(), None if mask is None else mask.cpu().numpy())
        step = self.chunk_size or len(tokens)
        pooled, logits = [], []
        for first in range(0, len(tokens), max(1, step)):
            own = slice(first, first + step)
            part = (tokens[own], None if mask is None else mask[own], on_host.part(own))
            if self.chunk_size and torch.is_grad_enabled() and self.letters.weight.requires_grad:
                vectors, guesses = checkpoint(self.encode, *part, use_reentrant=False)  # type: ignore[misc]
            else:
                vectors, guesses = self.encode(*part)
            pooled.append(vectors)
            logits.append(guesses)
        return torch.cat(pooled), None if mask is None else torch.cat(logits)

    def encode(
        self, tokens: Int[Tensor, "asvs letters"], mask: Bool[Tensor, "asvs letters"] | None, on_host: OnHost
    ) -> tuple[Float[Tensor, "asvs size"], Float[Tensor, "masked 4"] | None]:
        """Encode one chunk."""
        asvs, letters = tokens.shape
        patches = letters // self.patch_size
        shown = tokens.clamp(min=0) if mask is None else tokens.masked_fill(mask, MASK)
        offsets = torch.arange(self.patch_size, device=tokens.device) * NUM_TOKENS
        shown = shown.view(asvs, patches, self.patch_size) + offsets
        if self.patch_size == 1:
            states = self.letters(shown.squeeze(-1))
        else:
            states = F.embedding_bag(shown.view(-1, self.patch_size), self.letters.weight, mode="sum")
            states = states.view(asvs, patches, -1)
        states = states + self.places.weight[:patches]
        # Where all are equally long nothing is hidden, and attention has a faster way.
        is_even = (on_host.tokens.reshape(asvs, patches, self.patch_size)[:, :, 0] != PAD).all()
        there = None if is_even else tokens.view(asvs, patches, self.patch_size)[:, :, 0] != PAD
        states = self.stack(states, there)
        guesses = None
        if on_host.mask is not None:
            # By number: the size of what a mask on a GPU selects is only known once the GPU has come that far.
            holes = on_host.mask.any(1).nonzero()[0]
            rows, hidden, places = (
                sent(torch.from_numpy(each), states.device) for each in (holes, *on_host.mask[holes].nonzero())
            )
            logits = self.nucleotide_head(states[rows]).view(-1, letters, 4)
            guesses = logits[hidden, places]
        return self.pooling(states, there), guesses


TIP_BUCKETS = 1021
# Statistics of features are counted in multiples of 1 / UNITS.
UNITS = 2**20
# How far the centre and the spread of the features move to those of a step's samples.
FOLLOWING = 0.2


def tip_codes(tokens: Int[Tensor, "asvs letters"]) -> Int[Tensor, " asvs"]:
    """A bucket from 1 to TIP_BUCKETS for each ASV, times a sign: a hash of its letters. Padding does not change it."""
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=torch.int64)
    factors = (places * places * 40_503 + places * 2_654_435_761) % 2_147_483_647
    codes = (tokens.long() * factors).sum(1)
    return (codes % TIP_BUCKETS + 1) * (codes // TIP_BUCKETS % 2 * 2 - 1)


def tip_features(
    own: Float[Tensor, "samples asvs"], codes: Int[Tensor, "samples asvs"]
) -> Float[Tensor, "samples buckets"]:
    """The roots of the ASVs' own branch lengths, hashed; an inner product is the length of the tips that are shared."""
    samples = torch.arange(len(own), device=own.device)[:, None] * TIP_BUCKETS
    flat = (samples + codes.abs() - 1).reshape(-1)
    # Where an ASV is not there, its length is 0, whose root would have no gradient.
    values = own.clamp(min=1e-12).sqrt() * (own > 0) * codes.sign()
    tips = torch.zeros(len(own) * TIP_BUCKETS, dtype=own.dtype, device=own.device)
    return tips.index_add(0, flat, values.reshape(-1)).view(len(own), TIP_BUCKETS)


class UniFracHead(nn.Module):
    """A sample's embedding, whose distances are to be UniFrac's.

    Unweighted UniFrac is 1 - S / (a_i + a_j - S), where S is the branch length that two samples share, an inner product
    of their branches, and a the length that each has: a Tanimoto distance.
    `branches`: the embedding holds learned branches. An ASV is below a branch with some probability, and the branch is
    in a sample when any of its ASVs is below it: P = 1 - prod(1 - p), e = P * sqrt(length).
    `tanimoto`: the embedding is any vector, computed from the pooled sample.
    Both add what a tree's tips are: each ASV has a branch of its own, which two samples share when both have the ASV.
    These are hashed by the ASV's letters into TIP_BUCKETS numbers with signs, so that inner products are right on
    average (Weinberger et al. 2009, ICML 1113). In both, a = |e|^2, so equal samples are 0 apart by construction.
    `tanh`: tanh(|e_i - e_j| / scale) of the pooled vectors themselves.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.kind, size = shape.distance, shape.hidden_size
        if self.kind == "branches":
            self.below = nn.Linear(size, shape.embedding_size)
            # A sample of some fifty ASVs starts with half of the branches, not the same ones for all.
            nn.init.normal_(self.below.weight, std=2.5 / math.sqrt(size))
            nn.init.constant_(self.below.bias, -4.5)
            self.branch_length = nn.Parameter(torch.zeros(shape.embedding_size))
            self.own_length = nn.Linear(size, 1)
            nn.init.constant_(self.own_length.bias, -3.0)
        if self.kind == "tanimoto":
            # Pooling is a mean, which forgets how many there were; the number of ASVs is given back.
            self.direction = nn.Linear(size + 1, shape.embedding_size)
            self.private = nn.Linear(size + 1, 1)
            self.volume = nn.Linear(size + 1, 1)
            nn.init.zeros_(self.volume.weight)
            nn.init.zeros_(self.volume.bias)

    def branch_features(
        self,
        states: Float[Tensor, "samples asvs size"],
        is_there: Bool[Tensor, "samples asvs"],
        abundance: Float[Tensor, "samples asvs"],
    ) -> Float[Tensor, "samples features"]:
        """What a target may depend on, in the form `branches`: which branches a sample has, and its share below each.

        Roots of shares, as in Hellinger's distance, so that the rare count; both times the root of the branch's length,
        so that their inner products are alike to UniFrac's.
        """
        logits = self.below(in_full(states))
        hidden = logits.masked_fill(~is_there[..., None], -1e4)
        presence = 1 - torch.exp(-F.softplus(hidden).sum(1))
        shares = torch.einsum("sa,sab->sb", abundance.to(logits.dtype), torch.sigmoid(logits)).clamp(min=1e-6).sqrt()
        weight = F.softplus(self.branch_length).sqrt()
        return torch.cat([presence * weight, shares * weight], 1)

    def forward(
        self,
        states: Float[Tensor, "samples asvs size"],
        pooled: Float[Tensor, "samples size"] | None,
        is_there: Bool[Tensor, "samples asvs"],
        codes: Int[Tensor, "samples asvs"],
    ) -> tuple[Float[Tensor, "samples embedding"], Float[Tensor, " samples"] | None]:
        """The embeddings, and the samples' own lengths in the forms that have them. Source: our own."""
        if self.kind == "branches":
            logits = self.below(states).masked_fill(~is_there[..., None], -1e4)
            presence = 1 - torch.exp(-F.softplus(logits).sum(1))  # (samples, branches)
            length = F.softplus(self.branch_length) / len(self.branch_length)
            own = F.softplus(self.own_length(states).squeeze(-1)) / len(self.branch_length)
            embeddings = torch.cat([presence * length.sqrt(), tip_features(own * is_there, codes)], 1)
            return embeddings, embeddings.square().sum(1)
        assert pooled is not None
        if self.kind == "tanh":
            return pooled, None
        num_asvs = is_there.sum(1, keepdim=True).to(pooled.dtype)
        features = torch.cat([pooled, num_asvs.log1p() - 4], 1)
        volume = self.volume(features).exp()
        direction = self.direction(features)
        embeddings = direction * (volume / direction.shape[1]).sqrt()
        own = F.softplus(self.private(features)) * volume / num_asvs.clamp(min=1)
        embeddings = torch.cat([embeddings, tip_features(own * is_there, codes)], 1)
        return embeddings, embeddings.square().sum(1)


def embedding_distances(
    embeddings: Float[Tensor, "samples size"], lengths: Float[Tensor, " samples"] | None, scale: float
) -> Float[Tensor, "samples samples"]:
    """Distances between all pairs of embeddings, in UniFrac's range; see UniFracHead."""
    embeddings = in_full(embeddings)
    if lengths is None:
        # Not by products, which lose the small ones; its gradient between a sample and its double is 0, not NaN.
        apart = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.tanh(apart / scale)
    # A matrix product may round a pair otherwise than the same pair the other way round.
    products = embeddings @ embeddings.T
    shared = (products + products.T) / 2
    union = lengths[:, None] + lengths[None, :] - shared
    return 1 - shared / union.clamp(min=1e-6)


def _damped(deviations: Float[Tensor, " features"]) -> Float[Tensor, " features"]:
    """What features of these standard deviations are divided by; see MicrobiomeModel.standardise."""
    return (deviations + 0.1 * deviations.mean() + 1e-6) * math.sqrt(len(deviations))


def feature_statistics(features: Float[Tensor, "samples features"]) -> Int[Tensor, "3 features"]:
    """Of standardised features: their sum, the sum of their squares, and their number.

    In multiples of 1 / UNITS, so that their sum over micro-batches is the same in any order.
    """
    features = features.detach()
    terms = torch.stack([features, features.square(), torch.ones_like(features)])
    return (terms * UNITS).round().long().sum(1)


class MicrobiomeModel(nn.Module):
    """All stacks of a stage."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size, heads, dropout = shape.hidden_size, shape.num_attention_heads, shape.dropout
        self.shape = shape
        self.frozen = False
        # How many letters of an ASV the places were trained for: a longer study cannot inherit them.
        self.register_buffer("trained_letters", torch.zeros(1, dtype=torch.int64))
        self.trained_letters: Tensor
        self.asv_encoder = AsvEncoder(shape)
        # A place that belongs to no ASV: attention to it tells an ASV how few relatives it has.
        self.nobody = nn.Parameter(torch.randn(size) * 0.02)
        if shape.count_embedding:
            self.count_embedding = nn.Linear(1, size)
        if shape.rank_embedding:
            self.rank_embedding = nn.Embedding(shape.token_limit, size)
        self.sample_encoder = Stack(size, heads, shape.sample_layers, dropout)
        self.encoder = Stack(size, heads, shape.encoder_layers, dropout)
        if shape.distance != "branches":
            self.pooling = AttentionPooling(size)
        self.unifrac_head = UniFracHead(shape)
        if shape.has_count_head:
            self.count_encoder = Stack(size, heads, shape.count_layers, dropout)
            self.count_head = nn.Linear(size, 1)
            # A softmax over the ASVs of a sample ignores what is added to all of them. The optimiser would move these
            # two by rounding errors alone, which depend on the number of processes.
            for bias in (self.count_encoder.norm.bias, self.count_head.bias):
                bias.requires_grad_(False)
        if shape.num_outputs:
            if shape.target_from == "branches":
                self.target_head = nn.Linear(2 * shape.embedding_size, shape.num_outputs)
                nn.init.zeros_(self.target_head.weight)
                # Branches differ little between samples beside what all have in common, which would hide the rest.
                self.register_buffer("branch_centre", torch.zeros(2 * shape.embedding_size))
                self.register_buffer("branch_spread", torch.ones(2 * shape.embedding_size))
                self.branch_centre: Tensor
                self.branch_spread: Tensor
            else:
                # Stage 1 knows only who is there; a target can depend on how many.
                self.target_abundance = nn.Linear(1, size)
                self.target_encoder = Stack(size, heads, shape.target_layers, dropout)
                self.target_pooling = AttentionPooling(size)
                self.target_head = nn.Linear(size, shape.num_outputs)
            if shape.linear_readout:
                # The network begins by adding nothing.
                nn.init.zeros_(self.target_head.weight)
                nn.init.zeros_(self.target_head.bias)

    BASE = ("asv_encoder", "nobody", "count_embedding", "rank_embedding", "sample_encoder", "encoder", "pooling",
            "unifrac_head")  # fmt: skip

    def leave_out(self, nucleotides: bool, embeddings: bool) -> None:
        """Do not train what no loss reaches: data-parallel training would wait for its gradients."""
        if nucleotides:
            self.asv_encoder.nucleotide_head.requires_grad_(False)
        if embeddings:
            for name in ("encoder", "pooling", "unifrac_head"):
                if hasattr(self, name) and not (self.reads_branches and name != "pooling"):
                    getattr(self, name).requires_grad_(False)
            if self.reads_branches:
                self.unifrac_head.own_length.requires_grad_(False)
            if not self.shape.has_count_head and not self.shape.num_outputs:
                self.sample_encoder.requires_grad_(False)
                self.nobody.requires_grad_(False)
                self.asv_encoder.pooling.requires_grad_(False)

    def inherit(self, tensors: Mapping[str, Tensor], longest: int, takes_heads: bool = True) -> bool:
        """Take the base of a pre-trained model, whose positions must reach to the `longest` ASV.

        With `takes_heads`, heads of the same shapes are taken as well, all or none: True where they were.
        Raises ConfigError where the sizes differ.
        """
        trained = int(tensors["trained_letters"]) if "trained_letters" in tensors else longest
        if trained < longest:
            raise ConfigError(
                f"The weights come from ASVs of {trained} nucleotides, these have {longest}: the positions beyond were "
                f"never trained.\nType --data.max_bp {trained}."
            )
        own = self.state_dict()
        heads = [name for name in own if name.split(".")[0] not in self.BASE and name != "trained_letters"]
        fits = all(name in tensors and tensors[name].shape == own[name].shape for name in heads)
        goes_on = takes_heads and bool(heads) and fits
        for name, value in own.items():
            if name == "trained_letters" or (name in heads and not goes_on):
                continue
            if name not in tensors:
                raise ConfigError(f"The weights to start from have no {name}: give this run the same model settings.")
            given = tensors[name]
            if name == "asv_encoder.places.weight":
                given = given[: len(value)]
            if given.shape != value.shape:
                raise ConfigError(
                    f"{name} is {tuple(given.shape)} in the weights to start from and {tuple(value.shape)} here: give "
                    "this run the same preset and model settings."
                )
            value.copy_(given)
        self.trained_letters.fill_(trained)
        return goes_on

    @torch.no_grad()
    def standardise(self, features: Float[Tensor, "samples features"]) -> None:
        """Read the target off the branches' differences between these samples, in units of their spread.

        The features are divided by the root of their number as well. Their sum of squares is then about 1, and a step
        of the optimiser, which moves all weights of the head by as much, moves the target by little.
        """
        self.branch_centre.copy_(features.mean(0))
        self.branch_spread.copy_(_damped(features.std(0)))

    @torch.no_grad()
    def follow_branches(self, statistics: Float[Tensor, "3 features"]) -> None:
        """Move the centre and the spread of the branches towards those of a step's samples: see feature_statistics.

        The branches move while the encoder trains. Without this, the head would take that for differences.
        """
        total, square, number = statistics / UNITS
        shift = total / number
        deviations = (square / number - shift.square()).clamp(min=0).sqrt() * self.branch_spread
        self.branch_centre.add_(FOLLOWING * shift * self.branch_spread)
        self.branch_spread.lerp_(_damped(deviations), FOLLOWING)

    def freeze_base(self) -> None:
        """Leave stage 1 as it is: no gradient, no dropout, no optimiser state."""
        self.frozen = True
        for name in self.BASE:
            part = getattr(self, name, None)
            if part is not None:
                part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MicrobiomeModel:
        """As in torch, but for what is frozen: it stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            for name in self.BASE:
                if isinstance(getattr(self, name, None), nn.Module):
                    getattr(self, name).eval()
        return self

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, object] | None = None) -> None:
        """Compute every layer's activations again in the backward pass."""
        for part in self.modules():
            if isinstance(part, Stack):
                part.checkpoints = True

    @property
    def reads_branches(self) -> bool:
        """Whether the target is read off the learned branches."""
        return self.shape.num_outputs > 0 and self.shape.target_from == "branches"

    def embed(
        self,
        states: Float[Tensor, "samples places size"],
        mask: Bool[Tensor, "samples places"],
        codes: Int[Tensor, "samples asvs"],
    ) -> tuple[Float[Tensor, "samples embedding"], Float[Tensor, " samples"] | None]:
        """The embeddings of encoded samples, whose first place is nobody's."""
        # In full precision: distances are differences of nearly equal numbers.
        with torch.autocast(states.device.type, enabled=False):
            encoded = in_full(states)
            pooled = self.pooling(encoded, mask) if hasattr(self, "pooling") else None
            return self.unifrac_head(encoded[:, 1:], pooled, mask[:, 1:], codes)

    def forward(
        self,
        tokens: Int[Tensor, "asvs letters"],
        mask: Bool[Tensor, "asvs letters"] | None,
        asvs: Int[Tensor, "samples places"],
        is_there: Bool[Tensor, "samples places"],
        abundance: Float[Tensor, "samples places"],
        wants_embeddings: bool = True,
        alone: Int[Tensor, " chosen"] | None = None,
        linear: Float[Tensor, "samples outputs"] | None = None,
        on_host: OnHost | None = None,
    ) -> Output:
        """Encode the distinct ASVs once, and each sample from those it has: `asvs` are rows of `tokens`.

        The rows `alone` are embedded as samples of their own as well. `linear` are the scores of the linear readout,
        to which the target head adds its own. `on_host`: see AsvEncoder.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            vectors, guesses = self.asv_encoder(tokens, mask, on_host)
            codes = tip_codes(tokens)
            states = vectors[asvs] * is_there[..., None].to(vectors.dtype)  # (samples, places, size)
            if self.shape.count_embedding:
                states = states + self.count_embedding((abundance * 1000).log1p()[..., None].to(states.dtype))
            if self.shape.rank_embedding:
                states = states + self.rank_embedding.weight[: states.shape[1]]
            nobody = self.nobody.to(states.dtype).expand(len(states), 1, -1)
            everywhere = F.pad(is_there, (1, 0), value=True)
            states = self.sample_encoder(torch.cat([nobody, states], 1), everywhere)
            output = Output(nucleotides=guesses, scale=tanh_scale(self.shape.hidden_size))
            # A third stack, which the count head and the target's own stack do not read.
            encoded = self.encoder(states, everywhere) if wants_embeddings or self.reads_branches else states
            if wants_embeddings:
                output.embeddings, output.lengths = self.embed(encoded, everywhere, codes[asvs])
            if alone is not None:
                singles = vectors[alone][:, None]
                if self.shape.count_embedding:
                    whole = torch.full((1, 1, 1), 1000.0, dtype=singles.dtype, device=singles.device)
                    singles = singles + self.count_embedding(whole.log1p())
                singles = torch.cat([self.nobody.to(singles.dtype).expand(len(singles), 1, -1), singles], 1)
                singles = self.encoder(self.sample_encoder(singles, None), None)
                both = torch.ones(singles.shape[:2], dtype=torch.bool, device=singles.device)
                output.asv_embeddings, output.asv_lengths = self.embed(singles, both, codes[alone][:, None])
        if self.shape.has_count_head:
            output.counts = in_full(self.count_head(self.count_encoder(states, everywhere))[:, 1:].squeeze(-1))
        if self.reads_branches:
            with torch.autocast(tokens.device.type, enabled=False):
                output.branches = self.unifrac_head.branch_features(encoded[:, 1:], is_there, abundance)
                features = output.features = (output.branches - self.branch_centre) / self.branch_spread
                output.target = self.target_head(F.dropout(features, self.shape.target_dropout, self.training))
        elif self.shape.num_outputs:
            shares = F.pad((abundance * 1000).log1p(), (1, 0))[..., None]
            encoded = self.target_encoder(states + self.target_abundance(shares.to(states.dtype)), everywhere)
            output.target = in_full(self.target_head(self.target_pooling(encoded, everywhere)))
        if linear is not None and output.target is not None:
            output.addition = output.target
            output.target = output.target + linear
        return output
