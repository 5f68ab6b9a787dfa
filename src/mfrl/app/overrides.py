"""Checks overrides, KEY=VALUE, before a command runs, and explains errors of Hydra in plain sentences."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mfrl.app.presets import refuse_taken_names
from mfrl.catalogue import spelled
from mfrl.errors import ConfigError, did_you_mean, require
from mfrl.runs.resumable import matches_any
from mfrl.runs.targets import plain_settings, settings_of
from mfrl.system.paths import CONFIG_DIR, refuse_groups, run_folder

SEARCH_PATH = "hydra.searchpath"
_FEW = 10  # messages list so many names in full


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
            HydraException, OmegaConfBaseException: Hydra cannot compose it; see :func:`explain`.
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
            loader = GlobalHydra.instance().config_loader()
            return loader.get_group_options(group, kind, self.name, list(self.search))

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


def check_overrides(
    config_name: str, overrides: list[str], config_dir: str | None = None, complete: bool = True
) -> None:
    """Compose a command's configuration once, to explain errors in plain sentences before Hydra takes over.

    Args:
        config_name: the command's file in conf/.
        overrides: the user's.
        config_dir: the folder of ``--config-dir``, or None.
        complete: check too that nothing is missing; False if the configuration is only printed.

    Raises:
        ConfigError: an override is wrong. For an unknown name, the message has similar names.
    """
    if config_dir is not None and not os.path.isdir(config_dir):
        raise ConfigError(f"--config-dir {config_dir} is no folder")
    parsed = [parse(text) for text in overrides]
    composer = Composer.of(config_name, parsed, config_dir)
    searching = any(override.key_or_group == "sweep" and override.value() == "search" for override in parsed)
    values_of = searched_values if searching else sweep_values
    choices = [values_of(override) for override in parsed if override.key_or_group != SEARCH_PATH]
    given: list[Override] = []
    composed: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any]]] = {}
    try:
        # Compose every value of a sweep once, the k-th values of all keys together. A list that is shorter repeats its
        # last value.
        for k in range(max(map(len, choices), default=1)):
            given = [values[min(k, len(values) - 1)] for values in choices]
            chosen, others = composer.divided(given)
            if chosen not in composed:  # composing takes a tenth of a second, and a sweep may have a thousand seeds
                for override in given:
                    check_group(override, composer)
                check_deletions(given, composer)
                cfg = composer(chosen)
                defaults = dotted_settings(cfg)
                composed[chosen] = cfg if changed_values(cfg, others) else composer(map(as_written, given)), defaults
            cfg, defaults = composed[chosen]
            for override in [values[k] for values in choices if 0 < k < len(values)]:
                if override.input_line not in chosen:
                    apply_override(cfg, override)
            if complete:
                check_composed(cfg)
            check_types(dotted_settings(cfg), defaults)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, composer, given)) from error


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


def check_types(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Check that a number is not replaced by a word, nor a group of settings by a single value.

    Args:
        values: the settings by dotted key.
        defaults: the same without the user's overrides.

    Raises:
        ConfigError: one is replaced. The message names the setting.
    """
    for key, default in defaults.items():
        value = values.get(key)
        if isinstance(default, dict) and default and not isinstance(value, dict) and "collect" not in key:
            names = ", ".join(f"{key}.{name}" for name in default if not name.startswith("_"))
            raise ConfigError(f"{key}={value} would take away the settings {names}; give those")
        if isinstance(default, int | float) and not isinstance(default, bool) and isinstance(value, str):
            require(key, "${" in value, value, f"a number, e.g. {default}")


def check_group(override: Override, composer: Composer) -> None:
    """Refuse values for a group that name no configuration, e.g. env=3, for which Hydra prints a traceback.

    Raises:
        ConfigError: the message lists the group's configurations.
    """
    text, group = override.input_line, override.key_or_group
    if override.is_delete() or not composer.is_group(group) or isinstance(override.value(), str | list | dict):
        return
    names = composer.names(group, ObjectType.CONFIG)
    names += [f"{name}/..." for name in composer.names(group, ObjectType.GROUP)]
    known = ", ".join(sorted(name for name in names if not name.startswith("_")))
    raise ConfigError(f"{text} must be one of {known}; leave {group}= out for the default")


def check_deletions(given: Sequence[Override], composer: Composer) -> None:
    """Check overrides like ``~eval.episodes``, which delete a setting. Only settings that nothing reads may go.

    An experiment may set them for an algorithm or an evaluation that the user has then replaced by another one.

    Raises:
        ConfigError: the setting is needed, or does not exist.
    """
    gone = [o for o in given if o.is_delete() and not o.is_hydra_override()]
    if not gone:
        return
    cfg = composer(as_written(o) for o in given if o not in gone)
    for override in gone:
        part, _, name = override.key_or_group.rpartition(".")
        node = OmegaConf.select(cfg, part) if part else None
        known = settings_of(node) if isinstance(node, DictConfig) and "_target_" in node else None
        if node is None or known is None or name in known:
            raise ConfigError(
                f"{override.input_line}: a setting cannot be taken away, only changed ({override.key_or_group}=...) or "
                "left as it is"
            )
        if name not in node:
            raise ConfigError(f"{override.input_line}: there is no setting {override.key_or_group} to take away")


