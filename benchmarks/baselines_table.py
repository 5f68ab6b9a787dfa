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
from mfrl.report.groups import Grouping, group_runs, known_metric
from mfrl.report.statistics import Interval
from mfrl.report.summary import Bootstrap, Row, improvements, per_group
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
    return Run(
        Path(line["folder"]),
        FINISHED,
        config={"algo_name": line["algo"], "variant.name": line["variant"], "seed": int(line["seed"]), **tuned},
        result={"env": line["task"], "dataset": line["task"], "updates": updates},
        provenance={"source": line["data_source"], "files": {f"{line['task']}.npz": {"sha256": line["data_sha256"]}}},
        evaluations=[evaluation],
    )


def markdown(rows: list[Row], grouping: Grouping, bootstrap: Bootstrap) -> str:
    """Best mean first; then how probably a run of the best method scores above one of another."""

    def between(interval: Interval | None, digits: str) -> str:
        return f"[{', '.join(format(end, digits) for end in interval)}]" if interval else "-"

    lines = ["| method | tuned | mean ± deviation | IQM [95 %] |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        name = f"`{row.method.algo}`" + (f", {row.method.variant}" if row.method.variant != "-" else "")
        value = row.groups[0].runs[0].path.name.rpartition("-")[0]  # baselines.py calls a run's folder VALUE-SEED
        iqm = f"{row.iqm:.1f} {between(row.iqm_interval, '.1f')}"
        lines.append(f"| {name} | {value.removesuffix('.0') or '-'} | {row.mean:.1f} ± {row.std or 0:.1f} | {iqm} |")
    best = rows[0].method
    for pair in improvements(grouping, bootstrap):
        if best in (pair.x, pair.y):
            first, p, ends = pair.x == best, pair.probability, pair.interval
            p, ends = (p, ends) if first else (1 - p, ends and (1 - ends[1], 1 - ends[0]))
            other = pair.y if first else pair.x
            lines.append(
                f"P({best.algo} {best.variant} > {other.algo} {other.variant}) = {p:.2f} {between(ends, '.2f')}"
            )
    return "\n".join(lines)


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
    print(markdown(rows, grouping, bootstrap))
    if given.out:
        score_intervals(rows, 1, bootstrap).savefig(f"{given.out}-intervals.png")
        performance_profiles(rows, bootstrap, lower_is_better=False).savefig(f"{given.out}-profiles.png")


if __name__ == "__main__":
    main()
