"""Path, times, the derivative along the path and the losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import ACTION_DIM, OBSERVATION_DIM, RESIDUAL, randn, randomise_, times, tiny_dit, tiny_mlp
from torch import Tensor, nn

from mfrl.meanflow import (
    MeanFlowSettings,
    TimeDraw,
    Times,
    adaptive_loss,
    bound_loss,
    end_time,
    flow_target,
    grid_times,
    interpolate,
    meanflow_loss,
    path_derivative,
)
from mfrl.randomness import Streams, key_of
from mfrl.reformulation import Reformulation

BATCH = 7


class PlainNetwork(nn.Module):
    """A network without ``jvp``, as a user would write one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(OBSERVATION_DIM + ACTION_DIM + 1, 16),
            nn.Tanh(),
            nn.LayerNorm(16),
            nn.Linear(16, ACTION_DIM),
        )

    def forward(self, observations: Tensor, actions: Tensor, time: Times) -> Tensor:
        return self.layers(torch.cat([observations, actions, time.t.expand(len(actions), 1)], -1))


BACKBONES = {
    "dit": lambda: tiny_dit(OBSERVATION_DIM, ACTION_DIM),
    "mlp": lambda: tiny_mlp(OBSERVATION_DIM, ACTION_DIM),
}
NETWORKS = BACKBONES | {"plain": PlainNetwork}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise_(NETWORKS[name]().double())


def path_point() -> tuple[Tensor, Tensor, Tensor]:
    """Observations, points and velocities."""
    return (
        randn(BATCH, OBSERVATION_DIM, seed=1),
        randn(BATCH, ACTION_DIM, seed=2),
        randn(BATCH, ACTION_DIM, seed=3),
    )


TIMES = {
    "shared rows": lambda: times(4, BATCH),
    "own rows": lambda: times(BATCH),
    "one row": lambda: times(1),
}


def parameter_gradients(network: nn.Module, g: Tensor) -> list[Tensor]:
    weights = randn(*g.shape, seed=9)
    return list(torch.autograd.grad((weights * g).sum(), list(network.parameters())))


def test_the_path_starts_at_data_and_ends_at_noise_with_constant_velocity():
    a, e = randn(BATCH, 2, seed=1), randn(BATCH, 2, seed=2)

    def at(t: float) -> Tensor:
        return interpolate(a, e, torch.full((BATCH, 1), t, dtype=torch.float64))[0]

    torch.testing.assert_close(at(0.0), a, rtol=0, atol=0)
    torch.testing.assert_close(at(1.0), e, rtol=0, atol=1e-14)
    torch.testing.assert_close(at(0.3), 0.7 * a + 0.3 * e, rtol=0, atol=1e-14)
    t = times(BATCH).t
    a_t, v = interpolate(a, e, t)
    torch.testing.assert_close(v, e - a, rtol=0, atol=0)
    torch.testing.assert_close(interpolate(a, e, t + 0.1)[0] - a_t, 0.1 * v, rtol=0, atol=1e-14)


def test_grid_times_end_at_noise_and_leave_out_data():
    like = torch.empty(0, dtype=torch.float64)
    assert grid_times(4, like).tolist() == [[0.25], [0.5], [0.75], [1.0]]
    assert grid_times(1, like).tolist() == [[1.0]]
    assert grid_times(50, torch.empty(0, dtype=torch.float32))[-1].item() == 1.0


