"""Collects datasets in OGBench's format: runs episodes in the simulator, and writes files with a record."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfrl.catalogue import GenerationSettings, default_val_episodes, generation_settings
from mfrl.collect.ogbench import files
from mfrl.collect.ogbench.episode import SPLITS
from mfrl.collect.ogbench.expert import Expert, shipped
from mfrl.collect.ogbench.unfinished import Unfinished, unfinished_episodes
from mfrl.collect.ogbench.workers import run_episodes
from mfrl.collect.writing import friendly_os_errors, progress_bar, unfinished
from mfrl.data.getting import why_not_collected
from mfrl.errors import CollectError
from mfrl.system import signals
from mfrl.system.files import lack_of_room
from mfrl.system.processes import usable_cores


@dataclass(frozen=True)
class Collected:
    """A finished collection.

    Args:
        train_path: the training file.
        val_path: the validation file.
        provenance: the record written beside them.
        transitions: number of training transitions; the last row of an episode is none.
        seconds: wall-clock time, writing included.
    """

    train_path: Path
    val_path: Path
    provenance: dict[str, Any]
    transitions: int
    seconds: float


def collect(
    dataset: str,
    data_dir: str | Path,
    *,
    episodes: int | None = None,
    val_episodes: int | None = None,
    episode_steps: int | None = None,
    noise: float | None = None,
    seed: int = 0,
    policy: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Collected:
    """Collect a dataset in OGBench's format and simulator, by a script or by an expert that mfrl trained.

    The data depend on the settings, the seed and the expert only, and not on the number of workers. After an
    interruption, a call with the same arguments continues with the episodes that were finished.

    Args:
        dataset: the name of an OGBench dataset; `-v0` may be left out.
        data_dir: the folder for the files; it is made if needed.
        episodes: number of training episodes. This and the next three default to the published settings.
        val_episodes: number of validation episodes; by default a tenth of `episodes` if these are given, at least 1.
        episode_steps: number of rows in an episode, one more than its transitions.
        noise: action noise, see `GenerationSettings.noise`.
        seed: at least 0.
        policy: of an ant: `ckpt:PATH` takes the actor of a run or a checkpoint, None the expert that comes with mfrl.
        workers: number of processes; by default one for each usable core. With 1, episodes run in this process, unless
            they render images.
        overwrite: replace files that were collected earlier. Files without mfrl's record are never replaced.
        progress: show a progress bar, and print a line at the end.

    Raises:
        CollectError: the dataset is unknown or cannot be collected, a setting is invalid, files are in the way, there
            is no expert, no room or no permission to write, or a worker failed. Finished episodes are kept.
        CheckpointError: from the checkpoint.
        EnvError: images are to be collected, and no rendering back end works.
    """
    started = time.perf_counter()
    settings = _settings(dataset, data_dir, episodes, val_episodes, episode_steps, noise)
    workers = usable_cores() if workers is None else workers
    for name, value, minimum in (("workers", workers, 1), ("seed", seed, 0)):
        if type(value) is not int or value < minimum:
            raise CollectError(f"{name} must be a whole number of at least {minimum}, got {value}.")
    folder = Path(data_dir).expanduser()
    files.check_free_to_write(folder, settings.dataset, overwrite)
    expert = _expert(settings, policy)

    with unfinished(folder) as building, _kept(settings, seed, expert, folder) as episodes_there:
        paths = files.split_paths(building, settings.dataset)
        _simulate(settings, seed, workers, expert, episodes_there, folder, progress)
        with friendly_os_errors(folder):
            for split, path in paths.items():
                with open(path, "wb") as file:
                    # Compressed, as OGBench's own files are. This takes little time compared with the simulation.
                    np.savez_compressed(file, **episodes_there.arrays(split))  # type: ignore[arg-type]  # by their names
            transitions = settings.episodes * (settings.episode_steps - 1)
            seconds = time.perf_counter() - started
            record = files.make_record(settings, seed, paths, transitions, seconds, expert)
            # Checked again, because another process may have finished the same dataset in the meantime.
            files.check_free_to_write(folder, settings.dataset, overwrite)
            files.publish(building, folder, settings.dataset, record)
    train_path, val_path = files.split_paths(folder, settings.dataset).values()
    if progress:
        rate = f"{transitions} transitions in {seconds:.1f} s, {transitions / seconds:,.0f}/s"
        print(f"Collected {settings.dataset}: {rate} -> {train_path}", file=sys.stderr)
    return Collected(train_path, val_path, record, transitions, seconds)


def _settings(
    dataset: str,
    data_dir: str | Path,
    episodes: int | None,
    val_episodes: int | None,
    episode_steps: int | None,
    noise: float | None,
) -> GenerationSettings:
    """The published settings of a dataset, changed by the user's.

    Raises:
        CollectError: the dataset is unknown or cannot be collected, or a setting is invalid.
    """
    try:
        published = generation_settings(dataset)
    except CollectError:
        raise CollectError(why_not_collected(dataset, data_dir)) from None
    if val_episodes is None and type(episodes) is int:
        val_episodes = default_val_episodes(episodes)
    overrides: dict[str, Any] = {
        "episodes": episodes,
        "val_episodes": val_episodes,
        "episode_steps": episode_steps,
        "noise": noise,
    }
    settings = dataclasses.replace(published, **{k: v for k, v in overrides.items() if v is not None})
    # Each file needs at least one episode, and each episode at least one transition.
    for name, minimum in {"episodes": 1, "val_episodes": 1, "episode_steps": 2}.items():
        value = getattr(settings, name)
        if type(value) is not int or value < minimum:
            raise CollectError(f"{name} must be a whole number of at least {minimum}, got {value}.")
    if type(settings.noise) not in (int, float) or not 0.0 <= settings.noise < float("inf"):
        raise CollectError(f"noise must be at least 0 and finite, got {settings.noise}.")
    return settings


def _expert(settings: GenerationSettings, policy: str | None) -> Expert | None:
    """Who acts: the expert that comes with mfrl, or that of a run; None where a script does."""
    if policy is not None and settings.expert is None:
        raise CollectError(f"policy={policy}: {settings.dataset} is collected by its script")
    if policy is not None and not policy.startswith("ckpt:"):
        raise CollectError(f"policy={policy}: who walks in {settings.dataset} is ckpt:PATH, or null: mfrl's own expert")
    if policy is None:
        return None if settings.expert is None else shipped(settings.expert)
    from mfrl.collect.ogbench.training import trained_expert  # which takes torch

    return trained_expert(policy.removeprefix("ckpt:"))


@contextmanager
def _kept(settings: GenerationSettings, seed: int, expert: Expert | None, folder: Path) -> Iterator[Unfinished]:
    """The episodes of a collection; if it ends early, they stay, and the user is told."""
    counts = _counts(settings)
    made_by = {**settings.used(), "seed": seed, "arrays": None if expert is None else expert.checksum}
    with ExitStack() as stack:
        with friendly_os_errors(folder):
            episodes = stack.enter_context(unfinished_episodes(folder, settings.dataset, made_by, counts))
        try:
            yield episodes
        except BaseException:
            if there := len(episodes.there()):
                print(
                    f"{there} of {sum(counts.values())} episodes of {settings.dataset} are kept in {folder}: the same "
                    "command goes on with them",
                    file=sys.stderr,
                )
            raise


def _counts(settings: GenerationSettings) -> dict[str, int]:
    """The number of episodes of each split."""
    return dict(zip(SPLITS, (settings.episodes, settings.val_episodes), strict=True))


def _simulate(
    settings: GenerationSettings,
    seed: int,
    workers: int,
    expert: Expert | None,
    episodes: Unfinished,
    folder: Path,
    progress: bool,
) -> None:
    """Run all episodes that are not there yet."""
    there = episodes.there()
    all_of_them = [(split, index) for split, count in _counts(settings).items() for index in range(count)]
    jobs = [job for job in all_of_them if job not in there]
    checked = False
    with progress_bar(progress) as bar, closing(run_episodes(settings, seed, jobs, workers, expert)) as finished:
        task = bar.add_task(settings.dataset.removesuffix("-v0"), total=len(all_of_them), completed=len(there), rate="")
        started = time.perf_counter()
        for done, ((split, index), episode) in enumerate(finished, start=1):
            signals.obey()
            if not checked:
                raw = sum(values.nbytes for values in episode.values())
                # The episodes that are still to come, and then all of them in their files, at most as large.
                if lack := lack_of_room(folder, raw * (len(jobs) + len(all_of_them)), "this may take"):
                    raise CollectError(lack)
                checked = True
            with friendly_os_errors(folder):
                episodes.put(split, index, episode)
            rate = done * (settings.episode_steps - 1) / (time.perf_counter() - started)
            bar.update(task, advance=1, rate=f"{rate:,.0f} transitions/s")
