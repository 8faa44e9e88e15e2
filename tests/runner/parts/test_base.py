"""Runs with adapters: checkpoints leave the base out, and everything finds it again by its content."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from runner import trials
from tests.launching import REPOSITORY, same_bits

SMALL = (
    "--recipe", "language_model", "--mixed_precision", "no", "--data.max_seq_length", "32", "--batch_size", "4",
    "--micro_batch_size", "2", "--logging_steps", "1",
)  # fmt: skip


def train(folder: Path, *arguments: str) -> str:
    return trials.train([*SMALL, "--output_dir", str(folder), *arguments], 1, folder.with_suffix(".log"), None)


def relay(*arguments: str, status: int = 0) -> str:
    import os
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "runner", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train(
        folder / "run", "--tokenizer.kind", "char", "--model.hidden_size", "64", "--model.num_hidden_layers", "2",
        "--model.num_attention_heads", "2", "--model.intermediate_size", "128", "--max_steps", "2", "--eval_steps", "0",
    )  # fmt: skip
    relay("export", "--checkpoint", str(folder / "run"), "--output", str(folder / "exported"))
    return folder / "exported"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# PEFT asks for a name that transformers has changed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_run_with_adapters_finds_its_base_again_wherever_it_lies(base: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(base, here)
    run = tmp_path / "run"
    settings = ("--model.pretrained", str(here), "--lora.rank", "2", "--save_steps", "2", "--eval_steps", "2")
    train(run, *settings, "--max_steps", "6")
    before = load_file(run / "checkpoint-6" / "model.safetensors")
    names = set(load_file(run / "checkpoint-4" / "model.safetensors"))
    assert names and all("lora_" in name for name in names)
    assert size_of(run / "final") < size_of(here) and size_of(run / "checkpoint-4") < size_of(here)
    # The base moves: it is asked for by name, and found by its content.
    here.rename(there)
    told = relay("evaluate", str(run), status=2)
    assert f"is not at {here}" in told and "--model.pretrained" in told and len(told.splitlines()) <= 3
    moved = ("--model.pretrained", str(there))
    train(run, *settings[2:], *moved, "--max_steps", "6", "--resume_from_checkpoint", str(run / "checkpoint-4"))
    assert same_bits(before, load_file(run / "checkpoint-6" / "model.safetensors"))
    scores = relay("evaluate", str(run), *moved)
    assert "bits_per_byte" in scores
    assert relay("predict", str(run), *moved, "--prompt", "Anna", "--max_new_tokens", "3").count("Anna") == 1
    relay("average", str(run), "--best", "2", "--output", str(tmp_path / "mean"), *moved)
    assert all("lora_" in name for name in load_file(tmp_path / "mean" / "final" / "model.safetensors"))
    relay("export", str(run), "--output", str(tmp_path / "merged"), *moved)
    # PEFT reads final/ as it is, and has the logits of the merged model.
    ids = torch.randint(4, 20, (2, 9))
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(input_ids=ids).logits
        adapted: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(there), str(run / "final")).eval()
        assert float((adapted(input_ids=ids).logits - merged).abs().max()) < 1e-5
    # Another base is refused.
    from safetensors.torch import save_file

    tensors = load_file(there / "model.safetensors")
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, there / "model.safetensors", metadata={"format": "pt"})
    told = relay("predict", str(run), *moved, "--prompt", "Anna", status=2)
    assert "holds other weights" in told and len(told.splitlines()) <= 4


def test_a_run_that_holds_its_base_continues(base: Path, tmp_path: Path) -> None:
    """Checkpoints of version 0.1 hold the base, and no record of it."""
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    settings = ("--model.pretrained", str(base), "--lora.rank", "2", "--save_steps", "2", "--eval_steps", "0")
    train(run, *settings, "--max_steps", "2")
    from runner.checkpoints.manifest import MANIFEST, write_manifest

    tensors = load_file(base / "model.safetensors")
    for folder in (run / "checkpoint-2", run / "final"):
        own = load_file(folder / "model.safetensors")
        layers = {name.rpartition(".lora_")[0] for name in own}
        for name, value in tensors.items():
            module = f"base_model.model.{name.removesuffix('.weight')}"
            own[f"{module}{'.base_layer' if module in layers else ''}.weight"] = value
        save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
        for path in (folder / "assets" / "base.json", folder / "base.json"):
            path.unlink(missing_ok=True)
        if (folder / "state.json").is_file():
            state = json.loads((folder / "state.json").read_text())
            del state["layout"]
            (folder / "state.json").write_text(json.dumps(state))
        (folder / MANIFEST).unlink()
        write_manifest(folder)
    train(run, *settings, "--max_steps", "4", "--resume_from_checkpoint", "auto")
    found = load_file(run / "checkpoint-4" / "model.safetensors")
    assert any("base_layer" in name for name in found)
    assert "bits_per_byte" in relay("evaluate", str(run))


def test_final_holds_the_adapters_that_it_is_given(base: Path, tmp_path: Path) -> None:
    """final/ may hold the weights of another step than the model has."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from runner.checkpoints.tensors import model_tensors
    from runner.parts.adapters import LoraSettings, with_adapters

    model: Any = with_adapters(AutoModelForCausalLM.from_pretrained(base), LoraSettings(rank=2), base_is_elsewhere=True)
    given = {name: value + 1 for name, value in model_tensors(model).items()}
    model.save_pretrained(tmp_path, state_dict=given)
    adapters = load_file(tmp_path / "adapter_model.safetensors")
    assert len(adapters) == len(given)
    for name, value in given.items():
        assert adapters[name.replace(".default", "")].equal(value)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "GPT2"])
def test_a_base_in_bf16_gives_the_results_of_one_in_fp32(family: str) -> None:
    import copy

    import torch
    import transformers

    from runner.parts.adapters import LoraSettings, hold_base_in_bf16, with_adapters

    sizes: dict[str, Any] = dict(vocab_size=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    if family == "GPT2":
        base: Any = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=2, n_positions=32)
        )
    else:
        sizes |= dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
        name = f"{family}{'Text' if family == 'Gemma3' else ''}Config"
        config = getattr(transformers, name)(**sizes, intermediate_size=48, head_dim=16)
        base = getattr(transformers, f"{family}ForCausalLM")(config)
    torch.manual_seed(0)
    for parameter in base.parameters():
        # As a folder in bf16 gives them.
        parameter.data.normal_(0, 0.1).copy_(parameter.data.bfloat16())
    # Dropout would differ.
    first: Any = with_adapters(base, LoraSettings(rank=2), base_is_elsewhere=True).eval()
    for parameter in first.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.1)
    second: Any = copy.deepcopy(first)
    hold_base_in_bf16(second, "bf16")
    ids = torch.randint(3, 64, (2, 12))
    found = []
    for model in (first, second):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        logits.float().square().mean().backward()
        found.append((logits.detach(), [each.grad for each in model.parameters() if each.requires_grad]))
    assert found[0][0].equal(found[1][0])
    assert all(left.equal(right) for left, right in zip(found[0][1], found[1][1], strict=True))
    half = [each for each in second.parameters() if each.dtype == torch.bfloat16]
    assert half and all(each.dtype == torch.float32 for each in second.parameters() if each.requires_grad)
    assert second.get_input_embeddings().weight.dtype == torch.bfloat16
