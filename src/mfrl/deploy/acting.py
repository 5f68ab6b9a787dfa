r"""Acting as one function of tensors, from a raw observation to an action in the environment's own units.

    a = low (1 - x) / 2 + high (1 + x) / 2,    x = the best by Q of N candidates policy((s - mean) / std, sigma e)

The noise e is standard normal: an input, or drawn inside as a function of (seed, row, candidate, dimension) by the
counter-based generator of :mod:`mfrl.randomness`. Row i of a batch and a single observation with the same noise get the
same action, but for rounding.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mfrl.algorithms.policy import Policy
from mfrl.deploy.interface import Interface
from mfrl.randomness import Normal, Streams, key_of


class Acting(nn.Module):
    """Normalise, act, choose among candidates, clip, and scale to the bounds of the environment's actions.

    Args:
        policy: takes actions in [-1, 1].
        interface: has the bounds.
        num_candidates: N; None: as many as the policy was trained with.

    Raises:
        ConfigError: the policy cannot choose among so many.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: Policy, interface: Interface, num_candidates: int | None = None) -> None:
        super().__init__()
        self.policy, self.interface = policy, interface
        self.num_candidates = policy.num_candidates if num_candidates is None else num_candidates
        policy.check_candidates(self.num_candidates)
        self.register_buffer("low", torch.tensor(interface.low))
        self.register_buffer("high", torch.tensor(interface.high))
        self.scales = not all(bound == (-1.0, 1.0) for bound in zip(interface.low, interface.high, strict=True))
        self._streams = Streams({"noise": Normal((self.num_candidates, policy.action_dim))}, "acting")

    def drawn(self, seed: int | Tensor, rows: int) -> Tensor:
        """Standard normal noise ``(rows, num_candidates, action_dim)``.

        Args:
            seed: in [0, 2^63); a tensor of no dimensions where it is an input of the exported graph.
        """
        numbers = self._streams.numbers(key_of(seed), torch.arange(rows))["noise"]
        count = self.num_candidates * self.policy.action_dim
        return numbers[:, :count].unflatten(1, (self.num_candidates, self.policy.action_dim))

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions ``(batch, action_dim)``.

        Args:
            observation: ``(batch, ...)``, see :attr:`Interface.shape`.
            noise: standard normal, ``(batch, candidate, action_dim)``.
        """
        return self.in_units(self.policy.act(observation, self.policy_noise(noise)))

    def policy_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise as :meth:`Policy.act` takes it, ``(candidate, batch, action_dim)``."""
        return self.policy.sigma * noise.transpose(0, 1)

    def in_units(self, x: Tensor) -> Tensor:
        """From [-1, 1] to the environment's units; -1 and 1 become the bounds exactly."""
        if not self.scales:
            return x
        a = self.low * (0.5 * (1.0 - x)) + self.high * (0.5 * (1.0 + x))
        return torch.minimum(torch.maximum(a, self.low), self.high)  # what rounding might lead out of them

    def in_unit_bounds(self, a: Tensor) -> Tensor:
        """From the environment's units to [-1, 1]."""
        low, high = self.low.double(), self.high.double()
        return ((2.0 * a.double() - low - high) / (high - low)).to(a.dtype)


class Graph(nn.Module):
    """Acting with one choice of inputs, to be exported.

    Attributes:
        inputs: names of the arguments of ``forward``, in their order.
    """

    inputs: ClassVar[tuple[str, ...]]

    def __init__(self, acting: Acting) -> None:
        super().__init__()
        self.acting = acting

    def example(self, observation: Tensor, seed: int) -> dict[str, Tensor]:
        """The inputs by their names for observations ``(batch, ...)``; what is random is drawn from ``seed``."""
        raise NotImplementedError


class FromNoise(Graph):
    """Noise is an input."""

    inputs = ("observation", "noise")

    def example(self, observation: Tensor, seed: int) -> dict[str, Tensor]:
        return {"observation": observation, "noise": self.acting.drawn(seed, len(observation))}

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        return self.acting(observation, noise)


class FromSeed(Graph):
    """Noise is drawn inside from a seed, an int64 number without dimensions."""

    inputs = ("observation", "seed")

    def example(self, observation: Tensor, seed: int) -> dict[str, Tensor]:
        return {"observation": observation, "seed": torch.tensor(seed)}

    def forward(self, observation: Tensor, seed: Tensor) -> Tensor:
        return self.acting(observation, self.acting.drawn(seed, observation.shape[0]))


class FromObservation(Graph):
    """A deterministic policy takes no noise."""

    inputs = ("observation",)

    def example(self, observation: Tensor, seed: int) -> dict[str, Tensor]:
        return {"observation": observation}

    def forward(self, observation: Tensor) -> Tensor:
        return self.acting(observation, torch.zeros(observation.shape[0], 1, self.acting.policy.action_dim))
