"""A trained expert as plain arrays, and the action it takes: OGBench's ants walk by one.

    h_0 = o,   h_i = gelu(W_i h_{i-1} + b_i),   a = tanh(M h_n + c)

a is the mode of a tanh Gaussian, gelu its tanh form, as in OGBench's training script. The shipped experts were trained
by mfrl, not by OGBench: :mod:`mfrl.collect.ogbench.training` makes them out of a run. This module loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from mfrl.data import records
from mfrl.errors import CollectError, refused_by_system
from mfrl.system.files import move_into_place, temporary_folder, write_json

#: Where the experts lie that come with mfrl: NAME.npz, and NAME.json, which says how it came about.
EXPERTS = Path(__file__).parent / "experts"
#: How each of them is trained, as an override of `mfrl train`.
TRAINING = {"ant": "experiment=ant_expert"}

_CUBE, _SLOPE = np.float32(0.044715), np.float32(math.sqrt(2.0 / math.pi))


@dataclass(frozen=True)
class Expert:
    """A deterministic policy.

    Args:
        hidden: weight ``(width, width before)`` and bias ``(width,)`` of each hidden layer, float32.
        mean: the same of the output: ``(action_dim, last width)`` and ``(action_dim,)``.
        origin: how it came about, as plain data, for the records of what it collects.
    """

    hidden: tuple[tuple[np.ndarray, np.ndarray], ...]
    mean: tuple[np.ndarray, np.ndarray]
    origin: dict[str, Any]

    @property
    def observation_dim(self) -> int:
        return int((*self.hidden, self.mean)[0][0].shape[1])

    @property
    def action_dim(self) -> int:
        return int(self.mean[0].shape[0])

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The action ``(action_dim,)`` in [-1, 1], float32, in a state ``(observation_dim,)``."""
        h = observation.astype(np.float32)
        for weight, bias in self.hidden:
            h = _gelu(_affine(weight, bias, h))
        return np.tanh(_affine(*self.mean, h))

    @property
    def checksum(self) -> str:
        """SHA-256 of the arrays, by which the records of data tell experts apart, whatever files they came in."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            digest.update(f"{name} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by their names in the file."""
        layers = {f"hidden_{i}": layer for i, layer in enumerate(self.hidden)} | {"mean": self.mean}
        return {
            f"{name}.{part}": array for name, layer in layers.items() for part, array in zip(_PARTS, layer, strict=True)
        }


_PARTS = ("weight", "bias")


def _affine(weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    # Not `weight @ x`: BLAS sums in an order that depends on the number of threads, and data must not.
    return np.einsum("ij,j->i", weight, x) + bias


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * x * (np.float32(1.0) + np.tanh(_SLOPE * (x + _CUBE * x * x * x)))


def expert_from(arrays: dict[str, np.ndarray], origin: dict[str, Any], source: str) -> Expert:
    """An expert of arrays by the names of :meth:`Expert.arrays`.

    Args:
        source: of the arrays, for messages.

    Raises:
        CollectError: an array is missing, too many, of another kind, or does not fit the one before it.
    """
    names = next(i for i in count() if f"hidden_{i}.weight" not in arrays)
    layers = [*(f"hidden_{i}" for i in range(names)), "mean"]
    wanted = [f"{layer}.{part}" for layer in layers for part in _PARTS]
    if missing := [name for name in wanted if name not in arrays]:
        raise CollectError(f"{source} is no expert: {missing[0]} is missing")
    if foreign := sorted(arrays.keys() - set(wanted)):
        raise CollectError(f"{source} is no expert: nobody knows what its {foreign[0]} is for")
    for name in wanted:
        array = arrays[name]
        if array.dtype != np.float32 or array.ndim != (2 if name.endswith("weight") else 1):
            raise CollectError(f"{source} is no expert: {name} is {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            raise CollectError(f"{source} is no expert: {name} has numbers that are not finite")
    pairs = [(arrays[f"{layer}.weight"], arrays[f"{layer}.bias"]) for layer in layers]
    before = pairs[0][0].shape[1]
    for layer, (weight, bias) in zip(layers, pairs, strict=True):
        if weight.shape != (len(bias), before):
            raise CollectError(
                f"{source} is no expert: {layer}.weight is {weight.shape}, where {before} numbers come in and "
                f"{layer}.bias has {len(bias)}"
            )
        before = len(bias)
    return Expert(tuple(pairs[:-1]), pairs[-1], origin)


def shipped(name: str) -> Expert:
    """The expert of this name that comes with mfrl.

    Raises:
        CollectError: it is not there, or is none.
    """
    path = EXPERTS / f"{name}.npz"
    if not path.is_file():
        raise CollectError(
            f"the expert {path} is not there. Train one and use it:  mfrl train {TRAINING[name]} run_dir=runs/{name}   "
            f"then policy=ckpt:runs/{name}"
        )
    return read(path)


def read(path: Path) -> Expert:
    """An expert out of a file ``NAME.npz`` with ``NAME.json`` beside it. Nothing in them is executed.

    Raises:
        CollectError: saying what is wrong with which file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds
        raise CollectError(
            f"{path} cannot be read as an expert's arrays: {refused_by_system(error) or error}"
        ) from error
    record = path.with_suffix(".json")
    try:
        origin = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CollectError(f"{record}, which says how the expert came about, cannot be read: {error}") from error
    checksum = records.sha256(path)
    if not isinstance(origin, dict) or origin.get("sha256") != checksum:
        raise CollectError(f"{record} does not speak of the {path.name} beside it, whose SHA-256 is {checksum}")
    return expert_from(arrays, origin, str(path))


def write(expert: Expert, folder: Path, name: str) -> Path:
    """Write ``NAME.npz`` and ``NAME.json`` into a folder, both or neither; returns the path of the first.

    Raises:
        OSError: they could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder, ".expert-") as building:
        arrays, record = building / f"{name}.npz", building / f"{name}.json"
        np.savez_compressed(arrays, **expert.arrays())  # type: ignore[arg-type]  # an array by its name
        write_json(record, expert.origin | {"sha256": records.sha256(arrays)})
        move_into_place((arrays, folder / arrays.name), (record, folder / record.name))
    return folder / f"{name}.npz"
