"""Download Minari datasets with Minari's own client."""

from __future__ import annotations

import os
from pathlib import Path

from mfrl.data.minari_files import OWN_NAMESPACE, checked_id, present, root_of_minari, write_record
from mfrl.data.minari_source import Source
from mfrl.errors import DataError, first_line
from mfrl.system.files import move_into_place, temporary_folder

_CONNECT_SECONDS = 10.0


def download(root: Path, dataset: str) -> None:
    """Fetch a dataset into a temporary folder beside it, check it, write its record, and move it into place.

    Raises:
        DataError: the download failed; ``root`` is unchanged.
    """
    target = root / checked_id(dataset)
    if dataset.startswith(f"{OWN_NAMESPACE}/"):
        raise DataError(f"{dataset} is offered by no server; it is collected in the simulator (mfrl collect)")
    if target.exists():
        raise DataError(f"{target} exists already; move it away to download {dataset} again")
    remote = os.environ.get("MINARI_REMOTE", "")
    _refuse_offline(dataset, remote)
    import minari

    root.mkdir(parents=True, exist_ok=True)
    with temporary_folder(root, ".download-") as new, root_of_minari(new):
        try:
            minari.download_dataset(dataset)
        except (Exception, SystemExit) as error:  # of any of the servers' clients
            raise DataError(f"{dataset} could not be downloaded: {first_line(error)}") from error
        Source.open(new / dataset, dataset, None)
        parts = present(new)  # a combination brings its parts along
        for part in parts:
            write_record(new, part, "official", remote=remote or "the default of minari")
        move_into_place(*((new / part, root / part) for part in parts if not (root / part).exists()))


def _refuse_offline(dataset: str, remote: str) -> None:
    """Try the server once for a short time, because its client would try for minutes."""
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
            f"{dataset} could not be downloaded: {server} cannot be reached from here ({first_line(error)})"
        ) from error
