"""Writes the files of a dataset in OGBench's format: complete, with a record, and never over foreign files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mfrl.catalogue import GenerationSettings
from mfrl.collect.ogbench.episode import SPLITS
from mfrl.collect.ogbench.expert import Expert
from mfrl.collect.writing import refuse_to_replace
from mfrl.data import records
from mfrl.data.ogbench_files import data_paths, record_path
from mfrl.system.files import move_into_place

#: What the record of data by a trained expert says, and whoever speaks of them has to.
OWN_EXPERT = "collected here by an expert that mfrl trained; these are not OGBench's own files, nor made by its expert"


def check_free_to_write(folder: Path, dataset: str, overwrite: bool) -> None:
    """Refuse to replace the files of a dataset, see :func:`refuse_to_replace`.

    Raises:
        CollectError: files are in the way. The message names them.
    """
    existing = [path for path in data_paths(folder, dataset) if path.exists()]
    if existing:
        what = " and ".join(path.name for path in existing)
        record = record_path(folder, dataset)
        refuse_to_replace(
            what,
            folder,
            overwrite,
            record,
            dataset,
            lambda: {path.name: records.fingerprint(path) for path in existing},
        )


def split_paths(folder: Path, dataset: str) -> dict[str, Path]:
    """The two files of a dataset, by split."""
    return dict(zip(SPLITS, data_paths(folder, dataset), strict=True))


def publish(building: Path, folder: Path, dataset: str, record: dict[str, Any]) -> None:
    """Write the record of the finished files in ``building``, and move all into ``folder``; see `move_into_place`.

    The record is moved first and the training file last. If the machine stops in between, every file has a record with
    its checksum, and the dataset looks incomplete, because the training file is missing.
    """
    records.write(record_path(building, dataset), record)
    train, val = data_paths(building, dataset)
    move_into_place(*((path, folder / path.name) for path in (record_path(building, dataset), val, train)))


def make_record(
    settings: GenerationSettings,
    seed: int,
    paths: dict[str, Path],
    transitions: int,
    seconds: float,
    expert: Expert | None = None,
) -> dict[str, Any]:
    """The provenance record of finished files.

    Args:
        settings: the settings they were generated with.
        seed: seed of the dataset.
        paths: the files by split.
        transitions: number of training transitions.
        seconds: wall-clock time of the collection.
        expert: the trained policy that acted; None if a script acted.
    """
    by_expert = {} if expert is None else {"note": OWN_EXPERT, "expert": expert.origin | {"arrays": expert.checksum}}
    return {
        "format": records.FORMAT,
        "dataset": settings.dataset,
        "source": "collected",
        "generator": records.generator("mfrl.collect.ogbench.runner.collect"),
        "seed": seed,
        **settings.used() | by_expert,
        "transitions": transitions,
        "seconds": round(seconds, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": records.versions(),
        "files": {path.name: records.fingerprint(path) for path in paths.values()},
    }
