"""Run the code blocks of a page in docs/ as a reader would: in order, in one shell, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def run_page(page_name: str, folder: Path, smaller: dict[str, str] | None = None, section: str = "") -> str:
    """Run every block of a page, or of one of its sections, and return what they printed.

    A block of Python or YAML that names a file in a comment at its head becomes that file, and Python files are run.
    Blocks of bash run as they are.

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
    for language, block in re.findall(r"^```(bash|python|yaml)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
        text = block
        for old, new in smaller.items():
            text = text.replace(old, new)
        if language == "bash":
            script.append(text)
            continue
        (name, *_) = re.findall(r"^# (\S+\.(?:py|yaml))$", text, flags=re.MULTILINE)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if language == "python":
            script.append(f"{sys.executable} -W ignore {path.name}")
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": search, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
