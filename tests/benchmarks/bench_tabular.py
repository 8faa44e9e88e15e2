"""A step and a prediction beside the `tabstar` package, and the memory of a wide table, at e5-small's dimensions.

make bench BENCH=tabular, which installs the package into a folder of its own. The programs take turns, a step or a
prediction of each in a round; what counts is the ratio within a round. The first round of steps warms caches.

The package asks for transformers below 5, and for strings as objects in pandas; it runs with ours once it is given the
second. Weights are random, which costs a step the same. Both adapt with LoRA, the lower six of twelve layers frozen,
on the same rows of the package's own imdb.csv.
"""

import importlib.resources
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from recipes.tabular.presets import presets
from recipes.tabular.recipe import Recipe
from recipes.tabular.settings import DataSettings, ModelSettings
from tests.benchmarks import page

ROWS, STEPS, PREDICTED, PREDICTIONS = 16, 6, 256, 3


def e5_folder(folder: Path, texts: list[str]) -> Path:
    """A BERT of e5-small's dimensions with random weights, and a vocabulary for the texts."""
    from transformers import BertConfig, BertModel

    from recipes.tabular.text import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts, 8192)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536
    )
    BertModel(config).save_pretrained(folder)
    return folder


def recipe_of(preset: str, encoder: Path, folder: Path, **data: Any) -> Recipe:
    """The recipe of a preset in stage finetune."""
    groups: dict[str, dict[str, Any]] = {"model": {}, "data": {}}
    for name, value in presets()[preset].items():
        group, dot, setting = name.partition(".")
        if dot:
            groups[group][setting] = value
    folder.mkdir()
    return Recipe(
        stage="finetune",
        data_settings=DataSettings(**{**groups["data"], **data}),
        model_settings=ModelSettings(text_encoder=str(encoder), **groups["model"]),
    ).prepare(folder)


