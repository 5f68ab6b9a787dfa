"""Class names in configurations that earlier versions wrote, and the names of these classes today."""

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
