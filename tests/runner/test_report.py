"""The page of a run stands alone and shows what was logged. Run alone: python -m pytest tests/runner/test_report.py"""

import json
import re
import xml.etree.ElementTree
from pathlib import Path

import pytest

from runner import report
from runner.__main__ import main
from tests.launching import train


def test_a_run_leaves_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    train(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|@import|<script", page)
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) >= 5
    for picture in pictures:
        xml.etree.ElementTree.fromstring(picture)
    assert "gradient norm" in page and "learning rate" in page and "batch_size: 16" in page
    # The best of three evaluations stands out.
    assert page.count('<tr class="best">') == 1


def test_metrics_by_layer_become_strips_and_odd_numbers_do_no_harm(tmp_path: Path) -> None:
    events = [
        {"step": 1, "split": "train", "loss": 2.0, "load": [[1.0, 2.0], [3.0, 4.0]], "flat": 0.0, "huge": 2e34},
        {"step": 2, "split": "train", "loss": None, "load": [[1.0, 2.0], [3.0, 4.0]], "flat": 0.0},
        {"step": 2, "split": "eval", "loss": 1.0, "score<&>": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert page.count("<rect") == 8 and "score&lt;&amp;&gt;" in page


def test_the_state_is_found_where_pointers_are_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "split": "train", "loss": 1.0}\n', encoding="utf-8")
    (tmp_path / "checkpoint-7").mkdir()
    state = {"step": 7, "batch_size": 16, "best_step": 7, "best_score": 0.25}
    (tmp_path / "checkpoint-7" / "state.json").write_text(json.dumps(state), encoding="utf-8")
    # As write_pointer makes one where the file system has no links.
    (tmp_path / "checkpoint-latest").write_text("checkpoint-7", encoding="utf-8")
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "7 steps of 16 examples" in page and "best score 0.2500 at step 7" in page


@pytest.mark.parametrize("text", ["", "half a li", '{"step": 1, "split": "train", "loss": 1.0}\n{"st'])
def test_a_run_that_has_only_begun_has_a_page_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert "<html" in report.write(tmp_path).read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "type relay report with the folder of a run" in capsys.readouterr().err
