"""`mfrl train`: datamodule, module, callbacks, loggers, trainer, fit."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from mfrl.callbacks import Checkpoint, Evaluate, Monitor, Progress
from mfrl.config import build, build_algorithm
from mfrl.errors import ConfigError
from mfrl.loggers import MetricsCSV
from mfrl.run import RunFolder, find_checkpoint, load_checkpoint, read_evaluations, versions

FINAL_EVALUATIONS = 3  # OGBench's protocol reports the mean of the last three


def train(cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Train as configured and return what result.json holds.

    Args:
        cfg: the composed configuration (conf/train.yaml).
        overrides: what the user changed, for overrides.yaml.
    """
    console = Console(stderr=True)
    checkpoint = find_checkpoint(cfg.resume) if cfg.resume else None
    if checkpoint:
        cfg = continued(load_checkpoint(checkpoint), cfg, overrides)
        run = RunFolder(checkpoint.parents[1])
    else:
        run = RunFolder.create(cfg.run_dir)
    first_update = load_checkpoint(checkpoint)["updates"] if checkpoint else 0
    if first_update >= cfg.updates:
        raise ConfigError(f"{checkpoint} is at update {first_update} of {cfg.updates}; raise updates= to go on")
    run.write_config(cfg, overrides)

    L.seed_everything(cfg.seed, verbose=False)
    data = build(cfg.data)
    if cfg.collect is not None:
        collect_missing(cfg, data, console)
    data.setup()
    for warning in data.warnings:
        console.print(f"[bold red]warning[/] {warning}", highlight=False)
    provenance = data.provenance()
    run.write_provenance(provenance)
    module = build_algorithm(cfg, data.spec)

    plain = OmegaConf.to_container(cfg, resolve=False)
    extra = {
        "config": plain,
        "spec": data.spec.to_dict(),
        "env": asdict(data.env),
        "provenance": provenance,
        "versions": versions(),
    }
    progress, monitor = Progress(console), Monitor(cfg.log.every)
    evaluate = Evaluate(data.env, run.path, progress=progress, **cfg.eval)
    callbacks = [monitor, evaluate, Checkpoint(run.checkpoints, extra=extra, **cfg.checkpoint), progress]
    loggers = [
        TensorBoardLogger(run.path.parent, name=run.path.name, version="", purge_step=first_update or None),
        MetricsCSV(run.path, first_update),
    ]
    trainer: L.Trainer = build(cfg.trainer)(callbacks=callbacks, logger=loggers)
    console.print(f"[bold]{cfg.env.name}[/] · {cfg.algo_name} · {cfg.variant.name} → {run.path}", highlight=False)
    started = time.perf_counter()
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)

    result = {
        "env": data.env.env_id,
        "dataset": data.dataset,
        "algo": cfg.algo_name,
        "variant": cfg.variant.name,
        "alpha": cfg.algo.alpha,
        "seed": cfg.seed,
        "data": provenance["source"],
        "updates": module.updates,
        **final_scores(run),
        "seconds": round(time.perf_counter() - started, 2),
        "updates_per_second": round(monitor.updates / max(monitor.seconds, 1e-9), 3),
        "versions": versions(),
    }
    run.write_result(result)
    summarise(console, run, result)
    return result


def continued(checkpoint: dict[str, Any], cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the run that is resumed, with what is overridden now.

    Raises:
        ConfigError: for overrides that would make it another run.
    """
    old = OmegaConf.create(checkpoint["mfrl"]["config"])
    for override in overrides:
        key, _, _ = override.lstrip("+~").partition("=")
        if key == "resume":
            continue
        if key in ("env", "algo", "variant", "network", "experiment", "seed", "run_dir"):
            raise ConfigError(f"{key} cannot change in a resumed run; start a new one for {override}")
        OmegaConf.update(old, key, OmegaConf.select(cfg, key))
    return old


def collect_missing(cfg: DictConfig, data: Any, console: Console) -> None:
    """Collect the dataset in the simulator where its files are not there yet."""
    if all(path.is_file() for path in data.paths):
        return
    from mfrl.collect import collect

    console.print(f"{data.dataset} is not in {data.data_dir}: collecting it in the simulator", highlight=False)
    collect(data.dataset, data.data_dir, **cfg.collect)


def final_scores(run: RunFolder) -> dict[str, Any]:
    """The last evaluation, and the mean of the last three."""
    evaluations = read_evaluations(run)
    keys = [key for key in evaluations[-1] if key.startswith("eval/")]
    last = {key: evaluations[-1][key] for key in keys}
    recent = {key: float(np.mean([e[key] for e in evaluations[-FINAL_EVALUATIONS:]])) for key in keys}
    return {"final": last, "mean_of_last_three": recent, "episodes": len(evaluations[-1]["returns"])}


def summarise(console: Console, run: RunFolder, result: dict[str, Any]) -> None:
    """The closing table: the scores and where everything lies."""
    table = Table(
        title=f"{result['env']} · {result['algo']} · {result['variant']} · seed {result['seed']}",
        show_header=False,
    )
    final = result["final"]
    table.add_row("success", f"[bold]{final['eval/success']:.2f}[/] over {result['episodes']} episodes")
    table.add_row("return", f"{final['eval/return']:.1f}")
    table.add_row("episode length", f"{final['eval/length']:.1f}")
    table.add_row("alpha", f"{result['alpha']:g}")
    table.add_row("updates", f"{result['updates']:,} at {result['updates_per_second']:.1f} per second")
    table.add_row("time", f"{result['seconds']:.0f} s, evaluations included")
    table.add_row("data", f"{result['dataset']} ({result['data']})")
    table.add_row("run folder", str(run.path))
    table.add_row("look", f"tensorboard --logdir {run.path}")
    table.add_row("evaluate", f"mfrl eval ckpt={run.path}")
    console.print(table, highlight=False)
