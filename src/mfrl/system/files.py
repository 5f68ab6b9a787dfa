"""Files and folders that are whole or not there, one writer at a time, and room on the disk.

What is written appears under its name when it is complete: a file by :func:`replacing`, several files or folders, made
in a :func:`temporary_folder`, by :func:`move_into_place`. Nothing else here renames or locks.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mfrl.errors import CheckpointError, MfrlError, free_bytes

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


def move_into_place(*moves: tuple[Path, Path]) -> None:
    """Give finished files and folders their names; when that fails, or is interrupted, everything is as it was.

    What had such a name is moved away before, that of the last move first, and is gone in the end. The new ones get
    their names in the order of the moves: if the machine stops in between, the last is what is missing.

    Args:
        moves: where each lies, in a folder that is temporary, and its name, on the same file system. Folders that are
            missing above a name are made.
    """
    with ExitStack() as undo:
        replaced = []
        for new, path in reversed(moves):
            if path.exists():
                replaced.append(new.with_name(f".{secrets.token_hex(8)}.replaced"))
                os.replace(path, replaced[-1])
                undo.callback(os.replace, replaced[-1], path)
        for new, path in moves:
            for folder in reversed([folder for folder in path.parents if not folder.exists()]):
                folder.mkdir()
                undo.callback(folder.rmdir)
            _sync(new)
            os.replace(new, path)
            undo.callback(os.replace, path, new)
        undo.pop_all()
    for folder in {path.parent for _, path in moves}:
        with suppress(OSError):  # as in `replacing`
            _sync(folder)
    for old in replaced:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def lack_of_room(folder: Path, needed: float, what: str) -> str | None:
    """That so many bytes do not fit, to be told before hours of work and not after; None where they fit.

    Args:
        folder: where they shall lie.
        what: takes them, with its verb, e.g. ``this may take``.

    Returns:
        a clause with both sizes, e.g. ``/data has 12 MB free; this may take 1.3 GB``.
    """
    free = free_bytes(folder)
    return None if needed <= free else f"{folder} has {_size(free)} free; {what} {_size(needed)}"


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def remove_abandoned(folder: Path, stems: str) -> None:
    """Remove the temporary files that killed writers left in ``folder``; no writer may be at work there.

    Args:
        stems: of the files that were to be replaced, a regular expression.
    """
    for path in folder.glob(".*.tmp*"):
        if (match := _TEMPORARY.fullmatch(path.name)) and re.fullmatch(stems, match["stem"]):
            path.unlink(missing_ok=True)


def refuse_dangling(*paths: Path) -> None:
    """Refuse links that lead nowhere, of a run or a checkpoint: what they led to is not gone for good.

    Raises:
        CheckpointError: naming the link.
    """
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise CheckpointError(f"{path} is a link to {os.readlink(path)}, which is not there: is its disk mounted?")


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
    try:
        with _in_use(folder):
            try:  # a signal may come in any line
                folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:  # nobody else has this name
        _lock_beside(folder).unlink(missing_ok=True)


@contextmanager
def lasting_folder(folder: Path) -> Iterator[Path]:
    """A folder for work that can be gone on with: it is gone where the block ends well, and stays where it does not.

    It is also gone if nothing is in it. Where the block ends well, so are the folders beside it whose names differ
    after the last hyphen alone, unless another process is in a block of theirs.

    Raises:
        Locked: another process is in a block of this folder.
        OSError: it cannot be made.
    """
    with _in_use(folder):
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        except BaseException:
            with suppress(OSError):
                folder.rmdir()
            raise
        shutil.rmtree(folder)
    for other in folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*"):
        with suppress(Locked), _in_use(other):
            shutil.rmtree(other)


def _lock_beside(folder: Path) -> Path:
    return folder.with_name(f".in-use-{folder.name}")


@contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Hold a lock beside ``folder``, from before it is there until it is gone; `Locked` where somebody else does."""
    path = _lock_beside(folder)
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
