"""What the data say against what the simulators do: recorded states are restored and recorded actions stepped again.

A transition is right when the environment, put into its state, observes what it observes, answers its action with its
reward, its success and its end, and arrives where the next observation says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import gymnasium
import minari
import mujoco
import numpy as np
import ogbench
import pytest
import torch
from minari.data_collector import EpisodeBuffer
from tiny import compose

from mfrl.collect.minari.runner import collect as collect_minari
from mfrl.collect.ogbench.episode import pack
from mfrl.collect.ogbench.runner import collect
from mfrl.data.batch import ACTION_CLIP
from mfrl.data.minari import MinariData
from mfrl.data.ogbench import OGBenchData
from mfrl.envs.minari import register_robotics
from mfrl.envs.spec import EnvSpec
from mfrl.runs.targets import build

State = dict[str, np.ndarray]


class Simulator:
    """A single-task environment of OGBench that can be put into a recorded state."""

    def __init__(self, env_id: str) -> None:
        self.env = EnvSpec(env_id).make()
        self.env.action_space.seed(0)
        self.env.reset(seed=0)  # sets the task's goal, which stays
        self.core = self.env.unwrapped
        self.has_buttons = hasattr(self.core, "_cur_button_states")
        self.on_the_table = hasattr(self.core, "post_step")

    def state(self) -> State:
        """All that a file keeps of a moment, in the simulator's own precision."""
        state = {"qpos": self.core.data.qpos.copy(), "qvel": self.core.data.qvel.copy()}
        return state | ({"button_states": self.core._cur_button_states.copy()} if self.has_buttons else {})

    def restore(self, state: State) -> None:
        self.core.set_state(*(state[name] for name in ("qpos", "qvel", "button_states") if name in state))
        if self.on_the_table:  # they look for success when a step ends and report it in the next one
            self.core.pre_step()
            self.core.post_step()

    def observe(self) -> np.ndarray:
        return self.core.compute_observation() if self.on_the_table else self.core.get_ob()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, float, bool]:
        """The next observation, reward, mask and success."""
        observation, reward, terminated, _, info = self.env.step(action)
        return observation, reward, 1.0 - terminated, bool(info["success"])


# ---- states beside the goal, some of which move into it and some out of it


def body_at_the_goal(sim: Simulator, rng: np.random.Generator) -> State:
    """The agent, or with a ball the ball, about one goal radius from the goal, moving along that radius."""
    state, ball = sim.state(), sim.env.spec.id.startswith("antsoccer")
    at, speed_at = (15, 14) if ball else (0, 0)
    angle, speed = rng.uniform(0, 2 * np.pi), rng.choice([-2.0, 2.0])
    outwards = np.array([np.cos(angle), np.sin(angle)])
    state["qpos"][at : at + 2] = sim.core.cur_goal_xy + rng.uniform(0.7, 1.3) * sim.core._goal_tol * outwards
    state["qvel"][speed_at : speed_at + 2] = speed * outwards
    if ball:
        state["qpos"][:2] = sim.core.cur_goal_xy + np.array([1.5, 1.5])
        state["qpos"][17], state["qpos"][18:22] = 0.25, (1, 0, 0, 0)
    return state


def cubes_at_the_goal(sim: Simulator, rng: np.random.Generator) -> State:
    """Every cube in its place but the first, which slides into it or out of it; drawer, window and buttons fit."""
    state, task, model = sim.state(), sim.core.cur_task_info, sim.core.model
    goal = task["goal"] if "goal" in task else {"block_xyzs": task["goal_xyzs"]}
    for k, xyz in enumerate(goal["block_xyzs"]):
        cube = model.joint(f"object_joint_{k}")
        state["qpos"][cube.qposadr[0] : cube.qposadr[0] + 7] = (*xyz, 1, 0, 0, 0)
        state["qvel"][cube.dofadr[0] : cube.dofadr[0] + 6] = 0.0
    angle = rng.uniform(0, 2 * np.pi)
    outwards = np.array([np.cos(angle), np.sin(angle)])
    cube = model.joint("object_joint_0")
    state["qpos"][cube.qposadr[0] : cube.qposadr[0] + 2] += rng.uniform(0.03, 0.05) * outwards
    state["qvel"][cube.dofadr[0] : cube.dofadr[0] + 2] = rng.choice([-0.8, 0.8]) * outwards
    if sim.has_buttons:
        state["button_states"] = goal["button_states"].copy()
        for joint, at in (("drawer_slide", goal["drawer_pos"]), ("window_slide", goal["window_pos"])):
            state["qpos"][model.joint(joint).qposadr[0]] = at
    return state


