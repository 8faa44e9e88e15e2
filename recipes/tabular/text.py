"""The tokenizer and the text encoder: a pre-trained BERT, or a small one with random weights."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import DataError

if TYPE_CHECKING:
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece vocabulary, trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(False)])
    texts = [normalizer.normalize_str(text) for text in texts]
    counts = Counter(letter for text in texts for letter in text if not letter.isspace())
    # ASCII always, because a later table is likely to hold it. The trainer numbers the inner letters in the order of a
    # hash, which changes from run to run. So they get their numbers here.
    letters = sorted({*(letter for letter, _ in counts.most_common(1000)), *map(chr, range(33, 127))})
    inner = [f"##{letter}" for letter in letters]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    trained.pre_tokenizer = splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*special, *inner], show_progress=False, min_frequency=2,
        initial_alphabet=letters,
    )  # fmt: skip
    trained.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(vocab=trained.get_vocab(), unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or id. Raises DataError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise DataError(_no_encoder(source, error)) from error


def vocabulary_digest(tokenizer: PreTrainedTokenizerFast) -> bytes:
    """A digest (16 bytes) of a vocabulary."""
    content = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def load_encoder(source: str | Path) -> BertModel:
    """The BERT of a folder or id, with its weights. Raises DataError where there is none, or another kind of model."""
    from transformers import AutoModel

    try:
        bert = AutoModel.from_pretrained(str(source), add_pooling_layer=False)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(_no_encoder(source, error)) from error
    if not hasattr(bert, "embeddings") or not hasattr(getattr(bert, "encoder", None), "layer"):
        raise DataError(
            f"{source} is a {type(bert).__name__}; wanted: a BERT (e5, bge and MiniLM are such).\n"
            "Type --model.text_encoder with its folder, or leave it out for a small one with random weights."
        )
    return bert


def _no_encoder(source: str | Path, error: Exception) -> str:
    return (
        f"The text encoder {source} cannot be loaded: {str(error).splitlines()[0]}\n"
        "Type --model.text_encoder with a folder that holds a BERT, or leave it out for a small one of random weights."
    )


def small_config(width: int, layers: int, vocab_size: int, most_tokens: int, dropout: float) -> BertConfig:
    """The configuration of the small BERT that is trained from random weights."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=2 * width,
        max_position_embeddings=most_tokens,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
