"""`relay check`: test that a recipe keeps the contract of runner/recipe.py, on a few examples.

It finds mistakes that otherwise show after days: a loss that depends on padding, a weight that does not match the loss,
a parameter that never learns, an evaluation that changes the random numbers of the training.
"""

import dataclasses
import functools
import json
import math
import pickle  # noqa: TID251 (what worker processes are sent; nothing is stored)
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.commands import split_flags
from runner.config import Config, Setting, parse, parse_into, settings_of, write_yaml
from runner.errors import DataError, RelayError
from runner.parts.setting_types import AtLeast1
from runner.recipe import Batch, Cursor, Data, Example, Loss, Recipe, Row, Stream

if TYPE_CHECKING:
    from torch import Tensor, nn

    from runner.hardware import Hardware

# Sums of the same numbers in another order or another matrix shape differ by this much in fp32, relative.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Settings of the check. The flags of the recipe and of a training may follow."""

    examples: AtLeast1 = 6
    """Number of training examples to test with, from the smallest to the largest of 32."""


class Broken(Exception):
    """The recipe does not keep this promise; the message says how."""


class Skipped(Exception):
    """The promise does not apply to this recipe; the message says why."""


def main(arguments: list[str]) -> int:
    """Print a verdict for each promise; returns 1 where one is broken."""
    own, others = split_flags(CheckSettings, arguments)
    if not others or "--help" in own or "-h" in own:
        print("usage: relay check --recipe NAME [--preset P] [--examples N] [--flag value ...]\n")
        print(__doc__)
        print("\n".join(f"  {name:14} {check.__doc__}" for name, check in CHECKS.items()))
        return 0
    settings: CheckSettings = parse_into(CheckSettings, own, "relay check", __doc__)
    config = parse(others, "relay check")
    with tempfile.TemporaryDirectory(prefix="relay-check-") as folder:
        verdicts = check(Subject(config, Path(folder), settings.examples))
    print(f"relay check: {config.recipe_name}, preset {config.preset or 'default'}")
    for name, verdict, detail in verdicts:
        print(f"  {verdict:7} {name:14} {detail}")
    broken = [name for name, verdict, _ in verdicts if verdict == "BROKEN"]
    kept = sum(verdict == "kept" for _, verdict, _ in verdicts)
    print(f"{kept} of {len(verdicts)} promises kept" + (f"; broken: {', '.join(broken)}." if broken else "."))
    return 1 if broken else 0


