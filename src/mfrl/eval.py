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
from mfrl.config import build_algorithm, refuse_foreign_targets
from mfrl.data.transitions import DataSpec
from mfrl.envs.evaluation import EnvSpec, Evaluator
from mfrl.envs.video import write_video
from mfrl.errors import CheckpointError
from mfrl.files import write_json
from mfrl.run import find_checkpoint, load_checkpoint


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
    """Evaluate as the run did, unless told otherwise, and write every episode's numbers to a file."""
    console = Console(stderr=True)
    path = find_checkpoint(cfg.ckpt)
    module, record = load_algorithm(path, tuple(cfg.trust))
    settings = {
        key: record["config"]["eval"][key] if cfg[key] is None else cfg[key]
        for key in ("episodes", "num_envs", "workers", "seed")
    }
    policy = module.policy()
    if cfg.num_candidates is not None:
        policy.num_candidates = cfg.num_candidates
    episodes = settings.pop("episodes")
    spec = EnvSpec(**record["env"])
    with Evaluator(spec, **settings) as evaluator, Progress(console=console, transient=True) as bar:
        task = bar.add_task("evaluate", total=episodes)
        result = evaluator.run(
            policy,
            episodes,
            progress=lambda done, total, success: bar.update(
                task, completed=done, description=f"success {success:.2f}"
            ),
            video_episodes=cfg.videos if cfg.video else 0,
        )
    out = Path(cfg.out) if cfg.out else path.parent
    out.mkdir(parents=True, exist_ok=True)
    report = {"ckpt": str(path), "env": spec.env_id, "updates": module.updates, **settings}
    report |= {"num_candidates": policy.num_candidates} | result.to_json_dict()
    file = out / f"evaluation-{path.stem}-seed={settings['seed']}-episodes={episodes}.json"
    write_json(file, report)
    videos = [out / f"{path.stem}-episode={k}.mp4" for k in range(len(result.frames))]
    for video, frames in zip(videos, result.frames, strict=True):
        write_video(frames, video, FPS)

    table = Table(title=f"{spec.env_id} · update {module.updates:,}", show_header=False)
    summary = result.summary()
    table.add_row("success", f"[bold]{summary['eval/success']:.2f}[/] over {episodes} episodes")
    table.add_row("return", f"{summary['eval/return']:.1f}")
    table.add_row("episode length", f"{summary['eval/length']:.1f}")
    table.add_row("data", f"{record['provenance']['dataset']} ({record['provenance']['source']})")
    console.print(table, highlight=False)
    for what in (f"every episode  {file}", *(f"video          {video}" for video in videos)):
        console.print(escape(what), highlight=False, soft_wrap=True)
    return report
