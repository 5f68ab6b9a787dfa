"""Policies of the toy study side by side, from their checkpoints."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.policy import Policy
from mfrl.errors import ConfigError
from mfrl.runs.load import load_algorithm
from mfrl.runs.saved import Saved
from mfrl.study import figures
from mfrl.study.evaluate import SampleEvaluator, displaced_lines, noise_lines
from mfrl.study.toys import Toy, find_toy
from mfrl.system.drawing import look_of

Name = TypeVar("Name", bound=Hashable)


def sample_gallery(
    runs: Mapping[str, str | Path | Sequence[str | Path]], samples: int | None = None, columns: int = 5
) -> Figure:
    """Samples of the data and of every policy; under each name its 2-Wasserstein distance, under the data the floor.

    Noise and data are those of the runs' own evaluations, so that the distances are those of their tables. Where there
    is one observation, a method has the colour that it has in every report.

    Args:
        runs: name -> checkpoint or run folder, or those of several seeds: then the distance is their mean with its
            deviation, and what is drawn is the seed in the middle. All of one toy and evaluated alike.
        samples: actions in all of each policy; None: as many as the runs were evaluated with.
        columns: panels in a row.

    Raises:
        CheckpointError, ConfigError: see :func:`load_policies`.
        ConfigError: the runs were evaluated with different seeds, or numbers of samples where none is given.
    """
    seeds = {name: [paths] if isinstance(paths, str | Path) else list(paths) for name, paths in runs.items()}
    toy, loaded = _load({(name, seed): path for name, paths in seeds.items() for seed, path in enumerate(paths)})
    evaluations = [Saved(record["config"]).group("eval") for _, record in loaded.values()]
    settings = {(samples or evaluation["samples"], evaluation["seed"]) for evaluation in evaluations}
    if len(settings) > 1:
        found = ", ".join(f"samples={n} seed={seed}" for n, seed in sorted(settings))
        raise ConfigError(f"a gallery is of runs evaluated alike, not with {found}")
    evaluator = SampleEvaluator(toy, *settings.pop())
    clouds, colors = {f"data\n$W_2$ floor {evaluator.floor:.3f}": evaluator.data}, ["0.35"]
    for name, paths in seeds.items():
        of_name = [loaded[name, seed] for seed in range(len(paths))]
        results = [evaluator.run(algorithm.policy().folded()) for algorithm, _ in of_name]
        distances = np.array([result.scores["eval/w2"] for result in results])
        deviation = f" ± {distances.std(ddof=1):.3f}" if len(paths) > 1 else ""
        middle = np.argsort(distances, kind="stable")[(len(distances) - 1) // 2]
        clouds[f"{name}\n$W_2$ {distances.mean():.3f}{deviation}"] = results[middle].drawn
        colors.append(look_of(_method(of_name[0][1])).color)
    most = max(map(len, seeds.values()), default=1)
    title = f"mean and deviation over {most} seeds; drawn: the seed in the middle" if most > 1 else ""
    return figures.sample_clouds(clouds, title, columns, colors)


def _method(record: Mapping[str, Any]) -> str:
    """The variant's name or, of an algorithm without one, the algorithm's."""
    saved = Saved(record["config"])
    variant = saved.plain("variant.name")
    return str(saved.plain("algo_name") if variant == "none" else variant)


def map_gallery(checkpoints: Mapping[str, str | Path], group: int = 0, columns: int = 5) -> Figure:
    """The map from noise to action of every policy as displaced grid lines, beside the grid over the noise.

    Args:
        checkpoints: name -> checkpoint or run folder, all of one toy, their noise of one deviation.
        group: number of the observation.

    Raises:
        CheckpointError, ConfigError: see :func:`load_policies`.
        ConfigError: the policies' noise differs in its deviation.
    """
    toy, policies = load_policies(checkpoints)
    sigmas = {policy.sigma for policy in policies.values()}
    if len(sigmas) > 1:
        raise ConfigError(f"a gallery of maps is of one sigma, not of {', '.join(map(str, sorted(sigmas)))}")
    maps: dict[str, np.ndarray] = {"noise": noise_lines(sigmas.pop())}
    return figures.displaced_grids(
        maps | {name: displaced_lines(policy, toy, group) for name, policy in policies.items()}, columns=columns
    )


def load_policies(checkpoints: Mapping[str, str | Path]) -> tuple[Toy, dict[str, Policy]]:
    """The toy that the checkpoints were trained on, and their policies.

    Raises:
        CheckpointError: a checkpoint is missing or refused.
        ConfigError: there is none, or they are of different toys.
    """
    toy, loaded = _load(checkpoints)
    return toy, {name: algorithm.policy() for name, (algorithm, _) in loaded.items()}


def _load(checkpoints: Mapping[Name, str | Path]) -> tuple[Toy, dict[Name, tuple[Algorithm, dict[str, Any]]]]:
    """The toy, and of each checkpoint the algorithm and its record."""
    loaded = {name: load_algorithm(path) for name, path in checkpoints.items()}
    toys = {record["env"]["env_id"] for _, record in loaded.values()}
    if len(toys) != 1:
        raise ConfigError(f"a gallery is of one toy, not of {len(toys)}: {', '.join(sorted(toys)) or 'no checkpoint'}")
    return find_toy(toys.pop()), loaded
