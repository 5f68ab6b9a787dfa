"""Figures of a report. Pure functions from groups to a figure. A method looks the same in all figures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from mfrl.report.groups import ABSENT, W2, Group, Method, Metric, curve, labels, method_labels
from mfrl.report.statistics import (
    bootstrap_band,
    bootstrap_interval,
    deviation,
    interquartile_mean,
    performance_profile,
    task_mean,
)
from mfrl.report.summary import Bootstrap, Row
from mfrl.system.drawing import Look, look_of, new_figure

TOGETHER = 3  #: at most so many groups share a panel; of more, bands could not be told apart
DASHES = ("-", (0, (4, 1.6)), (0, (1, 1.2)), (0, (6, 1.4, 1, 1.4)), (0, (2.2, 1)), (0, (8, 1.5, 1, 1.5, 1, 1.5)))
_DPI = 130
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8, "title_fontsize": 8, "handlelength": 4.2}
_BEHIND: dict[str, Any] = {"color": "0.82", "linewidth": 1.0, "zorder": 1}


def look(method: Method) -> Look:
    """The colour and the marker of a method: those of its variant or, without one, of its algorithm."""
    return look_of(_name(method))


def learning_curves(groups: Sequence[Group], bootstrap: Bootstrap) -> Figure:
    """Draw the metric against updates for the groups of one task: the mean over seeds with its bootstrap interval.

    Up to ``TOGETHER`` groups of different methods share a panel. Otherwise there is a panel for each method, or for
    each setting if there is one method only, with the other groups in grey behind. If a method has several settings,
    its panel tells them apart by dashes and has no intervals.

    Args:
        groups: at least one.
        bootstrap: how intervals are made.
    """
    if len({look(group.method) for group in groups}) == len(groups) <= TOGETHER:
        return _in_one_panel(groups, bootstrap)
    named = list(zip(labels(groups), groups, strict=True))
    methods = list(dict.fromkeys(_name(group.method) for group in groups))
    if len(methods) > 1:
        panels = [[(label, group) for label, group in named if _name(group.method) == name] for name in methods]
    else:
        panels = [[one] for one in named]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    titles = [textwrap.fill(panel[0][0] if len(panel) == 1 else _name(panel[0][1].method), 34) for panel in panels]
    lines = max(title.count("\n") for title in titles)
    figure = new_figure(0.6 + 2.9 * columns, 0.9 + (2.55 + 0.16 * lines) * rows, _DPI)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, panel, title in zip(grid.flat, panels, titles, strict=False):
        for group in groups:
            updates, values = curve(group)
            axes.plot(updates, values.mean(axis=1), **_BEHIND)
        _scale(axes, groups[0].metric)
        shown = [group for _, group in panel]
        _mark_phases(axes, shown)
        if len(shown) == 1:
            (group,) = shown
            _draw(axes, group, DASHES[0], None)
            _shade(axes, group, bootstrap)
            axes.set_title(f"{title}\n{_mean_and_deviation(group)}", fontsize=9)
            continue
        for number, (group, setting) in enumerate(zip(shown, labels(shown), strict=True)):
            _draw(axes, group, DASHES[number % len(DASHES)], f"{setting}: {_mean_and_deviation(group)}")
        axes.set_title(title, fontsize=9)
        axes.legend(**_LEGEND | {"fontsize": 7})
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for column in grid.T:  # the last row may have empty places
        lowest = [axes for axes in column if axes.get_visible()][-1]
        lowest.set_xlabel("updates")
        lowest.tick_params(labelbottom=True)
    figure.supylabel(axis_label(groups[0].metric), fontsize=9)
    figure.suptitle(groups[0].task.name, fontsize=11)
    shaded = any(len(panel) == 1 for panel in panels)
    behind = Line2D([], [], label="the others", **_BEHIND)
    figure.legend(handles=[behind], loc="outside lower center", title=_note(groups, bootstrap, shaded), **_LEGEND)
    return figure


def _in_one_panel(groups: Sequence[Group], bootstrap: Bootstrap) -> Figure:
    alike = len({len(group.runs) for group in groups}) == 1
    counts = ["" if alike else f" ({_seeds(len(group.runs))})" for group in groups]
    scores = map(_mean_and_deviation, groups)
    names = [f"{name}{n}: {score}" for name, n, score in zip(labels(groups), counts, scores, strict=True)]
    columns = 2 if len(names) > 1 and max(map(len, names)) <= 36 else 1
    names = [textwrap.fill(name, 80 // columns) for name in names]
    lines = sum(name.count("\n") + 1 for name in names) / columns
    figure = new_figure(6.4, 4.0 + 0.19 * lines, _DPI)
    axes = figure.subplots()
    for group, name in zip(groups, names, strict=True):
        _draw(axes, group, DASHES[0], name)
        _shade(axes, group, bootstrap)
    axes.set(title=groups[0].task.name, xlabel="updates", ylabel=axis_label(groups[0].metric))
    _scale(axes, groups[0].metric)
    _mark_phases(axes, groups)
    figure.legend(loc="outside lower center", ncols=columns, title=_note(groups, bootstrap), **_LEGEND)
    return figure


def _draw(axes: Axes, group: Group, dash: object, label: str | None) -> None:
    """Draw a group's mean over seeds."""
    updates, values = curve(group)
    color, marker = look(group.method).color, look(group.method).marker
    style: dict[str, Any] = {"linestyle": dash, "linewidth": 1.7, "marker": marker, "markersize": 4.5}
    axes.plot(updates, values.mean(axis=1), color=color, label=label, zorder=3, **style)


