"""The jobs of a sweep: a folder's name for each, what became of each, and none that takes the others along."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfrl import signals
from mfrl.config import BOOKKEEPING, RESUMABLE, among
from mfrl.errors import ConfigError, InterruptedRun, MfrlError, RefusedRun, refused_by_system
from mfrl.files import write_text
from mfrl.paths import literal, pasted, run_folder

FINISHED, SKIPPED, STOPPED, FAILED = "finished", "skipped", "stopped", "failed"
_COLOURS = {FINISHED: "green", SKIPPED: "dim", STOPPED: "yellow", FAILED: "red"}

_PARENT_SECONDS = 0.5  # between two looks whether the sweep's process is still there
_SAVING_SECONDS = 60.0  # for a job to save, once it is not
_watching, _at_work = threading.Event(), threading.Event()

#: What the members of a population may differ in.
OF_MEMBERS = ("seed", "algo.alpha")

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


def attempt(cfg: DictConfig, overrides: list[str], aside: bool) -> Outcome | list[Outcome]:
    """Train as one job of several, or as those that a packed one stands for; what goes wrong is returned, not raised.

    Args:
        cfg, overrides: as for :func:`mfrl.train.train`.
        aside: the job has a process of its own, beside others: it writes lines that begin with its name, and a signal
            stops it and those that this process would do after it.

    Raises:
        KeyboardInterrupt: the job was stopped in the process of the sweep itself, which is to stop too.
    """
    work = _attempt_pack if "members" in cfg else _attempt
    if not aside:
        if signals.received():
            raise KeyboardInterrupt
        return work(cfg, overrides, aside)
    _stop_with_parent()
    _at_work.set()
    try:
        signals.install(signals.note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)  # withheld until there was somebody to take them
        return work(cfg, overrides, aside)
    except KeyboardInterrupt:  # a second one, or one that came after training
        return Outcome(STOPPED, Path(cfg.resume or cfg.run_dir), "outside training")
    finally:
        signals.install(signals.note)  # between two jobs
        _at_work.clear()


def _attempt(cfg: DictConfig, overrides: list[str], aside: bool) -> Outcome:
    from mfrl.run import RunFolder
    from mfrl.train import finished, train

    folder = Path(cfg.resume).expanduser() if cfg.resume else run_folder(cfg.run_dir)
    console = JobConsole(f"{HydraConfig.get().job.num:>3} {cfg.variant.name} seed {cfg.seed}") if aside else None
    try:
        if aside:
            signals.install(signals.stop)
            if signals.received():
                raise KeyboardInterrupt
        if cfg.existing == "new" and not cfg.resume:
            folder = claim(cfg)
        if not cfg.resume and (result := finished(cfg)):
            outcome = Outcome(SKIPPED, folder, score(result))
        else:
            outcome = Outcome(FINISHED, folder, score(train(cfg, overrides, console)))
        RunFolder(folder).error.unlink(missing_ok=True)
    except InterruptedRun as error:
        if not aside:
            raise KeyboardInterrupt from error
        outcome = Outcome(STOPPED, folder, str(error).removeprefix("stopped "))
    except KeyboardInterrupt:
        if not aside:
            raise
        outcome = Outcome(STOPPED, folder, "before training began")
    except Exception as error:
        if signals.received():  # a signal during an import arrives as the failure of that import
            raise KeyboardInterrupt from error
        outcome = failure(error, folder, make=not cfg.resume)
    if console:
        console.print(f"[{_COLOURS[outcome.status]}]{outcome.status}[/]  {escape(outcome.note)}", highlight=False)
    return outcome


def _attempt_pack(cfg: DictConfig, overrides: list[str], aside: bool) -> list[Outcome]:
    """As :func:`_attempt`, of a job that stands for several."""
    from mfrl.pack import members_of, train_pack

    size = len(cfg.members)
    console = JobConsole(f"{HydraConfig.get().job.num:>3} {cfg.variant.name} pack of {size}") if aside else None
    outcomes = train_pack(members_of(cfg, overrides), console or Console(stderr=True))
    if signals.received() and not aside:
        raise KeyboardInterrupt
    if console:
        for outcome in outcomes:
            line = (
                f"[{_COLOURS[outcome.status]}]{outcome.status}[/]  {escape(f'{outcome.folder.name}  {outcome.note}')}"
            )
            console.print(line, highlight=False)
    return outcomes


def claim(cfg: DictConfig) -> Path:
    """Make the folder of a new run, so that what goes wrong has a place to be told at; ``cfg`` then names it."""
    from mfrl.run import RunFolder

    folder = RunFolder.create(cfg.run_dir).path
    cfg.run_dir, cfg.existing = literal(str(folder)), "continue"
    return folder


def failure(error: Exception, folder: Path, make: bool = True) -> Outcome:
    """What became of a job that failed, told in its folder too.

    Args:
        make: whether to make the folder where there is none.
    """
    from mfrl.run import RunFolder

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


def packed(jobs: Sequence[Sequence[str]], size: int) -> list[list[str]]:
    """Jobs that differ in seed and alpha alone, up to ``size`` of them as one that lists theirs as ``members``.

    Args:
        jobs: the overrides of each, as Hydra hands them to a launcher.
        size: 1 leaves all as they are.
    """
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for job in jobs:
        alike.setdefault(tuple(text for text in job if not _of_member(text)), []).append(list(job))
    packs = []
    for same in alike.values():
        for start in range(0, len(same), size):
            members = same[start : start + size]
            listed = ",".join(f"[{','.join(repr(text) for text in job if _of_member(text))}]" for job in members)
            packs.append([*members[0], f"+members=[{listed}]"] if len(members) > 1 else members[0])
    return packs


def _of_member(text: str) -> bool:
    """Whether an override is of what members may differ in; what Hydra would read otherwise in a list is not."""
    return text.partition("=")[0] in OF_MEMBERS and not set(text) & set("'\"\\")


def _stop_with_parent() -> None:
    """Once the process that started this one is gone, stop as by SIGTERM, and do nothing after that."""
    if _watching.is_set():
        return
    _watching.set()
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + _SAVING_SECONDS
        while _at_work.is_set() and time.monotonic() < end:
            time.sleep(_PARENT_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def score(result: dict[str, Any]) -> str:
    """The first number of the last evaluation: what the evaluation itself puts first."""
    from mfrl.callbacks.progress import format_score, score_name

    key, value = next(iter(result["final"].items()))
    return f"{score_name(key)} {format_score(key, value)}"


class JobConsole(Console):
    """Lines that begin with a job's number and name, without bars: several jobs write to one terminal."""

    def __init__(self, name: str) -> None:
        super().__init__(stderr=True, force_terminal=False, soft_wrap=True)
        self.name = name

    def print(self, *objects: Any, **settings: Any) -> None:
        if objects:  # a bar that ends leaves an empty line
            super().print(f"{escape(self.name)} │", *objects, **settings)


