"""``hydra/launcher=ray``: each job of a sweep is a task of a Ray cluster. Hydra looks for plugins in this namespace."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mfrl.app.cluster import ClusterLauncher, Parcel, was_stopped
from mfrl.errors import ConfigError, first_line
from mfrl.runs.jobs import FAILED, STOPPED, Returned
from mfrl.runs.targets import plain_settings
from mfrl.system import signals

_SECONDS = 0.5  # signals are looked at in this interval
_ANSWER_SECONDS = 10.0  # and a cluster may take so long to answer


class RayLauncher(ClusterLauncher):
    """Runs jobs as tasks of Ray, each in a worker process on the CPU cores and the GPU that Ray gives it.

    Args:
        address: of the cluster, as ``ray.init`` takes it. None: the variable ``RAY_ADDRESS``, else the cluster that
            ``ray start`` has begun on this machine, else one of this machine alone, for this sweep.
        retries: how often a job is sent again after its process or its machine was lost.
        options: further options of ``ray.remote``, e.g. ``{memory: 8e9}``.
        cpus_per_job, gpus_per_job, at_once: see :class:`ClusterLauncher`.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus_per_job: int | None = None,
        gpus_per_job: float = 0,
        at_once: int = -1,
        retries: int = 10,
        options: DictConfig | None = None,
    ) -> None:
        super().__init__("ray", cpus_per_job, gpus_per_job, at_once, retries)
        self.address, self.options = address, {} if options is None else plain_settings(options)

    def run(self, parcels: Sequence[Parcel]) -> list[Returned]:
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # equal lines of two jobs are two lines
        os.environ.setdefault("RAY_task_oom_retries", str(self.retries))  # which Ray counts apart, by default for ever
        ray = self.package("ray")
        self._knock()
        with signals.kept():  # Ray installs a handler of its own
            try:
                ray.init(self.address, logging_level="WARNING", configure_logging=True)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(f"Ray's cluster cannot be reached: {first_line(error)}{_about_tokens()}") from error
        try:
            self._describe(ray, len(parcels))
            return self._run(ray, parcels)
        finally:
            ray.shutdown()

    def _knock(self) -> None:
        """See whether somebody listens at the cluster's address. Ray itself tries for minutes, and cannot be stopped.

        Raises:
            ConfigError: nobody does.
        """
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdecimal():  # Ray's own names, such as auto and ray://HOST
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(f"Ray's cluster cannot be reached: {address}: {first_line(error)}") from error

    def _describe(self, ray: Any, jobs: int) -> None:
        there = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
        self.console.print(f"jobs for Ray: {jobs}; its machines: {nodes}, with {cpus:g} CPU cores and {gpus:g} GPUs")
        for what, wanted, found in (("CPU cores", self.cpus_per_job, cpus), ("GPUs", self.gpus_per_job, gpus)):
            if wanted > found:
                self.console.print(
                    f"[bold red]warning[/] a job wants {wanted} {what} and the cluster has {found:g}: it waits for more"
                )

    def _run(self, ray: Any, parcels: Sequence[Parcel]) -> list[Returned]:
        wanted = {"num_cpus": self.cpus_per_job, "num_gpus": self.gpus_per_job, "max_retries": self.retries}
        remote = ray.remote(**wanted | self.options)(_work)
        waiting, running, returned = list(parcels), dict[Any, Parcel](), dict[int, Returned]()
        stopped = False
        while waiting or running:
            while waiting and not stopped and (self.at_once < 0 or len(running) < self.at_once):
                parcel = waiting.pop(0)
                running[remote.options(name=f"job {parcel.number}").remote(parcel)] = parcel
            ended, _ = ray.wait([*running], timeout=_SECONDS) if running else ([], [])
            for task in ended:
                parcel = running.pop(task)
                returned[parcel.number] = self._returned(ray, task, parcel)
            if signals.received() and not stopped:
                stopped = True
                for task in running:
                    ray.cancel(task, force=False)  # as Ctrl-C does: the job saves and ends
            if stopped:
                for parcel in waiting:
                    returned[parcel.number] = parcel.unreported(STOPPED, "before training began")
                waiting.clear()
        return [returned[parcel.number] for parcel in parcels]

    def _returned(self, ray: Any, task: Any, parcel: Parcel) -> Returned:
        try:
            value: Returned = ray.get(task)
            return value
        except ray.exceptions.TaskCancelledError:
            return parcel.unreported(STOPPED, "before training began")
        except ray.exceptions.RayTaskError as error:  # raised in the job's process, outside of what outcomes are for
            return parcel.unreported(FAILED, f"{type(error.cause).__name__}: {first_line(error.cause)}")
        except ray.exceptions.RayError as error:
            return parcel.unreported(FAILED, f"Ray has lost it, after {self.retries} retries: {first_line(error)}")


def _about_tokens() -> str:
    """Ray connects without its token to an address that it was given, whatever its file says, and is not let in."""
    known = "RAY_AUTH_TOKEN" in os.environ or (Path.home() / ".ray" / "auth_token").exists()
    without = known and "RAY_AUTH_MODE" not in os.environ
    return "; if it wants a token: export RAY_AUTH_MODE=token" if without else ""


def _work(parcel: Parcel) -> Returned:
    """Run a job in a worker process. After SIGTERM, which a machine that goes away sends, end as if killed.

    Ray sends a job again whose process is lost, and not one that has returned.
    """
    returned = parcel.run()
    if was_stopped(returned) and signals.received() not in (None, signal.SIGINT):  # SIGINT: the sweep's own
        os._exit(128 + signal.SIGTERM)
    return returned
