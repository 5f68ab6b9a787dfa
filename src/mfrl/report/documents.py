"""Writes a whole report as Markdown, LaTeX and CSV. The functions return strings and write no files."""

from __future__ import annotations

import csv
import io
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from mfrl.report.groups import Group, Task, checksum, method_labels, text
from mfrl.report.published import Published, both_phases, differences, of_task
from mfrl.report.statistics import Interval
from mfrl.report.summary import Row
from mfrl.report.tables import (
    DEPENDS_ON_WHEN,
    Report,
    excluded_table,
    improvement_tables,
    markdown_table,
    overall_table,
    provenance_lines,
    score_table,
    unsteady_lines,
    warning_lines,
)
from mfrl.runs.read import DUPLICATE, FAILED, UNFINISHED

#: How a run's score is taken, in words, by the argument ``--score``.
RULE = {
    None: "each suite's protocol: OGBench the mean of the last three evaluations (pixels: the final one), "
    "D4RL and others the final one",
    "final": "the final evaluation",
    "last3": "the mean of the last three evaluations",
}


def markdown(report: Report, curves: dict[Task, str], intervals: str | None, profiles: str | None) -> str:
    """The content of report.md.

    Args:
        curves: the file name of each task's learning curves.
        intervals: the file name of the figure with scores and intervals; None if there is none.
        profiles: that of the performance profiles; None if there is none.
    """
    grouping = report.grouping
    lines = ["# Report", "", f"Made {report.made} by `{report.command}`", "", *_counts(report), ""]
    if not report.rows:
        lines += ["**No run is finished, so there is nothing to average.**", ""]
    for task in grouping.tasks:
        rows = report.of_task(task)
        lines += [
            f"## {task.name}",
            "",
            *(f"- {line}" for line in provenance_lines([g for r in rows for g in r.groups])),
        ]
        lines += ["", *markdown_table(*score_table(report, rows)), "", *_footnotes(rows)]
        if notes := unsteady_lines(rows):
            lines += [f"**{DEPENDS_ON_WHEN}**", "", *(f"- {note}" for note in notes), ""]
        if task in curves:
            lines += [f"![Learning curves on {task.name}]({curves[task]})", ""]
    if report.overall:
        lines += ["## Over tasks", "", *(f"- {line}" for line in _overall_notes(report)), ""]
        lines += [*markdown_table(*overall_table(report)), "", *_footnotes(report.overall)]
    if intervals:
        lines += [f"![Scores with intervals]({intervals})", ""]
    if profiles:
        lines += ["## Performance profiles", ""]
        lines += ["The share of runs that reach a score, every task weighing the same.", ""]
        lines += [f"![Performance profiles]({profiles})", ""]
    if report.improvements:
        what = "lies below" if report.lower_is_better else "scores above"
        lines += ["## Probability of improvement", ""]
        lines += [f"That a run of X {what} a run of Y with other seeds; ties count one half.", ""]
        for title, cells in improvement_tables(report):
            lines += [f"{title}", "", *markdown_table(*cells), ""]
    if published := _published_lines(report):
        lines += ["## Published scores", "", *published]
    if warned := warning_lines(grouping):
        lines += ["## Warnings of runs that are counted", "", *(f"- {line}" for line in warned), ""]
    lines += ["## Runs that are not counted", ""]
    lines += [*markdown_table(*excluded_table(report)), ""] if grouping.excluded else ["None.", ""]
    if report.rows:
        lines += ["## Commands", "", "Presets change with the code; each run's config.yaml says what it ran with.", ""]
        lines += ["```bash", *(command_of(g) for g in grouping.groups), "```", ""]
        lines += ["## Versions", "", *(f"- {line}" for line in version_lines(grouping.groups)), ""]
        lines += ["## How to read it", "", *(f"- {line}" for line in _how_to_read(report)), ""]
    return "\n".join(lines).rstrip() + "\n"


