"""Finds run folders, reads them, and says which runs are finished.

A run is a folder with a config.yaml, or with the error.txt of a sweep's job that failed early. Its status is

* *finished* if result.json has as many updates as the configuration, and the files that a score is made of can be read
  and agree with one another;
* *failed* if there is an error.txt, or one of these files is damaged or contradicts another;
* *unfinished* otherwise.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mfrl.errors import ConfigError, MfrlError, first_line
from mfrl.runs.former import with_current_names, with_later_settings
from mfrl.settings import OnlineSettings

FINISHED, UNFINISHED, FAILED, DUPLICATE = "finished", "unfinished", "failed", "duplicate"
ERROR_FILE = "error.txt"  #: the traceback of a sweep's job that failed; removed when the job succeeds
_NOT_RUNS = ("checkpoints", "videos", "wandb")  # wandb writes a config.yaml of its own


class ReportError(MfrlError):
    """A report cannot be made from the given folders or settings."""


class _Damaged(Exception):
    """A file of a run cannot be used. The message names the file."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder.
        status: ``finished``, ``unfinished``, ``failed`` or ``duplicate``.
        reason: why the run does not count; empty if it is finished.
        config: the settings of config.yaml by dotted key. Interpolations stay as written, so that a setting that only
            repeats another (``algo.seed: ${seed}``) does not count as a difference between runs.
        result, provenance, evaluations, overrides: the contents of result.json, provenance.json, eval.jsonl and
            overrides.yaml.
        written: when result.json was written, in seconds since 1970.
    """

    path: Path
    status: str
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    written: float = 0.0

    @property
    def seed(self) -> int | None:
        """The seed; a finished run always has one."""
        return self.config.get("seed")

    @property
    def algo(self) -> str:
        return str(self.config.get("algo_name", "?"))

    @property
    def variant(self) -> str:
        name = self.config.get("variant.name")
        return "-" if name in (None, "none") else str(name)  # an algorithm without a reformulation

    @property
    def env_name(self) -> str:
        """The environment and its task as configured, e.g. ``cube-single-play task 2``."""
        name, task = self.config.get("env.name", "?"), self.config.get("env.task")
        return f"{name} task {task}" if task is not None else str(name)

    @property
    def suite(self) -> str:
        return str(self.config.get("env.suite", ""))

    @property
    def online(self) -> bool:
        return bool(self.config.get("online.steps"))


def find_runs(folders: Iterable[str | Path]) -> list[Run]:
    """All runs in or below the folders, each once, in the order of their paths.

    Raises:
        ReportError: a folder does not exist, or there is no run in or below any of them.
    """
    places = [Path(folder).expanduser() for folder in folders]
    for folder in places:
        if not folder.is_dir():
            raise ReportError(f"{folder} is not a folder; mfrl report wants run folders, or folders they lie below")
    paths = {path for folder in places for path in _run_folders(folder.resolve())}
    if not paths:
        looked = ", ".join(map(str, places)) or "no folder at all"
        raise ReportError(
            f"no run folder in or below {looked}. A run folder is what `mfrl train` writes (run_dir=...): "
            "it holds config.yaml, and result.json once it is finished"
        )
    here = Path.cwd()
    # Relative to the current folder where possible: a report may be moved to another machine, which has other folders.
    return [read_run(path.relative_to(here) if path.is_relative_to(here) else path) for path in sorted(paths)]


def _run_folders(root: Path) -> Iterable[Path]:
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in _NOT_RUNS and not name.startswith(".")]
        if "config.yaml" in files or ERROR_FILE in files:
            yield Path(folder)


def read_run(path: Path) -> Run:
    """Read the files of a run folder, and determine its status."""
    known: dict[str, Any] = {}
    try:
        if (path / ERROR_FILE).exists() and not (path / "config.yaml").exists():
            raise _Damaged(_failure(path / ERROR_FILE))  # the job failed before it wrote anything else
        known["config"] = config = _read_config(path / "config.yaml")
        try:
            known["overrides"] = overrides_in(path / "overrides.yaml")
        except (ValueError, OSError) as error:
            raise _Damaged(f"overrides.yaml cannot be read: {first_line(error)}") from error
        try:
            evaluations, cut_off = evaluations_in(path / "eval.jsonl")
        except (ValueError, OSError) as error:
            raise _Damaged(f"eval.jsonl cannot be read: {first_line(error)}") from error
        known["evaluations"] = evaluations
        result_path = path / "result.json"
        if (path / ERROR_FILE).exists():
            raise _Damaged(f"{_failure(path / ERROR_FILE)}; {_progress(config, evaluations)}")
        if not result_path.exists():
            return Run(path, UNFINISHED, f"no result.json; {_progress(config, evaluations)}", **known)
        known["result"] = result = _read_json(result_path)
        known["written"] = result_path.stat().st_mtime
        _require(result, "result.json", {"env": str, "dataset": str, "seed": int, "updates": int, "final": dict})
        if result["updates"] != (total := total_updates(config)):
            reason = f"result.json is of update {result['updates']:,}, config.yaml asks for {total:,}"
            return Run(path, UNFINISHED, f"{reason}; {_progress(config, evaluations)}", **known)
        known["provenance"] = provenance = _read_json(path / "provenance.json")
        _require(provenance, "provenance.json", {"dataset": str, "source": str})
        if cut_off:
            raise _Damaged(f"eval.jsonl cannot be read: {cut_off}")
        _check_agreement(config, result, provenance, evaluations)
    except _Damaged as damage:
        return Run(path, FAILED, str(damage), **known)
    return Run(path, FINISHED, **known)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # yaml, omegaconf and the file system raise errors of their own
        raise _Damaged(f"config.yaml cannot be read: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise _Damaged("config.yaml is no mapping of settings")
    leaves = with_later_settings(flatten(with_current_names(loaded)))
    _require(leaves, "config.yaml", {"seed": int, "updates": int, "algo_name": str, "env.name": str})
    return leaves


def total_updates(config: dict[str, Any]) -> int:
    """The number of updates of both phases that a configuration asks for."""
    names = ("steps", "start_after", "updates_per_step", "num_envs")
    online = {name: config[f"online.{name}"] for name in names if f"online.{name}" in config}
    try:
        return int(config["updates"]) + OnlineSettings(**online).updates
    except ConfigError as error:
        raise _Damaged(f"config.yaml: {error}") from error


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary with dotted keys. A list counts as a value and becomes a tuple."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = _hashable(value)
    return leaves


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_hashable(item) for item in value)
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def _failure(path: Path) -> str:
    """The last line of an error.txt, which names the error."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError as error:
        return f"{path.name} cannot be read: {first_line(error)}"
    return lines[-1] if lines else f"{path.name} is empty"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _Damaged(f"{path.name} is missing") from None
    except (ValueError, OSError) as error:
        raise _Damaged(f"{path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise _Damaged(f"{path.name} is no JSON object")
    return value


def overrides_in(path: Path) -> list[str]:
    """The overrides in an overrides.yaml; an empty list if the file does not exist.

    Raises:
        ValueError: the file is no list of overrides.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not (isinstance(found, list) and all(isinstance(override, str) for override in found)):
        raise ValueError("it is no list of overrides")
    return found


def evaluations_in(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The lines of an eval.jsonl; an empty list if the file does not exist.

    Returns:
        the lines, and a sentence on the last line if a crash cut it off. That line is left out.

    Raises:
        ValueError: another line cannot be read. The message names it.
        OSError: the file cannot be read.
    """
    evaluations: list[dict[str, Any]] = []
    if not path.exists():
        return evaluations, ""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            evaluation = json.loads(line.decode())
            if not isinstance(evaluation, dict) or type(evaluation.get("updates")) is not int:
                raise ValueError("no evaluation with its 'updates'")
        except ValueError as error:
            if line.startswith(b"{") and not line.endswith(b"\n"):  # the last line; a complete one ends with \n
                return evaluations, f"line {number}: {first_line(error)}"
            raise ValueError(f"line {number}: {first_line(error)}") from error
        evaluations.append(evaluation)
    return evaluations, ""


def _require(values: dict[str, Any], name: str, types: dict[str, type]) -> None:
    """Check the types of the values in a file.

    Raises:
        _Damaged: a value is missing or has another type.
    """
    for key, kind in types.items():
        value = values.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _Damaged(f"{name} has no {key!r} that is {'a number' if kind is int else f'a {kind.__name__}'}")


def _check_agreement(
    config: dict[str, Any], result: dict[str, Any], provenance: dict[str, Any], evaluations: list[dict[str, Any]]
) -> None:
    """Check that the files agree. They disagree if somebody put files of two runs into one folder.

    Raises:
        _Damaged: two files disagree.
    """
    if result["seed"] != config["seed"]:
        raise _Damaged(f"result.json is of seed {result['seed']}, config.yaml of seed {config['seed']}")
    if result["dataset"] != provenance["dataset"]:
        raise _Damaged(f"result.json is of {result['dataset']}, provenance.json of {provenance['dataset']}")
    if not evaluations:
        raise _Damaged("eval.jsonl is missing or empty")
    last = evaluations[-1]
    if last["updates"] != result["updates"]:
        raise _Damaged(f"eval.jsonl ends at update {last['updates']:,}, result.json at {result['updates']:,}")
    for name, value in result["final"].items():
        if name not in last:
            raise _Damaged(f"{name} of result.json is not in eval.jsonl")
        if not _is_number(value) or not _is_number(last[name]):
            raise _Damaged(f"{name} is {value} in result.json and {last[name]} in eval.jsonl")
        if not math.isclose(value, last[name], rel_tol=1e-6, abs_tol=1e-9):
            raise _Damaged(f"{name} is {value:g} in result.json, but {last[name]:g} in eval.jsonl")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _progress(config: dict[str, Any], evaluations: list[dict[str, Any]]) -> str:
    if not evaluations:
        return "no evaluation yet"
    last = evaluations[-1]
    success = last.get("eval/success")
    score = f", success {success:.2f}" if _is_number(success) else ""
    return f"last evaluation at update {last['updates']:,} of {total_updates(config):,}{score}"
