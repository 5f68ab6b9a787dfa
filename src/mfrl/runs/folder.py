"""A run folder: what a run leaves behind, and enough to go on from or to judge it."""

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

# Files that training alone writes; an evaluation or a report may be writing others.
_WRITTEN = "config|overrides|provenance|metrics|eval|result|error"


@dataclass(frozen=True)
class RunFolder:
    """Names of the files in a run folder."""

    path: Path

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """A new folder; where the name is taken, with the next free number after it."""
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
        """The folder that a checkpoint lies in, by the way it was named or, of links, by where they lead.

        ``checkpoints`` or ``last.ckpt`` may be a link to another disk, and a checkpoint a link into a run folder.

        Raises:
            CheckpointError: it lies in none.
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
        """Why the last attempt failed, as a sweep's job leaves it."""
        return self.path / ERROR_FILE

    def clear(self) -> None:
        """Remove what an attempt measured that never came to a checkpoint: it is going to be measured again.

        Raises:
            CheckpointError: it did come to one, which lies on a disk that is not there.
        """
        refuse_dangling(self.checkpoints, self.last_checkpoint)
        for path in (self.path / "eval.jsonl", *self.path.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)

    def write_config(self, cfg: DictConfig, overrides: list[str]) -> None:
        """What was composed, and what the user changed: of a resumed run, at first and since."""
        path = self.path / "overrides.yaml"
        now = [override for override in overrides if not override.startswith("resume=")]
        # With `resume=` only what is new was given; otherwise everything.
        earlier = _overrides(path) if len(now) < len(overrides) else []
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(cfg))
        write_text(path, OmegaConf.to_yaml(OmegaConf.create([*earlier, *now])))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process from going on with the same run, and remove what a killed one left half-written.

        Raises:
            RefusedRun: where one is at it already.
            NoLocks: the file system cannot tell.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(one_at_a_time(self.path / ".lock", wait=False))
            except Locked:
                raise RefusedRun(f"another process is training in {self.path}") from None
            for folder, stems in ((self.path, _WRITTEN), (self.checkpoints, r"last|update=\d+"), (self.videos, ".*")):
                remove_abandoned(folder, stems)
            yield

    def write_provenance(self, provenance: dict[str, Any]) -> None:
        write_json(self.path / "provenance.json", provenance)

    def write_result(self, result: dict[str, Any]) -> None:
        """The run is finished; what went wrong in an earlier attempt no longer stands."""
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
    """Versions of Python, the packages that shape a result, and the processor or GPU: their roundings differ."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, {processor()}"
    return records.versions(PACKAGES) | {"device": device}


def processor() -> str:
    """The processor's name and the instructions that PyTorch's kernels use of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or "unknown"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def read_evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of eval.jsonl; a last line that a crash cut off is left out.

    Raises:
        MfrlError: something else is wrong with a line.
    """
    path = run.path / "eval.jsonl"
    try:
        return evaluations_in(path)[0]
    except ValueError as error:
        raise MfrlError(f"{_damaged(path, error)}: move it away to go on without the evaluations in it") from error