def latex(report: Report) -> str:
    """The content of report.tex: one tabular for all tasks, with the origin of the data above each task's rows.

    It needs ``\\usepackage{booktabs}``.
    """
    lines = [f"% Made {report.made} by: {report.command}", "% Needs \\usepackage{booktabs}."]
    lines += [f"% {line}" for line in _counts(report)]
    tables = [(task, score_table(report, report.of_task(task))) for task in report.grouping.tasks]
    heads = [head for _, (head, _) in tables]
    if not heads:
        return "\n".join([*lines, "% No run is finished.", ""])
    # Tasks differ only in the metric and in a last column (published scores), so one tabular serves all.
    width = max(map(len, heads))
    widest = max(heads, key=len)
    metrics = {row.metric.label for row in report.rows}
    head = [h if len(metrics) == 1 else h.replace(report.rows[0].metric.label, "score") for h in widest]
    columns = 2 + len(report.grouping.keys)
    lines += [rf"\begin{{tabular}}{{{'l' * columns}{'r' * (width - columns)}}}", r"\toprule"]
    lines += [" & ".join(map(escape, head)) + r" \\"]
    for task, (_, body) in tables:
        groups = [g for row in report.of_task(task) for g in row.groups]
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\textbf{{{escape(task.name)}}}}} \\"]
        data = provenance_lines(groups, brief=True)
        lines += [rf"\multicolumn{{{width}}}{{l}}{{\footnotesize {escape(line)}}} \\" for line in data]
        lines += [" & ".join(map(escape, cells + [""] * (width - len(cells)))) + r" \\" for cells in body]
        for note in sorted({row.remark for row in report.of_task(task) if row.remark}):
            lines += [rf"\multicolumn{{{width}}}{{l}}{{\footnotesize * {escape(note)}}} \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape(value: str) -> str:
    """A string with LaTeX's special characters escaped."""
    value = value.replace("\\", r"\textbackslash ")
    for sign in "&%$#_{}":
        value = value.replace(sign, f"\\{sign}")
    return value.replace("±", r"$\pm$").replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")


def report_csv(report: Report) -> str:
    """The content of report.csv: one line for each group, with all digits."""
    lines = []
    for row in report.rows:
        (group,) = row.groups
        first = group.runs[0]
        lines.append(
            {
                "task": group.task.name,
                "env": group.task.env_id,
                "dataset": group.task.dataset,
                "data_source": first.provenance["source"],
                "data_sha256": checksum(first) or "",
                "algo": row.method.algo,
                "variant": row.method.variant,
                **{key: text(value) for key, value in group.settings.items()},
                "metric": row.metric.name,
                "unit": row.metric.unit,
                "n": row.runs,
                "seeds": " ".join(map(str, group.seeds)),
                "mean": row.mean,
                "std": row.std,
                **_interval_columns("mean", row.mean_interval),
                "iqm": row.iqm,
                **_interval_columns("iqm", row.iqm_interval),
                "confidence": report.bootstrap.confidence,
                "evaluations_per_run": " ".join(map(str, sorted({s.evaluations for s in group.scores}))),
                "episodes": group.episodes,
                "published": "; ".join(f"{p.score:g}" for p in row.published),
                "published_spread": "; ".join("" if p.spread is None else f"{p.spread:g}" for p in row.published),
                "published_interval": "; ".join(
                    "" if p.low is None else f"{p.low:g} {p.high:g}" for p in row.published
                ),
                "published_source": "; ".join(f"{p.method}, {p.source}" for p in row.published),
                "remark": row.remark,
            }
        )
    return _csv(lines)


def runs_csv(report: Report) -> str:
    """The content of runs.csv: one line for each run that was found, whether it counts or not."""
    keys = report.grouping.keys
    counted = [
        (run, group, score)
        for group in report.grouping.groups
        for run, score in zip(group.runs, group.scores, strict=True)
    ]
    lines = []
    for run, group, score in [*counted, *((run, None, None) for run in report.grouping.excluded)]:
        lines.append(
            {
                "status": run.status,
                "folder": str(run.path),
                "task": group.task.name if group else run.env_name,
                "algo": run.algo,
                "variant": run.variant,
                **{key: text(run.config[key]) if key in run.config else "" for key in keys},
                "seed": run.seed,
                "metric": score.metric.name if score else "",
                "unit": score.metric.unit if score else "",
                "score": score.value if score else None,
                "evaluations": score.evaluations if score else None,
                "episodes": score.episodes if score else None,
                "updates": run.result.get("updates", run.evaluations[-1]["updates"] if run.evaluations else None),
                "seconds": run.result.get("seconds"),
                "updates_per_second": run.result.get("updates_per_second"),
                "data_source": run.provenance.get("source", ""),
                "data_sha256": checksum(run) or "",
                "reason": run.reason,
                "warnings": "; ".join(run.result.get("warnings", ())),
            }
        )
    return _csv(lines)


def improvement_csv(report: Report) -> str:
    """The content of improvement.csv: one line for each pair of methods."""
    methods = list(report.grouping.methods)
    name = dict(zip(methods, method_labels(methods), strict=True))
    return _csv(
        {
            "x": name[pair.x],
            "y": name[pair.y],
            "tasks": pair.tasks,
            "probability": pair.probability,
            **_interval_columns("probability", pair.interval),
        }
        for pair in report.improvements
    )


def _csv(lines: Iterable[dict[str, Any]]) -> str:
    lines = list(lines)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]) if lines else [], lineterminator="\n")
    if lines:
        writer.writeheader()
        writer.writerows(lines)
    return out.getvalue()


