"""Files of a collected dataset: never over someone else's, never half-written, always with a record."""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mfrl
from mfrl.catalogue import CollectError, Settings
from mfrl.collect.ogbench.episode import SPLITS
from mfrl.data import records
from mfrl.system.files import temporary_folder

UNFINISHED = ".collect-"
"""How the names of hidden folders begin in which a dataset is being written."""


def check_free_to_write(folder: Path, dataset: str, overwrite: bool) -> None:
    """Refuse to touch existing files unless they are ours, byte for byte, and the user asked.

    Raises:
        CollectError: something is in the way; the message says what and why it stays.
    """
    existing = [path for path in records.data_paths(folder, dataset) if path.exists()]
    if not existing:
        return
    names = " and ".join(path.name for path in existing)
    if not overwrite:
        hint = "Pass overwrite=true to replace what mfrl collected."
        raise CollectError(f"{names} already in {folder}. {hint}")
    try:
        record = records.read(folder, dataset)
    except records.ProvenanceError as error:
        raise CollectError(f"Not overwriting {names} in {folder}: {error}") from error
    if record is None:
        why = "there is no mfrl record beside it"
    elif record["source"] != "collected":
        why = f"its record says it is {record['source']}, not collected"
    elif any(records.fingerprint(path) != record["files"].get(path.name) for path in existing):
        why = "it is not the file that the mfrl record beside it describes"
    else:
        return
    raise CollectError(
        f"Not overwriting {names} in {folder}: {why}, so it may be an official download or your own. "
        "Move it away yourself."
    )


@contextmanager
def friendly_os_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one sentence."""
    try:
        yield
    except OSError as error:
        raise CollectError(f"Cannot write the dataset to {folder}: {error.strerror or error}.") from error


@contextmanager
def temporary(folder: Path, dataset: str) -> Iterator[dict[str, Path]]:
    """Names to write to, by split, in a folder inside `folder` so that renaming is atomic; gone after the block."""
    with ExitStack() as stack:
        with friendly_os_errors(folder):  # Tells before the simulation, not after it, that the folder is not writable.
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = stack.enter_context(temporary_folder(folder, UNFINISHED))
        yield dict(zip(SPLITS, records.data_paths(unfinished, dataset), strict=True))


def publish(folder: Path, dataset: str, paths: dict[str, Path], record: dict[str, Any]) -> tuple[Path, Path]:
    """Give finished files their names and write their record; on failure the folder is as it was.

    The record comes first and the training file last: if the machine stops in between, every file of ours has
    a record with its checksum, and without a training file nothing passes for a complete dataset.

    Returns:
        The training and the validation file.
    """
    train, val = records.data_paths(folder, dataset)
    record_path = records.record_path(folder, dataset)
    with ExitStack() as undo:
        replaced = {path: _beside(path, "old") for path in (train, val, record_path) if path.exists()}
        for path, aside in replaced.items():
            os.replace(path, aside)
            undo.callback(os.replace, aside, path)
        for path in (train, val, record_path):
            undo.callback(path.unlink, missing_ok=True)
        records.write(record_path, record)
        os.replace(paths["val"], val)
        os.replace(paths["train"], train)
        undo.pop_all()
    for aside in replaced.values():
        aside.unlink()
    return train, val


def make_record(
    settings: Settings, seed: int, paths: dict[str, Path], transitions: int, seconds: float
) -> dict[str, Any]:
    """The provenance of finished files that still have their temporary names."""
    names = dict(zip(SPLITS, records.data_paths("", settings.dataset), strict=True))
    return {
        "format": records.FORMAT,
        "dataset": settings.dataset,
        "source": "collected",
        "generator": {
            "package": "mfrl",
            "version": mfrl.__version__,
            "function": "mfrl.collect.ogbench.runner.collect",
        },
        "seed": seed,
        **settings.used(),
        "transitions": transitions,
        "seconds": round(seconds, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": records.versions(),
        "files": {names[split].name: records.fingerprint(path) for split, path in paths.items()},
    }


def _beside(path: Path, label: str) -> Path:
    # Random, so that two collections of the same dataset never take one name.
    return path.with_name(f"{path.name}.{label}-{secrets.token_hex(8)}")