def buttons_at_the_goal(sim: Simulator, rng: np.random.Generator) -> State:
    """A button on its way down: pressing it solves the puzzle, or undoes the solution."""
    state, core = sim.state(), sim.core
    pressed = rng.integers(core._num_buttons)
    button = core.model.joint(f"buttonbox_joint_{pressed}")
    state["qpos"][button.qposadr[0]], state["qvel"][button.dofadr[0]] = -0.0199, -1.0
    row, column = np.divmod(np.arange(core._num_buttons), core._num_cols)
    near = abs(row - row[pressed]) + abs(column - column[pressed]) <= 1
    state["button_states"] = core._target_button_states ^ (near & bool(rng.integers(2)))
    return state


def record(sim: Simulator, start: Callable[..., State], episodes: int, steps: int) -> tuple[dict, np.ndarray]:
    """Random actions from such states, as the fields of a file, and the successes as they happened, by row."""
    rng = np.random.default_rng(0)
    packed, happened = [], []
    for _ in range(episodes):
        sim.restore(start(sim, rng))
        rows: dict[str, list] = {"observations": [], "actions": [], "qpos": [], "qvel": []}
        rows |= {"button_states": []} if sim.has_buttons else {}
        for _ in range(steps):
            action = rng.uniform(-1.0, 1.0, sim.env.action_space.shape)
            row = sim.state() | {"observations": sim.observe(), "actions": action}
            for name in rows:
                rows[name].append(row[name])
            *_, success = sim.step(action)
            happened.append(success)
        packed.append(pack(rows))
    return join(packed), np.array(happened)


def join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# ---- files: collected where a scripted policy exists, recorded beside the goal everywhere

COLLECTED = {
    "pointmaze-medium-navigate": {"episodes": 6, "episode_steps": 201},
    "cube-double-play": {"episodes": 2, "episode_steps": 151},
    "scene-play": {"episodes": 2, "episode_steps": 151},
    "puzzle-3x3-play": {"episodes": 2, "episode_steps": 151},
}
FAMILIES = (*COLLECTED, "antmaze-large-navigate", "humanoidmaze-medium-navigate", "antsoccer-arena-navigate")
STARTS = {"cube": cubes_at_the_goal, "scene": cubes_at_the_goal, "puzzle": buttons_at_the_goal}


class Recorded:
    """The files of a dataset for one task, and the simulator of that task.

    ``live`` are rows of the training file and the successes the simulator reported while they were recorded.
    """

    def __init__(self, dataset: str, task: int | None, folder: Path) -> None:
        self.data = OGBenchData(dataset, task, str(folder), normalize=False)
        self.simulator = Simulator(self.data.env.env_id)
        start = STARTS.get(dataset.split("-")[0], body_at_the_goal)
        beside_goal, happened = record(self.simulator, start, episodes=20, steps=12)
        self.fields = beside_goal
        if dataset in COLLECTED:
            collect(dataset, folder, val_episodes=1, workers=1, progress=False, **COLLECTED[dataset])
            with np.load(folder / f"{dataset}-v0.npz") as file:
                self.fields = join([dict(file), beside_goal])
        rows = len(self.fields["terminals"])
        self.live = np.arange(rows - len(happened), rows), happened
        np.savez(folder / f"{dataset}-v0.npz", **self.fields)
        np.savez(folder / f"{dataset}-v0-val.npz", **beside_goal)
        self.data.setup()

    def state(self, row: int) -> State:
        state = {name: self.fields[name][row] for name in ("qpos", "qvel", "button_states") if name in self.fields}
        return {name: x if x.dtype.kind == "i" else x.astype(np.float64) for name, x in state.items()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recorded]:
    return cache(lambda dataset, task=None: Recorded(dataset, task, tmp_path_factory.mktemp("data")))


