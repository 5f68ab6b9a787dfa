"""metrics.csv that survives a resumed run; what TensorBoard's HParams and Custom Scalars tabs show."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mfrl.errors import MfrlError
from mfrl.system.files import write_text

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
_NOT_COMPARED = ("log.", "eval.", "checkpoint.", "collect.", "trainer.", "callbacks.", "logger.")


class MetricsCSV(Logger):
    """One row per logging point, one column per metric, in ``metrics.csv``; new columns are added as they appear.

    A row is appended, or written again in its place while it is the last; all are written anew only where a column is
    new. Lightning's CSVLogger deletes an existing file; this one keeps its rows up to the update a run goes on from.
    """

    def __init__(self, run_dir: str | Path, first_update: int = 0) -> None:
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self._columns = ["updates"]
        self._last: dict[str, Any] = {}
        self._at = 0  # where the last row begins, in bytes
        if self.path.exists():
            columns, rows = self._read()
            self._write(columns, [row for row in rows if int(row["updates"]) <= first_update])

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
        assert step >= int(self._last.get("updates", 0)), f"update {step} comes after {self._last['updates']}"
        again = bool(self._last) and int(self._last["updates"]) == step
        row = (self._last if again else {"updates": step}) | metrics
        if new := metrics.keys() - set(self._columns):
            before = self._read()[1] if self._last else []
            self._write([*self._columns, *new], [*(before[:-1] if again else before), row])
            return
        with self.path.open("r+b") as file:
            self._at = file.seek(*((self._at, io.SEEK_SET) if again else (0, io.SEEK_END)))
            file.write(self._text(self._columns, [row], header=False).encode())
            file.truncate()
        self._last = row

    def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Columns and whole rows; a last one that a crash cut off is left out."""
        try:
            text = self.path.read_bytes().decode()
            reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
            rows = [row for row in reader if None not in row.values()]
            for row in rows:
                int(row["updates"])
        except (ValueError, KeyError, csv.Error) as error:
            raise MfrlError(f"{self.path} is damaged ({error}): move it away to go on without its rows") from error
        return list(reader.fieldnames or self._columns), rows

    def _write(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        """The whole file, the columns after ``updates`` in order."""
        self._columns = ["updates", *sorted({*columns} - {"updates"})]
        write_text(self.path, self._text(self._columns, rows))
        self._last = rows[-1] if rows else {}
        last = self._text(self._columns, rows[-1:], header=False)
        self._at = self.path.stat().st_size - len(last.encode())

    @staticmethod
    def _text(columns: list[str], rows: list[dict[str, Any]], header: bool = True) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


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


class RunEvents(TensorBoardLogger):
    """TensorBoard's events in the run folder, whatever its name, with a Custom Scalars tab.

    The tab is laid out at the first evaluation, which shows what scores there are.

    Args:
        critic: the algorithm has one.
    """

    def __init__(self, run_dir: str | Path, critic: bool, purge_step: int | None = None) -> None:
        run_dir = Path(run_dir)
        super().__init__(run_dir.parent, name=run_dir.name, version="", purge_step=purge_step)
        _let_a_second_pass(run_dir)
        self.run_dir, self._critic, self._laid_out = run_dir, critic, False

    @property
    def log_dir(self) -> str:
        """As it is: Lightning reads ``$NAME`` and ``~`` in it."""
        return str(self.run_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        if not self._laid_out and any(name.startswith("eval/") for name in metrics):
            self.experiment.add_custom_scalars(layout(metrics, self._critic))
            self._laid_out = True


def _let_a_second_pass(run_dir: Path) -> None:
    """Wait until the second in which the run's latest events began is over.

    TensorBoard reads a folder's event files in the order of their names, which begin with that second and go on with
    the process. Of two in one second, what a resumed run says could be read first, and then be thrown away.
    """
    times = [path.name.split(".")[3] for path in run_dir.glob("events.out.tfevents.*")]
    latest = max((int(text) for text in times if text.isdigit()), default=0)
    if 0.0 <= (left := latest + 1.0 - time.time()) <= 1.0:
        time.sleep(left)


def layout(scores: Collection[str], critic: bool) -> dict[str, dict[str, list[Any]]]:
    """The Custom Scalars tab: the curves that a run is judged by, grouped. Tags are regular expressions.

    Args:
        scores: names of what an evaluation measured; others get no chart.
        critic: the algorithm has one.
    """

    def chart(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{tag}$" for tag in tags]]

    of_scores = {
        "success": ("eval/success",),
        "return": ("eval/return",),
        "episode length": ("eval/length",),
        "normalized score": ("eval/normalized_score",),
        "Wasserstein distance": ("eval/w2", "eval/w2_floor"),
        "maximum mean discrepancy": ("eval/mmd",),
        "mode coverage": ("eval/mode_coverage",),
    }
    known = {name: chart(*tags) for name, tags in of_scores.items() if tags[0] in scores}
    of_critic = {
        "Q statistics": {
            "Q of the data and target": chart("train/q", "train/target"),
            "Q of the policy": chart("train/policy_q"),
            "smallest and largest Q": chart("train/q_min", "train/q_max"),
            "alpha": chart("train/alpha"),
        }
    }
    return {
        **({"scores": known} if known else {}),
        "losses": {
            "flow": chart("(train|val)/flow_loss"),
            "flow error": chart("(train|val)/flow_error"),
            "imitation": chart("(train|val)/(distillation|nll)_loss"),
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
