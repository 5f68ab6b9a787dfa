"""The exact flow on a line: its quantities against samples, and what the reformulations make of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtri

from mfrl.errors import ConfigError
from mfrl.reformulation import Reformulation
from mfrl.study import figures
from mfrl.study.exact import LineMixture

MIXTURE = LineMixture((-0.75, 0.1, 0.5), 0.15)
NORMAL = ndtri((np.arange(500) + 0.5) / 500)  # evenly spread quantiles of the noise


def paths(n: int, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions, noises and points of the path."""
    rng = np.random.default_rng(0)
    a = rng.choice(MIXTURE.means, n) + MIXTURE.sd * rng.standard_normal(n)
    e = rng.standard_normal(n)
    return a, e, (1.0 - t) * a + t * e


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_conditional_moments_and_distribution_are_those_of_samples(t: float) -> None:
    a, e, a_t = paths(1_000_000, t)
    for x in (-0.4, 0.2):
        near = np.abs(a_t - x) < 0.01
        n = near.sum()
        spread = MIXTURE.noise_deviation(x, t)
        assert e[near].std() == pytest.approx(spread, rel=5 / np.sqrt(n))
        assert e[near].mean() == pytest.approx(MIXTURE.expected_noise(x, t), abs=5 * spread / np.sqrt(n) + 0.01)
        assert a[near].mean() == pytest.approx(MIXTURE.expected_action(x, t), abs=5 * a[near].std() / np.sqrt(n) + 0.01)
        assert np.mean(a_t < x) == pytest.approx(MIXTURE.cdf(x, t), abs=0.003)
        assert near.mean() / 0.02 == pytest.approx(MIXTURE.density(x, t), rel=0.05)


def test_quantiles_invert_the_distribution_function() -> None:
    share, t = np.linspace(0.001, 0.999, 50), np.array([[0.0], [0.5], [1.0]])
    np.testing.assert_allclose(MIXTURE.cdf(MIXTURE.quantile(share, t), t), np.broadcast_to(share, (3, 50)), atol=1e-10)


def test_the_flow_follows_the_expected_velocity() -> None:
    # d a_b / db = E[e - a | a_b] along a flow line, by central differences.
    x, b, h = np.linspace(-2.5, 2.5, 41), np.array([[0.2], [0.5], [0.9]]), 1e-4
    there = MIXTURE.flow(x, 1.0, b)
    slope = (MIXTURE.flow(x, 1.0, b + h) - MIXTURE.flow(x, 1.0, b - h)) / (2 * h)
    wanted = MIXTURE.expected_noise(there, b) - MIXTURE.expected_action(there, b)
    np.testing.assert_allclose(slope, wanted, atol=1e-4)
    np.testing.assert_allclose(MIXTURE.flow(x, 1.0, 1.0), x, atol=1e-9)


def test_one_gaussian_is_a_straight_line() -> None:
    single, e = LineMixture((0.4,), 0.3), np.linspace(-3, 3, 25)
    np.testing.assert_allclose(single.flow(e, 1.0), 0.4 + 0.3 * e, atol=1e-9)
    np.testing.assert_allclose(e - single.average_velocity(e, 1.0), 0.4 + 0.3 * e, atol=1e-9)


def test_the_settled_action_of_one_gaussian_is_known() -> None:
    # E[e | a_t] = t / S_t^2 (a_t - (1 - t) mu) and (a_t - (1 - t) mu) / S_t = e along a flow line, so that
    # integral E[a | a_t] dt = a_0 + (integral t / S_t dt - 1) e; tests/test_reformulation.py has the identity itself.
    single, e = LineMixture((0.4,), 0.3), np.linspace(-3, 3, 25)
    shrink, _ = quad(lambda t: t / single.scale(t), 0.0, 1.0)
    np.testing.assert_allclose(single.settled_action(e), 0.4 + 0.3 * e + (shrink - 1.0) * e, atol=1e-6)
    assert shrink < 0.9


def test_the_settled_actions_of_several_are_drawn_together() -> None:
    e = np.linspace(-2.5, 2.5, 21)
    settled = MIXTURE.settled_action(e)
    assert np.ptp(settled) < 0.8 * np.ptp(MIXTURE.flow(e, 1.0))
    # Every expected action has the data's mean, and so has what they are averaged to.
    drawn = MIXTURE.settled_action(NORMAL, nodes=40)
    assert drawn.mean() == pytest.approx(np.mean(MIXTURE.means), abs=1e-3)


@pytest.mark.parametrize(("means", "sd"), [((), 0.1), ((0.0,), 0.0), ((0.0,), float("nan"))])
def test_a_mixture_of_nothing_is_refused(means: tuple[float, ...], sd: float) -> None:
    with pytest.raises(ConfigError, match="must name a place"):
        LineMixture(means, sd)


def test_at_t_1_direct_variants_output_the_action_and_velocity_the_noise_without_it() -> None:
    e = np.linspace(-2, 2, 11)
    action = MIXTURE.flow(e, 1.0)
    for variant in (Reformulation(1.0, -1.0), Reformulation(1.0, [0.0, -1.0]), Reformulation(0.0, -1.0, 1.0)):
        np.testing.assert_allclose(figures.exact_output(MIXTURE, variant, e, 1.0), action, atol=1e-6)
    velocity = figures.exact_output(MIXTURE, Reformulation(0.0, 1.0), e, 1.0)
    np.testing.assert_allclose(velocity, e - action, atol=1e-6)


def test_the_figure_of_outputs_has_bands_only_where_the_noise_is_asked_for() -> None:
    variants = {"residual": Reformulation(1.0, -1.0), "noise_residual": Reformulation(0.0, -1.0, 1.0)}
    figure = figures.outputs(MIXTURE, variants, times=(0.3, 1.0))
    residual, noise = figure.axes
    assert [axes.get_title() for axes in figure.axes] == list(variants)
    assert [line.get_label() for line in residual.lines] == ["t = 0.3", "t = 1"]
    for line, t in zip(residual.lines, (0.3, 1.0), strict=True):
        x, g = line.get_data()
        np.testing.assert_allclose(g, x - MIXTURE.average_velocity(x, t), atol=1e-6)
    assert len(residual.collections) == 0
    (band,) = noise.collections  # none at t = 1, where a_t is the noise
    x, g = noise.lines[0].get_data()
    middle = band.get_paths()[0].vertices
    k = len(x) // 2
    heights, spread = middle[np.isclose(middle[:, 0], x[k]), 1], MIXTURE.noise_deviation(x[k], 0.3)
    np.testing.assert_allclose([heights.min(), heights.max()], g[k] + spread * np.array([-1, 1]))


def test_the_densities_of_the_figure_are_of_the_actions() -> None:
    exact, settled = figures.settled_actions(MIXTURE).axes[1].lines
    a, density = exact.get_data()
    np.testing.assert_allclose(density, MIXTURE.density(a, 0.0), atol=0.02)
    a, density = settled.get_data()
    assert np.trapezoid(density, a) == pytest.approx(1.0, abs=0.01)
    drawn = MIXTURE.settled_action(NORMAL, nodes=40)
    place = 0.5 * (a[0] + a[-1])
    assert np.mean(drawn < place) == pytest.approx(np.trapezoid(density[a < place], a[a < place]), abs=0.02)
