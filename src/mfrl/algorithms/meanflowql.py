r"""MeanFlowQL: one-step generative policies with Q-learning (arXiv 2511.13035).

One residual network g(s, a_t, t) is at once the velocity field of a flow from data to noise and the map from noise
to an action. It is trained in a single stage together with the Q ensemble:

    L = L_critic + L_q + w_bound L_bound + alpha L_flow
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from mfrl.algorithms.base import OfflineAlgorithm, average_, averaged, follow_
from mfrl.algorithms.ranges import check_ranges
from mfrl.data.batch import Batch, DataSpec
from mfrl.errors import ConfigError, did_you_mean
from mfrl.meanflow import (
    Time,
    bound_loss,
    draw_time,
    flow_loss,
)
from mfrl.networks import encode
from mfrl.policy import Normalizer, OneStepPolicy, best_of_n, one_step
from mfrl.q_learning import NORMALIZE_Q, Q_AGGREGATION, q_loss, td_loss
from mfrl.randomness import generator
from mfrl.reformulation import Reformulation
from mfrl.schedules import CosineAlpha, DynamicAlpha, FixedAlpha, warmup_cosine

ALPHA_SCHEDULE = {"fixed": FixedAlpha, "cosine": CosineAlpha, "dynamic": DynamicAlpha}


class Noise(NamedTuple):
    """The random numbers of one update."""

    flow: Tensor  #: (batch, action_dim) end of the path
    time: Time  #: (batch,) where on the path
    policy: Tensor  #: (batch, action_dim) for the policy loss
    target: Tensor  #: (candidate, batch, action_dim) for the Bellman target


class Seen(NamedTuple):
    """A batch's observations as each network takes them: images encoded, each once an update; states themselves."""

    actor: Tensor
    critic: Tensor
    next_actor: Tensor  #: without gradient, as the one below
    next_target: Tensor  #: by the target critic


