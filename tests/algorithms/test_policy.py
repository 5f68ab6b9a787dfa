"""From noise to the action taken, against loops over candidates."""

from __future__ import annotations

import pytest
import torch
from tiny import ACTION_DIM, OBSERVATION_DIM, RESIDUAL, randn, randomise_, tiny_critic, tiny_dit
from torch import Tensor, nn

from mfrl.algorithms.policy import Normalizer, OneStepPolicy, one_step
from mfrl.meanflow import Times
from mfrl.networks.encoder import EncodedNetwork
from mfrl.q_learning import best_of_n
from mfrl.reformulation import Reformulation

BATCH, N = 6, 5
MEAN, STD = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([2.0, 0.5, 1.0])


class Forbidden(nn.Module):
    def forward(self, *_: Tensor) -> Tensor:
        raise AssertionError("the critic has nothing to choose")


@pytest.fixture
def actor() -> EncodedNetwork:
    torch.manual_seed(0)
    network = randomise_(tiny_dit(OBSERVATION_DIM, ACTION_DIM).double())
    network.head.weight.data *= 0.2  # some actions within the bounds, some outside
    return EncodedNetwork(network)


@pytest.fixture
def critic() -> EncodedNetwork:
    torch.manual_seed(1)
    return EncodedNetwork(randomise_(tiny_critic(OBSERVATION_DIM, ACTION_DIM).double(), seed=1))


def policy(actor: EncodedNetwork, critic: EncodedNetwork, n: int, variant: Reformulation = RESIDUAL) -> OneStepPolicy:
    return OneStepPolicy(actor, critic, variant, Normalizer(MEAN, STD).double(), ACTION_DIM, 1.0, n)


def test_best_of_n_takes_what_a_loop_over_candidates_takes(critic: EncodedNetwork):
    s, candidates = randn(40, OBSERVATION_DIM, seed=1), randn(N, 40, ACTION_DIM, seed=2)
    actions, values = best_of_n(critic, s, candidates)
    assert values.shape == (2, 40)
    chosen = set()
    for i in range(40):
        scores = [critic(s[[i]], candidates[n, [i]])[:, 0] for n in range(N)]
        best = max(range(N), key=lambda n: scores[n].mean().item())
        chosen.add(best)
        assert torch.equal(actions[i], candidates[best, i])
        torch.testing.assert_close(values[:, i], scores[best], rtol=0, atol=1e-12)
    assert chosen == set(range(N)), "every candidate should be the best somewhere"
    torch.testing.assert_close(values, critic(s, actions), rtol=0, atol=1e-12)


def test_best_of_n_goes_by_the_mean_of_the_ensemble():
    # Candidate 0 has the best single value, 1 the best worst value, 2 the best mean.
    q = torch.tensor([[[9.0], [4.0], [8.0]], [[-5.0], [4.0], [2.0]]])
    candidates = torch.tensor([[[0.0]], [[1.0]], [[2.0]]])
    actions, values = best_of_n(lambda *_: q, torch.zeros(1, 1), candidates)
    assert actions.item() == 2.0
    assert values[:, 0].tolist() == [8.0, 2.0]


def test_best_of_n_draws_among_candidates_that_promise_more_than_there_can_be():
    # Of values above the ceiling none is preferred, and the first of them is taken: candidates are drawn independently.
    q = torch.tensor([[[-1.0, -9.0], [3.0, -4.0], [7.0, -2.0]]])
    candidates = torch.arange(3.0)[:, None, None].expand(3, 2, 1)
    actions, values = best_of_n(lambda *_: q, torch.zeros(2, 1), candidates, ceiling=0.0)
    assert actions[:, 0].tolist() == [1.0, 2.0]
    assert values.tolist() == [[3.0, -2.0]]
    assert best_of_n(lambda *_: q, torch.zeros(2, 1), candidates)[0][:, 0].tolist() == [2.0, 2.0]


def test_a_policy_with_a_ceiling_acts_as_its_actor_where_the_critic_is_beyond_it(
    actor: EncodedNetwork, critic: EncodedNetwork
):
    raw, e = MEAN + STD * randn(BATCH, OBSERVATION_DIM, seed=11), randn(N, BATCH, ACTION_DIM, seed=12)
    free, bounded = policy(actor, critic, N), policy(actor, critic, N)
    bounded.ceiling = -1e6
    torch.testing.assert_close(bounded.act(raw, e), policy(actor, critic, 1).act(raw, e[:1]), rtol=0, atol=1e-12)
    assert not torch.equal(bounded.act(raw, e), free.act(raw, e))


