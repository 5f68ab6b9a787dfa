"""Hydra's sweeper of mfrl. Hydra looks for plugins in this namespace only; :mod:`mfrl.app.sweep` runs the jobs."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from mfrl.app.cluster import ClusterLauncher
from mfrl.app.overrides import Composer, apply_override, as_written, parse, sweep_values
from mfrl.app.refusals import explain
from mfrl.app.sweep import packed
from mfrl.app.tally import progress_reported
from mfrl.errors import ConfigError, refused_by_system
from mfrl.runs.jobs import any_unfinished, outcomes_of, print_outcomes, refuse_shared_folders
from mfrl.system import signals
from mfrl.system.paths import run_folder

KILLED = "a process was killed from outside, perhaps for want of memory"
RESTARTS = 2  #: how many times a sweep is launched again after a process was killed


class MfrlSweeper(Sweeper):
    """Runs every combination of comma-separated values, as Hydra's own sweeper does, and prints a closing table.

    Jobs that differ only in seed and alpha can be packed, so that one process trains them together. The process exits
    with status 1 if a job failed.

    Args:
        max_batch_size: number of jobs that are launched together; None launches all.
        params: overrides from a configuration file. The user's overrides of the same keys replace them.
    """

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose the jobs, and collect the folders of those with ``existing=continue``.

        Raises:
            ConfigError: an override is wrong, or two jobs would share a folder. The message names it.
        """
        config, context = self._set_up()
        composed: dict[tuple[str, ...], DictConfig] = {}
        groups, composer = config.hydra.runtime.choices, Composer(config.hydra.job.config_name)
        for overrides in batch:
            given = [parse(text) for text in overrides]
            # Of lists of choices, as logger=[csv] has one, Hydra keeps no record in its choices.
            chosen = tuple(
                as_written(o) for o in given if o.get_key_element().lstrip("+") in groups or composer.is_choice(o)
            )
            try:
                if chosen not in composed:  # jobs that choose the same files are composed once
                    composed[chosen] = context.config_loader.load_sweep_config(config, list(overrides))
            except (
                HydraException,
                OmegaConfBaseException,
            ) as error:  # a sweep's file is wrong
                GlobalHydra.instance().clear()  # the sweep is over, and the composer below needs Hydra for itself
                composer = Composer.of(config.hydra.job.config_name, given)
                raise ConfigError(explain(error, composer, given)) from error
            job = composed[chosen]
            for override in given:
                if as_written(override) not in chosen and not override.is_delete():
                    apply_override(job, override)
            with read_write(job.hydra):  # Hydra makes the current configuration read-only
                job.hydra.overrides.task = list(overrides)
            HydraConfig.instance().set_config(job)  # run_dir is resolved from these overrides
            if job.existing == "continue":
                if job.resume:
                    raise ConfigError("resume= goes on with one run; a sweep goes on when it is started again without")
                self.folders.append(run_folder(job.run_dir))
        refuse_shared_folders(self.folders)

    def sweep(self, arguments: list[str]) -> Any:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.folders: list[Path] = []  # folders of jobs with existing=continue
        signals.forget()
        over = threading.Event()
        # This thread passes signals on to the jobs' processes, which start with signals blocked and unblock them when
        # they can save.
        threading.Thread(target=_stop_jobs, args=(over,), daemon=True).start()
        try:
            with signals.handled_by(self._note), signals.withheld():
                batches = self._sweep(arguments, console)
        except KeyboardInterrupt:
            self._exit_stopped(console)
        except BrokenExecutor:
            if signals.received():
                self._exit_stopped(console)
            console.print(f"[bold red]error[/] {KILLED} (jobs= sets how many run at once); {self._how_to_resume()}")
            sys.exit(1)
        except (ConfigError, OSError) as error:  # OSError: multirun.yaml cannot be written
            refusal = error if isinstance(error, ConfigError) else refused_by_system(error)
            if refusal is None:
                raise
            console.print(f"[bold red]error[/] {escape(str(refusal))}")
            sys.exit(1)
        finally:
            over.set()
        _dismiss_jobs()
        outcomes = [one for batch in batches for job in batch for one in outcomes_of(job.return_value)]
        print_outcomes(console, outcomes)
        if any_unfinished(outcomes) and signals.received():
            self._exit_stopped(console)
        if any_unfinished(outcomes):
            console.print(self._how_to_resume())
            sys.exit(1)
        return batches

    def _set_up(self) -> tuple[DictConfig, HydraContext]:
        """The configuration and the context that :meth:`setup` received. Hydra declares both as optional."""
        assert self.config is not None
        assert self.hydra_context is not None
        return self.config, self.hydra_context

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: note the signal for whoever stops the jobs, :func:`_stop_jobs` or a cluster's launcher.

        If jobs run in this process, end the sweep at once.
        """
        signals.note_once(number, frame)
        if not _jobs() and not isinstance(self.launcher, ClusterLauncher):
            raise KeyboardInterrupt

    def _exit_stopped(self, console: Console) -> NoReturn:
        console.print(f"stopped; {self._how_to_resume()}")
        sys.exit(128 + (signals.received() or signal.SIGINT))

    def _how_to_resume(self) -> str:
        if self.folders:
            return "the same command again does only what is missing"
        return "an unfinished run goes on with  mfrl train resume=FOLDER"

    def _sweep(self, arguments: list[str], console: Console) -> list[Sequence[JobReturn]]:
        """Launch the jobs. If a process is killed, which ends the jobs beside it too, launch those that are missing."""
        given = [parse(text) for text in [*(f"{key}={value}" for key, value in self.params.items()), *arguments]]
        jobs = combinations(given)
        config, _ = self._set_up()
        record = Path(config.hydra.sweep.dir)
        record.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, record / "multirun.yaml")
        restarts = RESTARTS
        while True:
            self.folders.clear()
            try:
                return self._launch(jobs, record, console)
            except BrokenExecutor:
                if signals.received() or not (restarts and self.folders):  # else all jobs would start anew
                    raise
                restarts -= 1
                console.print(f"{KILLED}; going on with what is missing")

    def _launch(self, jobs: list[list[str]], record: Path, console: Console) -> list[Sequence[JobReturn]]:
        assert self.launcher is not None, "Hydra calls setup first"
        size = self.max_batch_size or len(jobs)
        returned = []
        for first in range(0, len(jobs), size):
            batch = jobs[first : first + size]
            self.validate_batch_is_legal(batch)
            packs = packed(batch, self._pack(batch[0]))
            with progress_reported(record / f".jobs-{os.getpid()}", len(packs), len(batch), console):
                results = self.launcher.launch(packs, initial_job_idx=first)
            for result in results:
                _ = result.return_value  # raises the job's error
            returned.append(results)
        return returned

    def _pack(self, job: Sequence[str]) -> int:
        """The number of jobs in a pack: the setting ``pack`` of a job.

        Raises:
            ConfigError: it is no whole number of at least 1.
        """
        given = [text.partition("=")[2] for text in job if text.startswith("pack=")]
        size = given[-1] if given else str(self._set_up()[0].get("pack", 1))
        if not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"pack={size} must be a whole number of at least 1")
        return int(size)


def combinations(overrides: Iterable[Override]) -> list[list[str]]:
    """The overrides of every job of a sweep. If a key is given several times, the last one counts."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        values[key] = [
            key if one.value_type is None else f"{key}={one.get_value_element_as_str()}"
            for one in sweep_values(override)
        ]
    return [list(job) for job in itertools.product(*values.values())]


def _jobs() -> list[BaseProcess]:
    """The processes of joblib's launcher in which jobs run; none if jobs run in this process."""
    return [child for child in active_children() if child.name.startswith("LokyProcess")]


def _dismiss_jobs() -> None:
    """End the jobs' processes. joblib would keep them for some minutes, in case they are needed again."""
    if _jobs():
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


def _stop_jobs(over: threading.Event) -> None:
    """After a signal, send SIGTERM to the jobs' processes again and again, because some may still be starting.

    Args:
        over: is set when the sweep is over.
    """
    while not over.wait(0.2):
        if signals.received():
            for job in _jobs():
                with suppress(ProcessLookupError):
                    if job.pid is not None:
                        os.kill(job.pid, signal.SIGTERM)
