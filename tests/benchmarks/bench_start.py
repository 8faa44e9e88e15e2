"""From the command to the end of the first step: Relay beside a script with transformers.Trainer.

python -m tests.benchmarks start

Each start is a process of its own, which is stopped after its first step. The two take turns. Both train a model with
as many parameters, on the same text or tables. What the scripts do: trainer_script.py. RELAY_ROUNDS is the number of
rounds. The last table is of a run that goes on: how long its loader takes to the first micro-batches, here and at the
beginning of the data.
"""

import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch

from runner.fetching import batches
from runner.lanes import Lanes
from tests.benchmarks import page
from tests.benchmarks.llama_recipe import Recipe
from tests.launching import REPOSITORY, SHARED

ROUNDS = int(os.environ.get("RELAY_ROUNDS", "5"))
BATCH = 8
LENGTH = 64
WORDS = {
    "language_model": f"--data.max_seq_length {LENGTH} --model.hidden_size 64 --model.num_hidden_layers 2"
    " --model.num_attention_heads 2 --model.intermediate_size 128 --tokenizer.kind path",
    "text2sql": "--data.source geography --data.max_seq_length 512 --model.hidden_size 64 --model.intermediate_size 64"
    " --model.num_hidden_layers 2",
    "tabular": "",
    "microbiome": "",
}


