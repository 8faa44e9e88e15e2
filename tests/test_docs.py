"""Every command and every YAML block of the README and the docs parses, and the output they show is what is printed.

A page is read from top to bottom in an empty folder. A Python or YAML block whose first line is a comment
with a file name is written there under that name, so that the commands below it find it, as they would for a
reader.

A `text` block after the comment `<!-- output -->` is compared with what the block of commands before it prints. A line
`...` stands for any lines, and ` ...` at the end of a line for its rest. The wording must be the same; numbers that
depend on the machine (decimal fractions, times, rates, dates) match any other. The comment may say more, after commas:

- `with --max_steps 20`: the test adds these flags, so that it is quick, and every number matches any other;
- `any numbers`: every number matches any other;
- `labels only`: of each line `label: value` only the label is compared, and lines without one are skipped;
- `Ctrl-C at step 20`: the test sends SIGINT when the first progress line of that step or a later one is printed.

A block of commands after `<!-- run -->` is run without a comparison; one after `<!-- mistake -->` must be refused.
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
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
    REPOSITORY / "CONTRIBUTING.md",
    *sorted(page for page in (REPOSITORY / "docs").rglob("*.md") if "_generated" not in page.parts),
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
    mark: str = ""
    """What the HTML comment on the line before it says."""


def blocks_of(page: Path) -> Iterator[Block]:
    """Every fenced block, in order."""
    language, lines, start, mark = None, [], 0, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(\S*)", line)
        if fence and language is None:
            language, lines, start = fence[1], [], number
        elif fence:
            yield Block(language or "", "\n".join(lines) + "\n", start, mark)
            language, mark = None, ""
        elif language is not None:
            lines.append(line)
        elif line.strip():
            comment = re.fullmatch(r"\s*<!-- (.*) -->\s*", line)
            mark = comment[1] if comment else ""
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
    if verb in ("plan", "check", "find-lr", "sweep", "evaluate", "verify", "doctor", "launch"):
        # These take the settings of a training beside their own.
        owners = (RunSettings, *(registry.find(name) for name in registry.names()))
        known |= {"recipe", "preset", "config"} | {setting.flag for owner in owners for setting in settings_of(owner)}
    if verb == "verify":
        known |= {setting.flag for setting in settings_of(VerifySettings)}
    if verb == "predict":
        known |= {"checkpoint", "recipe", "trust_recipe"} | request_flags(flags)
    for flag in flags:
        if flag.startswith("--"):
            name = flag[2:].partition("=")[0].replace("-", "_")
            assert name in {each.replace("-", "_") for each in known}, f"relay {verb} has no --{name}"


def request_flags(flags: Sequence[str]) -> set[str]:
    """What `relay predict` may be asked: by the recipe of the page's run, else by one of this repository."""
    folder = Path(flags[flags.index("--checkpoint") + 1] if "--checkpoint" in flags else flags[0])
    for run in (folder, folder.parent):
        if (run / "config.yaml").is_file():
            classes = [type(parse(["--config", str(run / "config.yaml")]).recipe)]
            break
    else:
        classes = [registry.find(name) for name in registry.names()]
    requests = [recipe.Request for recipe in classes if recipe.Request is not None]
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
                if block.mark == "mistake":
                    with pytest.raises((AssertionError, RelayError)):
                        check_command(words)
                else:
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


# Numbers that differ from machine to machine, and every number.
VARYING = r"CPU \S+|\d{8}-\d{6}|\d+:\d\d(?::\d\d)?|\d[\d,]*\.\d+(?:e[+-]?\d+)?"
VARYING += r"|\d[\d,]*(?= (?:examples/s|tokens/s|threads|seconds|s\b))"
NUMBER = r"CPU \S+|\d[\d,]*(?:[.:]\d+)*(?:e[+-]?\d+)?"


