"""Baselines with values, and BC: losses against small cases by hand, and who learns from what."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiny import ACTION_DIM, RESIDUAL, SPEC, batch, noise_of, randomise_, tiny_critic, tiny_mlp
from torch import Tensor

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.bc import BC
from mfrl.algorithms.driftql import DriftQL, drift_field
from mfrl.algorithms.fbrac import FBRAC
from mfrl.algorithms.flow_matching import euler, student_action
from mfrl.algorithms.ifql import IFQL
from mfrl.algorithms.iql import IQL, LARGEST_WEIGHT, log_probability
from mfrl.algorithms.meanflow_distill import MeanFlowDistill
from mfrl.algorithms.policy import one_step
from mfrl.algorithms.rebrac import ReBRAC
from mfrl.data.batch import Batch
from mfrl.meanflow import Times
from mfrl.networks.critic import StateValue
from mfrl.networks.mean import MeanMLP
from mfrl.networks.vector_field import VectorField
from mfrl.q_learning import best_of_n, expectile_loss, q_loss

SIZE = 10
field = partial(VectorField, hidden=[16, 16])
mean = partial(MeanMLP, hidden=[16, 16])
value = partial(StateValue, hidden=[16, 16])

MAKERS: dict[str, Callable[..., Algorithm]] = {
    "bc": partial(BC, actor=mean),
    "iql": partial(IQL, actor=mean, critic=tiny_critic, value=value),
    "iql, ddpgbc": partial(IQL, actor=mean, critic=tiny_critic, value=value, extraction="ddpgbc"),
    "ifql": partial(IFQL, actor=field, critic=tiny_critic, value=value, flow_steps=3, num_candidates=4),
    "rebrac": partial(ReBRAC, actor=partial(mean, squash=True), critic=tiny_critic, alpha_critic=0.3),
    "fbrac": partial(FBRAC, actor=field, critic=tiny_critic, flow_steps=3),
    "driftql": partial(DriftQL, actor=field, critic=tiny_critic, num_generated=3),
    "meanflow_distill": partial(MeanFlowDistill, actor=tiny_mlp, critic=tiny_critic, reformulation=RESIDUAL),
}


def make(name: str, **settings: object) -> Algorithm:
    """In float32, every parameter away from its start; targets differ from what they follow."""
    torch.manual_seed(0)
    return randomise_(MAKERS[name](spec=SPEC, updates=10, **settings), seed=1, scale=0.2)


def data() -> Batch:
    """Transitions of which every third is the last of its trajectory."""
    one = batch(SIZE, dtype=torch.float32)
    ends = torch.arange(SIZE)[:, None] % 3 == 0
    return one._replace(next_actions=torch.where(ends, torch.nan, one.actions.flip(0)))


def parts(algorithm: Algorithm, b: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    return algorithm.loss(b, noise_of(algorithm, 0, SIZE), algorithm.trained)


# ---- the expectile


def test_the_expectile_loss_is_least_at_the_expectile() -> None:
    q = torch.tensor([0.0, 0.0, 0.0, 10.0], dtype=torch.float64)
    for expectile, wanted in ((0.5, 2.5), (0.9, 7.5)):  # v solves tau sum (q - v)+ = (1 - tau) sum (v - q)+
        v = torch.tensor(wanted, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(expectile_loss(q - v, expectile), v)
        assert abs(slope) < 1e-12
    by_hand = (0.1 * 4.0 + 0.9 * 9.0) / 2
    assert expectile_loss(torch.tensor([-2.0, 3.0]), 0.9).item() == pytest.approx(by_hand)


# ---- who learns from what

LEARNS = {
    "bc": {"bc_loss": {"actor"}},
    "iql": {"value_loss": {"value"}, "critic_loss": {"critic"}, "awr_loss": {"actor"}},
    "iql, ddpgbc": {
        "value_loss": {"value"},
        "critic_loss": {"critic"},
        "q_loss": {"actor"},
        "log_probability": {"actor"},
    },
    "ifql": {"value_loss": {"value"}, "critic_loss": {"critic"}, "flow_loss": {"actor"}},
    "rebrac": {"critic_loss": {"critic"}, "q_loss": {"actor"}, "bc_loss": {"actor"}},
    "fbrac": {"critic_loss": {"critic"}, "flow_loss": {"actor"}, "q_loss": {"actor"}},
    "driftql": {"critic_loss": {"critic"}, "drift_loss": {"actor"}, "q_loss": {"actor"}},
    "meanflow_distill": {
        "critic_loss": {"critic"},
        "flow_loss": {"flow"},
        "distillation_loss": {"actor"},
        "q_loss": {"actor"},
    },
}


@pytest.mark.parametrize("name", MAKERS)
def test_each_network_learns_from_its_own_terms_alone(name: str) -> None:
    algorithm = make(name)
    _, scalars = parts(algorithm, data())
    for term, wanted in LEARNS[name].items():
        moved = set()
        for network in algorithm.trained:
            found = torch.autograd.grad(
                scalars[term], list(getattr(algorithm, network).parameters()), allow_unused=True, retain_graph=True
            )
            if any(g is not None and g.abs().max() > 0 for g in found):
                moved.add(network)
        assert moved == wanted, term


@pytest.mark.parametrize("name", MAKERS)
def test_the_loss_is_the_sum_of_its_terms(name: str) -> None:
    algorithm = make(name)
    loss, s = parts(algorithm, data())
    c = algorithm.settings
    wanted = {
        "bc": lambda: s["bc_loss"],
        "iql": lambda: s["value_loss"] + s["critic_loss"] + s["awr_loss"],
        "iql, ddpgbc": lambda: s["value_loss"] + s["critic_loss"] + s["q_loss"] - c.alpha * s["log_probability"],
        "ifql": lambda: s["value_loss"] + s["critic_loss"] + s["flow_loss"],
        "rebrac": lambda: s["critic_loss"] + s["q_loss"] + c.alpha * s["bc_loss"],
        "fbrac": lambda: s["critic_loss"] + c.alpha * s["flow_loss"] + s["q_loss"],
        "driftql": lambda: s["critic_loss"] + c.alpha * s["drift_loss"] + s["q_loss"],
        "meanflow_distill": lambda: s["critic_loss"] + s["flow_loss"] + c.alpha * s["distillation_loss"] + s["q_loss"],
    }[name]()
    torch.testing.assert_close(loss, wanted)


# ---- IQL


def test_iql_s_values_are_of_the_data_s_own_actions() -> None:
    algorithm, b = make("iql"), data()
    _, scalars = parts(algorithm, b)
    v, next_v = algorithm.value(b.observations), algorithm.value(b.next_observations)
    q = algorithm.target_critic(b.observations, b.actions).min(0).values
    u = q - v
    weight = torch.where(u < 0, 0.1, 0.9)
    torch.testing.assert_close(scalars["value_loss"], (weight * u**2).mean())
    y = b.rewards + 0.99 * b.masks * next_v
    wanted = (algorithm.critic(b.observations, b.actions) - y).square().mean()
    torch.testing.assert_close(scalars["critic_loss"], wanted)


def test_awr_weighs_the_data_s_actions_by_their_advantage_up_to_a_limit() -> None:
    b = data()
    for alpha in (0.0, 3.0, 1e4):
        algorithm = make("iql", alpha=alpha)
        _, scalars = parts(algorithm, b)
        with torch.no_grad():
            advantage = algorithm.critic(b.observations, b.actions).min(0).values - algorithm.value(b.observations)
            mu = algorithm.actor(b.observations)
            weight = torch.exp(alpha * advantage).clamp(max=LARGEST_WEIGHT)
            normal = torch.distributions.Normal(mu, 1.0).log_prob(b.actions).sum(-1)
        torch.testing.assert_close(scalars["awr_loss"], -(weight * normal).mean())
        torch.testing.assert_close(log_probability(mu, b.actions), normal)
        assert weight.max() <= LARGEST_WEIGHT
        if alpha == 1e4:
            assert (advantage > 0).any()
            assert weight.max() == LARGEST_WEIGHT


# ---- ReBRAC


def test_rebrac_s_target_is_penalised_but_where_a_trajectory_ends() -> None:
    algorithm, b = make("rebrac"), data()
    e = noise_of(algorithm, 0, SIZE)["target"]
    _, scalars = parts(algorithm, b)
    with torch.no_grad():
        a = (algorithm.target_actor(b.next_observations) + e.clamp(-0.5, 0.5)).clamp(-1.0, 1.0)
        q = algorithm.target_critic(b.next_observations, a).min(0).values
        distance = (a - b.next_actions).square().sum(-1)
        distance[b.next_actions[:, 0].isnan()] = 0.0
        y = b.rewards + 0.99 * b.masks * (q - 0.3 * distance)
        wanted = (algorithm.critic(b.observations, b.actions) - y).square().mean()
    assert e.abs().max() > 0.2, "there is noise"
    torch.testing.assert_close(scalars["critic_loss"], wanted)
    torch.testing.assert_close(scalars["next_distance_to_data"], distance.mean())


def test_rebrac_s_policy_is_pulled_by_the_smaller_value_of_mean_size_1() -> None:
    algorithm, b = make("rebrac"), data()
    _, scalars = parts(algorithm, b)
    mu = algorithm.actor(b.observations)
    q = algorithm.critic(b.observations, mu).min(0).values
    torch.testing.assert_close(scalars["q_loss"], -(q / q.abs().mean().detach()).mean())
    torch.testing.assert_close(scalars["bc_loss"], (mu - b.actions).square().sum(-1).mean())
    parameters = list(algorithm.actor.parameters())
    wanted = torch.autograd.grad(-(q / q.abs().mean().detach()).mean(), parameters, retain_graph=True)
    for one, other in zip(torch.autograd.grad(scalars["q_loss"], parameters), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_rebrac_steps_the_policy_and_the_targets_in_every_second_update() -> None:
    algorithm = make("rebrac")
    critic, actor = algorithm.groups
    assert [critic.steps_at(k) for k in range(5)] == [True] * 5
    assert [actor.steps_at(k) for k in range(5)] == [False, True, False, True, False]
    for average in algorithm.averages:
        assert [average.follows_at(k) for k in range(5)] == [False, True, False, True, False]


# ---- flows


def test_euler_steps_follow_a_flow_that_is_known() -> None:
    def velocity(s: Tensor, a: Tensor, time: Times) -> Tensor:
        return a  # d a / d t = a: from a_1 = e down to a_0 = e exp(-1)

    e = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]
    for steps in (10, 1000):
        wanted = e * (1.0 - 1.0 / steps) ** steps
        torch.testing.assert_close(euler(velocity, e, e, steps), wanted)
    torch.testing.assert_close(euler(velocity, e, e, 4000), e * math.exp(-1.0), rtol=2e-4, atol=0.0)


def test_fbrac_is_differentiated_through_every_step() -> None:
    algorithm, b = make("fbrac"), data()
    e = noise_of(algorithm, 0, SIZE)["policy"]
    _, scalars = parts(algorithm, b)
    a = e
    for k in (3, 2, 1):
        a = a - algorithm.actor(b.observations, a, Times(torch.full((1, 1), k / 3))) / 3
    wanted = -algorithm.critic(b.observations, a.clamp(-1.0, 1.0)).mean()
    torch.testing.assert_close(scalars["q_loss"], wanted)
    parameters = list(algorithm.actor.parameters())
    pairs = zip(
        torch.autograd.grad(scalars["q_loss"], parameters), torch.autograd.grad(wanted, parameters), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_ifql_acts_by_the_best_of_its_flow_s_actions_by_the_smaller_value() -> None:
    algorithm, b = make("ifql"), data()
    policy = algorithm.policy()
    noise = torch.randn(4, SIZE, ACTION_DIM, generator=torch.Generator().manual_seed(3))
    raw = 4.0 * b.observations
    s = policy.normalizer(raw)
    with torch.no_grad():
        candidates = euler(algorithm.actor, s, noise, 3).clamp(-1.0, 1.0)
        q = algorithm.critic(s, candidates)
        smaller, average = (candidates[x.argmax(0), torch.arange(SIZE)] for x in (q.min(0).values, q.mean(0)))
        torch.testing.assert_close(policy.act(raw, noise), smaller)
        torch.testing.assert_close(best_of_n(algorithm.critic, s, candidates)[0], average)
    assert not torch.equal(smaller, average)


def test_meanflow_is_distilled_from_its_one_step_actions() -> None:
    algorithm, b = make("meanflow_distill"), data()
    e = noise_of(algorithm, 0, SIZE)["policy"]
    _, scalars = parts(algorithm, b)
    with torch.no_grad():
        target = one_step(algorithm.flow, RESIDUAL, b.observations, e).clamp(-1.0, 1.0)
        mu = algorithm.actor(b.observations, e, Times(torch.ones(1, 1)))
    torch.testing.assert_close(scalars["distillation_loss"], (mu - target).square().mean())
    torch.testing.assert_close(q_loss(algorithm.critic, b.observations, mu)[0], scalars["q_loss"].detach())


@pytest.mark.parametrize("name", ["bc", "iql", "rebrac"])
def test_a_policy_without_noise_gives_its_mean(name: str) -> None:
    algorithm, b = make(name), data()
    policy = algorithm.policy()
    noise = torch.randn(1, SIZE, ACTION_DIM)
    with torch.no_grad():
        wanted = algorithm.actor(policy.normalizer(b.observations)).clamp(-1.0, 1.0)
        torch.testing.assert_close(policy.act(b.observations, noise), wanted)
        torch.testing.assert_close(policy.act(b.observations, -noise), wanted)


def test_networks_start_as_published() -> None:
    torch.manual_seed(0)
    actor = MeanMLP(200, 100, hidden=[300])
    bound = (6.0 / 400) ** 0.5 * 0.1
    assert actor.head.weight.abs().max() <= bound
    assert actor.head.weight.abs().max() > 0.95 * bound
    assert actor.head.bias.abs().max() == 0.0
    v = StateValue(3, 2, hidden=[16, 16])
    q = tiny_critic(3, 2, hidden=[16, 16], ensemble=1)
    with torch.no_grad():  # with the same weights and no action, V is a member of the Q ensemble
        q.weights[0][0, :3], q.weights[0][0, 3:] = v.layers[0].weight.T, 0.0
        q.weights[1][0] = v.layers[1].weight.T
        q.head_weight[0] = v.head.weight.T
        for k, norm in enumerate(v.norms):
            norm.weight.add_(0.1 * torch.randn(16)), norm.bias.add_(0.1 * torch.randn(16))
            q.gains[k][0, 0], q.shifts[k][0, 0] = norm.weight, norm.bias
        s = torch.randn(SIZE, 3)
        torch.testing.assert_close(v(s), q(s, torch.randn(SIZE, 2))[0])


# ---- DriftQL


def test_two_candidates_drift_to_the_data_s_action_and_away_from_each_other() -> None:
    """Of two, the other one has all the weight: V_1 = (a - a_1) - (a_2 - a_1) = a - a_2, whatever the kernel."""
    a_1, a_2, a = torch.tensor([[0.5, 0.0]]), torch.tensor([[-0.1, 0.3]]), torch.tensor([[0.2, 0.2]])
    for kernel in ("laplace", "gaussian"):
        field = drift_field(torch.stack([a_1, a_2]), a, 0.2, kernel)
        torch.testing.assert_close(field, torch.stack([a - a_2, a - a_1]))


def test_three_candidates_repel_each_other_by_their_distance() -> None:
    T, a = 0.5, [0.0, 0.3, -0.4]  # of one dimension, D = 1
    candidates = torch.tensor(a).reshape(3, 1, 1)
    kernels = {"laplace": lambda d: math.exp(-abs(d) / T), "gaussian": lambda d: math.exp(-(d**2) / (2 * T**2))}
    for name, kernel in kernels.items():
        near, far = kernel(0.3), kernel(-0.4)
        mean_shift = (near * 0.3 + far * -0.4) / (near + far)
        assert drift_field(candidates, torch.ones(1, 1), T, name)[0].item() == pytest.approx(1.0 - mean_shift)


def test_the_kernel_s_distances_are_those_of_one_dimension() -> None:
    """Distances divide by sqrt(D): the same number in each of four dimensions repels as one dimension does."""
    one = torch.tensor([0.0, 0.3, -0.4]).reshape(3, 1, 1)
    for kernel in ("laplace", "gaussian"):
        alone = drift_field(one, torch.ones(1, 1), 0.5, kernel)
        torch.testing.assert_close(
            drift_field(one.expand(3, 1, 4), torch.ones(1, 4), 0.5, kernel), alone.expand(3, 1, 4)
        )


def test_driftql_moves_each_candidate_to_where_it_drifts() -> None:
    for normalize in (False, True):
        algorithm, b = make("driftql", normalize_drift=normalize), data()
        e = noise_of(algorithm, 0, SIZE)
        _, scalars = algorithm.loss(b, e, algorithm.trained)
        a = student_action(algorithm.actor, b.observations, e["drift"]).clamp(-1.0, 1.0)
        v = drift_field(a, b.actions, 0.2, "laplace").detach()
        if normalize:  # to a root mean square of 1 for each state
            v = v / v.square().mean((0, 2), keepdim=True).sqrt()
        wanted = (a - (a + v).clamp(-1.0, 1.0).detach()).square().mean()
        torch.testing.assert_close(scalars["drift_loss"], wanted)
        parameters = list(algorithm.actor.parameters())
        found = torch.autograd.grad(scalars["drift_loss"], parameters)
        for one, other in zip(found, torch.autograd.grad(wanted, parameters), strict=True):
            torch.testing.assert_close(one, other)
