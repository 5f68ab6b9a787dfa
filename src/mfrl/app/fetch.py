"""Collects or downloads the data of a run if they are missing and the run asks for it."""

from __future__ import annotations

from contextlib import ExitStack

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from mfrl.app.collect import collect_missing
from mfrl.data.module import OfflineData
from mfrl.errors import DataError, MfrlError
from mfrl.system.files import one_at_a_time


def fetch_missing(cfg: DictConfig, data: OfflineData, console: Console) -> None:
    """Collect or download the files of a run's data if they are missing and ``collect`` or ``download`` is set.

    Of several jobs that need the same data, one gets them and the others wait.

    Raises:
        DataError: the data cannot be collected or downloaded, or the folder cannot be written to.
        CollectError: the collector fails.
    """

    def files_exist() -> bool:
        return all(path.is_file() for path in data.paths)

    if files_exist() or (cfg.collect is None and not cfg.download):
        return
    assert data.data_dir is not None, "data with files have a folder"
    with ExitStack() as stack:
        try:
            stack.enter_context(one_at_a_time(data.data_dir / f".{data.dataset.replace('/', '-')}.lock"))
        except OSError as error:
            if isinstance(error, MfrlError):  # its message says what to do
                raise
            raise DataError(
                f"{data.dataset} is not in {data.data_dir}, and cannot be put there ({error.strerror or error}): "
                "choose another folder with data_dir=, or have it put there by somebody who may"
            ) from error
        if files_exist():
            return
        how = "downloading it" if cfg.collect is None else "collecting it in the simulator"
        what = escape(f"{data.dataset} is not in {data.data_dir}: {how}")
        console.print(what, highlight=False, soft_wrap=True)
        if cfg.collect is None:
            data.download()
        else:
            collect_missing(cfg, data)
