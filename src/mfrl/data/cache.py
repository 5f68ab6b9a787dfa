"""The cache of prepared transitions: files that are made once and that all runs of a machine map into memory.

A preparation writes ``.npy`` files; the next start opens them::

    <data_dir>/.prepared/<name>/meta.json            what was prepared from what, and the checksums of all files
    <data_dir>/.prepared/<name>/observations.npy     one file a field
    <data_dir>/.prepared/checksums.json              checksums by size, time and inode, see records.Checksums

A rename makes an entry appear once all of it is on the disk, so that no entry is half-written. The cache makes an entry
anew that was damaged later, or whose sources have changed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import mfrl
from mfrl.data.records import Checksums
from mfrl.data.storage import Pages
from mfrl.errors import DataError, require
from mfrl.system.files import lack_of_room, move_into_place, one_at_a_time, temporary_folder, write_json

FORMAT = 1  #: of the files; entries of another are made again
GIB = 1 << 30
_WORTH_A_LINE = GIB  # preparing so many bytes takes long enough to be told
_BLOCK = 1 << 26  # bytes copied together
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class CacheError(DataError):
    """Prepared data cannot be kept: there is no room, or nowhere to write."""


class Store(Protocol):
    """Takes the fields that a preparation writes."""

    def write(self, field: str, shape: tuple[int, ...], dtype: Any, blocks: Iterable[np.ndarray]) -> np.ndarray:
        """Store a field that arrives in blocks of rows, and return it, mapped if it lies in a file."""


#: Writes every field to a store, and returns what else is to be kept, as plain data.
Build = Callable[[Store], dict[str, Any]]


@dataclass(frozen=True)
class Prepared:
    """A prepared part of a dataset.

    Attributes:
        arrays: its fields. Those in files are read-only ``np.memmap``, of which nothing has been read yet.
        facts: the plain data that the preparation returned.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class Cache:
    """The prepared data of one ``data_dir``.

    Args:
        data_dir: the folder of the sources.
        where: the folder of the entries, which several ``data_dir`` may share. False keeps nothing. True means
            ``data_dir`` or, if that is read-only, a folder below ``$XDG_CACHE_HOME`` (``~/.cache``). None is like True,
            but if there is no room on the disk, data that fit into memory are prepared there at every start.
        memory_gib: the most data that may lie in memory.
        read_only: use entries in ``data_dir``, but write new ones only below ``$XDG_CACHE_HOME``.

    Attributes:
        checksums: of the sources, remembered beside the entries.
        warnings: sentences that a user should read before training.
    """

    def __init__(
        self, data_dir: Path, where: bool | str | None = None, memory_gib: float = 4.0, read_only: bool = False
    ) -> None:
        require("data.memory_gib", memory_gib >= 0.0, memory_gib, "at least 0")
        if isinstance(where, str) and not ("/" in where or Path(where).is_dir()):
            require("data.cache", False, where, "null, true, false or a folder, with a / in it if it is to be made")
        self.allowed, self.required = where is not False, where not in (None, False)
        self.budget = int(memory_gib * GIB)
        self.read, self.roots = [], _roots(data_dir, where)
        if read_only and self.roots:
            self.read, self.roots = self.roots, _roots(data_dir, None)[1:]
        self.checksums = Checksums(self.roots, self.read)
        self.warnings: list[str] = []

    def prepared(self, name: str, key: dict[str, Any], build: Build) -> Prepared:
        """The entry ``name``. ``build`` makes it unless there is one with this ``key``.

        Args:
            name: of the entry's folder.
            key: everything that shapes the content, above all checksums of the sources, as plain data. A part of the
                entry's key that ``key`` leaves out is not compared.
            build: writes the fields to a store.

        Raises:
            CacheError: the entry cannot be written and does not fit into memory.
            DataError: from ``build``.
        """
        key = json.loads(json.dumps({"format": FORMAT, **key}))  # as it comes back from a file
        for root in (*self.read, *self.roots):
            if (entry := self._opened(root / name, key)) is not None:
                return entry
        problem = ""
        for root in self.roots:
            try:
                with one_at_a_time(root / f".{name}.lock"):
                    # Another process may have made it while this one waited.
                    return self._opened(root / name, key, tell=True) or self._built(root, name, key, build)
            except OSError as error:
                problem = f"the prepared {name} cannot be kept in {root}: {error.strerror or error}"
                if error.errno not in _READ_ONLY:
                    break
        advice = "free some room, or choose another folder (data.cache=FOLDER) or none (data.cache=false)"
        if self.required:
            raise CacheError(f"{problem}; {advice}")
        if self.allowed:
            self.warnings.append(f"{problem}. It is prepared in memory, at every start anew; {advice}")
        store = _Memory(self.budget)
        try:
            prepared = Prepared(store.arrays, build(store))
        except CacheError as error:
            raise CacheError(f"{problem}, and {error}" if self.allowed else str(error)) from error
        self.budget = store.left
        return prepared

    def _opened(self, folder: Path, key: dict[str, Any], tell: bool = False) -> Prepared | None:
        """The entry in ``folder`` if it is whole and has this key, otherwise None."""
        if not os.path.exists(folder):
            return None
        meta = _meta(folder)
        if meta is not None and not _same({name: meta["key"].get(name) for name in key}, key):
            return None
        try:
            if meta is None:
                raise ValueError("meta.json cannot be read")
            arrays = {}
            for field, expected in meta["files"].items():
                path = folder / f"{field}.npy"
                if self.checksums.of(path) != expected:
                    raise ValueError(f"{path.name} is not what was written")
                arrays[field] = _map(path)
        except (OSError, ValueError) as error:
            if tell:
                self.warnings.append(f"{folder} is damaged ({error}) and is prepared again")
            return None
        # Another process may have put a new entry in its place while the files were opened.
        return Prepared(arrays, meta["facts"]) if _same(_meta(folder), meta) else None

    def _built(self, root: Path, name: str, key: dict[str, Any], build: Build) -> Prepared:
        folder = root / name
        with temporary_folder(root, f".{name}.tmp") as building:
            new = building / name
            new.mkdir()
            store = _Files(new, root)
            facts = json.loads(json.dumps(build(store)))
            meta = {"key": key, "facts": facts, "files": store.files, "mfrl": mfrl.__version__}
            write_json(new / "meta.json", meta, nan=True)  # a dataset's own description may hold it
            move_into_place((new, folder))
        for field, written in store.files.items():
            self.checksums.remember(folder / f"{field}.npy", written["sha256"])
        return Prepared({field: _map(folder / f"{field}.npy") for field in store.files}, facts)

    def in_memory(self, parts: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """The same fields. The smallest are read into memory while there is room; the others stay ``np.memmap``."""
        fields = [(array.nbytes, k, field) for k, part in enumerate(parts) for field, array in part.items()]
        parts = [dict(part) for part in parts]
        for size, k, field in sorted(fields):
            array = parts[k][field]
            if isinstance(array, np.memmap) and size <= self.budget:
                self.budget -= size
                parts[k][field] = _read(array)
        return parts


class _Memory:
    """A store in memory, of limited size."""

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.arrays: dict[str, np.ndarray] = {}

    def write(self, field: str, shape: tuple[int, ...], dtype: Any, blocks: Iterable[np.ndarray]) -> np.ndarray:
        self.left -= math.prod(shape) * np.dtype(dtype).itemsize
        if self.left < 0:
            raise CacheError(
                f"field '{field}' of shape {shape} does not fit into memory as data.memory_gib has it: allow more, or "
                "choose a folder with room for the prepared data (data.cache=FOLDER)"
            )
        array = self.arrays[field] = np.empty(shape, dtype)
        at = 0
        for block in blocks:
            array[at : at + len(block)] = block
            at += len(block)
        assert at == len(array), f"{field}: {at} rows came, {len(array)} were announced"
        return array


class _Files:
    """A store of ``.npy`` files, with their checksums.

    Args:
        folder: the folder to write to.
        root: the folder in which they will lie, for messages.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.files: dict[str, dict[str, Any]] = {}

    def write(self, field: str, shape: tuple[int, ...], dtype: Any, blocks: Iterable[np.ndarray]) -> np.ndarray:
        path, dtype = self.folder / f"{field}.npy", np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if lack := lack_of_room(self.root, size, f"field '{field}' takes"):
            raise OSError(errno.ENOSPC, lack)
        if size > _WORTH_A_LINE:
            print(f"Preparing {size / GIB:.1f} GiB in {self.root}, once", file=sys.stderr)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        rows, digest = 0, hashlib.sha256(header.getvalue())
        with path.open("wb") as file:
            file.write(header.getvalue())
            for block in blocks:
                block = np.ascontiguousarray(block, dtype)
                file.write(block.data)
                digest.update(block.data)
                rows += len(block)
            file.flush()
            os.fsync(file.fileno())
        assert rows == shape[0], f"{field}: {rows} rows came, {shape[0]} were announced"
        self.files[field] = {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}
        return _map(path)


def _roots(data_dir: Path, where: bool | str | None) -> list[Path]:
    """Folders that may hold entries, the best one first."""
    if where is False:
        return []
    digest = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:8]
    apart = f"{data_dir.resolve().name or 'data'}-{digest}"  # two folders may hold different files of one name
    if isinstance(where, str):
        return [Path(where).expanduser() / apart]
    of_user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return [data_dir / ".prepared", of_user / "mfrl" / apart]


def _meta(folder: Path) -> dict[str, Any] | None:
    """An entry's description of itself; None if there is no entry, or if it cannot be understood."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(meta, dict) and all(isinstance(meta.get(name), dict) for name in ("key", "facts", "files"))
    return meta if whole and all(Path(field).name == field for field in meta["files"]) else None


def _same(a: Any, b: Any) -> bool:
    """Whether plain data are equal. NaN equals NaN here, because a dataset's own description may hold it."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b or (a != a and b != b)


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read(array: np.memmap) -> np.ndarray:
    """A copy in memory, read part by part so that little is mapped at a time."""
    pages, copy = Pages([array]), np.empty(array.shape, array.dtype)
    for start in range(0, len(array), step := max(1, len(array) * _BLOCK // (array.nbytes + 1))):
        copy[start : start + step] = array[start : start + step]
        pages.give_back()
    return copy
