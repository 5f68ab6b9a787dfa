"""The tables of a report, as headings and cells, and sentences on their runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from mfrl.report.groups import (
    Group,
    Grouping,
    Method,
    Task,
    checksum,
    labels,
    method_labels,
    short_names,
    text,
    unsteady,
)
from mfrl.report.published import both_phases
from mfrl.report.statistics import Interval, task_mean
from mfrl.report.summary import Bootstrap, Improvement, Row

_MANY_METHODS = 6  # of more methods, a report shows the comparisons with the best one; improvement.csv has all
DEPENDS_ON_WHEN = "The score of these runs depends on when one looks: quote neither number alone."


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        grouping: the runs.
        rows: the statistics of each group.
        overall: the statistics of each method that was run on several tasks; empty if these have no common scale.
        improvements: the comparisons between methods.
        bootstrap: how intervals were made.
        score: how a run's score is taken, see :func:`mfrl.report.groups.group_runs`.
        lower_is_better: whether the lower of two scores is the better.
        command: the command line that made the report.
        made: when it was made.
    """

    grouping: Grouping
    rows: list[Row]
    overall: list[Row]
    improvements: list[Improvement]
    bootstrap: Bootstrap
    score: str | None
    lower_is_better: bool
    command: str
    made: str

    def of_task(self, task: Task) -> list[Row]:
        return [row for row in self.rows if row.groups[0].task == task]

    @property
    def profiled(self) -> list[Row]:
        """What performance profiles compare: methods over several tasks, or the groups of the only task.

        Empty if there is one alone, none has several runs, or tasks have no common scale.
        """
        rows = self.overall or (self.rows if len(self.grouping.tasks) == 1 else [])
        return rows if len(rows) > 1 and any(row.runs > len(row.groups) for row in rows) else []

    @property
    def percent(self) -> str:
        return f"{100 * self.bootstrap.confidence:g} %"


#: Headings, and rows of cells.
Cells = tuple[list[str], list[list[str]]]


def score_table(report: Report, rows: Sequence[Row]) -> Cells:
    """The table of the groups on one task."""
    keys = report.grouping.keys
    names = short_names(keys)
    label = rows[0].metric.label
    head = ["algorithm", "variant", *(names[key] for key in keys), "seeds"]
    head += [f"{label}, mean ± std", f"IQM [{report.percent} interval]", "episodes"]
    body = []
    for row in rows:
        (group,) = row.groups
        cells = [row.method.algo, row.method.variant, *(text(group.settings[key]) for key in keys)]
        cells += [f"{row.runs} ({ranges(group.seeds)})", mean_and_std(row), iqm_and_interval(row), episodes(group)]
        body.append(cells)
    return _with_published(rows, head, body)


def narrow_table(report: Report, rows: Sequence[Row]) -> Cells:
    """The table of the groups on one task, for a terminal. One column has everything that differs between them."""
    name = labels([group for row in rows for group in row.groups])
    head = ["", "seeds", rows[0].metric.label, f"IQM [{report.percent}]", "episodes"]
    body = []
    for label, row in zip(name, rows, strict=True):
        (group,) = row.groups
        body.append([label, ranges(group.seeds), mean_and_std(row), iqm_and_interval(row), str(group.episodes)])
    return _with_published(rows, head, body, wide=False)


def overall_table(report: Report, narrow: bool = False) -> Cells:
    """The table of the methods over tasks."""
    rows = report.overall
    head = ["", "tasks", "runs", "mean ± std", f"IQM [{report.percent}]"]
    if not narrow:
        head[-1:] = [f"mean [{report.percent} interval]", f"IQM [{report.percent} interval]"]
    body = []
    for name, row in zip(method_labels([row.method for row in rows]), rows, strict=True):
        tasks = f"{len(row.groups)} of {len(report.grouping.tasks)}"
        mean = [] if narrow else [with_interval(row, row.mean, row.mean_interval)]
        body.append([name, tasks, str(row.runs), mean_and_std(row), *mean, iqm_and_interval(row)])
    return _with_published(rows, head, body, wide=not narrow)


def _with_published(rows: Sequence[Row], head: list[str], body: list[list[str]], wide: bool = True) -> Cells:
    """Add a column with published scores, if there are any."""
    methods = sorted({p.method for row in rows for p in row.published})
    if not methods:
        return head, body
    shown = ["; ".join(map(both_phases, row.published)) + ("*" if row.remark else "") for row in rows]
    return [*head, f"published {', '.join(methods)}" if wide else "published"], [
        [*cells, p] for cells, p in zip(body, shown, strict=True)
    ]


def improvement_tables(report: Report) -> list[tuple[str, Cells]]:
    """The tables of comparisons, each with a title: one for each set of methods that share tasks.

    X is the method that is more likely to win. If there are many methods, the table has only the comparisons with the
    best one; improvement.csv has all of them.
    """
    sign = "<" if report.lower_is_better else ">"
    head = ["X", "Y", "tasks", f"P(X {sign} Y) [{report.percent} interval]"]
    tables = []
    for methods in comparable(report.grouping):
        pairs = [pair for pair in report.improvements if pair.x in methods]
        if not pairs:
            continue
        title = ", ".join(task.name for task in tasks_of(report.grouping, methods))
        if len(methods) > _MANY_METHODS:
            best = _best(report, methods)
            title += f": the best method against each other (all {len(pairs)} pairs: improvement.csv)"
            pairs = [pair for pair in pairs if best in (pair.x, pair.y)]
        name = dict(zip(methods, method_labels(methods), strict=True))
        body = []
        for pair in (_swapped(pair) if pair.probability < 0.5 else pair for pair in pairs):
            interval = f"[{pair.interval[0]:.2f}, {pair.interval[1]:.2f}]" if pair.interval else "(n=1: no interval)"
            body.append([name[pair.x], name[pair.y], str(pair.tasks), f"{pair.probability:.2f} {interval}"])
        tables.append((title, (head, body)))
    return tables


