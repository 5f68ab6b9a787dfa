"""The table and the figures of docs/baselines.md, of runs that were trained at several times or on several machines.

    python benchmarks/baselines_table.py benchmarks/results/baselines/pointmaze-runs.csv --out pointmaze

reads each `runs.csv` that `mfrl report` wrote, so that a comparison of many hours goes on where its run folders are no
longer, and writes NAME-intervals.png and NAME-profiles.png. All runs have to be of one task, data, number of updates
and metric.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from mfrl.report.figures import performance_profiles, score_intervals
from mfrl.report.groups import group_runs, known_metric, method_labels
from mfrl.report.summary import Bootstrap, improvements, per_group
from mfrl.report.tables import Report, improvement_tables, iqm_and_interval, markdown_table, mean_and_std
from mfrl.runs.read import FINISHED, Run

SAME = ("task", "metric", "evaluations", "episodes", "updates", "data_source", "data_sha256")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [line for line in csv.DictReader(file) if line["status"] == FINISHED]


def run_of(line: dict[str, str]) -> Run:
    """What a report needs to know of a finished run, out of its line."""
    metric, updates = known_metric(line["metric"]), int(line["updates"])
    tuned = {key: float(value) for key, value in line.items() if key.startswith("algo.") and value}
    evaluation = {
        "updates": updates,
        "episodes": int(line["episodes"]),
        metric.name: float(line["score"]) / metric.factor,
    }
    config = {"algo_name": line["algo"], "variant.name": line["variant"], "seed": int(line["seed"]), "updates": updates}
    return Run(
        Path(line["folder"]),
        FINISHED,
        config=config | tuned,
        result={"env": line["task"], "dataset": line["task"], "updates": updates},
        provenance={"source": line["data_source"], "files": {f"{line['task']}.npz": {"sha256": line["data_sha256"]}}},
        evaluations=[evaluation],
    )


def markdown(report: Report) -> list[str]:
    """The methods, the best mean first; then how probably a run of the best scores above one of another."""
    body = []
    for row, name in zip(report.rows, method_labels([row.method for row in report.rows]), strict=True):
        value = row.groups[0].runs[0].path.name.rpartition("-")[0]  # baselines.py calls a run's folder VALUE-SEED
        body.append([name, value.removesuffix(".0") or "-", mean_and_std(row), iqm_and_interval(row)])
    lines = markdown_table(["method", "tuned", "mean ± deviation", f"IQM [{report.percent}]"], body)
    for _, (head, cells) in improvement_tables(report):
        lines += ["", *markdown_table(head, cells)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="runs.csv of mfrl report")
    parser.add_argument("--out", help="the figures' names begin with it")
    given = parser.parse_args()
    lines = [line for path in given.runs for line in read(path)]
    for column in SAME:
        if len(found := {line[column] for line in lines}) > 1:
            raise SystemExit(f"these runs cannot be compared: {column} is {' and '.join(sorted(found))}")
    grouping, bootstrap = group_runs([run_of(line) for line in lines], score="final"), Bootstrap()
    rows = sorted(per_group(grouping, bootstrap), key=lambda row: -row.mean)
    pairs = improvements(grouping, bootstrap)
    print("\n".join(markdown(Report(grouping, rows, [], pairs, bootstrap, "final", False, "", ""))))
    if given.out:
        score_intervals(rows, 1, bootstrap).savefig(f"{given.out}-intervals.png")
        performance_profiles(rows, bootstrap, lower_is_better=False).savefig(f"{given.out}-profiles.png")


if __name__ == "__main__":
    main()