def replay(dataset: Recorded) -> None:
    """Compare every transition with the simulator.

    Positions: files are float32, and on a table the controller, and with cubes the observation too, see where the
    gripper was one physics step ago, which is not in the file. Both are far below what the wrong action leads to (at
    least 0.2 on a table, 0.007 in a maze), but where a cube tumbles, whose angle then jumps, and in rare collisions.
    """
    data, simulator = dataset.data, dataset.simulator
    batch = [x.numpy() for x in data.train[torch.arange(len(data.train))][:5]]
    answers = []
    for row, action in zip(data.train.starts.tolist(), batch[1], strict=True):
        simulator.restore(dataset.state(row))
        answers.append((simulator.observe(), *simulator.step(action)))
    observed, arrived, rewards, masks, successes = (np.array(x) for x in zip(*answers, strict=True))

    np.testing.assert_array_equal(batch[2], rewards)
    np.testing.assert_array_equal(batch[3], masks)
    np.testing.assert_array_equal(batch[3] == 0.0, successes)
    seen, slack, rare = np.ones(observed.shape[1], bool), *((0.05, 0.05) if simulator.on_the_table else (1e-3, 0.0))
    if simulator.on_the_table:
        seen[18] = False  # the force on the gripper, which only a step computes
    for recorded, simulated in ((batch[0], observed), (batch[4], arrived)):
        far = (np.abs(recorded - simulated)[:, seen] > slack).any(axis=1)
        assert far.mean() <= rare, f"rows {data.train.starts[np.flatnonzero(far)].tolist()}"

    # Without both outcomes, and changes between them within a trajectory, this would prove little.
    follows = np.diff(data.train.starts.numpy()) == 1
    assert np.isin([False, True], successes).all()
    assert (np.diff(successes.astype(int))[follows] > 0).any()
    assert (np.diff(successes.astype(int))[follows] < 0).any()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "cube-double-play" else name for name in FAMILIES]
)
def test_every_transition_is_what_the_simulator_does(name: str, recorded: Callable[..., Recorded]) -> None:
    replay(recorded(name))


@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "name",
    [
        "pointmaze-medium-navigate",
        *("antmaze-large-navigate", "antmaze-giant-navigate"),
        *("humanoidmaze-medium-navigate", "humanoidmaze-large-navigate", "antsoccer-arena-navigate"),
        *("cube-single-play", "cube-double-play", "scene-play", "puzzle-3x3-play", "puzzle-4x4-play"),
    ],
)
def test_every_task_of_every_dataset_is_what_the_simulator_does(
    name: str, task: int, recorded: Callable[..., Recorded]
) -> None:
    replay(recorded(name, task))


@pytest.mark.parametrize("name", FAMILIES)
def test_successes_as_they_happened_are_the_labels_of_the_file(name: str, recorded: Callable[..., Recorded]) -> None:
    """The simulator's state has 64 bits, the file's 32: at no recorded step does the difference decide."""
    rows, happened = recorded(name).live
    np.testing.assert_array_equal(recorded(name).data.train.masks[rows].numpy() == 0.0, happened)


def at_the_edge(sim: Simulator, rng: np.random.Generator) -> tuple[State, float, float]:
    """A state of which one distance is all but at its tolerance; by how much it is not, and what float32 resolves."""
    margin, angle = rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(-10, -4), rng.uniform(0, 2 * np.pi)
    outwards = np.array([np.cos(angle), np.sin(angle)])
    if not sim.on_the_table:
        state, at = body_at_the_goal(sim, rng), 15 if sim.env.spec.id.startswith("antsoccer") else 0
        where, goal, tolerance = slice(at, at + 2), np.array(sim.core.cur_goal_xy), sim.core._goal_tol
    else:
        state, at = cubes_at_the_goal(sim, rng), sim.core.model.joint("object_joint_0").qposadr[0]
        where, goal, tolerance = (
            slice(at, at + 2),
            sim.core.data.mocap_pos[sim.core._cube_target_mocap_ids[0], :2],
            0.04,
        )
        if sim.has_buttons and rng.integers(2):
            state["qpos"][where] = goal
            at = sim.core.model.joint("drawer_slide").qposadr[0]
            where, goal, outwards = slice(at, at + 1), sim.core._target_drawer_pos, np.ones(1)
    state["qpos"][where] = goal + (tolerance + margin) * outwards
    return state, margin, float(np.spacing(np.abs(state["qpos"][where]).astype(np.float32)).max())


