"""Trackers: loggers that keep a run's record outside of its folder, in Weights & Biases or MLflow.

A run has one record in each tracker, however often it is resumed. The record's id is in ``trackers.json`` in the run
folder. It is not in the checkpoint, because a run that is killed before its first checkpoint has a record already.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import time
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from mfrl.errors import CREDENTIALS, MfrlError
from mfrl.runs.jobs import FAILED, FINISHED, STOPPED
from mfrl.runs.loggers import tag
from mfrl.system.files import one_at_a_time, write_json
from mfrl.system.processes import environment

if TYPE_CHECKING:
    from mlflow.entities import Metric

RECORDS = "trackers.json"
_URI = "MLFLOW_TRACKING_URI"
_LARGEST_BATCH = 1000  # numbers that MLflow takes at once
_PAUSE_SECONDS = 300.0  # a store that was away is asked again after so long: asking holds up training


class Tracker(Logger):
    """What both trackers have in common: tags as in TensorBoard, and an end that says how the run has ended.

    Attributes:
        packages: what the tracker needs, as modules, each with the name that pip knows.
    """

    packages: ClassVar[Mapping[str, str]]

    def finalize(self, status: str = "success") -> None:
        """Do nothing: Lightning calls it before the last evaluation of a run that has made all of its updates."""

    @abstractmethod
    def close(self, status: str) -> None:
        """End the record. If the run is resumed, its record is opened again.

        Args:
            status: ``finished``, ``stopped`` or ``failed``, see :class:`mfrl.runs.jobs.Outcome`.
        """


class WandbRun(Tracker, WandbLogger):
    """Lightning's logger for Weights & Biases, with a record of its own for each run folder.

    W&B's own step is the update. A record never goes back: of the updates after its checkpoint, which a resumed run
    makes again, the record keeps what the first attempt has logged.

    Args:
        run_dir: the run folder. W&B's files go to ``wandb/`` in it.
        project, entity, name, group, tags, notes, job_type, settings: see ``wandb.init``. ``name`` None: the last parts
            of ``run_dir``.
        mode: ``online``, ``offline`` or ``disabled``; None: what ``WANDB_MODE`` says, otherwise online where there is a
            login, and offline where there is none.
    """

    packages: ClassVar = {"wandb": "wandb"}

    def __init__(
        self,
        run_dir: str | Path,
        project: str,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        job_type: str | None = None,
        mode: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if mode is None and "WANDB_MODE" not in os.environ and not _logged_in():
            mode = "offline"
        record = recorded(run_dir, "wandb")
        super().__init__(
            name=name or _name(run_dir),
            save_dir=run_dir,
            id=record or secrets.token_hex(8),
            project=project,
            entity=entity,
            group=group,
            tags=[*tags],
            notes=notes,
            job_type=job_type,
            mode=mode,
            settings=dict(settings or {}),
            reinit="create_new",  # members of a pack share a process, and each has a record of its own
        )
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, whatever it is
        if record is None:
            assert self.version is not None
            remember(run_dir, "wandb", self.version)  # before there is a record: a kill leaves none behind

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Begin the record, or open it again, with the run's settings.

        Raises:
            MfrlError: W&B does not begin it.
        """
        import wandb

        try:
            super().log_hyperparams(params)
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise MfrlError(f"logger=wandb: {reason}; logger.wandb.mode=offline does without a server") from error

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Lightning names the second number as the axis of all others.
        tagged = {tag(name): value for name, value in metrics.items()}
        self.experiment.log(tagged | {"trainer/global_step": step}, step=step)

    def close(self, status: str) -> None:
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == FINISHED else 1)


def _logged_in() -> bool:
    """Whether W&B finds a login, where it looks for one: in the environment, and in netrc."""
    import wandb
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return get_netrc_auth(wandb.setup().settings.base_url) is not None