def test_spread_gives_every_sample_the_row_of_its_index():
    rows, x = torch.tensor([[0.25], [0.5], [1.0]]), torch.arange(12.0).view(3, 4)
    time = Times(rows, torch.tensor([2, 0, 0, 1, 2]))
    assert time.t.tolist() == [[1.0], [0.25], [0.25], [0.5], [1.0]]
    assert torch.equal(time.spread(x), x[[2, 0, 0, 1, 2]])
    assert Times(rows).spread(x) is x


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_shared_by_samples_change_nothing(name: str):
    network, (s, x, v) = build(name), path_point()
    shared = times(4, BATCH)
    one_by_one = torch.cat([network(s[[i]], x[[i]], Times(shared.t[[i]])) for i in range(BATCH)])
    torch.testing.assert_close(network(s, x, shared), one_by_one, rtol=0, atol=1e-12)
    each = [path_derivative(network, s[[i]], x[[i]], Times(shared.t[[i]]), v[[i]])[1] for i in range(BATCH)]
    torch.testing.assert_close(path_derivative(network, s, x, shared, v)[1], torch.cat(each), rtol=0, atol=1e-12)
    if name in BACKBONES:
        torch.testing.assert_close(network.jvp(s, x, shared, v)[1], torch.cat(each), rtol=0, atol=1e-12)


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_path_derivative_is_what_finite_differences_along_the_path_give(name: str, when: str):
    network, (s, x, v), time = build(name), path_point(), TIMES[when]()
    h = 1e-5
    with torch.no_grad():
        ahead = network(s, x + h * v, Times(time.rows + h, time.index))
        behind = network(s, x - h * v, Times(time.rows - h, time.index))
        at_rest = network(s, x, Times(time.rows + h, time.index)) - network(s, x, Times(time.rows - h, time.index))
    difference = (ahead - behind) / (2 * h)
    # Both parts of the tangent matter here, or a derivative without one of them would pass.
    assert (at_rest / (2 * h)).abs().mean() > 1e-3
    assert (difference - at_rest / (2 * h)).abs().mean() > 1e-2
    methods = [path_derivative(network, s, x, time, v)]
    if name in BACKBONES:
        methods.append(network.jvp(s, x, time, v))
    for g, dgdt in methods:
        torch.testing.assert_close(g, network(s, x, time), rtol=0, atol=1e-12)
        torch.testing.assert_close(dgdt, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("name", BACKBONES)
def test_the_backbones_own_jvp_agrees_with_functorch(name: str, when: str):
    network, (s, x, v), time = build(name), path_point(), TIMES[when]()
    for mine, functorch in zip(network.jvp(s, x, time, v), path_derivative(network, s, x, time, v), strict=True):
        torch.testing.assert_close(mine, functorch, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", ["jvp", "path_derivative"])
@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_value_carries_a_graph_and_its_gradient_is_the_plain_forward_s(name: str, method: str):
    if method == "jvp" and name not in BACKBONES:
        pytest.skip("a plain network has no jvp of its own")
    network, (s, x, v), time = build(name), path_point(), times(4, BATCH)
    if method == "jvp":
        g, dgdt = network.jvp(s, x, time, v)
    else:
        g, dgdt = path_derivative(network, s, x, time, v)
    assert not dgdt.requires_grad
    assert dgdt.grad_fn is None
    expected = parameter_gradients(network, network(s, x, time))
    assert all(gradient.abs().sum() > 0 for gradient in expected)
    for mine, plain in zip(parameter_gradients(network, g), expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_jvp_does_not_disturb_values_used_by_the_backward_pass(name: str):
    # The tangents are computed in place: a second forward and a backward must still work on what they shared.
    network, (s, x, v), time = build(name), path_point(), times(4, BATCH)
    kept = [tensor.clone() for tensor in (s, x, v, time.rows)]
    g, _ = network.jvp(s, x.requires_grad_(), time, v)
    (of_x,) = torch.autograd.grad(g.square().sum(), x)
    (plain,) = torch.autograd.grad(network(s, x, time).square().sum(), x)
    torch.testing.assert_close(of_x, plain, rtol=1e-10, atol=1e-12)
    for tensor, before in zip((s, x, v, time.rows), kept, strict=True):
        assert torch.equal(tensor, before)


def test_the_flow_target_is_clipped_and_carries_no_gradient():
    g, dgdt, v, x, e = randn(5, BATCH, 2, seed=4)
    t = times(BATCH)
    g.requires_grad_()
    free = RESIDUAL.target(g, dgdt, v, x, e, t.t).detach()
    assert (free.abs() > 1.0).any()
    assert (free.abs() < 1.0).any()
    clipped = flow_target(RESIDUAL, g, dgdt, v, x, e, t, clip=1.0)
    torch.testing.assert_close(clipped, free.clamp(-1.0, 1.0), rtol=0, atol=0)
    torch.testing.assert_close(flow_target(RESIDUAL, g, dgdt, v, x, e, t, clip=1e9), free, rtol=0, atol=0)
    endpoint = flow_target(Reformulation(1.0, [0.0, -1.0]), g, dgdt, v, x, e, t, clip=5.0)  # depends on g itself
    assert not clipped.requires_grad
    assert not endpoint.requires_grad


def test_the_flow_target_is_that_of_the_interval_s_start():
    g, dgdt, v, x, e = randn(5, BATCH, 2, seed=4)
    t = times(BATCH).t
    for b in (0.25 * t, t):
        wanted = x - v + (t - b) * (v - dgdt)
        torch.testing.assert_close(flow_target(RESIDUAL, g, dgdt, v, x, e, Times(t, start=b), clip=1e9), wanted)


@pytest.mark.parametrize("name", BACKBONES)
def test_endpoint_s_loss_is_residual_s_with_errors_scaled_by_t(name: str):
    # Pinned, g = (1 - t) a_t + t F with F = a_t - u: the same network learns the same thing.
    network, (s, a, e), time = build(name), path_point(), times(BATCH)
    plain = MeanFlowSettings(target_clip=1e9, gamma_adaptive=1.0)  # unweighted, so that errors can be compared
    endpoint, residual = Reformulation(1.0, [0.0, -1.0]), RESIDUAL
    per_sample = [
        tuple(meanflow_loss(network, r, s[[i]], a[[i]], e[[i]], Times(time.rows[[i]]), plain)[0] for i in range(BATCH))
        for r in (endpoint, residual)
    ]
    errors = [torch.stack(values) for values in per_sample]
    torch.testing.assert_close(errors[0], time.t[:, 0].square() * errors[1], rtol=1e-9, atol=1e-12)


def test_a_pinned_variant_learns_from_a_zero_initialised_head():
    torch.manual_seed(0)
    network, (s, a, e) = BACKBONES["mlp"]().double(), path_point()
    loss, _ = meanflow_loss(network, Reformulation(1.0, [0.0, -1.0]), s, a, e, times(BATCH), MeanFlowSettings())
    loss.backward()
    assert network.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", BACKBONES)
def test_a_network_of_two_times_depends_on_both_and_its_derivative_keeps_the_start(name: str):
    s, x, v = path_point()
    torch.manual_seed(0)
    network = randomise_({"dit": tiny_dit, "mlp": tiny_mlp}[name](OBSERVATION_DIM, ACTION_DIM, two_times=True).double())
    t = times(BATCH).rows
    b, h = 0.4 * t, 1e-5

    def at(start: Tensor, dt: float = 0.0) -> Tensor:
        return network(s, x + dt * v, Times(t + dt, start=start))

    assert (at(b) - at(0.5 * b)).abs().min() > 1e-3
    difference = (at(b, h) - at(b, -h)) / (2 * h)
    time = Times(t, start=b)
    for g, dgdt in (network.jvp(s, x, time, v), path_derivative(network, s, x, time, v)):
        torch.testing.assert_close(g, at(b), rtol=0, atol=1e-12)
        torch.testing.assert_close(dgdt, difference, rtol=1e-6, atol=1e-8)
    with pytest.raises(AssertionError, match="where the interval starts"):
        network(s, x, Times(t))


def draw_time(n: int, num_steps: int | None, share: float | None, seed: int = 0) -> Times:
    streams = Streams({"time": TimeDraw(n, num_steps, share)}, "update")
    return streams.values({name: x[0] for name, x in streams.numbers(key_of(seed), torch.tensor([0])).items()})["time"]


@pytest.mark.parametrize("num_steps", [None, 4])
def test_with_two_times_the_start_lies_below_except_for_its_share(num_steps: int | None):
    n, share = 40_000, 0.75
    time = draw_time(n, num_steps, share)
    t, b = time.t[:, 0], time.b[:, 0]
    assert ((t > 0) & (t <= 1) & (b >= 0) & (b <= t)).all()
    assert (b == t).double().mean().item() == pytest.approx(share, abs=0.02)
    t, b = t[b < t], b[b < t]
    if num_steps is None:  # of two uniform draws: means 2/3 and 1/3, and every gap
        assert t.mean().item() == pytest.approx(2 / 3, abs=0.01)
        assert b.mean().item() == pytest.approx(1 / 3, abs=0.01)
    else:
        assert set(t.tolist()) == {0.25, 0.5, 0.75, 1.0}
        assert set(b.tolist()) == {0.0, 0.25, 0.5, 0.75}
        # Of the 16 pairs of indices, 7 end at t = 1, and one of them starts at b = 0.75.
        assert (t == 1.0).double().mean().item() == pytest.approx(7 / 16, abs=0.02)
        assert ((t == 1.0) & (b == 0.75)).double().mean().item() == pytest.approx(1 / 16, abs=0.01)
    assert torch.equal(draw_time(50, num_steps, 1.0).b, draw_time(50, num_steps, 1.0).t)
    assert (draw_time(5000, num_steps, 0.0).b < draw_time(5000, num_steps, 0.0).t).all()


def test_without_a_share_every_interval_starts_at_the_data():
    for num_steps in (None, 4):
        time = draw_time(50, num_steps, None)
        assert time.start is None
        assert time.b == 0.0
        assert len(time.rows) == (num_steps or 50)


def test_acting_starts_at_time_one_and_ends_at_zero():
    e = randn(3, 2)
    assert end_time(e, two_times=False) == Times(torch.ones(1, 1, dtype=torch.float64))
    time = end_time(e, two_times=True)
    assert (time.t.item(), time.b.item()) == (1.0, 0.0)


def test_adaptive_loss_has_the_values_worked_out_by_hand():
    g, target = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 4.0]])
    # errors: (1 + 4) / 2 = 2.5 and 16 / 2 = 8
    assert adaptive_loss(g, target, gamma=1.0, c=0.1).item() == pytest.approx((2.5 + 8.0) / 2)
    assert adaptive_loss(g, target, gamma=0.0, c=0.0).item() == pytest.approx(1.0)
    expected = (2.5 / 3.0**0.5 + 8.0 / 8.5**0.5) / 2
    assert adaptive_loss(g, target, gamma=0.5, c=0.5).item() == pytest.approx(expected)
    assert adaptive_loss(g, g, gamma=0.8, c=1e-4).item() == 0.0


