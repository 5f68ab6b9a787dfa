"""Plans the collection of a Minari dataset: the environment, what acts in it, and for how long."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from mfrl.catalogue import MAZES
from mfrl.collect.minari.policies import Behaviour, Trained, Uniform, Waypoints
from mfrl.data import records
from mfrl.envs import minari as minari_envs
from mfrl.envs import ogbench as ogbench_envs
from mfrl.envs.spec import EnvSpec
from mfrl.errors import CollectError, did_you_mean

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.spaces import Box

EPISODES = 100  #: the default number of episodes, except for point mazes

#: The numbers of episodes, of steps, and of steps in an episode; None where the user gives none.
Sizes = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class Plan:
    """The plan of a collection.

    Args:
        env: the environment that is recorded.
        eval_spec: JSON of the gymnasium ``EnvSpec`` of the environment that evaluates.
        behaviour: chooses the actions.
        algorithm, description: for the dataset's metadata.
        episodes, steps: how much to collect; one of the two is None.
        settings: the settings that the data depend on, for the record.
        reference_episodes: number of episodes that measure the reference returns; 0 measures none.
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


def plan_collection(
    dataset: str,
    *,
    policy: str | None,
    env: EnvSpec | None,
    gym_id: str | None,
    sizes: Sizes,
    noise: float | None,
    reference_episodes: int | None,
    seed: int,
    trust: tuple[str, ...],
) -> Plan:
    """Plan a collection. Arguments and errors are those of :func:`mfrl.collect.minari.runner.collect`."""
    if policy is None:
        if env is not None or gym_id is not None:
            raise CollectError("An environment is given but nobody to act in it: say policy=random or policy=ckpt:PATH")
        return _controller(dataset, sizes, noise, reference_episodes, seed)
    if reference_episodes is not None:
        raise CollectError("reference_episodes is a setting of the point mazes' controller (policy=null)")
    if policy == "random":
        return _random(env, gym_id, sizes, noise, seed, trust)
    if not policy.startswith("ckpt:"):
        raise CollectError(f"policy={policy} is unknown; known are null, random and ckpt:PATH")
    if gym_id is not None or env is not None:
        raise CollectError(f"policy={policy} brings the environment it was trained for; no other can be given")
    return _trained(policy.removeprefix("ckpt:"), sizes, noise, seed, trust)


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
    env = build(minari_envs.write_spec(maze.gym_id, kwargs, episode_steps))
    core: Any = env.unwrapped
    walls = [[cell if cell == 1 else 0 for cell in row] for row in core.maze.maze_map]
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
    if gym_id is not None and env is None:
        spec = EnvSpec(gym_id, "minari", gym_spec=minari_envs.write_spec(gym_id), trust=trust)
    elif env is not None and gym_id is None:
        spec = env
    else:
        raise CollectError("policy=random needs an environment: gym_id=NAME-v0, or env=... of the benchmarks")
    made = _recorded_env(spec, sizes[2])
    episodes, steps = _default(sizes)
    return Plan(
        env=made,
        eval_spec=_recorded_spec(spec),
        behaviour=Uniform(box_of_actions(made), seed),
        algorithm="uniformly random actions",
        description=f"Uniformly random actions in {spec.env_id}.",
        episodes=episodes,
        steps=steps,
        settings={"policy": "random", "env_id": spec.env_id, "episode_steps": _time_limit(made)},
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
        behaviour=Trained(module.policy().folded(), box_of_actions(made), spec.observation_keys, noise, seed),
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
            "episode_steps": _time_limit(made),
            "noise": noise,
        },
    )


def _default(sizes: Sizes) -> tuple[int | None, int | None]:
    episodes, steps, _ = sizes
    return (EPISODES if episodes is None and steps is None else episodes), steps


def _recorded_env(spec: EnvSpec, episode_steps: int | None) -> gymnasium.Env:
    """Build the environment with its own spaces, and not with those that mfrl's policies see.

    Raises:
        CollectError: it observes images.
    """
    if spec.suite == "ogbench":
        if spec.observes_pixels:
            raise CollectError(f"{spec.env_id} observes images, which mfrl does not read from Minari datasets")
        if spec.env_id.startswith(ogbench_envs.ONLINE):
            raise CollectError(f"{spec.env_id} is not in gymnasium's registry, by which Minari datasets name theirs")
        limit: dict[str, Any] = {} if episode_steps is None else {"max_episode_steps": episode_steps}
        return _checked(ogbench_envs.make(spec.env_id, **limit))
    return build(_recorded_spec(spec), episode_steps, spec.trust)


def _recorded_spec(spec: EnvSpec) -> str:
    """The complete gymnasium ``EnvSpec`` of an environment, as JSON.

    Raises:
        CollectError: the description names no environment.
    """
    if spec.suite == "ogbench":
        import gymnasium
        import ogbench  # noqa: F401 - registers the environments

        return gymnasium.spec(spec.env_id).to_json()
    if spec.gym_spec is None:
        raise CollectError(f"{spec.env_id} does not say which environment to collect in: gym_id=NAME-v0")
    return minari_envs.read_spec(spec.gym_spec, tuple(spec.trust)).to_json()


def build(gym_spec: str, episode_steps: int | None = None, trust: tuple[str, ...] = ()) -> gymnasium.Env:
    """Build an environment from the JSON of its ``EnvSpec``.

    Args:
        episode_steps: the time limit; None keeps that of ``gym_spec``.
        trust: packages whose environments may be built, besides the known ones.

    Raises:
        EnvError: it cannot be built, or its actions are not continuous and bounded.
        CollectError: it has no time limit.
    """
    if episode_steps is not None:
        gym_spec = json.dumps(json.loads(gym_spec) | {"max_episode_steps": episode_steps})
    return _checked(minari_envs.make_as_recorded(gym_spec, tuple(trust)))


def box_of_actions(env: gymnasium.Env) -> Box:
    """The action space of an environment that :func:`build` has built, which is a Box."""
    return cast("Box", env.action_space)


def _time_limit(env: gymnasium.Env) -> int | None:
    assert env.spec is not None, "gymnasium has built it from a spec"
    return env.spec.max_episode_steps


def _checked(env: gymnasium.Env) -> gymnasium.Env:
    """Check that a dataset of mfrl can hold an environment's episodes. Otherwise the environment is closed.

    Raises:
        EnvError: its actions are not continuous and bounded.
        CollectError: it has no time limit.
    """
    with ExitStack() as stack:
        stack.callback(env.close)
        minari_envs.action_bounds(env.action_space)
        assert env.spec is not None
        if env.spec.max_episode_steps is None:
            raise CollectError(f"{env.spec.id} has no time limit: set one with episode_steps=")
        stack.pop_all()
    return env
