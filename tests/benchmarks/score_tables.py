"""The tables of a corpus: Relay from nothing and with a sentence encoder, beside simple models on the same vectors.

OMP_NUM_THREADS=1 python -m tests.benchmarks.score_tables --seeds 0 1 2 --text_encoder models/all-MiniLM-L6-v2 \
    --output runs/tables

A seed changes which training rows are validation rows, and what is random in a fit. The test rows are those of the
corpus. Each result is a line of results.jsonl in the output folder, and is not measured again. table.md is written from
these lines. The simple models read the encoder's vectors of the text columns, numbers and one-hot categories. Their
penalty is chosen on the validation rows, and they are then fitted to all training rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from recipes.tabular.settings import DataSettings, ModelSettings
from tests.launching import REPOSITORY

if TYPE_CHECKING:
    from recipes.tabular.table import Cells, Table

CORPUS = REPOSITORY.parent / "shared" / "data" / "tabular"
PENALTIES = np.logspace(-2, 3, 11)
MODELS = {
    "nothing": "Relay from nothing",
    "encoder": "Relay with encoder",
    "fit": "from nothing, not trained",
    "fit_encoder": "with encoder, not trained",
    "linear": "vectors + linear",
    "boosting": "vectors + boosting",
}
TIMED = ("nothing", "encoder", "fit", "fit_encoder")
DIMENSIONS = 30
"""Boosting sees so many principal components of a column's vectors."""


