"""The configuration in a checkpoint: it is resolved into plain data, checked, and built from what was checked.

A checkpoint may come from anybody, so nothing in it is executed. Its configuration becomes objects in three steps. Each
step works on the result of the step before and does not read the file again:

1. :class:`Saved` replaces references by values. It knows the two interpolations of OmegaConf that only look up another
   setting, ``${a.b}`` and ``${oc.select:a.b,null}``. It refuses all others (``${oc.env:HOME}``) and never evaluates
   them. The result contains no interpolation.
2. Every ``_target_`` in the result is replaced by the class it names. The class must be in the lists below, or in a
   package that the user trusts. No other name is looked up, so no other module is imported.
3. The classes are called. Neither Hydra nor OmegaConf takes part.

The user decides which packages to trust, where to write and what to download. The file cannot change that.
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
from mfrl.runs.arguments import HYDRA_KEYS, arguments_of

if TYPE_CHECKING:
    from omegaconf import DictConfig, ListConfig

#: The classes that may be built for each part of the configuration.
PART_CLASSES = {
    "algo": (
        "mfrl.algorithms.bc.BC",
        "mfrl.algorithms.driftql.DriftQL",
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
        "mfrl.algorithms.sac.SAC",
    ),
    "data": (
        "mfrl.data.minari.MinariData",
        "mfrl.data.ogbench.OGBenchData",
        "mfrl.data.scratch.Scratch",
        "mfrl.study.toys.ToyData",
    ),
    "eval": (
        "mfrl.callbacks.evaluation.Evaluate",
        "mfrl.callbacks.held_out.EvaluateHeldOut",
        "mfrl.callbacks.samples.EvaluateSamples",
    ),
}
#: The classes that may be built inside of each part.
NESTED_CLASSES: dict[str, tuple[str, ...]] = {
    "algo": (
        "mfrl.networks.dit.DiT",
        "mfrl.networks.gaussian.GaussianMLP",
        "mfrl.networks.gaussian.SquashedGaussianMLP",
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
#: Parts that are built with ``_partial_``, because the run adds arguments to them.
_PARTIAL_PARTS = ("algo", "eval")

_KEY = r"[A-Za-z_][\w-]*(?:\.[\w-]+)*"
_REFERENCE = re.compile(rf"\$\{{\s*(?:(?P<key>{_KEY})|oc\.select:\s*(?P<maybe>{_KEY})\s*(?:,\s*null\s*)?)\s*\}}")
_OPENING = re.compile(r"(\\*)\$\{")
_MAX_NODES = 10_000  # a configuration has some two hundred; references to references could make any number of them
_MAX_DEPTH = 50


class Saved:
    """The configuration of a checkpoint.

    Args:
        config: the configuration in the checkpoint, with interpolations as written.
        trusted: packages of the user whose classes may be built too.
    """

    def __init__(self, config: Mapping[str, Any], trusted: tuple[str, ...] = ()) -> None:
        self._config, self._trusted = config, trusted
        self._nodes = 0

    def plain(self, key: str) -> Any:
        """A setting or a group of settings as plain data: dictionaries, lists, strings, numbers, booleans, None.

        Args:
            key: its dotted name, e.g. ``eval.seed``; an empty string gives the whole configuration.

        Raises:
            CheckpointError: the setting is missing or is not plain data, or an interpolation in it is not a reference,
                or refers to a setting that does not exist, or to itself.
        """
        self._nodes = 0
        found, value = self._look_up(key, key, 0) if key else (True, self._resolve(self._config, "", 0))
        if not found:
            raise CheckpointError(f"the configuration in the checkpoint has no {key}")
        return value

    def group(self, key: str) -> dict[str, Any]:
        """A group of settings as plain data, see :meth:`plain`.

        Raises:
            CheckpointError: as :meth:`plain`, or the key names something other than a group.
        """
        node = self.plain(key)
        if not isinstance(node, dict):
            raise CheckpointError(
                f"the configuration in the checkpoint has {node!r} as {key}, which is a group of settings"
            )
        return node

    def check(self, part: str) -> Callable[..., Any]:
        """Check that a part of the configuration calls only classes that are allowed there.

        Args:
            part: ``algo``, ``data`` or ``eval``.

        Returns:
            a function that builds the part. It takes the arguments that the run adds, e.g. ``spec=`` for ``algo``.

        Raises:
            CheckpointError: a class is not allowed. The message names the class and its key. The returned function
                raises it where a constructor fails.
        """
        node = self.group(part)
        if "_target_" not in node:
            raise CheckpointError(f"the configuration in the checkpoint does not say what to build as {part}")
        if node.get("_partial_", False) is not (part in _PARTIAL_PARTS):
            raise CheckpointError(
                f"the configuration in the checkpoint has a _partial_ at {part} that mfrl never wrote"
            )
        if "trust" in node:
            node["trust"] = list(self._trusted)
        make = self._maker(node, part, PART_CLASSES[part], NESTED_CLASSES[part])

        def build(**more: Any) -> Any:
            try:
                return make()(**more) if part in _PARTIAL_PARTS else make()
            except MfrlError:
                raise
            except Exception as error:  # a constructor with arguments from a file may raise anything
                raise CheckpointError(f"what the checkpoint describes as {part} cannot be built: {error}") from error

        return build

    def _look_up(self, key: str, asked_at: str, depth: int) -> tuple[bool, Any]:
        """Whether a dotted key exists, and its value.

        Args:
            asked_at: the key of the setting that refers to it, for messages.
            depth: how many nodes and references lie above.
        """
        node: Any = self._config
        for name in key.split("."):
            if isinstance(node, str):  # the parent itself is a reference
                node = self._resolve(node, asked_at, depth + 1)
            if isinstance(node, list) and name.isdigit() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, Mapping) and name in node:
                node = node[name]
            else:
                return False, None
        return True, self._resolve(node, key, depth + 1)

    def _resolve(self, node: Any, at: str, depth: int) -> Any:
        """A copy of a node with values in place of references.

        Args:
            at: the node's dotted key.
            depth: how many nodes and references lie above.
        """
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise CheckpointError(f"the configuration in the checkpoint refers to itself, or is far too large, at {at}")
        if isinstance(node, Mapping):
            if strange := [key for key in node if not isinstance(key, str)]:
                raise CheckpointError(
                    f"the configuration in the checkpoint has the key {strange[0]!r} at {at}: no text"
                )
            return {key: self._resolve(value, f"{at}.{key}".lstrip("."), depth + 1) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [self._resolve(value, f"{at}.{index}", depth + 1) for index, value in enumerate(node)]
        if isinstance(node, str):
            return self._resolve_text(node, at, depth)
        if node is None or isinstance(node, bool | int | float):
            return node
        raise CheckpointError(f"the configuration in the checkpoint has a {type(node).__name__} at {at}: no plain data")

    def _resolve_text(self, text: str, at: str, depth: int) -> Any:
        """A string with values in place of references. If it is nothing but a reference, the value of any type."""
        if whole := _REFERENCE.fullmatch(text):
            return self._resolve_reference(whole, text, at, depth)
        parts, end = [], 0
        while opening := _OPENING.search(text, end):
            slashes = len(opening[1])
            parts.append(text[end : opening.start()] + "\\" * (slashes // 2))
            if slashes % 2:  # an escaped ${ stands for these two characters
                parts.append("${")
                end = opening.end()
                continue
            reference = _REFERENCE.match(text, opening.end() - 2)
            if reference is None:
                raise CheckpointError(
                    f"{at} in the checkpoint is {text!r}. Of interpolations, a checkpoint may have ${{a.b}} and "
                    "${oc.select:a.b,null}; others are not evaluated, for they could run or read anything here"
                )
            value = self._resolve_reference(reference, text, at, depth)
            if isinstance(value, dict | list):
                raise CheckpointError(f"{at} in the checkpoint is {text!r}, and {reference[0]} is no single value")
            parts.append(str(value))
            end = reference.end()
        return "".join([*parts, text[end:]])

    def _resolve_reference(self, reference: re.Match[str], text: str, at: str, depth: int) -> Any:
        found, value = self._look_up(reference["key"] or reference["maybe"], at, depth)
        if not found and reference["key"]:
            raise CheckpointError(f"{at} in the checkpoint is {text!r}, and there is no {reference['key']} in it")
        return value

    def _maker(self, node: Any, at: str, here: tuple[str, ...], below: tuple[str, ...]) -> Callable[[], Any]:
        """A function that makes the object which a node describes, or returns the node if it is only data.

        Args:
            at: the node's dotted key.
            here, below: names of the classes that are allowed in this node, and in the nodes inside of it.
        """
        if isinstance(node, list):
            items = [self._maker(value, f"{at}.{index}", below, below) for index, value in enumerate(node)]
            return lambda: [item() for item in items]
        if not isinstance(node, dict):
            return lambda: node
        settings = {
            key: self._maker(value, f"{at}.{key}", below, below) for key, value in node.items() if key not in HYDRA_KEYS
        }
        if "_target_" not in node:
            return lambda: {key: make() for key, make in settings.items()}
        found = self._class(node["_target_"], at, here)
        if node["_target_"] in here:
            _refuse_other_types(node, at, found)
        partial, arguments = node.get("_partial_", False), node.get("_args_", [])
        if type(partial) is not bool or not isinstance(arguments, list) or node.get("_recursive_", True) is not True:
            raise CheckpointError(
                f"{at} in the checkpoint has a _partial_ that is no truth value, an _args_ that is no list, or a "
                "_recursive_, which would leave what is below it to be built by others"
            )
        first = self._maker(arguments, f"{at}._args_", below, below)

        def make() -> Any:
            values = {key: make() for key, make in settings.items()}
            return functools.partial(found, *first(), **values) if partial else found(*first(), **values)

        return make

    def _class(self, name: Any, at: str, allowed: tuple[str, ...]) -> type:
        """The class that a ``_target_`` names. A name that is not allowed is refused and not looked up."""
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
        except Exception as error:  # the user's package may raise anything
            raise CheckpointError(f"{name}, which the checkpoint has as {at}, cannot be imported: {error}") from error
        # The package must define the class: trusted.module.os.system is only imported there.
        if not inspect.isclass(found) or found.__module__.split(".")[0] not in self._trusted:
            raise CheckpointError(f"{name}, which the checkpoint has as {at}, is not a class of {package}")
        return found


def refuse_incomplete(config: dict[str, Any], path: Path) -> None:
    """Check that a configuration has the settings that every run has had in every version.

    Args:
        config: the run's configuration, as plain data.
        path: the checkpoint, for the message.

    Raises:
        CheckpointError: a setting is missing or has another type. The message names it.
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


