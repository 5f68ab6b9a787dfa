"""From a composed configuration to objects."""

from __future__ import annotations

import shlex
from typing import Any

from omegaconf import DictConfig

from mfrl.errors import ConfigError, did_you_mean, require
from mfrl.runs.targets import build, settings_of


def build_algorithm(cfg: DictConfig, spec: Any) -> Any:
    """The algorithm of a configuration that the user composed, for data of the given spec.

    One out of a checkpoint is built by :class:`mfrl.runs.saved.Saved`.
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


def _given_by(key: str, overrides: list[str]) -> str:
    given = [text for text in overrides if text.lstrip("+").startswith((f"{key}=", "experiment="))]
    return " or ".join(given) or "the configuration"
