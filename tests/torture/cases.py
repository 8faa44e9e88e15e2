"""The table of attacks. Each attack raises AssertionError where something that must hold does not."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from runner.checkpoints.folders import newest_checkpoint
from runner.checkpoints.manifest import write_manifest
from runner.checkpoints.tensors import read_tensors
from runner.commands.verify import flip_bit
from runner.trials import PHASES, Interruption, Trial, free_port, steps_of_a_stop
from tests.torture import network
from tests.torture.arena import INTERVAL, STEPS, Arena, Hang, Launcher, expect

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
SECONDS_OF_A_RUN = 1.5
DDP_TIMEOUT = 5
STEPS_OF_TWO = 400
"""Steps of the run whose machines lose each other: more than it takes until the link is cut."""


# Kills ----------------------------------------------------------------------------------------------------


def kill_anywhere(arena: Arena) -> None:
    """Kill one process at any time, up to three times in a row."""
    for number in range(arena.random.randint(1, 3)):
        trial = arena.start()
        if number == 0:
            # On a busy machine a run that is killed by the clock has often not begun.
            _until_output(arena, trial, f"step {arena.random.randrange(1, STEPS)}/")
        else:
            time.sleep(arena.random.uniform(0, SECONDS_OF_A_RUN))
        arena.note_promises()
        arena.random.choice(trial.ranks).kill()
        arena.wait(trial)
        arena.keeps_promises()
    arena.finishes()


def kill_in_a_phase(arena: Arena) -> None:
    """Let a process kill itself in a phase of a step."""
    _kill(arena, arena.random.choice(PHASES[:4]), arena.random.randrange(STEPS), arena.random.randrange(2), 0.0)


def kill_in_a_save(arena: Arena) -> None:
    """Kill the main process while it writes a checkpoint."""
    _kill(arena, "save", INTERVAL * arena.random.randrange(1, STEPS // INTERVAL), 0, arena.random.uniform(0, 0.02))


def _kill(arena: Arena, phase: str, step: int, process: int, delay: float) -> None:
    kill = Interruption(phase, step, process % arena.processes, signal.SIGKILL, delay)
    arena.wait(arena.start(interruption=kill))
    step = steps_of_a_stop(arena.output(), arena.processes)[0]
    # At most one save runs at a time, so the one before is complete.
    arena.promised = max(0, (step - 1) // INTERVAL * INTERVAL - (INTERVAL if phase != "save" else 0))
    arena.keeps_promises()
    arena.finishes()


# Corruption -----------------------------------------------------------------------------------------------


def _with_two_checkpoints(arena: Arena) -> tuple[Path, Path]:
    """The newest checkpoint of a run that was stopped, and the one before."""
    arena.processes, arena.flags = 1, ()
    original = arena.reference.bench.folder / "two-checkpoints"
    if not original.exists():
        stop = Interruption("fetch", 2 * INTERVAL, signal=signal.SIGTERM)
        words = [*arena.words(), "--output_dir", str(original)]
        statuses = arena.wait(Trial(words, 1, original.with_suffix(".log"), None, stop))
        expect(statuses == [75], f"stopping ended with {statuses}")
    shutil.copytree(original, arena.folder, symlinks=True)
    return arena.folder / f"checkpoint-{2 * INTERVAL}", arena.folder / f"checkpoint-{INTERVAL}"


def damage(arena: Arena) -> None:
    """Flip bits in a file, or cut, lengthen, blank or remove it."""
    newest, before = _with_two_checkpoints(arena)
    path = arena.random.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    size = path.stat().st_size
    how = arena.random.choice(("flip", "flip", "cut", "lengthen", "blank", "remove"))
    place = arena.random.randrange(size)
    if how == "remove":
        path.unlink()
    elif how == "cut":
        os.truncate(path, place)
    else:
        with path.open("r+b") as file:
            if how == "flip":
                flip_bit(file, place, 1 << arena.random.randrange(8))
            else:
                file.seek(0, os.SEEK_END if how == "lengthen" else os.SEEK_SET)
                file.write(bytes(1 + place))
    _uses_the_one_before(arena, before, path.name, f"{how} at {place}")


def seal_wrong_content(arena: Arena) -> None:
    """Content that cannot be, with a manifest that agrees."""
    from tests.runner.checkpoints.test_manifest import SEALED, UNSEALED

    newest, before = _with_two_checkpoints(arena)
    kind = arena.random.choice(sorted(SEALED | UNSEALED))
    (SEALED | UNSEALED)[kind][0](newest)
    if kind in SEALED:
        write_manifest(newest)
    _uses_the_one_before(arena, before, newest.name, kind)


def _uses_the_one_before(arena: Arena, before: Path, name: str, how: str) -> None:
    found, skipped = newest_checkpoint(arena.folder)
    expect(found == before, f"{how}: {found} is used")
    expect(len(skipped) == 1 and name in skipped[0], f"{how}: {name} is not named: {skipped}")
    # A resumed training takes a second and the search a millisecond: one try in five trains.
    if arena.random.random() < 0.2:
        arena.finishes()


def seal_random_content(arena: Arena) -> None:
    """Random changes of the state or the tensors, with a manifest that agrees: used or refused, never a traceback."""
    from safetensors.torch import save_file

    newest, _ = _with_two_checkpoints(arena)
    if arena.random.random() < 0.5:
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        for name in arena.random.sample(sorted(state), arena.random.randint(1, 3)):
            state[name] = arena.random.choice((None, -1, 10**30, 0.5, "x", [], [[]], {}, {"x": 1}, True, float("nan")))
        (newest / "state.json").write_text(json.dumps(state), encoding="utf-8")
    else:
        file = newest / arena.random.choice(("model.safetensors", "optimizer.safetensors"))
        tensors = dict(read_tensors(file))
        name = arena.random.choice(sorted(tensors))
        value = tensors.pop(name)
        changed = arena.random.choice((None, value.half(), value.double(), value[None], value * float("nan"), -value))
        if changed is not None:
            tensors[name] = changed.contiguous()
        save_file(tensors, file)
    write_manifest(newest)
    statuses = arena.wait(arena.start())
    printed = arena.output()
    expect(statuses[0] in (0, 2, 3) and "Traceback" not in printed, f"{statuses}: {printed[-1500:]}")
    if statuses[0] == 2:
        expect(len(printed[printed.index("error: ") :].strip().splitlines()) <= 3, printed[-800:])


# Disks ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of some bytes, mounted at a folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_a_disk(arena: Arena) -> None:
    """A disk that is full after some checkpoints, or becomes read-only; then it is mended."""
    wide = ("--model.hidden_size", "200")
    arena.flags = (*arena.flags, *wide)
    # The hash is needed later; an undisturbed run lies on the large disk.
    arena.reference.hash_of(arena.processes, arena.flags)
    disk = arena.folder.with_name(f"{arena.name}-disk")
    with small_disk(disk, arena.random.randrange(16, 80) * 4096):
        arena.folder = disk / "run"
        statuses = arena.wait(arena.start())
        if statuses != [0] * arena.processes:
            expect(statuses == [2] * arena.processes, f"ended with {statuses}")
            arena.names_the_disk()
            arena.has_no_drafts()
        arena.keeps_promises()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        arena.finishes()


def break_a_disk(arena: Arena) -> None:
    """Calls on some files fail: the training says so, keeps what is complete, and goes on once the disk is mended."""
    arena.reference.hash_of(arena.processes, arena.flags)
    undisturbed = arena.reference.bench.folder / "undisturbed-0"
    files = sorted({path.name for path in undisturbed.rglob("*") if path.is_file() or path.is_symlink()})
    mark = arena.folder.with_suffix(".mark")
    # Some faults are on files that this training does not write, or after its last call: then another one is tried.
    for _ in range(10):
        what, fault = _a_fault(arena, files)
        statuses = arena.wait(arena.start(environment={**fault, "FAULT_MARK": str(mark)}))
        if mark.exists():
            break
        expect(statuses == [0] * arena.processes, f"{statuses} without a fault: {arena.output()[-800:]}")
        shutil.rmtree(arena.folder)
    expect(mark.exists(), "no fault was met in ten trainings")
    try:
        if statuses != [0] * arena.processes:
            expect(statuses == [2] * arena.processes, f"ended with {statuses}: {arena.output()[-1500:]}")
            arena.names_the_disk()
        arena.keeps_promises()
        arena.finishes()
    except AssertionError as error:
        error.args = (what + str(error),)
        raise


def _a_fault(arena: Arena, files: list[str]) -> tuple[str, dict[str, str]]:
    """A random fault in words, and the variables of faults.c that cause it."""
    call = arena.random.choice(("write", "write", "fsync", "rename", "open"))
    number = arena.random.choice((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS))
    # With a slash: the log of the try, beside the folder, is on a good disk.
    folder = f"{arena.folder}/"
    part = arena.random.choice((folder, folder, "/.draft-", "/checkpoint-", *files))
    after = arena.random.choice((0, arena.random.randrange(60_000 if call == "write" else 20)))
    fault = {"FAULT_CALL": call, "FAULT_PATH": part, "FAULT_AFTER": str(after), "FAULT_ERRNO": str(number)}
    return f"{errno.errorcode[number]} of {call} on {part} after {after}: ", fault


# Signals --------------------------------------------------------------------------------------------------


def signal_one(arena: Arena) -> None:
    """One signal to one process, in any phase."""
    sent, phase = arena.random.choice(SIGNALS), arena.random.choice(PHASES[:4])
    step = arena.random.randrange(1, STEPS - 2)
    process = arena.random.randrange(arena.processes)
    stop = Interruption(phase, step, process, sent)
    statuses = arena.wait(arena.start(interruption=stop))
    expect(statuses == [75] * arena.processes, f"{sent.name} in {phase} ended with {statuses}: {arena.output()[-800:]}")
    reached = arena.keeps_promises()
    steps = steps_of_a_stop(arena.output(), arena.processes)
    expect(reached in steps, f"saved at {reached}, asked at {steps[0]}")
    arena.finishes()


LONG = ("--max_steps", "100000", "--save_steps", "50")


def _launcher(arena: Arena, *flags: str) -> tuple[str, tuple[str, ...]]:
    name = arena.random.choice(("relay launch", "torchrun"))
    own = ("runner", "launch", "--processes", "2")
    if name == "torchrun":
        own = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
        own += ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "-m", "runner", "train")
    return name, (*own, *arena.words(*flags))


def signal_the_launcher(arena: Arena) -> None:
    """A signal to the launcher alone, or its death: all processes save and end."""
    _signal_launched(arena, lambda process, number: process.send_signal(number), (*SIGNALS, signal.SIGKILL))


def signal_the_group(arena: Arena) -> None:
    """What schedulers do: the launcher, the processes and their workers get it at once, and again a moment later."""

    def to_all(process: Launcher, number: int) -> None:
        for _ in range(arena.random.randint(1, 4)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            time.sleep(arena.random.uniform(0, 0.2))

    _signal_launched(arena, to_all, SIGNALS)


def _signal_launched(arena: Arena, send: Callable[[Launcher, int], None], numbers: tuple[signal.Signals, ...]) -> None:
    arena.processes, number = 2, arena.random.choice(numbers)
    launcher, command = _launcher(arena, *LONG)
    with arena.launched(*command) as process:
        arena.until_step(arena.random.randrange(2, 300), process)
        ranks = psutil.Process(process.pid).children(recursive=True)
        arena.note_promises()
        send(process, number)
        status = arena.status(process)
        _, alive = psutil.wait_procs(ranks, timeout=60)
        if [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]:
            raise Hang(f"{launcher}, {number.name}: a process goes on")
    what = f"{launcher}, {number.name}: "
    # torchrun ends with a status of its own.
    wanted = {"relay launch": (75,), "torchrun": (1, 128 + number, -number, 0)}[launcher]
    expect(number == signal.SIGKILL or status in wanted, f"{what}status {status}: {arena.output()[-800:]}")
    expect("; saved." in arena.output(), f"{what}nothing was saved: {arena.output()[-1500:]}")
    arena.keeps_promises()


# Silence --------------------------------------------------------------------------------------------------


def stall(arena: Arena) -> None:
    """One process of two stops (SIGSTOP): the other one ends within its limit and says whom it waited for."""
    arena.processes = 2
    trial = arena.start(*LONG, "--ddp_timeout", str(DDP_TIMEOUT))
    stopped = arena.random.randrange(2)
    _until_output(arena, trial, "step 20/")
    arena.note_promises()
    os.kill(trial.ranks[stopped].pid or 0, signal.SIGSTOP)
    other = trial.ranks[1 - stopped]
    other.join(DDP_TIMEOUT + 30)
    ended = other.exitcode
    trial.kill()
    arena.wait(trial)
    if ended is None:
        raise Hang("the other process waits for ever")
    named = f"rank {stopped} does not answer" if stopped else "the main process (rank 0)"
    printed = arena.output()
    expect(ended == 1 and "Waited for the other processes: " in printed, f"status {ended}: {printed[-800:]}")
    expect(named in printed or "rank 0 does not answer" in printed, f"nobody is named: {printed[-800:]}")
    expect("Traceback" not in printed, f"a traceback: {printed[-1500:]}")
    arena.keeps_promises()


def suspend(arena: Arena) -> None:
    """All processes are stopped for a moment and continued, like a laptop that sleeps: the run goes on."""
    trial = arena.start()
    _until_output(arena, trial, f"step {arena.random.randrange(1, STEPS // 2)}/")
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for each in trial.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid or 0, number)
        time.sleep(arena.random.uniform(0.1, 1.0))
    statuses = arena.wait(trial)
    expect(statuses == [0] * arena.processes, f"ended with {statuses}: {arena.output()[-800:]}")
    arena.finishes()


def _until_output(arena: Arena, trial: Trial, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in arena.output():
        if time.monotonic() > deadline or not any(each.is_alive() for each in trial.ranks):
            raise AssertionError(f"{text!r} did not come: {arena.output()[-800:]}")
        time.sleep(0.01)


def cut_the_network(arena: Arena) -> None:
    """Two machines, and the link between them fails: both end within the limit and say whom they waited for, and one
    of them goes on alone, to the weights of a run that was never on two machines."""
    # Of the run that goes on. The one before has a process on each machine.
    arena.processes = 1
    arena.flags = (*arena.flags, "--deterministic", "true", "--max_steps", str(STEPS_OF_TWO), "--save_steps", "10")
    with network.two_machines() as machines, contextlib.ExitStack() as stack:
        port = str(free_port())
        started = []
        for rank, machine in enumerate(machines):
            own = ("torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(rank))
            own += ("--master_addr", machines[0].address, "--master_port", port, "-m", "runner", "train")
            words = arena.words("--ddp_timeout", str(DDP_TIMEOUT))
            variables = {"GLOO_SOCKET_IFNAME": machine.interface, "TP_SOCKET_IFNAME": machine.interface}
            started.append(stack.enter_context(arena.launched(*own, *words, prefix=machine.enter, **variables)))
        arena.until_step(arena.random.randrange(12, 60), started[0])
        programs = [network.programs_below(process.pid) for process in started]
        arena.note_promises()
        arena.random.choice(machines).cut()
        # Ten seconds are what the documentation says; the rest is for a busy machine.
        _, alive = psutil.wait_procs([each for few in programs for each in few], timeout=DDP_TIMEOUT + 10 + 20)
        if [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]:
            raise Hang(f"a training goes on after the cut: {arena.output()[-800:]}")
        for process in started:
            expect(arena.status(process) == 1, "torchrun ended with another status than 1")
    printed = arena.output()
    for words in ("rank 1 does not answer", r"(the main process \(rank 0\) is gone|rank 0 does not answer)"):
        expect(
            re.search(rf"Waited for the other processes: {words}", printed) is not None, f"{words}? {printed[-1500:]}"
        )
    reached = arena.keeps_promises()
    expect(0 < reached < STEPS_OF_TWO, f"step {reached} was saved: there is nothing to go on from, or to")
    arena.finishes()
    expect(f"going on from {arena.folder}/checkpoint-{reached}" in arena.output(), "the run began anew")


# The table ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    attack: Callable[[Arena], None]
    quick: int
    """Tries in CI."""
    share: float = 1.0
    """Tries of `make torture`, as a share of DRAWS: attacks that take milliseconds are tried more often."""
    needs: Callable[[], str] = lambda: ""
    """Why the attack cannot be tried here; empty where it can."""


def no_compiler() -> str:
    """Why faults.c cannot be compiled here."""
    return "" if shutil.which("cc") or shutil.which("gcc") else "there is no C compiler"


def no_mounts() -> str:
    """Why no small disk can be mounted here."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", 4096):
                return ""
        except (OSError, subprocess.CalledProcessError):
            return "mounting a disk is not permitted"


CASES = (
    Case("`kill -9` of a process at any moment, up to three times", kill_anywhere, 2),
    Case("`kill -9` in fetch, forward, backward or reduce", kill_in_a_phase, 2),
    Case("`kill -9` in a save", kill_in_a_save, 3),
    Case("random damage to a checkpoint's files", damage, 20, 10),
    Case("wrong content with a right manifest", seal_wrong_content, 20, 5),
    Case("random content with a right manifest", seal_random_content, 4, 2),
    Case("a disk that fills up", fill_a_disk, 2, needs=no_mounts),
    Case("calls that fail with ENOSPC, EDQUOT, EIO or EROFS", break_a_disk, 6, 3, no_compiler),
    Case("a signal to one process", signal_one, 3),
    Case("a signal to the launcher, or its death", signal_the_launcher, 1, 0.5),
    Case("signals to the process group", signal_the_group, 1, 0.5),
    Case("a process that stalls", stall, 1, 0.3),
    Case("a run that is suspended and continued", suspend, 1),
    Case("a cut link between two machines", cut_the_network, 1, 0.2, network.why_not),
)
