"""Whether an exported graph does what PyTorch does: on random observations, and in episodes of the environment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfrl.data.batch import DataSpec
from mfrl.deploy.acting import Graph
from mfrl.deploy.formats import Run
from mfrl.envs.evaluation import Evaluation, Evaluator, Progress
from mfrl.randomness import derived_seed, generator

#: Sizes of the batches that are compared.
BATCHES = (1, 3, 50)
#: The largest difference, in units in which the bounds of actions are -1 and 1.
TOLERANCE = 1e-5
#: Candidates whose values differ by no more, relatively, are equally good: in float32 one value has about six digits.
TIE = 1e-5
#: Standard errors by which episodes may differ on average.
ERRORS = 3.0


def random_observations(spec: DataSpec, rows: int, seed: int) -> Tensor:
    """States ``(rows, observation_dim)`` with the mean and deviation of the data, or images of random bytes."""
    g = generator(seed, "observations to compare", rows)
    if spec.image_shape is not None:
        return torch.randint(256, (rows, *spec.image_shape), generator=g, dtype=torch.uint8)
    mean, std = torch.tensor(spec.observation_mean), torch.tensor(spec.observation_std)
    return mean + std * torch.randn(rows, spec.observation_dim, generator=g)


@torch.no_grad()
def largest_difference(graph: Graph, run: Run, seed: int = 0) -> float:
    """The largest difference between actions of PyTorch and of an exported graph, over all of :data:`BATCHES`.

    Where the values of several candidates agree to the last digits, rounding decides which one is the best: the
    difference is then that from the nearest of them.

    Args:
        graph: in PyTorch, on the CPU.
        run: the exported graph.
        seed: of observations and noise.

    Returns:
        in units in which the bounds of actions are -1 and 1; infinity for actions that are not finite or have another
        shape.
    """
    acting, largest = graph.acting, 0.0
    for rows in BATCHES:
        observations = random_observations(acting.interface.spec, rows, seed)
        inputs = graph.example(observations, derived_seed(seed, "noise to compare", rows))
        actions = run(inputs)
        right = right_actions(graph, inputs)
        if actions.shape != right.shape[1:] or not actions.isfinite().all():
            return math.inf
        difference = (acting.in_unit_bounds(actions) - right).abs().amax(-1).nan_to_num(nan=math.inf)
        largest = max(largest, float(difference.amin(0).max()))
    return largest


def right_actions(graph: Graph, inputs: dict[str, Tensor]) -> Tensor:
    """PyTorch's actions in [-1, 1], ``(1, batch, action_dim)``; of several candidates, ``(candidate, ...)``.

    Candidates that are not as good as the best one are infinite.
    """
    acting = graph.acting
    if acting.num_candidates == 1:
        return acting.in_unit_bounds(graph(**inputs))[None]
    noise = acting.drawn(int(inputs["seed"]), len(inputs["observation"])) if "seed" in inputs else inputs["noise"]
    candidates, scores = acting.policy.scored(inputs["observation"], acting.policy_noise(noise))
    best = scores.amax(0)
    good = scores >= best - TIE * best.abs().clamp_min(1.0)
    return candidates.masked_fill(~good[..., None], math.inf)


class Player:
    """A graph that plays episodes, in PyTorch or elsewhere.

    It takes the noise that :class:`Evaluator` draws for a policy, so that episodes are those of `mfrl eval`. A graph
    that draws its own from a seed is given the number of the step as its seed.

    Args:
        graph: in PyTorch.
        run: what acts.
    """

    def __init__(self, graph: Graph, run: Run) -> None:
        self._graph, self._run, self._steps = graph, run, 0
        self.action_dim, self.num_candidates = graph.acting.policy.action_dim, graph.acting.num_candidates

    def sample_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=generator)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions ``(batch, action_dim)`` in [-1, 1], see :class:`mfrl.envs.evaluation.Actor`."""
        inputs = self._graph.example(observations, seed=self._steps)
        if "noise" in inputs:
            inputs["noise"] = noise.transpose(0, 1).contiguous()
        self._steps += 1
        return self._graph.acting.in_unit_bounds(self._run(inputs))


@dataclass(frozen=True)
class Played:
    """The same episodes played by PyTorch and by an exported graph.

    Attributes:
        score: what was compared: ``success``, or ``return`` where the environment reports no success.
        exported, pytorch: ``(episodes,)`` scores.
    """

    score: str
    exported: np.ndarray
    pytorch: np.ndarray

    @property
    def agrees(self) -> bool:
        """Whether the means differ by no more than chance, of which rounding makes use where an episode is close.

        A thousandth of the mean score's size is allowed in any case.
        """
        d = self.exported - self.pytorch
        error = float(d.std(ddof=1)) / math.sqrt(len(d)) if len(d) > 1 else math.inf
        return abs(float(d.mean())) <= ERRORS * error + 1e-3 * float(np.abs(self.pytorch).mean())

    def to_json_dict(self) -> dict[str, Any]:
        return {
            "score": self.score,
            "exported": float(self.exported.mean()),
            "pytorch": float(self.pytorch.mean()),
            "episodes": len(self.exported),
            "equal_episodes": int(np.isclose(self.exported, self.pytorch, rtol=1e-3, atol=1e-6).sum()),
        }


def play(graph: Graph, run: Run, evaluator: Evaluator, episodes: int, progress: Progress | None = None) -> Played:
    """Play episodes with an exported graph, and the same episodes in PyTorch.

    Raises:
        DivergedError, EnvError: from :meth:`Evaluator.run`.
    """
    exported, pytorch = (
        evaluator.run(Player(graph, player), episodes, progress=progress)
        for player in (run, lambda inputs: graph(**inputs))
    )

    def scores(result: Evaluation) -> np.ndarray:
        return result.returns if result.successes is None else result.successes.astype(np.float64)

    return Played("return" if pytorch.successes is None else "success", scores(exported), scores(pytorch))