def check_composed(cfg: DictConfig) -> None:
    """Check settings that no other part of the program checks.

    Raises:
        ConfigError: a setting is missing or cannot be used. The message names it.
    """
    if missing := [key for key, value in dotted_settings(cfg).items() if value == "???"]:
        raise ConfigError(f"{', '.join(missing)} must be given, e.g. {missing[0]}=...")
    if "run_dir" in cfg:
        runs = cfg.get("runs")
        require("runs", isinstance(runs, str) and runs.strip() != "", runs, "the folder for all runs, e.g. runs")
        try:
            refuse_groups(cfg, "run_dir")
            run_folder(cfg.run_dir)
        except OmegaConfBaseException as error:
            raise ConfigError(f"run_dir={dotted_settings(cfg)['run_dir']}: {str(error).splitlines()[0]}") from error
    jobs = cfg.get("jobs", -1)
    possible = isinstance(jobs, int) and (jobs == -1 or jobs >= 1)
    require("jobs", possible, jobs, "at least 1, or -1 for as many as there are cores")
    seed = cfg.get("seed")
    if "updates" in cfg:  # `mfrl train`; the other commands check their seed themselves
        require("seed", type(seed) is int and 0 <= seed < 2**32, seed, "a whole number from 0 to 4294967295")
    task = OmegaConf.select(cfg, "env.task")
    if task is not None and cfg.env.suite != "ogbench":
        raise ConfigError(f"env.task={task}: {cfg.env.dataset} has one task only; leave env.task= out")
    if "updates" in cfg and cfg.get("collect") is not None:  # of `mfrl train`
        check_collect(cfg)


def check_collect(cfg: DictConfig) -> None:
    """Check the settings ``collect.*`` of `mfrl train`.

    Raises:
        ConfigError: the dataset's collector does not have a setting (the message has similar names), or there is no
            collector.
    """
    if not isinstance(cfg.collect, DictConfig):
        raise ConfigError(f"collect={cfg.collect} must be null or settings of `mfrl collect`, e.g. collect={{seed: 0}}")
    from mfrl.app.collect import collector

    function = collector(cfg.env.suite)
    if function is None:
        raise ConfigError(f"collect={cfg.collect}: there is nothing to collect of {cfg.env.name}; leave collect= out")
    known = inspect.signature(function).parameters.keys() - {"dataset", "data_dir", "env", "progress"}
    for name in map(str, cfg.collect):
        if name not in known:
            raise ConfigError(
                f"collect.{name} is no setting of collecting {cfg.env.dataset}{did_you_mean(name, known)}; known: "
                f"{', '.join(sorted(known))}"
            )


def explain(error: HydraException | OmegaConfBaseException, composer: Composer, given: Sequence[Override]) -> str:
    """Explain in a sentence why Hydra could not compose a configuration, with similar names for an unknown one.

    Args:
        error: Hydra's error.
        composer: composed the configuration.
        given: the overrides it was composed with. The files they choose decide which settings exist.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_choice(error.missing_cfg_file, composer)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        unknown = str(cause.full_key)
        chosen = [as_written(o) for o in given if composer.is_choice(o) and o.key_or_group != unknown]
        known = dotted_settings(composer(chosen, with_hydra=unknown.startswith("hydra.")))
        return f"there is no setting {unknown!r}{did_you_mean(unknown, known)}"
    if isinstance(cause, OmegaConfBaseException):
        named = [as_written(o) for o in given if matches_any(str(cause.full_key), [o.key_or_group])]
        return wrong_type_message(named[-1]) if named else str(cause).splitlines()[0]
    # Where a choice of a file fails, Hydra does not say which one. It is the first that fails with those before it.
    wrong = next((o for k, o in enumerate(given) if not composer.can_compose(given[: k + 1])), None)
    if wrong is None or not composer.is_group(wrong.key_or_group):
        return str(error)
    if wrong.get_key_element() not in (choices := composer.choices()):
        return f"there is no setting {wrong.get_key_element()!r}{did_you_mean(wrong.get_key_element(), choices)}"
    if composer.name == "collect" and str(wrong.value()).startswith("toy/"):
        return "env=toy/... are known distributions, whose data are drawn as training starts: nothing to collect"
    return f"{wrong.input_line} and `mfrl {composer.name}` do not go together: {str(error).splitlines()[0]}"


def _no_such_choice(name: str, composer: Composer) -> str:
    """The message for a configuration that does not exist, e.g. ``env/ogbench/cube``."""
    group, _, choice = name.rpartition("/")
    top = group.split("/")[0]
    wanted = name.removeprefix(f"{top}/") if group else choice
    if top == "env" and (known_as := spelled(wanted)):
        return f"there is no {name!r} among the configurations; it is written  {known_as}"
    if top == "env" and "powderworld" in wanted:
        return f"{wanted}: powderworld has discrete actions, and mfrl's policies are for continuous ones"
    known = [other for other in composer.all_names(top) if not other.rpartition("/")[2].startswith("_")]
    all_of_them = f"; there are {', '.join(known)}" if 0 < len(known) <= _FEW else ""
    return f"there is no {name!r} among the configurations in {CONFIG_DIR}{did_you_mean(wanted, known) or all_of_them}"


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
