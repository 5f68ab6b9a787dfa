"""Prints what a run is going to do, and at its end its scores; writes result.json."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfrl.app.checks import total_updates
from mfrl.app.parts import trains_on_gpu
from mfrl.app.resume import telling_how_to_resume
from mfrl.app.watch import StartedRun, interim_episodes
from mfrl.learning.compiling import factors_of_products
from mfrl.learning.training import Member, Training
from mfrl.report.groups import SCORES, known_metric, unsteady
from mfrl.report.tables import DEPENDS_ON_WHEN
from mfrl.runs.folder import RunFolder, read_evaluations, versions
from mfrl.runs.jobs import method_name
from mfrl.runs.loggers import compared_settings, log_outcome
from mfrl.runs.scores import (
    format_score,
    format_seconds,
    last_evaluations,
    main_score,
    protocol_evaluations,
    score_name,
)
from mfrl.system.paths import pasted


def announce(console: Console, cfg: DictConfig, where: str, first_update: int, why: str) -> None:
    """Print three lines on what a run is going to do, and a fourth on rounded products if they were asked for.

    Args:
        where: the run folder, or several.
        first_update: the number of updates it starts after.
        why: the reason why updates are compiled or not.
    """
    method = " · ".join(dict.fromkeys((cfg.algo_name, method_name(cfg))))
    env, what = (escape(str(name)) for name in (cfg.env.name, f"{method} → {where}"))
    console.print(f"[bold]{env}[/] · {what}", highlight=False, soft_wrap=True)
    console.print(escape(plan(cfg, first_update)), highlight=False, soft_wrap=True)
    console.print(escape(f"{'compiled' if cfg.compile else 'eager'}: {why}"), highlight=False, soft_wrap=True)
    if cfg.bf16:
        seen = factors_of_products(torch.device("cuda" if trains_on_gpu(cfg) else "cpu"))
        note = "" if seen == "bf16" else ": this processor rounds none to bf16"
        console.print(f"products of {seen} factors{note}", highlight=False, soft_wrap=True)


def plan(cfg: DictConfig, first_update: int) -> str:
    """What a run is going to do, in one line, e.g. "6,000 updates of batch 256, evaluated every 1,000"."""
    total = total_updates(cfg)
    updates = f"{total - first_update:,} updates" + (f" after {first_update:,}" if first_update else "")
    if cfg.online.steps:
        left = total - max(first_update, cfg.updates)
        updates += f", {'all' if left == total - first_update else f'{left:,} of them'} online"
    over = ""
    if "episodes" in cfg.eval:
        interim = interim_episodes(cfg)
        over = f" over {interim} episodes" + (f", {cfg.eval.episodes} at the end" * (interim != cfg.eval.episodes))
    return f"{updates} of batch {cfg.batch_size}, evaluated every {cfg.eval.every:,}{over}"


def finish(started: StartedRun, module: Training | Member) -> dict[str, Any]:
    """Write result.json and the run's row in TensorBoard's HParams tab.

    Args:
        started: the run.
        module: what was trained, or a member of a population.

    Returns:
        what result.json holds.
    """
    cfg, run = started.cfg, started.run
    assert module.learner is not None
    result = {
        "env": started.data.env.env_id,
        "dataset": started.data.dataset,
        "algo": cfg.algo_name,
        "variant": cfg.variant.name,
        **({"alpha": cfg.algo.alpha} if "alpha" in cfg.algo else {}),
        "seed": cfg.seed,
        "data": started.source,
        "updates": module.updates,
        **({"online": online_start(run, cfg)} if cfg.online.steps else {}),
        **final_scores(run),
        "seconds": round(time.perf_counter() - started.started_at, 2),
        "updates_per_second": round(started.monitor.updates / max(started.monitor.seconds, 1e-9), 3),
        "compiled": cfg.compile,
        "matmul": factors_of_products(module.learner.device),
        "warnings": [*started.data.warnings, *started.monitor.explosions.warnings],
        "versions": versions(),
    }
    with telling_how_to_resume(run, module, started.checkpoints):
        if any(isinstance(logger, TensorBoardLogger) for logger in started.loggers.values()):
            count = protocol_evaluations(cfg.env.suite, started.data.dataset)
            log_outcome(run, compared_settings(cfg, started.overrides), count)
        run.write_result(result)
    return result


def final_scores(run: RunFolder) -> dict[str, Any]:
    """The scores of a run: the last evaluation, the mean of the last three, and the best one with its update.

    The best one has the best value of the main score; of equal values, the earliest. It is there to compare with the
    others. Do not quote it as a score: it is the best of several noisy evaluations, so it is too high on average.
    """
    evaluations = read_evaluations(run)
    keys = [key for key in evaluations[-1] if key.startswith("eval/")]
    last = {key: evaluations[-1][key] for key in keys}
    recent = last_evaluations(evaluations, SCORES["last3"])
    # Not every evaluation has every score: some environments report successes but no failures.
    means = {key: float(np.mean([e[key] for e in recent])) for key in keys if all(key in e for e in recent)}
    sizes: dict[str, Any] = {key: evaluations[-1][key] for key in ("episodes", "transitions") if key in evaluations[-1]}
    key = main_score(keys)
    choose = min if known_metric(key).lower_is_better else max
    best = choose((e for e in evaluations if key in e), key=lambda e: e[key])
    best = {name: best[name] for name in (key, "updates", "episodes") if name in best}
    return {"final": last, "mean_of_last_three": means, "best": best, **sizes}


def online_start(run: RunFolder, cfg: DictConfig) -> dict[str, Any]:
    """The steps of a run's online phase, the update at which it began, and the scores there, if there are any."""
    there = [e for e in read_evaluations(run) if e["updates"] == cfg.updates]
    scores = {key: value for e in there for key, value in e.items() if key.startswith("eval/")}
    return {"steps": cfg.online.steps, "after_updates": cfg.updates, **scores}


