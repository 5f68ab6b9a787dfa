"""Read the fields of an ``.npz`` archive in blocks of rows, because a file may be larger than memory."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mfrl.errors import DataError

_BLOCK = 1 << 24  # bytes
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, NotImplementedError)
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Field:
    """The header of a field."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool  # stored column by column


class Npz:
    """An ``.npz`` file of numbers. Reading it executes nothing.

    Args:
        path: of the file. It is open only while something is read.

    Attributes:
        fields: the headers, by name.

    Raises:
        DataError: a field is damaged, cut off or holds no numbers; the message names file and field.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields: dict[str, Field] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".npy"):
                        field = name.removesuffix(".npy")
                        with archive.open(name) as member:
                            self.fields[field] = self._header(field, member)
        except _DAMAGE as error:
            raise DataError(f"{path}: damaged or truncated ({error}); collect or download it again") from error

    def __contains__(self, field: str) -> bool:
        return field in self.fields

    def shape(self, field: str) -> tuple[int, ...]:
        return self.fields[field].shape

    def dtype(self, field: str) -> np.dtype:
        """The type of a field's numbers.

        Raises:
            DataError: the field holds something other than numbers.
        """
        dtype = self.fields[field].dtype
        if dtype.kind == "O":
            raise DataError(f"{self.path}: field '{field}' is damaged or refused (it holds objects, not numbers)")
        if dtype.kind not in "fiub":
            raise DataError(f"{self.path}: field '{field}' holds {dtype}, expected numbers")
        return dtype

    def read(self, field: str) -> np.ndarray:
        """The whole field, which must fit into memory."""
        blocks = list(self.blocks(field))
        return np.concatenate(blocks) if blocks else np.empty(self.shape(field), self.dtype(field))

    def blocks(self, field: str, rows: int | None = None) -> Iterator[np.ndarray]:
        """The field block by block: ``rows`` rows each, or a few megabytes."""
        dtype, header = self.dtype(field), self.fields[field]
        width = math.prod(header.shape[1:]) * dtype.itemsize
        rows = rows or max(1, _BLOCK // max(1, width))
        if header.fortran:  # no row lies in one piece
            yield from self._of_columns(field, rows)
            return
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{field}.npy") as member:
                self._header(field, member)
                for start in range(0, header.shape[0], rows):
                    count = min(rows, header.shape[0] - start)
                    data = member.read(count * width)
                    if len(data) < count * width:
                        raise EOFError(f"it ends at row {start + len(data) // max(1, width)} of {header.shape[0]}")
                    if start + count == header.shape[0] and member.read(1):  # also checks the checksum
                        raise ValueError("there is more than its header announces")
                    yield np.frombuffer(data, dtype).reshape(count, *header.shape[1:])
        except _DAMAGE as error:
            raise DataError(f"{self.path}: field '{field}' is damaged ({error})") from error

    def _of_columns(self, field: str, rows: int) -> Iterator[np.ndarray]:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                array = file[field]
        except _DAMAGE as error:
            raise DataError(f"{self.path}: field '{field}' is damaged ({error})") from error
        for start in range(0, len(array), rows):
            yield array[start : start + rows]

    def _header(self, field: str, member: IO[bytes]) -> Field:
        try:
            read: Any = _READ_HEADER[np.lib.format.read_magic(member)]
            shape, fortran, dtype = read(member)
        except (KeyError, *_DAMAGE) as error:
            raise DataError(f"{self.path}: field '{field}' is damaged or refused ({error})") from error
        return Field(shape, dtype, fortran)
