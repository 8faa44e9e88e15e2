"""The contract between the runner and a recipe: what a recipe must bring, and what it may bring.

A recipe is a frozen dataclass called `Recipe` that derives from `Recipe` here. Its fields are its settings. A nested
dataclass becomes a group: `data.*`, `model.*`. The docstring under each field is its help text. A group that is called
like a method is a field with the ending `_settings`: users see `data_settings: DataSettings` as `data.*`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from runner.errors import ConfigError, warn

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from runner.parts.figures import Figure

# What only the recipe looks into. The runner passes these on, so their types are the recipe's choice.
Example = Any
"""One example: whatever the recipe's data hold and its `collate` takes."""
Row = Any
"""What `predict` makes of one example: anything that JSON can hold."""
Cursor = Any
"""How far a lane of a stream has read: anything that JSON can hold."""


@dataclasses.dataclass
class Batch:
    """One micro-batch: what a lane holds in a step."""

    tensors: dict[str, Tensor]
    """Named tensors. The first axis of each counts the examples. The runner moves them to the device."""
    weight: float
    """How many things the loss sums over (tokens, rows, pairs). The runner divides the loss by their sum over the
    step."""
    tokens: int = 0
    """Tokens in this micro-batch, for the tokens per second in the progress; 0 where there are none."""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Anything else that `loss` or `predict` needs. It stays on the host."""
    outputs: Mapping[str, Tensor] | None = None
    """`Loss.outputs` of this batch, when the runner evaluates: `predict` then needs no second forward pass."""
    step_statistics: Tensor | None = None
    """The sum of `Loss.statistics` over the whole step, where the recipe `needs_step_statistics`."""
    places: Sequence[int] = ()
    """In an evaluation: the place of each example among those that are evaluated, from 0."""
    host: Mapping[str, Tensor] = dataclasses.field(default_factory=dict, repr=False)
    """`tensors` before the runner moved them to the device."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def on_host(self, name: str) -> np.ndarray:
        """A tensor's numbers on the host.

        To read them from the tensor itself makes the process wait until a GPU has done all that it was given.
        """
        return self.host.get(name, self.tensors[name]).cpu().numpy()

    @property
    def step(self) -> Tensor | None:
        """The old name of `step_statistics`."""
        note_outdated("Batch.step is called Batch.step_statistics now.")
        return self.step_statistics


@dataclasses.dataclass(frozen=True, init=False)
class Loss:
    """What `Recipe.loss` returns."""

    sum: Tensor
    """(): the loss, summed over the scored things of this micro-batch. `Batch.weight` says how many they are."""
    logs: Mapping[str, Any]
    """Numbers, or small tensors, to log. The runner averages each over the lanes of the step and leaves NaN out. Every
    micro-batch gives the same names."""
    auxiliary: Tensor | None
    """(): a mean over this micro-batch (router balance, z-loss), already times its coefficient. The runner averages it
    over the lanes of the step, whatever the number of processes."""
    step_auxiliary: Tensor | None
    """(): this micro-batch's share of an auxiliary loss of the whole step, already times its coefficient. The runner
    adds the shares of the lanes. It depends on `Batch.step_statistics`."""
    statistics: Tensor | None
    """Counts, of one shape in every micro-batch. The runner adds them up over the lanes of the step and the processes,
    for `Recipe.end_step` and `Batch.step_statistics`."""
    outputs: Mapping[str, Tensor] | None
    """Tensors without gradients that `predict` can use again. The runner passes them on as `Batch.outputs`."""

    def __init__(
        self,
        sum: Tensor,
        *outdated: Any,
        logs: Mapping[str, Any] | None = None,
        auxiliary: Tensor | None = None,
        step_auxiliary: Tensor | None = None,
        statistics: Tensor | None = None,
        outputs: Mapping[str, Tensor] | None = None,
        weight: float | None = None,
        tally: Tensor | None = None,
    ) -> None:
        """`outdated`, `weight` and `tally` are the form of version 0.1: (sum, weight, logs, auxiliary, tally)."""
        if outdated or weight is not None or tally is not None:
            note_outdated(
                "`loss` returns Loss(sum, logs=..., auxiliary=..., statistics=...) now: leave the weight out "
                "(Batch.weight is the one that counts), and write statistics for tally (docs/write-a-recipe.md)."
            )
            old = dict(zip(("weight", "logs", "auxiliary", "tally"), outdated, strict=False))
            logs, auxiliary = old.get("logs", logs), old.get("auxiliary", auxiliary)
            statistics = old.get("tally", tally if statistics is None else statistics)
        values = {"sum": sum, "logs": logs or {}, "auxiliary": auxiliary}
        values |= {"step_auxiliary": step_auxiliary, "statistics": statistics, "outputs": outputs}
        self.__dict__.update(values)

    @classmethod
    def of(cls, result: Loss | tuple[Any, ...]) -> Loss:
        """What a recipe's `loss` returned; version 0.1 allowed a plain (sum, weight, logs) tuple as well."""
        return result if isinstance(result, Loss) else cls(*result)


