"""Where trust lies: no code from a checkpoint, no secret in what is written, no file that eats the machine.

Run alone: python -m pytest tests/runner/test_trust.py
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runner import registry
from runner.__main__ import main
from runner.checkpoints.folders import write_manifest
from runner.commands import download
from runner.config import parse
from runner.errors import ConfigError, DataError
from runner.urls import check_url, shown, without_secrets
from tests.launching import REPOSITORY, SHORT, TOY, mistaken, train

MARK = "RELAY_TEST_MARK"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training of the toy, with several checkpoints that have a score."""
    folder = tmp_path_factory.mktemp("trust") / "run"
    train(folder, "--eval_steps", "5")
    return folder


@pytest.fixture
def stranger(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run whose settings name a recipe that leaves a mark when it is imported."""
    monkeypatch.setenv(MARK, str(tmp_path / "ran"))
    code = f"import os, pathlib\npathlib.Path(os.environ[{MARK!r}]).touch()\n"
    evil = tmp_path / "evil.py"
    evil.write_text(code + Path(TOY).read_text(encoding="utf-8"), encoding="utf-8")
    folder = tmp_path / "theirs"
    shutil.copytree(run, folder, symlinks=True)
    for file in folder.rglob("config.yaml"):
        file.write_text(file.read_text(encoding="utf-8").replace(TOY, str(evil)), encoding="utf-8")
    for manifest in folder.rglob("manifest.json"):
        # As somebody who means harm would: the changed file has its hash in the manifest.
        manifest.unlink()
        write_manifest(manifest.parent)
    return folder


VERBS = [
    ["evaluate", "RUN"], ["evaluate", "--checkpoint", "RUN"], ["predict", "RUN", "--question", "x"],
    ["predict", "RUN", "--help"], ["export", "RUN", "--output", "OUT"], ["average", "RUN", "--output", "OUT"],
    ["train", "--config", "RUN/config.yaml", "--resume_from_checkpoint", "auto"],
    ["train", "--config", "RUN/final/config.yaml"], ["plan", "--config", "RUN/config.yaml"],
]  # fmt: skip


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_no_verb_imports_a_recipe_that_only_a_checkpoint_names(
    words: list[str], stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [word.replace("RUN", str(stranger)).replace("OUT", str(tmp_path / "out")) for word in words]
    assert main(places) == 2
    error = capsys.readouterr().err
    assert "to load it is to run its code" in error and "--trust_recipe" in error and len(error.splitlines()) <= 3
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["json.tool", "os.path", "evil.recipe", "recipes.tabular.settings"])
def test_a_module_that_a_checkpoint_names_is_not_even_looked_for(
    name: str, stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To look for evil.recipe, Python imports the package evil of the working directory.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/__init__.py").write_text(f"import os, pathlib\npathlib.Path(os.environ[{MARK!r}]).touch()\n")
    file = stranger / "config.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace(str(tmp_path / "evil.py"), name), encoding="utf-8")
    with pytest.raises(ConfigError, match="not installed"):
        parse(["--config", str(file)])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("consent", [["--recipe", TOY], ["--trust_recipe"], ["--trust-recipe"]])
def test_a_recipe_is_loaded_after_consent(consent: list[str], stranger: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(stranger), *consent]) == 0
    assert (tmp_path / "ran").exists() == (consent[0] != "--recipe")


def test_a_file_that_the_user_trained_with_is_trusted_until_it_changes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_CACHE", str(tmp_path / "cache"))
    words = ["--config", str(run / "config.yaml")]
    with pytest.raises(ConfigError, match="not installed"):
        parse(words)
    parse(["--recipe", TOY])
    assert parse(words).recipe_name == TOY
    changed = tmp_path / "toy.py"
    changed.write_text(Path(TOY).read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not installed"):
        registry.check_trust(str(changed), "config.yaml")


def test_a_file_of_settings_that_the_user_wrote_may_name_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"recipe: {TOY}\nseed: 3\n", encoding="utf-8")
    assert parse(["--config", str(file)]).run.seed == 3


SECRETS = [
    "s3://AKIAX:hunter2hunter2@bucket/folder", "s3://hunter2hunter2@bucket", "s3://AKIAX:hunt/er2hunter2@bucket/x",
    "https://user:hunter2hunter2@host/file", "s3://bucket/x;token=hunter2hunter2", "s3://bucket/x?sig=hunter2hunter2",
    "s3://AKIAX%3Ahunter2hunter2%40bucket/x", "s3://hunter2hunter2%40bucket", "s3://bucket/x%3Ftoken=hunter2hunter2",
    "s3://bucket/x#hunter2hunter2", "https://host/f?X-Amz-Signature=hunter2hunter2&x=1",
    "abfs://c@account.dfs.core.windows.net/x?sv=1&sig=hunter2hunter2", "gs://bucket/x?access_token=hunter2hunter2",
    "AccountName=me;AccountKey=hunter2hunter2;EndpointSuffix=x", "https://host/x#token=hunter2hunter2",
    "simplecache::s3://K:hunter2hunter2@bucket/x", "ftp://me:hunter2hunter2@host", "s3://bucket/hf_hunter2hunter2hunter2",
]  # fmt: skip


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize("flag", ["--upload_to", "--resume_from_checkpoint", "--init_from"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str, flag: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(["--recipe", TOY, flag, url])
        check_url(url)
    assert "hunter2" not in str(error.value) and "hunt/er2" not in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


def test_urls_without_a_secret_are_taken() -> None:
    for url in ("s3://bucket/folder", "abfs://container@account.dfs.core.windows.net/x", "file:///mnt/a b", "gs://b"):
        assert parse(["--recipe", TOY, "--upload_to", url]).run.upload_to == url
    source = "https://host/file.csv?download=1"
    assert parse(["--recipe", "language_model", "--data.source", source]).flat()["data.source"] == source
    with pytest.raises(ConfigError, match="data.source has a secret"):
        parse(["--recipe", "language_model", "--data.source", "https://host/file.csv?token=hunter2hunter2"])


def test_a_refused_secret_leaves_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for words in (
        ["--upload_to", SECRETS[0]],
        ["--cloud_provider", "aws", "--cloud_bucket", "K:hunter2hunter2@bucket"],
    ):
        assert "hunter2" not in mistaken(folder, *words)
    assert not folder.exists()


def test_messages_hide_what_the_environment_keeps_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled")
    text = without_secrets("the server says hunter2hunter2 and https://a:b12345678@host/x?sig=abc, max_new_tokens=5")
    assert text == "the server says *** and https://***@host/x?sig=***, max_new_tokens=5"
    assert without_secrets("max_tokens=disabled in /a/b@c") == "max_tokens=disabled in /a/b@c"
    assert "hunter2" not in shown("s3://x:hunter2hunter2@y")


@pytest.mark.parametrize("flag", ["--wandb_run_name", "--upload_to", "--output_dir"])
def test_a_setting_that_repeats_a_secret_of_the_environment_is_refused(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2hunter2")
    with pytest.raises(ConfigError, match=f"{flag.strip('-')} has a secret in it") as error:
        parse(["--recipe", TOY, flag, "file:///mnt/hunter2hunter2"])
    assert "hunter2" not in str(error.value)


LEAKING = """
import os, sys, logging, warnings
from runner.checkpoints import bucket
from tests.toy_recipe import Recipe as Toy
import dataclasses
SECRETS = os.environ["AWS_SECRET_ACCESS_KEY"] + " s3://K:hunter2hunter2@bucket/x https://h/f;token=hunter2hunter2?sig=hunter2"
def upload(remote, folder):
    raise PermissionError(f"denied: {SECRETS}")
bucket.upload = upload
@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Toy):
    def collate(self, examples):
        if int(os.environ["LEAK"]) and examples[0][0] % 5 == 0:
            raise (RuntimeError, OSError)[int(os.environ["LEAK"]) - 1](f"no answer from {SECRETS}")
        print(SECRETS)
        logging.getLogger("library").warning(SECRETS)
        warnings.warn(SECRETS)
        return super().collate(examples)
