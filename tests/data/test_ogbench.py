"""Transitions, their sampling, and the OGBench datamodule with everything it must refuse."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import ogbench
import pytest
import torch
from conftest import DATASET
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_critic, tiny_mlp, transitions

from mfrl.algorithms.fql import FQL
from mfrl.algorithms.gaussian_bc import GaussianBC
from mfrl.callbacks.periodic import held_out
from mfrl.data.assembly import keep_trajectories
from mfrl.data.batch import ACTION_CLIP
from mfrl.data.ogbench import OGBenchData
from mfrl.data.sampling import ChunkLoader, chunk_ends
from mfrl.data.storage import Transitions
from mfrl.errors import ConfigError, DataError
from mfrl.learning.learner import Learner
from mfrl.learning.training import Training
from mfrl.networks.gaussian import GaussianMLP


@pytest.fixture
def data(data_dir: Path) -> OGBenchData:
    module = OGBenchData(DATASET, data_dir=str(data_dir), normalize=False)
    module.setup()
    return module


def everything(data: OGBenchData) -> tuple[np.ndarray, ...]:
    """Observations, actions, rewards, masks and next observations of all transitions."""
    return tuple(x.numpy() for x in data.train[torch.arange(len(data.train))][:5])


@pytest.mark.parametrize("task", [None, 1, 4])
def test_transitions_are_those_of_ogbenchs_own_loader(data_dir: Path, task: int | None) -> None:
    data = OGBenchData(DATASET, task=task, data_dir=str(data_dir), normalize=False)
    data.setup()
    name = f"{DATASET}-singletask-v0" if task is None else f"{DATASET}-singletask-task{task}-v0"
    path = str(data_dir / f"{DATASET}-v0.npz")
    _, theirs, _ = ogbench.make_env_and_datasets(name, dataset_path=path)
    observations, actions, rewards, masks, next_observations = everything(data)
    np.testing.assert_array_equal(observations, theirs["observations"])
    np.testing.assert_array_equal(next_observations, theirs["next_observations"])
    np.testing.assert_array_equal(rewards, theirs["rewards"])
    np.testing.assert_array_equal(masks, theirs["masks"])
    np.testing.assert_array_equal(actions, np.clip(theirs["actions"], -1 + ACTION_CLIP, 1 - ACTION_CLIP))


def test_normalisation_uses_the_training_transitions_alone(data_dir: Path, data: OGBenchData) -> None:
    raw = everything(data)[0]
    normalised = OGBenchData(DATASET, data_dir=str(data_dir))
    normalised.setup()
    observations = everything(normalised)[0]
    np.testing.assert_allclose(observations, (raw - raw.mean(0)) / raw.std(0), atol=2e-5)
    np.testing.assert_allclose(normalised.spec.observation_mean, raw.astype(np.float64).mean(0), rtol=1e-6)
    val_rows = np.load(data_dir / f"{DATASET}-v0-val.npz")["observations"]
    expected = (val_rows - raw.mean(0)) / raw.std(0)
    np.testing.assert_allclose(normalised.val.observations.numpy(), expected, atol=2e-5)


def test_rewards_are_scaled_and_so_is_the_value_range(data_dir: Path, data: OGBenchData) -> None:
    scaled = OGBenchData(DATASET, data_dir=str(data_dir), reward_scale=10.0)
    scaled.setup()
    assert torch.equal(scaled.train.rewards, 10.0 * data.train.rewards)
    assert scaled.spec.value_range(0.99) == pytest.approx((-1000.0, 0.0))
    with pytest.raises(ConfigError, match="reward_scale"):
        OGBenchData(DATASET, data_dir=str(data_dir), reward_scale=-1.0)


def test_a_coordinate_that_never_varies_stays_finite(data_dir: Path, tmp_path: Path) -> None:
    edit(data_dir, tmp_path, lambda fields: fields["observations"].__setitem__((slice(None), 1), 7.0))
    data = OGBenchData(DATASET, data_dir=str(tmp_path))
    data.setup()
    assert torch.equal(data.train.observations[:, 1], torch.zeros(len(data.train.observations)))


def test_fraction_keeps_whole_trajectories_and_the_same_ones_for_a_seed(data_dir: Path) -> None:
    def starts(fraction: float, seed: int) -> torch.Tensor:
        data = OGBenchData(DATASET, data_dir=str(data_dir), fraction=fraction, seed=seed)
        data.setup()
        return data.train.starts

    whole, part = starts(1.0, 0), starts(0.25, 0)
    assert len(part) == 3 * 100  # 3 of 12 trajectories of 100 transitions
    assert set((part // 101).tolist()) <= set(range(12))
    assert all(int((part // 101 == k).sum()) in (0, 100) for k in range(12))
    assert torch.equal(part, starts(0.25, 0))
    assert not torch.equal(part, starts(0.25, 1))
    assert len(whole) == 1200


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.floats(0.05, 1.0), st.integers(0, 3))
def test_trajectories_of_any_length_are_kept_or_dropped_whole(lengths: list[int], fraction: float, seed: int) -> None:
    rows, starts, at = [], [], 0
    for number, length in enumerate(lengths):
        starts += range(at, at + length)
        rows += [number] * length
        at += length + 1
    kept = keep_trajectories(torch.tensor(starts), fraction, seed).tolist()
    owner = dict(zip(starts, rows, strict=True))
    chosen = {owner[row] for row in kept}
    assert kept == [row for row in starts if owner[row] in chosen]
    assert len(chosen) == max(1, round(fraction * len(lengths)))


# ---- sampling


@given(
    st.integers(0, 50),
    st.integers(1, 200),
    st.integers(1, 17),
    st.lists(st.integers(1, 60), max_size=3).map(tuple),
)
def test_chunks_cover_every_update_once_and_stop_at_every_mark(
    first: int, more: int, size: int, marks: tuple[int, ...]
) -> None:
    last = first + more
    ends = chunk_ends(first, last, size, marks)
    starts = [first, *ends[:-1]]
    assert ends[-1] == last
    assert all(0 < end - start <= size for start, end in zip(starts, ends, strict=True))
    for mark in marks:
        assert {k for k in range(first + 1, last + 1) if k % mark == 0} <= set(ends)


def test_update_k_draws_the_same_batch_whatever_the_chunk_and_the_start(data: OGBenchData) -> None:
    def indices(first: int, size: int) -> torch.Tensor:
        return torch.cat([c.indices for c in ChunkLoader(data.train, 16, 3, first, 20, size, (), 1.0)])

    one_by_one = indices(0, 1)
    assert torch.equal(one_by_one, indices(0, 8))
    assert torch.equal(one_by_one[13:], indices(13, 4))
    assert len({tuple(row.tolist()) for row in one_by_one}) == 20
    other_seed = torch.cat([c.indices for c in ChunkLoader(data.train, 16, 4, 0, 20, 1, (), 1.0)])
    assert not torch.equal(one_by_one, other_seed)


def test_sampling_reaches_every_transition_equally(data: OGBenchData) -> None:
    drawn = torch.cat([c.indices.flatten() for c in ChunkLoader(data.train, 256, 0, 0, 400, 8, (), 1.0)])
    counts = torch.bincount(drawn, minlength=len(data.train)).double()
    expected = len(drawn) / len(data.train)
    chi_square = ((counts - expected).square() / expected).sum().item()
    degrees = len(data.train) - 1
    assert abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5


# ---- refusals: one for each way a file can be wrong


def edit(source: Path, target: Path, change) -> None:
    """Copy the dataset to ``target`` with the training file's fields changed."""
    name = f"{DATASET}-v0"
    shutil.copy(source / f"{name}-val.npz", target)
    with np.load(source / f"{name}.npz") as file:
        fields = {key: file[key] for key in file.files}
    np.savez(target / f"{name}.npz", **(change(fields) or fields))


