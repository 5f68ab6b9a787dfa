"""SAC: its density, its losses by hand, who learns from what, and how it acts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny import ACTION_DIM, OBSERVATION_DIM, SPEC, batch, randomise_, tiny_critic
from torch import Tensor

from mfrl.algorithms.sac import SAC, squashed
from mfrl.data.batch import Batch
from mfrl.errors import ConfigError
from mfrl.networks.gaussian import SquashedGaussianMLP
from mfrl.q_learning import aggregate

SIZE = 12
tiny_actor = partial(SquashedGaussianMLP, hidden=[16])


def make(**settings: object) -> SAC:
    torch.manual_seed(0)
    algorithm = SAC(spec=SPEC, actor=tiny_actor, critic=partial(tiny_critic, ensemble=3), updates=10, **settings)
    for network in (algorithm.actor, algorithm.critic, algorithm.target_critic):
        randomise_(network)
    return algorithm


def data() -> Batch:
    return batch(SIZE, dtype=torch.float32)


def noise(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(SIZE, ACTION_DIM, generator=g) for name in ("target", "policy")}


def test_the_density_is_that_of_torch_s_transformed_distribution() -> None:
    mean, log_std, e = torch.randn(3, SIZE, ACTION_DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, log_pi = squashed(mean, log_std, e)
    base = torch.distributions.Normal(mean, log_std.exp())
    known = torch.distributions.TransformedDistribution(base, [torch.distributions.TanhTransform(cache_size=1)])
    u = mean + log_std.exp() * e
    torch.testing.assert_close(a, u.tanh())
    torch.testing.assert_close(log_pi, (base.log_prob(u) - (1 - u.tanh() ** 2).log()).sum(-1))
    torch.testing.assert_close(log_pi, known.log_prob(a).sum(-1), rtol=1e-4, atol=1e-4)


def test_the_density_stays_finite_where_tanh_rounds_to_1() -> None:
    a, log_pi = squashed(torch.full((1, 2), 40.0), torch.zeros(1, 2), torch.zeros(1, 2))
    assert (a == 1.0).all()
    assert log_pi.isfinite().all()
    assert log_pi > 100.0  # of tanh's slope e^-80 each


@pytest.mark.parametrize("how", ["min", "mean", "mean_minus_std"])
def test_the_ensemble_is_aggregated_as_its_name_says(how: str) -> None:
    q = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    wanted = {"min": [1.0, 2.0], "mean": [2.0, 2.0], "mean_minus_std": [2.0 - 0.5 * 1.0, 2.0]}[how]
    assert aggregate(q, how, 0.5).tolist() == wanted


@pytest.mark.parametrize("backup_entropy", [False, True])
@pytest.mark.parametrize("how", ["min", "mean_minus_std"])
def test_the_critic_learns_towards_the_soft_value_of_the_next_action(how: str, backup_entropy: bool) -> None:
    algorithm, b, e = make(target_aggregation=how, backup_entropy=backup_entropy, temperature=0.3), data(), noise()
    _, scalars = algorithm.loss(b, e, algorithm.trained)
    with torch.no_grad():
        a, log_pi = squashed(*algorithm.actor(b.next_observations), e["target"])
        value = aggregate(algorithm.target_critic(b.next_observations, a), how, 0.5)
        value = value - backup_entropy * 0.3 * log_pi
        y = b.rewards + 0.99 * b.masks * value
        wanted = (algorithm.critic(b.observations, b.actions) - y).square().mean()
    torch.testing.assert_close(scalars["critic_loss"].detach(), wanted)


@pytest.mark.parametrize("how", ["min", "mean", "mean_minus_std"])
def test_gradients_are_those_of_the_three_losses_written_out(how: str) -> None:
    algorithm, b, e = make(policy_aggregation=how, rho=0.5, temperature=0.3, target_entropy=-1.0), data(), noise()
    loss, scalars = algorithm.loss(b, e, algorithm.trained)
    actor, critic = list(algorithm.actor.parameters()), list(algorithm.critic.parameters())
    (log_beta,) = algorithm.temperature.parameters()
    found = torch.autograd.grad(loss, [*actor, log_beta, *critic], retain_graph=True)
    a, log_pi = squashed(*algorithm.actor(b.observations), e["policy"])
    value = aggregate(algorithm.critic(b.observations, a), how, 0.5)
    policy_loss = (0.3 * log_pi - value).mean()
    beta_loss = log_beta.exp() * (-log_pi.mean().detach() + 1.0 * ACTION_DIM)
    wanted = (
        *torch.autograd.grad(policy_loss, actor),
        *torch.autograd.grad(beta_loss, [log_beta]),
        *torch.autograd.grad(scalars["critic_loss"], critic),
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_temperature_falls_where_the_entropy_is_above_its_target() -> None:
    for target, sign in ((-50.0, 1.0), (50.0, -1.0)):
        algorithm = make(target_entropy=target)
        loss, _ = algorithm.loss(data(), noise(), algorithm.trained)
        (gradient,) = torch.autograd.grad(loss, list(algorithm.temperature.parameters()))
        assert gradient.sign() == sign


def test_evaluation_acts_by_the_mode_and_interaction_samples() -> None:
    algorithm, b = make(), data()
    e = torch.randn(1, SIZE, ACTION_DIM)
    with torch.no_grad():
        mean, log_std = algorithm.actor(algorithm.normalizer(b.observations))
        torch.testing.assert_close(algorithm.policy().act(b.observations, e), mean.tanh())
        torch.testing.assert_close(algorithm.explorer().act(b.observations, e), (mean + log_std.exp() * e[0]).tanh())
        sampled = make(deterministic=False)
        torch.testing.assert_close(sampled.policy().act(b.observations, e), sampled.explorer().act(b.observations, e))


def test_the_policy_starts_near_the_standard_normal() -> None:
    torch.manual_seed(0)
    mean, log_std = SquashedGaussianMLP(OBSERVATION_DIM, ACTION_DIM)(torch.randn(100, OBSERVATION_DIM))
    assert mean.abs().max() < 0.5
    assert log_std.abs().max() < 0.5


def test_settings_out_of_their_range_are_refused() -> None:
    for setting, named in (
        ({"temperature": 0.0}, r"algo\.temperature"),
        ({"target_aggregation": "median"}, "mean_minus_std"),
        ({"rho": -1.0}, r"algo\.rho"),
        ({"deterministic": 1}, r"algo\.deterministic"),
    ):
        with pytest.raises(ConfigError, match=named):
            make(**setting)
