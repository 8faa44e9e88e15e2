"""The network: texts of cells, each distinct one encoded once; numbers fused in; target tokens attend to the cells.

Shapes: B rows, S tokens of a row (targets, then cells), U distinct texts, L their tokens, D width, C classes.
Sources: TabSTAR, arXiv 2505.18125, section 3 (v1.0 layout); `tabstar` 1.2.2 for the fusion "sum".
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recipes.tabular.ngram_hashing import CODE_SIZE
from recipes.tabular.packed import Adapted, Layout, attention, draw_fast, embed, pack
from recipes.tabular.table import CHANNELS
from runner.parts.sending import sent

if TYPE_CHECKING:
    from transformers import BertModel
    from transformers.models.bert.modeling_bert import BertLayer

MOST_KEPT_TOKENS = 16384
MOST_CHUNK_TOKENS = 4096
MOST_VECTORS = 65536
MOST_KEPT_BYTES = 2**31
FEWEST_TOKENS = 16


class Attention(nn.Module):
    """Multi-head attention by four plain projections, so that adapters reach all of them."""

    draws_fast = False
    """Whether dropout is that of `packed.dropout`; see `packed.draw_fast`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, states: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        """(B, S, D) to (B, S, D); `mask` (B, 1, 1, S) is true where there is a token."""
        batch, length, width = states.shape
        query, key, value = (
            part(states).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        if self.draws_fast:
            mixed = attention(query, key, value, mask, dropout)
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """A pre-norm transformer layer with ReLU, as nn.TransformerEncoderLayer(norm_first=True) computes it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        rate = self.dropout.p if self.training else 0.0
        states = states + self.dropout(self.attention(self.norm1(states), mask, rate))
        return states + self.dropout(self.linear2(self.dropout(self.linear1(self.norm2(states)).relu())))


class Fusion(nn.Module):
    """Put the value of a numeric cell into the vector of its text; a cell without a value stays as its text is.

    "transformer": TabSTAR v1.0, text and value as two tokens of one layer, their mean. "sum": v1.1,
    LN(text) w + LN(value), with one learned w.
    """

    def __init__(self, width: int, kind: str, dropout: float) -> None:
        super().__init__()
        self.kind = kind
        self.up, self.down = nn.Linear(CHANNELS, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        if kind == "transformer":
            self.block = Block(width, 2, dropout)
        else:
            self.text_norm, self.number_norm = nn.LayerNorm(width), nn.LayerNorm(width)
            # Of one element: FSDP2 does not shard a scalar.
            self.scale = nn.Parameter(torch.ones(1))

    def forward(self, texts: Tensor, numbers: Tensor) -> Tensor:
        """(B, S, D) and (B, S, 6) to (B, S, D)."""
        values = self.down(self.dropout(self.up(numbers).relu()))
        if self.kind == "transformer":
            pairs = torch.stack([texts, values], dim=2).flatten(0, 1)
            return self.block(pairs).mean(1).view_as(texts)
        # A cell of text has no value: its six numbers are all 0, the last of a numeric cell is 1.
        is_number = numbers[..., -1:]
        return self.text_norm(texts) * self.scale + self.number_norm(values) * is_number


class Head(nn.Module):
    """One number per target token, shared by all tables."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, 1)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) to (...)."""
        return self.down(self.up(states).relu()).squeeze(-1)


class Readout(nn.Module):
    """Scores straight from the words and letters of a row: a linear model on hashed grams, of rank 32.

    Every gram has a vector, every target token a direction (`grams.code`); a cell is the sum of its grams' vectors over
    the root of their number, a row the sum of its cells, and a score the product of row and direction. Beside the
    transformer, it learns in a hundred steps which words of a small table matter.
    """

    # One learning rate serves all weights: drawn this small and counted sixfold, a gram is learned within few steps.
    SCALE, DEVIATION = 6.0, 0.005

    def __init__(self, buckets: int, dropout: float) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(buckets, CODE_SIZE) * self.DEVIATION)
        self.dropout = dropout

    def forward(self, grams: Tensor, num_grams: Tensor, reads: Tensor, codes: Tensor) -> Tensor:
        """(B, C) scores for `codes` (B, C, 32).

        `grams` (G,) are the buckets of N sets, `num_grams` (N,) the sets' sizes, `reads` (B, S) each token's set, which
        is empty for targets and padding.
        """
        shares = num_grams.clamp(min=1).rsqrt().repeat_interleave(num_grams, output_size=len(grams))
        if self.training and self.dropout:
            shares = functional.dropout(shares, self.dropout)
        starts = num_grams.cumsum(0) - num_grams
        sets = functional.embedding_bag(grams, self.vectors, starts, mode="sum", per_sample_weights=shares)
        rows = sets[reads].sum(1)
        return self.SCALE * torch.einsum("bd,bcd->bc", rows, codes)


