"""What `make check` says of the vulnerabilities of the pinned packages."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {"name": "good", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "wanted", "status"),
    [
        ([GOOD, GOOD], "2 packages looked up, 0 known vulnerabilities", 0),
        ([GOOD, UNKNOWN], "1 packages looked up, 0 known vulnerabilities; no data on torch", 0),
        ([GOOD, BAD], "error: bad 2 has CVE-1: pin 3", 1),
        ([UNKNOWN], "vulnerabilities were not looked up: this index has no data on any of 1 packages", 0),
        (None, "vulnerabilities were not looked up: no route to host", 0),
    ],
)
def test_the_answer_becomes_lines_and_a_status(
    audit: ModuleType, packages: list[object] | None, wanted: str, status: int
) -> None:
    answer = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    lines, found = audit.verdict(answer, "no route to host")
    assert found == status and lines[0] == wanted
