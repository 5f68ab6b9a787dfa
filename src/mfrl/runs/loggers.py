"""Loggers: ``metrics.csv``, which keeps its rows when a run is resumed, and TensorBoard with tabs to compare runs."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, ListConfig, OmegaConf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName, Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

from mfrl.errors import MfrlError
from mfrl.runs.folder import RunFolder, read_evaluations
from mfrl.runs.read import flatten
from mfrl.runs.scores import score_curve
from mfrl.runs.targets import plain_settings, settings_of
from mfrl.settings import OnlineSettings
from mfrl.system.files import write_text

Layout = dict[str, dict[str, list[Any]]]

# Users know these columns of metrics.csv by name, so they have the same tags in TensorBoard. The other columns that
# begin with train/ are grouped there by actor and critic.
_UNCHANGED = ("train/critic_loss", "train/flow_loss", "train/q", "train/alpha")
_CRITIC_COLUMNS = ("q_min", "q_max", "target", "policy_q", "v", "advantage", "next_distance_to_data")


def tag(column: str) -> str:
    """The tag in TensorBoard of a column of ``metrics.csv``. No other place renames columns.

    For example, ``train/critic_lr`` becomes ``critic/lr``, ``train/q_max`` becomes ``critic/q_max``, and
    ``train/actor_grad_norm`` becomes ``actor/grad_norm``.
    """
    section, _, name = column.partition("/")
    if section != "train" or column in _UNCHANGED:
        return column
    if name in _CRITIC_COLUMNS or name.startswith(("critic_", "value_")):
        return f"critic/{name.removeprefix('critic_')}"
    return f"actor/{name.removeprefix('actor_')}"


_TYPES = {kind: DataType.Value("DATA_TYPE_FLOAT64") for kind in (int, float)} | {
    str: DataType.Value("DATA_TYPE_STRING")
}


class MetricsCSV(Logger):
    """Writes ``metrics.csv``: a row for each logged update, a column for each metric.

    A new row is appended. Metrics of the last row's update are added to that row. The whole file is written again only
    when a metric is new. Lightning's CSVLogger deletes an existing file; this one keeps the rows up to the update from
    which a run is resumed.

    Args:
        run_dir: the run folder.
        first_update: the number of updates that the run starts after; later rows are dropped.

    Raises:
        MfrlError: the file is damaged (also from ``log_metrics``).
    """

    def __init__(self, run_dir: str | Path, first_update: int = 0) -> None:
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self._columns = ["updates"]
        self._last: dict[str, Any] = {}
        self._last_row_at = 0  # bytes before the last row
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
        """Do nothing: config.yaml has them."""

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
            self._last_row_at = file.seek(*((self._last_row_at, io.SEEK_SET) if again else (0, io.SEEK_END)))
            file.write(self._text(self._columns, [row], header=False).encode())
            file.truncate()
        self._last = row

    def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        """The columns and the complete rows. If a crash cut off the last row, it is left out."""
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
        """Write the whole file, with ``updates`` as the first column and the others in alphabetical order."""
        self._columns = ["updates", *sorted({*columns} - {"updates"})]
        write_text(self.path, self._text(self._columns, rows))
        self._last = rows[-1] if rows else {}
        last = self._text(self._columns, rows[-1:], header=False)
        self._last_row_at = self.path.stat().st_size - len(last.encode())

    @staticmethod
    def _text(columns: list[str], rows: list[dict[str, Any]], header: bool = True) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


@dataclass(frozen=True)
class Setting:
    """A column of the HParams tab.

    Attributes:
        name, value: heading and cell.
        first: show the column without being asked.
    """

    name: str
    value: float | str
    first: bool = False


# TensorBoard sorts columns by name, blanks before letters, and shows the first five and then the scores, which it puts
# behind all settings. Its page hides leading blanks.
_VARIANT, _SEED, _ENV, _ALPHA = "    variant", "   seed", "  env", " algo.alpha"
_LEFT_OUT = ("algo.alpha", "algo.encoder", "algo.seed", "algo.updates", "algo.variant", "env.task", "variant.name")
_NOT_COMPARED = ("log.", "eval.", "checkpoint.", "collect.", "trainer.")


def compared_settings(cfg: DictConfig, overrides: Sequence[str]) -> list[Setting]:
    """The columns of a run in the HParams tab: the settings that may differ between runs.

    All runs of an algorithm have the same columns, with defaults where nothing is overridden, because Parallel
    Coordinates leaves out a run that lacks a column. The first columns are variant (of an algorithm without one: the
    algorithm), seed, environment, alpha, and the settings that were overridden. If a folder has runs of several
    algorithms, TensorBoard shows the columns of the first run.

    Args:
        cfg: the run's configuration.
        overrides: the user's.
    """
    task = f" task {cfg.env.task}" if cfg.env.get("task") is not None else ""
    method = cfg.algo_name if cfg.variant.name == "none" else cfg.variant.name
    front = {_VARIANT: method, _SEED: cfg.seed, _ENV: f"{cfg.env.name}{task}"}
    if "alpha" in cfg.algo:
        front[_ALPHA] = cfg.algo.alpha
    changed = [override.lstrip("+~").partition("=")[0] for override in overrides]
    keys = ["algo_name", "updates", "batch_size", "data.dataset", "data.fraction"]
    keys += [f"algo.{key}" for key in cfg.algo if not key.startswith("_")]
    keys += [f"online.{key}" for key in cfg.online]
    network = flatten(plain_settings(cfg.network, resolve=False), "network.")
    keys += [key for key in network if "._" not in key]
    keys += [key for key in changed if "." in key and not key.startswith(_NOT_COMPARED)]
    values = {key: OmegaConf.select(cfg, key) for key in dict.fromkeys(keys) if key not in _LEFT_OUT}
    optional = {f"algo.{key}" for key, annotation in (settings_of(cfg.algo) or {}).items() if "None" in annotation}
    optional |= {f"online.{field.name}" for field in fields(OnlineSettings) if "None" in str(field.type)}
    first = {"algo_name" if key == "algo" else key for key in changed}
    return [
        *(Setting(name, value, True) for name, value in front.items()),
        *(
            Setting(key, _hparam_value(value, key in optional), key in first)
            for key, value in values.items()
            if not isinstance(value, DictConfig) and (value is not None or key in optional)
        ),
    ]


def _hparam_value(value: Any, optional: bool) -> float | str:
    """The cell of a setting: a number stays a number, anything else becomes text.

    Args:
        optional: the setting is null in other runs. Then a number becomes text too, so that a column has one type.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and not optional:
        return value
    if isinstance(value, ListConfig):
        value = list(value)
    return value if isinstance(value, str) else json.dumps(value)


