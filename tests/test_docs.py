"""Law 9: every command and every YAML block of the README and the docs parses, and the example recipe runs.

A page is read from top to bottom in an empty folder. A Python or YAML block whose first line is a comment
with a file name is written there under that name, so that the commands below it find it, as they would for a
reader.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from runner import registry
from runner.__main__ import VERBS, module_of
from runner.commands.verify import VerifySettings
from runner.config import flatten, parse, settings_of, write_yaml
from runner.errors import RelayError
from runner.settings import RunSettings

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "recipes").glob("*/README.md")),
]
LAUNCH_CONFIGS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))
OURS = ("accelerate", "relay", "make", "torchrun", "python")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def blocks_of(page: Path) -> Iterator[Block]:
    """Every fenced block, in order."""
    language, lines, start = None, [], 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(\S*)", line)
        if fence and language is None:
            language, lines, start = fence[1], [], number
        elif fence:
            yield Block(language or "", "\n".join(lines) + "\n", start)
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{page.name}:{start}: this block is never closed"


def commands_of(text: str) -> list[list[str]]:
    """The command lines of a shell block that start one of our programs, as words; the rest is the shell."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        # What an `A=b` in front of a command sets is no part of it; after a pipe it is another program's.
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        for mark in ("|", "&&", ";", ">", "2>", "&"):
            words = words[: words.index(mark)] if mark in words else words
        if words and words[0].rpartition("/")[2] in OURS:
            found.append([words[0].rpartition("/")[2], *words[1:]])
    return found


def check_command(words: Sequence[str]) -> None:
    """Raises where a command could not even start: no such target, verb, launch option, setting or file."""
    program, rest = words[0], list(words[1:])
    if program == "make":
        check_make(rest)
    elif program == "accelerate":
        assert rest and rest[0] == "launch", f"accelerate {' '.join(rest[:1])} is nothing that Relay speaks of"
        check_launch(rest[1:])
    elif program == "relay":
        check_verb(rest)
    elif "-m" in rest and rest[rest.index("-m") + 1 :][:1] == ["runner"]:
        # python -m runner ..., torchrun --nproc_per_node 2 -m runner ...
        check_verb(rest[rest.index("-m") + 2 :])
    elif program == "torchrun":
        raise AssertionError(f"torchrun without -m runner: {shlex.join(words)}")


