"""docs/architecture.md does what it says: its examples are complete, and its rooms are those of the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pages import DOCS, run_page

import mfrl

PAGE = (DOCS / "architecture.md").read_text(encoding="utf-8")


def test_the_examples_run_as_they_stand_at_a_small_size(tmp_path: Path) -> None:
    smaller = {
        "updates=600 eval.every=600": "updates=6 eval.every=6",
        "eval.episodes=5": "eval.episodes=1",
        "episodes=20": "episodes=2",
    }
    said = run_page("architecture.md", tmp_path, smaller)
    results = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json")}
    assert {name: (result["algo"], result["variant"]) for name, result in results.items()} == {
        "half": ("meanflow_bc", "half"),
        "half_by_name": ("meanflow_bc", "half"),
        "mean_bc": ("mean_bc", "none"),
        "pendulum": ("meanflowql", "residual"),
        "maze": ("meanflowql", "residual"),
    }
    assert results["half"]["final"] == results["half_by_name"]["final"]
    assert "pointmaze-medium-explore" in said
    assert "mean_bc" in (tmp_path / "report" / "report.md").read_text()


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
