"""OGBench's environments: their names and their construction."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mfrl.errors import EnvError, did_you_mean

if TYPE_CHECKING:
    import gymnasium

FRAME_SIZE = 256
#: How the names of the environments begin in which OGBench's experts were trained.
ONLINE = "online-"
#: After so many steps the environments of directional locomotion draw a new direction, as in the training of OGBench's
#: experts (data_gen_scripts/online_env_utils.py).
_NEW_DIRECTION = {"online-ant-xy-v0": 100, "online-humanoid-xy-v0": 200}


def make(env_id: str, *, render: bool = False, frames: int = 1, **kwargs: Any) -> gymnasium.Env:
    """Build an environment by its gymnasium name.

    Args:
        render: prepare it for ``env.render()``, in 256 x 256 pixels and without shadows, which take four fifths of
            the time in software. Pixel observations stay as the benchmark defines them. ``MUJOCO_GL`` must be set
            before ``mujoco`` is first imported, for instance by :func:`mfrl.envs.rendering.choose_backend`.
        frames: number of images that make a pixel observation, uint8 ``(frames, height, width, channels)``, the oldest
            first. An episode's first image is repeated.
        kwargs: arguments of ``gymnasium.make``.

    Raises:
        EnvError: there is no such environment; the message has similar names.
    """
    import gymnasium
    import ogbench.online_locomotion  # noqa: F401 - registers its environments, and ogbench the others

    if env_id not in (known := gymnasium.registry.keys() | _NEW_DIRECTION.keys()):
        raise EnvError(f"there is no environment {env_id!r}{did_you_mean(env_id, known)}")
    for_video = render and not observes_pixels(env_id)
    if for_video:
        kwargs = {"width": FRAME_SIZE, "height": FRAME_SIZE} | kwargs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered")  # OGBench's float64 bounds of +-1
        # dm_control looks for a display when imported; nothing here draws on one.
        warnings.filterwarnings("ignore", message=".*DISPLAY environment variable")
        if env_id.startswith(ONLINE):
            env = _make_online(env_id, render=render, **kwargs)
        else:
            env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
        remove_description(env)
        _keep_one_action_space(env.unwrapped)
    if for_video:
        env.reset()  # the manipulation scenes compile their model at the first reset
        scene: Any = env.unwrapped
        scene.model.light_castshadow[:] = False
    if observes_pixels(env_id):
        # The stacking asks for the space at every step, and the manipulation environments render whenever asked.
        env.observation_space = env.observation_space
        env = gymnasium.wrappers.FrameStackObservation(env, frames, padding_type="reset")
    return env


def _make_online(env_id: str, *, render: bool, **kwargs: Any) -> gymnasium.Env:
    """An environment of ``ogbench.online_locomotion``; ``-xy`` in its name puts the wrapper of directions around it."""
    import gymnasium
    from ogbench.online_locomotion import wrappers

    spec = copy.copy(gymnasium.spec(env_id.replace("-xy", "")))
    if render:
        kwargs |= {"render_mode": "rgb_array"}
    elif env_id.startswith("online-antball"):
        spec.entry_point = _unseen_ant_ball
    env = gymnasium.make(spec, disable_env_checker=True, **kwargs)
    if env_id not in _NEW_DIRECTION:
        return env
    directed = wrappers.DMCHumanoidXYWrapper if "humanoid" in env_id else wrappers.GymXYWrapper
    return directed(env, resample_interval=_NEW_DIRECTION[env_id])


def _unseen_ant_ball(**kwargs: Any) -> gymnasium.Env:
    """OGBench's ant with a ball where nothing is rendered: its constructor places the camera of a frame it renders."""
    from ogbench.online_locomotion.ant_ball import AntBallEnv

    class Unseen(AntBallEnv):  # type: ignore[misc]  # which has no types
        def render(self) -> None:
            self.mujoco_renderer.viewer = SimpleNamespace(cam=SimpleNamespace(lookat=[0.0, 0.0, 0.0]))

    return Unseen(**kwargs)


def registers(gym_id: str) -> bool:
    """Whether it is a name of OGBench, whose environments are built with more care (:func:`make`)."""
    import gymnasium
    import ogbench.online_locomotion  # noqa: F401 - registers its environments, and ogbench the others

    name = gym_id.removeprefix("ogbench:")  # the package that registers it, as gymnasium writes it
    if name in _NEW_DIRECTION:
        return True
    return name in gymnasium.registry and str(gymnasium.registry[name].entry_point).startswith("ogbench.")


def remove_description(env: gymnasium.Env) -> None:
    """Delete the XML file that a maze leaves in /tmp when it is built; the simulator has loaded it by then."""
    path, core = getattr(env.unwrapped, "fullpath", None), env.unwrapped
    drawn = hasattr(core, "maze_map") or hasattr(core, "get_agent_ball_xy")
    if drawn and path is not None and Path(path).parent == Path(tempfile.gettempdir()):
        Path(path).unlink(missing_ok=True)


def observes_pixels(env_id: str) -> bool:
    """Whether observations are images, so that every step renders."""
    return env_id.startswith("visual-")


def _keep_one_action_space(core: gymnasium.Env) -> None:
    # The manipulation environments build a new action space at every access, seeded by the operating system,
    # and their reset takes random steps with it, which leave traces in the solver's warm start and in the
    # controls: no seed would fix an episode. With one lasting space, env.action_space.seed does.
    if core.action_space is not core.action_space:
        core.__class__ = type(type(core).__name__, (type(core),), {"action_space": core.action_space})