class MeanFlowQL(OfflineAlgorithm):
    """MeanFlowQL. Defaults are the published settings (arXiv 2511.13035, Table 6).

    Args:
        spec: sizes and statistics of the data.
        actor, critic: constructors taking (observation_dim, action_dim); the actor's also takes two_times=True for a
            reformulation with a second time.
        reformulation: what the actor's output stands for.
        updates: number of offline updates, for the schedules.
        seed: of the noise (initialisation uses torch's global generator).
        encoder: constructor of the networks' image encoders; None where observations are states.
        discount, tau: of the Bellman target and of the target critic's average.
        alpha, alpha_schedule: weight of the flow loss, and how it changes: "fixed", "cosine" or "dynamic".
        num_candidates: actions to choose from when acting.
        target_candidates: the same in the Bellman target; None means as many as when acting.
        time_steps: training times are drawn from a grid of so many points; None draws them from (0, 1].
        q_aggregation: of the ensemble in the Bellman target: "mean" or "min".
        clip_targets: keep Bellman targets within what the data's rewards can add up to.
        clip_candidates: when acting, let no candidate count for more than that: where the critic promises the
            impossible, it does not choose, and the policy acts as its actor does.
        normalize_q: makes alpha independent of the reward scale: "value" divides L_q by mean |Q|, "gradient" gives
            the critic's pull on the actions a mean length of 1, "none" is the published default.
        bound_weight: weight of the bound loss.
        gamma_adaptive, c_adaptive, target_clip: of the flow loss.
        sigma: standard deviation of the noise.
        actor_lr, critic_lr, actor_warmup, actor_lr_floor, max_grad_norm: of the two Adam optimisers; the actor's rate
            warms up over a share of the updates and falls to a share of itself.
        actor_average: act with an average of the actor's weights over some 1 / actor_average updates; None, the
            published setting, acts with the weights themselves. Training is the same either way.
        compile: compile the loss with torch.compile.

    Raises:
        ConfigError: for a setting out of its range.
    """

    optimizer_names = ("actor", "critic")

    def __init__(
        self,
        spec: DataSpec,
        actor: Callable[[int, int], nn.Module],
        critic: Callable[[int, int], nn.Module],
        reformulation: Reformulation,
        updates: int,
        seed: int = 0,
        encoder: Callable[..., nn.Module] | None = None,
        discount: float = 0.995,
        tau: float = 0.005,
        alpha: float = 10.0,
        alpha_schedule: str = "dynamic",
        num_candidates: int = 5,
        target_candidates: int | None = None,
        time_steps: int | None = 50,
        q_aggregation: str = "mean",
        clip_targets: bool = False,
        clip_candidates: bool = False,
        normalize_q: str = "none",
        bound_weight: float = 1.0,
        gamma_adaptive: float = 0.8,
        c_adaptive: float = 1e-4,
        target_clip: float = 5.0,
        sigma: float = 1.0,
        actor_lr: float = 1e-4,
        critic_lr: float = 1e-4,
        actor_warmup: float = 0.05,
        actor_lr_floor: float = 0.1,
        max_grad_norm: float = 1.0,
        actor_average: float | None = None,
        compile: bool = False,
    ) -> None:
        check_ranges(locals())
        super().__init__(spec, updates, seed, encoder)
        _one_of("algo.q_aggregation", q_aggregation, Q_AGGREGATION)
        _one_of("algo.alpha_schedule", alpha_schedule, ALPHA_SCHEDULE)
        _one_of("algo.normalize_q", normalize_q, NORMALIZE_Q)
        self.target_candidates = num_candidates if target_candidates is None else target_candidates

        second = {"two_times": True} if reformulation.two_times else {}
        self.actor = self.network(actor, **second)
        self.actor_average, self.averaged_actor = actor_average, averaged(self.actor, actor_average)
        self.critic = self.network(critic)
        self.target_critic = self.network(critic).requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.alpha = ALPHA_SCHEDULE[alpha_schedule](alpha, updates)
        self.normalizer = Normalizer(torch.tensor(spec.observation_mean), torch.tensor(spec.observation_std))

        self.reformulation = reformulation
        self.num_candidates = num_candidates
        self.discount, self.tau = discount, tau
        self.value_range = spec.value_range(discount) if clip_targets else None
        self.ceiling = spec.value_range(discount)[1] if clip_candidates else math.inf
        self.aggregate = Q_AGGREGATION[q_aggregation]
        self.normalize_q = normalize_q
        self.bound_weight, self.sigma, self.time_steps = bound_weight, sigma, time_steps
        self.gamma_adaptive, self.c_adaptive, self.target_clip = gamma_adaptive, c_adaptive, target_clip
        self.actor_lr, self.critic_lr = actor_lr, critic_lr
        self.actor_warmup, self.actor_lr_floor, self.max_grad_norm = (
            actor_warmup,
            actor_lr_floor,
            max_grad_norm,
        )
        self._loss = torch.compile(self.loss, dynamic=False) if compile else self.loss

    def policy(self) -> OneStepPolicy:
        """What acts in an environment; shares the networks being trained."""
        return OneStepPolicy(
            self.averaged_actor or self.actor,
            self.target_critic,
            self.reformulation,
            self.normalizer,
            self.spec.action_dim,
            self.sigma,
            self.num_candidates,
            self.ceiling,
        )

    # ---- losses: pure functions of the parameters, a batch and random numbers

    def see(self, batch: Batch) -> Seen:
        """Encode what a loss needs, once."""
        with torch.no_grad():
            next_actor = encode(self.actor, batch.next_observations)
            next_target = encode(self.target_critic, batch.next_observations)
        actor, critic = encode(self.actor, batch.observations), encode(self.critic, batch.observations)
        return Seen(actor, critic, next_actor, next_target)

    def critic_loss(self, batch: Batch, noise: Tensor, seen: Seen | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """TD to y = r + discount * mask * Q_target(s', a'), a' the best of N one-step actions."""
        seen = seen or self.see(batch)
        with torch.no_grad():
            candidates = one_step(self.actor, self.reformulation, seen.next_actor, noise).clamp(-1.0, 1.0)
            _, next_q = best_of_n(self.target_critic, seen.next_target, candidates)
            y = batch.rewards + batch.discounts * self.aggregate(next_q)
            if self.value_range is not None:
                y = y.clamp(*self.value_range)
        return td_loss(self.critic, seen.critic, batch.actions, y)

    def flow_loss(
        self, batch: Batch, e: Tensor, time: Time, seen: Seen | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Regression of g onto the MeanFlow identity target, by one JVP along the path."""
        seen = seen or self.see(batch)
        loss, error = flow_loss(
            self.actor,
            self.reformulation,
            seen.actor,
            batch.actions,
            e,
            time,
            self.target_clip,
            self.gamma_adaptive,
            self.c_adaptive,
        )
        return loss, {"flow_loss": loss, "flow_error": error}

    def policy_loss(self, batch: Batch, e: Tensor, seen: Seen | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """L_q + w_bound L_bound at the one-step action; the critic is differentiated, not trained."""
        seen = seen or self.see(batch)
        a_hat = one_step(self.actor, self.reformulation, seen.actor, e)
        of_q, q = q_loss(self.critic, seen.critic, a_hat, self.normalize_q)
        bound = bound_loss(a_hat)
        return of_q + self.bound_weight * bound, {
            "q_loss": of_q,
            "policy_q": q,
            "bound_loss": bound,
            "out_of_bounds": (a_hat.detach().abs() > 1.0).float().mean(),
            "distance_to_data": (a_hat.detach() - batch.actions).square().mean(),
        }

    def loss(self, batch: Batch, noise: Noise, alpha: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The single-stage objective and its parts."""
        seen = self.see(batch)
        critic_loss, of_critic = self.critic_loss(batch, noise.target, seen)
        flow_loss, of_flow = self.flow_loss(batch, noise.flow, noise.time, seen)
        policy_loss, of_policy = self.policy_loss(batch, noise.policy, seen)
        total = critic_loss + policy_loss + alpha * flow_loss
        return total, of_critic | of_flow | of_policy

    # ---- one update

    def noise(self, k: int, batch_size: int, purpose: str = "update") -> Noise:
        """The random numbers of update k, a function of (seed, purpose, k)."""
        draw: dict[str, Any] = {"generator": generator(self.seed, purpose, k, self.device), "device": self.device}
        shape = (batch_size, self.spec.action_dim)
        time = draw_time(batch_size, self.time_steps, self.reformulation.instant_share, **draw)
        return Noise(
            flow=self.sigma * torch.randn(shape, **draw),
            time=time,
            policy=self.sigma * torch.randn(shape, **draw),
            target=self.sigma * torch.randn(self.target_candidates, *shape, **draw),
        )

    @torch.no_grad()
    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        """The parts of the loss on data not trained on, with the same noise each time."""
        return self.loss(batch, self.noise(0, len(batch.actions), "held out"), self.alpha.alpha)[1]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of both optimisers, then the averages and the schedules."""
        actor_optimizer, critic_optimizer = self.optimizers()
        actor_schedule = self.lr_schedulers()

        loss, metrics = self._loss(batch, self.noise(self.updates, len(batch.actions)), self.alpha.alpha)
        actor_optimizer.zero_grad()
        critic_optimizer.zero_grad()
        self.manual_backward(loss)
        metrics["actor_grad_norm"] = clip_grad_norm_(self.actor.parameters(), self.max_grad_norm)
        metrics["critic_grad_norm"] = clip_grad_norm_(self.critic.parameters(), self.max_grad_norm)
        actor_optimizer.step()
        critic_optimizer.step()
        follow_(self.target_critic, self.critic, self.tau)
        average_(self.averaged_actor, self.actor, self.actor_average, self.updates)
        metrics["alpha"] = self.alpha.alpha.clone()
        self.alpha.step(self.updates, metrics["flow_loss"].detach())
        actor_schedule.step()
        return metrics

    def configure_optimizers(self) -> tuple[list[Adam], list[LambdaLR]]:
        actor = Adam(self.actor.parameters(), lr=self.actor_lr, fused=True)
        critic = Adam(self.critic.parameters(), lr=self.critic_lr, fused=True)
        schedule = LambdaLR(
            actor, lambda k: warmup_cosine(k, self.total_updates, self.actor_warmup, self.actor_lr_floor)
        )
        return [actor, critic], [schedule]


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ConfigError(f"{name}={value} is not one of {', '.join(known)}{did_you_mean(str(value), known)}")
