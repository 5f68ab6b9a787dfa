"""Headless rendering: which of MuJoCo's OpenGL back ends works on this machine.

MuJoCo reads ``MUJOCO_GL`` once, when it is imported. Frames are therefore rendered in freshly spawned worker
processes (see :mod:`mfrl.envs.vector`), which inherit the variable set here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mfrl.errors import EnvError
from mfrl.system.processes import environment

_TRIAL = "import mujoco; mujoco.GLContext(16, 16).make_current()"


def choose_backend() -> str:
    """The back end for headless rendering, also left in ``MUJOCO_GL`` for the processes started from here.

    A value the user has set is kept. Otherwise a GPU's EGL comes first, then OSMesa, then EGL in software.
    Each is tried in a process of its own (half a second), for in a container a library may load and not work.

    Raises:
        EnvError: nothing renders here; the message names the packages that would.
    """
    if chosen := os.environ.get("MUJOCO_GL"):
        return chosen
    for backend in ("egl", "osmesa") if _has_gpu() else ("osmesa", "egl"):
        if _renders(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    raise EnvError(
        "no OpenGL library can render without a display here. Install Debian's libosmesa6, or "
        "libegl1 with libgl1-mesa-dri (apt-get install libosmesa6), or set MUJOCO_GL to a back end that works"
    )


def _has_gpu() -> bool:
    """Whether there is the device file of a GPU, as NVIDIA's driver makes it or any other."""
    return any(next(Path("/dev").glob(name), None) for name in ("nvidia[0-9]*", "dri/renderD*"))


def _renders(backend: str) -> bool:
    # PyOpenGL has a switch of its own, which MuJoCo refuses when it disagrees.
    with environment({"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": None}):
        return subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, check=False).returncode == 0
