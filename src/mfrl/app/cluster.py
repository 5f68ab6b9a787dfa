"""Jobs of a sweep on other machines: what the launchers of Ray and of Slurm share.

A launcher hands out a :class:`Parcel` for each job (a pack is one). What comes back are the jobs' outcomes, for the
sweep's closing table. A job of which nothing comes back has an outcome too: what the cluster says of it.
"""

from __future__ import annotations

import copy
import importlib
import os
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from rich.console import Console

from mfrl.errors import CREDENTIALS, require, require_packages
from mfrl.runs.jobs import STOPPED, Outcome, Returned, outcomes_of
from mfrl.system import signals
from mfrl.system.paths import run_folder

#: Beginnings of the environment variables that a job on another machine gets from the sweep's process.
CARRIED = ("MFRL_", "MINARI_", "MUJOCO_", "PYOPENGL_", "OMP_", "MLFLOW_", "WANDB_")
#: Those that are not: a job is written to a disk that many can read.
_SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET")
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}


def carried() -> dict[str, str]:
    """The environment variables of this process that a job gets. What may be a secret is not among them."""
    known = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
    return {name: value for name, value in known.items() if not (_SECRET.search(name) or CREDENTIALS.search(value))}


@dataclass(frozen=True)
class Parcel:
    """A job as it is sent to another process, with everything that Hydra knows in the sweep's.

    Attributes:
        number: of the job in the sweep.
        overrides: its overrides.
        config, context, task, singletons: Hydra's: the sweep's configuration, what composes a job's, the function that
            runs a job, and the state of Hydra's registers.
        folder: the folder in which the sweep was started; relative paths begin there.
        variables: environment variables for the job.
    """

    number: int
    overrides: list[str]
    config: DictConfig
    context: HydraContext
    task: TaskFunction
    singletons: dict[Any, Any]
    folder: str
    variables: dict[str, str]

    def run(self) -> Returned:
        """Run the job in this process, which has its signals and its environment for itself."""
        signals.install(signals.note)  # until the job installs its own
        os.chdir(self.folder)
        os.environ.update(self.variables)
        setup_globals()
        Singleton.set_state(self.singletons)
        config = self._composed()
        returned = run_job(self.task, config, "hydra.sweep.dir", "hydra.sweep.subdir", self.context)
        return cast(Returned, returned.return_value)

    def unreported(self, status: str, note: str) -> list[Outcome]:
        """The outcomes of a job that did not say itself how it ended. For the sweep's process.

        Args:
            status, note: see :class:`Outcome`.
        """
        cfg = self._composed()
        HydraConfig.instance().set_config(cfg)  # run_dir is resolved from the job's overrides
        job = copy.copy(cfg)
        with open_dict(job):
            del job["hydra"]
        if "members" in job:
            from mfrl.app.pack import members_of

            folders = [member.folder for member in members_of(job, self.overrides)]
        else:
            folders = [Path(job.resume) if job.resume else run_folder(job.run_dir)]
        return [Outcome(status, folder, note) for folder in folders]

    def _composed(self) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, self.overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"{config.hydra.job.name}_{self.number}", self.number
        return config


class ClusterLauncher(Launcher):
    """A launcher of Hydra whose jobs run in processes that a cluster starts.

    Args:
        name: what messages call the launcher, as in ``hydra/launcher=NAME``.
        cpus_per_job: CPU cores of a job; None: one.
        gpus_per_job: GPUs of a job. 0.25 lets four jobs share a GPU. Jobs without one see none.
        at_once: how many jobs may run at once; -1: as many as the cluster has room for.
        retries: how often a job is sent again after its process was killed, or its time was up.
    """

    def __init__(self, name: str, cpus_per_job: int | None, gpus_per_job: float, at_once: int, retries: int) -> None:
        self.name, self.at_once = name, at_once
        self.cpus_per_job, self.gpus_per_job, self.retries = cpus_per_job or 1, gpus_per_job, retries
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs on the cluster until all have ended, or a signal has come and those that ran have saved.

        Raises:
            ConfigError: a setting cannot be used, a package is missing, or the cluster cannot be reached.
        """
        setup_globals()
        self.check()
        variables = carried()
        shared = (self.config, self.context, self.task, Singleton.get_state(), os.getcwd())
        variables |= {} if self.gpus_per_job else _NO_GPU
        parcels = [
            Parcel(number, list(overrides), *shared, variables)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        if not self.goes_on(parcels):
            self.retries = 0
            self.console.print(
                "a job that is killed or runs out of time will not be sent again, because it would begin anew: give "
                "existing=continue and a run_dir without the time of day, as sweep=... does"
            )
        returned = self.run(parcels)
        return [
            JobReturn(parcel.overrides, status=JobStatus.COMPLETED, _return_value=value)
            for parcel, value in zip(parcels, returned, strict=True)
        ]

    def check(self) -> None:
        """Check the settings before anything is sent.

        Raises:
            ConfigError: one cannot be used.
        """
        for name, value in (("cpus_per_job", self.cpus_per_job), ("at_once", self.at_once)):
            possible = type(value) is int and (value >= 1 or (name, value) == ("at_once", -1))
            require(f"hydra.launcher.{name}", possible, value, "a whole number of at least 1")
        gpus = self.gpus_per_job
        possible = isinstance(gpus, int | float) and (0 <= gpus < 1 or gpus == int(gpus) > 0)
        require("hydra.launcher.gpus_per_job", possible, gpus, "0, a fraction of one GPU, e.g. 0.25, or a whole number")

    def goes_on(self, parcels: Sequence[Parcel]) -> bool:
        """Whether a job that is sent again goes on from its checkpoint."""
        given = [text for text in parcels[0].overrides if text.startswith("existing=")]
        return (given[-1].partition("=")[2] if given else self.config.existing) == "continue"

    @abstractmethod
    def run(self, parcels: Sequence[Parcel]) -> list[Returned]:
        """Run jobs, and return what each returned, in order. Looks at :func:`signals.received` while it waits."""

    def package(self, package: str) -> ModuleType:
        """Import a package that mfrl does without otherwise.

        Raises:
            ConfigError: it is not installed. The message has the command that installs it.
        """
        require_packages(f"hydra/launcher={self.name}", {package: package})
        return importlib.import_module(package)


def was_stopped(returned: Returned) -> bool:
    """Whether a job, or a member of a pack, has left something to be done because a signal stopped it."""
    return any(outcome.status == STOPPED for outcome in outcomes_of(returned))
