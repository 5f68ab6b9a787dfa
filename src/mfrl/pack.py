"""Jobs of a sweep that differ in seed and alpha alone, trained as one population."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console

from mfrl import signals
from mfrl.callbacks import Evaluate, Interruption, Progress
from mfrl.callbacks.population import Each, Spread, Watched
from mfrl.config import refuse_settings_of_another_algorithm, refuse_settings_of_another_evaluation
from mfrl.errors import MfrlError
from mfrl.learning.training import Member, Training
from mfrl.paths import literal, run_folder
from mfrl.run import RunFolder, load_checkpoint
from mfrl.saved import settle
from mfrl.sweep import FINISHED, OF_MEMBERS, SKIPPED, STOPPED, Outcome, failure, score
from mfrl.train import (
    announce,
    begin,
    build_run,
    build_trainer,
    check_settings,
    final_share,
    finished,
    how_to_go_on,
    prepare,
)


@dataclass
class Job:
    """A member's run, before and while it is trained.

    Attributes:
        saved: of the checkpoint it goes on from; None: it begins.
        outcome: what became of it; None: not known yet.
    """

    cfg: DictConfig
    overrides: list[str]
    folder: Path
    saved: dict[str, Any] | None = None
    outcome: Outcome | None = None

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def updates(self) -> int:
        """Where it goes on."""
        return self.saved["updates"] if self.saved else 0


def members_of(cfg: DictConfig, overrides: Sequence[str]) -> list[Job]:
    """The jobs that a packed one stands for, each as Hydra would have composed it.

    Args:
        cfg: composed, with ``members``: a list of (seed, alpha), alpha None where it is not what they differ in.
        overrides: of the packed job.
    """
    whole = HydraConfig.instance().cfg
    jobs = []
    try:
        for values in cfg.members:
            own = dict(zip(OF_MEMBERS, values, strict=True))
            given = [text for text in overrides if not text.startswith("+members=")]
            given = [f"{key}={own[key]}" if (key := text.partition("=")[0]) in OF_MEMBERS else text for text in given]
            job = copy.deepcopy(cfg)
            with open_dict(job):
                del job["members"]
            for key, value in own.items():
                if value is not None:
                    OmegaConf.update(job, key, value)
            mine = copy.deepcopy(whole)
            with read_write(mine.hydra):
                mine.hydra.overrides.task = given
            HydraConfig.instance().set_config(mine)  # what the name of the folder is made of
            folder = run_folder(job.run_dir)
            job.run_dir = literal(str(folder))
            jobs.append(Job(job, given, folder))
    finally:
        HydraConfig.instance().set_config(whole)
    return jobs


def train_pack(jobs: Sequence[Job], console: Console) -> list[Outcome]:
    """Train what of these is not finished, members at the same update together, and say what became of each."""
    with ExitStack() as locks:
        for job in jobs:
            try:
                _claim(job, locks)
            except Exception as error:
                job.outcome = failure(error, job.folder)
        together: dict[int, list[Job]] = defaultdict(list)
        for job in jobs:
            if job.outcome is None:
                together[job.updates].append(job)
        for members in together.values():
            if signals.received():
                break
            try:
                _fit(members, console)
            except Exception as error:  # of what they share: data, environment, a folder's disk
                for job in members:
                    job.outcome = job.outcome or failure(error, job.folder)
    return [job.outcome or Outcome(STOPPED, job.folder, "before training began") for job in jobs]


def _claim(job: Job, locks: ExitStack) -> None:
    """Look at a job's settings and at what is in its folder, and keep others from it."""
    cfg = job.cfg
    settle(cfg)
    check_settings(cfg)
    refuse_settings_of_another_algorithm(cfg, job.overrides)
    refuse_settings_of_another_evaluation(cfg, job.overrides)
    if cfg.existing == "new":
        job.folder = RunFolder.create(cfg.run_dir).path
        cfg.run_dir, cfg.existing = literal(str(job.folder)), "continue"
    locks.enter_context(job.run.locked())
    if result := finished(cfg):
        job.outcome = Outcome(SKIPPED, job.folder, score(result))
    elif job.run.last_checkpoint.is_file():
        job.saved = load_checkpoint(job.run.last_checkpoint)
    else:
        job.run.clear()


def _fit(jobs: list[Job], console: Console) -> None:
    """Train members that are at the same update, and set what became of each."""
    first = jobs[0].cfg
    data = prepare(first, None, console)
    algorithms = []
    for job in jobs:
        algorithm, why = build_run(job.cfg, data, job.saved, None)
        if job.saved:
            algorithm.load_state_dict(job.saved["state_dict"])
        algorithms.append(algorithm)
    training = Training(algorithms[0], first.batch_size, first.compile, beside=algorithms[1:])
    progress = Progress(first.eval.every, final_share(first), console)
    spread = Spread(progress)
    population, begun = [], []
    for index, job in enumerate(jobs):
        member = Member(training, index)
        one = begin(job.cfg, job.overrides, console, job.run, job.updates, data, member, spread, None)
        callbacks = one.monitor, one.checkpoints, one.evaluate
        if job.saved:
            training.load(job.saved, index)
            for callback in callbacks:
                if state := job.saved["callbacks"].get(callback.state_key):
                    callback.load_state_dict(state)
        if index and isinstance(one.evaluate, Evaluate):
            one.evaluate.borrow(begun[0].evaluate)
        begun.append(one)
        population.append(Watched(member, one.loggers, callbacks))
    # As in a run of its own: the checkpoint comes before the evaluation.
    monitors, checkpoints, evaluations = (
        Each(population, each) for each in zip(*(w.callbacks for w in population), strict=True)
    )
    watching = [monitors, Interruption(), checkpoints, evaluations, spread, progress]
    trainer = build_trainer(first, jobs[0].run.checkpoints, watching, [])
    names = [job.folder.name for job in jobs]
    named = ", ".join(names) if len(names) <= 4 else f"{names[0]} ... {names[-1]}"
    where = f"{len(jobs)} members, {named} → {jobs[0].folder.parent}"
    announce(console, first, where, jobs[0].updates, why)
    stopped = False
    with signals.handled_by(signals.note_once):
        try:
            trainer.fit(training, datamodule=data)
            if jobs[0].updates == first.updates:  # stopped after the last update: Lightning's loop does not start
                try:
                    evaluations.on_train_start(trainer, training)
                finally:
                    evaluations.teardown(trainer, training, "fit")
        except (signals.Interrupted, SystemExit, KeyboardInterrupt):
            stopped = True
        except MfrlError as error:
            if not all(watched.failed for watched in population):
                raise
            console.print(f"[bold red]error[/] every member has failed, the last with: {error}")
    for job, watched, one in zip(jobs, population, begun, strict=True):
        if watched.failed:
            job.outcome = failure(watched.failed, job.folder)
        elif stopped:
            note = how_to_go_on(job.run, watched.member.updates, one.checkpoints)
            job.outcome = Outcome(STOPPED, job.folder, note.removeprefix("stopped "))
        else:
            job.outcome = Outcome(FINISHED, job.folder, score(one.finish(watched.member)))
            job.run.error.unlink(missing_ok=True)
