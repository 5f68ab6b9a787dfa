"""The rules for imports hold, and would notice: the contract of pyproject.toml, and packages that re-export nothing."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.relative_to(ROOT / "src") for path in (ROOT / "src/mfrl").rglob("__init__.py"))
SOURCES = os.environ | {"PYTHONPATH": str(ROOT / "src")}
IMPORTS_OF_TYPES = ("from __future__", "from typing import TYPE_CHECKING", "if TYPE_CHECKING:")


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_packages_re_export_nothing(package: Path) -> None:
    tree = ast.parse((ROOT / "src" / package).read_text())
    statements = tree.body[1:] if ast.get_docstring(tree) else tree.body
    if package == Path("mfrl/__init__.py"):  # the one name that users import from the root
        statements = [node for node in statements if not (isinstance(node, ast.FunctionDef) and node.name == "load")]
        statements = [node for node in statements if not ast.unparse(node).startswith(IMPORTS_OF_TYPES)]
    others = [node for node in statements if ast.unparse(node).partition(" = ")[0] != "__version__"]
    assert not others, f"{package} holds more than a docstring: {ast.unparse(others[0])}"


def test_importing_mfrl_imports_nothing_but_pythons_own() -> None:
    script = "import sys, mfrl; print({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'__main__'})"
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True, env=SOURCES)
    assert done.stdout.strip() == "{'mfrl'}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The package and its contract, to be spoilt."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(checkout: Path) -> tuple[int, str]:
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", script, "--no-logo", "--no-cache"]
    path = os.pathsep.join([str(checkout / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=checkout, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("data/batch.py", "from mfrl.app import cli", "mfrl.data.batch -> mfrl.app.cli"),
        ("networks/mlp.py", "from mfrl.q_learning import q_loss", "mfrl.networks.mlp -> mfrl.q_learning"),
        ("algorithms/base.py", "import lightning", "mfrl.algorithms.base -> lightning"),
        ("runs/read.py", "import torch", "mfrl.runs.read -> torch"),
    ],
)
def test_the_contract_notices_an_import_that_points_up_even_inside_a_function(
    checkout: Path, module: str, line: str, found: str
) -> None:
    with (checkout / "src/mfrl" / module).open("a") as file:
        file.write(f"\n\ndef planted():\n    {line}\n")
    status, said = lint(checkout)
    assert status == 1
    assert found in said


def test_the_contract_holds_and_wants_every_new_room_to_be_put_on_a_floor(checkout: Path) -> None:
    status, said = lint(checkout)
    assert status == 0, said
    (checkout / "src/mfrl/attic.py").write_text("")
    status, said = lint(checkout)
    assert status == 1
    assert "attic" in said
