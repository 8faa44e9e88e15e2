"""The page of a run stands alone and shows what was logged. Run alone: python -m pytest tests/runner/test_report.py"""

import html
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runner import report
from runner.__main__ import main
from runner.log import Speed
from runner.parts.charts import Curve, Page, thinned
from tests.launching import metrics, train

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def data_of(page: str) -> dict[str, Any]:
    """The numbers that a page holds for its charts."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1], parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def curve(page: str, title: str, key: str) -> list[tuple[int, float | None]]:
    """The points of one curve in a page."""
    (chart,) = [chart for chart in data_of(page)["charts"] if chart["title"] == title]
    series = chart["series"][chart["keys"].index(key)]
    return list(zip(series["x"], series["y"], strict=True))


def write_events(folder: Path, *events: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went on once."""
    folder = tmp_path_factory.mktemp("report") / "run"
    train(folder, "--max_steps", "10")
    train(folder, "--resume_from_checkpoint", "auto")
    return folder


def test_a_run_leaves_a_page_that_needs_nothing_else(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    # uPlot's licence comment has the address of its home page, which nothing fetches.
    assert not re.search(r"(?:src|href)\s*=|@import|url\(|fetch\(|XMLHttpRequest", page)
    assert "gradient norm" in page and "learning rate" in page and "batch_size: 16" in page
    # The best of the evaluations stands out.
    assert page.count('<tr class="best">') == 1
    assert len(page) < 250_000


@pytest.mark.parametrize(
    ("title", "key", "split", "name"),
    [
        ("loss", "train", "train", "loss"),
        ("loss", "validation", "eval", "loss"),
        ("gradient norm", "train", "train", "grad_norm"),
        ("memory in GB", "train", "train", "memory_gb"),
        ("mae", "validation", "eval", "mae"),
    ],
)
def test_the_values_of_the_page_are_those_of_the_metrics(
    run: Path, title: str, key: str, split: str, name: str
) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert curve(page, title, key) == [(event["step"], event[name]) for event in metrics(run, split)]


def test_a_restart_is_marked_and_so_is_a_move(run: Path, tmp_path: Path) -> None:
    assert data_of((run / "report.html").read_text(encoding="utf-8"))["marks"] == [{"step": 10, "label": "restart"}]
    write_events(tmp_path, {"step": 30, "split": "train", "loss": 2.0})
    starts = [
        {"step": 0, "processes": 1, "machine": "a", "hardware": "CPU, 1 process"},
        {"step": 10, "processes": 1, "machine": "b", "hardware": "CPU, 1 process"},
        {"step": 20, "processes": 2, "machine": "b", "hardware": "GPU, 2 processes"},
    ]
    lines = "".join(json.dumps({"start": start}) + "\n" for start in starts)
    (tmp_path / "ledger.jsonl").write_text(lines, encoding="utf-8")
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert data_of(page)["marks"] == [{"step": 10, "label": "moved to b"}, {"step": 20, "label": "restart"}]
    assert "step 20: restart, GPU, 2 processes." in page


def test_several_runs_lie_over_each_other_with_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("a", "b", "c")):
        write_events(
            tmp_path / name,
            {"step": 1, "split": "train", "loss": 2.0 + number},
            {"step": 1, "split": "eval", "loss": 1.5 + number},
        )
        config = f"recipe: toy\noutput_dir: {name}\nseed: 0\nlearning_rate: {0.01 * (number + 1)}\nmodel:\n  size: 8\n"
        config = config.replace("8", "16") if name == "c" else config
        (tmp_path / name / "config.yaml").write_text(config, encoding="utf-8")
    assert main(["report", *(str(tmp_path / name) for name in "abc")]) == 0
    target = Path(capsys.readouterr().out.strip())
    assert target == tmp_path / "report.html"
    page = target.read_text(encoding="utf-8")
    for number, name in enumerate("abc"):
        assert curve(page, "loss", f"{name} train") == [(1, 2.0 + number)]
        assert curve(page, "loss", f"{name} validation") == [(1, 1.5 + number)]
    rows = re.findall(r"<tr><td>([\w.]+)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", page)
    assert ("learning_rate", "0.01", "0.02", "0.03") in rows and ("model.size", "8", "8", "16") in rows
    assert not {"seed", "output_dir", "recipe"} & {row[0] for row in rows}
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "x" / "two.html")]) == 0
    assert (tmp_path / "x" / "two.html").is_file()
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "none")]) == 2
    assert main(["report", str(tmp_path / "a"), "--output", str(tmp_path)]) == 2


