"""How messages name extras and launch configurations, in a checkout and in an installed package."""

from pathlib import Path

import pytest

from runner.errors import ConfigError
from runner.parts import installation
from runner.parts.installation import find_launch_config, launch_line, pip_line, shown_launch_config
from tests.launching import REPOSITORY


def test_in_a_checkout_the_checkout_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert pip_line("s3") == "pip install -e '.[s3]'"
    assert launch_line("cpu_2") == "accelerate launch --config_file accelerate_configs/cpu_2.yaml runner/train.py"
    monkeypatch.chdir(tmp_path)
    assert pip_line("gcs") == f"pip install -e '.[gcs]' in the folder {REPOSITORY}"
    assert Path(shown_launch_config("gpus_ddp")) == REPOSITORY / "accelerate_configs" / "gpus_ddp.yaml"
    assert launch_line("cpu_2").endswith("cpu_2.yaml -m runner.train")


def test_in_a_package_the_distribution_of_relay_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installation, "ROOT", tmp_path)
    assert pip_line("s3") == "pip install 'relay-train[s3]'"


@pytest.mark.parametrize("name", ["cpu_2", "cpu_2.yaml", "accelerate_configs/cpu_2.yaml"])
def test_a_launch_configuration_is_found_by_name_from_any_folder(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_launch_config(name) == REPOSITORY / "accelerate_configs" / "cpu_2.yaml"
    # A file of the user comes first.
    (tmp_path / "cpu_2.yaml").write_text("num_processes: 2\n", encoding="utf-8")
    assert find_launch_config("cpu_2.yaml") == Path("cpu_2.yaml")
    with pytest.raises(ConfigError, match="gpus_fsdp2"):
        find_launch_config("gpus_fsdp3")
