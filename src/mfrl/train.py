"""`mfrl train`: datamodule, module, callbacks, loggers, trainer, fit."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfrl.callbacks import Checkpoint, Evaluate, Monitor, Progress
from mfrl.config import build, build_algorithm, refuse_foreign_targets
from mfrl.errors import CheckpointError, ConfigError, InterruptedRun
from mfrl.loggers import MetricsCSV
from mfrl.run import RunFolder, find_checkpoint, load_checkpoint, read_evaluations, versions

# What may change when a run goes on: its length and what leaves its numbers alone.
RESUMABLE = ("resume", "updates", "chunk", "compile", "accelerator", "data_dir", "trust", "log", "eval", "checkpoint")
FINAL_EVALUATIONS = 3  # OGBench's protocol reports the mean of the last three


def train(cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Train as configured and return what result.json holds.

    Args:
        cfg: the composed configuration (conf/train.yaml).
        overrides: what the user changed, for overrides.yaml.
    """
    check_settings(cfg)
    console = Console(stderr=True)
    checkpoint, saved = None, None
    if cfg.resume:
        checkpoint = find_checkpoint(cfg.resume).resolve()
        saved = load_checkpoint(checkpoint)
        cfg = continued(checkpoint, saved, cfg, overrides)
    first_update = saved["updates"] if saved else 0

    L.seed_everything(cfg.seed, verbose=False)
    data = build(cfg.data)
    if cfg.collect is not None:
        collect_missing(cfg, data, console)
    data.setup()
    for warning in data.warnings:
        console.print(f"[bold red]warning[/] {escape(warning)}", highlight=False)
    provenance = data.provenance()
    if saved:
        refuse_other_data(saved["mfrl"]["provenance"], provenance)
    module = build_algorithm(cfg, data.spec)

    # Everything that can be refused has been looked at: now the run leaves its first trace.
    run = RunFolder(checkpoint.parents[1]) if checkpoint else RunFolder.create(cfg.run_dir)
    cfg.run_dir, cfg.data_dir = str(run.path), str(data.data_dir.resolve())
    run.write_config(cfg, overrides)
    run.write_provenance(provenance)

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
    # The checkpoint comes before the evaluation, so that a failing simulator costs no updates.
    callbacks = [monitor, Checkpoint(run.checkpoints, extra=extra, **cfg.checkpoint), evaluate, progress]
    loggers = [
        TensorBoardLogger(
            run.path.parent, name=run.path.name, version="", purge_step=first_update + 1 if first_update else None
        ),
        MetricsCSV(run.path, first_update),
    ]
    trainer: L.Trainer = build(cfg.trainer)(callbacks=callbacks, logger=loggers)
    what = f"[bold]{cfg.env.name}[/] · {cfg.algo_name} · {cfg.variant.name} → {escape(str(run.path))}"
    console.print(what, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    with run.locked():
        with suppress(SystemExit):  # Lightning's answer to Ctrl-C
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if module.updates < cfg.updates:
            raise InterruptedRun(f"stopped at update {module.updates:,}; go on with:  mfrl train resume={run.path}")

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


def check_settings(cfg: DictConfig) -> None:
    """Refuse numbers that no run can be made of.

    Raises:
        ConfigError: naming the setting.
    """
    for key in ("updates", "batch_size", "chunk", "log.every", "eval.every", "eval.episodes", "eval.num_envs",
                "checkpoint.every"):  # fmt: skip
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key}={value} must be a whole number of at least 1")


def continued(path: Path, saved: dict[str, Any], cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the run that is resumed, with what is overridden now.

    Raises:
        ConfigError: for overrides that would make it another run, or where there is nothing left to do.
        CheckpointError: for a checkpoint outside a run folder, or one that asks for foreign classes.
    """
    if not (path.parents[1] / "config.yaml").is_file():
        raise CheckpointError(
            f"{path} lies in no run folder, so there is no run to resume (no {path.parents[1]}/config.yaml)"
        )
    old = OmegaConf.create(saved["mfrl"]["config"])
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.split(".")[0] not in RESUMABLE:
            raise ConfigError(f"{key} cannot change in a resumed run ({', '.join(RESUMABLE[1:])} can): start a new one")
        if key != "resume":
            OmegaConf.update(old, key, OmegaConf.select(cfg, key))
    old.trainer = cfg.trainer  # of this installation, not out of the file
    for part in (old.algo, old.data):
        refuse_foreign_targets(part, tuple(cfg.trust))
    if saved["updates"] >= old.updates:
        raise ConfigError(f"{path} is at update {saved['updates']} of {old.updates}; raise updates= to go on")
    return old


def refuse_other_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A run goes on with the files it began with.

    Raises:
        ConfigError: naming the file whose checksum differs.
    """
    for name, file in before["files"].items():
        if file["sha256"] != now["files"][name]["sha256"]:
            raise ConfigError(f"{name} is not the file this run began with (its checksum differs); start a new run")


def collect_missing(cfg: DictConfig, data: Any, console: Console) -> None:
    """Collect the dataset in the simulator where its files are not there yet."""
    if all(path.is_file() for path in data.paths):
        return
    from mfrl.collect import collect

    what = escape(f"{data.dataset} is not in {data.data_dir}: collecting it in the simulator")
    console.print(what, highlight=False, soft_wrap=True)
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
    table = Table(title=result["env"], show_header=False)
    final = result["final"]
    table.add_row("success", f"[bold]{final['eval/success']:.2f}[/] over {result['episodes']} episodes")
    table.add_row("return", f"{final['eval/return']:.1f}")
    table.add_row("episode length", f"{final['eval/length']:.1f}")
    table.add_row("algo, variant", f"{result['algo']}, {result['variant']}")
    table.add_row("alpha, seed", f"{result['alpha']:g}, {result['seed']}")
    table.add_row("updates", f"{result['updates']:,} at {result['updates_per_second']:.1f} per second")
    table.add_row("time", f"{result['seconds']:.0f} s, evaluations included")
    table.add_row("data", f"{result['dataset']} ({result['data']})")
    console.print(table, highlight=False)
    # Below the table and unwrapped: these lines are there to be copied.
    for what in (
        f"run folder  {run.path}",
        f"look        tensorboard --logdir {run.path}",
        f"evaluate    mfrl eval ckpt={run.path}",
    ):
        console.print(escape(what), highlight=False, soft_wrap=True)
