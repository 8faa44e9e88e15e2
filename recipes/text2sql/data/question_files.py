"""Reading a user's file of questions: JSON, JSON lines or a table, each entry with its line.

What cannot be read at all raises DataError. What is wrong with one entry is a `Fault`, so that a caller can stop at it
or leave the entry out.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from runner.errors import DataError

ENDINGS = (".json", ".jsonl", ".csv", ".tsv")
"""What a file of questions may end in."""
NAMES: Mapping[str, tuple[str, ...]] = {
    "question": ("question",),
    "query": ("query", "SQL", "sql"),
    "db_id": ("db_id",),
}
"""What each text may be called in a file; the first name that an entry has counts."""
IDS = ("question_id", "id")
"""What an entry's own number or name may be called; no two entries of a file may share one."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why an entry is no question."""

    kind: str
    """For counting, after a number of questions: "without a query"."""
    detail: str
    """For a person, after the place of the entry."""


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """One entry of a file."""

    line: int
    """Its first line, counted from 1."""
    values: Mapping[str, object]
    """What it holds, by name; empty where it is no object."""
    fault: Fault | None = None


def with_any_ending(path: Path) -> Path:
    """The file, or one of the same name with another of `ENDINGS`, whichever is there first; else the path itself."""
    found = (path.with_suffix(ending) for ending in dict.fromkeys((path.suffix, *ENDINGS)))
    return next((each for each in found if each.is_file()), path)


def read_entries(path: Path) -> list[FileEntry]:
    """The entries of a file of questions. Raises DataError where it cannot be read, or holds no entry."""
    text = read_text(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        found = list(_table(path, text))
    elif path.suffix.lower() == ".jsonl":
        found = [_entry(number, *_parsed(line)) for number, line in _lines(text)]
    else:
        found = [_entry(line, value) for line, value in _json_list(path, text)]
    if not found:
        raise DataError(f"{path} holds no entries: wanted objects or rows with question, query, db_id.")
    return found


def texts_of(entry: FileEntry, names: Sequence[str]) -> dict[str, str] | Fault:
    """The texts that are called `names`, or what is wrong with the entry. A text of white space counts as empty."""
    if entry.fault is not None:
        return entry.fault
    found = {}
    for name in names:
        own = next((each for each in NAMES[name] if each in entry.values), None)
        value = None if own is None else entry.values[own]
        if own is None:
            listed = ", ".join(map(str, entry.values)) or "nothing"
            return Fault(f"without {name}", f"there is no {name}; the entry has {listed}")
        if not isinstance(value, str):
            return Fault(f"whose {name} is no text", f"{own} is to be a text, and is {shown(value)}")
        if not value.strip():
            return Fault(f"without {name}", f"{own} is empty")
        found[name] = value
    return found


def repeated_ids(entries: Sequence[FileEntry]) -> dict[int, Fault]:
    """The place in `entries` of each entry whose id an earlier one has, and what is wrong with it."""
    found, first = {}, dict[object, int]()
    for place, entry in enumerate(entries):
        name = next((each for each in IDS if isinstance(entry.values.get(each), int | str)), None)
        if name is None or entry.values[name] == "":
            continue
        own = (name, str(entry.values[name]))
        if own in first:
            detail = f"{name} {own[1]} is also that of line {first[own]}"
            found[place] = Fault("with an id that an earlier one has", detail)
        else:
            first[own] = entry.line
    return found


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark. Raises DataError where it is neither."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not {'UTF-16, as it begins' if wide else 'UTF-8'}: line {line} has the byte "
            f"0x{data[error.start]:02x}.\nSave it as UTF-8; on a shell: iconv -f LATIN1 -t UTF-8 FILE > NEW."
        ) from None


def shown(value: object) -> str:
    """A value of JSON, for a message."""
    return json.dumps(value, ensure_ascii=False, default=str)[:40]


def _entry(line: int, value: object, wrong: str = "") -> FileEntry:
    if wrong:
        return FileEntry(line, {}, Fault("on lines that are not JSON", wrong))
    if not isinstance(value, dict):
        fault = Fault("that are no objects", f"wanted an object with question, query, db_id, and found {shown(value)}")
        return FileEntry(line, {}, fault)
    return FileEntry(line, value)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # JSON may hold other ends of lines inside a text.
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _parsed(line: str) -> tuple[object, str]:
    try:
        return json.loads(line), ""
    except (json.JSONDecodeError, RecursionError) as error:
        return None, f"the line is not JSON: {error}"


def _json_list(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """(line, value) of each value of a JSON list."""
    decoder, spaces = json.JSONDecoder(), " \t\r\n"
    wanted = "wanted a JSON list of objects with question, query, db_id"

    def skipped(place: int) -> int:
        while place < len(text) and text[place] in spaces:
            place += 1
        return place

    place = skipped(0)
    if text[place : place + 1] != "[":
        try:
            json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            hint = "; an object on each line is a .jsonl file" if text[place : place + 1] == "{" else ""
            raise DataError(f"{path} is not JSON: {error}{hint}.") from None
        raise DataError(f"{path} holds no entries: {wanted}.")
    place = skipped(place + 1)
    line, counted = 1, 0
    while text[place : place + 1] != "]":
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: line {line}: {error}.") from None
        yield line, value
        place = skipped(place)
        sign = text[place : place + 1]
        if sign not in (",", "]"):
            where = line + text.count("\n", counted, place)
            raise DataError(f"{path} is not JSON: line {where}: wanted , or ] behind an entry.")
        place = skipped(place + 1) if sign == "," else place
    if text[place + 1 :].strip():
        raise DataError(f"{path} is not JSON: there is more behind the list.")


def _table(path: Path, text: str) -> Iterator[FileEntry]:
    """The rows of a table with a header."""
    head = text.lstrip("\r\n").partition("\n")[0]
    signs = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=signs, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in rows:
            if header is None and row:
                header = [cell.strip() for cell in row]
                if missing := [name for name in ("question",) if name not in header]:
                    raise DataError(
                        f"{path}: the header has no column {missing[0]}: it has {', '.join(header)[:200]}.\n"
                        "Wanted a first line such as question,query,db_id."
                    )
            elif header is not None and any(cell.strip() for cell in row):
                if len(row) == len(header):
                    yield FileEntry(line, dict(zip(header, row, strict=True)))
                else:
                    detail = f"the row has {len(row)} cells, and the header {len(header)}"
                    yield FileEntry(line, {}, Fault("on rows that are not as long as the header", detail))
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path} is no table: line {line}: {error}.") from None
