"""A run folder: what a run leaves behind, and enough to go on from or to judge it."""

from __future__ import annotations

import json
import os
import platform
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from mfrl.data import provenance
from mfrl.errors import CheckpointError, ConfigError, MfrlError, RefusedRun
from mfrl.files import Locked, one_at_a_time, remove_abandoned, write_json, write_text
from mfrl.paths import run_folder
from mfrl.report.runs import ERROR_FILE
from mfrl.saved import Saved

RECORD = ("config", "spec", "env", "provenance")  # what the key "mfrl" of a checkpoint holds, each a dictionary
PACKAGES = ("mfrl", "torch", "lightning", "hydra-core", *provenance.SIMULATION)

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
        earlier = _read_overrides(path) if path.exists() and len(now) < len(overrides) else []
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


def _read_overrides(path: Path) -> list[str]:
    """What the user gave earlier.

    Raises:
        MfrlError: the file is damaged.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not (isinstance(found, list) and all(isinstance(override, str) for override in found)):
            raise ValueError("it is no list of overrides")
    except (ValueError, yaml.YAMLError) as error:
        raise MfrlError(f"{_damaged(path, error)}: move it away to go on; config.yaml has the settings too") from error
    return found


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged ({' '.join(str(error).split())[:200]})"


def versions() -> dict[str, str | None]:
    """Versions of Python, the packages that shape a result, and the processor or GPU: their roundings differ."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, {processor()}"
    return provenance.versions(PACKAGES) | {"device": device}


def processor() -> str:
    """The processor's name and the instructions that PyTorch's kernels use of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or "unknown"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint file, given itself or the run folder (or its checkpoints/) it lies in.

    Raises:
        CheckpointError: saying what was looked for and where.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    tried = [path / "checkpoints" / "last.ckpt", path / "last.ckpt"]
    refuse_dangling(path, path / "checkpoints", *tried)
    for candidate in tried:
        if candidate.is_file():
            return candidate
    what = f"neither {tried[0]} nor {tried[1]}" if path.is_dir() else f"no file or folder {path}"
    raise CheckpointError(f"no checkpoint: {what} exists")


def refuse_dangling(*paths: Path) -> None:
    """Refuse links that lead nowhere: what they led to is not gone for good.

    Raises:
        CheckpointError: naming the link.
    """
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise CheckpointError(f"{path} is a link to {os.readlink(path)}, which is not there: is its disk mounted?")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours as plain data; nothing in it is executed, and every byte of it is checked.

    The file is a zip archive that carries a checksum of each of its records, which `torch.load` does not look at: with
    a flipped bit it loads other weights.

    Raises:
        CheckpointError: for a damaged file, one that is more than plain data, or one that mfrl did not write.
    """
    try:
        with path.open("rb") as file:  # opened once: what was checked is what is loaded
            if damage := _damage(file):
                raise CheckpointError(f"{path} cannot be read, it is damaged: {damage}{_older(path)}")
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint of plain data: {reason}") from error
    if not isinstance(checkpoint, dict) or "mfrl" not in checkpoint:
        raise CheckpointError(f"{path} was not written by mfrl: it has no 'mfrl' record")
    record = checkpoint["mfrl"]
    holds = {f"mfrl.{name}": isinstance(record, dict) and isinstance(record.get(name), dict) for name in RECORD}
    holds["state_dict"] = isinstance(checkpoint.get("state_dict"), dict)
    holds["updates"] = type(checkpoint.get("updates")) is int and checkpoint["updates"] >= 0
    if "learner" in checkpoint:
        holds["learner"] = isinstance(checkpoint["learner"], dict)
        holds["window"] = _is_window(checkpoint.get("window"))
    if holds["mfrl.provenance"]:
        holds["mfrl.provenance.dataset"] = isinstance(record["provenance"].get("dataset"), str)
        holds["mfrl.provenance.files"] = isinstance(record["provenance"].get("files"), dict)
    if wrong := [name for name, held in holds.items() if not held]:
        raise CheckpointError(f"{path} is not as mfrl wrote it: its {wrong[0]} is missing or of another kind")
    return checkpoint if "learner" in checkpoint else _under_todays_names(checkpoint)


