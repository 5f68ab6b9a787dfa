"""Small things several test files build: settings of the family, networks, batches, commands and runs of a moment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import lightning as L
import torch
from conftest import DATASET
from omegaconf import DictConfig
from processes import Command
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.meanflowql import MeanFlowQL
from mfrl.app.overrides import Composer, changed_values, parse
from mfrl.data.batch import Batch, DataSpec
from mfrl.data.sampling import ChunkLoader
from mfrl.data.storage import Transitions
from mfrl.meanflow import Times
from mfrl.networks.critic import QEnsemble
from mfrl.networks.dit import DiT
from mfrl.networks.mlp import MLP
from mfrl.randomness import Draw, Streams, key_of
from mfrl.reformulation import Reformulation

OBSERVATION_DIM, ACTION_DIM = 3, 2

SPEC = DataSpec(
    observation_dim=OBSERVATION_DIM,
    action_dim=ACTION_DIM,
    observation_mean=(0.5, -1.0, 2.0),
    observation_std=(2.0, 0.5, 1.0),
    reward_min=-1.0,
    reward_max=0.0,
)

RESIDUAL = Reformulation(1.0, -1.0)

#: The command line, to be started by `subprocess`, and the surroundings that make what it says one line each.
COMMAND = [sys.executable, "-c", "from mfrl.app.cli import main; main()"]
ENVIRONMENT = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
#: TensorBoard's figures take longer than all else that a short run does.
WITHOUT_FIGURES, WITH_FIGURES = "logger=csv", "logger=[tensorboard,csv]"
#: Small networks and batches.
SMALL = ["network.actor.width=16", "network.critic.hidden=[16]", "batch_size=8", "accelerator=cpu", WITHOUT_FIGURES]
#: Settings of a short run in the maze of the fixture ``data_dir``. A test adds the updates and the evaluation.
MAZE = [f"env=ogbench/{DATASET}", "experiment=quickstart", "collect=null", *SMALL, "log.every=6"]
#: A short run on a Minari dataset. A test adds ``env.dataset`` and ``data_dir``.
MINARI = [
    "env=minari/dataset",
    "network=small",
    *SMALL,
    "updates=8",
    "log.every=4",
    "checkpoint.every=8",
    "eval.every=4",
    "eval.episodes=2",
    "eval.num_envs=2",
    "eval.workers=0",
]
#: A short run on a known distribution, without a simulator.
TOY = [
    "experiment=toy",
    "network.actor.hidden=[16]",
    "batch_size=8",
    "updates=24",
    "log.every=6",
    "checkpoint.every=12",
    "eval.every=12",
    "eval.samples=16",
    "accelerator=cpu",
    WITHOUT_FIGURES,
]

tiny_dit = partial(DiT, width=16, depth=2, mlp_ratio=2.0)
tiny_mlp = partial(MLP, hidden=[16, 12], time_width=8)
tiny_critic = partial(QEnsemble, hidden=[16, 12], ensemble=2)


def compose(command: str, *overrides: str) -> DictConfig:
    """What ``mfrl COMMAND OVERRIDES`` is given. What the files come to that overrides choose is composed once."""
    composer = Composer(command)
    choices, values = composer.divided(map(parse, overrides))
    cfg = deepcopy(_composed(composer, choices))
    return cfg if changed_values(cfg, values) else composer(overrides)


@cache
def _composed(composer: Composer, choices: tuple[str, ...]) -> DictConfig:
    return composer(choices)


def mfrl(
    *arguments: str,
    cwd: Path | None = None,
    timeout: float = 240.0,
    env: Mapping[str, str] = ENVIRONMENT,
    prepare: Callable[[], object] | None = None,
) -> CompletedProcess[str]:
    """``mfrl ARGUMENTS`` in a process of its own, come to its end; ``prepare`` is called in it first."""
    command = Command(arguments, cwd or Path.cwd(), prepare, environment=env)
    try:
        return CompletedProcess(arguments, command.end(timeout), command.stdout, command.stderr)
    finally:
        command.close()


def program(*arguments: str, **settings: Any) -> CompletedProcess[str]:
    """The same by an interpreter that imports everything first, and that ends as one does: jobs side by side need it.

    ``settings`` are those of `subprocess.run`.
    """
    keywords = {"capture_output": True, "text": True, "timeout": 240, "check": False, "env": ENVIRONMENT} | settings
    return subprocess.run([*COMMAND, *arguments], **keywords)


def randomise_(network: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """Every parameter moved away from its start, so that what is zero-initialised takes part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator).to(p.dtype))
    return network


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(rows: int, batch: int | None = None, seed: int = 0) -> Times:
    """Distinct times in (0, 1]; with ``batch``, a row for each sample, some of them shared."""
    generator = torch.Generator().manual_seed(seed)
    t = 1.0 - torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    return Times(t, None if batch is None else torch.randint(rows, (batch,), generator=generator))


