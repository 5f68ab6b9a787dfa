"""Minari datasets as folders: their ids, which of them exist, and the records of their origin.

This module imports neither torch nor Minari.
"""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mfrl.data import records
from mfrl.errors import DataError
from mfrl.system.processes import environment

#: Namespace of the datasets that mfrl collects. They are never presented as anybody else's.
OWN_NAMESPACE = "mfrl"
DEFAULT_ROOT = "~/.minari/datasets"
RECORD = "provenance.json"
_ROOT_VARIABLE = "MINARI_DATASETS_PATH"
_ID = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+", re.ASCII)


def data_root(data_dir: str | Path | None) -> Path:
    """The folder of Minari datasets: ``data_dir``, or ``MINARI_DATASETS_PATH``, or Minari's default."""
    return Path(data_dir or os.environ.get(_ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()


def checked_id(dataset: str) -> str:
    """Check that a Minari id has a version and cannot lead out of the root folder.

    Raises:
        DataError: it is no such id.
    """
    if not isinstance(dataset, str) or not _ID.fullmatch(dataset):
        raise DataError(
            f"{dataset!r} is no Minari dataset: an id is name-v0 or namespace/name-v0, of letters, digits, - and _"
        )
    return dataset


def present(root: Path) -> list[str]:
    """The ids of the datasets in a root folder."""
    found = []
    for folder, subfolders, _ in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if (Path(folder) / "data" / "metadata.json").is_file():
            found.append(Path(folder).relative_to(root).as_posix())
            subfolders.clear()
    return sorted(found)


def root_of_minari(folder: Path) -> AbstractContextManager[None]:
    """A context in which Minari uses ``folder`` as its root. Minari reads the root from an environment variable."""
    return environment({_ROOT_VARIABLE: str(folder)})


def write_record(root: Path, dataset: str, source: str, **details: Any) -> Path:
    """Write the record of a dataset's origin to ``provenance.json`` beside its ``data`` folder.

    Args:
        root: Minari's root folder.
        source: ``official`` or ``collected``.
        details: further entries of the record, as JSON.

    Returns:
        the path of the record.
    """
    path = root / dataset / RECORD
    files = fingerprints(root / dataset)
    versions = records.versions(("minari", "gymnasium", "gymnasium-robotics", "mujoco", "numpy"))
    record = {"dataset": dataset, "source": source, "files": files, "versions": versions}
    records.write(path, record | {"created": datetime.now(UTC).isoformat(timespec="seconds")} | details)
    return path


def describe(root: Path, dataset: str, fingerprint: records.Fingerprint = records.fingerprint) -> dict[str, Any]:
    """The record of a dataset if it describes exactly its files; otherwise one with the source ``unrecorded``.

    Args:
        fingerprint: gives a file's checksum; the default reads every file.

    Raises:
        ProvenanceError: the record cannot be understood.
    """
    return records.describe(root / dataset / RECORD, dataset, fingerprints(root / dataset, fingerprint))


def fingerprints(folder: Path, fingerprint: records.Fingerprint = records.fingerprint) -> dict[str, Any]:
    """Checksum and size of every file of a dataset, by its name within the dataset's folder."""
    files = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): fingerprint(path) for path in files}
