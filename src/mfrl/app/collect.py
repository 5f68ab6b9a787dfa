"""`mfrl collect`: which kind of dataset is asked for, and what it will be called."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from mfrl.envs.spec import EnvSpec
from mfrl.errors import ConfigError, DataError, as_typed
from mfrl.system.paths import pasted

if TYPE_CHECKING:
    from mfrl.data.module import OfflineData

ONLY_OGBENCH = ("val_episodes", "workers")
ONLY_MINARI = ("policy", "dataset", "steps", "reference_episodes", "trust")


def collect(cfg: DictConfig, overrides: list[str]) -> None:
    """Collect as configured (conf/collect.yaml): OGBench's files by its scripted policies, else a Minari dataset.

    Args:
        overrides: what the user gave.

    Raises:
        ConfigError: for a setting that this kind of dataset does not have, or an environment that nobody acts in.
    """
    if not isinstance(cfg.policy, str | None):
        raise ConfigError(f"policy={as_typed(cfg.policy)} is unknown; known are null, random and ckpt:PATH")
    if cfg.env.suite == "gym":
        raise ConfigError(
            f"{cfg.env.name} has no dataset. To make one:  mfrl collect env=minari/dataset env.dataset=ID "
            f"env.gym_id={cfg.env.gym_id} policy=random   or, by a policy that was trained in it, policy=ckpt:RUN alone"
        )
    if cfg.policy is None and cfg.env.suite == "ogbench":
        from mfrl.catalogue import DEFAULT_DATA_DIR
        from mfrl.collect.ogbench import runner

        settings = without(ONLY_MINARI, cfg, f"{cfg.env.dataset} by its scripted policy")
        runner.collect(cfg.env.dataset, cfg.data_dir or DEFAULT_DATA_DIR, **settings)
        return
    from mfrl.collect.minari import runner

    settings = without(ONLY_OGBENCH, cfg, "a Minari dataset")
    if cfg.policy is not None and cfg.policy.startswith("ckpt:"):
        if any(text.startswith("env=") for text in overrides) and not has_own_id(cfg):
            raise ConfigError(
                "with policy=ckpt:PATH the environment is that of the checkpoint; to name the dataset, say dataset=ID"
            )
        chosen = settings.pop("dataset") or (cfg.env.dataset if has_own_id(cfg) else trained_id(cfg.policy))
    else:
        chosen = settings.pop("dataset") or (cfg.env.dataset if has_own_id(cfg) else untrained_id(cfg))
        if cfg.policy == "random":
            settings["env"] = environment(cfg)
            settings["episode_steps"] = settings["episode_steps"] or cfg.env.get("max_episode_steps")
    runner.collect(chosen, cfg.data_dir, **settings)
    elsewhere = {} if cfg.data_dir is None else {"data_dir": cfg.data_dir}
    print(f"Train on it: {pasted('mfrl', 'train', *reading(cfg, chosen), **elsewhere)}", file=sys.stderr)


def collector(suite: str) -> Callable[..., Any] | None:
    """What collects datasets of a suite, by their own script; None where there is nothing to collect."""
    if suite == "ogbench":
        from mfrl.collect.ogbench.runner import collect
    elif suite == "minari":
        from mfrl.collect.minari.runner import collect
    else:
        return None
    return collect


def collect_missing(cfg: DictConfig, data: OfflineData) -> None:
    """Make the files of a run's data, with the settings ``collect`` of conf/train.yaml.

    Random actions are taken in the data's ``gym_id``, as the package has it, unless another is given.

    Raises:
        DataError: no simulator makes them.
        CollectError: from the collector.
    """
    function = collector(cfg.env.suite)
    if function is None:
        raise DataError(f"{data.dataset} cannot be collected: no simulator makes it")
    settings = dict(cfg.collect)
    gym_id = cfg.env.get("gym_id")
    if settings.get("policy") == "random" and "gym_id" not in settings and gym_id is not None:
        from mfrl.envs.minari import write_spec

        gym_spec = write_spec(gym_id, OmegaConf.to_container(cfg.env.gym_kwargs, resolve=True))
        env = EnvSpec(gym_id, "minari", gym_spec=gym_spec, trust=data.env.trust)
        settings = {"env": env, "episode_steps": cfg.env.get("max_episode_steps"), **settings}
    function(data.dataset, data.data_dir, **settings)


def without(foreign: tuple[str, ...], cfg: DictConfig, what: str) -> dict[str, Any]:
    """The settings but for those of another kind, which must have been left alone.

    Raises:
        ConfigError: naming the one that was not.
    """
    settings = OmegaConf.to_container(cfg.collect, resolve=True)
    given = {name: settings.pop(name) for name in foreign}
    for name, value in given.items():
        if value not in (None, []):
            raise ConfigError(f"{name}={value} is no setting of collecting {what} ({', '.join(settings)} are)")
    return settings


def has_own_id(cfg: DictConfig) -> bool:
    """Whether the environment is nothing but the name of a dataset: env=minari/dataset env.dataset=ID."""
    return cfg.env.suite == "minari" and cfg.env.name == cfg.env.dataset


def trained_id(policy: str) -> str:
    """A Minari id that tells what a checkpoint was trained on and how."""
    from mfrl.runs.checkpoint import find_checkpoint, load_checkpoint
    from mfrl.runs.saved import Saved

    record = load_checkpoint(find_checkpoint(policy.removeprefix("ckpt:")))["mfrl"]
    bare = re.sub(r"-v\d+$", "", record["provenance"]["dataset"]).removeprefix("D4RL/").removeprefix("mfrl/")
    return f"mfrl/{bare.replace('/', '-')}-{Saved(record['config']).plain('algo_name')}-v0"


def untrained_id(cfg: DictConfig) -> str:
    """The id of a controller's dataset, or one that tells where random actions were taken.

    Raises:
        ConfigError: of a published dataset, where nobody is said to act.
    """
    if cfg.policy is not None:
        return f"mfrl/{cfg.env.name}-{cfg.policy}-v0"
    if cfg.env.dataset.startswith("D4RL/"):
        raise ConfigError(
            f"{cfg.env.dataset} cannot be collected: no script made it. Fetch it:  mfrl download "
            f"env=d4rl/{cfg.env.name}   or take random actions in its environment:  mfrl collect "
            f"env=d4rl/{cfg.env.name} policy=random"
        )
    return cfg.env.dataset


def environment(cfg: DictConfig) -> EnvSpec:
    """Where random actions are taken.

    Raises:
        ConfigError: the configuration names no environment.
    """
    if cfg.env.suite == "ogbench":
        from mfrl.catalogue import singletask_id

        return EnvSpec(singletask_id(cfg.env.dataset, cfg.env.task))
    from mfrl.catalogue import MAZES
    from mfrl.envs.minari import write_spec

    gym_id = MAZES[cfg.env.dataset].gym_id if cfg.env.dataset in MAZES else cfg.env.gym_id
    if gym_id is None:
        raise ConfigError(f"policy=random needs an environment for {cfg.env.dataset}: env.gym_id=NAME-v0")
    gym_spec = write_spec(gym_id, OmegaConf.to_container(cfg.env.gym_kwargs, resolve=True))
    return EnvSpec(gym_id, "minari", gym_spec=gym_spec, trust=tuple(cfg.trust))


def reading(cfg: DictConfig, dataset: str) -> list[str]:
    """The overrides with which a dataset is trained on."""
    if cfg.policy is None:
        return [f"env=minari/{cfg.env.name}", *([] if dataset == cfg.env.dataset else [f"env.dataset={dataset}"])]
    if cfg.policy == "random" and cfg.env.dataset.startswith("D4RL/"):
        return [f"env=d4rl/{cfg.env.name}", f"env.dataset={dataset}"]  # with the labels of that benchmark
    return ["env=minari/dataset", f"env.dataset={dataset}"]
