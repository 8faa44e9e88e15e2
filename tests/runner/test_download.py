"""The command `relay data`: downloads from a local server, with the sources of text2sql."""

import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.commands import download as fetching
from runner.errors import ConfigError, DataError
from tests.recipes.text2sql.source_folders import (
    GRETEL,
    read,
    rows,
    write_sources,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Spider, BIRD, WikiSQL and Gretel, a few questions each."""
    return write_sources(tmp_path)


class Server:
    """A server of a folder's files, with ranges; some answers break off."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.breaks = folder, list[tuple[str, str | None, int]](), dict[str, int]()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = outer.folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                content, wanted = path.read_bytes(), self.headers.get("Range")
                mark = f'"{len(content)}-{content[:1].hex()}"'
                first = int(wanted[6:-1]) if wanted and self.headers.get("If-Range") == mark else 0
                self.send_response(206 if first else 200)
                self.send_header("ETag", mark)
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
                rest = content[first:]
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                if outer.breaks.get(path.name, 0) > 0:
                    outer.breaks[path.name] -= 1
                    rest = rest[: len(rest) // 2]
                outer.asked.append((path.name, wanted, len(rest)))
                self.wfile.write(rest)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The four data sets, packed as their official files are."""
    place = tmp_path_factory.mktemp("server")

    def zipped(name: str, top: str, source: Path) -> None:
        (place / name).parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(place / name, "w") as archive:
            for path in sorted(source.rglob("*")):
                archive.write(path, f"{top}/{path.relative_to(source)}")
            archive.writestr(f"__MACOSX/{top}/._dev.json", "nothing")

    zipped("spider/spider_data.zip", "spider_data", folder / "spider")
    for part, top in (("train", "train"), ("dev", "dev_20240627")):
        home = folder / "bird" / top
        zipped(f"bird/{part}_databases.zip", f"{part}_databases", home / f"{part}_databases")
        shutil.rmtree(home / f"{part}_databases")
        (place / f"bird/{part}_databases.zip").rename(home / f"{part}_databases.zip")
        zipped(f"bird/{part}.zip", top, home)
    (place / "wikisql").mkdir()
    with tarfile.open(place / "wikisql/data.tar.bz2", "w:bz2") as archive:
        archive.add(folder / "wikisql", "data")
    (place / "gretel").mkdir()
    from pyarrow import Table
    from pyarrow.parquet import write_table

    rows = [{"sql_prompt": text, "sql_context": context, "sql": query} for text, context, query in GRETEL]
    for part in ("train", "test"):
        write_table(Table.from_pylist(rows), place / f"gretel/synthetic_text_to_sql_{part}.snappy.parquet")
    found = Server(place)
    yield found
    found.close()


def fetch(server: Server, target: Path, *names: str) -> None:
    fetching.main(["text2sql", "--sources", *names, "--output_dir", str(target), "--base_url", server.url])


def test_what_is_fetched_is_read(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "fetched"
    fetch(server, target, "spider", "bird", "wikisql", "gretel")
    printed = capsys.readouterr().out
    for part in (
        "spider: licence CC BY-SA 4.0", "wikisql: licence BSD-3-Clause", "gretel: licence Apache-2.0",
        "questions: 4 for train, 3 for validation", "questions: 7 for train, 7 for validation",
    ):  # fmt: skip
        assert part in printed, printed
    assert not list(target.rglob("*.zip")) and not list(target.rglob("._*"))
    for source, number in (("spider", 4), ("bird", 4), ("wikisql", 3), ("gretel", 2)):
        assert all(rows(question) for question in read(source, target)) and len(read(source, target)) == number
    assert len(read("mix", target, "validation")) == 10
    # What is there is not fetched again.
    asked = len(server.asked)
    fetch(server, target, "spider", "gretel")
    assert len(server.asked) == asked and "is in" in capsys.readouterr().out
    record = json.loads((target / "spider/source.json").read_text())
    content = (server.folder / "spider/spider_data.zip").read_bytes()
    assert record["files"][0]["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_fetch_goes_on_where_it_broke_off(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    size = (server.folder / "spider/spider_data.zip").stat().st_size
    server.breaks["spider_data.zip"] = 2
    fetch(server, tmp_path / "one", "spider")
    half, quarter = size // 2, (size - size // 2) // 2
    assert [(wanted, sent) for _, wanted, sent in server.asked] == [
        (None, half), (f"bytes={half}-", quarter), (f"bytes={half + quarter}-", size - half - quarter),
    ]  # fmt: skip
    # Where it is never complete, a line says so, and the next command goes on.
    server.asked.clear()
    server.breaks["spider_data.zip"] = fetching.ATTEMPTS
    with pytest.raises(DataError, match="broke off"):
        fetch(server, tmp_path / "two", "spider")
    have = sum(sent for _, _, sent in server.asked)
    fetch(server, tmp_path / "two", "spider")
    assert server.asked[-1][1:] == (f"bytes={have}-", size - have)
    assert len(read("spider", tmp_path / "two")) == 4
    # What has changed on the server meanwhile is fetched from its beginning.
    server.asked.clear()
    server.breaks["spider_data.zip"] = fetching.ATTEMPTS
    with pytest.raises(DataError):
        fetch(server, tmp_path / "three", "spider")
    path = server.folder / "spider/spider_data.zip"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("spider_data/README", "new")
    fetch(server, tmp_path / "three", "spider")
    assert server.asked[-1][2] == path.stat().st_size and (tmp_path / "three/spider/README").read_text() == "new"


def test_what_comes_wrong_is_said(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, archive = tmp_path / "fetched", server.folder / "spider/spider_data.zip"
    whole = archive.read_bytes()
    # A page instead of the archive; a flipped byte in it; an archive without the questions; nothing at all.
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 1
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as other:
        other.writestr("spider_data/README", "?")
    for content, message in ((b"<!DOCTYPE html><html>", "<!DOCTYPE"), (damaged, "no whole archive"),
                          (empty.getvalue(), "train_spider.json")):  # fmt: skip
        archive.write_bytes(bytes(content))
        with pytest.raises(DataError, match=message) as caught:
            fetch(server, target, "spider")
        assert len(str(caught.value).splitlines()) <= 3
        assert not (target / "spider/source.json").exists()
        shutil.rmtree(target)
    archive.unlink()
    with pytest.raises(DataError, match="404"):
        fetch(server, target, "spider")
    # From the official address, another content than the official one.
    archive.write_bytes(whole)
    monkeypatch.setattr(fetching, "download_file", lambda url, path: path if path.write_bytes(whole) else path)
    with pytest.raises(DataError, match="Checksum mismatch"):
        fetching.main(["text2sql", "--sources", "bird", "--output_dir", str(target)])


def test_nothing_is_unpacked_outside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("../out.txt", "/out.txt", "in/../../out.txt", "in/good.txt"):
            archive.writestr(name, name)
    fetching._unpack(tmp_path / "a.zip", tmp_path / "place/home", "in")
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["good.txt"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "text2sql"),
        (["text2sql", "--sources", "spyder"], "spider, bird"),
        (["tabular", "--sources", "spider"], "names no data sets"),
        (["text2sql", "--source", "spider"], "sources"),
    ],
)
def test_wrong_fetches(arguments: list[str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        fetching.main(arguments)


def test_what_can_be_fetched_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    fetching.main(["text2sql"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("spider", "CC BY-SA 4.0", "bird", "wikisql", "BSD-3-Clause", "gretel"))
