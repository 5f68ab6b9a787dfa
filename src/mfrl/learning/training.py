"""The LightningModule: chunks of updates, counted, averaged and saved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mfrl import signals
from mfrl.algorithms.base import Algorithm
from mfrl.data.batch import Batch, DataSpec
from mfrl.data.sampling import Chunk
from mfrl.learning.learner import Learner
from mfrl.policy import Policy
from mfrl.randomness import Streams, key_of


class Training(L.LightningModule):
    """A LightningModule whose ``training_step`` runs one update per index batch of a :class:`Chunk`.

    Lightning's per-step overhead is then paid once per chunk. Progress is the number of updates, ``updates``; it is
    what schedules, random numbers, logging and resuming go by.

    Args:
        algorithm: what is trained.
        batch_size: of an update.
        compiled: see :class:`Learner`.
    """

    def __init__(self, algorithm: Algorithm, batch_size: int, compiled: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.algorithm, self.batch_size, self.compiled = algorithm, batch_size, compiled
        self.learner: Learner | None = None
        self.between_updates = True
        self.seconds_aside = 0.0
        self._saved: dict[str, Any] | None = None
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    @property
    def updates(self) -> int:
        return self.algorithm.k

    @property
    def total_updates(self) -> int:
        return self.algorithm.total_updates

    @property
    def spec(self) -> DataSpec:
        return self.algorithm.spec

    def policy(self) -> Policy:
        """What acts in an environment; shares the networks being trained."""
        return self.algorithm.policy()

    def configure_optimizers(self) -> list[Any]:
        return []  # the learner steps

    def on_fit_start(self) -> None:
        self.learner = Learner([self.algorithm], self.batch_size, self.compiled)
        if self._saved is not None:
            self.learner.load_state_dict(self._saved)
            self._saved = None

    def transfer_batch_to_device(self, batch: Chunk, device: torch.device, dataloader_idx: int) -> Chunk:
        return batch  # the transitions lie where the update runs

    def training_step(self, chunk: Chunk) -> None:
        assert self.learner is not None
        for batch in chunk:
            self.between_updates = False  # an error leaves some networks a step ahead of the others
            self._add(*self.learner.update(batch))
            self.between_updates = True
            if signals.received():  # the rest of a long chunk can wait
                return

    @torch.no_grad()
    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        """The parts of the loss on data not trained on, with the same noise each time."""
        algorithm, device = self.algorithm, self.device
        streams = Streams(algorithm.draws(len(batch.actions)), "held out", device)
        numbers = streams.numbers(key_of(algorithm.seed).to(device), torch.zeros(1, dtype=torch.int64, device=device))
        noise = streams.values({name: x[0] for name, x in numbers.items()})
        return algorithm.loss(batch, noise, algorithm.trained)[1]

    @torch.no_grad()
    def nonfinite_parameters(self) -> list[str]:
        """Names of the parameters that hold NaN or infinity."""
        names, parameters = zip(*self.algorithm.named_parameters(), strict=True)
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

    def _add(self, names: tuple[str, ...], values: Tensor) -> None:
        sums, count = self._sums.get(names, (torch.zeros_like(values), 0))
        self._sums[names] = sums.to(values.device) + values, count + 1  # from where a checkpoint put them

    def pop_metrics(self) -> dict[str, float]:
        """Means of the updates since the last call: the only place where the device is waited for."""
        means: dict[str, float] = {}
        for names, (sums, count) in self._sums.items():
            means |= zip(names, (sums / count).tolist(), strict=True)
        self._sums.clear()
        return means

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """The algorithm's, under its own names, as tensors of their own."""
        return {name: tensor.clone() for name, tensor in self.algorithm.state_dict().items()}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.algorithm.load_state_dict(state_dict, strict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.learner is not None
        checkpoint["updates"] = self.updates
        checkpoint["learner"] = self.learner.state_dict()
        # What a window of logging has added up so far, so that its row says the same after a break.
        checkpoint["window"] = [
            {"names": list(names), "sums": sums.cpu(), "count": count} for names, (sums, count) in self._sums.items()
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.algorithm.k, self._saved = checkpoint["updates"], checkpoint["learner"]
        self._sums = {tuple(part["names"]): (part["sums"], part["count"]) for part in checkpoint["window"]}
        # The data loader starts at `updates`; Lightning would otherwise skip as many chunks again.
        checkpoint.pop("loops", None)
