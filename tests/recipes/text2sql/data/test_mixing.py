"""Several sources in one training: their shares, their order, and what a run warns of."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from recipes.text2sql.data.mixing import MixedOrder, interleaved, shares
from runner.config import parse
from runner.errors import ConfigError
from tests.launching import REPOSITORY
from tests.recipes.text2sql.source_folders import bound, read, write_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Spider, BIRD, WikiSQL and Gretel, a few questions each."""
    return write_sources(tmp_path)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((0.4, 0.3, 0.2, 0.1), (4, 3, 2, 1)),
        ((1, 1, 1), (1, 1, 1)),
        ((0.5, 0, 0.25), (2, 0, 1)),
        ((0.333, 0.667), (333, 667)),
        ((7,), (1,)),
        ((0.123456789, 0.876543211), (1235, 8765)),
    ],
)
def test_shares_are_exact(weights: tuple[float, ...], counts: tuple[int, ...]) -> None:
    assert shares(weights) == counts


def order(sizes: Sequence[int], weights: Sequence[float], batch: int = 8, lane: int = 4, **more: Any) -> MixedOrder:
    names = tuple(f"source{number}" for number in range(len(sizes)))
    return MixedOrder(names, tuple(sizes), tuple(weights), batch, lane, **{"seed": 3, **more})


def source_of(index: int, sizes: Sequence[int]) -> int:
    return next(number for number in range(len(sizes)) if index < sum(sizes[: number + 1]))


def drawn(mixed: MixedOrder, steps: int) -> list[int]:
    lanes = mixed.batch_size // mixed.micro_batch_size
    return [index for step in range(steps) for lane in range(lanes) for index in mixed.indices(step, lane)]


def test_every_window_holds_the_shares_and_every_pass_each_example_once() -> None:
    sizes = (40, 37, 50, 11)
    examples = drawn(order(sizes, (0.4, 0.3, 0.2, 0.1), max_epochs=0), 100)
    assert len(examples) == 800
    for first in range(0, 800, 10):
        assert Counter(source_of(index, sizes) for index in examples[first : first + 10]) == {0: 4, 1: 3, 2: 2, 3: 1}
    patterns = {tuple(source_of(index, sizes) for index in examples[first : first + 10]) for first in range(0, 800, 10)}
    assert len(patterns) > 40, "the windows are shuffled"
    for source, size in enumerate(sizes):
        own = [index for index in examples if source_of(index, sizes) == source]
        passes = [own[first : first + size] for first in range(0, len(own) - size + 1, size)]
        assert len(passes) >= 1 and all(len(set(each)) == size for each in passes)
        assert len({tuple(each) for each in passes}) == len(passes), "each pass in an order of its own"


