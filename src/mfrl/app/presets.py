"""Presets are tables: `experiment=METHOD/TASK` composes a row of conf/presets/METHOD.csv.

A table has these columns:

``task``
    a name from `mfrl tasks --all-tasks`. It chooses ``env`` and ``env.task``.
``base``
    another experiment that the row starts from, e.g. ``paper/pen-cloned``. This column may be missing.
a setting, e.g. ``algo.alpha``
    its value as in JSON: a number, null, true or false. Anything else is a word. An empty cell sets nothing.
a setting and ``source``, e.g. ``algo.alpha source``
    where the number comes from.

Settings that all rows share are in METHOD.yaml beside the table. A user's ``--config-dir`` can have tables too.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from mfrl.catalogue import Task, tasks
from mfrl.errors import ConfigError, did_you_mean
from mfrl.system.paths import CONFIG_DIR

FOLDER = "presets"
TASK, BASE, SOURCE = "task", "base", " source"
#: A table may have settings of these groups of configurations as columns, and settings of train.yaml.
GROUPS = ("algo", "data", "encoder", "env", "evaluation", "network", "trainer", "variant")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the loader in C is ten times as fast; PyYAML may lack it


@dataclass(frozen=True)
class Preset:
    """A row of a table.

    Attributes:
        task: the task.
        base: the experiment that the row starts from; None stands for the defaults of `mfrl train`.
        settings: values by the settings' dotted names.
        sources: where values come from, by the same names.
    """

    task: Task
    base: str | None
    settings: dict[str, Any]
    sources: dict[str, str]


def tables(folder: Path = CONFIG_DIR) -> dict[str, Path]:
    """The tables in a folder of configurations, by the names of their methods."""
    return {path.stem: path for path in sorted((folder / FOLDER).glob("*.csv"))}


def refuse_taken_names(folder: Path) -> None:
    """Refuse a user's table that has the name of one of mfrl's, because Hydra would use mfrl's.

    Args:
        folder: the user's folder of configurations.

    Raises:
        ConfigError: there is one. The message names both files.
    """
    for method in tables(folder).keys() & tables().keys():
        raise ConfigError(
            f"{tables(folder)[method]}: experiment={method}/... is {tables()[method]}; give your table another name"
        )


def names(table: Path) -> list[str]:
    """The tasks in a table. The table may have errors elsewhere."""
    head, *rows = [cells for _, cells in _lines(table)] or [[]]
    column = head.index(TASK) if TASK in head else 0
    return [cells[column] for cells in rows if len(cells) > column]


def methods(task: str) -> list[str]:
    """The methods of mfrl's tables that have a row for a task."""
    return [method for method, known in _shipped().items() if task in known]


@cache
def _shipped() -> dict[str, list[str]]:
    return {method: names(table) for method, table in tables().items()}


def read(table: Path) -> dict[str, Preset]:
    """Read a table.

    Returns:
        the rows by the names of their tasks.

    Raises:
        ConfigError: the table has an error. The message names the file, the line and the column.
    """
    (number, head), *lines = list(_lines(table)) or [(1, [])]
    known = _settings(CONFIG_DIR) | _settings(table.parents[1])
    for column in head:
        setting = column.removesuffix(SOURCE)
        if column not in (TASK, BASE) and setting not in known:
            hint = did_you_mean(setting, known.keys() | {TASK, BASE})
            raise _refused(table, number, f"column {column!r}: there is no setting {setting!r}{hint}")
        if head.count(column) > 1:
            raise _refused(table, number, f"column {column!r} stands there {head.count(column)} times")
    if TASK not in head:
        raise _refused(
            table, number, f"there must be a column {TASK!r}, with names that `mfrl tasks --all-tasks` lists"
        )
    found: dict[str, Preset] = {}
    at: dict[str, int] = {}
    for number, cells in lines:
        if len(cells) != len(head):
            raise _refused(table, number, f"{len(cells)} cells, where the first line has {len(head)} columns")
        preset = _preset(table, number, dict(zip(head, cells, strict=True)), known)
        name = preset.task.name
        if name in found:
            raise _refused(table, number, f"column {TASK!r}: {name} stands in line {at[name]} already")
        found[name], at[name] = preset, number
    return found


