"""The family g = p a_t + q u + s e against data whose average velocity is known in closed form.

For Gaussian data a ~ N(mu, sd^2) and noise e ~ N(0, 1) the path's marginal at time t is N(m_t, S_t^2) with
m_t = (1 - t) mu and S_t^2 = (1 - t)^2 sd^2 + t^2. The marginal velocity is linear in x, and its flow keeps
(x - m_t) / S_t constant, which gives the flow map and with it the average velocity.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import randn
from torch import Tensor

from mfrl.reformulation import Reformulation

MU = torch.tensor([0.4, -0.7, 0.0], dtype=torch.float64)
SD = torch.tensor([0.5, 0.2, 1.3], dtype=torch.float64)

# Without s e the output is a function of (a_t, t).
FUNCTIONS = {
    "velocity": Reformulation(0.0, 1.0),
    "residual": Reformulation(1.0, -1.0),
    "time_residual": Reformulation([0.0, 1.0], -1.0),
    "endpoint": Reformulation(1.0, [0.0, -1.0]),
    "cubic_p": Reformulation([0.3, -1.0, 0.0, 2.0], 1.5),
    "linear_q": Reformulation(0.5, [0.5, 1.0]),
    "quadratic_q": Reformulation([0.0, 2.0], [0.0, 0.0, -1.0]),
    "general_q": Reformulation([1.0, 0.5, -0.2], [0.0, 2.0, -0.5, 0.3]),
}
WITH_NOISE = {
    "noise_residual": Reformulation(0.0, -1.0, 1.0),
    "varying_s": Reformulation([0.0, 1.0], [-0.2, -1.0, -0.5], [0.7, 0.0, -0.4]),
    "all_vanish_at_0": Reformulation([0.0, 1.0], [0.0, -1.0], [0.0, 0.0, 1.0]),
}
FAMILY = FUNCTIONS | WITH_NOISE
NAMES = list(FAMILY)


def mean(t: Tensor) -> Tensor:
    return (1 - t) * MU


def deviation(t: Tensor) -> Tensor:
    return ((1 - t) ** 2 * SD**2 + t**2).sqrt()


def marginal_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[e - a | a_t = x]."""
    return -MU + (t - (1 - t) * SD**2) / deviation(t) ** 2 * (x - mean(t))


def expected_noise(x: Tensor, t: Tensor) -> Tensor:
    """E[e | a_t = x]."""
    return t / deviation(t) ** 2 * (x - mean(t))


def flow_map(x: Tensor, t: Tensor, b: Tensor | float) -> Tensor:
    """Where the flow of the marginal velocity through x at time t is at time b."""
    b = torch.as_tensor(b, dtype=torch.float64)
    return mean(b) + deviation(b) / deviation(t) * (x - mean(t))


def average_velocity(x: Tensor, b: Tensor | float, t: Tensor) -> Tensor:
    return (x - flow_map(x, t, b)) / (t - b)


