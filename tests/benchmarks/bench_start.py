"""From the command to the end of the first step: Relay beside a script with transformers.Trainer.

python -m tests.benchmarks start

Each start is a process of its own, which is stopped after its first step. The two take turns. Both train a model with
as many parameters, on the same text or tables. What the scripts do: trainer_script.py. RELAY_ROUNDS is the number of
rounds.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.benchmarks import page
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
