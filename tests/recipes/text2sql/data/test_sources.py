"""Reading Spider, BIRD, WikiSQL, Gretel and ATIS in their official formats."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from recipes.text2sql.data import sources
from recipes.text2sql.sql.results import is_valid
from runner.errors import DataError
from tests.recipes.text2sql.source_folders import GRETEL, SHARED, SHOP_PAIRS, needs_shared, read, rows, write_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Spider, BIRD, WikiSQL and Gretel, a few questions each."""
    return write_sources(tmp_path)


def test_spider_and_bird(folder: Path) -> None:
    spider = read("spider", folder)
    assert [question.text for question in spider] == [text for text, _ in SHOP_PAIRS]
    assert [rows(question) for question in spider] == [
        [(3,)], [("Porto Nights",), ("Ubik",)], [("Porto Nights",)], [("Flann O'Brien",)],
    ]  # fmt: skip
    bird = read("bird", folder)
    assert bird[0].text == "how many books are there ? ; cheap refers to price < 6"
    assert [question.text for question in read("bird", folder, evidence=False)] == [q.text for q in spider]
    assert [rows(question) for question in bird] == [rows(question) for question in spider]
    assert len(read("bird", folder, "validation")) == len(read("bird", folder, "test")) == 3


def test_more_training_files_of_spider_are_read(folder: Path) -> None:
    shutil.copy(folder / "spider/dev.json", folder / "spider/train_others.json")
    assert len(read("spider", folder)) == 6 and len(read("spider", folder, "validation")) == 2


def test_birds_tables_stand_in_for_databases_and_the_rest_is_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "bird/train/train_databases")
    with pytest.raises(DataError, match="4 about databases that are not there"):
        read("bird", folder)
    tables = [{
        "db_id": "shop", "table_names_original": ["book"], "column_names_original": [[-1, "*"], [0, "title"]],
        "column_types": ["text", "text"], "primary_keys": [[1]], "foreign_keys": [],
    }]  # fmt: skip
    (folder / "bird/train/train_tables.json").write_text(json.dumps(tables))
    entries = json.loads((folder / "bird/train/train.json").read_text())
    entries[0]["db_id"] = "far away"
    (folder / "bird/train/train.json").write_text(json.dumps(entries))
    capsys.readouterr()
    found = read("bird", folder)
    assert len(found) == 3 and found[0].database is None and list(found[0].schema.tables) == ["book"]
    assert "bird (train): 3 questions of 4 (1 about databases that are not there)" in capsys.readouterr().err


def test_wikisql_becomes_sql_with_the_tables_names(folder: Path) -> None:
    found = read("wikisql", folder)
    assert [question.query for question in found] == [
        'SELECT "Player" FROM wiki_table WHERE "No." = 15',
        'SELECT COUNT("Player") FROM wiki_table WHERE "School/Club Team" = \'MICHIGAN\'',
        'SELECT "School/Club Team" FROM wiki_table WHERE "No." > 5 AND "no. 2" = \'x\'',
    ]
    # As in the official files, upper and lower case do not matter.
    assert [rows(question) for question in found] == [[("Amir Johnson",)], [(1,)], [("Westchester HS",)]]
    assert found[0].schema.tables == {
        "wiki_table": {"Player": "text", "No.": "number", "School/Club Team": "text", "no. 2": "text"}
    }
    assert found[1].link()[0] == "how many play for <v0> ?"


def test_names_that_sqlite_does_not_take() -> None:
    assert sources.column_names(["a", "A", "", 'x "y"', "a", "a 2"]) == ["a", "A 2", "column 3", "x y", "a 3", "a 2 2"]


@needs_shared
def test_wikisqls_own_rows_give_what_the_official_form_gives(tmp_path: Path) -> None:
    (tmp_path / "wikisql").mkdir()
    for part in ("train.jsonl", "train.tables.jsonl"):
        (tmp_path / "wikisql" / part).symlink_to(SHARED / "wikisql" / part.replace("train", "sample"))
    entries = list(sources.json_lines(SHARED / "wikisql/sample.jsonl"))
    types = {table["id"]: table["types"] for table in sources.json_lines(SHARED / "wikisql/sample.tables.jsonl")}
    official = sqlite3.connect(f"{(SHARED / 'wikisql/sample.db').resolve().as_uri()}?mode=ro", uri=True)
    found = read("wikisql", tmp_path)
    assert len(found) == len(entries) == 183
    nonempty = 0
    for entry, question in zip(entries, found, strict=True):
        # The official query: columns by number, values in lower case, numbers where the column holds them.
        id_, structure = entry["table_id"], entry["sql"]
        conditions, values = [], []
        for column, operator, value in structure["conds"]:
            value = value.lower() if isinstance(value, str) else value
            if types[id_][column] == "real" and isinstance(value, str):
                value = float(sources.NUMBER.findall(value.replace(",", ""))[0])
            conditions.append(f"col{column} {'=><'[operator]} ?")
            values.append(value)
        aggregate = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")[structure["agg"]]
        query = f"SELECT {aggregate}(col{structure['sel']}) FROM table_{id_.replace('-', '_')}"
        query += " WHERE " + " AND ".join(conditions) if conditions else ""
        wanted = sorted(official.execute(query, values).fetchall(), key=repr)
        ours = [tuple(v.lower() if isinstance(v, str) else v for v in row) for row in rows(question)]
        assert sorted(ours, key=repr) == wanted, (question.query, query)
        nonempty += any(value is not None for row in wanted for value in row)
    official.close()
    assert nonempty == 178


