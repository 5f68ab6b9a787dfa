"""No data at all: a run that learns online alone, from what its policy meets in an environment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mfrl.data.batch import DataSpec
from mfrl.data.module import OfflineData
from mfrl.envs import minari
from mfrl.envs.spec import EnvSpec
from mfrl.envs.vector import VectorEnv


class Scratch(OfflineData):
    """The sizes of an environment, in the place of data. States are not normalised.

    Args:
        gym_id, gym_kwargs, max_episode_steps, observation_keys, trust: see :meth:`EnvSpec.without_data`.
        sampling: batch_size, chunk, seed, updates and marks, see :class:`OfflineData`.

    Raises:
        ConfigError: from :meth:`EnvSpec.without_data`.
        EnvError: there is no such environment, or policies cannot act in it.
    """

    data_dir: Path | None = None  # nothing is read
    paths: tuple[Path, ...] = ()

    def __init__(
        self,
        gym_id: str,
        gym_kwargs: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        observation_keys: Sequence[str] | None = None,
        trust: Sequence[str] = (),
        **sampling: Any,
    ) -> None:
        super().__init__(**sampling)
        self.env = EnvSpec.without_data(gym_id, gym_kwargs, max_episode_steps, observation_keys, trust)
        self.dataset = self.env.env_id

    def setup(self, stage: str | None = None) -> None:
        """Look at the environment's spaces."""
        with VectorEnv(self.env, 1, workers=0) as built:
            signature = built.signature
        images = len(signature.observation_shape) > 1
        size = 0 if images else signature.observation_shape[0]
        self.spec = DataSpec(
            observation_dim=size,
            action_dim=signature.action_dim,
            observation_mean=(0.0,) * size,
            observation_std=(1.0,) * size,
            reward_min=-math.inf,
            reward_max=math.inf,
            image_shape=tuple(signature.observation_shape) if images else None,  # type: ignore[arg-type]
        )
        self.action_bounds = self.spec.action_dim * [-1.0], self.spec.action_dim * [1.0]
        if self.env.gym_spec is not None:
            self._look_at_what_it_shows(self.env.gym_spec)

    def _look_at_what_it_shows(self, gym_spec: str) -> None:
        """Note the bounds of actions, and what observations are made of, before they became vectors in [-1, 1]."""
        built = minari.make_as_recorded(gym_spec, self.env.trust)
        try:
            low, high = minari.action_bounds(built.action_space)
            keys = minari.vector_keys(built.observation_space, self.env.observation_keys)
            shapes = [part.shape for part in minari.vector_parts(built.observation_space, keys)]
        finally:
            built.close()
        self.action_bounds = low.tolist(), high.tolist()
        self.observation_shapes = [list(shape) for shape in shapes]
        self.env = replace(self.env, observation_keys=keys)

    def provenance(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "source": "interaction", "files": {}}
