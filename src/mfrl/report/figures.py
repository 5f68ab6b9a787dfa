"""Figures of a report. Pure functions: groups in, a matplotlib Figure out, in Okabe and Ito's colours."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from mfrl.report.groups import Group, curve, labels, method_labels
from mfrl.report.statistics import bootstrap_interval, interquartile_mean, task_mean
from mfrl.report.summary import Bootstrap, Row

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DPI = 130


def learning_curves(groups: Sequence[Group], bootstrap: Bootstrap) -> Figure:
    """The metric against updates for the groups of one task: mean over seeds, with its bootstrap interval."""
    counts = [f"{len(g.runs)} seed{'s' if len(g.runs) > 1 else ''}" for g in groups]
    names = [f"{name} ({count})" for name, count in zip(labels(groups), counts, strict=True)]
    columns = 2 if len(names) > 1 and max(map(len, names)) <= 40 else 1
    names = [textwrap.fill(name, 84 // columns) for name in names]
    lines = sum(name.count("\n") + 1 for name in names) / columns
    figure = _new_figure(6.4, 4.0 + 0.19 * lines)
    axes = figure.subplots()
    for i, (group, name) in enumerate(zip(groups, names, strict=True)):
        updates, values = curve(group)
        color, style = COLORS[i % len(COLORS)], LINES[i // len(COLORS) % len(LINES)]
        n = values.shape[1]
        look = {"color": color, "linestyle": style, "marker": MARKERS[i % len(MARKERS)], "markersize": 4.5}
        axes.plot(updates, values.mean(axis=1), linewidth=1.7, label=name, **look, zorder=3)
        intervals = [bootstrap_interval(task_mean, [row], **bootstrap.settings()) for row in values]
        if n > 1 and intervals:
            low, high = np.array(intervals).T
            axes.fill_between(updates, low, high, color=color, alpha=0.16, linewidth=0)
    metric = groups[0].metric
    axes.set(title=groups[0].task.name, xlabel="updates", ylabel=metric.label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    if metric.unit == "%":
        axes.set_ylim(-3, 103)
    _tidy(axes, "both")
    note = f"mean over seeds; shaded: its {100 * bootstrap.confidence:g} % bootstrap interval"
    if max(len(g.runs) for g in groups) == 1:
        note = "single runs: no interval"
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8, title=note, title_fontsize=8)
    return figure


def score_intervals(rows: Sequence[Row], tasks: int, bootstrap: Bootstrap) -> Figure:
    """Mean and interquartile mean of every method over its tasks: a dot, a bar for the interval, the runs behind."""
    names = _row_names(rows, tasks)
    lines = max(name.count("\n") + 1 for name in names)
    figure = _new_figure(9.0, 1.35 + len(rows) * max(0.42, 0.17 * lines + 0.08))
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, title, statistic in zip(
        grid, ("mean", "interquartile mean"), (task_mean, interquartile_mean), strict=True
    ):
        for i, row in enumerate(rows):
            color = COLORS[i % len(COLORS)]
            scores = np.concatenate([g.values for g in row.groups])
            axes.scatter(scores, _spread(i, len(scores)), s=11, color="0.62", linewidth=0, zorder=2)
            value = float(statistic([g.values for g in row.groups]))
            interval = row.mean_interval if statistic is task_mean else row.iqm_interval
            if interval is not None:
                axes.plot(interval, (i, i), color=color, linewidth=9, alpha=0.5, solid_capstyle="butt", zorder=3)
            axes.plot(value, i, marker="o", markersize=5, color=color, markeredgewidth=0, zorder=4)
        axes.set(title=title, xlabel=rows[0].metric.label)
        _tidy(axes, "x")
    grid[0].set_yticks(range(len(rows)), names, fontsize=8.5)
    grid[0].set_ylim(len(rows) - 0.4, -0.6)
    if rows[0].metric.unit == "%":
        grid[0].set_xlim(-3, 103)
    run = {"marker": "o", "linestyle": "none", "color": "0.62", "markersize": 4}
    figure.legend(
        handles=[
            Line2D([], [], **run, label="single runs"),
            Line2D([], [], color="0.4", linewidth=9, alpha=0.5, label=f"{100 * bootstrap.confidence:g} % interval"),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )
    return figure


def _row_names(rows: Sequence[Row], tasks: int) -> list[str]:
    """What each row is, in lines short enough for the margin."""
    over_tasks = any(len(row.groups) > 1 for row in rows)
    if over_tasks:
        names = method_labels([row.method for row in rows])
        counts = [f"{len(row.groups)} of {tasks} tasks, n={row.runs}" for row in rows]
    else:
        groups = [row.groups[0] for row in rows]
        names = labels(groups)
        counts = [(f"{g.task.name}, " if tasks > 1 else "") + f"n={len(g.runs)}" for g in groups]
    return ["\n".join([*textwrap.wrap(name, 44), count]) for name, count in zip(names, counts, strict=True)]


def _spread(row: int, count: int) -> np.ndarray:
    """Heights of a row's single runs, below its bar, so that equal scores stay apart."""
    return row + np.linspace(0.18, 0.38, count)


def _tidy(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