def test_a_score_and_its_groups_share_a_chart(tmp_path: Path) -> None:
    events = [
        {
            "step": step,
            "split": "eval",
            "f1": 0.25,
            "accuracy": 0.5,
            "accuracy/held_out": 0.1,
            "accuracy/seen": step / 2,
        }
        for step in (1, 2)
    ]
    write_events(tmp_path, *events)
    page = report.write(tmp_path).read_text(encoding="utf-8")
    (chart,) = [chart for chart in data_of(page)["charts"] if chart["title"].startswith("accuracy")]
    assert chart["keys"] == ["all", "held_out", "seen"] and len(set(chart["colours"])) == 3
    assert curve(page, "accuracy", "seen") == [(1, 0.5), (2, 1.0)]
    assert curve(page, "f1", "validation") == [(1, 0.25), (2, 0.25)]
    # A chart has no more curves than it has colours; the others get charts of their own.
    write_events(tmp_path, *({**event, **{f"accuracy/{i}": 0.1 * i for i in range(7)}} for event in events))
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert curve(page, "accuracy/seen", "validation") == [(1, 0.5), (2, 1.0)]


def test_samples_that_are_neither_right_nor_wrong_are_shown(tmp_path: Path) -> None:
    write_events(tmp_path, {"step": 4, "split": "train", "loss": 2.0})
    samples = [{"prompt": "Once <b>", "model": "upon a time"}]
    content = {"step": 4, "examples": 9, "samples": samples}
    (tmp_path / "samples.json").write_text(json.dumps(content), encoding="utf-8")
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "<h2>Samples</h2>" in page and "Once &lt;b&gt;" in page and "<td>upon a time</td>" in page
    assert "Right answers" not in page and "Wrong answers" not in page
    assert "a sample, at step 4\n  prompt:    Once <b>" in report.in_words(tmp_path)


def test_metrics_by_layer_become_cells_and_odd_numbers_do_no_harm(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        {"step": 1, "split": "train", "loss": 2.0, "load": [[1.0, 2.0], [3.0, None]], "huge": 2e34, "same": [1.0, 1.0]},
        {"step": 2, "split": "train", "loss": None, "load": [[1.0, 2.0], [3.0, 4.0]], "same": [1.0, 1.0]},
        {"step": 2, "split": "eval", "loss": math.nan, "score<&>": 0.5, "</script>": 1.0},
        {"step": 3, "split": "eval", "loss": 1.0, "score<&>": 0.5, "</script>": 1.0},
    )  # fmt: skip
    page = report.write(tmp_path).read_text(encoding="utf-8")
    (heat,) = [chart for chart in data_of(page)["charts"] if chart["kind"] == "heat"]
    assert heat["values"] == [[1.0, 2.0, 3.0, None], [1.0, 2.0, 3.0, 4.0]]
    assert heat["rows"][1] == "layer 0 expert 1"
    # What is constant is said, not painted.
    assert "same: 1 at all steps" in page
    assert "score&lt;&amp;&gt;" in page and page.count("</script>") == 3
    assert curve(page, "loss", "train") == [(1, 2.0), (2, None)]


@pytest.mark.parametrize(
    ("values", "is_log"),
    [([1.0, 2.0], False), ([1e-4, 1.0], True), ([0.0, 100.0], False), ([-1.0, 100.0], False)],
)
def test_an_axis_is_logarithmic_where_that_fits(values: list[float], is_log: bool) -> None:
    page = Page("page")
    assert page.curves("title", [Curve("name", list(enumerate(values)))])
    assert page.charts[0]["log"] is is_log


