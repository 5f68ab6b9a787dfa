"""Runs episodes in this process or in several worker processes. The episodes are the same."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from mfrl.catalogue import GenerationSettings
from mfrl.collect.ogbench.episode import Episode, episode_rng
from mfrl.collect.ogbench.expert import Expert
from mfrl.collect.ogbench.manipspace import ManipspaceCollector
from mfrl.collect.ogbench.maze import MazeCollector
from mfrl.envs.rendering import choose_backend
from mfrl.envs.vector import global_state_kept
from mfrl.errors import CollectError
from mfrl.system.processes import SINGLE_THREADED, environment

# So many episodes that no worker has to wait, and so few that finished ones do not fill the memory.
_QUEUED_PER_WORKER = 4

#: A split and the index of an episode in it.
Job = tuple[str, int]


def run_episodes(
    settings: GenerationSettings, seed: int, jobs: list[Job], workers: int, expert: Expert | None = None
) -> Generator[tuple[Job, Episode], None, None]:
    """Run the episodes of all jobs, and yield each when it is finished, in any order.

    Images are always rendered in worker processes, because MuJoCo chooses its rendering back end when it is imported.

    Args:
        expert: the policy that acts, if the settings name one.

    Raises:
        CollectError: an episode failed, or a worker died.
        EnvError: images are to be collected, and no rendering back end works.
    """
    workers = max(1, min(workers, len(jobs)))
    if settings.renders:
        choose_backend()
    elif workers == 1:
        yield from _run_here(settings, seed, jobs, expert)
        return
    yield from _run_in_processes(settings, seed, jobs, workers, expert)


def _run_here(
    settings: GenerationSettings, seed: int, jobs: list[Job], expert: Expert | None
) -> Generator[tuple[Job, Episode], None, None]:
    collector = _make_collector(settings, expert)
    with global_state_kept():
        for job in jobs:
            try:
                episode = collector.episode(episode_rng(seed, *job))
            except Exception as error:
                raise _episode_failed(job, error) from error
            yield job, episode


def _run_in_processes(
    settings: GenerationSettings, seed: int, jobs: list[Job], workers: int, expert: Expert | None
) -> Generator[tuple[Job, Episode], None, None]:
    # Workers are spawned: it is not safe to fork a process that has loaded torch or started threads.
    context = multiprocessing.get_context("spawn")
    start = (_start_worker, (settings, expert))
    # Each worker has one thread, because there is a worker for every core already.
    with environment(SINGLE_THREADED), ProcessPoolExecutor(workers, context, *start) as pool:
        remaining = iter(jobs)
        pending: dict[Future[Episode], Job] = {}
        try:
            while True:
                for job in islice(remaining, workers * _QUEUED_PER_WORKER - len(pending)):
                    pending[pool.submit(_episode_in_worker, seed, job)] = job
                if not pending:
                    return
                for future in wait(pending, return_when="FIRST_COMPLETED").done:
                    job = pending.pop(future)
                    try:
                        episode = future.result()
                    except BrokenProcessPool:
                        raise
                    except Exception as error:
                        raise _episode_failed(job, error) from error
                    yield job, episode
        except BrokenProcessPool as error:  # of a result, or of the next job if a worker died while it started
            raise CollectError(
                "A worker process died, for lack of memory or because the simulator crashed. "
                "Try fewer workers; workers=1 runs in this process and shows the error."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _episode_failed(job: Job, error: Exception) -> CollectError:
    split, index = job
    return CollectError(f"Episode {index} of the {split} split failed: {type(error).__name__}: {error}")


def _make_collector(settings: GenerationSettings, expert: Expert | None = None) -> MazeCollector | ManipspaceCollector:
    return MazeCollector(settings, expert) if settings.is_maze else ManipspaceCollector(settings)


#: The simulator of a worker process, which is built once.
_collector: MazeCollector | ManipspaceCollector


def _start_worker(settings: GenerationSettings, expert: Expert | None) -> None:
    global _collector
    # Ctrl-C reaches all processes of the group. Workers end at once and print nothing; the parent cleans up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Without this thread, a worker whose parent was killed would wait for work forever.
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _collector = _make_collector(settings, expert)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _episode_in_worker(seed: int, job: Job) -> Episode:
    return _collector.episode(episode_rng(seed, *job))
