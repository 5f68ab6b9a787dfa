"""Environments that Minari datasets were recorded in: rebuilt from their description, checked before anything runs.

A description is the JSON of a gymnasium ``EnvSpec``. It names classes (``entry_point``, ``additional_wrappers``), so
one out of somebody's file could name any; only those of known packages are built. Which classes a checkpoint's
configuration may name is another question, see :mod:`mfrl.runs.saved`: those are mfrl's own and can be listed one by
one, while environments are as many as there are in the packages of others, and are known by what they derive from.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mfrl.envs.ogbench import remove_description
from mfrl.errors import EnvError, did_you_mean

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec as GymSpec
    from gymnasium.spaces import Box, Space

#: Packages whose environments and wrappers a dataset may name; ``trust=[...]`` adds others.
KNOWN_PACKAGES = ("gymnasium", "gymnasium_robotics", "ogbench")
#: What of mfrl a dataset may name: other classes here write files.
OURS = ("mfrl.envs.d4rl:AdroitLabels",)
#: Functions that a known package registers as environments, and that build nothing else.
_FACTORIES = ("ogbench.locomaze.maze:make_maze_env",)
#: Wrappers of gymnasium that do more than the dataset may ask for.
_REFUSED = {"RecordVideo": "write files", "HumanRendering": "open a window"}
#: Fields of older gymnasium versions, without meaning now.
_OBSOLETE = ("autoreset", "apply_api_compatibility")


def make(
    gym_spec: str, observation_keys: Sequence[str] | None, trust: tuple[str, ...] = (), *, render: bool = False
) -> gymnasium.Env:
    """Build an environment whose observations are one vector and whose actions are in [-1, 1].

    Args:
        gym_spec: see :func:`read_spec`.
        observation_keys: see :func:`vector_keys`.
        trust: further packages whose classes may be built.
        render: prepare it for ``env.render()``.

    Raises:
        EnvError: it names foreign classes, is not installed, or has other spaces.
    """
    from gymnasium.spaces import Box

    env = make_as_recorded(gym_spec, trust, render=render)
    low, high = action_bounds(env.action_space)
    keys = vector_keys(env.observation_space, observation_keys)
    env = _as_vector(env, keys)
    space = env.action_space
    assert isinstance(space, Box)
    if (low != -1.0).any() or (high != 1.0).any() or not np.can_cast(np.float32, space.dtype):
        from gymnasium.wrappers import TransformAction

        scaled = Box(-1.0, 1.0, space.shape, np.float32)
        env = TransformAction(env, lambda action: to_bounds(action, space), scaled)
    return env


def make_as_recorded(gym_spec: str, trust: tuple[str, ...] = (), *, render: bool = False) -> gymnasium.Env:
    """Build an environment with the spaces it was recorded with. Raises as :func:`make` does."""
    import gymnasium

    spec = read_spec(gym_spec, trust)
    spec.kwargs = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    mode: dict[str, Any] = {"render_mode": "rgb_array"} if render else {}
    try:
        env = gymnasium.make(spec, disable_env_checker=True, **mode)
    except Exception as error:  # a constructor of any environment, with arguments out of a file
        raise EnvError(f"environment {spec.id} cannot be built: {_reason(error)}") from error
    remove_description(env)
    if left := getattr(env.unwrapped, "tmp_xml_file_path", None):  # a maze's, loaded by now and never removed
        Path(left).unlink(missing_ok=True)
    return env


def _reason(error: BaseException) -> str:
    """The message of an error. An error without a message, as of a bare ``assert``, gives its place in the code."""
    if str(error):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    versions = {}
    for package in ("gymnasium", "gymnasium-robotics", "mujoco"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    installed = ", ".join(f"{package} {version}" for package, version in versions.items())
    return (
        f"{type(error).__name__} without a word at {place.filename}, line {place.lineno}: {place.line}. It may not go "
        f"with what is installed ({installed})"
    )


def write_spec(
    env_id: str,
    kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    wrappers: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The description of a registered environment; building it looks the name up.

    Args:
        env_id: e.g. ``AntMaze_UMaze-v4``; ``package:Name-v0`` imports the package first.
        kwargs: arguments of the environment, which replace the registered ones.
        max_episode_steps: None: as registered.
        wrappers: with ``name``, ``entry_point`` and ``kwargs``, innermost first.
    """
    return json.dumps(
        {
            "id": env_id,
            "kwargs": dict(kwargs or {}),
            "max_episode_steps": max_episode_steps,
            "additional_wrappers": [dict(wrapper) for wrapper in wrappers],
        }
    )


