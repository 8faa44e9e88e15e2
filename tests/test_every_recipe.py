"""Every shipped recipe keeps the contract, by its own conformance kit; and the kit finds recipes that do not.

Run alone: python -m pytest tests/test_every_recipe.py
"""

import re
from pathlib import Path

import pytest

from runner import registry
from runner.__main__ import main
from runner.commands import check
from runner.config import parse
from tests.launching import TOY

# What makes a recipe's smallest model and data; a recipe not named here is tried as it comes.
SMALL = {
    "text2sql": ("--model.hidden_size", "64", "--generation.max_new_tokens", "24"),
}


@pytest.mark.parametrize("name", [*registry.names(), TOY], ids=lambda name: Path(name).stem)
def test_a_recipe_keeps_the_contract(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["check", "--recipe", name, *SMALL.get(name, ())])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "BROKEN" not in printed and printed.count("kept ") >= 10


def test_a_stream_keeps_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--recipe", TOY, "--streamed", "True"]) == 0, capsys.readouterr().out


# (the promise, what of the toy recipe is replaced, and by what)
MISTAKES = [
    (
        "settings",
        '    best_metric = "mae"',
        '    best_metric = "mae"\n    presets = staticmethod(lambda: {"odd": {"widht": 3}})',
    ),
    ("help", '    """Random augmentation of the inputs."""\n', ""),
    ("data", 'split == "train" else Numbered(examples)', 'split == "train" else Restless(examples)'),
    (
        "workers",
        "        return Rows(examples) if",
        "        self.__dict__['f'] = lambda: 0\n        return Rows(examples) if",
    ),
    ("collate", "weight=float(counts.sum())", "weight=0.0"),
    ("additive", "errors * batch", "(errors - errors.mean()) * batch"),
    ("order", "errors * batch", "errors * torch.arange(1, len(errors) + 1) * batch"),
    ("divisible", "errors * batch", "errors * len(errors) * batch"),
    ("forward", "outputs = model(", "model(batch['inputs'])\n        outputs = model("),
    ("gradients", "nn.LayerNorm(width),", "Idle(width),"),
    ("repeatable", "outputs = model(batch", "outputs = random.SystemRandom().random() + model(batch"),
    ("learns", "return Loss(total, ", "return Loss(2 * total.detach() - total, "),
    ("weights", "        width = self.model", "        torch.manual_seed(4)\n        width = self.model"),
    ("predict", ".abs().tolist()", ".abs().tolist()[1:]"),
    ("score", '"mae": sum', '"error": sum'),
    ("evaluation", "return (model(batch", "model[0].weight.mul_(1.01)\n        return (model(batch"),
]
PARTS = """

import time


class Restless(list):
    def __getitem__(self, index):
        return (time.perf_counter(), *super().__getitem__(index)[1:])


class Idle(nn.LayerNorm):
    def forward(self, x):
        return x
"""


@pytest.mark.parametrize(("promise", "right", "wrong"), MISTAKES, ids=[promise for promise, _, _ in MISTAKES])
def test_a_broken_promise_is_found(promise: str, right: str, wrong: str, tmp_path: Path) -> None:
    text = Path(TOY).read_text(encoding="utf-8")
    assert text.count(right) == 1
    file = tmp_path / f"broken_{promise}.py"
    head, _, rest = text.replace(right, wrong).partition("from torch import nn\n")
    file.write_text(f"{head}from torch import nn\n{PARTS}{rest}", encoding="utf-8")
    subject = check.Subject(parse(["--recipe", str(file)]), tmp_path, 6)
    verdicts = {name: (verdict, detail) for name, verdict, detail in check.check(subject)}
    assert verdicts[promise][0] == "BROKEN", verdicts
    # Found by the check itself, not by falling over it.
    assert not re.match(r"\w+Error:", verdicts[promise][1]), verdicts[promise]


def test_a_scalar_weight_is_found(tmp_path: Path) -> None:
    file = tmp_path / "scalar.py"
    text = Path(TOY).read_text(encoding="utf-8")
    head, _, rest = text.partition("    def loss(")
    grown = head.replace("return nn.Sequential(", "model = nn.Sequential(").rstrip()
    grown += "\n        model[0].register_parameter('scale', nn.Parameter(torch.ones(())))\n        return model\n\n"
    file.write_text(grown + "    def loss(" + rest, encoding="utf-8")
    subject = check.Subject(parse(["--recipe", str(file)]), tmp_path, 6)
    verdicts = {name: (verdict, detail) for name, verdict, detail in check.check(subject)}
    assert verdicts["weights"][0] == "BROKEN" and "0.scale is a scalar" in verdicts["weights"][1], verdicts["weights"]


def test_every_promise_has_been_broken() -> None:
    assert [promise for promise, _, _ in MISTAKES] == list(check.CHECKS)


def test_a_broken_recipe_ends_with_status_1_and_a_mistake_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "one_row_short.py"
    text = Path(TOY).read_text(encoding="utf-8").replace(".abs().tolist()", ".abs().tolist()[1:]")
    file.write_text(text, encoding="utf-8")
    assert main(["check", "--recipe", str(file)]) == 1
    assert "broken: predict" in capsys.readouterr().out.splitlines()[-1]
    assert main(["check", "--recipe", TOY, "--num_rows", "0"]) == 2
    assert "num_rows is 0" in capsys.readouterr().err
    assert main(["check", "--recipe", "tiny_toy"]) == 2