def _interval_columns(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def version_lines(groups: Sequence[Group]) -> list[str]:
    """One line for each package: the versions that the counted runs had."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for group in groups:
        for run in group.runs:
            for package, version in run.result.get("versions", {}).items():
                found[package][str(version)] = None
    return [f"{package} {' and '.join(versions)}" for package, versions in found.items()]


def command_of(group: Group) -> str:
    """The command that repeats a group's runs."""
    fresh = [run for run in group.runs if not any(o.startswith("resume=") for o in run.overrides)]
    if not fresh:
        return f"# resumed; the settings are in {group.runs[0].path / 'config.yaml'}"
    kept = [o for o in fresh[0].overrides if o.partition("=")[0].lstrip("+~") not in ("seed", "run_dir")]
    seeds = ",".join(map(str, group.seeds))
    return shlex.join(["mfrl", "train", *(["-m"] if len(group.seeds) > 1 else []), *kept, f"seed={seeds}"])


def _counts(report: Report) -> list[str]:
    counted = sum(len(group.runs) for group in report.grouping.groups)
    parts = [f"{counted} finished run{'s' * (counted != 1)} counted"]
    for status, name in ((UNFINISHED, "unfinished"), (FAILED, "failed"), (DUPLICATE, "duplicate")):
        if number := sum(run.status == status for run in report.grouping.excluded):
            parts.append(f"{number} {name}, not counted")
    return ["; ".join(parts) + f". Score of a run: {RULE[report.score]}."]


def _overall_notes(report: Report) -> list[str]:
    notes = ["every task weighs the same in the mean; the IQM is taken over all runs of all tasks together"]
    rows = report.overall
    if len(rows) < len(report.grouping.methods):
        notes.append("methods that were run on a single task are left out")
    if len({frozenset(g.task for g in row.groups) for row in rows}) > 1:
        notes.append("**the methods were not run on the same tasks: compare only rows with the same tasks**")
    if any(len({len(g.runs) for g in row.groups}) > 1 for row in rows):
        notes.append("where tasks have different numbers of runs, those with more weigh more in the IQM")
    if len({g.task.env_id for g in report.grouping.groups}) < len({(g.task) for g in report.grouping.groups}):
        notes.append("the same environment appears with different data; these are different tasks here")
    for task in report.grouping.tasks:
        (g,) = [g for g in report.grouping.groups if g.task == task][:1]
        notes.append(f"{task.name}: {provenance_lines([g], brief=True)[0]}")
    return notes


def _footnotes(rows: Sequence[Row]) -> list[str]:
    lines = [f"\\* {note}." for note in sorted({row.remark for row in rows if row.remark})]
    certain = [r for r in rows if r.iqm_interval is not None and r.iqm_interval[0] == r.iqm_interval[1]]
    if certain:
        lines.append("An interval of no width says that all seeds scored alike, not that the score is certain.")
    return [item for line in lines for item in (line, "")]


def _published_lines(report: Report) -> list[str]:
    """A table for each task that scores were published of: those under the protocol of a run here, then the others."""
    tables: dict[tuple[str, str, str], dict[tuple[str, ...], list[Published]]] = {}
    fewest: dict[Published, list[str]] = {}
    for row in [*report.rows, *report.overall]:
        for known in of_task(row.groups):
            differing = list(dict.fromkeys(line for group in row.groups for line in differences(known, group)))
            fewest[known] = min(fewest.get(known, differing), differing, key=len)
    for known, differing in fewest.items():
        table = tables.setdefault((known.what, known.phase, known.unit), {})
        cells = (known.protocol, "; ".join(differing) or "nothing", str(known.seeds or "not said"), known.source)
        table.setdefault(cells, []).append(known)
    lines: list[str] = []
    if tables:
        lines += [
            "A and B are two sets of tasks and settings under similar names (docs/baselines.md). Only scores whose "
            "protocol differs in nothing may be compared with those above.",
            "",
        ]
    for (what, phase, unit), table in tables.items():
        body = []
        same_first = sorted(table.items(), key=lambda item: item[0][1] != "nothing")
        for (protocol, differing_in, seeds, source), members in same_first:
            scores = ", ".join(f"{k.method} {both_phases(k)}" for k in sorted(members, key=lambda k: -k.score))
            body.append([protocol, differing_in, scores, seeds, source])
        head = ["protocol", "differs in", f"{unit}, ± std or [95 % interval]", "seeds", "source"]
        lines += [f"**{what}**, {phase}:", "", *markdown_table(head, body), ""]
    return lines


def _how_to_read(report: Report) -> list[str]:
    b = report.bootstrap
    return [
        "std is the sample standard deviation over seeds (n - 1).",
        "IQM, the interquartile mean, drops the lowest and the highest quarter of the runs (rounded down) and averages "
        "the rest; with fewer than four it is the mean.",
        f"Intervals are {report.percent} percentile intervals of a bootstrap that redraws the seeds within each task "
        f"({b.resamples:,} resamples, seed {b.seed}), after Agarwal et al. 2021. A single seed gets none.",
        "With few seeds such intervals are too narrow: for the mean of normally distributed scores, a 95 % interval "
        "holds the truth in about 50 % of cases with 2 seeds, 75 % with 3, 83 % with 5, 88 % with 8.",
        "Episodes are given as runs x evaluations x episodes. Evaluations of one run use the same episodes' seeds.",
        "Runs of the same settings, data and seed count once: the one whose result.json is newest.",
    ]
