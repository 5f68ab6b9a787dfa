"""Jobs of a sweep: the folder of each, its outcome, and the closing table."""

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
COLUMNS = 120  #: lines are at most this long, unless they contain a path
COLOURS = {FINISHED: "green", SKIPPED: "dim", STOPPED: "yellow", FAILED: "red"}


# Overrides that a folder's name does not repeat, because the rest of the path has them.
_IN_PATH = {"env", "algo", "algo_name", "variant", "variant.name", "seed", "sweep"}


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: ``finished``, ``skipped`` (the run was finished before), ``stopped`` or ``failed``.
        folder: the run folder.
        note: the score, or one line that says why there is none.
    """

    status: str
    folder: Path
    note: str


#: What a job of a sweep returns: its outcome, or those of a pack's members.
Returned = Outcome | list[Outcome]


def outcomes_of(returned: Returned) -> list[Outcome]:
    """The outcomes of a job, one for each run in it."""
    return returned if isinstance(returned, list) else [returned]


def method_name(cfg: DictConfig) -> str:
    """The name of a job's method: the variant, or the algorithm if it has no variant."""
    return str(cfg.algo_name if cfg.variant.name == "none" else cfg.variant.name)


def reserve_folder(cfg: DictConfig) -> Path:
    """Make the folder of a new run, so that an error can be recorded there, and set ``run_dir`` in ``cfg``.

    Raises:
        ConfigError: the folder cannot be made.
    """
    from mfrl.runs.folder import RunFolder

    folder = RunFolder.create(cfg.run_dir).path
    cfg.run_dir, cfg.existing = literal(str(folder)), "continue"
    return folder


def record_failure(error: Exception, folder: Path, make: bool = True) -> Outcome:
    """The outcome of a job that failed. The traceback is written to ``error.txt`` in its folder.

    Args:
        make: make the folder if it does not exist.
    """
    from mfrl.runs.folder import RunFolder

    if isinstance(error, RefusedRun):  # the run in the folder has not failed: leave it as it is
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
    """A result's main score in words: "success 0.96"."""
    from mfrl.runs.scores import format_score, main_score, score_name

    key = main_score(result["final"])
    return f"{score_name(key)} {format_score(key, result['final'][key])}"


class JobConsole(Console):
    """A console for one of several jobs that write to one terminal. Its lines begin with the job's name.

    It shows no progress bars, which several jobs would draw over one another.

    Args:
        name: the job's number, method and seed.

    Attributes:
        room: the number of columns, of :data:`COLUMNS`, after the name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(stderr=True, force_terminal=False, soft_wrap=True)
        self.name, self.room = name, COLUMNS - len(f"{name} │ ")

    def print(self, *objects: Any, **settings: Any) -> None:
        if objects:  # a progress bar prints an empty line when it ends
            super().print(f"{escape(self.name)} │", *objects, **settings)


def changed_settings() -> str:
    """What a job's overrides change besides environment, algorithm, variant and seed, as a part of a folder's name.

    An example is ``-quickstart-alpha_3-num_candidates_5``. Chosen configuration files come first, then settings. Both
    are sorted, so the order on the command line does not matter. Configurations call it as ``${changed:}``.
    """
    if not HydraConfig.initialized():
        return ""
    hydra = HydraConfig.get()
    chosen, values = [], {}
    for override in hydra.overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        if key in _IN_PATH or matches_any(key, (*RESUMABLE, *BOOKKEEPING)):
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
    """Refuse a sweep in which two jobs have the same run folder.

    Raises:
        ConfigError: two jobs have. The message names the folder.
    """
    for folder, jobs in Counter(folders).items():
        if jobs > 1:
            raise ConfigError(f"{jobs} jobs of the sweep would share the folder {folder}: tell them apart in run_dir=")


def print_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Print the closing table of a sweep, and the commands that compare its runs."""
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
    """Whether a job has failed or was stopped."""
    return any(outcome.status in (FAILED, STOPPED) for outcome in outcomes)


def common_folder(folders: Iterable[Path]) -> Path:
    """The innermost folder that contains all of the folders."""
    parents = [folder.parents for folder in folders]
    return next(candidate for candidate in parents[0] if all(candidate in others for others in parents))
