"""OGBench's datasets as files: their names, which of them are read, and the records of their origin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mfrl.data import records
from mfrl.data.records import ProvenanceError


def record_path(data_dir: str | Path, dataset: str) -> Path:
    """`<data_dir>/<dataset>.provenance.json`."""
    return Path(data_dir).expanduser() / f"{dataset}.provenance.json"


def data_paths(data_dir: str | Path, dataset: str) -> tuple[Path, Path]:
    """The training and the validation file of a dataset, as OGBench names them."""
    folder = Path(data_dir).expanduser()
    return folder / f"{dataset}.npz", folder / f"{dataset}-val.npz"


def data_files(data_dir: str | Path, dataset: str) -> tuple[list[Path], list[Path]]:
    """The files of a dataset for training and for validation, in the order in which they are read.

    They are those of :func:`data_paths`. A dataset in many files is a folder ``<data_dir>/<dataset>``: OGBench's sets
    of 100 million transitions are numbered files ``cube-triple-play-v0-000.npz`` and
    ``cube-triple-play-v0-000-val.npz`` (github.com/seohongpark/horizon-reduction, README.md).

    Raises:
        ProvenanceError: the folder lacks training or validation files, or a file in the middle of a series.
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
    """Numbered files in the order of their numbers. No number between the first and the last may be missing."""
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


def describe(
    data_dir: str | Path, dataset: str, fingerprint: records.Fingerprint = records.fingerprint
) -> dict[str, Any]:
    """The record of a dataset if it describes exactly its files; otherwise one with the source ``unrecorded``.

    Args:
        data_dir, dataset: as for :func:`data_files`.
        fingerprint: gives a file's checksum; the default reads every file.

    Raises:
        FileNotFoundError: no data file exists.
        ProvenanceError: the record cannot be read.
    """
    paths = [path for part in data_files(data_dir, dataset) for path in part if path.exists()]
    if not paths:
        raise FileNotFoundError(f"No data files of {dataset} in {Path(data_dir).expanduser()}")
    files = {path.name: fingerprint(path) for path in paths}
    return records.describe(record_path(data_dir, dataset), dataset, files)
