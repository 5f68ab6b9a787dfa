"""What is folded for acting: the same network and the same policy, but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiny import SPEC, algorithm, randn, randomise_, tiny_critic
from torch import nn

from mfrl.algorithms.fql import FQL
from mfrl.algorithms.policy import Policy
from mfrl.meanflow import Times
from mfrl.networks.dit import DiT
from mfrl.networks.mlp import MLP
from mfrl.networks.vector_field import VectorField


@pytest.mark.parametrize("two_times", [False, True])
@pytest.mark.parametrize(
    "network",
    [
        partial(DiT, width=16, depth=2, mlp_ratio=2.0, offset_std=0.3),
        partial(MLP, hidden=[16, 12], time_width=8),
        partial(VectorField, hidden=[16, 12]),
    ],
)
def test_a_folded_network_is_the_network_at_that_time(network: Callable[..., nn.Module], two_times: bool):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        torch.manual_seed(0)
        actor = randomise_(network(3, 2, two_times=two_times)).to(dtype)
        time = Times(torch.full((1, 1), 0.7, dtype=dtype), start=torch.full((1, 1), 0.2, dtype=dtype))
        time = time if two_times else Times(time.rows)
        folded = actor.folded(time)
        for shape in ((5, 2), (4, 5, 2)):
            observations, actions = randn(5, 3, seed=1).to(dtype), randn(*shape, seed=2).to(dtype)
            expected = actor(observations, actions, time)
            assert expected.std() > 0.01
            torch.testing.assert_close(folded(observations, actions), expected, rtol=tolerance, atol=tolerance)
        assert not any(p.requires_grad for p in folded.parameters())


def test_a_folded_network_keeps_the_weights_it_was_made_of():
    actor = randomise_(DiT(3, 2, width=16, depth=1)).double()
    time = Times(torch.ones(1, 1, dtype=torch.float64))
    folded, observations, actions = actor.folded(time), randn(5, 3), randn(5, 2)
    before = folded(observations, actions)
    randomise_(actor, seed=9)
    assert torch.equal(folded(observations, actions), before)


def fql() -> FQL:
    torch.manual_seed(0)
    module = FQL(SPEC, partial(VectorField, hidden=[16, 16]), tiny_critic, updates=1).double()
    randomise_(module.actor, seed=1)
    return module


@pytest.mark.parametrize("make", [lambda: algorithm(num_candidates=4).policy(), lambda: fql().policy()])
def test_a_folded_policy_takes_the_same_actions(make: Callable[[], Policy]):
    policy = make()
    folded = policy.folded()
    observations = randn(7, 3, seed=4)
    noise = policy.sample_noise((4, 7, 2), torch.Generator().manual_seed(0)).double()
    assert type(folded) is type(policy)
    assert folded is not policy
    torch.testing.assert_close(folded.act(observations, noise), policy.act(observations, noise))
    assert folded.critic is policy.critic
