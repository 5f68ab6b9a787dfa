"""OGBench's environments: their names, their construction and the geometry of their mazes."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfrl.errors import EnvError, did_you_mean

if TYPE_CHECKING:
    import gymnasium

FRAME_SIZE = 256


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
    import ogbench  # noqa: F401 - registers the environments

    if env_id not in gymnasium.registry:
        raise EnvError(f"there is no environment {env_id!r}{did_you_mean(env_id, gymnasium.registry)}")
    for_video = render and not observes_pixels(env_id)
    if for_video:
        kwargs = {"width": FRAME_SIZE, "height": FRAME_SIZE} | kwargs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered")  # OGBench's float64 bounds of +-1
        # dm_control looks for a display when imported; nothing here draws on one.
        warnings.filterwarnings("ignore", message=".*DISPLAY environment variable")
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


def remove_description(env: gymnasium.Env) -> None:
    """Delete the XML file that a maze leaves in /tmp when it is built; the simulator has loaded it by then."""
    path = getattr(env.unwrapped, "fullpath", None)
    if hasattr(env.unwrapped, "maze_map") and path is not None and Path(path).parent == Path(tempfile.gettempdir()):
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
