"""Collects Minari datasets, with a controller in point mazes, or with random actions or a trained policy anywhere.

Minari's own DataCollector writes the datasets, so any tool for Minari can read them. A dataset is built in a hidden
folder beside its place, and renamed when it is complete.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfrl.collect.minari.episodes import record
from mfrl.collect.minari.files import check_free_to_make, check_free_to_write, publish
from mfrl.collect.minari.plan import plan_collection
from mfrl.collect.writing import friendly_os_errors, unfinished
from mfrl.data import records
from mfrl.data.minari_files import data_root, describe, root_of_minari, write_record
from mfrl.envs.spec import EnvSpec
from mfrl.errors import CollectError


@dataclass(frozen=True)
class Collected:
    """A finished collection.

    Args:
        path: the dataset's folder.
        provenance: the record in this folder.
        transitions, episodes: their numbers.
        seconds: wall-clock time, writing included.
    """

    path: Path
    provenance: dict[str, Any]
    transitions: int
    episodes: int
    seconds: float


def collect(
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    policy: str | None = None,
    env: EnvSpec | None = None,
    gym_id: str | None = None,
    episodes: int | None = None,
    steps: int | None = None,
    episode_steps: int | None = None,
    noise: float | None = None,
    reference_episodes: int | None = None,
    seed: int = 0,
    trust: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> Collected:
    """Collect a Minari dataset. The data depend on the settings and the seed only.

    Args:
        dataset: its Minari id, e.g. ``mfrl/pointmaze/umaze-v0``.
        data_dir: the folder of Minari datasets; None stands for ``MINARI_DATASETS_PATH`` or Minari's default.
        policy: ``random`` for uniformly random actions; ``ckpt:PATH`` for a trained policy, in the environment that it
            was trained for; None for the controller, which the datasets of ``MAZES`` have.
        env: the environment for random actions.
        gym_id: a name that gymnasium knows, instead of ``env``.
        episodes: number of episodes; by default that of ``MAZES``, otherwise 100.
        steps: number of transitions, instead of ``episodes``; the last episode is cut off there.
        episode_steps: the time limit of episodes; by default that of ``MAZES``, otherwise that of the environment.
        noise: standard deviation of Gaussian noise on actions scaled to [-1, 1]; by default 0.5 for the controller and
            0 otherwise.
        reference_episodes: for the controller: number of episodes in which the returns of random actions and of the
            controller without noise are measured. They become the dataset's reference scores.
        seed: at least 0.
        trust: packages whose environments and networks may be built, besides the known ones.
        overwrite: replace a dataset that was collected earlier. A dataset without mfrl's record is never replaced.
        progress: show a progress bar, and print a line at the end.

    Raises:
        CollectError: a setting is invalid, a dataset is in the way, or there is no room or no permission to write. No
            file is left.
        DataError: ``dataset`` is no Minari id.
        EnvError: the environment does not exist, or its actions are not continuous and bounded.
        CheckpointError: the checkpoint cannot be used.
    """
    started = time.perf_counter()
    check_free_to_make(dataset)
    _check_numbers(episodes, steps, episode_steps, noise, reference_episodes, seed)
    root = data_root(data_dir).absolute()
    check_free_to_write(root, dataset, overwrite)
    plan = plan_collection(
        dataset,
        policy=policy,
        env=env,
        gym_id=gym_id,
        sizes=(episodes, steps, episode_steps),
        noise=noise,
        reference_episodes=reference_episodes,
        seed=seed,
        trust=trust,
    )
    with closing(plan.env), unfinished(root) as building, root_of_minari(building), friendly_os_errors(root):
        lengths = record(plan, dataset, seed, progress)
        details = {
            "generator": records.generator("mfrl.collect.minari.runner.collect"),
            "seed": seed,
            **plan.settings,
            "episodes": len(lengths),
            "transitions": sum(lengths),
            "seconds": round(time.perf_counter() - started, 3),
            "versions": records.versions((*records.SIMULATION, "gymnasium-robotics", "minari", "h5py")),
        }
        write_record(building, dataset, "collected", **details)
        # Checked again, because another process may have finished the same dataset in the meantime.
        check_free_to_write(root, dataset, overwrite)
        path = publish(building, root, dataset)
        provenance = describe(root, dataset)
    seconds = time.perf_counter() - started
    if progress:
        size = f"{sum(lengths):,} transitions in {len(lengths):,} episode{'s' * (len(lengths) != 1)}"
        print(f"Collected {dataset}: {size}, {seconds:.1f} s -> {path}", file=sys.stderr)
    return Collected(path, provenance, sum(lengths), len(lengths), seconds)


def _check_numbers(
    episodes: int | None,
    steps: int | None,
    episode_steps: int | None,
    noise: float | None,
    reference_episodes: int | None,
    seed: int,
) -> None:
    if episodes is not None and steps is not None:
        raise CollectError(f"episodes={episodes} and steps={steps} both say how much to collect; give one")
    least = {"episodes": 1, "steps": 1, "episode_steps": 1, "reference_episodes": 0, "seed": 0}
    given = (episodes, steps, episode_steps, reference_episodes, seed)
    for (name, minimum), value in zip(least.items(), given, strict=True):
        if value is not None and (type(value) is not int or value < minimum):
            raise CollectError(f"{name} must be a whole number of at least {minimum}, got {value}")
    if noise is not None and (type(noise) not in (int, float) or not 0.0 <= noise < float("inf")):
        raise CollectError(f"noise must be at least 0 and finite, got {noise}")
