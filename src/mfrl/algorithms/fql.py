r"""Flow Q-learning (arXiv 2502.02538): Q-learning for a one-step policy that stays near a flow of the data.

    L = L_critic + L_flow + alpha L_distillation + L_q                                  one stage

    L_flow          E || v(s, a_t, t) - (e - a) ||^2               v by flow matching
    L_distillation  E || mu(s, e) - clip(euler(v, s, e)) ||^2      v fixed, same e; mu before clipping
    L_q             - E mean_i Q_i(s, clip(mu(s, e)))              Q fixed, same e
    L_critic        E (Q_i(s, a) - y)^2,  y = r + discount mask agg_i Q_target,i(s', clip(mu(s', e')))

Each network learns from its own terms alone: v from L_flow, mu from L_distillation and L_q, Q from L_critic. Here t = 1
is noise; FQL's paper and code count time the other way. As in its code (agents/fql.py), no gradient is clipped, no
learning rate changes, and the target critic's average takes in the critic as it was before the update's step; there one
Adam holds all networks, which for Adam is the same as one for each.

One thing departs from its code: there mu takes no time. Here it is built as v is, with t held at 1, so that the first
layer's weights of t are a second bias. It starts at Xavier uniform values and not at zero, and as Adam moves both
biases alike, their sum moves at twice the rate; the layer's Xavier range counts one input more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Adam

from mfrl.algorithms.base import OfflineAlgorithm, average_, averaged, follow_
from mfrl.algorithms.flow_bc import euler, flow_matching_loss
from mfrl.algorithms.flow_distilled import StudentPolicy, student_action
from mfrl.algorithms.ranges import check_ranges
from mfrl.data.batch import Batch, DataSpec
from mfrl.errors import require
from mfrl.meanflow import Time, draw_time
from mfrl.networks import encode
from mfrl.policy import Normalizer
from mfrl.q_learning import NORMALIZE_Q, Q_AGGREGATION, q_loss, td_loss
from mfrl.randomness import generator


class Noise(NamedTuple):
    """The random numbers of one update."""

    flow: Tensor  #: (batch, action_dim) end of the path
    time: Time  #: (batch,) where on the path
    policy: Tensor  #: (batch, action_dim) for both terms of the policy loss
    target: Tensor  #: (batch, action_dim) for the Bellman target


class Seen(NamedTuple):
    """A batch's observations as each network takes them: images encoded, each once an update; states themselves."""

    flow: Tensor
    actor: Tensor
    critic: Tensor
    next_actor: Tensor  #: without gradient, as the one below
    next_target: Tensor  #: by the target critic


