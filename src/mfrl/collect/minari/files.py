"""The folder of a Minari dataset: checks its name, refuses to replace foreign data, and moves it into place."""

from __future__ import annotations

from pathlib import Path

from mfrl.collect.writing import refuse_to_replace
from mfrl.data.minari_files import RECORD, checked_id, fingerprints
from mfrl.errors import CollectError
from mfrl.system.files import lack_of_room, move_into_place

PUBLISHED_NAMESPACES = ("D4RL", "mujoco", "atari")  #: on Minari's server; data that are collected here need other names
HEADROOM = 64 << 20  #: bytes that must stay free; on a full disk HDF5 crashes the process, and nothing is cleaned up


def check_free_to_make(dataset: str) -> None:
    """Check the id of a dataset that is going to be collected.

    Raises:
        DataError: it is no id, or leads out of the folder of datasets.
        CollectError: Minari does not accept it, or it is in a namespace of published datasets.
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    namespace, _, name = checked_id(dataset).partition("/")
    try:
        parse_dataset_id(dataset)
    except ValueError as error:
        raise CollectError(f"{dataset!r} is no id to Minari: a namespace has at least two characters") from error
    if namespace.lower() in map(str.lower, PUBLISHED_NAMESPACES):
        raise CollectError(
            f"{dataset}: {namespace} is a namespace of published datasets, and what is collected here must not pass "
            f"for one; choose another, e.g. mfrl/{name}"
        )


def check_free_to_write(root: Path, dataset: str, overwrite: bool) -> None:
    """Refuse to replace a dataset (see :func:`refuse_to_replace`), or to write inside the folder of another one.

    Raises:
        CollectError: another dataset is in the way. The message names it.
    """
    folder = root / dataset
    for parent in Path(dataset).parents[:-1]:
        if (root / parent / "data").exists():
            raise CollectError(f"{dataset} would lie inside the dataset {parent} in {root}; choose another id")
    if folder.exists():
        refuse_to_replace(dataset, root, overwrite, folder / RECORD, dataset, lambda: fingerprints(folder))


def check_room(building: Path, share: float) -> None:
    """Check that the disk has room for the rest of a dataset.

    Args:
        building: the folder in which it is written.
        share: the share that is written, from 0 to 1. The size of the rest is estimated from it.

    Raises:
        CollectError: there is too little room. The message has the sizes.
    """
    written = sum(path.stat().st_size for path in building.rglob("*") if path.is_file())
    needed = HEADROOM + (written * (1.0 / share - 1.0) if share else 0.0)
    if lack := lack_of_room(building.parent, needed, "the rest of the dataset may take"):
        raise CollectError(lack)


def publish(building: Path, root: Path, dataset: str) -> Path:
    """Move a finished dataset into a folder of datasets, together with descriptions of its namespaces if it has none.

    Args:
        building: the folder that contains the finished dataset.
        root: the folder of datasets.
        dataset: the Minari id.

    Returns:
        the dataset's folder.
    """
    namespaces = [namespace / "namespace_metadata.json" for namespace in reversed(Path(dataset).parents[:-1])]
    new = [path for path in namespaces if not (root / path).exists()]
    move_into_place(*((building / path, root / path) for path in (*new, Path(dataset))))
    return root / dataset
