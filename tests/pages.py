"""Run the code blocks of a page in docs/ as a reader would: in order, in one shell, in an empty folder.

The shell's `mfrl` is a forked command of `processes`: importing everything anew takes most of a short run's time.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiny import mfrl

DOCS = Path(__file__).parents[1] / "docs"

#: What the shell calls: it hands the command to the tests' process, and says and returns what that one made of it.
ASK = """
import json, os, socket, sys
address, *arguments = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(address)
    connection.sendall(json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    status, stdout, stderr = json.loads(connection.makefile().read())
sys.stdout.write(stdout)
sys.stderr.write(stderr)
sys.exit(status)
"""


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        arguments, cwd, environment = json.loads(self.rfile.readline())
        done = mfrl(*arguments, cwd=Path(cwd), env=environment, timeout=600.0)
        self.wfile.write(json.dumps([done.returncode, done.stdout, done.stderr]).encode())


@contextmanager
def mfrl_in_the_shell() -> Iterator[str]:
    """The definition of a function of the shell's, which works meanwhile."""
    with tempfile.TemporaryDirectory(prefix="mfrl-") as folder:
        address = f"{folder}/commands"
        with socketserver.UnixStreamServer(address, _Answer) as server:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            yield f'mfrl() {{ {shlex.join([sys.executable, "-IS", "-c", ASK, address])} "$@"; }}'
            server.shutdown()


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
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with mfrl_in_the_shell() as function:
        command = ["bash", "-c", "\n".join([function, *script])]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
