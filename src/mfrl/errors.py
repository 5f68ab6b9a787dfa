"""What mfrl raises when a user can put it right; the command line prints these without a traceback."""

from __future__ import annotations

import difflib
import errno
import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: The part of an address that names a user and a password.
CREDENTIALS = re.compile(r"(?<=://)[^/@:\s]*:[^/@\s]+(?=@)")


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


class EnvError(MfrlError, ValueError):
    """An environment that cannot be built, or rendered, as asked."""


class DataError(MfrlError):
    """Data that is missing, damaged or unusable; the message names the file and the field."""


class CollectError(MfrlError, RuntimeError):
    """Collection cannot start or cannot finish; the message says what to do about it."""


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


class RefusedBySystem(MfrlError):
    """There is no room, no permission, or nothing that works where a file is to be read or written."""


#: What to do about an answer of the system; others are faults of the program.
_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT): "free some room there, or choose a folder on another disk",
    (errno.EACCES, errno.EPERM, errno.EROFS): "change its permissions, or choose a folder that is yours",
    (errno.EIO, errno.ESTALE, errno.ENXIO): "see whether the disk or its network is in order",
    (errno.EMFILE, errno.ENFILE): "close other programs, or allow more open files (ulimit -n)",
    (errno.ENAMETOOLONG,): "choose shorter names",
}


def refused_by_system(error: BaseException, folder: Path | None = None) -> RefusedBySystem | None:
    """What a user can do about an error that the system raised, however deep others wrap it; None: it raised none.

    Args:
        folder: that was written to, where the error does not say.
    """
    seen: BaseException | None = error
    while seen is not None:
        for codes, remedy in _REMEDIES.items():
            for code in codes:
                # HDF5 and ffmpeg pass on the system's words and not its number.
                words = os.strerror(code)
                if (isinstance(seen, OSError) and seen.errno == code) or words in str(seen):
                    where = getattr(seen, "filename", None) or folder
                    place = f" ({_room(where)})" if where and code == errno.ENOSPC else ""
                    what = words if where is None else f"{where}: {words}"
                    return RefusedBySystem(f"{what}{place}; {remedy}")
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def _room(path: str | os.PathLike[str]) -> str:
    """How much is free on the disk of a file that may not be there."""
    folder = next((folder for folder in Path(os.path.abspath(path)).parents if folder.is_dir()), Path("/"))
    return f"{free_bytes(folder) / 1e6:,.1f} MB are free in {folder}"


def free_bytes(folder: Path) -> int:
    """How much can be written to the disk that a folder lies on."""
    return shutil.disk_usage(folder).free


def require(name: str, holds: bool, value: Any, what: str) -> None:
    """Refuse a setting out of its range.

    Raises:
        ConfigError: ``name=value must be what``, unless it holds.
    """
    if not holds:
        raise ConfigError(f"{name}={as_typed(value)} must be {what}")


def require_packages(name: str, packages: Mapping[str, str]) -> None:
    """Refuse a choice that needs packages which are not installed.

    Args:
        name: the choice, as it stands on the command line.
        packages: modules, each with the name that pip knows.

    Raises:
        ConfigError: some are missing. The message has the command that installs them.
    """
    if missing := [known for module, known in packages.items() if importlib.util.find_spec(module) is None]:
        raise ConfigError(f"{name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's text that has something in it, or else the error's class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def as_typed(value: Any) -> Any:
    """A value as it stands on the command line: ``null``, ``true`` and ``false`` are YAML's words."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean a, b?)`` for near names, else an empty string."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""
