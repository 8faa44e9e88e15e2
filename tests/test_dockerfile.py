"""What can be checked of the Dockerfile without Docker: its files, its arguments, and that its steps are the pages'.

Run alone: python -m pytest tests/test_dockerfile.py
"""

import fnmatch
import re
import shlex
from pathlib import Path

import pytest

from tests.launching import REPOSITORY

if not (REPOSITORY / "Dockerfile").is_file():
    pytest.skip("a package without its Dockerfile", allow_module_level=True)

KNOWN = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its words) for each instruction of a Dockerfile."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in joined.splitlines() if line.strip()]


def is_ignored(name: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves a top-level name out; the last pattern that matches decides."""
    ignored = False
    for pattern in patterns:
        if fnmatch.fnmatch(name, pattern.removeprefix("!")):
            ignored = not pattern.startswith("!")
    return ignored


def faults(text: str, ignore: str) -> list[str]:
    """What Docker would refuse, and what readers of Dockerfiles warn of."""
    found = instructions(text)
    patterns = [line for line in ignore.splitlines() if line and not line.startswith("#")]
    wrong = [f"{name} is no instruction" for name, _ in found if name not in KNOWN]
    arguments = {words.partition("=")[0] for name, words in found if name == "ARG"}
    for name, words in found:
        wrong += [f"{each} is not declared" for each in re.findall(r"\$\{(\w+)\}", words) if each not in arguments]
        if name == "COPY":
            for source in words.split()[:-1]:
                if not (REPOSITORY / source).exists():
                    wrong.append(f"{source} is not there")
                elif is_ignored(source.partition("/")[0], patterns):
                    wrong.append(f"{source} is in .dockerignore")
        if name == "RUN" and "pip install" in words and "-c constraints.txt" not in words:
            wrong.append(f"without the pinned versions: {words}")
    users = [words for name, words in found if name == "USER"]
    if users[-1:] in ([], ["root"]):
        wrong.append("the container runs as root")
    return wrong


DOCKERFILE = REPOSITORY / "Dockerfile"
IGNORE = REPOSITORY / ".dockerignore"


def test_the_dockerfile_copies_what_is_there_and_installs_what_is_pinned() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert not faults(text, IGNORE.read_text(encoding="utf-8"))
    # What setuptools reads has to be there before the package is installed.
    copied = {source for name, words in instructions(text) if name == "COPY" for source in words.split()[:-1]}
    assert copied >= {"runner", "recipes", "accelerate_configs", "pyproject.toml", "README.md", "LICENSE"}


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("COPY runner runner", "COPY runnner runner", "runnner is not there"),
        ("COPY runner runner", "COPY tests tests", "tests is in .dockerignore"),
        ("USER relay", "USER root", "as root"),
        ("-c constraints.txt --extra-index-url", "--extra-index-url", "without the pinned versions"),
        ("ARG EXTRAS=", "ARG EXTRA=", "EXTRAS is not declared"),
        ("WORKDIR /data", "WORKDIRS /data", "WORKDIRS is no instruction"),
    ],
)
def test_a_fault_of_a_dockerfile_is_found(old: str, new: str, part: str) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert old in text
    wrong = faults(text.replace(old, new), IGNORE.read_text(encoding="utf-8"))
    assert any(part in sentence for sentence in wrong), wrong


def test_the_build_arguments_of_the_page_are_those_of_the_dockerfile() -> None:
    arguments = {words.partition("=")[0] for name, words in instructions(DOCKERFILE.read_text(encoding="utf-8"))
                 if name == "ARG"}  # fmt: skip
    page = (REPOSITORY / "docs" / "installation.md").read_text(encoding="utf-8")
    named = re.findall(r"--build-arg (\w+)=", page)
    assert named and set(named) <= arguments


def test_the_extras_of_the_image_exist() -> None:
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    project = Path(REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for extra in extras.split(","):
        assert re.search(rf"^{re.escape(extra)} = \[", project, re.MULTILINE), shlex.quote(extra)
