"""The LightningModule: it runs chunks of updates, averages their scalars, and saves and loads them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from mfrl.errors import CheckpointError
from mfrl.learning.compiling import Compiled
from mfrl.learning.learner import Learner
from mfrl.randomness import Streams, key_of
from mfrl.system import signals

if TYPE_CHECKING:
    from mfrl.algorithms.base import Algorithm
    from mfrl.algorithms.policy import Policy
    from mfrl.data.batch import Batch, DataSpec
    from mfrl.data.sampling import Chunk
    from mfrl.learning.online import Online, OnlineChunk


@dataclass
class Window:
    """Sums of the scalars of all updates since the last logging.

    Attributes:
        sums: ``(scalars, members)``.
        counts: number of updates in the sums, by member.
    """

    sums: Tensor
    counts: list[int]

    @classmethod
    def empty(cls, scalars: int, members: int) -> Window:
        return cls(torch.zeros(scalars, members), [0] * members)


class Trained:
    """The interface that callbacks use of an algorithm in training."""

    algorithm: Algorithm

    @property
    def updates(self) -> int:
        return self.algorithm.k

    @property
    def total_updates(self) -> int:
        return self.algorithm.total_updates

    @property
    def changes_phase(self) -> bool:
        """Whether the offline phase is over now, and the online phase begins."""
        return self.updates == self.algorithm.first_online

    @property
    def spec(self) -> DataSpec:
        return self.algorithm.spec

    def policy(self) -> Policy:
        """The policy that acts in an environment. It shares the networks that are being trained."""
        return self.algorithm.policy()

    @torch.no_grad()
    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        """The loss's scalars on held-out data, with the same random numbers in each call."""
        algorithm, device = self.algorithm, batch.actions.device
        streams = Streams(algorithm.draws(len(batch.actions)), "held out", device)
        numbers = streams.numbers(key_of(algorithm.seed).to(device), torch.zeros(1, dtype=torch.int64, device=device))
        drawn = streams.values({name: x[0] for name, x in numbers.items()})
        return algorithm.loss(batch, drawn, algorithm.trained)[1]

    @torch.no_grad()
    def nonfinite_parameters(self) -> list[str]:
        """Names of the parameters that hold NaN or infinity."""
        names, parameters = zip(*self.algorithm.named_parameters(), strict=True)
        finite = torch.stack([p.isfinite().all() for p in parameters]).tolist()
        return [name for name, holds in zip(names, finite, strict=True) if not holds]

    def own_state(self) -> dict[str, Tensor]:
        """Copies of parameters and buffers, which are otherwise views of tensors that all members share."""
        return {name: tensor.clone() for name, tensor in self.algorithm.state_dict().items()}


