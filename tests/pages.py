"""Run the code blocks of a page in docs/ as a reader would: in order, in one shell, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """The blocks of a page's text, in order: the file that a block becomes, empty for bash, and its own text."""
    for language, text in re.findall(r"^```(bash|python|yaml|toml)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
        names = [] if language == "bash" else re.findall(r"^# (\S+\.(?:py|yaml|toml))$", text, flags=re.MULTILINE)
        yield (names[0] if language != "bash" else ""), text


def write(name: str, text: str, folder: Path) -> None:
    """Write the file that a block becomes."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def run_page(page_name: str, folder: Path, smaller: dict[str, str] | None = None, section: str = "") -> str:
    """Run every block of a page, or of one of its sections, and return what they printed.

    A block of Python, YAML or TOML that names a file in a comment at its head becomes that file. Python files are run,
    but for those in subfolders. Blocks of bash run as they are.

    Args:
        page_name: of the file in docs/.
        smaller: what to replace in all blocks, so that a run takes a moment; each key must occur in the page.
        section: the heading of the section; empty for the whole page.
    """
    page, smaller = (DOCS / page_name).read_text(encoding="utf-8"), smaller or {}
    assert [old for old in smaller if old not in page] == []
    if section:
        page = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    script = ["set -e"]
    for name, text in blocks(page):
        for old, new in smaller.items():
            text = text.replace(old, new)
        if name:
            write(name, text, folder)
        if not name:
            script.append(text)
        elif name.endswith(".py") and "/" not in name:
            script.append(f"{sys.executable} -W ignore {name}")
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": search, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
