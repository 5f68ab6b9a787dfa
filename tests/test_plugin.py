"""docs/plugin.md is a complete package: once it is there, its names are like mfrl's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from pages import DOCS, blocks, run_page, write
from tiny import ENVIRONMENT, program

PIP = f"{sys.executable} -m pip install --quiet --no-index --no-deps --no-build-isolation --target site"
SMALLER = {
    "pip install --no-deps ./reach      # mfrl is installed already": f"{PIP} ./reach",
    "online.steps=4000": "online.steps=40",
    "updates=2000": "updates=40",
    "eval.every=1000": "eval.every=20",
    "episodes=100": "episodes=5",
    "episodes=50": "episodes=5",
}


def test_names_of_a_package_are_chosen_and_suggested_like_those_of_mfrl(tmp_path: Path) -> None:
    for name, text in blocks((DOCS / "plugin.md").read_text(encoding="utf-8")):
        if name:
            write(name, text, tmp_path)
    installed = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "reach" / "src"), *sys.path])}
    done = program("train", "env=reach/online", "network=residual", "algo=sac", "--cfg", "job", env=installed)
    assert "gym_id: reach:Reach-v0" in done.stdout, done.stderr
    assert "_target_: reach.networks.Residual" in done.stdout
    mistyped = {"algo=median": "median_bc", "env=reach/onlin": "reach/online", "network=residul": "residual"}
    for wrong, near in mistyped.items():
        done = program("train", wrong, env=installed)
        assert done.returncode != 0
        assert near in done.stderr


@pytest.mark.slow
def test_the_package_is_installed_trained_in_collected_from_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *sys.path]))
    run_page("plugin.md", tmp_path, SMALLER)
    assert (tmp_path / "datasets" / "reach" / "logged-v0").is_dir()
    for run in ("sac", "residual", "median_bc"):
        assert (tmp_path / "runs" / run / "result.json").is_file()
    assert [*(tmp_path / "runs" / "residual").rglob("evaluation-*.json")]
