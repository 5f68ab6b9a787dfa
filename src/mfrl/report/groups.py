"""Finds out which runs are repetitions of one another: tasks, methods and groups.

* A **task** is an environment and the exact data that were learned from. Runs on data with another checksum or from
  another source are never pooled.
* A **group** is a set of runs that differ only in the seed and in settings that change speed but not results.
* A **method** is an algorithm, a variant and the settings that were swept. It connects groups on different tasks. A
  setting that differs between tasks or between variants, but not among the runs of one variant on one task, belongs to
  the task or the variant and does not split a method.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mfrl.catalogue import task_number
from mfrl.runs.read import DUPLICATE, FAILED, FINISHED, ReportError, Run
from mfrl.runs.scores import PREFERRED, last_evaluations, protocol_evaluations

# Settings in which the runs of a group may differ: where and how fast a run runs, and its seed. The first names are the
# last parts of keys, the others are whole sections. Some of these settings change roundings.
_NOT_COMPARED = {"seed", "runs", "run_dir", "data_dir", "resume", "compile", "chunk", "marks"}
_NOT_COMPARED |= {"accelerator", "device", "devices"}
_NOT_COMPARED |= {"collect", "download", "trust", "cache", "memory_gib", "log", "logger", "callbacks"}
_NOT_COMPARED |= {"workers", "num_workers", "num_envs", "videos", "threads", "jobs", "existing", "pack", "tf32"}
_NOT_COMPARED_SECTIONS = ("log.", "logger.", "callbacks.", "checkpoint.", "collect.", "sweep.", "search.")
_IDENTITY = {"algo_name", "variant.name", "env.name", "env.dataset", "env.task"}  # a report has columns for these
_TRAINER_SETTINGS = {"trainer.precision"}  # no other setting of Lightning's trainer changes results
_UNSPECIFIC = {"_target_", "every", "episodes", "seed", "name"}

ABSENT = "-"  #: the value of a setting that a run's configuration does not have


@dataclass(frozen=True)
class Metric:
    """A number of an evaluation, as the report shows it.

    Attributes:
        name: the logged name.
        factor: the logged value is multiplied by it.
        unit: the unit after that.
        digits: format of a value.
        lower_is_better: whether the lower of two values is the better.
    """

    name: str
    factor: float = 1.0
    unit: str = ""
    digits: str = ".4g"
    lower_is_better: bool = False

    @property
    def label(self) -> str:
        name = self.name.removeprefix("eval/").replace("_", " ")
        return f"{name} ({self.unit})" if self.unit else name

    def format(self, value: float) -> str:
        return format(value, self.digits)


SUCCESS = Metric("eval/success", 100.0, "%", ".1f")
NORMALIZED = Metric("eval/normalized_score", digits=".1f")
W2 = Metric("eval/w2", digits=".3f", lower_is_better=True)  # the main score of toys, which have no episodes
_KNOWN = {
    metric.name: metric
    for metric in (
        SUCCESS,
        NORMALIZED,
        W2,
        Metric("eval/mmd", lower_is_better=True),
        Metric("eval/out_of_bounds", 100.0, "%", ".1f", lower_is_better=True),
        Metric("eval/off_mode", 100.0, "%", ".1f", lower_is_better=True),
        Metric("eval/mode_coverage", 100.0, "%", ".1f"),
        Metric("eval/length", lower_is_better=True),
    )
}
_SUCCESS_SCORES = (NORMALIZED.name, SUCCESS.name)

SCORES = {"final": 1, "last3": 3}  #: the number of last evaluations that a score averages, by the argument ``--score``
UNSTEADY = 20.0  #: a run is unsteady if its final score, of 100, is so far from the mean of its last three


def known_metric(name: str) -> Metric:
    """The metric of a logged name. Of unknown names, losses and errors are better if lower, and others if higher."""
    return _KNOWN.get(name, Metric(name, lower_is_better=name.endswith(("_loss", "_error"))))


@dataclass(frozen=True)
class Score:
    """The score of a finished run.

    Attributes:
        metric: what was measured.
        value: the mean of the last ``evaluations`` evaluations, in the metric's unit.
        evaluations: number of evaluations.
        episodes: number of episodes of these evaluations together.
    """

    metric: Metric
    value: float
    evaluations: int
    episodes: int


@dataclass(frozen=True)
class Task:
    """An environment, its task and the exact data.

    Attributes:
        env_id, dataset: names of the environment and of the dataset.
        identity: equal for two tasks exactly if their data are the same.
        name: a name for people. It has a piece of the checksum if two tasks differ only in their data.
        number: the task's number; None if the environment has one task, or its default task is meant.
    """

    env_id: str
    dataset: str
    identity: Hashable
    name: str

    @property
    def number(self) -> int | None:
        return task_number(self.env_id)

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-")


@dataclass(frozen=True)
class Method:
    """An algorithm with a variant and the values of swept settings."""

    algo: str
    variant: str
    swept: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        task, method: what they have in common.
        settings: the values of the settings in :attr:`Grouping.keys`.
        runs, scores: the runs and their scores, in the order of the seeds.
    """

    task: Task
    method: Method
    settings: dict[str, Any]
    runs: list[Run]
    scores: list[Score]

    @cached_property
    def values(self) -> np.ndarray:
        """The scores as an array ``(runs,)``."""
        return np.array([score.value for score in self.scores])

    @property
    def metric(self) -> Metric:
        return self.scores[0].metric

    @property
    def offline_values(self) -> np.ndarray | None:
        """The scores ``(runs,)`` at the end of the offline phase; None unless all runs went online after one."""
        found = []
        for run in self.runs:
            at_end = [e for e in run.evaluations if e["updates"] == run.config["updates"]]
            if not run.online or not at_end or not isinstance(value := at_end[0].get(self.metric.name), int | float):
                return None
            found.append(self.metric.factor * value)
        return np.array(found)

    @property
    def seeds(self) -> list[int]:
        return [run.config["seed"] for run in self.runs]

    @property
    def episodes(self) -> int:
        return sum(score.episodes for score in self.scores)


