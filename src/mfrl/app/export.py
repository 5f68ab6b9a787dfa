"""`mfrl export`: the policy of a checkpoint in a file that another runtime executes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from mfrl.app.evaluate import as_evaluated
from mfrl.deploy.acting import Graph
from mfrl.deploy.export import description_of, export
from mfrl.deploy.formats import FORMATS, Run, find_format
from mfrl.deploy.parity import TOLERANCE, Played, play
from mfrl.deploy.policy import load
from mfrl.envs.evaluation import Evaluator
from mfrl.errors import ConfigError, require
from mfrl.runs.checkpoint import find_checkpoint, load_checkpoint
from mfrl.runs.load import recorded_env

EPISODES = ("episodes", "num_envs", "workers", "seed")  # settings of the episodes of verify_env


def export_checkpoint(cfg: DictConfig) -> dict[str, Any]:
    """Export as configured (conf/export.yaml), say what was compared, and where the file is.

    Raises:
        CheckpointError: from :func:`mfrl.deploy.policy.load`.
        ConfigError, ExportError: from :func:`mfrl.deploy.export.export`.
    """
    require("verify_env", type(cfg.verify_env) is bool, cfg.verify_env, "true or false")
    find_format(cfg.format)  # before a checkpoint is read
    console = Console(stderr=True)
    path = find_checkpoint(cfg.ckpt)
    played = episodes(cfg, path, console) if cfg.verify_env else None
    out = Path(cfg.out).expanduser() if cfg.out else path.parent / f"{path.stem}{FORMATS[cfg.format].ending}"
    policy = load(path, tuple(cfg.trust))
    description = export(policy, out, cfg.format, cfg.noise, cfg.num_candidates, cfg.opset, played)
    table = Table(title=escape(f"{description['env']} · update {description['updates']:,}"), show_header=False)
    for name, part in (description["inputs"] | description["outputs"]).items():
        table.add_row(name, escape(f"{part['type']} ({', '.join(map(str, part['shape']))})"))
    table.add_row("largest difference", f"[bold]{description['compared']['largest_difference']:.1e}[/]")
    if "played" in description:
        said = description["played"]
        table.add_row(f"{said['score']}, {cfg.format}", f"[bold]{said['exported']:.3f}[/]")
        table.add_row(f"{said['score']}, PyTorch", f"[bold]{said['pytorch']:.3f}[/]")
        table.add_row("equal episodes", f"{said['equal_episodes']} of {said['episodes']}")
    console.print(table, highlight=False)
    console.print(f"differences are of actions in [-1, 1]; {TOLERANCE:g} would be refused", highlight=False)
    for what in (f"policy         {out}", f"description    {description_of(out)}"):
        console.print(escape(what), highlight=False, soft_wrap=True)
    return description


def episodes(cfg: DictConfig, path: Path, console: Console) -> Any:
    """What plays the run's own evaluation episodes with an exported graph and in PyTorch.

    Raises:
        ConfigError: the run has no episodes, or a setting of theirs is missing or no such number.
        EnvError: its environment cannot be built.
    """
    record = load_checkpoint(path)["mfrl"]
    spec = recorded_env(record, tuple(cfg.trust))
    if spec.suite == "toy":
        raise ConfigError(f"verify_env=true: a run on {spec.env_id} is judged by its samples, and plays no episodes")
    spec.check()
    settings = as_evaluated(cfg, record["config"], EPISODES, f"{path} is of a run that was not evaluated in episodes")
    count = settings.pop("episodes")

    def compare(graph: Graph, run: Run) -> Played:
        with Evaluator(spec, **settings) as evaluator, Progress(console=console, transient=True) as bar:
            task = bar.add_task("play", total=count)
            return play(graph, run, evaluator, count, lambda done, *_: bar.update(task, completed=done))

    return compare
