"""Runs the jobs of a sweep. A job that fails or is stopped does not end the others."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from mfrl.app.tally import note_end, note_start
from mfrl.errors import InterruptedRun
from mfrl.runs.jobs import (
    COLOURS,
    FINISHED,
    SKIPPED,
    STOPPED,
    JobConsole,
    Outcome,
    Returned,
    changed_settings,
    method_name,
    outcomes_of,
    record_failure,
    reserve_folder,
    score,
)
from mfrl.system import signals
from mfrl.system.paths import run_folder

_PARENT_SECONDS = 0.5  # a job checks at this interval whether the sweep's process still exists
_SAVING_SECONDS = 60.0  # if it does not, a job has this time to save
_watching, _at_work = threading.Event(), threading.Event()
_process = uuid.uuid4()

#: The settings in which members of a population may differ.
MEMBER_SETTINGS = ("seed", "algo.alpha")


def this_process() -> uuid.UUID:
    """What tells this process from those of the sweep's other jobs, on whatever machine. Numbers of processes recur."""
    return _process


def attempt(cfg: DictConfig, overrides: list[str], own_process: bool) -> Returned:
    """Run one job of a sweep. Errors become outcomes and are not raised.

    Args:
        cfg, overrides: see :func:`mfrl.app.train.train`. ``cfg.members`` makes it a packed job.
        own_process: the job runs in a process of its own, beside other jobs. Its lines then begin with its name, and a
            signal stops it and the later jobs of this process.

    Returns:
        the job's outcome, or a list of outcomes of a packed job.

    Raises:
        KeyboardInterrupt: the job ran in the sweep's own process and was stopped, so the sweep must stop too.
    """
    work = _attempt_pack if "members" in cfg else _attempt
    if not own_process:
        if signals.received():
            raise KeyboardInterrupt
        return work(cfg, overrides, own_process)
    _stop_with_parent()
    _at_work.set()
    try:
        signals.install(signals.note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)  # blocked until the handlers were installed
        job = HydraConfig.get().job.num
        note_start(job)
        outcome = work(cfg, overrides, own_process)
        outcomes = outcomes_of(outcome)
        if not any(one.status == STOPPED for one in outcomes):  # else it is to go on, or the whole sweep stops
            note_end(job, outcomes)
        return outcome
    except KeyboardInterrupt:  # a second Ctrl-C, or one after training
        return Outcome(STOPPED, Path(cfg.resume or cfg.run_dir), "outside training")
    finally:
        signals.install(signals.note)  # note signals that arrive between two jobs
        _at_work.clear()


def _attempt(cfg: DictConfig, overrides: list[str], own_process: bool) -> Outcome:
    from mfrl.app.resume import finished_result
    from mfrl.app.train import train
    from mfrl.runs.folder import RunFolder

    folder = Path(cfg.resume).expanduser() if cfg.resume else run_folder(cfg.run_dir)
    console = JobConsole(f"{HydraConfig.get().job.num:>3} {method_name(cfg)} seed {cfg.seed}") if own_process else None
    try:
        if own_process:
            signals.install(signals.stop)
            if signals.received():
                raise KeyboardInterrupt
        if cfg.existing == "new" and not cfg.resume:
            folder = reserve_folder(cfg)
        if not cfg.resume and (result := finished_result(cfg)):
            outcome = Outcome(SKIPPED, folder, score(result))
        else:
            outcome = Outcome(FINISHED, folder, score(train(cfg, overrides, console)))
        RunFolder(folder).error.unlink(missing_ok=True)
    except InterruptedRun as error:
        if not own_process:
            raise KeyboardInterrupt from error
        outcome = Outcome(STOPPED, folder, str(error).removeprefix("stopped "))
    except KeyboardInterrupt:
        if not own_process:
            raise
        outcome = Outcome(STOPPED, folder, "before training began")
    except Exception as error:
        if signals.received():  # a signal during an import makes the import fail
            raise KeyboardInterrupt from error
        outcome = record_failure(error, folder, make=not cfg.resume)
    if console:
        console.print(f"[{COLOURS[outcome.status]}]{outcome.status}[/]  {escape(outcome.note)}", highlight=False)
    return outcome


def _attempt_pack(cfg: DictConfig, overrides: list[str], own_process: bool) -> list[Outcome]:
    """Run a packed job, see :func:`_attempt`."""
    from mfrl.app.pack import members_of, train_pack

    size = len(cfg.members)
    console = JobConsole(f"{HydraConfig.get().job.num:>3} {method_name(cfg)} pack of {size}") if own_process else None
    outcomes = train_pack(members_of(cfg, overrides), console or Console(stderr=True))
    if signals.received() and not own_process:
        raise KeyboardInterrupt
    if console:
        for outcome in outcomes:
            line = f"[{COLOURS[outcome.status]}]{outcome.status}[/]  {escape(f'{outcome.folder.name}  {outcome.note}')}"
            console.print(line, highlight=False)
    return outcomes


def packed(jobs: Sequence[Sequence[str]], size: int) -> list[list[str]]:
    """Combine jobs that differ only in seed and alpha into packed jobs.

    Args:
        jobs: the overrides of each job, as Hydra hands them to a launcher.
        size: the largest number of jobs in a packed job; 1 combines none.

    Returns:
        the overrides of each job. A packed job has those of its first member, and ``+members=[...]`` with the seed and
        alpha of each.
    """
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for job in jobs:
        alike.setdefault(tuple(text for text in job if not _is_member_setting(text)), []).append(list(job))
    packs = []
    for same in alike.values():
        for start in range(0, len(same), size):
            members = same[start : start + size]
            listed = ",".join(
                f"[{','.join(repr(text) for text in job if _is_member_setting(text))}]" for job in members
            )
            packs.append([*members[0], f"+members=[{listed}]"] if len(members) > 1 else members[0])
    return packs


def _is_member_setting(text: str) -> bool:
    """Whether members may differ in an override. Quotes and backslashes would change their meaning inside a list."""
    return text.partition("=")[0] in MEMBER_SETTINGS and not set(text) & set("'\"\\")


def _stop_with_parent() -> None:
    """Watch the process that started this one. When it has gone, stop as after SIGTERM, and then exit."""
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


OmegaConf.register_new_resolver("changed", changed_settings, replace=True)
