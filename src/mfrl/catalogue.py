"""What there is to train on: names and sizes of datasets and tasks, and how OGBench's are generated.

The module holds facts: nothing is read or run.

In order: how OGBench's datasets are generated, and which can only be downloaded; how OGBench names environments; the
tasks of the benchmark (arXiv 2511.13035) and every other; the point mazes that are collected as Minari datasets.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from typing import Any

from mfrl.errors import CollectError, EnvError, MfrlError

DOWNLOAD_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
DEFAULT_DATA_DIR = "~/.ogbench/data"


@dataclass(frozen=True)
class GenerationSettings:
    """How one of OGBench's datasets is generated, as it is published.

    The numbers come from OGBench's `data_gen_scripts/commands.sh` and from the defaults of the two scripts it calls.

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
        expert: in a maze, the trained policy that walks in the direction of the sub-goal, by its name in
            `mfrl/collect/ogbench/experts`; None where a script acts.
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
    expert: str | None = None

    @property
    def is_maze(self) -> bool:
        return "maze" in self.env_id

    @property
    def renders(self) -> bool:
        """Whether observations are images, so that every step needs a rendering back end."""
        return self.env_id.startswith("visual-")

    def used(self) -> dict[str, Any]:
        """The settings that shape this dataset, by name; a maze has no use for those of the robot arm."""
        foreign = {"noise_smoothing", "min_norm", "p_random_action", "p_stack"} if self.is_maze else set()
        foreign |= {"expert"} if self.expert is None else set()
        return {name: value for name, value in asdict(self).items() if name not in foreign}


# Episodes and rows per episode, by environment.
_NAVIGATE = {"medium": (1000, 1001), "large": (1000, 1001), "giant": (500, 2001), "teleport": (1000, 1001)}
_STITCH = (5000, 201)
# OGBench publishes no pointmaze explore set. This one has the shape of its antmaze explore sets (501 rows, a
# new direction every 10 steps) with the noise of its pointmaze sets. The 10000 episodes of antmaze explore
# are more than a two-dimensional point needs: 400 starts, drawn from every free cell, visit the whole maze,
# and their 200 000 transitions are collected in well under a minute.
_EXPLORE = (400, 501)
_POINTMAZE_NOISE = 0.5
_ANTMAZE = {
    "navigate": _NAVIGATE,
    "stitch": dict.fromkeys(_NAVIGATE, _STITCH),
    "explore": dict.fromkeys(("medium", "large", "teleport"), (10000, 501)),
}
_ANTMAZE_NOISE = {"navigate": 0.2, "stitch": 0.2, "explore": 1.0}

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


def _maze(maze: str, policy: str, episodes: int, steps: int) -> GenerationSettings:
    return GenerationSettings(
        dataset=f"pointmaze-{maze}-{policy}-v0",
        env_id=f"pointmaze-{maze}-v0",
        policy=policy,
        episodes=episodes,
        val_episodes=default_val_episodes(episodes),
        episode_steps=steps,
        noise=_POINTMAZE_NOISE,
    )


def _antmaze(maze: str, policy: str, episodes: int, steps: int, prefix: str = "") -> GenerationSettings:
    return GenerationSettings(
        dataset=f"{prefix}antmaze-{maze}-{policy}-v0",
        env_id=f"{prefix}antmaze-{maze}-v0",
        policy=policy,
        episodes=episodes,
        val_episodes=default_val_episodes(episodes),
        episode_steps=steps,
        noise=_ANTMAZE_NOISE[policy],
        expert="ant",
    )


