"""Runs a model's SQL in a worker process that only reads, with limits on time, rows and memory.

The official executors of Spider and BIRD run any statement: a predicted `DROP TABLE` drops the table. Here the file is
opened read-only, and SQLite's authoriser refuses all but reading. If a single step of SQLite outlasts the deadline, or
the system kills the worker for its memory, a new worker replaces it. The worker starts with the first query, and
imports only this module and the standard library.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import marshal
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from runner.errors import DataError

MAX_VALUE_BYTES = 1_000_000
"""Longest text, blob or row in SQLite."""
MAX_RESULT_BYTES = 50_000_000
"""Largest result: the bytes of texts and blobs, and 16 for each value."""
MAX_HEAP_BYTES = 512 * 1024 * 1024
"""Most memory that SQLite allocates for a query, including sorting and temporary tables."""
MAX_PROCESS_BYTES = 4 * 1024**3
"""Address space of the worker."""
NOTHING = "not a query: there is nothing to run"
"""The error of a text without a statement; for the official scores it is a query without rows."""

_BUSY_SECONDS = 2.0  # How long to wait for the lock of another program.
_GRACE_SECONDS = 0.5  # Between the deadline, which SQLite looks at between its steps, and the end of the process.
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_REFUSED_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "sqlite_log"}
if sys.version_info < (3, 11):  # A value's length cannot be limited there: refuse what makes long ones.
    _REFUSED_FUNCTIONS |= {"zeroblob", "randomblob", "printf", "format"}


Value = str | bytes | int | float | None
Row = tuple[Value, ...]
Result = tuple[tuple[Row, ...], tuple[str, ...], str | None]
"""The fields of an `Execution`."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """The result of a query: rows and names of columns, or an error."""

    rows: tuple[Row, ...] = ()
    columns: tuple[str, ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one query, and the form of its rows."""

    timeout_seconds: float = 5.0
    max_rows: int = 10_000
    max_bytes: int = MAX_RESULT_BYTES
    bad_text: Literal["replace", "ignore", "strict"] = "replace"
    """What becomes of bytes that are not UTF-8; strict: the query fails, as Python's own default is."""
    distinct: bool = False
    """Give each row once, in the order in which it came first; only those count towards the limits."""
    max_heap_bytes: int = MAX_HEAP_BYTES
    """SQLite can lower this in a process, and not raise it again: the smallest that was asked for counts."""


def execute(
    place: Path | str | tuple[str, ...],
    sql: str,
    *,
    timeout_seconds: float = 5.0,
    max_rows: int = 10_000,
    limits: Limits | None = None,
) -> Execution:
    """Run one query, reading only, on a SQLite file or on an empty database made by the statements of a tuple.

    All errors of the query and of the file are returned in `error`; none is raised. A result of more than `max_rows`
    rows is an error too, because a part of a result could equal another result. `limits` replaces the two numbers.
    """
    limits = limits or Limits(timeout_seconds, max_rows)
    where = place if isinstance(place, tuple) else str(place)
    answer = _worker.ask(("read", where, sql, dataclasses.asdict(limits)))
    if isinstance(answer, tuple):
        return Execution(*answer)
    if answer == -signal.SIGALRM:
        return Execution(error=f"not finished after {limits.timeout_seconds:g} seconds")
    return Execution(error=f"the process that ran it ended with status {answer}")


def time_ratios(place: Path | str, predicted: str, gold: str, repeats: int, timeout_seconds: float) -> list[float]:
    """How much longer the gold query takes than the predicted one, for each of `repeats` turns of both.

    Timed from the cursor to the last row, on a connection that is open already. Empty where one of the two fails,
    or all turns together outlast the deadline.
    """
    answer = _worker.ask(("race", str(place), predicted, gold, repeats, timeout_seconds))
    return answer if isinstance(answer, list) else []


