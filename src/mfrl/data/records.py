"""Records of a dataset's origin: a JSON file beside the data, with the data's checksums.

A record describes only the exact bytes for which it was written. Files without a record, or that differ from it, are
"unrecorded": they may be an official download or a user's own, and mfrl does not guess. The place of a record and the
files that it describes are in :mod:`mfrl.data.ogbench_files` and :mod:`mfrl.data.minari_files`.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import mfrl
from mfrl.errors import MfrlError
from mfrl.system.files import write_json

FORMAT = 1
SIMULATION = ("ogbench", "mujoco", "gymnasium", "numpy")


class ProvenanceError(MfrlError, RuntimeError):
    """A provenance record exists but cannot be understood."""


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: str | Path) -> dict[str, Any]:
    """A file's entry in a record: its `sha256` and its size in `bytes`."""
    return {"sha256": sha256(path), "bytes": Path(path).stat().st_size}


Fingerprint = Callable[[Path], dict[str, Any]]  #: how a file's checksum and size are had, e.g. Checksums.of


class Checksums:
    """Fingerprints of files. Each is computed once and reused while size, time of change and inode stay the same.

    Args:
        folders: folders that may hold ``checksums.json``. All are read; the first one that is writable is kept up to
            date. If there is none, the next start computes the checksums again.
        read_only: folders whose checksums are used, and neither changed nor written elsewhere.
    """

    def __init__(self, folders: Sequence[Path] = (), read_only: Sequence[Path] = ()) -> None:
        self.files = [folder / "checksums.json" for folder in folders]
        self.known: dict[str, list[Any]] = {}
        for file in self.files:
            self.known |= self._read(file)
        self.used: dict[str, list[Any]] = {}
        for folder in read_only:
            self.used |= self._read(folder / "checksums.json")

    def of(self, path: Path) -> dict[str, Any]:
        """The file's :func:`fingerprint`."""
        state = self._state(path)
        for known in (self.known.get(str(path.resolve())), self.used.get(str(path.resolve()))):
            if isinstance(known, list) and len(known) == 4 and known[:3] == state:
                return {"sha256": known[3], "bytes": state[0]}
        self.remember(path, digest := sha256(path), state)
        return {"sha256": digest, "bytes": state[0]}

    def remember(self, path: Path, sha256: str, state: list[int] | None = None) -> None:
        """Store a file's checksum, for the ``state`` in which it was computed, by default the present one."""
        self.known[str(path.resolve())] = [*(state or self._state(path)), sha256]
        for file in self.files:
            with suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, self._read(file) | self.known)  # other processes write to it as well
                break

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    @staticmethod
    def _state(path: Path) -> list[int]:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def versions(packages: Sequence[str] = SIMULATION) -> dict[str, str | None]:
    """Versions of Python and of packages, by default those that shape a trajectory; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def generator(function: str) -> dict[str, str]:
    """The record's entry of the function that made the files, by its dotted name."""
    return {"package": "mfrl", "version": mfrl.__version__, "function": function}


def write(path: str | Path, record: dict[str, Any]) -> None:
    """Write a record so that `path` always holds either the whole old or the whole new one.

    Args:
        path: of the file.
        record: JSON-serialisable; `format` is added. Needs at least `dataset`, `source` and `files`.

    Raises:
        ProvenanceError: a required key is missing.
    """
    record = {"format": FORMAT, **record}
    _validate(record, Path(path))
    write_json(Path(path), record)


def load(path: Path) -> Any:
    """The content of a record's file, which is not checked yet.

    Raises:
        FileNotFoundError: there is no record.
        ProvenanceError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProvenanceError(f"{path} is not valid JSON: {error}") from error


def read(path: Path, dataset: str) -> dict[str, Any] | None:
    """The record of a dataset, or None if there is none.

    Raises:
        ProvenanceError: the file is not JSON, or not a record of this dataset; the message names it.
    """
    try:
        record = load(path)
    except FileNotFoundError:
        return None
    _validate(record, path)
    if record["dataset"] != dataset:
        raise ProvenanceError(f"{path} describes {record['dataset']!r}, not {dataset!r}.")
    return record


def describe(path: Path, dataset: str, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The record of data files if it describes exactly these files; otherwise a record that says "unrecorded".

    Args:
        path: of the record.
        files: fingerprints by the names that the record uses.

    Returns:
        The record, or `{"dataset", "source": "unrecorded", "files": {name: {"sha256", "bytes"}}}`, with a
        `note` if there is a record that does not match the files.

    Raises:
        ProvenanceError: the record cannot be read.
    """
    described = {"dataset": dataset, "source": "unrecorded", "files": files}
    try:
        record = load(path)
    except FileNotFoundError:
        return described
    if difference(record, dataset, files) is None:
        return record
    return described | {"note": f"{path.name} does not match these files"}


def difference(record: Any, dataset: str, files: Mapping[str, Mapping[str, Any]], all_there: bool = True) -> str | None:
    """The reason why a record does not describe exactly these files; None if it does.

    Args:
        record: from :func:`load`.
        files: by name, the part of the fingerprint to compare: ``bytes``, or with ``sha256`` all of it.
        all_there: whether every file of the record must be among ``files``.
    """
    recorded = record.get("files") if isinstance(record, dict) else None
    if not isinstance(recorded, dict) or not isinstance(record.get("source"), str):
        return "it is no record: it has no source, or no files"
    if record.get("dataset") != dataset:
        return f"it speaks of {record.get('dataset')}"
    for name in sorted(files.keys() | recorded.keys()):
        if name not in recorded:
            return f"it does not speak of {name}"
        if name not in files:
            if all_there:
                return f"{name}, of which it speaks, is missing"
            continue
        for aspect, value in files[name].items():
            if not isinstance(recorded[name], dict) or recorded[name].get(aspect) != value:
                return f"{name} differs from it in {'checksum' if aspect == 'sha256' else 'size'}"
    return None


def _validate(record: Any, path: Path) -> None:
    if not isinstance(record, dict) or not {"format", "dataset", "source", "files"} <= record.keys():
        raise ProvenanceError(f"{path} is no provenance record: it needs format, dataset, source and files.")
    if record["format"] != FORMAT:
        raise ProvenanceError(f"{path} has format {record['format']!r}; this version of mfrl reads {FORMAT}.")
    files = record["files"]
    if not isinstance(files, dict) or not all(isinstance(f, dict) and "sha256" in f for f in files.values()):
        raise ProvenanceError(f"{path} is no provenance record: it needs a sha256 for every file.")