class FrozenStates:
    """What the frozen lower layers make of each text: computed once, and the same whatever its neighbours are.

    In memory (2 GiB at most), or in a folder (memory-mapped, one file per encoder, shared by later runs). In float32.
    """

    def __init__(self, folder: Path | None, width: int, fingerprint: str) -> None:
        self.width = width
        self.places: dict[str, tuple[int, int]] = {}
        self.memory: dict[str, Tensor] = {}
        self.kept_bytes = 0
        self.file: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.file, self.index = folder / f"{fingerprint}.bin", folder / f"{fingerprint}.jsonl"
            self._read_index()
            self.file.touch()

    def _read_index(self) -> None:
        if self.file is None or not self.file.is_file() or not self.index.is_file():
            return
        size = self.file.stat().st_size // (4 * self.width)
        for line in self.index.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                key, first, length, check = json.loads(line)
                # A line is written after its states; one that was cut, or whose states were, is computed again.
                if first + length <= size and check == first + length:
                    self.places[key] = (first, length)

    def get(self, key: str) -> Tensor | None:
        """(tokens, D) of a text, or None."""
        if self.file is None:
            return self.memory.get(key)
        if key in self.memory:
            return self.memory[key]
        if key not in self.places or not self.file.is_file():
            return None
        first, length = self.places[key]
        mapped = np.memmap(self.file, np.float32, "r", offset=4 * self.width * first, shape=(length, self.width))
        return torch.from_numpy(np.array(mapped))

    def put(self, key: str, states: Tensor) -> None:
        """Keep the (tokens, D) of a text."""
        if self.file is None:
            self.kept_bytes += states.nbytes
            if self.kept_bytes <= MOST_KEPT_BYTES:
                self.memory[key] = states.clone()
            return
        import fcntl

        # Several processes append to one file.
        with self.file.open("ab") as data, self.index.open("a", encoding="utf-8") as index:
            fcntl.flock(data, fcntl.LOCK_EX)
            data.seek(0, 2)
            first = -(-data.tell() // (4 * self.width))
            data.write(b"\0" * (first * 4 * self.width - data.tell()))
            data.write(states.contiguous().numpy().tobytes())
            data.flush()
            index.write(json.dumps([key, first, len(states), first + len(states)]) + "\n")
        self.places[key] = (first, len(states))


def computes_twice(sizes: list[int]) -> bool:
    """Whether so many tokens train that activations are cheaper to compute again in the backward pass than to keep."""
    return torch.is_grad_enabled() and sum(sizes) > MOST_KEPT_TOKENS


def give_back() -> None:
    """Return freed memory to the system: glibc keeps it, and takes as much again for the next chunk of texts."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The states among what a layer of a text encoder returns: some return more."""
    return output[0] if isinstance(output, tuple) else output


def _filled(texts: list[Tensor]) -> list[Tensor]:
    """Texts, and others of one token if theirs are few: products of fewer than four rows may have other last bits."""
    few = sum(len(text) for text in texts) < FEWEST_TOKENS
    return [*texts, *texts[0].new_zeros(FEWEST_TOKENS, 1)] if few else texts


class TextEncoder(nn.Module):
    """A BERT over the distinct texts of a micro-batch; its lower layers may be frozen, and are then cached."""

    def __init__(
        self,
        bert: BertModel,
        width: int,
        pooling: str,
        frozen_layers: int,
        chunk_size: int,
        cache: Path | None = None,
        packs: bool = False,
    ) -> None:
        """`packs`: on a CPU, texts are computed without padding, which pays for large encoders."""
        super().__init__()
        self.bert = bert
        self.packs = packs and pack(bert)
        self.pooling, self.frozen_layers, self.chunk_size, self.cache = pooling, frozen_layers, chunk_size, cache
        text_width = bert.config.hidden_size
        self.project = nn.Identity() if text_width == width else nn.Linear(text_width, width)
        self.keeps_states = True
        """Whether texts come again, so that what the frozen layers make of each is kept."""
        self._states: FrozenStates | None = None
        self._version = -1
        self._vectors: dict[bytes, Tensor] = {}
        self._vectors_version = -1
        self.freezes = frozen_layers == len(bert.encoder.layer)
        if frozen_layers:
            for module in (bert.embeddings, *bert.encoder.layer[:frozen_layers]):
                module.requires_grad_(False)

    def forward(self, tokens: np.ndarray, lengths: np.ndarray) -> Tensor:
        """(U, L) token ids, sorted by length, and (U,) lengths, both on the host, to (U, D)."""
        tokens, sizes = np.asarray(tokens), lengths.tolist()
        if self.is_frozen or (not self.training and not torch.is_grad_enabled()):
            return self.project(self._known(tokens, sizes))
        self._vectors.clear()
        twice = computes_twice(sizes)
        pieces = []
        most_tokens = MOST_CHUNK_TOKENS // (4 if twice else 1)
        for first, last in self._chunks(sizes, most_tokens, without_padding=self._without_padding):
            arguments = tokens[first:last, : sizes[last - 1]], sizes[first:last]
            if twice:
                # Only the token ids are held until the backward pass: the frozen layers' output is read again.
                pieces.append(checkpoint(self._encode_frugally, *arguments, use_reentrant=False))
            else:
                pieces.append(self._encode(*arguments))
        if twice:
            give_back()
        return self.project(torch.cat(pieces))

    @property
    def is_frozen(self) -> bool:
        """Whether no layer learns: each text then has one vector, in training too, which is computed once."""
        return self.freezes and not any(value.requires_grad for value in self.bert.parameters())

    @contextlib.contextmanager
    def keeping_nothing(self) -> Iterator[None]:
        """For texts that do not come again: the frozen layers compute them together, and nothing of it is kept."""
        before, self.keeps_states = self.keeps_states, False
        try:
            yield
        finally:
            self.keeps_states = before

    @property
    def _device(self) -> torch.device:
        return self.bert.embeddings.word_embeddings.weight.device

    @property
    def _without_padding(self) -> bool:
        """Whether texts are computed without padding."""
        return self.packs and self._device.type == "cpu"

    def _chunks(
        self, sizes: list[int], most_tokens: int = MOST_CHUNK_TOKENS, equal: bool = False, without_padding: bool = False
    ) -> Iterator[tuple[int, int]]:
        """(first, last) of texts that are encoded together: so many, of so many tokens with their padding.

        With `equal`, of one length, so that there is no padding; `without_padding`, of any length.
        """
        first = total = 0
        for place, size in enumerate(sizes):
            count = place - first
            filled = total + size if without_padding else (count + 1) * size
            is_full = count == self.chunk_size or filled > most_tokens
            if count and (is_full or (equal and size > sizes[first])):
                yield first, place
                first, total = place, 0
            total += size
        yield first, len(sizes)

    def _known(self, tokens: np.ndarray, sizes: list[int]) -> Tensor:
        """(U, width of the encoder): while the weights stay, each distinct text is encoded once, whatever the batch."""
        version = sum(value._version for value in self.bert.parameters())
        if version != self._vectors_version or len(self._vectors) > MOST_VECTORS:
            self._vectors, self._vectors_version = {}, version
        keys = [tokens[row, :size].tobytes() for row, size in enumerate(sizes)]
        new = [row for row, key in enumerate(keys) if key not in self._vectors]
        packs = self._without_padding
        chunks = self._chunks([sizes[row] for row in new], equal=not packs, without_padding=packs)
        for first, last in chunks if new else ():
            rows = new[first:last]
            chunk = tokens[rows, : sizes[rows[-1]]], [sizes[row] for row in rows]
            vectors = self._encode_frozen(*chunk) if self.is_frozen else self._encode(*chunk)
            self._vectors.update((keys[row], vector) for row, vector in zip(rows, vectors, strict=True))
        return torch.stack([self._vectors[key] for key in keys])

    @torch.no_grad()
    def _encode_frozen(self, chunk: np.ndarray, sizes: list[int]) -> Tensor:
        """As `_encode`, of texts of one length, in float32 and without dropout."""
        was_training = self.bert.training
        self.bert.eval()
        with torch.autocast(self._device.type, enabled=False), self.keeping_nothing():
            found = self._encode(chunk, sizes)
        self.bert.train(was_training)
        return found

    def _encode_frugally(self, chunk: np.ndarray, sizes: list[int]) -> Tensor:
        """As `_encode`, without what the chunk before has freed."""
        give_back()
        return self._encode(chunk, sizes)

    def _encode(self, chunk: np.ndarray, sizes: list[int]) -> Tensor:
        """(u, l) token ids, on the host, and their lengths to (u, width of the encoder)."""
        if self._without_padding:
            return self._encode_packed(chunk, sizes)
        lengths = sent(torch.tensor(sizes), self._device)[:, None]
        mask = torch.arange(chunk.shape[1], device=lengths.device) < lengths
        kept_layers = self.frozen_layers if self.keeps_states else 0
        if kept_layers:
            texts = [ids[:size] for ids, size in zip(chunk, sizes, strict=True)]
            states = nn.utils.rnn.pad_sequence(self._lower(texts), batch_first=True)
        else:
            states = self.bert.embeddings(input_ids=sent(torch.from_numpy(chunk), self._device))
        # Where every text is as long, no mask: a text alone and a text in a chunk are then the same sum.
        bias = None if min(sizes) == chunk.shape[1] else mask[:, None, None, :]
        layers = cast("list[BertLayer]", list(self.bert.encoder.layer))
        for layer in layers[kept_layers:]:
            in_parts = hasattr(layer, "feed_forward_chunk") and not torch.is_grad_enabled()
            if layer is layers[-1] and self.pooling == "cls" and in_parts:
                # Only the first token is read: what follows the last attention of a BERT is computed for it alone.
                # In training FSDP2 gathers a layer only when it is called whole.
                states = layer.feed_forward_chunk(_first(layer.attention(states, bias))[:, :1])
            else:
                states = _first(layer(states, bias))
        if self.pooling == "cls":
            return states[:, 0]
        return (states * mask[..., None]).sum(1) / lengths

    def _encode_packed(self, chunk: np.ndarray, sizes: list[int]) -> Tensor:
        """As `_encode`, without computing padding."""
        kept_layers = self.frozen_layers if self.keeps_states else 0
        texts = [torch.from_numpy(ids[:size]) for ids, size in zip(chunk, sizes, strict=True)]
        if not torch.is_grad_enabled():
            texts = _filled(texts)
        layout = Layout([len(text) for text in texts])
        states = torch.cat(self._lower(texts)) if kept_layers else embed(self.bert, texts)
        layers = list(self.bert.encoder.layer)
        for layer in layers[kept_layers:]:
            is_last = layer is layers[-1] and self.pooling == "cls"
            states = layer(states, layout=layout, only_first=is_last)
            if is_last:
                return states[: len(chunk)]
        return (layout.first(states) if self.pooling == "cls" else layout.mean(states))[: len(chunk)]

    def _lower(self, texts: Sequence[np.ndarray | Tensor]) -> list[Tensor]:
        """The token ids of each text to what the frozen layers make of it, (tokens, D)."""
        states = self._frozen_states()
        keys = [hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=16).hexdigest() for ids in texts]
        found = {key: states.get(key) for key in keys}
        new = [place for place, key in enumerate(keys) if found[key] is None]
        together = bool(new) and self._without_padding and self._is_exact_together
        for group in [new] if together else [[place] for place in new]:
            for place, own in zip(
                group, self._run_frozen([torch.as_tensor(texts[place]) for place in group]), strict=True
            ):
                found[keys[place]] = own
                states.put(keys[place], own)
        return [sent(cast("Tensor", found[key]), self._device) for key in keys]

    @functools.cached_property
    def _is_exact_together(self) -> bool:
        """Whether a text has the same bits among others as alone, on this machine.

        A run that resumes computes other texts together than the run before it did.
        """
        longest, words = self.bert.config.max_position_embeddings, self.bert.config.vocab_size
        texts = [torch.arange(min(length, longest)) % words for length in (3, 4, 7, 16, 33, 64)]
        alone = [self._run_frozen([text])[0] for text in texts]
        return all(one.equal(other) for one, other in zip(alone, self._run_frozen(texts), strict=True))

    @torch.no_grad()
    def _run_frozen(self, texts: list[Tensor]) -> list[Tensor]:
        """As `_lower`, computed now, in float32 and without dropout."""
        frozen = (self.bert.embeddings, *self.bert.encoder.layer[: self.frozen_layers])
        was_training = self.bert.training
        for module in frozen:
            module.eval()
        with torch.autocast(self._device.type, enabled=False):
            if self._without_padding:
                filled = _filled(texts)
                layout = Layout([len(text) for text in filled])
                hidden = embed(self.bert, filled)
                for layer in frozen[1:]:
                    hidden = layer(hidden, layout=layout)
                found = list(hidden.split(layout.sizes))[: len(texts)]
            else:
                hidden = self.bert.embeddings(input_ids=sent(torch.stack(texts), self._device))
                for layer in frozen[1:]:
                    hidden = _first(layer(hidden, None))
                found = list(hidden)
        for module in frozen:
            module.train(was_training)
        return [each.float().cpu() for each in found]

    def _frozen_states(self) -> FrozenStates:
        frozen = [self.bert.embeddings, *self.bert.encoder.layer[: self.frozen_layers]]
        parameters = [value for module in frozen for value in module.parameters()]
        # Weights that were loaded over these have another version: what was kept is then of another encoder.
        version = sum(value._version for value in parameters)
        if self._states is None or version != self._version:
            digest = hashlib.blake2b(digest_size=16)
            for value in parameters:
                # A copy: FSDP2 cannot free storage that numpy shares.
                digest.update(value.detach().to("cpu", torch.float32, copy=True).contiguous().numpy().tobytes())
            digest.update(self.bert.config.to_json_string().encode())
            self._states = FrozenStates(self.cache, self.bert.config.hidden_size, digest.hexdigest())
            self._version = version
        return self._states