@dataclass(frozen=True)
class Grouping:
    """All runs of a report, in groups.

    Attributes:
        groups: in the order of task, algorithm, variant and settings.
        keys: the settings in which groups differ, apart from differences that come with algorithm, variant or task.
        excluded: the runs that do not count. Each has its reason.
    """

    groups: list[Group]
    keys: list[str]
    excluded: list[Run]

    @property
    def tasks(self) -> list[Task]:
        return list(dict.fromkeys(group.task for group in self.groups))

    @property
    def methods(self) -> dict[Method, list[Group]]:
        """Each method's groups, one for each task it was run on."""
        methods: dict[Method, list[Group]] = defaultdict(list)
        for group in self.groups:
            methods[group.method].append(group)
        return dict(methods)


def group_runs(runs: Sequence[Run], metric: str | None = None, score: str | None = None) -> Grouping:
    """Sort runs into groups. Runs that cannot be counted are excluded with a reason.

    Args:
        runs: finished or not.
        metric: e.g. ``eval/length``. None takes, for each environment and dataset, the first of the normalised score,
            the success, the distance W2 and the return that all of its runs have.
        score: ``final``, ``last3``, or None for the protocol of each suite.

    Raises:
        ReportError: no finished run has the metric.
    """
    scored, excluded = _score_all(runs, metric, score)
    finished = [run for run, _ in scored]
    task_of = _tasks(finished)
    differing = _differing(finished, _setting_keys(finished))

    def values(run: Run, keys: Iterable[str]) -> tuple[Any, ...]:
        return tuple(run.config.get(key, ABSENT) for key in keys)

    # Of several runs with the same settings, data and seed, the one with the newest result.json counts.
    kept: dict[Hashable, dict[int, tuple[Run, Score]]] = defaultdict(dict)
    for run, points in sorted(scored, key=lambda item: (item[0].written, item[0].path), reverse=True):
        key = (task_of[run.path], run.algo, run.variant, values(run, differing))
        seed = run.config["seed"]
        if seed in kept[key]:
            newest = kept[key][seed][0].path
            excluded.append(replace(run, status=DUPLICATE, reason=f"same settings, data and seed as {newest}"))
        else:
            kept[key][seed] = (run, points)

    def choice(run: Run, key: str) -> Hashable:
        """What a run's value of a setting may depend on without being shown: its task, its variant or its algorithm."""
        task = task_of[run.path]
        # The number of updates and the evaluation belong to a task's protocol.
        explained = {"env": task, "updates": task, "eval": task, "variant": run.variant, "algo": run.algo}
        if key.startswith("online.") and key != "online.steps":  # without a phase there are no such settings
            return task, run.algo, run.online
        return (explained | {"online": task}).get(key.split(".")[0])

    shown = _differing_within(finished, differing, choice)
    swept = _differing_within(finished, shown, lambda run, _: (task_of[run.path], run.algo, run.variant))
    groups = []
    for members in kept.values():
        ordered = [members[seed] for seed in sorted(members)]
        first = ordered[0][0]
        groups.append(
            Group(
                task=task_of[first.path],
                method=Method(first.algo, first.variant, tuple(zip(swept, values(first, swept), strict=True))),
                settings=dict(zip(shown, values(first, shown), strict=True)),
                runs=[run for run, _ in ordered],
                scores=[points for _, points in ordered],
            )
        )
    groups.sort(key=lambda g: (g.task.name, g.method.algo, _variant_order(g), _sort_key(g.settings.values())))
    return Grouping(groups, shown, sorted(excluded, key=lambda run: (run.status, run.path)))


