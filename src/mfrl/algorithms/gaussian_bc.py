r"""Gaussian behaviour cloning by maximum likelihood.

    pi(a | s) = N(m(s), diag sigma(s)^2)
    L = - mean log pi(a | s) = mean sum_d [ ((a - m) / sigma)^2 / 2 + log sigma + log(2 pi) / 2 ]

A Gaussian has one mode in every state. This baseline shows what that costs where the data have several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.groups import ActorAdam
from mfrl.algorithms.policy import Normalizer, Policy
from mfrl.data.batch import Batch, DataSpec
from mfrl.networks.encoder import EncodedNetwork


def negative_log_likelihood(a: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """-log N(a; mean, diag exp(log_std)^2) ``(batch,)``, summed over the action's dimensions."""
    z = (a - mean) * (-log_std).exp()
    return (0.5 * z.square() + log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1)


class GaussianPolicy(Policy):
    """a = m(s) + sigma(s) e, with e ~ N(0, I)."""

    def __init__(self, actor: EncodedNetwork, normalizer: Normalizer, action_dim: int) -> None:
        super().__init__(normalizer, action_dim)
        self.actor = actor

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self.actor(self.actor.encode(observations))
        return mean + log_std.exp() * noise


class GaussianBC(Algorithm):
    """Maximum likelihood of a Gaussian with diagonal covariance. Mean and deviation are functions of the state.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor that takes (observation_dim, action_dim); the network gives (mean, log_std).
        updates: number of updates, for the schedule.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`ActorAdam`.
    """

    Settings = ActorAdam
    settings: ActorAdam

    def __init__(self, spec: DataSpec, actor: Callable[[int, int], nn.Module], updates: int, **others: Any) -> None:
        super().__init__(spec, updates, **others)
        c = self.settings
        self.actor = self.network(actor)
        self.groups = (c.group("actor", updates),)

    def policy(self) -> GaussianPolicy:
        return GaussianPolicy(self.actor, self.normalizer, self.spec.action_dim)

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mean, log_std = self.actor(self.actor.encode(batch.observations))
        loss = negative_log_likelihood(batch.actions, mean, log_std).mean()
        error = (mean - batch.actions).square().mean()
        return loss, {"nll_loss": loss, "std": log_std.exp().mean(), "mean_error": error}
