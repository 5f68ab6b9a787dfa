"""OGBench's published generation settings, as data.

The numbers come from OGBench's `data_gen_scripts/commands.sh` and from the defaults of the two scripts it
calls. What OGBench distributes but no script can regenerate (by policies trained with RL) is listed too,
so that asking for it gets an answer instead of a failure.
"""

import difflib
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mfrl.errors import MfrlError
from mfrl.paths import pasted

DOWNLOAD_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
DEFAULT_DATA_DIR = "~/.ogbench/data"


class CollectError(MfrlError, RuntimeError):
    """Collection cannot start or cannot finish; the message says what to do about it."""


@dataclass(frozen=True)
class Settings:
    """How one dataset is generated.

    Args:
        dataset: OGBench dataset name, e.g. `cube-single-play-v0`.
        env_id: gymnasium id of the simulator, e.g. `cube-single-v0` or, where observations are images,
            `visual-cube-single-v0`.
        policy: `navigate`, `stitch` or `explore` in a maze; `play` or `noisy` on the table.
        episodes: training episodes; validation gets its own.
        val_episodes: validation episodes.
        episode_steps: rows an episode takes in the file. The last row only closes the last transition, so an
            episode holds `episode_steps - 1` transitions (OGBench's 1001 means 1000).
        noise: standard deviation of the Gaussian added to actions, in [-1, 1], in a maze; scale of the
            smoothed noise on a `play` plan; upper end of the per-episode noise level of `noisy`.
        noise_smoothing: width, in steps, of the filter that correlates the noise of a `play` plan.
        min_norm: shortest displacement the closed-loop oracle of `noisy` asks for.
        p_random_action: probability that a step of `noisy` takes a uniformly random action.
        p_stack: range from which an episode draws its probability of stacking a cube on another.
    """

    dataset: str
    env_id: str
    policy: str
    episodes: int
    val_episodes: int
    episode_steps: int
    noise: float
    noise_smoothing: float = 0.5
    min_norm: float = 0.4
    p_random_action: float = 0.0
    p_stack: tuple[float, float] = (0.5, 0.5)

    @property
    def is_maze(self) -> bool:
        return self.env_id.startswith("pointmaze")

    @property
    def renders(self) -> bool:
        """Whether observations are images, so that every step needs a rendering back end."""
        return self.env_id.startswith("visual-")

    def used(self) -> dict[str, Any]:
        """The settings that shape this dataset, by name; a maze has no use for those of the robot arm."""
        arm_only = {"noise_smoothing", "min_norm", "p_random_action", "p_stack"} if self.is_maze else set()
        return {name: value for name, value in asdict(self).items() if name not in arm_only}


# Episodes and rows per episode, by environment.
_NAVIGATE = {"medium": (1000, 1001), "large": (1000, 1001), "giant": (500, 2001), "teleport": (1000, 1001)}
_STITCH = (5000, 201)
# OGBench publishes no pointmaze explore set. This one has the shape of its antmaze explore sets (501 rows, a
# new direction every 10 steps) with the noise of its pointmaze sets. The 10000 episodes of antmaze explore
# are more than a two-dimensional point needs: 400 starts, drawn from every free cell, visit the whole maze,
# and their 200 000 transitions are collected in well under a minute.
_EXPLORE = (400, 501)
_POINTMAZE_NOISE = 0.5

_TABLE_EPISODES = {
    "cube-single": 1000,
    "cube-double": 1000,
    "cube-triple": 3000,
    "cube-quadruple": 5000,
    "scene": 1000,
    "puzzle-3x3": 1000,
    "puzzle-4x4": 1000,
    "puzzle-4x5": 3000,
    "puzzle-4x6": 5000,
}
_TABLE_STEPS = 1001
_TABLE_NOISE = 0.1
_P_STACK = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}


def _maze(maze: str, policy: str, episodes: int, steps: int) -> Settings:
    return Settings(
        dataset=f"pointmaze-{maze}-{policy}-v0",
        env_id=f"pointmaze-{maze}-v0",
        policy=policy,
        episodes=episodes,
        val_episodes=default_val_episodes(episodes),
        episode_steps=steps,
        noise=_POINTMAZE_NOISE,
    )


def _table(env: str, policy: str, prefix: str = "") -> Settings:
    p_random = {"play": 0.0, "noisy": 0.2 if env.startswith("puzzle") else 0.1}
    return Settings(
        dataset=f"{prefix}{env}-{policy}-v0",
        env_id=f"{prefix}{env}-v0",
        policy=policy,
        episodes=_TABLE_EPISODES[env],
        val_episodes=default_val_episodes(_TABLE_EPISODES[env]),
        episode_steps=_TABLE_STEPS,
        noise=_TABLE_NOISE,
        p_random_action=p_random[policy],
        p_stack=_P_STACK.get(env, (0.5, 0.5)),
    )


