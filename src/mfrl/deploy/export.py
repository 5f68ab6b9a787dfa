"""Export a policy: written, run again from its file, compared with PyTorch, and only then given its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mfrl.data import records
from mfrl.deploy.acting import FromNoise, FromObservation, FromSeed, Graph
from mfrl.deploy.formats import OUTPUT, Run, find_format
from mfrl.deploy.parity import BATCHES, TOLERANCE, Played, largest_difference
from mfrl.deploy.policy import LoadedPolicy
from mfrl.errors import ConfigError, MfrlError, did_you_mean, require
from mfrl.system.files import move_into_place, temporary_folder, write_json

NOISE = {"input": FromNoise, "seed": FromSeed}
#: The first version of ONNX's operator set that the exporter writes, and the one that most runtimes know.
OPSET = 18
_PACKAGES = ("mfrl", "torch", "onnx", "onnxscript", "onnxruntime")


class ExportError(MfrlError):
    """A policy that could not be exported, or whose export does something else than PyTorch."""


def export(
    loaded: LoadedPolicy,
    path: Path,
    format: str = "onnx",
    noise: str = "input",
    num_candidates: int | None = None,
    opset: int = OPSET,
    play: Callable[[Graph, Run], Played] | None = None,
) -> dict[str, Any]:
    """Write a policy to a file, with a description inside and in a JSON file beside it.

    What is exported takes raw observations and gives actions in the environment's own units, for batches of any size.

    Args:
        loaded: the policy, on the CPU.
        path: of the file; its suffix is the format's.
        format: one of :data:`mfrl.deploy.formats.FORMATS`.
        noise: ``input``: standard normal noise is an input; ``seed``: it is drawn inside from a seed, which is. A
            deterministic policy has neither.
        num_candidates: among so many actions the critic chooses; None: as trained.
        opset: of ONNX.
        play: episodes to be compared as well, see :func:`mfrl.deploy.parity.play`.

    Returns:
        the description.

    Raises:
        ConfigError: an argument that cannot be used, or a package or compiler that is missing.
        ExportError: the graph cannot be exported, or what was exported does not act as PyTorch does. Nothing is
            published then.
    """
    chosen = find_format(format)
    if noise not in NOISE:
        raise ConfigError(f"noise={noise} is unknown{did_you_mean(str(noise), NOISE)}; known: {', '.join(NOISE)}")
    require("opset", type(opset) is int and opset >= OPSET, opset, f"a whole number of at least {OPSET}")
    require("out", path.suffix == chosen.suffix, path, f"a file whose name ends in {chosen.suffix}")
    acting = loaded.acting(num_candidates)
    graph = (FromObservation if loaded.policy.deterministic else NOISE[noise])(acting).eval()
    description = describe(loaded, graph, format) | ({"opset": opset} if format == "onnx" else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent, ".exporting-") as folder, torch.no_grad():
        written, beside = folder / path.name, folder / description_of(path).name
        try:
            chosen.write(graph, written, {name: json.dumps(value) for name, value in description.items()}, opset)
            run = chosen.open(written)
            difference = largest_difference(graph, run)
        except Exception as error:  # of exporters, compilers and runtimes, of whatever kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ExportError(f"{loaded.origin['ckpt']} cannot be exported as format={format}: {reason}") from error
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the exported policy does not act as PyTorch does: on random observations its actions differ by up to "
                f"{difference:.2g} of [-1, 1], and {TOLERANCE:g} is allowed. {path} is not written"
            )
        description["compared"] = {"batches": list(BATCHES), "largest_difference": difference}
        if play is not None:
            played = play(graph, run)
            description["played"] = played.to_json_dict()
            if not played.agrees:
                said = description["played"]
                raise ExportError(
                    f"the exported policy does not play as PyTorch does: {said['score']} {said['exported']:.3g} over "
                    f"{said['episodes']} episodes, and {said['pytorch']:.3g} in PyTorch. {path} is not written"
                )
        write_json(beside, description)
        move_into_place((written, path), (beside, description_of(path)))
    return description


def description_of(path: Path) -> Path:
    """The JSON file beside an exported one."""
    return path.with_name(f"{path.name}.json")


def describe(loaded: LoadedPolicy, graph: Graph, format: str) -> dict[str, Any]:
    """Inputs and outputs by their names, and where the policy comes from: plain data, in the file and beside it."""
    acting, interface = graph.acting, loaded.interface
    images = interface.spec.image_shape is not None
    entries: list[dict[str, Any]] = [] if interface.keys is None else [{"name": key} for key in interface.keys]
    if interface.shapes is not None:
        entries = [
            entry | {"shape": list(shape)} for entry, shape in zip(entries or [{}], interface.shapes, strict=True)
        ]
    known = {
        "observation": {
            "type": str(interface.dtype).removeprefix("torch."),
            "shape": ["batch", *interface.shape],
            "meaning": "frames, height, width, channels; the oldest frame first" if images else "not normalised",
            **({"entries": entries} if entries else {}),
        },
        "noise": {
            "type": "float32",
            "shape": ["batch", acting.num_candidates, acting.policy.action_dim],
            "meaning": "standard normal numbers, new ones for every action",
        },
        "seed": {"type": "int64", "shape": [], "meaning": "of the noise, from 0; another one for every step"},
    }
    return {
        "format": format,
        "inputs": {name: known[name] for name in graph.inputs},
        "outputs": {
            OUTPUT: {
                "type": "float32",
                "shape": ["batch", acting.policy.action_dim],
                "low": list(interface.low),
                "high": list(interface.high),
            }
        },
        "env": interface.env_id,
        "num_candidates": acting.num_candidates,
        **loaded.origin,
        "versions": records.versions(_PACKAGES),
    }