@pytest.mark.parametrize(
    "name", ["antmaze-large-navigate", "antsoccer-arena-navigate", "cube-double-play", "scene-play"]
)
def test_rounding_decides_a_label_only_at_the_very_tolerance(
    name: str, recorded: Callable[..., Recorded], tmp_path: Path
) -> None:
    """Files are float32: a state as near to the edge of success as that resolves may be labelled otherwise."""
    simulator, rng = recorded(name).simulator, np.random.default_rng(0)
    states, margins, resolutions = zip(*(at_the_edge(simulator, rng) for _ in range(500)), strict=True)
    successes = []
    for state in states:
        simulator.restore(state)
        successes.append(simulator.step(np.zeros(simulator.env.action_space.shape))[-1])
    fields = {key: x[:1].repeat(501, axis=0) for key, x in recorded(name).fields.items()}
    for key in states[0]:
        fields[key][:500] = [state[key] for state in states]
    fields["terminals"] = np.arange(501) == 500
    for split in ("", "-val"):
        np.savez(tmp_path / f"{name}-v0{split}.npz", **fields)
    data = OGBenchData(name, data_dir=str(tmp_path))
    data.setup()

    labels = data.train.masks[data.train.starts].numpy() == 0.0
    margins, resolutions = np.array(margins), np.array(resolutions)
    np.testing.assert_array_equal(np.array(successes), margins < 0)
    wrong = labels != successes
    assert wrong.any()  # it happens
    assert (np.abs(margins[wrong]) <= resolutions[wrong]).all()


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")
@pytest.mark.parametrize(
    ("name", "task"),
    [*((name, None) for name in FAMILIES), *(("antmaze-large-navigate", task) for task in (1, 2, 3, 4, 5))],
)
def test_every_field_is_that_of_ogbenchs_own_loader(
    name: str, task: int | None, recorded: Callable[..., Recorded]
) -> None:
    folder = recorded(name).data.data_dir
    data = OGBenchData(name, task, str(folder), normalize=False)
    data.setup()
    which = "singletask" if task is None else f"singletask-task{task}"
    env, *theirs = ogbench.make_env_and_datasets(f"{name}-{which}-v0", dataset_dir=str(folder))
    assert env.spec.id == data.env.env_id
    for mine, its in zip((data.train, data.val), theirs, strict=True):
        batch = mine[torch.arange(len(mine))]._asdict()
        del batch["discounts"], batch["next_actions"]  # made here, and not in the files
        batch["terminals"] = (torch.diff(mine.starts, append=torch.tensor([-1])) != 1).float()
        its["actions"] = its["actions"].clip(-1 + ACTION_CLIP, 1 - ACTION_CLIP)
        assert batch.keys() == its.keys()
        for field, values in batch.items():
            np.testing.assert_array_equal(values.numpy(), its[field], err_msg=field)
            assert values.numpy().dtype == its[field].dtype, field


def test_images_have_the_labels_of_the_states_they_show(recorded: Callable[..., Recorded], tmp_path: Path) -> None:
    name = "scene-play"
    fields = {**recorded(name).fields}
    fields["observations"] = np.zeros((len(fields["terminals"]), 64, 64, 3), np.uint8)
    for split in ("", "-val"):
        np.savez_compressed(tmp_path / f"visual-{name}-v0{split}.npz", **fields)
    data = OGBenchData(f"visual-{name}", data_dir=str(tmp_path), frames=3)
    data.setup()
    rows, states = data.train.starts, recorded(name).data.train
    assert torch.equal(rows, states.starts)
    assert torch.equal(data.train.rewards[rows], states.rewards[rows])
    assert torch.equal(data.train.masks[rows], states.masks[rows])


# ---- gymnasium-robotics, through Minari


