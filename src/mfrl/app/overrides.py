"""The grammar of the command line: overrides KEY=VALUE, what they compose, sweeps and `seeds=8`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mfrl.app.presets import refuse_taken_names
from mfrl.catalogue import spelled
from mfrl.errors import ConfigError, require
from mfrl.runs.targets import plain_settings
from mfrl.system.paths import CONFIG_DIR

SEARCH_PATH = "hydra.searchpath"


@dataclass(frozen=True)
class Composer:
    """Composes the configuration of a command.

    Attributes:
        name: the command's file in conf/.
        search: the override ``hydra.searchpath`` if the user has further folders of configurations; otherwise empty.
    """

    name: str
    search: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, overrides: Iterable[Override], config_dir: str | None = None) -> Composer:
        """A composer that also looks into the folders of ``hydra.searchpath=[...]`` and ``--config-dir``.

        Raises:
            ConfigError: a folder has a table of presets with the name of one of mfrl's.
        """
        given = [o.value() for o in overrides if o.key_or_group == SEARCH_PATH and not o.is_sweep_override()]
        folders = [folder for value in given[-1:] if isinstance(value, list) for folder in value]
        if config_dir is not None:
            folders.append(f"file://{os.path.abspath(config_dir)}")
        # Each folder may have tables of presets too, which the scheme presets:// finds.
        paths = [path for folder in folders if "://" not in (path := str(folder).removeprefix("file://"))]
        for path in paths:
            refuse_taken_names(Path(path))
        folders += [f"presets://{path}" for path in paths]
        listed = ",".join(QuotedString(str(folder), Quote.single).with_quotes() for folder in folders)
        return cls(name, (f"{SEARCH_PATH}=[{listed}]",) if folders else ())

    def __call__(self, overrides: Iterable[str], with_hydra: bool = False) -> DictConfig:
        """The configuration with these overrides.

        Args:
            overrides: in Hydra's words.
            with_hydra: whether Hydra's own settings, below ``hydra``, are in it.

        Raises:
            HydraException, OmegaConfBaseException: Hydra cannot compose it; see :func:`mfrl.app.refusals.explain`.
        """
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra.compose(self.name, [*self.search, *overrides], return_hydra_config=with_hydra)

    def names(self, group: str, kind: ObjectType) -> list[str]:
        """The names of the configurations in a group, or of the groups in it.

        Args:
            group: e.g. ``env`` or ``env/ogbench``.
            kind: ``ObjectType.CONFIG`` or ``ObjectType.GROUP``.
        """
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return self.listed(group, kind)

    def listed(self, group: str, kind: ObjectType) -> list[str]:
        """As :meth:`names`, where Hydra is initialised already."""
        # The command's name has Hydra read that file first, which is only needed for the folders to search.
        searching = (self.name, list(self.search)) if self.search else ()
        return GlobalHydra.instance().config_loader().get_group_options(group, kind, *searching)

    def is_group(self, key: str) -> bool:
        """Whether a key is a group of configurations, so that ``key=`` chooses one of them."""
        if not self.search:
            return (CONFIG_DIR / key).is_dir()
        return "." not in key and bool(self.names(key, ObjectType.CONFIG) or self.names(key, ObjectType.GROUP))

    def choices(self) -> list[str]:
        """The groups from which the command chooses a configuration by default."""
        return list(self((), with_hydra=True).hydra.runtime.choices)

    def can_compose(self, given: Iterable[Override]) -> bool:
        """Whether Hydra can compose these overrides."""
        try:
            self(map(as_written, given))
        except (HydraException, OmegaConfBaseException):
            return False
        return True

    def all_names(self, group: str) -> list[str]:
        """The names of the configurations in a group and in the groups below it, relative to the first group."""
        names = self.names(group, ObjectType.CONFIG)
        for part in self.names(group, ObjectType.GROUP):
            names += [f"{part}/{name}" for name in self.all_names(f"{group}/{part}")]
        return names

    def is_choice(self, override: Override) -> bool:
        """Whether an override chooses a configuration of a group, e.g. network=small."""
        return self.is_group(override.key_or_group) and isinstance(override.value(), str | list)

    def divided(self, given: Iterable[Override]) -> tuple[tuple[str, ...], list[Override]]:
        """The overrides that choose configurations, as they are written, and the others."""
        choices: list[Override] = []
        others: list[Override] = []
        for override in given:
            (choices if self.is_choice(override) else others).append(override)
        return tuple(map(as_written, choices)), others


def as_written(override: Override) -> str:
    """An override as the user has written it."""
    assert override.input_line is not None, "it was parsed from a text"
    return override.input_line


def parse(text: str) -> Override:
    """Parse an override, KEY=VALUE.

    Raises:
        ConfigError: the text is no override.
    """
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except HydraException as error:
        known_as = spelled(text)
        hint = f"; did you mean {known_as}?" if known_as else ", e.g. env=ogbench/cube-single-play seed=1"
        raise ConfigError(f"{text!r} cannot be read as KEY=VALUE{hint}") from error
    if not override.key_or_group:
        raise ConfigError(f"{text!r} cannot be read as KEY=VALUE: there is no key")
    return override


def sweep_values(override: Override) -> list[Override]:
    """One override for each value of a sweep, or the override itself if it has one value.

    Raises:
        ConfigError: the sweep has no list of values, e.g. interval(0, 1).
    """
    if not override.is_sweep_override():
        return [override]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line} has no values that could be counted; give some, e.g. 1,3,10, or say sweep=search"
        )
    return [parse(f"{override.get_key_element()}={value}") for value in override.sweep_string_iterator()]


def changed_values(cfg: DictConfig, overrides: Iterable[Override]) -> bool:
    """Change settings of a composed configuration to what Hydra would compose with these overrides, a tenth of a second
    faster.

    Returns:
        False if an override is more than KEY=VALUE of a setting, so that only Hydra can do it; then nothing is changed.

    Raises:
        OmegaConfBaseException: there is no such setting, or it has another type.
    """
    overrides = list(overrides)
    if any(o.type != OverrideType.CHANGE or o.package is not None or o.is_hydra_override() for o in overrides):
        return False
    for override in overrides:
        OmegaConf.update(cfg, override.key_or_group, override.value())
    return True


def searched_values(override: Override) -> list[Override]:
    """The same for a search, in which an interval stands for its two ends.

    Raises:
        ConfigError: the interval has no log scale, as it reaches down to zero.
    """
    if not override.is_sweep_override() or override.is_discrete_sweep():
        return sweep_values(override)
    interval = override.value()
    assert isinstance(interval, IntervalSweep)
    assert interval.start is not None
    assert interval.end is not None
    low = "above 0 and " * ("log" in interval.tags)
    holds = interval.start < interval.end and (interval.start > 0 or not low)
    require(override.key_or_group, holds, as_written(override), f"an interval from a number {low}below its end")
    return [parse(f"{override.get_key_element()}={end}") for end in (interval.start, interval.end)]


def apply_override(cfg: DictConfig, override: Override) -> None:
    """Change a setting in a configuration that is composed already.

    Raises:
        ConfigError: the value has another type than the setting.
    """
    try:
        new = override.type != OverrideType.CHANGE
        OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=new)
    except OmegaConfBaseException as error:
        raise ConfigError(wrong_type_message(as_written(override))) from error


def wrong_type_message(override: str) -> str:
    """The message for an override whose value has another type than the setting."""
    return f"{override}: its value is of another kind than the setting's (a number, a name, a list, {{key: value}})"


def dotted_settings(cfg: DictConfig) -> dict[str, Any]:
    """All settings and groups of a configuration by their dotted keys, with interpolations as written."""
    found: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        for key, value in node.items():
            found[f"{prefix}{key}"] = value
            if isinstance(value, dict):
                visit(value, f"{prefix}{key}.")

    visit(plain_settings(cfg, resolve=False), "")
    return found


def expand_seeds(arguments: list[str]) -> list[str]:
    """Replace ``seeds=8`` by what it is short for, ``-m seed=0,1,2,3,4,5,6,7 pack=8``.

    Args:
        arguments: the command line, from the command's name on.

    Raises:
        ConfigError: ``seeds`` is no whole number of at least 1, or ``seed=`` is given too.
    """
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("seeds=")]
    if not given:
        return arguments
    if not given[-1].isdecimal() or int(given[-1]) < 1:
        raise ConfigError(f"seeds={given[-1]} must be a whole number of at least 1: how many seeds, from 0 on")
    if any(argument.startswith("seed=") for argument in arguments):
        raise ConfigError(f"seeds={given[-1]} stands for seeds 0 to {int(given[-1]) - 1}: leave seed= out")
    others = [argument for argument in arguments if not argument.startswith("seeds=")]
    if {"--cfg", "-c", "--info", "-i", "--help"} & {*others}:  # Hydra shows one configuration: all seeds share it
        return others
    count = int(given[-1])
    listed = [f"seed={','.join(str(seed) for seed in range(count))}"]
    if not any(argument.startswith("pack=") for argument in others):
        listed.append(f"pack={count}")
    many = [] if {"-m", "--multirun"} & {*others} else ["--multirun"]
    return [others[0], *many, *others[1:], *listed]
