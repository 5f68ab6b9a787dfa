"""Refuses settings that cannot work, before anything is built."""

from __future__ import annotations

import shlex
from dataclasses import fields, is_dataclass
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mfrl.errors import CREDENTIALS, ConfigError, did_you_mean, require, require_packages
from mfrl.learning.compiling import check_compile
from mfrl.runs.read import flatten
from mfrl.runs.targets import check_targets, find_target, plain_settings, settings_of
from mfrl.runs.trackers import Tracker
from mfrl.settings import OF_A_RUN, OnlineSettings

EXISTING = ("new", "continue")
EVALUATION = "mfrl.callbacks.evaluation.Evaluate"  #: that of evaluation=simulator
PRECISIONS = ("32-true", "bf16-mixed")
#: The callbacks that every run has, in the order in which Lightning calls them. The checkpoint comes before the
#: evaluation, so that a failing simulator costs no updates. The bar comes last, and shows what the others have found.
OWN_CALLBACKS = ("monitor", "interruption", "checkpoint", "evaluate", "progress")


def check_existing(cfg: DictConfig) -> None:
    """Check the setting ``existing``.

    Raises:
        ConfigError: it is neither ``new`` nor ``continue``.
    """
    if cfg.existing not in EXISTING:
        raise ConfigError(f"existing={cfg.existing} must be {' or '.join(EXISTING)}")


def check_run(cfg: DictConfig, overrides: list[str]) -> None:
    """Check the settings of a new run.

    Args:
        cfg: the composed configuration.
        overrides: the user's; messages name the override that sets a wrong setting.

    Raises:
        ConfigError: a setting is out of its range, or belongs to another algorithm or evaluation. The message names it.
    """
    check_settings(cfg)
    refuse_settings_of_another_algorithm(cfg, overrides)
    refuse_settings_of_another_evaluation(cfg, overrides)


def check_settings(cfg: DictConfig) -> None:
    """Check the ranges of settings, and callbacks and loggers. A resumed run is checked by this function alone.

    Raises:
        ConfigError: a setting is out of its range. The message names it.
    """
    for key, allowed in OF_A_RUN.items():
        part, _, name = key.rpartition(".")
        if part != "eval" or name in cfg.eval:  # each evaluation has only some of the settings eval.*
            allowed.require(key, OmegaConf.select(cfg, key))
    if cfg.eval._target_ == EVALUATION:
        device = cfg.eval.get("device")
        require("eval.device", device in (None, "cpu"), device, "cpu, or null for where it trains")
    for key in ("checkpoint.keep_all", "tf32", "bf16"):
        value = OmegaConf.select(cfg, key)
        require(key, type(value) is bool, value, "true or false")
    phases(cfg)
    check_compile(cfg.compile)
    if (precision := cfg.trainer.precision) not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision={precision} must be {' or '.join(PRECISIONS)}: with 16-mixed gradients are scaled when "
            "they are clipped, which then keeps next to nothing of them, and nothing else was tried"
        )
    epochs = cfg.trainer.get("max_epochs")
    require("trainer.max_epochs", epochs == 1, epochs, "1, which has all updates: updates= says how many")
    check_accelerator("accelerator", cfg.accelerator)
    check_accelerator("trainer.accelerator", cfg.trainer.get("accelerator", "auto"))
    check_watching(cfg)


def check_accelerator(key: str, value: Any) -> None:
    """Check that this machine has an accelerator.

    Raises:
        ConfigError: it does not, or the value is no name. The message says which there are.
    """
    # ${accelerator} becomes a part of the trainer's settings, which are built: a group here, perhaps from a checkpoint,
    # could name any class.
    if not isinstance(value, str):
        raise ConfigError(f"{key}={value} must be a name, e.g. auto, cpu or gpu")
    here = {name for name in AcceleratorRegistry if AcceleratorRegistry[name]["accelerator"].is_available()}
    here |= {"auto"} | ({"gpu"} if here & {"cuda", "mps"} else set())
    if value not in here:
        raise ConfigError(f"{key}={value} is not on this machine ({', '.join(sorted(here))} are)")


def phases(cfg: DictConfig) -> tuple[int, OnlineSettings]:
    """The number of offline updates, and the settings of the online phase.

    Raises:
        ConfigError: both phases are empty, or a phase lacks the data or the environment that it needs.
    """
    online = OnlineSettings(**cfg.online)
    if cfg.updates == 0 and online.steps == 0:
        raise ConfigError("updates=0 and online.steps=0 leave nothing to do: set one of them")
    if cfg.updates and "dataset" not in cfg.env:
        raise ConfigError(
            f"{cfg.env.name} has no data to make updates={cfg.updates} with: say updates=0 online.steps=N"
        )
    if online.steps and online.balanced and "dataset" not in cfg.env:
        raise ConfigError(f"online.balanced=true takes half of every batch from data, and {cfg.env.name} has none")
    if online.steps and cfg.env.suite == "toy":
        raise ConfigError(f"online.steps={online.steps}: {cfg.env.name} has no environment to act in")
    return cfg.updates, online


