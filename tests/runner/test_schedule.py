"""Learning rates against torch's own schedulers and closed forms. python -m pytest tests/runner/test_schedule.py"""

import math

import pytest
import torch

from runner import schedule
from runner.settings import RunSettings


def rates(num_steps: int, **settings: object) -> list[float]:
    made = RunSettings(learning_rate=0.1, **settings)  # type: ignore[arg-type]
    return [schedule.learning_rate(made, step, num_steps) for step in range(num_steps)]


def torch_rates(make: object, num_steps: int) -> tuple[list[float], list[float]]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer)  # type: ignore[operator]
    found, betas = [], []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        betas.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        scheduler.step()
    return found, betas


def test_cosine_is_torchs() -> None:
    expected, _ = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.01), 50)
    assert rates(50, lr_scheduler_type="cosine", min_lr_ratio=0.1) == pytest.approx(expected)


def test_step_is_torchs() -> None:
    expected, _ = torch_rates(lambda o: torch.optim.lr_scheduler.StepLR(o, 7, gamma=0.5), 50)
    assert rates(50, lr_scheduler_type="step", lr_step_size=7, lr_gamma=0.5) == pytest.approx(expected)


def test_linear_is_torchs() -> None:
    expected, _ = torch_rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, 50), 50)
    assert rates(50, lr_scheduler_type="linear", min_lr_ratio=0.2) == pytest.approx(expected)


def test_one_cycle_is_torchs_and_moves_beta1() -> None:
    # div_factor 25, final_div_factor 1e4 and pct_start 0.3 are torch's defaults.
    expected, betas = torch_rates(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=50), 50)
    assert rates(50, lr_scheduler_type="one_cycle") == pytest.approx(expected, rel=1e-6)
    settings = RunSettings(lr_scheduler_type="one_cycle")
    assert [schedule.adam_beta1(settings, step, 50) for step in range(50)] == pytest.approx(betas, rel=1e-6)


def test_only_one_cycle_moves_beta1() -> None:
    assert {schedule.adam_beta1(RunSettings(adam_beta1=0.8), step, 50) for step in range(50)} == {0.8}


def test_warmup_rises_in_a_line_to_the_peak_and_wsd_decays_at_the_end() -> None:
    found = rates(100, lr_scheduler_type="wsd", warmup_steps=9)
    assert found[:9] == pytest.approx([0.1 * (step + 1) / 10 for step in range(9)])
    assert set(found[9:90]) == {0.1}
    assert found[-1] == pytest.approx(0.1 / 9) and sorted(found[90:], reverse=True) == found[90:]


def test_a_ratio_of_warmup_counts_the_runs_steps() -> None:
    assert schedule.num_warmup_steps(RunSettings(warmup_ratio=0.03), 101) == math.ceil(3.03)


def test_every_schedule_has_a_shape() -> None:
    for name in RunSettings().schedule_names:
        found = rates(20, lr_scheduler_type=name)
        assert all(0 <= rate <= 0.1 + 1e-12 for rate in found)
    assert rates(1, lr_scheduler_type="cosine") == [0.1]


def test_a_warmup_that_would_never_end_is_cut() -> None:
    capped = rates(100, warmup_steps=10_000, max_warmup_ratio=0.1)
    assert capped == rates(100, warmup_steps=10) != rates(100, warmup_steps=10_000)
    assert rates(100, warmup_steps=5, max_warmup_ratio=0.1) == rates(100, warmup_steps=5)
