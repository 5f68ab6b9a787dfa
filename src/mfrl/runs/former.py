"""Configurations that earlier versions wrote: the names of their classes today, and the settings they did not have."""

from __future__ import annotations

from typing import Any

_CLASSES = {
    "mfrl.algorithms": {
        "FQL": "fql",
        "FlowBC": "flow_bc",
        "FlowDistilled": "flow_distilled",
        "GaussianBC": "gaussian_bc",
        "MeanFlowBC": "meanflow_bc",
        "MeanFlowQL": "meanflowql",
    },
    "mfrl.networks": {
        "DiT": "dit",
        "GaussianMLP": "gaussian",
        "ImpalaEncoder": "encoder",
        "MLP": "mlp",
        "QEnsemble": "critic",
        "VectorField": "vector_field",
    },
    "mfrl.callbacks": {"Evaluate": "evaluation", "EvaluateHeldOut": "held_out", "EvaluateSamples": "samples"},
}
#: Former name -> current name. Packages once re-exported the classes of their modules, and the toys were in mfrl.data.
CURRENT_NAMES = {
    f"{package}.{name}": f"{package}.{module}.{name}"
    for package, modules in _CLASSES.items()
    for name, module in modules.items()
} | {"mfrl.data.toy.ToyData": "mfrl.study.toys.ToyData"}


def with_current_names(config: Any) -> Any:
    """A copy of a configuration, or of a part of it, with the current name of every class."""
    if isinstance(config, dict):
        return {key: with_current_names(value) for key, value in config.items()}
    if isinstance(config, list):
        return [with_current_names(value) for value in config]
    return CURRENT_NAMES.get(config, config) if isinstance(config, str) else config


#: Settings of every run that an earlier version did not have, at the values that change nothing.
LATER_SETTINGS = {"bf16": False}


def with_later_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, with those that an earlier version did not have at the values that change nothing.

    Without an online phase its settings mean nothing and are left out.
    """
    later: dict[str, Any] = LATER_SETTINGS | {"online.steps": 0}
    if "data.task" in settings:  # of OGBench
        later["data.sparse"] = False
    settings = later | settings
    if settings["online.steps"] == 0:
        return {key: value for key, value in settings.items() if not key.startswith("online.") or key == "online.steps"}
    return settings
