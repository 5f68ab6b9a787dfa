"""Refuses overrides that make no configuration, before Hydra takes over, and says in plain sentences what is wrong."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mfrl.app.overrides import (
    SEARCH_PATH,
    Composer,
    apply_override,
    as_written,
    changed_values,
    dotted_settings,
    parse,
    searched_values,
    sweep_values,
    wrong_type_message,
)
from mfrl.catalogue import spelled
from mfrl.errors import ConfigError, did_you_mean, require
from mfrl.runs.resumable import matches_any
from mfrl.runs.targets import settings_of
from mfrl.system.paths import CONFIG_DIR, refuse_groups, run_folder

_FEW = 10  # messages list so many names in full


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
