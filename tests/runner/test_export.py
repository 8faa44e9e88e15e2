"""`relay export --push_to_hub` and `--gguf`: a model card that the hub reads, an upload, and what is refused before.

The hub is a server of this test on this machine. Run alone: python -m pytest tests/runner/test_export.py
"""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.launching import REPOSITORY, train

RECIPE = ("--recipe", str(REPOSITORY / "tests" / "toy_recipe.py"))


class Hub(BaseHTTPRequestHandler):
    """Answers the requests of HfApi.create_repo and upload_folder; keeps what was committed."""

    files: dict[str, bytes] = {}
    created: list[dict[str, object]] = []
    refuses = False

    def do_GET(self) -> None:
        self.answer({"sha": "0" * 40, "siblings": [], "id": "me/toy", "_id": "1"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if Hub.refuses:
            self.answer({"error": "You have no permission"}, status=403)
        elif self.path.endswith("/repos/create"):
            Hub.created.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/me/toy", "id": "me/toy", "name": "me/toy"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"http://{self.headers['Host']}/me/toy/commit/1", "commitOid": "1"})
        else:
            self.answer({"errors": [], "warnings": []})

    def answer(self, content: object, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.files, Hub.created, Hub.refuses = {}, [], False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "toy-run"
    train(folder, "--max_steps", "4")
    return folder


def export(run: Path, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LLAMA"))}
    environment |= {
        "PYTHONPATH": str(REPOSITORY),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        **variables,
    }
    command = [sys.executable, "-m", "runner", "export", str(run), *RECIPE, "--output", str(folder / "out"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


NANO = ("--recipe", "text2sql", "--preset", "nano", "--max_eval_examples", "2", "--generation.max_new_tokens", "2")


@pytest.mark.parametrize("words", [(), ("--lora.rank", "2")])
@pytest.mark.parametrize("place", ["final", "checkpoint-latest"])
def test_an_export_is_cut_into_files_with_an_index_and_has_the_models_bits(
    tmp_path: Path, words: tuple[str, ...], place: str
) -> None:
    from transformers import AutoModelForCausalLM

    from runner import trials
    from runner.checkpoints.trained import find_recipe, load_trained
    from runner.commands import export as verb
    from tests.launching import same_bits

    one_step = [*NANO, "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
    trials.train(one_step, 1, tmp_path / "log")
    if words:
        base = ["--recipe", "text2sql", "--model.pretrained", str(tmp_path / "run" / "final"), *NANO[4:], *words]
        trials.train([*base, "--max_steps", "1", "--output_dir", str(tmp_path / "adapted")], 1, tmp_path / "log")
    run = tmp_path / ("adapted" if words else "run")
    verb.main([str(run / place), "--output", str(tmp_path / "out"), "--max_shard_size", "600KB"])
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    model = load_trained(run / place, find_recipe(run))[1].cpu()
    whole = (model.merge_and_unload() if words else model).state_dict()  # type: ignore[operator]
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert found.keys() <= whole.keys()
    assert same_bits(found, {name: whole[name] for name in found})


def test_a_size_that_is_none_is_named(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path, "--max_shard_size", "many")
    assert done.returncode == 2
    assert "max_shard_size is 'many': type --max_shard_size with a size such as 5GB or 300MB." in done.stderr


def test_the_model_card_is_one_that_the_hub_reads(run: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(run / "final" / "README.md")
    data = card.data.to_dict()
    assert data["tags"] == ["relay", "toy_recipe"]
    assert data["library_name"] == "relay" and data["model_name"] == "toy-run"
    assert card.text.strip().startswith("# toy-run") and "## Scores" in card.text


@pytest.mark.parametrize("typed", ["me/toy", "hf://me/toy"])
def test_an_export_is_uploaded(run: Path, tmp_path: Path, hub: str, typed: str) -> None:
    done = export(run, tmp_path, "--push_to_hub", typed, HF_ENDPOINT=hub, HF_TOKEN="hf_x")
    assert done.returncode == 0, done.stderr
    assert f"uploaded: {hub}/me/toy" in done.stdout
    (created,) = Hub.created
    assert created["name"] == "toy" and "private" in (
        created.get("visibility"),
        *(n for n in created if created[n] is True),
    )
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "README.md", "config.yaml"} <= Hub.files.keys() and Hub.files == written


def test_an_upload_that_fails_leaves_the_folder_and_says_so(run: Path, tmp_path: Path, hub: str) -> None:
    Hub.refuses = True
    done = export(run, tmp_path, "--push_to_hub", "me/toy", HF_ENDPOINT=hub, HF_TOKEN="hf_x")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "was not uploaded to me/toy" in done.stderr and "hf upload me/toy" in done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        (["--push_to_hub", "toy"], "hf_x", "type OWNER/NAME"),
        (["--push_to_hub", "me/../toy"], "hf_x", "type OWNER/NAME"),
        (["--push_to_hub", "a/b/c"], "hf_x", "type OWNER/NAME"),
        (["--push_to_hub", "me/toy"], "", "hf auth login"),
        (["--gguf", "true"], "", "git clone https://github.com/ggml-org/llama.cpp"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, words: list[str], token: str, said: str
) -> None:
    done = export(run, tmp_path, *words, **({"HF_TOKEN": token} if token else {}))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 3 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("works", [True, False])
def test_llama_cpps_converter_writes_the_gguf_file(run: Path, tmp_path: Path, works: bool) -> None:
    converter = "import sys\nassert sys.argv[2] == '--outfile'\n"
    converter += "open(sys.argv[3], 'w').write('GGUF')\n" if works else "sys.exit('Model Toy is not supported')\n"
    (tmp_path / "convert_hf_to_gguf.py").write_text(converter, encoding="utf-8")
    done = export(run, tmp_path, "--gguf", "true", LLAMA_CPP=str(tmp_path))
    assert (tmp_path / "out" / "model.gguf").is_file() == works
    assert done.returncode == (0 if works else 2), done.stderr
    assert works or "Model Toy is not supported" in done.stderr
