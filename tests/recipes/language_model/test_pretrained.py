"""What model.pretrained may be: a folder, a .gguf file, an id of the hub; and what is said where it is nowhere."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.language_model import model
from recipes.language_model.settings import ModelSettings
from runner.__main__ import main
from runner.config import parse
from runner.errors import CheckpointError, ConfigError, DataError
from runner.parts.adapters import Base, check_base, content_of
from runner.parts.pretrained import arguments_of, find_pretrained
from tests.recipes.text2sql.prompts.test_plain import write_base

TINY = ModelSettings(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)


def saved(folder: Path) -> Path:
    """A tiny model in a folder."""
    model.build(TINY, 16, 8, {}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "requested", ["./nowhere", "/no/such/folder", "a/b/c", "nowhere", "../runs/final", "~/nowhere/x"]
)
def test_a_path_where_nothing_is_says_what_to_type(requested: str) -> None:
    with pytest.raises(DataError, match="There is no model at .*: type --model.pretrained") as caught:
        find_pretrained(requested)
    assert requested in str(caught.value) and len(str(caught.value).splitlines()) == 2


def test_an_id_of_the_hub_is_read_from_the_cache_or_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[bool] = []

    def snapshot(name: str, local_files_only: bool = False, **_: Any) -> str:
        asked.append(local_files_only)
        if name == "owner/cached" and local_files_only:
            return str(tmp_path)
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert find_pretrained("owner/cached") == tmp_path and asked == [True]
    with pytest.raises(DataError) as caught:
        find_pretrained("owner/absent-0.5B")
    assert "hf download owner/absent-0.5B --local-dir FOLDER" in str(caught.value)
    assert asked == [True, True, False] and len(str(caught.value).splitlines()) == 3


def test_a_folder_is_found_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "owner" / "name")
    assert find_pretrained(str(folder)) == folder
    # A folder here comes before the hub.
    monkeypatch.chdir(tmp_path)
    assert find_pretrained("owner/name") == Path("owner/name")
    assert model.pretrained(Path("owner/name")).config.hidden_size == 8


@pytest.mark.parametrize(("name", "content"), [("a.gguf", b"GGUF damaged"), ("a.gguf", b""), ("a.gguf", b"no model")])
def test_a_gguf_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    place = find_pretrained(str(tmp_path / name))
    assert arguments_of(place) == {"pretrained_model_name_or_path": str(tmp_path), "gguf_file": name}
    with pytest.raises(DataError, match=r"a\.gguf") as caught:
        model.pretrained(place)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("recipe", ["text2sql", "language_model"])
def test_four_bits_are_refused_before_data_are_read_where_they_cannot_be(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--recipe", recipe, "--model.pretrained", "x", "--model.load_in", "4bit"]
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *of: None if name == "bitsandbytes" else found(name, *of)
    )
    for flags, has_cuda, message in (
        (["--lora.rank", "4"], False, "needs an NVIDIA GPU with CUDA.*\nleave --model.load_in out"),
        (["--lora.rank", "4"], True, r"pip install 'relay-train\[4bit\]'"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_cuda=has_cuda: has_cuda)
        # There is no model x, and nothing has looked for it.
        with pytest.raises(ConfigError, match=message) as caught:
            parse([*words, *flags]).recipe.prepare(tmp_path)
        assert len(str(caught.value).splitlines()) <= 3
    with pytest.raises(ConfigError, match="weights in 4 bits cannot train: type --lora.rank"):
        parse(words).recipe.fresh_start()
    assert parse([*words, "--lora.rank", "4"]).recipe.fresh_start() is None
    with pytest.raises(ConfigError, match="4bit"):
        parse(["--recipe", recipe, "--model.load_in", "3bit"])


def test_four_bits_are_asked_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    asked: dict[str, Any] = {}
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda **how: asked.update(how))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    model.pretrained(saved(tmp_path), "4bit")
    config = asked["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16 and asked["device_map"] == {"": 1}
    asked.clear()
    model.pretrained(tmp_path)
    assert "quantization_config" not in asked and "device_map" not in asked


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_weights_are_named(tmp_path: Path, damage: str) -> None:
    weights = saved(tmp_path) / "model.safetensors"
    content = {"cut": weights.read_bytes()[:100], "empty": b"", "text": b"version https://git-lfs"}[damage]
    weights.write_bytes(content)
    with pytest.raises(DataError, match="cannot be loaded"):
        model.pretrained(tmp_path)


def test_a_base_is_known_by_its_content(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a"), saved(tmp_path / "b")
    base = Base(path=str(first), content=content_of(first))
    check_base(base, first)
    with pytest.raises(CheckpointError, match="holds other weights"):
        check_base(base, second)
    (second / "model.safetensors").write_bytes((first / "model.safetensors").read_bytes())
    check_base(base, second)
    with pytest.raises(CheckpointError, match="is not at .*\ntype --model.pretrained"):
        check_base(base, tmp_path / "c")


@pytest.mark.filterwarnings("ignore")
def test_a_model_is_scored_that_no_run_has_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base", None)
    text = tmp_path / "novel.txt"
    text.write_text("It was the best of times, it was the worst of times.\n\n" * 200, encoding="utf-8")
    words = ["evaluate", "--recipe", "language_model", "--data.source", str(text), "--data.max_seq_length", "32"]
    few = ["--max_eval_examples", "4"]
    assert main([*words, *few, "--model.pretrained", str(base)]) == 0
    printed = capsys.readouterr().out
    assert "validation, 4 examples" in printed
    # Tokens are bytes here, and a model of small random weights gives each about the same share: log2(258) bits.
    assert float(printed.split("bits_per_byte")[1].split()[0]) == pytest.approx(8.0, abs=0.3)
    # A model from random weights has nothing to score.
    assert main([*words, *few]) == 2
    assert main([*words, "--model.pretrained", str(tmp_path / "none")]) == 2
    assert "model.pretrained" in capsys.readouterr().err


@pytest.mark.parametrize("names", [{}, {"bos_token": "<end>"}, {"eos_token": None}])
def test_a_tokenizer_without_marks_of_documents_is_used_as_it_is(tmp_path: Path, names: dict[str, str | None]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipes.language_model.answering import Generator, generate
    from recipes.language_model.data import Packer
    from recipes.language_model.settings import DataSettings, GenerationRequest
    from recipes.language_model.text import Passage

    base = write_base(tmp_path / "base", None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name, value in names.items():
        setattr(tokenizer, name, value)
    has_bos, has_eos = "bos_token" in names, "eos_token" not in names
    (ids,) = Packer(tokenizer, DataSettings(add_bos=True, add_eos=True)).tokenize([Passage("It was")])
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert ids.tolist()[has_bos : len(ids) - has_eos] == tokenizer.encode("It was", add_special_tokens=False)
    assert len(ids) == 6 + has_bos + has_eos and (not has_bos or ids[0] == end) and (not has_eos or ids[-1] == end)
    generator = Generator(AutoModelForCausalLM.from_pretrained(base).eval(), tokenizer, 64, True)
    assert len(generate(generator, ["", "It was"], GenerationRequest(max_new_tokens=3, stop=False))) == 2
