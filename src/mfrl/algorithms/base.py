"""What every algorithm says of itself: networks, draws, loss, groups, averages and policy. No step is taken here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mfrl.algorithms.groups import Average, Group
from mfrl.algorithms.policy import Normalizer, Policy
from mfrl.data.batch import Batch, DataSpec
from mfrl.errors import ConfigError
from mfrl.networks.encoder import Sees
from mfrl.q_learning import Values
from mfrl.randomness import Draw
from mfrl.settings import Settings, check


class Algorithm(nn.Module):
    """One seed of an algorithm, as its paper writes it; :class:`mfrl.learning.learner.Learner` trains it.

    A subclass makes its networks with :meth:`network`, sets ``groups`` and ``averages``, and defines :meth:`draws`,
    :meth:`loss` and :meth:`policy`. Its settings are a frozen dataclass, ``Settings``, whose fields are arguments of
    its constructor.

    Args:
        spec: sizes and statistics of the data.
        updates: number of offline updates, for the schedules.
        seed: of the random numbers of its updates (initialisation uses torch's global generator).
        encoder: constructor taking an image's (frames, height, width, channels); None where observations are states.
        variant: the chosen reformulation, for an algorithm that has none: ``{name: none}`` is all it may be.
        settings: fields of ``Settings``.

    Attributes:
        groups: what takes a step, and how.
        averages: what follows on average.
        k: how many updates its parameters have seen.

    Raises:
        ConfigError: for images without an encoder, or states with one; for a setting out of its range; for a variant
            that would be of no effect.
    """

    Settings: ClassVar[type[Settings]]
    groups: tuple[Group, ...]
    averages: tuple[Average, ...] = ()
    next_actions: ClassVar[bool] = False  #: whether batches hold the data's next actions

    def __init__(
        self,
        spec: DataSpec,
        updates: int,
        seed: int = 0,
        encoder: Callable[..., nn.Module] | None = None,
        variant: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if spec.image_shape is not None and encoder is None:
            raise ConfigError("observations are images, which the networks need an encoder for: choose encoder=impala")
        if spec.image_shape is None and encoder is not None:
            raise ConfigError("observations are states, which an encoder of images has no use for: leave encoder= out")
        if variant is not None and variant != {"name": "none"}:
            raise ConfigError(
                f"{type(self).__name__} has nothing to reformulate: leave variant= out, which would be of no effect"
            )
        check("updates", updates)
        check("seed", seed)
        self.spec, self.total_updates, self.seed, self._encoder = spec, updates, seed, encoder
        self.settings = self.Settings(**settings)
        self.normalizer = Normalizer(torch.tensor(spec.observation_mean), torch.tensor(spec.observation_std))
        self.k = 0

    def network(self, constructor: Callable[..., nn.Module], **options: Any) -> Sees:
        """A network for the data: of states, or behind an image encoder of its own, which is a part of it.

        Args:
            constructor: takes (observation_dim, action_dim), for images the features' number in place of the former.
        """
        if self._encoder is None:
            return Sees(constructor(self.spec.observation_dim, self.spec.action_dim, **options))
        encoder = self._encoder(self.spec.image_shape)
        return Sees(constructor(encoder.width, self.spec.action_dim, **options), encoder)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        """The random numbers of an update, by name."""
        return {}

    def loss(
        self, batch: Batch, noise: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised and the scalars to log: a pure function of parameters, buffers and arguments.

        Args:
            noise: what :meth:`draws` asked for.
            trained: names of the networks that take a step; terms that train none of them may be left out.
        """
        raise NotImplementedError

    def after(self, k: Tensor, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New values of buffers after update k (0-based), by name, e.g. of alpha.

        Args:
            metrics: of the update, without gradient.
        """
        return {}

    def policy(self) -> Policy:
        """What acts in an environment; shares the networks being trained."""
        raise NotImplementedError

    def see(self, observations: Tensor, *networks: str) -> dict[str, Tensor]:
        """Observations as each of these networks takes them: images encoded, each once; states themselves."""
        return {name: getattr(self, name).see(observations) for name in networks}

    def forward(self, method: str, *arguments: Any) -> Any:
        """Any method, for :func:`torch.func.functional_call`, which calls a module with other parameters."""
        return getattr(self, method)(*arguments)

    @property
    def discount(self) -> float:
        """What values are discounted by; 1 where none is learned."""
        return self.settings.discount if isinstance(self.settings, Values) else 1.0

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of all networks that ever take a step."""
        return tuple(group.network for group in self.groups)


def frozen_copy(network: Sees) -> Sees:
    """A copy that takes no step: of the actor, to act with its average; of the critic, for the Bellman target.

    The last iterate at a constant learning rate keeps moving, and a policy that drives into a wall one update later
    fails all of its episodes at once; its average over some 1 / rate updates does not move (Polyak and Juditsky 1992).
    """
    return copy.deepcopy(network).requires_grad_(False)