def default_val_episodes(episodes: int) -> int:
    """OGBench's share of validation episodes, one tenth, but never none: both files must be loadable."""
    return max(1, episodes // 10)


PUBLISHED: dict[str, Settings] = {
    s.dataset: s
    for s in (
        *(_maze(maze, "navigate", *shape) for maze, shape in _NAVIGATE.items()),
        *(_maze(maze, "stitch", *_STITCH) for maze in _NAVIGATE),
        *(_maze(maze, "explore", *_EXPLORE) for maze in _NAVIGATE),
        *(
            _table(env, policy, prefix)
            for prefix in ("", "visual-")
            for env in _TABLE_EPISODES
            for policy in ("play", "noisy")
        ),
    )
}

_MAZE_TASKS = [
    *(f"antmaze-{m}-{p}" for m, p in product(_NAVIGATE, ("navigate", "stitch"))),
    *(f"antmaze-{m}-explore" for m in ("medium", "large", "teleport")),
    *(f"humanoidmaze-{m}-{p}" for m, p in product(("medium", "large", "giant"), ("navigate", "stitch"))),
]
TRAINED_POLICY = frozenset(
    f"{name}-v0"
    for name in (
        *_MAZE_TASKS,
        *(f"visual-{name}" for name in _MAZE_TASKS),
        *(f"antsoccer-{m}-{p}" for m, p in product(("arena", "medium"), ("navigate", "stitch"))),
    )
)
# 100 million transitions of the scripted policies, in 100 files (OGBench's README.md, "Additional Features").
LARGE = frozenset(
    f"{name}-100m-v0"
    for name in (
        "humanoidmaze-giant-navigate",
        *(f"cube-{n}-play" for n in ("double", "triple", "quadruple", "octuple")),
        "cube-quadruple-noisy",
        "scene-play",
        *(f"puzzle-{n}-play" for n in ("3x3", "4x4", "4x5", "4x6")),
    )
)


def plan(dataset: str, data_dir: str | Path = DEFAULT_DATA_DIR) -> Settings:
    """The published generation settings of `dataset` (its `-v0` may be left out).

    Args:
        dataset: OGBench dataset name.
        data_dir: only used to say where a dataset that must be downloaded goes.

    Raises:
        CollectError: the name is unknown (with the nearest known names), or the dataset can only be
            downloaded (with the files to fetch and where to put them).
    """
    name = dataset if dataset.endswith("-v0") else f"{dataset}-v0"
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name in TRAINED_POLICY:
        reason = f"{name} has no scripted policy in the ogbench package"
        raise CollectError(f"{reason}, so it cannot be collected here. {_download_hint(name, data_dir)}")
    if name in LARGE:
        raise CollectError(f"{name} is too large to be collected here. {_download_hint(name, data_dir)}")
    if name.startswith("powderworld"):
        raise CollectError(f"{name} has discrete actions; mfrl's policies are for continuous actions.")
    near = difflib.get_close_matches(name, [*PUBLISHED, *sorted(TRAINED_POLICY)])
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known datasets: {', '.join(PUBLISHED)}."
    raise CollectError(f"Unknown OGBench dataset {dataset!r}. {hint}")


def downloadable(dataset: str) -> bool:
    """Whether OGBench offers the dataset's files."""
    explore = dataset.startswith("pointmaze-") and dataset.endswith("-explore-v0")
    return dataset in PUBLISHED.keys() | TRAINED_POLICY | LARGE and not explore


def commands(dataset: str, data_dir: str | Path = DEFAULT_DATA_DIR) -> dict[str, str]:
    """What makes a dataset's files: the commands `collect` and `download`, where they can.

    Args:
        dataset: OGBench dataset name with its `-v0`.
        data_dir: where the files shall lie.
    """
    found = {}
    with suppress(CollectError):
        plan(dataset)
        found["collect"] = _command("collect", dataset, data_dir)
    if downloadable(dataset):
        found["download"] = _command("download", dataset, data_dir)
    return found


def how_to_get(dataset: str, data_dir: str | Path = DEFAULT_DATA_DIR) -> str:
    """What to do about a dataset that is missing from `data_dir`, in words."""
    try:
        plan(dataset, data_dir)
    except CollectError as error:
        return str(error)
    command = commands(dataset, data_dir)
    published = f", or fetch OGBench's own:  {command['download']}" if "download" in command else ""
    return f"collect it in the simulator:  {command['collect']}{published}"


def _command(command: str, dataset: str, data_dir: str | Path) -> str:
    folder = Path(data_dir).expanduser()
    elsewhere = {} if folder == Path(DEFAULT_DATA_DIR).expanduser() else {"data_dir": folder}
    return pasted("mfrl", command, f"env=ogbench/{dataset.removesuffix('-v0')}", **elsewhere)


def _download_hint(name: str, data_dir: str | Path) -> str:
    fetch = f"Fetch it:  {_command('download', name, data_dir)}"
    if name in LARGE:
        return fetch
    train, val = (f"{DOWNLOAD_URL}/{name}{suffix}.npz" for suffix in ("", "-val"))
    return f"{fetch}   or download {train} and {val} yourself and put both in {Path(data_dir).expanduser()}."
