"""`mfrl report RUNS... [--out report]`: make tables, intervals and figures from run folders."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfrl.app.options import Options
from mfrl.report import documents, tables
from mfrl.report.groups import SCORES, group_runs
from mfrl.report.statistics import CONFIDENCE, RESAMPLES
from mfrl.report.summary import Bootstrap, improvements, over_tasks, per_group
from mfrl.report.tables import Report
from mfrl.runs.read import ReportError, find_runs
from mfrl.system.files import replacing, write_text


def report(
    folders: Iterable[str | Path],
    out: str | Path = "report",
    metric: str | None = None,
    score: str | None = None,
    lower_is_better: bool | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    console: Console | None = None,
    command: str | None = None,
) -> Report:
    """Compare the runs in and below folders, write a report, and print its tables.

    The report is report.md, report.csv, runs.csv, improvement.csv, report.tex, curves-<task>.png and intervals.png; of
    several methods with several seeds also profiles.png.

    Args:
        folders: run folders, or folders that contain them.
        out: the folder for the report.
        metric: a number of the evaluations, e.g. ``eval/return``; None takes the first of the normalised score, the
            success, the distance W2 and the return that the runs have.
        score: ``final``, ``last3``, or None for the protocol of each suite.
        lower_is_better: whether the lower of two values of the metric is the better; None takes what is known of the
            metric.
        resamples, confidence: of the bootstrap intervals; ``confidence`` lies between 0 and 1.
        console: where to print; None prints on stdout.
        command: the command line that the report names; None names one with these folders.

    Raises:
        ReportError: there is no run, no finished run has the metric, an argument is out of its range, or the report
            cannot be written.
    """
    folders = list(folders)
    if score not in (None, *SCORES):
        raise ReportError(f"--score {score}: choose {' or '.join(SCORES)}, or leave it to the suite's protocol")
    if resamples < 1 or not 0.0 < confidence < 1.0:
        raise ReportError(f"--resamples {resamples} must be positive and --confidence {confidence} between 0 and 1")
    grouping = group_runs(find_runs(folders), metric, score)
    bootstrap = Bootstrap(resamples, confidence)
    if lower_is_better is None:
        lower_is_better = {g.metric.lower_is_better for g in grouping.groups} == {True}
    made = Report(
        grouping=grouping,
        rows=per_group(grouping, bootstrap),
        overall=over_tasks(grouping, bootstrap),
        improvements=improvements(grouping, bootstrap, lower_is_better),
        bootstrap=bootstrap,
        score=score,
        lower_is_better=lower_is_better,
        command=command or shlex.join(["mfrl", "report", *map(str, folders)]),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    out = Path(out).expanduser()
    write(made, out)
    show(made, out, console or Console())
    return made


def write(made: Report, out: Path) -> None:
    """Write all files of a report. No file is left half-written.

    Raises:
        ReportError: the folder cannot be made or written to.
    """
    from mfrl.report import figures  # imported late: matplotlib is slow, and a report that is refused has no figures

    drawn, curves = {}, {}
    for task in made.grouping.tasks:
        curves[task] = f"curves-{task.slug}.png"
        groups = [group for group in made.grouping.groups if group.task == task]
        drawn[curves[task]] = figures.learning_curves(groups, made.bootstrap)
    intervals = "intervals.png" if made.rows else None
    if intervals:
        drawn[intervals] = figures.score_intervals(made.overall or made.rows, len(made.grouping.tasks), made.bootstrap)
    profiled = made.profiled
    profiles = "profiles.png" if profiled else None
    if profiles:
        drawn[profiles] = figures.performance_profiles(profiled, made.bootstrap, made.lower_is_better)
    texts = {
        "report.md": documents.markdown(made, curves, intervals, profiles),
        "report.csv": documents.report_csv(made),
        "runs.csv": documents.runs_csv(made),
        "improvement.csv": documents.improvement_csv(made),
        "report.tex": documents.latex(made),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            with replacing(out / name) as temporary:
                figure.savefig(temporary, format="png")
        for name, text in texts.items():
            write_text(out / name, text)
    except OSError as error:
        raise ReportError(f"the report cannot be written to {out}: {error}") from error


def show(made: Report, out: Path, console: Console) -> None:
    """Print the scores on each task with their data, the scores over tasks, and the runs that do not count."""
    for task in made.grouping.tasks:
        rows = made.of_task(task)
        provenance = tables.provenance_lines([g for row in rows for g in row.groups], brief=True)[0]
        notes = sorted({f"* {row.remark}" for row in rows if row.remark})
        _print(
            console,
            tables.narrow_table(made, rows),
            f"[bold]{escape(task.name)}[/]\n{escape(provenance)}",
            "\n".join(notes),
        )
        if unsteady := tables.unsteady_lines(rows):
            console.print(f"[bold yellow]{tables.DEPENDS_ON_WHEN}[/]", highlight=False, soft_wrap=True)
            console.print(*map(escape, unsteady), sep="\n", highlight=False, soft_wrap=True)
    if made.overall:
        _print(console, tables.overall_table(made, narrow=True), "[bold]over tasks[/]")
    if not made.rows:
        listed = f"the report lists {len(made.grouping.excluded)}, with what each lacks"
        console.print(f"[bold]no run is finished, so there is nothing to average[/]; {listed}", soft_wrap=True)
    for line in tables.warning_lines(made.grouping):
        console.print(f"[bold red]warning[/] {escape(line)}", highlight=False, soft_wrap=True)
    for run in made.grouping.excluded:
        line = f"[yellow]{run.status}[/] {escape(f'{run.path} (seed {run.seed}): {run.reason}')}"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"report → {out / 'report.md'}", highlight=False, soft_wrap=True)


def _print(console: Console, cells: tables.Cells, title: str, caption: str = "") -> None:
    head, body = cells
    table = Table(
        title=title,
        title_style="none",
        title_justify="left",
        caption=caption or None,
        caption_style="none",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, name in enumerate(head):
        table.add_column(escape(name), no_wrap=number > 0, overflow="fold", min_width=0 if number else 17)
    for line in body:
        table.add_row(*map(escape, line))
    console.print(table, highlight=False)


def main(argv: Sequence[str]) -> Report:
    """Run the command; ``argv`` is what follows ``mfrl report``.

    Raises:
        ReportError: see :func:`report`.
    """
    parser = Options("mfrl report", __doc__ or "")
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders they lie below")
    parser.add_argument("--out", default="report", help="folder for tables and figures (default: report)")
    parser.add_argument("--metric", help="e.g. eval/return (default: normalized_score, success, w2 or return)")
    parser.add_argument("--score", choices=list(SCORES), help="evaluations a score is made of (default: the protocol)")
    parser.add_argument(
        "--lower-is-better", action="store_true", default=None, help="of the metric (default: as known of it)"
    )
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap (default: {RESAMPLES})")
    parser.add_argument("--confidence", type=float, default=CONFIDENCE, help=f"of intervals (default: {CONFIDENCE})")
    given = parser.parsed(argv)
    return report(
        given.runs,
        out=given.out,
        metric=given.metric,
        score=given.score,
        lower_is_better=given.lower_is_better,
        resamples=given.resamples,
        confidence=given.confidence,
        command=shlex.join(["mfrl", "report", *argv]),
    )
