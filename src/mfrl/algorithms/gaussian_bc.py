r"""Gaussian behaviour cloning: one mode for every state, by maximum likelihood.

    pi(a | s) = N(m(s), diag sigma(s)^2)
    L = - mean log pi(a | s) = mean sum_d [ ((a - m) / sigma)^2 / 2 + log sigma + log(2 pi) / 2 ]

What a policy without any flow makes of data with several modes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mfrl.algorithms.behaviour_cloning import BehaviourCloning
from mfrl.data.batch import Batch, DataSpec
from mfrl.networks import encode
from mfrl.policy import Normalizer, Policy


def negative_log_likelihood(a: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """-log N(a; mean, diag exp(log_std)^2), summed over the action's dimensions: ``(batch,)``."""
    z = (a - mean) * (-log_std).exp()
    return (0.5 * z.square() + log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1)


class GaussianPolicy(Policy):
    """a = m(s) + sigma(s) e, with e ~ N(0, I)."""

    def __init__(self, actor: nn.Module, normalizer: Normalizer, action_dim: int) -> None:
        super().__init__(normalizer, action_dim)
        self.actor = actor

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self.actor(encode(self.actor, observations))
        return mean + log_std.exp() * noise


class GaussianBC(BehaviourCloning):
    """Maximum likelihood of a Gaussian with diagonal covariance, its mean and deviation functions of the state.

    Args:
        actor: constructor taking (observation_dim, action_dim) of a network that gives (mean, log_std).
        training: of :class:`BehaviourCloning`.
    """

    def __init__(
        self, spec: DataSpec, actor: Callable[[int, int], nn.Module], updates: int, seed: int = 0, **training: Any
    ) -> None:
        super().__init__(spec, updates, seed, **training)
        self.actor = self.network(actor)

    def policy(self) -> GaussianPolicy:
        """What acts in an environment; shares the network being trained."""
        return GaussianPolicy(self.actor, self.normalizer, self.spec.action_dim)

    def noise(self, k: int, batch_size: int, purpose: str = "update") -> tuple[()]:
        """The likelihood needs no random numbers."""
        return ()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mean, log_std = self.actor(encode(self.actor, batch.observations))
        loss = negative_log_likelihood(batch.actions, mean, log_std).mean()
        error = (mean - batch.actions).square().mean()
        return loss, {"nll_loss": loss, "std": log_std.exp().mean(), "mean_error": error}
