"""Collecting Minari datasets: a controller in point mazes, random actions or a trained policy anywhere.

The datasets are written by Minari's own DataCollector and read by any tool that reads Minari's. They are built in a
hidden folder beside their place and renamed into it when they are complete.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mfrl
from mfrl.catalogue import MAZES, CollectError
from mfrl.collect.minari.policies import Behaviour, Trained, Uniform, Waypoints
from mfrl.collect.ogbench.files import UNFINISHED, friendly_os_errors
from mfrl.collect.ogbench.runner import progress_bar
from mfrl.data import records
from mfrl.data.minari_files import checked_id, data_root, describe, root_of_minari, write_record
from mfrl.envs import minari as minari_envs
from mfrl.envs import ogbench as ogbench_envs
from mfrl.envs import outcome
from mfrl.envs.spec import EnvSpec
from mfrl.envs.vector import global_state_kept
from mfrl.errors import did_you_mean
from mfrl.randomness import derived_seed
from mfrl.system import signals
from mfrl.system.files import temporary_folder

if TYPE_CHECKING:
    import gymnasium

PUBLISHED_NAMESPACES = ("D4RL", "mujoco", "atari")  # of Minari's server: what is made here must not pass for theirs
EPISODES = 100
HEADROOM = 64 << 20  # bytes that must stay free: HDF5 crashes on a full disk, which no clean-up survives


@dataclass(frozen=True)
class Collected:
    """A finished collection.

    Args:
        path: the dataset's folder.
        provenance: the record written into it.
        transitions, episodes: in the dataset.
        seconds: wall-clock time, writing included.
    """

    path: Path
    provenance: dict[str, Any]
    transitions: int
    episodes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What acts where, and for how long.

    Args:
        env: to record.
        eval_spec: JSON of the gymnasium ``EnvSpec`` to evaluate in.
        behaviour: gives its actions.
        algorithm, description: for the dataset's metadata.
        episodes, steps: one of them; the other is None.
        settings: that shaped the data, for the record.
        reference_episodes: 0 where no reference returns are measured.
    """

    env: gymnasium.Env
    eval_spec: str
    behaviour: Behaviour
    algorithm: str
    description: str
    episodes: int | None
    steps: int | None
    settings: dict[str, Any]
    reference_episodes: int = 0


