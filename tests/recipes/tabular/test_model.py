"""The network: each text encoded once, adapters that learn, a cache that changes nothing, rows that do not mix."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from recipes.tabular import packed
from recipes.tabular.corpus import read
from recipes.tabular.model import Adapted, Block, TabularModel
from recipes.tabular.recipe import Recipe
from recipes.tabular.settings import DataSettings, LoraSettings, ModelSettings
from runner.errors import CheckpointError, DataError

SMALL = ModelSettings(
    hidden_size=16, num_attention_heads=2, interaction_layers=2, text_layers=2, text_hidden_size=32, vocab_size=300,
    text_chunk_size=8, dropout=0.0, cell_dropout=0.0, gram_buckets=1024, gram_dropout=0.0,
)  # fmt: skip
DATA = DataSettings(demo_rows=40)


def prepared(folder: Path, **changes: Any) -> Recipe:
    """The recipe on the demo, with small sizes."""
    folder.mkdir(exist_ok=True, parents=True)
    recipe = Recipe(
        **{"data_settings": DATA, "model_settings": SMALL, "lora_settings": LoraSettings(rank=4), **changes}
    )
    return recipe.prepare(folder)


def fresh(recipe: Recipe) -> TabularModel:
    """Weights from a fixed seed."""
    torch.manual_seed(0)
    return recipe.model()


def batch_of(recipe: Recipe, indices: list[int], split: str = "train") -> Any:
    """A micro-batch."""
    return recipe.collate(recipe.data(split).__getitems__(indices))


def pretrained_folder(folder: Path) -> Path:
    """A small BERT as a user has it: weights, config and tokenizer in a folder."""
    from transformers import BertModel

    from recipes.tabular.text import small_config, train_tokenizer

    torch.manual_seed(1)
    train_tokenizer(["a lovely lamp", "a broken kettle in the garden"] * 3, 300).save_pretrained(folder)
    BertModel(small_config(32, 4, 300, 64, 0.1)).save_pretrained(folder)
    return folder


def test_each_distinct_text_is_there_once_sorted_by_length(tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    batch = batch_of(recipe, list(range(24)))
    rows = [tuple(row.tolist()) for row in batch.extra["tokens"]]
    assert len(set(rows)) == len(rows) < batch["mask"].sum()
    assert batch.extra["lengths"].tolist() == sorted(batch.extra["lengths"].tolist())
    # Put together again, the cells are the texts that the table has.
    data = recipe.data("train")
    example = data[5]
    part = data.parts[example.part]
    for place, text in enumerate([*part.targets, *part.strings[example.place]]):
        ids = batch.extra["tokens"][batch["cells"][5, place]]
        assert ids[: len(data.tokens[text])].tolist() == data.tokens[text].tolist()


def test_a_row_does_not_depend_on_the_others_of_its_batch(tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    model = fresh(recipe).eval()
    last = len(recipe.data("train")) - 1
    # Tables of two classes, of three, and of a number, in one batch.
    together = recipe.predict(model, batch_of(recipe, [0, 40, last]))
    for place, index in enumerate([0, 40, last]):
        (alone,) = recipe.predict(model, batch_of(recipe, [index]))
        (key,) = {"probabilities", "predicted"} & alone.keys()
        assert alone[key] == pytest.approx(together[place][key], rel=1e-4)


def test_both_heads_get_a_gradient_whatever_the_task(tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    for index in (0, len(recipe.data("train")) - 1):
        model = fresh(recipe)
        recipe.loss(model, batch_of(recipe, [index])).sum.backward()
        assert all(value.grad is not None for value in model.parameters())


def test_loss_is_a_sum_over_rows(tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    model = fresh(recipe)
    whole = recipe.loss(model, batch_of(recipe, list(range(6)))).sum.item()
    parts = [recipe.loss(model, batch_of(recipe, [index])).sum.item() for index in range(6)]
    assert whole == pytest.approx(sum(parts), rel=1e-4)


def test_a_block_is_torchs_own_layer() -> None:
    torch.manual_seed(0)
    ours, theirs = (
        Block(16, 2, 0.0),
        torch.nn.TransformerEncoderLayer(16, 2, 64, 0.0, norm_first=True, batch_first=True),
    )
    attention = ours.attention
    with torch.no_grad():
        for name in ("weight", "bias"):
            parts = [getattr(part, name) for part in (attention.query, attention.key, attention.value)]
            getattr(theirs.self_attn, f"in_proj_{name}").copy_(torch.cat(parts))
            getattr(theirs.self_attn.out_proj, name).copy_(getattr(attention.out, name))
            for part in ("linear1", "linear2", "norm1", "norm2"):
                getattr(getattr(theirs, part), name).copy_(getattr(getattr(ours, part), name))
    states = torch.randn(3, 5, 16)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    torch.testing.assert_close(
        ours(states, mask[:, None, None, :])[mask], theirs(states, src_key_padding_mask=~mask)[mask]
    )


@pytest.mark.parametrize("fusion", ["sum", "transformer"])
def test_every_adapter_learns_and_evaluation_is_training_without_dropout(tmp_path: Path, fusion: Any) -> None:
    sizes = dataclasses.replace(SMALL, numerical_fusion=fusion)
    base = prepared(tmp_path / "base", model_settings=sizes)
    recipe = prepared(
        tmp_path / "base", model_settings=sizes, stage="finetune", lora_settings=LoraSettings(rank=4, dropout=0.0)
    )
    model = fresh(recipe)
    recipe.inherit(model, copy.deepcopy(fresh(base).state_dict()))
    adapters = [module for module in model.modules() if isinstance(module, Adapted)]
    # Six in each block of ours and of the text encoder, and those of fusion, projection and heads.
    assert len(adapters) == 6 * 2 + 6 * 2 + (2 + 6 if fusion == "transformer" else 2) + 1 + 2
    with torch.no_grad():
        for adapter in adapters:
            adapter.lora_b.normal_(std=0.1)
    batch = batch_of(recipe, [0, 1, len(recipe.data("train")) - 1])
    trained = recipe.loss(model, batch)
    trained.sum.backward()
    for name, value in model.named_parameters():
        if "lora" in name:
            assert value.grad is not None and value.grad.abs().sum() > 0, name
        elif value.requires_grad:
            assert ".down." in name or name == "readout.vectors", name
    with torch.no_grad():
        assert recipe.loss(model.eval(), batch).sum.item() == pytest.approx(trained.sum.item(), rel=1e-5)


def test_adapters_start_as_the_inherited_model_and_merge_into_a_full_one(tmp_path: Path) -> None:
    base = prepared(tmp_path)
    adapted = prepared(tmp_path, stage="finetune")
    source, model = fresh(base), fresh(adapted)
    with torch.no_grad():
        for value in source.parameters():
            value.normal_(std=0.1)
    adapted.inherit(model, source.state_dict())
    batch = batch_of(base, [0, 1, 2])
    first = base.predict(source.eval(), batch)
    assert [row["probabilities"] for row in adapted.predict(model.eval(), batch)] == [
        pytest.approx(row["probabilities"], rel=1e-5) for row in first
    ]
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_b" in name:
                value.normal_(std=0.1)
    merged = fresh(base)
    base.inherit(merged, model.state_dict())
    assert [row["probabilities"] for row in base.predict(merged.eval(), batch)] == [
        pytest.approx(row["probabilities"], rel=1e-4) for row in adapted.predict(model, batch)
    ]
    assert base.predict(merged, batch) != first


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    source = fresh(prepared(tmp_path, model_settings=dataclasses.replace(SMALL, hidden_size=32)))
    recipe = prepared(tmp_path, stage="finetune")
    with pytest.raises(CheckpointError, match="another model"):
        recipe.inherit(fresh(recipe), source.state_dict())


def test_the_vocabulary_is_the_same_in_every_process(tmp_path: Path) -> None:
    script = (
        "from recipes.tabular.demo import tables; from recipes.tabular.text import train_tokenizer as t;"
        "print(sorted(t([str(c) for f in tables(99) for c in f[2].to_numpy().ravel()], 400).get_vocab().items()))"
    )
    said = {subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout for _ in range(2)}
    (one,) = said
    assert "lovely" in one and "'##e'" in one


def test_weights_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    source = fresh(prepared(tmp_path / "one"))
    recipe = prepared(tmp_path / "two", data_settings=dataclasses.replace(DATA, split_seed=1), stage="finetune")
    with pytest.raises(CheckpointError, match="another vocabulary"):
        recipe.inherit(fresh(recipe), source.state_dict())


def test_a_given_encoder_keeps_its_lower_layers_and_the_cache_is_exact(tmp_path: Path) -> None:
    given = str(pretrained_folder(tmp_path / "bert"))
    sizes = dataclasses.replace(SMALL, text_encoder=given, unfrozen_layers=2)
    recipe = prepared(tmp_path / "one", model_settings=sizes)
    stored = prepared(tmp_path / "two", model_settings=dataclasses.replace(sizes, text_cache=str(tmp_path / "kept")))
    batch = batch_of(recipe, list(range(12)))
    losses, gradients = [], []
    # In memory; into a folder; from the folder; from a folder whose data were deleted, and one that was cut.
    for name, each in (("memory", recipe), ("cold", stored), ("warm", stored), ("deleted", stored), ("cut", stored)):
        for file in (tmp_path / "kept").glob("*.bin") if name in ("deleted", "cut") else ():
            file.unlink() if name == "deleted" else file.write_bytes(file.read_bytes()[:1000])
        model = fresh(each).train()
        loss = each.loss(model, batch)
        loss.sum.backward()
        losses.append(loss.sum.item())
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert len(set(losses)) == 1
    assert all(all(grads[key].equal(gradients[0][key]) for key in gradients[0]) for grads in gradients)
    frozen = [name for name, value in model.texts.bert.named_parameters() if not value.requires_grad]
    assert {name.split(".")[0] for name in frozen} == {"embeddings", "encoder"}
    assert {name.split(".")[2] for name in frozen if name.startswith("encoder")} == {"0", "1"}
    # Other weights in the frozen layers: what was kept is not used.
    with torch.no_grad():
        model.texts.bert.encoder.layer[0].output.dense.weight.mul_(2)
    assert stored.loss(model, batch).sum.item() != losses[0]


@pytest.mark.parametrize("adapt", ["lora", "full", "frozen_text"])
def test_the_vector_of_a_text_is_berts_first_token(tmp_path: Path, adapt: Any) -> None:
    sizes = dataclasses.replace(SMALL, text_encoder=str(pretrained_folder(tmp_path / "bert")), unfrozen_layers=2)
    recipe = prepared(tmp_path / "assets", model_settings=sizes, stage="finetune", adapt=adapt)
    model, batch = fresh(recipe).eval(), batch_of(recipe, [0, 1, 2])
    ids, lengths = batch.extra["tokens"], batch.extra["lengths"]
    tokens = torch.from_numpy(ids)
    mask = (torch.arange(tokens.shape[1]) < torch.from_numpy(lengths)[:, None]).long()
    assert not mask.all()
    with torch.no_grad():
        wanted = model.texts.bert(tokens, attention_mask=mask).last_hidden_state[:, 0]
        for keeps in (False, True):
            model.texts.keeps_states = keeps
            model.texts._vectors.clear()
            torch.testing.assert_close(model.texts._known(ids, lengths.tolist()), wanted)
            torch.testing.assert_close(model.texts._encode(ids, lengths.tolist()), wanted)
    recipe.loss(model.train(), batch).sum.backward()
    learns = any(value.grad is not None for value in model.texts.bert.parameters())
    assert learns == (adapt != "frozen_text")


def test_a_given_encoder_learns_with_a_share_of_the_rate_and_new_layers_with_all_of_it(tmp_path: Path) -> None:
    given = dataclasses.replace(SMALL, text_encoder=str(pretrained_folder(tmp_path / "bert")), unfrozen_layers=2)
    recipe = prepared(tmp_path / "given", model_settings=given)
    trained = [name for name, value in fresh(recipe).named_parameters() if value.requires_grad]
    scales = {name: recipe.learning_rate_scale(name) for name in trained}
    inside = next(name for name in trained if "encoder.layer" in name)
    assert scales == {name: 0.05 if "encoder.layer" in name else 1.0 for name in trained}
    # Of our own from nothing, of adapters, and of the presets named after TabSTAR: all of it.
    own = prepared(tmp_path / "own")
    adapted = prepared(tmp_path / "lora", model_settings=given, stage="finetune", adapt="lora")
    assert own.learning_rate_scale(inside) == adapted.learning_rate_scale(inside) == 1
    assert Recipe.presets()["tabstar"]["model.text_learning_rate_scale"] == 1


def test_only_a_given_encoder_is_computed_without_padding_and_with_faster_dropout(tmp_path: Path) -> None:
    given = dataclasses.replace(SMALL, text_encoder=str(pretrained_folder(tmp_path / "bert")), unfrozen_layers=2)
    for model, packs in ((fresh(prepared(tmp_path / "own")), False),
                         (fresh(prepared(tmp_path / "given", model_settings=given)), True)):  # fmt: skip
        kinds = {type(module) for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert kinds == {packed.Dropout if packs else torch.nn.Dropout}
        assert model.texts.packs == packs and model.blocks[0].attention.draws_fast == packs


def test_a_text_to_predict_is_encoded_once_without_padding_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = dataclasses.replace(SMALL, text_encoder=str(pretrained_folder(tmp_path / "bert")), unfrozen_layers=2)
    recipe = prepared(tmp_path / "assets", model_settings=sizes)
    model = fresh(recipe)
    source = next(source for source in read(DATA) if source.name == "repairs")
    table = next(table for table in recipe.tables if table.name == "repairs")
    frame = source.splits["test"]
    encode, encoded, computed = model.texts._encode, [], []

    def spy(chunk: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        encoded.extend(tuple(row[:size].tolist()) for row, size in zip(chunk, sizes, strict=True))
        return encode(chunk, sizes)

    with monkeypatch.context() as patch:
        patch.setattr(model.texts, "_encode", spy)
        hook = model.texts.bert.encoder.layer[0].register_forward_pre_hook(
            lambda layer, arguments: computed.append(len(arguments[0]))
        )
        found = recipe.predict_frame(model.eval(), table, frame)
        assert recipe.predict_frame(model, table, frame) == found
        hook.remove()
    assert len(set(map(len, encoded))) > 1 and sum(computed) == sum(map(len, encoded))
    assert len(encoded) == len(set(encoded)) and model.texts._states is None
    # In a run, what the frozen layers make of a text is kept: the same numbers.
    recipe.loss(model.train(), batch_of(recipe, [0])).sum.backward()
    model.texts._vectors.clear()
    batch = recipe.collate(recipe.rows([table], [frame]).__getitems__(list(range(len(frame)))))
    with torch.no_grad():
        again = recipe.predict(model.eval(), batch)
    count = len(model.texts._states.memory)
    assert count > len(encoded) / 2
    for row, kept in zip(found, again, strict=True):
        assert kept["probabilities"] == pytest.approx(row["probabilities"], rel=1e-5)
    frame = frame.assign(**{frame.columns[0]: "words never read before"})
    recipe.predict_frame(model, table, frame)
    assert len(model.texts._states.memory) == count


def test_a_checkpoint_predicts_where_the_given_encoder_is_not(tmp_path: Path) -> None:
    given = pretrained_folder(tmp_path / "bert")
    sizes = dataclasses.replace(SMALL, text_encoder=str(given), unfrozen_layers=1)
    recipe = prepared(tmp_path / "run" / "assets", model_settings=sizes)
    source = fresh(recipe)
    (tmp_path / "run" / "model.safetensors").touch()
    given.rename(tmp_path / "elsewhere")
    again = prepared(tmp_path / "run" / "assets", model_settings=sizes)
    model = fresh(again)
    model.load_state_dict(source.state_dict())
    batch = batch_of(recipe, [0, 1])
    assert again.predict(model.eval(), batch) == recipe.predict(source.eval(), batch)
    with pytest.raises(DataError, match="cannot be loaded"):
        prepared(tmp_path / "new", model_settings=sizes)


def test_predictions_are_written_beside_the_rows(tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    model = fresh(recipe).eval()
    source = next(source for source in read(DATA) if source.name == "repairs")
    rows = source.splits["test"].drop(columns="outcome")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    request = recipe.Request(input=tmp_path / "rows.csv", output=tmp_path / "out.csv", table="repairs")
    assert "8 rows" in recipe.answer(model, request)
    written = pd.read_csv(tmp_path / "out.csv")
    chances = written[["probability as new", "probability repaired", "probability scrapped"]]
    assert (chances.sum(axis=1) - 1).abs().max() < 1e-5
    assert written["prediction"].tolist() == [
        name.removeprefix("probability ") for name in map(str, chances.columns[chances.to_numpy().argmax(1)])
    ]
    with pytest.raises(DataError, match="--table"):
        recipe.answer(model, dataclasses.replace(request, table=None))
    rows.drop(columns="age").to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match="no column age"):
        recipe.answer(model, request)


def test_the_readout_is_a_linear_model_on_grams(tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    batch = batch_of(recipe, [0, 1, 2])
    readout = fresh(recipe).readout
    assert readout is not None and batch.extra["num_grams"][0] == 0
    found = readout(batch.extra["grams"], batch.extra["num_grams"], batch["reads"], batch["codes"])
    data = recipe.data("train")
    for row, example in enumerate(data.__getitems__([0, 1, 2])):
        part = data.parts[example.part]
        own = [data.grams[place] for place in part.reads[example.place]]
        total = sum(readout.vectors[each].sum(0) / len(each) ** 0.5 for each in own if len(each))
        assert any(len(each) for each in own)
        torch.testing.assert_close(found[row], readout.SCALE * torch.from_numpy(part.codes) @ total)


def test_classes_are_dropped_more_than_numbers(tmp_path: Path) -> None:
    recipe = prepared(tmp_path, model_settings=dataclasses.replace(SMALL, gram_dropout=None, cell_dropout=None))
    tables = list(recipe.tables)
    tasks = {"classification", "regression"}
    for wanted, found in ((tasks, (0.7, 0.2)), ({"classification"}, (0.7, 0.2)), ({"regression"}, (0.3, 0.0))):
        recipe.tables[:] = [table for table in tables if table.task in wanted]
        model = recipe.model()
        assert {table.task for table in recipe.tables} == wanted
        assert (model.readout.dropout, model.cell_dropout) == found
    model = prepared(tmp_path, model_settings=dataclasses.replace(SMALL, gram_dropout=0.0, cell_dropout=0.5)).model()
    assert (model.readout.dropout, model.cell_dropout) == (0.0, 0.5)


class Reference(torch.nn.Module):
    """TabSTAR v1.0 in torch's own layers, under the names of the `tabstar` package (1.2.2, arch/)."""

    def __init__(self, bert: Any, width: int, heads: int, layers: int) -> None:
        super().__init__()
        from torch.nn import Linear, Module, ReLU, Sequential, TransformerEncoder, TransformerEncoderLayer

        def layer(count: int) -> TransformerEncoderLayer:
            return TransformerEncoderLayer(width, count, 4 * width, 0.0, batch_first=True, norm_first=True)

        def head() -> Module:
            owner = Module()
            owner.layers = Sequential(Linear(width, 4 * width), ReLU(), Linear(4 * width, 1))
            return owner

        self.text_encoder = bert
        self.numerical_fusion, self.tabular_encoder = Module(), Module()
        self.numerical_fusion.scalar_embedder = Sequential(
            Linear(1, 2 * width), ReLU(), torch.nn.Dropout(0.0), Linear(2 * width, width)
        )
        self.numerical_fusion.fusion_block = layer(2)
        self.tabular_encoder.encoder = TransformerEncoder(layer(heads), layers, enable_nested_tensor=False)
        self.cls_head, self.reg_head = head(), head()

    def forward(self, tokens: torch.Tensor, attend: torch.Tensor, numbers: torch.Tensor, targets: int) -> torch.Tensor:
        """Token ids of every cell (B, S, L), and z of every cell (B, S), to scores (B, targets)."""
        states = self.text_encoder(tokens.flatten(0, 1), attention_mask=attend.flatten(0, 1)).last_hidden_state[:, 0]
        states = states.view(*numbers.shape, -1)
        values = self.numerical_fusion.scalar_embedder(numbers[..., None])
        pairs = torch.stack([states, values], 2).flatten(0, 1)
        states = self.numerical_fusion.fusion_block(pairs).mean(1).view_as(states)
        states = self.tabular_encoder.encoder(states)[:, :targets]
        return (self.cls_head if targets > 1 else self.reg_head).layers(states).squeeze(-1)


