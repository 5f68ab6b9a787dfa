"""Files and folders that get their names together or not at all, and what a disk has room for."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfrl.errors import free_bytes
from mfrl.system.files import lack_of_room, move_into_place, temporary_folder


def tree(folder: Path) -> dict[str, str | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None for path in folder.rglob("*")
    }


def put(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def test_files_and_folders_take_the_places_of_old_ones(tmp_path: Path) -> None:
    home = put(tmp_path / "home", record="old", data="old")
    put(home / "folder", part="old", more="old")
    with temporary_folder(home, ".new-") as new:
        put(new, record="new", data="new", first="new")
        put(new / "folder", part="new")
        names = {"record": "record", "folder": "folder", "first": "a/b/first", "data": "data"}
        move_into_place(*((new / name, home / place) for name, place in names.items()))
    files = {"record": "new", "data": "new", "folder/part": "new", "a/b/first": "new"}
    assert tree(home) == files | {"folder": None, "a": None, "a/b": None}


def test_when_one_of_them_cannot_be_moved_all_is_as_it_was(tmp_path: Path) -> None:
    home = put(tmp_path / "home", record="old", file="no folder")
    put(home / "folder", part="old")
    before = tree(home)
    with temporary_folder(home, ".new-") as new:
        put(new, record="new", data="new")
        put(new / "folder", part="new")
        places = {"record": "record", "folder": "folder", "data": "a/b/data", "missing": "missing"}
        with pytest.raises(FileNotFoundError):
            move_into_place(*((new / name, home / place) for name, place in places.items()))
        with pytest.raises(OSError, match="file"):
            move_into_place((new / "record", home / "record"), (new / "data", home / "file" / "data"))
        assert (new / "record").read_text() == (new / "folder" / "part").read_text() == "new"
    assert tree(home) == before


def test_room_that_is_not_there_is_told_with_both_sizes(tmp_path: Path) -> None:
    assert lack_of_room(tmp_path, 1, "this takes") is None
    free = free_bytes(tmp_path)
    told = lack_of_room(tmp_path, 2 * free + 10**12, "this takes")
    assert told is not None
    assert str(tmp_path) in told
    assert told.count(" GB") == 2
    assert "1 MB" not in told
