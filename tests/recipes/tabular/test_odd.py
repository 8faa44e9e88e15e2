"""Files that are not quite tables, and cells that are not quite cells: each works, or is refused in three lines."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes.tabular.column_kinds import as_dates, as_text, date_part, kind_of
from recipes.tabular.corpus import read
from recipes.tabular.files import read_frame
from recipes.tabular.settings import DataSettings
from recipes.tabular.table import fit
from runner.errors import DataError


def test_files_that_are_not_quite_tables(tmp_path: Path) -> None:
    for name, content, said in [
        ("ragged.csv", "a,b\n1,2\n1,2,3,4\n", "cannot be read as a table"),
        ("twice.csv", "\ufeffa,a,y\n1,2,x\n", "two columns of the name 'a'"),
    ]:
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=said) as caught:
            read_frame(tmp_path / name)
        assert len(str(caught.value).splitlines()) <= 3


def test_manifests_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n" + "1,no\n2,yes\n" * 20)
    good = {"name": "t", "file": "t.csv", "target": "y"}
    for content, said, changes in [
        ("{", "not JSON", {}),
        ("{}", "no list", {}),
        ('["t"]', "has no 'name'", {}),
        (json.dumps([good | {"task": "clf"}]), "task 'clf'", {}),
        (json.dumps([good, good]), "two tables", {}),
        (json.dumps([good]), "is left", {"exclude_tables": "t"}),
        (json.dumps([good]), "no value of the target 'y' is a number", {"task": "regression"}),
    ]:
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=said):
            read(DataSettings(corpus=str(tmp_path), **changes))
    (tmp_path / "splits_seed0_test_indices.json").write_text('{"t": [0, 40]}')
    with pytest.raises(DataError, match="40 rows"):
        read(DataSettings(corpus=str(tmp_path)))


def test_tables_by_their_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a folder for an id; OpenML is played."""
    import sklearn.datasets

    asked = []

    def fetch(data_id: int, **_: object) -> sklearn.utils.Bunch:
        asked.append(data_id)
        return sklearn.utils.Bunch(frame=pd.DataFrame({"b": range(30), "y": ["p", "q", "r"] * 10}))

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.csv").write_text("a,y\n" + "1,no\n2,yes\n" * 20)
    entries = [
        {"name": "hub", "dataset": str(tmp_path / "hub"), "target": "y"},
        {"name": "open", "openml": 61, "target": "y"},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    found = {source.name: source for source in read(DataSettings(corpus=str(tmp_path)))}
    assert asked == [61] and list(found) == ["hub", "open"]
    assert sum(len(found["hub"].splits[split]) for split in ("train", "validation")) == 40
    assert sorted(set(found["open"].splits["train"]["y"])) == ["p", "q", "r"]
    for broken, said in [
        ({"dataset": str(tmp_path / "nowhere")}, "was not read"),
        ({"openml": "many"}, "was not read"),
        ({}, "has not one of"),
        ({"openml": 61, "file": "t.csv"}, "has not one of"),
    ]:
        (tmp_path / "manifest.json").write_text(json.dumps([{"name": "t", "target": "y", **broken}]))
        with pytest.raises(DataError, match=said) as caught:
            read(DataSettings(corpus=str(tmp_path)))
        assert len(str(caught.value).splitlines()) <= 3


def test_dates_far_away_and_with_a_zone() -> None:
    far = pd.Series(["0001-01-01", "9999-12-31", "2020-02-31"])
    assert np.isfinite(date_part(as_dates(far), "seconds")).tolist() == [True, True, False]
    zones = pd.Series([f"2020-01-{day:02d}T10:00:00{zone}" for day in range(1, 20) for zone in ("Z", "+02:00")])
    assert kind_of(zones) == "date"
    assert date_part(as_dates(zones), "hour")[:2].tolist() == [10, 8]


def test_cells_that_are_lists_and_a_kind_for_the_target() -> None:
    assert as_text(pd.Series([[1, 2], {"a": 1}, None])).tolist()[:2] == ["1, 2", '{"a": 1}']
    with pytest.raises(DataError, match=r"--data\.task"):
        fit("t", pd.DataFrame({"a": [1, 2], "y": ["p", "q"]}), "y", kinds={"y": "text"})
