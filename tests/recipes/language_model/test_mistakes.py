"""Settings and texts that no model can be made of: refused in a line, before time is spent; and texts that are odd."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from recipes.language_model import demo, files, model, text, tokens
from recipes.language_model.recipe import Recipe
from recipes.language_model.settings import DataSettings, ModelSettings, TokenizerSettings
from runner.errors import ConfigError, DataError

# Texts without white space -----------------------------------------------------------------------------

UNBROKEN = {
    "dna": "ACGT" * 5000,
    "one letter": "a" * 20_000,
    "chinese": "".join(chr(0x4E00 + number * 37 % 3000) for number in range(20_000)),
    "digits": "31415926535" * 2000,
    "spaces": " " * 20_000,
    "lines": "\n" * 20_000,
    "signs": "-=*#" * 5000,
    "underscores": "_" * 20_000,
    "a word among others": "some words " + "x" * 3000 + " and more words",
}


def longest_word(texts: list[str]) -> int:
    """Characters of the longest word within which byte-level BPE joins bytes."""
    from tokenizers import pre_tokenizers

    cut = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    return max(last - first for each in texts for _, (first, last) in cut(each))


@pytest.mark.parametrize("name", UNBROKEN)
def test_bpe_training_looks_at_short_words_only(name: str) -> None:
    whole = UNBROKEN[name]
    parts = list(tokens.without_long_words([whole]))
    assert "".join(parts) == whole
    assert longest_word([whole]) > 2000 and longest_word(parts) < 2 * tokens.MOST_CHARACTERS


@pytest.mark.parametrize(
    "ordinary",
    [demo.stories(50), "def f(x):\n" + " " * 300 + "return x\n", "=" * 400 + "\n", json.dumps({"a": [1] * 900}), ""],
)
def test_ordinary_text_is_not_cut(ordinary: str) -> None:
    assert list(tokens.without_long_words([ordinary])) == ([ordinary] if ordinary else [])


@pytest.mark.parametrize("size", ["auto", "400"])
def test_the_tokenizer_is_trained_on_short_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    (tmp_path / "dna.txt").write_text(UNBROKEN["dna"])
    one = text.Corpus(files.list_files(str(tmp_path / "dna.txt")), DataSettings(), 0.1)
    trained_on: list[str] = []
    cut = tokens.without_long_words

    def seen(texts: Any) -> Any:
        parts = list(cut(texts))
        trained_on.extend(parts)
        return parts

    monkeypatch.setattr(tokens, "without_long_words", seen)
    tokenizer = tokens.fit(TokenizerSettings(vocab_size=size), one, 1000, 8, True)
    assert trained_on and longest_word(trained_on) < 2 * tokens.MOST_CHARACTERS
    (ids,) = tokens.encode(tokenizer, [UNBROKEN["dna"]])
    assert tokenizer.decode(ids.tolist()) == UNBROKEN["dna"] and len(ids) < len(UNBROKEN["dna"]) / 4


# Dimensions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 130}, "multiple of 8, twice model.num_attention_heads 4"),
        ({"hidden_size": 96, "num_attention_heads": 5}, "multiple of 10, twice model.num_attention_heads 5"),
        ({"num_key_value_heads": 3}, "model.num_key_value_heads is 3"),
        ({"num_key_value_heads": 8}, "model.num_key_value_heads is 8"),
        (
            {"hidden_size": 9, "num_attention_heads": 3},
            "multiple of 6, twice model.num_attention_heads 3 (rotary embeddings need heads of an even size)",
        ),
        ({"hidden_size": 0}, "model.hidden_size is 0"),
        ({"num_hidden_layers": -1}, "model.num_hidden_layers is -1"),
        ({"num_attention_heads": 0}, "model.num_attention_heads is 0"),
        ({"num_key_value_heads": 0}, "model.num_key_value_heads is 0"),
        ({"intermediate_size": 0}, "model.intermediate_size is 0"),
        ({"max_position_embeddings": 0}, "model.max_position_embeddings is 0"),
        ({"dropout": 1.5}, "model.dropout is 1.5"),
        ({"dropout": float("nan")}, "model.dropout is nan"),
        ({"initializer_range": -1.0}, "model.initializer_range is -1.0"),
    ],
)
def test_dimensions_that_no_model_has_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelSettings(**settings)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) <= 2


def test_learnt_positions_may_have_heads_of_odd_width() -> None:
    odd = ModelSettings(hidden_size=9, num_attention_heads=3, rope=False, num_hidden_layers=1)
    assert model.build(odd, 16, 8, {})


def test_vocabulary_limits_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_vocab_size 2000 is above tokenizer.max_vocab_size 1000"):
        TokenizerSettings(min_vocab_size=2000, max_vocab_size=1000)
    assert TokenizerSettings(max_vocab_size=300)


def test_rows_longer_than_a_pretrained_model_reads_are_refused(tmp_path: Path) -> None:
    settings = ModelSettings(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_position_embeddings=16
    )
    gpt2 = model.build(dataclasses.replace(settings, norm="layer", swiglu=False, rope=False), 16, 8, NO_TOKENS)
    with pytest.raises(ConfigError, match="has positions for 16 tokens:\ntype --data.max_seq_length 16"):
        model.check_length(gpt2, 32)
    model.check_length(gpt2, 16)
    model.check_length(model.build(settings, 16, 8, {}), 32)


# Texts that are too small -------------------------------------------------------------------------------


def prepared(folder: Path, content: str, name: str = "a.txt", kind: Any = "char", **settings: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return Recipe(
        data_settings=DataSettings(source=str(folder / name), **settings),
        tokenizer_settings=TokenizerSettings(kind=kind),
    ).prepare(folder)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_text_of_one_byte_is_refused_or_read(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="holds no text: check --data.source and --data.validation_fraction"):
        prepared(tmp_path / "a", "a", kind=kind)
    # BOS and the byte are an input and a target.
    assert len(prepared(tmp_path / "b", "a", kind=kind, validation_fraction=0.0).data("train")) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("packing", ["concat", "best_fit", "document"])
@pytest.mark.parametrize("streaming", [False, True])
def test_single_tokens_are_no_rows(tmp_path: Path, packing: Any, streaming: bool) -> None:
    settings = dict(packing=packing, add_bos=False, add_eos=False, validation_fraction=0.0, streaming=streaming)
    rows = "".join(json.dumps({"text": each}) + "\n" for each in ("a", "bc", "d", "efg"))
    recipe = prepared(tmp_path / "a", rows, "a.jsonl", **settings)
    found: Any = recipe.data("train")
    if streaming:
        reader = found.read(0, 1, 0, None)
        found = [next(reader)[0] for _ in range(2)]
    assert all(len(row.ids) > 1 for row in found)
    if packing != "document" or streaming:
        return
    with pytest.raises(DataError, match="no two tokens"):
        prepared(tmp_path / "b", '{"text": "a"}\n{"text": "b"}\n', "a.jsonl", **settings).data("train")


@pytest.mark.parametrize(
    "cursor", ["x", 5, [0, 0], [0, 0, 0, 0], [0, 0.5, 1], [0, -1, 1], [True, 0, 1], {"epoch": 0}, [[0], 0, 0]]
)
def test_a_cursor_of_another_form_is_refused(tmp_path: Path, cursor: object) -> None:
    stream: Any = prepared(tmp_path / "a", "some words\n" * 200, streaming=True).data("train")
    with pytest.raises(ValueError, match="three whole numbers"):
        next(stream.read(0, 1, 0, cursor))


@pytest.mark.parametrize("cursor", [[0, 10**6, 1], [0, 0, 10**9], [3, 7, 7]])
def test_a_cursor_after_the_end_is_told(tmp_path: Path, cursor: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    stream: Any = prepared(tmp_path / "a", "some words\n" * 200, streaming=True).data("train")
    _, following = next(stream.read(0, 1, 0, cursor))
    assert following == [cursor[0] + 1, 0, 1]
    assert "warning: lane 0 was at row" in capsys.readouterr().out
    # The ordinary end of an epoch is none of this.
    reader = stream.read(0, 1, 0, None)
    while next(reader)[1][0] == 0:
        pass
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_one_document_is_enough_to_train_and_says_that_it_is_not_validated(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = '{"text": "just one document"}\n' if name == "a.jsonl" else "a"
    fraction = 0.1 if name == "a.jsonl" else 0.0
    recipe = prepared(tmp_path, content, name, validation_fraction=fraction)
    assert len(recipe.data("train")) == 1 and not len(recipe.data("validation"))  # type: ignore[arg-type]
    assert ("the validation split is empty" in capsys.readouterr().err) == (fraction > 0)


def test_stories_that_were_cut_off_are_written_again(tmp_path: Path) -> None:
    path = demo.write(tmp_path)
    whole = path.read_bytes()
    for wrong in (b"", whole[:1000], whole + b"more"):
        path.write_bytes(wrong)
        assert demo.write(tmp_path).read_bytes() == whole
    assert [each.name for each in tmp_path.iterdir()] == ["stories.txt"]


NO_TOKENS: Any = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
