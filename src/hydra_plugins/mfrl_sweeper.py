"""Hydra finds its plugins in this namespace and nowhere else; what is done lies in mfrl.app.sweep."""

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
from typing import Any

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

from mfrl.app.overrides import Composer, change, explain, parse, values_of
from mfrl.app.sweep import packed
from mfrl.app.tally import counted
from mfrl.errors import ConfigError, refused_by_system
from mfrl.runs.jobs import any_unfinished, print_outcomes, refuse_shared_folders
from mfrl.system import signals
from mfrl.system.paths import run_folder

KILLED = "a process was killed from outside, perhaps for want of memory"
RESTARTS = 2


class MfrlSweeper(Sweeper):
    """Every combination of comma-separated values, as Hydra's own sweeper makes them, in packs, ending in a table.

    Exits with 1 where a job failed.

    Args:
        max_batch_size: jobs that are launched together; None: all.
        params: overrides that a file gives; those of the command line replace them.
    """

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose the jobs, to refuse here what cannot be, and note their folders.

        Raises:
            ConfigError: naming the setting, or a folder that two jobs would share.
        """
        composed: dict[tuple[str, ...], DictConfig] = {}
        groups = self.config.hydra.runtime.choices
        for overrides in batch:
            given = [parse(text) for text in overrides]
            chosen = tuple(o.input_line for o in given if o.get_key_element().lstrip("+") in groups)
            try:
                if chosen not in composed:  # jobs that differ in a seed alone are composed once
                    loader = self.hydra_context.config_loader
                    composed[chosen] = loader.load_sweep_config(self.config, list(overrides))
            except (HydraException, OmegaConfBaseException) as error:  # in a sweep's file: the command line was checked
                GlobalHydra.instance().clear()  # the sweep is over: what explains the error composes for itself
                composer = Composer.of(self.config.hydra.job.config_name, given)
                raise ConfigError(explain(error, composer, given)) from error
            job = composed[chosen]
            for override in given:
                if override.input_line not in chosen and not override.is_delete():
                    change(job, override)
            with read_write(job.hydra):  # Hydra locks it when it is made the current one
                job.hydra.overrides.task = list(overrides)
            HydraConfig.instance().set_config(job)  # what `run_dir` is made of
            if job.existing == "continue":
                if job.resume:
                    raise ConfigError("resume= goes on with one run; a sweep goes on when it is started again without")
                self.folders.append(run_folder(job.run_dir))
        refuse_shared_folders(self.folders)

    def sweep(self, arguments: list[str]) -> Any:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.folders: list[Path] = []  # of jobs that do only what is missing
        signals.forget()
        over = threading.Event()
        # Signals reach this process through this thread; they are withheld from the jobs' processes, until those can
        # save.
        threading.Thread(target=_stop_jobs, args=(over,), daemon=True).start()
        try:
            with signals.handled_by(_note), signals.withheld():
                batches = self._sweep(arguments, console)
        except KeyboardInterrupt:
            self._stopped(console)
        except BrokenExecutor:
            if signals.received():
                self._stopped(console)
            console.print(f"[bold red]error[/] {KILLED} (jobs= sets how many run at once); {self._how_to_go_on()}")
            sys.exit(1)
        except (ConfigError, OSError) as error:  # Hydra's record of the sweep is a file as well
            refusal = error if isinstance(error, ConfigError) else refused_by_system(error)
            if refusal is None:
                raise
            console.print(f"[bold red]error[/] {escape(str(refusal))}")
            sys.exit(1)
        finally:
            over.set()
        _dismiss_jobs()
        returned = [job.return_value for batch in batches for job in batch]
        outcomes = [one for value in returned for one in (value if isinstance(value, list) else [value])]
        print_outcomes(console, outcomes)
        if any_unfinished(outcomes) and signals.received():
            self._stopped(console)
        if any_unfinished(outcomes):
            console.print(self._how_to_go_on())
            sys.exit(1)
        return batches

    def _stopped(self, console: Console) -> None:
        console.print(f"stopped; {self._how_to_go_on()}")
        sys.exit(128 + (signals.received() or signal.SIGINT))

    def _how_to_go_on(self) -> str:
        if self.folders:
            return "the same command again does only what is missing"
        return "an unfinished run goes on with  mfrl train resume=FOLDER"

    def _sweep(self, arguments: list[str], console: Console) -> list[Sequence[JobReturn]]:
        """The sweep, started again where a process was killed: that takes the jobs beside it along."""
        given = [parse(text) for text in [*(f"{key}={value}" for key, value in self.params.items()), *arguments]]
        jobs = combinations(given)
        record = Path(self.config.hydra.sweep.dir)
        record.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, record / "multirun.yaml")
        restarts = RESTARTS
        while True:
            self.folders.clear()
            try:
                return self._launch(jobs, record, console)
            except BrokenExecutor:
                if signals.received() or not (restarts and self.folders):  # without folders jobs would begin anew
                    raise
                restarts -= 1
                console.print(f"{KILLED}; going on with what is missing")

    def _launch(self, jobs: list[list[str]], record: Path, console: Console) -> list[Sequence[JobReturn]]:
        size = self.max_batch_size or len(jobs)
        returned = []
        for first in range(0, len(jobs), size):
            batch = jobs[first : first + size]
            self.validate_batch_is_legal(batch)
            packs = packed(batch, self._pack(batch[0]))
            with counted(record / f".jobs-{os.getpid()}", len(packs), len(batch), console):
                results = self.launcher.launch(packs, initial_job_idx=first)
            for result in results:
                _ = result.return_value  # raises what the job raised
            returned.append(results)
        return returned

    def _pack(self, job: Sequence[str]) -> int:
        """How many jobs are trained together.

        Raises:
            ConfigError: it is no number of them.
        """
        given = [text.partition("=")[2] for text in job if text.startswith("pack=")]
        size = given[-1] if given else str(self.config.get("pack", 1))
        if not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"pack={size} must be a whole number of at least 1")
        return int(size)


def combinations(overrides: Iterable[Override]) -> list[list[str]]:
    """The overrides of every job: one of the values of each key, whose last mention counts."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        values[key] = [
            key if one.value_type is None else f"{key}={one.get_value_element_as_str()}" for one in values_of(override)
        ]
    return [list(job) for job in itertools.product(*values.values())]


def _jobs() -> list[BaseProcess]:
    """The processes that jobs run in, where they have some of their own."""
    return [child for child in active_children() if child.name.startswith("LokyProcess")]


def _dismiss_jobs() -> None:
    """End the processes of the jobs, which joblib keeps for some minutes in case that there is more to do."""
    if _jobs():
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


def _note(number: int, frame: FrameType | None) -> None:
    """Handler: the jobs are stopped, on which the sweep ends; where they run in this process, it ends now."""
    signals.note_once(number, frame)
    if not _jobs():
        raise KeyboardInterrupt


def _stop_jobs(over: threading.Event) -> None:
    """Once a signal has come, tell the jobs' processes until the sweep is over: some may only be starting."""
    while not over.wait(0.2):
        if signals.received():
            for job in _jobs():
                with suppress(ProcessLookupError):
                    os.kill(job.pid, signal.SIGTERM)