def test_the_adaptive_weights_scale_gradients_and_have_none_of_their_own():
    g, target = randn(BATCH, 3, seed=5).requires_grad_(), randn(BATCH, 3, seed=6)
    gamma, c = 0.3, 0.2
    (gradient,) = torch.autograd.grad(adaptive_loss(g, target, gamma, c), g)
    difference = (g - target).detach()
    w = (difference.square().mean(-1, keepdim=True) + c) ** (gamma - 1.0)
    torch.testing.assert_close(gradient, w * 2 * difference / 3 / BATCH)


def test_bound_loss_counts_only_what_lies_outside():
    a = torch.tensor([[0.0, 1.0, -1.0, 0.99], [1.5, -3.0, 1.0, 0.0]], requires_grad=True)
    loss = bound_loss(a)
    assert loss.item() == pytest.approx((0.5 + 2.0) / 8)  # mean relu(a - 1) + mean relu(-1 - a)
    loss.backward()
    assert torch.equal(a.grad, torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]]) / 8)


TABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "quadratic": lambda t: t**2,
    "linear": lambda t: 3.0 * t,
}


@pytest.mark.parametrize("name", TABLE)
def test_the_derivative_of_known_functions_of_point_and_time(name: str):
    s, x, v = path_point()
    time, f = times(4, BATCH), TABLE[name]
    g, dgdt = path_derivative(lambda _, a, when: a.pow(3) * f(when.t), s, x, time, v)
    slope = {"quadratic": 2 * time.t, "linear": torch.full_like(time.t, 3.0)}[name]
    torch.testing.assert_close(g, x**3 * f(time.t))
    torch.testing.assert_close(dgdt, 3 * x**2 * v * f(time.t) + x**3 * slope)
