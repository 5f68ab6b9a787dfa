"""The notebooks run from top to bottom on small runs, and are committed with outputs that belong to no machine."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from omegaconf import OmegaConf

from app.test_train import run as run_in_the_maze
from mfrl.app import notebook
from mfrl.app.notebook import Table
from mfrl.errors import ConfigError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = [path.name for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


@pytest.fixture(scope="module")
def kernel() -> Iterator[NotebookClient]:
    """One that runs all notebooks: importing everything takes longer than most of them."""
    client = NotebookClient(new_notebook(), timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}})
    with client.setup_kernel():
        yield client


def execute(name: str, kernel: NotebookClient, **environment: str | Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of now; an exception in a cell is one here. It finds no names of one before it."""
    loaded = nbformat.read(NOTEBOOKS / name, as_version=4)
    given = {"OMP_NUM_THREADS": "1"} | {key: str(value) for key, value in environment.items()}
    first = f"""
        import os
        for key in ("MFRL_RUN", "MFRL_SWEEP", "MFRL_OUT", "MFRL_UPDATES"):
            os.environ.pop(key, None)
        os.environ.update({given})
        %reset -f
    """
    kernel.nb = loaded
    kernel.execute_cell(new_code_cell(dedent(first)), 0)
    for index, cell in enumerate(loaded.cells):
        kernel.execute_cell(cell, index)
    return loaded


def outputs(executed: nbformat.NotebookNode) -> list[dict]:
    return [out for cell in executed.cells for out in cell.get("outputs", [])]


def shown(executed: nbformat.NotebookNode, kind: str) -> list[str]:
    return [out["data"][kind] for out in outputs(executed) if kind in out.get("data", {})]


def printed(executed: nbformat.NotebookNode) -> str:
    assert not [out for out in outputs(executed) if out.get("name") == "stderr"], "warnings, or worse"
    return "".join(out["text"] for out in outputs(executed) if out.output_type == "stream")


# ---- as they are committed


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_ships_with_outputs_of_no_particular_machine(name: str) -> None:
    loaded = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(loaded)
    assert all(cell.outputs for cell in loaded.cells if cell.cell_type == "code"), "committed without outputs"
    assert not [out for out in outputs(loaded) if out.output_type == "error"]
    printed(loaded)
    texts = [str(v) for out in outputs(loaded) for k, v in out.get("data", {}).items() if k != "image/png"]
    said = "\n".join([printed(loaded), *texts])
    assert not re.findall(r"""(?:^|[\s'"(=])(/[\w.-]+(?:/[\w.-]+)+)""", said), "absolute paths"


# ---- as they run


