"""Law 3 and the order of the data. Run alone: python -m pytest tests/runner/test_lanes.py"""

import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from runner import evaluation
from runner.assembly import open_run
from runner.config import parse
from runner.errors import ConfigError
from runner.evaluation import batches_of, evaluate_rows
from runner.lanes import Lanes, by_length, check_batch, has_length, key, permute
from tests.launching import SHORT


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_a_permutation_visits_every_place_once(size: int) -> None:
    assert sorted(permute(np.arange(size), size, 5).tolist()) == list(range(size))


GOLDEN = [0, 2, 6, 3, 4, 8, 7, 1, 5, 9]
GOLDEN_KEY = 3577938840266940546


def test_the_permutation_is_the_same_on_every_machine() -> None:
    # Written down once: a change here would change the order of every run that is to be resumed.
    assert permute(np.arange(10), 10, 12345).tolist() == GOLDEN
    assert key(0, "model", 3, 1) == GOLDEN_KEY


def test_permutations_of_two_epochs_differ_and_look_random() -> None:
    first, second = (permute(np.arange(1000), 1000, number) for number in (1, 2))
    assert (first == second).mean() < 0.01
    # The rank correlation of a random permutation of 1000 has a standard deviation of 0.03.
    assert abs(np.corrcoef(np.arange(1000), first)[0, 1]) < 0.12


@pytest.mark.parametrize(("num_examples", "batch_size", "micro"), [(1, 4, 2), (7, 4, 2), (10, 12, 3), (97, 32, 8)])
def test_no_example_twice_before_all_once(num_examples: int, batch_size: int, micro: int) -> None:
    lanes = Lanes(num_examples, batch_size, micro, seed=3, total_examples=3 * num_examples)
    steps = -(-3 * num_examples // batch_size)
    order = [index for step in range(steps) for lane in range(lanes.num_lanes) for index in lanes.indices(step, lane)]
    assert len(order) == 3 * num_examples
    for epoch in range(3):
        assert sorted(order[epoch * num_examples : (epoch + 1) * num_examples]) == list(range(num_examples))
    assert lanes.indices(steps, 0) == []


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_lanes_do_not_know_the_number_of_processes(num_processes: int) -> None:
    lanes = Lanes(100, 16, 2, seed=0)
    shares = [list(lanes.share(process, num_processes)) for process in range(num_processes)]
    assert [lane for share in shares for lane in share] == list(range(8))


def test_a_world_that_does_not_divide_is_refused_with_what_does() -> None:
    with pytest.raises(ConfigError, match="1, 2, 4, 8"):
        Lanes(100, 16, 2, seed=0).share(0, 3)
    with pytest.raises(ConfigError, match="1, 3, 11, 33"):
        check_batch(33, 8)


def test_excluded_examples_leave_the_others_where_they_were() -> None:
    everything, without = Lanes(20, 4, 2, seed=1), Lanes(20, 4, 2, seed=1, excluded=frozenset({5, 6}))
    for step in range(10):
        for lane in range(2):
            expected = [index for index in everything.indices(step, lane) if index not in (5, 6)]
            assert without.indices(step, lane) == expected


def test_seeking_in_a_billion_examples_takes_no_memory() -> None:
    lanes = Lanes(10**9, 32, 32, seed=0)
    lanes.indices(0, 0)
    tracemalloc.start()
    started = time.monotonic()
    found = lanes.indices(int(9.99e8) // 32, 0)
    seconds = time.monotonic() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(found)) == 32
    assert peak < 1_000_000
    print(f"seek took {seconds * 1000:.2f} ms")


LENGTHS = [(7 * number) % 31 + number % 3 for number in range(97)]


class Texts(list):
    """Data that say how long each example is."""

    def length_of(self, index: int) -> int:
        """As LENGTHS has it."""
        return LENGTHS[index]


@pytest.mark.parametrize("excluded", [frozenset(), frozenset({5, 6, 40})])
@pytest.mark.parametrize("num_lanes", [1, 4, 5])
def test_grouping_by_length_pads_less_and_moves_no_example_to_another_step(num_lanes: int, excluded: frozenset) -> None:
    lanes = Lanes(97, 4 * num_lanes, 4, seed=3, total_examples=3 * 97, excluded=excluded)
    grouped = by_length(lanes, Texts(range(97)))
    padded = {True: 0, False: 0}
    for step in range(-(-3 * 97 // lanes.batch_size)):
        assert sorted(grouped.everything(step)) == sorted(lanes.everything(step))
        for is_grouped, each in ((True, grouped), (False, lanes)):
            parts = [[LENGTHS[index] for index in each.indices(step, lane)] for lane in range(num_lanes)]
            padded[is_grouped] += sum(len(part) * max(part) - sum(part) for part in parts if part)
            assert all(len(part) <= 4 for part in parts)
    assert padded[True] < 0.6 * padded[False] if num_lanes > 1 else padded[True] == padded[False]
    # In any sequence, and after a restart.
    again = by_length(lanes, Texts(range(97)))
    assert [again.indices(step, num_lanes - 1) for step in (7, 2)] == [
        grouped.indices(step, num_lanes - 1) for step in (7, 2)
    ]


def test_two_processes_get_as_many_tokens_where_examples_are_grouped_by_length() -> None:
    grouped = by_length(Lanes(97, 32, 4, seed=3), Texts(range(97)))
    for step in range(20):
        shares = [sum(LENGTHS[i] for lane in grouped.share(process, 2) for i in grouped.indices(step, lane))
                  for process in range(2)]  # fmt: skip
        assert max(shares) < 1.35 * min(shares)


def test_data_without_lengths_cannot_be_grouped_by_length() -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        by_length(Lanes(97, 32, 4, seed=3), list(range(97)))
    # Other data have a number under a similar name.
    assert not has_length(SimpleNamespace(length=64)) and not has_length(SimpleNamespace(length_of=64))
    first = torch.utils.data.Subset(Texts(range(97)), range(50))
    assert has_length(first) and by_length(Lanes(50, 8, 4, seed=3), first).indices(0, 0)


def test_an_evaluation_has_the_longest_examples_first() -> None:
    first = torch.utils.data.Subset(Texts(range(97)), [3, 50, 7, 11, 90])
    for data, lengths in ((Texts(range(97)), LENGTHS), (first, [LENGTHS[index] for index in first.indices])):
        batches = batches_of(data, 4)
        numbers = [number for batch in batches for number in batch]
        assert sorted(numbers) == list(range(len(data))) and {len(batch) for batch in batches[:-1]} == {4}
        assert [lengths[number] for number in numbers] == sorted(lengths, reverse=True)
    assert batches_of(list(range(5)), 2) == [[0, 1], [2, 3], [4]]


def test_sorted_batches_change_neither_rows_nor_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SHORT, "--output_dir", str(tmp_path), "--max_steps", "1", "--mixed_precision", "no"]
    run = open_run(parse(words))
    found = evaluate_rows(run.recipe, run.bare_model, run.eval_data, run.hardware, 4)
    monkeypatch.setattr(evaluation, "has_length", lambda data: False)
    plain = evaluate_rows(run.recipe, run.bare_model, run.eval_data, run.hardware, 4)
    assert found is not None and plain is not None
    assert found[1] == pytest.approx(plain[1]) and found[0] == pytest.approx(plain[0])
