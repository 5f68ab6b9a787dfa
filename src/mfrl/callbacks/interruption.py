"""Stops training when a signal arrives."""

from __future__ import annotations

import signal
from typing import Any

import lightning as L

from mfrl.system import signals


class Interruption(L.Callback):
    """Checks between two chunks for a signal, and handles signals in place of Lightning.

    Lightning installs its own handler of SIGTERM when training starts. This callback puts the handlers back that
    :func:`mfrl.system.signals.handled_by` has installed before.

    Raises:
        Interrupted: a signal has arrived. :class:`Checkpoint` then writes a checkpoint.
    """

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._handlers = {number: signal.getsignal(number) for number in signals.SIGNALS}

    def on_train_start(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            if handler is signals.note_once:
                signal.signal(number, handler)
        signals.leave_if_asked()

    def on_train_batch_start(self, *_: Any) -> None:
        signals.leave_if_asked()

    def on_train_batch_end(self, *_: Any) -> None:
        signals.leave_if_asked()
