"""Minari datasets as transitions: any with a vector of numbers to observe and a vector of continuous actions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfrl.data import assembly, records
from mfrl.data.cache import Cache, Prepared, Store
from mfrl.data.getting import how_to_get
from mfrl.data.minari_files import (
    DEFAULT_ROOT,
    checked_id,
    data_root,
    describe,
    fingerprints,
    present,
)
from mfrl.data.minari_source import Description, Episode, Source, write_rows
from mfrl.data.module import OfflineData
from mfrl.data.storage import Transitions
from mfrl.envs import minari as envs
from mfrl.envs.spec import EnvSpec
from mfrl.errors import DataError, EnvError, did_you_mean, require

PREPARATION = 2  #: of the code that makes arrays of files; entries made by another are made again
ADROIT_LABELS = "mfrl.envs.d4rl:AdroitLabels"
_HELD_OUT_SEED = 0  # the same episodes for every training seed


class MinariData(OfflineData):
    """One Minari dataset: prepared once, then opened, in memory if it fits there.

    Observations: a dictionary becomes one vector, ``observation_keys`` in their order or every entry in alphabetical
    order. Nested dictionaries, tuples and images are refused.

    Transitions: an episode of T steps is T + 1 rows, the last of which starts none. A termination is a mask of 0: no
    bootstrap. A truncation, or an episode that just stops, only ends the trajectory: the mask stays 1. So a continuing
    task, which never terminates and whose episodes are pieces cut out of one stream, has masks of 1 throughout; its
    reward alone tells of a success.

    Actions: from the bounds of the action space, which must be finite, to [-1, 1]; the environment maps them back.

    Rewards: ``(reward + reward_shift) * reward_scale``, after ``rule`` and ``goal``, the labels of the original D4RL
    benchmark (:mod:`mfrl.envs.d4rl`).

    Evaluation: in ``gym_id`` if given, else the dataset's own evaluation environment, else the one it was recorded in.
    Scores are normalised with ``reference_returns`` if given, else with what the dataset records.

    Args:
        dataset: its id, e.g. ``D4RL/pen/human-v2``.
        data_dir: Minari's root folder; None: ``MINARI_DATASETS_PATH`` or Minari's own default.
        observation_keys: entries of a dictionary observation, in order.
        reward_scale: factor of the rewards, positive.
        reward_shift: added to the rewards first.
        rule: for Adroit, one of ``mfrl.envs.d4rl.RULES``; None leaves rewards and terminations as recorded.
        goal: for antmaze, the one place ``(x, y)`` that is labelled a success, wherever an episode's own goal was. It
            is compared with ``achieved_goal``, or where observations are no dictionary with their first two numbers.
        gym_id: an environment registered with gymnasium.
        gym_kwargs, max_episode_steps: what to change of it, or of the recorded one.
        reference_returns: returns that score 0 and 100.
        fraction: share of the training trajectories to keep, chosen by ``seed``.
        val_fraction: share of the episodes to hold out, the same for every seed; 0: none, and there are no validation
            losses.
        normalize: whether observations are normalised with the mean and deviation of the kept training data;
            ``padded``: with those of the buffer of zeros that the official code of MeanFlowQL puts them into.
        trust: packages whose environments may be built, besides those of ``mfrl.envs.minari.KNOWN_PACKAGES``.
        cache, memory_gib: where prepared data are kept, and how much of them in memory, see :class:`Cache`.
        sampling: batch_size, chunk, seed, updates and marks, see :class:`OfflineData`.

    Raises:
        ConfigError: at once for a setting that cannot be used.
        DataError: at once for a malformed id; on loading, for files that are missing, damaged or unusable, naming the
            dataset, the episode and the field.
        EnvError: on loading, for an environment that is refused, cannot be built or has other spaces.
    """

    data_dir: Path

    def __init__(
        self,
        dataset: str,
        data_dir: str | None = None,
        observation_keys: Sequence[str] | None = None,
        reward_scale: float = 1.0,
        reward_shift: float = 0.0,
        rule: str | None = None,
        goal: Sequence[float] | None = None,
        gym_id: str | None = None,
        gym_kwargs: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        reference_returns: Sequence[float] | None = None,
        fraction: float = 1.0,
        val_fraction: float = 0.05,
        normalize: assembly.Normalize = True,
        trust: Sequence[str] = (),
        cache: bool | str | None = None,
        memory_gib: float = 4.0,
        **sampling: Any,
    ) -> None:
        super().__init__(**sampling)
        self.dataset = checked_id(dataset)
        self.data_dir = data_root(data_dir)
        assembly.check_settings(fraction, reward_scale, normalize)
        require("data.val_fraction", 0.0 <= val_fraction < 1.0, val_fraction, "in [0, 1)")
        require("data.reward_shift", math.isfinite(reward_shift), reward_shift, "finite")
        if rule is not None:
            from mfrl.envs import d4rl

            d4rl.check_rule(rule)
        steps_hold = max_episode_steps is None or (type(max_episode_steps) is int and max_episode_steps >= 1)
        require("env.max_episode_steps", steps_hold, max_episode_steps, "a whole number of at least 1")
        self.rule, self.goal = rule, two_numbers("env.goal", goal)
        returns = two_numbers("env.reference_returns", reference_returns)
        if returns is not None:
            require("env.reference_returns", returns[0] != returns[1], reference_returns, "two different numbers")
        self.reward_scale, self.reward_shift = reward_scale, reward_shift
        self.fraction, self.val_fraction, self.normalize = fraction, val_fraction, normalize
        self.cache, self.memory_gib = cache, memory_gib
        self.gym_id, self.gym_kwargs, self.max_episode_steps = gym_id, gym_kwargs, max_episode_steps
        self._fingerprint: records.Fingerprint = records.fingerprint
        self._wrappers = (
            [{"name": "AdroitLabels", "entry_point": ADROIT_LABELS, "kwargs": {"rule": rule}}] if rule else []
        )
        self.env = EnvSpec(
            env_id=self.dataset if gym_id is None else gym_id,
            suite="minari",
            reference_returns=returns,
            gym_spec=None if gym_id is None else envs.write_spec(gym_id, gym_kwargs, max_episode_steps, self._wrappers),
            observation_keys=tuple(observation_keys) if observation_keys else None,
            trust=tuple(trust),
        )

    @property
    def folder(self) -> Path:
        """Where the dataset lies."""
        return self.data_dir / self.dataset

    @property
    def paths(self) -> tuple[Path, ...]:  # type: ignore[override]  # to be read alone
        return (self.folder / "data" / "metadata.json",)

    def provenance(self) -> dict[str, Any]:
        """Where the files come from, with checksums, and which part of them is used."""
        described = describe(self.data_dir, self.dataset, self._fingerprint)
        return described | {"fraction": self.fraction, "val_fraction": self.val_fraction}

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared data, or read, check and label the files first. Does nothing the second time."""
        if self.train is not None:
            return
        if not self.folder.is_dir():
            known = present(self.data_dir)
            raise DataError(
                f"Minari dataset {self.dataset} is not in {self.data_dir} (data_dir=, MINARI_DATASETS_PATH or the "
                f"default {DEFAULT_ROOT}), which holds {', '.join(known) or 'none'}"
                f"{did_you_mean(self.dataset, known)}; {how_to_get(self.dataset, self.data_dir, 'minari')}"
            )
        cache = Cache(self.data_dir, self.cache, self.memory_gib, self.writes_apart)
        self._fingerprint = cache.checksums.of
        prepared = self._prepared(cache)
        description = Description(**prepared.facts["description"])
        self.env = self._environment(description)
        self.action_bounds = list(map(float, description.low)), list(map(float, description.high))
        self._goal_place = self._place(description) if self.goal is not None else slice(0)
        self.observation_shapes = [list(shape) for shape in description.shapes]
        (everything,) = assembly.loaded(cache, [prepared])
        everything.rewards = self._shifted(everything.rewards).float()
        train, val = split(everything, self.val_fraction)
        if self.fraction < 1.0:
            train = replace(train, starts=assembly.keep_trajectories(train.starts, self.fraction, self.seed))
        statistics = assembly.statistics(train.observations, train.starts, train.pages)
        self.spec = assembly.summarise(train, self.normalize, statistics)
        absurd = assembly.absurd_features(train, statistics, description.name_of)
        self.warnings += [f"{self.dataset}: {text}" for text in absurd]
        assembly.normalize_states(self.spec, train, *([] if val is None else [val]))  # which share their rows
        self.warnings += [*cache.warnings, *unmet_requirements(description.metadata)]
        if self.spec.reward_min == self.spec.reward_max:
            self.warnings.append(
                f"every reward in {self.dataset} is {self.spec.reward_min:g}: Q-learning has nothing to find. "
                + ("No episode comes near the goal it is labelled with." if self.goal else "Choose other data.")
            )
        if self.val_fraction and val is None:
            self.warnings.append(f"{self.dataset} has one episode: none is held out, so there are no validation losses")
        self.train, self.val = train, val

    def labels(
        self, next_observations: np.ndarray, rewards: np.ndarray, terminated: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """With ``goal`` the labels of :func:`mfrl.envs.d4rl.goal_labels`; those of ``rule`` the environment gives."""
        if self.goal is not None:
            from mfrl.envs import d4rl

            rewards, terminated = d4rl.goal_labels(next_observations[:, self._goal_place], self.goal)
        return self._shifted(rewards), terminated

    def _shifted(self, rewards: Any) -> Any:
        return (rewards + self.reward_shift) * self.reward_scale

    def _prepared(self, cache: Cache) -> Prepared:
        """Every episode as rows, labelled, observations as they are; and the dataset's description."""
        sources = fingerprints(self.folder, self._fingerprint)
        settings = {"observation_keys": self.env.observation_keys, "rule": self.rule, "goal": self.goal}

        def build(store: Store) -> dict[str, Any]:
            source = Source.open(self.folder, self.dataset, self.env.observation_keys)
            write_rows(store, self._labelled(list(source.episodes()), source.description))
            if fingerprints(self.folder, self._fingerprint) != sources:
                raise DataError(f"{self.folder} changed while it was read; start again when it is complete")
            record = describe(self.data_dir, self.dataset, self._fingerprint)
            return {"description": asdict(source.description), "provenance": record}

        # One entry for each reading of a dataset, so that runs which read it differently do not replace each other's.
        reading = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        name = f"{self.dataset.replace('/', '.')}.{reading}"
        return cache.prepared(name, {"sources": sources, "preparation": PREPARATION, **settings}, build)

    def _labelled(self, episodes: list[Episode], there: Description) -> list[Episode]:
        """Rewards and terminations of the original D4RL benchmark, where they are asked for."""
        if self.rule is None and self.goal is None:
            return episodes
        from mfrl.envs import d4rl

        labels = [(e.observations[1:], e.rewards, e.terminated) for e in episodes]
        found = sum(map(math.prod, there.shapes))
        if self.rule is not None and found != (expected := d4rl.OBSERVATION_DIM[self.rule]):
            raise DataError(f"{self.dataset}: env.rule={self.rule} is for {expected} numbers to observe, not {found}")
        if self.rule is not None and ADROIT_LABELS not in (there.metadata.get("env_spec") or ""):
            evidence = sum(d4rl.evidence_of_sign(self.rule, after, rewards) for after, rewards, _ in labels)
            if evidence >= 0.0:  # else, and where they were recorded with that wrapper, they are D4RL's already
                labels = [(after, *d4rl.adroit_labels(self.rule, after, *given)) for after, *given in labels]
        if self.goal is not None:
            place = self._place(there)
            labels = [(after, *d4rl.goal_labels(after[:, place], self.goal)) for after, *_ in labels]
        return [replace(e, rewards=r, terminated=t) for e, (_, r, t) in zip(episodes, labels, strict=True)]

    def _place(self, there: Description) -> slice:
        """Where in the vector of an observation lies what ``goal`` is compared with."""
        sizes, keys = [math.prod(shape) for shape in there.shapes], list(there.keys or ())
        if not keys and sizes[0] >= 2:
            return slice(0, 2)
        if "achieved_goal" not in keys or sizes[keys.index("achieved_goal")] != 2:
            raise DataError(
                f"{self.dataset}: env.goal is compared with a position of two numbers: 'achieved_goal', which has to "
                f"be among env.observation_keys, or the first two of a vector; here are {keys or 'vectors'} of {sizes}"
            )
        first = sum(sizes[: keys.index("achieved_goal")])
        return slice(first, first + 2)

    def _environment(self, there: Description) -> EnvSpec:
        """Where policies are evaluated, checked against the dataset's spaces."""
        env = replace(self.env, observation_keys=None if there.keys is None else tuple(there.keys))
        if env.reference_returns is None:
            env = replace(env, reference_returns=reference_returns(there.metadata))
        recorded = there.metadata.get("eval_env_spec") or there.metadata.get("env_spec")
        if env.gym_spec is None and recorded is not None:
            env_id = envs.read_spec(recorded, env.trust).id
            wrappers = [] if ADROIT_LABELS in recorded else self._wrappers
            recorded = envs.change_spec(recorded, self.gym_kwargs, self.max_episode_steps, wrappers)
            env = replace(env, env_id=env_id, gym_spec=recorded)
        if env.gym_spec is None and (self.gym_kwargs or self.max_episode_steps is not None):
            raise EnvError(
                f"{self.dataset} records no environment, so env.gym_kwargs and env.max_episode_steps change nothing: "
                "name one with env.gym_id=NAME-v0"
            )
        if env.gym_spec is not None:
            built = envs.make_as_recorded(env.gym_spec, env.trust)
            try:
                envs.refuse_other_spaces(built, there.keys, there.shapes, there.low, there.high)
            finally:
                built.close()
        return env

    def download(self, **settings: Any) -> None:
        """Fetch the dataset with Minari's own client, from the server it chooses (``MINARI_REMOTE``).

        Raises:
            DataError: it is ours, lies there half, or could not be fetched; nothing is left behind.
        """
        if settings:
            raise DataError(f"{', '.join(settings)}: Minari datasets come from one server, MINARI_REMOTE=hf://NAME")
        from mfrl.data.minari_download import download

        download(self.data_dir, self.dataset)


def two_numbers(name: str, value: Sequence[float] | None) -> tuple[float, float] | None:
    """A setting that is two numbers or nothing.

    Raises:
        ConfigError: naming it.
    """
    if value is None:
        return None
    numbers = value if isinstance(value, list | tuple) else ()
    holds = len(numbers) == 2 and all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
    require(name, holds, value, "two finite numbers")
    return float(value[0]), float(value[1])


def split(everything: Transitions, val_fraction: float) -> tuple[Transitions, Transitions | None]:
    """Training and validation transitions over the same rows, whole episodes each; one alone is trained on."""
    starts = everything.starts
    held = assembly.keep_trajectories(starts, val_fraction, _HELD_OUT_SEED) if val_fraction else starts[:0]
    kept = starts[~torch.isin(starts, held)]
    if len(held) == 0 or len(kept) == 0:
        return everything, None
    return replace(everything, starts=kept), replace(everything, starts=held)


def reference_returns(metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """The returns that score 0 and 100, where a dataset records them; most do not."""
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    if not math.isfinite(low) or not math.isfinite(high) or low == high:
        return None
    return float(low), float(high)


def unmet_requirements(metadata: Mapping[str, Any]) -> list[str]:
    """A warning for each package the dataset asks for in another version than the installed one."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import InvalidRequirement, Requirement

    found = []
    for text in metadata.get("requirements") or ():
        try:
            wanted = Requirement(str(text))
            installed = version(wanted.name)
        except (InvalidRequirement, PackageNotFoundError):
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            found.append(f"recorded with {wanted}, and {installed} is installed: the simulator may move differently")
    return found