# ---- folders


def changed() -> str:
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
        if key in _ELSEWHERE or among(key, (*RESUMABLE, *BOOKKEEPING, "collect")):
            continue
        if key in hydra.runtime.choices:
            chosen.append(value)
        else:
            values[key] = value
    last = {key: key.rpartition(".")[2] for key in values}
    times = Counter(last.values())
    parts = [f"{last[key] if times[last[key]] == 1 else key}_{value}" for key, value in values.items()]
    return "".join("-" + re.sub(r"[^A-Za-z0-9.+-]+", "_", part).strip("_") for part in sorted(chosen) + sorted(parts))


OmegaConf.register_new_resolver("changed", changed, replace=True)


def refuse_shared_folders(folders: Sequence[Path]) -> None:
    """Two jobs that were to train in one folder would be one run.

    Raises:
        ConfigError: naming the folder.
    """
    for folder, jobs in Counter(folders).items():
        if jobs > 1:
            raise ConfigError(f"{jobs} jobs of the sweep would share the folder {folder}: tell them apart in run_dir=")


# ---- the end


def print_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    """The closing table, and where to look further."""
    root = common_folder(outcome.folder for outcome in outcomes)
    table = Table(title=f"{len(outcomes)} jobs in {escape(str(root))}")
    for column in ("", "job", "", "score, or why there is none"):
        table.add_column(column, overflow="fold")
    for job, outcome in enumerate(outcomes):
        colour = _COLOURS[outcome.status]
        name = escape(str(outcome.folder.relative_to(root)))
        table.add_row(str(job), name, f"[{colour}]{outcome.status}[/]", escape(outcome.note))
    console.print(table, highlight=False)
    counts = Counter(outcome.status for outcome in outcomes)
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)
    look, compare = pasted("tensorboard", "--logdir", root), pasted("mfrl", "report", root)
    for what in (f"compare     {compare}", f"look        {look}"):
        console.print(escape(what), highlight=False, soft_wrap=True)


def missing(outcomes: Iterable[Outcome]) -> bool:
    return any(outcome.status in (FAILED, STOPPED) for outcome in outcomes)


def common_folder(folders: Iterable[Path]) -> Path:
    """The innermost folder that all lie below."""
    parents = [folder.parents for folder in folders]
    return next(candidate for candidate in parents[0] if all(candidate in others for others in parents))
