"""OGBench files of every kind and size: states, images, a hundred files as one; in memory, or mapped from the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from app.test_train import assert_equal, resume, run, weights
from conftest import DATASET
from hypothesis import given, settings
from hypothesis import strategies as st

from mfrl.data import npz, ogbench_source, storage
from mfrl.data.augment import RandomCrop
from mfrl.data.batch import Batch
from mfrl.data.cache import Cache, CacheError
from mfrl.data.npz import Npz
from mfrl.data.ogbench import OGBenchData
from mfrl.data.ogbench_source import Simulator, write_labels, write_rows
from mfrl.data.records import ProvenanceError
from mfrl.data.storage import Pages, Transitions, as_tensor
from mfrl.errors import DataError, EnvError

CPU = torch.device("cpu")
NAME = f"{DATASET}-v0"
CUBE, VISUAL = "cube-single-play-v0", "visual-cube-single-play-v0"


def opened(dataset: str, data_dir: Path, **options: object) -> OGBenchData:
    data = OGBenchData(dataset, data_dir=str(data_dir), **options)
    data.setup()
    return data


def everything(part: Transitions) -> Batch:
    return part.gather(torch.arange(len(part)), discount=0.9, next_actions=True)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x.nan_to_num(9.0), y.nan_to_num(9.0)) for x, y in zip(a, b, strict=True))


def fields(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


@pytest.fixture
def folder(data_dir: Path, tmp_path: Path) -> Path:
    """The pointmaze set, not prepared yet."""
    for suffix in ("", "-val"):
        shutil.copy(data_dir / f"{NAME}{suffix}.npz", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube set, and the same one with images, of noise, in the place of states."""
    from mfrl.collect.ogbench.runner import collect

    folder = tmp_path_factory.mktemp("cube")
    collect(CUBE, folder, episodes=3, val_episodes=1, episode_steps=31, workers=1, progress=False)
    rng = np.random.default_rng(0)
    for suffix in ("", "-val"):
        contents = fields(folder / f"{CUBE}{suffix}.npz")
        images = rng.integers(0, 256, (len(contents["actions"]), 64, 64, 3), np.uint8)
        np.savez(folder / f"{VISUAL}{suffix}.npz", **contents | {"observations": images})
    return folder


# ---- prepared data are the same data


@pytest.mark.parametrize(
    "options", [{}, {"task": 3, "fraction": 0.5, "seed": 2}, {"normalize": False, "reward_scale": 10.0}]
)
def test_training_sees_the_same_numbers_wherever_the_data_lie(folder: Path, options: dict) -> None:
    plain = opened(NAME, folder, cache=False, **options)
    assert not (folder / ".prepared").exists()
    fresh, again = opened(NAME, folder, **options), opened(NAME, folder, **options)
    mapped = opened(NAME, folder, memory_gib=0.0, **options)
    assert mapped.train.pages is not None
    assert plain.train.pages is fresh.train.pages is again.train.pages is None
    for data in (fresh, again, mapped):
        assert data.spec == plain.spec
        assert data.warnings == plain.warnings
        assert data.provenance() == plain.provenance()
        assert same(everything(data.train), everything(plain.train))
        assert same(everything(data.val), everything(plain.val))


def test_all_tasks_share_one_copy_of_the_observations(cube: Path) -> None:
    rewards = {task: opened(VISUAL, cube, task=task).train.rewards for task in range(1, 6)}
    assert len(list((cube / ".prepared").glob(f"{VISUAL}*/observations.npy"))) == 2  # training and validation
    for task in (1, 4):
        assert torch.equal(rewards[task], opened(CUBE, cube, task=task).train.rewards)


