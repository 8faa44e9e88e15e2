"""What a run knows beside weights and optimiser: the small state of a checkpoint."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from runner.lanes import Lanes
from runner.parts.fingerprints import Fingerprint


@dataclasses.dataclass
class State:
    """What a run knows beside weights and optimiser; all of it is the same on every process."""

    step: int = 0
    """Finished updates."""
    batch_size: int = 0
    micro_batch_size: int = 0
    seed: int = 0
    num_examples: int = 0
    """Examples in the training split: the order depends on it."""
    best_score: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    """The evaluation loss at best_step; it decides between equal scores."""
    evaluations_without_improvement: int = 0
    patience_score: float | None = None
    """The score that last renewed the patience of early stopping."""
    trackers: dict[str, str] = dataclasses.field(default_factory=dict)
    """Run ids of the trackers, so that a resumed run continues there."""
    scaler: dict[str, float] | None = None
    """fp16's loss scale."""
    excluded: list[int | str] = dataclasses.field(default_factory=list)
    """Ids of examples that are left out from now on."""
    cursors: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Where each lane of a stream stands, by the lane's number."""
    examples_seen: int = 0
    """Examples in all steps so far."""
    evaluation_due: bool = False
    """Whether the evaluation of this step is still to be done: a signal broke it off."""
    mean_gradient_norm: float | None = None
    """Running mean, against which a spike is measured."""
    largest_lane: int = 0
    """Numbers in the largest micro-batch so far."""
    parts: int = 1
    """Pieces that each lane is computed in, because it does not fit into memory."""
    data: dict[str, Fingerprint] = dataclasses.field(default_factory=dict)
    """What the data files of each split held; "validation" only where its files are not those of "train"."""
    data_changes: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    """(step, what changed) for each time that the run went on with other data."""
    layout: str | None = None
    """A hash of the names, dtypes and shapes of the checkpoint's tensors."""
    written_by: dict[str, Any] = dataclasses.field(default_factory=dict)
    """For people: versions, processes, threads."""

    def record(self, lanes: Lanes) -> None:
        """Note the order that the run trains in: what `Lanes` is made of, which a resumed run must have too."""
        self.seed, self.num_examples = lanes.seed, lanes.num_examples
        self.batch_size, self.micro_batch_size = lanes.batch_size, lanes.micro_batch_size
        self.excluded = sorted(lanes.excluded, key=str)

    def forget_best(self, reason: str) -> str | None:
        """Begin the search for the best score again; returns a line about the score that is forgotten."""
        score, step = self.best_score, self.best_step
        self.best_score = self.best_step = self.best_loss = self.patience_score = None
        self.evaluations_without_improvement = 0
        return None if score is None else f"the best score, {score:.4f} at step {step}, is forgotten: it was {reason}."


LEAST = {
    "num_examples": 0,
    "examples_seen": 0,
    "evaluations_without_improvement": 0,
    "best_step": 0,
    "mean_gradient_norm": 0,
    "largest_lane": 0,
    "parts": 1,
}
"""The smallest value of numbers that nothing else decides."""


def wrong_in_state(content: object) -> str | None:
    """What is wrong with the content of a state.json, in words; None where it is right."""
    if not isinstance(content, dict):
        return "holds no state"
    hints = get_type_hints(State)
    for name in ("step", "batch_size", "micro_batch_size", "seed", "num_examples"):
        if name not in content:
            return f"has no {name}"
    for name, value in content.items():
        if name in hints and not _fits(value, hints[name]):
            return f"has a {name} of {str(value)[:40]!r}"
    for name, least in LEAST.items():
        if (content.get(name) or 0) < least and name in content:
            return f"has a {name} of {content[name]}"
    if any(len(entry) != 2 for entries in content.get("data", {}).values() for entry in entries):
        return "has data files without a name or a hash"
    if content["step"] < 0 or not 1 <= content["micro_batch_size"] <= content["batch_size"]:
        return f"has step {content['step']}, batch_size {content['batch_size']} and micro_batch_size " + (
            str(content["micro_batch_size"])
        )
    return _wrong_cursors(content)


def _wrong_cursors(content: dict[str, Any]) -> str | None:
    """What is wrong with the cursors: each lane of a stream has one after the first step, and nothing else has any."""
    cursors: dict[str, Any] = content.get("cursors", {})
    if content["num_examples"] > 0 or content["step"] == 0:
        return "has cursors, which only a stream has after its first step" if cursors else None
    num_lanes = content["batch_size"] // content["micro_batch_size"]
    if len(cursors) != num_lanes:
        return f"has cursors of {len(cursors)} lanes, not of {num_lanes}"
    missing = next((lane for lane in range(num_lanes) if cursors.get(str(lane)) is None), None)
    return None if missing is None else f"has no cursor of lane {missing}"


def _fits(value: object, hint: object) -> bool:
    """Whether a JSON value is of an annotated type, with all that it holds."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if hint is Any:
        return True
    if origin is tuple:
        # JSON has lists alone.
        parts = get_args(hint)
        return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is list:
        return isinstance(value, list) and all(_fits(each, get_args(hint)[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, get_args(hint)[1]) for each in value.values())
    if hint is type(None):
        return value is None
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint)  # type: ignore[arg-type]


def read_state(folder: Path) -> State:
    """The small state of a checkpoint."""
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    content.pop("schema_version")
    names = {field.name for field in dataclasses.fields(State)}
    return State(**{name: value for name, value in content.items() if name in names})
