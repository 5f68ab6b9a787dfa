"""Minari datasets as folders: their ids, which are there, where they came from, and Minari's own download.

Importing it imports neither torch nor Minari.
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
from mfrl.system.files import move_into_place, temporary_folder
from mfrl.system.processes import environment

#: Namespace of the sets collected here, never presented as anybody else's.
OWN_NAMESPACE = "mfrl"
DEFAULT_ROOT = "~/.minari/datasets"
RECORD = "provenance.json"
_ROOT_VARIABLE = "MINARI_DATASETS_PATH"
_ID = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+", re.ASCII)
_CONNECT_SECONDS = 10.0


def data_root(data_dir: str | Path | None) -> Path:
    """The folder of Minari datasets: ``data_dir``, or ``MINARI_DATASETS_PATH``, or Minari's default."""
    return Path(data_dir or os.environ.get(_ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()


def checked_id(dataset: str) -> str:
    """A Minari id with its version; what could lead out of the root folder is none.

    Raises:
        DataError: for anything else.
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


def download(root: Path, dataset: str) -> None:
    """Fetch a dataset into a temporary folder beside it, check it, write its record, and move it into place.

    Raises:
        DataError: in one sentence; ``root`` is left as it was.
    """
    target = root / checked_id(dataset)
    if dataset.startswith(f"{OWN_NAMESPACE}/"):
        raise DataError(f"{dataset} is offered by no server; it is collected in the simulator (mfrl collect)")
    if target.exists():
        raise DataError(f"{target} exists already; move it away to download {dataset} again")
    remote = os.environ.get("MINARI_REMOTE", "")
    _refuse_offline(dataset, remote)
    import minari

    from mfrl.data.minari_source import Source

    root.mkdir(parents=True, exist_ok=True)
    with temporary_folder(root, ".download-") as new, root_of_minari(new):
        try:
            minari.download_dataset(dataset)
        except (Exception, SystemExit) as error:  # of any of the servers' clients
            raise DataError(f"{dataset} could not be downloaded: {_first_line(error)}") from error
        Source.open(new / dataset, dataset, None)
        parts = present(new)  # a combination brings its parts along
        for part in parts:
            write_record(new, part, "official", remote=remote or "the default of minari")
        move_into_place(*((new / part, root / part) for part in parts if not (root / part).exists()))


def _refuse_offline(dataset: str, remote: str) -> None:
    """One short attempt, for the clients of the servers try for minutes."""
    if remote.startswith("gcp://"):
        return
    try:
        from huggingface_hub import HfApi, get_session
    except ImportError as error:
        raise DataError(f'downloading {dataset} needs huggingface_hub: pip install "minari[hf]"') from error
    server = HfApi().endpoint
    try:
        get_session().head(server, timeout=_CONNECT_SECONDS)
    except Exception as error:
        raise DataError(
            f"{dataset} could not be downloaded: {server} cannot be reached from here ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def root_of_minari(folder: Path) -> AbstractContextManager[None]:
    """Have Minari take a folder for its root, which it lets an environment variable say and nothing else."""
    return environment({_ROOT_VARIABLE: str(folder)})


def write_record(root: Path, dataset: str, source: str, **details: Any) -> Path:
    """Say where a dataset came from, in ``provenance.json`` beside its ``data`` folder.

    Args:
        root: Minari's root folder.
        source: ``official`` or ``collected``.
        details: what else is known, as JSON.

    Returns:
        the file.
    """
    path = root / dataset / RECORD
    files = fingerprints(root / dataset)
    versions = records.versions(("minari", "gymnasium", "gymnasium-robotics", "mujoco", "numpy"))
    record = {"dataset": dataset, "source": source, "files": files, "versions": versions}
    records.write(path, record | {"created": datetime.now(UTC).isoformat(timespec="seconds")} | details)
    return path


def describe(root: Path, dataset: str, fingerprint: records.Fingerprint = records.fingerprint) -> dict[str, Any]:
    """The record of a dataset if it speaks of exactly these files, else the source ``unrecorded``.

    Args:
        fingerprint: how checksums are had; by default each file is read.

    Raises:
        ProvenanceError: the record cannot be understood.
    """
    return records.describe(root / dataset / RECORD, dataset, fingerprints(root / dataset, fingerprint))


def fingerprints(folder: Path, fingerprint: records.Fingerprint = records.fingerprint) -> dict[str, Any]:
    """Checksum and size of every file of a dataset, by its name within the dataset's folder."""
    files = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): fingerprint(path) for path in files}
