"""The tables of docs/benchmarks.md are written by the benchmarks, between marks; the text around them is not."""

from pathlib import Path

import pytest

from tests.benchmarks import page
from tests.launching import REPOSITORY


def test_a_table_replaces_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    other = "<!-- bench:other -->\nstays\n<!-- /bench -->"
    path.write_text(f"before\n<!-- bench:loop -->\nold\n<!-- /bench -->\nafter\n{other}\nend\n", encoding="utf-8")
    monkeypatch.setenv(page.RECORDS, str(tmp_path / "tables.jsonl"))
    page.record("loop", ("program", "CPU ms"), [("Relay", "1.5"), ("bare", "1.4")], "medians of 3 rounds")
    page.record("loop", ("program", "CPU ms"), [("Relay", "7.5")], "medians of 5 rounds")
    tables = page.recorded(tmp_path / "tables.jsonl")
    page.write_into(path, "loop", page.block(tables, "python -m tests.benchmarks loop"))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- bench:loop -->\nMeasured 2")
    assert text.endswith(f"\n<!-- /bench -->\nafter\n{other}\nend\n")
    assert "old" not in text
    assert "| program | CPU ms |\n| --- | --- |\n| Relay | 1.5 |\n| bare | 1.4 |\n\n| program | CPU ms |" in text
    assert "medians of 3 rounds; medians of 5 rounds:" in text
    assert "```bash\npython -m tests.benchmarks loop\n```" in text


def test_a_page_without_the_marks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("text", encoding="utf-8")
    with pytest.raises(SystemExit, match="bench:loop"):
        page.write_into(path, "loop", "table")
    assert path.read_text(encoding="utf-8") == "text"


def test_every_benchmark_is_one_that_pytest_runs() -> None:
    for path in sorted((REPOSITORY / "tests" / "benchmarks").glob("bench_*.py")):
        assert "\ndef test_" in path.read_text(encoding="utf-8"), path.name


def test_the_page_has_a_place_for_every_benchmark_that_records_a_table() -> None:
    text = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "tests" / "benchmarks").glob("bench_*.py")):
        name = path.stem.removeprefix("bench_")
        if "page.record(" in path.read_text(encoding="utf-8"):
            assert f"<!-- bench:{name} -->\n" in text, name