def total_updates(cfg: DictConfig) -> int:
    """The number of updates of both phases."""
    offline, online = phases(cfg)
    return offline + online.updates


def refuse_settings_of_another_algorithm(cfg: DictConfig, overrides: list[str]) -> None:
    """Refuse settings ``algo.*`` that the chosen algorithm does not have.

    An experiment may set them for its own algorithm, while the user chooses another one.

    Raises:
        ConfigError: there is such a setting, or a setting is out of its range. The message names the setting, the
            algorithm, and the override that sets it.
    """
    if (known := settings_of(cfg.algo)) is None:
        return
    for name in cfg.algo:
        if not name.startswith("_") and name not in known:
            raise ConfigError(
                f"algo.{name}, set by {_set_by(f'algo.{name}', overrides)}, is no setting of "
                f"algo={cfg.algo_name}{did_you_mean(name, known)}; take it out with  {shlex.quote(f'~algo.{name}')}"
            )
    settings = getattr(find_target(cfg.algo._target_, "algo._target_"), "Settings", None)
    if isinstance(settings, type) and is_dataclass(settings):  # its constructor checks types and ranges
        settings(**{field.name: cfg.algo[field.name] for field in fields(settings) if field.name in cfg.algo})


def refuse_settings_of_another_evaluation(cfg: DictConfig, overrides: list[str]) -> None:
    """Refuse settings ``eval.*`` that the chosen evaluation does not have.

    Raises:
        ConfigError: there are such settings. The message names them, the override that sets them, and how to remove
            them.
    """
    if (settings := settings_of(cfg.eval)) is None:
        return
    known = settings.keys() - {"spec", "run_dir", "progress"}
    foreign = [f"eval.{name}" for name in cfg.eval if not name.startswith("_") and name not in known]
    if foreign:
        are, which = ("are no settings", "them") if len(foreign) > 1 else ("is no setting", "it")
        raise ConfigError(
            f"{', '.join(foreign)}, set by {_set_by(foreign[0], overrides)}, {are} of the chosen evaluation "
            f"(eval.{', eval.'.join(sorted(known))} are); take {which} out with  {shlex.join(f'~{x}' for x in foreign)}"
        )


def _set_by(key: str, overrides: list[str]) -> str:
    """The overrides that may have set a key, in words."""
    given = [text for text in overrides if text.lstrip("+").startswith((f"{key}=", "experiment="))]
    return " or ".join(given) or "the configuration"


def check_watching(cfg: DictConfig) -> None:
    """Check the groups ``callbacks`` and ``logger``.

    Their classes are built, so each entry must name its class itself and not by a reference: in a resumed run, most
    settings come from a checkpoint, which could name any class.

    Raises:
        ConfigError: an entry names no class, refers to one, or names one that does not exist or does not take its
            arguments; or a callback that every run needs is missing.
    """
    for group in ("callbacks", "logger"):
        try:
            written, values = (plain_settings(cfg[group], resolve=resolve) for resolve in (False, True))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{group}: {str(error).splitlines()[0]}") from error
        for name, node in written.items():
            if not isinstance(node, dict) or "_target_" not in node:
                raise ConfigError(f"{group}.{name} must name its class, {group}.{name}._target_=package.module.Class")
        _refuse_references(written, values, group)
        check_targets(values, group)
        for key, value in flatten(values, f"{group}.").items():
            if isinstance(value, str) and CREDENTIALS.search(value):
                raise ConfigError(
                    f"{key} holds a password, and so would every checkpoint: leave it to the environment, e.g. to "
                    "MLFLOW_TRACKING_URI"
                )
        for name, node in values.items():
            target = find_target(node["_target_"], f"{group}.{name}._target_")
            if isinstance(target, type) and issubclass(target, Tracker):
                require_packages(f"{group}={name}", target.packages)
    if missing := [name for name in OWN_CALLBACKS if name not in ("evaluate", *cfg.callbacks)]:
        raise ConfigError(f"callbacks lack {', '.join(missing)}, which no run goes without: callbacks=[default,...]")
    if "evaluate" in cfg.callbacks:
        raise ConfigError("callbacks.evaluate: that is the evaluation, which evaluation=... chooses: take another name")


def _refuse_references(written: Any, value: Any, key: str) -> None:
    """Refuse references to a class, or to a group of settings, which may contain a class.

    Args:
        written: plain data with references.
        value: the same with the values of the references.
        key: the dotted key of both, for messages.

    Raises:
        ConfigError: there is such a reference.
    """
    if isinstance(written, dict | list):
        for name in written if isinstance(written, dict) else range(len(written)):
            if name == "_target_" and written[name] != value[name]:
                raise ConfigError(f"{key}._target_={written[name]} must name a class, and not refer to one")
            _refuse_references(written[name], value[name], f"{key}.{name}")
    elif isinstance(value, dict | list):
        raise ConfigError(f"{key}={written} must be written out: what it refers to is a whole group of settings")