def test_a_changed_file_is_prepared_again_and_a_touched_one_is_not(folder: Path) -> None:
    def made() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob(".prepared/*/meta.json")}

    path = folder / f"{NAME}.npz"
    before = everything(opened(NAME, folder).train).observations
    first = made()
    os.utime(path, (1, 1))
    opened(NAME, folder)
    assert made() == first
    contents = fields(path)
    np.savez(path, **contents | {"observations": contents["observations"] * 2.0})
    data = opened(NAME, folder, normalize=False)
    np.testing.assert_array_equal(data.train.observations, contents["observations"] * 2.0)
    assert not torch.equal(everything(data.train).observations, before)
    changed = {name for name, time in made().items() if first[name] != time}
    assert changed == {name for name in first if not name.startswith(f"{NAME}-val")}
    assert not data.warnings


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents, compute = fields(folder / f"{NAME}.npz"), ogbench_source.statistics

    def meanwhile(*arguments: object) -> object:
        np.savez(folder / f"{NAME}.npz", **contents | {"observations": contents["observations"] + 1.0})
        return compute(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ogbench_source, "statistics", meanwhile)
        with pytest.raises(DataError, match=rf"{NAME}\.npz changed while it was read"):
            opened(NAME, folder)
    data = opened(NAME, folder, normalize=False)
    np.testing.assert_array_equal(data.train.observations, contents["observations"] + 1.0)


WITHOUT_SIMULATOR = """
import sys
for name in ("mujoco", "gymnasium", "ogbench", "dm_control"):
    sys.modules[name] = None
from importlib import metadata
version = metadata.version
def installed(name):
    if name in sys.modules and sys.modules[name] is None:
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = installed
import torch
from mfrl.data.ogbench import OGBenchData
data = OGBenchData(sys.argv[1], data_dir=sys.argv[2])
data.setup()
print(float(data.train[torch.arange(len(data.train))].observations.double().sum()))
"""


def test_prepared_data_need_no_simulator(folder: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_SIMULATOR, NAME, str(folder)]
    expected = float(everything(opened(NAME, folder).train).observations.double().sum())
    out = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert float(out) == expected


@pytest.mark.usefixtures("short_episodes")
def test_a_run_on_mapped_data_resumes_and_equals_one_in_memory(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "memory", "data.cache=false")
    run(folder, tmp_path / "mapped", "data.memory_gib=0", "checkpoint.keep_all=true")
    whole = weights(tmp_path / "mapped")
    assert_equal(weights(tmp_path / "memory"), whole)
    checkpoints = tmp_path / "mapped" / "checkpoints"
    os.replace(checkpoints / "update=12.ckpt", checkpoints / "last.ckpt")
    resume(tmp_path / "mapped")
    assert_equal(weights(tmp_path / "mapped"), whole)


# ---- images


@pytest.mark.parametrize("memory_gib", [0.0, 4.0])
@pytest.mark.parametrize("frames", [1, 3])
def test_windows_of_images_are_those_of_the_file(cube: Path, frames: int, memory_gib: float) -> None:
    data = opened(VISUAL, cube, frames=frames, memory_gib=memory_gib)
    images = fields(cube / f"{VISUAL}.npz")["observations"]
    batch = everything(data.train)
    assert batch.observations.dtype == torch.uint8
    assert batch.observations.shape == (90, frames, 64, 64, 3)
    for k, row in enumerate(r for r in range(93) if r % 31 != 30):
        for stack, last in ((batch.observations, row), (batch.next_observations, row + 1)):
            expected = [images[max(last - back, row - row % 31)] for back in reversed(range(frames))]
            np.testing.assert_array_equal(stack[k], np.stack(expected))
    assert data.spec.image_shape == (frames, 64, 64, 3)
    assert (data.spec.observation_dim, data.spec.observation_mean, data.spec.observation_std) == (0, (), ())
    assert data.env.frames == frames


