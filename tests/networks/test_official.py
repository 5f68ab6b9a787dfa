"""The published actor and critic, to the figures that the authors' own code gives.

``fixtures/official_actor_and_critic.json`` was computed once with the official JAX implementation
(github.com/HiccupRL/MeanFlowQL at 3fab100, jax 0.10.2, float32 on a CPU): the weights of a small MFDiT_SIM (width 8,
depth 2, 2 heads) and of a critic of two members, drawn at random, and what they give for a few observations, actions
and times. Its weights are stored under the names they had in this package when the figures were made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfrl.meanflow import Times
from mfrl.networks.critic import QEnsemble
from mfrl.networks.dit import DiT

PATH = Path(__file__).parents[1] / "fixtures" / "official_actor_and_critic.json"
OBSERVATION_DIM, ACTION_DIM = 3, 2


def tensor(stored: dict[str, Any]) -> Tensor:
    return torch.tensor(stored["values"]).view(stored["shape"])


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    return json.loads(PATH.read_text(encoding="utf-8"))


def loaded(network: nn.Module, weights: dict[str, Any]) -> nn.Module:
    network.load_state_dict({name: tensor(weight) for name, weight in weights.items()}, strict=True)
    return network.requires_grad_(False)


def assert_as_computed(ours: Tensor, stored: dict[str, Any]) -> None:
    """Equal within 1e-6 of the largest of the figures: single precision on both sides."""
    theirs = tensor(stored)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * theirs.abs().max().item())


@pytest.fixture(scope="module")
def actor(official: dict[str, Any]) -> nn.Module:
    return loaded(DiT(OBSERVATION_DIM, ACTION_DIM, width=8, depth=2), official["actor"])


def test_the_actor_gives_the_official_outputs(official: dict[str, Any], actor: nn.Module) -> None:
    s, a, t = (tensor(official[name]) for name in ("observations", "actions", "t"))
    assert_as_computed(actor(s, a, Times(t)), official["g"])
    # As in training, where each distinct time is embedded once.
    rows, index = t.unique(return_inverse=True)
    assert_as_computed(actor(s, a, Times(rows[:, None], index.flatten())), official["g"])


def test_the_actors_derivative_along_the_path_is_the_official_one(official: dict[str, Any], actor: nn.Module) -> None:
    s, a, t, v = (tensor(official[name]) for name in ("observations", "actions", "t", "v"))
    g, dg_dt = actor.jvp(s, a, Times(t), v)
    assert_as_computed(g, official["g"])
    assert_as_computed(dg_dt, official["dgdt"])


def test_the_critic_gives_the_official_values(official: dict[str, Any]) -> None:
    critic = loaded(QEnsemble(OBSERVATION_DIM, ACTION_DIM, hidden=[8, 8]), official["critic"])
    assert_as_computed(critic(tensor(official["observations"]), tensor(official["actions"])), official["q"])
