"""Helpers for notebooks: train without a terminal, and show tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from mfrl.app.cli import quiet_lightning
from mfrl.app.overrides import Composer, parse
from mfrl.app.refusals import explain
from mfrl.app.train import train
from mfrl.errors import ConfigError
from mfrl.report.tables import markdown_table
from mfrl.system.paths import CONFIG_DIR


def compose(*overrides: str) -> DictConfig:
    """The configuration of ``mfrl train OVERRIDES``.

    Raises:
        ConfigError: an override is wrong. For an unknown name, the message has similar names.
    """
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra.compose("train", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, Composer("train"), [parse(text) for text in overrides])) from error


def run(*overrides: str) -> Path:
    """Do what ``mfrl train OVERRIDES`` does, without printing.

    With ``existing=continue``, a finished run is not trained again.

    Returns:
        the run folder.

    Raises:
        MfrlError: see :func:`mfrl.app.train.train`.
    """
    cfg = compose(*overrides)
    quiet_lightning()
    train(cfg, list(overrides), Console(quiet=True))
    return Path(cfg.run_dir)


@dataclass(frozen=True)
class Table:
    """A table that notebooks render, and that prints as aligned columns elsewhere.

    Args:
        head: the headings.
        body: the rows.
    """

    head: Sequence[str]
    body: Sequence[Sequence[object]]

    def _repr_markdown_(self) -> str:
        return "\n".join(markdown_table(self.head, self.body))

    def __repr__(self) -> str:
        lines = [[str(cell) for cell in line] for line in (self.head, *self.body)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
