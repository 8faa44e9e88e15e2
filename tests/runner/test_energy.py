"""Counters of energy, made of files. Run alone: python -m pytest tests/runner/test_energy.py"""

from pathlib import Path

import pytest

from runner import report
from runner.energy import Meter
from tests.runner.test_report import write_events


def package(folder: Path, name: str, joules: float, limit: float = 1000.0) -> Path:
    """A processor package as Linux shows it."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{int(joules * 1e6)}\n", encoding="ascii")
    (folder / name / "max_energy_range_uj").write_text(f"{int(limit * 1e6)}\n", encoding="ascii")
    return folder / name


def test_packages_are_added_up_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    for name, joules in (("intel-rapl:0", 10), ("intel-rapl:1", 20), ("intel-rapl:0:0", 5), ("dtpm", 3)):
        package(tmp_path, name, joules)
    meter = Meter(with_gpus=False, folder=tmp_path)
    package(tmp_path, "intel-rapl:0", 17)
    package(tmp_path, "intel-rapl:1", 20.5)
    package(tmp_path, "intel-rapl:0:0", 900)
    assert meter.take() == pytest.approx(7.5)
    assert meter.take() == 0.0


@pytest.mark.parametrize(("before", "after", "taken"), [(990.0, 5.0, 15.0), (5.0, 990.0, 985.0), (0.0, 0.0, 0.0)])
def test_a_counter_that_begins_anew_goes_on(tmp_path: Path, before: float, after: float, taken: float) -> None:
    package(tmp_path, "intel-rapl:0", before)
    meter = Meter(with_gpus=False, folder=tmp_path)
    package(tmp_path, "intel-rapl:0", after)
    assert meter.take() == pytest.approx(taken)


def test_without_counters_nothing_is_known(tmp_path: Path) -> None:
    assert Meter(with_gpus=False, folder=tmp_path / "none").take() is None
    folder = package(tmp_path, "intel-rapl:0", 5)
    (folder / "energy_uj").write_text("", encoding="ascii")
    assert Meter(with_gpus=False, folder=tmp_path).take() is None
    package(tmp_path, "intel-rapl:0", 5)
    meter = Meter(with_gpus=False, folder=tmp_path)
    (folder / "energy_uj").unlink()
    assert meter.take() is None and meter.take() is None


@pytest.mark.parametrize(("joules", "words"), [(7200.0, "2 Wh"), (7.2e6, "2.00 kWh"), (0.0, None)])
def test_the_report_says_the_sum(tmp_path: Path, joules: float, words: str | None) -> None:
    halves = [{"step": step, "split": "train", "loss": 1.0, "energy_joules": joules / 2} for step in (5, 10)]
    write_events(tmp_path / "run", *(halves if joules else [{"step": 5, "split": "train", "loss": 1.0}]))
    page = report.write(tmp_path / "run").read_text(encoding="utf-8")
    assert (f"{words} by the processors" in page) if words else "processors" not in page