@functools.cache
def note_outdated(sentence: str) -> None:
    """Print once, on the main process, what a recipe or a command of an older version should change."""
    warn(sentence)


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

    def read(self, lane: int, num_lanes: int, seed: int, cursor: Cursor | None) -> Iterator[tuple[Example, Cursor]]:
        """(example, the cursor that follows it) from `cursor` on, or from the start where it is None.

        The shares of lanes 0 to num_lanes - 1 are disjoint and together the whole data.
        """
        ...


Data = Sequence[Example] | Stream
"""What `Recipe.data` returns: examples by index, or a stream."""


class Recipe:
    """The methods that the runner calls. A recipe must define the first six; the others have the defaults below."""

    best_metric: ClassVar[str] = "loss"
    """The metric that chooses the best checkpoint unless `--metric_for_best_model` names another."""

    couples_examples: ClassVar[bool] = False
    """Whether the loss of an example depends on the others of its micro-batch (pairwise distances). The runner never
    splits such a micro-batch when memory runs out."""

    evaluates_in_shards: ClassVar[bool] = False
    """Whether `predict` computes only by calling the whole model, which calls its layers in the same order each time.
    FSDP then gathers one layer at a time in evaluation; else every process holds the whole model there."""

    memory_advice: ClassVar[str] = "Lower --micro_batch_size, or the recipe's length limits (--help)."
    """What to type when memory runs out: the settings of this recipe that memory grows with."""

    renamed_settings: ClassVar[Mapping[str, str]] = {}
    """Old name -> new name of settings. The old one works for one release, and the runner says the new one."""

    changeable_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings of the groups `data`, `tokenizer`, `model` and `lora` that a resumed run may change: paths of what
    `data_files` names, what changes neither the examples nor their order, what does not change the function that the
    model computes. The runner refuses a change of the others, but for fractions such as `model.dropout`."""

    first_settings: ClassVar[Sequence[str]] = ()
    """Names of the settings that the first page of help shows: those that people change first. None: the first four."""

    Request: ClassVar[type | None] = None
    """A dataclass: the flags that `relay predict` accepts beside `--checkpoint`. None: the recipe answers nothing."""

    Files: ClassVar[type | None] = None
    """A dataclass with a field `output: str | None`: the flags that `relay evaluate --recipe NAME` accepts to score
    predictions from a file instead of a model. None: the recipe scores no files."""

    @classmethod
    def unmeant_settings(cls, given: Set[str], of_preset: bool) -> Set[str]:
        """Settings whose value in a preset, or in the config.yaml of an older version, must not count.

        `given`: what the user gave a value, by file or flag. Such a setting has its default then.
        """
        return frozenset()

    # Required -------------------------------------------------------------------------------------

    def data(self, split: str) -> Data:
        """Examples of `split` ("train", "validation", "test"): a sequence with `len()` and `[index]`. "train" may be a
        `Stream` instead. A split that does not exist is an empty sequence. The runner calls `prepare` first.

        The sequence may also have

        - `__getitems__(indices)`: the runner then asks for a whole micro-batch at once;
        - `order(batch_size, micro_batch_size, seed) -> Order`: an order of its own instead of the shuffle;
        - `length_of(index) -> int`: about how long an example is, for `--group_by_length`; it is asked often;
        - `warnings(examples) -> list[str]`: what the runner says before a run that takes that many examples.

        Random augmentation uses the global generators of `random`, `numpy.random` and `torch`: the runner seeds them
        by (seed, step, lane) before it fetches each micro-batch.
        Raises DataError for what is missing, empty or broken.
        """
        raise NotImplementedError

    def collate(self, examples: list[Example]) -> Batch:
        """Put examples into tensors, and count what the loss will score."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """A model with fresh weights, drawn from the global torch generator, which the runner has seeded."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed loss of one micro-batch. It must call `model(...)` itself, exactly once."""
        raise NotImplementedError

    def predict(self, model: nn.Module, batch: Batch) -> list[Row]:
        """One JSON-able row per example of the batch, in order. `model` is unwrapped, in eval mode."""
        raise NotImplementedError

    def score(self, rows: list[Row]) -> dict[str, float]:
        """Metrics of a whole split. Each example's row is there exactly once, in the split's order."""
        raise NotImplementedError

    # With defaults --------------------------------------------------------------------------------

    @property
    def needs_step_statistics(self) -> bool:
        """Whether a loss depends on the statistics of its whole step. The runner then computes every lane once more
        before the gradients."""
        return False

    @property
    def evaluates_at_start(self) -> bool:
        """Whether the runner evaluates before the first step unless `--eval_on_start` decides: where a training begins
        with something fitted, and the best checkpoint must not be worse."""
        return False

    @property
    def has_trained_weights(self) -> bool:
        """Whether `model()` returns trained weights, so that `relay evaluate --recipe NAME` can score it without a
        run."""
        return False

    def learning_rate_scale(self, name: str) -> float:
        """The share of `--learning_rate` that the parameter of this name has at every step: below 1 for layers that are
        trained already, beside new ones."""
        return 1.0

    def prepare(self, folder: Path) -> Recipe:
        """Return the recipe bound to `folder`, which holds what is fitted on the training split (tokenizer,
        normalisation). Fit and write what is not there yet. The runner calls it on one process first, then on the
        others. `folder` travels inside every checkpoint (`assets/`) and lies flat in `final/`."""
        return self

    def metrics(self) -> Sequence[str] | None:
        """The names that `score` can return under these settings; `accuracy/*` stands for all that begin so. `loss` is
        always there. The runner then refuses another `--metric_for_best_model` before the training. None: not known."""
        return None

    def packages(self) -> Mapping[str, str | None]:
        """Packages beyond Relay's own that these settings import, each with the extra of Relay that brings it, or None
        where pip installs it by its own name. The runner names the missing ones before it reads the data."""
        return {}

    def prepare_trained(self, folder: Path) -> Recipe:
        """Return the recipe bound to what a trained model, or a run that goes on, has fitted. The default is `prepare`;
        override it where `prepare` fits anew when the data have changed: the weights depend on what was fitted."""
        return self.prepare(folder)

    def data_files(self, split: str) -> Sequence[str | Path]:
        """The files that `data(split)` reads, for "train" and "validation", in the order in which they are read: paths,
        URLs, or other names of data such as "datasets://ID". The runner records their content in each checkpoint, and
        refuses to continue a run on other data. `data` reports files that are missing. The default records nothing."""
        return ()

    @staticmethod
    def presets() -> Mapping[str, Mapping[str, Any]]:
        """Named settings, flat with dots ({"model.hidden_size": 256, "learning_rate": 1e-3}). The one named "default"
        applies when `--preset` is not given."""
        return {}

    def inherit(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Put the weights that `--init_from` names into the fresh model. The default asks for the same names and
        shapes; override it for a stage with another model (a new head, adapters).
        Raises CheckpointError or ConfigError where they do not fit."""
        from runner.checkpoints.tensors import load_model

        load_model(model, tensors, "--init_from")

    def fresh_start(self) -> str | None:
        """A line to print before a training that begins without weights: no checkpoint, no `--init_from`. Raises
        ConfigError where these settings make no sense so, such as adapters without a model to adapt."""
        return None

    def note_on_start(self, init_from: str | None) -> str:
        """What it means that no evaluation was better than the one before the first step, and what to type: sentences
        for the end of the training, the report and the model card. `init_from` names the weights that it began with."""
        return ""

    def setting_notes(self, changed: frozenset[str]) -> list[str]:
        """Lines to print before a training: settings that have no effect beside others. `changed` holds the names of
        those that the user gave another value than the preset or the default has."""
        return []

    def end_step(self, model: nn.Module, statistics: Tensor) -> None:
        """Change what does not learn by gradients (buffers) after each update, from the statistics of the step, which
        are the same on every process. `model` is unwrapped. Called only where `loss` gives statistics."""

    def remark(self, step: int, values: Mapping[str, Any]) -> str | None:
        """A line for people about the numbers of a logged step or of an evaluation: what is wrong, and the setting to
        change. The runner prints it when it changes, and after each evaluation."""
        return None

    def samples(self, rows: list[Row]) -> Sequence[Mapping[str, object]]:
        """A few of an evaluation's rows for people, as texts by the name of their column. `right`, where it is there,
        says whether it is a right answer. The runner writes them into samples.json, for the report. The default shows
        none."""
        return ()

    def figures(self, rows: list[Row]) -> Sequence[Figure]:
        """What the report draws of an evaluation's rows, such as predicted against true numbers: see
        `runner.parts.figures`. The runner writes it into samples.json. The default draws nothing."""
        return ()

    def while_evaluating(self, model: nn.Module) -> AbstractContextManager[None]:
        """What holds while a model is evaluated or answers, such as adapters that are merged into the weights."""
        return nullcontext()

    def use_precision(self, model: nn.Module, precision: str) -> None:
        """Prepare a model for training or scoring in `precision` ("no", "bf16" or "fp16"). The runner calls it once,
        before the first step, on one device: a recipe may hold in bf16 what is frozen. The default changes nothing."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model into `folder` for other tools. The default uses `save_pretrained` where the model has it."""
        from runner.checkpoints.tensors import save_model

        save_model(model, folder)

    @staticmethod
    def downloads() -> Mapping[str, Source]:
        """The data sets that `relay data` can fetch, by name. Each gets a folder of that name."""
        return {}

    def answer(self, model: nn.Module, request: Any) -> str:
        """The text that `relay predict` prints for one request. `model` is in eval mode."""
        raise ConfigError("This recipe has no Request: it cannot answer from the command line.")

    def score_files(self, files: Any) -> tuple[str, list[Row]]:
        """The text to print, and one JSON-able row per prediction for `--output`."""
        raise ConfigError("This recipe scores no files: type --checkpoint with a trained model of it.")


def with_defaults(recipe: type) -> type:
    """A recipe class that may be of version 0.1, which had no base class: given the defaults of `Recipe`."""
    if issubclass(recipe, Recipe):
        return recipe
    note_outdated(
        f"{recipe.__module__}.{recipe.__name__} has no base class: write class {recipe.__name__}(runner.recipe.Recipe)."
    )
    members: dict[str, Any] = {"__module__": recipe.__module__, "__qualname__": recipe.__qualname__}
    members["__doc__"] = recipe.__doc__
    if hasattr(recipe, "tallies_first"):
        note_outdated("tallies_first is called needs_step_statistics now.")
        members["needs_step_statistics"] = property(lambda self: self.tallies_first)
    return type(recipe.__name__, (recipe, Recipe), members)
