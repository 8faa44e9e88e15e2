"""A text encoder of the user's: its pooling, texts that are cut, and its vectors in the linear part."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recipes.tabular.recipe import Recipe
from recipes.tabular.settings import DataSettings, ModelSettings
from recipes.tabular.text import cut_note, given_pooling
from runner.errors import DataError
from tests.recipes.tabular.test_model import pretrained_folder

SIZES = ModelSettings(hidden_size=16, num_attention_heads=2, interaction_layers=1)


@pytest.mark.parametrize(("modes", "wanted"), [(["mean_tokens"], "mean"), (["cls_token"], "cls"), (None, "cls")])
def test_the_pooling_is_that_of_the_folder(modes: list[str] | None, wanted: str, tmp_path: Path) -> None:
    if modes is not None:
        (tmp_path / "1_Pooling").mkdir()
        content = {f"pooling_mode_{name}": name in modes for name in ("mean_tokens", "cls_token", "max_tokens")}
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **content}))
    assert given_pooling(tmp_path) == wanted


@pytest.mark.parametrize("modes", [["max_tokens"], ["mean_tokens", "cls_token"], []])
def test_a_pooling_that_relay_has_not_is_named(modes: list[str], tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{name}": True for name in modes}))
    with pytest.raises(DataError, match="--model.text_pooling"):
        given_pooling(tmp_path)


@pytest.mark.parametrize(
    ("lengths", "most", "longest", "wanted"),
    [
        ([3, 8], 8, 512, None),
        ([3, 9, 20, 100], 8, 512, "3 of 4 texts are cut at 8 tokens; --data.max_text_tokens 24 would cut 1"),
        ([3, 9], 8, 512, "1 of 2 texts are cut at 8 tokens; --data.max_text_tokens 9 would cut 0"),
        ([600], 512, 512, "1 of 1 texts are cut at 512 tokens, the most that the text encoder reads"),
    ],
)
def test_texts_that_are_cut_are_counted(lengths: list[int], most: int, longest: int, wanted: str | None) -> None:
    assert cut_note(lengths, most, longest) == wanted


def test_a_given_encoder_is_frozen_and_the_linear_part_reads_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = pretrained_folder(tmp_path / "bert")
    (given / "1_Pooling").mkdir()
    (given / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    sizes = dataclasses.replace(SIZES, text_encoder=str(given))
    (tmp_path / "assets").mkdir()
    recipe = Recipe(data_settings=DataSettings(demo_rows=60, max_text_tokens=6), model_settings=sizes)
    recipe = recipe.prepare(tmp_path / "assets")
    printed = capfd.readouterr()
    assert "texts are cut at 6 tokens; --data.max_text_tokens" in printed.out
    assert "Loading weights" not in printed.err and "LOAD REPORT" not in printed.err
    model = recipe.model().train()
    assert model.texts.pooling == "mean" and model.texts.is_frozen
    assert recipe.linear is not None
    reads = [own.reads_vectors(table) for own, table in zip(recipe.linear, recipe.tables, strict=True)]
    assert any(reads)
    rows = recipe.data("validation")
    batch = recipe.collate([rows[place] for place in range(8)])
    tokens, lengths = batch.extra["tokens"], batch.extra["lengths"]
    in_training = model.texts(tokens, lengths)
    assert in_training.requires_grad and model.texts._vectors
    assert torch.equal(in_training, model.eval().texts(tokens, lengths))
    # Elsewhere, the weights of the trained model are the encoder.
    scores = [part.linear for part in rows.parts]
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        tmp_path / "assets" / "model.safetensors",
    )
    given.rename(tmp_path / "moved")
    again = dataclasses.replace(recipe).prepare_trained(tmp_path / "assets").data("validation")
    for before, after in zip(scores, again.parts, strict=True):
        assert np.allclose(before, after.linear, atol=1e-5)


def test_a_run_of_an_older_version_keeps_its_six_layers_and_first_token(tmp_path: Path) -> None:
    given = pretrained_folder(tmp_path / "bert")
    (tmp_path / "assets").mkdir()
    recipe = Recipe(
        data_settings=DataSettings(demo_rows=60), model_settings=dataclasses.replace(SIZES, text_encoder=str(given))
    ).prepare(tmp_path / "assets")
    assert recipe._unfrozen_layers == 0
    (tmp_path / "assets" / "text_encoder" / "relay.json").unlink()
    assert recipe._unfrozen_layers == 6 and recipe._pooling() == "cls"
