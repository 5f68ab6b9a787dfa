"""MeanFlowQL: who learns from which loss, the Bellman target by hand, and updates that can be repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from tiny import (
    ACTION_DIM,
    OBSERVATION_DIM,
    RESIDUAL,
    SPEC,
    Chunks,
    algorithm,
    batch,
    randn,
    snapshot,
    tiny_critic,
    tiny_dit,
    tiny_mlp,
    trainer,
    transitions,
)
from torch import Tensor, nn

from mfrl.algorithms.meanflowql import MeanFlowQL
from mfrl.algorithms.policy import one_step
from mfrl.data.batch import Batch
from mfrl.errors import ConfigError
from mfrl.learning.learner import Learner
from mfrl.learning.training import Training
from mfrl.meanflow import Times, grid_times, meanflow_loss, path_derivative
from mfrl.networks.dit import DiT
from mfrl.networks.encoder import EncodedNetwork
from mfrl.q_learning import LONGEST_PULL, unit_pull
from mfrl.randomness import Streams, indices, key_of
from mfrl.reformulation import Reformulation
from mfrl.schedules import warmup_cosine

SIZE = 6


Noise = dict[str, Any]


def noise(candidates: int = 3, size: int = SIZE, seed: int = 5) -> Noise:
    """What MeanFlowQL draws for an update, in float64."""
    index = torch.randint(4, (size,), generator=torch.Generator().manual_seed(seed))
    return {
        "flow": randn(size, ACTION_DIM, seed=seed + 1),
        "time": Times(grid_times(4, torch.empty(0)).double(), index),
        "policy": 0.3 * randn(size, ACTION_DIM, seed=seed + 2),
        "target": randn(candidates, size, ACTION_DIM, seed=seed + 3),
    }


def drawn(module: MeanFlowQL, k: int, size: int = SIZE) -> Noise:
    """What update k draws."""
    streams = Streams(module.draws(size), "update")
    numbers = streams.numbers(key_of(module.seed), torch.tensor([k]))
    return streams.values({name: x[0] for name, x in numbers.items()})


def critic_loss(module: MeanFlowQL, b: Batch, e: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    s, next_s = (
        module.encode(b.observations, "actor", "critic"),
        module.encode(b.next_observations, "actor", "target_critic"),
    )
    return module.critic_loss(b, e, s, next_s)


def policy_loss(module: MeanFlowQL, b: Batch, e: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return module.policy_loss(b, e, module.encode(b.observations, "actor", "critic"))


def flow_loss(module: MeanFlowQL, b: Batch, n: Noise) -> tuple[Tensor, dict[str, Tensor]]:
    s = module.actor.encode(b.observations)
    loss, error = meanflow_loss(module.actor, module.reformulation, s, b.actions, n["flow"], n["time"], module.settings)
    return loss, {"flow_loss": loss, "flow_error": error}


def gradients(module: nn.Module) -> dict[str, float]:
    return {name: 0.0 if p.grad is None else p.grad.abs().max().item() for name, p in module.named_parameters()}


class FreeActions(nn.Module):
    """An actor whose output is a parameter, so that its gradient is that of the actions."""

    def __init__(self, actions: Tensor) -> None:
        super().__init__()
        self.actions = nn.Parameter(actions)

    def forward(self, observations: Tensor, actions: Tensor, time: Times) -> Tensor:
        return self.actions.expand_as(actions)


# ---- who learns from what

LOSSES: dict[str, Callable[[MeanFlowQL, Batch, Noise], Tensor]] = {
    "critic": lambda m, b, n: critic_loss(m, b, n["target"])[0],
    "policy": lambda m, b, n: policy_loss(m, b, n["policy"])[0],
    "flow": lambda m, b, n: flow_loss(m, b, n)[0],
    "total": lambda m, b, n: m.loss(b, n, m.trained)[0],
}
LEARNERS = {"critic": {"critic"}, "policy": {"actor"}, "flow": {"actor"}, "total": {"actor", "critic"}}


@pytest.mark.parametrize("actor", [tiny_dit, tiny_mlp])
@pytest.mark.parametrize("normalize_q", ["none", "value", "gradient"])
@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_trains_its_networks_and_no_other(name: str, normalize_q: str, actor: Callable[..., nn.Module]):
    module = algorithm(normalize_q=normalize_q, actor=actor)
    LOSSES[name](module, batch(SIZE), noise()).backward()
    for part in ("actor", "critic", "target_critic"):
        found = gradients(getattr(module, part))
        if part in LEARNERS[name]:
            assert all(size > 0 for size in found.values()), f"{part} does not learn from {name}: {found}"
        else:
            assert all(p.grad is None for p in getattr(module, part).parameters()), f"{name} trains {part}"


def test_the_target_critic_starts_as_the_critic_and_never_asks_for_gradients():
    module = MeanFlowQL(SPEC, tiny_dit, tiny_critic, RESIDUAL, updates=10)
    pairs = list(zip(module.target_critic.parameters(), module.critic.parameters(), strict=True))
    assert all(torch.equal(t, c) and t.data_ptr() != c.data_ptr() for t, c in pairs)
    assert not any(t.requires_grad for t, _ in pairs)
    assert module.trained == ("actor", "critic")
    Learner([module], SIZE)  # whose memory the parameters take from here on
    assert all(torch.equal(t, c) and t.data_ptr() != c.data_ptr() for t, c in pairs)
    assert not any(t.requires_grad for t, _ in pairs)


def test_the_policy_loss_reaches_the_actor_through_the_critic():
    # By the chain rule: d(-mean Q)/d actor = -dQ/da da/d actor with the critic held fixed.
    module, b, e = algorithm(bound_weight=0.0), batch(SIZE), noise()["policy"]
    parameters = list(module.actor.parameters())
    got = torch.autograd.grad(policy_loss(module, b, e)[0], parameters)
    one = Times(torch.ones(SIZE, 1, dtype=torch.float64))
    a = module.actor(b.observations, e, one)
    clipped = a.detach().clamp(-1, 1).requires_grad_()
    (pull,) = torch.autograd.grad(module.critic(b.observations, clipped).mean(), clipped)
    inside = a.detach().abs() < 1
    assert inside.any()
    assert not inside.all(), "what is clipped must not be pulled: some actions should be"
    expected = torch.autograd.grad((a * -pull * inside).sum(), parameters)
    for mine, by_hand in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, by_hand, rtol=1e-9, atol=1e-12)


def test_the_total_is_the_sum_of_its_parts_with_alpha_on_the_flow_loss():
    module, b, n = algorithm(bound_weight=0.5), batch(SIZE), noise()
    critic, flow = (LOSSES[name](module, b, n) for name in ("critic", "flow"))
    _, parts = policy_loss(module, b, n["policy"])
    assert parts["bound_loss"] > 0
    for alpha in (0.0, 2.0, 300.0):
        module.alpha.alpha.fill_(alpha)
        total, metrics = module.loss(b, n, module.trained)
        torch.testing.assert_close(total, critic + parts["q_loss"] + 0.5 * parts["bound_loss"] + alpha * flow)
        assert metrics["flow_loss"] == flow
        assert metrics["critic_loss"] == critic
        assert metrics["alpha"] == alpha


@pytest.mark.parametrize("variant", [RESIDUAL, Reformulation(0.0, 1.0), Reformulation(1.0, [0.0, -1.0])])
def test_the_flow_loss_is_the_weighted_distance_to_the_identity_s_target(variant: Reformulation):
    module = algorithm(reformulation=variant, gamma_adaptive=0.4, c_adaptive=0.01, target_clip=1.5)
    b, n = batch(SIZE), noise()
    t, a, e = n["time"].t, b.actions, n["flow"]
    x, v = (1 - t) * a + t * e, e - a
    g, dgdt = path_derivative(module.actor, b.observations, x, n["time"], v)
    if variant.is_pinned:  # endpoint: g = (1 - t) a_t + t F
        g, dgdt = (1 - t) * x + t * g, -x + (1 - t) * v + g + t * dgdt
    target = variant.target(g, dgdt, v, x, e, t).detach()
    assert (target.abs() > 1.5).any()
    error = (g - target.clamp(-1.5, 1.5)).square().mean(-1)
    loss, metrics = flow_loss(module, b, n)
    torch.testing.assert_close(loss, (error * (error.detach() + 0.01) ** -0.6).mean())
    torch.testing.assert_close(metrics["flow_error"], error.detach().mean())


def test_a_variant_of_two_times_trains_and_acts():
    variant = Reformulation(1.0, -1.0, instant_share=0.5)
    module = algorithm(reformulation=variant)
    time = drawn(module, 0)["time"]
    assert (time.b <= time.t).all()
    n = noise() | {"time": Times(time.rows.double(), start=time.start.double())}
    loss, _ = module.loss(batch(SIZE), n, module.trained)
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in module.actor.network.time.parameters())
    # The action is the output for the whole interval [0, 1].
    e, b = noise()["policy"], batch(SIZE)
    whole = Times(torch.ones(1, 1, dtype=torch.float64), start=torch.zeros(1, 1, dtype=torch.float64))
    acted = one_step(module.actor, variant, b.observations, e)
    torch.testing.assert_close(acted, module.actor(b.observations, e, whole))


class WithoutJvp(nn.Module):
    """A backbone as a user would write one."""

    def __init__(self, actor: nn.Module) -> None:
        super().__init__()
        self.inner = actor

    def forward(self, observations: Tensor, actions: Tensor, time: Times) -> Tensor:
        return self.inner(observations, actions, time)


@pytest.mark.parametrize("actor", [tiny_dit, tiny_mlp])
def test_an_actor_without_a_jvp_of_its_own_learns_the_same(actor: Callable[..., nn.Module]):
    module, b, n = algorithm(actor=actor), batch(SIZE), noise()
    parameters = list(module.actor.parameters())
    loss = flow_loss(module, b, n)[0]
    expected = torch.autograd.grad(loss, parameters)
    module.actor.network = WithoutJvp(module.actor.network)
    plain = flow_loss(module, b, n)[0]
    torch.testing.assert_close(plain, loss, rtol=1e-9, atol=0)
    for mine, other in zip(torch.autograd.grad(plain, parameters), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


# ---- the Bellman target


def bellman_targets(module: MeanFlowQL, b: Batch, e: Tensor, aggregate: Callable[[Tensor], Tensor]) -> Tensor:
    """r + discount mask Q(s', a'), one transition and one candidate at a time."""
    one = Times(torch.ones(1, 1, dtype=torch.float64))
    y = []
    for i in range(len(b.actions)):
        s = b.next_observations[[i]]
        values = []
        for e_n in e:
            g = module.actor(s, e_n[[i]], one)
            u = module.reformulation.average_velocity(g, e_n[[i]], e_n[[i]], one.t)
            values.append(module.target_critic(s, (e_n[[i]] - u).clamp(-1, 1))[:, 0])
        best = max(values, key=lambda q: q.mean().item())
        y.append(b.rewards[i] + module.discount * b.masks[i] * aggregate(best))
    return torch.stack(y).detach()


@pytest.mark.parametrize("variant", [RESIDUAL, Reformulation(0.0, 1.0)])
@pytest.mark.parametrize("how", ["mean", "min"])
def test_the_bellman_target_is_the_one_of_a_loop(how: str, variant: Reformulation):
    module = algorithm(q_aggregation=how, discount=0.9, num_candidates=3, reformulation=variant)
    b, e = batch(20, discount=0.9), noise(size=20)["target"]
    aggregate = {"mean": torch.mean, "min": torch.min}[how]
    y = bellman_targets(module, b, e, aggregate)
    torch.testing.assert_close(y[b.masks == 0], b.rewards[b.masks == 0])
    loss, metrics = critic_loss(module, b, e)
    q = module.critic(b.observations, b.actions)
    torch.testing.assert_close(loss, ((q - y) ** 2).mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(metrics["target"], y.mean(), rtol=1e-10, atol=0)
    # The gradient is that of the critic alone: y is a constant.
    for p, wanted in zip(
        module.critic.parameters(),
        torch.autograd.grad(((q - y) ** 2).mean(), list(module.critic.parameters())),
        strict=True,
    ):
        (got,) = torch.autograd.grad(loss, p, retain_graph=True)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("bias", "limit"), [(1000.0, 0.0), (-1000.0, -10.0)])
def test_clipped_targets_stay_within_what_rewards_can_add_up_to(bias: float, limit: float):
    # Rewards lie in [-1, 0] and the discount is 0.9: no return leaves [-10, 0].
    b, e = batch(SIZE, discount=0.9), noise()["target"]
    clipped, free = (algorithm(clip_targets=clip, discount=0.9, num_candidates=3) for clip in (True, False))
    for module in (clipped, free):
        module.target_critic.network.head_bias.data.fill_(bias)
    y = torch.where(b.masks > 0, limit, b.rewards)
    loss, metrics = critic_loss(clipped, b, e)
    torch.testing.assert_close(metrics["target"], y.mean())
    torch.testing.assert_close(loss, (clipped.critic(b.observations, b.actions) - y).square().mean())
    assert critic_loss(free, b, e)[1]["target"].abs() > 100


def test_target_candidates_are_counted_apart_from_those_when_acting():
    both = algorithm(num_candidates=5)
    apart = algorithm(num_candidates=5, target_candidates=2)
    assert (drawn(both, 0)["target"].shape, both.policy().num_candidates) == ((5, SIZE, ACTION_DIM), 5)
    assert (drawn(apart, 0)["target"].shape, apart.policy().num_candidates) == ((2, SIZE, ACTION_DIM), 5)
    assert drawn(algorithm(num_candidates=1, target_candidates=4), 0)["target"].shape[0] == 4


def test_the_policy_acts_with_the_networks_in_training():
    module = algorithm(num_candidates=4, sigma=0.7)
    acting = module.policy()
    assert acting.actor is module.actor
    assert acting.critic is module.target_critic
    assert acting.reformulation is module.reformulation
    assert acting.sigma == 0.7
    torch.testing.assert_close(acting.normalizer.mean, torch.tensor(SPEC.observation_mean, dtype=torch.float64))
    torch.testing.assert_close(acting.normalizer.std, torch.tensor(SPEC.observation_std, dtype=torch.float64))


def test_what_no_rewards_can_add_up_to_does_not_choose_where_candidates_are_clipped():
    assert algorithm(discount=0.9).policy().ceiling == math.inf
    assert algorithm(discount=0.9, clip_candidates=True).policy().ceiling == 0.0  # rewards from -1 to 0
    spec = replace(SPEC, reward_min=-1.0, reward_max=2.0)
    module = MeanFlowQL(spec, tiny_dit, tiny_critic, RESIDUAL, updates=10, discount=0.9, clip_candidates=True)
    assert module.policy().ceiling == pytest.approx(20.0)


# ---- normalised Q


def pull_on_actions(scale: float, normalize_q: str, actions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gradients of the policy loss and of Q with respect to the actions, the critic's values times ``scale``."""
    b = batch(SIZE)
    free = FreeActions((0.8 * b.actions.roll(1, 0)) if actions is None else actions)
    module = algorithm(normalize_q=normalize_q)
    module.actor = EncodedNetwork(free)
    module.critic.network.head_weight.data *= scale
    module.critic.network.head_bias.data *= scale
    loss, _ = policy_loss(module, b, noise()["policy"])
    (pull,) = torch.autograd.grad(loss, free.actions)
    clipped = free.actions.detach().clamp(-1, 1).requires_grad_()
    (of_q,) = torch.autograd.grad(module.critic(b.observations, clipped).mean(0).sum(), clipped)
    return pull, of_q