def test_a_learning_rate_that_falls_to_0_keeps_its_shape(tmp_path: Path) -> None:
    cosine = [{"step": step, "split": "train", "loss": 1.0, "learning_rate": 10.0**-step} for step in range(1, 9)]
    write_events(tmp_path, *cosine)
    charts = data_of(report.write(tmp_path).read_text(encoding="utf-8"))["charts"]
    assert [chart["log"] for chart in charts if chart["title"] == "learning rate"] == [False]


@pytest.mark.parametrize("count", [0, 1, 7, 4000, 4001, 100_003])
def test_of_very_many_points_some_are_taken_and_the_last_one(count: int) -> None:
    points = [(step, float(step)) for step in range(count)]
    taken = thinned(points)
    assert len(taken) <= 4000 and taken[-1:] == points[-1:] and set(taken) <= set(points)
    assert count > 4000 or taken == points


def test_samples_stand_in_tables_right_and_wrong(tmp_path: Path) -> None:
    write_events(tmp_path, {"step": 1, "split": "train", "loss": 2.0})
    samples = [{"right": True, "question": "a < b?", "answer": "yes"}]
    samples += [{"right": False, "question": "c?", "answer": "no"}]
    content = {"step": 1, "examples": 20, "samples": samples}
    (tmp_path / "samples.json").write_text(json.dumps(content), encoding="utf-8")
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "<td>a &lt; b?</td><td>yes</td>" in page.partition("Right answers")[2].partition("Wrong answers")[0]
    assert "<td>c?</td><td>no</td>" in page.partition("Wrong answers")[2]
    text = report.in_words(tmp_path)
    assert re.search(r"a right answer, at step 1\n  question:\s+a < b\?\n  answer:\s+yes\n", text)
    assert re.search(r"a wrong answer, at step 1\n  question:\s+c\?\n  answer:\s+no$", text)


def test_text_has_the_scores_of_the_weights_in_final(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--text"]) == 0
    printed = capsys.readouterr().out
    event = metrics(run, "eval")[-1]
    assert f"scores on the validation split at step {event['step']}" in printed
    assert re.search(rf"\n  mae\s+{event['mae']:.4g}\n", printed)
    assert "best mae" in printed


def test_the_state_is_found_where_pointers_are_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "split": "train", "loss": 1.0}\n', encoding="utf-8")
    (tmp_path / "checkpoint-7").mkdir()
    state = {"step": 7, "batch_size": 16, "best_step": 7, "best_score": 0.25}
    (tmp_path / "checkpoint-7" / "state.json").write_text(json.dumps(state), encoding="utf-8")
    # As write_pointer makes one where the file system has no links.
    (tmp_path / "checkpoint-latest").write_text("checkpoint-7", encoding="utf-8")
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "7 steps of 16 examples" in page and "best score 0.2500 on the validation split at step 7" in page


@pytest.mark.parametrize("text", ["", "half a li", '{"step": 1, "split": "train", "loss": 1.0}\n{"st'])
def test_a_run_that_has_only_begun_has_a_page_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert "<html" in report.write(tmp_path).read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "type relay report with the folder of a run" in capsys.readouterr().err