@pytest.mark.parametrize(("batch", "lane"), [(8, 8), (8, 2), (8, 1), (16, 4), (24, 3)])
def test_the_order_is_a_function_of_the_place_alone(batch: int, lane: int) -> None:
    # However a run is cut into lanes and steps, and in whatever sequence it is asked.
    sizes, weights = (40, 37, 50), (0.5, 0.3, 0.2)
    wanted = drawn(order(sizes, weights, 8, 4, max_epochs=2.0), 48)
    mixed = order(sizes, weights, batch, lane, max_epochs=2.0)
    places = [(step, number) for step in range(384 // batch) for number in range(batch // lane)]
    random.Random(1).shuffle(places)
    asked = {(step, number): mixed.indices(step, number) for step, number in places}
    assert [index for place in sorted(asked) for index in asked[place]] == wanted
    assert drawn(order(sizes, weights, max_epochs=2.0, seed=4), 48) != wanted


def test_a_source_that_has_been_repeated_enough_makes_way() -> None:
    sizes, weights = (10, 1000, 30), (0.5, 0.3, 0.2)
    mixed = order(sizes, weights, max_epochs=2.0)
    examples = drawn(mixed, 100)
    counts = Counter(source_of(index, sizes) for index in examples)
    # 20 of the first in the first 40 places; then 0.3 to 0.2 until 60 of the third; then the second alone.
    assert counts == {0: 20, 1: 720, 2: 60}
    assert [source_of(index, sizes) for index in examples[:40]].count(0) == 20
    assert Counter(source_of(index, sizes) for index in examples[40:45]) == {1: 3, 2: 2}
    assert mixed.seen(800) == {"source0": 20, "source1": 720, "source2": 60}
    for number in range(0, 800, 7):
        seen = Counter(source_of(index, sizes) for index in examples[:number])
        assert list(mixed.seen(number).values()) == [seen[0], seen[1], seen[2]]
    notes = mixed.warnings(800)
    assert len(notes) == 2 and "source0 will have been seen 2 times" in notes[0] and "after 40 of 800" in notes[0]
    assert mixed.warnings(40) == []
    # Where all have been seen so often, they begin again, and a warning says so.
    assert "repeat source0" in mixed.warnings(10_000)[-1]
    assert set(drawn(order((3, 5), (1, 1), max_epochs=1.0), 10)) == set(range(8))


def test_the_seeds_own_plan_is_warned_of() -> None:
    # 100,000 steps of 32 at 40 % of Spider's 8,659 questions: 148 passes, of BIRD's 9,428 102 (research, 1.2).
    sizes, weights = (8659, 9428, 56355, 92000), (0.4, 0.3, 0.2, 0.1)
    free = order(sizes, weights, max_epochs=0.0)
    passes = {name: number / size for (name, number), size in zip(free.seen(3_200_000).items(), sizes, strict=True)}
    assert [round(passes[f"source{number}"]) for number in (0, 1)] == [148, 102]
    assert free.warnings(3_200_000) == []
    notes = order(sizes, weights).warnings(3_200_000)
    assert notes and "source0 will have been seen 16 times" in notes[0]


def test_evaluation_begins_with_some_of_each() -> None:
    sizes = (50, 10, 40)
    mixed = interleaved(sizes)
    assert sorted(mixed) == list(range(100))
    assert Counter(source_of(index, sizes) for index in mixed[:10]) == {0: 5, 1: 1, 2: 4}


def test_a_mixed_recipe(folder: Path) -> None:
    recipe = bound(folder, source="mix")
    data = recipe.data("train")
    assert len(data) == 4 + 4 + 3 + 2
    mixed = data.order(10, 5, 0)
    assert mixed.names == ("spider", "bird", "wikisql", "gretel") and mixed.weights == (0.4, 0.3, 0.2, 0.1)
    found = [data[index].question for step in range(4) for lane in (0, 1) for index in mixed.indices(step, lane)]
    known = {"wiki_table": "wikisql", "beds": "gretel"}
    kinds = Counter("bird" if "cheap refers" in q.text else known.get(next(iter(q.schema.tables))) for q in found)
    assert kinds == {None: 16, "bird": 12, "wikisql": 8, "gretel": 4}
    evaluated = recipe.data("validation")
    groups = Counter(question.group for question in evaluated.questions)
    assert groups == {"spider": 2, "bird": 3, "wikisql": 3, "gretel": 2}
    assert {evaluated[index].question.group for index in range(4)} == set(groups)
    batch = recipe.collate([data[0], data[5], data[9], data[12]])
    assert batch.weight == (batch["labels"] != -100).sum()
    # Two sources, and one of them left out by its weight.
    some = bound(folder, source="wikisql,gretel", gretel_synthetic_weight=0.3).data("train").order(10, 5, 0)
    assert (some.names, some.weights) == (("wikisql", "gretel"), (0.2, 0.3))
    assert len(bound(folder, source="wikisql,gretel", gretel_synthetic_weight=0.0).data("train")) == 3


def test_a_source_without_validation_is_told_and_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "gretel/test.jsonl").unlink()
    assert {question.group for question in read("mix", folder, "validation")} == {"spider", "bird", "wikisql"}
    assert "gretel has no validation split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--data.source", "spidr"], "spidr"),
        (["--data.source", "demo,spider"], "mix"),
        (["--data.source", "spider,"], "bird"),
        (["--data.source", "mix", "--data.spider_weight", "-1"], "spider_weight"),
        (["--data.source", "spider,bird", "--data.spider_weight", "0", "--data.bird_sql_weight", "0"], "all 0"),
        (["--data.max_source_epochs", "nan"], "max_source_epochs"),
    ],
)
def test_wrong_settings(flags: list[str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse(["--recipe", "text2sql", *flags])


@pytest.mark.slow
def test_a_mixture_and_then_high_quality_alone(folder: Path) -> None:
    # The commands of the page, with a smaller model and fewer steps.
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs/recipes/text2sql.md").read_text(), re.DOTALL)
    block = next(block for block in blocks if "--init_from" in block)
    commands = [shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines()]
    (folder / "data").mkdir()
    for source in ("spider", "bird", "wikisql", "gretel"):
        (folder / source).rename(folder / "data" / source)
    small = {"--preset": "nano", "--max_steps": "3"}
    few = ["--model.hidden_size", "32", "--model.intermediate_size", "32", "--tokenizer.vocab_size", "512"]
    few += ["--batch_size", "10", "--micro_batch_size", "5", "--mixed_precision", "no"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    shown = []
    for command in commands:
        words = [small.get(before, word) for before, word in zip(["", *command], command, strict=False)]
        call = [sys.executable, "-m", "runner", *words, *few, "--generation.max_new_tokens", "8"]
        ended = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        shown.append(ended.stdout + ended.stderr)
    # 12 of 30 examples are from Spider's 4 questions; the second stage is not of the other two sources.
    assert "13 training" in shown[0] and "8 training" in shown[1]
    assert "gretel (train): 2 questions of 7" in shown[0] and "gretel" not in shown[1]
    tokenizers = [(folder / f"runs/stage{stage}/assets/tokenizer.json").read_bytes() for stage in (1, 2)]
    assert tokenizers[0] == tokenizers[1]
    lines = (folder / "runs/stage1/metrics.jsonl").read_text().splitlines()
    scores = [event for event in map(json.loads, lines) if event["split"] == "eval"][-1]
    assert {f"execution_accuracy/{source}" for source in ("spider", "bird", "wikisql", "gretel")} <= scores.keys()


def test_a_plan_that_repeats_a_source_is_warned_of(folder: Path) -> None:
    data = bound(folder, source="spider").data("train")
    assert data.warnings(4 * 16) == [] and "repeat spider 17.0 times" in data.warnings(4 * 17)[0]
    notes = bound(folder, source="mix").data("train").warnings(100_000)
    assert "spider will have been seen 16 times" in notes[0] and "repeat" in notes[-1]