@dataclasses.dataclass(frozen=True)
class Shown:
    """How the output that a page shows is compared with what is printed: the words of its comment."""

    flags: tuple[str, ...] = ()
    any_numbers: bool = False
    labels_only: bool = False
    interrupt_at: int | None = None

    @classmethod
    def of(cls, mark: str) -> "Shown | None":
        """What a comment asks for; None where it is no comment about output."""
        first, *options = re.split(r",\s*| (?=with )", mark)
        if first != "output":
            return None
        found: dict[str, Any] = {}
        for option in options:
            if option.startswith("with "):
                found |= {"flags": tuple(shlex.split(option)[1:]), "any_numbers": True}
            elif option.startswith("Ctrl-C at step "):
                found |= {"interrupt_at": int(option.rpartition(" ")[2]), "any_numbers": True}
            else:
                known = {"any numbers": "any_numbers", "labels only": "labels_only"}
                found[known[option]] = True
        return cls(**found)

    def pattern(self, line: str) -> str:
        """The regular expression of one line."""
        label = re.match(r"\w+:", line)
        if line.strip() == "..." or (self.labels_only and not label):
            return r"(?:.*\n)*"
        if self.labels_only and label:
            return r"(?:.*\n)*" + label[0] + r".*\n"
        line, rest = (line.removesuffix(" ..."), ".*") if line.endswith(" ...") else (line, "")
        varying = NUMBER if self.any_numbers else VARYING
        parts, end = [], 0
        for number in re.finditer(varying, line):
            parts += [re.escape(line[end : number.start()]), f"(?:{varying})"]
            end = number.end()
        return "".join(parts) + re.escape(line[end:]) + rest + r"\n"


def falsified(shown: str, printed: str, how: Shown) -> str | None:
    """The first line of `shown` that is not printed where it stands; None where the two agree."""
    pattern, before = "", ""
    for line in shown.splitlines():
        pattern += how.pattern(line)
        if not re.match(pattern, printed):
            return line
        before = line
    agree = re.fullmatch(pattern, printed) or (how.labels_only and re.match(pattern, printed))
    return None if agree else f"what follows after: {before}"


