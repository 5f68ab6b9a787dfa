"""Packs: jobs of a sweep that differ only in seed and alpha are trained together, as the members of one population."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console
from rich.markup import escape

from mfrl.algorithms.base import Algorithm
from mfrl.app.checks import OWN_CALLBACKS, check_existing, check_run
from mfrl.app.parts import (
    build_data,
    build_online,
    build_trainer,
    choose_compiling,
    composed_parts,
    multiplying_as_set,
    run_trainer,
    seeded_algorithm,
)
from mfrl.app.results import announce, finish
from mfrl.app.resume import Start, finished_result, how_to_resume, refuse_other_data, unfinished_checkpoint
from mfrl.app.watch import StartedRun, begin_run, build_progress
from mfrl.callbacks.evaluation import Evaluate
from mfrl.callbacks.interruption import Interruption
from mfrl.callbacks.population import Each, EvaluateEach, Spread, Watched
from mfrl.data.module import OfflineData
from mfrl.errors import ConfigError, MfrlError, RefusedRun
from mfrl.learning.training import Member, Training
from mfrl.runs.folder import RunFolder
from mfrl.runs.jobs import FINISHED, SKIPPED, STOPPED, Outcome, record_failure, reserve_folder, score
from mfrl.runs.saved import resolve_interpolations
from mfrl.runs.targets import plain_settings
from mfrl.system import signals
from mfrl.system.paths import literal, run_folder


@dataclass
class Job:
    """The job of one member.

    Attributes:
        cfg: its configuration.
        overrides: its overrides, as if it were a job of its own.
        folder: its run folder.
        saved: the content of the checkpoint that it resumes from; None for a run that starts at update 0.
        started: the run, once it has begun; else None.
        outcome: how it ended; None while this is unknown.
    """

    cfg: DictConfig
    overrides: list[str]
    folder: Path
    saved: dict[str, Any] | None = None
    started: StartedRun | None = None
    outcome: Outcome | None = None

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def updates(self) -> int:
        """The number of updates it starts after."""
        return self.saved["updates"] if self.saved else 0


def members_of(cfg: DictConfig, overrides: Sequence[str]) -> list[Job]:
    """Split a packed job into the jobs of its members. Each is configured as Hydra would configure it by itself.

    Args:
        cfg: the packed job's configuration. Its ``members`` lists the overrides in which each member differs.
        overrides: the packed job's overrides.
    """
    whole = cast(DictConfig, HydraConfig.instance().cfg)  # Hydra declares another type
    parser = OverridesParser.create()
    jobs = []
    try:
        for texts in cfg.members:
            own = {text.partition("=")[0]: text for text in texts}
            common = [text for text in overrides if not text.startswith("+members=")]
            given = [own.get(text.partition("=")[0], text) for text in common]
            job = copy.deepcopy(cfg)
            with open_dict(job):
                del job["members"]
            for override in parser.parse_overrides(list(texts)):
                OmegaConf.update(job, override.key_or_group, override.value())
            mine = copy.deepcopy(whole)
            with read_write(mine.hydra):
                mine.hydra.overrides.task = given
            HydraConfig.instance().set_config(mine)  # run_dir is resolved from these overrides
            folder = Path(job.resume) if job.resume else run_folder(job.run_dir)
            job.run_dir = literal(str(folder))
            jobs.append(Job(job, given, folder))
    finally:
        HydraConfig.instance().set_config(whole)
    return jobs


def train_pack(jobs: Sequence[Job], console: Console) -> list[Outcome]:
    """Train the jobs that are not finished, those with equal settings as one population.

    Returns:
        the outcome of each job, in order. A job that fails does not stop the others.
    """
    with ExitStack() as locks:
        together: dict[str, list[Job]] = defaultdict(list)
        for job in jobs:
            try:
                _prepare(job, locks)
                if job.outcome is None:
                    together[_shared_settings(job)].append(job)
            except Exception as error:
                job.outcome = record_failure(error, job.folder, make=False)
        for members in together.values():
            if signals.received():
                break
            try:
                with ExitStack() as phase:
                    _fit(members, console, phase)
            except Exception as error:  # data, trainer or update, which all members share
                for job in members:
                    job.outcome = job.outcome or record_failure(error, job.folder)
            finally:  # also after Ctrl-C, before training or in the middle of it
                for job in members:
                    if job.started:
                        job.started.close(job.outcome.status if job.outcome else STOPPED)
    return [job.outcome or Outcome(STOPPED, job.folder, "before training began") for job in jobs]


def _prepare(job: Job, locks: ExitStack) -> None:
    """Check a job's settings, lock its folder, and read what an earlier attempt left there.

    Raises:
        ConfigError: a setting cannot be used, or the folder holds a run with other settings (RefusedRun).
    """
    cfg = job.cfg
    if cfg.resume:
        raise RefusedRun("resume= goes on with one run; a pack goes on when its sweep is started again")
    try:
        check_existing(cfg)
    except ConfigError as error:  # RefusedRun: the run that may be in the folder has not failed
        raise RefusedRun(str(error)) from error
    if cfg.existing == "new":
        job.folder = reserve_folder(cfg)
    resolve_interpolations(cfg)
    check_run(cfg, job.overrides)
    if others := [name for name in cfg.callbacks if name not in OWN_CALLBACKS]:
        raise ConfigError(
            f"callbacks.{others[0]} watches a single run and cannot watch a pack: leave it out, or say pack=1"
        )
    locks.enter_context(job.run.locked())
    if result := finished_result(cfg):
        job.outcome = Outcome(SKIPPED, job.folder, score(result))
    else:
        job.saved = unfinished_checkpoint(job.run)


def _shared_settings(job: Job) -> str:
    """What members of one population have in common, as JSON: the update, and all settings but seed and alpha.

    Interpolations are resolved, so other settings that refer to ``${seed}`` must not differ either. The seed itself
    counts where ``data.fraction`` < 1, because it then chooses a part of the dataset.
    """
    cfg = copy.deepcopy(job.cfg)
    cfg.run_dir = ""  # differs between members, and so do settings that refer to it
    plain = plain_settings(cfg)
    del plain["logger"]  # each member has its own
    seed = plain.pop("seed")
    for part in ("algo", "data"):
        plain[part].pop("seed", None)
    plain["algo"].pop("alpha", None)
    if plain["data"].get("fraction", 1.0) != 1.0:
        plain["data"]["seed"] = seed
    return json.dumps([job.updates, plain], sort_keys=True, default=str)


def _fit(jobs: list[Job], console: Console, phase: ExitStack) -> None:
    """Train jobs as one population, and set the outcome of each. ``phase`` closes what they leave open."""
    first = jobs[0].cfg
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    data = build_data(first, composed_parts(first, console), console)
    provenance = data.provenance()
    jobs, algorithms, why = _build(jobs, data, provenance, console)
    if not jobs:
        return
    phase.enter_context(multiplying_as_set(first))
    training = Training(algorithms[0], first.batch_size, jobs[0].cfg.compile, beside=algorithms[1:])
    training.online = build_online(jobs[0].cfg, data, algorithms, [job.folder for job in jobs], console)
    if training.online is not None:
        phase.callback(training.online.close)
    progress = build_progress(first, console)
    spread = Spread(progress)
    population, runs = [], []
    for index, job in enumerate(jobs):
        member = Member(training, index)
        start = Start(job.cfg, composed_parts(job.cfg, console), job.run, job.saved)
        run = job.started = begin_run(start, job.overrides, data, provenance, member, spread, console)
        callbacks = run.monitor, run.checkpoints, run.evaluate
        if job.saved:
            training.load(job.saved, index)
            for callback in callbacks:
                if state := job.saved["callbacks"].get(callback.state_key):
                    callback.load_state_dict(state)
        runs.append(run)
        population.append(Watched(member, [*run.loggers.values()], callbacks))
    each = list(zip(*(watched.callbacks for watched in population), strict=True))
    monitors, checkpoints = (Each(population, callbacks) for callbacks in each[:2])
    in_simulator = isinstance(runs[0].evaluate, Evaluate)
    evaluations = (EvaluateEach if in_simulator else Each)(population, each[2])
    # The order of mfrl.app.checks.OWN_CALLBACKS: the checkpoint comes before the evaluation.
    watching = [monitors, Interruption(), checkpoints, evaluations, spread, progress]
    trainer = build_trainer(first, jobs[0].run.checkpoints, watching, [])
    names = [job.folder.name for job in jobs]
    named = ", ".join(names) if len(names) <= 4 else f"{names[0]} ... {names[-1]}"
    announce(
        console,
        jobs[0].cfg,
        f"{len(jobs)} member{'s' * (len(jobs) > 1)}, {named} → {jobs[0].folder.parent}",
        jobs[0].updates,
        why,
    )
    stopped = False
    with signals.handled_by(signals.note_once):
        try:
            run_trainer(trainer, training, data, evaluations, jobs[0].updates)
        except (signals.Interrupted, SystemExit, KeyboardInterrupt):
            stopped = True
        except MfrlError as error:
            if not all(watched.failed for watched in population):
                raise
            console.print(f"[bold red]error[/] every member has failed, the last with: {escape(str(error))}")
    for job, watched, run in zip(jobs, population, runs, strict=True):
        try:
            if watched.failed:
                raise watched.failed
            if stopped:
                note = how_to_resume(job.run, watched.member.updates, run.checkpoints)
                job.outcome = Outcome(STOPPED, job.folder, note.removeprefix("stopped "))
            else:
                job.outcome = Outcome(FINISHED, job.folder, score(finish(run, watched.member)))
                job.run.error.unlink(missing_ok=True)
        except Exception as error:  # an error of this member, which leaves the others alone
            job.outcome = record_failure(error, job.folder)
        for logger in watched.loggers:
            logger.finalize("finished")


def _build(
    jobs: Sequence[Job], data: OfflineData, provenance: dict[str, Any], console: Console
) -> tuple[list[Job], list[Algorithm], str]:
    """Build the algorithms of jobs. A job whose algorithm cannot be built gets a failed outcome.

    Returns:
        the other jobs, their algorithms, and why updates are compiled or not (a sentence).
    """
    built, algorithms, why = [], [], ""
    for job in jobs:
        try:
            if job.saved:
                refuse_other_data(job.saved["mfrl"]["provenance"], provenance)
            algorithm = seeded_algorithm(job.cfg, data, composed_parts(job.cfg, console))
            why = choose_compiling(job.cfg)
            if job.saved:
                algorithm.load_state_dict(job.saved["state_dict"])
        except Exception as error:
            job.outcome = record_failure(error, job.folder)
        else:
            built.append(job)
            algorithms.append(algorithm)
    return built, algorithms, why
