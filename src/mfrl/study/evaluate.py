"""Evaluation of a policy against a distribution of actions that is known: no environment, only samples.

What acts in an environment is the clipped action, so distances and modes are those of actions clipped to [-1, 1];
the share out of bounds is that of actions before clipping. Each observation gets the same number of samples, and
every number is the mean over observations of the number within one. Actions are single draws: no critic chooses.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mfrl.algorithms.policy import Policy
from mfrl.errors import ConfigError, DivergedError
from mfrl.randomness import derived_seed, generator
from mfrl.study.distances import mmd, mode_coverage, nearest_mode, off_mode, out_of_bounds, wasserstein2
from mfrl.study.toys import Toy

FLOOR_DRAWS = 4  # of the data, each compared with the reference


@dataclass(frozen=True)
class SampleEvaluation:
    """What was drawn, and how far it is from the data.

    Attributes:
        data: ``(observations, samples, 2)`` of the distribution.
        drawn: the policy's actions before clipping, of the same shape.
        scores: means over observations by their logged names.
        seconds: wall time.
    """

    data: np.ndarray
    drawn: np.ndarray
    scores: dict[str, float]
    seconds: float

    def summary(self) -> dict[str, float]:
        return self.scores

    def to_json_dict(self) -> dict[str, Any]:
        """The scores, and the number of samples as episodes of one step each."""
        groups, samples, _ = self.drawn.shape
        return {**self.scores, "episodes": groups * samples, "seconds": self.seconds}


class SampleEvaluator:
    """Draws actions from a policy, with the same noise each time, and compares them with the same draw of the data.

    Args:
        toy: the distribution.
        samples: actions in all, shared out equally among the observations.
        seed: of the noise and of the data compared with.

    Raises:
        ConfigError: fewer samples than modes.
    """

    def __init__(self, toy: Toy, samples: int = 2048, seed: int = 0) -> None:
        if samples < len(toy.centres):
            raise ConfigError(f"eval.samples={samples} must be at least {len(toy.centres)}, the modes of {toy.name}")
        self.toy, self.samples, self.seed = toy, samples, seed
        self.data = self._draw_data("data", 0)

    @cached_property
    def floor(self) -> float:
        """The 2-Wasserstein distance of so many samples of the data itself: what a perfect policy is measured at."""
        draws = [self._draw_data("floor", k) for k in range(FLOOR_DRAWS)]
        return float(np.mean([wasserstein2(x, y) for draw in draws for x, y in zip(draw, self.data, strict=True)]))

    # Not inference mode: what the policy caches here, training may later use in a graph.
    @torch.no_grad()
    def run(self, policy: Policy) -> SampleEvaluation:
        """Draw and compare.

        Raises:
            DivergedError: the policy gave an action that is not finite.
        """
        started = time.perf_counter()
        groups, samples, _ = self.data.shape
        noise = policy.sample_noise((1, groups * samples, 2), generator(self.seed, "samples", 0))
        drawn = actions(policy, self.toy, np.repeat(np.arange(groups), samples), noise).reshape(self.data.shape)
        if not np.isfinite(drawn).all():
            raise DivergedError(f"{self.toy.name}: the policy gave actions that are not finite")
        each = [self._compare(group, *clouds) for group, clouds in enumerate(zip(drawn, self.data, strict=True))]
        scores = {f"eval/{name}": float(np.mean([score[name] for score in each])) for name in each[0]}
        return SampleEvaluation(self.data, drawn, scores | {"eval/w2_floor": self.floor}, time.perf_counter() - started)

    def _draw_data(self, purpose: str, k: int) -> np.ndarray:
        rng = np.random.default_rng(derived_seed(self.seed, purpose, k))
        groups = self.toy.num_groups
        return np.stack([self.toy.sample(rng, self.samples // groups, group)[0] for group in range(groups)])

    def _compare(self, group: int, drawn: np.ndarray, data: np.ndarray) -> dict[str, float]:
        taken = drawn.clip(-1.0, 1.0)
        centres = self.toy.centres[self.toy.modes_of(group)]
        modes = nearest_mode(taken, centres, self.toy.radius, self.toy.order)
        return {
            "w2": wasserstein2(taken, data),
            "mmd": mmd(taken, data),
            "mode_coverage": mode_coverage(modes, len(centres)),
            "off_mode": off_mode(modes),
            "out_of_bounds": out_of_bounds(drawn),
        }


def actions(policy: Policy, toy: Toy, groups: np.ndarray, noise: torch.Tensor) -> np.ndarray:
    """Actions before clipping, ``(n, 2)``, for the observations of ``groups`` (n,) and the noise ``(1, n, 2)``."""
    device = policy.normalizer.mean.device
    observations = policy.normalizer(torch.from_numpy(toy.observation(groups)).to(device))
    with torch.no_grad():
        return policy.unclipped(observations, noise.to(device))[0].cpu().double().numpy()


def noise_lines(sigma: float = 1.0, lines: int = 25, points: int = 301) -> np.ndarray:
    """A square grid over the noise within 2.5 deviations: ``(2, lines, points, 2)``, upright lines first."""
    place, along = np.linspace(-2.5, 2.5, lines), np.linspace(-2.5, 2.5, points)
    across = np.stack(np.meshgrid(place, along, indexing="ij"), -1)
    return sigma * np.stack([across, across[..., ::-1]])


def displaced_lines(policy: Policy, toy: Toy, group: int = 0) -> np.ndarray:
    """Where the policy sends each point of :func:`noise_lines`, before clipping: the map from noise to action."""
    grid = noise_lines(policy.sigma)
    noise = torch.from_numpy(grid).float().reshape(1, -1, 2)
    return actions(policy, toy, np.full(noise.shape[1], group), noise).reshape(grid.shape)