def check_database(path: Path | str) -> None:
    """Raise DataError unless `path` is a file that begins as a SQLite database does."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no database file {path}: give the path of a SQLite file.")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    if not head:
        raise DataError(f"The database file {path} is empty: give the path of a SQLite file with tables in it.")
    if head != b"SQLite format 3\x00":
        raise DataError(
            f"{path} is not a database, or it is encrypted (it begins with {head[:12]!r}): give the path of a SQLite "
            "file."
        )


def connect(path: Path) -> sqlite3.Connection:
    """A connection that can only read, and writes nothing beside the file.

    Even a reader of a database in WAL mode writes FILE-wal and FILE-shm. It does not where the log is empty and the
    file is opened as immutable, nor with an index of the log in memory, for which no other program may be writing.
    """
    path = path.resolve()
    options, in_memory = "mode=ro", False
    with path.open("rb") as file:
        head = file.read(20)
    log = path.with_name(path.name + "-wal")
    if head[18:20] == b"\x02\x02":
        if not (log.exists() and log.stat().st_size):
            options += "&immutable=1"
        elif os.name == "posix" and not _is_open_elsewhere(path):
            options, in_memory = options + "&vfs=unix-none", True
    connection = sqlite3.connect(f"{path.as_uri()}?{options}", uri=True, timeout=_BUSY_SECONDS)
    connection.text_factory = lambda raw: raw.decode("utf-8", errors="replace")
    if in_memory:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").close()
    return connection


def _is_open_elsewhere(path: Path) -> bool:
    """Whether another process has a database in WAL mode open; True where that cannot be found out."""
    shared = path.with_name(path.name + "-shm")
    if not shared.exists():
        return False
    if sys.platform != "linux":
        return True
    import fcntl
    import struct

    # Each process that has the database open holds a lock on this byte (UNIX_SHM_DMS).
    byte, layout = 128, "hhqqi0q"
    try:
        # Closing the file would drop locks that this process itself holds: ask without opening it first.
        if f":{shared.stat().st_ino} " in Path("/proc/locks").read_text():
            return True
        with shared.open("rb") as file:
            asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            found = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except OSError:
        return True
    return found[0] != fcntl.F_UNLCK


# This side ---------------------------------------------------------------------------------------------


class _Worker:
    """The worker of this process, which answers one request at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: tuple[Any, ...]) -> object:
        """The worker's answer, or its exit status if it ended instead."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self._start()
            process = self.process
            assert process is not None and process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                _send(process.stdin.fileno(), marshal.dumps(request))
            # It always answers or ends: the alarm that it sets itself is the operating system's.
            answer = _receive(process.stdout.fileno())
            if answer is not None:
                return marshal.loads(answer)
            self.stop()
            return process.returncode

    def _start(self) -> None:
        self.stop()
        root = Path(__file__).resolve().parents[__name__.count(".")]
        # Isolated and without site-packages: it starts in the tenth of a second and is as it is everywhere.
        program = f"import sys; sys.path.insert(0, {str(root)!r}); from {__name__} import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Control-C is for the process that asked.
            start_new_session=True,
        )

    def stop(self) -> None:
        """Close the pipes, at which an idle process ends, and wait for it."""
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()
            self.process.wait()


_worker = _Worker()


@atexit.register
def _end() -> None:
    if _worker.process is not None and _worker.process.poll() is None:
        _worker.process.kill()
        _worker.process.wait()


def _forget() -> None:
    # A forked process must not read the answers to its parent's questions; it starts a worker of its own.
    global _worker
    if _worker.process is not None:
        for pipe in (_worker.process.stdin, _worker.process.stdout):
            assert pipe is not None
            pipe.close()
        # Not ours to wait for.
        _worker.process.returncode = 0
    _worker = _Worker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _send(file: int, data: bytes) -> None:
    view = memoryview(len(data).to_bytes(8, "little") + data)
    while view:
        view = view[os.write(file, view) :]


def _receive(file: int) -> bytes | None:
    """One message; None where the other side has closed."""
    head = _read_exactly(file, 8)
    return head and _read_exactly(file, int.from_bytes(head, "little"))


def _read_exactly(file: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(file, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# The other side ----------------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests from standard input on standard output until it closes."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Not every system has these limits.
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MAX_PROCESS_BYTES, MAX_PROCESS_BYTES))
    if hasattr(signal, "SIGALRM"):
        # What started us may have had it ignored or blocked, and that is handed down.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    while (request := _receive(0)) is not None:
        kind, *arguments = marshal.loads(request)
        try:
            answer = marshal.dumps(_read(*arguments) if kind == "read" else _race(*arguments))
        except MemoryError:
            answer = marshal.dumps(((), (), "out of memory"))
        _send(1, answer)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """End this process if what is inside takes longer: nothing in Python could interrupt one step of SQLite."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _read(place: str | tuple[str, ...], sql: str, limits: dict[str, Any]) -> Result:
    """Run one query within the fields of a `Limits`."""
    bounds = Limits(**limits)
    deadline = time.monotonic() + bounds.timeout_seconds
    try:
        with _alarm(bounds.timeout_seconds), contextlib.closing(_guarded(place, deadline, bounds)) as connection:
            if bounds.bad_text != "replace":
                connection.text_factory = _decoder(bounds.bad_text)
            return _rows(connection, sql, bounds)
    except MemoryError:
        return (), (), "out of memory"
    except DataError as error:
        return (), (), str(error)
    except (sqlite3.Error, sqlite3.Warning, OSError, ValueError, OverflowError) as error:
        late = time.monotonic() > deadline
        return (), (), f"not finished after {bounds.timeout_seconds:g} seconds" if late else str(error)


