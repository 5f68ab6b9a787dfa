"""Distributions of actions in the plane whose truth is known, and the datamodule that learns from their samples.

Every toy is a set of equally likely modes. The observation says which group of modes an action may come from, as
a one-hot vector; an unconditional toy has one group, and its observation is always 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri

from mfrl.data.batch import ACTION_CLIP, DataSpec
from mfrl.data.module import OfflineData
from mfrl.data.storage import Transitions
from mfrl.envs.spec import EnvSpec
from mfrl.errors import DataError, did_you_mean

SIGMA = 0.1  # of the paper's grid of Gaussians
Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Toy:
    """A mixture of equally likely modes in [-1, 1]^2.

    Attributes:
        draw: (generator, number of a mode for each point ``(n,)``) -> points ``(n, 2)``, not yet clipped.
        centres: ``(modes, 2)``.
        radius, order: a point belongs to the nearest centre, if no farther than ``radius`` in the norm of that order.
        groups: ``(modes,)`` the observation under which each mode occurs.
    """

    name: str
    draw: Draw
    centres: np.ndarray
    radius: float
    groups: np.ndarray
    order: float = 2.0

    @property
    def num_groups(self) -> int:
        return int(self.groups.max()) + 1

    def modes_of(self, group: int) -> np.ndarray:
        """The numbers of the modes that occur under an observation."""
        return np.flatnonzero(self.groups == group)

    def sample(self, rng: np.random.Generator, n: int, group: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Actions ``(n, 2)`` clipped to [-1 + 1e-5, 1 - 1e-5] and their modes ``(n,)``.

        Args:
            group: the observation; None draws from every group.
        """
        among = np.arange(len(self.centres)) if group is None else self.modes_of(group)
        modes = rng.choice(among, n)
        return self.draw(rng, modes).clip(-1.0 + ACTION_CLIP, 1.0 - ACTION_CLIP), modes

    def observation(self, group: np.ndarray) -> np.ndarray:
        """One-hot observations ``(..., num_groups)`` of groups ``(...)``, float32."""
        return np.eye(self.num_groups, dtype=np.float32)[group]