class TabularModel(nn.Module):
    """Texts, numbers and a mask in; a class score and a number for each target token out."""

    def __init__(
        self,
        texts: TextEncoder,
        width: int,
        heads: int,
        layers: int,
        fusion: str,
        dropout: float,
        final_norm: bool = True,
        vocabulary: bytes = bytes(16),
        readout: Readout | None = None,
        cell_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        # Weights that go with another vocabulary fit in shape, and mean nothing.
        self.vocabulary: Tensor
        self.register_buffer("vocabulary", torch.tensor(list(vocabulary), dtype=torch.uint8))
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        self.texts = texts
        self.fusion = Fusion(width, fusion, dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.classification, self.regression = Head(width), Head(width)
        self.readout, self.cell_dropout = readout, cell_dropout
        if texts.packs:
            draw_fast(self)

    def forward(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        cells: Tensor,
        numbers: Tensor,
        mask: Tensor,
        num_targets: int,
        grams: Tensor,
        num_grams: Tensor,
        reads: Tensor,
        codes: Tensor,
        has_padding: bool,
    ) -> tuple[Tensor, Tensor]:
        """Scores (B, num_targets) for classes, and (B,) z of a regression.

        `tokens` (U, L) and `lengths` (U,) are the distinct texts, sorted by length: arrays, because DDP would move
        tensors to the device, and the process would wait to read them. `cells` (B, S) are places among the texts,
        `numbers` (B, S, 6), `mask` (B, S) is true where there is a token, which is everywhere without `has_padding`;
        the first `num_targets` tokens of a row are its targets, as far as there are so many. `grams` (G,), `num_grams`
        (N,), `reads` (B, S) and `codes` (B, num_targets, 32) are the readout's.
        """
        kind = self.classification.down.weight.dtype
        texts = self.texts(tokens, lengths)
        states = self.fusion(texts[cells], numbers.to(kind))
        attend = mask[:, None, None, :] if has_padding else None
        if self.training and self.cell_dropout:
            seen = mask & (torch.rand(mask.shape, device=mask.device) >= self.cell_dropout)
            seen[:, :num_targets] = mask[:, :num_targets]
            attend = seen[:, None, None, :]
        twice = computes_twice(lengths.tolist())
        for block in self.blocks:
            states = checkpoint(block, states, attend, use_reentrant=False) if twice else block(states, attend)
        states = self.norm(states[:, :num_targets])
        scores, z = self.classification(states), self.regression(states[:, 0])
        if self.readout is None:
            return scores, z
        linear = self.readout(grams, num_grams, reads, codes.to(kind))
        return scores + linear, z + linear[:, 0]


def adapt(model: TabularModel, rank: int, alpha: float, dropout: float, heads: set[str]) -> None:
    """Freeze everything and put LoRA on the text encoder's upper layers, fusion, interaction and the heads in use."""
    model.requires_grad_(False)
    parts: list[nn.Module] = [*model.texts.bert.encoder.layer[model.texts.frozen_layers :], model.fusion, *model.blocks]
    parts += [getattr(model, name) for name in sorted(heads)]
    for part in parts:
        for owner in list(part.modules()):
            for name, child in list(owner.named_children()):
                # A head's last layer has one output: an adapter of rank 32 would be larger than it.
                if isinstance(child, nn.Linear) and child.out_features > 1:
                    setattr(owner, name, Adapted(child, rank, alpha, dropout))
    for name in sorted(heads):
        getattr(model, name).down.requires_grad_(True)
    if model.readout is not None:
        model.readout.requires_grad_(True)
    if isinstance(model.texts.project, nn.Linear):
        model.texts.project = Adapted(model.texts.project, rank, alpha, dropout)  # type: ignore[assignment]