def _rows(connection: sqlite3.Connection, sql: str, bounds: Limits) -> Result:
    seen: set[int] = set()  # The actions that SQLite asked about.

    def authorise(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        seen.add(action)
        refused = action not in _READING or (
            action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _REFUSED_FUNCTIONS
        )
        return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK

    connection.set_authorizer(authorise)
    cursor = connection.execute(sql)
    if cursor.description is None or sqlite3.SQLITE_SELECT not in seen:
        return (), (), "not a query: there is nothing to read" if seen else NOTHING
    rows: dict[Row, None] | list[Row] = {} if bounds.distinct else []
    size = 0
    for row in cursor:
        if isinstance(rows, dict):
            if row in rows:
                continue
            rows[row] = None
        else:
            rows.append(row)
        size += sum(16 + (len(value) if isinstance(value, str | bytes) else 0) for value in row)
        if len(rows) > bounds.max_rows:
            return (), (), f"more than {bounds.max_rows} rows"
        if size > bounds.max_bytes:
            return (), (), f"more than {bounds.max_bytes} bytes"
    return tuple(rows), tuple(column[0] for column in cursor.description), None


def _guarded(place: str | tuple[str, ...], deadline: float, bounds: Limits) -> sqlite3.Connection:
    """A connection with every limit but the authoriser, which would see the pragmas."""
    if isinstance(place, tuple):
        connection = sqlite3.connect(":memory:")
        for statement in place:
            connection.execute(statement)
    else:
        check_database(place)
        connection = connect(Path(place))
    for pragma in ("query_only = ON", "trusted_schema = OFF", "temp_store = MEMORY",
                   f"hard_heap_limit = {bounds.max_heap_bytes}"):  # fmt: skip
        connection.execute(f"PRAGMA {pragma}").close()
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 1_000_000)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 500)
    return connection


def _decoder(errors: str) -> Callable[[bytes], str]:
    return str if errors == "strict" else lambda raw: raw.decode("utf-8", errors=errors)


def _race(place: str, predicted: str, gold: str, repeats: int, timeout_seconds: float) -> list[float]:
    deadline = time.monotonic() + timeout_seconds
    ratios = []
    bounds = Limits(max_rows=1_000_000, max_bytes=4 * MAX_RESULT_BYTES, max_heap_bytes=4 * MAX_HEAP_BYTES)
    try:
        with _alarm(timeout_seconds):
            for _ in range(repeats):
                seconds = []
                for sql in (predicted, gold):
                    with contextlib.closing(_guarded(place, deadline, bounds)) as connection:
                        start = time.perf_counter()
                        error = _rows(connection, sql, bounds)[2]
                        seconds.append(time.perf_counter() - start)
                    if error is not None:
                        return []
                ratios.append(seconds[1] / seconds[0])
    except (sqlite3.Error, sqlite3.Warning, OSError, ValueError, MemoryError, DataError):
        return []
    return ratios
