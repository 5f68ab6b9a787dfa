"""The cache of prepared data: made once, whole or not there, and never in the way of training."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfrl.data import records
from mfrl.data.cache import Cache, CacheError, Store
from mfrl.data.records import Checksums
from mfrl.data.storage import Pages
from mfrl.errors import ConfigError, DataError

NUMBERS = np.arange(600.0, dtype=np.float32).reshape(200, 3)
KEY = {"sources": {"a.npz": {"sha256": "0"}}}


class Builds:
    """A preparation that counts how often it is asked for."""

    def __init__(self, numbers: np.ndarray = NUMBERS) -> None:
        self.numbers, self.count = numbers, 0

    def __call__(self, store: Store) -> dict[str, Any]:
        self.count += 1
        store.write("large", self.numbers.shape, np.float32, np.array_split(self.numbers, 7))
        store.write("small", (4,), np.int64, [np.arange(2), np.arange(2, 4)])
        return {"mean": 0.1 + 0.2, "n": self.count}


def open_entry(data_dir: Path, build: Callable[[Store], dict[str, Any]], key: dict[str, Any] = KEY, **settings: Any):
    cache = Cache(data_dir, **settings)
    return cache.prepared("set-v0", key, build), cache


def nothing_half_written(root: Path) -> bool:
    return not [path for path in root.rglob("*") if ".tmp" in path.name or path.name.startswith(".in-use")]


def test_an_entry_is_made_once_and_then_opened(tmp_path: Path) -> None:
    build = Builds()
    for _ in range(3):
        entry, cache = open_entry(tmp_path, build)
        assert isinstance(entry.arrays["large"], np.memmap)
        np.testing.assert_array_equal(entry.arrays["large"], NUMBERS)
        assert entry.arrays["small"].tolist() == [0, 1, 2, 3]
        assert entry.facts == {"mean": 0.1 + 0.2, "n": 1}
        assert not cache.warnings
    assert build.count == 1
    assert nothing_half_written(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        entry.arrays["large"][0] = 0.0


def test_another_key_takes_the_place_of_a_stale_entry(tmp_path: Path) -> None:
    open_entry(tmp_path, Builds())
    old, _ = open_entry(tmp_path, Builds())
    new, cache = open_entry(tmp_path, Builds(NUMBERS + 1.0), {"sources": {"a.npz": {"sha256": "1"}}})
    np.testing.assert_array_equal(new.arrays["large"], NUMBERS + 1.0)
    np.testing.assert_array_equal(old.arrays["large"], NUMBERS)  # a run that goes on keeps what it opened
    assert not cache.warnings
    assert sorted(path.name for path in (tmp_path / ".prepared").glob("[!.]*")) == ["checksums.json", "set-v0"]


def test_what_is_no_number_is_the_same_the_next_time(tmp_path: Path) -> None:
    # A dataset's own description may hold NaN, which equals nothing.
    key, made = KEY | {"description": {"scores": [float("nan"), 1.0]}}, []

    def build(store: Store) -> dict[str, Any]:
        made.append(1)
        store.write("small", (4,), np.int64, [np.arange(4)])
        return {"mean": float("nan")}

    for _ in range(3):
        entry, cache = open_entry(tmp_path, build, key)
        assert np.isnan(entry.facts["mean"])
        assert cache.warnings == []
    open_entry(tmp_path, build, KEY | {"description": {"scores": [float("nan"), 2.0]}})
    assert len(made) == 2


def test_what_a_key_leaves_out_is_not_compared(tmp_path: Path) -> None:
    build = Builds()
    open_entry(tmp_path, build, KEY | {"labelled by": "1.2"})
    open_entry(tmp_path, build, KEY)
    assert build.count == 1
    open_entry(tmp_path, build, KEY | {"labelled by": "1.3"})
    assert build.count == 2


DAMAGE = {
    "field missing": lambda folder: (folder / "large.npy").unlink(),
    "cut off": lambda folder: os.truncate(folder / "large.npy", 1000),
    "empty": lambda folder: os.truncate(folder / "small.npy", 0),
    "longer": lambda folder: (folder / "large.npy").open("ab").write(b"x"),
    "other numbers": lambda folder: np.save(folder / "large.npy", NUMBERS + 1.0),
    "other shape": lambda folder: np.save(folder / "large.npy", NUMBERS.reshape(100, 6)),
    "objects": lambda folder: np.save(folder / "small.npy", np.array([{}], object), allow_pickle=True),
    "no description": lambda folder: (folder / "meta.json").unlink(),
    "half a description": lambda folder: os.truncate(folder / "meta.json", 50),
    "another description": lambda folder: (folder / "meta.json").write_text('["large"]'),
    "a path for a field": lambda folder: (folder / "meta.json").write_text(
        (folder / "meta.json").read_text().replace('"small"', '"../../small"')
    ),
    "empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_entry_is_noticed_and_made_again(case: str, tmp_path: Path) -> None:
    build = Builds()
    open_entry(tmp_path, build)
    DAMAGE[case](tmp_path / ".prepared" / "set-v0")
    entry, cache = open_entry(tmp_path, build)
    assert build.count == 2
    assert "is damaged" in cache.warnings[0]
    np.testing.assert_array_equal(entry.arrays["large"], NUMBERS)
    entry, cache = open_entry(tmp_path, build)
    assert build.count == 2
    assert not cache.warnings


def test_touched_or_copied_files_are_looked_at_once_more_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, seen = Builds(), []
    open_entry(tmp_path, build)
    digest = records.sha256
    monkeypatch.setattr(records, "sha256", lambda path: seen.append(Path(path).name) or digest(path))
    open_entry(tmp_path, build)
    assert seen == []
    os.utime(tmp_path / ".prepared" / "set-v0" / "large.npy", (1, 1))
    open_entry(tmp_path, build)
    open_entry(tmp_path, build)
    assert seen == ["large.npy"]
    shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-copy"))
    open_entry(tmp_path.with_name(f"{tmp_path.name}-copy"), build)
    assert build.count == 1


def test_checksums_follow_the_bytes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = Checksums([tmp_path]).of(path)
    assert first == records.fingerprint(path)
    path.write_bytes(b"three")
    assert Checksums([tmp_path]).of(path) == records.fingerprint(path) != first
    before = path.stat()
    path.write_bytes(b"THREE")  # of the same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert Checksums([tmp_path]).of(path) == records.fingerprint(path)


@pytest.mark.parametrize("text", ["", "[1]", '{"%s": 3}', '{"%s": [1, 2, 3]}'])
def test_remembered_checksums_that_make_no_sense_are_forgotten(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    (tmp_path / "checksums.json").write_text(text.replace("%s", str(path.resolve())))
    assert Checksums([tmp_path]).of(path) == records.fingerprint(path)


def test_a_preparation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(store: Store) -> dict[str, Any]:
        Builds()(store)
        raise DataError("the file is bad")

    with pytest.raises(DataError, match="the file is bad"):
        open_entry(tmp_path, build)
    assert not list((tmp_path / ".prepared").glob("[!.]*-v0"))
    assert nothing_half_written(tmp_path)


# ---- no room, no permission


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Writing more fails in the system, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_without_room_data_are_prepared_in_memory_with_a_warning(tmp_path: Path) -> None:
    build = Builds()
    with no_file_larger_than(1500):
        entry, cache = open_entry(tmp_path, build)
    assert type(entry.arrays["large"]) is np.ndarray
    np.testing.assert_array_equal(entry.arrays["large"], NUMBERS)
    assert "set-v0 cannot be kept" in cache.warnings[0]
    assert "data.cache=FOLDER" in cache.warnings[0]
    assert nothing_half_written(tmp_path)
    entry, cache = open_entry(tmp_path, build)  # there is room now
    assert isinstance(entry.arrays["large"], np.memmap)
    assert not cache.warnings


def test_without_room_who_insists_on_the_cache_is_refused(tmp_path: Path) -> None:
    with no_file_larger_than(1500), pytest.raises(CacheError, match=r"set-v0 cannot be kept in .*; free some room"):
        open_entry(tmp_path, Builds(), where=True)
    assert nothing_half_written(tmp_path)


def test_without_room_on_disk_and_in_memory_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 100))
    with pytest.raises(CacheError, match=r"has 0 MB free.*does not fit into memory.*data\.memory_gib"):
        open_entry(tmp_path, Builds(), memory_gib=1000 / 2**30)
    assert nothing_half_written(tmp_path)


def test_memory_alone_is_not_used_beyond_its_bound(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"^field 'large' of shape \(200, 3\) does not fit into memory"):
        open_entry(tmp_path, Builds(), where=False, memory_gib=1000 / 2**30)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def somebody_else() -> Iterator[Path]:
    """A folder that everybody may read; as nobody in particular, where the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    before = os.geteuid()
    try:
        if before == 0:
            os.seteuid(65534)
        yield folder
    finally:
        os.seteuid(before)
        shutil.rmtree(folder)


