"""What every offline algorithm shares with Lightning: chunks of updates, counted, averaged and saved."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from mfrl import signals
from mfrl.data.batch import Batch, DataSpec
from mfrl.data.sampling import Chunk
from mfrl.errors import ConfigError
from mfrl.policy import Policy


class OfflineAlgorithm(L.LightningModule):
    """A LightningModule whose ``training_step`` runs one update per index batch of a :class:`Chunk`.

    Lightning's per-step overhead is then paid once per chunk. Progress is the number of updates, ``updates``; it is
    what schedules, random numbers, logging and resuming go by (Lightning's own ``global_step`` counts the steps
    of all optimisers).

    A subclass defines ``update(batch)``, one gradient step that returns scalars without synchronising,
    ``held_out(batch)``, the same scalars without a step, ``policy()``, and ``configure_optimizers`` with a name for
    each optimiser in ``optimizer_names``. It makes its networks with ``network`` and calls them with what
    :func:`mfrl.networks.encode` gives instead of observations.

    Args:
        spec: sizes and statistics of the data.
        updates: number of updates, for the schedules.
        seed: of the noise.
        encoder: constructor taking an image's (frames, height, width, channels); None where observations are states.

    Raises:
        ConfigError: for images without an encoder, or states with one.
    """

    optimizer_names: tuple[str, ...]

    def __init__(
        self, spec: DataSpec, updates: int, seed: int, encoder: Callable[..., nn.Module] | None = None
    ) -> None:
        super().__init__()
        if spec.image_shape is not None and encoder is None:
            raise ConfigError("observations are images, which the networks need an encoder for: choose encoder=impala")
        if spec.image_shape is None and encoder is not None:
            raise ConfigError("observations are states, which an encoder of images has no use for: leave encoder= out")
        self.total_updates = updates
        self.automatic_optimization = False
        self.spec = spec
        self.seed = seed
        self._encoder = encoder
        self.updates = 0
        self.between_updates = True
        self.seconds_aside = 0.0
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._count = 0

    def network(self, constructor: Callable[..., nn.Module], **options: Any) -> nn.Module:
        """A network for the data: of states, or behind an image encoder of its own, which is a part of it.

        Args:
            constructor: takes (observation_dim, action_dim), for images the features' number in place of the former.
        """
        if self._encoder is None:
            return constructor(self.spec.observation_dim, self.spec.action_dim, **options)
        encoder = self._encoder(self.spec.image_shape)
        network = constructor(encoder.width, self.spec.action_dim, **options)
        network.image_encoder = encoder
        return network

    def update(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def policy(self) -> Policy:
        raise NotImplementedError

    def refuse_variant(self, variant: Mapping[str, Any] | None) -> None:
        """For an algorithm that has nothing to reformulate: ``{name: none}`` is all its variant may be.

        Raises:
            ConfigError: for another, which would be of no effect.
        """
        if variant is not None and variant != {"name": "none"}:
            raise ConfigError(
                f"{type(self).__name__} has nothing to reformulate: leave variant= out, which would be of no effect"
            )

    @torch.no_grad()
    def nonfinite_parameters(self) -> list[str]:
        """Names of the parameters that hold NaN or infinity."""
        names, parameters = zip(*self.named_parameters(), strict=True)
        finite = torch.stack([p.isfinite().all() for p in parameters]).tolist()
        return [name for name, holds in zip(names, finite, strict=True) if not holds]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is no training (an evaluation, a checkpoint), so that throughput does not count its time.

        Meanwhile networks are in evaluation mode (no dropout); afterwards each is in the mode it was in.
        """
        start, modes = time.perf_counter(), [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            self.seconds_aside += time.perf_counter() - start

    def transfer_batch_to_device(self, batch: Chunk, device: torch.device, dataloader_idx: int) -> Chunk:
        return batch  # the transitions lie where the update runs

    def training_step(self, chunk: Chunk) -> None:
        for batch in chunk:
            self.between_updates = False  # an error leaves some networks a step ahead of the others
            self._add(self.update(batch))
            self.updates += 1
            self.between_updates = True
            if signals.received():  # the rest of a long chunk can wait
                return

    def _add(self, metrics: dict[str, Tensor]) -> None:
        values = torch.stack([value.detach() for value in metrics.values()])
        if self._sums is None:
            self._names, self._sums = list(metrics), torch.zeros_like(values)
        self._sums = self._sums.to(values.device)  # from where a checkpoint put them
        self._sums += values
        self._count += 1

    def pop_metrics(self) -> dict[str, float]:
        """Means of the updates since the last call: the only place where the device is waited for."""
        if self._sums is None or self._count == 0:
            return {}
        means = dict(zip(self._names, (self._sums / self._count).tolist(), strict=True))
        self._sums, self._count = None, 0
        return means

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["updates"] = self.updates
        # What a window of logging has added up so far, so that its row says the same after a break.
        sums = None if self._sums is None else self._sums.cpu()
        checkpoint["window"] = {"names": self._names, "sums": sums, "count": self._count}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.updates = checkpoint["updates"]
        if window := checkpoint.get("window"):
            self._names, self._sums, self._count = list(window["names"]), window["sums"], window["count"]
        # The data loader starts at `updates`; Lightning would otherwise skip as many chunks again.
        checkpoint.pop("loops", None)


def averaged(actor: nn.Module, rate: float | None) -> nn.Module | None:
    """A copy of the actor that acts in its place and follows its weights by :func:`average_`, outside the gradient.

    The last iterate at a constant learning rate keeps moving, and a policy that drives into a wall one update later
    fails all of its episodes at once; its average over some 1 / rate updates does not move (Polyak and Juditsky 1992).

    Args:
        rate: of the average, in (0, 1]; None: the actor acts itself, and there is no copy.
    """
    return None if rate is None else copy.deepcopy(actor).requires_grad_(False)


@torch.no_grad()
def follow_(target: nn.Module, source: nn.Module, rate: float) -> None:
    """target <- target + rate (source - target), parameter by parameter and in place."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def average_(target: nn.Module | None, source: nn.Module, rate: float | None, k: int) -> None:
    """Take the weights after update k into what :func:`averaged` made, if it made anything.

    Until 1 / rate updates have passed, it is the mean of all weights so far, so that it does not lag behind the start;
    the initial weights are left out altogether.
    """
    if target is not None and rate is not None:
        follow_(target, source, max(rate, 1.0 / (k + 1)))
