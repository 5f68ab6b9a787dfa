"""The expert that a run has trained: the actor of its checkpoint as plain arrays, with how it came about."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mfrl.collect.ogbench.expert import Expert, expert_from, write
from mfrl.data import records
from mfrl.errors import CollectError
from mfrl.runs.checkpoint import find_checkpoint, load_checkpoint
from mfrl.runs.load import recorded_data, recorded_env
from mfrl.runs.read import FINISHED, read_run
from mfrl.runs.saved import Saved
from mfrl.system.paths import pasted

#: The only network whose arithmetic is :meth:`Expert.act`.
ACTOR = "mfrl.networks.gaussian.SquashedGaussianMLP"


def trained_expert(path: str | Path) -> Expert:
    """The mode of a trained policy, e.g. of ``algo=sac``. The normalisation of observations goes into its first layer.

    Args:
        path: of a checkpoint or a run folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
        CollectError: its actor is of another kind.
    """
    file = find_checkpoint(path)
    checkpoint = load_checkpoint(file)  # plain data: nothing it names is built
    record = checkpoint["mfrl"]
    config = Saved(record["config"])
    actor = config.group("algo").get("actor")
    kind = actor.get("_target_") if isinstance(actor, dict) else None
    if kind != ACTOR:
        raise CollectError(f"{file} has an actor of another kind ({kind}): an expert is one of algo=sac or algo=rlpd")
    spec, env = recorded_data(record, file), recorded_env(record)
    origin = {
        "trained_by": "mfrl",
        "algo": str(config.plain("algo_name")),
        "env": env.env_id,
        "seed": config.plain("seed"),
        "updates": checkpoint["updates"],
        "checkpoint": records.fingerprint(file),
        "versions": record["provenance"].get("versions") or records.versions(),
    }
    mean, std = (np.asarray(x, np.float32) for x in (spec.observation_mean, spec.observation_std))
    return expert_from(actor_arrays(checkpoint["state_dict"], mean, std), origin, str(file))


def actor_arrays(state: dict[str, Tensor], mean: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
    """A checkpoint's actor by the names of an expert's arrays.

    Args:
        state: the weights of an algorithm.
        mean, std: ``(observation_dim,)``, of the observations that the actor sees normalised.
    """
    found = {}
    for name, value in state.items():
        if match := re.fullmatch(r"actor\.network\.(?:layers\.(\d+)|(mean))\.(weight|bias)", name):
            layer = match[2] or f"hidden_{match[1]}"
            found[f"{layer}.{match[3]}"] = value.detach().cpu().numpy().astype(np.float32)
    first = "hidden_0" if "hidden_0.weight" in found else "mean"
    if {f"{first}.weight", f"{first}.bias"} <= found.keys():
        # W (o - m) / s + b = (W / s) o + (b - (W / s) m)
        found[f"{first}.weight"] = found[f"{first}.weight"] / std
        found[f"{first}.bias"] = found[f"{first}.bias"] - found[f"{first}.weight"] @ mean
    return found


def export(run: Path, folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Write the expert of a finished run into a folder, as mfrl ships it; returns its arrays' path and its record.

    Raises:
        CheckpointError, CollectError: from :func:`trained_expert`; or the run is not finished.
    """
    expert, read = trained_expert(run), read_run(run)
    if read.status != FINISHED:
        raise CollectError(
            f"{run} is {read.status} ({read.reason}): an expert is shipped with the return of a whole run"
        )
    last = read.evaluations[-1]
    where = ("run_dir=", "runs=", "resume=")
    expert.origin.update(
        command=pasted("mfrl", "train", *(text for text in read.overrides if not text.startswith(where))),
        evaluation={key: last[key] for key in ("eval/return", "eval/length", "episodes") if key in last},
        exported=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return write(expert, folder, name), expert.origin
