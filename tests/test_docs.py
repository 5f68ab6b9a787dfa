"""The pages for readers: every command composes, every link leads somewhere, every file that is named exists."""

from __future__ import annotations

import re
import shlex

import pytest
from pages import DOCS

from mfrl.app.cli import COMMANDS
from mfrl.app.overrides import expand_seeds
from mfrl.app.refusals import check_overrides

ROOT = DOCS.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in DOCS.glob("*.md"))]


def commands(page: str) -> list[list[str]]:
    """The arguments of every ``mfrl`` in a bash block, comments and continued lines taken into account."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[words.index("mfrl") + 1 :] for words in split if "mfrl" in words[:2]]


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/plugin.md"])  # its names are of its package
def test_every_command_of_a_page_composes(page: str) -> None:
    for command, *arguments in commands(page):
        if command not in COMMANDS or "--config-dir" in arguments or "resume=" in " ".join(arguments):
            continue
        given = expand_seeds([command, *arguments])[1:]
        overrides = [argument for argument in given if not argument.startswith("-") and argument != "job"]
        overrides = [f"++{o}" if o.startswith("collect") else o for o in overrides]
        check_overrides(command, [o for o in overrides if "..." not in o and "$" not in o])


def test_the_pages_do_have_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not ((ROOT / page).parent / link).exists()] == []
    own = re.findall(r"(?<![\w/-])((?:tests|src|conf|benchmarks|notebooks)/[\w./-]*\w)(?![\w*{<])", text)
    assert [path for path in own if not (ROOT / path).exists() and "METHOD" not in path] == []  # a name of the reader's


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_that_a_page_selects_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"-k (\w+)", text):
        assert re.search(rf"def test_\w*{name}", sources), name


def test_readme_is_short_and_says_what_is_offered() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1300
    for name in ("train", "eval", "collect", "download", "tasks", "report"):
        assert re.search(rf"\b{name}\b", text)
    assert text.count("![") == 1
