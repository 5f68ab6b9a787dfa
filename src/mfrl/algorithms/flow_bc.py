r"""Flow matching (arXiv 2210.02747) on straight paths: many small steps lead from noise to the data.

    a_t = (1 - t) a + t e                       t = 0 is data, t = 1 is noise
    L = E || v(s, a_t, t) - (e - a) ||^2        minimised by the marginal velocity E[e - a | s, a_t]
    a_{t - h} = a_t - h v(s, a_t, t)            from a_1 = e in steps of h = 1 / K down to t = 0

This baseline spends K forward passes on an action.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.groups import ActorAdam
from mfrl.algorithms.policy import Normalizer, Policy
from mfrl.data.batch import Batch, DataSpec
from mfrl.meanflow import Network, Times, interpolate, path_draws
from mfrl.networks.encoder import EncodedNetwork
from mfrl.randomness import Draw


def flow_matching_loss(flow: Network, observations: Tensor, a: Tensor, e: Tensor, times: Times) -> Tensor:
    """The mean of (v(s, a_t, t) - (e - a))^2 over batch and dimensions, on the path from a to e."""
    a_t, v = interpolate(a, e, times.t)
    return (flow(observations, a_t, times) - v).square().mean()


def euler(flow: Network, observations: Tensor, e: Tensor, steps: int) -> Tensor:
    """Euler steps from noise e at t = 1 to an action at t = 0; the actions are not clipped and shaped like e.

    Args:
        e: ``(..., batch, action_dim)``; all leading axes (candidates) share the observations.
        steps: number of steps.
    """
    a = e
    for k in range(steps, 0, -1):
        a = a - flow(observations, a, Times(e.new_full((1, 1), k / steps))) / steps
    return a


class FlowPolicy(Policy):
    """A policy that maps noise to an action in ``steps`` forward passes of the flow."""

    def __init__(self, flow: EncodedNetwork, normalizer: Normalizer, action_dim: int, sigma: float, steps: int) -> None:
        super().__init__(normalizer, action_dim, sigma)
        self.flow, self.steps = flow, steps

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        return euler(self.flow, self.flow.encode(observations), noise, self.steps)


@dataclass(frozen=True, kw_only=True)
class FlowBCSettings(ActorAdam):
    """Settings of flow matching.

    Attributes:
        flow_steps: number of Euler steps for an action.
        time_steps: number of points of the grid of training times; None draws times from (0, 1).
        sigma: standard deviation of the noise.
    """

    flow_steps: int = 10
    time_steps: int | None = None
    sigma: float = 1.0


class FlowBC(Algorithm):
    """Behaviour cloning with a flow that acts by Euler steps.

    Args:
        spec: sizes and statistics of the data.
        actor: constructor of the velocity field v(s, a_t, t); it takes (observation_dim, action_dim).
        updates: number of updates, for the schedule.
        others: seed, encoder and variant of :class:`Algorithm`, and the fields of :class:`FlowBCSettings`.
    """

    Settings = FlowBCSettings
    settings: FlowBCSettings

    def __init__(self, spec: DataSpec, actor: Callable[[int, int], nn.Module], updates: int, **others: Any) -> None:
        super().__init__(spec, updates, **others)
        c = self.settings
        self.actor = self.network(actor)
        self.groups = (c.group("actor", updates),)

    def policy(self) -> FlowPolicy:
        c = self.settings
        return FlowPolicy(self.actor, self.normalizer, self.spec.action_dim, c.sigma, c.flow_steps)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        c = self.settings
        return path_draws(batch_size, self.spec.action_dim, c.sigma, c.time_steps)

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.actor.encode(batch.observations)
        loss = flow_matching_loss(self.actor, s, batch.actions, drawn["flow"], drawn["time"])
        return loss, {"flow_loss": loss}
