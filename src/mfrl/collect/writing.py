"""How every collection comes to the disk: what it may replace, where it grows until it is whole, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mfrl.data import records
from mfrl.errors import CollectError, refused_by_system
from mfrl.system.files import temporary_folder

UNFINISHED = ".collect-"
"""How the names of hidden folders begin in which a dataset is being written."""


def refuse_to_replace(
    what: str,
    folder: Path,
    overwrite: bool,
    record_path: Path,
    dataset: str,
    files: Callable[[], Mapping[str, dict[str, Any]]],
) -> None:
    """Refuse to touch data that are there unless they are ours, byte for byte, and the user asked.

    Args:
        what: is there, in words.
        folder: where.
        overwrite: whether the user asked.
        record_path: of the record that should speak of it.
        dataset: its name.
        files: gives the fingerprints of what is there, by the names they have in the record.

    Raises:
        CollectError: saying why it stays.
    """
    if not overwrite:
        raise CollectError(f"{what} already in {folder}. Pass overwrite=true to replace what mfrl collected.")
    try:
        record = records.read(record_path, dataset)
    except records.ProvenanceError as error:
        raise CollectError(f"Not overwriting {what} in {folder}: {error}") from error
    if record is None:
        why = "there is no mfrl record beside it"
    elif record["source"] != "collected":
        why = f"its record says it is {record['source']}, not collected"
    elif different := records.difference(record, dataset, files(), all_there=False):
        why = f"the mfrl record beside it is not of these files ({different})"
    else:
        return
    raise CollectError(
        f"Not overwriting {what} in {folder}: {why}, so it may be an official download or your own. "
        "Move it away yourself."
    )


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder``, which is made if needed, for a dataset that grows; gone after the block.

    Raises:
        CollectError: before the simulation and not after it, where the folder cannot be written to.
    """
    with ExitStack() as stack:
        with friendly_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            building = stack.enter_context(temporary_folder(folder, UNFINISHED))
        yield building


@contextmanager
def friendly_os_errors(folder: Path) -> Iterator[None]:
    """Say which dataset was not written where the system refuses, and what to do about it."""
    try:
        yield
    except OSError as error:
        reason = refused_by_system(error, folder) or error.strerror or error
        raise CollectError(f"Cannot write the dataset to {folder}: {reason}") from error


def progress_bar(show: bool, unit: str = "ep") -> Progress:
    """A bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),  # All columns fit in 80 characters; rich would cut off the numbers.
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (show and console.is_terminal),
    )
