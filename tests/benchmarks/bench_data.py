"""Preparing text: language_model's tokenising and packing beside `datasets.map` with a fast tokenizer.

make bench BENCH=data, or: python -m tests.benchmarks data

RELAY_TEXTS names a folder of .txt files; without it the benchmark takes the books of the checkout's shared data, and
skips where they are not there. Both sides have the same documents, tokenizer and length of a row, and one thread. The
way of `datasets` is that of transformers' example `run_clm.py`: tokenise in batches, then join the tokens of each batch
of 1,000 documents and cut them into rows. Its reading of the file is not counted, and Relay's is.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from recipes.language_model import data, text, tokens
from recipes.language_model.files import list_files
from recipes.language_model.settings import DataSettings
from tests.benchmarks import page
from tests.launching import SHARED

TEXTS = Path(os.environ.get("RELAY_TEXTS", SHARED / "lm" / "gutenberg"))
GPT2 = TEXTS.parent / "gpt2_tokenizer"
ROUNDS, LENGTH = int(os.environ.get("RELAY_ROUNDS", "5")), 256

pytestmark = pytest.mark.skipif(not any(TEXTS.glob("*.txt")), reason=f"there is no text in {TEXTS}")


def paragraphs() -> list[str]:
    """The paragraphs of all books, each with the empty line that follows it."""
    books = [path.read_text(encoding="utf-8") for path in sorted(TEXTS.glob("*.txt"))]
    return [f"{each}\n\n" for book in books for each in book.replace("\r\n", "\n").split("\n\n") if each]


def relay(file: Path, tokenizer: Any) -> Callable[[], Iterator[np.ndarray]]:
    """Relay's rows, from the file; returns what gives the tokens of each row, without the one it shares."""
    settings = DataSettings(
        source=str(file), max_seq_length=LENGTH, add_bos=False, add_eos=False, validation_fraction=0.0
    )
    corpus = text.Corpus(list_files(str(file)), settings, 0.0)
    rows = data.training_rows(corpus, data.Packer(tokenizer, settings))
    return lambda: (row.ids[1 if number else 0 :] for number, row in enumerate(rows))  # type: ignore[arg-type]


def with_map(documents: Any, tokenizer: Any, folder: Path) -> Callable[[], Iterator[np.ndarray]]:
    """The rows of `datasets.map`, as run_clm.py makes them; returns what gives the tokens of each row."""

    def tokenize(examples: dict[str, list[str]]) -> Any:
        return tokenizer(examples["text"], add_special_tokens=False)

    def group_texts(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined: dict[str, list[int]] = {name: [] for name in examples}
        for name, lists in examples.items():
            for each in lists:
                joined[name] += each
        total = len(joined["input_ids"]) // LENGTH * LENGTH
        rows = {name: [all_[at : at + LENGTH] for at in range(0, total, LENGTH)] for name, all_ in joined.items()}
        rows["labels"] = rows["input_ids"].copy()
        return rows

    files = [str(folder / f"{name}.arrow") for name in ("tokens", "rows")]
    tokenized = documents.map(tokenize, batched=True, remove_columns=["text"], cache_file_name=files[0])
    rows = tokenized.map(group_texts, batched=True, cache_file_name=files[1])
    return lambda: (np.array(row, np.int32) for row in rows["input_ids"])


def is_the_same(theirs: Iterator[np.ndarray], stream: np.ndarray, documents: list[np.ndarray]) -> bool:
    """Whether their rows are the stream's tokens, without the tail that each batch of 1,000 documents loses."""
    kept, at = [], 0
    for first in range(0, len(documents), 1000):
        size = sum(len(each) for each in documents[first : first + 1000])
        kept.append(stream[at : at + size // LENGTH * LENGTH])
        at += size
    return np.array_equal(np.concatenate(list(theirs)), np.concatenate(kept))


@pytest.mark.parametrize("kind", ["own", "gpt2"])
@pytest.mark.filterwarnings("ignore")
def test_tokenise_and_pack(kind: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    whole = paragraphs()
    size = sum(len(each.encode()) for each in whole)
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": each}) + "\n" for each in whole), encoding="utf-8")
    if kind == "gpt2" and not (GPT2 / "merges.txt").is_file():
        pytest.skip(f"there is no tokenizer in {GPT2}")
    tokenizer = tokens.byte_pairs(whole[::4], 8192) if kind == "own" else tokens.from_path(GPT2)
    documents = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert documents["text"][:] == whole
    taken: dict[str, list[float]] = {"Relay": [], "datasets.map": []}
    for turn in range(ROUNDS + 1):
        folder = tmp_path / str(turn)
        folder.mkdir()
        made: dict[str, Any] = {}
        for name in list(taken)[:: -1 if turn % 2 else 1]:
            # A tokenizer remembers words itself, so each turn begins with one that has seen none.
            fresh = type(tokenizer)(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(
                tokenizer.backend_tokenizer.to_str()))  # fmt: skip
            before = time.process_time()
            made[name] = relay(file, fresh) if name == "Relay" else with_map(documents, fresh, folder)
            if turn:
                taken[name].append(time.process_time() - before)
        if not turn:
            stream = np.concatenate(list(made["Relay"]()))
            each = tokens.encode(tokenizer, whole)
            assert np.array_equal(stream, np.concatenate(each))
            assert is_the_same(made["datasets.map"](), stream, each)
    ratios = [other / own for own, other in zip(taken["Relay"], taken["datasets.map"], strict=True)]
    words = f"{'own tokenizer' if kind == 'own' else 'GPT-2'}, {len(tokenizer):,} tokens, {size / 1e6:.1f} MB of text"
    rows = []
    for name, seconds in taken.items():
        ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} - {max(ratios):.1f})" if name == "Relay" else "1"
        middle = statistics.median(seconds)
        rows.append((name, f"{middle:.2f}", f"{size / middle / 1e6:.2f}", ratio))
    columns = (words, "CPU s", "MB/s and core", "times as fast (least - most)")
    page.record("data", columns, rows, f"medians of {ROUNDS} interleaved rounds")
