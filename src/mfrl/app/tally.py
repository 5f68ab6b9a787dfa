"""The progress of a sweep: its jobs note their start and end in a file, and the sweep's process reads the file."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mfrl.runs.jobs import SKIPPED, Outcome

#: The environment variable that tells the jobs' processes the path of the file.
VARIABLE = "MFRL_SWEEP_TALLY"
_SECONDS = 0.5  # the file is read at this interval
# Lines that two machines write at the same time into a shared file may overwrite one another: others are left out.
_LINE = re.compile(r"^(\d+) (\d+\.\d+) (\d+) (\d+)\n", re.MULTILINE)


def note_start(job: int) -> None:
    """Note that a job has started. A job calls it in its own process."""
    _note(job, 0, 0)


def note_end(job: int, outcomes: Sequence[Outcome]) -> None:
    """Note that a job has ended.

    Args:
        outcomes: its outcome, or those of the members of a packed job.
    """
    _note(job, len(outcomes), sum(outcome.status == SKIPPED for outcome in outcomes))


def _note(job: int, ended: int, skipped: int) -> None:
    if (path := os.environ.get(VARIABLE)) is not None:
        with suppress(OSError), open(path, "a", encoding="utf-8") as file:  # a job can do without this line
            file.write(f"{job} {time.time():.2f} {ended} {skipped}\n")


@dataclass
class Tally:
    """The content of the file.

    Attributes:
        started: by job, when it started, in seconds of :func:`time.time`.
        ended: by job, when it ended, the number of its runs, and how many of these were finished before the sweep.
    """

    started: dict[int, float]
    ended: dict[int, tuple[float, int, int]]

    @classmethod
    def read(cls, path: Path) -> Tally:
        """Read the lines that are complete. A job that starts again has not ended."""
        tally = cls({}, {})
        text = path.read_text(encoding="utf-8", errors="replace")
        for job, when, ended, skipped in _LINE.findall(text):
            if int(ended):
                tally.ended[int(job)] = (float(when), int(ended), int(skipped))
            else:
                tally.started[int(job)] = float(when)
                tally.ended.pop(int(job), None)
        return tally

    @property
    def done(self) -> int:
        """The number of runs that have ended, with whatever outcome."""
        return sum(runs for _, runs, _ in self.ended.values())

    def seconds_left(self, jobs: int, at_once: int, now: float) -> float | None:
        """Estimate the seconds until all jobs have ended, from the mean duration of the jobs that have.

        Args:
            jobs: number of jobs of the sweep; a pack counts as one.
            at_once: number of jobs side by side.
            now: the time, in seconds of :func:`time.time`.

        Returns:
            None if no job has ended, or those that have were finished before the sweep.
        """
        durations = [when - self.started[job] for job, (when, runs, skipped) in self.ended.items() if skipped < runs]
        if not durations:
            return None
        mean = sum(durations) / len(durations)
        running = [max(mean - (now - when), 0.0) for job, when in self.started.items() if job not in self.ended]
        waiting = (jobs - len(self.ended) - len(running)) * mean
        return max((waiting + sum(running)) / max(at_once, 1), *running, 0.0)


@contextmanager
def progress_reported(path: Path, jobs: int, runs: int, console: Console) -> Iterator[None]:
    """Print a line whenever a job ends: how many runs are done, and how long the others will take.

    Args:
        path: of the file, which is made here and removed in the end.
        jobs: number of jobs that are launched; a pack counts as one.
        runs: number of their runs.
        console: where to print.
    """
    path.write_text("", encoding="utf-8")
    os.environ[VARIABLE] = str(path.resolve())
    over = threading.Event()

    def watch() -> None:
        reported, at_once = 0, 0
        while not over.wait(_SECONDS):
            tally = Tally.read(path)
            at_once = max(at_once, len(tally.started) - len(tally.ended))
            if reported < tally.done < runs:
                reported, left = tally.done, tally.seconds_left(jobs, at_once, time.time())
                note = "" if left is None else f", left about {_words(left)}"
                console.print(f"[bold]{reported}/{runs} done[/]{note}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        del os.environ[VARIABLE]
        path.unlink(missing_ok=True)


def _words(seconds: float) -> str:
    """A duration in words: ``40 s``, ``4 min`` or ``2 h 10 min``."""
    if seconds < 60:
        return f"{max(round(seconds, -1), 10):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