def without(field: str):
    return lambda fields: {key: value for key, value in fields.items() if key != field}


def put(field: str, index, value):
    return lambda fields: fields[field].__setitem__(index, value)


def replace(field: str, new):
    return lambda fields: fields | {field: new(fields[field])}


REFUSALS = {
    "missing field": (without("actions"), "field 'actions' is missing"),
    "missing simulator state": (without("qpos"), "field 'qpos' is missing"),
    "qpos of another simulator": (replace("qpos", lambda x: x[:, :1]), r"field 'qpos' has shape"),
    "terminals are no list": (replace("terminals", lambda x: x[0]), "field 'terminals' has shape"),
    "NaN observation": (
        put("observations", (5, 1), np.nan),
        "field 'observations' holds NaN or infinity at row 5",
    ),
    "observation beyond float32": (
        replace("observations", lambda x: np.where(np.arange(len(x))[:, None] == 4, 1e300, x.astype(float))),
        "field 'observations' holds NaN or infinity at row 4",
    ),
    "infinite action": (put("actions", (7, 0), np.inf), "field 'actions' holds NaN or infinity at row 7"),
    "NaN state": (put("qpos", (3, 0), np.nan), "field 'qpos' holds NaN"),
    "action out of range": (put("actions", (9, 0), 1.5), r"field 'actions' leaves \[-1, 1\] at row 9"),
    "too few rows": (replace("actions", lambda x: x[:-1]), r"field 'actions' has shape \(1211, 2\)"),
    "wrong width": (
        replace("observations", lambda x: x[:, :1]),
        r"'observations' has shape .*expected \(1212, 2\)",
    ),
    "not a matrix": (replace("actions", lambda x: x[:, 0]), "field 'actions' has shape"),
    "cut off": (lambda fields: {k: v[:-1] for k, v in fields.items()}, "field 'terminals' does not end"),
    "terminals are no flags": (
        replace("terminals", lambda x: x * 0.5),
        "field 'terminals' holds values other",
    ),
    "no transition": (replace("terminals", lambda x: np.ones_like(x)), "no trajectory has two states"),
    "pixels": (replace("observations", lambda x: x.astype(np.uint8)), "pixels"),
    "text": (replace("actions", lambda x: x.astype(str)), "field 'actions' holds .*expected numbers"),
    "objects": (replace("actions", lambda x: x.astype(object)), "field 'actions' is damaged or refused"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_file_that_cannot_be_trained_on_is_refused(case: str, data_dir: Path, tmp_path: Path) -> None:
    change, message = REFUSALS[case]
    edit(data_dir, tmp_path, change)
    with pytest.raises(DataError, match=message) as error:
        OGBenchData(DATASET, data_dir=str(tmp_path)).setup()
    assert f"{DATASET}-v0.npz" in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(share: float, data_dir: Path, tmp_path: Path) -> None:
    edit(data_dir, tmp_path, dict)
    path = tmp_path / f"{DATASET}-v0.npz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=f"{DATASET}-v0.npz"):
        OGBenchData(DATASET, data_dir=str(tmp_path)).setup()


def test_a_flipped_byte_is_refused(data_dir: Path, tmp_path: Path) -> None:
    edit(data_dir, tmp_path, dict)
    path = tmp_path / f"{DATASET}-v0.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        OGBenchData(DATASET, data_dir=str(tmp_path)).setup()


def test_missing_data_says_which_file_where_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        OGBenchData("cube-single-play", data_dir=str(tmp_path)).setup()
    message = str(error.value)
    assert "cube-single-play-v0.npz" in message
    assert str(tmp_path) in message
    assert f"mfrl collect env=ogbench/cube-single-play data_dir={tmp_path}" in message


def test_data_that_cannot_be_collected_says_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        OGBenchData("humanoidmaze-large-navigate", data_dir=str(tmp_path)).setup()
    assert "humanoidmaze-large-navigate-v0.npz" in str(error.value)
    assert "download" in str(error.value).lower()
    assert f"put both in {tmp_path}" in str(error.value)


def test_a_set_without_any_success_is_warned_about(data_dir: Path, tmp_path: Path) -> None:
    edit(data_dir, tmp_path, lambda fields: fields["qpos"].__setitem__(slice(None), 0.0))
    data = OGBenchData(DATASET, data_dir=str(tmp_path))
    data.setup()
    assert data.warnings
    assert "no success" in data.warnings[0]


def test_returns_stay_within_the_value_range_of_the_data(data: OGBenchData) -> None:
    assert data.spec.value_range(0.99) == pytest.approx((-100.0, 0.0))
    assert (data.spec.reward_min, data.spec.reward_max) == (-1.0, 0.0)


def test_gathering_reads_a_row_and_its_successor() -> None:
    observations = torch.arange(6.0)[:, None]
    row = torch.arange(6.0)
    data = Transitions(observations, observations * 10, row, row, torch.tensor([0, 1, 3, 4]))
    batch = data[torch.tensor([3, 0, 2])]
    assert batch.observations.flatten().tolist() == [4.0, 0.0, 3.0]
    assert batch.next_observations.flatten().tolist() == [5.0, 1.0, 4.0]
    assert batch.actions.flatten().tolist() == [40.0, 0.0, 30.0]
    assert len(data) == 4


def test_a_batch_discounts_what_is_not_complete() -> None:
    data, index = transitions(40), torch.tensor([3, 0, 30, 17])
    masks = data.masks[index]
    assert 0 < masks.sum() < 4
    batch = data.gather(index, discount=0.9)
    assert torch.equal(batch.masks, masks)
    assert torch.equal(batch.discounts, 0.9 * masks)
    assert torch.equal(data[index].discounts, masks)
    (chunk,) = ChunkLoader(data, 8, 3, 0, 2, 2, (), discount=0.7)
    for batch in chunk:
        assert torch.equal(batch.discounts, 0.7 * batch.masks)


def test_next_actions_are_the_datas_own_and_stay_within_a_trajectory() -> None:
    # Trajectories of rows 0 to 2, 3 to 5 and 6 to 7; of the last state of each, the action is no part of the data.
    actions = torch.arange(16.0).view(8, 2)
    row = torch.arange(8.0)
    data = Transitions(row[:, None], actions, row, row, torch.tensor([0, 1, 3, 4, 6]))
    batch = data.gather(torch.tensor([4, 3, 2, 1, 0]), discount=0.9, next_actions=True)
    nothing = torch.full((2,), torch.nan)  # follows on the last transition of a trajectory
    wanted = torch.stack([actions[1], nothing, actions[4], nothing, nothing])
    same = partial(torch.testing.assert_close, rtol=0.0, atol=0.0, equal_nan=True)
    same(batch.next_actions, wanted.flip(0))
    assert data.gather(torch.tensor([0]), discount=0.9).next_actions is None
    (chunk,) = ChunkLoader(data, 8, 3, 0, 2, 2, (), 0.9, next_actions=True)
    for index, batch in zip(chunk.indices, chunk, strict=True):
        same(batch.next_actions, wanted[index])


def test_actions_may_have_further_axes() -> None:
    row = torch.arange(6.0)
    actions = torch.randn(6, 4, 2)
    data = Transitions(row[:, None], actions, row, row, torch.tensor([0, 1, 3, 4]))
    batch = data.gather(torch.tensor([3, 0]), discount=0.9, next_actions=True)
    assert torch.equal(batch.actions, actions[[4, 0]])
    assert batch.next_actions[0].isnan().all()
    assert torch.equal(batch.next_actions[1], actions[1])


@pytest.mark.parametrize(("name", "discount"), [("fql", 0.9), ("gaussian_bc", 1.0)])
def test_an_algorithm_gets_batches_with_its_own_discount(
    data_dir: Path, name: str, discount: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = OGBenchData(DATASET, data_dir=str(data_dir), batch_size=32, updates=3)
    data.setup()
    make = {
        "fql": lambda: FQL(data.spec, tiny_mlp, tiny_critic, updates=3, discount=0.9),
        "gaussian_bc": lambda: GaussianBC(data.spec, partial(GaussianMLP, hidden=[16]), updates=3),
    }
    module, seen = Training(make[name](), batch_size=32), []
    for kind, method in ((Learner, "update"), (Training, "held_out")):
        whole = getattr(kind, method)
        noting = lambda self, batch, whole=whole: (seen.append(batch), whole(self, batch))[1]  # noqa: E731
        monkeypatch.setattr(kind, method, noting)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet).fit(module, datamodule=data)
    held_out(data.val, module)
    assert len(seen) == 4
    for batch in seen:
        assert torch.equal(batch.discounts, discount * batch.masks)


@pytest.mark.parametrize("name", [f"../evil/{DATASET}-v0", f"/tmp/{DATASET}-v0", "cube-single play", ".."])
def test_a_name_that_is_a_path_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no name of an OGBench dataset"):
        OGBenchData(name, data_dir=str(tmp_path / "data"))
    assert not list(tmp_path.iterdir())


def test_batches_are_drawn_where_the_transitions_lie() -> None:
    # From counters alone: the meta device has no random numbers of its own, and nothing waits for another device.
    there = transitions(40).to(torch.device("meta"))
    chunk = next(iter(ChunkLoader(there, 8, 3, 0, 2, 2, (), 1.0)))
    assert (chunk.indices.device.type, chunk.indices.shape) == ("meta", (2, 8))
    assert {x.device.type for batch in chunk for x in batch if x is not None} == {"meta"}