def _table(env: str, policy: str, prefix: str = "") -> GenerationSettings:
    p_random = {"play": 0.0, "noisy": 0.2 if env.startswith("puzzle") else 0.1}
    return GenerationSettings(
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


PUBLISHED: dict[str, GenerationSettings] = {
    s.dataset: s
    for s in (
        *(_maze(maze, "navigate", *shape) for maze, shape in _NAVIGATE.items()),
        *(_maze(maze, "stitch", *_STITCH) for maze in _NAVIGATE),
        *(_maze(maze, "explore", *_EXPLORE) for maze in _NAVIGATE),
        *(
            _antmaze(maze, policy, *shape, prefix)
            for prefix in ("", "visual-")
            for policy, shapes in _ANTMAZE.items()
            for maze, shape in shapes.items()
        ),
        *(
            _table(env, policy, prefix)
            for prefix in ("", "visual-")
            for env in _TABLE_EPISODES
            for policy in ("play", "noisy")
        ),
    )
}

_MAZE_TASKS = [
    *(f"humanoidmaze-{m}-{p}" for m, p in product(("medium", "large", "giant"), ("navigate", "stitch"))),
]
# By policies trained with RL for so long that no such expert comes with mfrl: 40 million steps of the humanoid, 12 of
# an ant with a ball. Listed so that asking for one gets an answer.
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


def generation_settings(dataset: str) -> GenerationSettings:
    """The published generation settings of `dataset` (its `-v0` may be left out).

    Raises:
        CollectError: the name is unknown (with the nearest known names), or the dataset can only be downloaded.
    """
    name = dataset if dataset.endswith("-v0") else f"{dataset}-v0"
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name in TRAINED_POLICY:
        steps = "the humanoid's takes 40" if "humanoid" in name else "that of an ant with a ball takes 12"
        raise CollectError(
            f"{name} has no scripted policy in the ogbench package, and mfrl has no trained one ({steps} million "
            "steps), so it cannot be collected here."
        )
    if name in LARGE:
        raise CollectError(f"{name} is too large to be collected here.")
    if name.startswith("powderworld"):
        raise CollectError(f"{name} has discrete actions; mfrl's policies are for continuous actions.")
    near = difflib.get_close_matches(name, [*PUBLISHED, *sorted(TRAINED_POLICY)])
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known datasets: {', '.join(PUBLISHED)}."
    raise CollectError(f"Unknown OGBench dataset {dataset!r}. {hint}")


def downloadable(dataset: str) -> bool:
    """Whether OGBench offers the dataset's files."""
    explore = dataset.startswith("pointmaze-") and dataset.endswith("-explore-v0")
    return dataset in PUBLISHED.keys() | TRAINED_POLICY | LARGE and not explore


def in_many_files(dataset: str) -> bool:
    """Whether OGBench publishes it as a folder of files: its sets of 100 million transitions."""
    return re.search(r"-100m-v\d+$", dataset) is not None


#: OGBench's environments without a dataset, in which its experts were trained, by their choice of ``env=``.
ONLINE = {f"ogbench/online-{name}": f"online-{name}-v0" for name in ("ant-xy", "antball", "humanoid-xy")}

DATASET_TYPES = ("navigate", "stitch", "explore", "play", "noisy")
NUM_TASKS = 5  #: of every OGBench environment


def singletask_id(dataset: str, task: int | None = None) -> str:
    """The environment whose task a dataset is relabelled for.

    Args:
        dataset: for example ``pointmaze-medium-navigate-v0``; the version may be left out. One of 100 million
            transitions is a larger one of the same environment.
        task: 1 to 5, or None for the task OGBench holds to be the environment's default.

    Returns:
        for example ``pointmaze-medium-singletask-v0`` or ``pointmaze-medium-singletask-task2-v0``.

    Raises:
        EnvError: the name does not end in a dataset type, or there is no such task.
    """
    if task is not None and task not in range(1, NUM_TASKS + 1):
        raise EnvError(f"env.task={task} must be a whole number from 1 to {NUM_TASKS}, or null for the default task")
    if dataset.startswith("powderworld"):
        raise EnvError(f"{dataset} has discrete actions and no rewards; mfrl's policies are for continuous actions")
    if "-singletask" in dataset:
        raise EnvError(f"{dataset!r} is an environment: name its dataset, as in cube-single-play, and env.task=2")
    match = re.fullmatch(rf"(?P<env>.+)-({'|'.join(DATASET_TYPES)})(-100m)?(?P<version>-v\d+)?", dataset)
    if match is None:
        types = ", ".join(DATASET_TYPES)
        raise EnvError(f"{dataset!r} is not an OGBench dataset: it should end in one of {types}")
    return f"{match['env']}-singletask{'' if task is None else f'-task{task}'}{match['version'] or '-v0'}"


def task_number(env_id: str) -> int | None:
    """The number of the task that an environment is named after; None where it has one task, or its default."""
    match = re.search(r"-task(\d+)(-v\d+)?$", env_id)
    return int(match[1]) if match else None


def plain_name(dataset: str) -> str:
    """``D4RL/antmaze/umaze-v1`` and ``antmaze-umaze-v2`` are the same dataset; so are names without a version."""
    return re.sub(r"-v\d+$", "", dataset.lower().removeprefix("d4rl/")).replace("/", "-")


#: The benchmark's datasets: of OGBench with states and with images, of D4RL.
STATES = (
    "antmaze-large-navigate",
    "antmaze-giant-navigate",
    "humanoidmaze-medium-navigate",
    "humanoidmaze-large-navigate",
    "antsoccer-arena-navigate",
    "cube-single-play",
    "cube-double-play",
    "scene-play",
    "puzzle-3x3-play",
    "puzzle-4x4-play",
)
IMAGES = (
    "visual-cube-single-play",
    "visual-cube-double-play",
    "visual-scene-play",
    "visual-puzzle-3x3-play",
    "visual-puzzle-4x4-play",
)
ANTMAZE = (
    "antmaze-umaze",
    "antmaze-umaze-diverse",
    "antmaze-medium-play",
    "antmaze-medium-diverse",
    "antmaze-large-play",
    "antmaze-large-diverse",
)
ADROIT = tuple(
    "-".join(names) for names in product(("pen", "door", "hammer", "relocate"), ("human", "cloned", "expert"))
)

#: Published training lengths (arXiv 2511.13035, protocol).
UPDATES = {"states": 1_000_000, "images": 500_000, "d4rl": 500_000}

#: Numbers in an observation of states and in an action, by how the environment's name begins.
SIZES = {
    "pointmaze": (2, 2),
    "antmaze": (29, 8),
    "humanoidmaze": (69, 21),
    "antsoccer": (42, 8),
    "cube-single": (28, 5),
    "cube-double": (37, 5),
    "cube-triple": (46, 5),
    "cube-quadruple": (55, 5),
    "cube-octuple": (91, 5),
    "scene": (40, 5),
    "puzzle-3x3": (55, 5),
    "puzzle-4x4": (83, 5),
    "puzzle-4x5": (99, 5),
    "puzzle-4x6": (115, 5),
    "pen": (45, 24),
    "door": (39, 28),
    "hammer": (46, 26),
    "relocate": (39, 30),
}
MINARI_POINTMAZE = (6, 2)  #: position, velocity and goal; force
IMAGE = (64, 64, 3)  #: height, width and channels of an observation

#: The task that an OGBench environment has without a number; 1 where none stands here (OGBench's README.md).
DEFAULT_TASK = {
    "antsoccer": 4,
    "cube": 2,
    "scene": 2,
    "puzzle-3x3": 4,
    "puzzle-4x4": 4,
    "puzzle-4x5": 2,
    "puzzle-4x6": 2,
}


class TasksError(MfrlError, ValueError):
    """No task or dataset has this name."""


@dataclass(frozen=True)
class Task:
    """One thing to train on.

    Attributes:
        name: of the preset too, e.g. ``cube-single-play-task2``; a dataset's name outside the benchmark.
        env: the choice of ``env=``, e.g. ``ogbench/cube-single-play``.
        number: ``env.task``; None where the dataset has one task, or stands for all of its tasks.
        default: whether it is the task without ``env.task``.
        observation: shape, one number for states.
        action: numbers.
        updates: published training length; None outside the benchmark.
    """

    name: str
    env: str
    number: int | None
    default: bool
    observation: tuple[int, ...]
    action: int
    updates: int | None

    @property
    def suite(self) -> str:
        return self.env.partition("/")[0]

    @property
    def overrides(self) -> str:
        """What to say after `mfrl train`."""
        return f"env={self.env}" + (f" env.task={self.number}" if self.number else "")


def benchmark() -> list[Task]:
    """The 73 tasks, in the order of the paper's tables."""
    found = [task_of(f"ogbench/{name}", number, UPDATES["states"]) for name in STATES for number in range(1, 6)]
    found += [task_of(f"ogbench/{name}", 1, UPDATES["images"]) for name in IMAGES]
    return found + [task_of(f"d4rl/{name}", None, UPDATES["d4rl"]) for name in ANTMAZE + ADROIT]


def others() -> list[Task]:
    """Every other dataset with a configuration of its own, with all its tasks."""
    known = {task.env for task in benchmark()}
    return [task_of(env, None, None) for env in sorted(environments()) if env not in known]


@cache
def environments() -> dict[str, str]:
    """Every choice of ``env=`` that names a dataset of a simulator, with that dataset's id."""
    return {
        **{f"ogbench/{id.removesuffix('-v0')}": id for id in sorted(PUBLISHED.keys() | TRAINED_POLICY | LARGE)},
        **{f"d4rl/{name}": _on_minari(name) for name in ANTMAZE + ADROIT},
        **{f"minari/{id.removeprefix('mfrl/').removesuffix('-v0').replace('/', '-')}": id for id in MAZES},
    }


def _on_minari(name: str) -> str:
    """The id that Minari gives a set of D4RL, e.g. ``D4RL/pen/human-v2``."""
    collection, _, rest = name.partition("-")
    return f"D4RL/{collection}/{rest}-{'v1' if name in ANTMAZE else 'v2'}"


@cache
def tasks() -> dict[str, Task]:
    """Every task by its name: the benchmark's, every other dataset, and all five tasks of each of OGBench's."""
    numbered = [
        task_of(env, number, None)
        for env in environments()
        if env.startswith("ogbench/")
        for number in range(1, NUM_TASKS + 1)
    ]
    return {task.name: task for task in (*numbered, *others(), *benchmark())}


def task_of(env: str, number: int | None, updates: int | None) -> Task:
    """A task of a dataset, its name and sizes worked out.

    Args:
        env: a choice of ``env=``.
        number: of the task, from 1; None: the environment's own.
        updates: published training length; None outside the benchmark.
    """
    suite, name = env.split("/")
    simulator = name.removeprefix("visual-")
    states, action = MINARI_POINTMAZE if suite == "minari" else _longest(simulator, SIZES)
    return Task(
        name=f"{name}-task{number}" if number else name,
        env=env,
        number=number,
        default=number in (None, default_task(name)),
        observation=IMAGE if simulator != name else (states,),
        action=action,
        updates=updates,
    )


def default_task(dataset: str) -> int:
    """The task of an OGBench dataset's environment without a number."""
    return _longest(dataset.removeprefix("visual-"), DEFAULT_TASK | {"": 1})


def _longest(name: str, table: dict[str, Any]) -> Any:
    return table[max((key for key in table if name.startswith(key)), key=len)]


def spelled(name: str) -> str | None:
    """The overrides for a task by another of its names, e.g. OGBench's or Minari's own; None where it is unknown.

    ``cube-single-play-singletask-task2-v0`` is ``env=ogbench/cube-single-play env.task=2``, ``D4RL/pen/human-v2`` is
    ``env=d4rl/pen-human``.
    """
    plain = plain_name(re.sub(r"^(ogbench|minari|mfrl)/", "", name.lower()))
    match = re.fullmatch(r"(?P<dataset>.+?)(-singletask)?(-task(?P<number>[1-5]))?", plain)
    if match is None:
        return None
    env = next((env for env in environments() if env.partition("/")[2] == match["dataset"]), None)
    return env and f"env={env}" + (f" env.task={match['number']}" if match["number"] else "")


@dataclass(frozen=True)
class Maze:
    """How a point-maze dataset is made.

    The environments, the controller's gains, the noise and the goals of evaluation are those of the published sets
    (D4RL, scripts/generation/generate_maze2d_datasets.py and Minari's D4RL/pointmaze by the script
    create_pointmaze_dataset.py of rodrigodelazcano/d4rl-minari-dataset-generation): a continuing task that draws a new
    goal whenever one is reached, N(0, 0.5^2) on every action, evaluated at one fixed goal that stays where it is.
    The published sets have a million steps each, cut into episodes where a goal is reached. Here an episode goes on
    through its goals for ``episode_steps``, starts from a seed of its own, and its observations show a new goal
    at once and not a step late.

    Args:
        gym_id: name of the environment.
        goal: row and column of the goal that evaluation has.
        episodes, episode_steps, noise: as many, of as many steps, with this standard deviation.
        reference_episodes: over which the returns that score 0 and 1 are measured.
    """

    gym_id: str
    goal: tuple[int, int]
    episodes: int = 200
    episode_steps: int = 1000
    noise: float = 0.5
    reference_episodes: int = 50


MAZES = {
    "mfrl/pointmaze/umaze-v0": Maze("PointMaze_UMaze-v3", (1, 1)),
    "mfrl/pointmaze/medium-v0": Maze("PointMaze_Medium-v3", (6, 6)),
    "mfrl/pointmaze/large-v0": Maze("PointMaze_Large-v3", (7, 9)),
}
