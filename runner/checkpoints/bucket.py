"""Copies of checkpoints in a bucket, by fsspec: written in the background, found again on another machine.

Files go first, then the manifest, then the pointer: a checkpoint without its manifest is not there. Training
never waits for the network and never ends by it. Credentials are the provider's own variables and files; none
passes through here.
"""

import contextlib
import dataclasses
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runner.checkpoints.folders import publish
from runner.checkpoints.manifest import MANIFEST, find_damage
from runner.checkpoints.pointers import draft_beside, step_of
from runner.errors import CheckpointError, ConfigError
from runner.parts.installation import pip_line

ATTEMPTS = 3
TOGETHER = 4
"""Files that are copied at a time. The drivers send a large one in parts, several of them at a time too."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
FOLLOWING = ("metrics.jsonl", "ledger.jsonl", "config.yaml")
"""Files of the run that go beside its checkpoints."""


@dataclasses.dataclass(frozen=True)
class Remote:
    """A folder behind a URL."""

    url: str
    files: Any
    """fsspec's DirFileSystem, which takes paths relative to the folder; fsspec has no types."""

    @classmethod
    def open(cls, url: str) -> "Remote":
        """Raises ConfigError where the URL's kind is unknown or its driver is not installed."""
        # gcsfs waits a minute per call on anything but Google's own servers, unless told so before its import.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        import fsspec
        from fsspec.implementations.dirfs import DirFileSystem

        scheme = urlsplit(url).scheme
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if EXTRAS.get(scheme) == "s3":
            # Our own attempts are enough: botocore's on top of them take minutes on a dead server.
            options["config_kwargs"] = {"retries": {"max_attempts": 1}, "connect_timeout": 5, "read_timeout": 30}
        elif scheme == "file":
            options = {}
        try:
            files, root = fsspec.core.url_to_fs(url, **options)
        except ImportError:
            extra = EXTRAS.get(scheme, "clouds")
            raise ConfigError(f"{scheme}:// needs a driver that is not installed: type {pip_line(extra)}.") from None
        except ValueError as error:
            raise ConfigError(
                f"{url} is of no kind that fsspec knows ({error}): type s3://, gs:// or abfs://."
            ) from None
        if hasattr(files, "retries"):
            # s3fs has attempts of its own beside botocore's.
            files.retries = 1
        return cls(url.rstrip("/"), DirFileSystem(root.rstrip("/"), files))

    def put(self, local: Path, name: str) -> None:
        """Copy one file."""
        self.put_all({name: local})

    def put_all(self, local: Mapping[str, Path]) -> None:
        """Copy files by their names here, several at a time where the driver can."""
        if urlsplit(self.url).scheme == "file":
            # Others make folders by themselves, and would try to make the bucket.
            for folder in {name.rpartition("/")[0] for name in local}:
                self.files.makedirs(folder, exist_ok=True)
        self.files.put(list(map(str, local.values())), list(local), batch_size=TOGETHER)

    def write(self, name: str, text: str) -> None:
        """Write a small file."""
        self.files.pipe_file(name, text.encode())

    def read(self, name: str) -> str | None:
        """The text of a small file; None where there is none."""
        return self.files.cat_file(name).decode() if self.exists(name) else None

    def get(self, name: str, local: Path) -> None:
        """Copy one file here. Raises FileNotFoundError."""
        local.parent.mkdir(parents=True, exist_ok=True)
        self.files.get_file(name, str(local))

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return self.files.exists(name)

    def steps(self) -> list[int]:
        """The steps of the checkpoints whose manifest is there, ascending."""
        try:
            found = self.files.ls("", detail=False)
        except FileNotFoundError:
            return []
        steps = [step_of(Path(path.rstrip("/"))) for path in found]
        return sorted(step for step in steps if step >= 0 and self.exists(f"checkpoint-{step}/{MANIFEST}"))

    def names(self, folder: str) -> list[str]:
        """Every file in a folder, relative to it."""
        return [path.removeprefix(f"{folder}/") for path in self.files.find(folder)]

    def set_aside(self, newer_than: int) -> None:
        """Move the checkpoints of later steps into a folder `set-aside-<number>`; their manifests first.

        From then on they are not found. It is repeated after a failure.
        """
        steps = [step for step in self.steps() if step > newer_than]
        if not steps:
            return
        known = {path.rstrip("/").rpartition("/")[2] for path in self.files.ls("", detail=False)}
        target = next(name for n in range(1, 10_000) if (name := f"set-aside-{n}") not in known)
        for step in reversed(steps):
            self._move(f"checkpoint-{step}/{MANIFEST}", f"{target}/checkpoint-{step}/{MANIFEST}")
        for step in steps:
            for name in self.names(f"checkpoint-{step}"):
                self._move(f"checkpoint-{step}/{name}", f"{target}/checkpoint-{step}/{name}")

    def _move(self, source: str, target: str) -> None:
        if urlsplit(self.url).scheme == "file":
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.files.cp_file(source, target)
        self.files.rm_file(source)

    def listed(self, folder: str) -> list[str]:
        """The files of a checkpoint that its manifest lists, and the manifest; every file where it cannot be read."""
        try:
            entries = json.loads(self.read(f"{folder}/{MANIFEST}") or "")["files"]
            return [*(str(name) for name in entries), MANIFEST]
        except (ValueError, KeyError, TypeError, RecursionError):
            return self.names(folder)

    def remove(self, folder: str) -> None:
        """Remove a checkpoint, its manifest first: from then on it is not there."""
        self.files.rm_file(f"{folder}/{MANIFEST}")
        self.files.rm(folder, recursive=True)


