"""The files of a data source: found by path, folder, pattern or URL, opened, and checked to hold text."""

from __future__ import annotations

import codecs
import dataclasses
import glob
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

from runner.errors import DataError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
LINES = (".jsonl", ".ndjson")
TABLES = (".json", ".csv", ".tsv")
"""Kinds of files with rows. In a folder, Relay reads them only if it has no file of KNOWN: they often only describe
the other files."""
ROWS = (".parquet", *TABLES)
"""Kinds of files that are read from their start, row by row."""
KNOWN = (".txt", ".text", ".md", *LINES, ".parquet")

SYSTEM_FOLDERS = {"__MACOSX", "__pycache__", "_delta_log", "_temporary", "@eaDir", "$RECYCLE.BIN", "lost+found"}
"""Folders that operating systems and other programs make. Hidden folders begin with a dot."""
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini"}
UNFINISHED = ("~", ".swp", ".swo", ".bak", ".orig", ".tmp", ".part", ".crdownload", ".download", ".aria2")
"""Endings of backups of editors and of unfinished downloads."""

SIGNATURES = {
    b"%PDF-": "a PDF file",
    b"PK\x03\x04": "a zip archive, or a .docx, .xlsx, .odt or .epub file",
    b"\xd0\xcf\x11\xe0": "an old .doc or .xls file",
    b"{\\rtf": "an RTF file",
    b"\x1f\x8b": "compressed by gzip, so its name must end in .gz",
    b"BZh": "compressed by bzip2, so its name must end in .bz2",
    b"\xfd7zXZ": "compressed by xz, so its name must end in .xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd, so its name must end in .zst",
    b"7z\xbc\xaf": "a 7z archive",
    b"PAR1": "a Parquet file, so its name must end in .parquet",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"GGUF": "a GGUF model",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"version https://git-lfs": "a pointer of Git LFS (type git lfs pull to get the file)",
}
"""How files begin that are often taken for text."""
MARKS_OF_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, the longer ones first."""
HEAD = 1 << 13
"""Bytes of a file that are looked at before it is read."""


@dataclasses.dataclass(frozen=True)
class File:
    """One file of the source, or a `datasets` id."""

    path: str
    size: int
    """In bytes."""

    @property
    def name(self) -> str:
        """Its name without its folder."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Its kind, without the compression: .txt, .jsonl, .parquet; empty for a `datasets` id."""
        name = self.name.lower()
        for ending in COMPRESSED:
            name = name.removesuffix(ending)
        return name[name.rindex(".") :] if "." in name else ""

    @property
    def is_compressed(self) -> bool:
        """Whether it must be read from its start because it is compressed."""
        return self.path.lower().endswith(COMPRESSED)

    @property
    def has_lines(self) -> bool:
        """Whether every line is a JSON object."""
        return self.suffix in LINES

    @property
    def is_dataset(self) -> bool:
        """Whether it is a `datasets` id."""
        return self.path.startswith("datasets://")

    @property
    def is_remote(self) -> bool:
        """Whether it is at a URL."""
        return "://" in self.path and not self.is_dataset

    def open(self) -> BinaryIO:
        """The file's bytes, decompressed. Raises DataError where it cannot be read."""
        try:
            if "://" not in self.path and not self.is_compressed:
                return open(self.path, "rb")
            import fsspec

            if self.path.lower().endswith(".zst"):
                # fsspec needs another package to decompress these.
                import pyarrow

                packed = fsspec.open(self.path, "rb").open()  # type: ignore[union-attr]
                return io.BufferedReader(pyarrow.CompressedInputStream(packed, "zstd"), 1 << 20)
            opened = fsspec.open(self.path, "rb", compression="infer")
            return cast(BinaryIO, opened.open())  # type: ignore[union-attr]
        except (OSError, ImportError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from None

    def check_head(self) -> None:
        """Raise DataError if the file begins like something other than UTF-8 text."""
        if self.suffix == ".parquet":
            return
        with self.open() as opened:
            head = opened.read(HEAD)
        mark = next((mark for mark in MARKS_OF_ENCODINGS if head.startswith(mark)), None)
        if mark is not None:
            raise self.wrong_encoding(MARKS_OF_ENCODINGS[mark])
        kind = next((kind for start, kind in SIGNATURES.items() if head.startswith(start)), None)
        if kind is None and head[257:262] == b"ustar":
            kind = "a tar archive"
        if kind is None and b"\0" in head:
            guess = encoding_without_mark(head)
            if guess is not None:
                raise self.wrong_encoding(guess)
            kind = "a binary file (it holds zero bytes)"
        if kind is not None:
            raise DataError(
                f"{self.path} is no text: it is {kind}.\n"
                "Give files of plain text, .jsonl, .json, .csv, .tsv or .parquet, and keep others out of data.source."
            )

    def wrong_encoding(self, encoding: str) -> DataError:
        """The error for a file in another encoding than UTF-8."""
        before = "Decompress it, then convert it" if self.is_compressed else "Convert it"
        return DataError(
            f"{self.path} is not UTF-8 text: it seems to be {encoding}.\n"
            f"{before}, for example: iconv -f {encoding} -t utf-8 {self.name} > utf8-{self.name}"
        )


def encoding_without_mark(head: bytes) -> str | None:
    """The encoding of text in which every other byte is zero: UTF-16 without its mark."""
    sample = head[: len(head) // 2 * 2]
    for name, zeros in (("utf-16le", sample[1::2]), ("utf-16be", sample[::2])):
        if len(zeros) >= 4 and zeros.count(0) > 0.7 * len(zeros) and sample.count(0) < 0.6 * len(sample):
            return name
    return None


def encoding_of(content: bytes) -> str:
    """A likely encoding of bytes that are not UTF-8. Latin-1 has no printable characters from 0x80 to 0x9f."""
    return "windows-1252" if any(0x80 <= byte < 0xA0 for byte in content[: 1 << 16]) else "latin1"


def list_files(source: str, setting: str = "data.source") -> tuple[File, ...]:
    """The files that a source names: paths, folders, patterns and URLs, with commas between them.

    Raises DataError where there is none; `setting` is the name that its message gives.
    """
    # A path may hold commas itself.
    words = [source] if os.path.exists(source) else [word.strip() for word in source.split(",")]
    files = [file for word in words if word for file in _list_one(os.path.expanduser(word), setting)]
    if not files:
        raise DataError(f"{setting} {source!r} names no file: type --{setting} with text files, a folder or a glob.")
    if not sum(file.size for file in files):
        raise DataError(f"The files of {setting} {source!r} are empty: give some that hold text.")
    return tuple(files)


def _list_one(word: str, setting: str) -> list[File]:
    if "://" in word:
        return _list_url(word)
    if os.path.isdir(word):
        below = (path.relative_to(word).as_posix() for path in sorted(Path(word).rglob("*")) if path.is_file())
        paths = [str(Path(word) / path) for path in _of_known_kind(below)]
        if not paths:
            kinds = ", *".join((*KNOWN, *TABLES))
            raise DataError(f"The folder {word} has no text in it: wanted are files called *{kinds}.")
    elif os.path.isfile(word):
        paths = [word]
    elif any(mark in word for mark in "*?["):
        fixed = len(_fixed_part(word))
        found = sorted(path for path in glob.glob(word, recursive=True) if Path(path).is_file())
        paths = [path for path in found if not is_litter(Path(path[fixed:]).as_posix())]
        if not paths:
            raise DataError(f"No file is named {word!r}: check the pattern given to --{setting}.")
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", word) and not re.match(r"\.\D", File(word, 0).suffix):
        # A `datasets` id; its size is not known.
        return [File(f"datasets://{word}", 1 << 40)]
    else:
        raise DataError(f"There is no {word}: type --{setting} with text files, a folder, a glob or a URL.")
    return [File(path, Path(path).stat().st_size) for path in paths]


def _fixed_part(pattern: str) -> str:
    """The folders of a pattern before the first that has a wildcard: what a user types there is meant."""
    first = re.search(r"[*?\[]", pattern)
    return pattern[: first.start()].rpartition("/")[0] if first else pattern


def is_litter(below: str) -> bool:
    """Whether a path below a folder is hidden, a backup, unfinished, or made by an operating system."""
    *folders, name = [part for part in below.split("/") if part]
    return (
        any(part.startswith(".") or part in SYSTEM_FOLDERS for part in (*folders, name))
        or name.lower() in SYSTEM_FILES
        or name.startswith("~$")
        or (name.startswith("#") and name.endswith("#"))
        or name.lower().endswith(UNFINISHED)
    )


def _of_known_kind(below: Iterable[str]) -> list[str]:
    """Of the paths below a folder, those of text."""
    wanted = [path for path in below if not is_litter(path)]
    of_kinds = ([path for path in wanted if File(path, 0).suffix in kinds] for kinds in (KNOWN, TABLES))
    return next((some for some in of_kinds if some), [])


def _list_url(url: str) -> list[File]:
    import fsspec

    try:
        system, path = fsspec.url_to_fs(url)
        if any(mark in path for mark in "*?["):
            fixed = len(_fixed_part(path))
            paths = [found for found in sorted(system.glob(path)) if not is_litter(str(found)[fixed:])]
        elif system.isdir(path):
            root = f"{str(path).rstrip('/')}/"
            below = {str(found).removeprefix(root): found for found in sorted(system.find(path))}
            paths = [below[found] for found in _of_known_kind(below)]
        else:
            paths = [path]
        scheme = url.partition("://")[0]
        return [File(f"{scheme}://{str(each).removeprefix(f'{scheme}://')}", int(system.size(each))) for each in paths]
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{url} cannot be read: {error}\nCheck the URL and the credentials of your cloud.") from None