@dataclass(frozen=True)
class Double:
    """The same random numbers, given to the loss in float64."""

    draw: Draw

    @property
    def words(self) -> int:
        return self.draw.words

    def numbers(self, words: Tensor) -> Tensor:
        return self.draw.numbers(words)

    def value(self, numbers: Tensor) -> Any:
        value = self.draw.value(numbers)
        if isinstance(value, Times):
            return Times(value.rows.double(), value.index, None if value.start is None else value.start.double())
        return value.double()


def doubled(module: Algorithm) -> Algorithm:
    """The algorithm in float64, its random numbers too: what compiling rounds differently is then not to be seen."""
    draws = module.draws
    module.draws = lambda size: {name: Double(draw) for name, draw in draws(size).items()}
    return module.double()


def noise_of(module: Algorithm, k: int, size: int) -> dict[str, Any]:
    """The random numbers of update k, as the loss takes them."""
    streams = Streams(module.draws(size), "update")
    drawn = streams.numbers(key_of(module.seed), torch.tensor([k]))
    return streams.values({name: x[0] for name, x in drawn.items()})


def batch(size: int, seed: int = 0, dtype: torch.dtype = torch.float64, discount: float = 0.99) -> Batch:
    """Transitions of which about a third end the task."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return 2.0 * torch.rand(*shape, generator=g, dtype=dtype) - 1.0

    observations, next_observations = (
        2.0 * uniform(size, OBSERVATION_DIM),
        2.0 * uniform(size, OBSERVATION_DIM),
    )
    masks = (torch.rand(size, generator=g) > 0.3).to(dtype)
    assert 0 < masks.sum() < size
    actions = 0.9 * uniform(size, ACTION_DIM)
    return Batch(observations, actions, masks * -1.0, masks, next_observations, discount * masks)


def transitions(rows: int = 200, seed: int = 0) -> Transitions:
    """One trajectory in float32."""
    b = batch(rows, seed, torch.float32)
    return Transitions(b.observations, b.actions, b.rewards, b.masks, torch.arange(rows - 1))


class Chunks(L.LightningDataModule):
    """Transitions in chunks, from the update on that the training is at.

    Args:
        data: the transitions.
        updates, chunk, batch_size, seed, discount: see :class:`ChunkLoader`.
    """

    def __init__(
        self,
        data: Transitions,
        updates: int,
        chunk: int,
        batch_size: int = 16,
        seed: int = 0,
        discount: float = 0.99,
    ) -> None:
        super().__init__()
        self.data, self.updates, self.chunk, self.batch_size = data, updates, chunk, batch_size
        self.seed, self.discount = seed, discount

    def train_dataloader(self) -> ChunkLoader:
        first = self.trainer.lightning_module.updates
        return ChunkLoader(self.data, self.batch_size, self.seed, first, self.updates, self.chunk, (), self.discount)


def trainer(*callbacks: L.Callback) -> L.Trainer:
    """A trainer that prints and writes nothing."""
    return L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers, by name."""
    return {name: x.clone() for name, x in module.state_dict().items()}


def algorithm(**settings: Any) -> MeanFlowQL:
    """MeanFlowQL with tiny networks in float64, every parameter away from zero; the target critic differs."""
    chosen = {"reformulation": RESIDUAL, "actor": tiny_dit, "critic": tiny_critic, "updates": 100} | settings
    torch.manual_seed(0)
    module = MeanFlowQL(SPEC, **chosen).double()
    randomise_(module.actor, seed=1)
    if hasattr(module.actor.network, "head"):
        module.actor.network.head.weight.data *= 0.2  # some actions within the bounds, some outside
    randomise_(module.critic, seed=2)
    randomise_(module.target_critic, seed=3)
    return module