def update(model: Any, optimizer: Any, loss: Any) -> None:
    """What follows the loss of a step, on both sides."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore")
def test_a_step_and_a_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tabstar", reason="make bench BENCH=tabular installs it")
    file = Path(str(importlib.resources.files("tabstar"))) / "resources" / "imdb.csv"
    target = "Genre_is_Drama"
    rows = pd.read_csv(file)
    encoder = e5_folder(tmp_path / "bert", [str(cell) for cell in rows.to_numpy().ravel()])
    monkeypatch.setenv("E5_SMALL_LOCAL_PATH", str(encoder))
    from peft import LoraConfig, get_peft_model
    from tabstar.arch.arch import TabStarConfig, TabStarModel  # type: ignore
    from tabstar.tabstar_verbalizer import TabSTARVerbalizer  # type: ignore
    from tabstar.training.dataloader import get_dataloader  # type: ignore
    from tabstar.training.metrics import calculate_loss  # type: ignore

    learned, held = rows.head(ROWS * (STEPS + 1)), rows.tail(400).head(PREDICTED)
    learned.to_csv(tmp_path / "rows.csv", index=False)
    with pd.option_context("future.infer_string", False):
        frame = pd.read_csv(tmp_path / "rows.csv")
        held_frame = held.astype({name: object for name in held.columns if pd.api.types.is_string_dtype(held[name])})
        verbalizer = TabSTARVerbalizer(is_cls=True)
        verbalizer.fit(frame.drop(columns=target), frame[target])
        batches = list(get_dataloader(verbalizer.transform(frame.drop(columns=target), frame[target]), False, ROWS))
    torch.manual_seed(0)
    base = TabStarModel(TabStarConfig())

    # The same strings and numbers, and the same weights: the same loss.
    plain = recipe_of("tabstar-v1.0", encoder, tmp_path / "v1.0", train=str(tmp_path / "rows.csv"), target=target,
                      validation_fraction=0.0)  # fmt: skip
    torch.manual_seed(0)
    ours = plain.model().eval()
    plain.inherit(ours, base.state_dict())
    data = batches[0]
    strings, places = np.unique(data.x_txt, return_inverse=True)
    encoded = [np.array(ids) for ids in plain.tokenizer(strings.tolist(), truncation=True, max_length=512)["input_ids"]]
    order = np.argsort([len(ids) for ids in encoded], kind="stable")
    tokens = torch.zeros(len(order), len(encoded[order[-1]]), dtype=torch.long)
    for row, place in enumerate(order):
        tokens[row, : len(encoded[place])] = torch.from_numpy(encoded[place])
    numbers = torch.zeros(*data.x_num.shape, 6)
    numbers[..., 0] = torch.from_numpy(data.x_num)
    cells = torch.from_numpy(np.argsort(order)[places.reshape(data.x_txt.shape)])
    lengths = torch.tensor([len(encoded[place]) for place in order])
    none = torch.zeros(0, dtype=torch.long)
    with torch.no_grad():
        theirs = base.eval()(x_txt=data.x_txt, x_num=data.x_num, d_output=2)
        found, _ = ours(tokens, lengths, cells, numbers, torch.ones(cells.shape, dtype=torch.bool), 2, none, none,
                        cells, torch.zeros(len(cells), 2, 32))  # fmt: skip
        losses = [float(calculate_loss(scores, data.y, 2)) for scores in (theirs, found)]
    print(f"\nthe same weights and rows: loss {losses[0]:.6f} in tabstar, {losses[1]:.6f} here")
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    names = ["query", "key", "value", "out_proj", "linear1", "linear2", "cls_head.layers.0", "reg_head.layers.0"]
    frozen = tuple(f"text_encoder.encoder.layer.{layer}." for layer in range(6))
    excluded = [name for name, _ in base.named_modules() if name.startswith(frozen)]
    adapted = get_peft_model(
        base, LoraConfig(r=32, lora_alpha=64, target_modules=names, exclude_modules=excluded, lora_dropout=0.1)
    ).train()
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-3)
    steps: dict[str, Callable[[int], Any]] = {
        "the package": lambda step: update(
            adapted, optimizer,
            calculate_loss(
                adapted.train()(x_txt=batches[step].x_txt, x_num=batches[step].x_num, d_output=2), batches[step].y, 2
            ),
        )
    }  # fmt: skip

    def predict(_: int) -> None:
        with torch.no_grad(), pd.option_context("future.infer_string", False):
            for batch in get_dataloader(verbalizer.transform(held_frame.drop(columns=target), None), False, 128):
                adapted.eval()(x_txt=batch.x_txt, x_num=batch.x_num, d_output=2)

    predictions: dict[str, Callable[[int], Any]] = {"the package": predict}
    for preset in ("tabstar-v1.0", "tabstar"):
        own = {"train": str(tmp_path / "rows.csv"), "target": target, "validation_fraction": 0.0}
        recipe = plain if preset == "tabstar-v1.0" else recipe_of(preset, encoder, tmp_path / preset, **own)
        step, prediction = work_of(recipe, held)
        # The frozen layers' output of a text is kept from its first step on.
        steps |= {f"{preset}, first epoch": step, f"{preset}, later": step}
        predictions[preset] = prediction
    taken = {name: seconds[1:] for name, seconds in rounds_of(steps, STEPS + 1).items()}
    predicted = rounds_of(predictions, PREDICTIONS)
    table = [*lines(f"step of {ROWS} rows", taken), *lines(f"{PREDICTED} rows predicted", predicted)]
    rounds = f"medians of {STEPS} steps and of {PREDICTIONS} predictions in interleaved rounds"
    page.record("tabular", ("work", "program", "CPU s", "times as fast (least - most)"), table, rounds)
    assert statistics.median(taken["the package"]) > statistics.median(taken["tabstar, later"])


def work_of(recipe: Recipe, held: pd.DataFrame) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """A training step of the recipe by its number, and a prediction of rows."""
    model = recipe.model()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-3)
    train = recipe.data("train")

    def step(number: int) -> None:
        batch = recipe.collate(train.__getitems__(list(range(number * ROWS, number * ROWS + ROWS))))
        update(model.train(), optimizer, recipe.loss(model, batch).sum / batch.weight)

    def predict(_: int) -> None:
        # Otherwise the second round would find the texts of the first.
        model.texts._vectors.clear()
        recipe.predict_frame(model.eval(), recipe.tables[0], held)

    return step, predict


def rounds_of(works: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each piece of work in each round."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name, work in works.items():
            started = time.process_time()
            work(number)
            found[name].append(time.process_time() - started)
    return found


def lines(work: str, found: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """The rows of a table: what was done, by whom, its CPU seconds, and how many times as fast as the package."""
    rows = []
    for name, taken in found.items():
        ratios = [one / other for one, other in zip(found["the package"], taken, strict=True)]
        times = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        rows.append((work, name, f"{statistics.median(taken):.2f}", times))
    return rows


MEMORY = """
import sys, time
import numpy as np, pandas as pd, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from runner.tracking import peak_bytes
from benchmarks.bench_tabular import e5_folder, recipe_of, update
folder, length = Path({folder!r}), {length}
words = [f"{{a}}{{b}}{{c}}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]
random = np.random.default_rng(0)
texts = [[" ".join(random.choice(words, length)) for _ in range(200)] for _ in range(16)]
rows = pd.DataFrame(texts, columns=[f"c{{place}}" for place in range(200)]).assign(target=["a", "b"] * 8)
rows.to_csv(folder / "rows.csv", index=False)
encoder = e5_folder(folder / "bert", words * 3)
recipe = recipe_of("tabstar", encoder, folder / "assets", train=str(folder / "rows.csv"), target="target",
                   validation_fraction=0.0, max_text_tokens=length)
model = recipe.model().train()
optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-3)
batch = recipe.collate(recipe.data("train").__getitems__(list(range(16))))
print(f"{{batch.tokens:,}} tokens in {{len(batch.extra['lengths']):,}} texts", flush=True)
loss = recipe.loss(model, batch)
update(model, optimizer, loss.sum / batch.weight)
print(f"peak {{peak_bytes() / 1e9:.2f}} GB, {{time.process_time():.0f}} CPU s")
"""


@pytest.mark.parametrize("length", [24])
def test_memory_of_200_columns_of_long_text(tmp_path: Path, length: int) -> None:
    script = MEMORY.format(tests=str(Path(__file__).resolve().parents[1]), folder=str(tmp_path), length=length)
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    print(f"\n200 columns x 16 rows, one training step: {said}")
    assert float(said.split("peak ")[1].split()[0]) < 2.5
