"""From a composed configuration to objects."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from mfrl.errors import ConfigError, MfrlError, did_you_mean, refused_by_system, require
from mfrl.paths import literal

CONFIG_DIR = next(
    folder for folder in (Path(__file__).parent / "conf", Path(__file__).parents[2] / "conf") if folder.is_dir()
)

# What may change when a run goes on with resume=: its length, how it is watched, and what leaves its numbers alone but
# for rounding, the accelerator among it.
RESUMABLE = (
    "resume",
    "updates",
    "chunk",
    "compile",
    "tf32",
    "accelerator",
    "threads",
    "data_dir",
    "data.cache",
    "data.memory_gib",
    "trust",
    "log",
    "eval",
    "checkpoint",
)
# Of these, what a run is judged by: existing=continue, where nobody asked for a change, takes them as they were.
JUDGED_BY = ("updates", "eval.every", "eval.episodes", "eval.interim_episodes", "eval.samples", "eval.seed")
BOOKKEEPING = ("run_dir", "existing", "jobs", "pack")  # where a run lies and how it came about


def among(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``names`` or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def build(node: DictConfig) -> Any:
    """`hydra.utils.instantiate`, but an error meant for the user arrives as itself and not wrapped in Hydra's.

    Raises:
        ConfigError: a ``_target_`` that does not exist, or that has no such argument.
    """
    plain = OmegaConf.to_container(node, resolve=True)
    check_targets(plain, str(node._get_full_key(None)))
    try:
        return instantiate(_as_values(plain))
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


def arguments_of(found: Any) -> dict[str, str] | None:
    """What a class or function can be called with, and how that is annotated; None: anything.

    A class's ``**settings`` are those of the class it derives from, and the fields of its ``Settings``.
    """
    called = [found]
    if inspect.isclass(found):
        called = [vars(base)["__init__"] for base in inspect.getmro(found) if "__init__" in vars(base)]
    settings = getattr(found, "Settings", None)
    known = {field.name: str(field.type) for field in fields(settings)} if is_dataclass(settings) else {}
    for function in called:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # written in C
            return None
        named = {p.name: str(p.annotation) for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        known = named | known
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    else:
        if not is_dataclass(settings):
            return None
    return {name: annotation for name, annotation in known.items() if name != "self"}


def _as_values(node: Any) -> Any:
    """Resolved settings as Hydra is to build them: it resolves once more, twice, and a path may hold ``${``."""
    if isinstance(node, dict):
        return {key: _as_values(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_as_values(value) for value in node]
    return literal(literal(node)) if isinstance(node, str) else node


def build_algorithm(cfg: DictConfig, spec: Any) -> Any:
    """The algorithm of a configuration that the user composed, for data of the given spec.

    One out of a checkpoint is built by :class:`mfrl.saved.Saved`.
    """
    return build(cfg.algo)(spec=spec)


def refuse_settings_of_another_algorithm(cfg: DictConfig, overrides: list[str]) -> None:
    """An experiment sets what one algorithm has; chosen together with another algorithm, it may set too much.

    Args:
        cfg: the composed configuration.
        overrides: what the user gave, to name the one that sets it.

    Raises:
        ConfigError: naming the setting, the algorithm and who sets it.
    """
    if (known := settings_of(cfg.algo)) is None:
        return
    for name, value in cfg.algo.items():
        if name.startswith("_"):
            continue
        if name not in known:
            raise ConfigError(
                f"algo.{name}, set by {_given_by(f'algo.{name}', overrides)}, is no setting of "
                f"algo={cfg.algo_name}{did_you_mean(name, known)}; take it out with  {shlex.quote(f'~algo.{name}')}"
            )
        kind, _, optional = known[name].partition(" | ")
        if kind in _NUMBERS and not (optional and value is None):
            require(f"algo.{name}", type(value) in _NUMBERS[kind], value, f"a number ({known[name]})")


def refuse_settings_of_another_evaluation(cfg: DictConfig, overrides: list[str]) -> None:
    """As :func:`refuse_settings_of_another_algorithm`, for what an experiment says of its evaluation.

    Raises:
        ConfigError: naming the settings, who sets them, and how to take them out.
    """
    if (settings := settings_of(cfg.eval)) is None:
        return
    known = settings.keys() - {"spec", "run_dir", "progress"}
    foreign = [f"eval.{name}" for name in cfg.eval if not name.startswith("_") and name not in known]
    if foreign:
        are, which = ("are no settings", "them") if len(foreign) > 1 else ("is no setting", "it")
        raise ConfigError(
            f"{', '.join(foreign)}, set by {_given_by(foreign[0], overrides)}, {are} of the chosen evaluation "
            f"(eval.{', eval.'.join(sorted(known))} are); take {which} out with  {shlex.join(f'~{x}' for x in foreign)}"
        )


_NUMBERS = {"int": (int,), "float": (int, float)}  # True is no number


def settings_of(node: DictConfig) -> dict[str, str] | None:
    """What the class that a node builds can be called with, see :func:`arguments_of`."""
    return arguments_of(target(node._target_, f"{node._get_full_key(None)}._target_"))


def _given_by(key: str, overrides: list[str]) -> str:
    given = [text for text in overrides if text.lstrip("+").startswith((f"{key}=", "experiment="))]
    return " or ".join(given) or "the configuration"
