"""Writing: 32 texts at a time against one by one with transformers' generate, and constrained against free writing.

RELAY_MODEL=FOLDER OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/bench_generation.py -s \
    -o 'python_files=bench_*.py'

RELAY_MODEL is the folder of a trained decoder with its tokenizer, best one with a large vocabulary. CPU seconds of this
process are counted, so that other work on the machine does not count. Each text has the same number of new tokens.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.language_model.answering import Generator, generate
from recipes.language_model.settings import GenerationRequest
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import DataSettings, GenerationSettings, ModelSettings
from tests.benchmarks import page

MODEL = os.environ.get("RELAY_MODEL", "")
TOGETHER, NEW, ONE_BY_ONE, QUESTIONS = 32, 48, 4, int(os.environ.get("RELAY_QUESTIONS", "4"))

pytestmark = pytest.mark.skipif(not Path(MODEL).is_dir() or not MODEL, reason="RELAY_MODEL names no folder")


def cpu_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


@torch.no_grad()
def test_a_batch_against_one_by_one() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    prompts = [f"Chapter {number}. It was" for number in range(1, TOGETHER + 1)]

    def one_by_one() -> None:
        for prompt in prompts[:ONE_BY_ONE]:
            ids = tokenizer(prompt, return_tensors="pt")
            model.generate(**ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)

    request = GenerationRequest(temperature=0.0, max_new_tokens=NEW, stop=False)
    generator = Generator(model, tokenizer, 1024, bool(tokenizer.bos_token_id))
    cpu_seconds(one_by_one)
    alone = cpu_seconds(one_by_one) / ONE_BY_ONE
    batch = cpu_seconds(lambda: generate(generator, prompts, request)) / TOGETHER
    columns = (f"{Path(MODEL).name}, texts of {NEW} tokens", "CPU s a text", "times as fast")
    rows = [("one by one, transformers", f"{alone:.3f}", "1"),
            (f"{TOGETHER} together, Relay", f"{batch:.3f}", f"{alone / batch:.1f}")]  # fmt: skip
    page.record("generation", columns, rows, "one round")


@torch.no_grad()
def test_constrained_against_free(tmp_path: Path) -> None:
    data = DataSettings(source="demo", max_seq_length=600)
    recipe = Recipe(
        data_settings=data,
        model_settings=ModelSettings(pretrained=MODEL),
        generation_settings=GenerationSettings(max_new_tokens=NEW),
    ).prepare(tmp_path)
    model = recipe.model().eval()
    examples = [recipe.data("validation")[number * 7] for number in range(QUESTIONS)]
    found: dict[str, tuple[float, int]] = {}
    for name, settings in {
        "free": {},
        "constrained": {"constrained": True},
        "free, sampled": {"temperature": 0.8, "num_candidates": 4},
        "constrained, sampled": {"temperature": 0.8, "num_candidates": 4, "constrained": True},
    }.items():
        generation = dataclasses.replace(recipe.generation_settings, **settings)
        asked = dataclasses.replace(recipe, generation_settings=generation)
        counts: list[int] = []
        hook = model.register_forward_hook(lambda *_, counts=counts: counts.append(1))
        seconds = cpu_seconds(lambda asked=asked: asked.write(model, examples))
        hook.remove()
        found[name] = seconds, len(counts)
    cost = {name: seconds / steps for name, (seconds, steps) in found.items()}
    rows = [(name, f"{each:.3f}", f"{each / cost[name.replace('constrained', 'free')]:.2f}")
            for name, each in cost.items()]  # fmt: skip
    columns = (f"{Path(MODEL).name}, {QUESTIONS} questions", "CPU s a step", "times free writing")
    page.record("generation", columns, rows, "one round")
