"""What all collections share: they keep foreign data, build in a hidden folder, and show a progress bar."""

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

UNFINISHED = ".collect-"  #: prefix of the hidden folders in which datasets are written


def refuse_to_replace(
    what: str,
    folder: Path,
    overwrite: bool,
    record_path: Path,
    dataset: str,
    files: Callable[[], Mapping[str, dict[str, Any]]],
) -> None:
    """Refuse to replace data, unless the user asks for it and a record shows that mfrl collected exactly these files.

    Args:
        what: the data, in words.
        folder: the folder that they are in.
        overwrite: whether the user asks for it.
        record_path: the record that should describe them.
        dataset: the dataset's name.
        files: returns the fingerprints of the files by the names that they have in the record.

    Raises:
        CollectError: the data stay. The message says why.
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
    """A context with a new hidden folder inside ``folder`` for building a dataset. It is removed at the end.

    Raises:
        CollectError: ``folder`` cannot be made or written to. This is raised at once, before the simulation.
    """
    with ExitStack() as stack:
        with friendly_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            building = stack.enter_context(temporary_folder(folder, UNFINISHED))
        yield building


@contextmanager
def friendly_os_errors(folder: Path) -> Iterator[None]:
    """A context that turns errors of the system, such as a full disk, into sentences for the user.

    Raises:
        CollectError: the system refused. The message says why, and what to do.
    """
    try:
        yield
    except OSError as error:
        reason = refused_by_system(error, folder) or error.strerror or error
        raise CollectError(f"Cannot write the dataset to {folder}: {reason}") from error


def progress_bar(show: bool, unit: str = "ep") -> Progress:
    """A progress bar on stderr; nothing is shown if stderr is no terminal.

    Args:
        show: False shows nothing.
        unit: what is counted.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),  # so that all columns fit into 80 characters: rich would cut off numbers
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (show and console.is_terminal),
    )
