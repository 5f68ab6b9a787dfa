"""Signals that ask a run to stop: noted when they come, obeyed where nothing that was trained is lost.

A handler cannot save by itself: it may run in the middle of an update. It only notes the signal; training looks between
two updates, an evaluation between two steps, and leaves with :class:`Interrupted`, on which a checkpoint is written.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

#: Ctrl-C, ``kill``, a closed terminal, and what Slurm can be told to send before the time is up.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A terminal and a launcher both pass on the same Ctrl-C.
_SAME_KEY_SECONDS = 0.3

Handler = Callable[[int, FrameType | None], None]

_received: signal.Signals | None = None
_received_at = 0.0
_early = False


class Interrupted(BaseException):
    """Raised between two updates, or inside an evaluation, once a signal has come."""


def received() -> signal.Signals | None:
    """The first signal that came since :func:`forget`."""
    return _received


def forget() -> None:
    """A new run begins: what stopped an earlier one in this process is over."""
    global _received, _early
    _received, _early = None, False


def end_early() -> None:
    """Ask this process to stop as a signal does. A signal that comes meanwhile takes the place of this."""
    global _received, _received_at, _early
    if _received is None:
        _received, _received_at, _early = signal.SIGTERM, time.monotonic(), True


def ended_early() -> bool:
    """Whether :func:`end_early` is what :func:`received` speaks of, and no signal has come."""
    return _early


def _none_yet() -> bool:
    """Whether no signal has come; the program's own wish, :func:`end_early`, is none."""
    return _received is None or _early


def leave_if_asked() -> None:
    """Raise :class:`Interrupted` if a signal has come."""
    if _received is not None:
        raise Interrupted


def obey() -> None:
    """Stop now if a signal has come: what its handler raised may be lost, as an import swallows what is raised in it.

    Raises:
        KeyboardInterrupt: it has, and is handled here.
    """
    by_default = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
    if _received is not None and signal.getsignal(_received) not in by_default:  # else it stopped an earlier run
        raise KeyboardInterrupt


def note(number: int, frame: FrameType | None = None) -> None:
    """Handler: remember the signal."""
    global _received, _received_at, _early
    if _none_yet():
        _received, _received_at, _early = signal.Signals(number), time.monotonic(), False


def note_once(number: int, frame: FrameType | None = None) -> None:
    """Handler: remember the signal; a Ctrl-C after it raises KeyboardInterrupt, whatever is lost."""
    if number == signal.SIGINT and not _none_yet() and time.monotonic() - _received_at > _SAME_KEY_SECONDS:
        raise KeyboardInterrupt
    note(number, frame)


def stop(number: int, frame: FrameType | None = None) -> None:
    """Handler: remember the signal and raise KeyboardInterrupt, where nothing is being trained.

    A further signal lets the cleaning up go on, unless it is Ctrl-C.
    """
    first = _none_yet()
    note_once(number, frame)
    if first:
        raise KeyboardInterrupt


def leave(number: int, frame: FrameType | None = None) -> None:
    """Handler: end this process, which cleans up what is half done; Ctrl-C raises KeyboardInterrupt, as ever."""
    note(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def install(handler: Handler) -> dict[signal.Signals, Handler | int | None]:
    """Handle ``SIGNALS`` so, but those that are ignored, as ``nohup`` ignores SIGHUP.

    Returns:
        the handlers there were. Empty outside the main thread, where signals cannot be handled.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    return before


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Handle ``SIGNALS`` so while the block lasts, as :func:`install` does."""
    before = install(handler)
    try:
        yield
    finally:
        _put_back(before)


@contextmanager
def kept() -> Iterator[None]:
    """Put back the handlers of ``SIGNALS`` that a library replaces in the block."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        _put_back(before)


def _put_back(handlers: dict[signal.Signals, Handler | int | None]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def withheld() -> Iterator[None]:
    """Keep ``SIGNALS`` from this thread, and for good from every process that is started in the block.

    A signal to a whole process group then reaches the process that answers for the others, and no other one.
    """
    resource_tracker.ensure_running()  # which multiprocessing starts when it needs it, and lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