class Result(TypedDict):
    """The score of one model on the test rows of one table."""

    table: str
    model: str
    seed: int
    metric: str
    score: float
    without_transformer: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to measure, and where."""

    corpus: Path
    encoder: Path | None
    output: Path

    def settings(self, table: str, seed: int) -> DataSettings:
        """The data of one table."""
        return DataSettings(corpus=str(self.corpus), tables=table, split_seed=seed)


def cpu_seconds() -> float:
    """CPU time of this process and of the processes that it has waited for."""
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in each)


def relay(asked: Asked, table: str, seed: int, encoder: Path | None) -> Result:
    """Train with the defaults, and score the test rows."""
    folder = asked.output / f"{table}.{seed}.{'encoder' if encoder else 'nothing'}"
    words = [
        "--recipe",
        "tabular",
        "--data.corpus",
        str(asked.corpus),
        "--data.tables",
        table,
        "--mixed_precision",
        "no",
    ]
    words += ["--seed", str(seed), "--data.split_seed", str(seed), "--output_dir", str(folder)]
    words += ["--model.text_encoder", str(encoder)] if encoder else []
    before = cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "runner", "train", *words], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    seconds = cpu_seconds() - before
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{table}, seed {seed}: relay train ended with {done.returncode}: see {folder}/train.log")
    scores = scores_of(folder / "final")
    metric = "auroc" if "auroc" in scores else "r2"
    return {
        "table": table, "model": "encoder" if encoder else "nothing", "seed": seed, "metric": metric,
        "score": scores["score"], "without_transformer": scores.get("score_without_transformer"), "seconds": seconds,
    }  # fmt: skip


def scores_of(final: Path) -> dict[str, float]:
    """The scores of a finished run on its test rows, in this process."""
    import torch

    from recipes.tabular.estimator import _load

    torch.set_num_threads(1)
    recipe, model = _load(final)
    rows, guesses = recipe.data("test"), []
    with torch.no_grad():
        for first in range(0, len(rows), 256):
            batch = rows.__getitems__(list(range(first, min(first + 256, len(rows)))))
            guesses += recipe.predict(model, recipe.collate(batch))
    return recipe.score(guesses)


def fitted(asked: Asked, table: str, seed: int, encoder: Path | None) -> Result:
    """The score of the linear part and its trees on the test rows, without a step of training."""
    from recipes.tabular.recipe import Recipe
    from recipes.tabular.rows import as_guess
    from recipes.tabular.score import macro_auroc, r2

    before, name = cpu_seconds(), "fit_encoder" if encoder else "fit"
    folder = asked.output / f"{table}.{seed}.{name}"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = ModelSettings(text_encoder=str(encoder) if encoder else None)
    recipe = Recipe(data_settings=asked.settings(table, seed), model_settings=sizes).prepare(folder)
    part = recipe.data("test").parts[0]
    guess, is_classes = as_guess(part.table, part.linear), part.table.task == "classification"
    score = macro_auroc(part.labels.astype(int), guess) if is_classes else r2(part.labels, guess)
    return {
        "table": table, "model": name, "seed": seed, "metric": "auroc" if is_classes else "r2", "score": score,
        "without_transformer": score, "seconds": cpu_seconds() - before,
    }  # fmt: skip


class Encoder:
    """A frozen sentence encoder that pools and normalises as its own folder says. It remembers what it has read."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer, self.model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
        self.is_mean = bool(pooling["pooling_mode_mean_tokens"])
        steps = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        self.normalises = any(step["type"].endswith("Normalize") for step in steps)
        lengths = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
        self.most_tokens = int(lengths["max_seq_length"])
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, size) float32."""
        import torch

        new = sorted({*texts} - self.known.keys(), key=lambda text: (len(text), text))
        for first in range(0, len(new), 64):
            own = new[first : first + 64]
            words = self.tokenizer(own, padding=True, truncation=True, max_length=self.most_tokens, return_tensors="pt")
            with torch.no_grad():
                states = self.model(**words).last_hidden_state
            mask = words["attention_mask"][..., None]
            vectors = (states * mask).sum(1) / mask.sum(1) if self.is_mean else states[:, 0]
            if self.normalises:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            self.known.update(zip(own, vectors.numpy(), strict=True))
        return np.stack([self.known[text] for text in texts])


Splits = Mapping[str, np.ndarray]
"""Rows of "train", "validation" and "test"."""


def inputs(table: Table, rows: Mapping[str, Cells], encoder: Encoder, seed: int) -> tuple[Splits, Splits, np.ndarray]:
    """What the linear model reads, what boosting reads, and which inputs of the second are categories."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    dense: dict[str, list[np.ndarray]] = {split: [] for split in rows}
    trees: dict[str, list[np.ndarray]] = {split: [] for split in rows}
    is_category: list[bool] = []
    for place, column in enumerate(table.used):
        if column.is_number:
            for split, own in rows.items():
                z, missing = own.numbers[:, place, 0], own.numbers[:, place, 4]
                dense[split].append(np.stack([z, missing], axis=1))
                trees[split].append(np.where(missing > 0, np.nan, own.numbers[:, place, 1])[:, None])
            is_category.append(False)
            continue
        texts = {split: np.array([own.values[text] for text in own.strings[:, place]], dtype=object)[:, None]
                 for split, own in rows.items()}  # fmt: skip
        if column.kind == "text":
            vectors = {split: encoder(own[:, 0].tolist()) for split, own in texts.items()}
            shorter = PCA(min(DIMENSIONS, len(vectors["train"])), random_state=seed).fit(vectors["train"])
            for split, own in vectors.items():
                dense[split].append(own)
                trees[split].append(shorter.transform(own))
            is_category += [False] * shorter.n_components_
            continue
        one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(texts["train"])
        ordinal = OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=np.nan, max_categories=250
        ).fit(texts["train"])  # fmt: skip
        for split, own in texts.items():
            dense[split].append(one_hot.transform(own))
            trees[split].append(ordinal.transform(own))
        is_category.append(True)
    joined = [{split: np.concatenate(own, axis=1) for split, own in each.items()} for each in (dense, trees)]
    return joined[0], joined[1], np.array(is_category)


def both(rows: Splits) -> np.ndarray:
    """All training rows, with those that are set aside for validation."""
    return np.concatenate([rows["train"], rows["validation"]])


