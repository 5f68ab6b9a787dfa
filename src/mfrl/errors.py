"""What mfrl raises when a user can put it right; the command line prints these without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class MfrlError(Exception):
    """Base of every error whose message is meant for the person at the keyboard.

    Attributes:
        exit_status: of the command that ends with it.
    """

    exit_status = 1


class ConfigError(MfrlError, ValueError):
    """A setting that cannot be used."""


class RefusedRun(ConfigError):
    """What was asked for does not go with the run that the folder holds; that run is left as it was."""


class DataError(MfrlError):
    """Data that is missing, damaged or unusable; the message names the file and the field."""


class CheckpointError(MfrlError):
    """A checkpoint that is missing, unreadable or refused."""


class InterruptedRun(MfrlError):
    """Training was stopped from outside before its end.

    Args:
        message: how to go on.
        signal: that stopped it; the exit status says which, as shells have it.
    """

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        if signal is not None:
            self.exit_status = 128 + signal


class DivergedError(MfrlError):
    """Training produced a number that is not finite."""


def require(name: str, holds: bool, value: Any, what: str) -> None:
    """Refuse a setting out of its range.

    Raises:
        ConfigError: ``name=value must be what``, unless it holds.
    """
    if not holds:
        raise ConfigError(f"{name}={'null' if value is None else value} must be {what}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean a, b?)`` for near names, else an empty string."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""
