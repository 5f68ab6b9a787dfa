"""``hydra/launcher=slurm``: each job of a sweep is a task of Slurm. Hydra looks for plugins in this namespace only."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mfrl.app.cluster import ClusterLauncher, Parcel, was_stopped
from mfrl.errors import ConfigError, first_line, require
from mfrl.runs.jobs import FAILED, STOPPED, Returned
from mfrl.runs.targets import plain_settings
from mfrl.system import signals

_SECONDS = 0.5  # results and signals are looked at in this interval
_QUEUE_SECONDS = 10.0  # and Slurm is asked in this one
_ANSWER_SECONDS = 60.0  # and may take so long to answer
_AGAIN = "again-"  # a task that has saved because the time is nearly up makes this file, with its job's number

#: What ``squeue`` calls jobs that do not run any more and will not run again.
_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "GONE",  # it has forgotten them
    "PREEMPTED",
    "TIMEOUT",
}


class SlurmLauncher(ClusterLauncher):
    """Runs jobs in an array of Slurm's, which submitit sends.

    Slurm warns a job before its time is up. The job saves, and is sent again.

    Args:
        minutes: the time limit of a job, as ``sbatch --time`` takes it.
        warning: so many seconds before that, a job saves.
        retries: how often a job is sent again after its time was up.
        before: lines of the shell for the machine that runs a job, e.g. ``module load cuda``.
        sbatch: further options of ``sbatch``, e.g. ``{partition: gpu, mem: 16G}``.
        cpus_per_job, gpus_per_job, at_once: see :class:`ClusterLauncher`. Jobs that share a GPU are tasks of one job of
            Slurm's.
    """

    def __init__(
        self,
        minutes: int | str = 240,
        warning: int = 120,
        cpus_per_job: int | None = None,
        gpus_per_job: float = 0,
        at_once: int = -1,
        retries: int = 100,
        before: Sequence[str] = (),
        sbatch: DictConfig | None = None,
    ) -> None:
        super().__init__("slurm", cpus_per_job, gpus_per_job, at_once, retries)
        self.minutes, self.warning, self.before = minutes, warning, list(before)
        self.sbatch = {} if sbatch is None else plain_settings(sbatch)

    @property
    def beside(self) -> int:
        """The number of jobs that share a GPU, and with it a job of Slurm's."""
        return round(1 / self.gpus_per_job) if 0 < self.gpus_per_job < 1 else 1

    def check(self) -> None:
        super().check()
        shared = self.gpus_per_job == 0 or self.gpus_per_job >= 1 or abs(self.gpus_per_job * self.beside - 1) < 0.05
        require("hydra.launcher.gpus_per_job", shared, self.gpus_per_job, "a share that fills a GPU: 0.5, 0.33, 0.25")
        possible = type(self.warning) is int and self.warning >= 1
        require("hydra.launcher.warning", possible, self.warning, "a whole number of seconds, at least 1")

    def run(self, parcels: Sequence[Parcel]) -> list[Returned]:
        submitit = self.package("submitit")
        folder = Path(self.config.hydra.sweep.dir).absolute() / "slurm"
        groups = [parcels[first : first + self.beside] for first in range(0, len(parcels), self.beside)]
        # Within a job of Slurm's, sbatch would take that job's variables for options of the new ones.
        within = submitit.helpers.clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext()
        before = {*folder.glob("*")}
        try:
            executor = submitit.SlurmExecutor(folder)
            executor.update_parameters(
                **self._parameters(folder), array_parallelism=self.at_once if self.at_once > 0 else len(groups)
            )
            with within:
                sent = executor.map_array(_work, groups, *([same] * len(groups) for same in (self.retries, folder)))
        except RuntimeError as error:
            for written in {*folder.glob("*")} - before:
                written.unlink()
            lines = str(error).splitlines()
            reason = next((line.strip() for line in lines if "error" in line.lower()), first_line(error))
            raise ConfigError(f"Slurm takes no job: {reason} (`sinfo` shows what this machine knows of it)") from error
        master = sent[0].job_id.partition("_")[0]
        self.console.print(f"jobs for Slurm: {len(parcels)}, as {master}; their logs are in {folder}")
        pairs = [zip(group, _tasks(job), strict=False) for group, job in zip(groups, sent, strict=True)]
        tasks = [pair for group in pairs for pair in group]
        returned = self._wait(master, tasks)
        for _, task in tasks:  # the lines of the jobs stay, and these too where a job may still need them
            task.paths.submitted_pickle.unlink(missing_ok=True)
            task.paths.result_pickle.unlink(missing_ok=True)
        return returned

    def _parameters(self, folder: Path) -> dict[str, Any]:
        gpus = {"gpus_per_node": max(1, int(self.gpus_per_job))} if self.gpus_per_job else {}
        return {
            "job_name": "mfrl",
            "time": self.minutes,
            "ntasks_per_node": self.beside,
            "cpus_per_task": self.cpus_per_job,
            "stderr_to_stdout": True,
            "setup": self.before,
            # Each task ends by itself, and the last one ends the job. srun does not inherit cpus-per-task.
            "srun_args": ["--kill-on-bad-exit=0", "--wait=0", f"--cpus-per-task={self.cpus_per_job}"],
            "teardown": [
                "status=$?",
                f'again={shlex.quote(str(folder))}/{_AGAIN}"$SLURM_JOB_ID"',
                '[ ! -e "$again" ] || { rm "$again"; scontrol requeue "$SLURM_JOB_ID"; }',
                "exit $status",
            ],
            "additional_parameters": {"signal": f"USR1@{self.warning}", "requeue": True, **self.sbatch},
            **gpus,
        }

    def _wait(self, master: str, tasks: Sequence[tuple[Parcel, Any]]) -> list[Returned]:
        """Wait until every task has a result, or Slurm does not run it any more.

        Args:
            master: Slurm's number of the array.
            tasks: of each job, with submitit's record of the task.
        """
        returned = dict[int, Returned]()
        gone = dict[str, str]()  # jobs of Slurm's that did not run when it was asked last, and what it said of them
        asked, stopped = time.monotonic(), False
        while len(returned) < len(tasks):
            time.sleep(_SECONDS)
            if signals.received() and not stopped:  # what runs gets SIGTERM, and time to save
                answer = _asked("scancel", master)
                stopped = answer is not None and answer.returncode == 0
            left = [(parcel, task) for parcel, task in tasks if parcel.number not in returned]
            for parcel, task in left:
                result = self._result(parcel, task)
                if result is not None and not was_stopped(result):  # else Slurm may run it again
                    returned[parcel.number] = result
            if time.monotonic() - asked < (_SECONDS if stopped else _QUEUE_SECONDS):
                continue
            asked, states = time.monotonic(), _states(master)
            if states is None:
                continue
            before, gone = gone, {}
            for parcel, task in left:
                state = states.get(task.job_id, "GONE")
                if state in _OVER:
                    gone[task.job_id] = before.get(task.job_id, state)
                # One that is to run again seems to be over for a moment.
                if state in _OVER and task.job_id in before and parcel.number not in returned:
                    returned[parcel.number] = self._last_word(parcel, task, gone[task.job_id], stopped)
        return [returned[parcel.number] for parcel, _ in tasks]

    def _result(self, parcel: Parcel, task: Any) -> Returned | None:
        """What a task has returned, or None."""
        if not task.paths.result_pickle.exists():
            return None
        try:
            result: Returned = task.result()
            return result
        except RuntimeError as error:  # raised in the job's process, outside of what outcomes are for
            last = [line for line in str(error).splitlines() if line.strip() and line[0] not in " -Y"]
            return parcel.unreported(FAILED, f"{last[-1] if last else error} (see {task.paths.stdout})")

    def _last_word(self, parcel: Parcel, task: Any, state: str, stopped: bool) -> Returned:
        """The outcome of a job that Slurm does not run any more."""
        if (result := self._result(parcel, task)) is not None:
            return result
        status = STOPPED if stopped or state in ("CANCELLED", "PREEMPTED") else FAILED
        return parcel.unreported(status, f"Slurm says {state} (see {task.paths.stdout})")


