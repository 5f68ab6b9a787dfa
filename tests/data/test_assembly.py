"""Statistics over a buffer of zeros that the data fill in part, as the official code of MeanFlowQL takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATASET
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import compose

from mfrl.app.train import train
from mfrl.data.assembly import BUFFER_ROWS, padded_statistics, statistics
from mfrl.data.minari import MinariData
from mfrl.data.ogbench import OGBenchData
from mfrl.errors import ConfigError, DataError, RefusedRun
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.runs.load import load_algorithm

TINY = [
    "env=ogbench/pointmaze-medium-explore",
    "data.normalize=padded",
    "network=small",
    "updates=8",
    "batch_size=8",
    "eval.every=8",
    "eval.episodes=1",
    "eval.num_envs=1",
    "eval.workers=0",
    "checkpoint.every=4",
    "checkpoint.keep_all=true",
    "accelerator=cpu",
]


def by_the_code(states: np.ndarray, buffer_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Literally: a buffer of zeros, the states at its start, mean and deviation over all of it; in float64."""
    buffer = np.zeros((max(buffer_rows, len(states) + 1), states.shape[1]))
    buffer[: len(states)] = states
    std = buffer.std(0)
    return buffer.mean(0), np.where(std < 1e-6, 1.0, std)


def trained_on(data: OGBenchData | MinariData) -> np.ndarray:
    return data.train[torch.arange(len(data.train))].observations.numpy()


def opened(data_dir: Path, **settings: Any) -> OGBenchData:
    data = OGBenchData(DATASET, data_dir=str(data_dir), **settings)
    data.setup()
    return data


def run(run_dir: Path, *overrides: str) -> dict[str, Any]:
    changes = [*TINY, f"run_dir={run_dir}", *overrides]
    return train(compose("train", *changes), changes)


