"""Names of classes in configurations that earlier versions wrote, and what they are called today."""

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
#: Until packages stopped offering the classes of their modules, and the toys had a room of their own.
FORMER = {
    f"{package}.{name}": f"{package}.{module}.{name}"
    for package, modules in _CLASSES.items()
    for name, module in modules.items()
} | {"mfrl.data.toy.ToyData": "mfrl.study.toys.ToyData"}


def with_todays_names(config: Any) -> Any:
    """A copy of a configuration, or of a part of it, in which every class has the name it has today."""
    if isinstance(config, dict):
        return {key: with_todays_names(value) for key, value in config.items()}
    if isinstance(config, list):
        return [with_todays_names(value) for value in config]
    return FORMER.get(config, config) if isinstance(config, str) else config