def check(subject: "Subject") -> list[tuple[str, str, str]]:
    """(name, "kept", "BROKEN" or "-", what was measured) for every promise.

    Raises RelayError for mistakes of the user, such as missing data or a wrong path.
    """
    _ = subject.train_data
    verdicts = []
    for name, promise in CHECKS.items():
        try:
            verdicts.append((name, "kept", promise(subject)))
        except Skipped as reason:
            verdicts.append((name, "-", str(reason)))
        except Broken as broken:
            verdicts.append((name, "BROKEN", str(broken)))
        except RelayError as error:
            verdicts.append((name, "BROKEN", str(error).splitlines()[0]))
        except Exception as error:
            verdicts.append((name, "BROKEN", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    return verdicts


@dataclasses.dataclass
class Subject:
    """The recipe under test, with its examples, batches and models."""

    config: Config
    folder: Path
    num_examples: int

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe, prepared in a folder of its own as a training prepares it."""
        recipe = self.config.recipe
        return recipe.prepare(self.folder)

    @functools.cached_property
    def hardware(self) -> "Hardware":
        """One process in fp32, where small differences show."""
        from runner.hardware import open_hardware
        from runner.settings import RunSettings

        return open_hardware(RunSettings(mixed_precision="no"))

    @functools.cached_property
    def train_data(self) -> Data:
        """The training split."""
        return self.recipe.data("train")

    @functools.cached_property
    def examples(self) -> list[Example]:
        """A few training examples, from small to large where their tensors differ in size."""
        from runner.fetching import is_stream, take
        from runner.hardware import seed_everything
        from runner.memory import size

        seed_everything(0)
        data = self.train_data
        if is_stream(data):
            reader = data.read(0, 1, 0, None)
            some = [next(reader)[0] for _ in range(32)]
        else:
            if not len(data):
                raise DataError("The training split is empty: give the recipe other data.")
            places = random.Random(0).sample(range(len(data)), min(32, len(data)))
            some = take(data, sorted(places))
        some.sort(key=lambda example: size(self.recipe.collate([example])))
        count = min(self.num_examples, len(some))
        return [some[round(place * (len(some) - 1) / max(1, count - 1))] for place in range(count)]

    @functools.cached_property
    def validation_examples(self) -> list[Example]:
        """A few validation examples, spread over the split; training examples where the split is empty."""
        from runner.fetching import indexed_split, take

        split = indexed_split(self.recipe, "validation")
        count = min(self.num_examples, len(split))
        places = [round(place * (len(split) - 1) / max(1, count - 1)) for place in range(count)]
        return take(split, places) if count else self.examples

    def model(self, seed: int = 0) -> "nn.Module":
        """A fresh model on the device."""
        from runner.hardware import seed_everything

        seed_everything(seed)
        return self.recipe.model().to(self.hardware.device)

    @functools.cached_property
    def eval_model(self) -> "nn.Module":
        """A model in eval mode, which no promise may change."""
        return self.model().eval()

    def batch(self, examples: Sequence[Example] | None = None) -> Batch:
        """A micro-batch on the device."""
        from runner.evaluation import on_device
        from runner.hardware import seed_everything

        seed_everything(1)
        return on_device(
            self.recipe.collate(list(self.examples if examples is None else examples)), self.hardware.device
        )

    def loss(self, model: "nn.Module", batch: Batch, seed: int = 2) -> Loss:
        """The recipe's loss of a micro-batch, with seeded random numbers."""
        from runner.hardware import seed_everything

        seed_everything(seed)
        return Loss.of(self.recipe.loss(model, batch))

    def loss_without_dropout(self, batch: Batch) -> float:
        """The summed loss in eval mode."""
        import torch

        with torch.no_grad():
            return float(self.loss(self.eval_model, batch).sum)

    def needs_independent_examples(self) -> None:
        """Raises Skipped where the loss compares examples with each other."""
        if self.recipe.couples_examples:
            raise Skipped("the recipe says that its loss couples the examples of a micro-batch")
        if len(self.examples) < 2:
            raise Skipped("there is only one example")


def settings(subject: Subject) -> str:
    """config.yaml gives every setting back, and presets name only settings that exist"""
    file = subject.folder / "relay-check.yaml"
    write_yaml(subject.config, file)
    owner = type(subject.config.recipe)
    try:
        again = parse(["--config", str(file)])
        presets = owner.presets()
        for preset in presets:
            parse(["--recipe", subject.config.recipe_name, "--preset", preset])
    finally:
        file.unlink()
    before, after = subject.config.flat(), again.flat()
    changed = [name for name in before if before[name] != after.get(name)]
    if changed:
        name = changed[0]
        raise Broken(f"{name} is {before[name]!r}, and {after.get(name)!r} after config.yaml was read again")
    return f"{len(before)} settings, {len(presets)} presets"


def help_texts(subject: Subject) -> str:
    """every setting of the recipe has a help text"""
    from tyro._docstrings import get_field_docstring

    silent = []
    owner = type(subject.config.recipe)
    for setting in settings_of(owner):
        if not get_field_docstring(type(_holder(subject.config.recipe, setting)), setting.attributes[-1], ()):
            silent.append(setting.flag)
    if silent:
        raise Broken(f"no docstring stands under {', '.join(silent[:5])}")
    return "a line for each"


def _holder(recipe: Recipe, setting: Setting) -> object:
    """The dataclass that has the setting as a field."""
    for attribute in setting.attributes[:-1]:
        recipe = getattr(recipe, attribute)
    return recipe


def data(subject: Subject) -> str:
    """the same seed gives the same example each time; a stream continues from its cursor"""
    from runner.fetching import indexed_split, is_stream
    from runner.hardware import seed_everything

    train_data = subject.train_data
    if is_stream(train_data):
        whole = _read(train_data, None, 12)
        cursor = json.loads(json.dumps(whole[4][1]))
        rest = _read(train_data, cursor, 7)
        if [at for _, at in whole[5:]] != [at for _, at in rest]:
            raise Broken(f"read again from cursor {cursor}, the stream continues with another cursor than before")
        if not all(_same(a, b) for (a, _), (b, _) in zip(whole[5:], rest, strict=True)):
            raise Broken(f"read again from cursor {cursor}, the stream continues with other examples")
        return "a stream; it continues at its cursor"
    once = []
    for _ in range(2):
        seed_everything(5)
        once.append(train_data[len(train_data) - 1])
    if not _same(*once):
        raise Broken("the last example differs the second time, with the same seed")
    validation = indexed_split(subject.recipe, "validation")
    return f"{len(train_data):,} training and {len(validation):,} validation examples"


def _read(stream: Stream, cursor: Cursor | None, count: int) -> list[tuple[Example, Cursor]]:
    from runner.hardware import seed_everything

    seed_everything(5)
    reader = stream.read(0, 2, 0, cursor)
    return [next(reader) for _ in range(count)]


def _same(left: Any, right: Any) -> bool:
    """Whether two examples are equal. An example may be of any type."""
    if type(left) is not type(right):
        return False
    if dataclasses.is_dataclass(left):
        return all(_same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    # Of tensors and arrays: dtype, shape and bytes, so that a NaN is itself.
    if hasattr(left, "dtype"):
        left, right = np.asarray(left), np.asarray(right)
        return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    return bool(left == right)


def workers(subject: Subject) -> str:
    """worker processes can receive recipe and data (--num_workers)"""
    try:
        size = len(pickle.dumps((subject.recipe, subject.train_data)))
    except Exception as error:
        raise Broken(f"they cannot be pickled: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    return f"{size:,} bytes"


def collate(subject: Subject) -> str:
    """the first axis of every tensor counts the examples; the batch has a weight"""
    batch = subject.batch()
    # The runner never splits a micro-batch whose examples are coupled.
    for name, tensor in () if subject.recipe.couples_examples else batch.tensors.items():
        if not tensor.ndim or len(tensor) != len(subject.examples):
            raise Broken(f"{name} has shape {tuple(tensor.shape)}; its first axis should count {len(subject.examples)}")
    if not batch.weight > 0:
        raise Broken(f"the weight of {len(subject.examples)} examples is {batch.weight}")
    return f"weight {batch.weight:g} for {len(subject.examples)} examples"


def additive(subject: Subject) -> str:
    """the loss of a micro-batch is the sum over its examples, whatever the padding"""
    subject.needs_independent_examples()
    whole, single = subject.batch(), [subject.batch([example]) for example in subject.examples]
    _compare("the weight", whole.weight, sum(batch.weight for batch in single), "its examples one by one")
    together = subject.loss_without_dropout(whole)
    alone = sum(subject.loss_without_dropout(batch) for batch in single)
    _compare("the loss", together, alone, "its examples one by one")
    return f"{together:.6g} together, {alone:.6g} one by one"


def order(subject: Subject) -> str:
    """the loss does not depend on the order of the examples"""
    forward = subject.loss_without_dropout(subject.batch())
    backward = subject.loss_without_dropout(subject.batch(subject.examples[::-1]))
    _compare("the loss", forward, backward, "the same examples in reverse")
    return f"{forward:.6g} either way"


def divisible(subject: Subject) -> str:
    """a micro-batch that does not fit into memory can be split in two"""
    from runner.memory import split

    subject.needs_independent_examples()
    whole = subject.loss_without_dropout(subject.batch())
    parts = [subject.loss_without_dropout(part) for part, _ in split(subject.batch(), 2)]
    _compare("the loss", whole, sum(parts), "its two halves")
    return f"{whole:.6g} at once, {sum(parts):.6g} in halves"


def _compare(what: str, whole: float, other: float, of_what: str) -> None:
    if not math.isclose(whole, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise Broken(f"{what} of the micro-batch is {whole:.7g}, that of {of_what} {other:.7g}")


def forward(subject: Subject) -> str:
    """the loss calls the model once, which data-parallel training requires"""
    calls: list[int] = []
    model = subject.model()
    model.register_forward_hook(lambda *_: calls.append(1))
    subject.loss(model.train(), subject.batch())
    if len(calls) != 1:
        raise Broken(f"`loss` called the model {len(calls)} times; it should call model(...) once")
    return "once"


def gradients(subject: Subject) -> str:
    """the loss is finite, and every trained parameter gets a finite gradient"""
    model = subject.model().train()
    batch = subject.batch()
    loss = subject.loss(model, batch)
    if not loss.sum.isfinite():
        raise Broken(f"the loss of fresh weights is {float(loss.sum)}")
    _objective(loss, batch).backward()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = {name: parameter.grad for name, parameter in trained if parameter.grad is not None}
    without = [name for name, _ in trained if name not in gradients]
    if without:
        raise Broken(f"{len(without)} of {len(trained)} get none, such as {without[0]}: DDP would wait for it for ever")
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    if bad:
        raise Broken(f"the gradient of {bad[0]} is not finite")
    if not any(gradient.any() for gradient in gradients.values()):
        raise Broken("every gradient is zero")
    return f"{len(trained)} parameters"


def _objective(loss: Loss, batch: Batch) -> "Tensor":
    """What a step of this micro-batch alone minimises."""
    return loss.sum / max(batch.weight, 1) + (loss.auxiliary if loss.auxiliary is not None else 0)


def repeatable(subject: Subject) -> str:
    """the same seed gives exactly the same training loss, with dropout"""
    model = subject.model().train()
    first, second = (float(subject.loss(model, subject.batch()).sum.detach()) for _ in range(2))
    if first != second:
        raise Broken(f"the same step gave {first!r}, then {second!r}: something uses a random generator of its own")
    return f"{first:.9g}"


def learns(subject: Subject) -> str:
    """ten updates on one micro-batch lower its loss"""
    from runner.optim import optimizer as optimizer_of

    model = subject.model().train()
    optimizer = optimizer_of(model, subject.config.run, subject.hardware.device, subject.recipe.learning_rate_scale)
    losses = []
    for _ in range(11):
        batch = subject.batch()
        objective = _objective(subject.loss(model, batch), batch)
        losses.append(float(objective.detach()))
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    if not losses[-1] < losses[0]:
        raise Broken(
            f"it went from {losses[0]:.4g} to {losses[-1]:.4g} at a learning rate of {optimizer.defaults['lr']}"
        )
    return f"from {losses[0]:.4g} to {losses[-1]:.4g}"


def weights(subject: Subject) -> str:
    """a seed decides the fresh weights; they can be saved, loaded and sharded"""
    from runner.checkpoints.tensors import load_model, model_tensors

    scalars = [name for name, value in subject.model(0).named_parameters() if not value.dim()]
    if scalars:
        raise Broken(f"{scalars[0]} is a scalar, which FSDP2 does not shard: give it one element, shape (1,)")
    first, second, other = (model_tensors(subject.model(seed)) for seed in (0, 0, 1))
    differing = [name for name in first if not first[name].equal(second[name])]
    if differing:
        raise Broken(f"{differing[0]} differs between two models of one seed")
    if all(first[name].equal(other[name]) for name in first):
        raise Broken("two seeds give the same weights: `model` seeds a generator itself")
    # Other weights than the loaded model starts with, so that a tensor that is not saved is noticed.
    trained = subject.model(2).eval()
    loaded = subject.model(3).eval()
    load_model(loaded, model_tensors(trained), "the model that was saved")
    import torch

    with torch.no_grad():
        before, after = (float(subject.loss(model, subject.batch()).sum) for model in (trained, loaded))
    if before != after:
        raise Broken(f"the loss is {before!r} before saving and {after!r} after loading")
    return f"{len(first)} tensors, {sum(tensor.numel() for tensor in first.values()):,} numbers"


def predict(subject: Subject) -> str:
    """`predict` gives one row per example, and JSON can hold it"""
    import torch

    with torch.no_grad():
        rows = subject.recipe.predict(subject.eval_model, subject.batch(subject.validation_examples))
    if len(rows) != len(subject.validation_examples):
        raise Broken(f"{len(subject.validation_examples)} examples, {len(rows)} rows")
    for row in rows:
        json.dumps(row)
    return f"{len(rows)} rows, the first has {len(json.dumps(rows[0])):,} characters"


def score(subject: Subject) -> str:
    """`score` gives numbers, the recipe's best_metric among them"""
    scores = _evaluate(subject, subject.eval_model)[0]
    for name, value in scores.items():
        if not isinstance(value, float):
            raise Broken(f"{name} is a {type(value).__name__}")
    best = subject.config.run.metric_for_best_model or subject.recipe.best_metric
    if best not in scores:
        raise Broken(f"best_metric is {best!r}, but there are only {', '.join(scores)}")
    return f"{len(scores)} metrics; {best} chooses the best"


def evaluation(subject: Subject) -> str:
    """an evaluation can be repeated, and changes no weight, buffer or random number"""
    from runner.hardware import seed_everything

    model = subject.model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = subject.batch()
    expected = float(subject.loss(model, batch).sum.detach())
    restored = _restore(model, before)
    results = []
    for seed in (11, 12):
        seed_everything(seed)
        random.random()
        results.append(_evaluate(subject, model))
    changed = [name for name, value in model.state_dict().items() if not value.equal(before[name])]
    if changed:
        raise Broken(f"it changed {changed[0]}")
    if json.dumps(results[0]) != json.dumps(results[1]):
        raise Broken("two evaluations of the same weights differ")
    if float(subject.loss(restored, batch).sum.detach()) != expected:
        raise Broken("the next training step has another loss than without the evaluation")
    return f"twice the same result, {len(results[0][1])} rows"


def _restore(model: "nn.Module", before: Mapping[str, "Tensor"]) -> "nn.Module":
    """Undo what a forward pass in training mode does to buffers (running means)."""
    model.load_state_dict(before)
    return model


def _evaluate(subject: Subject, model: "nn.Module") -> tuple[dict[str, float], list[Row]]:
    from runner.evaluation import evaluate_rows

    examples = subject.validation_examples
    found = evaluate_rows(subject.recipe, model, examples, subject.hardware, max(1, len(examples) // 2))
    assert found is not None
    return found


CHECKS: dict[str, Callable[[Subject], str]] = {
    "settings": settings,
    "help": help_texts,
    "data": data,
    "workers": workers,
    "collate": collate,
    "additive": additive,
    "order": order,
    "divisible": divisible,
    "forward": forward,
    "gradients": gradients,
    "repeatable": repeatable,
    "learns": learns,
    "weights": weights,
    "predict": predict,
    "score": score,
    "evaluation": evaluation,
}
