"""From noise to action in one forward pass, and the best of N such actions by the critic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mfrl.meanflow import Time
from mfrl.reformulation import Reformulation

Critic = Callable[[Tensor, Tensor], Tensor]


def one_step(actor: nn.Module, reformulation: Reformulation, observations: Tensor, e: Tensor) -> Tensor:
    """a_hat = e - u(e, 0, 1): the action before clipping, ``(..., batch, action_dim)`` like the noise e."""
    at_one = Time(e.new_ones(1, 1))
    return reformulation.action(actor(observations, e, at_one), e)


def best_of_n(critic: Critic, observations: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The candidate with the largest mean Q of the ensemble, for each observation.

    Args:
        critic: (observations, actions) -> ``(ensemble, candidate, batch)``.
        candidates: ``(candidate, batch, action_dim)``.

    Returns:
        actions ``(batch, action_dim)`` and the ensemble's values of every candidate's best: ``(ensemble, batch)``,
        read off the values just computed.
    """
    q = critic(observations, candidates)
    best = q.mean(0).argmax(0)
    batch = torch.arange(candidates.shape[1], device=candidates.device)
    return candidates[best, batch], q[:, best, batch]


class Normalizer(nn.Module):
    """(x - mean) / std with the statistics of the training data."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().clone())
        self.register_buffer("std", std.float().clone())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class OneStepPolicy(nn.Module):
    """What acts in an environment: raw observations and noise in, actions in [-1, 1] out.

    Args:
        actor, critic: the networks of the algorithm; the critic picks among candidates.
        sigma: standard deviation of the noise.
        num_candidates: N actions are drawn and the best by the critic is taken; 1 needs no critic.
    """

    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module,
        reformulation: Reformulation,
        normalizer: Normalizer,
        action_dim: int,
        sigma: float,
        num_candidates: int,
    ) -> None:
        super().__init__()
        self.actor, self.critic, self.normalizer = actor, critic, normalizer
        self.reformulation = reformulation
        self.action_dim, self.sigma, self.num_candidates = action_dim, sigma, num_candidates

    def sample_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """e ~ N(0, sigma^2 I) on the generator's device."""
        return self.sigma * torch.randn(shape, generator=generator, device=generator.device)

    def candidates(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Clipped one-step actions ``(candidate, batch, action_dim)`` for normalised observations."""
        return one_step(self.actor, self.reformulation, observations, noise).clamp(-1.0, 1.0)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions ``(batch, action_dim)`` in [-1, 1].

        Args:
            observations: ``(batch, observation_dim)`` as the environment gives them.
            noise: ``(candidate, batch, action_dim)`` from :meth:`sample_noise`.
        """
        device = self.normalizer.mean.device
        observations = self.normalizer(observations.to(device))
        candidates = self.candidates(observations, noise.to(device))
        if len(candidates) == 1:
            return candidates[0]
        return best_of_n(self.critic, observations, candidates)[0]

    def value(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Mean Q of the action taken, ``(batch,)``: the value the critic gives this policy in each state."""
        device = self.normalizer.mean.device
        observations = self.normalizer(observations.to(device))
        return best_of_n(self.critic, observations, self.candidates(observations, noise.to(device)))[1].mean(0)