"""


@pytest.mark.parametrize("leak", ["nothing", "a traceback", "an error of the system"])
@pytest.mark.parametrize("debug", [False, True])
def test_secrets_reach_no_file_and_no_output(leak: str, debug: bool, tmp_path: Path) -> None:
    """Whoever puts them into a text: a recipe, a library, the driver of a bucket, a traceback."""
    (tmp_path / "leaking.py").write_text(LEAKING, encoding="utf-8")
    number = ("nothing", "a traceback", "an error of the system").index(leak)
    words = [sys.executable, "-m", "runner", "train", *SHORT, "--recipe", str(tmp_path / "leaking.py")]
    words += ["--max_steps", "4", "--save_steps", "2", "--output_dir", str(tmp_path / "run"), "--report_to"]
    words += ["tensorboard", "--upload_to", f"file://{tmp_path}/bucket", *(["--debug"] if debug else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "LEAK": str(number)}
    environment["AWS_SECRET_ACCESS_KEY"] = "hunter2hunter2hunter2"
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 1 and "***" in printed, printed
    assert ("Traceback" in printed) == (number > 0 or debug), printed
    assert "hunter2" not in printed, printed
    (tmp_path / "leaking.py").unlink()
    leaks = [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert not leaks and (tmp_path / "run" / "config.yaml").exists()


def test_a_traceback_of_a_mistake_hides_secrets() -> None:
    words = [sys.executable, "-m", "runner", "train", "--debug", "--recipe", "s3://K:hunter2hunter2@bucket/recipe"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert "Traceback" in done.stderr and "***@bucket" in done.stderr and "hunter2" not in done.stderr, done.stderr


@pytest.mark.parametrize("verb", ["plan", "find-lr", "check"])
def test_a_traceback_of_any_verb_hides_secrets(verb: str, tmp_path: Path) -> None:
    (tmp_path / "leaking.py").write_text(LEAKING, encoding="utf-8")
    words = [sys.executable, "-m", "runner", verb, "--recipe", str(tmp_path / "leaking.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "LEAK": "1"}
    environment["AWS_SECRET_ACCESS_KEY"] = "hunter2hunter2hunter2"
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "hunter2" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "***" in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["bytes", "files", "nested"])
def test_an_archive_that_unpacks_to_too_much_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "FREE_BYTES", 1000)
    monkeypatch.setattr(download, "MOST_FILES", 50)
    path, home = tmp_path / "bomb.zip", tmp_path / "home"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if kind == "files":
            for number in range(60):
                archive.writestr(f"{number}.txt", "x")
        else:
            archive.writestr("zeros.bin", bytes(20_000_000))
    if kind == "nested":
        inner, path = path, tmp_path / "outer.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(inner, "inner.zip")
    source = download.Source("none", "http://nowhere", (), lambda folder: "")
    with pytest.raises(DataError, match="unpacks to more than") as error:
        download._place(path, home, download.Download("", path.name, unpack=True), source)
    assert len(str(error.value).splitlines()) <= 3
    size = sum(os.path.getsize(file) for file in home.rglob("*") if file.is_file())
    assert size < 6_000_000