def linear_guess(rows: Splits, truth: Splits, table: Table) -> np.ndarray:
    """(rows, classes) probabilities or (rows,) z of the test rows; the penalty is chosen on the validation rows."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import log_loss

    scored: dict[float, float] = {}
    for penalty in PENALTIES.tolist():
        if table.classes:
            model = LogisticRegression(C=1 / penalty, max_iter=1000).fit(rows["train"], truth["train"])
            known = np.isin(truth["validation"], model.classes_)
            guess = model.predict_proba(rows["validation"][known])
            scored[penalty] = log_loss(truth["validation"][known], guess, labels=model.classes_)
        else:
            model = Ridge(alpha=penalty).fit(rows["train"], truth["train"])
            scored[penalty] = float(((model.predict(rows["validation"]) - truth["validation"]) ** 2).mean())
    best = min(scored, key=scored.__getitem__)
    if not table.classes:
        return Ridge(alpha=best).fit(both(rows), both(truth)).predict(rows["test"])
    model = LogisticRegression(C=1 / best, max_iter=1000).fit(both(rows), both(truth))
    return of_all_classes(model.predict_proba(rows["test"]), model.classes_, table)


def of_all_classes(guess: np.ndarray, classes: np.ndarray, table: Table) -> np.ndarray:
    """(rows, all classes) probabilities, 0 for a class that no training row has."""
    found = np.zeros((len(guess), len(table.classes)))
    found[:, classes.astype(int)] = guess
    return found


def boosting_guess(rows: Splits, truth: Splits, is_category: np.ndarray, table: Table, seed: int) -> np.ndarray:
    """As `linear_guess`, of gradient boosting with the defaults of scikit-learn."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    if not table.classes:
        model = HistGradientBoostingRegressor(categorical_features=is_category, random_state=seed)  # type: ignore[arg-type]
        return model.fit(both(rows), both(truth)).predict(rows["test"])
    known = HistGradientBoostingClassifier(categorical_features=is_category, random_state=seed)  # type: ignore[arg-type]
    known.fit(both(rows), both(truth).astype(int))
    return of_all_classes(known.predict_proba(rows["test"]), known.classes_, table)


def simple(asked: Asked, name: str, seed: int, encoder: Encoder) -> list[Result]:
    """A linear model and gradient boosting of scikit-learn on vectors, numbers and categories."""
    from threadpoolctl import threadpool_limits

    from recipes.tabular.corpus import read
    from recipes.tabular.score import macro_auroc, r2
    from recipes.tabular.table import Wording, cells, fit, labels

    encoder.known.clear()
    found: list[Result] = []
    with threadpool_limits(1):
        before = cpu_seconds()
        source = read(asked.settings(name, seed))[0]
        table = fit(source.name, source.splits["train"], source.target, source.task)
        truth = {split: labels(table, frame) for split, frame in source.splits.items()}
        rows = {split: cells(table, frame, Wording()) for split, frame in source.splits.items()}
        dense, trees, is_category = inputs(table, rows, encoder, seed)
        read_in = cpu_seconds() - before
        for model in ("linear", "boosting"):
            before = cpu_seconds()
            if model == "linear":
                guess = linear_guess(dense, truth, table)
            else:
                guess = boosting_guess(trees, truth, is_category, table, seed)
            right = truth["test"]
            score = macro_auroc(right.astype(int), guess) if table.classes else r2(right, guess)
            found.append({
                "table": name, "model": model, "seed": seed, "metric": "auroc" if table.classes else "r2",
                "score": score, "without_transformer": None, "seconds": read_in + cpu_seconds() - before,
            })  # fmt: skip
    return found


