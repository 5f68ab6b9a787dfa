"""`mfrl eval`: a policy, its normalisation and its environment out of a checkpoint alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from mfrl.algorithms.base import OfflineAlgorithm
from mfrl.callbacks.evaluation import FPS
from mfrl.callbacks.progress import format_score, score_name
from mfrl.config import build_algorithm, refuse_foreign_targets
from mfrl.data.toy import find_toy
from mfrl.data.transitions import DataSpec
from mfrl.envs.evaluation import EnvSpec, Evaluation, Evaluator
from mfrl.envs.video import write_video
from mfrl.errors import CheckpointError, ConfigError, require
from mfrl.files import write_json
from mfrl.policy import Policy
from mfrl.run import find_checkpoint, load_checkpoint
from mfrl.samples import SampleEvaluator


def load_algorithm(path: str | Path, trusted: tuple[str, ...] = ()) -> tuple[OfflineAlgorithm, dict[str, Any]]:
    """The trained module of a checkpoint, and the plain record it carries (config, spec, env, provenance).

    Raises:
        CheckpointError: for a file that is missing, damaged, not ours, or asks to build foreign classes.
    """
    path = find_checkpoint(path)
    checkpoint = load_checkpoint(path)
    record = checkpoint["mfrl"]
    cfg = OmegaConf.create(record["config"])
    refuse_foreign_targets(cfg.algo, trusted)
    cfg.compile = False
    module = build_algorithm(cfg, DataSpec(**record["spec"]))
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the weights do not fit the networks it describes: {error}") from error
    module.updates = checkpoint["updates"]
    return module.eval().requires_grad_(False), record


def evaluate_checkpoint(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate as the run did, unless told otherwise, and write every number to a file.

    Raises:
        CheckpointError: from :func:`load_algorithm`.
        ConfigError: for a setting that the run's kind of evaluation does not have, or that is no such number, or that
            neither the run nor the user gives.
        EnvError: the run's data have no environment.
    """
    console = Console(stderr=True)
    path = find_checkpoint(cfg.ckpt)
    module, record = load_algorithm(path, tuple(cfg.trust))
    spec, policy = EnvSpec(**record["env"] | {"trust": tuple(cfg.trust)}), module.policy()
    if cfg.num_candidates is not None:
        possible = type(cfg.num_candidates) is int and cfg.num_candidates >= 1
        require("num_candidates", possible, cfg.num_candidates, "a whole number of at least 1")
        policy.num_candidates = cfg.num_candidates
    of_samples = spec.suite == "toy"
    names = ("samples", "seed") if of_samples else ("episodes", "num_envs", "workers", "seed")
    foreign = [name for name in ("episodes", "num_envs", "workers", "samples") if name not in names]
    for name in foreign + ["num_candidates", "video"] * of_samples:
        if cfg[name] is not None and cfg[name] is not False:
            raise ConfigError(f"{name} is no setting of an evaluation of {spec.env_id} ({', '.join(names)} are)")
    if not of_samples:
        spec.check()
    settings = {name: record["config"]["eval"].get(name) if cfg[name] is None else cfg[name] for name in names}
    if missing := [name for name, value in settings.items() if value is None and name != "workers"]:
        raise ConfigError(
            f"{path} is of a run that was not evaluated in {spec.env_id}, so say how: "
            f"{' '.join(f'{name}=...' for name in missing)}"
        )
    for name, value in settings.items():
        least = 0 if name in ("workers", "seed") else 1
        holds = (name == "workers" and value is None) or (type(value) is int and value >= least)
        require(name, holds, value, f"a whole number of at least {least}")
    if of_samples:
        result, frames = SampleEvaluator(find_toy(spec.env_id), **settings).run(policy), []
    else:
        result = run_episodes(spec, policy, console, videos=cfg.videos if cfg.video else 0, **settings)
        frames = result.frames

    out = Path(cfg.out).expanduser() if cfg.out else path.parent
    out.mkdir(parents=True, exist_ok=True)
    report = {"ckpt": str(path), "env": spec.env_id, "updates": module.updates, **settings}
    report |= {"num_candidates": policy.num_candidates} | result.to_json_dict()
    file = out / f"evaluation-{path.stem}-seed={settings['seed']}-episodes={report['episodes']}.json"
    write_json(file, report)
    videos = [out / f"{path.stem}-episode={k}.mp4" for k in range(len(frames))]
    for video, film in zip(videos, frames, strict=True):
        write_video(film, video, FPS)

    table = Table(title=f"{spec.env_id} · update {module.updates:,}", show_header=False)
    for key, value in result.summary().items():
        table.add_row(score_name(key), f"[bold]{format_score(key, value)}[/]")
    table.add_row("evaluated over", f"{report['episodes']} {names[0]}")
    table.add_row("data", f"{record['provenance']['dataset']} ({record['provenance']['source']})")
    console.print(table, highlight=False)
    for what in (f"every number   {file}", *(f"video          {video}" for video in videos)):
        console.print(escape(what), highlight=False, soft_wrap=True)
    return report


def run_episodes(
    spec: EnvSpec, policy: Policy, console: Console, episodes: int, videos: int, **settings: Any
) -> Evaluation:
    """Episodes in the simulator, with a progress bar."""
    with Evaluator(spec, **settings) as evaluator, Progress(console=console, transient=True) as bar:
        task = bar.add_task("evaluate", total=episodes)
        return evaluator.run(
            policy,
            episodes,
            progress=lambda done, total, success: bar.update(
                task, completed=done, description=f"success {success:.2f}"
            ),
            video_episodes=videos,
        )
