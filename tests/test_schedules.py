"""Schedules against tables worked out by hand from the paper's description."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mfrl.schedules import CosineAlpha, DynamicAlpha, FixedAlpha, warmup_cosine


def factor_at(k: float, total: int, **settings: float) -> float:
    return warmup_cosine(torch.tensor(k, dtype=torch.float64), total, **settings).item()


@pytest.mark.parametrize(
    ("k", "factor"),
    [
        (0, 0.0),
        (1, 1 / 50),
        (25, 0.5),
        (49, 0.98),
        (50, 1.0),  # 5 % of 1000
        (525, 0.55),  # half way down: between 1 and 0.1
        (50 + 950 // 4, 0.1 + 0.45 * (1 + math.cos(math.pi * 237 / 950))),
        (50 + 950 / 3, 0.1 + 0.45 * 1.5),  # cos(pi / 3) = 1/2
        (1000, 0.1),
        (1001, 0.1),  # online
        (5000, 0.1),
    ],
)
def test_the_rate_warms_up_falls_along_a_cosine_and_stays(k: float, factor: float):
    assert factor_at(k, 1000) == pytest.approx(factor, abs=1e-12)


def test_the_rate_without_warmup_starts_at_the_top_and_the_floor_is_where_it_ends():
    assert factor_at(0, 100, warmup=0.0) == 1.0
    assert factor_at(100, 100, warmup=0.0, floor=0.0) == pytest.approx(0.0, abs=1e-12)
    assert factor_at(50, 100, warmup=0.0, floor=0.4) == pytest.approx(0.7)
    assert all(factor_at(k, 100, floor=1.0) == 1.0 for k in range(5, 200))


@pytest.mark.parametrize("total", [1, 2, 7, 19])
def test_short_runs_have_a_finite_rate(total: int):
    factors = [factor_at(k, total) for k in range(total + 2)]
    assert all(0.0 <= f <= 1.0 for f in factors)
    assert factors[0] == 1.0  # less than one update of warm-up
    assert factors[total] == pytest.approx(0.1)


def test_the_rate_of_the_learner_s_count_is_that_of_a_number():
    counted = warmup_cosine(torch.arange(1200), 1000)  # int64
    assert counted.dtype == torch.float32
    assert counted.tolist() == pytest.approx([factor_at(k, 1000) for k in range(1200)], rel=1e-5, abs=1e-7)


def step(schedule: FixedAlpha, k: int, flow_loss: float) -> None:
    """What the learner does with what an update changes."""
    for name, value in schedule.after(torch.tensor(k), torch.tensor(flow_loss)).items():
        getattr(schedule, name).copy_(value)


def run(schedule: FixedAlpha, losses: dict[int, float], last: int) -> list[float]:
    """alpha after each update 0 .. last; updates not named have a flow loss of 1."""
    alphas = []
    for k in range(last + 1):
        step(schedule, k, losses.get(k, 1.0))
        alphas.append(schedule.alpha.item())
    return alphas


def test_fixed_alpha_never_changes():
    assert set(run(FixedAlpha(3.0, 10), {4: 100.0}, 20)) == {3.0}


def test_cosine_alpha_falls_to_a_tenth():
    alphas = run(CosineAlpha(10.0, 8), {}, 12)
    # Index k is alpha after update k, so update 4 uses alphas[3], half way: (10 + 1) / 2.
    assert alphas[3] == pytest.approx(5.5)
    assert alphas[1] == pytest.approx(1.0 + 4.5 * (1 + math.cos(math.pi / 4)))
    assert alphas[7:] == pytest.approx([1.0] * 6)
    assert all(a > b for a, b in itertools.pairwise(alphas[:8]))


# total 100, a check every 2 updates: recorded only before update 10, then compared.


def dynamic(alpha: float = 10.0, **settings: float) -> DynamicAlpha:
    return DynamicAlpha(alpha, 100, **({"every": 2} | settings))


def test_published_settings_of_dynamic_alpha():
    schedule = DynamicAlpha(10.0, 1_000_000)
    assert (schedule.every, schedule.threshold, len(schedule.history)) == (2000, 5.0, 20)
    for k in (0, 1, 1999, 2001):
        step(schedule, k, 1.0)
        assert not schedule.history.isfinite().any(), "no check is due"
    step(schedule, 2000, 1.5)
    assert schedule.history[-1] == 1.5


@pytest.mark.parametrize(
    ("loss", "alpha"), [(5.01, 12.0), (4.99, 10.0), (100.0, 12.0), (1.0, 10.0), (0.201, 10.0), (0.199, 8.0), (0.0, 8.0)]
)
def test_dynamic_alpha_answers_beyond_five_times_the_mean_and_below_a_fifth(loss: float, alpha: float):
    alphas = run(dynamic(), {20: loss}, 20)
    assert set(alphas[:20]) == {10.0}
    assert alphas[20] == pytest.approx(alpha)


def test_dynamic_alpha_keeps_its_answer_between_checks_and_looks_only_at_checks():
    alphas = run(dynamic(), {20: 8.0, 21: 1000.0, 23: 0.0}, 30)
    assert alphas[20:] == pytest.approx([12.0] * 11)


@pytest.mark.parametrize(("k", "alpha"), [(8, 10.0), (10, 12.0)])
def test_dynamic_alpha_only_records_during_the_first_tenth(k: int, alpha: float):
    schedule = dynamic()
    assert run(schedule, {k: 50.0}, 10)[k] == pytest.approx(alpha)
    assert 50.0 in schedule.history.tolist()


def test_the_mean_is_of_the_checks_before_and_does_not_hold_the_current_one():
    # Mean of 1, 1, 1, 1, 1 is 1; with the 5.5 in it, it would be 1.75 and 5.5 below five times that.
    assert run(dynamic(), {12: 5.5}, 12)[12] == pytest.approx(12.0)


def test_the_mean_looks_back_on_twenty_checks():
    # Checks at 2, 4, ..; at 60 the last twenty are 20 .. 58. One old outlier at 18 is forgotten, at 20 it is not.
    outlier = 400.0
    forgotten = dynamic()
    assert run(forgotten, {18: outlier, 60: 6.0}, 60)[60] / run(dynamic(), {18: outlier}, 58)[58] == pytest.approx(1.2)
    assert run(dynamic(), {20: outlier, 60: 6.0}, 60)[60] / run(dynamic(), {20: outlier}, 58)[58] == pytest.approx(1.0)
    assert len(forgotten.history) == 20


def test_dynamic_alpha_stays_within_a_tenth_and_ten_times_its_start():
    grown = run(dynamic(2.0, every=1, window=3), {k: 30.0 ** (k / 2) for k in range(100)}, 60)
    assert max(grown) == pytest.approx(20.0)
    assert grown[-1] == pytest.approx(20.0)
    fallen = run(dynamic(2.0, every=1, window=3), {k: 30.0 ** (-k / 2) for k in range(100)}, 60)
    assert min(fallen) == pytest.approx(0.2)
    assert fallen[-1] == pytest.approx(0.2)


def test_dynamic_alpha_needs_two_checks_to_compare():
    schedule = DynamicAlpha(10.0, 10, every=2)  # the first tenth holds no check
    assert run(schedule, {2: 1.0, 4: 100.0, 6: 1000.0}, 6)[2::2] == pytest.approx([10.0, 10.0, 12.0])


def test_dynamic_alpha_goes_on_from_a_saved_state():
    losses = {20: 50.0, 30: 0.01, 44: 100.0}
    whole = run(dynamic(), losses, 50)
    before, after = dynamic(), dynamic()
    run(before, losses, 26)
    after.load_state_dict(before.state_dict())
    rest = []
    for k in range(27, 51):
        step(after, k, losses.get(k, 1.0))
        rest.append(after.alpha.item())
    assert rest == whole[27:]
    assert len(set(whole)) > 2