def score_of(run: Run, metric: str | None = None, score: str | None = None) -> Score:
    """The score of a finished run.

    The protocol of OGBench's states is the mean of the last three evaluations; that of pixels and of D4RL is the final
    evaluation.

    Args:
        metric, score: see :func:`group_runs`.

    Raises:
        KeyError: the evaluations do not have the metric. The message names those they have.
    """
    last, recent = run.evaluations[-1], _recent(run, score)
    if metric is None:
        metric = _default_metric([run], score)
    shown = known_metric(metric)
    values = [value for e in recent if isinstance(value := e.get(metric), int | float) and np.isfinite(value)]
    if len(values) < len(recent):
        known = ", ".join(key for key in last if key.startswith("eval/"))
        raise KeyError(f"no finite {metric} in its last evaluations (eval.jsonl has {known})")
    episodes = sum(int(e.get("episodes", len(e.get("returns", [])))) for e in recent)
    return Score(shown, shown.factor * float(np.mean(values)), len(recent), episodes)


@dataclass(frozen=True)
class Unsteady:
    """The score of a run whose final evaluation is far from the mean of its last three. In the metric's unit."""

    metric: Metric
    final: float
    last_three: float

    def __str__(self) -> str:
        final, mean = self.metric.format(self.final), self.metric.format(self.last_three)
        return f"{self.metric.label}: {final} at the end, {mean} in the mean of the last three evaluations"


def unsteady(evaluations: Sequence[dict[str, Any]]) -> Unsteady | None:
    """The success or normalised score of a run that is unsteady, or None.

    A run is unsteady if its final evaluation differs by more than ``UNSTEADY`` from the mean of its last three.
    """
    recent = last_evaluations(evaluations, SCORES["last3"])
    for name in _SUCCESS_SCORES:
        metric = known_metric(name)
        values = [e[name] for e in recent if isinstance(e.get(name), int | float)]
        if values:
            final, mean = metric.factor * values[-1], metric.factor * float(np.mean(values))
            if abs(final - mean) > UNSTEADY:
                return Unsteady(metric, final, mean)
    return None


