"""Jobs of a sweep: the folder of each, what became of it, and the closing table."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfrl.errors import ConfigError, MfrlError, RefusedRun, refused_by_system
from mfrl.runs.resumable import BOOKKEEPING, RESUMABLE, matches_any
from mfrl.system.files import write_text
from mfrl.system.paths import literal, pasted

FINISHED, SKIPPED, STOPPED, FAILED = "finished", "skipped", "stopped", "failed"
COLUMNS = 120  #: of a terminal that shows every line whole, but for paths
COLOURS = {FINISHED: "green", SKIPPED: "dim", STOPPED: "yellow", FAILED: "red"}


# Overrides that a folder's name need not repeat: they stand elsewhere in the path, or any run may have them.
_ELSEWHERE = {"env", "algo", "algo_name", "variant", "variant.name", "seed", "sweep", "collect"}


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        status: finished, skipped (it had been finished before), stopped or failed.
        folder: of its run.
        note: its score, or in one line why there is none.
    """

    status: str
    folder: Path
    note: str


def method_name(cfg: DictConfig) -> str:
    """What tells a job from others of its sweep: the variant or, of an algorithm without one, the algorithm."""
    return str(cfg.algo_name if cfg.variant.name == "none" else cfg.variant.name)


def reserve_folder(cfg: DictConfig) -> Path:
    """Make the folder of a new run, so that what goes wrong can be recorded there; ``cfg`` then names it."""
    from mfrl.runs.folder import RunFolder

    folder = RunFolder.create(cfg.run_dir).path
    cfg.run_dir, cfg.existing = literal(str(folder)), "continue"
    return folder


def record_failure(error: Exception, folder: Path, make: bool = True) -> Outcome:
    """What became of a job that failed, told in its folder too.

    Args:
        make: whether to make the folder where there is none.
    """
    from mfrl.runs.folder import RunFolder

    if isinstance(error, RefusedRun):  # of the run that is there, nothing went wrong
        return Outcome(FAILED, folder, str(error))
    error = refused_by_system(error) or error
    note = " ".join(str(error).split())
    with suppress(OSError):  # on a full disk there is no room for this either
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            write_text(RunFolder(folder).error, "".join(traceback.format_exception(error)))
    if not isinstance(error, MfrlError):
        note = f"{type(error).__name__}: {note} (see {RunFolder(folder).error})"
    return Outcome(FAILED, folder, note)


def score(result: dict[str, Any]) -> str:
    """The first number of the last evaluation: what the evaluation itself puts first."""
    from mfrl.runs.scores import format_score, score_name

    key, value = next(iter(result["final"].items()))
    return f"{score_name(key)} {format_score(key, value)}"


class JobConsole(Console):
    """Lines that begin with a job's number and name, without bars: several jobs write to one terminal.

    Attributes:
        room: columns that are left of :data:`COLUMNS` after the name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(stderr=True, force_terminal=False, soft_wrap=True)
        self.name, self.room = name, COLUMNS - len(f"{name} │ ")

    def print(self, *objects: Any, **settings: Any) -> None:
        if objects:  # a bar that ends leaves an empty line
            super().print(f"{escape(self.name)} │", *objects, **settings)


def changed_settings() -> str:
    """What a job's overrides change beyond environment, variant and seed, as part of a folder's name.

    E.g. ``-quickstart-alpha_3-num_candidates_5``: chosen files, then settings, each sorted, so that the order on the
    command line does not matter.
    """
    if not HydraConfig.initialized():
        return ""
    hydra = HydraConfig.get()
    chosen, values = [], {}
    for override in hydra.overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        if key in _ELSEWHERE or matches_any(key, (*RESUMABLE, *BOOKKEEPING)):
            continue
        if key in hydra.runtime.choices:
            chosen.append(value)
        else:
            values[key] = value
    last = {key: key.rpartition(".")[2] for key in values}
    times = Counter(last.values())
    parts = [f"{last[key] if times[last[key]] == 1 else key}_{value}" for key, value in values.items()]
    return "".join("-" + re.sub(r"[^A-Za-z0-9.+-]+", "_", part).strip("_") for part in sorted(chosen) + sorted(parts))


def refuse_shared_folders(folders: Sequence[Path]) -> None:
    """Two jobs that were to train in one folder would be one run.

    Raises:
        ConfigError: naming the folder.
    """
    for folder, jobs in Counter(folders).items():
        if jobs > 1:
            raise ConfigError(f"{jobs} jobs of the sweep would share the folder {folder}: tell them apart in run_dir=")


def print_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    """The closing table, and where to look further."""
    root = common_folder(outcome.folder for outcome in outcomes)
    table = Table(title=f"{len(outcomes)} jobs in {escape(str(root))}")
    for column in ("", "job", "", "score, or why there is none"):
        table.add_column(column, overflow="fold")
    for job, outcome in enumerate(outcomes):
        colour = COLOURS[outcome.status]
        name = escape(str(outcome.folder.relative_to(root)))
        table.add_row(str(job), name, f"[{colour}]{outcome.status}[/]", escape(outcome.note))
    console.print(table, highlight=False)
    counts = Counter(outcome.status for outcome in outcomes)
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)
    look, compare = pasted("tensorboard", "--logdir", root), pasted("mfrl", "report", root)
    for what in (f"compare     {compare}", f"look        {look}"):
        console.print(escape(what), highlight=False, soft_wrap=True)


def any_unfinished(outcomes: Iterable[Outcome]) -> bool:
    return any(outcome.status in (FAILED, STOPPED) for outcome in outcomes)


def common_folder(folders: Iterable[Path]) -> Path:
    """The innermost folder that all lie below."""
    parents = [folder.parents for folder in folders]
    return next(candidate for candidate in parents[0] if all(candidate in others for others in parents))