def language_model(folder: Path) -> list[str]:
    """Text of the demo, a tokenizer and the settings of a small Llama; returns Relay's words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig

    from recipes.language_model import demo

    text = demo.write(folder)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(text)], vocab_size=1000, special_tokens=["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=LENGTH, tie_word_embeddings=True, architectures=["Llama"],
    ).save_pretrained(folder)  # fmt: skip
    return ["--data.source", str(text), "--tokenizer.path", str(folder / "tokenizer.json")]


def text2sql(folder: Path) -> list[str]:
    """Geography's prompts and SQL as text, a tokenizer, and the settings of a mixture of experts; Relay's words."""
    from runner.config import parse

    data = SHARED / "text2sql" / "geography"
    if not data.is_dir():
        pytest.skip("the geography data are not here")
    more = ["--data.dir", str(data.parent)]
    recipe = parse(["--recipe", "text2sql", *WORDS["text2sql"].split(), *more]).recipe.prepare(folder)  # type: ignore[attr-defined]
    examples, lines = recipe.data("train"), []
    for each in examples:
        prompt, target = map(recipe.tokenizer.decode, (each.prompt, each.target))
        for text, ids in ((prompt, each.prompt), (target, each.target)):
            assert recipe.tokenizer(text)["input_ids"] == list(ids), "the script would train on other tokens"
        lines.append(json.dumps({"prompt": prompt, "target": target}))
    (folder / "examples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe.model().config.save_pretrained(folder)
    return more


def cost(words: list[str], first: str) -> tuple[float, float, str]:
    """Stop a program at the line about its first step: seconds of the clock, of the CPU, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    started, lines = time.perf_counter(), []
    program = subprocess.Popen(
        words, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert program.stdout is not None
    for line in program.stdout:
        lines.append(line)
        if first in line:
            used = psutil.Process(program.pid).cpu_times()
            of_workers = used.children_user + used.children_system
            seconds = time.perf_counter() - started
            program.kill()
            program.communicate()
            return seconds, used.user + used.system + of_workers, "".join(lines)
    raise AssertionError("".join(lines))


@pytest.mark.parametrize("name", WORDS)
def test_time_to_the_first_step(name: str, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    make = {"language_model": language_model, "text2sql": text2sql}.get(name)
    words = [*WORDS[name].split(), *(make(tmp_path / "input") if make else [])]
    taken: dict[str, list[tuple[float, float]]] = {"Relay": [], "transformers.Trainer": []}
    parameters = {}
    # The first turn fills the caches of both.
    for turn in range(ROUNDS + 1):
        folder = str(tmp_path / f"relay-{turn}")
        relay = [
            sys.executable, "-m", "runner", "train", "--recipe", name, *words, "--output_dir", folder, "--max_steps",
            "100", "--batch_size", str(BATCH), "--micro_batch_size", str(BATCH), "--logging_steps", "1",
            "--mixed_precision", "no",
        ]  # fmt: skip
        script = [sys.executable, str(REPOSITORY / "tests/benchmarks/trainer_script.py"), name]
        script += [str(tmp_path / "input"), str(tmp_path / f"trainer-{turn}"), *words]
        for each, line, first in (("Relay", relay, " step 1/"), ("transformers.Trainer", script, "first step")):
            clock, processor, output = cost(line, first)
            found = re.search(r"([\d,]+) parameters", output)
            assert found, output
            parameters[each] = found[1]
            if turn:
                taken[each].append((clock, processor))
    rows = []
    for each, seconds in taken.items():
        clock, processor = ([of[kind] for of in seconds] for kind in (0, 1))
        ratios = [own[1] / other[1] for own, other in zip(seconds, taken["transformers.Trainer"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        rows.append((f"{name}, {parameters[each]} parameters", each, f"{statistics.median(processor):.1f}",
                     f"{statistics.median(clock):.1f}", spread))  # fmt: skip
    assert len(set(parameters.values())) == 1, parameters
    page.record(
        "start", ("model", "program", "CPU s", "seconds", "CPU, of Trainer's (least - most)"), rows,
        f"starts in turns, {ROUNDS} of each; medians",
    )  # fmt: skip


EXAMPLES = 30_000_000
"""Where the run goes on."""
LANES = 4


class Numbered:
    """A hundred million rows of tokens, each made when it is read."""

    def __len__(self) -> int:
        return 100_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), index % 256)


def stream_of(path: Path, tokenizer: Path, length: int) -> "tuple[Any, Any]":
    """The recipe and the stream of language_model's rows of a file."""
    from runner.config import parse

    words = f"--tokenizer.kind path --tokenizer.path {tokenizer} --data.streaming true --data.validation_fraction 0"
    settings = [*words.split(), "--data.source", str(path), "--data.max_seq_length", str(length)]
    (path.parent / path.stem).mkdir()
    recipe: Any = parse(["--recipe", "language_model", *settings]).recipe.prepare(path.parent / path.stem)
    return recipe, recipe.data("train")


def first_batches(recipe: object, data: Any, step: int, cursors: dict[str, Any]) -> tuple[float, float]:
    """CPU seconds and seconds until each lane has its first micro-batch of one example."""
    # numpy's and torch's first calls are no part of it.
    next(batches(cast(Any, Recipe()), Numbered(), Lanes(64, LANES, 1, seed=0), range(1), range(1), {}, 0))
    lanes = Lanes(len(data) if hasattr(data, "__len__") else 1, LANES, 1, seed=0)
    clock, processor = time.perf_counter(), time.process_time()
    reader = batches(cast(Any, recipe), data, lanes, range(LANES), range(step, step + 1), cursors, 0)
    assert len(list(reader)) == LANES
    return time.process_time() - processor, time.perf_counter() - clock


def test_going_on_at_thirty_million_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.language_model import text as texts

    language_model(tmp_path)
    story = (tmp_path / "stories.txt").read_text(encoding="utf-8")
    # A gigabyte of text has some 32 million rows of 8 tokens.
    (tmp_path / "whole.txt").write_text(story * (10**9 // len(story)), encoding="utf-8")
    lines = [json.dumps({"text": line[:60]}) for line in story.splitlines() if line.strip()]
    packed = gzip.compress(("\n".join(lines) + "\n").encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(packed * (EXAMPLES // len(lines) + 10))
    rows = []

    def measure(name: str, recipe: object, data: Any, step: int, cursor: list[int] | None) -> None:
        cursors = {str(lane): cursor for lane in range(LANES)} if cursor else {}
        for at, place in (("the beginning", (0, {})), ("30 million", (step, cursors))):
            taken = [first_batches(recipe, data, *place) for _ in range(ROUNDS)]
            processor, clock = (statistics.median(each[kind] for each in taken) for kind in (0, 1))
            rows.append((name, at, f"{processor:.3f}", f"{clock:.3f}"))

    measure("100 million examples by number", Recipe(), Numbered(), EXAMPLES // LANES, None)
    recipe, data = stream_of(tmp_path / "whole.txt", tmp_path / "tokenizer.json", 8)
    assert data.examples_per_epoch > EXAMPLES
    # A window is one piece of the lane's share of the source.
    windows = data.corpus.size // max(texts.PIECE, data.packer.settings.shuffle_window // LANES) // LANES
    window = windows * EXAMPLES // data.examples_per_epoch
    measure("1 GB of text, rows of 8 tokens", recipe, data, 0, [0, window, 5])
    assert "after the end" not in capsys.readouterr().out
    recipe, data = stream_of(tmp_path / "rows.jsonl.gz", tmp_path / "tokenizer.json", 8)
    # A window is 1,024 documents of each lane.
    measure("30 million documents, compressed", recipe, data, 0, [0, EXAMPLES // LANES // 1024, 0])
    columns = ("data, 4 lanes", "goes on at", "CPU s to the first micro-batches", "seconds")
    page.record("start", columns, rows, f"{ROUNDS} times each; medians")