def upload(remote: Remote, folder: Path) -> None:
    """Copy a checkpoint, if it is not there yet: its files, then its manifest."""
    manifest = (folder / MANIFEST).read_text(encoding="utf-8")
    if remote.read(f"{folder.name}/{MANIFEST}") == manifest:
        return
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    remote.put_all({f"{folder.name}/{name}": folder / name for name in names if name != MANIFEST})
    remote.put(folder / MANIFEST, f"{folder.name}/{MANIFEST}")


def download(remote: Remote, step: int, output_dir: Path) -> Path:
    """Copy a checkpoint here, check it and give it its name. Raises CheckpointError where it is damaged."""
    name = f"checkpoint-{step}"
    folder = output_dir / name
    with draft_beside(folder) as draft:
        for file in remote.listed(name):
            if ".." in Path(file).parts or Path(file).is_absolute():
                raise CheckpointError(f"{remote.url}/{name} is skipped: its manifest lists {file}.")
            # What is missing is found below.
            with contextlib.suppress(FileNotFoundError):
                remote.get(f"{name}/{file}", draft / file)
        wrong = find_damage(draft, step)
        if wrong is not None:
            raise CheckpointError(f"{remote.url}/{name} is skipped: {wrong}.")
        for file in FOLLOWING:
            if remote.exists(file) and not (output_dir / file).exists():
                remote.get(file, output_dir / file)
        publish(draft, folder)
    return folder


