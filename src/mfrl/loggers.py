"""metrics.csv that survives a resumed run."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from mfrl.files import write_text


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