def exact_output(variant: Reformulation, e: Tensor, b: Tensor | float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """g(x, t) of the true average velocity, written without the code under test."""

    def poly(c: tuple[float, ...], t: Tensor) -> Tensor:
        return sum(c_k * t**k for k, c_k in enumerate(c)) + 0.0 * t

    def g(x: Tensor, t: Tensor) -> Tensor:
        p, q, s = (poly(c.coefficients, t) for c in (variant.p, variant.q, variant.s))
        return p * x + q * average_velocity(x, b, t) + s * e

    return g


def along(g: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """g and its total derivative with tangents (v, 1)."""
    return torch.func.jvp(g, (x, t), (v, torch.ones_like(t)))


def points(n: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, times in (0, 1] and points of the path."""
    t = torch.linspace(0.02, 1.0, n, dtype=torch.float64)[:, None]
    e, a = randn(n, 3, seed=1), MU + SD * randn(n, 3, seed=2)
    return e, t, (1 - t) * a + t * e


def test_closed_form_velocity_and_flow_map_describe_the_gaussian_path():
    # The conditional mean is the least-squares line of v on a_t ...
    n, t = 400_000, torch.tensor([[0.35]], dtype=torch.float64)
    e, a = randn(n, 3, seed=3), MU + SD * randn(n, 3, seed=4)
    x, v = (1 - t) * a + t * e, e - a
    residue = v - marginal_velocity(x, t)
    assert residue.mean(0).abs().max() < 5 * (v.std(0) / math.sqrt(n)).max()
    assert (residue * x).mean(0).abs().max() < 5 * ((v * x).std(0) / math.sqrt(n)).max()
    # ... and the flow map is what integrating it gives (Runge-Kutta, 200 steps from t to b).
    x = randn(5, 3, seed=5)
    b, steps, y, now = 0.1, 200, x, t
    h = (b - t) / steps
    for _ in range(steps):
        k1 = marginal_velocity(y, now)
        k2 = marginal_velocity(y + h / 2 * k1, now + h / 2)
        k3 = marginal_velocity(y + h / 2 * k2, now + h / 2)
        k4 = marginal_velocity(y + h * k3, now + h)
        y, now = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), now + h
    torch.testing.assert_close(y, flow_map(x, t, b), rtol=0, atol=1e-9)


@pytest.mark.parametrize("b", [0.0, 0.3, "half", "zeros"])
@pytest.mark.parametrize("name", NAMES)
def test_the_exact_output_is_its_own_target_under_the_marginal_velocity(name: str, b: float | str):
    variant = FAMILY[name]
    e, t, x = points()
    if isinstance(b, float):
        keep = t[:, 0] > b + 0.02
        e, t, x = e[keep], t[keep], x[keep]
        when = b
    else:
        when = {"half": 0.5, "zeros": 0.0}[b] * t.clone()  # one b per sample
    v = marginal_velocity(x, t)
    # b is a constant of the derivative, also where it was computed from t.
    g, dgdt = along(exact_output(variant, e, when), x, t, v)
    torch.testing.assert_close(variant.target(g, dgdt, v, x, e, t, when), g, rtol=1e-9, atol=1e-9)
    # The identity singles the exact output out. An output off by a constant differs from its target by
    # delta (1 - (t - b) q'/q): zero for all t only where q = t, whose endpoint needs a boundary condition.
    slope = (t - when) * sum(k * c * t ** (k - 1) for k, c in enumerate(variant.q.coefficients) if k)
    off = variant.target(g + 0.1, dgdt, v, x, e, t, when) - (g + 0.1)
    torch.testing.assert_close(off, (0.1 * (slope / variant.q(t) - 1.0)).expand_as(g), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("b", [0.0, 0.25])
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_sampled_velocities_give_the_exact_output_in_the_mean(name: str, b: float):
    variant = FUNCTIONS[name]
    _, t, x = points(40)
    keep = (t[:, 0] > b + 0.02) & (t[:, 0] < 0.99)
    t, x = t[keep], x[keep]
    # e given (a_t, t) is Gaussian; antithetic pairs have its mean exactly.
    spread = (1 - t) * SD / deviation(t)
    d = spread * randn(4, *x.shape, seed=6)
    e = expected_noise(x, t) + torch.cat([d, -d])
    v = e - (x - t * e) / (1 - t)
    output = exact_output(variant, torch.zeros_like(x), b)
    one = [along(output, x, t, v_k) for v_k in v]
    targets = torch.stack(
        [variant.target(g, dgdt, v_k, x, e_k, t, b) for (g, dgdt), v_k, e_k in zip(one, v, e, strict=True)]
    )
    torch.testing.assert_close(targets.mean(0), output(x, t), rtol=1e-8, atol=1e-8)
    assert (targets.std(0) > 1e-3).double().mean() > 0.9, "the samples should differ: the mean is what is tested"


def test_noise_residual_asks_two_answers_of_the_same_input():
    variant = WITH_NOISE["noise_residual"]
    t = torch.tensor([[0.4]], dtype=torch.float64)
    x = randn(1, 3, seed=7)
    n = 50_000
    e = expected_noise(x, t) + (1 - t) * SD / deviation(t) * randn(n, 3, seed=8)
    wanted = variant.output(average_velocity(x, 0.0, t), x, e, t)  # for one (a_t, t)
    # Two ends of the path through the same point: what is asked differs by as much as they do.
    torch.testing.assert_close(wanted[0] - wanted[1], e[0] - e[1], rtol=0, atol=1e-12)
    # Whatever a function of (a_t, t) answers, this variance remains as its error.
    variance = ((1 - t) * SD / deviation(t)).square()[0]
    torch.testing.assert_close(wanted.var(0), variance, rtol=0.05, atol=0)
    assert (variance > 0.01).all()
    # Every variant without s e asks one answer.
    for function in FUNCTIONS.values():
        same = function.output(average_velocity(x, 0.0, t), x, e[:2], t)
        torch.testing.assert_close(same, same[:1].expand_as(same), rtol=0, atol=0)


def test_noise_residual_settles_on_wrong_actions():
    # Its only self-consistent function of (a_t, t): along a flow line (t g)' = E[e | a_t] - v, so
    # g = 1/t integral_0^t (E[e | x_tau] - v) dtau, whose action is e times the mean of tau / S_tau, minus u.
    variant = WITH_NOISE["noise_residual"]
    nodes, weights = (torch.from_numpy(w) for w in np.polynomial.legendre.leggauss(80))
    nodes, weights = (nodes + 1) / 2, weights / 2

    def settled(x: Tensor, t: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for node, weight in zip(nodes, weights, strict=True):
            there = flow_map(x, t, node * t)
            total = total + weight * (expected_noise(there, node * t) - marginal_velocity(there, node * t))
        return total

    _, t, x = points(30)
    g, dgdt = along(settled, x, t, v := marginal_velocity(x, t))
    torch.testing.assert_close(variant.target(g, dgdt, v, x, expected_noise(x, t), t), g, rtol=1e-8, atol=1e-8)

    e, one = randn(20_000, 3, seed=9), torch.ones(1, 1, dtype=torch.float64)
    got = variant.action(settled(e, one), e)
    exact = flow_map(e, one, 0.0)
    torch.testing.assert_close(exact.std(0), SD, rtol=0.03, atol=0)
    shrink = sum(w * n / deviation(n[None, None])[0] for n, w in zip(nodes, weights, strict=True))
    torch.testing.assert_close(got - exact, (shrink - 1) * e, rtol=1e-8, atol=1e-8)
    assert (shrink < 0.95).all(), "the actions should be visibly wrong, or nothing was shown"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("velocity", lambda g, d, v, x, e, t: v - t * d),
        ("residual", lambda g, d, v, x, e, t: x + (t - 1) * v - t * d),
        ("noise_residual", lambda g, d, v, x, e, t: e - v - t * d),
        ("time_residual", lambda g, d, v, x, e, t: 2 * t * x + (t**2 - 1) * v - t * d),
        ("endpoint", lambda g, d, v, x, e, t: g - t * d),
    ],
)
def test_targets_of_the_named_variants_are_those_written_by_hand(name: str, expected: Callable[..., Tensor]):
    g, d, v, x, e = randn(5, 11, 3, seed=10)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    torch.testing.assert_close(FAMILY[name].target(g, d, v, x, e, t), expected(g, d, v, x, e, t), rtol=0, atol=1e-12)


def test_endpoint_s_identity_does_not_tell_the_flow_from_any_constant():
    # Its identity is dg/dt = 0: what makes g the end of the path is g(., 0) = identity, which no target asks for.
    # A zero-initialised network, say, is its own target and would never learn from the flow loss.
    t = torch.linspace(0.1, 1, 4, dtype=torch.float64)[:, None]
    v, x, e = randn(3, 4, 3, seed=15)
    for name, variant in FUNCTIONS.items():
        for constant in (0.0, 0.7):
            g = torch.full_like(x, constant)
            target = variant.target(g, torch.zeros_like(x), v, x, e, t)
            assert torch.allclose(target, g, rtol=0, atol=1e-12) == (name == "endpoint"), name


PINNED = {
    name: variant
    for name, variant in (FAMILY | {"scaled": Reformulation([0.0, 2.0], [0.0, -2.0], [0.0, 3.0])}).items()
    if name in ("endpoint", "quadratic_q", "general_q", "all_vanish_at_0", "scaled")
}


def test_exactly_the_variants_whose_q_vanishes_at_0_are_pinned():
    assert {name for name, variant in FAMILY.items() if variant.is_pinned} == set(PINNED) - {"scaled"}


@pytest.mark.parametrize("name", PINNED)
def test_a_pinned_output_has_its_boundary_whatever_the_network_says(name: str):
    variant = PINNED[name]
    F, dF, x, v = randn(4, 6, 3, seed=20)
    p0 = variant.p.coefficients[0]
    g, _ = variant.pinned(F, dF, x, v, torch.zeros(6, 1, dtype=torch.float64))
    torch.testing.assert_close(g, p0 * x, rtol=0, atol=1e-12)
    g, _ = variant.pinned(F, dF, x, v, torch.ones(6, 1, dtype=torch.float64))
    torch.testing.assert_close(g, F, rtol=0, atol=1e-12)  # so that acting needs no pin


@pytest.mark.parametrize("name", PINNED)
def test_the_exact_network_of_a_pinned_variant_gives_the_exact_output_and_only_it_does(name: str):
    variant = PINNED[name]
    p, q = variant.p.at_one, variant.q.at_one
    e, t, x = points()
    v = marginal_velocity(x, t)

    def network(x: Tensor, t: Tensor) -> Tensor:
        ratio = variant.s(t) / variant.q(t) * q if any(variant.s.coefficients) else 0.0
        return p * x + q * average_velocity(x, 0.0, t) + ratio * e

    F, dF = along(network, x, t, v)
    g, dg = variant.pinned(F, dF, x, v, t)
    exact, derivative = along(exact_output(variant, e), x, t, v)
    torch.testing.assert_close(g, exact, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(dg, derivative, rtol=1e-7, atol=1e-7)
    # A network off by a constant is off its target by q/q(1) of it, everywhere but at t = 0, and towards the truth.
    g, dg = variant.pinned(F + 0.1, dF, x, v, t)
    off = variant.target(g, dg, v, x, e, t) - g
    torch.testing.assert_close(off, (-0.1 * variant.q(t) / q).expand_as(g), rtol=1e-6, atol=1e-9)


def test_a_variant_that_needs_no_pin_is_the_network_itself():
    F, dF, x, v = randn(4, 6, 3, seed=21)
    t = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None]
    for name in set(NAMES) - set(PINNED):
        g, dg = FAMILY[name].pinned(F, dF, x, v, t)
        assert g is F
        assert dg is dF


def test_a_boundary_of_noise_is_refused():
    for s in (1.0, [0.5, 1.0]):
        with pytest.raises(ValueError, match=r"vanishes at t = 0 faster than s.*contains the noise"):
            Reformulation(1.0, [0.0, -1.0], s)
    with pytest.raises(ValueError, match="faster than s"):
        Reformulation(1.0, [0.0, 0.0, -1.0], [0.0, 1.0])
    Reformulation(1.0, [0.0, -1.0], [0.0, 0.5])  # vanishes as fast


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan, True, "x", [0.5]])
def test_a_share_that_is_none_is_refused(share: object):
    with pytest.raises(ValueError, match=r"instant_share=.* must be in \[0, 1\]"):
        Reformulation(1.0, -1.0, instant_share=share)


def test_a_second_time_where_the_output_cannot_tell_the_velocity_is_refused():
    with pytest.raises(ValueError, match="leave instant_share null"):
        Reformulation(1.0, [0.0, -1.0], instant_share=0.75)
    assert Reformulation(1.0, -1.0, instant_share=0.75).two_times
    assert not Reformulation(1.0, -1.0).two_times


@pytest.mark.parametrize("name", NAMES)
def test_the_action_of_the_exact_output_is_one_flow_step_from_noise(name: str):
    variant = FAMILY[name]
    e, one = randn(50, 3, seed=11), torch.ones(1, 1, dtype=torch.float64)
    g = exact_output(variant, e)(e, one)
    action = variant.action(g, e)
    torch.testing.assert_close(action, e - average_velocity(e, 0.0, one), rtol=0, atol=1e-12)
    torch.testing.assert_close(action, MU + SD * e, rtol=0, atol=1e-12)
    if variant.is_direct:
        assert torch.equal(action, g)


def test_a_variant_is_direct_where_its_output_is_the_action():
    assert {name for name, v in FAMILY.items() if v.is_direct} == {
        "residual",
        "noise_residual",
        "time_residual",
        "endpoint",
    }
    assert Reformulation([0.5, 0.5], [0.0, 0.0, -1.0]).is_direct
    assert Reformulation(0.25, -1.0, 0.75).is_direct
    assert not Reformulation(1.0, 1.0).is_direct
    assert not Reformulation(0.5, -1.0).is_direct


@pytest.mark.parametrize("name", NAMES)
def test_output_and_average_velocity_undo_each_other(name: str):
    variant = FAMILY[name]
    e, t, x = points(30)
    u = randn(30, 3, seed=12)
    g = variant.output(u, x, e, t)
    torch.testing.assert_close(g, exact_affine(variant, u, x, e, t), rtol=0, atol=1e-12)
    torch.testing.assert_close(variant.average_velocity(g, x, e, t), u, rtol=1e-9, atol=1e-9)


def exact_affine(variant: Reformulation, u: Tensor, x: Tensor, e: Tensor, t: Tensor) -> Tensor:
    p, q, s = (np.polyval(c.coefficients[::-1], t.numpy()) for c in (variant.p, variant.q, variant.s))
    return torch.from_numpy(p * x.numpy() + q * u.numpy() + s * e.numpy())


@pytest.mark.parametrize("name", ["endpoint", "quadratic_q", "general_q", "all_vanish_at_0"])
@pytest.mark.parametrize("kind", [float, int, Tensor])
def test_targets_stay_finite_and_continuous_where_q_vanishes_at_time_0(name: str, kind: type):
    variant = FAMILY[name]
    g, d, v, x, e = randn(5, 4, 3, seed=13)

    def target(t: float) -> Tensor:
        rows = torch.full((4, 1), t, dtype=torch.float64)
        return variant.target(g, d, v, x, e, rows, torch.zeros_like(rows) if kind is Tensor else kind(0))

    assert target(0.0).isfinite().all()
    torch.testing.assert_close(target(0.0), target(1e-8), rtol=0, atol=1e-6)
    # (t - b) q'/q tends to m, the order of q's zero.
    order = next(k for k, c in enumerate(variant.q.coefficients) if c)
    torch.testing.assert_close(target(0.0), exact_limit(variant, order, g, x, e), rtol=0, atol=1e-12)


def exact_limit(variant: Reformulation, order: int, g: Tensor, x: Tensor, e: Tensor) -> Tensor:
    kept = variant.p.coefficients[0] * x + variant.s.coefficients[0] * e
    return kept + order * (g - kept)


@pytest.mark.parametrize("name", ["endpoint", "quadratic_q", "linear_q"])
def test_at_t_equal_b_the_target_is_the_instantaneous_velocity_s_image(name: str):
    variant = FAMILY[name]
    g, d, v, x, e = randn(5, 4, 3, seed=14)
    t = torch.tensor([[0.2], [0.5], [0.8], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(variant.target(g, d, v, x, e, t, t), exact_affine(variant, v, x, e, t))


@pytest.mark.parametrize("q", [0.0, [0.0], [0.0, 0.0, 0.0]])
def test_q_that_is_zero_everywhere_is_refused(q: float | list[float]):
    with pytest.raises(ValueError, match="zero everywhere"):
        Reformulation(1.0, q)


@pytest.mark.parametrize(
    ("q", "where"),
    [
        ([1.0, -1.0], "1"),
        ([-0.5, 1.0], "0.5"),
        ([0.0, -0.25, 1.0], "0.25"),
        ([0.06, -0.5, 1.0], "0.[23]"),
        ([-0.25, 0.0, 1.0], "0.5"),
        ([0.25, -1.0, 1.0], "0.5"),
    ],
)
def test_q_that_vanishes_where_u_is_needed_is_refused_with_the_time(q: list[float], where: str):
    with pytest.raises(ValueError, match=rf"zero at t = {where}.*cannot be recovered"):
        Reformulation(1.0, q)


def test_q_that_touches_zero_is_refused_too():
    multiple = [(at, order) for at in (0.08, 0.4, 0.55, 0.72, 1.0) for order in (2, 3, 4)]
    accepted = []
    for at, order in multiple:
        with contextlib.suppress(ValueError):
            Reformulation(1.0, np.poly([at] * order)[::-1].tolist())
            accepted.append((at, order))
    assert not accepted


@pytest.mark.parametrize("q", [[0.0, -1.0], [1.0, 1.0], [-1.5, 1.0], [0.3, -1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
def test_q_without_a_zero_in_the_half_open_interval_is_accepted(q: list[float]):
    t = torch.linspace(1e-3, 1, 50, dtype=torch.float64)
    assert (Reformulation(1.0, q).q(t) != 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, [1.0, math.nan], [], "1", ["1"], [None]])
@pytest.mark.parametrize("name", ["p", "q", "s"])
def test_coefficients_that_are_no_numbers_are_refused_by_name(name: str, bad: object):
    settings = {"p": 1.0, "q": -1.0, "s": 0.0} | {name: bad}
    with pytest.raises(ValueError, match=f"^{name} must be finite"):
        Reformulation(**settings)
