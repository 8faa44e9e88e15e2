"""The tokenizer and the text encoder: a pre-trained BERT, or a small one with random weights."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # The report of loading names the pooler, which nothing here uses.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        bert = AutoModel.from_pretrained(str(source), add_pooling_layer=False)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(_no_encoder(source, error)) from error
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
    if not hasattr(bert, "embeddings") or not hasattr(getattr(bert, "encoder", None), "layer"):
        raise DataError(
            f"{source} is a {type(bert).__name__}; wanted: a BERT (e5, bge and MiniLM are such).\n"
            "Type --model.text_encoder with its folder, or leave it out for a small one with random weights."
        )
    return bert


def given_pooling(source: str | Path) -> Literal["cls", "mean"]:
    """How an encoder's own folder says that a text becomes one vector; the first token where it says nothing.

    Raises DataError where it says something that Relay has not.
    """
    file = Path(source) / "1_Pooling" / "config.json"
    if not file.is_file():
        return "cls"
    content = json.loads(file.read_text(encoding="utf-8"))
    modes = [name for name, value in content.items() if name.startswith("pooling_mode_") and value is True]
    known: dict[str, Literal["cls", "mean"]] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        raise DataError(
            f"{file} asks for {', '.join(modes) or 'no pooling'}; Relay has the mean and the first token.\n"
            "Type --model.text_pooling mean or cls to take one of these."
        )
    return known[modes[0]]


def cut_note(lengths: list[int], most_tokens: int, longest: int) -> str | None:
    """A line that counts the texts of more than `most_tokens` tokens, with the setting that cuts fewer, or None.

    `longest` is the number of tokens that the encoder can read.
    """
    cut = sum(length > most_tokens for length in lengths)
    if not cut:
        return None
    longer = min(longest, 3 * most_tokens, max(lengths))
    line = f"{cut:,} of {len(lengths):,} texts are cut at {most_tokens} tokens"
    if longer <= most_tokens:
        return f"{line}, the most that the text encoder reads"
    return f"{line}; --data.max_text_tokens {longer} would cut {sum(length > longer for length in lengths):,}"


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
