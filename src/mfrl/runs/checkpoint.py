"""Finds checkpoints and reads them as plain data. A damaged checkpoint is refused."""

from __future__ import annotations

import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mfrl.errors import CheckpointError
from mfrl.runs.former import with_current_names
from mfrl.runs.saved import Saved
from mfrl.system.files import refuse_dangling

RECORD = ("config", "spec", "env", "provenance")  #: dictionaries that a checkpoint has below its key "mfrl"


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that a path names: the file itself, a run folder, or the ``checkpoints/`` of a run folder.

    Raises:
        CheckpointError: there is no checkpoint. The message says which files were looked for.
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


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of mfrl as plain data. Nothing in it is executed, and every byte of it is checked.

    The file is a zip archive with a checksum for each of its records. `torch.load` ignores these checksums: where a bit
    has flipped, it loads other weights without an error.

    Returns:
        the checkpoint with today's names of classes and parameters. One without the key ``learner`` was written by an
        earlier version; it can act, but not resume.

    Raises:
        CheckpointError: the file is damaged, holds more than plain data, or was not written by mfrl.
    """
    try:
        with path.open("rb") as file:  # opened once, so that the bytes that are checked are the bytes that are loaded
            if damage := _damage(file):
                raise CheckpointError(f"{path} cannot be read, it is damaged: {damage}{_older_checkpoint(path)}")
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises many types of errors for a file that is no checkpoint
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
        holds["callbacks"] = isinstance(checkpoint.get("callbacks"), dict)
    if holds["mfrl.provenance"]:
        holds["mfrl.provenance.dataset"] = isinstance(record["provenance"].get("dataset"), str)
        holds["mfrl.provenance.files"] = isinstance(record["provenance"].get("files"), dict)
    if wrong := [name for name, held in holds.items() if not held]:
        raise CheckpointError(f"{path} is not as mfrl wrote it: its {wrong[0]} is missing or of another kind")
    record["config"] = with_current_names(record["config"])
    return checkpoint if "learner" in checkpoint else _with_current_parameters(checkpoint)


def _is_window(window: Any) -> bool:
    """Whether this has the form in which :meth:`mfrl.learning.training.Training.save` saves its windows of logging."""
    return isinstance(window, list) and all(
        isinstance(part, dict)
        and isinstance(part.get("names"), list)
        and all(isinstance(name, str) for name in part["names"])
        and isinstance(part.get("sums"), torch.Tensor)
        and part["sums"].shape == (len(part["names"]),)
        and type(part.get("count")) is int
        for part in window
    )


def _with_current_parameters(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Convert a checkpoint without a learner: rename its parameters, and add the buffers that alpha has today."""
    config = checkpoint["mfrl"]["config"]
    state = {_current_parameter_name(name): value for name, value in checkpoint["state_dict"].items()}
    if isinstance(algo := config.get("algo"), dict):
        algo.pop("compile", None)
        if "alpha" in algo:
            alpha = torch.tensor(float(Saved(config).plain("algo.alpha")))
            state = {"alpha.alpha": alpha, "alpha.start": alpha} | state
    return checkpoint | {"state_dict": state}


def _current_parameter_name(name: str) -> str:
    network, _, rest = name.partition(".")
    if network not in ("actor", "averaged_actor", "critic", "flow", "student", "target_critic"):
        return name
    inside = rest.removeprefix("image_encoder.")
    return f"{network}.network.{rest}" if inside == rest else f"{network}.encoder.{inside}"


def _damage(file: BinaryIO) -> str:
    """What is wrong with the bytes of a checkpoint; an empty string if nothing is. Leaves the file at its start."""
    try:
        with zipfile.ZipFile(file) as archive:
            # No checksum covers the table of contents. If it marks a record as a folder, torch does not read the record
            # and leaves the tensor's memory uninitialised.
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr]
            record = archive.testzip()
    except Exception as error:  # zipfile raises many types: for a bad offset, an unknown method, an unreadable name
        return f"it is no whole zip archive ({error})"
    file.seek(0)
    if record:
        return f"the checksum of its record {record} is wrong"
    return f"its table of contents has the record {folders[0]} as a folder" if folders else ""


def _older_checkpoint(path: Path) -> str:
    """Advice on a damaged checkpoint: the latest whole checkpoint beside it, or how to start again."""
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
