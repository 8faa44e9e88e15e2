"""`relay data`: fetch the data sets of a recipe, going on where a fetch broke off, and check what came.

Archives and unfinished files lie in OUTPUT_DIR/.archives until their source is complete; OUTPUT_DIR/NAME/source.json
then says what was fetched from where, and the source is not fetched again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Annotated

from runner import registry
from runner.config import parse_into
from runner.errors import ConfigError, DataError
from runner.parts.setting_types import Position
from runner.recipe import Download, Source

ATTEMPTS = 5
BLOCK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0
RECORD = "source.json"
FREE_BYTES = 1 << 30
"""An archive may unpack to so much, or to `MOST_TIMES` its own size where that is more."""
MOST_TIMES = 200
"""Text and SQLite files become at most some 20 times smaller in an archive; a bomb becomes 1,000 times smaller."""
MOST_FILES = 200_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """Settings of a fetch: relay data RECIPE ..."""

    recipe: Annotated[str, Position("RECIPE", "text2sql", "the name of a recipe")]
    """Recipe whose data sets are fetched, such as text2sql; it may stand alone, without the flag."""
    sources: tuple[str, ...] = ()
    """Names of data sets; without any, those that there are get listed."""
    output_dir: str = "data"
    """Folder that gets a folder for each."""
    base_url: str | None = None
    """Another server with the same files, as BASE_URL/NAME/FILE."""


def main(arguments: list[str]) -> None:
    """Fetch, unpack and check each data set; print what it is and under which licence."""
    settings = parse_into(FetchSettings, arguments, "relay data", __doc__)
    name, recipe = settings.recipe, registry.find(settings.recipe)
    known: dict[str, Source] = dict(recipe.downloads())
    if not known:
        raise ConfigError(f"The recipe {name} names no data sets: its page says where its data are from.")
    wrong = [each for each in settings.sources if each not in known]
    if wrong:
        raise ConfigError(f"{name} has no data set {wrong[0]!r}: type --sources with some of {', '.join(known)}.")
    if not settings.sources:
        for each, source in known.items():
            print(f"{each:12} {source.licence:14} {source.homepage}")
        print(f"relay data {name} --sources {' '.join(known)} --output_dir DIR fetches them.")
    for each in dict.fromkeys(settings.sources):
        download_source(each, known[each], Path(settings.output_dir), settings.base_url)


def download_source(name: str, source: Source, folder: Path, base_url: str | None = None) -> None:
    """Bring one data set into `folder`/`name`. Raises DataError where something else came, or nothing."""
    home = folder / name
    print(f"{name}: licence {source.licence}, {source.homepage}", flush=True)
    if (home / RECORD).is_file():
        print(f"{name}: is in {home} already; {source.check(folder)}")
        return
    archives = folder / ".archives" / name
    archives.mkdir(parents=True, exist_ok=True)
    record = []
    for each in source.downloads:
        url = f"{base_url.rstrip('/')}/{name}/{each.file}" if base_url else each.url
        path = download_file(url, archives / each.file)
        found = _sha256(path)
        if each.sha256 and found != each.sha256:
            if base_url is None:
                path.unlink()
                raise DataError(
                    f"Checksum mismatch for {url} (sha256 {found}, wanted {each.sha256}); the file was deleted."
                    f"\nFetch it again, or by hand from {source.homepage} into {archives}."
                )
            print(f"{name}: {each.file} is not the official file (sha256 {found})", file=sys.stderr)
        record.append({"url": url, "bytes": path.stat().st_size, "sha256": found})
    for each in source.downloads:
        _place(archives / each.file, home, each, source)
    summary = source.check(folder)
    content = {"licence": source.licence, "homepage": source.homepage, "files": record}
    (home / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(archives)
    print(f"{name}: in {home}; {summary}", flush=True)


def download_file(url: str, path: Path) -> Path:
    """The file at `url`, as `path`; goes on where an unfinished one ends. Raises DataError where it does not come."""
    if path.is_file():
        return path
    unfinished = path.with_name(f"{path.name}.part")
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(2.0**attempt / 10, 5.0))
        try:
            _go_on(url, unfinished)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                # There is nothing after what we have, which is longer than the file, or of another file.
                unfinished.unlink(missing_ok=True)
                continue
            raise DataError(f"{url} cannot be fetched: the server says {error.code} {error.reason}.") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if attempt == ATTEMPTS - 1:
                raise DataError(
                    f"{url} cannot be fetched: {error or type(error).__name__}.\n"
                    "The same command goes on where this one stopped."
                ) from None
            continue
        unfinished.replace(path)
        return path
    raise DataError(f"{url} cannot be fetched: the server's answers do not fit together. Try again later.")


def _go_on(url: str, unfinished: Path) -> None:
    """Read the rest of a file. Raises OSError where it breaks off."""
    from tqdm import tqdm

    # The mark says which content the beginning is of.
    note = unfinished.with_name(f"{unfinished.name}.mark")
    have = unfinished.stat().st_size if unfinished.is_file() else 0
    mark = note.read_text(encoding="utf-8") if have and note.is_file() else ""
    headers = {"User-Agent": "relay"}
    if have and mark:
        headers |= {"Range": f"bytes={have}-", "If-Range": mark}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        note.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "", encoding="utf-8")
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=unfinished.stem, disable=None)
        with unfinished.open("ab" if goes_on else "wb") as file, bar:
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))
    size = unfinished.stat().st_size
    if total is not None and size != total:
        raise OSError(f"it broke off after {size:,} of {total:,} bytes")
    note.unlink()


def _place(path: Path, home: Path, download: Download, source: Source) -> None:
    """Unpack an archive into the source's folder, or copy the file there."""
    home.mkdir(parents=True, exist_ok=True)
    if not download.unpack:
        shutil.copy2(path, home / download.file)
        return
    before = {*home.rglob("*.zip")}
    # The archives inside count as well.
    limit = Limit(path, max(FREE_BYTES, MOST_TIMES * path.stat().st_size), MOST_FILES)
    try:
        _unpack(path, home, download.without, limit)
        # BIRD's databases are an archive in the archive.
        for inner in sorted({*home.rglob("*.zip")} - before):
            if not inner.name.startswith("._"):
                _unpack(inner, inner.parent, "", limit)
            inner.unlink()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        begins = path.read_bytes()[:40] if path.stat().st_size < 1_000_000 else b"..."
        path.unlink()
        raise DataError(
            f"{path.name} is no whole archive ({error}; it begins with {begins!r}); the file was deleted.\n"
            f"Run the same command again, or fetch it by hand from {source.homepage} into {path.parent}."
        ) from None


