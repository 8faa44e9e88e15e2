"""Command lines and YAML files as people type them: read as meant, or refused by name.

Run alone: python -m pytest tests/runner/test_command_line.py
"""

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path
from typing import Annotated

import pytest

from recipes.language_model.settings import GenerationRequest
from runner import registry
from runner.__main__ import main
from runner.commands.check import CheckSettings
from runner.commands.find_lr import FindSettings
from runner.commands.launch import LaunchSettings
from runner.commands.plan import PlanSettings
from runner.commands.verify import VerifySettings
from runner.config import parse, parse_into
from runner.errors import ConfigError
from runner.fields import settings_of
from runner.other_tools import TABLE, VALUES
from runner.parts.setting_types import Commas, Position, range_of
from runner.settings import RunSettings
from runner.yaml_file import read_launch_config, read_yaml
from tests.launching import REPOSITORY, TOY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of every kind."""

    run: Annotated[str, Position("RUN", "runs/NAME", "the folder of a run")]
    """Folder."""
    question: str = "which ?"
    """Text."""
    count: int = 3
    """A number."""
    share: float = 0.5
    """A share."""
    names: Commas | None = None
    """Names."""
    sources: tuple[str, ...] = ()
    """Sources."""
    stream: bool = True
    """A switch."""


def read(*words: str) -> Flags:
    return parse_into(Flags, ["here", *words], "relay try")


def refusal(*words: str) -> str:
    """The message of a refused command line; it must be short and without a double full stop."""
    with pytest.raises(ConfigError) as error:
        parse(list(words))
    message = str(error.value)
    assert len(message.splitlines()) <= 3 and ".." not in message.replace("...", ""), message
    return message


def filed(tmp_path: Path, text: str, recipe: str = "text2sql") -> list[str]:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return ["--recipe", recipe, "--config", str(file)]


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--question", "--x"], "question", "--x"),
        (["--question=--x"], "question", "--x"),
        (["--question=-5"], "question", "-5"),
        (["--question", "-5"], "question", "-5"),
        (["--question", "-- is a comment in SQL ?"], "question", "-- is a comment in SQL ?"),
        (["--question", "--what is it"], "question", "--what is it"),
        (["--question", "a=b"], "question", "a=b"),
        (["--question=a=b"], "question", "a=b"),
        (["--question", "-v"], "question", "-v"),
        (["--question="], "question", ""),
        (["--question", "[a], (b) {c}"], "question", "[a], (b) {c}"),
        (["--count", "-5"], "count", -5),
        (["--count=-5"], "count", -5),
        (["--count", "1_000"], "count", 1000),
        (["--share", "-1e-3"], "share", -1e-3),
        (["--share", ".5"], "share", 0.5),
        (["--names", "a", "b"], "names", "a,b"),
        (["--names", "a,b"], "names", "a,b"),
        (["--sources", "a", "b"], "sources", ("a", "b")),
        (["--sources", "a", "--sources", "b"], "sources", ("a", "b")),
        (["--no_stream"], "stream", False),
        (["--no-stream"], "stream", False),
        (["--stream", "no"], "stream", False),
        (["--stream=off"], "stream", False),
        (["--stream"], "stream", True),
    ],
)
def test_values_are_read_as_they_are_meant(words: list[str], name: str, value: object) -> None:
    assert getattr(read(*words), name) == value


@pytest.mark.parametrize(
    "words", [["runs/a b,[1]"], ["--count", "4", "runs/a b,[1]"], ["--run", "runs/a b,[1]"], ["--run=runs/a b,[1]"],
              ["--stream", "runs/a b,[1]"], ["--count", "4", "--", "runs/a b,[1]"]]
)  # fmt: skip
def test_the_run_is_typed_with_its_flag_or_alone_at_any_place(words: list[str]) -> None:
    assert parse_into(Flags, words, "relay try").run == "runs/a b,[1]"
    assert parse_into(Flags, ["--", "-a"], "relay try").run == "-a"


def test_a_path_in_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse(["--recipe", TOY, "--output_dir=~/my runs/[a], b"]).run.output_dir == f"{tmp_path}/my runs/[a], b"
    config = parse(filed(tmp_path, "output_dir: ~/runs\ndata: {dir: ~}\n"))
    assert config.run.output_dir == f"{tmp_path}/runs" and config.flat()["data.dir"] is None


@pytest.mark.parametrize("flag", ["--no_deterministic", "--no-deterministic", "--deterministic=false"])
def test_a_switch_of_a_training_is_turned_off(flag: str) -> None:
    assert not parse(["--recipe", TOY, "--deterministic", flag]).run.deterministic


@pytest.mark.parametrize("flag", ["--data.no_streaming", "--no_data.streaming", "--no-data.streaming"])
def test_a_switch_of_a_group_is_turned_off(flag: str) -> None:
    assert parse(["--recipe", "language_model", flag]).flat()["data.streaming"] is False


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--max_steps"], ["--max_steps came without a value"]),
        (["--max_steps", "--seed", "3"], ["--max_steps came without a value"]),
        (["--output_dir", "--seed", "3"], ["--output_dir came without a value"]),
        (["--output_dir="], ["output_dir is empty"]),
        (["--max_steps="], ["--max_steps is empty"]),
        (["--seed", "1", "2"], ["--seed takes one value", "'2'"]),
        (["--output_dir", "my", "runs"], ["--output_dir takes one value", "quotes"]),
        (["--deterministic", "maybe"], ["--deterministic is a switch", "maybe"]),
        (["--no_deterministic", "true"], ["--no_deterministic takes no value"]),
        (["--no_max_steps"], ["--no_max_steps"]),
        (["--max_steps", "1e3"], ["--max_steps is '1e3'", "such as 1000"]),
        (["--max_steps", "1,000"], ["such as 1000"]),
        (["--max_steps", "3.0"], ["such as 3"]),
        (["--learning_rate", "0,001"], ["--learning_rate is '0,001'", "such as 0.001"]),
        (["--max_steps", "\u22125"], ["U+2212", "type -5"]),
        (["\u2014max_steps", "5"], ["U+2014", "type --max_steps"]),
        (["\u2013seed=5"], ["U+2013"]),
        (["-lr", "1e-3"], ["There is no setting -lr", "--learning_rate"]),
        (["stray"], ["'stray' came where a flag was wanted"]),
        (["--learn", "1"], ["--learning_rate"]),
        (["--max_step", "1"], ["--max_steps"]),
        (["--adam", "1"], ["--adam_beta1"]),
        (["--greater_is_better", "perhaps"], ["--greater_is_better is 'perhaps'", "true or false"]),
        (["--optim", "admw"], ["Did you mean adamw?"]),
        (["--recipe"], ["--recipe came without a value"]),
        (["--preset", "--seed"], ["--preset came without a value"]),
        (["--hidden_size", "3"], ["--model.hidden_size"]),
    ],
)
def test_what_cannot_be_read_is_named(words: list[str], wanted: list[str]) -> None:
    message = refusal("--recipe", TOY, *words)
    for part in wanted:
        assert part in message


def test_a_flag_that_comes_twice_is_named_and_the_last_one_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--recipe", TOY, "--seed", "1", "--seed=2"]).run.seed == 2
    assert "--seed came twice, with '1' and with '2'" in capsys.readouterr().err
    assert parse(["--recipe", TOY, "--seed", "2", "--seed", "2"]).run.seed == 2
    assert not capsys.readouterr().err
    assert parse(["--recipe", "tabular", "--recipe", TOY]).recipe_name == TOY
    assert "--recipe came twice" in capsys.readouterr().err


# (what the file holds, setting, its value)
YAML = [
    ("lora:\n  target_modules: [q_proj, v_proj]\n", "lora.target_modules", "q_proj,v_proj"),
    ("exclude_examples: [3, 5]\n", "exclude_examples", "3,5"),
    ("lora:\n  target_modules:\n  - q_proj\n", "lora.target_modules", "q_proj"),
    ("learning_rate: 1e-4\n", "learning_rate", 1e-4),
    ("max-steps: 7\n", "max_steps", 7),
    ("max_steps: '7'\n", "max_steps", 7),
    ("seed: 0123\n", "seed", 123),
    ("output_dir: no\n", "output_dir", "no"),
    ("output_dir: on\n", "output_dir", "on"),
    ("output_dir: 2026-01-02\n", "output_dir", "2026-01-02"),
    ("output_dir: 0010\n", "output_dir", "0010"),
    ("output_dir: 1e3\n", "output_dir", "1e3"),
    ("output_dir: 12:30:00\n", "output_dir", "12:30:00"),
    ("output_dir: 'null'\n", "output_dir", None),
    ("output_dir:\n", "output_dir", None),
    ("mixed_precision: no\n", "mixed_precision", "no"),
    ("debug: yes\n", "debug", True),
    ("debug: Off\n", "debug", False),
    ("greater_is_better: on\n", "greater_is_better", True),
    ("data:\nseed: 4\n", "seed", 4),
    ("data: {}\nmodel:\nseed: 4\n", "seed", 4),
    ("data.dir: here\n", "data.dir", "here"),
    ("max_grad_norm: !!float 2\n", "max_grad_norm", 2.0),
    ("\ufeffseed: 4\n", "seed", 4),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "value"), YAML)
def test_a_value_in_yaml_is_what_stands_there(text: str, name: str, value: object, tmp_path: Path) -> None:
    assert parse(filed(tmp_path, text)).flat()[name] == value


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("seed: 1\nseed: 2\n", ["seed stands twice", "lines 1 and 2"]),
        ("model:\n  hidden_size: 8\n  hidden_size: 16\n", ["model.hidden_size stands twice", "lines 2 and 3"]),
        ("model.hidden_size: 8\nmodel:\n  hidden_size: 16\n", ["model.hidden_size stands twice"]),
        ("max-steps: 1\nmax_steps: 2\n", ["max_steps stands twice"]),
        ("max_steps: many\n", ["max_steps in", "run.yaml is 'many'", "a whole number"]),
        ("learning_rate: [1, 2]\n", ["learning_rate in", "is a list"]),
        ("output_dir: [a, b]\n", ["output_dir in", "is a list"]),
        ("seed:\n", ["seed in", "is empty"]),
        ("seed: {a: 1}\n", ["seed in", "is a group"]),
        ("data: spider\n", ["data in", "is a group"]),
        ("data: [spider]\n", ["data in", "is a group"]),
        ("exclude_examples: [[3], [5]]\n", ["exclude_examples in", "list of lists"]),
        ("optim: adamw_8bit\n", ["optim in", "Did you mean adamw?", "fp32"]),
        ("lr: 1\n", ["There is no setting lr in", "learning_rate"]),
        ("fp16: true\n", ["There is no setting fp16 in", "mixed_precision: fp16"]),
        ("debug: perhaps\n", ["debug in", "true or false"]),
        ("- seed\n", ["holds a list"]),
        ("text\n", ["holds one value"]),
        ("recipe: [a]\n", ["recipe in", "a list"]),
        ("seed: !!python/name:os.system x\n", ["seed in", "tag"]),
        ("[" * 5000, ["nested too deeply"]),
        ("a:\n" + "".join("  " * (level + 1) + "a:\n" for level in range(40)), ["nested too deeply"]),
        ("a: &a\n  b: *a\n", ["nested too deeply"]),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} {{" + ", ".join(f"k{k}: *a{n - 1}" for k in range(9)) + "}\n"
                                   for n in range(1, 9)), ["more than 10,000 values"]),
        ("x: " + "y" * 1_000_001, ["more than 1,000,000 bytes"]),
        ("seed: [1\n", ["cannot be read as YAML", "line"]),
    ],
)  # fmt: skip
def test_what_yaml_cannot_mean_is_named(text: str, wanted: list[str], tmp_path: Path) -> None:
    # The typed recipe is left out where the file must be read alone.
    words = filed(tmp_path, text)
    message = refusal(*(words[2:] if text.startswith("recipe") else words))
    for part in wanted:
        assert part in message, message


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 1,000,000 bytes"):
        read_yaml(Path("/dev/zero"))
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_launch_config(Path("/dev/zero"))


def test_a_deep_configuration_of_accelerate_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text("- " * 5000, encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_launch_config(file)


# (what is typed, the flag that the message names, and what differs)
ELSEWHERE = [
    ("--lr 1", "--learning_rate", ""),
    ("--bs 4", "--batch_size", "over all processes"),
    ("--batch 4", "--batch_size", ""),
    ("--epochs 3", "--num_train_epochs", ""),
    ("--fp16", "--mixed_precision fp16", ""),
    ("--bf16 true", "--mixed_precision bf16", ""),
    ("--per_device_train_batch_size 4", "--micro_batch_size", "batch_size"),
    ("--per-device-eval-batch-size 4", "--eval_batch_size", ""),
    ("--evaluation_strategy steps", "--eval_steps", "at the end"),
    ("--eval_strategy epoch", "--eval_steps", ""),
    ("--save_strategy no", "--save_steps", ""),
    ("--overwrite_output_dir", "--output_dir", "--resume_from_checkpoint auto"),
    ("--num_processes 2", "accelerate_configs/gpus_ddp.yaml", "launch"),
    ("--nproc_per_node 2", "launch", ""),
    ("--nproc 2", "launch", ""),
    ("--gpus 2", "launch", ""),
    ("--devices 2", "launch", ""),
    ("--load_best_model_at_end", "checkpoint-best", ""),
    ("--optimizer adam", "--optim", ""),
    ("--precision 16", "--mixed_precision", ""),
    ("--accelerator gpu", "CUDA_VISIBLE_DEVICES", ""),
    ("--max_epochs 3", "--num_train_epochs", ""),
    ("--warmup 10", "--warmup_steps", "--warmup_ratio"),
    ("--scheduler cosine", "--lr_scheduler_type", ""),
    ("--lr_scheduler linear", "--lr_scheduler_type", ""),
    ("--resume", "--resume_from_checkpoint", "auto"),
    ("--do_train", "relay evaluate", ""),
    ("--logging_dir x", "--output_dir", ""),
    ("--seed_everything 1", "--seed", ""),
    ("--patience 3", "--early_stopping_patience", "evaluations"),
    ("--wd 0.1", "--weight_decay", ""),
    ("--grad_accum 4", "--gradient_accumulation_steps", ""),
    ("--accumulate_grad_batches 4", "--gradient_accumulation_steps", ""),
    ("--gradient_clip_val 1", "--max_grad_norm", ""),
    ("--no_cuda", "CUDA_VISIBLE_DEVICES", ""),
    ("--use_cpu", "CUDA_VISIBLE_DEVICES", ""),
    ("--local_rank 0", "launch", ""),
    ("--push_to_hub", "--upload_to", "relay export"),
    ("--model_name_or_path x", "--model.pretrained", ""),
    ("--dataset_name x", "--data.source", ""),
    ("--train_file x", "--data.source", ""),
    ("--hub_token x", "environment", ""),
    ("--deepspeed x", "gpus_fsdp2", ""),
    ("--mixed_precision bfloat16", "Did you mean bf16?", ""),
    ("--mixed_precision float16", "Did you mean fp16?", ""),
    ("--mixed_precision fp32", "Did you mean no?", ""),
    ("--optim adamw_torch", "Did you mean adamw?", ""),
    ("--optim adamw_8bit", "Did you mean adamw?", "fp32"),
    ("--optim sgd", "Did you mean adamw?", "Muon"),
    ("--lr_scheduler_type constant_with_warmup", "Did you mean constant?", "--warmup_steps"),
    ("--lr_scheduler_type cosine_with_restarts", "Did you mean cosine?", "restart"),
    ("--report_to all", "Did you mean wandb?", ""),
    ("--max_seq_len 9", "--data.max_seq_length", ""),
    ("--n_layer 9", "--model.num_hidden_layers", ""),
    ("--max_train_samples 9", "--max_train_examples", ""),
    ("--lora_r 8", "--lora.rank", ""),
]


@pytest.mark.parametrize(("typed", "flag", "differs"), ELSEWHERE, ids=[row[0].split()[0] for row in ELSEWHERE])
def test_the_name_of_another_tool_leads_to_the_flag_here(typed: str, flag: str, differs: str) -> None:
    message = refusal("--recipe", "language_model", *typed.split())
    assert flag in message and differs in message, message


def test_the_table_of_other_tools_names_settings_that_there_are() -> None:
    from runner import registry

    owners = (RunSettings, *map(registry.find, registry.names()))
    known = {setting.flag: setting for owner in owners for setting in settings_of(owner)} | {"config": None}
    for each in TABLE:
        words = each.here.split()
        values = words[1:] if len(words) == 2 and words[1] not in known else []
        assert {*words} - {*values} <= known.keys(), each
        setting = known[words[0]] if values else None
        assert setting is None or values[0] in setting.choices, each
        assert each.here or each.differs, each
    names = [name for each in TABLE for name in each.names.split()]
    assert len(names) == len({*names}), sorted({name for name in names if names.count(name) > 1})
    assert not {*names} & {setting.flag for setting in settings_of(RunSettings)}
    for setting, values_there in VALUES.items():
        found = known[setting]
        assert found is not None and {*values_there.values()} <= {*found.choices}


@pytest.mark.parametrize("recipe", ["text2sql", "language_model", "tabular", "microbiome", TOY])
def test_the_first_page_of_help_is_short_and_grouped(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--recipe", recipe, "--help"])
    page = capsys.readouterr().out
    flags = [line.split()[0] for line in page.splitlines() if line.startswith("  --")]
    assert not ended.value.code and 13 <= len(flags) <= 18
    assert {"--output_dir", "--max_steps", "--learning_rate", "--batch_size"} <= {*flags}
    assert len([line for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")]) >= 4
    assert "--help_all" in page
    for spelling in ("--help_all", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            parse(["--recipe", recipe, spelling])
        everything = capsys.readouterr().out
        owners = (RunSettings, type(parse(["--recipe", recipe]).recipe))
        assert all(setting.flag in everything for owner in owners for setting in settings_of(owner))


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["version"]])
def test_the_version_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import runner

    assert main(words) == 0 and capsys.readouterr().out == f"relay {runner.__version__}\n"


@pytest.mark.parametrize("words", ["train --help", "train --recipe tabular --help_all", "--help", "recipes"])
@pytest.mark.parametrize("program", ["-m runner", "runner/train.py"])
def test_a_reader_that_closes_early_sees_no_traceback(words: str, program: str) -> None:
    if program.endswith(".py"):
        words = words.replace("train ", "") if words.startswith("train") else "--recipe text2sql --help"
    command = f"{sys.executable} -u {program} {words} | true; {sys.executable} {program} {words} | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout and not done.stderr, done.stderr


def flags_without_range(owner: type) -> list[str]:
    """The settings of a dataclass that are numbers and have no range."""

    def parts(hint: object) -> set[object]:
        return {hint}.union(*(parts(part) for part in typing.get_args(hint)))

    numbers = [each for each in settings_of(owner) if parts(each.hint) & {int, float}]
    return [each.flag for each in numbers if range_of(each.hint) is None]


def test_every_number_that_can_be_typed_has_a_range() -> None:
    owners: list[type] = [RunSettings, *(registry.find(name) for name in registry.names())]
    owners += [LaunchSettings, VerifySettings, FindSettings, PlanSettings, CheckSettings, GenerationRequest]
    assert {owner.__name__: flags_without_range(owner) for owner in owners} == {owner.__name__: [] for owner in owners}
