"""A few tries of every attack, with a fixed seed. `make torture` tries each of them many times.

Run alone: python -m pytest tests/torture
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import REPOSITORY
from tests.torture import __main__ as torture
from tests.torture.cases import CASES, Case


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What came of each attack; in a process of its own, which faults.c is preloaded into and which counts orphans."""
    path = tmp_path_factory.mktemp("torture") / "results.json"
    subprocess.run([sys.executable, "-m", "tests.torture", "--json", path], cwd=REPOSITORY, check=False)
    return {result["case"]: result for result in json.loads(path.read_text(encoding="utf-8"))}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.attack.__name__)
def test_every_try_is_survived(results: dict[str, dict[str, object]], case: Case) -> None:
    result = results[case.name]
    if result["skipped"]:
        pytest.skip(str(result["skipped"]))
    assert not result["wrong"], "\n".join(result["wrong"])  # type: ignore[call-overload]
    assert result["tried"] == result["survived"] == case.quick
    assert result["lost"] == result["hangs"] == result["orphans"] == 0


def test_the_table_replaces_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- torture -->\nold\n<!-- /torture -->\nafter\n", encoding="utf-8")
    good, not_tried = torture.Tally("kill", 3, 3), torture.Tally("cut", skipped="no network")
    torture.write_into(page, torture.table([good, not_tried], "make torture DRAWS=3"))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- torture -->\n| attack |") and text.endswith("\n<!-- /torture -->\nafter\n")
    assert "| kill | 3 | 3 | 0 | 0 | 0 |" in text and "| cut | not tried: no network |" in text and "old" not in text


def test_every_attack_stands_in_the_documentation() -> None:
    page = (REPOSITORY / "docs" / "resume-anywhere.md").read_text(encoding="utf-8")
    _, _, rest = page.partition(torture.MARKS[0])
    assert all(f"| {case.name} |" in rest.partition(torture.MARKS[1])[0] for case in CASES)