PROBE = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("load", () => setTimeout(() => {
  const chart = relayCharts[0];
  chart.setCursor({ left: chart.valToPos(STEP, "x"), top: 10 });
  const reading = document.querySelector(".read").textContent;
  chart.setScale("x", { min: 2, max: 6 });
  setTimeout(() => {
    const log = document.querySelector("button.log");
    if (log) log.click();
    document.documentElement.dataset.found = JSON.stringify({ errors, reading, charts: relayCharts.length,
      figures: document.querySelectorAll("canvas").length, width: innerWidth,
      needs: document.documentElement.scrollWidth,
      zoom: [relayCharts.at(-1).scales.x.min, relayCharts.at(-1).scales.x.max] });
  }, 200);
}, 300));
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 800, 1400])
@pytest.mark.parametrize("scheme", ["", "--force-dark-mode"])
def test_a_browser_draws_the_charts_and_reads_values(run: Path, tmp_path: Path, width: int, scheme: str) -> None:
    events = metrics(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    probe = PROBE.replace("STEP", str(events[4]["step"]))
    (tmp_path / "page.html").write_text(page.replace("<head>", f"<head>{probe}", 1), encoding="utf-8")
    # A window of Chromium has a least width; a frame in it has none.
    frame = f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe><script>'
    # On a busy machine the frame may take longer than any time that is set.
    frame += "setInterval(() => { const { found } = frames[0].document.documentElement.dataset;"
    frame += "if (found) document.documentElement.dataset.found = found; }, 100)</script>"
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    words += [scheme, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,1000"]
    words += ["--virtual-time-budget=20000", "--dump-dom", (tmp_path / "frame.html").as_uri()]
    words, home = list(filter(None, words)), {**os.environ, "HOME": str(tmp_path)}
    finished = subprocess.run(words, capture_output=True, text=True, timeout=120, env=home)
    found = re.search(r'data-found="(.*?)"', finished.stdout)
    assert found, finished.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert not seen["errors"] and seen["charts"] == seen["figures"] == len(data_of(page)["charts"])
    assert seen["width"] == width and seen["needs"] <= width
    # The cursor reads the number of the metrics, to six digits.
    read = re.search(r"step ([\d,.]+)\s+train ([\d,.]+)", seen["reading"])
    assert read and int(read[1]) == events[4]["step"], seen["reading"]
    assert float(read[2].replace(",", "")) == pytest.approx(events[4]["loss"], rel=1e-5)


def test_what_a_recipe_draws_stands_in_the_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_events(run, {"step": 5, "split": "eval", "loss": 1.0})
    scatter = {"kind": "scatter", "title": "age", "axes": ["true", "predicted"], "is_square": True, "is_line": False}
    figures: list[dict[str, Any]] = [{**scatter, "groups": {"examples": [[1.0, 2.0], [3.0, 2.5]]}}]
    figures += [{"kind": "table", "title": "how often", "head": ["true class", "a<b"], "rows": [["a<b", 7]]}]
    answers = {"step": 5, "examples": 9, "samples": [], "figures": figures}
    (run / "samples.json").write_text(json.dumps(answers), encoding="utf-8")
    page = report.write(run).read_text(encoding="utf-8")
    (chart,) = [chart for chart in data_of(page)["charts"] if chart["kind"] == "points"]
    assert chart["series"][0]["x"] == [1.0, 3.0] and chart["series"][0]["y"] == [2.0, 2.5]
    # Both axes span all of the values.
    assert chart["across"] == chart["up"] and chart["up"][0] < 1.0 and chart["up"][1] > 3.0
    assert "Of 9 validation examples at step 5." in page and "<td>a&lt;b</td><td>7</td>" in page


def test_the_report_says_how_long_training_waited_for_its_data(run: Path, tmp_path: Path) -> None:
    assert all(0 <= event["data_wait"] <= 1 for event in metrics(run) if event["split"] == "train")
    shares = [(5, 0.5, 0.1), (10, 1.5, 0.02)]
    events = [
        {"step": step, "split": "train", "seconds_per_step": seconds, "data_wait": share}
        for step, seconds, share in shares
    ]
    write_events(tmp_path / "run", *events)
    # 0.25 of 2.5 seconds, and 0.15 of 7.5.
    assert "4.0% of it waiting for data" in report.write(tmp_path / "run").read_text(encoding="utf-8")
    for event in events:
        del event["data_wait"]
    write_events(tmp_path / "older", *events)
    page = report.write(tmp_path / "older").read_text(encoding="utf-8")
    assert "seconds of training" in page and "waiting" not in page


def test_the_share_of_waiting_is_that_of_the_steps_since_the_last_call() -> None:
    speed = Speed()
    for seconds, waiting in ((1.0, 0.5), (3.0, 0.1)):
        speed.add(8, 0, seconds, waiting)
    assert speed.take()["data_wait"] == pytest.approx(0.15)
    speed.add(8, 0, 1.0, 0.25)
    assert speed.take()["data_wait"] == 0.25