def grid() -> Toy:
    """The paper's 4 x 4 grid of Gaussians; conditionally, the observation chooses the row."""
    ticks = np.linspace(-0.75, 0.75, 4)
    centres = np.array([(x, y) for y in ticks for x in ticks])
    return Toy("grid", _gaussians(centres, SIGMA), centres, radius=2.5 * SIGMA, groups=np.arange(16) // 4)


def eight_gaussians() -> Toy:
    """Eight Gaussians on a circle; conditionally, the observation chooses two that lie opposite."""
    angle = np.arange(8) * np.pi / 4
    centres = 0.75 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return Toy("eight_gaussians", _gaussians(centres, 0.06), centres, radius=0.18, groups=np.arange(8) % 4)


def two_moons() -> Toy:
    """Two interleaved half circles, each of eight arcs, which count as modes; the observation chooses the moon."""

    def along(modes: np.ndarray, u: np.ndarray) -> np.ndarray:
        angle = (modes % 8 + u) / 8 * np.pi
        upper = np.stack([np.cos(angle), np.sin(angle)], 1)
        moon = np.where((modes < 8)[:, None], upper, (1.0, 0.5) - upper)
        return 0.55 * (moon - (0.5, 0.25))

    def draw(rng: np.random.Generator, modes: np.ndarray) -> np.ndarray:
        return along(modes, rng.random(len(modes))) + 0.04 * rng.standard_normal((len(modes), 2))

    modes = np.arange(16)
    return Toy("two_moons", draw, along(modes, np.full(16, 0.5)), radius=0.18, groups=modes // 8)


def checkerboard() -> Toy:
    """The eight cells of one colour of a 4 x 4 board, uniform; conditionally, the observation chooses the row."""
    centres = np.array([(0.5 * i - 0.75, 0.5 * j - 0.75) for j in range(4) for i in range(4) if (i + j) % 2 == 0])

    def draw(rng: np.random.Generator, modes: np.ndarray) -> np.ndarray:
        return centres[modes] + rng.uniform(-0.25, 0.25, (len(modes), 2))

    return Toy("checkerboard", draw, centres, radius=0.25, groups=np.arange(8) // 2, order=np.inf)


def pinwheel() -> Toy:
    """Five bent arms, each of three equally likely parts, which count as modes; the observation chooses the arm.

    In front of the bending an arm is a Gaussian, 1 + 0.3 z along and 0.1 z across; a part is a third of z's
    quantiles along the arm.
    """

    def bent(modes: np.ndarray, u: np.ndarray, across: np.ndarray) -> np.ndarray:
        along = 1.0 + 0.3 * ndtri((modes % 3 + u) / 3)
        turn = modes // 3 * (2 * np.pi / 5) + 0.25 * np.exp(along)
        cos, sin = np.cos(turn), np.sin(turn)
        return 0.5 * np.stack([along * cos - across * sin, along * sin + across * cos], 1)

    def draw(rng: np.random.Generator, modes: np.ndarray) -> np.ndarray:
        return bent(modes, 1.0 - rng.random(len(modes)), 0.1 * rng.standard_normal(len(modes)))

    modes = np.arange(15)
    return Toy("pinwheel", draw, bent(modes, np.full(15, 0.5), np.zeros(15)), radius=0.2, groups=modes // 3)


def _gaussians(centres: np.ndarray, sigma: float) -> Draw:
    return lambda rng, modes: centres[modes] + sigma * rng.standard_normal((len(modes), 2))


def _toys() -> dict[str, Toy]:
    conditional = [make() for make in (grid, eight_gaussians, two_moons, checkerboard, pinwheel)]
    alike = [replace(toy, groups=np.zeros_like(toy.groups)) for toy in conditional]
    conditional = [replace(toy, name=f"{toy.name}_conditional") for toy in conditional]
    return {toy.name: toy for toy in (*alike, *conditional)}


TOYS = _toys()


def find_toy(name: str) -> Toy:
    """A toy by its name, with or without ``toy/`` in front.

    Raises:
        DataError: with near names.
    """
    bare = name.removeprefix("toy/")
    if bare not in TOYS:
        raise DataError(f"there is no toy {bare!r}{did_you_mean(bare, TOYS)}; known: {', '.join(TOYS)}")
    return TOYS[bare]


class ToyData(OfflineData):
    """Samples of a toy as one-step episodes without reward: there is nothing to learn but the behaviour.

    The data depend on (dataset, size, val_size, data_seed) alone, not on the seed of training.

    Args:
        dataset: name of the toy, e.g. ``grid`` or ``two_moons_conditional``.
        size, val_size: transitions to draw for training and for validation.
        data_seed: of the data.
        sampling: batch_size, chunk, seed, updates and marks, see :class:`OfflineData`.

    Raises:
        DataError: for a toy that does not exist, or no data at all.
    """

    data_dir: Path | None = None  # nothing is read
    paths: tuple[Path, ...] = ()

    def __init__(
        self,
        dataset: str,
        size: int = 100_000,
        val_size: int = 10_000,
        data_seed: int = 0,
        **sampling: Any,
    ) -> None:
        super().__init__(**sampling)
        self.toy = find_toy(dataset)
        if size < 1 or val_size < 1:
            raise DataError(f"data.size={size} and data.val_size={val_size} must be at least 1")
        self.dataset, self.env = self.toy.name, EnvSpec(f"toy/{self.toy.name}", suite="toy")
        self.size, self.val_size, self.data_seed = size, val_size, data_seed

    def setup(self, stage: str | None = None) -> None:
        """Draw the data. Does nothing the second time."""
        if self.train is not None:
            return
        # One-hot observations are of a good size as they are: mean 0 and deviation 1 leave them alone.
        dim = self.toy.num_groups
        self.spec = DataSpec(dim, 2, (0.0,) * dim, (1.0,) * dim, reward_min=0.0, reward_max=0.0)
        self.train, self.val = (
            one_step_episodes(self.toy, np.random.default_rng([self.data_seed, part]), size)
            for part, size in enumerate((self.size, self.val_size))
        )

    def provenance(self) -> dict[str, Any]:
        """How the data came about, with checksums of the arrays in the place of files."""
        assert self.train is not None, "call setup() first"
        arrays = {
            f"{part}.{name}": getattr(data, name).cpu().numpy()
            for part, data in (("train", self.train), ("val", self.val))
            for name in ("observations", "actions")
        }
        return {
            "dataset": self.dataset,
            "source": "generated",
            "generator": f"mfrl.study.toys: {self.toy.name}",
            "data_seed": self.data_seed,
            "size": self.size,
            "val_size": self.val_size,
            "files": {
                name: {"sha256": hashlib.sha256(array.tobytes()).hexdigest(), "bytes": array.nbytes}
                for name, array in arrays.items()
            },
        }


def one_step_episodes(toy: Toy, rng: np.random.Generator, size: int) -> Transitions:
    """``size`` transitions that each complete their task: reward 0, mask 0.

    The next observation is never looked at behind a mask of 0. It is that of the following row, of which there is
    one more than there are transitions.
    """
    actions, modes = toy.sample(rng, size + 1)
    observations = toy.observation(toy.groups[modes])
    return Transitions(
        observations=torch.from_numpy(observations),
        actions=torch.from_numpy(actions.astype(np.float32)),
        rewards=torch.zeros(size + 1),
        masks=torch.zeros(size + 1),
        starts=torch.arange(size),
    )