@settings(max_examples=50, deadline=None)
@given(
    states=st.integers(1, 30).flatmap(lambda rows: arrays(np.float32, (rows, 2), elements=st.integers(-9, 9))),
    mean=st.sampled_from([0.0, 5.0, 1e4]),
    buffer_rows=st.sampled_from([1, 20, 30, 31, 1000]),
)
def test_they_are_those_of_an_array_filled_up_with_zeros(states: np.ndarray, mean: float, buffer_rows: int) -> None:
    constant, zero = np.full((len(states), 1), 7.0), np.zeros((len(states), 1))
    states = np.concatenate([states / 8 + mean, constant, zero], axis=1).astype(np.float32)
    rows = np.repeat(np.arange(len(states)), 2)  # every second row ends a trajectory and does not count
    observations = torch.from_numpy(np.where(np.arange(len(rows)) % 2 == 0, states[rows].T, 1e6).T)
    starts = torch.arange(0, len(rows), 2)
    found_mean, found_std = padded_statistics(observations, starts, buffer_rows=buffer_rows)
    expected_mean, expected_std = by_the_code(states.astype(np.float64), buffer_rows)
    np.testing.assert_allclose(found_mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(found_std, expected_std, rtol=1e-9)
    assert found_std[3] == 1.0


def test_more_states_than_the_buffer_has_rows_make_it_one_row_longer() -> None:
    states = 1.0 + torch.arange(40_000.0)[:, None] / 40_000  # more than are looked at together
    mean, std = padded_statistics(states, torch.arange(len(states)), buffer_rows=10)
    expected_mean, expected_std = by_the_code(states.double().numpy(), 40_001)
    np.testing.assert_allclose([mean, std], [expected_mean, expected_std], rtol=1e-12)
    np.testing.assert_raises(AssertionError, np.testing.assert_allclose, mean, states.double().mean(0), rtol=1e-6)


def test_the_official_buffer_has_two_million_rows() -> None:
    states = np.random.default_rng(0).normal(5.0, 1.0, (1000, 2))
    mean, std = padded_statistics(torch.from_numpy(states), torch.arange(1000))
    expected_mean, expected_std = by_the_code(states, 2_000_000)
    np.testing.assert_allclose([mean, std], [expected_mean, expected_std], rtol=1e-9)
    # The figures of docs/presets.md: of a million states, half of the buffer.
    half = torch.tensor([[-1.0, 4.0], [1.0, 6.0]], dtype=torch.float64)
    mean, std = padded_statistics(half, torch.arange(2), buffer_rows=4)
    seen = (half.numpy() - mean) / std
    np.testing.assert_allclose(seen.mean(0), [0.0, 0.96], atol=0.01)
    np.testing.assert_allclose(seen.std(0), [1.41, 0.38], atol=0.01)


@pytest.mark.parametrize("options", [{}, {"memory_gib": 0.0}, {"cache": False}, {"fraction": 0.5, "seed": 3}])
def test_training_sees_states_normalised_with_them(options: dict[str, Any], data_dir: Path) -> None:
    raw = opened(data_dir, normalize=False, **options)
    data = opened(data_dir, normalize="padded", **options)
    assert (data.train.pages is not None) is ("memory_gib" in options)
    mean, std = by_the_code(trained_on(raw).astype(np.float64), BUFFER_ROWS)
    np.testing.assert_allclose(data.spec.observation_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(data.spec.observation_std, std, rtol=1e-9)
    np.testing.assert_allclose(trained_on(data), (trained_on(raw) - mean) / std, rtol=1e-5)
    val, raw_val = (part.val[torch.arange(len(part.val))].next_observations.numpy() for part in (data, raw))
    np.testing.assert_allclose(val, (raw_val - mean) / std, rtol=1e-5)
    assert data.warnings == raw.warnings


def test_prepared_data_serve_both_kinds(data_dir: Path) -> None:
    opened(data_dir, normalize="padded")
    raw, data = opened(data_dir, normalize=False), opened(data_dir)
    expected = statistics(raw.train.observations, raw.train.starts)
    assert [list(data.spec.observation_mean), list(data.spec.observation_std)] == list(expected)


def test_a_minari_dataset_has_them_too(tmp_path: Path) -> None:
    from data.test_minari import record

    record(tmp_path, "test/pendulum-v0", "Pendulum-v1", episodes=4, steps=10)
    raw, data = (
        MinariData("test/pendulum-v0", str(tmp_path), normalize=normalize, val_fraction=0.25)
        for normalize in (False, "padded")
    )
    raw.setup()
    data.setup()
    mean, std = by_the_code(trained_on(raw).astype(np.float64), BUFFER_ROWS)
    np.testing.assert_allclose(data.spec.observation_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(data.spec.observation_std, std, rtol=1e-9)
    np.testing.assert_allclose(trained_on(data), (trained_on(raw) - mean) / std, rtol=1e-5)


def test_what_is_no_normalisation_is_refused(data_dir: Path, tmp_path: Path) -> None:
    for wrong in ("data", "pad", 2, None):
        for make in (OGBenchData, MinariData):
            with pytest.raises(ConfigError, match=r"data\.normalize=.*true.*false.*padded"):
                make(DATASET if make is OGBenchData else "test/pendulum-v0", data_dir=str(tmp_path), normalize=wrong)
    with pytest.raises(DataError, match=r"data\.normalize=padded.*visual-"):
        OGBenchData("visual-cube-single-play-v0", normalize="padded")
    with pytest.raises(ConfigError, match=r"data\.normalize=pad must be"):
        run(tmp_path / "run", f"data_dir={data_dir}", "data.normalize=pad")
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_them_and_no_other_run_goes_on_with_it(data_dir: Path, tmp_path: Path) -> None:
    where = f"data_dir={data_dir}"
    run(tmp_path / "run", where)
    expected = opened(data_dir, normalize="padded").spec
    saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert saved["mfrl"]["spec"] == expected.to_dict()
    module = load_algorithm(tmp_path / "run" / "checkpoints" / "last.ckpt")[0]
    assert torch.equal(module.normalizer.std, torch.tensor(expected.observation_std))
    with pytest.raises(RefusedRun, match=r"a run with data\.normalize=padded, not True"):
        run(tmp_path / "run", where, "existing=continue", "data.normalize=true")
    again = [f"resume='{tmp_path / 'run' / 'checkpoints' / 'update=4.ckpt'}'"]
    train(compose("train", *again), again)
    resumed = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert resumed["mfrl"]["spec"] == expected.to_dict()
    torch.testing.assert_close(resumed["state_dict"], saved["state_dict"], rtol=0.0, atol=0.0, equal_nan=True)
