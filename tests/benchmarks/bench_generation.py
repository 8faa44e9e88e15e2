"""Writing: 32 texts at a time against one by one with transformers' generate, and constrained against free writing.

make bench BENCH=generation, or: python -m tests.benchmarks generation

RELAY_MODEL is the folder of a trained decoder with its tokenizer, best one with a large vocabulary. Without it, a small
Llama with random weights writes, and the comparison of constrained with free writing is skipped. CPU seconds of this
process are counted, so that other work on the machine does not count. Each text has the same number of new tokens.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.language_model import demo, tokens
from recipes.language_model.answering import Generator, generate
from recipes.language_model.settings import GenerationRequest
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import DataSettings, GenerationSettings, ModelSettings
from tests.benchmarks import page

MODEL = os.environ.get("RELAY_MODEL", "")
TOGETHER, NEW, ONE_BY_ONE, QUESTIONS = 32, 48, 4, int(os.environ.get("RELAY_QUESTIONS", "4"))
ROUNDS = int(os.environ.get("RELAY_ROUNDS", "3"))


def cpu_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def model_and_tokenizer() -> tuple[Any, Any, str]:
    """Those of RELAY_MODEL, or a Llama with random weights; and what the table calls the model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if MODEL:
        model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
        return model, AutoTokenizer.from_pretrained(MODEL), Path(MODEL).resolve().name
    tokenizer: Any = tokens.byte_pairs([demo.stories(300)], 1000)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=8, num_attention_heads=8, intermediate_size=768,
        max_position_embeddings=1024, initializer_range=0.1, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    parameters = sum(each.numel() for each in model.parameters())
    return model, tokenizer, f"a Llama of {parameters:,} random weights"


@torch.no_grad()
def test_a_batch_against_one_by_one() -> None:
    model, tokenizer, name = model_and_tokenizer()
    # Of several lengths, so that the batch has padding.
    prompts = [f"Chapter {number}. " + "Anna had a garden. " * (number % 4) for number in range(1, TOGETHER + 1)]

    def one_by_one() -> list[str]:
        found = []
        for prompt in prompts[:: TOGETHER // ONE_BY_ONE]:
            ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
            if generator.add_bos:
                ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], 1)
            # As Relay does with stop=False: the end of a text is a token like any other.
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
                                 eos_token_id=None, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
            found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        return found

    def together() -> list[str]:
        return generate(generator, prompts, request)[:: TOGETHER // ONE_BY_ONE]

    request = GenerationRequest(temperature=0.0, max_new_tokens=NEW, stop=False)
    generator = Generator(model, tokenizer, 1024, bool(tokenizer.bos_token_id))
    assert one_by_one() == together()
    pairs = [(cpu_seconds(one_by_one) / ONE_BY_ONE, cpu_seconds(together) / TOGETHER) for _ in range(ROUNDS)]
    ratios = [alone / batch for alone, batch in pairs]
    alone, batch = (statistics.median(each) for each in zip(*pairs, strict=True))
    columns = (f"{name}, texts of {NEW} tokens", "CPU s a text", "times as fast (least - most)")
    rows = [("one by one, transformers", f"{alone:.3f}", "1"),
            (f"{TOGETHER} together, Relay", f"{batch:.3f}",
             f"{statistics.median(ratios):.1f} ({min(ratios):.1f} - {max(ratios):.1f})")]  # fmt: skip
    page.record("generation", columns, rows, f"medians of {ROUNDS} interleaved rounds")


@pytest.mark.skipif(not MODEL, reason="RELAY_MODEL names no folder of a trained decoder")
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