def _tasks(job: Any) -> list[Any]:
    """submitit's records of the tasks of a job."""
    return [job.task(rank) for rank in range(job.num_tasks)]


def _states(master: str) -> dict[str, str] | None:
    """What Slurm says of each job of an array; None if it does not answer."""
    command = ("squeue", "--noheader", "--array", "--states=all", f"--jobs={master}", "--format=%i %T")
    asked = _asked(*command)
    # It forgets jobs some minutes after their end.
    if asked is None or (asked.returncode and "Invalid job id" not in asked.stderr):
        return None
    return dict(line.split(maxsplit=1) for line in asked.stdout.splitlines())


def _asked(*command: str) -> subprocess.CompletedProcess[str] | None:
    """What a command of Slurm's answers; None if it does not: the controller is away, or this machine is full."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _work(parcels: Sequence[Parcel], retries: int, folder: Path) -> Returned | None:
    """Run one job of those that share a job of Slurm's. After Slurm's warning, end so that they are sent again."""
    rank = int(os.environ["SLURM_PROCID"])
    if rank >= len(parcels):
        return None
    returned = parcels[rank].run()
    again = int(os.environ.get("SLURM_RESTART_COUNT", 0)) < retries
    if was_stopped(returned) and signals.received() == signal.SIGUSR1 and again:
        (folder / f"{_AGAIN}{os.environ['SLURM_JOB_ID']}").touch()
        sys.exit(128 + signal.SIGUSR1)  # without a result
    return returned
