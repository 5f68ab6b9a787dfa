"""Draws the scores of the study's runs, kept in results/reformulations/*.csv, as docs/reformulations.md shows them.

python benchmarks/study_scores.py        # writes docs/images/*_scores.png
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from mfrl.report.figures import score_intervals
from mfrl.report.groups import Group, Method, Score, Task, known_metric
from mfrl.report.summary import Bootstrap, summarise
from mfrl.runs.read import FINISHED, Run

HERE = Path(__file__).parent
FIGURES = {"toy-grid": "toy", "toy-eight_gaussians": "toy8", "pointmaze-medium-navigate": "navigate"}


def groups(path: Path) -> list[Group]:
    """The runs of a report's ``runs.csv``, those that differ in their seed together; searches on one seed left out."""
    members = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            members[row["task"], row["algo"], row["variant"], row.get("algo.alpha")].append(row)
    found = []
    for (task, algo, variant, alpha), rows in members.items():
        if len(rows) > 1:
            settings = {"algo.alpha": float(alpha)} if alpha else {}
            runs = [
                Run(
                    Path(row["folder"]),
                    FINISHED,
                    config={"seed": int(row["seed"])},
                    provenance={"source": row["data_source"]},
                )
                for row in rows
            ]
            scores = [
                Score(known_metric(row["metric"]), float(row["score"]), int(row["evaluations"]), int(row["episodes"]))
                for row in rows
            ]
            found.append(Group(Task(task, task, task, task), Method(algo, variant), settings, runs, scores))
    return found


def main() -> None:
    for results, figure in FIGURES.items():
        rows = [summarise([group], Bootstrap()) for group in groups(HERE / "results/reformulations" / f"{results}.csv")]
        best_first = sorted(rows, key=lambda row: row.mean if row.metric.lower_is_better else -row.mean)
        image = HERE.parent / "docs/images" / f"{figure}_scores.png"
        score_intervals(best_first, 1, Bootstrap()).savefig(image, format="png")
        print(image.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
