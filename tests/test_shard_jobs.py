"""The job files of docs/scale-out, and torchrun that starts killed processes again."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from runner.config import parse
from tests.launching import REPOSITORY, metrics
from tests.runner.test_signals import Started, start

__all__ = ["start"]

JOBS = REPOSITORY / "docs" / "scale-out"
GIVEN_UP = {2, 3}
"""Exit statuses that would come again: a mistake, and a loss that diverged."""


def training_words(name: str) -> list[str]:
    """The flags of a training in a job file, from --recipe on."""
    text = (JOBS / name).read_text(encoding="utf-8")
    if name == "kubernetes.yaml":
        (container,) = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
        words = container["args"]
    else:
        command = yaml.safe_load(text)["run"] if name.endswith(".yaml") else text
        line = next(line for line in command.replace("\\\n", " ").splitlines() if "--recipe" in line)
        words = shlex.split(line.replace("$RECIPE", "text2sql").rstrip(" &"))
        words = words[words.index("--recipe") :]
    return [part for word in words for part in word.split("=", 1)]


@pytest.mark.parametrize("name", ["slurm.sbatch", "kubernetes.yaml", "skypilot.yaml"])
def test_each_job_goes_on_from_its_newest_checkpoint(name: str) -> None:
    run = parse(training_words(name)).run
    assert run.resume_from_checkpoint == "auto" and run.ddp_timeout == 1800
    # A shared file system, or a bucket.
    assert name == "slurm.sbatch" or (run.upload_to or "").startswith("s3://")


def test_each_job_is_started_again_after_a_signal_and_not_after_a_mistake() -> None:
    sky = yaml.safe_load((JOBS / "skypilot.yaml").read_text(encoding="utf-8"))
    again = sky["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert {1, 75, 137} <= set(again) and not GIVEN_UP & set(again)
    # The launcher whose exit status is the training's.
    assert "-m runner launch " in sky["run"]
    pods = yaml.safe_load((JOBS / "kubernetes.yaml").read_text(encoding="utf-8"))["spec"]
    fails, ignores = pods["podFailurePolicy"]["rules"]
    (container,) = pods["template"]["spec"]["containers"]
    assert fails["action"] == "FailJob" and set(fails["onExitCodes"]["values"]) == GIVEN_UP
    assert fails["onExitCodes"]["containerName"] == container["name"] and ignores["action"] == "Ignore"
    assert pods["template"]["spec"]["restartPolicy"] == "Never" and pods["backoffLimit"] > 10
    assert pods["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    slurm = (JOBS / "slurm.sbatch").read_text(encoding="utf-8")
    handled = re.search(r"--signals-to-handle (\S+)", slurm)
    (early,) = re.findall(r"#SBATCH --signal=(\w+)@\d+", slurm)
    assert handled and {f"SIG{early}", "SIGTERM", "SIGINT", "SIGHUP"} <= set(handled[1].split(","))


@pytest.mark.parametrize(
    ("before", "during", "status", "again"),
    [
        (5, 9, 1, True),  # stopped before the time limit
        (None, 5, 1, True),
        (5, 5, 1, False),  # a mistake
        (None, None, 1, False),
        (5, 9, 0, False),  # finished
    ],
)
def test_a_slurm_job_is_queued_again_where_it_saved_something(
    tmp_path: Path, before: int | None, during: int | None, status: int, again: bool
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    latest = output / "checkpoint-latest"
    if before is not None:
        latest.symlink_to(f"checkpoint-{before}")
    save = f"ln -sfn checkpoint-{during} {latest}" if during is not None else "true"
    programs = {
        "srun": f"{save}; exit {status}",
        "scontrol": f'if [ "$1" = requeue ]; then touch {tmp_path}/again; else echo node1; fi',
    }
    for name, lines in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{lines}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUTPUT": str(output), "SLURM_JOB_NODELIST": "node1"}
    variables |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "relay", "SLURM_NNODES": "1"}
    done = subprocess.run(["bash", str(JOBS / "slurm.sbatch")], env=variables, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert (tmp_path / "again").exists() == again


@pytest.mark.slow
def test_torchrun_starts_a_killed_training_again(tmp_path: Path, start: Callable[..., Started]) -> None:
    torchrun = ("-m", "torch.distributed.run", "--max-restarts", "2", "--nproc_per_node", "2", "-m", "runner", "train")
    words = ("--max_steps", "60", "--save_steps", "5", "--resume_from_checkpoint", "auto")
    run = start(tmp_path / "run", *words, command=torchrun).until("step 20/", 600)
    (killed,) = [each for each in run.everybody()[1:] if each.environ().get("RANK") == "1"]
    killed.kill()
    assert run.status(600) == 0, run.output()
    assert "going on from" in run.output() and "finished at step 60" in run.output()
    assert [line["step"] for line in metrics(run.folder)] == list(range(1, 61))