def collect(
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    policy: str | None = None,
    env: EnvSpec | None = None,
    gym_id: str | None = None,
    episodes: int | None = None,
    steps: int | None = None,
    episode_steps: int | None = None,
    noise: float | None = None,
    reference_episodes: int | None = None,
    seed: int = 0,
    trust: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> Collected:
    """Make a Minari dataset. The data depend on the settings and the seed only.

    Args:
        dataset: its Minari id, e.g. ``mfrl/pointmaze/umaze-v0``.
        data_dir: folder of Minari datasets; None: ``MINARI_DATASETS_PATH`` or Minari's default.
        policy: None: the controller, for the datasets of ``MAZES``; ``random``: uniform in the action bounds;
            ``ckpt:PATH``: a trained policy in the environment it was trained for.
        env: where random actions are taken.
        gym_id: instead of ``env``, the name of an environment that gymnasium knows.
        episodes: how many; by default as in ``MAZES``, else 100.
        steps: instead of ``episodes``, the number of transitions; the last episode is cut off there.
        episode_steps: after how many steps episodes are truncated; by default as in ``MAZES``, else as the environment
            is registered.
        noise: standard deviation of Gaussian noise on actions scaled to [-1, 1]; 0.5 for the controller, else 0.
        reference_episodes: of the controller, to measure the returns of random actions and of the controller without
            noise in the environment of evaluation, which become the dataset's reference scores.
        seed: non-negative.
        trust: packages, besides the known ones, whose environments and networks may be built.
        overwrite: replace a dataset that was collected earlier. One without our record is never replaced.
        progress: show a progress bar, and a line at the end.

    Raises:
        CollectError: invalid settings, a dataset in the way, no room or no permission to write. Nothing is left.
        DataError: ``dataset`` is no Minari id.
        EnvError: there is no such environment, or its actions are not continuous and bounded.
        CheckpointError: from the checkpoint.
    """
    started = time.perf_counter()
    check_free_to_make(dataset)
    _check_numbers(episodes, steps, episode_steps, noise, reference_episodes, seed)
    root = data_root(data_dir).absolute()
    check_free_to_write(root, dataset, overwrite)
    sizes = (episodes, steps, episode_steps)
    if policy is None:
        if env is not None or gym_id is not None:
            raise CollectError("An environment is given but nobody to act in it: say policy=random or policy=ckpt:PATH")
        plan = _controller(dataset, sizes, noise, reference_episodes, seed)
    else:
        if reference_episodes is not None:
            raise CollectError("reference_episodes is a setting of the point mazes' controller (policy=null)")
        if policy == "random":
            plan = _random(env, gym_id, sizes, noise, seed, trust)
        elif policy.startswith("ckpt:"):
            if gym_id is not None or env is not None:
                raise CollectError(f"policy={policy} brings the environment it was trained for; no other can be given")
            plan = _trained(policy.removeprefix("ckpt:"), sizes, noise, seed, trust)
        else:
            raise CollectError(f"policy={policy} is unknown; known are null, random and ckpt:PATH")

    with closing(plan.env), temporary_root(root) as building, friendly_os_errors(root):
        lengths = _record(plan, dataset, seed, progress)
        details = {
            "generator": {
                "package": "mfrl",
                "version": mfrl.__version__,
                "function": "mfrl.collect.minari.plan.collect",
            },
            "seed": seed,
            **plan.settings,
            "episodes": len(lengths),
            "transitions": sum(lengths),
            "seconds": round(time.perf_counter() - started, 3),
            "versions": records.versions((*records.SIMULATION, "gymnasium-robotics", "minari", "h5py")),
        }
        write_record(building, dataset, "collected", **details)
        # Again: another process may have finished the same dataset in the meantime.
        check_free_to_write(root, dataset, overwrite)
        path = publish(building, root, dataset)
        record = describe(root, dataset)
    seconds = time.perf_counter() - started
    if progress:
        size = f"{sum(lengths):,} transitions in {len(lengths):,} episode{'s' * (len(lengths) != 1)}"
        print(f"Collected {dataset}: {size}, {seconds:.1f} s -> {path}", file=sys.stderr)
    return Collected(path, record, sum(lengths), len(lengths), seconds)


def _check_numbers(
    episodes: int | None,
    steps: int | None,
    episode_steps: int | None,
    noise: float | None,
    reference_episodes: int | None,
    seed: int,
) -> None:
    if episodes is not None and steps is not None:
        raise CollectError(f"episodes={episodes} and steps={steps} both say how much to collect; give one")
    least = {"episodes": 1, "steps": 1, "episode_steps": 1, "reference_episodes": 0, "seed": 0}
    given = (episodes, steps, episode_steps, reference_episodes, seed)
    for (name, minimum), value in zip(least.items(), given, strict=True):
        if value is not None and (type(value) is not int or value < minimum):
            raise CollectError(f"{name} must be a whole number of at least {minimum}, got {value}")
    if noise is not None and (type(noise) not in (int, float) or not 0.0 <= noise < float("inf")):
        raise CollectError(f"noise must be at least 0 and finite, got {noise}")


# What acts where


Sizes = tuple[int | None, int | None, int | None]
"""Episodes, steps, and steps of an episode; None where the user left it open."""


def _controller(dataset: str, sizes: Sizes, noise: float | None, reference_episodes: int | None, seed: int) -> Plan:
    if dataset not in MAZES:
        raise CollectError(
            f"There is no controller that collects {dataset}{did_you_mean(dataset, MAZES)}, only for "
            f"{', '.join(MAZES)}; say who acts: policy=random or policy=ckpt:PATH"
        )
    maze = MAZES[dataset]
    episodes, steps, episode_steps = sizes
    episodes = maze.episodes if episodes is None and steps is None else episodes
    episode_steps = maze.episode_steps if episode_steps is None else episode_steps
    noise = maze.noise if noise is None else noise
    kwargs = {"continuing_task": True, "reset_target": True}
    env = _build(minari_envs.write_spec(maze.gym_id, kwargs, episode_steps))
    walls = [[cell if cell == 1 else 0 for cell in row] for row in env.unwrapped.maze.maze_map]
    walls[maze.goal[0]][maze.goal[1]] = "g"
    evaluation = {"maze_map": walls, "continuing_task": True, "reset_target": False}
    return Plan(
        env=env,
        eval_spec=minari_envs.read_spec(minari_envs.write_spec(maze.gym_id, evaluation)).to_json(),
        behaviour=Waypoints(env, noise, seed),
        algorithm="proportional-derivative control along shortest paths",
        description=(
            f"A ball in {maze.gym_id} on its way to one goal after another (continuing task), steered along shortest "
            f"paths of cells with noise N(0, {noise:g}^2) on its actions. Evaluated at the goal of cell {maze.goal}."
        ),
        episodes=episodes,
        steps=steps,
        settings={"policy": "controller", "env_id": maze.gym_id, "episode_steps": episode_steps, "noise": noise},
        reference_episodes=maze.reference_episodes if reference_episodes is None else reference_episodes,
    )


def _random(
    env: EnvSpec | None, gym_id: str | None, sizes: Sizes, noise: float | None, seed: int, trust: tuple[str, ...]
) -> Plan:
    if noise:
        raise CollectError("noise is no setting of policy=random, whose actions are random already")
    if (env is None) == (gym_id is None):
        raise CollectError("policy=random needs an environment: gym_id=NAME-v0, or env=... of the benchmarks")
    spec = env or EnvSpec(gym_id, "minari", gym_spec=minari_envs.write_spec(gym_id), trust=trust)
    made = _recorded_env(spec, sizes[2])
    episodes, steps = _default(sizes)
    return Plan(
        env=made,
        eval_spec=_recorded_spec(spec),
        behaviour=Uniform(made.action_space, seed),
        algorithm="uniformly random actions",
        description=f"Uniformly random actions in {spec.env_id}.",
        episodes=episodes,
        steps=steps,
        settings={"policy": "random", "env_id": spec.env_id, "episode_steps": made.spec.max_episode_steps},
    )


def _trained(path: str, sizes: Sizes, noise: float | None, seed: int, trust: tuple[str, ...]) -> Plan:
    from mfrl.runs.checkpoint import find_checkpoint
    from mfrl.runs.load import load_algorithm, recorded_env
    from mfrl.runs.saved import Saved

    file = find_checkpoint(path)
    module, record = load_algorithm(file, trust)
    spec = recorded_env(record, trust)
    if spec.suite == "toy":
        raise CollectError(f"{file} was trained on {spec.env_id}, which has no environment to collect in")
    made = _recorded_env(spec, sizes[2])
    noise = noise or 0.0
    episodes, steps = _default(sizes)
    algorithm = str(Saved(record["config"]).plain("algo_name"))
    return Plan(
        env=made,
        eval_spec=_recorded_spec(spec),
        behaviour=Trained(module.policy().folded(), made.action_space, spec.observation_keys, noise, seed),
        algorithm=algorithm,
        description=(
            f"{algorithm} after {module.k:,} updates on {record['provenance']['dataset']}, acting in "
            f"{spec.env_id} with noise N(0, {noise:g}^2) on its actions."
        ),
        episodes=episodes,
        steps=steps,
        settings={
            "policy": {
                "algo": algorithm,
                "updates": module.k,
                "trained_on": record["provenance"]["dataset"],
                "checkpoint": records.fingerprint(file),
            },
            "env_id": spec.env_id,
            "episode_steps": made.spec.max_episode_steps,
            "noise": noise,
        },
    )


def _default(sizes: Sizes) -> tuple[int | None, int | None]:
    episodes, steps, _ = sizes
    return (EPISODES if episodes is None and steps is None else episodes), steps


def _recorded_env(spec: EnvSpec, episode_steps: int | None) -> gymnasium.Env:
    """The environment with the spaces that it has, not those that policies see."""
    if spec.suite == "ogbench":
        if spec.observes_pixels:
            raise CollectError(f"{spec.env_id} observes images, which mfrl does not read from Minari datasets")
        limit = {} if episode_steps is None else {"max_episode_steps": episode_steps}
        return _checked(ogbench_envs.make(spec.env_id, **limit))
    return _build(_recorded_spec(spec), episode_steps, spec.trust)


def _recorded_spec(spec: EnvSpec) -> str:
    """JSON of a gymnasium ``EnvSpec`` with everything in it, as registered."""
    if spec.suite == "ogbench":
        import gymnasium
        import ogbench  # noqa: F401 - registers the environments

        return gymnasium.spec(spec.env_id).to_json()
    if spec.gym_spec is None:
        raise CollectError(f"{spec.env_id} does not say which environment to collect in: gym_id=NAME-v0")
    return minari_envs.read_spec(spec.gym_spec, tuple(spec.trust)).to_json()


def _build(gym_spec: str, episode_steps: int | None = None, trust: tuple[str, ...] = ()) -> gymnasium.Env:
    if episode_steps is not None:
        gym_spec = json.dumps(json.loads(gym_spec) | {"max_episode_steps": episode_steps})
    return _checked(minari_envs.make_as_recorded(gym_spec, tuple(trust)))


def _checked(env: gymnasium.Env) -> gymnasium.Env:
    """Refuse what no dataset of ours can hold."""
    with ExitStack() as stack:
        stack.callback(env.close)
        minari_envs.action_bounds(env.action_space)
        if env.spec.max_episode_steps is None:
            raise CollectError(f"{env.spec.id} has no time limit: set one with episode_steps=")
        stack.pop_all()
    return env


# Recording


def _record(plan: Plan, dataset: str, seed: int, progress: bool) -> list[int]:
    """Run every episode and write the dataset into the current Minari root; returns the episodes' lengths."""
    from mfrl.collect.minari.recorder import Recorder

    lengths: list[int] = []
    recorder = Recorder(plan.env)
    total = plan.episodes or plan.steps
    unit = "episodes" if plan.steps is None else "steps"
    with closing(recorder), progress_bar(progress, unit) as bar, global_state_kept():
        task = bar.add_task(dataset, total=total, rate="")
        started = time.perf_counter()
        for episode in count():
            signals.obey()
            done = len(lengths) if plan.steps is None else sum(lengths)
            rate = sum(lengths) / (time.perf_counter() - started)
            bar.update(task, completed=done, rate=f"{rate:,.0f} transitions/s")
            if done >= total:
                break
            check_room(Path(recorder.datasets_path), done / total)
            room = sys.maxsize if plan.steps is None else plan.steps - done
            lengths.append(len(run_episode(recorder, plan.behaviour, seed, episode, room)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # there is no e-mail address to give
            made = recorder.create_dataset(
                dataset,
                eval_env=_gym_spec(plan.eval_spec),
                algorithm_name=plan.algorithm,
                author="mfrl",
                code_permalink=f"mfrl {mfrl.__version__}, mfrl.collect.minari.plan",
                description=plan.description,
            )
        if plan.reference_episodes:
            made.storage.update_metadata(reference_scores(plan.eval_spec, plan.reference_episodes, seed))
    return lengths


def run_episode(
    env: gymnasium.Env, behaviour: Behaviour, seed: int, episode: int, room: int = sys.maxsize
) -> list[float]:
    """One episode, of at most ``room`` steps; its rewards. Its random numbers come from (seed, episode) alone.

    Raises:
        CollectError: an action, an observation or a reward is not finite.
        EnvError: a reward is not one number, or a flag no truth value.
    """
    name = outcome.name_of(env)
    own = derived_seed(seed, "collection episode", episode) % 2**31
    np.random.seed(own)  # noqa: NPY002 - OGBench draws from the global generator
    env.action_space.seed(own)
    behaviour.begin(episode)
    observation, _ = env.reset(seed=own)
    rewards: list[float] = []

    def check(what: str, value: Any) -> None:
        if not _is_finite(value):
            where = f"in episode {episode} after {len(rewards)} steps"
            raise CollectError(f"{name} gave {what} that is not finite, {where}")

    check("an observation", observation)
    while len(rewards) < room:
        action = behaviour.action(observation).astype(env.action_space.dtype)
        if not np.isfinite(action).all():
            raise CollectError(f"The action of episode {episode}, step {len(rewards)} is not finite: {action}")
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(outcome.number(reward, f"the reward of {name}"))
        check("an observation", observation)
        check("a reward", rewards[-1])
        flags = {"terminated": terminated, "truncated": truncated}
        if any(outcome.truth(value, f"{flag!r} of {name}") for flag, value in flags.items()):
            break
    return rewards


def _is_finite(tree: Any) -> bool:
    """Whether every number of an observation, a dictionary perhaps, is finite."""
    if isinstance(tree, dict | tuple):
        return all(map(_is_finite, tree.values() if isinstance(tree, dict) else tree))
    return bool(np.isfinite(tree).all())


def reference_scores(eval_spec: str, episodes: int, seed: int) -> dict[str, Any]:
    """Mean returns of random actions and of the controller without noise, by Minari's names for them."""
    with closing(_build(eval_spec)) as env:
        means = {
            name: float(np.mean([sum(run_episode(env, who, seed, k)) for k in range(episodes)]))
            for name, who in (
                ("ref_min_score", Uniform(env.action_space, seed)),
                ("ref_max_score", Waypoints(env, 0.0, seed)),
            )
        }
    return means | {"num_episodes_average_score": episodes}


def _gym_spec(gym_spec: str) -> Any:
    from gymnasium.envs.registration import EnvSpec as GymSpec

    return GymSpec.from_json(gym_spec)


# Files


def check_free_to_make(dataset: str) -> None:
    """Refuse what is no Minari id, leads out of the folder of datasets, or would pass for a published dataset.

    Raises:
        DataError: it is no id.
        CollectError: Minari does not take it, or it is in a namespace of published datasets.
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    namespace, _, name = checked_id(dataset).partition("/")
    try:
        parse_dataset_id(dataset)
    except ValueError as error:
        raise CollectError(f"{dataset!r} is no id to Minari: a namespace has at least two characters") from error
    if namespace.lower() in map(str.lower, PUBLISHED_NAMESPACES):
        raise CollectError(
            f"{dataset}: {namespace} is a namespace of published datasets, and what is collected here must not pass "
            f"for one; choose another, e.g. mfrl/{name}"
        )


def check_free_to_write(root: Path, dataset: str, overwrite: bool) -> None:
    """Refuse to touch what is there unless it is ours, file by file, and the user asked.

    Raises:
        CollectError: something is in the way; the message says what and why it stays.
    """
    folder = root / dataset
    for parent in Path(dataset).parents[:-1]:
        if (root / parent / "data").exists():
            raise CollectError(f"{dataset} would lie inside the dataset {parent} in {root}; choose another id")
    if not folder.exists():
        return
    if not overwrite:
        raise CollectError(f"{dataset} is already in {root}. Pass overwrite=true to replace what mfrl collected.")
    try:
        found = describe(root, dataset)
    except records.ProvenanceError as error:
        raise CollectError(f"Not overwriting {folder}: {error}") from error
    if found["source"] != "collected":
        raise CollectError(
            f"Not overwriting {folder}: no record of mfrl says that exactly these files were collected, so it may be "
            "an official download or your own. Move it away yourself."
        )


def check_room(building: Path, share: float) -> None:
    """Stop before the disk is full: what is still to come is as large as what was written, by ``share`` of the whole.

    Raises:
        CollectError: with the sizes.
    """
    written = sum(path.stat().st_size for path in building.rglob("*") if path.is_file())
    needed = HEADROOM + (written * (1.0 / share - 1.0) if share else 0.0)
    free = shutil.disk_usage(building).free
    if needed > free:
        raise CollectError(
            f"{building.parent} has {free / 1e6:,.0f} MB free; the rest of the dataset may take {needed / 1e6:,.0f} MB"
        )


@contextmanager
def temporary_root(root: Path) -> Iterator[Path]:
    """A hidden folder in ``root`` that Minari takes for its root while the block lasts; gone after it."""
    with ExitStack() as stack:
        with friendly_os_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(temporary_folder(root, UNFINISHED))
        stack.enter_context(root_of_minari(str(folder)))
        yield folder


def publish(building: Path, root: Path, dataset: str) -> Path:
    """Move a finished dataset and its namespaces from one Minari root to another; on failure nothing has changed."""
    target, replaced = root / dataset, building / "replaced"
    with ExitStack() as undo:
        for namespace in reversed(Path(dataset).parents[:-1]):
            description = Path(namespace, "namespace_metadata.json")
            if not (root / namespace).exists():
                (root / namespace).mkdir()
                undo.callback((root / namespace).rmdir)
            if not (root / description).exists():
                os.replace(building / description, root / description)
                undo.callback((root / description).unlink)
        if target.exists():
            os.replace(target, replaced)
            undo.callback(os.replace, replaced, target)
        os.replace(building / dataset, target)
        undo.pop_all()
    return target
