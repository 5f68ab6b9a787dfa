"""How far a sweep is: jobs side by side note their beginning and end in a file, and the sweep reads it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mfrl.runs.jobs import SKIPPED, Outcome

#: Names the file to the processes of the jobs, which are started with it.
VARIABLE = "MFRL_SWEEP_TALLY"
_SECONDS = 0.5  # between two looks at it


def note_beginning(job: int) -> None:
    """Say that a job has begun, in its own process."""
    _note(job, 0, 0)


def note_end(job: int, outcomes: Sequence[Outcome]) -> None:
    """Say what became of a job, or of those that a packed one stands for."""
    _note(job, len(outcomes), sum(outcome.status == SKIPPED for outcome in outcomes))


def _note(job: int, ended: int, skipped: int) -> None:
    if (path := os.environ.get(VARIABLE)) is not None:
        with suppress(OSError), open(path, "a", encoding="utf-8") as file:  # no job fails for want of this line
            file.write(f"{job} {time.time():.2f} {ended} {skipped}\n")


@dataclass
class Tally:
    """What the file says.

    Attributes:
        begun: when, by job.
        ended: when, how many runs it stood for, and how many of these had been finished before.
    """

    begun: dict[int, float]
    ended: dict[int, tuple[float, int, int]]

    @classmethod
    def read(cls, path: Path) -> Tally:
        """Of the lines that are whole."""
        tally = cls({}, {})
        text = path.read_text(encoding="utf-8")
        for line in text[: text.rfind("\n") + 1].splitlines():
            job, when, ended, skipped = line.split()
            if int(ended):
                tally.ended[int(job)] = (float(when), int(ended), int(skipped))
            else:
                tally.begun[int(job)] = float(when)
        return tally

    @property
    def done(self) -> int:
        """Runs that are over, whatever became of them."""
        return sum(runs for _, runs, _ in self.ended.values())

    def left(self, jobs: int, at_once: int, now: float) -> float | None:
        """Seconds until all jobs are over, each taken to last as long as those that are; None before one has trained.

        Args:
            jobs: of the whole sweep, a pack as one.
            at_once: jobs side by side.
            now: as :func:`time.time` has it.
        """
        lasted = [when - self.begun[job] for job, (when, runs, skipped) in self.ended.items() if skipped < runs]
        if not lasted:
            return None
        mean = sum(lasted) / len(lasted)
        running = [max(mean - (now - when), 0.0) for job, when in self.begun.items() if job not in self.ended]
        waiting = (jobs - len(self.ended) - len(running)) * mean
        return max((waiting + sum(running)) / max(at_once, 1), *running, 0.0)


@contextmanager
def counted(path: Path, jobs: int, runs: int, console: Console) -> Iterator[None]:
    """Say on a line how many runs are done and how long the others will take, whenever one of the jobs is over.

    Args:
        path: of a file that is made, and removed in the end.
        jobs: that are launched, a pack as one.
        runs: that they stand for.
    """
    path.write_text("", encoding="utf-8")
    os.environ[VARIABLE] = str(path.resolve())
    over = threading.Event()

    def watch() -> None:
        told, at_once = 0, 0
        while not over.wait(_SECONDS):
            tally = Tally.read(path)
            at_once = max(at_once, len(tally.begun) - len(tally.ended))
            if told < tally.done < runs:
                told, left = tally.done, tally.left(jobs, at_once, time.time())
                console.print(f"[bold]{told}/{runs} done[/]" + ("" if left is None else f", left about {_words(left)}"))

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
    """``40 s``, ``4 min`` or ``2 h 10 min``."""
    if seconds < 60:
        return f"{max(round(seconds, -1), 10):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
