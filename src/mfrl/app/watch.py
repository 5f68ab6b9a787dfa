"""What watches a run: its callbacks and loggers, out of conf/callbacks and conf/logger, and its evaluation."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mfrl.app.checks import OWN_CALLBACKS
from mfrl.app.resume import Start, telling_how_to_go_on
from mfrl.callbacks.checkpoint import Checkpoint
from mfrl.callbacks.evaluation import episodes_on_the_way
from mfrl.callbacks.monitor import Monitor
from mfrl.callbacks.population import Spread
from mfrl.callbacks.progress import Progress
from mfrl.data.module import OfflineData
from mfrl.errors import ConfigError
from mfrl.learning.training import Trained
from mfrl.runs.folder import RunFolder, versions
from mfrl.runs.read import flatten
from mfrl.runs.targets import build
from mfrl.system.paths import literal


@dataclass
class StartedRun:
    """A run that has a folder: what watches its training, and what its result is made of.

    Attributes:
        callbacks, loggers: by their names in the configuration; ``evaluate`` is a callback too.
        source: of the data, as provenance.json has it.
        at: when it began, by :func:`time.perf_counter`.
    """

    cfg: DictConfig
    overrides: list[str]
    run: RunFolder
    data: OfflineData
    callbacks: dict[str, L.Callback]
    loggers: dict[str, Logger]
    source: str
    at: float

    @property
    def monitor(self) -> Monitor:
        return self.callbacks["monitor"]

    @property
    def checkpoints(self) -> Checkpoint:
        return self.callbacks["checkpoint"]

    @property
    def evaluate(self) -> L.Callback:
        return self.callbacks["evaluate"]

    def in_order(self) -> list[L.Callback]:
        """The run's own callbacks, and then the user's."""
        own = [self.callbacks[name] for name in OWN_CALLBACKS]
        return own + [callback for name, callback in self.callbacks.items() if name not in OWN_CALLBACKS]


def begin(
    start: Start,
    overrides: list[str],
    data: OfflineData,
    provenance: dict[str, Any],
    module: Trained,
    progress: Progress | Spread,
    console: Console,
) -> StartedRun:
    """Write down in its folder what a run is, and make what watches it.

    Raises:
        ConfigError: a callback or logger of the user's cannot be made.
    """
    cfg, run = start.cfg, start.run
    assert run is not None
    cfg.run_dir = literal(str(run.path))
    cfg.data_dir = data.data_dir and literal(str(data.data_dir.resolve()))
    run.write_config(cfg, overrides)
    run.write_provenance(provenance)
    record = {
        "config": OmegaConf.to_container(cfg, resolve=False),
        "spec": data.spec.to_dict(),
        "env": asdict(data.env),
        "action_bounds": data.action_bounds,
        "observation_shapes": data.observation_shapes,
        "provenance": provenance,
        "versions": versions(),
    }
    of_the_run = {"monitor": {"console": console}, "checkpoint": {"folder": run.checkpoints, "extra": record}}
    callbacks = build_all(cfg, "callbacks", L.Callback, of_the_run, apart=["progress"])
    callbacks["progress"] = progress
    callbacks["evaluate"] = start.parts["eval"](spec=data.env, run_dir=run.path, progress=progress, **processes(cfg))
    of_the_run = {
        "tensorboard": {"purge_step": start.updates + 1 if start.updates else None},
        "csv": {"first_update": start.updates},
    }
    rank_zero_only.rank = 0  # read off a cluster's variables, of several runs all but one would log nothing
    with telling_how_to_go_on(run, module, callbacks["checkpoint"]):
        loggers = build_all(cfg, "logger", Logger, of_the_run)
        for name in loggers.keys() - of_the_run.keys():
            loggers[name].log_hyperparams(flatten(record["config"]))
    return StartedRun(cfg, overrides, run, data, callbacks, loggers, provenance["source"], time.perf_counter())


def build_progress(cfg: DictConfig, console: Console) -> Progress:
    """The bar of a run, or of all members of a population."""
    share = cfg.eval.episodes / interim_episodes(cfg) if "episodes" in cfg.eval else 1.0
    return build(cfg.callbacks.progress)(final_share=share, console=console)


def build_all(
    cfg: DictConfig, group: str, kind: type, of_the_run: dict[str, dict[str, Any]], apart: list[str] | None = None
) -> dict[str, Any]:
    """The callbacks or loggers of a configuration by their names.

    Args:
        group: ``callbacks`` or ``logger``.
        kind: of Lightning's.
        of_the_run: by name, what the run adds to the settings of those that are ``_partial_``.
        apart: names of those that are built elsewhere.

    Raises:
        ConfigError: one cannot be built, or is of another kind.
    """
    built = {}
    for name, node in cfg[group].items():
        if name in (apart or []):
            continue
        key = f"{group}.{name}"
        try:
            part = build(node, plain=True)
        except InstantiationException as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ConfigError(f"{key} cannot be made of its settings: {reason}") from error
        if name in of_the_run and node.get("_partial_"):
            part = part(**of_the_run[name])
        if not isinstance(part, kind):
            raise ConfigError(f"{key} makes a {type(part).__name__}, which is no {kind.__name__} of Lightning's")
        built[name] = part
    return built


def interim_episodes(cfg: DictConfig) -> int:
    """Episodes of an evaluation on the way."""
    return episodes_on_the_way(cfg.eval.episodes, cfg.eval.get("interim_episodes"))


def processes(cfg: DictConfig) -> dict[str, int]:
    """The simulator's share of ``threads``, unless it has a number of processes of its own or there is none."""
    if cfg.threads is None or "workers" not in cfg.eval or cfg.eval.workers is not None:
        return {}
    return {"workers": cfg.threads if cfg.threads > 1 else 0}
