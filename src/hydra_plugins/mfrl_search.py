"""Hydra's sweeper of `sweep=search`, in the namespace where Hydra looks; :mod:`mfrl.app.search` does the searching."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from hydra_plugins.mfrl_sweeper import MfrlSweeper
from mfrl.app.overrides import as_written, parse, searched_values
from mfrl.app.sweep import packed
from mfrl.errors import ConfigError, MfrlError, require
from mfrl.runs.jobs import FAILED, outcomes_of
from mfrl.system import signals

if TYPE_CHECKING:
    from mfrl.app.search import Search, Task


class MfrlSearch(MfrlSweeper):
    """Runs the trials of a search one after another, each as a pack of its seeds, and prints a closing table.

    What the file sweep/search.yaml searches is left out where the algorithm has no such setting.
    """

    def sweep(self, arguments: list[str]) -> Any:
        from mfrl.app.search import Task, telling_of_storage

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.folders: list[Path] = []
        signals.forget()
        try:
            given = [parse(text) for text in arguments]
            cfg = self._composed([as_written(one) for one in given if not one.is_sweep_override()])
            unsaid = [text for key, value in self.params.items() if (text := usual(cfg, key, str(value)))]
            task = Task.of([*map(parse, unsaid), *given])
            with telling_of_storage(cfg.search.folder), signals.handled_by(signals.stop):
                search = self._search(task)
                complete = self._trials(search, console)
                search.print(console)
        except KeyboardInterrupt:
            self._exit_stopped(console)
        except MfrlError as error:
            console.print(f"[bold red]error[/] {escape(str(error))}")
            sys.exit(1)
        if not complete:
            console.print(self._how_to_resume())
            sys.exit(1)

    def _search(self, task: Task) -> Search:
        """The search that the configuration describes.

        Raises:
            ConfigError: see :class:`Search`.
        """
        from mfrl.app.search import Search

        first = {key: searched_values(override)[0].value() for key, override in task.space.items()}
        cfg, other = (self._composed(task.jobs(trial, first)[0]) for trial in (0, 1))
        folder, settings = cfg.search.folder, cfg.search
        require(
            "existing", cfg.existing == "continue", cfg.existing, "continue in a search, which goes on after a stop"
        )
        own = cfg.run_dir != other.run_dir
        require("run_dir", own, cfg.run_dir, "a folder for each trial: with ${search.trial} in it, or left out")
        require("search.folder", isinstance(folder, str) and folder.strip() != "", folder, "a folder for the search")
        config, _ = self._set_up()
        if "basic" not in (chosen := config.hydra.runtime.choices["hydra/launcher"]):
            raise ConfigError(
                f"hydra/launcher={chosen}: a search runs its trials itself; start the same command several times, "
                "on a cluster too"
            )
        return Search(
            task,
            Path(folder).expanduser(),
            lower_is_better="episodes" not in cfg.eval,
            trials=settings.trials,
            startup=settings.startup,
            prune=settings.prune,
            seed=settings.seed,
        )

    def _composed(self, overrides: list[str]) -> DictConfig:
        """The configuration of a job, checked as those of other sweeps are."""
        self.folders.clear()
        self.validate_batch_is_legal([overrides])
        config, context = self._set_up()
        return context.config_loader.load_sweep_config(config, overrides)

    def _trials(self, search: Search, console: Console) -> bool:
        """Run trials until there are enough. Whether all of this process have ended as they should."""
        while True:
            with search.next_trial() as trial:
                if trial is None:
                    return search.failed == 0
                chosen = search.choose(trial)
                jobs = search.task.jobs(trial.number, chosen)
                self.folders.clear()
                self.validate_batch_is_legal(jobs)
                named = ", ".join(f"{key}={value}" for key, value in chosen.items())
                console.print(escape(f"trial {trial.number}  {named}"))
                self._run(search, trial, jobs, console)
                if search.failed and not search.any_complete():  # a mistake in the settings would fail every trial
                    return False

    def _run(self, search: Search, trial: Any, jobs: list[list[str]], console: Console) -> None:
        from mfrl.app.checks import total_updates

        assert self.launcher is not None, "Hydra calls setup first"
        folders, updates = [*self.folders], total_updates(self._composed(jobs[0]))
        with search.watched(trial, folders, updates) as pruned:
            try:
                returned = self.launcher.launch(packed(jobs, len(jobs)), initial_job_idx=trial.number)
            except KeyboardInterrupt:
                if not signals.ended_early():
                    raise
            else:
                for job in returned:
                    for outcome in outcomes_of(job.return_value):
                        if outcome.status == FAILED:
                            console.print(f"[red]failed[/]  {escape(f'{outcome.folder}  {outcome.note}')}")
        if signals.ended_early():
            signals.forget()
        search.end(trial, folders, pruned.is_set())
        console.print(escape(f"trial {trial.number}  {search.outcome(trial)}"))


def usual(cfg: DictConfig, key: str, value: str) -> str | None:
    """An override of the file sweep/search.yaml; None if there is nothing to search.

    ``around(30)`` is from a thirtieth to thirty times what the setting is without a search, on a log scale.
    """
    now = OmegaConf.select(cfg, key)
    if now is None:
        return None
    if not (around := re.fullmatch(r"around\((\d+)\)", value)):
        return f"{key}={value}"
    factor = int(around[1])
    return f"{key}=tag(log,interval({now / factor:.4g},{now * factor:.4g}))" if now > 0 else None