@pytest.fixture(scope="module")
def maze_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the simulator, a short one."""
    path = tmp_path_factory.mktemp("maze") / "run"
    run_in_the_maze(data_dir, path, "updates=6", "eval.every=6", "eval.episodes=1")
    return path


def test_the_first_look_shows_a_run(maze_run: Path, kernel: NotebookClient) -> None:
    executed = execute("first_look.ipynb", kernel, MFRL_RUN=maze_run)
    assert len(shown(executed, "image/png")) == 4


@pytest.mark.slow
def test_an_online_run_is_shown_before_and_after(
    data_dir: Path, tmp_path: Path, kernel: NotebookClient, short_episodes: None
) -> None:
    path = tmp_path / "run"
    run_in_the_maze(data_dir, path, "updates=6", "online.steps=30", "eval.every=6", "eval.episodes=1")
    executed = execute("online.ipynb", kernel, MFRL_RUN=path)
    assert "6 updates on the data, then 30 steps in the environment" in printed(executed)
    assert len(shown(executed, "image/png")) == 5
    before_and_after, episodes = shown(executed, "text/markdown")
    assert "| success | 0 | 0 |" in before_and_after
    assert "first ten" in episodes


@pytest.mark.slow
def test_the_reformulations_are_trained_and_drawn(tmp_path: Path, kernel: NotebookClient) -> None:
    executed = execute("reformulations.ipynb", kernel, MFRL_UPDATES="10", MFRL_OUT=tmp_path)
    assert len(shown(executed, "image/png")) == 8
    assert "cannot be recovered" in printed(executed)
    coefficients, first = shown(executed, "text/markdown")
    assert "| endpoint | [1.0] | [0.0, -1.0] | [0.0] | True |" in coefficients
    assert "| velocity | 53% | 85% |" in first
    assert "| residual | 0% | 0% |" in first
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    assert {result["variant"] for result in results} >= {"residual", "velocity", "endpoint", "noise_residual"}
    assert all(result["updates"] == 10 for result in results)


def test_a_sweep_is_made_where_none_is_given(tmp_path: Path, kernel: NotebookClient) -> None:
    executed = execute("read_a_sweep.ipynb", kernel, MFRL_UPDATES="10", MFRL_OUT=tmp_path)
    assert len(shown(executed, "image/png")) == 2
    said = printed(executed)
    assert "generated" in said  # the data's provenance
    assert r"\toprule" in said
    tables = shown(executed, "text/markdown")
    assert any("w2" in table and "IQM" in table and "| noise_residual | 3 (0-2) |" in table for table in tables)
    assert any("P(X < Y)" in table for table in tables)


def test_a_sweep_is_read_with_what_is_missing(maze_run: Path, tmp_path: Path, kernel: NotebookClient) -> None:
    sweep = tmp_path / "sweep"
    # One run under several names: what is read are files, which differ in nothing else.
    for variant, seed in (("residual", 0), ("residual", 1), ("velocity", 0), ("velocity", 1), ("endpoint", 0)):
        copy = shutil.copytree(maze_run, sweep / variant / f"seed{seed}")
        config, result = OmegaConf.load(copy / "config.yaml"), json.loads((copy / "result.json").read_text())
        config.seed, config.variant.name = seed, variant
        OmegaConf.save(config, copy / "config.yaml")
        (copy / "result.json").write_text(json.dumps(result | {"seed": seed, "variant": variant}))
    (sweep / "endpoint" / "seed0" / "result.json").unlink()
    executed = execute("read_a_sweep.ipynb", kernel, MFRL_SWEEP=sweep, MFRL_OUT=tmp_path / "out")
    missing, scores, *others = shown(executed, "text/markdown")
    assert "| unfinished | endpoint/seed0 | pointmaze-medium-explore | 0 | no result.json" in missing
    assert missing.count("\n") == 2, "it alone"
    assert "residual" in scores
    assert "velocity" in scores
    assert "endpoint" not in scores
    assert any("success (%)" in table and "| 2 (0-1) |" in table for table in others)
    assert any("P(X > Y)" in table for table in others)
    assert len(shown(executed, "image/png")) == 2


# ---- what they call


def test_run_trains_in_silence_and_leaves_a_finished_run_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ["experiment=toy", "network.actor.hidden=[16]", "data.size=500", "data.val_size=100", "updates=8"]
    settings += ["eval.every=8", "eval.samples=16", "checkpoint.every=8", f"run_dir={tmp_path / 'run'}"]
    path = notebook.run(*settings, "existing=continue")
    assert path == tmp_path / "run"
    assert json.loads((path / "result.json").read_text())["updates"] == 8
    written = (path / "result.json").stat().st_mtime_ns
    assert notebook.run(*settings, "existing=continue") == path
    assert (path / "result.json").stat().st_mtime_ns == written
    assert notebook.run(*settings).name == "run-2"
    assert capfd.readouterr().err == ""
    with pytest.raises(ConfigError, match="did you mean updates"):
        notebook.run("experiment=toy", "updatse=16")


def test_a_table_is_markdown_in_a_notebook_and_columns_elsewhere() -> None:
    table = Table(["name", "x"], [["a|b", 1.5], ["long name", None]])
    assert table._repr_markdown_() == "| name | x |\n| --- | --- |\n| a\\|b | 1.5 |\n| long name | None |"
    assert repr(table) == "name       x\na|b        1.5\nlong name  None"
