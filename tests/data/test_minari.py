"""Minari datasets, written by Minari itself from real environments, as transitions."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from tiny import MINARI, compose

from mfrl.app.evaluate import evaluate_checkpoint
from mfrl.app.train import train
from mfrl.data.assembly import loaded
from mfrl.data.batch import ACTION_CLIP
from mfrl.data.cache import Cache
from mfrl.data.minari import MinariData, split
from mfrl.data.minari_download import download
from mfrl.data.minari_files import describe, present, write_record
from mfrl.data.minari_source import Episode, write_rows
from mfrl.envs import d4rl
from mfrl.envs.minari import register_robotics
from mfrl.errors import ConfigError, DataError, EnvError, MfrlError
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.runs.targets import build

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:minari"),  # no author, no permalink
    pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning"),  # AntMaze v4, see docs/d4rl.md
]

register_robotics()


WITHOUT_EPISODES = [
    "evaluation=held_out",
    *(name for name in MINARI if not name.startswith(("eval.episodes", "eval.num_envs", "eval.workers"))),
]


@contextmanager
def minari_root(root: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        yield


def play(env: gym.Env, steps: int, seed: int) -> EpisodeBuffer:
    """One episode of random actions, cut after ``steps``."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards, ends, cuts = [observation], [], [], [], []
    for k in range(steps):
        actions.append(env.action_space.sample())
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        ends.append(bool(terminated))
        cuts.append(bool(truncated) or (k == steps - 1 and not terminated))
        if terminated or truncated:
            break
    if isinstance(observation, dict):
        stacked = {name: np.stack([o[name] for o in observations]) for name in observation}
    else:
        stacked = np.stack(observations)
    return EpisodeBuffer(
        seed=seed, observations=stacked, actions=np.stack(actions), rewards=rewards, terminations=ends, truncations=cuts
    )


def record(
    root: Path, dataset: str, env: gym.Env | str, episodes: int = 3, steps: int = 12, **metadata: Any
) -> minari.MinariDataset:
    """A genuine dataset of random actions."""
    env = gym.make(env) if isinstance(env, str) else env
    buffers = [play(env, steps, seed) for seed in range(episodes)]
    with minari_root(root):
        return minari.create_dataset_from_buffers(dataset, buffers, env, algorithm_name="random", **metadata)


