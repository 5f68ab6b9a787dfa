"""Files that are whole or not there, written under a temporary name and then renamed; and one writer at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mfrl.errors import MfrlError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes otherwise.

    It keeps the suffix, by which encoders choose the format.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process is in a block of the same ``path``, an empty file that stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