def test_gradient_normalisation_gives_the_critic_s_pull_a_mean_length_of_one():
    pull, of_q = pull_on_actions(1.0, "gradient")
    assert of_q.norm(dim=-1).mean() < 0.9 or of_q.norm(dim=-1).mean() > 1.1
    torch.testing.assert_close((SIZE * pull).norm(dim=-1).mean(), torch.tensor(1.0, dtype=torch.float64))
    # Directions and relative lengths are those of dQ/da, uphill.
    torch.testing.assert_close(-SIZE * pull, of_q / of_q.norm(dim=-1).mean())


def test_gradient_normalisation_does_not_pull_what_is_clipped():
    actions = 0.5 * randn(SIZE, ACTION_DIM, seed=3).clamp(-1.5, 1.5)
    actions[0, 0], actions[1] = 2.0, -2.0
    module = algorithm(normalize_q="gradient", bound_weight=0.0)
    module.actor = EncodedNetwork(FreeActions(actions))
    loss, _ = policy_loss(module, batch(SIZE), noise()["policy"])
    (pull,) = torch.autograd.grad(loss, module.actor.network.actions)
    assert pull[0, 0] == 0
    assert pull[0, 1] != 0
    assert not pull[1].any()
    torch.testing.assert_close(pull.norm(dim=-1).sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize(("normalize_q", "growth"), [("gradient", 1.0), ("value", 1.0), ("none", 1000.0)])
def test_normalised_q_keeps_the_balance_of_policy_and_flow_at_any_reward_scale(normalize_q: str, growth: float):
    pull, _ = pull_on_actions(1.0, normalize_q)
    scaled, _ = pull_on_actions(1000.0, normalize_q)
    assert pull.norm() > 1e-4
    torch.testing.assert_close(scaled, growth * pull, rtol=1e-9, atol=0)


def test_value_normalisation_divides_by_the_mean_absolute_value_as_a_constant():
    pull, of_q = pull_on_actions(1.0, "value")
    module, b = algorithm(), batch(SIZE)
    q = module.critic(b.observations, 0.8 * b.actions.roll(1, 0)).mean(0)
    assert q.min() < 0 < q.max() or q.max() < 0 or q.min() > 0
    torch.testing.assert_close(pull, -of_q / SIZE / q.abs().mean().detach())


def test_the_bound_loss_is_not_scaled_by_gradient_normalisation():
    actions = torch.full((SIZE, ACTION_DIM), 1.5, dtype=torch.float64)
    pull, _ = pull_on_actions(1.0, "gradient", actions)  # all clipped: only the bound loss pulls
    torch.testing.assert_close(pull, torch.full_like(pull, 1.0 / pull.numel()))


def test_one_action_at_a_cliff_does_not_take_the_pull_of_its_batch():
    gradient = randn(64, ACTION_DIM)
    gradient[3] *= 1e6 / gradient[3].norm()
    gradient[:20:5] = 0.0  # clipped actions
    pull = unit_pull(gradient)
    length, before = 64 * pull.norm(dim=-1), gradient.norm(dim=-1)
    torch.testing.assert_close(length.mean(), torch.tensor(1.0, dtype=torch.float64))
    median = before[before > 0].median()
    others = (before < LONGEST_PULL * median) & (before > 0)
    assert others.sum() == 59
    torch.testing.assert_close(length[3], LONGEST_PULL * (length[others] / before[others] * median).mean())
    # Among the others relative lengths and directions stay, and nearly all of the pull is theirs.
    torch.testing.assert_close(pull[others] / gradient[others], pull[1, 0].div(gradient[1, 0]).expand(59, ACTION_DIM))
    assert length[others].sum() > 0.8 * 64


def test_unit_pull_survives_a_critic_without_slope():
    flat = torch.zeros(SIZE, ACTION_DIM)
    assert torch.equal(unit_pull(flat), flat)
    module = algorithm(normalize_q="gradient", bound_weight=0.0)
    module.critic.network.head_weight.data.zero_()
    loss, _ = policy_loss(module, batch(SIZE), noise()["policy"])
    assert not any(g.any() for g in torch.autograd.grad(loss, list(module.actor.parameters())))


def test_the_median_is_of_what_is_pulled_however_little_that_is():
    for pulled in range(1, 6):
        gradient = torch.zeros(6, ACTION_DIM, dtype=torch.float64)
        gradient[:pulled] = randn(pulled, ACTION_DIM)
        length = gradient[:pulled].norm(dim=-1)
        kept = length.minimum(LONGEST_PULL * length.median())
        wanted = torch.cat([kept / kept.sum(), torch.zeros(6 - pulled)])
        torch.testing.assert_close(unit_pull(gradient).norm(dim=-1), wanted)


# ---- settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"q_aggregation": "men"}, r"algo\.q_aggregation=men .*did you mean mean"),
        ({"alpha_schedule": "dynamc"}, r"algo\.alpha_schedule=dynamc .*did you mean dynamic"),
        ({"actor_average": 0.0}, r"algo\.actor_average=0\.0 must be in \(0, 1\], or null"),
        ({"actor_average": math.nan}, r"algo\.actor_average=nan must be in \(0, 1\], or null"),
        ({"normalize_q": "grad"}, r"algo\.normalize_q=grad .*none, value, gradient.*did you mean gradient"),
        ({"discount": 1.0}, r"algo\.discount=1\.0 must be in \[0, 1\)"),
        ({"discount": math.nan}, r"algo\.discount=nan"),
        ({"discount": -0.1}, r"algo\.discount=-0\.1"),
        ({"tau": 0.0}, r"algo\.tau=0\.0 must be in \(0, 1\]"),
        ({"tau": 1.5}, r"algo\.tau=1\.5"),
        ({"alpha": -1.0}, r"algo\.alpha=-1\.0 must be at least 0"),
        ({"alpha": math.nan}, r"algo\.alpha=nan"),
        ({"num_candidates": 0}, r"algo\.num_candidates=0 must be .*at least 1"),
        ({"target_candidates": 0}, r"algo\.target_candidates=0 must be .*at least 1"),
        ({"time_steps": 0}, r"algo\.time_steps=0 must be .*at least 1"),
        ({"sigma": 0.0}, r"algo\.sigma=0\.0 must be positive"),
        ({"gamma_adaptive": math.nan}, r"algo\.gamma_adaptive=nan must be at least 0"),
        ({"bound_weight": -5}, r"algo\.bound_weight=-5 must be at least 0"),
        ({"actor_lr_floor": -3}, r"algo\.actor_lr_floor=-3 must be in \[0, 1\]"),
        ({"updates": -1}, r"updates=-1 must be .*at least 0"),
        ({"seed": 0.5}, r"seed=0\.5 must be at least 0, and a whole number"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        algorithm(**setting)


def test_a_misspelt_setting_is_refused_by_name():
    with pytest.raises(TypeError, match="discuont"):
        algorithm(discuont=0.9)


def test_settings_at_the_edge_of_their_range_are_accepted():
    algorithm(discount=0.0, tau=1.0, alpha=0.0, num_candidates=1, target_candidates=1, time_steps=1)


# ---- random numbers of an update


def flat(n: Noise) -> list[Tensor]:
    time = n["time"]
    return [n["flow"], n["policy"], n["target"], time.rows, *([] if time.index is None else [time.index])]


@pytest.mark.parametrize("time_steps", [50, None])
def test_noise_depends_on_seed_and_update_alone(time_steps: int | None):
    first, other = (algorithm(seed=3, time_steps=time_steps) for _ in range(2))
    torch.manual_seed(1)
    wanted = flat(drawn(first, 7))
    torch.manual_seed(2)
    for k in (0, 7, 8):
        drawn(other, k)
    assert all(torch.equal(x, y) for x, y in zip(wanted, flat(drawn(other, 7)), strict=True))
    for different in (drawn(other, 8), drawn(algorithm(seed=4, time_steps=time_steps), 7)):
        assert not torch.equal(different["flow"], wanted[0])
        assert not torch.equal(different["time"].t, drawn(first, 7)["time"].t)


def test_noise_has_the_deviation_sigma_and_its_parts_are_independent():
    n = drawn(algorithm(sigma=0.5, num_candidates=2), 0, 20_000)
    flow, policy, target = n["flow"], n["policy"], n["target"]
    for part in (flow, policy, target):
        assert part.std().item() == pytest.approx(0.5, rel=0.03)
    columns = torch.stack([flow[:, 0], policy[:, 0], target[0, :, 0], target[1, :, 0], n["time"].t[:, 0]])
    assert (columns.corrcoef() - torch.eye(5)).abs().max() < 0.05


def test_times_are_drawn_from_the_grid_evenly_or_from_the_open_interval():
    n = 20_000
    grid = drawn(algorithm(time_steps=4), 0, n)["time"].t
    assert sorted(grid.unique().tolist()) == [0.25, 0.5, 0.75, 1.0]
    assert all(abs((grid == t).double().mean() - 0.25) < 0.02 for t in (0.25, 0.5, 0.75, 1.0))
    free = drawn(algorithm(time_steps=None), 0, n)["time"].t
    assert 0 < free.min() < 0.01
    assert 0.99 < free.max() < 1
    assert free.mean().item() == pytest.approx(0.5, abs=0.02)


# ---- updates in a real Trainer


def chunks(updates: int, chunk: int, seed: int = 0) -> Chunks:
    return Chunks(transitions(), updates, chunk, seed=seed, discount=0.995)


class Recorder(L.Callback):
    """Parameters, rates and gradients around every chunk, which holds one update where rates and gradients count."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.rates: list[dict[str, float]] = []
        self.norms: list[dict[str, float]] = []
        self._before: dict[str, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        self.states.append(snapshot(pl_module))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        self.rates.append(pl_module.learner.rates())
        self._before = pl_module.learner.state_dict()["adam"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        self.states.append(snapshot(pl_module))
        after = pl_module.learner.state_dict()["adam"]
        self.norms.append({name: self._norm(self._before[name], after[name]) for name in after})

    @staticmethod
    def _norm(before: dict[str, Any], after: dict[str, Any]) -> float:
        """Of the gradient that a step has taken in, by the first moment: m <- 0.9 m + 0.1 g."""
        taken = [(m - 0.9 * before["exp_avg"][name]) / 0.1 for name, m in after["exp_avg"].items()]
        return torch.nn.utils.get_total_norm(taken).item()


def fresh(seed: int = 0, **settings: Any) -> MeanFlowQL:
    torch.manual_seed(seed)
    chosen = {"updates": 20, "actor_lr": 1e-2, "critic_lr": 1e-2, "tau": 0.1} | settings
    return MeanFlowQL(SPEC, tiny_dit, tiny_critic, RESIDUAL, seed=seed, **chosen)


def fit(last: int, chunk: int, seed: int = 0, **settings: Any) -> tuple[Training, Recorder]:
    module, recorder = Training(fresh(seed, **settings), 16), Recorder()
    trainer(recorder).fit(module, datamodule=chunks(last, chunk, seed))
    assert module.updates == module.algorithm.k == last
    return module, recorder


def same(x: dict[str, Tensor], y: dict[str, Tensor]) -> bool:
    return x.keys() == y.keys() and all(torch.equal(x[name].nan_to_num(7), y[name].nan_to_num(7)) for name in x)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name].nan_to_num(7), after[name].nan_to_num(7))}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("ERROR", logger="lightning.pytorch"):
        yield


def test_chunks_of_any_size_give_the_same_parameters_bit_for_bit():
    settings = {"alpha_schedule": "cosine", "num_candidates": 3}
    one, eight, whole = (fit(12, chunk, **settings)[0] for chunk in (1, 8, 12))
    assert same(snapshot(one), snapshot(eight))
    assert same(snapshot(one), snapshot(whole))
    assert {"actor", "critic", "target_critic", "alpha"} <= {
        name.split(".")[0] for name in moved(snapshot(fresh(**settings)), snapshot(one))
    }


def test_a_seed_repeats_a_run_and_another_seed_does_not():
    first, again, other = (snapshot(fit(4, 4, seed)[0]) for seed in (0, 0, 1))
    assert same(first, again)
    assert {name.split(".")[0] for name in moved(first, other)} == {"actor", "critic", "target_critic"}


class Noting(MeanFlowQL):
    """Keeps the noise and the first batch's actions of every update."""

    seen: ClassVar[list[tuple[Noise, Tensor]]] = []

    def loss(self, batch: Batch, noise: Noise, trained: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append((noise, batch.actions))
        return super().loss(batch, noise, trained)


def test_every_update_draws_its_own_noise_and_its_own_batch():
    Noting.seen.clear()
    module = Noting(SPEC, tiny_dit, tiny_critic, RESIDUAL, updates=20, seed=3)
    trainer().fit(Training(module, 16), datamodule=chunks(11, 3, seed=3))  # over the end of what is drawn together
    rows = indices(key_of(3), "batch", torch.arange(11), 16, len(transitions()))
    assert len(Noting.seen) == 11
    for k, (noise, actions) in enumerate(Noting.seen):
        for mine, alone in zip(flat(noise), flat(drawn(module, k, 16)), strict=True):
            torch.testing.assert_close(mine, alone, rtol=1e-5, atol=1e-6)
        assert torch.equal(actions, transitions()[rows[k]].actions)
    assert len({noise["flow"].sum().item() for noise, _ in Noting.seen}) == 11


def test_after_an_update_the_target_critic_is_the_average_and_nothing_else_moved_it():
    _, recorder = fit(6, 1, tau=0.1)
    names = [name.removeprefix("critic.") for name in recorder.states[0] if name.startswith("critic.")]
    for before, after in zip(recorder.states[:-1], recorder.states[1:], strict=True):
        assert moved(before, after) >= {f"critic.{n}" for n in names}
        for n in names:
            wanted = 0.9 * before[f"target_critic.{n}"].double() + 0.1 * after[f"critic.{n}"].double()
            got = after[f"target_critic.{n}"].double()
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): x.double() for key, x in state.items() if key.startswith(f"{name}.")}


def test_the_averaged_actor_is_the_mean_of_the_first_weights_and_then_an_exponential_average():
    module, recorder = fit(7, 1, actor_average=0.25, actor_warmup=0.0, actor_lr=1e-2)
    actors = [part(state, "actor") for state in recorder.states[1:]]
    averages = [part(state, "averaged_actor") for state in recorder.states[1:]]
    for name, x in averages[-1].items():
        mean_of_four = torch.stack([a[name] for a in actors[:4]]).mean(0)
        torch.testing.assert_close(averages[3][name], mean_of_four, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(x, 0.75 * averages[5][name] + 0.25 * actors[6][name], rtol=1e-6, atol=1e-7)
    assert not any(p.requires_grad for p in module.algorithm.averaged_actor.parameters())
    assert module.policy().actor is module.algorithm.averaged_actor


def test_averaging_what_acts_changes_nothing_of_the_training():
    plain, averaged = fit(6, 3)[0], fit(6, 3, actor_average=0.1)[0]
    left_out = {k: x for k, x in snapshot(averaged).items() if not k.startswith("averaged_actor.")}
    assert same(snapshot(plain), left_out)
    assert plain.policy().actor is plain.algorithm.actor


def test_rates_follow_their_schedules_by_update():
    _, recorder = fit(12, 1, updates=12, actor_warmup=0.25, actor_lr=1e-2, critic_lr=3e-3)
    for k, rates in enumerate(recorder.rates):
        wanted = 1e-2 * warmup_cosine(torch.tensor(k, dtype=torch.float64), 12, 0.25, 0.1).item()
        assert rates == pytest.approx({"actor": wanted, "critic": 3e-3}, rel=1e-6)
    actors = [{n: x for n, x in state.items() if n.startswith("actor.")} for state in recorder.states]
    assert not moved(actors[0], actors[1]), "the first update has a rate of zero"
    assert moved(actors[1], actors[2])


def test_gradients_of_actor_and_critic_are_clipped_apart():
    _, free = fit(3, 1, max_grad_norm=1e9)
    assert all(norm > 1e-2 for norms in free.norms for norm in norms.values())
    _, clipped = fit(3, 1, max_grad_norm=1e-2)
    for norms in clipped.norms:
        assert norms == pytest.approx({"actor": 1e-2, "critic": 1e-2}, rel=1e-3)
    # What is logged is the norm before clipping.
    for limit, recorded in ((1e9, free), (1e-2, clipped)):
        metrics = fit(1, 1, max_grad_norm=limit)[0].pop_metrics()
        for name, norm in recorded.norms[0].items():
            assert metrics[f"{name}_grad_norm"] == pytest.approx(free.norms[0][name], rel=1e-4)
            assert norm <= limit * 1.001


def test_the_learner_makes_the_updates_that_pytorch_s_own_optimisers_make():
    settings = {"updates": 20, "actor_lr": 3e-3, "critic_lr": 1e-3, "alpha_schedule": "cosine", "actor_average": 0.3}
    settings |= {"normalize_q": "gradient", "max_grad_norm": 0.5}
    learnt, by_hand = fit(20, 4, **settings)[0].algorithm, fresh(**settings)
    adams = {name: torch.optim.Adam(getattr(by_hand, name).parameters()) for name in ("actor", "critic")}
    rows, data = indices(key_of(0), "batch", torch.arange(20), 16, len(transitions())), transitions()
    for k in range(20):
        loss, metrics = by_hand.loss(data.gather(rows[k], 0.995), drawn(by_hand, k, 16), by_hand.trained)
        for adam in adams.values():
            adam.zero_grad()
        loss.backward()
        adams["actor"].param_groups[0]["lr"] = 3e-3 * warmup_cosine(torch.tensor(float(k)), 20, 0.05, 0.1).item()
        adams["critic"].param_groups[0]["lr"] = 1e-3
        for name, adam in adams.items():
            torch.nn.utils.clip_grad_norm_(getattr(by_hand, name).parameters(), 0.5)
            adam.step()
        with torch.no_grad():
            for target, source, rate in (
                (by_hand.target_critic, by_hand.critic, 0.1),
                (by_hand.averaged_actor, by_hand.actor, max(0.3, 1 / (k + 1))),
            ):
                for mine, other in zip(target.parameters(), source.parameters(), strict=True):
                    mine += rate * (other - mine)
            for name, value in by_hand.alpha.after(torch.tensor(k), metrics["flow_loss"]).items():
                getattr(by_hand.alpha, name).copy_(value)
    start = fresh(**settings).state_dict()
    for name, wanted in by_hand.state_dict().items():
        torch.testing.assert_close(learnt.state_dict()[name], wanted, rtol=1e-4, atol=2e-6, msg=name)
        if "normalizer" not in name and "start" not in name:
            assert (wanted - start[name]).abs().max() > 1e-4, name


def test_what_is_logged_are_means_over_the_updates_of_a_window():
    module, recorder = fit(6, 6, alpha_schedule="cosine", alpha=5.0, updates=6)
    metrics = module.pop_metrics()
    alphas = [5.0 * (0.1 + 0.45 * (1 + math.cos(math.pi * k / 6))) for k in range(6)]  # as used by update k
    assert metrics["alpha"] == pytest.approx(sum(alphas) / 6)
    assert module.pop_metrics() == {}
    assert metrics["critic_loss"] > 0
    assert len(recorder.states) == 2


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_run_that_is_resumed_ends_where_an_uninterrupted_one_does(tmp_path: Any, chunk: int):
    settings = {"alpha_schedule": "dynamic", "updates": 12, "actor_average": 0.2}
    straight, _ = fit(12, chunk, **settings)
    half, first = Training(fresh(**settings), 16), trainer()
    first.fit(half, datamodule=chunks(6, chunk))
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Training(fresh(seed=0, **settings), 16)
    trainer().fit(resumed, datamodule=chunks(12, chunk), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert resumed.updates == 12
    assert same(snapshot(resumed), snapshot(straight))
    assert not same(snapshot(half), snapshot(straight))
    of_adam, wanted = resumed.learner.state_dict()["adam"], straight.learner.state_dict()["adam"]
    for name in ("actor", "critic"):
        assert of_adam[name]["step"] == wanted[name]["step"] == 12
        assert all(same(of_adam[name][moment], wanted[name][moment]) for moment in ("exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("variant", [RESIDUAL, Reformulation(0.0, 1.0)])
def test_flow_training_alone_learns_the_action_of_a_dataset_with_one(variant: Reformulation):
    # All data actions equal a*: the average velocity is e - a*, and one step from any noise is a*.
    torch.manual_seed(0)
    module = MeanFlowQL(SPEC, partial(DiT, width=32, depth=1), tiny_critic, variant, updates=250, time_steps=4)
    wanted = torch.tensor([0.8, -0.7])
    b = batch(256, dtype=torch.float32)._replace(actions=wanted.expand(256, 2))
    optimizer = torch.optim.Adam(module.actor.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
    e = drawn(module, 999, 256)["policy"][None]

    def distance() -> float:
        with torch.no_grad():
            return (module.policy().candidates(b.observations, e) - wanted).square().mean().sqrt().item()

    assert distance() > 0.7
    for k in range(250):
        optimizer.zero_grad()
        flow_loss(module, b, drawn(module, k, 256))[0].backward()
        optimizer.step()
        schedule.step()
    assert distance() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("variant", [RESIDUAL, Reformulation(0.0, 1.0)])
def test_compiled_updates_are_the_eager_ones(variant: Reformulation):
    settings = {"normalize_q": "gradient", "alpha_schedule": "cosine", "actor_average": 0.2, "actor_lr": 1e-3}

    def trained(compiled: bool) -> tuple[dict[str, Tensor], Tensor, tuple[str, ...]]:
        torch.manual_seed(0)
        module = MeanFlowQL(SPEC, tiny_dit, tiny_critic, variant, updates=20, **settings)
        learner = Learner([module], 32, compiled)
        for k in range(5):
            names, values = learner.update(batch(32, seed=k, dtype=torch.float32))
        return snapshot(module), values, names

    (eager, wanted, names), (fast, values, same_names) = trained(False), trained(True)
    assert names == same_names
    torch.testing.assert_close(values, wanted, rtol=1e-3, atol=1e-5)
    for name, x in eager.items():
        torch.testing.assert_close(fast[name], x, rtol=1e-3, atol=1e-5, msg=name)


def test_observations_of_a_batch_are_taken_as_normalised():
    module, b = algorithm(), batch(SIZE)
    assert b.observations.shape[1] == OBSERVATION_DIM
    q = module.critic(b.observations, b.actions).mean()
    torch.testing.assert_close(critic_loss(module, b, noise()["target"])[1]["q"], q)
