"""Files that are whole or not there, written under a temporary name and then renamed; and one writer at a time."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mfrl.errors import MfrlError

# Before the tokens there were process numbers.
_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.(\d+|[0-9a-f]{16})\.tmp(\.[^.]+)?")
# What flock answers on Lustre mounted without it, on NFS without its lock server, and where there is none at all.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes otherwise.

    It keeps the suffix, by which encoders choose the format. No two writers share it, whatever machine, container or
    thread they are in. What takes the place is on the disk by then, and the new name soon after, so that a power cut
    leaves the old file or the new one.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        with suppress(OSError):  # some network file systems do not sync folders
            _sync(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        # A write that fails does not say where, and nobody knows the temporary name.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path, stems: str) -> None:
    """Remove the temporary files that killed writers left in ``folder``; no writer may be at work there.

    Args:
        stems: of the files that were to be replaced, a regular expression.
    """
    for path in folder.glob(".*.tmp*"):
        if (match := _TEMPORARY.fullmatch(path.name)) and re.fullmatch(stems, match["stem"]):
            path.unlink(missing_ok=True)


class Locked(MfrlError):
    """Another process holds the lock."""


class NoLocks(MfrlError, OSError):
    """A file system that cannot say who is at work."""


@contextmanager
def one_at_a_time(path: Path, wait: bool = True) -> Iterator[None]:
    """Wait until no other process is in a block of the same ``path``, an empty file that stays.

    Raises:
        Locked: another one is, and ``wait`` is false.
        NoLocks: the file system has none.
        OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not a file that is there while the lock is held: it would stay when its process is killed.
    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise Locked(f"{path} is held by another process") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise NoLocks(
            f"{path.parent} lies on a file system without locks ({error.strerror or error}), so that two processes "
            "could write there at once: choose a folder on another one, or have this one mounted with locks"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``parent`` whose name begins with ``prefix``; gone after the block.

    Where a process was killed in the block, the next one removes what it left.

    Raises:
        OSError: it cannot be made.
    """
    for left in parent.glob(f"{prefix}*"):
        with suppress(Locked), _in_use(left):
            shutil.rmtree(left)
    folder = parent / f"{prefix}{secrets.token_hex(8)}"
    with _in_use(folder):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Hold a lock beside ``folder``, from before it is there until it is gone; `Locked` where somebody else does."""
    path = folder.with_name(f".in-use-{folder.name}")
    with one_at_a_time(path, wait=False):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, nan: bool = False) -> None:
    """Write plain data.

    Args:
        nan: let numbers pass that are not finite. JSON has no word for them; Python reads what Python writes.

    Raises:
        MfrlError: it holds such a number, and they may not pass.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=nan)
    except ValueError as error:
        raise MfrlError(f"{path} is not written: it would hold a number that is not finite ({error})") from error
    write_text(path, text + "\n")
