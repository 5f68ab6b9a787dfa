"""Where a dataset came from: a JSON record beside its two files, with their checksums.

A record speaks only for the exact bytes it was written for. Files without one, or that differ from it, are
"unrecorded": an official download or a user's own, we do not guess which.
"""

import hashlib
import json
import platform
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from mfrl.errors import MfrlError
from mfrl.system.files import write_json

FORMAT = 1
SIMULATION = ("ogbench", "mujoco", "gymnasium", "numpy")


class ProvenanceError(MfrlError, RuntimeError):
    """A provenance record exists but cannot be understood."""


def record_path(data_dir: str | Path, dataset: str) -> Path:
    """`<data_dir>/<dataset>.provenance.json`."""
    return Path(data_dir).expanduser() / f"{dataset}.provenance.json"


def data_paths(data_dir: str | Path, dataset: str) -> tuple[Path, Path]:
    """The training and the validation file of a dataset, as OGBench names them."""
    folder = Path(data_dir).expanduser()
    return folder / f"{dataset}.npz", folder / f"{dataset}-val.npz"


def data_files(data_dir: str | Path, dataset: str) -> tuple[list[Path], list[Path]]:
    """The files of a dataset that are read, for training and for validation.

    They are those of :func:`data_paths`, or, of a dataset in many files, what the folder ``<data_dir>/<dataset>``
    holds: OGBench's sets of 100 million transitions are numbered files ``cube-triple-play-v0-000.npz`` and
    ``cube-triple-play-v0-000-val.npz`` (github.com/seohongpark/horizon-reduction, README.md), read in that order.

    Raises:
        ProvenanceError: that folder lacks one of the two, or a file in the middle of a series.
    """
    train, val = data_paths(data_dir, dataset)
    folder = train.with_suffix("")
    if train.exists() or not folder.is_dir():
        return [train], [val]
    paths = sorted(folder.glob("[!.]*.npz"))
    held_out = [path for path in paths if path.stem.endswith("-val")]
    if not held_out or len(held_out) == len(paths):
        raise ProvenanceError(f"{folder} holds no {'X-val.npz' if paths else '.npz'} file: it is not all of {dataset}")
    return _series([path for path in paths if path not in held_out]), _series(held_out)


def _series(paths: list[Path]) -> list[Path]:
    """Numbered files in the order of their numbers, of which none may be missing between the first and the last."""
    numbered = {}
    for path in paths:
        match = re.fullmatch(r"(?P<head>.*?)(?P<number>\d+)(?P<tail>(-val)?\.npz)", path.name)
        if match is None:
            raise ProvenanceError(f"{path} has no number: a dataset in many files has names as X-v0-000.npz")
        numbered[int(match["number"])] = match
    for number, following in zip(sorted(numbered), sorted(numbered)[1:], strict=False):
        if following != number + 1:
            match = numbered[number]
            name = f"{match['head']}{number + 1:0{len(match['number'])}}{match['tail']}"
            raise ProvenanceError(f"{name} is missing in {paths[0].parent}, which holds the files before and after it")
    if len(numbered) < len(paths):
        raise ProvenanceError(f"{paths[0].parent} holds two files of the same number; a dataset in many files has one")
    return [paths[0].with_name(numbered[number].string) for number in sorted(numbered)]


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: str | Path) -> dict[str, Any]:
    """What a record keeps of a file: `sha256` and its size in `bytes`."""
    return {"sha256": sha256(path), "bytes": Path(path).stat().st_size}


class Checksums:
    """Fingerprints of files, each computed once: remembered while size, time of change and inode stay the same.

    Args:
        folders: where ``checksums.json`` may lie. Each is read, and the first that can be written to is kept up to
            date. Without any, nothing is remembered.
        read_only: folders whose checksums are used and neither changed nor written elsewhere.
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
        """What :func:`fingerprint` says of it."""
        state = self._state(path)
        for known in (self.known.get(str(path.resolve())), self.used.get(str(path.resolve()))):
            if isinstance(known, list) and len(known) == 4 and known[:3] == state:
                return {"sha256": known[3], "bytes": state[0]}
        self.remember(path, digest := sha256(path), state)
        return {"sha256": digest, "bytes": state[0]}

    def remember(self, path: Path, sha256: str, state: list[int] | None = None) -> None:
        """Take a checksum as that of a file, in the ``state`` it was computed in, or the present one."""
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


def write(path: str | Path, record: dict[str, Any]) -> None:
    """Write a record so that `path` always holds either the whole old or the whole new one.

    Args:
        path: normally `record_path(data_dir, dataset)`.
        record: JSON-serialisable; `format` is added. Needs at least `dataset`, `source` and `files`.

    Raises:
        ProvenanceError: a required key is missing.
    """
    record = {"format": FORMAT, **record}
    _validate(record, Path(path))
    write_json(Path(path), record)


def load(path: Path) -> Any:
    """What the file of a record holds, not yet looked at.

    Raises:
        FileNotFoundError: there is none.
        ProvenanceError: it is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProvenanceError(f"{path} is not valid JSON: {error}") from error


def read(data_dir: str | Path, dataset: str) -> dict[str, Any] | None:
    """The record of a dataset, or None if there is none.

    Raises:
        ProvenanceError: the file is not JSON, or not a record of this dataset; the message names it.
    """
    path = record_path(data_dir, dataset)
    try:
        record = load(path)
    except FileNotFoundError:
        return None
    _validate(record, path)
    if record["dataset"] != dataset:
        raise ProvenanceError(f"{path} describes {record['dataset']!r}, not {dataset!r}.")
    return record


def describe(
    data_dir: str | Path, dataset: str, fingerprint: Callable[[Path], dict[str, Any]] = fingerprint
) -> dict[str, Any]:
    """What can honestly be said of the data files: their record if it matches them, else "unrecorded".

    Args:
        data_dir, dataset: as for :func:`data_files`.
        fingerprint: how checksums are had; by default each file is read.

    Returns:
        The record, or `{"dataset", "source": "unrecorded", "files": {name: {"sha256", "bytes"}}}`, with a
        `note` when there is a record that the files do not match.

    Raises:
        FileNotFoundError: neither data file exists.
        ProvenanceError: the record cannot be read.
    """
    paths = [path for part in data_files(data_dir, dataset) for path in part if path.exists()]
    files = {path.name: fingerprint(path) for path in paths}
    if not files:
        raise FileNotFoundError(f"No data files of {dataset} in {Path(data_dir).expanduser()}")
    record = read(data_dir, dataset)
    if record is not None and record["files"] == files:
        return record
    return unrecorded(dataset, files, None if record is None else record_path(data_dir, dataset).name)


def unrecorded(dataset: str, files: dict[str, Any], other: str | None = None) -> dict[str, Any]:
    """What can be said of files that no record speaks of; ``other`` names one that is there but does not match."""
    described = {"dataset": dataset, "source": "unrecorded", "files": files}
    return described if other is None else described | {"note": f"{other} does not match these files"}


def _validate(record: Any, path: Path) -> None:
    if not isinstance(record, dict) or not {"format", "dataset", "source", "files"} <= record.keys():
        raise ProvenanceError(f"{path} is no provenance record: it needs format, dataset, source and files.")
    if record["format"] != FORMAT:
        raise ProvenanceError(f"{path} has format {record['format']!r}; this version of mfrl reads {FORMAT}.")
    files = record["files"]
    if not isinstance(files, dict) or not all(isinstance(f, dict) and "sha256" in f for f in files.values()):
        raise ProvenanceError(f"{path} is no provenance record: it needs a sha256 for every file.")
