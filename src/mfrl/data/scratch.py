"""No data at all: a run that learns online alone, from what its policy meets in an environment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfrl.data.batch import DataSpec
from mfrl.data.module import OfflineData
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

    def provenance(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "source": "interaction", "files": {}}
