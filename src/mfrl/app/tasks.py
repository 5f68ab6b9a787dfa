"""`mfrl tasks [NAME...]`: list the tasks that have a name, and whether their data are on this machine.

The benchmark is the 73 tasks of arXiv 2511.13035: OGBench's states (ten datasets with five tasks each) and images, and
D4RL's antmaze and Adroit. The command imports neither torch nor a simulator: :mod:`mfrl.catalogue` knows the sizes and
the default tasks, and tests compare them with the environments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfrl.app import presets
from mfrl.app.options import Options
from mfrl.catalogue import (
    NUM_TASKS,
    ONLINE,
    Task,
    TasksError,
    benchmark,
    environments,
    others,
    spelled,
    task_of,
)
from mfrl.data.present import Data, find
from mfrl.errors import did_you_mean

Justify = Literal["left", "right"]

_FEW = 4  # at most so many commands are printed in full
#: Characters that a line needs for these columns; ``default`` is the number of the default task in brackets, and
#: ``methods`` the whole list of presets.
_ROOM = {"default": 100, "updates": 100, "presets": 120, "methods": 140, "env": 200}
_PIPE = 1000  # characters of a line in a pipe, where no cell is folded
_SIZES: dict[str, Justify] = {"obs": "right", "act": "right", "updates": "right"}
_DATA = "data or how to get it"
_EVERYWHERE = ("code", "fql", "paper")  # methods with presets for every task of the benchmark
_ONLINE = "algo=sac updates=0 online.steps=400000"  # with which an environment without data is trained in


def choose(names: Iterable[str], every: bool = False) -> list[Task]:
    """The tasks of these names or datasets. Without names: the benchmark, and with ``every`` all other tasks too.

    Raises:
        TasksError: a name is unknown; the message has similar names.
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
            found = [task_of(env, int(number), None)]
        if not found:
            for env in ONLINE:
                if name.removesuffix("-v0") in (env, env.partition("/")[2]):
                    raise TasksError(f"{name} has no data, it is learned online:  mfrl train env={env} {_ONLINE}")
            possible = sorted({t.name for t in known} | {t.env.partition("/")[2] for t in known})
            raise TasksError(f"there is no task or dataset {name!r}{did_you_mean(name, possible)}")
        chosen += [task for task in found if task not in chosen]
    return chosen


def find_data(env: str, data_dir: str | None = None, verify: bool = False) -> Data:
    """Find the files of a dataset on this machine.

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
        "presets": [f"{method}/{name}" for name in _named(task) for method in presets.methods(name)],
        "data": asdict(data),
    }


def show(rows: Sequence[tuple[Task, Data]], console: Console, all_tasks: bool = False) -> None:
    """Print the table, and under it how to use it.

    Args:
        rows: tasks and their data.
        all_tasks: print a row for each task; otherwise one for each dataset.
    """
    if not console.is_terminal:
        console.width = _PIPE
    table = (_table_of_tasks if all_tasks else _table_of_datasets)(rows, console.width)
    console.print(table, highlight=False)
    notes = list(dict.fromkeys(f"{data.folder}: {data.problem}" for _, data in rows if data.problem))
    here = [task for task, data in rows if data.state not in ("nothing", "incomplete")]
    notes.append(f"{len(rows)} named, {len(here) or 'none'} with data here")
    example = [*here, rows[0][0]][0]
    notes.append(f"Train one:  mfrl train {example.overrides}")
    if "paper" in presets.methods(example.name):
        notes.append(f"Published settings:  mfrl train experiment=paper/{example.name}")
    if not all_tasks and len({task.env for task, _ in rows}) < len(rows):
        brackets = "In brackets OGBench's default task. " if console.width >= _ROOM["default"] else ""
        notes.append(f"{brackets}A line for each task, with all of its presets:  mfrl tasks --all-tasks")
    wanted = list(dict.fromkeys(command for _, data in rows for command in data.get.values()))
    if wanted:
        few = len(wanted) <= _FEW
        notes += wanted if few else ["Get data:  mfrl collect env=...  or  mfrl download env=..."]
    if any(data.checked == "sizes" for _, data in rows):
        notes.append("(sizes): sizes agree with the record; --verify compares checksums")
    for note in notes:
        console.print(escape(note), highlight=False, soft_wrap=True)


def _table_of_tasks(rows: Sequence[tuple[Task, Data]], width: int) -> Table:
    """A row for each task."""
    columns = {"task": "left", "env": "left", **_SIZES, "presets": "left", _DATA: "left"}
    omitted = {head for head in ("env", "presets") if width < _ROOM[head]}
    table = _empty_table({head: side for head, side in columns.items() if head not in omitted})
    for task, data in rows:
        default = " (default)" if task.number and task.default else ""
        methods = _methods([task], brief=width < _ROOM["methods"])
        _add_row(table, task, data, {"task": task.name, "env": task.overrides + default, "presets": methods})
    return table


def _table_of_datasets(rows: Sequence[tuple[Task, Data]], width: int) -> Table:
    """A row for each dataset with the numbers of its tasks; a wide table has the default one in brackets."""
    columns = {"env": "left", "task": "left", **_SIZES, "presets": "left", _DATA: "left"}
    omitted = {head for head in ("updates", "presets") if width < _ROOM[head]}
    table = _empty_table({head: side for head, side in columns.items() if head not in omitted})
    datasets: dict[str, list[tuple[Task, Data]]] = {}
    for task, data in rows:
        datasets.setdefault(task.env, []).append((task, data))
    for env, members in datasets.items():
        numbers = _span([task.number for task, _ in members if task.number])
        if width >= _ROOM["default"]:
            numbers += "".join(f" ({task.number})" for task, _ in members if task.number and task.default)
        brief = len(datasets) > 1 or width < _ROOM["methods"]
        methods = _methods([task for task, _ in members], brief)
        _add_row(table, *members[0], {"env": env, "task": numbers, "presets": methods})
    return table


def _named(task: Task) -> list[str]:
    """The tasks that a row stands for: a dataset of OGBench's without a number stands for all of its tasks."""
    every = task.suite == "ogbench" and task.number is None
    return [f"{task.name}-task{number}" for number in range(1, NUM_TASKS + 1)] if every else [task.name]