def test_weights_of_tabstar_give_its_loss(tmp_path: Path) -> None:
    from recipes.tabular.text import load_encoder

    given = pretrained_folder(tmp_path / "bert")
    sizes = ModelSettings(
        text_encoder=str(given), hidden_size=32, num_attention_heads=2, interaction_layers=3, dropout=0.1,
        numerical_fusion="transformer", final_norm=False, linear_part=False, cell_dropout=0.0, unfrozen_layers=2,
    )  # fmt: skip
    data = dataclasses.replace(DATA, wording="tabstar", numbers_as_text=True, max_text_tokens=64)
    recipe = prepared(tmp_path / "ours", model_settings=sizes, data_settings=data)
    torch.manual_seed(5)
    reference = Reference(load_encoder(given), 32, 2, 3).eval()
    model = fresh(recipe).eval()
    recipe.inherit(model, reference.state_dict())
    rows = recipe.data("train")
    for first, targets in ((0, 2), (len(rows) - 8, 1)):
        batch = batch_of(recipe, list(range(first, first + 8)))
        ours = recipe.loss(model, batch).sum
        tokens, places = torch.from_numpy(batch.extra["tokens"]), batch["cells"]
        attend = (torch.arange(tokens.shape[1]) < torch.from_numpy(batch.extra["lengths"])[:, None])[places]
        scores = reference(tokens[places], attend, batch["numbers"][..., 0], targets)
        if targets > 1:
            theirs = torch.nn.functional.cross_entropy(scores, batch["labels"], reduction="sum")
        else:
            theirs = ((scores[:, 0] - batch["targets"]) ** 2).sum()
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)


def test_many_tokens_are_computed_twice_and_learn_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = str(pretrained_folder(tmp_path / "bert"))
    recipe = prepared(tmp_path, model_settings=dataclasses.replace(SMALL, text_encoder=given, unfrozen_layers=2))
    batch = batch_of(recipe, list(range(12)))
    found = []
    for most in (16384, 0):
        monkeypatch.setattr("recipes.tabular.model.MOST_KEPT_TOKENS", most)
        monkeypatch.setattr("recipes.tabular.model.MOST_CHUNK_TOKENS", 4096 if most else 40)
        # Not in training, where dropout draws chunk by chunk.
        model = fresh(recipe).eval()
        recipe.loss(model, batch).sum.backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5)


def test_vectors_that_are_kept_are_of_the_present_weights(tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    model = fresh(recipe).eval()
    batch = batch_of(recipe, [0, 1, 2])
    with torch.no_grad():
        first, again = recipe.predict(model, batch), recipe.predict(model, batch)
        assert model.texts._vectors and first == again
        model.texts.bert.encoder.layer[0].output.dense.weight.mul_(3)
        changed = recipe.predict(model, batch)
        model.texts._vectors.clear()
        assert changed == recipe.predict(model, batch) != first
