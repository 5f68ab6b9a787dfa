"""What a program asks of itself gives way to what a user asks of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from mfrl.system import signals


@pytest.fixture(autouse=True)
def nothing_received() -> Iterator[None]:
    signals.forget()
    yield
    signals.forget()


def test_a_signal_takes_the_place_of_an_early_end() -> None:
    signals.end_early()
    assert signals.received() == signal.SIGTERM
    assert signals.ended_early()
    with pytest.raises(signals.Interrupted):
        signals.leave_if_asked()
    signals.note_once(signal.SIGINT)  # the first Ctrl-C, however late it comes
    assert (signals.received(), signals.ended_early()) == (signal.SIGINT, False)


def test_an_early_end_after_a_signal_changes_nothing() -> None:
    signals.note(signal.SIGUSR1)
    signals.end_early()
    assert (signals.received(), signals.ended_early()) == (signal.SIGUSR1, False)
    signals.forget()
    assert signals.received() is None
