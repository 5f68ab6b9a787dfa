"""A policy out of a checkpoint, called with observations as the environment gives them.

No Lightning, no Hydra and no simulator is imported: PyTorch, NumPy and the checkpoint are enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mfrl.algorithms.policy import Policy
from mfrl.deploy.acting import Acting
from mfrl.deploy.interface import Interface
from mfrl.errors import ConfigError, require
from mfrl.runs.checkpoint import find_checkpoint
from mfrl.runs.load import load_algorithm
from mfrl.runs.saved import Saved


class LoadedPolicy:
    """A trained policy: raw observations in, actions in the environment's own units out.

    Args:
        policy: of the algorithm, folded for acting.
        interface: how the environment's observations and actions become the policy's, and back.
        origin: where it comes from, e.g. the path of the checkpoint.

    Attributes:
        num_candidates: N as trained: among so many actions the critic chooses.
    """

    def __init__(self, policy: Policy, interface: Interface, origin: Mapping[str, Any]) -> None:
        self.policy, self.interface, self.origin = policy.eval(), interface, dict(origin)
        self._acting: dict[int, Acting] = {}

    @property
    def num_candidates(self) -> int:
        return self.policy.num_candidates

    @property
    def low(self) -> np.ndarray:
        """The lowest actions ``(action_dim,)``, in the environment's units."""
        return np.array(self.interface.low, np.float32)

    @property
    def high(self) -> np.ndarray:
        """The highest actions ``(action_dim,)``, in the environment's units."""
        return np.array(self.interface.high, np.float32)

    def __repr__(self) -> str:
        o, i = self.origin, self.interface
        return (
            f"{o['algorithm']} after {o['updates']:,} updates, for {i.env_id}: observations {i.shape}, "
            f"{len(i.low)} actions from {list(i.low)} to {list(i.high)}, {self.num_candidates} candidates"
        )

    def to(self, device: torch.device | str) -> Self:
        """The same policy, now on another device."""
        self.policy.to(device)
        self._acting.clear()
        return self

    def acting(self, num_candidates: int | None = None) -> Acting:
        """The function of tensors that is called here and exported elsewhere.

        Raises:
            ConfigError: this policy cannot choose among so many candidates.
        """
        n = self.num_candidates if num_candidates is None else num_candidates
        if n not in self._acting:
            self._acting[n] = Acting(self.policy, self.interface, n).to(self.policy.normalizer.mean.device).eval()
        return self._acting[n]

    @torch.no_grad()
    def __call__(self, observation: Any, *, seed: int | None = None, num_candidates: int | None = None) -> Any:
        """The action for an observation, or the actions for a batch.

        Args:
            observation: one, or a batch with a leading dimension, as the environment gives it: a NumPy array, a torch
                tensor, or a dictionary of them, whose entries become one vector as in training. Images are uint8
                ``(frames, height, width, channels)``, the oldest first.
            seed: of the policy's noise, in [0, 2^63): the same seed and observation give the same action, those of the
                exported graph too. None draws new noise from torch's global generator.
            num_candidates: among so many actions the critic chooses; None: as trained.

        Returns:
            float32 ``(action_dim,)``, or ``(n, action_dim)`` of a batch, in the environment's units; a tensor on the
            observation's device if that was a tensor, else an array.

        Raises:
            DataError: the observation has another shape or type, lacks an entry, or is not finite.
            ConfigError: the seed or the number of candidates cannot be used.
        """
        x, single, noise, acting = self._inputs(observation, seed, num_candidates)
        return _like(observation, acting(x, noise), single)

    @torch.no_grad()
    def value(self, observation: Any, *, seed: int | None = None, num_candidates: int | None = None) -> Any:
        """The critic's mean Q of the action that the policy takes: a number for each observation.

        Arguments as of a call; the same seed gives the value of the same action.

        Returns:
            float32, without dimensions or ``(n,)`` of a batch; an array or a tensor as of a call.

        Raises:
            ConfigError: the algorithm imitates the data and has no values.
        """
        if self.policy.critic is None:
            raise ConfigError(f"{self.origin['algorithm']} learns no values: its policy imitates the data")
        x, single, noise, acting = self._inputs(observation, seed, num_candidates)
        return _like(observation, self.policy.value(x, acting.policy_noise(noise)), single)

    def _inputs(
        self, observation: Any, seed: int | None, num_candidates: int | None
    ) -> tuple[Tensor, bool, Tensor, Acting]:
        acting = self.acting(num_candidates)
        x, single = self.interface.batch(observation)
        if seed is None:
            noise = torch.randn(len(x), acting.num_candidates, self.policy.action_dim)
        else:
            whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool) and 0 <= seed < 2**63
            require("seed", whole, seed, "a whole number from 0 to 2^63 - 1")
            noise = acting.drawn(int(seed), len(x))
        device = self.policy.normalizer.mean.device
        return x.to(device), single, noise.to(device), acting


def load(path: str | Path, trust: Sequence[str] = ()) -> LoadedPolicy:
    """The policy of a run folder or checkpoint, see :func:`mfrl.load`."""
    path = find_checkpoint(path)
    algorithm, record = load_algorithm(path, tuple(trust))
    origin = {
        "ckpt": str(path),
        "algorithm": Saved(record["config"]).plain("algo_name"),
        "updates": algorithm.k,
        "provenance": record["provenance"],
    }
    return LoadedPolicy(algorithm.policy().folded(), Interface.of(algorithm.spec, record, path), origin)


def _like(observation: Any, result: Tensor, single: bool) -> Any:
    """A result as the observation came: one or several, an array or a tensor on its device."""
    first = next(iter(observation.values())) if isinstance(observation, Mapping) else observation
    result = result[0] if single else result
    return result.to(first.device) if isinstance(first, Tensor) else result.cpu().numpy()
