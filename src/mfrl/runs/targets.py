"""Builds the classes that settings name in ``_target_``, and knows which arguments these classes take."""

from __future__ import annotations

import logging
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from mfrl.errors import ConfigError, MfrlError, did_you_mean, refused_by_system
from mfrl.runs.arguments import HYDRA_KEYS, arguments_of
from mfrl.system.paths import literal


def plain_settings(node: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A group of settings as Python's own dictionaries and lists.

    Args:
        resolve: replace interpolations by their values; otherwise they stay as written.
    """
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=resolve))


def build(node: DictConfig, plain: bool = False) -> Any:
    """Call `hydra.utils.instantiate`. Errors meant for the user are raised as they are, not wrapped in Hydra's.

    Args:
        plain: pass lists and dictionaries as Python's own, which classes of other packages expect.

    Raises:
        ConfigError: a ``_target_`` does not exist, or does not take one of the arguments.
    """
    settings = plain_settings(node)
    check_targets(settings, str(node._get_full_key(None)))
    try:
        return instantiate(_escaped(settings), **({"_convert_": "all"} if plain else {}))
    except InstantiationException as error:
        if isinstance(error.__cause__, MfrlError) or (error.__cause__ and refused_by_system(error.__cause__)):
            raise error.__cause__ from None
        raise


def check_targets(node: Any, key: str) -> None:
    """Check every ``_target_`` in a group of settings and in the groups below it.

    Args:
        node: the group, resolved, as plain data.
        key: the group's dotted name, for messages.

    Raises:
        ConfigError: a class does not exist, or does not take an argument. The message has similar names.
    """
    if isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, f"{key}.{index}")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        known = arguments_of(find_target(node["_target_"], f"{key}._target_"))
        for name in node:
            if known is not None and name not in known and name not in HYDRA_KEYS:
                raise ConfigError(
                    f"{key}.{name} is no setting of {node['_target_']}{did_you_mean(name, known)}; its settings are "
                    f"{', '.join(sorted(known))}"
                )
    for name, value in node.items():
        check_targets(value, f"{key}.{name}")


# An error that is raised here is printed once. Without this line Hydra would log it a second time.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)


def find_target(name: Any, key: str) -> Any:
    """Import the class or function that a ``_target_`` names.

    Args:
        key: the dotted name of this ``_target_``, for the message.

    Raises:
        ConfigError: nothing has that name. The message has similar names.
    """
    try:
        return get_object(name)
    except Exception as error:  # importing a user's module may raise anything
        module, _, last = str(name).rpartition(".")
        try:
            near = did_you_mean(last, [part for part in vars(get_object(module)) if not part.startswith("_")])
        except Exception:
            near = ""
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"{key}={name} cannot be found{near}: {reason}") from error


def _escaped(node: Any) -> Any:
    """Escape every ``${`` twice: ``instantiate`` resolves interpolations twice, and a path may contain ``${``."""
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(value) for value in node]
    return literal(literal(node)) if isinstance(node, str) else node


def settings_of(node: DictConfig) -> dict[str, str] | None:
    """The arguments of the class that a group of settings builds, see :func:`arguments_of`."""
    return arguments_of(find_target(node._target_, f"{node._get_full_key(None)}._target_"))