#: The types of values that an annotation allows. Classes check arguments with other annotations themselves.
_TYPES = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "Path": (str,), "None": (type(None),)}


def _refuse_other_types(node: dict[str, Any], at: str, found: type) -> None:
    """Refuse arguments of another type than the class declares. Some would fail only in the middle of training.

    Args:
        node: the arguments, by name.
        at: the node's dotted key, for the message.
        found: the class.

    Raises:
        CheckpointError: an argument has another type. The message names it.
    """
    for name, annotation in (arguments_of(found) or {}).items():
        parts = annotation.split(" | ")
        if name not in node or not all(part in _TYPES for part in parts):
            continue
        if not any(type(node[name]) in _TYPES[part] for part in parts):  # type(): True is not a number here
            raise CheckpointError(
                f"the configuration in the checkpoint has {node[name]!r} as {at}.{name}, which is of another kind "
                f"({annotation})"
            )


def resolve_interpolations(cfg: DictConfig) -> None:
    """Evaluate, in place, every interpolation that :class:`Saved` would refuse in a checkpoint.

    A user may write any interpolation, e.g. ``algo.alpha=${oc.env:ALPHA}``. It is evaluated once, now, and the run
    records its value. References to other settings stay as written.

    Raises:
        ConfigError: an interpolation has no value.
    """
    from omegaconf.errors import OmegaConfBaseException  # a policy is loaded without it

    from mfrl.runs.targets import plain_settings

    def visit(node: DictConfig | ListConfig, written: Any, at: str) -> None:
        for key, text in written.items() if isinstance(written, dict) else enumerate(written):
            if isinstance(text, dict | list):
                visit(node[key], text, f"{at}{key}.")
            elif isinstance(text, str) and not _only_references(text):
                try:
                    value = node[key]
                except OmegaConfBaseException as error:
                    raise ConfigError(f"{at}{key}={text} has no value: {str(error).splitlines()[0]}") from error
                node[key] = _OPENING.sub(lambda m: 2 * m[1] + r"\${", value) if isinstance(value, str) else value

    visit(cfg, plain_settings(cfg, resolve=False), "")


def resolved_value(cfg: DictConfig, key: str, value: Any) -> Any:
    """The value of an override. Interpolations in it have the values that :func:`resolve_interpolations` found.

    Args:
        cfg: the configuration, composed with the override, after :func:`resolve_interpolations`.
        key: the setting's dotted name.
        value: the override's value as Hydra reads it.
    """
    from omegaconf import OmegaConf

    if isinstance(value, dict):
        return {name: resolved_value(cfg, f"{key}.{name}", part) for name, part in value.items()}
    if isinstance(value, list):
        return [resolved_value(cfg, f"{key}.{index}", part) for index, part in enumerate(value)]
    return OmegaConf.select(cfg, key) if isinstance(value, str) and not _only_references(value) else value


def _only_references(text: str) -> bool:
    """Whether every interpolation in a text is a reference that :class:`Saved` knows."""
    openings = (match for match in _OPENING.finditer(text) if len(match[1]) % 2 == 0)
    return all(_REFERENCE.match(text, match.end() - 2) for match in openings)