def run_block(block: Block, how: Shown, folder: Path) -> str:
    """What the commands of a block print on stdout, and after a mistake or an interruption on stderr."""
    printed = ""
    for words in commands_of(block.text):
        program, rest = words[0], words[1:]
        if program != "python":
            for flag in how.flags[::2]:
                if flag in rest:
                    del rest[rest.index(flag) : rest.index(flag) + 2]
            rest += how.flags
        modules = {"relay": ["-m", "runner"], "accelerate": ["-m", "accelerate.commands.accelerate_cli"], "python": []}
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with (
            (folder / "stderr.log").open("w+", encoding="utf-8") as errors,
            subprocess.Popen(
                [sys.executable, *modules[program], *rest],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                # The reader does not type the flags that the test adds.
                if any(line.startswith(f"changed setting {flag.removeprefix('--')}: ") for flag in how.flags[::2]):
                    continue
                printed += line
                step = re.search(r"step (\d+)/", line)
                if how.interrupt_at is not None and step and int(step[1]) >= how.interrupt_at:
                    process.send_signal(signal.SIGINT)
                    how = dataclasses.replace(how, interrupt_at=None)
            status = process.wait(timeout=60)
            errors.seek(0)
            complaints = errors.read()
        assert status in (0, 2, 75), f"{shlex.join(words)} ended with status {status}:\n{printed}{complaints}"
        if status:
            # Libraries warn on some machines only.
            printed += "".join(line for line in complaints.splitlines(True) if not line.startswith("warning: "))
    return printed


def untrue_outputs(page: Path, folder: Path) -> list[str]:
    """Run the commands of a page whose output it shows; returns a sentence for every output that is another one."""
    for name in ("runner", "recipes", "accelerate_configs"):
        (folder / name).symlink_to(REPOSITORY / name)
    wrong = []
    commands: Block | None = None
    for block in blocks_of(page):
        name = re.match(r"# (\S+\.(?:py|ya?ml))\n", block.text)
        if name and block.language in ("python", "yaml"):
            (folder / name[1]).write_text(block.text, encoding="utf-8")
        how = Shown.of(block.mark)
        if block.language == "bash":
            commands = block
            if block.mark == "run":
                run_block(block, Shown(), folder)
        elif how is not None:
            assert commands is not None, f"{page.name}:{block.line}: output without a command before it"
            printed = run_block(commands, how, folder)
            line = falsified(block.text, printed, how)
            if line is not None:
                wrong.append(f"{page.name}:{block.line}: not printed: {line}\nPrinted was:\n{printed}")
    return wrong


def shows_output(page: Path) -> bool:
    return any(Shown.of(block.mark) for block in blocks_of(page))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", list(filter(shows_output, PAGES)), ids=lambda page: page.relative_to(REPOSITORY).as_posix()
)
def test_the_output_on_a_page_is_what_its_commands_print(page: Path, tmp_path: Path) -> None:
    wrong = untrue_outputs(page, tmp_path)
    assert not wrong, "\n".join(wrong)


PRINTED = "model: Mixtral, 755,328 parameters\nstep 50/1030  loss 1.3186  46 examples/s  left 11:20\nwritten: out\n"
# (what a page shows, the words of its comment, the line that is not what PRINTED has)
OUTPUTS = [
    (PRINTED, "output", None),
    (
        "model: Mixtral, 755,328 parameters\nstep 50/1030  loss 0.2  9,146 examples/s  left 1:00:20\n...\n",
        "output",
        None,
    ),
    ("...\nwritten: out\n", "output", None),
    ("model: Mixtral, ...\n...\nwritten: out\n", "output", None),
    ("model: Mistral, ...\n...\nwritten: out\n", "output", "model: Mistral"),
    ("model: Mixtral, 755,328 parameters\n", "output", "what follows after: model: Mixtral, 755,328 parameters"),
    ("model: Mistral, 755,328 parameters\n...\n", "output", "model: Mistral, 755,328 parameters"),
    ("model: Mixtral, 755,329 parameters\n...\n", "output", "model: Mixtral, 755,329 parameters"),
    ("model: Mixtral, 12 parameters\n...\n", "output with --max_steps 3", None),
    ("...\nstep 50/1030  losses 1.3186  46 examples/s  left 11:20\n...\n", "output", "step 50/1030  losses 1.3186"),
    ("model: other\nwritten: elsewhere\n", "output, labels only", None),
    ("model: other\nwrote: elsewhere\n", "output, labels only", "wrote: elsewhere"),
]


@pytest.mark.parametrize(("shown", "mark", "wrong"), OUTPUTS)
def test_a_falsified_output_is_found(shown: str, mark: str, wrong: str | None) -> None:
    how = Shown.of(mark)
    assert how is not None
    found = falsified(shown, PRINTED, how)
    assert found == wrong or (wrong is not None and found is not None and found.startswith(wrong))


def test_a_falsified_page_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    told = "```bash\npython -c \"print('one 1.5')\"\n```\n\n<!-- output -->\n```text\n{}\n```\n"
    page.write_text(told.format("one 2.5") + told.format("two 1.5"), encoding="utf-8")
    (tmp_path / "folder").mkdir()
    wrong = untrue_outputs(page, tmp_path / "folder")
    assert len(wrong) == 1 and "page.md:14: not printed: two 1.5" in wrong[0]


def test_pre_commit_runs_what_make_check_runs() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    # What needs the network is for CI alone.
    lines = [line for line in recipe[1].splitlines() if "audit" not in line]
    wanted = [line.strip().removeprefix("@$(BIN)/").partition(" --pythonpath")[0] for line in lines]
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == wanted
    assert all(hook["language"] == "system" for hook in hooks), "a hook of another language is downloaded"


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