class Training(Trained, L.LightningModule):
    """A LightningModule whose ``training_step`` runs one update per index batch of a :class:`Chunk`.

    Lightning's overhead for a step is then paid once a chunk. Schedules, random numbers, logging and resuming depend on
    ``updates``, the number of updates made.

    Args:
        algorithm: the algorithm to train.
        batch_size: number of transitions in an update.
        compiled: see :class:`Learner`.
        beside: further members of a population. :class:`Member` makes each look like a training of its own.

    Attributes:
        online: the online phase; None without one.
    """

    def __init__(
        self, algorithm: Algorithm, batch_size: int, compiled: Compiled = False, beside: Sequence[Algorithm] = ()
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.algorithm, self.batch_size, self.compiled = algorithm, batch_size, compiled
        self.beside = nn.ModuleList(beside)
        self.learner: Learner | None = None
        self.online: Online | None = None
        self.between_updates = True
        self.seconds_aside = 0.0
        self.stamp = time.monotonic()  # of the last chunk's end: by one clock all members do the same
        self._saved: dict[int, Any] = {}  # of the learner, by member, until there is one
        self._windows: dict[tuple[str, ...], Window] = {}  # by the scalars' names, which differ between stages

    def configure_optimizers(self) -> list[Any]:
        return []  # the learner steps

    def on_fit_start(self) -> None:
        self.learner = Learner([self.algorithm, *self.beside], self.batch_size, self.compiled)
        for member, saved in self._saved.items():
            try:
                self.learner.load_state_dict(saved, member)
            except Exception as error:  # of whatever kinds what is no such state may raise
                raise CheckpointError(f"the checkpoint's moments of Adam do not fit its networks: {error!r}") from error
        self._saved.clear()

    def transfer_batch_to_device(self, batch: Chunk | OnlineChunk, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the transitions lie where the update runs

    def training_step(self, chunk: Chunk | OnlineChunk) -> None:
        assert self.learner is not None
        for batch in chunk:
            self.between_updates = False  # an error leaves some networks a step ahead of the others
            self._add(*self.learner.update(batch))
            self.between_updates = True
            if signals.received():  # the rest of a long chunk can wait
                break
        self.stamp = time.monotonic()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A context for work that is not training (an evaluation, a checkpoint). Throughput leaves out its time.

        Inside, all networks are in evaluation mode (no dropout); afterwards each returns to its mode.
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
        window = self._window(names)
        window.sums = window.sums.to(values.device)  # from where a checkpoint put them
        window.sums += values.view(window.sums.shape)
        window.counts = [count + 1 for count in window.counts]

    def _window(self, names: tuple[str, ...]) -> Window:
        if names not in self._windows:
            self._windows[names] = Window.empty(len(names), 1 + len(self.beside))
        return self._windows[names]

    def pop_metrics(self, member: int = 0) -> dict[str, float]:
        """The scalars' means over the updates since the last call. Only here does the CPU wait for the device."""
        means: dict[str, float] = {}
        for names, window in self._windows.items():
            if window.counts[member]:
                means |= zip(names, (window.sums[:, member] / window.counts[member]).tolist(), strict=True)
                window.sums[:, member] = 0.0
                window.counts[member] = 0
        return means

    def pop_online(self, member: int = 0) -> dict[str, float]:
        """The scores of the interaction since the last call; nothing before it begins."""
        return {} if self.online is None else self.online.pop_metrics(member)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]  # no prefix, no destination
        """Copies of the algorithm's parameters and buffers, under the algorithm's own names."""
        return self.own_state()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.algorithm.load_state_dict(state_dict, strict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.load(checkpoint)
        # The data loader starts at `updates`. With a count of its own, Lightning would skip as many chunks again.
        checkpoint.pop("loops", None)

    def save(self, checkpoint: dict[str, Any], member: int = 0) -> None:
        """Add to a checkpoint everything, besides parameters, that a member needs to resume."""
        assert self.learner is not None
        checkpoint["updates"] = self.updates
        checkpoint["learner"] = self.learner.state_dict(member)
        if self.online is not None and (interaction := self.online.state_dict(member)) is not None:
            checkpoint["online"] = interaction
        # What a window of logging has added up so far, so that its row says the same after a break.
        checkpoint["window"] = [
            {"names": list(names), "sums": window.sums[:, member].cpu(), "count": window.counts[member]}
            for names, window in self._windows.items()
            if window.counts[member]
        ]

    def load(self, checkpoint: dict[str, Any], member: int = 0) -> None:
        """Load what :meth:`save` added. All members must be at the same update."""
        for algorithm in (self.algorithm, *self.beside):
            algorithm.k = checkpoint["updates"]
        self._saved[member] = checkpoint["learner"]
        if self.online is not None and "online" in checkpoint:
            self.online.load_state_dict(checkpoint["online"], member)
        for part in checkpoint["window"]:
            window = self._window(tuple(part["names"]))
            window.sums[:, member], window.counts[member] = part["sums"], part["count"]


def lightnings_part() -> dict[str, Any]:
    """What Lightning wants of a checkpoint for itself; of a training that steps and counts by itself it says nothing.

    The data loader starts at ``updates``: with a count of its own, Lightning would skip as many chunks again.
    """
    return {
        "pytorch-lightning_version": L.__version__,
        "epoch": 0,
        "global_step": 0,
        "loops": None,
        "optimizer_states": [],
        "lr_schedulers": [],
    }


class Member(Trained):
    """One member of a population. Callbacks use it as they use the :class:`Training` of a single run."""

    def __init__(self, training: Training, index: int) -> None:
        self.training, self.index = training, index
        self.algorithm = [training.algorithm, *training.beside][index]

    @property
    def device(self) -> torch.device:
        return self.training.device

    @property
    def learner(self) -> Learner | None:
        return self.training.learner

    @property
    def between_updates(self) -> bool:
        return self.training.between_updates

    @property
    def seconds_aside(self) -> float:
        return self.training.seconds_aside

    @property
    def stamp(self) -> float:
        return self.training.stamp

    def aside(self) -> AbstractContextManager[None]:
        return self.training.aside()

    def pop_metrics(self) -> dict[str, float]:
        return self.training.pop_metrics(self.index)

    def pop_online(self) -> dict[str, float]:
        return self.training.pop_online(self.index)

    @property
    def online(self) -> Online | None:
        return self.training.online

    def checkpoint(self) -> dict[str, Any]:
        """The checkpoint that Lightning would write of a single run, so that a single run can resume from it."""
        checkpoint = lightnings_part() | {"state_dict": self.own_state(), "callbacks": {}}
        self.training.save(checkpoint, self.index)
        return checkpoint
