"""`relay verify`: test on this machine, for a recipe, what Relay promises.

Each proof starts real trainings in processes of their own, interrupts them, and compares their results. It prints a
table and a verdict, and ends with status 1 if a trial fails.
"""

import dataclasses
import hashlib
import json
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runner import lanes as lanes_module
from runner.commands import split_flags
from runner.config import Config, parse, parse_into, settings_of
from runner.errors import ConfigError, RelayError
from runner.parts.setting_types import AtLeast0, AtLeast1
from runner.recipe import Cursor, Data, Recipe, Stream
from runner.settings import RunSettings
from runner.trials import PHASES, PLAIN_SUM, Interruption, Trial, preload_for, steps_of_a_stop, train

if TYPE_CHECKING:
    from torch import Tensor

Start = Mapping[str, Any]
"""A line of ledger.jsonl about a start of the run: its step, seed, batch and excluded examples."""

PROOFS = {
    "invariance": "every number of processes gives the same bits, in fp32 and in bf16 (--deterministic)",
    "elastic": "killed at random and resumed on other numbers of processes, a run equals the uninterrupted one",
    "torture": "kill -9 during saves: every restart finds a complete checkpoint, at most one interval back",
    "bitrot": "each flipped bit is detected, its file is named, and the previous checkpoint is used",
    "preempt": "a signal to any process in any phase: saved at most two steps later, status 75, no hang",
    "reshard": "one process, DDP, FSDP2 on 2 and 4, one process again: the weights of the uninterrupted run",
    "grads": "every number of processes and lanes gives the gradient of one large batch, also in a smaller last step",
    "ledger": "over all its restarts, a run repeated 0 examples and missed 0",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Settings of the proofs. Any flag of a training may follow."""

    world: str = "1,2,4"
    """Numbers of processes, separated by commas."""
    trials: AtLeast1 = 20
    """Number of trials of elastic and preempt, in each of their modes."""
    kills: AtLeast1 = 100
    """Number of saves that torture kills."""
    flips: AtLeast1 = 200
    """Number of bits that bitrot flips, one at a time."""
    steps: AtLeast1 = 12
    """Number of steps of each training."""
    random_seed: AtLeast0 = 0
    """Seed of the random choices: where to kill, which bit to flip."""
    keep: bool = False
    """Do not delete the folder of the trainings, and print its path."""


class Failed(RelayError):
    """A promise does not hold on this machine."""

    exit_status = 1


def main(arguments: list[str]) -> None:
    """Run one proof. Raises Failed where it does not hold."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: relay verify PROOF --recipe NAME [--preset P] [--flag value ...]\n")
        for name, meaning in PROOFS.items():
            print(f"  {name:11} {meaning}")
        print("\nrelay verify ledger RUN takes the folder of a run instead of a recipe. Settings of the proofs:")
        for setting in settings_of(VerifySettings):
            print(f"  --{setting.flag} (default {setting.get(VerifySettings())})")
        return
    proof, rest = arguments[0], arguments[1:]
    if proof not in PROOFS:
        raise ConfigError(f"There is no proof {proof!r}: type relay verify with one of {', '.join(PROOFS)}.")
    if proof == "ledger":
        if len(rest) != 1 or rest[0].startswith("-"):
            raise ConfigError("relay verify ledger takes the folder of a run: type relay verify ledger runs/NAME.")
        _verdict("ledger", check_ledger(Path(rest[0])))
        return
    settings, flags = _split(rest)
    folder = Path(tempfile.mkdtemp(prefix=f"relay-verify-{proof}-"))
    try:
        bench = Bench(folder, settings, flags)
        print(
            f"relay verify {proof}: {bench.config.recipe_name}, preset {bench.config.preset or 'default'}", flush=True
        )
        started = time.monotonic()
        rows = CHECKS[proof](bench)
        _verdict(proof, rows, f"{time.monotonic() - started:.0f} s")
    finally:
        if settings.keep:
            print(f"the trainings are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _split(arguments: list[str]) -> tuple[VerifySettings, list[str]]:
    """The settings of the proof, and the flags of the training."""
    own, others = split_flags(VerifySettings, arguments)
    return parse_into(VerifySettings, own, "relay verify PROOF"), others


@dataclasses.dataclass
class Result:
    """One line of a proof's table."""

    what: str
    result: str
    holds: bool


def _verdict(proof: str, rows: Iterator[Result], took: str = "") -> None:
    """Print each row as it comes, then the verdict. Raises Failed if a row does not hold."""
    good = total = 0
    for row in rows:
        total += 1
        good += row.holds
        print(f"  {'ok    ' if row.holds else 'FAILED'}  {row.what:58}  {row.result}", flush=True)
    print(f"{proof}: {good} of {total} hold{'.' if good == total else ': FAILED.'}", flush=True)
    if good < total or not total:
        raise Failed(f"relay verify {proof} failed in {total - good} of {total} trials.")


class Bench:
    """Starts the trainings of a proof, all of the same recipe and settings."""

    def __init__(self, folder: Path, settings: VerifySettings, flags: list[str]) -> None:
        self.folder, self.settings = folder, settings
        self.random = random.Random(settings.random_seed)
        try:
            self.worlds = [int(word) for word in settings.world.split(",")]
        except ValueError:
            raise ConfigError(f"world is {settings.world!r}: type --world 1,2,4.") from None
        given = parse(flags, "relay verify PROOF")
        preload_for(type(given.recipe))
        defaults = {
            "batch_size": "8",
            "micro_batch_size": "2",
            "logging_steps": "1",
            "max_eval_examples": "4",
            "learning_rate": "0.001",
            "mixed_precision": "no",
        }
        self.flags = list(flags)
        for name, value in defaults.items():
            if name not in given.explicit:
                self.flags += [f"--{name}", value]
        if "model.dropout" in {setting.flag for setting in settings_of(type(given.recipe))}:
            self.flags += [] if "model.dropout" in given.explicit else ["--model.dropout", "0.1"]
        self.config: Config = parse(self.flags).with_batch(1)
        run: RunSettings = self.config.run
        num_lanes = (run.batch_size or 0) // run.micro_batch_size
        wrong = [world for world in self.worlds if num_lanes % world]
        if wrong:
            raise ConfigError(f"{num_lanes} lanes are not shared evenly by {wrong[0]} processes: type another --world.")

    def words(self, name: str, *flags: str, steps: int | None = None) -> list[str]:
        """The command line of a training into the folder `name`."""
        folder = self.folder / name
        length = ["--max_steps", str(steps or self.settings.steps), "--eval_steps", "0", "--save_steps", "0"]
        return [*self.flags, *length, "--output_dir", str(folder), "--resume_from_checkpoint", "auto", *flags]

    def run(self, name: str, processes: int, *flags: str, steps: int | None = None, sharded: bool = False) -> Path:
        """Run a training that must succeed; returns its folder."""
        environment = {"ACCELERATE_USE_FSDP": "true"} if sharded else {}
        train(self.words(name, *flags, steps=steps), processes, self.folder / f"{name}.log", environment)
        return self.folder / name

    def training_data(self) -> Data:
        """The training split, as a training of one step prepared it."""
        folder, recipe = self.run("assets", 1, steps=1), self.config.recipe
        return recipe.prepare(folder / "assets").data("train")

    def disturbed(
        self,
        name: str,
        processes: int,
        interruption: Interruption,
        *flags: str,
        steps: int | None = None,
        sharded: bool = False,
        limit_seconds: float = 300.0,
    ) -> tuple[list[int], str]:
        """Run a training that is interrupted; returns the exit statuses and what it printed."""
        environment = {"ACCELERATE_USE_FSDP": "true"} if sharded else {}
        log = self.folder / f"{name}.log"
        trial = Trial(self.words(name, *flags, steps=steps), processes, log, environment, interruption)
        return trial.wait(limit_seconds), trial.output()


def final_weights(folder: Path) -> "Mapping[str, Tensor]":
    """The weights of the last checkpoint of a run, by name."""
    from runner.checkpoints.folders import newest_checkpoint
    from runner.checkpoints.tensors import read_tensors

    found, _ = newest_checkpoint(folder)
    if found is None:
        raise Failed(f"{folder} has no complete checkpoint.")
    return read_tensors(found / "model.safetensors")


def hash_of(tensors: "Mapping[str, Tensor]") -> str:
    """A short hash of names and bits."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def gap(left: "Mapping[str, Tensor]", right: "Mapping[str, Tensor]") -> float:
    """Norm of the difference over all tensors, relative to the norm of the right ones."""
    if left.keys() != right.keys():
        raise Failed("the two runs have different tensors.")
    difference = sum(float((left[name].double() - right[name].double()).square().sum()) for name in left)
    length = sum(float(right[name].double().square().sum()) for name in right)
    return (difference / max(length, 1e-300)) ** 0.5


def check_invariance(bench: Bench) -> Iterator[Result]:
    """Every number of processes gives the same hash, in each precision."""
    for precision in ("no", "bf16"):
        first = None
        for world in bench.worlds:
            flags = ("--deterministic", "True", "--mixed_precision", precision)
            found = hash_of(final_weights(bench.run(f"{precision}-{world}", world, *flags)))
            first = first or found
            yield Result(f"precision {precision}, {world} processes", found, found == first)


def check_elastic(bench: Bench) -> Iterator[Result]:
    """At least three kills in each trial, and a new number of processes at every restart."""
    steps = max(bench.settings.steps, 8)
    for mode, flags, limit in (("deterministic", ("--deterministic", "True"), 0.0), ("plain", (), 1e-5)):
        whole = final_weights(bench.run(f"{mode}-whole", 1, *flags, steps=steps))
        for number in range(bench.settings.trials):
            name = f"{mode}-{number}"
            kills = sorted(bench.random.sample(range(1, steps), 3 + (number % 2)))
            path = []
            for step in kills:
                world = bench.random.choice(bench.worlds)
                phase = bench.random.choice(("fetch", "forward", "backward", "reduce"))
                kill = Interruption(phase, step, process=bench.random.randrange(world))
                statuses, output = bench.disturbed(name, world, kill, *flags, "--save_steps", "1", steps=steps)
                if -signal.SIGKILL not in statuses:
                    raise Failed(f"trial {number} ended with {statuses} instead of being killed:\n{output[-1500:]}")
                path.append(f"{world}@{step}")
            world = bench.random.choice(bench.worlds)
            found = final_weights(bench.run(name, world, *flags, "--save_steps", "1", steps=steps))
            distance = gap(found, whole)
            shown = "the same bits" if distance == 0 else f"gap {distance:.1e}"
            yield Result(f"{mode}, processes@killed: {' '.join(path)} end {world}", shown, distance <= limit)
            shutil.rmtree(bench.folder / name)


def check_torture(bench: Bench) -> Iterator[Result]:
    """Kill one run in each of its saves."""
    from runner.checkpoints.folders import newest_checkpoint, step_of

    # More than can be reached: a fast recipe on a slow disk takes many steps while one save waits for its kill.
    steps = 1000 * bench.settings.kills
    folder = bench.folder / "run"
    # A learning rate that does not depend on the length of the run, which is only known at the end.
    flags = ("--save_steps", "1", "--max_eval_examples", "1", "--lr_scheduler_type", "constant", "--warmup_ratio", "0")
    flags += ("--warmup_steps", "0")
    if "save_total_limit" not in bench.config.explicit:
        flags += ("--save_total_limit", "1")
    save_seconds = 0.05
    at = 0
    for number in range(bench.settings.kills):
        target = at + 2
        delay = bench.random.uniform(0, save_seconds)
        kill = Interruption("save", target, delay_seconds=delay)
        statuses, output = bench.disturbed("run", 1, kill, *flags, steps=steps)
        if statuses != [-signal.SIGKILL]:
            yield Result(f"kill {number + 1}", f"ended with {statuses}: {output[-300:]}", False)
            return
        found, skipped = newest_checkpoint(folder)
        reached = step_of(found) if found else -1
        # The kill comes in the save of `target` or, after a long delay, of a later step.
        holds = found is not None and not skipped and reached >= target - 1
        yield Result(
            f"kill {number + 1}: {delay * 1000:.0f} ms into saving step {target}", f"resumes at {reached}", holds
        )
        if not holds:
            return
        at = reached
    found = hash_of(final_weights(bench.run("run", 1, *flags, steps=at + 2)))
    whole = hash_of(final_weights(bench.run("whole", 1, *flags, steps=at + 2)))
    yield Result(f"the weights of step {at + 2}, and of an uninterrupted run", f"{found} {whole}", found == whole)


def check_bitrot(bench: Bench) -> Iterator[Result]:
    """Flip a bit, look for the newest checkpoint, flip the bit back."""
    from runner.checkpoints.folders import newest_checkpoint

    folder = bench.run("run", 1, "--save_steps", "2", steps=4)
    newest, previous = folder / "checkpoint-4", folder / "checkpoint-2"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    found_all: dict[str, list[bool]] = {}
    for _ in range(bench.settings.flips):
        path = bench.random.choice(files)
        name = path.relative_to(newest).as_posix()
        place, bit = bench.random.randrange(path.stat().st_size), 1 << bench.random.randrange(8)
        with path.open("r+b") as file:
            flip_bit(file, place, bit)
            found, skipped = newest_checkpoint(folder)
            flip_bit(file, place, bit)
        named = len(skipped) == 1 and name in skipped[0] and "damaged" in skipped[0]
        found_all.setdefault(name, []).append(found == previous and named)
    for name, results in sorted(found_all.items()):
        yield Result(name, f"{sum(results)} of {len(results)} flips found and named", all(results))
    found, skipped = newest_checkpoint(folder)
    yield Result("all flipped back", f"{found.name if found else None} is complete", found == newest and not skipped)


def flip_bit(file: IO[bytes], place: int, bit: int) -> None:
    """Flip a bit of the byte at `place` of an open file."""
    file.seek(place)
    byte = file.read(1)[0]
    file.seek(place)
    file.write(bytes([byte ^ bit]))
    file.flush()


def check_preempt(bench: Bench) -> Iterator[Result]:
    """Send one of three signals to any process in any phase."""
    from runner.checkpoints.folders import newest_checkpoint, step_of

    bench.run("assets", 1, steps=1)
    for number in range(bench.settings.trials):
        phase, world = PHASES[number % len(PHASES)], bench.random.choice(bench.worlds)
        # Only the main process writes.
        rank = 0 if phase == "save" else bench.random.randrange(world)
        step = bench.random.randrange(1, 5)
        sent = bench.random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
        name = f"trial-{number}"
        flags = ("--eval_steps", "2", "--save_steps", "2" if phase == "save" else "0")
        stop = Interruption(phase, step, process=rank, signal=sent)
        started = time.monotonic()
        try:
            statuses, output = bench.disturbed(name, world, stop, *flags, steps=50, limit_seconds=120.0)
        except TimeoutError:
            statuses, output = [], ""
        found, skipped = newest_checkpoint(bench.folder / name)
        reached = step_of(found) if found else -1
        holds = statuses == [75] * world and not skipped and reached in steps_of_a_stop(output, world)
        what = f"{sent.name} to process {rank} of {world} in {phase} of step {step + 1}"
        shown = f"status {sorted(set(statuses))}, saved at {reached}, {time.monotonic() - started:.1f} s"
        yield Result(what, shown, holds)
        shutil.rmtree(bench.folder / name)


def check_reshard(bench: Bench) -> Iterator[Result]:
    """Train five steps in each kind of process group; several processes may do one more before they stop."""
    from runner.checkpoints.folders import newest_checkpoint, step_of

    stages = ((1, False, "one process"), (2, False, "DDP on 2"), (2, True, "FSDP2 on 2"), (4, True, "FSDP2 on 4"))
    whole = bench.run("whole", 1, "--save_steps", "1", "--save_total_limit", "25", steps=25)
    first = 1
    for number, (world, sharded, what) in enumerate(stages):
        stop = Interruption("forward", 5 * number + 4, process=world - 1, signal=signal.SIGTERM)
        statuses, output = bench.disturbed("run", world, stop, steps=25, sharded=sharded)
        expected = f"{world} process" if world == 1 else f"{world} processes{', sharded' if sharded else ','}"
        if statuses != [75] * world or expected not in output:
            raise Failed(f"{what} ended with {statuses}:\n{output[-1500:]}")
        found, _ = newest_checkpoint(bench.folder / "run")
        last = step_of(found) if found else 0
        distance = _gap_at(bench.folder / "run", whole, last)
        yield Result(f"{what}, steps {first} to {last}", f"gap {distance:.1e}", distance <= 1e-6)
        first = last + 1
    distance = _gap_at(bench.run("run", 1, steps=25), whole, 25)
    yield Result(f"one process again, steps {first} to 25", f"gap {distance:.1e}", distance <= 1e-6)


def _gap_at(folder: Path, whole: Path, step: int) -> float:
    from runner.checkpoints.tensors import read_tensors

    left, right = (read_tensors(run / f"checkpoint-{step}" / "model.safetensors") for run in (folder, whole))
    return gap(left, right)


def check_grads(bench: Bench) -> Iterator[Result]:
    """Compare gradients with that of a single lane. Adam's first moment after one step is a tenth of the gradient."""
    from runner.fetching import has_own_order, is_stream

    batch = bench.config.run.batch_size or 8
    known = {setting.flag for setting in settings_of(type(bench.config.recipe))}
    quiet = ["--max_grad_norm", "0", "--adam_beta1", "0.9", "--save_steps", "1"]
    # Dropout depends on the lane, and auxiliary losses couple the examples of a lane: both are turned off.
    quiet += [word for name in sorted(known) if name.endswith("dropout") for word in (f"--{name}", "0")]
    lengths = {"full": ["--max_steps", "1"], "ragged": _ragged(batch)}
    data = bench.training_data()
    is_free = not has_own_order(data) and not is_stream(data)
    if not is_free:
        # Their last step is never smaller.
        del lengths["ragged"]
    sizes, together = (1, 2, 4), batch
    if not is_free or bench.config.recipe.couples_examples:
        # The size of a lane decides what it holds, or what the loss compares: only the number of processes varies.
        sizes, together = (bench.config.run.micro_batch_size,), bench.config.run.micro_batch_size
    for precision, limit in (("float64", 1e-12), ("float32", 1e-6)):
        environment = {PLAIN_SUM: precision}
        for what, length in lengths.items():
            flags = [*quiet, *length]
            whole = _gradient(bench, f"{precision}-{what}-whole", 1, together, flags, environment)
            for world in bench.worlds:
                for micro in (size for size in sizes if (batch // size) % world == 0 and size < batch):
                    name = f"{precision}-{what}-{world}-{micro}"
                    distance = gap(_gradient(bench, name, world, micro, flags, environment), whole)
                    text = (
                        f"{precision}, {what} batch, {world} processes, {batch // micro // world} lanes each of {micro}"
                    )
                    yield Result(text, f"gap {distance:.1e}", distance <= limit)


def _ragged(batch: int) -> list[str]:
    """One step with three examples fewer than the batch."""
    return ["--max_steps", "-1", "--num_train_epochs", "1", "--max_train_examples", str(batch - 3)]


def _gradient(
    bench: Bench, name: str, world: int, micro: int, flags: list[str], environment: dict[str, str]
) -> "Mapping[str, Tensor]":
    from runner.checkpoints.tensors import read_tensors

    words = [*bench.words(name, *flags), "--micro_batch_size", str(micro)]
    train(words, world, bench.folder / f"{name}.log", environment)
    tensors = read_tensors(bench.folder / name / "checkpoint-1" / "optimizer.safetensors")
    return {key: value for key, value in tensors.items() if key.endswith("/exp_avg")}


def check_ledger(run: Path) -> Iterator[Result]:
    """Compute the order of a run again from its settings, and compare it with the checksums in its ledger."""
    from runner.fetching import has_own_order, is_stream
    from runner.log import read_lines

    lines = read_lines(run / "ledger.jsonl")
    if not lines:
        raise ConfigError(f"{run} has no ledger.jsonl: type the folder of a run of Relay.")
    recorded: dict[int, int] = {}
    starts = [line["start"] for line in lines if "start" in line]
    for line in lines:
        if "steps" in line:
            digits = line["steps"]
            for place in range(len(digits) // 16):
                recorded[line["first_step"] + place] = int(digits[16 * place : 16 * place + 16], 16)
    config = parse(["--config", str(run / "config.yaml")])
    yield from _data_of(config.recipe, starts[-1])
    data = config.recipe.prepare_trained(run / "assets").data("train")
    # A run that went on from a checkpoint alone has no ledger of what came before.
    begin = starts[0]["step"]
    steps = range(begin, max(recorded, default=begin - 1) + 1)
    missing = [step for step in steps if step not in recorded]
    yield Result(f"{len(steps)} steps over {len(starts)} starts", f"{len(missing)} not recorded", not missing)
    again = _streamed(data, starts, steps) if is_stream(data) else _by_index(data, starts, steps)
    wrong, seen = [], []
    for step, (checksum, consumed) in zip(steps, again, strict=True):
        wrong += [step + 1] if recorded.get(step) != checksum else []
        seen += consumed
    result = f"{len(wrong)} steps consumed other examples" + (f", first step {wrong[0]}" if wrong else "")
    yield Result(f"{len(seen):,} examples, in the order of the seed", result, not wrong)
    has_one_length = len({start["num_examples"] for start in starts}) == 1
    if is_stream(data) or (has_one_length and not begin and not has_own_order(data)):
        repeated, left_out = _census(seen, starts, is_stream(data))
        holds = not repeated and not left_out
        yield Result("every epoch", f"repeated {repeated}, missing {left_out}", holds)


def _data_of(recipe: Recipe, start: Start) -> Iterator[Result]:
    """Whether the data files are those of the run, and were so all the time; nothing where it recorded none."""
    from runner.checkpoints.recorded import data_fingerprints
    from runner.parts.fingerprints import data_hash

    changes = [f"changed at step {step}: {what}" for step, what in start.get("data_changes", ())]
    if changes:
        yield Result("data files", "; ".join(changes), False)
    elif start.get("data") is not None:
        holds = data_hash(data_fingerprints(recipe)) == start["data"]
        result = "what the run read" if holds else "the data files are not those that the run read"
        yield Result("data files", result, holds)


def _by_index(data: Data, starts: list[Start], steps: range) -> Iterator[tuple[int, list[int]]]:
    from runner.fetching import order_of

    orders = []
    for start in starts:
        size = start["batch_size"], start["micro_batch_size"], start["seed"]
        order = order_of(data, *size)
        excluded = frozenset(start["excluded"])
        made = lanes_module.Lanes(start["num_examples"], *size, start["total_examples"], excluded, order)
        orders.append((made, lanes_module.by_length(made, data) if start.get("group_by_length") else made))
    for step in steps:
        made, grouped = [each for each, start in zip(orders, starts, strict=True) if start["step"] <= step][-1]
        total = sum(_checksum(step, lane, grouped.indices(step, lane)) for lane in range(made.num_lanes))
        # Epochs end within a step, so their examples are counted in the order before the sorting.
        yield total % 2**64, made.everything(step)


def _streamed(data: Stream, starts: list[Start], steps: range) -> Iterator[tuple[int, list[str]]]:
    first = starts[0]
    num_lanes = first["batch_size"] // first["micro_batch_size"]
    readers = [data.read(lane, num_lanes, first["seed"], None) for lane in range(num_lanes)]
    for step in range(steps.stop):
        excluded = ([each for each in starts if each["step"] <= step] or [first])[-1]["excluded"]
        total, seen = 0, []
        for lane, reader in enumerate(readers):
            consumed = []
            while len(consumed) < first["micro_batch_size"]:
                cursor = json.loads(json.dumps(next(reader)[1]))
                if json.dumps([lane, cursor]) not in excluded:
                    consumed.append(cursor)
            total += _checksum(step, lane, consumed)
            seen += [json.dumps([lane, cursor]) for cursor in consumed]
        if step < steps.start:
            continue
        yield total % 2**64, seen


def _checksum(step: int, lane: int, consumed: list[int] | list[Cursor]) -> int:
    return lanes_module.key(step, "consumed", lane, json.dumps(consumed))


def _census(seen: Sequence[int | str], starts: list[Start], is_stream: bool) -> tuple[int, int]:
    """The numbers of examples that were repeated within an epoch, and that were missing from one."""
    if is_stream:
        return len(seen) - len(set(seen)), 0
    num_examples, excluded = starts[0]["num_examples"], set(starts[-1]["excluded"])
    kept = num_examples - len(excluded)
    repeated = missing = 0
    for first in range(0, len(seen), kept):
        epoch = seen[first : first + kept]
        repeated += len(epoch) - len(set(epoch))
        missing += kept - len(set(epoch)) if len(epoch) == kept else 0
    return repeated, missing


CHECKS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "invariance": check_invariance,
    "elastic": check_elastic,
    "torture": check_torture,
    "bitrot": check_bitrot,
    "preempt": check_preempt,
    "reshard": check_reshard,
    "grads": check_grads,
}
