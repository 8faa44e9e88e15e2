"""Seconds a step of Relay's loop and of four others: the same model, data and order, on one and on two processes.

make bench BENCH=loop, or: python -m tests.benchmarks loop

The contenders (loop_contenders.py) take turns, a stretch of steps each, for several rounds, so that a machine that is
busy with other things is busy for all of them; what counts is the ratio within a round. Beside the time of the clock
stands the processor's own, which other programs disturb less. A stretch is timed from the end of its first step to the
end of its last, so that putting the parts together is nobody's loss. After each stretch, every contender has to have
the weights that bare PyTorch has.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

from tests.benchmarks import page
from tests.benchmarks.loop_contenders import BATCH, CONTENDERS, CONTEXT, Work, llama, weights_of

# (what is done on one process, rounds): the larger a step, the fewer of them are needed.
CASES = [
    (Work(layers=4, width=128, accumulation=1, steps=11), 9),
    (Work(layers=4, width=128, accumulation=8, steps=4), 5),
    (Work(layers=1, width=32, accumulation=1, steps=60), 21),
    (Work(layers=1, width=32, accumulation=8, steps=21), 21),
]
MOST_APART = 1e-4
"""How far weights may be from bare PyTorch's, as a share of how far those have moved. With a weight decay of 0.11 in
place of 0.1, Relay's were 3e-4 apart, without clipping 5e-3, with the learning rate of the next step 5e-2."""


def rounds_of(rounds: int, processes: int) -> int:
    """How many rounds are counted; RELAY_ROUNDS limits them."""
    return min(-(-rounds // processes), int(os.environ.get("RELAY_ROUNDS", rounds)))


def measure(work: Work, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """The seconds a step of each contender in each round, of the clock and of the processor, on this process."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    start = weights_of(work.recipe.model())
    for turn in range(rounds + 1):
        # Who goes first changes; the first round warms caches and is not counted.
        names = list(CONTENDERS)
        cut = turn % len(names)
        weights = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in names[cut:] + names[:cut]:
                ends, weights[name] = CONTENDERS[name](work, Path(folder))
                assert len(ends) == work.steps, (name, len(ends))
                if turn:
                    taken[name].append(ends.seconds)
        wanted = weights["bare PyTorch"]
        apart = {name: float((each - wanted).norm() / (wanted - start).norm()) for name, each in weights.items()}
        assert all(each < MOST_APART for each in apart.values()), f"{work}: not the same training: {apart}"
        if turn == 0 and work.process == 0:
            print(f"{work}: weights apart by", {name: f"{each:.0e}" for name, each in apart.items()}, flush=True)
    return taken


def main() -> None:
    """One process of a measurement: its seconds to OUTPUT/RANK.json."""
    process, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    warnings.simplefilter("ignore")
    if processes > 1:
        torch.distributed.init_process_group("gloo")
    found = []
    for work, rounds in CASES:
        work = dataclasses.replace(work, processes=processes, process=process)
        found.append(measure(work, rounds_of(rounds, processes)))
    Path(sys.argv[1], f"{process}.json").write_text(json.dumps(found))
    if processes > 1:
        torch.distributed.destroy_process_group()


def rows_of(work: Work, ranks: list[dict[str, list[tuple[float, float]]]]) -> tuple[list[tuple[str, ...]], float]:
    """The rows of a case, from the seconds of each process; and Relay's share of bare PyTorch's processor time."""
    # (processes, rounds, 2): the mean over the processes, which wait for each other.
    taken = {name: torch.tensor([rank[name] for rank in ranks], dtype=torch.float64).mean(0) for name in CONTENDERS}
    rows, of_relay = [], 0.0
    for name, seconds in taken.items():
        clock, processor = (taken["bare PyTorch"] / seconds).T.tolist()
        share = statistics.median(processor)
        of_relay = share if name == "Relay" else of_relay
        rows.append((
            name, f"{work.accumulation}", f"{1 / statistics.median(seconds[:, 0].tolist()):.1f}",
            f"{statistics.median(clock):.3f}", f"{1000 * statistics.median(seconds[:, 1].tolist()):.2f}",
            f"{share:.3f} ({min(processor):.3f} - {max(processor):.3f})",
        ))  # fmt: skip
    return rows, of_relay


@pytest.mark.parametrize("processes", [1, 2])
def test_steps_per_second(processes: int, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    subprocess.run([sys.executable, *launcher, "-m", "tests.benchmarks.bench_loop", str(tmp_path)], check=True)
    ranks = [json.loads((tmp_path / f"{process}.json").read_text()) for process in range(processes)]
    by_model: dict[tuple[int, int], list[tuple[str, ...]]] = {}
    for number, (work, _) in enumerate(CASES):
        rows, of_relay = rows_of(work, [rank[number] for rank in ranks])
        by_model.setdefault((work.layers, work.width), []).extend(rows)
        # On a busy machine rounds scatter: this is a net under the figures in docs/benchmarks.md, not their proof.
        assert of_relay > 0.5, rows
    on = f"{processes} process{'es' * (processes > 1)}"
    counted = ", ".join(f"{rounds_of(rounds, processes)}" for _, rounds in CASES)
    for (layers, width), rows in by_model.items():
        parameters = len(weights_of(llama(layers, width)))
        page.record(
            "loop",
            (f"{parameters:,} parameters, {on}", f"micro-batches of {BATCH} x {CONTEXT} tokens a step", "steps/s",
             "of bare", "CPU ms a step", "CPU, of bare (least - most)"),
            rows, f"medians of {counted} interleaved rounds on {on}",
        )  # fmt: skip


if __name__ == "__main__":
    main()