def newest_in_bucket(url: str, output_dir: Path, newer_than: int = -1) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint behind a URL, copied here, and a sentence about each one that had to be skipped.

    `url` is that of a run's folder or of one checkpoint. Raises CheckpointError where the place cannot be read.
    """
    wanted = step_of(Path(urlsplit(url).path.rstrip("/")))
    remote = Remote.open(url if wanted < 0 else url.rstrip("/").rpartition("/")[0])
    skipped = []
    try:
        for step in reversed(remote.steps()):
            if step > newer_than and wanted in (-1, step):
                try:
                    return download(remote, step, output_dir), skipped
                except CheckpointError as error:
                    skipped.append(str(error))
    except Exception as error:
        raise CheckpointError(
            f"{url} cannot be read: {type(error).__name__}: {str(error)[:200]}\n"
            "Check the URL, the network and the provider's credentials."
        ) from None
    return None, skipped


def newest_settings(url: str) -> str:
    """The config.yaml of the newest checkpoint behind a URL, unchecked. Raises OSError where there is none."""
    wanted = step_of(Path(urlsplit(url).path.rstrip("/")))
    remote = Remote.open(url if wanted < 0 else url.rstrip("/").rpartition("/")[0])
    try:
        steps = remote.steps() if wanted < 0 else [wanted]
        text = remote.read(f"checkpoint-{steps[-1]}/config.yaml") if steps else None
    except Exception as error:  # Each driver has exceptions of its own.
        raise OSError(str(error)) from None
    if text is None:
        raise FileNotFoundError(url)
    return text


class Uploader:
    """Copies one run's checkpoints to a URL, in a thread of its own; what waits gives way to what is newer."""

    def __init__(self, url: str, output_dir: Path, keep: int | None, say: Callable[[str], None]) -> None:
        self.url, self.output_dir, self.keep, self.say = url, output_dir, keep, say
        self.remote: Remote | None = None
        self.missing: dict[str, str] = {}
        """What could not be copied, and why."""
        self.is_gone = False
        self.later_than: int | None = None
        """The step after which the checkpoints at the URL are of another branch; None: none are."""
        self.waiting: queue.Queue[tuple[Path, int | None] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self.thread.start()

    def add(self, folder: Path, best_step: int | None = None) -> None:
        """Copy this folder next, instead of checkpoints that still wait."""
        self.waiting.put((folder, best_step))

    def set_aside(self, newer_than: int) -> None:
        """Before the next copy, set aside what is there of later steps: it is of another branch."""
        self.later_than = newer_than

    def close(self, limit_seconds: float) -> dict[str, str]:
        """Wait for what is left, but not for ever; returns what is not there, and why."""
        self.waiting.put(None)
        self.thread.join(limit_seconds)
        if self.thread.is_alive():
            self.missing["what was still on its way"] = f"it took more than {limit_seconds:.0f} s"
        return self.missing

    def _work(self) -> None:
        while (task := self.waiting.get()) is not None:
            folder, best_step = task
            if not self._is_superseded(folder):
                self._copy(folder, best_step)

    def _is_superseded(self, folder: Path) -> bool:
        """Whether a newer checkpoint waits already, by which this one is not the best either."""
        if step_of(folder) < 0:
            return False
        with self.waiting.mutex:
            newer = [task for task in self.waiting.queue if task is not None and step_of(task[0]) >= 0]
        return bool(newer) and newer[-1][1] != step_of(folder)

    def _copy(self, folder: Path, best_step: int | None) -> None:
        # Where the last one failed altogether the server is gone: it is asked once, until it answers again.
        attempts = 1 if self.is_gone else ATTEMPTS
        for attempt in range(attempts):
            try:
                self._try(folder, best_step)
                # What is older than a checkpoint that arrived is not missed.
                step = step_of(folder)
                gone = [name for name in self.missing if -1 < step_of(Path(name)) <= step or name == folder.name]
                for name in gone:
                    del self.missing[name]
                self.is_gone = False
                return
            except Exception as error:
                if not folder.exists():
                    # Pruned here while it was on its way: a newer one is there and comes next.
                    return
                self.missing[folder.name] = f"{type(error).__name__}: {str(error)[:200]}"
                if attempt + 1 < attempts:
                    time.sleep(0.5 * 2**attempt)
        self.is_gone = True
        self.say(f"warning: {folder.name} is not uploaded to {self.url}: {self.missing[folder.name]}")

    def _try(self, folder: Path, best_step: int | None) -> None:
        self.remote = remote = self.remote or Remote.open(self.url)
        if self.later_than is not None:
            remote.set_aside(self.later_than)
            self.later_than = None
        upload(remote, folder)
        for name in FOLLOWING:
            if (self.output_dir / name).exists():
                remote.put(self.output_dir / name, name)
        if step_of(folder) < 0:
            return
        remote.write("checkpoint-latest", folder.name)
        if folder.name == f"checkpoint-{best_step}":
            remote.write("checkpoint-best", folder.name)
        if self.keep is not None:
            # Those of another branch, of later steps, do not count.
            for step in [step for step in remote.steps() if step <= step_of(folder)][: -self.keep]:
                if step != best_step:
                    remote.remove(f"checkpoint-{step}")