def invent(root: Path, observation_space: spaces.Space, action_space: spaces.Space, **fields: Any) -> MinariData:
    """A dataset without an environment, of two episodes of three steps, with what is given replaced in the first."""
    observation_space.seed(0)
    action_space.seed(0)

    def several(space: spaces.Space, count: int) -> Any:
        if isinstance(space, spaces.Dict):
            return {name: several(part, count) for name, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(several(part, count) for part in space.spaces)
        return np.stack([space.sample() for _ in range(count)])

    def buffer(**changes: Any) -> EpisodeBuffer:
        whole = {
            "observations": several(observation_space, 4),
            "actions": several(action_space, 3),
            "rewards": [0.0, 1.0, 2.0],
            "terminations": [False, False, True],
            "truncations": [False, False, False],
        }
        return EpisodeBuffer(**whole | changes)

    with minari_root(root):
        minari.create_dataset_from_buffers(
            "made/up-v0",
            [buffer(**fields), buffer()],
            observation_space=observation_space,
            action_space=action_space,
            algorithm_name="none",
        )
    return MinariData("made/up-v0", str(root))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets that several tests read."""
    folder = tmp_path_factory.mktemp("minari")
    pendulum = gym.make("Pendulum-v1")
    record(folder, "test/pendulum-v0", pendulum, episodes=6, steps=20)
    record(folder, "test/hopper-v0", "Hopper-v5", episodes=3, steps=200)
    record(folder, "test/point-v0", "PointMaze_UMaze-v3", episodes=2)
    record(folder, "test/ant-v0", "AntMaze_UMaze-v4", episodes=2, steps=6)
    return folder


BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize("name", ["pendulum", "hopper", "point", "ant"])
def test_every_number_minari_gives_is_in_the_transitions(name: str, root: Path) -> None:
    data = MinariData(f"test/{name}-v0", str(root), val_fraction=0.0, normalize=False)
    data.setup()
    with minari_root(root):
        theirs = minari.load_dataset(f"test/{name}-v0")
    low, high = theirs.action_space.low, theirs.action_space.high
    first, starts = 0, []
    for episode in theirs:
        steps = len(episode)
        rows = slice(first, first + steps)
        parts = episode.observations
        if isinstance(parts, dict):
            parts = np.concatenate([parts[key] for key in sorted(parts)], axis=1)
        ours = data.train
        np.testing.assert_array_equal(ours.observations[first : first + steps + 1], parts.astype(np.float32))
        actions = (ours.actions[rows].numpy() + 1.0) / 2.0 * (high - low) + low
        np.testing.assert_allclose(actions, episode.actions, atol=2.0 * ACTION_CLIP * (high - low).max())
        np.testing.assert_array_equal(ours.rewards[rows], episode.rewards.astype(np.float32))
        np.testing.assert_array_equal(ours.masks[rows], 1.0 - episode.terminations)
        starts += range(first, first + steps)
        first += steps + 1
    assert data.train.starts.tolist() == starts
    assert len(data.train.observations) == first
    assert data.val is None


def test_a_batch_holds_the_steps_as_they_were_played(root: Path) -> None:
    data = MinariData("test/hopper-v0", str(root), val_fraction=0.0, normalize=False)
    data.setup()
    with minari_root(root):
        episodes = list(minari.load_dataset("test/hopper-v0"))
    assert all(episode.terminations[-1] for episode in episodes), "random hoppers fall"
    batch = data.train[torch.arange(len(data.train))]
    s, next_s = ([e.observations[k : len(e) + k] for e in episodes] for k in (0, 1))
    np.testing.assert_array_equal(batch.observations, np.concatenate(s).astype(np.float32))
    np.testing.assert_array_equal(batch.next_observations, np.concatenate(next_s).astype(np.float32))
    assert int((batch.masks == 0).sum()) == len(episodes)


ENDINGS = {"terminated": (True, False), "truncated": (False, True), "both": (True, True), "cut": (False, False)}


@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 17]), min_size=1, max_size=6),
    endings=st.lists(st.sampled_from(sorted(ENDINGS)), min_size=6, max_size=6),
)
@settings(deadline=None)
def test_episodes_become_rows_whatever_their_length_and_ending(lengths: list[int], endings: list[str]) -> None:
    episodes = []
    for k, steps in enumerate(lengths):
        terminated = np.zeros(steps, bool)
        terminated[-1] = ENDINGS[endings[k]][0]
        observations = (1000.0 * k + np.arange(steps + 1, dtype=np.float32))[:, None]
        actions = np.full((steps, 2), 0.5, np.float32)
        episodes.append(Episode(observations, actions, np.arange(steps, dtype=np.float64), terminated))
    cache = Cache(Path(), where=False)
    (transitions,) = loaded(cache, [cache.prepared("rows", {}, lambda store: write_rows(store, episodes) or {})])
    assert len(transitions.observations) == sum(lengths) + len(lengths)
    assert len(transitions) == sum(lengths)
    batch = transitions[torch.arange(len(transitions))]
    assert torch.equal(batch.next_observations, batch.observations + 1.0), "no transition crosses two episodes"
    expected_masks = np.concatenate([1.0 - e.terminated for e in episodes])
    np.testing.assert_array_equal(batch.masks, expected_masks)
    np.testing.assert_array_equal(batch.rewards, np.concatenate([e.rewards for e in episodes]))
    train, val = split(transitions, 0.3)
    if len(lengths) == 1:
        assert train is transitions
        assert val is None
        return
    held, kept = ({int(x) // 1000 for x in part.observations[part.starts].flatten()} for part in (val, train))
    assert held.isdisjoint(kept), "whole episodes are held out"
    assert held | kept == set(range(len(lengths)))


@pytest.mark.parametrize("ending", sorted(ENDINGS))
def test_only_a_termination_stops_the_bootstrap(ending: str, tmp_path: Path) -> None:
    terminated, truncated = ENDINGS[ending]
    data = invent(
        tmp_path,
        BOX,
        ACTIONS,
        terminations=[False, False, terminated],
        truncations=[False, False, truncated],
    )
    data.setup()
    assert data.train.masks[:4].tolist() == [1.0, 1.0, 0.0 if terminated else 1.0, 1.0]


def numbers(data: MinariData) -> list[bytes]:
    """Every number of both parts, to the last bit."""
    data.setup()
    batches = [part[torch.arange(len(part))] for part in (data.train, data.val) if part is not None]
    return [x.numpy().tobytes() for batch in batches for x in batch[:5]]


def entries(root: Path) -> dict[str, int]:
    """The prepared readings of datasets, each with what tells whether it was made again."""
    return {folder.name: folder.stat().st_ino for folder in (root / ".prepared").glob("[!.]*/")}


PREPARED = {
    "vector": ("test/pendulum-v0", {"val_fraction": 0.34, "fraction": 0.5, "seed": 3}),
    "dictionary": ("test/point-v0", {"observation_keys": ["observation", "desired_goal"], "normalize": False}),
    "labelled": ("test/ant-v0", {"observation_keys": ["achieved_goal", "observation"], "goal": [-4.0, -4.0]}),
}


@pytest.mark.parametrize("case", sorted(PREPARED))
def test_prepared_data_are_those_of_the_files_to_the_last_bit(case: str, root: Path, tmp_path: Path) -> None:
    dataset, settings = PREPARED[case]
    shutil.copytree(root / dataset, tmp_path / dataset)
    settings = {"reward_shift": -1.0, "reward_scale": 0.3, **settings}
    expected = numbers(MinariData(dataset, str(tmp_path), cache=False, **settings))
    assert not (tmp_path / ".prepared").exists()
    made, opened = MinariData(dataset, str(tmp_path), **settings), MinariData(dataset, str(tmp_path), **settings)
    mapped = MinariData(dataset, str(tmp_path), memory_gib=0.0, **settings)
    for data in (made, opened, mapped):
        assert numbers(data) == expected
    assert mapped.train.ships_to is not None, "it is not in memory"
    assert made.spec == opened.spec == mapped.spec
    assert made.env == opened.env
    assert made.provenance() == opened.provenance()
    assert len(entries(tmp_path)) == 1


def test_prepared_data_are_made_again_where_the_files_or_their_reading_differ(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "test/ant-v0", tmp_path / "test/ant-v0")

    def opened(**settings: Any) -> dict[str, int]:
        MinariData("test/ant-v0", str(tmp_path), **settings).setup()
        return entries(tmp_path)

    first = opened()
    assert len(first) == 1
    assert opened(reward_scale=2.0, reward_shift=1.0, val_fraction=0.0, normalize=False) == first
    several = opened(goal=[1.0, 1.0]) | opened(goal=[1.0, 2.0]) | opened(observation_keys=["observation"])
    assert len(several) == 4
    assert first.items() < several.items(), "one reading leaves the others alone"
    change_metadata(MinariData("test/ant-v0", str(tmp_path)), note="other bytes")
    again = opened()
    assert {name for name in again if again[name] != several[name]} == set(first)


def test_prepared_data_need_neither_minari_nor_h5py(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "test/hopper-v0", tmp_path / "test/hopper-v0")
    made = MinariData("test/hopper-v0", str(tmp_path))
    made.setup()
    script = (
        "import sys\n"
        "sys.modules['minari'] = sys.modules['h5py'] = None\n"
        "from mfrl.data.minari import MinariData\n"
        f"data = MinariData('test/hopper-v0', {str(tmp_path)!r})\n"
        "data.setup()\n"
        "print(len(data.train), data.env.make().spec.id)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(made.train)), "Hopper-v5"]


def test_actions_fill_the_unit_cube_and_the_environment_maps_them_back(root: Path) -> None:
    data = MinariData("test/pendulum-v0", str(root), val_fraction=0.0)
    data.setup()
    with minari_root(root):
        episode = minari.load_dataset("test/pendulum-v0")[0]
    assert np.abs(episode.actions).max() > 1.0, "the pendulum's torque goes up to 2"
    env = data.env.make()
    env.reset(seed=0)
    plain = gym.make("Pendulum-v1")
    plain.reset(seed=0)
    for ours, theirs in zip(data.train.actions[: len(episode)].numpy(), episode.actions, strict=True):
        here, there = env.step(ours), plain.step(theirs)
        np.testing.assert_allclose(here[0], there[0], atol=1e-3)


def test_rewards_are_shifted_then_scaled(root: Path) -> None:
    plain, changed = (
        MinariData("test/pendulum-v0", str(root), **settings)
        for settings in ({}, {"reward_shift": -1.0, "reward_scale": 0.5})
    )
    plain.setup()
    changed.setup()
    index = torch.arange(len(plain.train))
    assert torch.allclose(changed.train[index].rewards, (plain.train[index].rewards - 1.0) * 0.5)


def test_held_out_episodes_are_the_same_for_every_seed_and_fractions_follow_it(root: Path) -> None:
    parts = []
    for seed in (0, 1):
        data = MinariData("test/pendulum-v0", str(root), val_fraction=0.34, fraction=0.5, seed=seed)
        data.setup()
        parts.append((data.train.starts.tolist(), data.val.starts.tolist()))
        assert not set(parts[-1][0]) & set(parts[-1][1])
        assert len(parts[-1][0]) == len(parts[-1][1]) == 40
    assert parts[0][1] == parts[1][1]
    assert parts[0][0] != parts[1][0]


def test_nothing_held_out_means_no_validation_losses(root: Path, tmp_path: Path) -> None:
    settings = [*MINARI, "env.dataset=test/point-v0", "env.val_fraction=0", f"data_dir={root}"]
    result = train(compose("train", *settings, f"run_dir={tmp_path / 'run'}"), settings)
    assert result["episodes"] == 2
    logged = (tmp_path / "run/metrics.csv").read_text()
    assert ",train/" in logged
    assert ",val/" not in logged
    without = [*WITHOUT_EPISODES, "env.dataset=test/pendulum-v0", "env.val_fraction=0", f"data_dir={root}"]
    with pytest.raises(ConfigError, match=r"test/pendulum-v0.*env\.val_fraction="):
        train(compose("train", *without, f"run_dir={tmp_path / 'other'}"), without)
    assert not (tmp_path / "other").exists()


def test_observations_are_normalised_with_what_is_trained_on(root: Path) -> None:
    data = MinariData("test/pendulum-v0", str(root), val_fraction=0.34)
    data.setup()
    observations = data.train[torch.arange(len(data.train))].observations
    assert torch.allclose(observations.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(observations.std(0, correction=0), torch.ones(3), atol=1e-4)


def test_a_dictionary_is_joined_in_the_order_given(root: Path) -> None:
    data = MinariData(
        "test/point-v0", str(root), observation_keys=["observation", "desired_goal"], val_fraction=0.0, normalize=False
    )
    data.setup()
    with minari_root(root):
        parts = minari.load_dataset("test/point-v0")[0].observations
    expected = np.concatenate([parts["observation"], parts["desired_goal"]], axis=1)
    np.testing.assert_array_equal(data.train.observations[: len(expected)], expected.astype(np.float32))
    env = data.env.make()
    observation, _ = env.reset(seed=0)
    raw, _ = gym.make("PointMaze_UMaze-v3").reset(seed=0)
    np.testing.assert_array_equal(observation, np.concatenate([raw["observation"], raw["desired_goal"]], dtype="f4"))


REFUSED_SPACES = {
    "discrete actions": (BOX, spaces.Discrete(3), "vector of continuous actions"),
    "a matrix of actions": (BOX, spaces.Box(-1.0, 1.0, (2, 2), np.float32), "vector of continuous actions"),
    "whole-number actions": (BOX, spaces.Box(-1, 1, (2,), np.int64), "vector of continuous actions"),
    "endless actions": (BOX, spaces.Box(-np.inf, np.inf, (2,), np.float32), "finite bounds"),
    "discrete observations": (spaces.Discrete(4), ACTIONS, "must be a Box of numbers"),
    "images": (spaces.Box(0, 255, (64, 64, 3), np.uint8), ACTIONS, "are images"),
    "nested dictionaries": (spaces.Dict(a=spaces.Dict(b=BOX)), ACTIONS, "entry 'a'.*observation_keys"),
    "tuples": (spaces.Tuple([BOX, BOX]), ACTIONS, "must be a Box of numbers"),
}


@pytest.mark.parametrize("case", sorted(REFUSED_SPACES))
def test_what_cannot_be_learned_from_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    observations, actions, sentence = REFUSED_SPACES[case]
    data = invent(tmp_path, observations, actions)
    with pytest.raises(DataError, match=f"(?s)made/up-v0.*{sentence}"):
        data.setup()


REFUSED_NUMBERS = {
    "NaN observations": ({"observations": np.full((4, 3), np.nan, np.float32)}, "episode 0, field 'observations'.*NaN"),
    "infinite rewards": ({"rewards": [0.0, np.inf, 0.0]}, "episode 0, field 'rewards'.*NaN.*step 1"),
    "rewards beyond float32": ({"rewards": [0.0, 1e60, 0.0]}, "episode 0, field 'rewards'.*float32"),
    "actions out of bounds": ({"actions": np.full((3, 2), 1.5, np.float32)}, "field 'actions' leaves its bounds"),
    "too few observations": ({"observations": np.zeros((3, 3), np.float32)}, r"shape \(3, 3\), expected \(4, 3\)"),
    "narrow observations": ({"observations": np.zeros((4, 2), np.float32)}, r"shape \(4, 2\), expected \(4, 3\)"),
    "too few actions": ({"actions": np.zeros((2, 2), np.float32)}, r"'actions' has shape \(2, 2\), expected \(3, 2\)"),
    "too few truncations": ({"truncations": [False, True]}, r"'truncations' has shape \(2,\)"),
    "text for rewards": ({"rewards": ["a", "b", "c"]}, "field 'rewards' holds object, expected numbers"),
}


@pytest.mark.parametrize("case", sorted(REFUSED_NUMBERS))
def test_bad_numbers_are_refused_by_episode_and_field(case: str, tmp_path: Path) -> None:
    fields, sentence = REFUSED_NUMBERS[case]
    data = invent(tmp_path, BOX, ACTIONS, **fields)
    with pytest.raises(DataError, match=f"made/up-v0: .*{sentence}"):
        data.setup()


def main_file(data: MinariData) -> Path:
    return data.folder / "data" / "main_data.hdf5"


def change_metadata(data: MinariData, **fields: Any) -> None:
    (path,) = data.paths
    metadata = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in metadata.items() if value is not None}))


def empty_episode(data: MinariData) -> None:
    with h5py.File(main_file(data), "a") as file:
        for name, shape in (("observations", (1, 3)), ("actions", (0, 2)), ("rewards", (0,))):
            del file["episode_1"][name]
            file["episode_1"][name] = np.zeros(shape, np.float32)
        for name in ("terminations", "truncations"):
            del file["episode_1"][name]
            file["episode_1"][name] = np.zeros(0, bool)


def drop(name: str) -> Callable[[MinariData], None]:
    def damage(data: MinariData) -> None:
        with h5py.File(main_file(data), "a") as file:
            del file[name]

    return damage


DAMAGE: dict[str, tuple[Callable[[MinariData], Any], str]] = {
    "an empty episode": (empty_episode, "episode 1 is empty"),
    "a missing episode": (drop("episode_1"), "episode 1 cannot be read"),
    "a missing field": (drop("episode_0/rewards"), "episode 0 cannot be read"),
    "a truncated file": (lambda data: os.truncate(main_file(data), 500), "damaged or truncated"),
    "a missing file": (lambda data: main_file(data).unlink(), "damaged or truncated"),
    "no metadata": (lambda data: data.paths[0].unlink(), "metadata.json is missing"),
    "half the metadata": (lambda data: os.truncate(data.paths[0], 40), "metadata.json cannot be read"),
    "no spaces": (lambda data: change_metadata(data, action_space=None), "field 'action_space' is missing"),
    "an invented space": (lambda data: change_metadata(data, action_space='{"type": "Magic"}'), "cannot be read"),
    "no episodes": (lambda data: change_metadata(data, total_episodes=0), "has no episode"),
    "another's metadata": (lambda data: change_metadata(data, dataset_id="x-v0"), "describes 'x-v0'"),
    "a later Minari": (lambda data: change_metadata(data, minari_version="9.0"), "made by Minari 9.0"),
    "an unknown format": (lambda data: change_metadata(data, data_format="pickle"), "data_format 'pickle'"),
    "a number for an environment": (lambda data: change_metadata(data, env_spec=3), "'env_spec' is no text"),
}


@pytest.mark.parametrize("case", sorted(DAMAGE))
def test_a_damaged_dataset_is_refused_before_training(case: str, tmp_path: Path) -> None:
    damage, sentence = DAMAGE[case]
    data = invent(tmp_path, BOX, ACTIONS)
    damage(data)
    with pytest.raises(DataError, match=f"made/up-v0.*{sentence}"):
        data.setup()


def test_missing_spaces_do_not_make_minari_build_what_the_file_names(tmp_path: Path) -> None:
    data = invent(tmp_path, BOX, ACTIONS)
    evil = {"id": "Evil-v0", "entry_point": "shutil:rmtree", "kwargs": {"path": "x"}, "additional_wrappers": []}
    change_metadata(data, action_space=None, env_spec=json.dumps(evil))
    with pytest.raises(DataError, match="field 'action_space' is missing"):
        data.setup()


@pytest.mark.parametrize(
    "dataset", ["../pen-v0", "a/../b-v0", "/etc/pen-v0", "a//b-v0", "pen", "", "a/b c-v0", "hf://x/pen-v0", "pen-v0\n"]
)
def test_an_id_cannot_lead_out_of_the_folder(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Minari dataset"):
        MinariData(dataset, str(tmp_path))
    with pytest.raises(DataError, match="no Minari dataset"):
        download(tmp_path, dataset)


@pytest.mark.parametrize(
    ("dataset", "command"),
    [
        ("D4RL/pen/human-v2", "mfrl download env=d4rl/pen-human data_dir="),
        ("D4RL/antmaze/umaze-diverse-v1", "mfrl download env=d4rl/antmaze-umaze-diverse data_dir="),
        ("mfrl/pointmaze/umaze-v0", "mfrl collect env=minari/pointmaze-umaze data_dir="),
        ("test/pendulun-v0", "mfrl download env=minari/dataset env.dataset=test/pendulun-v0 data_dir="),
    ],
)
def test_a_missing_dataset_is_answered_at_once_without_the_network(
    dataset: str, command: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", None)
    with pytest.raises(DataError) as caught:
        MinariData(dataset, str(root)).setup()
    message = str(caught.value)
    assert f"{command}{root}" in message
    assert "test/ant-v0, test/hopper-v0, test/pendulum-v0, test/point-v0" in message
    assert ("did you mean test/pendulum-v0" in message) == dataset.startswith("test/")


def test_the_root_is_minaris_own(root: Path) -> None:
    with minari_root(root):
        assert MinariData("test/ant-v0").folder == root / "test/ant-v0"
        assert set(present(root)) == set(minari.list_local_datasets())


def test_a_download_fails_at_once_where_there_is_no_server_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    data = MinariData("D4RL/pen/human-v2", str(tmp_path / "root"))
    with pytest.raises(DataError, match="D4RL/pen/human-v2"):
        data.download()
    assert not (tmp_path / "root").exists()


def serve(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    """Minari's download, from a folder instead of a server."""

    def from_folder(dataset: str) -> None:
        target = Path(os.environ["MINARI_DATASETS_PATH"]) / dataset
        shutil.copytree(source / dataset, target)

    monkeypatch.setattr("mfrl.data.minari_download._refuse_offline", lambda *_: None)
    monkeypatch.setattr(minari, "download_dataset", from_folder)


def test_a_download_arrives_whole_with_its_record(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, root)
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    data = MinariData("test/ant-v0", str(tmp_path))
    data.download()
    assert "MINARI_DATASETS_PATH" not in os.environ
    assert [path.name for path in tmp_path.iterdir()] == ["test"]
    data.setup()
    record = data.provenance()
    assert record["source"] == "official"
    assert set(record["files"]) == {"data/main_data.hdf5", "data/metadata.json"}
    with pytest.raises(DataError, match="exists already"):
        data.download()


def test_a_download_that_breaks_leaves_nothing_behind(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(root / "test/ant-v0", broken / "test/ant-v0")
    (broken / "test/ant-v0/data/metadata.json").write_text("{")
    serve(monkeypatch, broken)
    with pytest.raises(DataError, match=r"metadata\.json cannot be read"):
        download(tmp_path / "here", "test/ant-v0")
    assert list((tmp_path / "here").iterdir()) == []


def test_ours_are_offered_by_no_server(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="offered by no server"):
        download(tmp_path, "mfrl/pointmaze/umaze-v0")


def test_a_record_speaks_for_the_files_it_was_written_for(tmp_path: Path) -> None:
    data = invent(tmp_path, BOX, ACTIONS)
    assert describe(tmp_path, "made/up-v0")["source"] == "unrecorded"
    write_record(tmp_path, "made/up-v0", "collected", generator="a test")
    assert describe(tmp_path, "made/up-v0")["source"] == "collected"
    assert data.provenance()["generator"] == "a test"
    change_metadata(data, note="changed")
    assert describe(tmp_path, "made/up-v0")["source"] == "unrecorded"
    (tmp_path / "made/up-v0/provenance.json").write_text("{")
    with pytest.raises(MfrlError, match="not valid JSON"):
        data.provenance()


def test_scores_are_normalised_where_the_dataset_says_how(tmp_path: Path) -> None:
    record(tmp_path, "test/scored-v0", "Pendulum-v1", ref_min_score=-1200.0, ref_max_score=-150.0)
    data = MinariData("test/scored-v0", str(tmp_path))
    data.setup()
    assert data.env.reference_returns == (-1200.0, -150.0)
    chosen = MinariData("test/scored-v0", str(tmp_path), reference_returns=[0, 1])
    chosen.setup()
    assert chosen.env.reference_returns == (0.0, 1.0)
    silent = invent(tmp_path / "other", BOX, ACTIONS)
    silent.setup()
    assert silent.env.reference_returns is None


def test_evaluation_is_where_the_dataset_wants_it(tmp_path: Path) -> None:
    record(tmp_path, "test/moon-v0", "Pendulum-v1", eval_env=gym.make("Pendulum-v1", g=1.6))
    record(tmp_path, "test/earth-v0", gym.make("Pendulum-v1", g=9.8))
    for name, gravity in (("moon", 1.6), ("earth", 9.8)):
        data = MinariData(f"test/{name}-v0", str(tmp_path))
        data.setup()
        assert data.env.make().unwrapped.g == gravity


def test_a_constant_reward_and_unmet_requirements_are_warned_about(tmp_path: Path) -> None:
    data = invent(tmp_path, BOX, ACTIONS, rewards=[0.0, 0.0, 0.0])
    change_metadata(data, requirements=["numpy<1", "numpy>1", "no such thing at all", "absent-package==1"])
    data.goal = (50.0, 50.0)
    data.setup()
    assert len(data.warnings) == 2
    assert "numpy<1" in data.warnings[0]
    assert "every reward" in data.warnings[1]
    assert "near the goal" in data.warnings[1]


@pytest.mark.parametrize(
    "setting",
    [
        {"fraction": 0.0},
        {"val_fraction": 1.0},
        {"reward_scale": -1.0},
        {"reward_shift": float("nan")},
        {"reference_returns": [1.0, 1.0]},
        {"reference_returns": [1.0]},
        {"reference_returns": [0.0, float("inf")]},
        {"reference_returns": 3.0},
        {"goal": [0.0]},
        {"goal": "ab"},
        {"goal": [0.0, float("nan")]},
        {"rule": "nonsense"},
        {"max_episode_steps": 0},
        {"max_episode_steps": 1.5},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        MinariData("a-v0", str(tmp_path), **setting)


def test_antmaze_is_labelled_for_the_one_goal_and_the_ant_goes_on(tmp_path: Path) -> None:
    record(tmp_path, "D4RL/antmaze/umaze-v1", "AntMaze_UMaze-v4", episodes=2, steps=8)
    with minari_root(tmp_path):
        episode = minari.load_dataset("D4RL/antmaze/umaze-v1")[0]
    cfg = compose("train", "env=d4rl/antmaze-umaze", f"data_dir={tmp_path}", "data.normalize=false")
    assert cfg.env.goal == [-4.0, 4.0]
    cfg.env.goal = [float(x) for x in episode.observations["achieved_goal"][4]]
    data = build(cfg.data)
    data.setup()
    there = np.linalg.norm(episode.observations["achieved_goal"][1:] - cfg.env.goal, axis=1) <= 0.5
    assert there[3], "the step that arrives is the success"
    assert data.spec.observation_dim == 29
    np.testing.assert_array_equal(data.train.rewards[:8], there.astype(np.float32) - 1.0)
    np.testing.assert_array_equal(data.train.masks[:8], 1.0 - there)
    assert data.train.starts[:8].tolist() == list(range(8)), "a success ends no trajectory, as in the original"
    assert data.train.starts[8] == 9
    np.testing.assert_array_equal(
        data.train.observations[0],
        np.concatenate([episode.observations[key][0] for key in ("achieved_goal", "observation")], dtype=np.float32),
    )


def test_the_position_of_an_ant_is_found_wherever_it_lies_in_the_observation(root: Path) -> None:
    with minari_root(root):
        positions = minari.load_dataset("test/ant-v0")[0].observations["achieved_goal"]
    labels = []
    for keys in (["achieved_goal", "observation"], ["observation", "achieved_goal"]):
        goal = [float(x) for x in positions[3]]
        data = MinariData("test/ant-v0", str(root), observation_keys=keys, goal=goal, val_fraction=0.0)
        data.setup()
        labels.append(data.train.rewards.tolist())
    assert labels[0] == labels[1]
    assert labels[0][2] == 1.0, "the third step leads there"
    with pytest.raises(DataError, match=r"achieved_goal.*env\.observation_keys"):
        MinariData("test/ant-v0", str(root), observation_keys=["observation"], goal=[0.0, 0.0]).setup()


@pytest.mark.parametrize("rule", ["pen", "door", "hammer", "relocate"])
def test_a_rule_is_for_the_observations_of_its_task(rule: str, root: Path) -> None:
    with pytest.raises(DataError, match=f"test/pendulum-v0.*env.rule={rule}.*3"):
        MinariData("test/pendulum-v0", str(root), rule=rule).setup()


@pytest.mark.parametrize("rule", ["pen", "door", "hammer", "relocate"])
def test_adroit_data_and_environment_have_the_same_labels(rule: str, tmp_path: Path) -> None:
    env = gym.make(f"AdroitHand{rule.capitalize()}-v1", max_episode_steps=200)
    steps = 200 if rule == "pen" else 40
    record(tmp_path, f"D4RL/{rule}/human-v2", env, episodes=1, steps=steps)
    cfg = compose("train", f"env=d4rl/{rule}-human", f"data_dir={tmp_path}", "data.normalize=false")
    data = build(cfg.data)
    data.setup()
    with minari_root(tmp_path):
        episode = minari.load_dataset(f"D4RL/{rule}/human-v2")[0]
    live = data.env.make()
    live.reset(seed=0)
    for k, action in enumerate(episode.actions):
        observation, reward, terminated, _, _ = live.step(action)
        np.testing.assert_allclose(observation, episode.observations[k + 1], rtol=1e-4, atol=1e-4)
        assert reward == pytest.approx(float(data.train.rewards[k]), abs=1e-4)
        assert terminated == (data.train.masks[k] == 0.0)
    changed = not np.allclose(data.train.rewards[:steps], episode.rewards, atol=1e-6)
    assert changed == (rule != "pen")
    if rule == "pen":
        assert (data.train.masks == 0.0).any(), "a random hand drops the pen"


@pytest.mark.parametrize("rule", ["door", "relocate"])
def test_rewards_that_are_d4rls_already_are_left_alone(rule: str) -> None:
    env = gym.make(f"AdroitHand{rule.capitalize()}-v1")
    episode = play(env, 60, seed=0)
    after, recorded = np.asarray(episode.observations[1:]), np.asarray(episode.rewards)
    assert d4rl.evidence_of_sign(rule, after, recorded) > 0.0
    original, _ = d4rl.adroit_labels(rule, after, recorded, np.zeros(60, bool))
    assert d4rl.evidence_of_sign(rule, after, original) < 0.0


@pytest.mark.parametrize(("rule", "said"), [("relocate", False), ("hammer", True)])
def test_a_set_recorded_with_d4rls_rewards_keeps_them(rule: str, said: bool, tmp_path: Path) -> None:
    """As the numbers tell, or as the recorded environment says."""
    env = gym.make(f"AdroitHand{rule.capitalize()}-v1", max_episode_steps=200)
    fixed = d4rl.AdroitLabels(env, rule)
    buffer = play(fixed, 30, seed=0)
    with minari_root(tmp_path):
        minari.create_dataset_from_buffers(
            f"D4RL/{rule}/human-v2", [buffer], fixed if said else env, algorithm_name="random"
        )
    data = build(compose("train", f"env=d4rl/{rule}-human", f"data_dir={tmp_path}").data)
    data.setup()
    np.testing.assert_allclose(data.train.rewards[:30], buffer.rewards, atol=1e-6)


def test_training_evaluation_and_checkpoint_from_any_dataset(root: Path, tmp_path: Path) -> None:
    settings = [
        *MINARI,
        "env.dataset=test/point-v0",
        "env.reference_returns=[0,1]",
        f"data_dir={root}",
        f"run_dir={tmp_path / 'run'}",
    ]
    result = train(compose("train", *settings), settings)
    assert result["env"] == "PointMaze_UMaze-v3"
    assert result["dataset"] == "test/point-v0"
    assert "eval/normalized_score" in result["final"]
    record = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["mfrl"]["env"]
    assert record["observation_keys"] == ("achieved_goal", "desired_goal", "observation")
    evaluation = evaluate_checkpoint(compose("eval", f"ckpt={tmp_path / 'run'}", "workers=0"))
    assert evaluation["eval/return"] == result["final"]["eval/return"]


def test_a_checkpoint_does_not_say_whom_to_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_env.py").write_text(
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\nclass Mine(PendulumEnv): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    gym.register("Mine-v0", "own_env:Mine", max_episode_steps=5)
    record(tmp_path, "test/mine-v0", "Mine-v0")
    for _ in ("read from the files", "prepared"):
        with pytest.raises(EnvError, match=r"trust=\[own_env\]"):
            MinariData("test/mine-v0", str(tmp_path)).setup()
    settings = [
        *MINARI,
        "env.dataset=test/mine-v0",
        "trust=[own_env]",
        f"data_dir={tmp_path}",
        f"run_dir={tmp_path / 'run'}",
    ]
    train(compose("train", *settings), settings)
    evaluate_checkpoint(compose("eval", f"ckpt={tmp_path / 'run'}", "workers=0", "trust=[own_env]"))
    with pytest.raises(EnvError, match=r"trust=\[own_env\]"):
        evaluate_checkpoint(compose("eval", f"ckpt={tmp_path / 'run'}", "workers=0"))
    resume = [f"resume={tmp_path / 'run'}", "updates=12"]
    with pytest.raises(EnvError, match=r"trust=\[own_env\]"):
        train(compose("train", *resume), resume)
    again = [*resume, "trust=[own_env]"]
    assert train(compose("train", *again), again)["updates"] == 12


def test_a_dataset_without_an_environment_says_so_and_takes_one_by_name(tmp_path: Path) -> None:
    data = invent(tmp_path, BOX, spaces.Box(-2.0, 2.0, (1,), np.float32))
    data.setup()
    with pytest.raises(EnvError, match=r"made/up-v0 does not say.*env\.gym_id="):
        data.env.make()
    named = MinariData("made/up-v0", str(tmp_path), gym_id="Pendulum-v1", max_episode_steps=7)
    named.setup()
    assert named.env.make().spec.max_episode_steps == 7


def test_the_recorded_environment_is_changed_as_asked(root: Path, tmp_path: Path) -> None:
    changes = {"gym_kwargs": {"g": 3.0}, "max_episode_steps": 7}
    data = MinariData("test/pendulum-v0", str(root), **changes)
    data.setup()
    env = data.env.make()
    assert (env.unwrapped.g, env.spec.max_episode_steps) == (3.0, 7)
    record(tmp_path, "test/door-v0", "AdroitHandDoor-v1", episodes=1)
    labelled = MinariData("test/door-v0", str(tmp_path), rule="door")
    labelled.setup()
    assert isinstance(labelled.env.make().env, d4rl.AdroitLabels), "policies are judged by what they learned from"
    invent(tmp_path, BOX, ACTIONS)
    for name, value in changes.items():
        with pytest.raises(EnvError, match=f"made/up-v0.*env.{name}.*env.gym_id="):
            MinariData("made/up-v0", str(tmp_path), **{name: value}).setup()


def test_a_policy_is_trained_without_an_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invent(tmp_path, BOX, ACTIONS)
    settings = [
        *WITHOUT_EPISODES,
        "env.dataset=made/up-v0",
        "env.val_fraction=0.5",
        f"data_dir={tmp_path}",
        f"run_dir={tmp_path / 'run'}",
    ]
    result = train(compose("train", *settings), settings)
    assert result["env"] == "made/up-v0"
    assert result["episodes"] == 0
    assert all(np.isfinite(value) for value in result["final"].values())
    assert result["final"]
    assert result["transitions"] == 3
    assert "3 transitions" in capsys.readouterr().err
    with pytest.raises(EnvError, match="does not say which environment"):
        evaluate_checkpoint(compose("eval", f"ckpt={tmp_path / 'run'}"))


def test_a_run_without_episodes_can_be_told_how_many_to_play(root: Path, tmp_path: Path) -> None:
    settings = [
        *WITHOUT_EPISODES,
        "env.dataset=test/pendulum-v0",
        f"data_dir={root}",
        f"run_dir={tmp_path / 'run'}",
    ]
    train(compose("train", *settings), settings)
    with pytest.raises(ConfigError, match=r"episodes=.*num_envs=.*seed="):
        evaluate_checkpoint(compose("eval", f"ckpt={tmp_path / 'run'}"))
    told = ["episodes=2", "num_envs=2", "workers=0", "seed=0"]
    assert evaluate_checkpoint(compose("eval", f"ckpt={tmp_path / 'run'}", *told))["episodes"] == 2


@pytest.mark.parametrize(
    ("evaluation", "sentence"), [("simulator", "made/up-v0 does not say which environment"), ("samples", "no toy")]
)
def test_a_run_that_cannot_be_evaluated_leaves_no_trace(evaluation: str, sentence: str, tmp_path: Path) -> None:
    invent(tmp_path, BOX, ACTIONS)
    settings = [
        *(name for name in WITHOUT_EPISODES if not name.startswith("evaluation=")),
        f"evaluation={evaluation}",
        "env.dataset=made/up-v0",
        f"data_dir={tmp_path}",
        f"run_dir={tmp_path / 'run'}",
    ]
    with pytest.raises(MfrlError, match=sentence):
        train(compose("train", *settings), settings)
    assert not (tmp_path / "run").exists()


def test_settings_of_another_evaluation_are_named_with_the_way_out(tmp_path: Path) -> None:
    invent(tmp_path, BOX, ACTIONS)
    settings = [
        "experiment=paper/pen-human",
        *WITHOUT_EPISODES,
        "+eval.samples=3",
        "env.dataset=made/up-v0",
        f"data_dir={tmp_path}",
        f"run_dir={tmp_path / 'run'}",
    ]
    with pytest.raises(ConfigError) as caught:
        train(compose("train", *settings), settings)
    assert "set by experiment=paper/pen-human" in str(caught.value)
    advice = shlex.split(str(caught.value).partition("with  ")[2])
    assert advice == ["~eval.episodes", "~eval.samples"]
    settings = [name for name in settings if not name.startswith("+")] + advice[:1]
    assert train(compose("train", *settings), settings)["episodes"] == 0


def test_a_training_run_collects_random_actions_in_the_environment_it_names(tmp_path: Path) -> None:
    settings = [
        *MINARI,
        "env=d4rl/pen-human",
        "env.dataset=mfrl/pen-random-v0",
        "collect={policy: random, episodes: 2}",
        f"data_dir={tmp_path}",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert train(compose("train", *settings), settings)["data"] == "collected"
    with minari_root(tmp_path):
        recorded = minari.load_dataset("mfrl/pen-random-v0")
    assert recorded.env_spec.id == "AdroitHandPen-v1"
    assert [len(episode) for episode in recorded] == [100, 100]


def test_an_environment_with_other_spaces_is_refused(root: Path, tmp_path: Path) -> None:
    invent(tmp_path, spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32))
    for gym_id in ("Hopper-v5", "MountainCarContinuous-v0"):
        with pytest.raises(EnvError, match="shape"):
            MinariData("test/pendulum-v0", str(root), gym_id=gym_id).setup()
    with pytest.raises(EnvError, match="did you mean Pendulum-v1"):
        MinariData("test/pendulum-v0", str(root), gym_id="Pendulun-v1").setup()
    with pytest.raises(EnvError, match="cannot be built"):
        MinariData("test/ant-v0", str(root), gym_id="AntMaze_UMaze-v4", gym_kwargs={"ctrl": 1}).setup()
    with pytest.raises(EnvError, match="vector of continuous actions"):
        MinariData("test/pendulum-v0", str(root), gym_id="CartPole-v1").setup()
    with pytest.raises(EnvError, match=r"bounded \(low\)"):
        MinariData("made/up-v0", str(tmp_path), gym_id="Pendulum-v1").setup()
