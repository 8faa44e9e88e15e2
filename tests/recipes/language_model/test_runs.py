"""The language-model recipe through the command line: resuming on 1 and 2 processes, adapters, export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.language_model import demo
from tests.launching import REPOSITORY, metrics, same_bits, weights

SMALL = (
    "--recipe", "language_model", "--tokenizer.kind", "char", "--mixed_precision", "no", "--model.hidden_size", "16",
    "--model.num_hidden_layers", "1", "--model.num_attention_heads", "2", "--model.intermediate_size", "32",
    "--data.max_seq_length", "32", "--batch_size", "8", "--micro_batch_size", "2", "--logging_steps", "1",
    "--eval_steps", "0", "--save_steps", "0",
)  # fmt: skip


def relay(*arguments: str, processes: int = 1) -> str:
    """A command to its good end; what it printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "runner", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def steps(run: Path) -> dict[int, str]:
    """What each step consumed, as a run's ledger has it."""
    found = {}
    for line in (run / "ledger.jsonl").read_text().splitlines():
        event = json.loads(line)
        sums = event.get("steps", "")
        found |= {event["first_step"] + at // 16: sums[at : at + 16] for at in range(0, len(sums), 16)}
    return found


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    rows = demo.stories(400).split("\n\n")
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return file


def test_a_shuffled_stream_goes_on_twice_on_other_numbers_of_processes_to_the_bit(
    tmp_path: Path, stories: Path
) -> None:
    settings = (*SMALL, "--data.source", str(stories), "--data.streaming", "True", "--data.shuffle_window", "3000",
                "--deterministic", "--model.dropout", "0.1", "--max_steps", "12")  # fmt: skip
    relay("train", *settings, "--output_dir", str(tmp_path / "whole"))
    saves = ("--save_steps", "4", "--output_dir", str(tmp_path / "parts"))
    relay("train", *settings, *saves)
    for step, processes in ((4, 2), (8, 1)):
        # What came after the checkpoint is made again, from it alone.
        start = tmp_path / "parts" / f"checkpoint-{step}"
        relay("train", *settings, *saves, "--resume_from_checkpoint", str(start), processes=processes)
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    consumed = [steps(tmp_path / name) for name in ("whole", "parts")]
    assert len(consumed[0]) == 12 and consumed[0] == consumed[1]
    assert all("bits_per_byte" in event and "perplexity" in event for event in metrics(tmp_path / "whole"))


# PEFT asks for a name that transformers has changed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_trained_asked_and_exported(tmp_path: Path, stories: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapted = tmp_path / "base", tmp_path / "adapted"
    relay("train", *SMALL, "--data.source", str(stories), "--max_steps", "4", "--output_dir", str(base))
    relay("export", "--checkpoint", str(base), "--output", str(tmp_path / "exported"))
    shown = relay(
        "train", "--recipe", "language_model", "--data.source", str(stories), "--data.max_seq_length", "32",
        "--model.pretrained", str(tmp_path / "exported"), "--lora.rank", "2", "--max_steps", "4", "--mixed_precision",
        "no", "--batch_size", "4", "--micro_batch_size", "2", "--eval_steps", "0", "--output_dir", str(adapted),
    )  # fmt: skip
    assert "of them trained" in shown
    assert (adapted / "final" / "adapter_model.safetensors").is_file()
    assert relay(
        "predict",
        "--recipe",
        "language_model",
        "--checkpoint",
        str(adapted),
        "--prompt",
        "Anna",
        "--max_new_tokens",
        "5",
    ).startswith("Anna")
    relay("export", "--checkpoint", str(adapted), "--output", str(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("Anna had a dog", return_tensors="pt")["input_ids"]
    peft = pytest.importorskip("peft")
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    before = {name: value.clone() for name, value in original.state_dict().items()}
    with_adapters = peft.PeftModel.from_pretrained(original, adapted / "final").eval()
    with torch.no_grad():
        gap = (merged(input_ids=ids).logits - with_adapters(input_ids=ids).logits).abs().max()
        assert float(gap) < 1e-5
    kept = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for name, value in weights(adapted).items()
        if "lora_" not in name
    }
    assert all(before[name].equal(value) for name, value in kept.items())