def log_outcome(run: RunFolder, settings: Sequence[Setting], count: int) -> None:
    """Write a finished run's row of the HParams tab, with the curve of its score.

    The row is in an event file of its own, which is replaced when the run is resumed: TensorBoard uses the first row
    that it finds in a run's folder and ignores others.

    Args:
        run: the run folder; its ``eval.jsonl`` has the scores.
        settings: the columns.
        count: the number of evaluations that a score is the mean of.
    """
    for earlier in run.path.glob("events.out.tfevents.*.hparams"):
        earlier.unlink()
    evaluations = read_evaluations(run)
    columns = [HParamInfo(name=s.name, differs=s.first, type=_TYPES[type(s.value)]) for s in settings]
    metrics = ["score", *(key for key in evaluations[-1] if key.startswith("eval/"))]
    experiment = Experiment(hparam_infos=columns, metric_infos=[MetricInfo(name=MetricName(tag=m)) for m in metrics])
    start = SessionStartInfo()
    for setting in settings:
        field = "string_value" if isinstance(setting.value, str) else "number_value"
        setattr(start.hparams[setting.name], field, setting.value)
    end = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"))
    with SummaryWriter(str(run.path), filename_suffix=".hparams") as writer:
        for name, content in (
            (metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
            (metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
            (metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
        ):
            value = Summary.Value(tag=name, metadata=metadata.create_summary_metadata(content))
            writer.file_writer.add_summary(Summary(value=[value]))
        for updates, score in score_curve(evaluations, count).items():
            writer.add_scalar("score", score, updates)


class RunEvents(TensorBoardLogger):
    """Writes TensorBoard's events into the run folder, with a Custom Scalars tab.

    Tags are grouped, see :func:`tag`. The tab's layout is written again when new tags are logged.

    Args:
        run_dir: the run folder.
        purge_step: TensorBoard drops earlier events from this update on; None keeps all.
    """

    def __init__(self, run_dir: str | Path, purge_step: int | None = None) -> None:
        run_dir = Path(run_dir)
        super().__init__(run_dir.parent, name=run_dir.name, version="", purge_step=purge_step)
        _wait_for_next_second(run_dir)
        self.run_dir = run_dir
        self._tags: set[str] = set()
        self._layout: Layout = {}

    @property
    def log_dir(self) -> str:
        """The run folder as given. Lightning's own property would expand ``$NAME`` and ``~`` in it."""
        return str(self.run_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        tagged = {tag(name): value for name, value in metrics.items()}
        super().log_metrics(tagged, step)
        self._tags |= tagged.keys()
        if (found := layout(self._tags)) != self._layout:  # TensorBoard shows the layout that was written last
            self._layout = found
            self.experiment.add_custom_scalars(found)


def _wait_for_next_second(run_dir: Path) -> None:
    """Wait until the clock shows a later second than the name of the run's latest event file.

    TensorBoard reads event files in the order of their names, and a name has the second of its creation before the
    process id. Of two files of one second, the resumed run's could be read first, and its events be dropped.
    """
    times = [path.name.split(".")[3] for path in run_dir.glob("events.out.tfevents.*")]
    latest = max((int(text) for text in times if text.isdigit()), default=0)
    if 0.0 <= (left := latest + 1.0 - time.time()) <= 1.0:
        time.sleep(left)


def layout(tags: Collection[str]) -> Layout:
    """The layout of the Custom Scalars tab: the most important curves in groups, without empty charts.

    TensorBoard draws all curves of a run in one colour. Curves therefore share a chart only if their heights tell them
    apart, and held-out losses have charts of their own.

    Args:
        tags: the tags that the run has logged.

    Returns:
        for each group and chart, what ``SummaryWriter.add_custom_scalars`` takes.
    """
    charts: dict[str, dict[str, list[str] | tuple[str, ...]]] = {
        "evaluation": {
            "success": ["eval/success"],
            "return": ["eval/return"],
            "normalized score": ["eval/normalized_score"],
            "episode length": ["eval/length"],
            "Wasserstein distance to the data, and its floor": ["eval/w2", "eval/w2_floor"],
            "maximum mean discrepancy": ["eval/mmd"],
            "mode coverage": ["eval/mode_coverage"],
            "actions off every mode": ["eval/off_mode"],
            "actions out of bounds": ["eval/out_of_bounds"],
        },
        "actor": {
            "flow loss": ["train/flow_loss"],
            "flow error": ["actor/flow_error"],
            "distillation loss": ["actor/distillation_loss"],
            "drift loss": ["actor/drift_loss"],
            "negative log-likelihood": ["actor/nll_loss"],
            "behaviour cloning loss": ["actor/bc_loss"],
            "advantage-weighted loss": ["actor/awr_loss"],
            "alpha": ["train/alpha"],
            "bound loss": ["actor/bound_loss"],
            "actions out of bounds": ["actor/out_of_bounds"],
            "distance to the data": ["actor/distance_to_data"],
            "gradient norm": ["actor/(.+_)?grad_norm"],
        },
        "critic": {
            "critic loss": ["train/critic_loss"],
            "value loss": ["critic/value_loss"],
            "Q of the data, from the smallest to the largest": ("train/q", "critic/q_min", "critic/q_max"),
            "Bellman target": ["critic/target"],
            "Q of the policy": ["critic/policy_q"],
            "V of the data": ["critic/v"],
            "advantage of the data": ["critic/advantage"],
            "gradient norm": ["critic/(.+_)?grad_norm"],
        },
        "held out": {
            "flow loss": ["val/flow_loss"],
            "distillation loss": ["val/distillation_loss"],
            "drift loss": ["val/drift_loss"],
            "negative log-likelihood": ["val/nll_loss"],
            "behaviour cloning loss": ["val/bc_loss"],
            "advantage-weighted loss": ["val/awr_loss"],
            "bound loss": ["val/bound_loss"],
            "critic loss": ["val/critic_loss"],
            "value loss": ["val/value_loss"],
        },
        "online": {
            "success": ["online/success"],
            "return": ["online/return"],
            "episode length": ["online/length"],
        },
        "speed": {
            "updates per second": ["perf/updates_per_second"],
            "share of the time outside updates": ["perf/loop_share"],
            "share of the time in the environment": ["perf/interaction_share"],
        },
    }
    found: Layout = {}
    for category, of_category in charts.items():
        for title, patterns in of_category.items():
            if any(re.fullmatch(pattern, tag) for pattern in patterns for tag in tags):
                band = isinstance(patterns, tuple)  # a value, its lower bound and its upper bound
                chart = ["Margin", list(patterns)] if band else ["Multiline", [f"^{pattern}$" for pattern in patterns]]
                found.setdefault(category, {})[title] = chart
    return found