@dataclasses.dataclass
class Limit:
    """How much an archive, with those inside it, may still unpack to."""

    path: Path
    most_bytes: int
    most_files: int
    num_bytes: int = 0
    num_files: int = 0

    def add(self, num_bytes: int = 0, num_files: int = 0) -> None:
        """Count what is written next. Raises DataError where it is too much."""
        self.num_bytes, self.num_files = self.num_bytes + num_bytes, self.num_files + num_files
        if self.num_bytes > self.most_bytes or self.num_files > self.most_files:
            raise DataError(
                f"{self.path.name} unpacks to more than {self.most_bytes:,} bytes or {self.most_files:,} files, which "
                f"no data set of its size does.\nIt stays in {self.path.parent}: check where it is from, and unpack it "
                "by hand."
            )


def _unpack(path: Path, target: Path, without: str, limit: Limit | None = None) -> None:
    """Unpack a zip or tar archive within a limit, if there is one; nothing leaves `target`, and no link is made."""

    def place(name: str) -> Path | None:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or name.startswith("/") or parts[:1] == ("__MACOSX",) or not parts:
            return None
        parts = parts[1:] if parts[0] == without else parts
        return target.joinpath(*parts) if parts else None

    def write(name: str, content: IO[bytes] | None) -> None:
        to = place(name)
        if to is None or content is None:
            return
        if limit:
            limit.add(num_files=1)
        to.parent.mkdir(parents=True, exist_ok=True)
        with to.open("wb") as file:
            while block := content.read(BLOCK_BYTES):
                if limit:
                    limit.add(len(block))
                file.write(block)

    if tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile():
                    write(member.name, tar.extractfile(member))
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                # Reading to the end checks the content's checksum.
                with archive.open(entry) as content:
                    write(entry.filename, content)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