@needs_shared
def test_wikisqls_queries_without_tables_are_spelled() -> None:
    # Headers are not there for these 24,299; every structure must still become a query.
    for split, number in (("dev", 8421), ("test", 15878)):
        spelled = 0
        for entry in sources.json_lines(SHARED / f"wikisql/{split}.jsonl"):
            structure = entry["sql"]
            query = sources.wikisql_query(structure, [f"c{n}" for n in range(50)], ["text"] * 50)
            spelled += query.count(" AND ") == max(0, len(structure["conds"]) - 1) or "and" in query.lower()
        assert spelled == number


def test_gretels_contexts_are_executed_and_what_does_not_run_is_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read("gretel", folder)
    assert [rows(question) for question in found] == [[("Ohio", 70), ("Texas", 85)], [(85,)]]
    assert found[0].schema.tables == {"beds": {"state": "text", "beds": "number"}}
    printed = capsys.readouterr().err
    assert printed.startswith("gretel (train): 2 questions of 7 (")
    for part in ("2 asks for writing", "2 has a context that SQLite does not run", "1 has a query that SQLite does"):
        assert part in printed
    # Nothing was attached.
    assert not list(Path.cwd().glob("other.db"))


def test_gretels_parquet_is_read_too(folder: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    entries = [{"sql_prompt": text, "sql_context": context, "sql": query, "id": 1} for text, context, query in GRETEL]
    before = [question.query for question in read("gretel", folder)]
    (folder / "gretel/train.jsonl").unlink()
    path = folder / "gretel/synthetic_text_to_sql_train.snappy.parquet"
    write_table(pyarrow.Table.from_pylist(entries), path)
    assert [question.query for question in read("gretel", folder)] == before
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="cannot be read"):
        read("gretel", folder)


@needs_shared
def test_gretels_real_rows(tmp_path: Path) -> None:
    (tmp_path / "gretel").mkdir()
    (tmp_path / "gretel/train.jsonl").symlink_to(SHARED / "gretel/sample.jsonl")
    # The other row names a column that two of its tables have.
    assert [rows(question) for question in read("gretel", tmp_path)] == [
        [("California", 100000), ("New York", 70000), ("Texas", 85000)]
    ]


@needs_shared
def test_atis_without_its_schema() -> None:
    known = read("atis", SHARED)[0].schema
    assert len(known.tables) == 19 and "FROM_AIRPORT" in known.tables["FLIGHT"]
    for split, number in (("train", 4347), ("validation", 486), ("test", 447)):
        found = read("atis", SHARED, split)
        assert len(found) == number and all(question.schema == known for question in found)
        assert all(is_valid(question.schema, question.query) for question in found[::40])


@needs_shared
def test_birds_real_database(tmp_path: Path) -> None:
    found = read("bird", SHARED, "validation")
    assert len(found) == 129 and {question.schema.db_id for question in found} == {"superhero"}
    assert all(rows(question) for question in found[::10])


WIKI_ENTRY = '{"question": "?", "table_id": "%s", "sql": {"sel": %d, "agg": 0, "conds": []}}'


@pytest.mark.parametrize(
    ("source", "file", "content"),
    [
        ("bird", "train/train.json", "[{"),
        ("bird", "train/train.json", '[{"question": "?", "answer": "SELECT 1", "db_id": "shop"}]'),
        ("bird", "train/train.json", None),
        ("wikisql", "train.jsonl", "{"),
        ("wikisql", "train.jsonl", '{"question": "?", "table_id": "none", "sql": {"sel": 0, "agg": 0, "conds": []}}'),
        ("wikisql", "train.jsonl", '{"question": "?", "table_id": "1-10-2", "sql": {"sel": 9, "agg": 0, "conds": []}}'),
        (
            "wikisql",
            "train.jsonl",
            '{"question": "?", "table_id": "1-10-2", "sql": {"sel": -1, "agg": 0, "conds": []}}',
        ),
        ("wikisql", "train.tables.jsonl", '{"id": "1-10-2"}'),
        ("wikisql", "train.tables.jsonl", None),
        ("gretel", "train.jsonl", '{"sql_prompt": "?"}'),
        ("gretel", "train.jsonl", '{"sql_prompt": "?", "sql_context": 3, "sql": "SELECT 1"}'),
        ("gretel", "train.jsonl", "[1]"),
        ("gretel", "train.jsonl", None),
    ],
)
def test_a_broken_file_is_named(folder: Path, source: str, file: str, content: str | None) -> None:
    path = folder / source / file
    path.unlink() if content is None else path.write_text(content)
    for name in (source, "mix"):
        with pytest.raises(DataError) as caught:
            read(name, folder)
        message = str(caught.value)
        assert path.name.partition(".")[0] in message and len(message.splitlines()) <= 3, message
        assert (name == "mix") == ("_weight 0" in message)


def test_lines_of_json_may_be_marked_and_blank(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "caf\xc3\xa9 ?"}\r\n\r\n{"question": "b"}\n\n')
    assert [entry["question"] for entry in sources.json_lines(path)] == ["café ?", "b"]
    path.write_bytes(b'{"question": "a"}\n{"question": "caf\xe9"}\n')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        list(sources.json_lines(path))