def check_make(rest: list[str]) -> None:
    """Raises where the Makefile has no such target or variable."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for word in rest:
        name, equals, _ = word.partition("=")
        pattern = rf"^{name} [?:]?=|\$\({name}\)|\$\(if \$\({name}\)" if equals else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile knows no {name}"


def check_launch(rest: list[str]) -> None:
    """Raises where `accelerate launch` does not know an option, or the run does not know a setting."""
    options = launcher().parse_args(rest)
    script = options.training_script.replace("\\", "/")
    assert script.endswith("runner/train.py"), f"accelerate launch starts {script}, not runner/train.py"
    if options.config_file:
        assert (REPOSITORY / options.config_file).is_file(), f"there is no {options.config_file}"
    check_training(options.training_script_args)


def check_training(flags: Sequence[str]) -> None:
    """Raises where a run does not know a setting; else leaves the config.yaml that the run would leave."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        config = parse(flags)
        if config.run.output_dir:
            folder = Path(config.run.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_yaml(config, folder / "config.yaml")


@functools.cache
def launcher():
    """The argument parser of `accelerate launch` itself."""
    return importlib.import_module("accelerate.commands.launch").launch_command_parser()


def check_verb(rest: list[str]) -> None:
    """Raises where `relay` has no such verb, or the verb no such flag."""
    if not rest or rest[0] in ("-h", "--help"):
        return
    verb, flags = rest[0], rest[1:]
    assert verb in VERBS, f"relay has no verb {verb}"
    if verb == "train":
        check_training(flags)
        return
    module = importlib.import_module(module_of(verb))
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        module.main(["--help"])
    known = set(re.findall(r"--([a-z][a-z0-9_.-]*)", shown.getvalue()))
    if verb in ("plan", "check", "find-lr", "evaluate", "verify"):
        # These take the settings of a training beside their own.
        owners = (RunSettings, *(registry.find(name) for name in registry.names()))
        known |= {"recipe", "preset", "config"} | {setting.flag for owner in owners for setting in settings_of(owner)}
    if verb == "verify":
        known |= {setting.flag for setting in settings_of(VerifySettings)}
    if verb == "predict":
        known |= {"checkpoint"} | request_flags(flags)
    for flag in flags:
        if flag.startswith("--"):
            name = flag[2:].partition("=")[0].replace("-", "_")
            assert name in {each.replace("-", "_") for each in known}, f"relay {verb} has no --{name}"


def request_flags(flags: Sequence[str]) -> set[str]:
    """What `relay predict` may be asked: by the recipe of the page's run, else by one of this repository."""
    folder = Path(flags[flags.index("--checkpoint") + 1])
    for run in (folder, folder.parent):
        if (run / "config.yaml").is_file():
            classes = [type(parse(["--config", str(run / "config.yaml")]).recipe)]
            break
    else:
        classes = [registry.find(name) for name in registry.names()]
    requests = [recipe.Request for recipe in classes if hasattr(recipe, "Request")]
    return {setting.flag for request in requests for setting in settings_of(request)}


def check_yaml(text: str) -> None:
    """Raises where a block is no YAML, or holds a setting that its recipe (or accelerate) does not have."""
    content = yaml.safe_load(text)
    assert isinstance(content, dict), "a YAML block holds settings as `name: value`"
    if "distributed_type" in content:
        return
    assert "recipe" in content, "a YAML block of settings says `recipe:`, so that a test can read it"
    file = Path("block.yaml")
    file.write_text(text, encoding="utf-8")
    config = parse(["--config", str(file)])
    read = {name: value for name, value in flatten(content) if name not in ("recipe", "preset")}
    assert read.keys() <= config.flat().keys()


def read_page(page: Path) -> list[str]:
    """Read a page in the present folder; returns a sentence for everything that would not work."""
    wrong = []
    for block in blocks_of(page):
        name = re.match(r"# (\S+\.(?:py|ya?ml))\n", block.text)
        if name and block.language in ("python", "yaml"):
            Path(name[1]).write_text(block.text, encoding="utf-8")
        try:
            if block.language == "yaml":
                check_yaml(block.text)
            for words in commands_of(block.text) if block.language in ("bash", "sh", "console") else []:
                check_command(words)
        except (AssertionError, RelayError, SystemExit, ImportError, ValueError) as error:
            wrong.append(f"{page.name}:{block.line}: {error}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_command_and_yaml_block_parses(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = read_page(page)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", LAUNCH_CONFIGS, ids=lambda file: file.name)
def test_the_first_line_of_a_launch_config_parses(file: Path) -> None:
    commands = commands_of(file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    assert len(commands) == 1
    check_command(commands[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not dead, f"{page.name} links to what is not there: {dead}"


TINY_RECIPE = """import dataclasses
@dataclasses.dataclass(frozen=True)
class Recipe:
    width: int = 3
"""
# (language of the block, its text, a part of the sentence that says what is wrong)
BAD_BLOCKS = [
    ("bash", "make demonstration", "no demonstration"),
    ("bash", "make demo SPEED=2", "no SPEED"),
    ("bash", "relay trian --recipe tiny.py", "no verb trian"),
    ("bash", "relay train --recipe tiny.py --learning_rat 1e-3", "learning_rate"),
    ("bash", "relay train --recipe no_such_recipe", "no_such_recipe"),
    (
        "bash",
        "cd x\nA=1 accelerate launch runner/train.py --recipe tiny.py \\\n  --max_stepps 3 | tee log",
        "max_steps",
    ),
    (
        "bash",
        "accelerate launch --config_file accelerate_configs/none.yaml runner/train.py --recipe tiny.py",
        "none",
    ),
    ("bash", "accelerate launch runner/start.py --recipe tiny.py", "not runner/train.py"),
    ("bash", "accelerate launch --numprocesses 2 runner/train.py --recipe tiny.py", "2"),
    ("bash", "relay train --recipe tiny.py --output_dir out\nrelay predict --checkpoint out --question x", "question"),
    ("bash", "torchrun --nproc_per_node 2 -m runner train --recipe tiny.py --seeed 3", "seed"),
    ("yaml", "recipe: tiny.py\nlearning_rat: 1.0e-3", "learning_rate"),
    ("yaml", "recipe: tiny.py\nlearning_rate: fast", "fast"),
    ("yaml", "recipe: tiny.py\nwidht: 4", "width"),
    ("yaml", "learning_rate: 1.0e-3", "recipe"),
]


@pytest.mark.parametrize(("language", "text", "said"), BAD_BLOCKS)
def test_a_block_that_would_not_work_is_found(
    language: str, text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY_RECIPE, encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n```{language}\n{text}\n```\n", encoding="utf-8")
    wrong = read_page(page)
    assert len(wrong) == 1 and said in wrong[0], wrong


def test_a_block_that_works_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = f"```python\n# tiny.py\n{TINY_RECIPE}```\n"
    settings = "```yaml\n# tiny.yaml\nrecipe: tiny.py\nwidth: 4\nlearning_rate: 1.0e-3\n```\n"
    launch = "accelerate launch --config_file accelerate_configs/cpu_2.yaml runner/train.py"
    commands = (
        f"```bash\ncd somewhere\nmake test\nOMP_NUM_THREADS=1 {launch} --config tiny.yaml \\\n  --width 5\n"
        "relay train --recipe tiny.py --max_steps 3 --output_dir out  # three steps\n"
        "python -m runner train --config out/config.yaml --resume-from-checkpoint auto > log\n```\n"
    )
    (tmp_path / "page.md").write_text(recipe + settings + commands, encoding="utf-8")
    assert read_page(tmp_path / "page.md") == []


def relay(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m runner` in a folder that is not the repository's."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "runner", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_recipe_of_write_a_recipe_runs_from_a_file_outside_the_tree(tmp_path: Path) -> None:
    blocks = list(blocks_of(REPOSITORY / "docs" / "write-a-recipe.md"))
    code = next(block.text for block in blocks if block.text.startswith("# waves.py\n"))
    assert len(code.splitlines()) < 100
    (tmp_path / "waves.py").write_text(code, encoding="utf-8")
    train, again = (
        next(
            [words[1:] for words in commands_of(block.text)]
            for block in blocks
            if "--recipe waves.py --max_steps" in block.text
        )[0],
        ["train", "--config", "runs/waves/config.yaml", "--resume_from_checkpoint", "auto"],
    )

    ended = relay(train, tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = (tmp_path / "runs/waves/metrics.jsonl").read_text().splitlines()
    scores = [event for event in map(json.loads, lines) if event["split"] == "eval"]
    assert scores[-1]["accuracy"] > 0.9
    assert (tmp_path / "runs/waves/final/model.safetensors").is_file()

    ended = relay(again, tmp_path)
    assert ended.returncode == 0 and "going on from" in ended.stdout, ended.stdout + ended.stderr

    ask = ["predict", "--checkpoint", "runs/waves", "--file", "wave.txt"]
    (tmp_path / "wave.txt").write_text(" ".join(str(math.sin(number / 4)) for number in range(64)))
    ended = relay(ask, tmp_path)
    assert ended.returncode == 0 and ended.stdout.splitlines()[-1] == "sine", ended.stdout + ended.stderr
    (tmp_path / "wave.txt").write_text("1 2 3")
    ended = relay(ask, tmp_path)
    assert ended.returncode == 2 and "wave.txt has 3 numbers" in ended.stderr, ended.stdout + ended.stderr