def test_images_are_cropped_where_that_is_asked_for(cube: Path) -> None:
    assert opened(VISUAL, cube).augment is None
    augment = opened(VISUAL, cube, crop_probability=0.5, seed=3).augment
    assert isinstance(augment, RandomCrop)
    assert (augment.probability, augment.seed) == (0.5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.float32), "field 'observations' holds float32, but .* observes pixels, uint8"),
        (lambda x: x[:, :32], r"'observations' has shape \(93, 32, 64, 3\), expected \(93, 64, 64, 3\)"),
        (lambda x: x[..., 0], r"'observations' has shape \(93, 64, 64\)"),
        (lambda x: x[:-1], r"'observations' has shape \(92, 64, 64, 3\)"),
    ],
)
def test_images_that_the_environment_does_not_show_are_refused(cube: Path, tmp_path: Path, change, message) -> None:
    shutil.copy(cube / f"{VISUAL}-val.npz", tmp_path)
    contents = fields(cube / f"{VISUAL}.npz")
    np.savez(tmp_path / f"{VISUAL}.npz", **contents | {"observations": change(contents["observations"])})
    with pytest.raises(DataError, match=message):
        opened(VISUAL, tmp_path)


def test_states_are_neither_stacked_nor_cropped(data_dir: Path) -> None:
    for options in ({"frames": 3}, {"crop_probability": 0.5}):
        with pytest.raises(DataError, match="holds no images"):
            OGBenchData(NAME, data_dir=str(data_dir), **options)
    with pytest.raises(DataError, match=r"env\.frames=0"):
        OGBenchData(VISUAL, frames=0)


def test_a_scene_without_a_camera_is_refused(data_dir: Path, tmp_path: Path) -> None:
    for suffix in ("", "-val"):
        shutil.copy(data_dir / f"{NAME}{suffix}.npz", tmp_path / f"visual-{NAME}{suffix}.npz")
    with pytest.raises(EnvError, match="no environment 'visual-pointmaze"):
        opened(f"visual-{NAME}", tmp_path)


# ---- where batches go