def _is_window(window: Any) -> bool:
    """Whether this is what a run has summed up since it last logged, as it saves it."""
    return isinstance(window, list) and all(
        isinstance(part, dict)
        and isinstance(part.get("names"), list)
        and all(isinstance(name, str) for name in part["names"])
        and isinstance(part.get("sums"), torch.Tensor)
        and part["sums"].shape == (len(part["names"]),)
        and type(part.get("count")) is int
        for part in window
    )


def _under_todays_names(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint from before there was a learner, so that its policy acts; there is no going on from it."""
    config = checkpoint["mfrl"]["config"]
    state = {_todays_name(name): value for name, value in checkpoint["state_dict"].items()}
    if isinstance(algo := config.get("algo"), dict):
        algo.pop("compile", None)
        if "alpha" in algo:
            alpha = torch.tensor(float(Saved(config).plain("algo.alpha")))
            state = {"alpha.alpha": alpha, "alpha.start": alpha} | state
    return checkpoint | {"state_dict": state}


def _todays_name(name: str) -> str:
    network, _, rest = name.partition(".")
    if network not in ("actor", "averaged_actor", "critic", "flow", "student", "target_critic"):
        return name
    inside = rest.removeprefix("image_encoder.")
    return f"{network}.network.{rest}" if inside == rest else f"{network}.encoder.{inside}"


def _damage(file: BinaryIO) -> str:
    """What is wrong with the bytes of a checkpoint; empty where they are as written. Leaves the file at its start."""
    try:
        with zipfile.ZipFile(file) as archive:
            # No checksum covers the table of contents; with this one bit in it torch leaves a record's memory unset.
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr]
            record = archive.testzip()
    except Exception as error:  # zipfile, too, raises many kinds: of a bad offset, a method or a name it does not know
        return f"it is no whole zip archive ({error})"
    file.seek(0)
    if record:
        return f"the checksum of its record {record} is wrong"
    return f"its table of contents has the record {folders[0]} as a folder" if folders else ""


def _older(path: Path) -> str:
    """Advice for where a checkpoint is damaged: the latest whole one beside it."""
    kept = [other for other in path.parent.glob("update=*.ckpt") if re.fullmatch(r"update=\d+", other.stem)]
    for other in sorted(kept, key=lambda file: int(file.stem.partition("=")[2]), reverse=True):
        with suppress(OSError), other.open("rb") as file:
            if other.name != path.name and not _damage(file):
                return (
                    f". {other} is whole: name it instead, or copy it to {path} and go on from there as if {path.name} "
                    "had never been written"
                )
    none = "No older one that is whole lies beside it (checkpoint.keep_all=true keeps them)"
    return f". {none}: to begin anew, remove {path.name}"


def read_evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of eval.jsonl; a last line that a crash cut off is left out.

    Raises:
        MfrlError: something else is wrong with a line.
    """
    path = run.path / "eval.jsonl"
    evaluations: list[dict[str, Any]] = []
    if not path.exists():
        return evaluations
    try:
        text = path.read_bytes().decode()
        for line in text.splitlines(keepends=True):
            if not line.endswith("\n") and line.startswith("{"):  # what is whole ends its line
                break
            evaluation = json.loads(line)
            if not (isinstance(evaluation, dict) and type(evaluation.get("updates")) is int):
                raise ValueError(f"line {len(evaluations) + 1} is no evaluation with its 'updates'")
            evaluations.append(evaluation)
    except ValueError as error:
        raise MfrlError(f"{_damaged(path, error)}: move it away to go on without the evaluations in it") from error
    return evaluations
