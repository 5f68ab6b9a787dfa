"""`mfrl collect`: find out which kind of dataset is wanted and what its name is, and call the collector."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mfrl.envs.spec import EnvSpec
from mfrl.errors import ConfigError, DataError, as_typed
from mfrl.runs.targets import plain_settings
from mfrl.system.paths import pasted

if TYPE_CHECKING:
    from mfrl.data.module import OfflineData

ONLY_OGBENCH = ("val_episodes", "workers")  #: settings that Minari datasets do not have
ONLY_MINARI = ("dataset", "steps", "reference_episodes", "trust")  #: settings that OGBench's do not have


def collect(cfg: DictConfig, overrides: list[str]) -> None:
    """Collect a dataset: OGBench's files with its scripted policies, or a Minari dataset.

    Args:
        cfg: the composed configuration (conf/collect.yaml).
        overrides: the user's.

    Raises:
        ConfigError: a setting belongs to the other kind of dataset, or no policy is known for the environment.
        CollectError, DataError, EnvError, CheckpointError: from the collector.
    """
    if not isinstance(cfg.policy, str | None):
        raise ConfigError(f"policy={as_typed(cfg.policy)} is unknown; known are null, random and ckpt:PATH")
    if cfg.env.suite == "gym":
        raise ConfigError(
            f"{cfg.env.name} has no dataset. To make one:  mfrl collect env=minari/dataset env.dataset=ID "
            f"env.gym_id={cfg.env.gym_id} policy=random   or, by a policy that was trained in it, policy=ckpt:RUN alone"
        )
    if cfg.env.suite == "ogbench" and (cfg.policy is None or by_expert(cfg, overrides)):
        from mfrl.catalogue import DEFAULT_DATA_DIR
        from mfrl.collect.ogbench import runner as ogbench

        settings = settings_without(ONLY_MINARI, cfg, f"{cfg.env.dataset} in OGBench's format")
        ogbench.collect(cfg.env.dataset, cfg.data_dir or DEFAULT_DATA_DIR, **settings)
        return
    from mfrl.collect.minari import runner as minari

    settings = settings_without(ONLY_OGBENCH, cfg, "a Minari dataset")
    if cfg.policy is not None and cfg.policy.startswith("ckpt:"):
        if any(text.startswith("env=") for text in overrides) and not is_dataset_id(cfg):
            raise ConfigError(
                "with policy=ckpt:PATH the environment is that of the checkpoint; to name the dataset, say dataset=ID"
            )
        chosen = settings.pop("dataset") or (cfg.env.dataset if is_dataset_id(cfg) else id_from_checkpoint(cfg.policy))
    else:
        chosen = settings.pop("dataset") or (cfg.env.dataset if is_dataset_id(cfg) else id_from_environment(cfg))
        if cfg.policy == "random":
            settings["env"] = environment_for_random_actions(cfg)
            settings["episode_steps"] = settings["episode_steps"] or cfg.env.get("max_episode_steps")
    minari.collect(chosen, cfg.data_dir, **settings)
    elsewhere = {} if cfg.data_dir is None else {"data_dir": cfg.data_dir}
    print(f"Train on it: {pasted('mfrl', 'train', *training_overrides(cfg, chosen), **elsewhere)}", file=sys.stderr)


def by_expert(cfg: DictConfig, overrides: list[str]) -> bool:
    """Whether ``policy=ckpt:PATH`` is the expert of a dataset of OGBench that the user names, e.g. of an ant maze."""
    from mfrl.catalogue import PUBLISHED

    named = any(text.startswith("env=") for text in overrides)
    settings = PUBLISHED.get(cfg.env.dataset)
    return named and cfg.policy.startswith("ckpt:") and settings is not None and settings.expert is not None


def collector(suite: str) -> Callable[..., Any] | None:
    """The function that collects datasets of a suite; None if nothing can be collected there."""
    if suite == "ogbench":
        from mfrl.collect.ogbench import runner as ogbench

        return ogbench.collect
    if suite == "minari":
        from mfrl.collect.minari import runner as minari

        return minari.collect
    return None


def collect_missing(cfg: DictConfig, data: OfflineData) -> None:
    """Collect the data of a run with the settings ``collect`` of conf/train.yaml.

    With policy=random, the environment is ``env.gym_id``, unless ``collect.gym_id`` names another one.

    Raises:
        DataError: no simulator can make these data.
        CollectError: the collector fails.
    """
    function = collector(cfg.env.suite)
    if function is None:
        raise DataError(f"{data.dataset} cannot be collected: no simulator makes it")
    settings = dict(cfg.collect)
    gym_id = cfg.env.get("gym_id")
    if settings.get("policy") == "random" and "gym_id" not in settings and gym_id is not None:
        from mfrl.envs.minari import write_spec

        gym_spec = write_spec(gym_id, plain_settings(cfg.env.gym_kwargs))
        env = EnvSpec(gym_id, "minari", gym_spec=gym_spec, trust=data.env.trust)
        settings = {"env": env, "episode_steps": cfg.env.get("max_episode_steps"), **settings}
    function(data.dataset, data.data_dir, **settings)


def settings_without(foreign: tuple[str, ...], cfg: DictConfig, what: str) -> dict[str, Any]:
    """The settings ``collect.*`` without those of the other kind of dataset.

    Args:
        foreign: the settings of the other kind.
        what: is collected, for the message.

    Raises:
        ConfigError: the user has set one of the other kind. The message names it.
    """
    settings = plain_settings(cfg.collect)
    given = {name: settings.pop(name) for name in foreign}
    for name, value in given.items():
        if value not in (None, []):
            raise ConfigError(f"{name}={value} is no setting of collecting {what} ({', '.join(settings)} are)")
    return settings


def is_dataset_id(cfg: DictConfig) -> bool:
    """Whether ``env`` only names a dataset: env=minari/dataset env.dataset=ID."""
    return cfg.env.suite == "minari" and cfg.env.name == cfg.env.dataset


def id_from_checkpoint(policy: str) -> str:
    """A Minari id for what a checkpoint's policy collects: what it was trained on, and the algorithm."""
    from mfrl.runs.checkpoint import find_checkpoint, load_checkpoint
    from mfrl.runs.saved import Saved

    record = load_checkpoint(find_checkpoint(policy.removeprefix("ckpt:")))["mfrl"]
    bare = re.sub(r"-v\d+$", "", record["provenance"]["dataset"]).removeprefix("D4RL/").removeprefix("mfrl/")
    return f"mfrl/{bare.replace('/', '-')}-{Saved(record['config']).plain('algo_name')}-v0"


def id_from_environment(cfg: DictConfig) -> str:
    """The Minari id for what a controller or random actions collect.

    Raises:
        ConfigError: the dataset is published by D4RL, and no policy is given.
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


def environment_for_random_actions(cfg: DictConfig) -> EnvSpec:
    """The environment in which random actions are taken.

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
    gym_spec = write_spec(gym_id, plain_settings(cfg.env.gym_kwargs))
    return EnvSpec(gym_id, "minari", gym_spec=gym_spec, trust=tuple(cfg.trust))


def training_overrides(cfg: DictConfig, dataset: str) -> list[str]:
    """The overrides that train on a collected dataset."""
    if cfg.policy is None:
        return [f"env=minari/{cfg.env.name}", *([] if dataset == cfg.env.dataset else [f"env.dataset={dataset}"])]
    if cfg.policy == "random" and cfg.env.dataset.startswith("D4RL/"):
        return [f"env=d4rl/{cfg.env.name}", f"env.dataset={dataset}"]  # env=d4rl/... labels as D4RL does
    return ["env=minari/dataset", f"env.dataset={dataset}"]
