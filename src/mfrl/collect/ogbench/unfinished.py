"""The episodes of a dataset under way, on the disk: an interrupted collection, or a killed one, goes on with them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mfrl.collect.ogbench.episode import Episode
from mfrl.data import records
from mfrl.errors import CollectError
from mfrl.system.files import Locked, lasting_folder, replacing

_CHECKSUM = "crc32"


class Unfinished:
    """Episodes by split and index, each of which is there whole or not at all.

    A split is a file of records in NumPy's format, a record for each episode, whose last field is the checksum of the
    others. Only pages that were written take room.

    Args:
        folder: for the files.
        counts: how many episodes each split is going to have.
    """

    def __init__(self, folder: Path, counts: dict[str, int]) -> None:
        self._folder, self._counts = folder, counts

    def there(self) -> set[tuple[str, int]]:
        """The splits and indices of the episodes that are there."""
        found = set()
        for split in self._counts:
            if self._path(split).exists():
                for index, record in enumerate(self._records(split)):
                    if record[_CHECKSUM] == _checksum(record):
                        found.add((split, index))
        return found

    def put(self, split: str, index: int, episode: Episode) -> None:
        """Store an episode. All of a dataset have the same fields and shapes.

        Raises:
            OSError: it could not be written.
        """
        record = np.zeros((), _record(episode))
        for field, values in episode.items():
            record[field] = values
        record[_CHECKSUM] = _checksum(record)
        for each in self._counts:
            if not self._path(each).exists():
                with replacing(self._path(each)) as part:
                    np.lib.format.open_memmap(part, "w+", record.dtype, (self._counts[each],)).flush()
        offset = self._records(split).offset + index * record.itemsize
        # Not through the memory map, in which a full disk would end the process.
        with open(self._path(split), "r+b") as file:
            file.seek(offset)
            file.write(record.tobytes())

    def arrays(self, split: str) -> dict[str, np.ndarray]:
        """The fields of a split whose episodes are all there, `(episodes * steps, ...)`."""
        stored = self._records(split)
        fields = [field for field in stored.dtype.names or () if field != _CHECKSUM]
        return {field: stored[field].reshape(-1, *stored[field].shape[2:]) for field in fields}

    def _path(self, split: str) -> Path:
        return self._folder / f"{split}.npy"

    def _records(self, split: str) -> np.memmap:
        return np.lib.format.open_memmap(self._path(split), "r")


@contextmanager
def unfinished_episodes(
    folder: Path, dataset: str, made_by: dict[str, Any], counts: dict[str, int]
) -> Iterator[Unfinished]:
    """A hidden place in ``folder`` for the episodes of a dataset, which is gone after the block if it ends well.

    Args:
        made_by: all that the episodes depend on, as plain data; of others they are not gone on with.
        counts: see :class:`Unfinished`.

    Raises:
        CollectError: another process is collecting the same.
    """
    depends = made_by | {"versions": records.versions(), "counts": counts}
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    try:
        with lasting_folder(folder / f".unfinished-{dataset}-{key}") as place:
            yield Unfinished(place, counts)
    except Locked:
        raise CollectError(f"another process is collecting {dataset} into {folder} with the same settings") from None


def _record(episode: Episode) -> np.dtype:
    fields: list[Any] = [(field, values.dtype, values.shape) for field, values in episode.items()]
    return np.dtype([*fields, (_CHECKSUM, np.uint32)])


def _checksum(record: Any) -> int:
    """Of all fields but the last, which has it."""
    return zlib.crc32(record.tobytes()[: -np.dtype(np.uint32).itemsize])