def comparable(grouping: Grouping) -> list[list[Method]]:
    """The methods in sets. Two methods are in the same set if they share a task, also through other methods."""
    sets: list[tuple[set[Task], list[Method]]] = []
    for method, groups in grouping.methods.items():
        tasks, members = {g.task for g in groups}, [method]
        apart = []
        for other_tasks, others in sets:
            if tasks & other_tasks:
                tasks, members = tasks | other_tasks, others + members
            else:
                apart.append((other_tasks, others))
        sets = [*apart, (tasks, members)]
    return [members for _, members in sets]


def tasks_of(grouping: Grouping, methods: Sequence[Method]) -> list[Task]:
    return list(dict.fromkeys(g.task for g in grouping.groups if g.method in methods))


def excluded_table(report: Report) -> Cells:
    """The table of the runs that do not count."""
    body = [
        [run.status, str(run.path), run.env_name, run.algo, run.variant, str(run.seed), run.reason]
        for run in report.grouping.excluded
    ]
    return ["status", "folder", "env", "algorithm", "variant", "seed", "why"], body


def unsteady_lines(rows: Sequence[Row]) -> list[str]:
    """A line for each run whose final evaluation is far from the mean of its last three."""
    groups = [group for row in rows for group in row.groups]
    return [
        f"{label}, seed {run.seed}: {found}"
        for label, group in zip(labels(groups), groups, strict=True)
        for run in group.runs
        if (found := unsteady(run.evaluations))
    ]


def mean_and_std(row: Row) -> str:
    """The mean and deviation of the scores; of runs that went online, with the offline mean in front."""
    mean = row.metric.format(row.mean)
    score = f"{mean} ± {row.metric.format(row.std)}" if row.std is not None else mean
    before = [values for group in row.groups if (values := group.offline_values) is not None]
    if len(before) < len(row.groups):
        return score
    return f"{row.metric.format(float(task_mean(before)))} → {score}"


def iqm_and_interval(row: Row) -> str:
    return with_interval(row, row.iqm, row.iqm_interval)


def with_interval(row: Row, value: float, interval: Interval | None) -> str:
    shown = row.metric.format(value)
    if interval is None:
        return f"{shown} (n=1)" if row.runs == 1 else f"{shown} (a task with one seed)"
    return f"{shown} [{row.metric.format(interval[0])}, {row.metric.format(interval[1])}]"


def episodes(group: Group) -> str:
    """The number of episodes, and how it is made up: ``450 (3x3x50)`` for 3 runs, 3 evaluations and 50 episodes."""
    each = {(score.evaluations, score.episodes) for score in group.scores}
    if len(each) > 1:
        return str(group.episodes)
    ((evaluations, of_run),) = each
    return f"{group.episodes} ({len(group.runs)}x{evaluations}x{of_run / evaluations:g})"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as ranges: ``0-2, 5`` for 0, 1, 2, 5."""
    parts = []
    for _, run in groupby(enumerate(sorted(numbers)), lambda item: item[1] - item[0]):
        members = [number for _, number in run]
        parts.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(parts)


def provenance_lines(groups: Sequence[Group], brief: bool = False) -> list[str]:
    """Lines on the data that a table's runs learned from, and on the environment that evaluated them.

    Args:
        groups: groups on one task.
        brief: only the data and the settings that generated them.
    """
    run = groups[0].runs[0]
    record = run.provenance
    source = record["source"]
    generator = record.get("generator")
    if isinstance(generator, dict):
        made_by = generator.get("function") or generator.get("command") or generator.get("package", "?")
        generator = f"{made_by} ({generator.get('package', '?')} {generator.get('version', '?')})"
    how = {"unrecorded": "of unrecorded origin"}.get(source, source)
    sha = checksum(run)
    line = f"data: {record['dataset']}, {how}" + (f" by {generator}" if generator else "")
    line += f", sha256 {sha[:12]}" if sha else ", no checksum"
    if source == "collected":
        line += "; not the official data set"
    hidden = {"format", "dataset", "source", "generator", "files", "created", "seconds", "versions", "note", "fraction"}
    settings = [f"{key}={text(value)}" for key, value in record.items() if key not in hidden]
    versions = [f"{name} {version}" for name, version in (record.get("versions") or {}).items() if version]
    lines = [line]
    if settings:
        lines.append("generator settings: " + ", ".join(settings))
    if not brief:
        if versions:
            lines.append("generated with: " + ", ".join(versions))
        if record.get("note"):
            lines.append(f"note: {record['note']}")
        lines.append(f"environment: {run.result['env']}")
    return lines


def warning_lines(grouping: Grouping) -> list[str]:
    """A line for each warning about the data or the training of a run that counts."""
    runs = [run for group in grouping.groups for run in group.runs]
    return [f"{run.path} (seed {run.seed}): {warning}" for run in runs for warning in run.result.get("warnings", ())]


def _best(report: Report, methods: Sequence[Method]) -> Method:
    """The method with the best IQM among those with the most tasks."""
    of_method = {row.method: row for row in [*report.rows, *report.overall] if row.method in methods}
    most = max(len(row.groups) for row in of_method.values())
    candidates = [row for row in of_method.values() if len(row.groups) == most]
    return (min if report.lower_is_better else max)(candidates, key=lambda row: row.iqm).method


def _swapped(pair: Improvement) -> Improvement:
    interval = (1 - pair.interval[1], 1 - pair.interval[0]) if pair.interval else None
    return Improvement(pair.y, pair.x, pair.tasks, 1 - pair.probability, interval)


def markdown_table(head: Sequence[object], body: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
