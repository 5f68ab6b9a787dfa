"""Scripted policies for OGBench's robot arm: cubes, scene and puzzles, observed as states or as images.

`play` follows open-loop plans with smoothed noise. `noisy` follows a closed-loop oracle with white noise and occasional
random actions. The plans and oracles are those of the ogbench package. The environment sets one target after another.
"""

import copy
import warnings
from collections import defaultdict
from typing import Any

import numpy as np

from mfrl.catalogue import GenerationSettings
from mfrl.collect.ogbench.episode import Episode, Rows, environment_seed, pack

# The noise of `noisy` in each action dimension (x, y, z, yaw, gripper), relative to the episode's noise level.
NOISY_SCALE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])


class ManipspaceCollector:
    """Runs whole episodes of one manipulation dataset in one simulator.

    Args:
        settings: the settings of a cube, scene or puzzle dataset.
    """

    def __init__(self, settings: GenerationSettings) -> None:
        import gymnasium

        with warnings.catch_warnings():
            # dm_control warns that there is no display when it is imported. None is needed here.
            warnings.filterwarnings("ignore", message=".*DISPLAY environment variable")
            import ogbench  # noqa: F401 - registers the environments

            self._env = gymnasium.make(
                settings.env_id,
                terminate_at_goal=False,
                mode="data_collection",
                max_episode_steps=settings.episode_steps,
                disable_env_checker=True,
            )
        self._settings = settings
        targets = {k: v for k, v in vars(self._env.unwrapped).items() if k.startswith("_target_")}
        self._initial_targets = copy.deepcopy(targets)
        self._env.reset(seed=0)  # compiles the model
        core: Any = self._env.unwrapped
        model = core.model
        self._damping, self._site_pos = model.dof_damping.copy(), model.site_pos.copy()
        self._oracles = _oracles(settings, self._env)

    def episode(self, rng: np.random.Generator) -> Episode:
        """Run one episode of `settings.episode_steps` rows. :func:`episode_rng` must have been called for it."""
        while True:
            rows = self._attempt(rng)
            if _simulator(self._settings) != "scene" or cube_stays_visible(np.array(rows["qpos"])):
                return pack(rows)

    def _attempt(self, rng: np.random.Generator) -> Rows:
        env, settings = self._env, self._settings
        core: Any = env.unwrapped
        self._forget_last_episode()
        observation, info = env.reset(seed=environment_seed(rng))
        p_stack = rng.uniform(*settings.p_stack)
        noise = rng.uniform(0.0, settings.noise) * NOISY_SCALE
        oracle = self._oracle_for(observation, info)

        rows: Rows = defaultdict(list)
        for _ in range(settings.episode_steps):
            if rng.random() < settings.p_random_action:
                # `env.action_space.sample()` would not be seeded: every access to the space makes a new one.
                action = rng.uniform(-1.0, 1.0, NOISY_SCALE.shape)
            else:
                action = np.asarray(oracle.select_action(observation, info))
                if settings.policy == "noisy":
                    action = action + rng.normal(0.0, noise)
            action = np.clip(action, -1.0, 1.0)
            next_observation, _, _, _, info = env.step(action)
            if oracle.done:
                # As in OGBench's script, `info` of the next action is from before the new target.
                oracle = self._oracle_for(*core.set_new_target(p_stack=p_stack))

            rows["observations"].append(observation)
            rows["actions"].append(action)
            rows["qpos"].append(info["prev_qpos"])
            rows["qvel"].append(info["prev_qvel"])
            if "prev_button_states" in info:
                rows["button_states"].append(info["prev_button_states"])
            observation = next_observation
        return rows

    def _forget_last_episode(self) -> None:
        """Reset what `env.reset` does not: the targets, and the locks in the compiled model."""
        simulator: Any = self._env.unwrapped
        vars(simulator).update(copy.deepcopy(self._initial_targets))
        simulator.model.dof_damping[:] = self._damping
        simulator.model.site_pos[:] = self._site_pos

    def _oracle_for(self, observation: np.ndarray, info: dict[str, Any]) -> Any:
        oracle = self._oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        return oracle


def cube_stays_visible(qpos: np.ndarray) -> bool:
    """OGBench's health check of a scene episode: the cube stays on the table or in the drawer.

    Args:
        qpos: joint positions `(steps, nq)`. Columns 14 to 16 are the cube's position in metres.
    """
    y, z = qpos[:, 15], qpos[:, 16]
    too_far_right = y >= 0.29
    too_far_left = (y <= -0.3) & ((z < 0.06) | (z > 0.08))  # between these heights it lies in the drawer
    return not (too_far_right | too_far_left).any()


def _simulator(settings: GenerationSettings) -> str:
    """`cube`, `scene` or `puzzle`."""
    return settings.env_id.removeprefix("visual-").split("-")[0]


def _oracles(settings: GenerationSettings, env: Any) -> dict[str, Any]:
    """The oracles of the ogbench package, by the target task that each one solves."""
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
    from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    if settings.policy == "play":
        classes = (CubePlanOracle, ButtonPlanOracle, DrawerPlanOracle, WindowPlanOracle)
        options = {"noise": settings.noise, "noise_smoothing": settings.noise_smoothing}
    else:
        classes = (CubeMarkovOracle, ButtonMarkovOracle, DrawerMarkovOracle, WindowMarkovOracle)
        options = {"min_norm": settings.min_norm}

    kinds = dict(zip(("cube", "button", "drawer", "window"), classes, strict=True))
    simulator = _simulator(settings)
    if simulator == "cube":
        return {"cube": kinds["cube"](env=env, **options)}
    if simulator == "puzzle":
        return {"button": kinds["button"](env=env, gripper_always_closed=True, **options)}
    # OGBench's script also passes `max_step=100` to the closed-loop cube oracle, but the oracle's reset sets it to 200.
    return {kind: oracle(env=env, **options) for kind, oracle in kinds.items()}
