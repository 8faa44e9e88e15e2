"""Copies in a bucket: Amazon's, Google's and Azure's, each played by a server on this machine.

Run alone: python -m pytest tests/runner/checkpoints/test_bucket.py
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.dirfs import DirFileSystem

from runner.checkpoints.bucket import TOGETHER, Remote, newest_in_bucket, upload
from runner.checkpoints.state import read_state
from runner.errors import ConfigError
from runner.trials import Interruption, Trial
from runner.urls import check_url
from tests.launching import SHORT, interrupted, metrics, output, same_bits, train, weights

AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the server ended"
        time.sleep(0.1)
    raise AssertionError("the server does not answer")


def serve(command: list[str], port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(port, process)
    return process


class S3:
    """moto, in a process of its own that can be killed."""

    def __init__(self) -> None:
        pytest.importorskip("moto")
        pytest.importorskip("s3fs")
        self.port = free_port()
        self.process = serve([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)], self.port)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "an-id-for-the-test",
            "AWS_SECRET_ACCESS_KEY": "a-secret-for-the-test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        self.url = "s3://bucket/runs/one"


@pytest.fixture
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.process.kill()
    server.process.wait()


def test_killed_here_and_resumed_from_the_url_on_another_world(tmp_path: Path, s3: S3) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    flags = ("--deterministic", "True")
    train(whole, *flags)
    upload = (*flags, "--upload_to", s3.url, "--save_total_limit", "2")
    statuses = interrupted(run, Interruption("fetch", 14, signal=signal.SIGTERM), *upload, environment=s3.environment)
    assert statuses == [75]
    shutil.rmtree(run)
    train(run, *upload, "--resume_from_checkpoint", s3.url, processes=2, environment=s3.environment)
    assert "going on from" in output(run) and "at step 14" in output(run)
    assert same_bits(weights(run), weights(whole))
    # The metrics before the interruption came back with the checkpoint.
    assert [line["step"] for line in metrics(run)] == list(range(1, 25))
    # Best and final are there; the oldest are not.
    os.environ |= s3.environment
    remote = Remote.open(s3.url)
    assert remote.exists("final/model.safetensors") and remote.read("checkpoint-latest") == "checkpoint-24"
    best = read_state(run / "checkpoint-24").best_step
    assert remote.read("checkpoint-best") == f"checkpoint-{best}"
    assert {24, best} <= set(remote.steps()) and len(remote.steps()) <= 3 and 5 not in remote.steps()
    # No secret in anything that was written.
    for path in [*run.rglob("*.yaml"), *run.rglob("*.json*"), run.with_suffix(".log")]:
        assert "a-secret-for-the-test" not in path.read_text(encoding="utf-8")


def test_what_is_incomplete_or_damaged_there_is_skipped(tmp_path: Path, s3: S3) -> None:
    run = tmp_path / "run"
    train(run, "--save_steps", "8", "--eval_steps", "0")
    os.environ |= s3.environment
    remote = Remote.open(s3.url)
    for step in (8, 16, 24):
        upload(remote, run / f"checkpoint-{step}")
    assert remote.steps() == [8, 16, 24]
    remote.files.rm_file("checkpoint-24/manifest.json")
    text = remote.read("checkpoint-16/state.json")
    assert text is not None
    remote.write("checkpoint-16/state.json", text.replace("16", "17", 1))
    found, skipped = newest_in_bucket(s3.url, tmp_path / "new")
    assert found is not None and found.name == "checkpoint-8"
    assert len(skipped) == 1 and "state.json is damaged" in skipped[0]


def test_files_go_several_at_a_time_and_the_manifest_after_all(tmp_path: Path) -> None:
    class Slow(AsyncFileSystem):
        """Takes note of the files that are on their way at the same time."""

        on_their_way = most = 0
        arrived: ClassVar[list[str]] = []

        async def _put_file(self, lpath: str, rpath: str, **_: object) -> None:
            self.on_their_way += 1
            self.most = max(self.most, self.on_their_way)
            await asyncio.sleep(0.02)
            self.on_their_way -= 1
            self.arrived.append(rpath)

        async def _exists(self, path: str, **_: object) -> bool:
            return False

    folder = tmp_path / "checkpoint-8"
    folder.mkdir()
    for name in ("manifest.json", *(f"part-{number}" for number in range(10))):
        (folder / name).write_text("{}")
    files = Slow()
    upload(Remote("slow://bucket", DirFileSystem("bucket", files)), folder)
    assert files.most == TOGETHER
    assert files.arrived[-1] == "bucket/checkpoint-8/manifest.json" and len(set(files.arrived)) == 11


def test_a_server_that_dies_does_not_end_the_training(tmp_path: Path, s3: S3) -> None:
    run = tmp_path / "run"
    words = [*SHORT, "--output_dir", str(run), "--upload_to", s3.url, "--max_steps", "200", "--save_steps", "50"]
    trial = Trial(words, 1, run.with_suffix(".log"), s3.environment)
    while "step 20/200" not in trial.output():
        time.sleep(0.01)
    s3.process.kill()
    assert trial.wait(120) == [1]
    assert (run / "final" / "model.safetensors").is_file()
    assert "Not uploaded to s3://bucket/runs/one: " in trial.output() and "final (" in trial.output()


def test_google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    port = free_port()
    start = "from gcp_storage_emulator.server import create_server as c; "
    start += f"c('127.0.0.1', {port}, in_memory=True, default_bucket='bucket').run()"
    server = serve([sys.executable, "-c", start], port)
    try:
        variables = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        there_and_back(tmp_path, "gs://bucket/run", variables, monkeypatch)
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("adlfs")
    azurite = Path(os.environ.get("AZURITE", "node_modules/azurite")) / "dist/src/blob/main.js"
    if shutil.which("node") is None or not azurite.is_file():
        pytest.skip("Azurite is not here: npm i azurite, and AZURITE=node_modules/azurite")
    port = free_port()
    command = ["node", str(azurite), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    server = serve([*command, "--inMemoryPersistence", "--skipApiVersionCheck"], port)
    try:
        connection = "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
        connection += f"AccountKey={AZURITE_KEY};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
        Remote.open("abfs://bucket").files.mkdir("bucket")
        there_and_back(tmp_path, "abfs://bucket/run", {"AZURE_STORAGE_CONNECTION_STRING": connection}, monkeypatch)
    finally:
        server.kill()
        server.wait()


def there_and_back(tmp_path: Path, url: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    train(whole)
    interrupted(run, Interruption("fetch", 14, signal=signal.SIGTERM), "--upload_to", url, environment=variables)
    shutil.rmtree(run)
    train(run, "--upload_to", url, "--resume_from_checkpoint", "auto", environment=variables)
    assert "at step 14" in output(run)
    assert same_bits(weights(run), weights(whole))


def test_a_folder_is_a_url_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there_and_back(tmp_path, f"file://{tmp_path}/there", {}, monkeypatch)


@pytest.mark.parametrize("url", ["s3://id:secret@bucket/run", "https://account.blob/run?sig=secret", "bucket/run"])
def test_a_url_with_a_secret_or_without_a_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_url(url)
    assert "secret@" not in str(caught.value) and "sig=" not in str(caught.value)


def test_the_other_spelling_of_a_bucket() -> None:
    from runner.config import parse

    words = ["--recipe", "text2sql", "--cloud_provider", "gcp", "--cloud_bucket", "mine", "--cloud_prefix", "runs/7"]
    assert parse(words).run.upload_to == "gs://mine/runs/7"
    with pytest.raises(ConfigError, match="--cloud_bucket NAME"):
        parse(words[:4])
