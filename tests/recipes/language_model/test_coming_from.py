"""The page for those who come from the two guides: every flag of theirs is there, and every setting of ours exists."""

import re

import pytest

from recipes.language_model.recipe import Recipe
from runner.config import settings_of
from runner.settings import RunSettings
from tests.launching import REPOSITORY

PAGE = REPOSITORY / "docs" / "coming-from.md"
# What the guides' tables and examples name (DevAdalat/sync, docs/TRAIN_ADVANCED_GUIDE.md and GENERATION_GUIDE.md;
# Cal-ly/FundamentaLLM, docs/training_guide.md, pages/guide/training.md and cli-overview.md).
TRAIN_ADVANCED = """
dataset-id text-column dataset-config split val-split max-train-examples max-val-examples auto-vocab-size vocab-size
min-vocab-size max-vocab-size tokenizer-train-examples retrain-tokenizer tokenizer-path model-preset d-model num-layers
num-heads d-ff seq-len dropout-rate activation no-rmsnorm no-swiglu no-rope use-lora lora-rank epochs batch-size
gradient-accumulation-steps learning-rate weight-decay warmup-steps grad-clip no-streaming shuffle-buffer-size stride
use-mixed-precision output-dir log-every save-every eval-every resume-from cloud-provider cloud-bucket cloud-region
cloud-prefix azure-sas-token azure-account-name seed checkpoint prompt max-length temperature top-k top-p
""".split()
FUNDAMENTALLM = """
config output-dir epochs batch-size accumulation-steps learning-rate model-dim num-heads num-layers ff-dim dropout
max-seq-len sequence-length val-split lr-schedule warmup-steps gradient-clip early-stopping patience resume-from
mixed-precision seed device tensorboard log-dir wandb project profile prompt max-tokens temperature top-k top-p
num-samples interactive output-file
""".split()
FUNDAMENTALLM_KEYS = """
d_model num_heads num_layers d_ff dropout batch_size gradient_accumulation_steps warmup_steps scheduler min_lr_ratio
step_size gamma validation_split early_stopping_patience use_mixed_precision gradient_clip_norm save_every_n_epochs
keep_last_n save_best seed deterministic
""".split()
OURS = {each.flag for owner in (RunSettings, Recipe, Recipe.Request) for each in settings_of(owner)}
OURS |= {"recipe", "preset", "config", "checkpoint"}


def rows_of(heading: str) -> list[list[str]]:
    """The cells of a part's tables, without heads and rules."""
    part = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("`train_advanced`", [f"--{name}" for name in TRAIN_ADVANCED]),
        ("FundamentaLLM", [*(f"--{name}" for name in FUNDAMENTALLM), "-o", *FUNDAMENTALLM_KEYS]),
    ],
)
def test_the_page_has_every_flag_of_the_guides(heading: str, names: list[str]) -> None:
    there = {name for row in rows_of(heading) for name in re.findall(r"`([^`]+)`", row[0])}
    assert set(names) == there


def test_the_recipes_page_has_every_setting_and_its_default() -> None:
    page = PAGE.parent / "recipes" / "language_model.md"
    part = page.read_text(encoding="utf-8").partition("\n## Settings\n")[2]
    documented = re.findall(r"^\| `([a-z_.]+)` \| ([^|]*) \| [^|]+ \|$", part, re.MULTILINE)
    plain = Recipe()
    defaults = [(each.flag, each.get(plain)) for each in settings_of(Recipe)]
    assert documented == [
        (flag, "none" if value is None else str(value).replace("True", "true").replace("False", "false"))
        for flag, value in defaults
    ]


@pytest.mark.parametrize("heading", ["`train_advanced`", "FundamentaLLM"])
def test_what_is_named_as_ours_is_ours(heading: str) -> None:
    rows = rows_of(heading)
    assert rows
    for there, here, remark in rows:
        if here == "none" or here.startswith("environment: "):
            assert remark or here != "none", f"{there} is nothing here, and nobody says why"
            continue
        name, _, value = here.strip("`").partition(" ")
        assert name in OURS, f"{there} is said to be {name}"
        assert re.fullmatch(r"[a-z0-9]*", value)
