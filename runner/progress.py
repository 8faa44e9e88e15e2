"""What people see of a training: two lines at the foot of a terminal, plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

REFRESH_SECONDS = 0.25
GAP = "  "


class Progress:
    """Lines and, on a terminal, two lines that stay at its foot; silent on every process but the main one."""

    def __init__(self, is_main: bool, max_steps: int, examples_per_epoch: int | None) -> None:
        self.is_main = is_main
        self.max_steps = max_steps
        self.examples_per_epoch = examples_per_epoch
        self.started = time.monotonic()
        self.first_step: int | None = None
        self.done = 0
        self.logged: Mapping[str, float] = {}
        self.train_loss = Mean()
        """Over the steps since the last evaluation."""
        self.score = ""
        self.activity = ""
        self.foot = Foot() if is_main and sys.stderr.isatty() else None

    def print_line(self, text: str) -> None:
        """Print a line of text, above the two lines where they are."""
        if not self.is_main:
            return
        if self.foot is not None:
            self.foot.print_above(text)
        # A terminal may show the progress while standard output goes to a file, which is to hold the lines.
        if self.foot is None or not sys.stdout.isatty():
            print(text, file=self.foot.stdout if self.foot else None, flush=True)

    def advance(self, step: int) -> None:
        """Note that `step` updates are done."""
        if self.first_step is None:
            self.first_step = step - 1
        self.done, self.activity = step, ""
        self._refresh()

    def step(self, step: int, values: Mapping[str, float], mean_loss: float | None = None, steps: int = 1) -> None:
        """Show the numbers of a logged step, and `mean_loss`, the mean over the last `steps` steps."""
        if not self.is_main:
            return
        mean_loss = values["loss"] if mean_loss is None else mean_loss
        self.logged = {**values, "mean_loss": mean_loss}
        self.train_loss.add(mean_loss, steps)
        if self.foot is None or not sys.stdout.isatty():
            text = f"{plain(step, self.max_steps, values)}  left {self._left(step)}"
            print(text, file=self.foot.stdout if self.foot else None, flush=True)
        self._refresh()

    def evaluating(self, done: int, total: int) -> None:
        """Note that an evaluation has computed `done` of `total` batches."""
        self.activity = f"evaluating {done}/{total}"
        self._refresh()

    def evaluation(
        self, step: int, scores: Mapping[str, float], name: str, note: str, epoch: float | None = None
    ) -> None:
        """Show an evaluation: every score, then in one line the losses, the score `name`, and how it compares."""
        self.activity = ""
        shown = GAP.join(f"{each} {value:.4f}" for each, value in scores.items() if isinstance(value, (int, float)))
        self.print_line(f"evaluation at step {step}:  {shown}")
        words = [] if epoch is None else [f"epoch {epoch:.2f}"]
        words += [f"train loss {self.train_loss.take():.4f}"] if self.train_loss.weight else []
        words += [f"validation loss {scores['loss']:.4f}"] if "loss" in scores else []
        label = name if name == "score" else f"score {name}"
        words += [f"{label} {scores[name]:.4f}"] if name in scores and name != "loss" else []
        self.print_line(GAP.join([*words, note] if note else words))
        if name in scores:
            self.score = f"{'validation loss' if name == 'loss' else name} {scores[name]:.4f}"

    def best(self, score: float | None, step: int | None) -> None:
        """Note the best score so far, for the two lines."""
        if score is not None and self.score:
            self.score = f"{self.score.partition(' (')[0]} (best {score:.4f} at {step or 0:,})"

    def close(self) -> None:
        """Leave the two lines on the screen as they are, and give the terminal back."""
        if self.foot is not None:
            self.activity = f"took {clock(time.monotonic() - self.started)}"
            self.foot.show(self._first(), self._second())
            self.foot.close()
            self.foot = None

    def _refresh(self) -> None:
        # Every step calls this; the lines are put together only where they are written.
        if self.foot is not None and self.foot.is_due():
            self.foot.show(self._first(), self._second())

    def _first(self) -> list[str]:
        """What the first line says behind the bar, the most important first."""
        words = [f"step {self.done:,}/{self.max_steps:,}", self.activity or f"left {self._left(self.done)}"]
        words += [f"epoch {self.logged['epoch']:.2f}"] if "epoch" in self.logged else []
        return [f"{self.done / max(self.max_steps, 1):4.0%}", *words]

    def _second(self) -> list[str]:
        """What the second line says, the most important first."""
        values = self.logged
        words = [f"train loss {values['mean_loss']:.4f}"] if values else ["waiting for the first numbers"]
        words += [self.score] if self.score else []
        if "examples_per_second" in values:
            words.append(f"{short(values['examples_per_second'])} examples/s")
        if "tokens_per_second" in values:
            words.append(f"{short(values['tokens_per_second'])} tokens/s")
        if "memory_gb" in values:
            words.append(f"memory {values['memory_gb']:.1f} GB")
        if "flops_utilisation" in values:
            words.append(f"MFU {values['flops_utilisation']:.0%}")
        if "learning_rate" in values:
            words.append(f"lr {values['learning_rate']:.1e}")
        return words

    def _left(self, step: int) -> str:
        done = step - (self.first_step or 0)
        seconds = (time.monotonic() - self.started) / max(done, 1) * (self.max_steps - step)
        return clock(seconds)


class Mean:
    """A mean with weights."""

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def add(self, value: float, weight: float) -> None:
        """Count a value."""
        self.total += value * weight
        self.weight += weight

    def take(self) -> float:
        """The mean since the last call. There is at least one value."""
        mean = self.total / self.weight
        self.__init__()
        return mean


class Foot:
    """Two lines at the foot of a terminal that are written again in place; rich does the moving of the cursor."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.stdout: TextIO = sys.stdout
        self.console = Console(stderr=True, highlight=False)
        self.last = 0.0
        # Without rich's thread: a loader process that is forked while the thread holds a lock would wait for ever.
        live = Live(
            console=self.console,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            vertical_overflow="crop",
        )
        self.live: Live | None = live
        before = sys.stdout, sys.stderr
        live.start()
        # A killed program would leave the terminal without a cursor.
        self.console.show_cursor(True)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: self._leave(before))

    def print_above(self, text: str) -> None:
        """Print a line of text above the two lines. Columns are wrapped between words, and a path is not cut."""
        self.console.print(text, markup=False, soft_wrap=GAP not in text)

    def is_due(self) -> bool:
        """Whether the two lines are to be written again: four times a second at most."""
        return self.live is not None and time.monotonic() - self.last >= REFRESH_SECONDS

    def show(self, first: list[str], second: list[str]) -> None:
        """Write the two lines again."""
        if self.live is None:
            return
        self.last = time.monotonic()
        self.live.update(two_lines(first, second, self.console.width), refresh=True)

    def close(self) -> None:
        """Give the terminal back."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _leave(self, streams: tuple[TextIO, TextIO]) -> None:
        """In a forked process: what it prints goes to the terminal as it is."""
        if self.live is not None:
            self.live = None
            sys.stdout, sys.stderr = streams


def two_lines(first: list[str], second: list[str], width: int) -> Text:
    """The two lines of a terminal: a bar with what fits of `first`, which begins with the share that is done, and what
    fits of `second`."""
    from rich.text import Text

    bar_width = max(6, min(30, width // 4))
    share, *words = first
    filled = round(float(share.strip().removesuffix("%")) / 100 * bar_width)
    line = Text(no_wrap=True, overflow="crop")
    line.append("━" * filled, "green").append("━" * (bar_width - filled), "bright_black")
    line.append(f" {share}{GAP}{fitting(words, width - bar_width - len(share) - 3)}\n")
    return line.append(fitting(second, width))


def fitting(words: Iterable[str], width: int) -> str:
    """As many of the words as fit into the width, in order, with two spaces between them. A long one is left out."""
    line = ""
    for word in words:
        longer = f"{line}{GAP}{word}" if line else word
        line = longer if len(longer) <= width else line
    return line


def plain(step: int, max_steps: int, values: Mapping[str, float]) -> str:
    """The line of a logged step in a log."""
    epoch = f"epoch {values['epoch']:.2f}  " if "epoch" in values else ""
    shown = f"loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}"
    shown += f"  grad {values['grad_norm']:.2f}  {values['examples_per_second']:,.0f} examples/s"
    if "tokens_per_second" in values:
        shown += f"  {values['tokens_per_second']:,.0f} tokens/s"
    return f"{epoch}step {step}/{max_steps}  {shown}"


def clock(seconds: float) -> str:
    """A duration as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def short(number: float) -> str:
    """A number in a few letters: 7.2, 640, 14k, 1.23M."""
    if number >= 1e6:
        return f"{number / 1e6:.3g}M"
    if number >= 1e4:
        return f"{number / 1e3:.0f}k"
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
