"""Published scores, kept as data (published.csv) with their source and the protocol they were reached under.

Two scores are of the same task if dataset, task, rewards, phase and metric agree. They may be compared if the protocol
agrees too: updates on the data, steps in the environment, actions chosen at once, critics, evaluations averaged. Only
then does a published score stand beside a run. Others of the same task are listed apart, with what differs.

Two sets of "50 tasks" have similar names. Set A (arXiv 2502.02538, 2511.13035) has the environments' own rewards,
single actions and two critics. Set B (qam, arXiv 2601.14234) has sparse rewards in scene and the puzzles, 100 million
transitions in puzzle-4x4 and cube-quadruple, chunks of five actions in manipulation, and ten critics, of which the
Bellman target takes mean - rho std. Every run here chooses single actions. So a score of Set B stands beside a run in a
maze alone, if this has ten critics, as many updates, the same rho, and is scored by its final evaluation; and one on
sparse rewards is of the task of runs with ``data.sparse=true`` alone.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from mfrl.catalogue import default_task, plain_name
from mfrl.report.groups import NORMALIZED, SUCCESS, Group, Metric, Task

COLLECTED_REMARK = "our data was collected locally and is not the official data the published score was reached on"
UNRECORDED_REMARK = "our data has no record of its origin: whether it is the official data is not known"

CHUNK = 1  # actions that a policy of ours chooses at once


@dataclass(frozen=True)
class Published:
    """One row of published.csv; None where the source does not say.

    Attributes:
        dataset: or, for a mean over several datasets, which tasks these are, e.g. ``50 tasks of Set B``.
        tasks: the task numbers the score is a mean over; empty where the dataset has one task.
        rewards: empty for the environment's own; ``sparse`` for 0 at success and -1 elsewhere.
        phase: ``offline``, or ``online`` after training in the environment.
        updates: on the data, before any step in the environment.
        online_steps: steps in the environment.
        spread: standard deviation over seeds.
        low, high: of a 95 % interval of the mean over seeds.
        unit: ``success %`` or ``normalized score``.
        protocol: the set of tasks and settings that it belongs to: A, B, or the paper's own.
        chunk: actions that the policy chooses at once.
        critics: size of the ensemble.
        rho: the Bellman target takes the ensemble's mean - rho std; 0 for its mean or minimum.
        evaluations: of the last evaluations, so many are averaged.
        source: where it was read.
    """

    method: str
    suite: str
    dataset: str
    tasks: frozenset[int]
    rewards: str
    phase: str
    updates: int | None
    online_steps: int | None
    score: float
    spread: float | None
    low: float | None
    high: float | None
    unit: str
    seeds: int | None
    protocol: str
    chunk: int | None
    critics: int | None
    rho: float | None
    evaluations: int | None
    source: str

    def __str__(self) -> str:
        if self.low is not None:
            return f"{self.score:g} [{self.low:g}, {self.high:g}]"
        return f"{self.score:g}" + (f" ± {self.spread:g}" if self.spread is not None else "")

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
    """All of published.csv, in its order: by suite, dataset, task, rewards, phase and length."""
    lines = resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8").splitlines()
    return tuple(
        Published(
            method=row["method"],
            suite=row["suite"],
            dataset=row["dataset"],
            tasks=_numbers(row["task"]),
            rewards=row["rewards"],
            phase=row["phase"],
            updates=_whole(row["updates"]),
            online_steps=_whole(row["online_steps"]),
            score=float(row["score"]),
            spread=_real(row["spread"]),
            low=_real(row["low"]),
            high=_real(row["high"]),
            unit=row["unit"],
            seeds=_whole(row["seeds"]),
            protocol=row["protocol"],
            chunk=_whole(row["chunk"]),
            critics=_whole(row["critics"]),
            rho=_real(row["rho"]),
            evaluations=_whole(row["evaluations"]),
            source=row["source"],
        )
        for row in csv.DictReader(lines)
    )


def of_task(groups: Collection[Group]) -> list[Published]:
    """Published scores of exactly the groups' dataset, tasks, rewards, phase and metric, under any protocol.

    Args:
        groups: one group for the score of a task, or one for each task for a mean over tasks.
    """
    first = next(iter(groups))
    if len({plain_name(g.task.dataset) for g in groups}) > 1 or len({g.metric for g in groups}) > 1:
        return []
    kinds = {
        ("sparse" if run.config.get("data.sparse") else "", "online" if run.online else "offline")
        for g in groups
        for run in g.runs
    }
    if len(kinds) > 1:
        return []
    return [
        known
        for known in published_scores()
        if plain_name(known.dataset) == plain_name(first.task.dataset)
        and (known.rewards, known.phase) in kinds
        and _same_scale(known, first.metric)
        and len(groups) == max(1, len(known.tasks))
        and (not known.tasks or {_number(g.task) for g in groups} == known.tasks)
    ]


def differences(known: Published, group: Group) -> list[str]:
    """How the published score's protocol differs from that of a group's runs; empty where they may be compared.

    What the source does not say differs, but for the number of evaluations that were averaged, which few say.
    """
    config = group.runs[0].config
    evaluations = max(score.evaluations for score in group.scores)
    compared = (
        ("updates on the data", known.updates, config["updates"]),
        ("steps in the environment", known.online_steps, config.get("online.steps") or 0),
        ("actions at once", known.chunk, CHUNK),
        ("critics", known.critics, _critics(config)),
        ("rho", known.rho, _rho(config)),
        ("evaluations averaged", known.evaluations or evaluations, evaluations),
    )
    return [
        f"{what}: {'not said' if theirs is None else f'{theirs:,.9g}'} there, {ours:,.9g} here"
        for what, theirs, ours in compared
        if ours is not None and theirs != ours
    ]


def beside(groups: Collection[Group]) -> list[Published]:
    """Published scores of the groups' task, of their algorithm and under their protocol.

    Args:
        groups: of one method, see :func:`of_task`.
    """
    algo = next(iter(groups)).method.algo
    of_method = [known for known in of_task(groups) if known.method.lower() == algo]
    return [known for known in of_method if not any(differences(known, group) for group in groups)]


def before(online: Published) -> Published | None:
    """The offline score from which a published run went online; None where it began from scratch or nothing is said."""
    same = ("method", "dataset", "tasks", "rewards", "updates", "protocol", "source")
    return next(
        (
            known
            for known in published_scores()
            if known.phase == "offline" and all(getattr(known, name) == getattr(online, name) for name in same)
        ),
        None,
    )


def both_phases(known: Published) -> str:
    """The score; of one reached online, with the offline score in front, as ``79 → 151 ± 7``."""
    start = before(known) if known.phase == "online" else None
    return f"{start.score:g} → {known}" if start else str(known)


def remark(groups: Collection[Group]) -> str:
    """Why a run's score and a published one are not of the same experiment; empty if the data are official."""
    sources = {run.provenance["source"] for g in groups for run in g.runs}
    if "collected" in sources:
        return COLLECTED_REMARK
    return "" if sources == {"official"} else UNRECORDED_REMARK


def _critics(config: Mapping[str, Any]) -> int | None:
    """The size of the ensemble; None for an algorithm without a critic."""
    if config.get("algo.critic") == "${network.critic}":
        return config.get("network.critic.ensemble")
    return config.get("algo.critic.ensemble")


def _rho(config: Mapping[str, Any]) -> float:
    """The weight of the deviation, which qam's code has in the target and in the policy's loss."""
    target = config.get("algo.target_aggregation")
    both = {target, config.get("algo.policy_aggregation", target)}
    return config["algo.rho"] if both == {"mean_minus_std"} else 0.0


def _number(task: Task) -> int:
    return task.number if task.number is not None else default_task(task.dataset)


def _same_scale(known: Published, metric: Metric) -> bool:
    if known.unit == "normalized score":
        return metric == NORMALIZED
    return metric in (SUCCESS, NORMALIZED)  # D4RL's normalised score of an antmaze is its success in percent


def _numbers(task: str) -> frozenset[int]:
    if not task:
        return frozenset()
    first, _, last = task.partition("-")
    return frozenset(range(int(first), int(last or first) + 1))


def _whole(cell: str) -> int | None:
    return int(cell) if cell else None


def _real(cell: str) -> float | None:
    return float(cell) if cell else None
