"""The configuration out of a checkpoint: resolved once into plain data, checked, and built as it was checked.

A checkpoint is a file, and a file may come from anybody. What its configuration says becomes objects in three steps,
each of which is the last to see what it is given:

1. :class:`Saved` puts values in the place of references. Of OmegaConf's interpolations it knows those that do no more
   than look up another setting, ``${a.b}`` and ``${oc.select:a.b,null}``; any other (``${oc.env:HOME}``) is refused and
   never evaluated. The result holds nothing that anybody would interpret again.
2. Every ``_target_`` in that result gives way to the class it names, which is one of those below, or of a package that
   the user trusts. No other name is looked up, so none is imported.
3. What stands there then is called. Neither Hydra nor OmegaConf takes part.

Whom to trust, where to write and what to fetch is the user's to say, and is not asked of the file at all.
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfrl.errors import CheckpointError, ConfigError, MfrlError
from mfrl.runs.arguments import arguments_of

if TYPE_CHECKING:
    from omegaconf import DictConfig, ListConfig

#: What a part of the configuration may be, by its name in conf/.
WHOLE = {
    "algo": (
        "mfrl.algorithms.bc.BC",
        "mfrl.algorithms.fbrac.FBRAC",
        "mfrl.algorithms.fql.FQL",
        "mfrl.algorithms.flow_bc.FlowBC",
        "mfrl.algorithms.flow_distilled.FlowDistilled",
        "mfrl.algorithms.gaussian_bc.GaussianBC",
        "mfrl.algorithms.ifql.IFQL",
        "mfrl.algorithms.iql.IQL",
        "mfrl.algorithms.meanflow_bc.MeanFlowBC",
        "mfrl.algorithms.meanflow_distill.MeanFlowDistill",
        "mfrl.algorithms.meanflowql.MeanFlowQL",
        "mfrl.algorithms.rebrac.ReBRAC",
    ),
    "data": (
        "mfrl.data.minari.MinariData",
        "mfrl.data.ogbench.OGBenchData",
        "mfrl.study.toys.ToyData",
    ),
    "eval": (
        "mfrl.callbacks.evaluation.Evaluate",
        "mfrl.callbacks.held_out.EvaluateHeldOut",
        "mfrl.callbacks.samples.EvaluateSamples",
    ),
}
#: What may be inside of it.
INSIDE = {
    "algo": (
        "mfrl.networks.dit.DiT",
        "mfrl.networks.gaussian.GaussianMLP",
        "mfrl.networks.encoder.ImpalaEncoder",
        "mfrl.networks.mean.MeanMLP",
        "mfrl.networks.mlp.MLP",
        "mfrl.networks.critic.StateValue",
        "mfrl.networks.critic.QEnsemble",
        "mfrl.networks.vector_field.VectorField",
        "mfrl.reformulation.Reformulation",
    ),
    "data": (),
    "eval": (),
}
#: Parts that Lightning or the run complete, and which therefore are made in two steps.
_COMPLETED = ("algo", "eval")

_KEY = r"[A-Za-z_][\w-]*(?:\.[\w-]+)*"
_REFERENCE = re.compile(rf"\$\{{\s*(?:(?P<key>{_KEY})|oc\.select:\s*(?P<maybe>{_KEY})\s*(?:,\s*null\s*)?)\s*\}}")
_OPENING = re.compile(r"(\\*)\$\{")
_MOST_NODES = 10_000  # a configuration has some two hundred; references to references could make any number of them
_DEEPEST = 50
_OF_HYDRA = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


class Saved:
    """The configuration of a checkpoint.

    Args:
        config: as the checkpoint has it, interpolations as written.
        trusted: packages of the user whose classes may be built, besides those of mfrl listed above.
    """

    def __init__(self, config: Mapping[str, Any], trusted: tuple[str, ...] = ()) -> None:
        self._config, self._trusted = config, trusted
        self._nodes = 0

    def plain(self, key: str) -> Any:
        """A setting or a group of settings by its dotted key: dictionaries, lists, texts, numbers, truth values, None.

        Args:
            key: e.g. ``eval.seed``; empty for everything.

        Raises:
            CheckpointError: it is missing or is no plain data, or there is an interpolation that is more than a
                reference, or one that leads nowhere or to itself.
        """
        self._nodes = 0
        found, value = self._look_up(key, key, 0) if key else (True, self._value(self._config, "", 0))
        if not found:
            raise CheckpointError(f"the configuration in the checkpoint has no {key}")
        return value

    def group(self, key: str) -> dict[str, Any]:
        """As :meth:`plain`, of settings by name.

        Raises:
            CheckpointError: it is something else.
        """
        node = self.plain(key)
        if not isinstance(node, dict):
            raise CheckpointError(
                f"the configuration in the checkpoint has {node!r} as {key}, which is a group of settings"
            )
        return node

    def check(self, part: str) -> Callable[..., Any]:
        """What builds ``algo``, ``data`` or ``eval``, by calls of classes that are allowed there and of nothing else.

        Returns:
            a function that takes what the run adds to the settings (``spec=`` for ``algo``, for example).

        Raises:
            CheckpointError: naming the class that is not allowed and where it stands.
        """
        node = self.group(part)
        if "_target_" not in node:
            raise CheckpointError(f"the configuration in the checkpoint does not say what to build as {part}")
        if node.get("_partial_", False) is not (part in _COMPLETED):
            raise CheckpointError(
                f"the configuration in the checkpoint has a _partial_ at {part} that mfrl never wrote"
            )
        if "trust" in node:
            node["trust"] = list(self._trusted)
        make = self._checked(node, part, WHOLE[part], INSIDE[part])

        def build(**more: Any) -> Any:
            try:
                return make()(**more) if part in _COMPLETED else make()
            except MfrlError:
                raise
            except Exception as error:  # of any constructor, with arguments out of a file
                raise CheckpointError(f"what the checkpoint describes as {part} cannot be built: {error}") from error

        return build

    def _look_up(self, key: str, asked_at: str, depth: int) -> tuple[bool, Any]:
        """Whether there is such a key, and its value."""
        node: Any = self._config
        for name in key.split("."):
            if isinstance(node, str):  # the way leads through a reference
                node = self._value(node, asked_at, depth + 1)
            if isinstance(node, list) and name.isdigit() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, Mapping) and name in node:
                node = node[name]
            else:
                return False, None
        return True, self._value(node, key, depth + 1)

    def _value(self, node: Any, at: str, depth: int) -> Any:
        """A copy with values in place of references."""
        self._nodes += 1
        if depth > _DEEPEST or self._nodes > _MOST_NODES:
            raise CheckpointError(f"the configuration in the checkpoint refers to itself, or is far too large, at {at}")
        if isinstance(node, Mapping):
            if strange := [key for key in node if not isinstance(key, str)]:
                raise CheckpointError(
                    f"the configuration in the checkpoint has the key {strange[0]!r} at {at}: no text"
                )
            return {key: self._value(value, f"{at}.{key}".lstrip("."), depth + 1) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [self._value(value, f"{at}.{index}", depth + 1) for index, value in enumerate(node)]
        if isinstance(node, str):
            return self._text(node, at, depth)
        if node is None or isinstance(node, bool | int | float):
            return node
        raise CheckpointError(f"the configuration in the checkpoint has a {type(node).__name__} at {at}: no plain data")

    def _text(self, text: str, at: str, depth: int) -> Any:
        if whole := _REFERENCE.fullmatch(text):
            return self._referred(whole, text, at, depth)
        parts, end = [], 0
        while opening := _OPENING.search(text, end):
            slashes = len(opening[1])
            parts.append(text[end : opening.start()] + "\\" * (slashes // 2))
            if slashes % 2:  # escaped: two characters like others
                parts.append("${")
                end = opening.end()
                continue
            reference = _REFERENCE.match(text, opening.end() - 2)
            if reference is None:
                raise CheckpointError(
                    f"{at} in the checkpoint is {text!r}. Of interpolations, a checkpoint may have ${{a.b}} and "
                    "${oc.select:a.b,null}; others are not evaluated, for they could run or read anything here"
                )
            value = self._referred(reference, text, at, depth)
            if isinstance(value, dict | list):
                raise CheckpointError(f"{at} in the checkpoint is {text!r}, and {reference[0]} is no single value")
            parts.append(str(value))
            end = reference.end()
        return "".join([*parts, text[end:]])

    def _referred(self, reference: re.Match[str], text: str, at: str, depth: int) -> Any:
        found, value = self._look_up(reference["key"] or reference["maybe"], at, depth)
        if not found and reference["key"]:
            raise CheckpointError(f"{at} in the checkpoint is {text!r}, and there is no {reference['key']} in it")
        return value

    def _checked(self, node: Any, at: str, here: tuple[str, ...], below: tuple[str, ...]) -> Callable[[], Any]:
        """What makes the object of a node; of data the data themselves."""
        if isinstance(node, list):
            items = [self._checked(value, f"{at}.{index}", below, below) for index, value in enumerate(node)]
            return lambda: [item() for item in items]
        if not isinstance(node, dict):
            return lambda: node
        settings = {
            key: self._checked(value, f"{at}.{key}", below, below)
            for key, value in node.items()
            if key not in _OF_HYDRA
        }
        if "_target_" not in node:
            return lambda: {key: make() for key, make in settings.items()}
        found = self._class(node["_target_"], at, here)
        if node["_target_"] in here:
            _refuse_other_kinds(node, at, found)
        partial, arguments = node.get("_partial_", False), node.get("_args_", [])
        if type(partial) is not bool or not isinstance(arguments, list) or node.get("_recursive_", True) is not True:
            raise CheckpointError(
                f"{at} in the checkpoint has a _partial_ that is no truth value, an _args_ that is no list, or a "
                "_recursive_, which would leave what is below it to be built by others"
            )
        first = self._checked(arguments, f"{at}._args_", below, below)

        def make() -> Any:
            values = {key: make() for key, make in settings.items()}
            return functools.partial(found, *first(), **values) if partial else found(*first(), **values)

        return make

    def _class(self, name: Any, at: str, allowed: tuple[str, ...]) -> type:
        """The class that a ``_target_`` names, which is looked up if it may be built and only then."""
        if not isinstance(name, str):
            raise CheckpointError(f"the checkpoint asks to build {name!r} as {at}, which is no name of a class")
        if name in allowed:
            return pkgutil.resolve_name(name)
        package, *rest = name.split(".")
        if package == "mfrl" or package not in self._trusted or not rest:
            trust = f". If you trust the file and the package, say so: trust=[{package}]"
            raise CheckpointError(
                f"the checkpoint asks to build {name!r} as {at}, which is not a class of mfrl that belongs there"
                + (trust if package != "mfrl" and package.isidentifier() else "")
            )
        try:
            found = pkgutil.resolve_name(name)
        except Exception as error:  # of the user's package
            raise CheckpointError(f"{name}, which the checkpoint has as {at}, cannot be imported: {error}") from error
        # Defined there and not imported there: trusted.module.os.system is not of the trusted package.
        if not inspect.isclass(found) or found.__module__.split(".")[0] not in self._trusted:
            raise CheckpointError(f"{name}, which the checkpoint has as {at}, is not a class of {package}")
        return found


def refuse_incomplete(config: dict[str, Any], path: Path) -> None:
    """Refuse to go on with a configuration without what every run has had from the first on.

    Args:
        config: of the run, as plain data.
        path: of the checkpoint, for the message.

    Raises:
        CheckpointError: naming the setting.
    """
    groups = ("algo", "data", "eval", "log", "checkpoint", "env", "variant")
    holds = {part: isinstance(config.get(part), dict) for part in groups}
    for part in ("env", "variant"):
        holds[f"{part}.name"] = holds[part] and isinstance(config[part].get("name"), str)
    holds["algo_name"] = isinstance(config.get("algo_name"), str)
    holds |= {key: type(config.get(key)) is int and 0 <= config[key] < 2**32 for key in ("seed", "updates")}
    if wrong := [key for key, held in holds.items() if not held]:
        raise CheckpointError(
            f"{path} does not hold the configuration of a run: its {wrong[0]} is missing or of another kind"
        )


#: Annotations whose values are plain data, and their types; of others, classes say themselves what they need.
_KINDS = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "Path": (str,), "None": (type(None),)}


def _refuse_other_kinds(node: dict[str, Any], at: str, found: type) -> None:
    """Refuse a text where a class of mfrl has a number, and the like: it would be noticed in the middle of training.

    Raises:
        CheckpointError: naming the setting.
    """
    for name, annotation in (arguments_of(found) or {}).items():
        parts = annotation.split(" | ")
        if name not in node or not all(part in _KINDS for part in parts):
            continue
        if not any(type(node[name]) in _KINDS[part] for part in parts):  # True is no number
            raise CheckpointError(
                f"the configuration in the checkpoint has {node[name]!r} as {at}.{name}, which is of another kind "
                f"({annotation})"
            )


def settle(cfg: DictConfig) -> None:
    """Put the value in the place of every interpolation that could not be read out of a checkpoint again.

    What the user composes may have any, e.g. ``algo.alpha=${oc.env:ALPHA}``: it is evaluated now, once, and the run
    is recorded with what it was. References to other settings stay as they are written.

    Raises:
        ConfigError: one cannot be evaluated.
    """
    from omegaconf import OmegaConf  # a policy is loaded without it
    from omegaconf.errors import OmegaConfBaseException

    def visit(node: DictConfig | ListConfig, written: Any, at: str) -> None:
        for key, text in written.items() if isinstance(written, dict) else enumerate(written):
            if isinstance(text, dict | list):
                visit(node[key], text, f"{at}{key}.")
            elif isinstance(text, str) and not _readable(text):
                try:
                    value = node[key]
                except OmegaConfBaseException as error:
                    raise ConfigError(f"{at}{key}={text} has no value: {str(error).splitlines()[0]}") from error
                node[key] = _OPENING.sub(lambda m: 2 * m[1] + r"\${", value) if isinstance(value, str) else value

    visit(cfg, OmegaConf.to_container(cfg, resolve=False), "")


def settled(cfg: DictConfig, key: str, value: Any) -> Any:
    """The value of an override, with what the user has evaluated in it as :func:`settle` evaluated it.

    Args:
        cfg: composed with the override, and settled.
        key: of the setting.
        value: as Hydra reads it.
    """
    from omegaconf import OmegaConf

    if isinstance(value, dict):
        return {name: settled(cfg, f"{key}.{name}", part) for name, part in value.items()}
    if isinstance(value, list):
        return [settled(cfg, f"{key}.{index}", part) for index, part in enumerate(value)]
    return OmegaConf.select(cfg, key) if isinstance(value, str) and not _readable(value) else value


def _readable(text: str) -> bool:
    """Whether every interpolation in a text is a reference that :class:`Saved` knows."""
    openings = (match for match in _OPENING.finditer(text) if len(match[1]) % 2 == 0)
    return all(_REFERENCE.match(text, match.end() - 2) for match in openings)