def _preset(table: Path, number: int, row: dict[str, str], known: dict[str, Any]) -> Preset:
    """The preset of one row.

    Args:
        number: the row's line, for messages.
        row: cells by column.
        known: all settings with their defaults.
    """
    task = tasks().get(row[TASK])
    if task is None:
        hint = did_you_mean(row[TASK], tasks())
        raise _refused(table, number, f"column {TASK!r}: there is no task {row[TASK]!r}{hint}")
    given = {column: cell for column, cell in row.items() if cell and column not in (TASK, BASE)}
    settings = {column: _value(cell) for column, cell in given.items() if not column.endswith(SOURCE)}
    for setting, value in settings.items():
        if _is_number(known[setting]) and not (value is None or _is_number(value)):
            what = f"{given[setting]!r} must be a number or null, e.g. {known[setting]}"
            raise _refused(table, number, f"{task.name}, column {setting!r}: {what}")
    sources = {column.removesuffix(SOURCE): cell for column, cell in given.items() if column.endswith(SOURCE)}
    return Preset(task, row.get(BASE) or None, settings, sources)


def _refused(table: Path, number: int, what: str) -> ConfigError:
    return ConfigError(f"{table}, line {number}: {what}")


def composed(table: Path, name: str) -> DictConfig:
    """The configuration of `experiment=METHOD/NAME`, in the form in which Hydra reads it from a file.

    Raises:
        ConfigError: see :func:`read`.
    """
    preset = read(table)[name]
    defaults: list[Any] = []
    if preset.base is not None:
        defaults.append(f"/experiment/{preset.base}@_global_")
    if table.with_suffix(".yaml").is_file():
        defaults.append(f"/{FOLDER}/{table.stem}@_global_")
    config = OmegaConf.create({"defaults": [*defaults, {"override /env": preset.task.env}, "_self_"]})
    of_task = {} if preset.task.number is None else {"env.task": preset.task.number}
    for setting, value in (of_task | preset.settings).items():
        OmegaConf.update(config, setting, value)
    return config


def _lines(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table that are not empty, with their numbers.

    Raises:
        ConfigError: the file cannot be read as a table.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if any(cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{table} cannot be read as a table, of cells between commas, in UTF-8: {error}") from error


def _value(cell: str) -> Any:
    try:
        return json.loads(cell, parse_constant=str)  # NaN and Infinity stay words
    except ValueError:
        return cell


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@cache
def _settings(folder: Path) -> dict[str, Any]:
    """All settings in a folder of configurations by their dotted names, each with one of its defaults.

    They are read from the files and not composed, because composing needs the choices that only a row makes.
    """
    found: dict[str, Any] = {}
    files = [(folder / "train.yaml", "_global_")]
    files += [(path, group) for group in GROUPS for path in sorted((folder / group).rglob("*.yaml"))]
    for path, package in files:
        try:
            text = path.read_text(encoding="utf-8")
            content = yaml.load(text, _LOADER)
        except (OSError, ValueError, yaml.YAMLError):  # Hydra reports the error when somebody chooses this file
            continue
        header = re.match(r"# @package (\S+)", text)
        package = header[1] if header else package
        if isinstance(content, dict):
            _gather(content, "" if package == "_global_" else f"{package}.", found)
    return {key: value for key, value in found.items() if key.split(".")[0] not in ("defaults", "hydra")}


def _gather(node: Any, prefix: str, found: dict[str, Any]) -> None:
    """Add the settings of a group to ``found``; of several files, the first default that is not null counts."""
    for key, value in node.items():
        if isinstance(value, dict):
            _gather(value, f"{prefix}{key}.", found)
        elif not key.startswith("_") and found.get(f"{prefix}{key}") is None:
            found[f"{prefix}{key}"] = value
