"""A step and a prediction beside the `tabstar` package, and the memory of a wide table, at e5-small's dimensions.

pip install --no-deps tabstar==1.2.2 skrub; pip install matplotlib; then make bench, or:
OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/bench_tabular.py -s -o 'python_files=bench_*.py'

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

ROWS, STEPS, PREDICTED, ROUNDS = 16, 2, 256, 3


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


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of a piece of work."""
    started = time.process_time()
    work()
    return time.process_time() - started


@pytest.mark.filterwarnings("ignore")
def test_a_step_and_a_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tabstar", reason="pip install --no-deps tabstar==1.2.2 skrub")
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

    learned, held = rows[: ROWS * STEPS], rows[400 : 400 + PREDICTED]
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
    taken: dict[str, list[float]] = {"the package": []}
    for batch in batches:
        taken["the package"].append(
            seconds(lambda b=batch: update(adapted, optimizer, calculate_loss(
                adapted(x_txt=b.x_txt, x_num=b.x_num, d_output=2), b.y, 2)))
        )  # fmt: skip

    def predict() -> None:
        with torch.no_grad(), pd.option_context("future.infer_string", False):
            for batch in get_dataloader(verbalizer.transform(held_frame.drop(columns=target), None), False, 128):
                adapted.eval()(x_txt=batch.x_txt, x_num=batch.x_num, d_output=2)

    predictions: dict[str, Callable[[], Any]] = {"the package": predict}
    for preset in ("tabstar-v1.0", "tabstar"):
        own = {"train": str(tmp_path / "rows.csv"), "target": target, "validation_fraction": 0.0}
        recipe = plain if preset == "tabstar-v1.0" else recipe_of(preset, encoder, tmp_path / preset, **own)
        model = recipe.model().train()
        optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-3)
        train = recipe.data("train")
        for epoch in ("first epoch", "later"):
            for step in range(STEPS):
                places = list(range(step * ROWS, step * ROWS + ROWS))

                def one(places: list[int] = places) -> None:
                    batch = recipe.collate(train.__getitems__(places))  # noqa: B023
                    update(model, optimizer, recipe.loss(model, batch).sum / batch.weight)  # noqa: B023

                taken.setdefault(f"{preset}, {epoch}", []).append(seconds(one))

        def predict_ours(recipe: Recipe = recipe, model: Any = model) -> None:
            # Otherwise the second round would find the texts of the first.
            model.texts._vectors.clear()
            recipe.predict_frame(model.eval(), recipe.tables[0], held)

        predictions[preset] = predict_ours
    predicted: dict[str, list[float]] = {name: [] for name in predictions}
    for _ in range(ROUNDS):
        for name, work in predictions.items():
            predicted[name].append(seconds(work))
    table = []
    for work, found in ((f"step of {ROWS} rows", taken), (f"{PREDICTED} rows predicted", predicted)):
        package = statistics.median(found["the package"])
        table += [(work, name, f"{statistics.median(each):.2f}", f"{package / statistics.median(each):.2f}")
                 for name, each in found.items()]  # fmt: skip
    rounds = f"medians of {STEPS} steps, or of {ROUNDS} predictions"
    page.record("tabular", ("work", "program", "CPU s", "times as fast"), table, rounds)
    assert statistics.median(taken["the package"]) > statistics.median(taken["tabstar, later"])


MEMORY = """
import resource, sys
import numpy as np, pandas as pd, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
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
used = resource.getrusage(resource.RUSAGE_SELF)
print(f"peak {{used.ru_maxrss / 1e6:.2f}} GB, {{used.ru_utime + used.ru_stime:.0f}} CPU s")
"""


@pytest.mark.parametrize("length", [64])
def test_memory_of_200_columns_of_long_text(tmp_path: Path, length: int) -> None:
    script = MEMORY.format(tests=str(Path(__file__).resolve().parents[1]), folder=str(tmp_path), length=length)
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    print(f"\n200 columns x 16 rows, one training step: {said}")
    assert float(said.split("peak ")[1].split()[0]) < 3.0
