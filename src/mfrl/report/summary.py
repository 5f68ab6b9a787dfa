"""The statistics of a report: for each group, over tasks, and between methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mfrl.report import statistics
from mfrl.report.groups import Group, Grouping, Method, Metric
from mfrl.report.published import Published, beside, remark
from mfrl.report.statistics import Interval, Strata


@dataclass(frozen=True)
class Bootstrap:
    """The settings of bootstrap intervals, see :func:`mfrl.report.statistics.bootstrap_interval`."""

    resamples: int = statistics.RESAMPLES
    confidence: float = statistics.CONFIDENCE
    seed: int = statistics.SEED

    def settings(self) -> dict[str, Any]:
        return {"resamples": self.resamples, "confidence": self.confidence, "seed": self.seed}


@dataclass(frozen=True)
class Row:
    """The statistics of one group, or of a method's groups on several tasks.

    Attributes:
        groups: one for each task.
        runs: number of runs of all groups.
        std: sample standard deviation over seeds. Over tasks, it is that of each seed's mean over tasks, and None if
            tasks have different seeds. None for one seed.
        mean_interval, iqm_interval: None if a task has a single run.
        published, remark: scores of the same method that this one may be compared with, and with what caution.
    """

    method: Method
    groups: list[Group]
    metric: Metric
    runs: int
    mean: float
    std: float | None
    mean_interval: Interval | None
    iqm: float
    iqm_interval: Interval | None
    published: list[Published]
    remark: str


@dataclass(frozen=True)
class Improvement:
    """The probability P(X > Y) over the tasks that both methods were run on.

    Attributes:
        tasks: number of these tasks.
    """

    x: Method
    y: Method
    tasks: int
    probability: float
    interval: Interval | None


def summarise(groups: Sequence[Group], bootstrap: Bootstrap) -> Row:
    """The statistics of one method's groups, one group for each task."""
    scores = [g.values for g in groups]
    same_seeds = all(g.seeds == groups[0].seeds for g in groups)
    published = beside(groups)

    def interval(statistic: Callable[[Strata], np.ndarray]) -> Interval | None:
        return statistics.bootstrap_interval(statistic, scores, **bootstrap.settings())

    return Row(
        method=groups[0].method,
        groups=list(groups),
        metric=groups[0].metric,
        runs=sum(map(len, scores)),
        mean=float(statistics.task_mean(scores)),
        std=statistics.deviation(np.mean(scores, axis=0)) if same_seeds else None,
        mean_interval=interval(statistics.task_mean),
        iqm=float(statistics.interquartile_mean(scores)),
        iqm_interval=interval(statistics.interquartile_mean),
        published=published,
        remark=remark(groups) if published else "",
    )


def per_group(grouping: Grouping, bootstrap: Bootstrap) -> list[Row]:
    """One row for each group."""
    return [summarise([group], bootstrap) for group in grouping.groups]


def over_tasks(grouping: Grouping, bootstrap: Bootstrap) -> list[Row]:
    """One row for each method that was run on several tasks; empty if the tasks' scores have different scales."""
    scales = {(g.metric.unit, g.metric.name) for g in grouping.groups}
    hundred = {("%", "eval/success"), ("", "eval/normalized_score")}  # both run from 0 to 100
    if len(scales) > 1 and not scales <= hundred:
        return []
    return [summarise(groups, bootstrap) for groups in grouping.methods.values() if len(groups) > 1]


def improvements(grouping: Grouping, bootstrap: Bootstrap, lower_is_better: bool = False) -> list[Improvement]:
    """The probability of improvement for every pair of methods that share a task.

    Args:
        lower_is_better: take the probability that X lies below Y instead.
    """
    sign = -1.0 if lower_is_better else 1.0
    pairs = []
    for (x, of_x), (y, of_y) in combinations(grouping.methods.items(), 2):
        by_task = {g.task: g for g in of_y}
        shared = [(g, by_task[g.task]) for g in of_x if g.task in by_task]
        if shared:
            a, b = [sign * g.values for g, _ in shared], [sign * h.values for _, h in shared]
            interval = statistics.improvement_interval(a, b, **bootstrap.settings())
            pairs.append(Improvement(x, y, len(shared), statistics.probability_of_improvement(a, b), interval))
    return pairs
