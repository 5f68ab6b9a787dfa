"""Options of the commands that are no Hydra applications."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mfrl.errors import did_you_mean


class Options(argparse.ArgumentParser):
    """A parser whose error for an option that it does not know has similar ones."""

    def __init__(self, command: str, description: str) -> None:
        self._options: list[str] = []
        super().__init__(command, description=description)  # adds --help

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        self._options += names
        return super().add_argument(*names, **settings)

    def parsed(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The options of a command line. An error is printed, and ends the process with status 2."""
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(f"unknown: {' '.join(unknown)}{did_you_mean(unknown[0].partition('=')[0], self._options)}")
        return given
