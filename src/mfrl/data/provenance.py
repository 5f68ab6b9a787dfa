"""Where a dataset came from: a JSON record beside its two files, with their checksums.

A record speaks only for the exact bytes it was written for. Files without one, or that differ from it, are
"unrecorded": an official download or a user's own, we do not guess which.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mfrl.errors import MfrlError
from mfrl.files import write_json

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


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: str | Path) -> dict[str, Any]:
    """What a record keeps of a file: `sha256` and its size in `bytes`."""
    return {"sha256": sha256(path), "bytes": Path(path).stat().st_size}


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


def read(data_dir: str | Path, dataset: str) -> dict[str, Any] | None:
    """The record of a dataset, or None if there is none.

    Raises:
        ProvenanceError: the file is not JSON, or not a record of this dataset; the message names it.
    """
    path = record_path(data_dir, dataset)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ProvenanceError(f"{path} is not valid JSON: {error}") from error
    _validate(record, path)
    if record["dataset"] != dataset:
        raise ProvenanceError(f"{path} describes {record['dataset']!r}, not {dataset!r}.")
    return record


def describe(data_dir: str | Path, dataset: str) -> dict[str, Any]:
    """What can honestly be said of the data files: their record if it matches them, else "unrecorded".

    Reads the files once to compute their checksums.

    Returns:
        The record, or `{"dataset", "source": "unrecorded", "files": {name: {"sha256", "bytes"}}}`, with a
        `note` when there is a record that the files do not match.

    Raises:
        FileNotFoundError: neither data file exists.
        ProvenanceError: the record cannot be read.
    """
    files = {path.name: fingerprint(path) for path in data_paths(data_dir, dataset) if path.exists()}
    if not files:
        raise FileNotFoundError(f"No data files of {dataset} in {Path(data_dir).expanduser()}")
    record = read(data_dir, dataset)
    if record is not None and record["files"] == files:
        return record
    described: dict[str, Any] = {"dataset": dataset, "source": "unrecorded", "files": files}
    if record is not None:
        described["note"] = f"{record_path(data_dir, dataset).name} does not match these files"
    return described


def _validate(record: Any, path: Path) -> None:
    if not isinstance(record, dict) or not {"format", "dataset", "source", "files"} <= record.keys():
        raise ProvenanceError(f"{path} is no provenance record: it needs format, dataset, source and files.")
    if record["format"] != FORMAT:
        raise ProvenanceError(f"{path} has format {record['format']!r}; this version of mfrl reads {FORMAT}.")
    files = record["files"]
    if not isinstance(files, dict) or not all(isinstance(f, dict) and "sha256" in f for f in files.values()):
        raise ProvenanceError(f"{path} is no provenance record: it needs a sha256 for every file.")
