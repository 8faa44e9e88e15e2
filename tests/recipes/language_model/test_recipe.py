"""The language-model recipe: tokenizers, vocabulary, packing, streams, decoders, generation and adapters."""

import dataclasses
import gzip
import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.language_model import answering, data, demo, files, model, text, tokens
from recipes.language_model.presets import presets
from recipes.language_model.recipe import Recipe
from recipes.language_model.settings import DataSettings, ModelSettings, TokenizerSettings
from runner.config import parse
from runner.errors import ConfigError, DataError
from runner.parts.adapters import LoraSettings
from tests.launching import SHARED

TEXTS = SHARED / "lm"
SMALL = ModelSettings(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
ODD = "Zoë — 你好 🌍\n\n  two  spaces\ttab\r\n<eos> <bos> <|endoftext|> end "


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stories") / "stories.txt"
    file.write_text(demo.stories(300), encoding="utf-8")
    return file


def bound(folder: Path, **groups: Any) -> Recipe:
    """A recipe with a tokenizer in `folder`."""
    groups.setdefault("model_settings", SMALL)
    folder.mkdir(parents=True, exist_ok=True)
    return Recipe(**groups).prepare(folder)


def characters(folder: Path, source: Path | str, **settings: Any) -> Recipe:
    """A recipe of characters."""
    settings.setdefault("max_seq_length", 32)
    kind = TokenizerSettings(kind="char")
    return bound(folder, data_settings=DataSettings(source=str(source), **settings), tokenizer_settings=kind)


# Tokenizers ---------------------------------------------------------------------------------------------


def test_bpe_gives_back_every_text_and_models_its_white_space(stories: Path) -> None:
    tokenizer = tokens.byte_pairs([stories.read_text()], 400)
    for sample in (ODD, stories.read_text()[:5000], "", "\n \n", "<eos>"):
        (ids,) = tokens.encode(tokenizer, [sample])
        assert tokenizer.decode(ids.tolist()) == sample
        # Text that spells a special token is text.
        assert not set(ids.tolist()) & set(tokenizer.all_special_ids)
        assert tokens.bytes_of_tokens(tokenizer)[ids].sum() == len(sample.encode())


def test_characters_come_back_and_unknown_ones_are_counted(tmp_path: Path) -> None:
    tokenizer = tokens.characters(["ab\n é你"])
    (ids,) = tokens.encode(tokenizer, ["b é\n你a"])
    assert tokenizer.decode(ids.tolist()) == "b é\n你a"
    assert tokens.bytes_of_tokens(tokenizer)[ids].sum() == len("b é\n你a".encode())
    (ids,) = tokens.encode(tokenizer, ["axa"])
    assert len(ids) == 3 and ids[1] == tokenizer.unk_token_id


def test_a_shorter_bpe_is_the_beginning_of_a_longer_one(stories: Path) -> None:
    sample = [stories.read_text()]
    long, short = tokens.byte_pairs(sample, 600), tokens.byte_pairs(sample, 400)
    cut = tokens.truncated(long, 400)
    assert cut.get_vocab() == short.get_vocab()
    assert tokens.encode(cut, sample)[0].tolist() == tokens.encode(short, sample)[0].tolist()


def test_the_tokenizer_is_read_by_transformers_and_kept(tmp_path: Path, stories: Path) -> None:
    from transformers import AutoTokenizer

    recipe = characters(tmp_path / "a", stories)
    written = (tmp_path / "a" / "tokenizer.json").read_bytes()
    loaded: Any = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert loaded.decode(loaded("Anna had", add_special_tokens=False)["input_ids"]) == "Anna had"
    other = tmp_path / "other.txt"
    other.write_text("quite different: [] {} ö" * 100)
    again = characters(tmp_path / "a", other)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == written
    assert len(again.tokenizer) == len(recipe.tokenizer)


def test_the_automatic_vocabulary_is_one_that_the_text_can_teach(tmp_path: Path, stories: Path, capsys: Any) -> None:
    settings = DataSettings(source=str(stories))
    recipe = bound(tmp_path / "a", data_settings=settings)
    shown = capsys.readouterr().out
    assert "<- chosen" in shown and "compute/byte" in shown
    (ids,) = tokens.encode(recipe.tokenizer, [stories.read_text()])
    counts = np.bincount(ids, minlength=len(recipe.tokenizer))[len(tokens.SPECIAL) + 256 :]
    # Nine of ten, counted on the part that was for training; made stories have few words, so that is soon.
    assert (counts < tokens.LEAST_SEEN).mean() <= 0.12 or len(recipe.tokenizer) == 320
    assert len(recipe.tokenizer) < 512 and "more than these data can teach" in shown


def test_a_wider_model_gets_a_larger_vocabulary_as_the_scaling_law_says() -> None:
    novel = TEXTS / "gutenberg" / "war_and_peace.txt"
    if not novel.is_file():
        pytest.skip("the shared data are not here")
    sample = novel.read_text(encoding="utf-8")[:1_500_000]
    parts = [sample[at : at + 2000] for at in range(0, len(sample), 2000)]
    whole = tokens.byte_pairs([part for number, part in enumerate(parts) if number % 10], 8192)
    chosen = []
    for name in ("nano", "tiny"):
        size = {key.removeprefix("model."): value for key, value in presets()[name].items() if key[:6] == "model."}
        settings = ModelSettings(**size)
        others = model.other_parameters(settings)
        # As if there were much more of the same text, so that how often types occur decides nothing.
        found = tokens.candidates(whole, parts, 1 << 40, others, settings.hidden_size, True, 8192)
        size_chosen = tokens.choose([c for c in found if c.vocab_size], 512).vocab_size
        law = 3_145_728 * (others / 33e6) ** 0.835 / settings.hidden_size
        assert law / 1.5 <= size_chosen <= law * 1.5, (name, law, tokens.table(found, found[0], 512))
        chosen.append(size_chosen)
    assert chosen[0] < chosen[1]


# Sources ------------------------------------------------------------------------------------------------

ROWS = [f"document number {number}, " + "word " * (number % 7) + "é\n" for number in range(700)]


def as_files(folder: Path, kind: str) -> str:
    """The same documents, written in one way or another."""
    lines = "".join(json.dumps({"id": number, "text": row}) + "\n" for number, row in enumerate(ROWS))
    if kind == "jsonl":
        (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
        return str(folder / "rows.jsonl")
    if kind == "compressed":
        (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        return str(folder / "*.gz")
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": ROWS}), folder / "rows.parquet", row_group_size=100)
        return str(folder)
    if kind == "url":
        import fsspec

        system = fsspec.filesystem("memory")
        with system.open("/lm/rows.jsonl", "wb") as opened:
            opened.write(lines.encode())
        return "memory://lm/rows.jsonl"
    (folder / "rows.txt").write_text("%%".join(ROWS), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("kind", ["text", "jsonl", "compressed", "parquet", "url"])
def test_training_and_validation_hold_every_document_once(tmp_path: Path, kind: str) -> None:
    settings = DataSettings(source=as_files(tmp_path, kind), document_separator="%%")
    corpus = text.Corpus(files.list_files(settings.source or ""), settings, 0.1)
    training = [passage.text for passage in corpus.passages("train")]
    validation = [passage.text for passage in corpus.passages("validation")]
    assert Counter(training) + Counter(validation) == Counter(ROWS)
    assert 40 <= len(validation) <= 100


@pytest.mark.parametrize("kind", ["text", "jsonl", "compressed", "parquet", "url"])
@pytest.mark.parametrize("num_lanes", [1, 3])
def test_the_lanes_of_an_epoch_hold_every_training_document_once(tmp_path: Path, kind: str, num_lanes: int) -> None:
    recipe = characters(
        tmp_path / "a",
        as_files_in(tmp_path / "b", kind),
        document_separator="%%",
        streaming=True,
        packing="document",
        max_seq_length=200,
        shuffle_window=3000,
    )
    stream = recipe.data("train")
    found: list[str] = []
    for lane in range(num_lanes):
        found += [decoded(recipe, row) for row, _ in epoch(stream, lane, num_lanes)]
    corpus = recipe._corpus()
    assert Counter(found) == Counter(passage.text for passage in corpus.passages("train"))
    assert found != [passage.text for passage in corpus.passages("train")]


def as_files_in(folder: Path, kind: str) -> Path | str:
    folder.mkdir()
    return as_files(folder, kind)


def decoded(recipe: Recipe, row: data.PackedRow) -> str:
    return recipe.tokenizer.decode(row.ids.tolist(), skip_special_tokens=True)


def epoch(stream: Any, lane: int, num_lanes: int, which: int = 0, seed: int = 5) -> list[tuple[Any, Any]]:
    """What a lane reads in one epoch."""
    rows = stream.read(lane, num_lanes, seed, None)
    rows = itertools.dropwhile(lambda item: item[1][0] < which, rows)
    return list(itertools.takewhile(lambda item: item[1][0] == which, rows))


@pytest.mark.parametrize("kind", ["jsonl", "compressed", "parquet"])
@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_shuffled_packed_stream_goes_on_exactly_twice(tmp_path: Path, kind: str, packing: Any) -> None:
    recipe = characters(
        tmp_path / "a", as_files_in(tmp_path / "b", kind), streaming=True, packing=packing, shuffle_window=2000
    )
    stream = recipe.data("train")
    whole = list(itertools.islice(stream.read(1, 2, 5, None), 900))
    assert whole[-1][1][0] > 0, "the test reaches the second epoch"
    resumed: list[Any] = []
    cursor = None
    for count in (311, 402, 187):
        # A cursor that has been through a checkpoint, and a stream that has been made anew.
        cursor = json.loads(json.dumps(cursor))
        new = list(itertools.islice(recipe.data("train").read(1, 2, 5, cursor), count))
        # What was read ahead does not count.
        resumed, cursor = resumed + new, new[-1][1]
    assert [row.ids.tolist() for row, _ in resumed] == [row.ids.tolist() for row, _ in whole]


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    recipe = characters(tmp_path / "a", as_files_in(tmp_path / "b", "jsonl"), streaming=True, packing="document")
    stream = recipe.data("train")
    orders = [
        [row.ids.tolist() for row, _ in epoch(stream, 0, 1, which, seed)] for which, seed in ((0, 5), (1, 5), (0, 6))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])


def test_a_lane_enters_a_large_file_without_reading_what_is_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.jsonl"
    row = json.dumps({"text": "some words " * 90}) + "\n"
    file.write_text(row * 20_000, encoding="utf-8")
    recipe = characters(tmp_path / "a", file, streaming=True)
    stream = recipe.data("train")
    _, cursor = next(stream.read(0, 2, 0, None))
    read = 0
    passages = text.Corpus.read_piece

    def counted(self: Any, split: str, piece: Any) -> Any:
        nonlocal read
        read += piece[2] - piece[1]
        return passages(self, split, piece)

    monkeypatch.setattr(text.Corpus, "read_piece", counted)
    next(stream.read(1, 2, 0, [0, 5, 3]))
    assert 0 < read <= 1_100_000


def test_what_is_wrong_with_the_data_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 10)
    (tmp_path / "latin.txt").write_bytes("ä".encode("latin1") * 100)
    for source, said in (("a.jsonl", "text_column"), ("latin.txt", "UTF-8"), ("none.txt", "no ")):
        with pytest.raises(DataError, match=said) as caught:
            characters(tmp_path / source.replace(".", "-"), tmp_path / source)
        assert len(str(caught.value).splitlines()) <= 3


# Packing ------------------------------------------------------------------------------------------------


def packer(tmp_path: Path, **settings: Any) -> data.Packer:
    (tmp_path / "abc.txt").write_text("abcdefgh " * 50)
    recipe = characters(tmp_path / "packer", tmp_path / "abc.txt", **settings)
    return data.Packer(recipe.tokenizer, recipe.data_settings)


def test_packing_loses_no_token_and_predicts_each_once(tmp_path: Path) -> None:
    documents = [text.Passage("abcdefgh"[: 1 + number % 8] * (1 + number % 11)) for number in range(2300)]
    for packing in ("concat", "best_fit", "document"):
        one = packer(tmp_path / packing if (tmp_path / packing).mkdir() is None else tmp_path, packing=packing)
        ids = one.tokenize(documents)
        rows = one.rows(documents)
        targets = Counter(int(token) for number in range(len(rows)) for token in targets_of(rows[number], packing))
        whole = Counter(int(token) for each in ids for token in (each[1:] if packing != "concat" else each))
        if packing == "concat":
            whole[int(ids[0][0])] -= 1
        assert targets == whole, packing
        assert all(2 <= len(rows[number].ids) <= 33 for number in range(len(rows)))


def targets_of(row: data.PackedRow, packing: str) -> np.ndarray:
    """The tokens that are predicted from one of the same document (of packing concat: from any)."""
    same = row.documents[1:] == row.documents[:-1]
    return row.ids[1:] if packing == "concat" else row.ids[1:][same]


def test_best_fit_leaves_little_free(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    chunks = [np.zeros(length, np.int32) for length in random.integers(2, 60, 500)]
    rows = data.best_fit(chunks, 65)
    assert sum(len(row.ids) for row in rows) == sum(len(chunk) for chunk in chunks)
    assert sum(len(row.ids) for row in rows) / (65 * len(rows)) > 0.95


def test_packing_takes_linear_work(tmp_path: Path) -> None:
    one = packer(tmp_path)
    counts = []
    for characters_of_document in (200_000, 800_000):
        events: Counter[str] = Counter()
        sys.setprofile(lambda frame, event, argument, events=events: events.update((event,)))
        try:
            rows = one.rows([text.Passage("abcdefgh" * (characters_of_document // 8))])
            for number in range(len(rows)):
                rows[number]
        finally:
            sys.setprofile(None)
        counts.append(sum(events.values()))
    # Calls of Python and C functions, since a clock on a busy machine says little.
    assert 3.5 < counts[1] / counts[0] < 4.5, counts


@pytest.mark.parametrize("isolate", [True, False])
def test_documents_see_each_other_only_when_allowed(tmp_path: Path, isolate: bool, stories: Path) -> None:
    recipe = characters(tmp_path / "a", stories, isolate_documents=isolate)
    torch.manual_seed(0)
    decoder = recipe.model().eval()
    documents = np.array([0] * 12 + [1] * 21, np.int32)
    first = np.arange(33, dtype=np.int32) % 20 + 4
    second = first.copy()
    second[:12] = second[:12][::-1]
    losses = []
    for ids in (first, second):
        batch = recipe.collate([data.PackedRow(ids, documents)])
        logits = decoder(
            input_ids=batch["input_ids"], position_ids=batch.tensors.get("position_ids"), use_cache=False
        ).logits
        losses.append(logits[:, 12:].detach())
    gap = float((losses[0] - losses[1]).abs().max())
    assert gap == 0 if isolate else gap > 1e-3
    weight = recipe.collate([data.PackedRow(first, documents)]).weight
    assert weight == (31 if isolate else 32)


def test_validation_scores_every_byte_and_counts_them(tmp_path: Path, stories: Path) -> None:
    recipe = characters(tmp_path / "a", stories, document_separator="\\n\\n")
    rows = recipe.data("validation")
    batch = recipe.collate([rows[number] for number in range(len(rows))])
    corpus = recipe._corpus()
    passages = [passage.text for passage in corpus.passages("validation")]
    assert int(batch["bytes"].sum()) == sum(len(passage.encode()) for passage in passages)
    decoder = recipe.model().eval()
    with torch.no_grad():
        loss = recipe.loss(decoder, batch)
        scores = recipe.score(recipe.predict(decoder, batch))
    assert scores["perplexity"] == pytest.approx(float(torch.exp(loss.sum / batch.weight)), rel=1e-5)
    bits = float(loss.sum) / np.log(2) / int(batch["bytes"].sum())
    assert scores["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_steps_follow_the_data(tmp_path: Path, stories: Path) -> None:
    known = len(characters(tmp_path / "a", stories).data("train"))
    stream = characters(tmp_path / "b", stories, streaming=True).data("train")
    assert stream.examples_per_epoch == pytest.approx(known, rel=0.1)
    counted = len(epoch(stream, 0, 1))
    assert stream.examples_per_epoch == pytest.approx(counted, rel=0.1)


# The model ----------------------------------------------------------------------------------------------

COUNTS = {
    "nano": 3_622_528,
    "tiny": 12_488_960,
    "small": 58_536_448,
    "medium": 125_553_408,
    "large": 419_087_360,
    "xlarge": 859_424_000,
}


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_the_parameters_that_their_table_says(name: str) -> None:
    chosen = parse(["--recipe", "language_model", "--preset", name]).recipe
    with torch.device("meta"):
        decoder = model.build(chosen.model_settings, 16_000, 256, dict.fromkeys(("bos_token_id",)))
    assert sum(parameter.numel() for parameter in decoder.parameters()) == COUNTS[name]


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "LlamaForCausalLM"),
        ({"activation": "gelu", "num_key_value_heads": 1}, "LlamaForCausalLM"),
        ({"swiglu": False, "activation": "relu"}, "ArceeForCausalLM"),
        ({"norm": "layer"}, "StableLmForCausalLM"),
        ({"norm": "layer", "swiglu": False}, "Starcoder2ForCausalLM"),
        ({"norm": "layer", "swiglu": False, "rope": False}, "GPT2LMHeadModel"),
        ({"rope": False}, "PositionedForCausalLM"),
        ({"rope": False, "swiglu": False, "activation": "relu"}, "PositionedForCausalLM"),
        ({"rope": False, "norm": "layer"}, "PositionedForCausalLM"),
    ],
)
def test_every_combination_learns_drops_out_and_loads_elsewhere(
    settings: dict[str, Any], kind: str, tmp_path: Path, stories: Path
) -> None:
    from transformers import AutoModelForCausalLM

    recipe = characters(tmp_path / "a", stories)
    size = ModelSettings(**{**{name: getattr(SMALL, name) for name in SIZES}, "dropout": 0.2, **settings})
    recipe = Recipe(data_settings=recipe.data_settings, model_settings=size).prepare(tmp_path / "a")
    decoder = recipe.model()
    assert type(decoder).__name__ == kind
    rows = recipe.data("train")
    batch = recipe.collate([rows[0], rows[1]])
    first, second = recipe.loss(decoder.train(), batch), recipe.loss(decoder, batch)
    assert not first.sum.equal(second.sum), "dropout"
    first.sum.backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    decoder.eval()
    calm = recipe.loss(decoder, batch).sum
    assert calm.equal(recipe.loss(decoder, batch).sum)
    decoder.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert recipe.loss(again, batch).sum.equal(calm)


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple"):
        model.build(ModelSettings(hidden_size=130), 64, 64, {})


def test_our_own_class_is_llama_where_they_meet_and_learns_its_positions() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

    from recipes.language_model.positioned import PositionedConfig, PositionedForCausalLM

    sizes: dict[str, Any] = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    sizes |= dict(num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64, pad_token_id=0)
    ids = torch.randint(1, 64, (2, 20))
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    own = PositionedForCausalLM(PositionedConfig(**sizes, rope=True)).eval()
    own.load_state_dict(llama.state_dict())
    assert own(input_ids=ids).logits.equal(llama(input_ids=ids).logits)
    # Without positions of either kind it is SmolLM3 without rotation.
    nope: dict[str, Any] = dict(no_rope_layers=[0, 0], tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    unturned = SmolLM3ForCausalLM(SmolLM3Config(**sizes, **nope)).eval()
    bare = PositionedForCausalLM(PositionedConfig(**sizes)).eval()
    assert bare.positions is not None
    assert 0.015 < float(bare.positions.weight.detach().std()) < 0.025
    bare.load_state_dict(unturned.state_dict(), strict=False)
    learnt = bare(input_ids=ids).logits
    torch.nn.init.zeros_(bare.positions.weight)
    assert torch.allclose(bare(input_ids=ids).logits, unturned(input_ids=ids).logits, atol=1e-6)
    assert not torch.allclose(learnt, unturned(input_ids=ids).logits, atol=1e-3)


def test_our_own_class_writes_with_a_cache_as_without(tmp_path: Path, stories: Path) -> None:
    recipe = characters(tmp_path / "a", stories)
    own = Recipe(data_settings=recipe.data_settings, model_settings=dataclasses.replace(SMALL, rope=False))
    own = own.prepare(tmp_path / "a")
    torch.manual_seed(0)
    decoder = own.model().eval()
    torch.nn.init.normal_(decoder.positions.weight)
    ids = torch.randint(4, 20, (2, 9))
    mask = torch.ones_like(ids)
    # A text that is padded on the left has its places from its own beginning on.
    mask[1, :4] = 0
    written = [
        decoder.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=8, use_cache=cached)
        for cached in (True, False)
    ]
    assert written[0].equal(written[1])
    alone = decoder.generate(input_ids=ids[1:, 4:], do_sample=False, max_new_tokens=8, eos_token_id=None)
    assert alone[0].equal(written[0][1, 4:][: len(alone[0])])


# Using it -----------------------------------------------------------------------------------------------


def request(**settings: Any) -> Any:
    settings.setdefault("max_new_tokens", 20)
    settings.setdefault("stream", False)
    return Recipe.Request(**settings)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> tuple[Recipe, Any]:
    recipe = characters(tmp_path_factory.mktemp("writer") / "a", stories)
    torch.manual_seed(1)
    return recipe, recipe.model().eval()


def test_the_same_seed_writes_the_same_text(writer: tuple[Recipe, Any], tmp_path: Path) -> None:
    recipe, decoder = writer
    texts = [recipe.answer(decoder, request(prompt="Anna", seed=seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    greedy = [recipe.answer(decoder, request(prompt="Anna", temperature=0.0, seed=seed)) for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert recipe.answer(decoder, request(prompt="Anna", top_k=1)) == greedy[0]
    assert recipe.answer(decoder, request(prompt="Anna", top_p=1e-9)) == greedy[0]
    penalised = recipe.answer(decoder, request(prompt="Anna", temperature=0.0, repetition_penalty=5.0))
    assert len(set(penalised)) >= len(set(greedy[0]))


def test_the_first_texts_of_an_evaluation_are_continued(writer: tuple[Recipe, Any]) -> None:
    recipe, decoder = writer
    rows = recipe.data("validation")
    batch = recipe.collate([rows[number] for number in range(5)])
    with torch.no_grad():
        plain = recipe.predict(decoder, batch)
        # As in the second batch of an evaluation, and in the first.
        batch.places = range(5, 10)
        assert recipe.predict(decoder, batch) == plain and not recipe.samples(plain)
        batch.places = [4, 2, 7, 0, 1]
        found = recipe.predict(decoder, batch)
        again = recipe.predict(decoder, batch)
        silent = dataclasses.replace(recipe, sample_tokens=0).predict(decoder, batch)
    assert found == again and silent == plain and recipe.score(found) == recipe.score(plain)
    samples = recipe.samples(found)
    assert len(samples) == 3 and ["prompt" in row for row in found] == [False, True, False, True, True]
    text = str(recipe.tokenizer.decode(batch["input_ids"][1].tolist(), skip_special_tokens=True))
    assert text.startswith(f"{samples[0]['prompt']}{samples[0]['data']}"[:60])
    assert 0 < len(str(samples[0]["model"])) <= 40


def test_a_file_of_prompts_is_written_as_each_alone(writer: tuple[Recipe, Any], tmp_path: Path) -> None:
    recipe, decoder = writer
    file = tmp_path / "prompts.txt"
    file.write_text("Anna\nThe dog ran\nB\n")
    texts = recipe.answer(decoder, request(prompts=str(file), temperature=0.0)).split("\n---\n")
    alone = [recipe.answer(decoder, request(prompt=each, temperature=0.0)) for each in ("Anna", "The dog ran", "B")]
    assert texts == alone


def test_text_is_shown_while_it_is_written_and_may_outgrow_the_window(writer: tuple[Recipe, Any], capsys: Any) -> None:
    recipe, decoder = writer
    whole = recipe.answer(decoder, request(prompt="Anna", max_new_tokens=80, stop=False))
    assert len(whole) >= 60
    parts: list[str] = []
    asked = request(prompt="Anna", max_new_tokens=80, stop=False)
    (written,) = answering.generate(recipe.generator(decoder), ["Anna"], asked, parts.append)
    assert "".join(parts) == whole + "\n" == "Anna" + written + "\n"
    assert len(parts) > 20


def test_a_conversation_changes_its_settings(writer: tuple[Recipe, Any], monkeypatch: Any, capsys: Any) -> None:
    recipe, decoder = writer
    lines = iter(["/set temperature=0.5", "/temperature 0", "/set top-k=7", "/top_p 7", "/status", "Anna", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    recipe.answer(decoder, request(interactive=True))
    shown = capsys.readouterr().out
    greedy = recipe.answer(decoder, request(prompt="Anna", temperature=0.0))
    assert "temperature = 0.5\n" in shown and "temperature = 0.0  top_k = 7  top_p = 1.0" in shown
    assert (
        "temperature = 0.0" in shown
        and "top_p is 7.0: type /top_p with a number above 0 to 1" in shown
        and greedy in shown
    )


def test_a_model_that_has_learnt_to_end_stops(tmp_path: Path, stories: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("ab\n" * 2000)
    recipe = characters(tmp_path / "a", file, document_separator="\\n")
    torch.manual_seed(0)
    decoder = recipe.model().train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    rows = recipe.data("train")
    for step in range(30):
        batch = recipe.collate([rows[step], rows[step + 30]])
        (recipe.loss(decoder, batch).sum / batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    decoder.eval()
    assert recipe.answer(decoder, request(prompt="", temperature=0.0)) == "ab"


def test_adapters_leave_the_base_alone_and_merge_exactly(tmp_path: Path, stories: Path) -> None:
    base_recipe = characters(tmp_path / "base", stories)
    torch.manual_seed(0)
    base = base_recipe.model()
    base.save_pretrained(tmp_path / "base")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    recipe = Recipe(
        data_settings=base_recipe.data_settings,
        model_settings=ModelSettings(pretrained=str(tmp_path / "base")),
        lora=LoraSettings(rank=4),
    ).prepare(folder(tmp_path / "adapted"))
    assert recipe.tokenizer.get_vocab() == base_recipe.tokenizer.get_vocab()
    adapted = recipe.model()
    total = sum(each.numel() for each in adapted.parameters())
    trained = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    assert trained < 0.4 * total
    optimizer = torch.optim.AdamW([each for each in adapted.parameters() if each.requires_grad], lr=1e-2)
    rows = recipe.data("train")
    batch = recipe.collate([rows[0], rows[1]])
    losses = []
    for _ in range(5):
        loss = recipe.loss(adapted.train(), batch)
        (loss.sum / batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.sum.detach()))
    assert losses[-1] < losses[0]
    kept = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for name, value in adapted.state_dict().items()
        if "lora_" not in name
    }
    assert all(kept[name].equal(value) for name, value in before.items())
    adapted.eval()
    adapted.save_pretrained(tmp_path / "final", state_dict=adapted.state_dict())
    assert (tmp_path / "final" / "adapter_config.json").is_file()
    logits = adapted(input_ids=batch["input_ids"], use_cache=False).logits
    merged = adapted.merge_and_unload()(input_ids=batch["input_ids"], use_cache=False).logits
    assert float((logits - merged).detach().abs().max()) < 1e-5


def folder(path: Path) -> Path:
    path.mkdir()
    return path