def test_gathering_from_a_large_file_holds_few_of_its_pages(tmp_path: Path) -> None:
    def mapped_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    rows = 4000  # 49 MB
    np.save(tmp_path / "images.npy", np.ones((rows, 64, 64, 3), np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    numbers, zeros = torch.arange(rows), torch.zeros(rows)
    data = Transitions(
        as_tensor(images), zeros[:, None], zeros, zeros, numbers[:-1], torch.zeros_like(numbers), 3, None, CPU
    )
    data.pages = Pages([images])
    data[torch.arange(4)]  # libraries are mapped as well when they are first used
    data.pages.give_back()
    before, most = mapped_kib(), 0
    for index in torch.randperm(rows - 1).split(4):
        data[index]
        most = max(most, mapped_kib() - before)
    assert 100 < most < 30_000  # up to 2 MiB around each of 4 places, sometimes twice


@pytest.mark.parametrize(("dataset", "frames"), [(CUBE, 1), (VISUAL, 3)])
def test_mapped_data_send_their_batches_to_the_device_of_training(cube: Path, dataset: str, frames: int) -> None:
    data = opened(dataset, cube, frames=frames, memory_gib=0.0)
    before = everything(data.train)
    there = data.on_device(torch.device("meta"))
    assert there.starts.device == CPU  # where batches are drawn
    for x, y in zip(everything(there), before, strict=True):
        assert (x.device.type, x.shape, x.dtype) == ("meta", y.shape, y.dtype)
    again = opened(dataset, cube, frames=frames, memory_gib=0.0)
    assert same(everything(again.train.to(CPU)), before)


@pytest.mark.parametrize(("dataset", "frames"), [(CUBE, 1), (VISUAL, 3)])
def test_mapped_data_move_to_a_device_with_room(
    cube: Path, dataset: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(dataset, cube, frames=frames, memory_gib=0.0)
    before, size = everything(data.train), data.train.nbytes()
    monkeypatch.setattr(storage, "_room", lambda device: size - 1)
    assert data.train.to(CPU).pages is not None
    monkeypatch.setattr(storage, "_room", lambda device: size)
    monkeypatch.setattr(storage, "_MOVED_TOGETHER", 7)
    moved = data.train.to(CPU)
    assert (moved.pages, moved.ships_to) == (None, None)
    assert same(everything(moved), before)


# ---- a hundred files as one


def in_many_files(source: Path, target: Path, numbers: dict[str, list[int]]) -> None:
    """The trajectories of a set, a few in each numbered file of the folder ``target``."""
    target.mkdir()
    for suffix, counts in numbers.items():
        contents, at = fields(source / f"{NAME}{suffix}.npz"), 0
        for number, count in enumerate(counts):
            rows = slice(at * 101, (at + count) * 101)
            name = f"{NAME}-{number:03d}{suffix}.npz"
            np.savez(target / name, **{field: array[rows] for field, array in contents.items()})
            at += count


@pytest.fixture
def large(data_dir: Path, tmp_path: Path) -> Path:
    in_many_files(data_dir, tmp_path / f"{DATASET}-100m-v0", {"": [1] * 9 + [2, 1], "-val": [1, 1]})
    return tmp_path


def test_files_of_a_folder_are_read_as_one(large: Path, data_dir: Path) -> None:
    one, many = opened(NAME, data_dir), opened(f"{DATASET}-100m", large)
    assert many.env == one.env
    assert many.spec == one.spec
    assert same(everything(many.train), everything(one.train))
    assert same(everything(many.val), everything(one.val))
    assert len(many.provenance()["files"]) == 13
    assert len(many.paths) == 13
    assert same(everything(opened(f"{DATASET}-100m", large, memory_gib=0.0).train), everything(one.train))


def test_files_are_in_the_order_of_their_numbers(large: Path) -> None:
    padded = everything(opened(f"{DATASET}-100m", large).train)
    for path in (large / f"{DATASET}-100m-v0").glob("*.npz"):
        path.rename(path.with_name(path.name.replace("-00", "-").replace("-010", "-10")))
    assert same(everything(opened(f"{DATASET}-100m", large).train), padded)


def test_a_file_missing_within_the_series_is_named(large: Path) -> None:
    folder = large / f"{DATASET}-100m-v0"
    (folder / f"{NAME}-004.npz").unlink()
    with pytest.raises(ProvenanceError, match=f"{NAME}-004.npz is missing in {folder}"):
        opened(f"{DATASET}-100m", large)


def test_a_file_without_a_number_is_no_part_of_a_series(large: Path) -> None:
    folder = large / f"{DATASET}-100m-v0"
    shutil.copy(folder / f"{NAME}-004.npz", folder / "notes.npz")
    with pytest.raises(ProvenanceError, match=r"notes\.npz has no number"):
        opened(f"{DATASET}-100m", large)
    (folder / "notes.npz").rename(folder / f"{NAME}-4.npz")
    with pytest.raises(ProvenanceError, match="two files of the same number"):
        opened(f"{DATASET}-100m", large)


def test_a_series_that_is_missing_or_half_there_says_how_to_get_it(large: Path, tmp_path: Path) -> None:
    name = "cube-triple-play-100m-v0"
    data = OGBenchData(name, data_dir=str(tmp_path))
    assert not any(path.is_file() for path in data.paths)
    with pytest.raises(
        DataError, match=f"{name} is not in {tmp_path}.*mfrl download env=ogbench/cube-triple-play-100m"
    ):
        data.setup()
    for path in (large / f"{DATASET}-100m-v0").glob("*-val.npz"):
        path.unlink()
    with pytest.raises(ProvenanceError, match=r"holds no X-val\.npz file"):
        opened(f"{DATASET}-100m", large)


def test_a_wrong_row_is_named_in_its_own_file(large: Path) -> None:
    path = large / f"{DATASET}-100m-v0" / f"{NAME}-003.npz"
    contents = fields(path)
    contents["observations"][5, 1] = np.nan
    np.savez(path, **contents)
    with pytest.raises(DataError, match=rf"{NAME}-003\.npz: .*observations.*row 5"):
        opened(f"{DATASET}-100m", large)


def test_a_set_larger_than_memory_needs_the_cache(large: Path) -> None:
    with pytest.raises(CacheError, match=r"does not fit into memory.*data\.cache=FOLDER"):
        opened(f"{DATASET}-100m", large, cache=False, memory_gib=0.0)


# ---- from files to transitions


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator("pointmaze-medium-singletask-v0")
    yield simulator
    simulator.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4).filter(lambda x: max(x) > 1), min_size=1, max_size=3),
    st.sampled_from([np.bool_, np.float32, np.float64, np.int64]),
    st.integers(1, 9),
    st.booleans(),
)
def test_trajectories_of_any_length_become_their_transitions(
    simulator: Simulator, lengths: list[list[int]], flag: type, rows: int, mapped: bool
) -> None:
    rng = np.random.default_rng(0)
    goal = simulator.state_widths and simulator.env.unwrapped.cur_goal_xy
    paths, expected = [], []
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz, "_BLOCK", rows * 8)  # a few rows at a time
        for number, trajectories in enumerate(lengths):
            count = sum(trajectories)
            states = rng.standard_normal((count, 2)) * 3.0 + goal * rng.integers(0, 2, (count, 1))
            actions = rng.uniform(-1.0, 1.0, (count, 2)).round(1)
            terminals = np.zeros(count, flag)
            terminals[np.cumsum(trajectories) - 1] = 1
            paths.append(Path(name) / f"{number}.npz")
            np.savez(paths[-1], observations=states, actions=actions, terminals=terminals, qpos=states)
            for start, length in zip(np.cumsum([0, *trajectories]), trajectories, strict=False):
                for row in range(start, start + length - 1):
                    done = np.linalg.norm(states[row] - goal) <= simulator.env.unwrapped._goal_tol
                    expected.append((states[row], actions[row], float(done) - 1.0, 1.0 - done, states[row + 1]))
        cache = Cache(Path(name), where=None if mapped else False, memory_gib=0.0 if mapped else 1.0)
        entries = [
            cache.prepared("rows", {}, lambda store: write_rows(store, paths, simulator)),
            cache.prepared("labels", {}, lambda store: write_labels(store, paths, simulator) or {}),
        ]
        arrays = {field: array for entry in entries for field, array in entry.arrays.items()}
        starts = arrays["starts"]
        assert len(starts) == len(expected)
        for row, (state, action, reward, mask, following) in zip(starts, expected, strict=True):
            np.testing.assert_array_equal(arrays["observations"][row], state.astype(np.float32))
            np.testing.assert_array_equal(arrays["observations"][row + 1], following.astype(np.float32))
            np.testing.assert_allclose(arrays["actions"][row], action, atol=1.1e-5)
            assert (arrays["rewards"][row], arrays["masks"][row]) == (reward, mask)
        kept = np.array([state for state, *_ in expected], np.float32).astype(np.float64)
        np.testing.assert_allclose(entries[0].facts["statistics"][0], kept.mean(0), atol=1e-6)


@given(st.integers(0, 40), st.integers(1, 17), st.sampled_from(["C", "F"]), st.booleans())
def test_a_field_read_in_blocks_is_the_field(count: int, rows: int, order: str, compressed: bool) -> None:
    array = np.asarray(np.arange(count * 6, dtype=np.int16).reshape(count, 2, 3), order=order)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.npz"
        (np.savez_compressed if compressed else np.savez)(path, a=array)
        blocks = list(Npz(path).blocks("a", rows))
        assert [len(block) for block in blocks] == [min(rows, count - at) for at in range(0, count, rows)]
        np.testing.assert_array_equal(np.concatenate([array[:0], *blocks]), array)
