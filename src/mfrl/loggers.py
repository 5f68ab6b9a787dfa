"""metrics.csv that survives a resumed run; what TensorBoard's HParams and Custom Scalars tabs show."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mfrl.files import write_text

# Columns of the HParams tab, where a run has them: what comparisons are about. Overridden settings are added.
COMPARED = (
    "env.name",
    "env.task",
    "data.dataset",
    "data.fraction",
    "algo_name",
    "variant.name",
    "seed",
    "updates",
    "batch_size",
    "algo.alpha",
    "algo.alpha_schedule",
    "algo.num_candidates",
    "algo.time_steps",
    "algo.discount",
    "algo.q_aggregation",
    "algo.normalize_q",
    "algo.actor_lr",
    "algo.critic_lr",
)
_NOT_COMPARED = ("log.", "eval.", "checkpoint.", "collect.", "trainer.")


class RunEvents(TensorBoardLogger):
    """TensorBoard's events in the run folder itself, whatever its name: Lightning reads ``$NAME`` and ``~`` in it."""

    def __init__(self, run_dir: Path, purge_step: int | None = None) -> None:
        super().__init__(run_dir.parent, name=run_dir.name, version="", purge_step=purge_step)
        self.run_dir = run_dir

    @property
    def log_dir(self) -> str:
        return str(self.run_dir)


class MetricsCSV(Logger):
    """One row per logging point, one column per metric, in ``metrics.csv``; new columns are added as they appear.

    Lightning's CSVLogger deletes an existing file; this one keeps its rows up to the update a run goes on from.
    """

    def __init__(self, run_dir: str | Path, first_update: int = 0) -> None:
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = ((int(row["updates"]), row) for row in csv.DictReader(file))
                self._rows = {k: row for k, row in rows if k <= first_update}

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run folder's config.yaml has them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self._rows.setdefault(step, {"updates": step}).update(metrics)
        self.save()

    def save(self) -> None:
        columns = dict.fromkeys(["updates", *sorted({name for row in self._rows.values() for name in row})])
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows[k] for k in sorted(self._rows))
        write_text(self.path, text.getvalue())


def compared(cfg: DictConfig, overrides: list[str]) -> dict[str, bool | int | float | str]:
    """The settings that tell one run from another: a fixed choice, and whatever single value was overridden."""
    changed = [override.lstrip("+~").partition("=")[0] for override in overrides]
    names = dict.fromkeys([*COMPARED, *(key for key in changed if "." in key and not key.startswith(_NOT_COMPARED))])
    values = {name: OmegaConf.select(cfg, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


def log_outcome(run_dir: Path, settings: dict[str, Any], metrics: dict[str, float], updates: int) -> None:
    """A finished run's line in TensorBoard's HParams tab: in an event file of its own, replaced if the run goes on.

    TensorBoard believes the first such line it finds in a run, so a second one in another file would be ignored.

    Args:
        settings: columns to compare by.
        metrics: columns to be compared; also scalars at ``updates``.
    """
    for earlier in run_dir.glob("events.out.tfevents.*.hparams"):
        earlier.unlink()
    with SummaryWriter(str(run_dir), filename_suffix=".hparams") as writer:
        for summary in hparams(settings, metrics):
            writer.file_writer.add_summary(summary)
        for name, value in metrics.items():
            writer.add_scalar(name, value, updates)


def layout(samples: bool, critic: bool) -> dict[str, dict[str, list[Any]]]:
    """The Custom Scalars tab: the curves that a run is judged by, grouped. Tags are regular expressions.

    Args:
        samples: actions are compared with a known distribution, and not tried in a simulator.
        critic: the algorithm has one.
    """

    def chart(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{tag}$" for tag in tags]]

    in_simulator = {
        "success": chart("eval/success"),
        "return": chart("eval/return"),
        "episode length": chart("eval/length"),
        "normalized score": chart("eval/normalized_score"),
    }
    against_samples = {
        "Wasserstein distance": chart("eval/w2", "eval/w2_floor"),
        "maximum mean discrepancy": chart("eval/mmd"),
        "mode coverage": chart("eval/mode_coverage"),
    }
    of_critic = {
        "Q statistics": {
            "Q of the data and target": chart("train/q", "train/target"),
            "Q of the policy": chart("train/policy_q"),
            "smallest and largest Q": chart("train/q_min", "train/q_max"),
            "alpha": chart("train/alpha"),
        }
    }
    return {
        "scores": against_samples if samples else in_simulator,
        "losses": {
            "flow": chart("(train|val)/flow_loss"),
            "flow error": chart("(train|val)/flow_error"),
            "imitation": chart("(train|val)/(distillation|stage|nll)_loss"),
            "Q of the policy": chart("(train|val)/q_loss"),
            "critic": chart("(train|val)/critic_loss"),
            "gradient norms": chart("train/(.*_)?grad_norm"),
        },
        **(of_critic if critic else {}),
        "policy and bounds": {
            "share out of bounds": chart("(train|eval)/out_of_bounds"),
            "bound loss": chart("(train|val)/bound_loss"),
            "distance to the data": chart("train/distance_to_data"),
        },
        "speed": {"updates per second": chart("perf/updates_per_second"), "loop share": chart("perf/loop_share")},
    }
