"""Bytes and text of a study's files: plain, compressed with gzip, or inside a QIIME 2 artifact."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from runner.errors import DataError


def read_bytes(path: Path, member: str) -> bytes:
    """A file's bytes: of `data/<member>` inside a QIIME 2 artifact (a zip), unpacked from gzip, or as they are.

    Raises DataError where there is no such file, or where it is damaged.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}: check the path.")
    try:
        content = path.read_bytes()
        if content[:4] == b"PK\x03\x04":
            content = _from_artifact(content, path, member)
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{path} is damaged or cut off: {error}. Copy or export it again.") from None
    return content


def _from_artifact(content: bytes, path: Path, member: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as artifact:
        names = artifact.namelist()
        inside = [each for each in names if each.split("/")[1:] == ["data", member]]
        if inside:
            return artifact.read(inside[0])
    if any(each.startswith("xl/") for each in names):
        raise DataError(f"{path} is an Excel workbook: save the sheet as text with tabs between the columns (UTF-8).")
    held = [each.partition("/data/")[2] for each in names if "/data/" in each][:4]
    raise DataError(f"{path} holds {', '.join(held) or 'no data'}; wanted: an artifact with {member}.")


def read_text(path: Path, member: str) -> str:
    """A file's text, with line ends of `\\n`. Raises DataError where it is not UTF-8.

    Replacing what cannot be read would turn two names into one.
    """
    content = read_bytes(path, member)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(
                f"{path} is in UTF-16; wanted: UTF-8.\nType iconv -f UTF-16 -t UTF-8 {path} > NEW"
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        word = content[max(0, error.start - 20) : error.end + 20].split(b"\n")
        shown = next(part for part in word if content[error.start : error.end] in part)
        raise DataError(
            f"{path} is not UTF-8: line {line} has the byte 0x{content[error.start]:02x}, near "
            f"{shown.decode('latin-1').strip()!r}.\nSave it as UTF-8: for a Western European file, "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path} > NEW"
        ) from None
    if "\0" in text:
        raise DataError(f"{path} is not a text file: it holds zero bytes.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