def _shade(axes: Axes, group: Group, bootstrap: Bootstrap) -> None:
    """Shade the interval of that mean, if there are several seeds."""
    updates, values = curve(group)
    if values.size and values.shape[1] > 1:
        intervals = [bootstrap_interval(task_mean, [row], **bootstrap.settings()) for row in values]
        axes.fill_between(updates, *np.array(intervals).T, color=look(group.method).color, alpha=0.16, linewidth=0)


def score_intervals(rows: Sequence[Row], tasks: int, bootstrap: Bootstrap) -> Figure:
    """Draw the mean and the interquartile mean of every row: a marker, a bar for the interval, and dots for the runs.

    Args:
        rows: at least one.
        tasks: number of tasks in the report.
        bootstrap: how intervals are made.
    """
    names = _row_names(rows, tasks)
    lines = max(name.count("\n") + 1 for name in names)
    figure = new_figure(9.0, 1.35 + len(rows) * max(0.42, 0.17 * lines + 0.08), _DPI)
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, title, statistic in zip(
        grid, ("mean", "interquartile mean"), (task_mean, interquartile_mean), strict=True
    ):
        for i, row in enumerate(rows):
            color, marker = look(row.method).color, look(row.method).marker
            scores = np.concatenate([g.values for g in row.groups])
            axes.scatter(scores, _spread(i, len(scores)), s=11, color="0.62", linewidth=0, zorder=2)
            value = float(statistic([g.values for g in row.groups]))
            interval = row.mean_interval if statistic is task_mean else row.iqm_interval
            if interval is not None:
                axes.plot(interval, (i, i), color=color, linewidth=9, alpha=0.4, solid_capstyle="butt", zorder=3)
            axes.plot(value, i, marker=marker, markersize=6, color=color, markeredgewidth=0, zorder=4)
        axes.set(title=title, xlabel=axis_label(rows[0].metric))
        _tidy(axes, "x")
    grid[0].set_yticks(range(len(rows)), names, fontsize=8.5)
    grid[0].set_ylim(len(rows) - 0.4, -0.6)
    if rows[0].metric.unit == "%":
        grid[0].set_xlim(-3, 103)
    run: dict[str, Any] = {"marker": "o", "linestyle": "none", "color": "0.62", "markersize": 4}
    figure.legend(
        handles=[
            Line2D([], [], **run, label=f"single runs{_shared_count(rows)}"),
            Line2D([], [], color="0.4", linewidth=9, alpha=0.5, label=f"{100 * bootstrap.confidence:g} % interval"),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )
    return figure


def performance_profiles(rows: Sequence[Row], bootstrap: Bootstrap, lower_is_better: bool) -> Figure:
    """Draw which share of each row's runs reaches a score. A higher curve is better, and hides no bad run.

    Up to ``TOGETHER`` rows have the bootstrap's intervals; of more, bands could not be told apart.

    Args:
        rows: at least one; all over the same task, or over several tasks of one scale.
        bootstrap: how intervals are made.
        lower_is_better: of the metric; the share is then that of the runs at or below a score.
    """
    scores = [[group.values for group in row.groups] for row in rows]
    all_scores = np.concatenate([x for strata in scores for x in strata])
    low, high = (0.0, 100.0) if rows[0].metric.unit == "%" else (all_scores.min(), all_scores.max())
    levels = np.linspace(low, high, 101)
    one_task = all(len(row.groups) == 1 for row in rows)
    names = labels([row.groups[0] for row in rows]) if one_task else method_labels([row.method for row in rows])
    names = [textwrap.fill(name, 70) for name in names]
    columns = max(1, min(3, len(rows), 78 // (10 + max(map(len, names)))))
    profile = partial(performance_profile, levels=levels, lower_is_better=lower_is_better)
    shaded = False
    seen: dict[Look, int] = {}  # rows that look alike, told apart by dashes
    figure = new_figure(6.4, 3.8 + 0.3 * -(-len(rows) // columns), _DPI)
    axes = figure.subplots()
    for row, strata, name in zip(rows, scores, names, strict=True):
        method = look(row.method)
        marks: dict[str, Any] = {"marker": method.marker, "markersize": 5, "markevery": 20}
        seen[method] = number = seen.get(method, -1) + 1
        marks["linestyle"] = DASHES[number % len(DASHES)]
        axes.plot(levels, 100 * profile(strata), color=method.color, linewidth=1.6, label=name, **marks)
        band = bootstrap_band(profile, strata, **bootstrap.settings()) if len(rows) <= TOGETHER else None
        if band is not None:
            axes.fill_between(levels, *(100 * band), color=method.color, alpha=0.16, linewidth=0)
            shaded = True
    reaches = "that reach at most" if lower_is_better else "that reach at least"
    axes.set(ylabel=f"runs {reaches} this score, %", xlabel=axis_label(rows[0].metric), ylim=(-3, 103))
    _tidy(axes, "both")
    note = f"shaded: {100 * bootstrap.confidence:g} % bootstrap interval" if shaded else None
    figure.legend(loc="outside lower center", ncols=columns, title=note, **_LEGEND)
    return figure


def axis_label(metric: Metric) -> str:
    """The label of an axis. It says "lower is better" where that holds."""
    label = {W2.name: "$W_2$ to the data", "eval/mmd": "MMD to the data"}.get(metric.name, metric.label)
    return f"{label}, lower is better" if metric.lower_is_better else label


def _row_names(rows: Sequence[Row], tasks: int) -> list[str]:
    """The names of the rows, in lines that fit the margin. They have the number of seeds if rows differ in it."""
    if any(len(row.groups) > 1 for row in rows):
        names = method_labels([row.method for row in rows])
        counts = [f"{len(row.groups)} of {tasks} tasks, n={row.runs}" for row in rows]
    else:
        groups = [row.groups[0] for row in rows]
        names = labels(groups)
        seeds = ["" if _shared_count(rows) else f"n={len(g.runs)}" for g in groups]
        counts = [", ".join(filter(None, (g.task.name * (tasks > 1), n))) for g, n in zip(groups, seeds, strict=True)]
    return ["\n".join([*textwrap.wrap(name, 44), *filter(None, [n])]) for name, n in zip(names, counts, strict=True)]


def _shared_count(rows: Sequence[Row]) -> str:
    """The number of seeds in words, if all rows have the same number and each row is one task; otherwise empty."""
    counts = {len(row.groups[0].runs) if len(row.groups) == 1 else 0 for row in rows}
    return f" ({_seeds(counts.pop())} each)" if len(counts) == 1 and 0 not in counts else ""


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _name(method: Method) -> str:
    """The variant's name for algorithms that are about variants, otherwise the algorithm's name."""
    return method.variant if method.algo in ("meanflowql", "meanflow_bc") and method.variant != ABSENT else method.algo


def _mean_and_deviation(group: Group) -> str:
    """The mean and the deviation of a group's scores over seeds, as in the tables."""
    mean, std = group.metric.format(float(group.values.mean())), deviation(group.values)
    return mean if std is None else f"{mean} ± {group.metric.format(std)}"


def _note(groups: Sequence[Group], bootstrap: Bootstrap, shaded: bool = True) -> str:
    counts = sorted({len(group.runs) for group in groups})
    averaged = {score.evaluations for group in groups for score in group.scores}
    named = {1: " of the last evaluation", 3: " of the last three evaluations"}
    what = named.get(max(averaged), "") if len(averaged) == 1 else ""
    if counts[-1] == 1:
        return f"single runs: no interval; numbers: score{what}"
    many = _seeds(counts[0]) if len(counts) == 1 else f"{counts[0]} to {_seeds(counts[-1])}"
    interval = f"; shaded: its {100 * bootstrap.confidence:g} % bootstrap interval" if shaded else ""
    return f"mean over {many}{interval}; numbers: score{what}, mean ± deviation"


def _scale(axes: Axes, metric: Metric) -> None:
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    if metric.unit == "%":
        axes.set_ylim(-3, 103)
    _tidy(axes, "both")


def _mark_phases(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw a line where the online phase begins, if all runs went online after as many updates."""
    begins = {run.config["updates"] if run.online else 0 for group in groups for run in group.runs}
    if len(begins) == 1 and (begin := begins.pop()):
        axes.axvline(begin, color="0.45", linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
        style: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "color": "0.35"}
        axes.annotate("online →", (begin, 1.0), (3, -9), fontsize=7, **style)


def _spread(row: int, count: int) -> np.ndarray:
    """The heights of a row's dots, which differ so that equal scores do not hide one another."""
    return row + np.linspace(0.18, 0.38, count)


def _tidy(axes: Axes, grid: Literal["both", "x", "y"]) -> None:
    axes.grid(axis=grid, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
