"""The tables of docs/coming-from.md for other tools: the names of Relay exist, and Relay says what the tables say.

The guides to language models have tests of their own: tests/recipes/language_model/test_coming_from.py.
"""

import re

import pytest

from runner import registry
from runner.fields import settings_of
from runner.other_tools import name_here
from runner.settings import RunSettings
from tests.recipes.language_model.test_coming_from import PAGE

TOOLS = ("HF Trainer", "Lightning", "axolotl")
# (heading, the recipe that the guide's task is here)
GUIDES = [
    ("Vantage", "text2sql"),
    ("nanoTabSTAR", "tabular"),
    ("attention-all-microbes", "microbiome"),
    ("axolotl", "language_model"),
]
# What Vantage's docs/TRAINING.md (commit 8a29dfe) lists under "Training Script Options", and types elsewhere.
VANTAGE = """
config data_dir output_dir resume_from_checkpoint wandb_project wandb_run_name seed debug num_train_steps learning_rate
datasets num_workers
""".split()
VANTAGE_KEYS = """
batch_size gradient_accumulation_steps gradient_checkpointing activation_checkpointing mixed_precision hidden_size
num_layers num_experts num_experts_per_token expert_capacity expert_dropout hidden_dropout learning_rate num_train_steps
optimizer weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_type warmup_steps min_lr_ratio
router_aux_loss_coef router_z_loss_coef augmentation_prob schema_perturbation_prob spider_weight bird_sql_weight
wiki_sql_weight gretel_synthetic_weight max_seq_length
""".split()


def rows_of(heading: str) -> list[list[str]]:
    """The cells of a part's table, without its head and rule."""
    part = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if row[0].strip() not in ("there", "---")]


def flags_of(*recipes: str) -> set[str]:
    owners = (RunSettings, *map(registry.find, recipes))
    return {setting.flag for owner in owners for setting in settings_of(owner)} | {"config", "preset", "recipe"}


@pytest.mark.parametrize(("heading", "recipe"), [*((tool, None) for tool in TOOLS), *GUIDES])
def test_what_is_named_as_ours_is_ours(heading: str, recipe: str | None) -> None:
    known = flags_of(recipe) if recipe else flags_of(*registry.names())
    rows = rows_of(heading)
    assert len(rows) > 10
    for there, here, remark in rows:
        name = here.strip("`").partition(" ")[0]
        assert name in known or (name == "none" and remark), f"{there} is said to be {here}"


@pytest.mark.parametrize("heading", TOOLS)
def test_relay_names_what_the_table_names(heading: str) -> None:
    known = flags_of("language_model")
    for there, here, _ in rows_of(heading):
        names = re.findall(r"`(\w+)`", there)
        assert names, there
        for name in names:
            message = name_here(name, known - {name}, "--")
            if here == "none":
                assert message is None or "Did you mean" not in message or name == "push_to_hub", (there, message)
            elif here.strip("`").partition(" ")[0] != name:
                assert message is not None and here.strip("`").partition(" ")[0] in message, (there, message)


def test_the_page_has_every_flag_and_key_of_vantage() -> None:
    there = {name for row in rows_of("Vantage") for name in re.findall(r"`([^`]+)`", row[0])}
    assert {f"--{name}" for name in VANTAGE} | set(VANTAGE_KEYS) <= there