def _methods(tasks: Sequence[Task], brief: bool) -> str:
    """The methods that have a preset for one of the tasks; ``brief``: at most three, and how many more."""
    found = sorted({method for task in tasks for name in _named(task) for method in presets.methods(name)})
    if brief:
        found.sort(key=lambda method: method not in _EVERYWHERE)
    shown = found[:3] if brief else found
    more = f" +{len(found) - len(shown)}" if len(found) > len(shown) else ""
    return (", ".join(shown) + more) or "-"


def _span(numbers: Sequence[int]) -> str:
    """``1-5`` for five numbers in a row, else each of them."""
    whole = len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if whole else ", ".join(map(str, numbers)) or "-"


def _empty_table(columns: dict[str, Justify]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for head, justify in columns.items():
        table.add_column(head, justify=justify, overflow="fold")
    return table


def _add_row(table: Table, task: Task, data: Data, named: dict[str, str]) -> None:
    """Add what all tasks of a dataset share, and ``named``; the table's columns decide what is shown."""
    cells = named | {
        "obs": "x".join(map(str, task.observation)),
        "act": str(task.action),
        "updates": str(task.updates or "-"),
        _DATA: data.state + (f" ({data.checked})" if data.checked else ""),
    }
    if data.state == "nothing":
        cells[_DATA] = " or ".join(data.get)
    table.add_row(*(escape(cells[str(column.header)]) for column in table.columns))


def main(argv: Sequence[str]) -> None:
    """Run the command; ``argv`` is what follows ``mfrl tasks``.

    Raises:
        MfrlError: a name is unknown or a folder cannot be read.
    """
    parser = Options("mfrl tasks", (__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="tasks or datasets (default: the 73 of the benchmark)")
    parser.add_argument("--all", action="store_true", dest="every", help="every other dataset too")
    parser.add_argument("--all-tasks", action="store_true", help="a line for each task instead of each dataset")
    parser.add_argument("--available", action="store_true", help="only those whose data are here")
    parser.add_argument("--verify", action="store_true", help="compare checksums with the records, not only sizes")
    parser.add_argument("--data-dir", help="where to look (default: OGBench's and Minari's own folders)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="for programs")
    given = parser.parsed(argv)
    tasks = choose(given.names, given.every)
    data = {env: find_data(env, given.data_dir, given.verify) for env in dict.fromkeys(task.env for task in tasks)}
    rows = [(task, data[task.env]) for task in tasks if not given.available or data[task.env].state != "nothing"]
    if given.as_json:
        print(json.dumps([describe(*row) for row in rows], indent=2))
    elif not rows:
        print("none of these data are here; without --available, mfrl tasks says how to get them")
    else:
        show(rows, Console(), given.all_tasks)
        if given.every:
            choices = ", ".join((*ONLINE, "gym/any env.gym_id=NAME"))
            print(f"Without data, learned online ({choices}):  mfrl train env=... {_ONLINE}")
