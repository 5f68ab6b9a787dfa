"""From settings to the classes and functions that they name, and what those can be called with."""

from __future__ import annotations

import logging
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from mfrl.errors import ConfigError, MfrlError, did_you_mean, refused_by_system
from mfrl.runs.arguments import arguments_of
from mfrl.system.paths import literal


def build(node: DictConfig, plain: bool = False) -> Any:
    """`hydra.utils.instantiate`, but an error meant for the user arrives as itself and not wrapped in Hydra's.

    Args:
        plain: lists and dictionaries are handed over as Python's own, as others' classes expect them.

    Raises:
        ConfigError: a ``_target_`` that does not exist, or that has no such argument.
    """
    settings = OmegaConf.to_container(node, resolve=True)
    check_targets(settings, str(node._get_full_key(None)))
    try:
        return instantiate(_as_values(settings), **({"_convert_": "all"} if plain else {}))
    except InstantiationException as error:
        if isinstance(error.__cause__, MfrlError) or (error.__cause__ and refused_by_system(error.__cause__)):
            raise error.__cause__ from None
        raise


def check_targets(node: Any, key: str) -> None:
    """Refuse classes that do not exist and arguments that they do not have, in a group of settings and below it.

    Args:
        node: resolved, as plain data.
        key: its dotted name.

    Raises:
        ConfigError: with near names.
    """
    if isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, f"{key}.{index}")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        known = arguments_of(target(node["_target_"], f"{key}._target_"))
        for name in node:
            if known is not None and name not in known and name not in _OF_HYDRA:
                raise ConfigError(
                    f"{key}.{name} is no setting of {node['_target_']}{did_you_mean(name, known)}; its settings are "
                    f"{', '.join(sorted(known))}"
                )
    for name, value in node.items():
        check_targets(value, f"{key}.{name}")


# What cannot be found is raised, and told once; Hydra would log it as well.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)
_OF_HYDRA = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")


def target(name: Any, key: str) -> Any:
    """The class or function that a ``_target_`` names.

    Raises:
        ConfigError: there is none of that name; with near ones.
    """
    try:
        return get_object(name)
    except Exception as error:  # of importing a module of the user's, too
        module, _, last = str(name).rpartition(".")
        try:
            near = did_you_mean(last, [part for part in vars(get_object(module)) if not part.startswith("_")])
        except Exception:
            near = ""
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"{key}={name} cannot be found{near}: {reason}") from error


def _as_values(node: Any) -> Any:
    """Resolved settings as Hydra is to build them: it resolves once more, twice, and a path may hold ``${``."""
    if isinstance(node, dict):
        return {key: _as_values(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_as_values(value) for value in node]
    return literal(literal(node)) if isinstance(node, str) else node


def settings_of(node: DictConfig) -> dict[str, str] | None:
    """What the class that a node builds can be called with, see :func:`arguments_of`."""
    return arguments_of(target(node._target_, f"{node._get_full_key(None)}._target_"))