class MLflowRun(Tracker, MLFlowLogger):
    """Lightning's logger for MLflow, with a record (MLflow's run) of its own for each run folder.

    A number is logged once: of the updates after its checkpoint, which a resumed run makes again, the record keeps what
    the first attempt has logged. MLflow's parameters cannot change; a setting that a resumed run changes is a tag.

    If the store cannot be reached while the run trains, the numbers wait for the next attempt, five minutes later.

    Args:
        run_dir: the run folder.
        experiment_name, run_name: see :class:`MLFlowLogger`. ``run_name`` None: the last parts of ``run_dir``.
        tracking_uri: None: what ``MLFLOW_TRACKING_URI`` says, otherwise the file ``database``.
        database: an SQLite file.
        tags: of the record.
    """

    packages: ClassVar = {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"}

    def __init__(
        self,
        run_dir: str | Path,
        experiment_name: str,
        database: str | Path,
        tracking_uri: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent to anyone who was not named
        # Training waits for the server. By default one that is away holds it up for minutes, at every attempt.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        uri = tracking_uri or os.environ.get(_URI)
        path = Path(database).expanduser().resolve()
        self.run_dir = Path(run_dir)
        with ExitStack() as alone:
            if uri is None:  # MLflow makes the tables here, and two processes that do so at once fail
                alone.enter_context(one_at_a_time(path.with_name(f".{path.name}.lock")))
            super().__init__(
                experiment_name=experiment_name,
                run_name=run_name or _name(run_dir),
                tracking_uri=uri or f"sqlite:///{path}",
                tags=dict(tags or {}),
                run_id=recorded(run_dir, "mlflow"),
            )
        self._last: dict[str, int] = {}  # by tag, the last update that an earlier attempt has logged
        self._waiting: list[Metric] = []
        self._not_before = -math.inf  # :func:`time.monotonic` of the next attempt

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Begin the record, or open it again, with the run's settings.

        Raises:
            MfrlError: MLflow does not begin it, or does not know it.
        """
        from mlflow.exceptions import MlflowException

        # Lightning sets the variable, where the next run of this process would find it.
        with environment({_URI: os.environ.get(_URI)}):
            try:
                self._open()
                before = self.experiment.get_run(self.run_id).data.params
                # MLflow's names have no other signs, and Lightning cuts values off.
                given = {re.sub(r"[^\w./: -]", "_", str(key)): str(value)[:250] for key, value in params.items()}
                super().log_hyperparams({key: value for key, value in given.items() if key not in before})
                for key, value in given.items():
                    if before.get(key, value) != value:
                        self.experiment.set_tag(self.run_id, key, value)
            except MlflowException as error:
                place = f"{self._tracking_uri} (logger.mlflow.tracking_uri)"
                known = f", which {self.run_dir / RECORDS} names" if self._run_id else ""
                raise MfrlError(_told(f"{place} gives no record{known}: {error}")) from error

    def _open(self) -> None:
        from mlflow.exceptions import MlflowException

        if recorded(self.run_dir, "mlflow") is None:
            client, name = self._mlflow_client, self._experiment_name
            try:
                client.create_experiment(name)
            except MlflowException:  # it is there: another run of the sweep may have made it just now
                if client.get_experiment_by_name(name) is None:
                    raise
            assert self.run_id is not None
            remember(self.run_dir, "mlflow", self.run_id)
        record = self.experiment.get_run(self.run_id)
        self.experiment.update_run(self.run_id, status="RUNNING")
        for key in record.data.metrics:
            self._last[key] = max(metric.step for metric in self.experiment.get_metric_history(self.run_id, key))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        assert step is not None
        now = int(1000 * time.time())
        tagged = {tag(name): value for name, value in metrics.items()}
        self._waiting += [Metric(key, x, now, step) for key, x in tagged.items() if step > self._last.get(key, -1)]
        if time.monotonic() >= self._not_before:
            self._send()

    def _send(self) -> None:
        """Log what waits. What the store does not take now goes on waiting."""
        from mlflow.exceptions import MlflowException

        try:
            while self._waiting:
                self.experiment.log_batch(self.run_id, metrics=self._waiting[:_LARGEST_BATCH])
                del self._waiting[:_LARGEST_BATCH]
        except MlflowException as error:
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            warnings.warn(_told(f"{error}; {len(self._waiting)} numbers wait for the next attempt"), stacklevel=2)

    def close(self, status: str) -> None:
        from mlflow.exceptions import MlflowException

        if not self._initialized:
            return
        self._send()
        try:
            ends = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}
            self.experiment.set_terminated(self.run_id, ends[status])
        except MlflowException as error:  # the run is what it is: its folder has everything
            warnings.warn(_told(f"{error}; the record lacks {len(self._waiting)} numbers"), stacklevel=2)


def _told(what: str) -> str:
    """One line about MLflow, without the password that an address may hold."""
    return "logger=mlflow: " + CREDENTIALS.sub("***", " ".join(what.split()))


def _name(run_dir: str | Path) -> str:
    """A record's name: the last parts of the run folder's path, e.g. ENV/ALGO-VARIANT/seed0."""
    return "/".join(Path(run_dir).parts[-3:])


def recorded(run_dir: str | Path, tracker: str) -> str | None:
    """The id of a run's record in a tracker, or None if it has none.

    Raises:
        MfrlError: the file that names it is damaged.
    """
    return _records(Path(run_dir) / RECORDS).get(tracker)


def remember(run_dir: str | Path, tracker: str, record: str) -> None:
    """Keep the id of a run's record in a tracker."""
    path = Path(run_dir) / RECORDS
    write_json(path, _records(path) | {tracker: record})


def _records(path: Path) -> dict[str, str]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        records = None
    # The ids become names of folders and parts of addresses.
    if not isinstance(records, dict) or not all(re.fullmatch(r"[\w-]+", str(record)) for record in records.values()):
        raise MfrlError(f"{path} is damaged: move it away to go on with new records in the trackers")
    return records
