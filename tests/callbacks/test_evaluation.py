"""The policy that an evaluation lets act."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning.test_learner import make

from mfrl.callbacks.evaluation import Evaluate
from mfrl.callbacks.progress import Progress
from mfrl.envs.spec import EnvSpec


def evaluate(device: str | None) -> Evaluate:
    settings = {"every": 1, "episodes": 1, "num_envs": 1, "workers": None, "seed": 0, "videos": 0, "device": device}
    return Evaluate(EnvSpec("pointmaze-medium-v0"), Path("none"), progress=Progress(every=1), **settings)


@pytest.mark.parametrize("name", ["meanflowql", "fql", "iql", "ifql"])
def test_on_another_device_a_copy_acts_and_what_trains_stays_where_it_is(name: str) -> None:
    algorithm = make(name)
    here = {key: (x.device, x.data_ptr()) for key, x in algorithm.state_dict().items()}

    policy = evaluate("meta").acting(algorithm.policy())

    assert {x.device.type for x in policy.state_dict().values()} == {"meta"}
    assert {key: (x.device, x.data_ptr()) for key, x in algorithm.state_dict().items()} == here


@pytest.mark.parametrize("name", ["meanflowql", "ifql"])
def test_the_copy_acts_as_what_trains(name: str) -> None:
    policy = make(name).policy()
    draw = torch.Generator().manual_seed(0)
    observations = torch.randn(5, policy.normalizer.mean.numel(), generator=draw)
    noise = policy.sample_noise((policy.num_candidates, 5, policy.action_dim), draw)

    actions = [evaluate(device).acting(policy).act(observations, noise) for device in (None, "cpu")]

    assert torch.equal(*actions)