def _recent(run: Run, score: str | None) -> list[dict[str, Any]]:
    """The evaluations that a run's score is the mean of."""
    over = protocol_evaluations(run.suite, run.result["dataset"]) if score is None else SCORES[score]
    return last_evaluations(run.evaluations, over)


def _default_metric(runs: Sequence[Run], score: str | None) -> str:
    """The first metric of ``PREFERRED`` that all runs have. Runs that have none of them are left out.

    All runs get the same metric: some environments report only successes and no failures, so that a run may have a
    success in its evaluations and another one only returns.
    """
    known = [set.intersection(*map(set, _recent(run, score))) & set(PREFERRED) for run in runs]
    shared = set.intersection(*([names for names in known if names] or [set()]))
    return next((name for name in PREFERRED if name in shared), SUCCESS.name)


def curve(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """The learning curves of a group, at the updates at which all of its runs were evaluated.

    Returns:
        updates ``(points,)``, and values ``(points, runs)`` in the metric's unit.
    """
    metric = group.metric
    curves = [{e["updates"]: e[metric.name] for e in run.evaluations if metric.name in e} for run in group.runs]
    updates = sorted(set.intersection(*(set(points) for points in curves)))
    values = [[metric.factor * points[k] for points in curves] for k in updates]
    return np.array(updates), np.array(values, dtype=float).reshape(len(updates), len(curves))


def labels(groups: Sequence[Group]) -> list[str]:
    """A short label for each group. It has only what differs between the groups."""
    return _distinguishing_labels([(g.method.algo, g.method.variant, g.settings) for g in groups])


def method_labels(methods: Sequence[Method]) -> list[str]:
    """A short label for each method. It has only what differs between the methods."""
    return _distinguishing_labels([(m.algo, m.variant, dict(m.swept)) for m in methods])


def _distinguishing_labels(named: Sequence[tuple[str, str, dict[str, Any]]]) -> list[str]:
    varying = [key for key in (named[0][2] if named else ()) if len({settings[key] for _, _, settings in named}) > 1]
    short = short_names(varying)
    variants: dict[str, set[str]] = {algo: set() for algo, _, _ in named}
    for algo, variant, _ in named:
        variants[algo] |= {variant} - {ABSENT}
    several_have = sum(map(bool, variants.values())) > 1
    names = []
    for algo, variant, settings in named:
        # Variants that are compared with one another go by their names, unless another algorithm has some too.
        among_variants = len(variants[algo]) > 1 and variant != ABSENT
        parts = [algo] if len(variants) > 1 and (several_have or not among_variants) else []
        parts += [variant] if among_variants else []
        parts += [f"{short[key]}={text(settings[key])}" for key in varying if settings[key] != ABSENT]
        names.append(" ".join(parts) or " ".join(name for name in (algo, variant) if name != ABSENT))
    return names


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Short names of dotted keys: the last part, or the last two parts if the last one is not specific enough."""
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: ".".join(key.split(".")[-2:]) if name in _UNSPECIFIC or last.count(name) > 1 else name
        for key, name in zip(keys, last, strict=True)
    }


def text(value: Any) -> str:
    """A setting's value as a short string."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "[" + ",".join(text(item) for item in value) + "]"
    value = str(value)
    return value.rpartition(".")[2] if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value) else value


def data_identity(run: Run) -> Hashable:
    """What is equal for two runs exactly if their data are the same.

    It is the source and the checksums of the files. Data without files have the rest of their record instead.
    """
    record = run.provenance
    files = record.get("files") or {}
    sums = sorted(str(f.get("sha256")) for f in files.values() if isinstance(f, dict) and f.get("sha256"))
    if sums:
        return (record["source"], *sums)
    left_out = {"created", "seconds", "versions", "fraction", "seed"}
    return (record["source"], json.dumps({k: v for k, v in record.items() if k not in left_out}, sort_keys=True))


