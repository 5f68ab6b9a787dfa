"""Policies: they map noise to actions and take the best of N actions by the critic."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn

from mfrl.data.batch import normalize
from mfrl.errors import ConfigError, require
from mfrl.meanflow import end_time
from mfrl.networks.encoder import EncodedNetwork
from mfrl.q_learning import best_of_n, scores
from mfrl.reformulation import Reformulation


def one_step(actor: EncodedNetwork, reformulation: Reformulation, observations: Tensor, e: Tensor) -> Tensor:
    """a_hat = e - u(e, 0, 1), the action before clipping: ``(..., batch, action_dim)``, shaped like the noise e."""
    return reformulation.action(actor(observations, e, end_time(e, reformulation.two_times)), e)


def action_scalars(a: Tensor, data: Tensor) -> dict[str, Tensor]:
    """How far a policy's actions ``(batch, action_dim)``, before clipping, leave the bounds and the data's: to log."""
    a = a.detach()
    return {"out_of_bounds": (a.abs() > 1.0).float().mean(), "distance_to_data": (a - data).square().mean()}


class Normalizer(nn.Module):
    """Normalises states with the statistics of the training data; images have no statistics and stay as they are."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().clone())
        self.register_buffer("std", std.float().clone())

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, self.mean, self.std) if self.mean.numel() else x


class Policy(nn.Module):
    """Maps raw observations and noise to actions in [-1, 1]. Policies act in environments.

    A subclass defines ``unclipped``, the map from noise to an action.

    Args:
        normalizer: of observations.
        action_dim: size of an action.
        sigma: standard deviation of the noise.
        critic: chooses among candidates; None for a policy that imitates the data.
        num_candidates: N, the number of actions from which the critic chooses; 1 needs no critic.
        ceiling, q_aggregation: how the critic values candidates, see :func:`best_of_n`.
    """

    deterministic: bool = False  #: whether the policy has one action for an observation, whatever the noise

    def __init__(
        self,
        normalizer: Normalizer,
        action_dim: int,
        sigma: float = 1.0,
        critic: EncodedNetwork | None = None,
        num_candidates: int = 1,
        ceiling: float = math.inf,
        q_aggregation: str = "mean",
    ) -> None:
        super().__init__()
        self.normalizer, self.critic = normalizer, critic
        self.action_dim, self.sigma, self.num_candidates, self.ceiling = action_dim, sigma, num_candidates, ceiling
        self.q_aggregation = q_aggregation

    def sample_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """e ~ N(0, sigma^2 I) on the generator's device."""
        return self.sigma * torch.randn(shape, generator=generator, device=generator.device)

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions before clipping, ``(..., batch, action_dim)`` like the noise, for normalised observations."""
        raise NotImplementedError

    def folded(self) -> Policy:
        """A copy that acts faster, because it computes everything that is constant when acting only once.

        Its actions differ by rounding. Later changes of the weights have no effect on it.
        """
        return self

    def _with(self, name: str, network: nn.Module) -> Self:
        """A copy of this policy with ``network`` in the place of the module ``name``."""
        policy = copy.copy(self)
        policy._modules = self._modules | {name: network}
        return policy

    def candidates(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Clipped actions ``(candidate, batch, action_dim)`` for normalised observations."""
        return self.unclipped(observations, noise).clamp(-1.0, 1.0)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions ``(batch, action_dim)`` in [-1, 1].

        Args:
            observations: what the environment gives: ``(batch, observation_dim)``, or uint8
                ``(batch, frames, height, width, channels)``.
            noise: ``(candidate, batch, action_dim)`` from :meth:`sample_noise`.

        Raises:
            ConfigError: there are several candidates and no critic.
        """
        device = self.normalizer.mean.device
        observations = self.normalizer(observations.to(device))
        if len(noise) == 1:
            return self.candidates(observations, noise[0].to(device))
        self.check_candidates(len(noise))
        return self._best(observations, self.candidates(observations, noise.to(device)))[0]

    def check_candidates(self, number: int) -> None:
        """Refuse a number of candidates that this policy cannot choose among.

        Raises:
            ConfigError: it is no number, or there is nothing to choose, or no critic to choose by.
        """
        require("num_candidates", type(number) is int and number >= 1, number, "a whole number of at least 1")
        if number > 1 and self.deterministic:
            raise ConfigError(f"num_candidates={number} must be 1: this policy has one action for an observation")
        if number > 1 and self.critic is None:
            raise ConfigError(f"num_candidates={number} must be 1: this policy has no critic to choose by")

    def scored(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """All candidates ``(candidate, batch, action_dim)`` and what they are chosen by, ``(candidate, batch)``.

        Arguments as of :meth:`act`, for a policy with a critic.
        """
        assert self.critic is not None
        observations = self.normalizer(observations)
        candidates = self.candidates(observations, noise)
        q = self.critic(self.critic.encode(observations), candidates)
        return candidates, scores(q, self.ceiling, self.q_aggregation)

    def value(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The critic's mean Q of the action taken, ``(batch,)``. The policy must have a critic."""
        device = self.normalizer.mean.device
        observations = self.normalizer(observations.to(device))
        candidates = self.candidates(observations, noise.to(device))
        return self._best(observations, candidates)[1].mean(0)

    def _best(self, observations: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        assert self.critic is not None
        features = self.critic.encode(observations)
        return best_of_n(self.critic, features, candidates, self.ceiling, self.q_aggregation)


class OneStepPolicy(Policy):
    """A policy that maps noise to an action in one forward pass of a MeanFlow actor.

    Args:
        actor: the network g.
        reformulation: the meaning of its output.
        critic, normalizer, action_dim, sigma, num_candidates, ceiling: see :class:`Policy`.
    """

    def __init__(
        self,
        actor: EncodedNetwork,
        critic: EncodedNetwork | None,
        reformulation: Reformulation,
        normalizer: Normalizer,
        action_dim: int,
        sigma: float,
        num_candidates: int,
        ceiling: float = math.inf,
    ) -> None:
        super().__init__(normalizer, action_dim, sigma, critic, num_candidates, ceiling)
        self.actor, self.reformulation = actor, reformulation

    def folded(self) -> OneStepPolicy:
        end = end_time(self.normalizer.mean, self.reformulation.two_times)
        return self._with("actor", self.actor.folded(end))

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        return one_step(self.actor, self.reformulation, self.actor.encode(observations), noise)


class MeanPolicy(Policy):
    """a = mu(s) + clip(std e, -limit, limit); with std = 0, a = mu(s) whatever the noise.

    Args:
        actor: the network mu.
        normalizer, action_dim: see :class:`Policy`.
        critic: gives values, and has nothing to choose.
        std, limit: of the noise, for exploration.
    """

    def __init__(
        self,
        actor: EncodedNetwork,
        normalizer: Normalizer,
        action_dim: int,
        critic: EncodedNetwork | None = None,
        std: float = 0.0,
        limit: float = math.inf,
    ) -> None:
        super().__init__(normalizer, action_dim, critic=critic)
        self.actor, self.std, self.limit = actor, std, limit
        self.deterministic = std == 0.0

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        mean = self.actor(self.actor.encode(observations)).expand_as(noise)
        return mean + (self.std * noise).clamp(-self.limit, self.limit) if self.std else mean