def change_spec(
    gym_spec: str,
    kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    wrappers: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A copy of a description with other arguments, another time limit or further outer wrappers."""
    fields = json.loads(gym_spec)
    fields["kwargs"] = {**(fields.get("kwargs") or {}), **(kwargs or {})}
    fields["additional_wrappers"] = [*(fields.get("additional_wrappers") or ()), *map(dict, wrappers)]
    if max_episode_steps is not None:
        fields["max_episode_steps"] = max_episode_steps
    return json.dumps(fields)


def read_spec(gym_spec: str, trust: tuple[str, ...] = ()) -> GymSpec:
    """Parse a gymnasium ``EnvSpec`` and refuse one that names unknown environments or wrappers.

    Args:
        gym_spec: JSON of an ``EnvSpec``. Without ``entry_point``, ``id`` names an environment in gymnasium's registry,
            and the other fields change it.
        trust: packages allowed besides ``KNOWN_PACKAGES``.

    Raises:
        EnvError: the message names the class or the field.
    """
    from gymnasium.envs.registration import EnvSpec, WrapperSpec

    try:
        fields = json.loads(gym_spec)
        wrappers = tuple(WrapperSpec(**wrapper) for wrapper in fields.pop("additional_wrappers", None) or ())
        if not isinstance(fields["id"], str):
            raise TypeError("its id is no text")
        if fields.get("entry_point") is None:
            fields = _registered(fields, trust)
        fields = {name: value for name, value in fields.items() if name not in _OBSOLETE}
        if fields.get("max_episode_steps") is not None:
            fields["max_episode_steps"] = int(fields["max_episode_steps"])  # some datasets hold 1000000.0
        spec = EnvSpec(**{**fields, "vector_entry_point": None})
    except EnvError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EnvError(f"not the description of a gymnasium environment ({error}): {gym_spec[:200]}") from error
    spec.additional_wrappers = wrappers
    _check_class(spec.entry_point, "Env", trust)
    for wrapper in wrappers:
        _check_class(wrapper.entry_point, "Wrapper", trust)
    return spec


def _registered(fields: dict[str, Any], trust: tuple[str, ...]) -> dict[str, Any]:
    import gymnasium

    package, _, name = fields["id"].rpartition(":")
    if package:
        _check_package(package, fields["id"], trust)
        _import(package, fields["id"])
    else:
        import ogbench  # noqa: F401 - registers its environments

        register_robotics()
    if name not in gymnasium.registry:
        raise EnvError(f"there is no environment {name!r}{did_you_mean(name, gymnasium.registry)}")
    known = gymnasium.registry[name]
    limit = fields.get("max_episode_steps")
    return {
        "id": name,
        "entry_point": known.entry_point,
        "max_episode_steps": known.max_episode_steps if limit is None else limit,
        "order_enforce": known.order_enforce,
        "kwargs": {**known.kwargs, **(fields.get("kwargs") or {})},
    }


def register_robotics() -> None:
    """Import gymnasium-robotics, which registers its environments.

    Versions up to 1.4.2 print a notice that their Adroit rewards changed. This function suppresses it, because
    :mod:`mfrl.envs.d4rl` restores the rewards and docs/d4rl.md explains them.
    """
    try:
        from farama_notifications import notifications
    except ImportError:
        pass
    else:
        ours = notifications.get("gymnasium_robotics", {})
        for version in [version for version, text in ours.items() if "AdroitHand" in text]:
            del ours[version]
    import gymnasium_robotics  # noqa: F401


def _check_class(entry_point: Any, base: str, trust: tuple[str, ...]) -> None:
    """Refuse a name outside of the allowed packages without importing it, and anything that is not such a class."""
    import gymnasium

    if isinstance(entry_point, type):
        entry_point = f"{entry_point.__module__}:{entry_point.__qualname__}"
    if not isinstance(entry_point, str) or entry_point.count(":") != 1:
        raise EnvError(f"{entry_point!r} is no module:class")
    module, name = entry_point.split(":")
    _check_package(module, entry_point, trust)
    found = getattr(_import(module, entry_point), name, None)
    if entry_point in _FACTORIES and base == "Env":
        return
    # Defined there, not imported there; and no function, which could build or import anything.
    if not inspect.isclass(found) or not issubclass(found, getattr(gymnasium, base)):
        raise EnvError(f"{entry_point!r} is no gymnasium {base}")
    _check_package(found.__module__, entry_point, trust)
    if found.__name__ in _REFUSED:
        raise EnvError(f"{entry_point!r} would {_REFUSED[found.__name__]}; a dataset must not ask for it")


def _check_package(module: str, name: str, trust: tuple[str, ...]) -> None:
    package = module.split(".")[0]
    if package not in (*KNOWN_PACKAGES, *trust) and name not in OURS:
        raise EnvError(
            f"the environment asks for {name!r}, which is of none of {', '.join(KNOWN_PACKAGES)}. "
            f"If you trust the file and the package, say so: trust=[{package}]"
        )


def _import(module: str, name: str) -> Any:
    import gymnasium

    try:
        if module.split(".")[0] == "gymnasium_robotics":
            register_robotics()
        return importlib.import_module(module)
    except gymnasium.error.Error as error:  # gymnasium's own say what to install
        raise EnvError(f"{name!r} cannot be imported: {error}") from error
    except ImportError as error:
        package = module.split(".")[0]
        raise EnvError(f"{name!r} cannot be imported ({error}): install the package {package}, all of it") from error


def action_bounds(space: Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds ``(action_dim,)`` of a vector of continuous actions.

    Raises:
        EnvError: for any other space.
    """
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or space.dtype.kind != "f" or len(space.shape) != 1:
        raise EnvError(f"actions are {space}, but policies here need a vector of continuous actions (Box)")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise EnvError(f"actions are {space}, but need finite bounds, which become -1 and 1")
    return low, high


def to_bounds(actions: np.ndarray, space: Box) -> np.ndarray:
    """Actions ``(..., action_dim)`` from [-1, 1] to the bounds of a space, in its type.

    -1 becomes the lower bound exactly, 1 the upper one, and no rounding leads out of them.
    """
    low, high = space.low, space.high
    a = np.asarray(actions, np.result_type(space.dtype, np.float64))
    scaled = 0.5 * (1.0 - a) * low + 0.5 * (1.0 + a) * high
    return np.clip(scaled.astype(space.dtype), low, high)


def vector_keys(space: Space[Any], wanted: Sequence[str] | None) -> tuple[str, ...] | None:
    """The entries of a dictionary observation that make up the vector, in their order.

    They are ``wanted`` in its order, or else all entries in alphabetical order. Entries must be Boxes of numbers;
    nested dictionaries, tuples and images are refused. Observations that are no dictionary give None.

    Raises:
        EnvError: the message names the entry.
    """
    from gymnasium.spaces import Dict

    if not isinstance(space, Dict):
        if wanted:
            raise EnvError(f"observation_keys={list(wanted)}, but observations are no dictionary: {space}")
        _check_numbers(space, "observations")
        return None
    keys = tuple(wanted) if wanted else tuple(sorted(space.spaces))
    for key in keys:
        if key not in space.spaces:
            known = ", ".join(space.spaces)
            raise EnvError(f"observations have no entry {key!r}{did_you_mean(key, space.spaces)}; known: {known}")
        _check_numbers(space.spaces[key], f"observation entry {key!r}")
    if len(set(keys)) < len(keys):
        raise EnvError(f"observation_keys={list(keys)} names an entry twice")
    return keys


def _check_numbers(space: Space[Any], what: str) -> None:
    from gymnasium.spaces import Box

    if not isinstance(space, Box):
        raise EnvError(f"{what} are {space}, but must be a Box of numbers; choose others with observation_keys=[...]")
    if space.dtype == np.uint8 and len(space.shape) >= 2:
        raise EnvError(f"{what} are images {space.shape}; of images only OGBench's can be read")


def vector_parts(whole: Any, keys: Sequence[str] | None) -> list[Any]:
    """The entries of an observation, or of its space, that make up the vector."""
    return [whole] if keys is None else [whole[key] for key in keys]


def to_vector(observation: Any, keys: Sequence[str] | None, rows: int | None = None) -> np.ndarray:
    """Observations as float32 vectors ``(n,)``, or ``(rows, n)`` of as many, entry after entry.

    Raises:
        ValueError: the entries do not have that many rows.
    """
    shape = (-1,) if rows is None else (rows, -1)
    parts = vector_parts(observation, keys)
    return np.concatenate([np.asarray(part, np.float32).reshape(shape) for part in parts], axis=-1)


def _as_vector(env: gymnasium.Env, keys: Sequence[str] | None) -> gymnasium.Env:
    from gymnasium.spaces import Box
    from gymnasium.wrappers import TransformObservation

    size = sum(math.prod(part.shape) for part in vector_parts(env.observation_space, keys))
    space = Box(-np.inf, np.inf, (size,), np.float32)
    return TransformObservation(env, lambda observation: to_vector(observation, keys), space)


def refuse_other_spaces(
    env: gymnasium.Env,
    keys: Sequence[str] | None,
    shapes: Sequence[Sequence[int]],
    low: Sequence[float],
    high: Sequence[float],
) -> None:
    """Refuse to evaluate in an environment whose observations or actions are not the dataset's.

    Args:
        env: as recorded.
        keys: from :func:`vector_keys`.
        shapes: in the dataset, of the observation's entries of these keys, or of the one vector.
        low, high: bounds ``(action_dim,)`` of the dataset's actions.

    Raises:
        EnvError: the message says what differs.
    """
    from gymnasium.spaces import Dict

    name = env.spec.id if env.spec else env
    bounds = action_bounds(env.action_space)
    if keys is None and isinstance(env.observation_space, Dict):
        raise EnvError(f"{name} observes {env.observation_space}, the dataset holds one vector")
    vector_keys(env.observation_space, keys)
    for key, there, shape in zip(keys or (None,), vector_parts(env.observation_space, keys), shapes, strict=True):
        if there.shape != tuple(shape):
            what = "observations" if key is None else f"observation entry {key!r}"
            raise EnvError(f"{what} of {name} have shape {there.shape}, in the dataset {tuple(shape)}")
    for there, here, what in zip(bounds, (low, high), ("low", "high"), strict=True):
        if len(there) != len(here) or not np.allclose(there, here):
            raise EnvError(f"actions of {name} are bounded ({what}) by {there}, in the dataset by {here}")
