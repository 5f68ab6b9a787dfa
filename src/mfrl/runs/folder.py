"""A run folder: the files that a run writes, enough to resume it and to judge it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mfrl.data import records
from mfrl.errors import CheckpointError, ConfigError, MfrlError, RefusedRun
from mfrl.runs.read import ERROR_FILE, evaluations_in, overrides_in
from mfrl.system.files import Locked, one_at_a_time, refuse_dangling, remove_abandoned, write_json, write_text
from mfrl.system.paths import run_folder

PACKAGES = ("mfrl", "torch", "lightning", "hydra-core", *records.SIMULATION)

# Stems of the files that only training writes. An evaluation or a report may be writing other files at the same time.
_TRAINING_FILES = "config|overrides|provenance|metrics|eval|result|error|trackers"


@dataclass(frozen=True)
class RunFolder:
    """Names of the files in a run folder."""

    path: Path

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """Make a new folder. If ``path`` exists, the folder is ``path-2``, ``path-3``, ...

        Raises:
            ConfigError: the folder cannot be made, or ``path`` is no folder that a run could have.
        """
        wanted, number = run_folder(str(path)), 1
        while True:
            path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                number += 1
            except OSError as error:
                raise ConfigError(f"run_dir={wanted} cannot be made: {error.strerror or error}") from error

    @classmethod
    def of(cls, checkpoint: Path) -> RunFolder:
        """The run folder that a checkpoint lies in: two levels above the path as given, or above the resolved path.

        ``checkpoints`` or ``last.ckpt`` may be a link to another disk, and the path may be a link into a run folder.

        Raises:
            CheckpointError: the checkpoint lies in no run folder.
        """
        for path in (Path(os.path.abspath(checkpoint)), checkpoint.resolve()):
            folder = path.parent.parent
            if (folder / "config.yaml").is_file():
                return cls(folder.resolve())
        folder = Path(os.path.abspath(checkpoint)).parent.parent
        raise CheckpointError(
            f"{checkpoint} lies in no run folder, so there is no run to resume (no {folder}/config.yaml)"
        )

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def error(self) -> Path:
        """Where a job of a sweep writes why it failed."""
        return self.path / ERROR_FILE

    def clear(self) -> None:
        """Remove the evaluations and events of an attempt that left no checkpoint: training starts again at update 0.

        Raises:
            CheckpointError: the checkpoint is a link to a disk that is not mounted.
        """
        refuse_dangling(self.checkpoints, self.last_checkpoint)
        for path in (self.path / "eval.jsonl", *self.path.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)

    def write_config(self, cfg: DictConfig, overrides: list[str]) -> None:
        """Write config.yaml and overrides.yaml. A resumed run adds its overrides to those of its earlier attempts."""
        path = self.path / "overrides.yaml"
        now = [override for override in overrides if not override.startswith("resume=")]
        # With `resume=` the user gives only new overrides; without it, the command has all of them.
        earlier = _overrides(path) if len(now) < len(overrides) else []
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(cfg))
        write_text(path, OmegaConf.to_yaml(OmegaConf.create([*earlier, *now])))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against a second training process, and remove half-written files that a killed one left.

        Raises:
            RefusedRun: another process is training in this folder.
            NoLocks: the file system has no locks.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(one_at_a_time(self.path / ".lock", wait=False))
            except Locked:
                raise RefusedRun(f"another process is training in {self.path}") from None
            remove_abandoned(self.path, _TRAINING_FILES)
            remove_abandoned(self.checkpoints, r"last|update=\d+")
            remove_abandoned(self.videos, ".*")
            yield

    def write_provenance(self, provenance: dict[str, Any]) -> None:
        write_json(self.path / "provenance.json", provenance)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, which says that the run is finished, and remove the error of an earlier attempt."""
        write_json(self.path / "result.json", result)
        self.error.unlink(missing_ok=True)


def _overrides(path: Path) -> list[str]:
    try:
        return overrides_in(path)
    except ValueError as error:
        raise MfrlError(f"{_damaged(path, error)}: move it away to go on; config.yaml has the settings too") from error


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged ({' '.join(str(error).split())[:200]})"


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that influence results, and the device, whose roundings differ."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, {processor()}"
    return records.versions(PACKAGES) | {"device": device}


def processor() -> str:
    """The processor's name, and the instruction set that PyTorch's kernels use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or "unknown"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def read_evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of eval.jsonl. If a crash cut off the last line, it is left out.

    Raises:
        MfrlError: another line cannot be read.
    """
    path = run.path / "eval.jsonl"
    try:
        return evaluations_in(path)[0]
    except ValueError as error:
        raise MfrlError(f"{_damaged(path, error)}: move it away to go on without the evaluations in it") from error
