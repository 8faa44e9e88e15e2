"""The contract between the runner and a recipe: what a task must bring, and nothing else.

A recipe is a frozen dataclass. Its fields are its settings (nested dataclasses become groups:
`data.*`, `model.*`); the docstring line under each field is its help text. A group that is called like
a verb is a field with the ending `_settings`: `data_settings: DataSettings` is what users see as `data.*`.
The methods are the verbs below. The runner finds the class as the attribute `Recipe` of a module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclasses.dataclass
class Batch:
    """One micro-batch: what a lane holds in a step."""

    tensors: dict[str, Tensor]
    """Named tensors, the first axis of each counts the examples; the runner moves them to the device."""
    weight: float
    """How many things the loss sums over (tokens, rows, pairs): the loop divides by the step's total."""
    tokens: int = 0
    """Tokens in this micro-batch, for the tokens/s in the progress; 0 where the word means nothing."""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Anything else that `loss` or `predict` wants, left on the host."""
    step: Tensor | None = None
    """The tally of the whole step that this micro-batch is of, where the recipe `tallies_first`."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


class Loss(NamedTuple):
    """What `Recipe.loss` returns; a plain (sum, weight, logs) tuple does as well."""

    sum: Tensor
    """(): the sum over the scored things of this micro-batch."""
    weight: float
    """How many there were: the same number as `Batch.weight`."""
    logs: Mapping[str, Any] = {}
    """Numbers, or small tensors, to log; each is averaged over the step's lanes, without those that say NaN. Every
    lane gives the same names."""
    auxiliary: Tensor | None = None
    """(): a mean over this micro-batch (router balance, z-loss), already times its coefficient; the loop
    averages it over the lanes of the step, whatever the number of processes."""
    tally: Tensor | None = None
    """Counts, of one shape in every micro-batch: added up over the lanes of the step and the processes, for
    `Recipe.end_step`, or for the step's own loss as `Batch.step`."""


@dataclasses.dataclass(frozen=True)
class Download:
    """A file that `relay data` fetches for a source."""

    url: str
    file: str
    """What it is called: below the source's folder where it stays as it is, in the folder of archives where not."""
    sha256: str | None = None
    """Of its content, where that is known."""
    unpack: bool = False
    """Whether it is a zip or tar archive, of which only the content is kept; archives inside it are unpacked too."""
    without: str = ""
    """A folder of the archive whose content is unpacked as if it stood outside of it."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that `relay data` can fetch."""

    licence: str
    homepage: str
    downloads: tuple[Download, ...]
    check: Callable[[Path], str]
    """Read what came, in the folder above the source's own; returns a line about it, or raises DataError."""


class Order(Protocol):
    """An order of map-style examples other than the runner's shuffle: mixed sources, one table per lane.

    A pure function of (step, lane): it is asked on every process, in any sequence, and after every restart.
    """

    examples_per_epoch: int
    """What one epoch counts."""

    def indices(self, step: int, lane: int) -> list[int]:
        """The examples of one lane of one step, counted from 0: at most `micro_batch_size`, at least one."""
        ...


class Stream(Protocol):
    """Training examples that are read one after another: too many to count, or far away.

    Each lane reads a share of its own and never ends: after its last example it begins its next epoch. A
    cursor is small JSON that says what has been read; it is saved in checkpoints, so it alone, with the seed,
    must say what comes next: what was read ahead of it does not count.
    """

    def read(self, lane: int, num_lanes: int, seed: int, cursor: Any | None) -> Iterator[tuple[Any, Any]]:
        """(example, the cursor that follows it) from `cursor` on, or from the start where it is None.

        The shares of lanes 0 to num_lanes - 1 are disjoint and together the whole data.
        """
        ...


