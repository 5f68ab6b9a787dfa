"""A Minari dataset's folder: what it may be called, what it may replace, and how it gets into its place."""

from __future__ import annotations

from pathlib import Path

from mfrl.collect.writing import refuse_to_replace
from mfrl.data.minari_files import RECORD, checked_id, fingerprints
from mfrl.errors import CollectError
from mfrl.system.files import lack_of_room, move_into_place

PUBLISHED_NAMESPACES = ("D4RL", "mujoco", "atari")  # of Minari's server: what is made here must not pass for theirs
HEADROOM = 64 << 20  # bytes that must stay free: HDF5 crashes on a full disk, which no clean-up survives


def check_free_to_make(dataset: str) -> None:
    """Refuse what is no Minari id, leads out of the folder of datasets, or would pass for a published dataset.

    Raises:
        DataError: it is no id.
        CollectError: Minari does not take it, or it is in a namespace of published datasets.
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
    """Refuse to touch a dataset that is there, see :func:`refuse_to_replace`, or to write inside another.

    Raises:
        CollectError: something is in the way; the message says what and why it stays.
    """
    folder = root / dataset
    for parent in Path(dataset).parents[:-1]:
        if (root / parent / "data").exists():
            raise CollectError(f"{dataset} would lie inside the dataset {parent} in {root}; choose another id")
    if folder.exists():
        refuse_to_replace(dataset, root, overwrite, folder / RECORD, dataset, lambda: fingerprints(folder))


def check_room(building: Path, share: float) -> None:
    """Stop before the disk is full: what is still to come is as large as what was written, by ``share`` of the whole.

    Raises:
        CollectError: with the sizes.
    """
    written = sum(path.stat().st_size for path in building.rglob("*") if path.is_file())
    needed = HEADROOM + (written * (1.0 / share - 1.0) if share else 0.0)
    if lack := lack_of_room(building.parent, needed, "the rest of the dataset may take"):
        raise CollectError(lack)


def publish(building: Path, root: Path, dataset: str) -> Path:
    """Move a finished dataset from one Minari root to another, and descriptions of its namespaces where there are none.

    Returns:
        where the dataset is.
    """
    namespaces = [namespace / "namespace_metadata.json" for namespace in reversed(Path(dataset).parents[:-1])]
    new = [path for path in namespaces if not (root / path).exists()]
    move_into_place(*((building / path, root / path) for path in (*new, Path(dataset))))
    return root / dataset
