"""Published scores and their sources (published.csv), for comparison with runs on the same tasks."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import resources

from mfrl.catalogue import plain_name
from mfrl.report.groups import NORMALIZED, SUCCESS, Group, Metric, Task

COLLECTED_REMARK = "our data was collected locally and is not the official data the published score was reached on"
UNRECORDED_REMARK = "our data has no record of its origin: whether it is the official data is not known"


@dataclass(frozen=True)
class Published:
    """One row of published.csv.

    Attributes:
        method, suite, dataset: their names.
        tasks: the numbers of the tasks that the score is a mean over; empty if the dataset has one task.
        default_task: the number of the dataset's default task, or None.
        phase: ``offline``, or ``online`` for a score after online training.
        score, spread: the published mean, and what the source gives after ±.
        unit: ``success %`` or ``normalized score``.
        source: the paper and the table.
    """

    method: str
    suite: str
    dataset: str
    tasks: frozenset[int]
    default_task: int | None
    phase: str
    score: float
    spread: float
    unit: str
    source: str

    def __str__(self) -> str:
        return f"{self.score:g} ± {self.spread:g}"

    @property
    def what(self) -> str:
        """The dataset and its task or tasks."""
        if not self.tasks:
            return self.dataset
        if len(self.tasks) == 1:
            return f"{self.dataset} task {min(self.tasks)}"
        return f"{self.dataset} mean of tasks {min(self.tasks)}-{max(self.tasks)}"


@cache
def published_scores() -> tuple[Published, ...]:
    """All rows of published.csv."""
    lines = resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8").splitlines()
    return tuple(
        Published(
            method=row["method"],
            suite=row["suite"],
            dataset=row["dataset"],
            tasks=_numbers(row["task"]),
            default_task=int(row["default_task"]) if row["default_task"] else None,
            phase=row["phase"],
            score=float(row["score"]),
            spread=float(row["spread"]),
            unit=row["unit"],
            source=row["source"],
        )
        for row in csv.DictReader(lines)
    )


def beside(groups: Collection[Group]) -> list[Published]:
    """The published scores with exactly the same dataset, tasks, phase and metric as some groups.

    Args:
        groups: one group for the score of a task, or one for each task for a mean over tasks.
    """
    first = next(iter(groups))
    if len({plain_name(g.task.dataset) for g in groups}) > 1 or len({g.metric for g in groups}) > 1:
        return []
    online = {run.online for g in groups for run in g.runs}
    if len(online) > 1:
        return []
    phase = "online" if online.pop() else "offline"
    return [
        known
        for known in published_scores()
        if plain_name(known.dataset) == plain_name(first.task.dataset)
        and known.phase == phase
        and _same_scale(known, first.metric)
        and len(groups) == max(1, len(known.tasks))
        and (not known.tasks or {_number(g.task, known) for g in groups} == known.tasks)
    ]


def remark(groups: Collection[Group]) -> str:
    """Why a run's score and a published one are not of the same experiment; empty if the data are official."""
    sources = {run.provenance["source"] for g in groups for run in g.runs}
    if "collected" in sources:
        return COLLECTED_REMARK
    return "" if sources == {"official"} else UNRECORDED_REMARK


def _number(task: Task, known: Published) -> int | None:
    return task.number if task.number is not None else known.default_task


def _same_scale(known: Published, metric: Metric) -> bool:
    if known.unit == "normalized score":
        return metric == NORMALIZED
    return metric in (SUCCESS, NORMALIZED)  # D4RL's normalised score of an antmaze is its success in percent


def _numbers(task: str) -> frozenset[int]:
    if not task:
        return frozenset()
    first, _, last = task.partition("-")
    return frozenset(range(int(first), int(last or first) + 1))
