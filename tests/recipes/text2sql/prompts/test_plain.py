"""Prompts of models that were trained elsewhere: names stay names, and nothing is added to the tokenizer."""

import contextlib
import dataclasses
import io
import json
import sqlite3
from pathlib import Path

import pytest
import torch

from recipes.text2sql.decoding.candidates import as_sql
from recipes.text2sql.decoding.masks import writer_of
from recipes.text2sql.prompts import plain, schema_text
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import DataSettings, ModelSettings
from recipes.text2sql.sql.execution import execute
from recipes.text2sql.sql.results import same_result
from recipes.text2sql.sql.schema import Schema
from runner import trials
from runner.__main__ import main
from runner.checkpoints.tensors import read_tensors
from runner.config import parse
from tests.recipes.text2sql.test_recipe import PAIRS, TABLES_JSON, write_folder

CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_base(folder: Path, chat_template: str | None) -> Path:
    """A tiny decoder with a tokenizer of single bytes."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: number for number, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=258, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with contextlib.redirect_stderr(io.StringIO()):
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=[CHAT, None], ids=["instruct", "base"])
def recipe(tmp_path: Path, request: pytest.FixtureRequest) -> Recipe:
    """A recipe with the tiny decoder, bound to its assets."""
    write_folder(tmp_path)
    base = write_base(tmp_path / "base", request.param)
    data = DataSettings(source="spider", dir=str(tmp_path), max_seq_length=2000, schema_tokens=True)
    made = Recipe(data_settings=data, model_settings=ModelSettings(pretrained=str(base)))
    (tmp_path / "assets").mkdir()
    return made.prepare(tmp_path / "assets")


def test_the_prompt_shows_what_the_model_knows(recipe: Recipe) -> None:
    assert recipe.encoder.is_plain and len(recipe.tokenizer) == 258
    assert recipe.model().get_input_embeddings().weight.shape[0] == 258
    example = recipe.data("train")[1]
    shown = str(recipe.tokenizer.decode(example.prompt))
    is_chat = recipe.tokenizer.chat_template is not None
    assert (
        "CREATE TABLE author (id NUMERIC PRIMARY KEY /* 1, 2 */, name TEXT /* 'Flann O''Brien', 'Ada Costa' */" in shown
    )
    assert "author_id NUMERIC REFERENCES author (id) /* 1, 2 */);" in shown
    assert PAIRS[1][0] in shown and "<v0>" not in shown and "<t0>" not in shown
    assert shown.endswith("<|assistant|>```sql\n") == is_chat and shown.startswith("<|user|>CREATE") == is_chat
    answer = str(recipe.tokenizer.decode(example.target))
    assert "'Flann O''Brien'" in answer and answer.endswith("\n```<end>" if is_chat else ";<end>")
    batch = recipe.collate([example])
    assert batch.weight == len(example.target) == int((batch["labels"] != -100).sum())


def test_a_perfect_answer_is_read_rightly(recipe: Recipe) -> None:
    data = recipe.data("train")
    for number in range(len(PAIRS)):
        question = data.questions[number]
        written = str(recipe.tokenizer.decode(data[number].target[:-1]))
        query = as_sql(recipe.encoder, written, data[number])
        database = str(question.database)
        assert same_result(execute(database, query), execute(database, question.query), False), query


def test_constrained_writing_ends_as_the_model_has_learned_to_end(recipe: Recipe) -> None:
    """The semicolon or the end of the block may follow a query that is complete, and nothing may follow them."""
    data = recipe.data("train")
    semicolon, end = (recipe.tokenizer.convert_tokens_to_ids(each) for each in (";", "<end>"))
    checked = 0
    for number in range(len(PAIRS)):
        example = data[number]
        writer = writer_of(recipe.encoder, example)
        for length, token in enumerate(example.target):
            before = tuple(example.target[:length])
            if writer.state(before) is None:
                # SQL beyond the grammar.
                break
            written = recipe.tokenizer.decode(before)
            is_complete = writer.spelling.can_end(writer.state(before))
            allowed = writer.mask(before, 300)
            assert bool(allowed[end]) == is_complete
            # Within the sign of a block nothing else may come, within quotes anything.
            assert bool(allowed[semicolon]) == is_complete or "'" in written
            if not allowed[token]:
                break
        else:
            checked += 1
            ended = writer.mask(tuple(example.target[:-1]), 300)
            assert set(recipe.tokenizer.convert_ids_to_tokens(ended.nonzero().flatten().tolist())) == {
                ";", "Ċ", "`", "<end>",
            }  # fmt: skip
    assert checked >= 4


def test_a_long_schema_is_cut_and_the_question_stays(recipe: Recipe) -> None:
    whole = recipe.data("train")[3]
    for less in (1, 60, 200, 5000):
        length = len(whole.prompt) + recipe.generation_settings.max_new_tokens - less
        encoder = dataclasses.replace(
            recipe.encoder, settings=dataclasses.replace(recipe.encoder.settings, max_seq_length=max(length, 2))
        )
        cut = encoder.example(recipe.data("train").questions[3])
        shown = str(recipe.tokenizer.decode(cut.prompt))
        assert len(cut.prompt) <= len(whole.prompt) - less or "CREATE" not in shown
        assert PAIRS[3][0] in shown and cut.target == whole.target


def test_the_prompt_does_not_know_the_answer(recipe: Recipe) -> None:
    question = recipe.data("train").questions[1]
    shown = recipe.encoder.example(question)
    for query in ("", "SELECT city FROM author WHERE name = 'Ada Costa'", "SELECT 30"):
        assert recipe.encoder.example(dataclasses.replace(question, query=query)).prompt == shown.prompt


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("SELECT a FROM b\n```", "SELECT a FROM b"),
        ("SELECT a\nFROM b\n```\nThis query ...", "SELECT a FROM b"),
        ("```sql\nSELECT a FROM b\n```", "SELECT a FROM b"),
        ("SELECT a FROM b; SELECT 2", "SELECT a FROM b"),
        ("SELECT a FROM b WHERE c = 'x; y' ;", "SELECT a FROM b WHERE c = 'x; y'"),
        ('SELECT "a;b" FROM c;', 'SELECT "a;b" FROM c'),
        ("SELECT a FROM b WHERE c = 'it''s; so'", "SELECT a FROM b WHERE c = 'it''s; so'"),
        ("SELECT a FROM b\n\n-- another question", "SELECT a FROM b"),
        ("SELECT a FROM b WHERE c = 'open", "SELECT a FROM b WHERE c = 'open"),
        ("SELECT a FROM b WHERE c = 'two  spaces'", "SELECT a FROM b WHERE c = 'two  spaces'"),
        ("", ""),
    ],
)
def test_the_query_in_what_a_model_wrote(text: str, wanted: str) -> None:
    assert plain.query_of(text) == wanted


def test_create_table_statements_are_the_schema(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "odd.sqlite")
    connection.executescript(
        'CREATE TABLE "order" (id INTEGER PRIMARY KEY, "date of birth" TEXT, "group" REAL, größe BLOB);'
        'CREATE TABLE Part ("order" INTEGER REFERENCES "order" (id), Number INTEGER, note TEXT, '
        "PRIMARY KEY (\"order\", Number)); INSERT INTO Part VALUES (1, 2, 'a */ b'), (1, 3, 'it''s');"
    )
    connection.close()
    for schema, database in (
        (Schema.from_database(tmp_path / "odd.sqlite"), str(tmp_path / "odd.sqlite")),
        (Schema.from_spider(TABLES_JSON), None),
    ):
        text = schema_text.describe(schema, DataSettings().plain_style, database)
        with sqlite3.connect(tmp_path / f"{schema.db_id}-again.sqlite") as made:
            made.executescript(text)
        again = Schema.from_database(tmp_path / f"{schema.db_id}-again.sqlite")
        assert {table: list(columns) for table, columns in again.tables.items()} == {
            table: list(columns) for table, columns in schema.tables.items()
        }
        assert (again.primary_keys, again.foreign_keys) == (schema.primary_keys, schema.foreign_keys)


def test_a_model_that_knows_the_tokens_goes_on_with_them(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = DataSettings(source="spider", dir=str(tmp_path), prompt="tokens")
    first = Recipe(data_settings=data, model_settings=ModelSettings(pretrained=str(write_base(tmp_path / "b", CHAT))))
    (tmp_path / "first").mkdir()
    first = first.prepare(tmp_path / "first")
    assert not first.encoder.is_plain and len(first.tokenizer) > 258
    first.model().save_pretrained(tmp_path / "first")
    second = Recipe(
        data_settings=dataclasses.replace(data, prompt="auto"),
        model_settings=ModelSettings(pretrained=str(tmp_path / "first")),
    )
    (tmp_path / "second").mkdir()
    assert second.prepare(tmp_path / "second").data("train")[0].prompt == first.data("train")[0].prompt


def test_what_has_no_effect_is_noted() -> None:
    for flags, wanted in (
        (["--model.pretrained", "x", "--data.word_dropout", "0.1"], "data.word_dropout has no effect in plain prompts"),
        (["--data.prompt", "plain"], "data.prompt has no effect without model.pretrained"),
    ):
        config = parse(["--recipe", "text2sql", *flags])
        (line,) = config.recipe.setting_notes(config.changed)
        assert line.startswith(wanted)


@pytest.mark.filterwarnings("ignore")
def test_a_model_is_scored_that_no_run_has_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path)
    base = write_base(tmp_path / "base", CHAT)
    (tmp_path / "spider/train_spider.json").unlink()
    words = ["evaluate", "--recipe", "text2sql", "--data.source", "spider", "--data.dir", str(tmp_path)]
    few = ["--max_eval_examples", "2", "--generation.max_new_tokens", "4", "--data.max_seq_length", "900"]
    rows = tmp_path / "rows.jsonl"
    assert main([*words, *few, "--model.pretrained", str(base), "--output", str(rows)]) == 0
    printed = capsys.readouterr().out
    assert "validation, 2 examples" in printed and "execution_accuracy" in printed
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    assert len(found) == 2 and all(row["question"] and row["execution_accuracy"] is False for row in found)
    # A model from random weights has nothing to score: such a command scores files.
    assert main(words) == 2 and "--metric" in capsys.readouterr().err
    assert main([*words, "--model.pretrained", str(tmp_path / "none")]) == 2
    assert "model.pretrained" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Bloom", "Gemma3Text", "Qwen3Moe"])
def test_few_logits_are_computed_and_the_loss_stays(tmp_path: Path, kind: str) -> None:
    import transformers

    write_folder(tmp_path)
    write_base(tmp_path / "base", None)
    torch.manual_seed(0)
    size = {"vocab_size": 258, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 40}  # fmt: skip
    config = {
        "GPT2": lambda: transformers.GPT2Config(
            vocab_size=258, n_embd=16, n_layer=2, n_head=2, n_positions=2048, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        ),
        "Bloom": lambda: transformers.BloomConfig(vocab_size=258, hidden_size=16, n_layer=2, n_head=2),
        "Qwen3Moe": lambda: transformers.Qwen3MoeConfig(
            **size, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8
        ),
    }.get(kind, lambda: getattr(transformers, f"{kind}Config")(**size))()
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "base")
    data = DataSettings(source="spider", dir=str(tmp_path), max_seq_length=2000)
    (tmp_path / "assets").mkdir()
    recipe = Recipe(data_settings=data, model_settings=ModelSettings(pretrained=str(tmp_path / "base")))
    recipe = recipe.prepare(tmp_path / "assets")
    examples = sorted((recipe.data("train")[n] for n in range(len(PAIRS))), key=lambda each: -len(each.prompt))
    longest = max(len(each.target) for each in examples)
    assert len(examples[0].prompt) - len(examples[-1].prompt) > 5
    batch, model = recipe.collate(examples), recipe.model()
    columns: list[int] = []
    model.register_forward_hook(lambda *given: columns.append(given[-1].logits.shape[1]))
    with torch.no_grad():
        trained, scored = recipe.loss(model.train(), batch), recipe.loss(model.eval(), batch)
        alone = [recipe.loss(model, recipe.collate([example])) for example in examples]
        padded = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    wanted = torch.nn.functional.cross_entropy(padded.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    for found in (trained.sum, scored.sum, sum(each.sum for each in alone)):
        assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    assert columns[:2] == [longest, longest]
    if kind == "Qwen3Moe":
        assert trained.auxiliary is not None and scored.auxiliary is not None
        assert float(scored.auxiliary) == pytest.approx(float(trained.auxiliary), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        ("[q_proj, v_proj]", {"q_proj", "v_proj"}),
        ("\n  - down_proj", {"down_proj"}),
        ("q_proj,o_proj", {"q_proj", "o_proj"}),
    ],
)
def test_matrices_that_a_yaml_file_lists_get_the_adapters(tmp_path: Path, targets: str, wanted: set[str]) -> None:
    write_folder(tmp_path)
    write_base(tmp_path / "base", CHAT)
    (tmp_path / "run.yaml").write_text(f"lora:\n  rank: 2\n  target_modules: {targets}\n", encoding="utf-8")
    words = ["--config", str(tmp_path / "run.yaml"), "--recipe", "text2sql", "--preset", "lora"]
    words += ["--model.pretrained", str(tmp_path / "base"), "--data.source", "spider", "--data.dir", str(tmp_path)]
    words += ["--data.max_seq_length", "700", "--max_steps", "1", "--max_eval_examples", "1", "--mixed_precision", "no"]
    words += ["--generation.max_new_tokens", "2", "--output_dir", str(tmp_path / "run")]
    trials.train(words, 1, tmp_path / "log")
    final = tmp_path / "run" / "final"
    assert set(json.loads((final / "adapter_config.json").read_text())["target_modules"]) == wanted
    names = read_tensors(final / "adapter_model.safetensors")
    assert names and {name.split(".lora_")[0].rpartition(".")[2] for name in names} == wanted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prompt", ["plain", "tokens"])
def test_a_run_with_adapters_holds_its_base_in_bf16_and_not_in_checkpoints(tmp_path: Path, prompt: str) -> None:
    from typing import Any

    from recipes.text2sql.settings import LoraSettings
    from runner.checkpoints.tensors import model_tensors
    from runner.errors import CheckpointError

    write_folder(tmp_path)
    base = write_base(tmp_path / "base", CHAT)
    data = DataSettings(source="spider", dir=str(tmp_path), max_seq_length=2000, prompt=prompt)  # type: ignore[arg-type]
    made = Recipe(data_settings=data, model_settings=ModelSettings(pretrained=str(base)), lora=LoraSettings(rank=2))
    (tmp_path / "assets").mkdir()
    made = made.prepare(tmp_path / "assets")
    model: Any = made.model()
    names = set(model_tensors(model))
    assert names and all("lora_" in name or "trainable_tokens" in name for name in names)
    # What is not in checkpoints depends on the base alone.
    again: Any = made.model()
    held = dict(again.named_parameters())
    assert all(held[name].equal(value) for name, value in model.named_parameters() if not value.requires_grad)
    batch = made.collate([made.data("train")[number] for number in (0, 1)])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(made.loss(model, batch).sum, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        before = made.loss(model, batch).sum
        made.use_precision(model, "bf16")
        assert made.loss(model, batch).sum.equal(before)
    assert any(each.dtype == torch.bfloat16 for each in model.parameters())
    assert all(each.dtype == torch.float32 for each in model.parameters() if each.requires_grad)
    # Another stage begins from the adapters alone; weights that hold a base are saved with it.
    tensors = model_tensors(model)
    made.inherit(again, tensors)
    assert all(value.equal(tensors[name]) for name, value in model_tensors(again).items())
    whole = {**tensors, **{name: value.float() for name, value in model.state_dict().items()}}
    made.inherit(again, {name: value for name, value in whole.items() if name in again.state_dict()})
    assert len(model_tensors(again)) > len(names)
    base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="is not at .*base"):
        made.model()