@pytest.mark.parametrize("variant", [RESIDUAL, Reformulation(0.0, 1.0), Reformulation(0.5, [-0.5, -1.0], 0.25)])
def test_one_step_removes_the_average_velocity_at_time_one(actor: EncodedNetwork, variant: Reformulation):
    s, e = randn(BATCH, OBSERVATION_DIM, seed=3), randn(N, BATCH, ACTION_DIM, seed=4)
    one = torch.ones(BATCH, 1, dtype=torch.float64)
    for n in range(N):
        g = actor(s, e[n], Times(one))
        expected = e[n] - variant.average_velocity(g, e[n], e[n], one)
        torch.testing.assert_close(one_step(actor, variant, s, e)[n], expected, rtol=0, atol=1e-12)


def test_act_normalises_clips_and_takes_the_best(actor: EncodedNetwork, critic: EncodedNetwork):
    raw, e = MEAN + STD * randn(BATCH, OBSERVATION_DIM, seed=5), 2.0 * randn(N, BATCH, ACTION_DIM, seed=6)
    taken = policy(actor, critic, N).act(raw, e)
    s = (raw - MEAN) / STD
    clipped = actor(s, e, Times(torch.ones(1, 1, dtype=torch.float64))).clamp(-1, 1)
    assert 0.05 < (clipped.abs() == 1).double().mean() < 0.95
    best = torch.stack([critic(s, c).mean(0) for c in clipped]).argmax(0)
    assert len(set(best.tolist())) > 1
    for i in range(BATCH):
        torch.testing.assert_close(taken[i], clipped[best[i], i], rtol=0, atol=1e-12)
    # The values that decide are those of the clipped actions.
    unclipped = torch.stack([critic(s, c).mean(0) for c in actor(s, e, Times(torch.ones(1, 1, dtype=torch.float64)))])
    assert (unclipped.argmax(0) != best).any()


def test_one_candidate_is_taken_without_asking_the_critic(actor: EncodedNetwork):
    raw, e = randn(BATCH, OBSERVATION_DIM, seed=7), 2.0 * randn(1, BATCH, ACTION_DIM, seed=8)
    taken = policy(actor, EncodedNetwork(Forbidden()), 1).act(raw, e)
    expected = actor((raw - MEAN) / STD, e[0], Times(torch.ones(1, 1, dtype=torch.float64))).clamp(-1, 1)
    torch.testing.assert_close(taken, expected, rtol=0, atol=1e-12)


def test_value_is_the_mean_q_of_the_action_taken(actor: EncodedNetwork, critic: EncodedNetwork):
    raw = MEAN + STD * randn(BATCH, OBSERVATION_DIM, seed=9)
    for n in (1, N):
        acting, e = policy(actor, critic, n), randn(n, BATCH, ACTION_DIM, seed=10)
        expected = critic((raw - MEAN) / STD, acting.act(raw, e)).mean(0)
        torch.testing.assert_close(acting.value(raw, e), expected, rtol=0, atol=1e-12)


def test_noise_has_the_deviation_sigma_and_follows_its_generator():
    acting = OneStepPolicy(
        EncodedNetwork(nn.Identity()),
        EncodedNetwork(nn.Identity()),
        RESIDUAL,
        Normalizer(MEAN, STD),
        ACTION_DIM,
        0.5,
        N,
    )

    def draw(seed: int) -> Tensor:
        return acting.sample_noise((4, 20_000, 2), torch.Generator().manual_seed(seed))

    assert draw(0).std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_the_normaliser_s_statistics_are_saved_with_the_policy():
    own = torch.tensor([1.0, 2.0, 3.0])
    normalizer = Normalizer(own, STD)
    own += 1  # what was passed in is not shared
    state = normalizer.state_dict()
    other = Normalizer(torch.zeros(3), torch.ones(3))
    other.load_state_dict(state)
    x = torch.tensor([[3.0, 2.0, 5.0]])
    torch.testing.assert_close(other(x), torch.tensor([[1.0, 0.0, 2.0]]))