def checksum(run: Run) -> str | None:
    """The SHA-256 of the training file, or None if the record has none."""
    files = run.provenance.get("files") or {}
    train = [name for name in files if not re.search(r"-val\.\w+$", name)] or list(files)
    return files[train[0]].get("sha256") if train and isinstance(files[train[0]], dict) else None


def _score_all(runs: Sequence[Run], metric: str | None, score: str | None) -> tuple[list[tuple[Run, Score]], list[Run]]:
    scored, excluded, problem = [], [], ""
    alike: dict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        if run.status == FINISHED:
            alike[run.result["env"], run.result["dataset"]].append(run)
    defaults = {task: _default_metric(members, score) for task, members in alike.items()}
    for run in runs:
        if run.status != FINISHED:
            excluded.append(run)
            continue
        try:
            chosen = metric or defaults[run.result["env"], run.result["dataset"]]
            scored.append((run, score_of(run, chosen, score)))
        except KeyError as error:
            problem = error.args[0]
            excluded.append(replace(run, status=FAILED, reason=problem))
    if problem and not scored:
        raise ReportError(f"no finished run can be scored: {problem}; choose another with --metric")
    return scored, excluded


def _tasks(runs: Sequence[Run]) -> dict[Any, Task]:
    """The task of each run, by its path. Tasks that differ only in their data get a piece of the checksum as a name."""
    raw = {}
    for run in runs:
        env_id, dataset = run.result["env"], run.result["dataset"]
        task = Task(env_id, dataset, data_identity(run), re.sub(r"-v\d+$", "", dataset))
        name = f"{task.name} task {task.number}" if task.number is not None else task.name
        raw[run.path] = replace(task, name=name)
    renamed: dict[Task, Task] = {}
    for run in runs:
        task = raw[run.path]
        if task not in renamed and any(other.name == task.name for other in raw.values() if other != task):
            data = " ".join(filter(None, [run.provenance["source"], (checksum(run) or "")[:8]]))
            taken = {named.name for named in renamed.values()}
            names = [f"{task.name} ({data})", *(f"{task.name} ({data}, {k})" for k in range(2, len(runs) + 1))]
            renamed[task] = replace(task, name=next(name for name in names if name not in taken))
    return {path: renamed.get(task, task) for path, task in raw.items()}


def _setting_keys(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in keys if _is_setting(key)]


def _is_setting(key: str) -> bool:
    if key == "eval.seed":  # evaluations over other episodes are not the same evaluation
        return True
    if key == "online.num_envs":  # unlike those of an evaluation, they change what is learned from
        return True
    if key in _IDENTITY or key.rpartition(".")[2] in _NOT_COMPARED or key.startswith(_NOT_COMPARED_SECTIONS):
        return False
    return not key.startswith("trainer.") or key in _TRAINER_SETTINGS


def _differing(runs: Sequence[Run], keys: Iterable[str]) -> list[str]:
    return [key for key in keys if len({run.config.get(key, ABSENT) for run in runs}) > 1]


def _differing_within(runs: Sequence[Run], keys: Iterable[str], part: Callable[[Run, str], Hashable]) -> list[str]:
    """The keys that have several values within at least one part of the runs.

    Args:
        part: the part that a run belongs to, for a key.
    """

    def differs(key: str) -> bool:
        values: dict[Hashable, set[Any]] = defaultdict(set)
        for run in runs:
            values[part(run, key)].add(run.config.get(key, ABSENT))
        return any(len(v) > 1 for v in values.values())

    return [key for key in keys if differs(key)]


def _variant_order(group: Group) -> tuple[bool, str]:
    return group.method.variant != "residual", group.method.variant  # the paper's choice first


def _sort_key(values: Iterable[Any]) -> list[tuple[int, float, str]]:
    """A sort key for values of settings: numbers come first, by size."""
    return [
        (0, float(v), "") if isinstance(v, int | float) and not isinstance(v, bool) else (1, 0.0, str(v))
        for v in values
    ]
