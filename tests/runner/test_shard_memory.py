"""FSDP2: what each process holds of a model, in bytes."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from runner import trials
from runner.config import parse
from tests import shard_memory

TINY = ["--recipe", "text2sql", "--preset", "nano"]
DEEP = ["--recipe", "text2sql", "--preset", "tiny", "--model.num_hidden_layers", "20"]
SHORT = ["--mixed_precision", "no", "--batch_size", "2", "--micro_batch_size", "1", "--logging_steps", "1"]
SHORT += ["--eval_steps", "1", "--max_eval_examples", "2", "--eval_batch_size", "1", "--generation.max_new_tokens", "2"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_holds_its_shard_and_two_layers(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    tiny = [*TINY, *SHORT, "--max_steps", "1", "--output_dir", str(tmp_path / "tiny" / "run")]
    constant = max(max(each.values()) for each in shard_memory.train(tiny, 2, tmp_path / "tiny"))
    with torch.device("meta"):
        model = parse(DEEP).recipe.model()
    (layers,) = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    layer = 4 * sum(parameter.numel() for parameter in layers[0].parameters())
    # Weights, gradients and two moments in fp32.
    state = 16 * sum(parameter.numel() for parameter in model.parameters()) / 2
    assert state > 250e6 and layer < 10e6
    limit = constant + 1.25 * state + 2 * layer
    deep = [*DEEP, *SHORT, "--output_dir", str(tmp_path / "run")]
    for words in (["--max_steps", "1"], ["--max_steps", "2", "--resume_from_checkpoint", "auto"]):
        for rank, found in enumerate(shard_memory.train([*deep, *words], 2, tmp_path)):
            assert {"start", "train", "evaluate", "save", "end"} <= found.keys()
            above = {phase: f"{size / 1e6:.0f}" for phase, size in found.items() if size > limit}
            assert not above, f"rank {rank}, MB: {above}; the limit is {limit / 1e6:.0f}, a tiny model {constant}"
    # A model that has been trained is read one tensor at a time.
    trained = ["--recipe", "text2sql", "--model.pretrained", str(tmp_path / "run" / "final"), "--max_steps", "1"]
    for name, words in {
        "from": [*DEEP, "--init_from", str(tmp_path / "run"), "--max_steps", "1"],
        "pretrained": trained,
        "adapters": [*trained, "--lora.rank", "4"],
    }.items():
        for found in shard_memory.train([*words, *SHORT, "--output_dir", str(tmp_path / name)], 2, tmp_path):
            if name == "adapters":
                # PEFT's products of adapters are as large as the experts' weights, while a lane is computed.
                limit = constant + 1.25 * state / 4 + 2 * layer
                found = {"start": found["start"], "evaluate": found["evaluate"] - found["train"] + limit}
            above = {phase: f"{size / 1e6:.0f}" for phase, size in found.items() if size > limit}
            assert not above, f"{name}, MB: {above}; the limit is {limit / 1e6:.0f}"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_export_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    weights = sum(parameter.nbytes for parameter in parse(DEEP).recipe.model().parameters())
    for name, model in {"tiny": TINY, "deep": DEEP}.items():
        words = [*model, *SHORT, "--max_steps", "1", "--output_dir", str(tmp_path / name)]
        trials.train(words, 1, tmp_path / "log")
    for place in ("final", "checkpoint-latest"):
        constant = shard_memory.export(tmp_path / "tiny" / place, tmp_path / f"tiny-{place}")
        peak = shard_memory.export(tmp_path / "deep" / place, tmp_path / f"deep-{place}")
        assert (tmp_path / f"deep-{place}" / "model.safetensors").stat().st_size > weights
        assert peak - constant < 0.25 * weights, f"{place}: a tiny model takes {constant / 1e6:.0f} MB"