class FQL(OfflineAlgorithm):
    """Flow Q-learning. Defaults are those of its code (agents/fql.py).

    Args:
        spec: sizes and statistics of the data.
        actor: constructor taking (observation_dim, action_dim), of the flow and of the one-step policy; the policy's
            time stays at 1.
        critic: constructor taking (observation_dim, action_dim).
        updates: number of offline updates.
        seed: of the noise (initialisation uses torch's global generator).
        encoder: constructor of the networks' image encoders, one for each; None where observations are states.
        discount, tau: of the Bellman target and of the target critic's average.
        alpha: weight of the distillation loss.
        flow_steps: Euler steps of what the policy is distilled from.
        q_aggregation: of the ensemble in the Bellman target: "mean" or "min".
        clip_targets: keep Bellman targets within what the data's rewards can add up to.
        normalize_q: makes alpha independent of the reward scale: "value" divides L_q by mean |Q|, as its code does with
            normalize_q_loss; "gradient" is ours, see :class:`MeanFlowQL`; "none" is the published setting.
        sigma: standard deviation of the noise.
        actor_lr, critic_lr: of Adam; the flow's and the policy's, and the critic's.
        actor_average: act with an average of the policy's weights, see :class:`MeanFlowQL`; None is the published
            setting.
        compile: compile the loss with torch.compile.
        variant: the chosen reformulation: ``{name: none}`` is all it may be.

    Raises:
        ConfigError: for a setting out of its range, or a variant that would be of no effect.
    """

    optimizer_names = ("flow", "actor", "critic")

    def __init__(
        self,
        spec: DataSpec,
        actor: Callable[[int, int], nn.Module],
        critic: Callable[[int, int], nn.Module],
        updates: int,
        seed: int = 0,
        encoder: Callable[..., nn.Module] | None = None,
        discount: float = 0.99,
        tau: float = 0.005,
        alpha: float = 10.0,
        flow_steps: int = 10,
        q_aggregation: str = "mean",
        clip_targets: bool = False,
        normalize_q: str = "none",
        sigma: float = 1.0,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        actor_average: float | None = None,
        compile: bool = False,
        variant: Mapping[str, Any] | None = None,
    ) -> None:
        check_ranges(locals())
        super().__init__(spec, updates, seed, encoder)
        self.refuse_variant(variant)
        require("algo.q_aggregation", q_aggregation in Q_AGGREGATION, q_aggregation, " or ".join(Q_AGGREGATION))
        require("algo.normalize_q", normalize_q in NORMALIZE_Q, normalize_q, " or ".join(NORMALIZE_Q))

        self.flow = self.network(actor)
        self.actor = self.network(actor)
        self.actor_average, self.averaged_actor = actor_average, averaged(self.actor, actor_average)
        self.critic = self.network(critic)
        self.target_critic = self.network(critic).requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.normalizer = Normalizer(torch.tensor(spec.observation_mean), torch.tensor(spec.observation_std))

        self.discount, self.tau, self.alpha = discount, tau, alpha
        self.flow_steps, self.sigma = flow_steps, sigma
        self.aggregate = Q_AGGREGATION[q_aggregation]
        self.value_range = spec.value_range(discount) if clip_targets else None
        self.normalize_q = normalize_q
        self.actor_lr, self.critic_lr = actor_lr, critic_lr
        self._loss = torch.compile(self.loss, dynamic=False) if compile else self.loss

    def policy(self) -> StudentPolicy:
        """What acts in an environment; shares the networks being trained. One action is drawn, and taken."""
        actor = self.averaged_actor or self.actor
        return StudentPolicy(actor, self.normalizer, self.spec.action_dim, self.sigma, self.target_critic)

    # ---- losses: pure functions of the parameters, a batch and random numbers

    def see(self, batch: Batch) -> Seen:
        """Encode what the losses need, once."""
        s, next_s = batch.observations, batch.next_observations
        with torch.no_grad():
            of_next = encode(self.actor, next_s), encode(self.target_critic, next_s)
        return Seen(encode(self.flow, s), encode(self.actor, s), encode(self.critic, s), *of_next)

    def critic_loss(self, batch: Batch, e: Tensor, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """TD to y = r + discount * mask * Q_target(s', a'), a' the policy's action."""
        with torch.no_grad():
            next_actions = student_action(self.actor, seen.next_actor, e).clamp(-1.0, 1.0)
            next_q = self.target_critic(seen.next_target, next_actions)
            y = batch.rewards + batch.discounts * self.aggregate(next_q)
            if self.value_range is not None:
                y = y.clamp(*self.value_range)
        return td_loss(self.critic, seen.critic, batch.actions, y)

    def policy_loss(self, batch: Batch, e: Tensor, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """alpha L_distillation + L_q at the same noise; flow and critic are used, not trained."""
        with torch.no_grad():
            target = euler(self.flow, seen.flow, e, self.flow_steps).clamp(-1.0, 1.0)
        mu = student_action(self.actor, seen.actor, e)
        distillation_loss = (mu - target).square().mean()
        of_q, q = q_loss(self.critic, seen.critic, mu, self.normalize_q)
        return self.alpha * distillation_loss + of_q, {
            "distillation_loss": distillation_loss,
            "q_loss": of_q,
            "policy_q": q,
            "out_of_bounds": (mu.detach().abs() > 1.0).float().mean(),
            "distance_to_data": (mu.detach() - batch.actions).square().mean(),
        }

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """The single-stage objective and its parts."""
        seen = self.see(batch)
        critic_loss, of_critic = self.critic_loss(batch, noise.target, seen)
        flow_loss = flow_matching_loss(self.flow, seen.flow, batch.actions, noise.flow, noise.time)
        policy_loss, of_policy = self.policy_loss(batch, noise.policy, seen)
        return critic_loss + flow_loss + policy_loss, of_critic | {"flow_loss": flow_loss} | of_policy

    # ---- one update

    def noise(self, k: int, batch_size: int, purpose: str = "update") -> Noise:
        """The random numbers of update k, a function of (seed, purpose, k)."""
        draw: dict[str, Any] = {"generator": generator(self.seed, purpose, k, self.device), "device": self.device}
        shape = (batch_size, self.spec.action_dim)
        return Noise(
            flow=self.sigma * torch.randn(shape, **draw),
            time=draw_time(batch_size, num_steps=None, instant_share=None, **draw),
            policy=self.sigma * torch.randn(shape, **draw),
            target=self.sigma * torch.randn(shape, **draw),
        )

    @torch.no_grad()
    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        """The parts of the loss on data not trained on, with the same noise each time."""
        return self.loss(batch, self.noise(0, len(batch.actions), "held out"))[1]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """The target critic's average, with the critic as it is, then one step of the three optimisers.

        The average of the policy, where there is one, comes last.
        """
        loss, metrics = self._loss(batch, self.noise(self.updates, len(batch.actions)))
        optimizers = dict(zip(self.optimizer_names, self.optimizers(), strict=True))
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        self.manual_backward(loss)
        follow_(self.target_critic, self.critic, self.tau)
        for name, optimizer in optimizers.items():
            gradients = [p.grad for p in getattr(self, name).parameters() if p.grad is not None]
            metrics[f"{name}_grad_norm"] = get_total_norm(gradients)
            optimizer.step()
        average_(self.averaged_actor, self.actor, self.actor_average, self.updates)
        metrics["alpha"] = loss.new_full((), self.alpha)
        return metrics

    def configure_optimizers(self) -> list[Adam]:
        rates = {"flow": self.actor_lr, "actor": self.actor_lr, "critic": self.critic_lr}
        return [Adam(getattr(self, name).parameters(), lr=rates[name], fused=True) for name in self.optimizer_names]