def test_a_folder_that_is_read_only_is_prepared_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builds()
    with somebody_else() as folder, tempfile.TemporaryDirectory() as home:
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        data_dir = folder / "data"
        if os.geteuid() != 65534:
            data_dir.mkdir(mode=0o555)
        for _ in range(2):
            entry, cache = open_entry(data_dir, build)
            assert isinstance(entry.arrays["large"], np.memmap)
            assert Path(entry.arrays["large"].filename).is_relative_to(Path(home) / "mfrl")
            assert not cache.warnings
        assert build.count == 1
        assert not (data_dir / ".prepared").exists()


def test_an_entry_in_a_folder_that_is_read_only_is_used(tmp_path_factory: pytest.TempPathFactory) -> None:
    build = Builds()
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    open_entry(folder, build)
    before = os.geteuid()
    try:
        for path in folder.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if before == 0:
            os.seteuid(65534)
        entry, cache = open_entry(folder, build)
        assert Path(entry.arrays["large"].filename).is_relative_to(folder)
        assert not cache.warnings
        assert build.count == 1
    finally:
        os.seteuid(before)
        (folder / ".prepared").chmod(0o755)
        (folder / ".prepared" / "set-v0").chmod(0o755)
        shutil.rmtree(folder)


def test_a_folder_of_ones_own_serves_several_data_folders(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    for name, numbers in (("a", NUMBERS), ("b", NUMBERS + 1.0)):
        (tmp_path / name).mkdir()
        build = Builds(numbers)
        for _ in range(2):
            entry, _ = open_entry(tmp_path / name, build, where=str(shared))
            np.testing.assert_array_equal(entry.arrays["large"], numbers)
        assert build.count == 1
        assert list((tmp_path / name).iterdir()) == []


# ---- several processes

PROCESS = """
import sys, time
from pathlib import Path
import numpy as np
from mfrl.data.cache import Cache

def build(store):
    with open(sys.argv[2], "a") as log:
        log.write("begun\\n")
    def blocks():
        yield np.zeros((100, 3), np.float32)
        time.sleep(float(sys.argv[3]))
        yield np.ones((100, 3), np.float32)
    store.write("large", (200, 3), np.float32, blocks())
    return {}

entry = Cache(Path(sys.argv[1])).prepared("set-v0", {"sources": {"a.npz": {"sha256": "0"}}}, build)
print(float(entry.arrays["large"].sum()))
"""


def start(data_dir: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(data_dir), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(log: Path) -> None:
    deadline = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_prepares_and_the_other_waits(tmp_path: Path) -> None:
    log = tmp_path / "log"
    both = [start(tmp_path, log, 2.0) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in both] == ["300.0", "300.0"]
    assert log.read_text() == "begun\n"
    assert nothing_half_written(tmp_path)


def test_a_process_killed_while_preparing_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(tmp_path, log, 600.0)
    wait_for(log)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / ".prepared" / "set-v0").exists()
    build = Builds()
    entry, cache = open_entry(tmp_path, build)
    np.testing.assert_array_equal(entry.arrays["large"], NUMBERS)
    assert build.count == 1
    assert not cache.warnings
    assert nothing_half_written(tmp_path)


# ---- memory


def test_the_smallest_fields_are_read_into_memory_while_there_is_room(tmp_path: Path) -> None:
    entry, cache = open_entry(tmp_path, Builds(), memory_gib=1000 / 2**30)
    (fields,) = cache.in_memory([entry.arrays])
    assert type(fields["small"]) is np.ndarray
    assert isinstance(fields["large"], np.memmap)
    entry, cache = open_entry(tmp_path, Builds(), memory_gib=4800 / 2**30)
    first, second = cache.in_memory([entry.arrays, entry.arrays])
    assert type(first["large"]) is np.ndarray
    assert isinstance(second["large"], np.memmap)  # the bound is one for all
    np.testing.assert_array_equal(first["large"], NUMBERS)


def test_pages_that_were_read_are_given_back(tmp_path: Path) -> None:
    def mapped_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    np.save(tmp_path / "a.npy", np.ones(1 << 22, np.float64))  # 32 MiB
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    pages, before = Pages([array]), mapped_kib()
    total = float(array.sum())
    assert mapped_kib() - before > 30_000
    pages.give_back()
    assert mapped_kib() - before < 2_000
    assert float(array.sum()) == total == 1 << 22


@pytest.mark.parametrize("word", ["maybe", "auto", "yes"])
def test_a_word_is_no_folder_to_keep_data_in(word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"data.cache={word}"):
        Cache(tmp_path, word)
    assert not list(tmp_path.iterdir())