class Robotics:
    """An environment of gymnasium-robotics that can be put back to any moment, to the last bit.

    What is to be in the datasets is up to those who record them; here the simulator's whole state is kept beside them.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        self.env, self.core = env, env.unwrapped
        self.env.reset(seed=0)
        self.model, self.data = self.core.model, self.core.data

    def state(self) -> dict[str, np.ndarray]:
        physics = np.empty(mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self.model, self.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        placed = {name: getattr(self.model, name).copy() for name in ("body_pos", "body_quat", "site_pos")}
        goal = {"goal": np.array(self.core.goal)} if hasattr(self.core, "goal") else {}
        return {"physics": physics} | placed | goal

    def restore(self, state: dict[str, np.ndarray]) -> None:
        for name in ("body_pos", "body_quat", "site_pos"):
            getattr(self.model, name)[:] = state[name]
        if "goal" in state:
            self.core.goal = state["goal"].copy()
        mujoco.mj_setState(self.model, self.data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)

    def place(self, joint: str, position: float | np.ndarray, velocity: float | np.ndarray = 0.0) -> None:
        at = self.model.joint(joint)
        self.data.qpos[at.qposadr[0] : at.qposadr[0] + np.size(position)] = position
        self.data.qvel[at.dofadr[0] : at.dofadr[0] + np.size(position)] = velocity
        mujoco.mj_forward(self.model, self.data)


UMAZE_GOAL = (-4.0, 4.0)


def ant_at_the_goal(sim: Robotics, rng: np.random.Generator) -> None:
    """The ant about as far from the goal as counts, running into it or out of it."""
    angle, speed = rng.uniform(0, 2 * np.pi), rng.choice([-2.0, 2.0])
    outwards = np.array([np.cos(angle), np.sin(angle)])
    sim.core.goal = np.array(UMAZE_GOAL)
    sim.place("root", sim.core.goal + rng.uniform(0.3, 0.7) * outwards, speed * outwards)


def pen_in_its_place(sim: Robotics, rng: np.random.Generator) -> None:
    """The pen as the target is, or falling out of the hand."""
    if rng.integers(2):
        sim.model.body_quat[sim.core.target_obj_body_id] = sim.model.body_quat[sim.core.obj_body_id]
    else:
        height = sim.data.xpos[sim.core.obj_body_id, 2]
        sim.place("OBJTx", [0.3, 0.0, 0.12 - height])


def door_open(sim: Robotics, rng: np.random.Generator) -> None:
    sim.place("door_hinge", rng.uniform(1.25, 1.45), rng.choice([-3.0, 3.0]))


def nail_driven_in(sim: Robotics, rng: np.random.Generator) -> None:
    sim.place("nail_dir", rng.uniform(0.06, 0.09), rng.choice([-1.0, 1.0]))


def ball_at_the_target(sim: Robotics, rng: np.random.Generator) -> None:
    offset = sim.data.site_xpos[sim.core.target_obj_site_id] - sim.data.xpos[sim.core.obj_body_id]
    sim.place("OBJTx", offset + rng.uniform(-0.06, 0.06, 3))


HANDS = {
    "door-human": lambda core: core.data.site_xpos[core.grasp_site_id] - core.data.site_xpos[core.handle_site_id],
    "hammer-human": lambda core: core.data.site_xpos[core.S_grasp_site_id] - core.data.xpos[core.obj_body_id],
    "relocate-human": lambda core: core.data.site_xpos[core.S_grasp_site_id] - core.data.xpos[core.obj_body_id],
}
ROBOTICS = {
    "antmaze-umaze": ("AntMaze_UMaze-v4", ant_at_the_goal),
    "pen-human": ("AdroitHandPen-v1", pen_in_its_place),
    "door-human": ("AdroitHandDoor-v1", door_open),
    "hammer-human": ("AdroitHandHammer-v1", nail_driven_in),
    "relocate-human": ("AdroitHandRelocate-v1", ball_at_the_target),
}


def composed(*overrides: str) -> MinariData:
    data = build(compose("train", "data.normalize=false", "env.val_fraction=0.0", *overrides).data)
    data.setup()
    return data


def everything(data: MinariData) -> tuple[np.ndarray, ...]:
    """All transitions: observations, actions, rewards, masks, next observations."""
    return tuple(x.numpy() for x in data.train[torch.arange(len(data.train))][:5])


def record_episodes(sim: Robotics, start: Callable[..., None], episodes: int, steps: int) -> tuple[list, list]:
    """Random actions from such states, as Minari's buffers, and the simulator's state before each step."""
    rng, buffers, states = np.random.default_rng(0), [], []
    for _ in range(episodes):
        observation, _ = sim.env.reset(seed=int(rng.integers(1000)))
        start(sim, rng)
        observations, actions, rewards, terminations = [observation], [], [], []
        for _ in range(steps):
            states.append(sim.state())
            actions.append(rng.uniform(-1.0, 1.0, sim.env.action_space.shape).astype(np.float32))
            observation, reward, terminated, _, _ = sim.env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            terminations.append(terminated)
        if isinstance(observation, dict):
            observations = {key: [row[key] for row in observations] for key in observation}
        truncations = [False] * (steps - 1) + [True]
        buffers.append(EpisodeBuffer(None, None, None, observations, actions, rewards, terminations, truncations))
    return buffers, states


@pytest.mark.filterwarnings("ignore::UserWarning:minari", "ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize("name", ROBOTICS)
def test_d4rl_labels_are_what_the_environment_of_evaluation_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded in the package's environment as it is, labelled by our rules, evaluated in our environment."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    gym_id, start = ROBOTICS[name]
    register_robotics()
    recording = Robotics(gymnasium.make(gym_id, disable_env_checker=True))
    buffers, states = record_episodes(recording, start, episodes=10, steps=15)
    minari.create_dataset_from_buffers("mfrl/test/replay-v0", buffers, env=recording.env)
    data = composed(f"env=d4rl/{name}", "env.dataset=mfrl/test/replay-v0")
    _, actions, rewards, masks, next_observations = everything(data)

    simulator, answers, distances = Robotics(data.env.make()), [], []
    for state, action in zip(states, actions, strict=True):
        simulator.restore(state)
        *answer, _, info = simulator.env.step(action)
        answers.append((*answer, info["success"]))
        distances.append(np.linalg.norm(HANDS[name](simulator.core)) if name in HANDS else 0.0)
    arrived, returned, ended, successes = (np.array(x) for x in zip(*answers, strict=True))
    np.testing.assert_allclose(next_observations, arrived, rtol=1e-6, atol=1e-6)
    assert np.isin([False, True], successes).all()
    if name.startswith("antmaze"):
        # D4RL counts an ant as there within 0.5, gymnasium-robotics within 0.45: between them, they differ.
        assert data.goal == UMAZE_GOAL
        distance = np.linalg.norm(next_observations[:, :2] - UMAZE_GOAL, axis=1)
        assert np.isin([False, True], distance <= 0.5).all()
        differ = (distance > 0.45) & (distance <= 0.5)
        np.testing.assert_array_equal(masks, distance > 0.5)
        np.testing.assert_array_equal(rewards, -masks)
        np.testing.assert_array_equal(ended[~differ], masks[~differ] == 0.0)
        np.testing.assert_array_equal(returned[~differ] - 1.0, rewards[~differ])
        assert 0 < differ.sum() < 0.1 * len(differ)
        assert not ended[differ].any()
    else:
        np.testing.assert_allclose(rewards, returned, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(masks, 1.0 - ended)
        # The package adds a tenth of the distance that D4RL subtracts; measured in the simulator, not as our rule does.
        recorded = np.concatenate([buffer.rewards for buffer in buffers])
        np.testing.assert_allclose(rewards, recorded - 0.2 * np.array(distances), rtol=1e-5, atol=1e-5)
        assert np.ptp(rewards) > 5.0, "no bonus was won or lost"
        assert ended.any() == (name == "pen-human"), "D4RL ends an episode where the pen is dropped, and nowhere else"


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_a_collected_point_maze_is_labelled_as_its_simulator_answers(tmp_path: Path) -> None:
    dataset = "mfrl/pointmaze/umaze-v0"
    collect_minari(dataset, tmp_path, episodes=4, episode_steps=150, reference_episodes=0, progress=False)
    data = composed("env=minari/pointmaze-umaze", f"data_dir={tmp_path}")
    _, actions, rewards, masks, next_observations = everything(data)
    recorded = [episode.infos for episode in minari.MinariDataset(tmp_path / dataset / "data").iterate_episodes()]

    env, answers = data.env.make(), []
    env.reset(seed=0)
    core = env.unwrapped
    for info in recorded:
        for k in range(len(info["success"]) - 1):
            core.goal = info["goal"][k]
            core.point_env.set_state(info["qpos"][k], info["qvel"][k])
            observation, reward, terminated, _, now = env.step(actions[len(answers)])
            answers.append(
                (observation, reward, terminated, now["success"], info["success"][k + 1], info["goal"][k + 1])
            )
    arrived, returned, ended, successes, happened, next_goals = (np.array(x) for x in zip(*answers, strict=True))
    assert len(answers) == len(actions)
    np.testing.assert_array_equal(rewards, returned)
    np.testing.assert_array_equal(masks, 1.0 - ended)
    np.testing.assert_array_equal(rewards, successes)
    np.testing.assert_array_equal(successes, happened)
    np.testing.assert_allclose(next_observations[:, :4], arrived[:, :4], atol=1e-4)
    np.testing.assert_allclose(next_observations[:, 4:], next_goals, rtol=1e-6, err_msg="the goal the next step is for")
    assert np.isin([0.0, 1.0], rewards).all()