class Recipe(Protocol):
    """The verbs. Those below "Optional verbs" may be left out."""

    best_metric: ClassVar[str]
    """The metric that chooses the best checkpoint unless `--metric_for_best_model` says otherwise."""

    couples_examples: ClassVar[bool] = False
    """Whether the loss of an example depends on the others of its micro-batch (pairwise distances): then a
    lane that does not fit into memory is never split."""

    tallies_first: ClassVar[bool] = False
    """Whether a loss needs to know the tally of its whole step: then every lane is computed once more before."""

    memory_advice: ClassVar[str] = "Lower --micro_batch_size, or the recipe's length limits (--help)."
    """What to type when memory runs out: the settings of this recipe that it grows with."""

    def data(self, split: str) -> Sequence[Any] | Stream:
        """Map-style examples of `split` ("train", "validation", "test"): `len()` and `[index]`; where the
        object has `__getitems__(indices)`, a whole micro-batch is asked for at once, and where it has
        `order(batch_size, micro_batch_size, seed) -> Order`, that is the order; where it has
        `warnings(examples) -> list[str]`, those are told before a run that takes so many examples. "train" may be a
        Stream instead.

        A validation split that does not exist is an empty sequence. Called after `prepare`.
        Random augmentation uses the global `random`, `numpy.random` and `torch` generators: they are
        seeded by (seed, step, lane) before each micro-batch is fetched.
        Raises DataError for what is missing, empty or broken.
        """
        ...

    def collate(self, examples: list[Any]) -> Batch:
        """Put examples into tensors and count what the loss will score."""
        ...

    def model(self) -> nn.Module:
        """Fresh weights, from the global torch generator, which the runner has seeded."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed loss of one micro-batch. Must call `model(...)` itself (its `forward`), once."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """One JSON-able row per example of the batch, in order. `model` is unwrapped, in eval mode."""
        ...

    def score(self, rows: list[Any]) -> dict[str, float]:
        """Metrics of a whole split; each example's row is there exactly once, in the split's order."""
        ...

    # Optional verbs -------------------------------------------------------------------------------

    def prepare(self, folder: Path) -> Recipe:
        """Return the recipe bound to `folder`, which holds what is fitted on the training split (tokenizer,
        normalisation). Fit and write what is not there yet. Called on one process first, then on the
        others. `folder` travels inside every checkpoint (`assets/`) and flat inside `final/`."""
        ...

    @staticmethod
    def presets() -> Mapping[str, Mapping[str, Any]]:
        """Named settings, flat with dots ({"model.hidden_size": 256, "learning_rate": 1e-3}). The one named
        "default" applies when `--preset` is not given."""
        ...

    def inherit(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Put the weights that `--init_from` names into the fresh model of this stage, where the two are not
        the same model (a new head, adapters). Without it, every name and shape must be the same."""
        ...

    def fresh_start(self) -> str | None:
        """A line to say before a training that begins without weights: no checkpoint, no `--init_from`. Raises
        ConfigError where these settings make no sense so, such as adapters on a model that is still to be read."""
        ...

    def end_step(self, model: nn.Module, tally: Tensor) -> None:
        """Change what does not learn by gradients (buffers), after each update, from the tally of the step: the
        same on every process. `model` is unwrapped. Only called where `loss` gives a tally."""
        ...

    def remark(self, step: int, values: Mapping[str, Any]) -> str | None:
        """A line for people about the numbers of a logged step: what is wrong, and the setting to change. It is said
        when it is new."""
        ...

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model into `folder` for other tools, where `save_pretrained` does not do it."""
        ...

    @staticmethod
    def downloads() -> Mapping[str, Source]:
        """The data sets that `relay data` can fetch, by name; each gets a folder of that name."""
        ...

    Request: type
    """A dataclass: what `relay predict` accepts on the command line, beside `--checkpoint`."""

    def answer(self, model: nn.Module, request: Any) -> str:
        """The text that `relay predict` prints for one request. `model` is in eval mode."""
        ...

    Files: type
    """A dataclass with an `output: str | None`: what `relay evaluate --recipe NAME` accepts where predictions come
    from a file instead of a model."""

    def score_files(self, files: Any) -> tuple[str, list[Any]]:
        """The text to print, and one JSON-able row per prediction, for `output`."""
        ...
