"""docs/architecture.md does what it says: its examples are complete, and its rooms are those of the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pages import DOCS, run_page
from tiny import WITHOUT_FIGURES

import mfrl

PAGE = (DOCS / "architecture.md").read_text(encoding="utf-8")


SMALLER = {
    "updates=600 eval.every=600": "updates=6 eval.every=6",
    "experiment=toy": f"experiment=toy eval.samples=16 {WITHOUT_FIGURES}",
    "eval.episodes=5": "eval.episodes=1",
    "episodes=20": "episodes=2",
}


def results(folder: Path) -> dict[str, dict]:
    """What the runs of a section left, by their names."""
    return {path.parent.name: json.loads(path.read_text()) for path in (folder / "runs").glob("*/result.json")}


def test_a_variant_of_ones_own_is_three_polynomials_on_the_command_line_or_in_a_file(tmp_path: Path) -> None:
    run_page("architecture.md", tmp_path, SMALLER, "Add a variant")
    found = results(tmp_path)
    assert {name: result["variant"] for name, result in found.items()} == {"half": "half", "half_by_name": "half"}
    assert found["half"]["final"] == found["half_by_name"]["final"]


def test_an_algorithm_of_ones_own_is_trained_evaluated_and_reported(tmp_path: Path) -> None:
    run_page("architecture.md", tmp_path, SMALLER, "Add an algorithm")
    assert results(tmp_path)["noisy_bc"]["algo"] == "noisy_bc"
    assert "noisy_bc" in (tmp_path / "report" / "report.md").read_text()


def test_a_logger_of_lightnings_has_what_metrics_csv_has(tmp_path: Path) -> None:
    run_page("architecture.md", tmp_path, SMALLER, "Add a callback or a logger")
    folder = tmp_path / "runs" / "with_table"
    columns = (folder / "table" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {*(folder / "metrics.csv").read_text().splitlines()[0].split(",")} - {"updates"} == {*columns} - {"step"}


@pytest.mark.slow
def test_an_environment_of_gymnasium_and_one_of_ogbench_are_trained_in(tmp_path: Path) -> None:
    said = run_page("architecture.md", tmp_path, SMALLER, "Add an environment")
    found = results(tmp_path)
    assert {name: "eval/return" in result["final"] for name, result in found.items()} == {
        "pendulum": True,
        "maze": True,
    }
    assert "pointmaze-medium-explore" in said


def test_every_room_of_the_package_is_described() -> None:
    folder = Path(mfrl.__file__).parent
    rooms = {f"{path.name}/" for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"}
    rooms |= {path.name for path in folder.glob("*.py") if not path.name.startswith("__")}
    table = PAGE.partition("## The rooms")[2].partition("\n## ")[0]
    named = [
        name
        for line in table.splitlines()
        if line.startswith("| ")
        for name in re.findall(r"`([^`]+)`", line.split("|")[2])
    ]
    assert sorted(named) == sorted(rooms)


def test_every_module_that_the_page_names_exists() -> None:
    root = Path(mfrl.__file__).parent
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", PAGE))
    assert len(named) > 10
    assert [name for name in named if not ((root / name).is_file() or ("/" not in name and [*root.rglob(name)]))] == []
