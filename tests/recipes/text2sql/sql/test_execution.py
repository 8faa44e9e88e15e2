"""The process that runs queries: what it survives, and what happens when it does not."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.text2sql.sql import execution
from recipes.text2sql.sql.execution import NOTHING, Limits, execute, time_ratios
from tests.launching import REPOSITORY

LONG_STEP = "SELECT instr(hex(zeroblob(490000)), hex(zeroblob(200000)) || '1')"
"""One step of SQLite that takes minutes, so that it never looks at the deadline."""


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "letters.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t (x, y); INSERT INTO t VALUES ('a', 1), ('b', 2), ('a', 1)")
    connection.execute("INSERT INTO t VALUES (CAST(x'ff41' AS TEXT), 3)")
    connection.commit()
    connection.close()
    return path


@pytest.mark.skipif(sys.version_info < (3, 11), reason="what makes long texts is refused there")
def test_a_step_that_does_not_come_back_ends_the_process_and_another_answers(letters: Path) -> None:
    assert execute(letters, "SELECT count(*) FROM t").rows == ((4,),)
    process = execution._worker.process
    assert process is not None and process.poll() is None
    assert execute(letters, LONG_STEP, timeout_seconds=0.2).error == "not finished after 0.2 seconds"
    assert process.poll() == -signal.SIGALRM
    assert execute(letters, "SELECT count(*) FROM t").rows == ((4,),)


def test_a_process_that_was_killed_is_replaced(letters: Path) -> None:
    execute(letters, "SELECT 1")
    process = execution._worker.process
    assert process is not None
    process.kill()
    process.wait()
    assert execute(letters, "SELECT count(*) FROM t").rows == ((4,),)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_asks_a_worker_of_its_own(letters: Path) -> None:
    execute(letters, "SELECT 1")
    ours = execution._worker.process
    child = os.fork()
    if child == 0:
        answers = [execute(letters, f"SELECT {number}").rows for number in range(50)]
        ours_too = execution._worker.process is ours
        os._exit(0 if answers == [((number,),) for number in range(50)] and not ours_too else 1)
    assert [execute(letters, f"SELECT {-number}").rows for number in range(50)] == [((-n,),) for n in range(50)]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert execution._worker.process is ours


def test_how_rows_come(letters: Path) -> None:
    assert execute(letters, "SELECT x FROM t", limits=Limits(distinct=True)).rows == (("a",), ("b",), ("�A",))
    # Rows that were there already do not count.
    twice = "SELECT x FROM t UNION ALL SELECT x FROM t"
    assert execute(letters, twice, limits=Limits(distinct=True, max_rows=3)).error is None
    assert execute(letters, twice, limits=Limits(max_rows=3)).error == "more than 3 rows"
    assert execute(letters, "SELECT x FROM t WHERE y = 3", limits=Limits(bad_text="ignore")).rows == (("A",),)
    assert "UTF-8" in (execute(letters, "SELECT x FROM t", limits=Limits(bad_text="strict")).error or "")
    assert execute(("CREATE TABLE u (z)",), "SELECT z FROM u").columns == ("z",)
    for nothing in ("", " ; ", "-- nothing"):
        assert execute(letters, nothing).error == NOTHING
    if sys.version_info >= (3, 11):
        assert execute(letters, "SELECT 1 FROM t", limits=Limits(max_bytes=63)).error == "more than 63 bytes"


def test_two_queries_are_timed_against_each_other(letters: Path) -> None:
    slow = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000) SELECT max(n) FROM c"
    ratios = time_ratios(letters, "SELECT 1", slow, 5, 60.0)
    assert len(ratios) == 5 and min(ratios) > 2
    assert time_ratios(letters, "SELECT nothing", slow, 5, 60.0) == []
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT max(n) FROM c"
    assert time_ratios(letters, "SELECT 1", endless, 5, 0.2) == []


def test_the_worker_process_imports_no_heavy_library() -> None:
    # As it starts, but isolated from nothing: what it could import is there.
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from recipes.text2sql.sql.execution import serve\n"
        "print(*sorted(name.partition('.')[0] for name in sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "recipes" in loaded
    assert not {"torch", "numpy", "sqlglot", "transformers", "tyro", "datasets"} & set(loaded)
    assert (REPOSITORY / "recipes/text2sql/sql/__init__.py").read_text().count("import") == 0
