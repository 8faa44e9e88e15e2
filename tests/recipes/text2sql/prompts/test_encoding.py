"""Prompts and targets as token ids: they are those of transformers' own call."""

from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

from recipes.text2sql.prompts import encoding
from recipes.text2sql.prompts.encoding import Encoder, train_tokenizer
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import DataSettings


def test_the_token_ids_are_those_of_transformers(tmp_path: Path) -> None:
    settings = DataSettings(source="demo")
    recipe = Recipe(data_settings=settings).prepare(tmp_path / "demo")
    questions = [recipe.data("validation")[number].question for number in range(20)]
    tokenizer = train_tokenizer(questions, settings, 400)
    # What a tokenizer's file asks for holds for no prompt.
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.save_pretrained(tmp_path)
    encoder = Encoder(settings, 64, tmp_path)
    for question in questions:
        example = encoder.example(question)
        text = tokenizer.decode(example.prompt)
        assert len(example.prompt) > 9 and text.startswith("<schema>")
        assert example.target[-1] == encoder.end and encoder.pad not in example.target
        for special in (False, True):
            assert (
                encoder.ids(question.text, special) == tokenizer(question.text, add_special_tokens=special)["input_ids"]
            )
        # The texts that are kept are not changed by what is made of them.
        assert encoder.example(question) == example
    # Loader workers that start anew get the encoder with what it keeps.
    assert encoder.known_schemas
    assert ForkingPickler.loads(ForkingPickler.dumps(encoder)).example(questions[0]) == encoder.example(questions[0])


def test_the_schemas_that_are_kept_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MOST_SCHEMAS", 3)
    Recipe(data_settings=DataSettings(source="demo")).prepare(tmp_path)
    encoder = Encoder(DataSettings(source="demo"), 64, tmp_path)
    for number in range(8):
        assert encoder.schema_ids(f"<schema>t{number}") == encoder.ids(f"<schema>t{number}", True)
        assert len(encoder.known_schemas) <= 3
