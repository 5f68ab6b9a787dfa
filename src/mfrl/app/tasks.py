"""`mfrl tasks [NAME...]`: what can be trained on by name, and whether its data are here.

The benchmark is the 73 tasks of arXiv 2511.13035: OGBench's states (ten datasets with five tasks each) and images, and
D4RL's antmaze and Adroit. Neither torch nor a simulator is imported: sizes and default tasks are written down here, and
the tests compare them with the environments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfrl.app import presets
from mfrl.catalogue import (
    Task,
    TasksError,
    _task,
    benchmark,
    environments,
    others,
    spelled,
)
from mfrl.data.present import Data, find
from mfrl.errors import did_you_mean

_FEW = 4  # commands that are written out
_WIDE = 170  # characters that a table of all columns may take


def choose(names: Iterable[str], every: bool = False) -> list[Task]:
    """The tasks of these names, or of these datasets; without names the benchmark, and with ``every`` all others too.

    Raises:
        TasksError: there is none, with near names.
    """
    names, known = list(names), benchmark() + others()
    if not names:
        return known if every else benchmark()
    chosen: list[Task] = []
    for name in names:
        overrides = spelled(name)
        wanted = {name, overrides}
        found = [t for t in known if wanted & {t.name, t.env, t.env.partition("/")[2], t.overrides, f"env={t.env}"}]
        if not found and overrides and overrides.startswith("env=ogbench/"):  # a task that the benchmark leaves out
            env, number = overrides.removeprefix("env=").split(" env.task=")
            found = [_task(env, int(number), None)]
        if not found:
            possible = sorted({t.name for t in known} | {t.env.partition("/")[2] for t in known})
            raise TasksError(f"there is no task or dataset {name!r}{did_you_mean(name, possible)}")
        chosen += [task for task in found if task not in chosen]
    return chosen


def find_data(env: str, data_dir: str | None = None, verify: bool = False) -> Data:
    """What of a dataset is on this machine.

    Args:
        env: a choice of ``env=``.
        data_dir, verify: see :func:`mfrl.data.present.find`.
    """
    return find(environments()[env], env.partition("/")[0], data_dir, verify)


def describe(task: Task, data: Data) -> dict[str, Any]:
    """A task and its data, for JSON."""
    return {
        "task": task.name,
        "suite": task.suite,
        "overrides": task.overrides,
        "default_task": task.default,
        "observation": list(task.observation),
        "action": task.action,
        "updates": task.updates,
        "presets": [f"{method}/{task.name}" for method in presets.methods(task.name)],
        "data": asdict(data),
    }


def show(rows: Sequence[tuple[Task, Data]], console: Console) -> None:
    """The table, and under it how to read it."""
    if not console.is_terminal:
        console.width = 1000  # in a pipe, a line is a task
    console.print(_table(rows, narrow=console.width < _WIDE), highlight=False)
    notes = list(dict.fromkeys(f"{data.folder}: {data.problem}" for _, data in rows if data.problem))
    here = sum(data.state not in ("nothing", "incomplete") for _, data in rows)
    notes.append(f"{len(rows)} named, {here} with data here. Train one:  mfrl train env=... [env.task=...]")
    if any(presets.methods(task.name) for task, _ in rows):
        notes.append("With its published settings:  mfrl train experiment=paper/TASK")
    wanted = list(dict.fromkeys(command for _, data in rows for command in data.get.values()))
    if wanted:
        few = len(wanted) <= _FEW
        notes += wanted if few else ["Get data:  mfrl collect env=...  or  mfrl download env=..."]
    if any(data.checked == "sizes" for _, data in rows):
        notes.append("(sizes): as long as its record says; --verify compares checksums")
    for note in notes:
        console.print(escape(note), highlight=False, soft_wrap=True)


def _table(rows: Sequence[tuple[Task, Data]], narrow: bool) -> Table:
    """A row for each task; a narrow one leaves out what the task's name implies."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    columns = {"task": "left", "env": "left", "obs": "right", "act": "right", "updates": "right"}
    columns |= {"presets": "left", "data": "left", "get it": "left"}
    for head, justify in columns.items():
        if not (narrow and head in ("env", "presets", "get it")):
            table.add_column(head, justify=justify, overflow="fold")
    for task, data in rows:
        cells = {
            "task": task.name,
            "env": task.overrides + (" (default)" if task.number and task.default else ""),
            "obs": "x".join(map(str, task.observation)),
            "act": str(task.action),
            "updates": str(task.updates or "-"),
            "presets": ", ".join(presets.methods(task.name)) or "-",
            "data": data.state + (f" ({data.checked})" if data.checked else ""),
            "get it": " or ".join(data.get),
        }
        if narrow:
            cells["data"] = cells["data"] if data.state != "nothing" else cells["get it"]
        table.add_row(*(escape(cells[column.header]) for column in table.columns))
    return table


def main(argv: Sequence[str]) -> None:
    """The command line; ``argv`` comes after ``mfrl tasks``.

    Raises:
        MfrlError: for the person at the keyboard.
    """
    parser = argparse.ArgumentParser("mfrl tasks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="tasks or datasets (default: the 73 of the benchmark)")
    parser.add_argument("--all", action="store_true", dest="every", help="every other dataset too")
    parser.add_argument("--available", action="store_true", help="only those whose data are here")
    parser.add_argument("--verify", action="store_true", help="compare checksums with the records, not only sizes")
    parser.add_argument("--data-dir", help="where to look (default: OGBench's and Minari's own folders)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="for programs")
    given = parser.parse_args(argv)
    tasks = choose(given.names, given.every)
    data = {env: find_data(env, given.data_dir, given.verify) for env in dict.fromkeys(task.env for task in tasks)}
    rows = [(task, data[task.env]) for task in tasks if not given.available or data[task.env].state != "nothing"]
    if given.as_json:
        print(json.dumps([describe(*row) for row in rows], indent=2))
    elif not rows:
        print("none of these data are here; without --available, mfrl tasks says how to get them")
    else:
        show(rows, Console())
