"""Saving while training goes on: write in the background, one save at a time.

The background thread reads weights and moments where they are, during the next forward and backward passes. What it has
not written when the next update begins is copied. So a save needs no memory where a step takes longer than writing.
"""

import copy
import platform
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
import xxhash

from runner.checkpoints.bucket import Uploader
from runner.checkpoints.disk import writing
from runner.checkpoints.folders import complete_draft, prune_checkpoints, wait_for_shards, write_checkpoint, write_shard
from runner.checkpoints.pointers import DRAFT, remove_drafts, write_pointer
from runner.checkpoints.snapshot import Memory, Snapshot, as_bytes
from runner.checkpoints.state import State
from runner.checkpoints.tensors import clean_name, model_parts, names_elsewhere, optimizer_parts, own_pieces, size_of
from runner.errors import CheckpointError, DiskError, RelayError
from runner.hardware import Hardware

BYTES_PER_SECOND = 1e9
"""How fast a background write is at best. Memory to copy into is taken where a step is shorter than the write."""
MANY_BYTES = 1 << 26
"""Copies of one save whose memory is held for the next ones."""


class Saver:
    """Writes the checkpoints of one run; at most one is being written at any time."""

    def __init__(
        self, output_dir: Path, config_text: str, assets: Path, keep: int | None, is_main: bool, in_shards: bool = False
    ) -> None:
        self.output_dir = output_dir
        self.config_text = config_text
        self.assets = assets
        self.keep = keep
        self.is_main = is_main
        self.in_shards = in_shards
        self.uploader: Uploader | None = None
        """Copies each checkpoint that is complete to `upload_to`."""
        self.writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self.pending: Future[None] | None = None
        self.saved_step = -1
        self.memory: tuple[Memory, Memory] = {}, {}
        """Where copies of the model and of the optimiser are made; empty while none are expected."""
        self.in_flight: tuple[Snapshot, ...] = ()
        """Weights and moments that the background thread may still have to write."""
        self.before: list[int] | None = None
        """A hash of each parameter before the first step of this start."""
        self.steps = 0
        """Steps of this start."""
        self.is_lazy = False
        """Whether only updates change the parameters, so that they may be written later than they are saved."""

    def save(self, run: Any, is_best: bool) -> None:
        """Copy weights, optimiser and state now, and write them in the background. Every process must call it."""
        self.wait(run.hardware)
        if run.state.step == self.saved_step and not is_best:
            return
        if run.ledger is not None:
            run.ledger.flush()
        state: State = copy.deepcopy(run.state)
        # Each process knows where its own lanes stand; of the others' it knows only where the run was resumed.
        own = {str(lane) for lane in run.share}
        state.cursors = run.hardware.merged({lane: at for lane, at in state.cursors.items() if lane in own})
        state.written_by = versions(run.hardware.num_processes)
        if run.hardware.accelerator.scaler is not None:
            state.scaler = run.hardware.accelerator.scaler.state_dict()
        self.saved_step = state.step
        if not self.is_main and not run.hardware.is_sharded:
            return
        if self.in_shards:
            self._save_shards(run, state)
            return
        parts = model_parts(run.bare_model)
        # Forward passes change buffers.
        changing = frozenset(parts) - {clean_name(name) for name, _ in run.bare_model.named_parameters()}
        model = Snapshot(parts, self.memory[0], self.is_lazy, changing)
        optimizer = Snapshot(optimizer_parts(run.bare_model, run.optimizer), self.memory[1], self.is_lazy)
        if self.is_main:
            self.in_flight = model, optimizer
            self.pending = self.writer.submit(self._write, model, optimizer, state)

    def watch(self, run: Any) -> None:
        """Begin to watch a training, before its first step: whether its saves need copies, and memory for them."""
        if run.hardware.device.type != "cpu" or run.hardware.is_sharded:
            self.reserve(run)
        elif self.is_main:
            self.before = content_of(run)

    def before_update(self, run: Any) -> None:
        """Copy what is still to be written of the last save, because weights and moments are about to change."""
        if self.before is not None:
            self.is_lazy, self.before = self.before == content_of(run), None
        if not self.in_flight:
            return
        for snapshot, memory in zip(self.in_flight, self.memory, strict=True):
            copies = snapshot.hold()
            if size_of(copies) > MANY_BYTES:
                # Steps are shorter than writing: the next saves make the same copies, in the same memory.
                memory |= copies
        self.in_flight = ()

    def note_step(self, run: Any, seconds: float) -> None:
        """Count a step of this start, and take memory for copies where the third one was short."""
        self.steps += 1
        if self.steps == 3:
            size = size_of(model_parts(run.bare_model)) + size_of(optimizer_parts(run.bare_model, run.optimizer))
            # On another device, this memory was taken before the first step.
            if not self.is_lazy or seconds < size / BYTES_PER_SECOND:
                self.writer.submit(self.reserve, run)

    def reserve(self, run: Any) -> None:
        """Take the memory of copies before they are made: the first touch of fresh pages takes longer than a copy.

        Copies that a save has made already stay.
        """
        if not self.is_main or self.in_shards:
            return
        is_adam = run.settings.optim == "adamw"
        elsewhere = names_elsewhere(run.bare_model)
        model, optimizer = self.memory
        for name, parameter in run.bare_model.named_parameters():
            name = clean_name(name)
            if name in elsewhere:
                continue
            kinds = ("exp_avg", "exp_avg_sq") if parameter.requires_grad and is_adam else ()
            for memory, key in ((model, name), *((optimizer, f"{name}/{kind}") for kind in kinds)):
                if key not in memory:
                    memory[key] = torch.zeros(parameter.shape, dtype=parameter.dtype)

    def wait(self, hardware: Hardware | None = None) -> None:
        """Wait for the save in flight; raises what went wrong in it.

        With `hardware`, every process calls it, and all of them raise DiskError where the main process could not write.
        """
        wrong = None
        try:
            if self.pending is not None:
                pending, self.pending = self.pending, None
                pending.result()
        except (DiskError, CheckpointError) as error:
            wrong = error
        if hardware is not None:
            wrong = self._agreed(hardware, wrong)
        if wrong is not None:
            raise wrong

    def _agreed(self, hardware: Hardware, wrong: RelayError | None) -> RelayError | None:
        """What went wrong in the last save, the same on every process: on the writing one, or with shards on any."""
        if self.in_shards:
            all_wrong = [each for each in hardware.merged({str(hardware.process): wrong}).values() if each is not None]
            # That a process could not write says more than that another one waited for its file.
            wrong = min(all_wrong, key=lambda each: not isinstance(each, DiskError), default=None)
            if wrong is not None and self.is_main:
                remove_drafts(self.output_dir)
        else:
            wrong = hardware.from_main(wrong)
        if wrong is not None:
            wrong.is_of_one_process = False
        return wrong

    def _save_shards(self, run: Any, state: State) -> None:
        """Each process copies and writes what it holds; the main one waits for the files and completes the folder."""
        draft = self.output_dir / f"{DRAFT}checkpoint-{state.step}-shards"
        if self.is_main and draft.exists():
            # Left by a run that was killed here.
            shutil.rmtree(draft)
        run.hardware.accelerator.wait_for_everyone()
        # A copy takes as much memory as weights and optimiser: where they are on the CPU, training waits instead.
        waits = run.hardware.device.type == "cpu"
        model = own_pieces(model_parts(run.bare_model), self.is_main, copies=not waits)
        optimizer = own_pieces(optimizer_parts(run.bare_model, run.optimizer), self.is_main, copies=not waits)
        process, processes = run.hardware.process, run.hardware.num_processes

        failed = f"checkpoint-{state.step}-failed"

        def write() -> None:
            try:
                with writing(f"checkpoint-{state.step}", self.output_dir, size_of(model[0]) + size_of(optimizer[0])):
                    write_all()
            except BaseException:
                run.hardware.post(failed)
                raise

        def write_all() -> None:
            write_shard(draft, "model", process, *model)
            write_shard(draft, "optimizer", process, *optimizer)
            if self.is_main:
                wait_for_shards(draft, processes, 600.0, lambda: run.hardware.is_posted(failed))
                files = {"config.yaml": self.config_text}
                self._follow_up(complete_draft(draft, self.output_dir, state, files, self.assets), state)

        self.pending = self.writer.submit(write)
        if waits:
            wait([self.pending])

    def _write(self, model: Snapshot, optimizer: Snapshot, state: State) -> None:
        files = {"config.yaml": self.config_text}
        with writing(f"checkpoint-{state.step}", self.output_dir, model.nbytes + optimizer.nbytes):
            self._follow_up(write_checkpoint(self.output_dir, model, optimizer, state, files, self.assets), state)

    def _follow_up(self, folder: Path, state: State) -> None:
        """Update pointers, prune, and upload, once a checkpoint is complete."""
        if state.best_step == state.step:
            write_pointer(self.output_dir / "checkpoint-best", folder)
        prune_checkpoints(self.output_dir, self.keep, state.best_step, newest=state.step)
        if self.uploader is not None:
            self.uploader.add(folder, state.best_step)


def content_of(run: Any) -> list[int]:
    """A hash of each parameter: it shows changes that go around torch's own counter of changes, too."""
    return [
        xxhash.xxh3_64_intdigest(as_bytes(parameter.detach().contiguous()).numpy().data)
        for parameter in run.bare_model.parameters()
    ]


def versions(num_processes: int) -> dict[str, Any]:
    """What wrote a checkpoint: for people, and for whoever compares bits."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": version("accelerate"),
        "machine": platform.machine(),
        "processes": num_processes,
        "threads": torch.get_num_threads(),
    }
