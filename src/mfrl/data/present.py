"""Which datasets are on this machine, and whether they are what their records say. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mfrl.catalogue import DEFAULT_DATA_DIR
from mfrl.data import minari_files, ogbench_files, records
from mfrl.data.getting import commands


@dataclass(frozen=True)
class Data:
    """The files of a dataset on this machine.

    Attributes:
        state: ``nothing``, ``incomplete``, or their source by their record: ``official``, ``mirror`` or
            ``collected``; ``unrecorded`` where no record describes these files.
        checked: what agrees with the record: ``sizes`` or ``checksums``; None without a record.
        folder: where they lie or should lie.
        bytes: of all files together.
        problem: a sentence about what is wrong; None if nothing is.
        get: commands that get the files, by their verb; empty if the files are here.
    """

    state: str
    checked: str | None
    folder: str
    bytes: int
    problem: str | None
    get: dict[str, str]


def find(dataset: str, suite: str, data_dir: str | None = None, verify: bool = False) -> Data:
    """Find the files of a dataset on this machine.

    Args:
        dataset: its name or Minari id.
        suite: ``ogbench``; any other name means Minari.
        data_dir: where to look, as in training; None: OGBench's or Minari's own folder.
        verify: compare checksums with the record, which reads all files; otherwise compare sizes.
    """
    problem = None
    if suite == "ogbench":
        folder = Path(data_dir or DEFAULT_DATA_DIR).expanduser()
        record_path = ogbench_files.record_path(folder, dataset)
        try:
            wanted = [path for part in ogbench_files.data_files(folder, dataset) for path in part]
        except records.ProvenanceError as error:
            wanted, problem = list((folder / dataset).glob("*.npz")), str(error)
        files = {path.name: path for path in wanted}
        get = commands(dataset, folder, suite)
    else:
        root = minari_files.data_root(data_dir)
        folder, record_path = root / dataset, root / dataset / minari_files.RECORD
        wanted = [folder / "data" / "metadata.json", *sorted((folder / "data").rglob("*"))]
        files = {path.relative_to(folder).as_posix(): path for path in wanted if not path.is_dir()}
        get = commands(dataset, root, suite)
    found = {name: path for name, path in files.items() if path.is_file()}
    size = sum(path.stat().st_size for path in found.values())
    if not found:
        return Data("nothing", None, str(folder), 0, None, get)
    if problem or len(found) < len(files):
        missing = ", ".join(name for name in files if name not in found)
        return Data("incomplete", None, str(folder), size, problem or f"{missing} missing", get)
    state, checked, problem = _compare(found, record_path, dataset, verify)
    return Data(state, checked, str(folder), size, problem, {})


def _compare(
    files: dict[str, Path], record_path: Path, dataset: str, verify: bool
) -> tuple[str, str | None, str | None]:
    """What a record says of files that are there: state, what was compared, what is wrong."""
    try:
        record = records.load(record_path)
    except FileNotFoundError:
        return "unrecorded", None, None
    except (OSError, records.ProvenanceError) as error:
        return "unrecorded", None, str(error)
    look = records.fingerprint if verify else lambda path: {"bytes": path.stat().st_size}
    if different := records.difference(record, dataset, {name: look(path) for name, path in files.items()}):
        return "unrecorded", None, f"{record_path.name}: {different}"
    return record["source"], "checksums" if verify else "sizes", None