def summarise(console: Console, run: RunFolder, result: dict[str, Any]) -> None:
    """Print the closing table: the scores, and commands to look further.

    Args:
        result: what result.json holds.
    """
    table = Table(title=result["env"], show_header=False)
    for key, value in result["final"].items():
        table.add_row(score_name(key), f"[bold]{format_score(key, value)}[/]")
    key = main_score(result["final"])
    if key in result["mean_of_last_three"]:
        table.add_row(f"{score_name(key)}, mean of last three", format_score(key, result["mean_of_last_three"][key]))
    best = result["best"]
    over = f" ({best['episodes']} episodes)" if "eval/return" in result["final"] else ""
    table.add_row(f"{score_name(key)}, best", f"{format_score(key, best[key])} at update {best['updates']:,}{over}")
    kind = "episodes" if "eval/return" in result["final"] else "samples"
    over = f"{result['transitions']:,} transitions" if "transitions" in result else f"{result['episodes']} {kind}"
    table.add_row("evaluated over", over)
    if online := result.get("online"):
        table.add_row("online", f"{online['steps']:,} steps after update {online['after_updates']:,}")
        if key in online:
            table.add_row(f"{score_name(key)} before them", format_score(key, online[key]))
    table.add_row("algo, variant", f"{result['algo']}, {result['variant']}")
    if "alpha" in result:
        table.add_row("alpha", f"{result['alpha']:g}")
    table.add_row("seed", f"{result['seed']}")
    table.add_row("updates", f"{result['updates']:,} at {result['updates_per_second']:.1f} per second")
    table.add_row("time", f"{format_seconds(result['seconds'])}, evaluations included")
    table.add_row("data", f"{result['dataset']} ({result['data']})")
    console.print(table, highlight=False)
    if found := unsteady(read_evaluations(run)):
        console.print(f"[bold yellow]{found}[/]. {DEPENDS_ON_WHEN}", highlight=False)
    for warning in result["warnings"]:
        console.print(f"[bold red]warning[/] {escape(warning)}", highlight=False, soft_wrap=True)
    # These lines are not wrapped, so that they can be copied.
    for what in (
        f"run folder  {run.path}",
        f"look        {pasted('tensorboard', '--logdir', run.path)}",
        f"evaluate    {pasted('mfrl', 'eval', ckpt=run.path)}",
    ):
        console.print(escape(what), highlight=False, soft_wrap=True)
