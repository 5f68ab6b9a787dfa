"""The interface of every algorithm: networks, draws, loss, groups, averages and policy. The learner takes the steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mfrl.algorithms.groups import Average, Group
from mfrl.algorithms.policy import Normalizer, Policy
from mfrl.data.batch import Batch, DataSpec
from mfrl.errors import ConfigError
from mfrl.networks.encoder import EncodedNetwork
from mfrl.q_learning import Values
from mfrl.randomness import Draw
from mfrl.schedules import FixedAlpha
from mfrl.settings import Settings, check


class Algorithm(nn.Module):
    """One seed of an algorithm. :class:`mfrl.learning.learner.Learner` trains it.

    A subclass makes its networks with :meth:`network`, sets ``groups`` and ``averages``, and defines :meth:`draws`,
    :meth:`loss` and :meth:`policy`. Its settings are a frozen dataclass, ``Settings``; the fields are keyword arguments
    of the constructor. docs/architecture.md has a complete example.

    Args:
        spec: sizes and statistics of the data.
        updates: number of updates, for the schedules.
        seed: of the random numbers of all updates. Initialisation uses torch's global generator instead.
        encoder: constructor that takes an image's (frames, height, width, channels); None where observations are
            states.
        variant: for an algorithm without a reformulation, which accepts only ``{name: none}``.
        settings: fields of ``Settings``.

    Attributes:
        groups: the networks that take steps, and how.
        averages: the networks that follow others on average.
        k: number of updates made.
        first_online, online_alpha: from :meth:`go_online`; None without an online phase.

    Raises:
        ConfigError: images without an encoder, or states with one; a setting out of its range; a variant that would
            have no effect.
    """

    Settings: ClassVar[type[Settings]]
    groups: tuple[Group, ...]
    averages: tuple[Average, ...] = ()
    alpha: FixedAlpha  #: of an algorithm that has one
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
        self.first_online: int | None = None
        self.online_alpha: float | None = None

    def network(self, constructor: Callable[..., nn.Module], **options: Any) -> EncodedNetwork:
        """A network of the data's sizes. Images get an encoder, one for each network.

        Args:
            constructor: takes (observation_dim, action_dim); for images, observation_dim is the number of features.
            options: further arguments of the constructor.
        """
        if self._encoder is None:
            return EncodedNetwork(constructor(self.spec.observation_dim, self.spec.action_dim, **options))
        encoder = self._encoder(self.spec.image_shape)
        return EncodedNetwork(constructor(encoder.width, self.spec.action_dim, **options), encoder)

    def draws(self, batch_size: int) -> dict[str, Draw]:
        """What :meth:`loss` needs of random numbers in an update, by name. Each name is a stream of its own."""
        return {}

    def loss(
        self, batch: Batch, drawn: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and the scalars to log, as a pure function of parameters, buffers and arguments.

        Args:
            batch: transitions, see :class:`mfrl.data.batch.Batch`.
            drawn: the random numbers that :meth:`draws` asked for, by the same names.
            trained: names of the networks that take a step in this update. The loss may leave out terms that train
                none of them.
        """
        raise NotImplementedError

    def after(self, k: Tensor, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New values of buffers after update k (0-based), by name, e.g. of alpha.

        Args:
            metrics: the scalars of the update, without gradient.
        """
        return {}

    def policy(self) -> Policy:
        """The policy that acts in an environment. It shares the networks that are being trained."""
        raise NotImplementedError

    def explorer(self) -> Policy:
        """The policy that interacts with an environment to learn from it. It shares the networks, too."""
        return self.policy()

    def go_online(self, first: int, updates: int, alpha: float | None = None) -> None:
        """Learn from what the policy meets in an environment, in so many updates from update ``first`` on.

        Updates that come after those of the constructor keep the rates of the last one.

        Args:
            alpha: of these updates; None: it goes on as it is.

        Raises:
            ConfigError: the algorithm learns no values, and with them nothing from rewards; or it has no alpha.
        """
        if not isinstance(self.settings, Values):
            raise ConfigError(
                f"{type(self).__name__} imitates its data and learns nothing from rewards, so it does not go online: "
                "leave online.steps at 0"
            )
        if alpha is not None and not hasattr(self, "alpha"):
            raise ConfigError(f"{type(self).__name__} has no alpha: leave online.alpha out")
        last, self.first_online, self.online_alpha = self.total_updates, first, alpha
        self.total_updates = first + updates
        beyond = self.total_updates - last
        self.groups = tuple(replace(g, beyond=beyond) if g.end == last else g for g in self.groups)

    def begin_online(self) -> None:
        """Take over what changes with the first online update."""
        if self.online_alpha is not None:
            self.alpha.go_on_with(self.online_alpha)

    def encode(self, observations: Tensor, *networks: str) -> dict[str, Tensor]:
        """The features that each of these networks takes, by its name; states stay as they are."""
        return {name: getattr(self, name).encode(observations) for name in networks}

    def forward(self, method: str, *arguments: Any) -> Any:
        """Call a method by name: :func:`torch.func.functional_call` can only call ``forward``."""
        return getattr(self, method)(*arguments)

    @property
    def discount(self) -> float:
        """The discount of learned values; 1 for an algorithm that learns no values."""
        return self.settings.discount if isinstance(self.settings, Values) else 1.0

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of all networks that take a step in some update."""
        return tuple(group.network for group in self.groups)


def frozen_copy(network: EncodedNetwork) -> EncodedNetwork:
    """A copy that takes no step: the averaged actor that acts, or the critic of the Bellman target.

    At a constant learning rate weights keep moving, and one update can make a policy fail all of its episodes. The
    average of the weights over about 1 / rate updates is steady (Polyak and Juditsky 1992).
    """
    return copy.deepcopy(network).requires_grad_(False)