def page(results: Sequence[Result], baselines: Mapping[str, float], texts: set[str], command: str) -> str:
    """The table: mean and standard deviation over the seeds, and the CPU seconds of Relay from nothing.

    `baselines`: of each table, the score of the linear model on n-grams. `texts`: the tables with texts and classes.
    """
    names = list(dict.fromkeys(own["table"] for own in results))
    metrics = {own["table"]: own["metric"] for own in results}
    models = [name for name in MODELS if any(own["model"] == name for own in results)]
    by_seed = {(own["table"], own["model"], own["seed"]): own for own in results}
    seeds = sorted({own["seed"] for own in results})

    def shown(values: Sequence[float]) -> str:
        mean = f"{np.mean(values):.3f}" if values else "-"
        return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean

    def line(title: str, metric: str, own: Sequence[str]) -> str:
        row = [title, metric]
        for model in models:
            full = [seed for seed in seeds if all((name, model, seed) in by_seed for name in own)]
            row.append(shown([float(np.mean([by_seed[name, model, seed]["score"] for name in own])) for seed in full]))
            if model in TIMED:
                spent = [by_seed[name, model, seed]["seconds"] for name in own for seed in full]
                row.append(f"{np.mean(spent):.0f}" if spent else "-")
        known = [baselines[name] for name in own if name in baselines]
        row.append(f"{np.mean(known):.3f}" if len(known) == len(own) else "-")
        return f"| {' | '.join(row)} |"

    heads = ["table", "metric"]
    for model in models:
        heads += [MODELS[model], "CPU s"] if model in TIMED else [MODELS[model]]
    heads.append("n-grams + linear")
    lines = [
        f"Measured on {datetime.date.today()}, seeds {', '.join(map(str, seeds))}:", "", "```bash", command, "```", "",
        f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}",
    ]  # fmt: skip
    groups = {
        "mean of the tables of classes with text": [name for name in names if name in texts],
        "mean of the other tables of classes": [n for n in names if metrics[n] == "auroc" and n not in texts],
        "mean of the tables of numbers": [name for name in names if metrics[name] == "r2"],
    }
    for title, own in groups.items():
        if own:
            lines += [line(name, metrics[name], [name]) for name in own]
            lines.append(line(f"**{title}**", metrics[own[0]], own))
    return "\n".join(lines) + "\n"


def known_results(file: Path) -> list[Result]:
    """The results that an earlier run wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def main() -> None:
    """Measure what is not measured yet, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder with manifest.json and test rows")
    parser.add_argument("--text_encoder", type=Path, default=os.environ.get("RELAY_TEXT_ENCODER") or None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tables", nargs="+", help="names of the corpus; none: all")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--output", type=Path, default=Path("runs/tables"))
    given = parser.parse_args()
    manifest = given.corpus / "manifest.json"
    if not manifest.is_file():
        print(f"skipped: {given.corpus} has no manifest.json; type --corpus with the folder of the tables")
        return
    encoder = Path(given.text_encoder) if given.text_encoder is not None else None
    wanted = [
        model for model in MODELS if model in given.models and (model in ("nothing", "fit") or encoder is not None)
    ]
    if encoder is not None and not (encoder / "1_Pooling" / "config.json").is_file():
        print(f"skipped: {encoder} holds no sentence encoder; shared/tools/fetch_models.py fetches all-MiniLM-L6-v2")
        return
    entries = json.loads(manifest.read_text(encoding="utf-8"))
    names = given.tables or [entry["name"] for entry in entries]
    asked = Asked(given.corpus, encoder, given.output)
    given.output.mkdir(parents=True, exist_ok=True)
    file = given.output / "results.jsonl"
    reader: Encoder | None = None
    for seed in given.seeds:
        for name in names:
            done = {own["model"] for own in known_results(file) if (own["table"], own["seed"]) == (name, seed)}
            missing = [model for model in wanted if model not in done]
            found: list[Result] = []
            if "nothing" in missing:
                found.append(relay(asked, name, seed, None))
            if "encoder" in missing:
                found.append(relay(asked, name, seed, encoder))
            if "fit" in missing:
                found.append(fitted(asked, name, seed, None))
            if "fit_encoder" in missing:
                found.append(fitted(asked, name, seed, encoder))
            if encoder is not None and {"linear", "boosting"} & {*missing}:
                reader = reader or Encoder(encoder)
                found += [own for own in simple(asked, name, seed, reader) if own["model"] in missing]
            with file.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(own) + "\n" for own in found)
            for own in found:
                print(f"{name} seed {seed} {own['model']}: {own['score']:.4f}, {own['seconds']:.0f} CPU s", flush=True)
    scores = given.corpus / "baselines.json"
    content = json.loads(scores.read_text(encoding="utf-8"))["results"] if scores.is_file() else {}
    baselines = {name: own["scores"]["linear"]["score"] for name, own in content.items()}
    texts = {own["name"] for own in entries if own.get("free_text_columns") and own["task"] == "classification"}
    results = [own for own in known_results(file) if own["table"] in names and own["seed"] in given.seeds]
    (given.output / "table.md").write_text(
        page(results, baselines, texts, shlex.join(["python", "-m", "tests.benchmarks.score_tables", *sys.argv[1:]])),
        encoding="utf-8",
    )
    print((given.output / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
