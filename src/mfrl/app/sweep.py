"""The jobs of a sweep: a folder's name for each, what became of each, and none that takes the others along."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from mfrl.app.tally import note_beginning, note_end
from mfrl.errors import InterruptedRun
from mfrl.runs.jobs import (
    COLOURS,
    FINISHED,
    SKIPPED,
    STOPPED,
    JobConsole,
    Outcome,
    changed_settings,
    method_name,
    record_failure,
    reserve_folder,
    score,
)
from mfrl.system import signals
from mfrl.system.paths import run_folder

_PARENT_SECONDS = 0.5  # between two looks whether the sweep's process is still there
_SAVING_SECONDS = 60.0  # for a job to save, once it is not
_watching, _at_work = threading.Event(), threading.Event()

#: What the members of a population may differ in.
OF_MEMBERS = ("seed", "algo.alpha")


def attempt(cfg: DictConfig, overrides: list[str], own_process: bool) -> Outcome | list[Outcome]:
    """Train as one job of several, or as those that a packed one stands for; what goes wrong is returned, not raised.

    Args:
        cfg, overrides: as for :func:`mfrl.app.train.train`.
        own_process: the job has a process of its own, beside others: it writes lines that begin with its name, and a
            signal stops it and those that this process would do after it.

    Raises:
        KeyboardInterrupt: the job was stopped in the process of the sweep itself, which is to stop too.
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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)  # withheld until there was somebody to take them
        job = HydraConfig.get().job.num
        note_beginning(job)
        outcome = work(cfg, overrides, own_process)
        note_end(job, outcome if isinstance(outcome, list) else [outcome])
        return outcome
    except KeyboardInterrupt:  # a second one, or one that came after training
        return Outcome(STOPPED, Path(cfg.resume or cfg.run_dir), "outside training")
    finally:
        signals.install(signals.note)  # between two jobs
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
        if signals.received():  # a signal during an import arrives as the failure of that import
            raise KeyboardInterrupt from error
        outcome = record_failure(error, folder, make=not cfg.resume)
    if console:
        console.print(f"[{COLOURS[outcome.status]}]{outcome.status}[/]  {escape(outcome.note)}", highlight=False)
    return outcome


def _attempt_pack(cfg: DictConfig, overrides: list[str], own_process: bool) -> list[Outcome]:
    """As :func:`_attempt`, of a job that stands for several."""
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


OmegaConf.register_new_resolver("changed", changed_settings, replace=True)
