"""Search: Optuna proposes the settings of a trial, and ends trials that are worse than the median of the others.

A trial's objective is the mean closing score of its seeds. Trials are in an SQLite file, which several processes share.
A process holds a lock on the trial that it runs, so that another one takes up the trial of a process that was killed.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.override_parser.types import IntervalSweep, Override
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfrl.app.overrides import as_written, sweep_values
from mfrl.errors import ConfigError, MfrlError, first_line, require, require_packages
from mfrl.runs.read import FINISHED, evaluations_in, read_run
from mfrl.runs.resumable import BOOKKEEPING, JUDGED_BY, RESUMABLE, matches_any
from mfrl.runs.scores import format_score, main_score, score_curve, score_name
from mfrl.settings import COUNT, WHOLE
from mfrl.system import signals
from mfrl.system.files import Locked, one_at_a_time
from mfrl.system.paths import pasted

if TYPE_CHECKING:
    import optuna

_SECONDS = 1.0  # evaluations are looked for at this interval
_NEW_SEEDS = 8  # of the command that reruns the best trial


@dataclass(frozen=True)
class Task:
    """What a search's command asks for.

    Attributes:
        fixed: overrides that all trials share, by key.
        seeds: of every trial.
        space: the settings that are searched, by key, with their values in Hydra's words.
    """

    fixed: dict[str, str]
    seeds: list[int]
    space: dict[str, Override]

    @classmethod
    def of(cls, given: Sequence[Override]) -> Task:
        """Sort a command's overrides. If a key is given several times, the last one counts.

        Raises:
            ConfigError: nothing is left to search.
        """
        last = {override.get_key_element(): override for override in given}
        seeds = [int(str(one.value())) for one in sweep_values(last.pop("seed"))]
        space = {key: override for key, override in last.items() if override.is_sweep_override()}
        if not space:
            raise ConfigError(
                "sweep=search: nothing is searched; say e.g. algo.actor_lr='tag(log,interval(1e-4,1e-2))'"
            )
        fixed = {key: as_written(override) for key, override in last.items() if key not in space}
        return cls(fixed, seeds, space)

    def record(self) -> dict[str, Any]:
        """What must stay as it is when a search goes on, as plain data."""

        def counts(key: str) -> bool:
            key = key.lstrip("+~")
            return not matches_any(key, (*RESUMABLE, *BOOKKEEPING)) or key in JUDGED_BY

        fixed = sorted(text for key, text in self.fixed.items() if counts(key))
        space = {key: as_written(override).partition("=")[2] for key, override in sorted(self.space.items())}
        return {"settings": fixed, "seeds": self.seeds, "searched": space}

    def jobs(self, number: int, chosen: Mapping[str, Any]) -> list[list[str]]:
        """The overrides of each seed of a trial."""
        shared = [*self.fixed.values(), f"search.trial={number}", *_overrides(chosen)]
        return [[*shared, f"seed={seed}"] for seed in self.seeds]


def _overrides(chosen: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in chosen.items()]


def suggest(trial: optuna.Trial, key: str, override: Override) -> Any:
    """What a trial proposes for a setting: a number of an interval, or one of the listed values."""
    if override.is_discrete_sweep():
        return trial.suggest_categorical(key, list(map(str, override.sweep_string_iterator())))
    interval = override.value()
    assert isinstance(interval, IntervalSweep)
    low, high, log = interval.start, interval.end, "log" in interval.tags
    if isinstance(low, int) and isinstance(high, int):  # int(interval(1,8))
        return trial.suggest_int(key, low, high, log=log)
    return trial.suggest_float(key, low, high, log=log)


@dataclass
class Search:
    """A search, from its beginning or going on.

    Args:
        task: what it searches.
        folder: for the SQLite file and the trials.
        lower_is_better: of the score.
        trials, startup, prune, seed: see conf/sweep/search.yaml.

    Raises:
        ConfigError: Optuna is missing, a setting is out of its range, or the folder has another search.
    """

    task: Task
    folder: Path
    lower_is_better: bool
    trials: int
    startup: int
    prune: bool
    seed: int
    study: optuna.Study = field(init=False)
    failed: int = 0  # trials of this process

    def __post_init__(self) -> None:
        COUNT.require("search.trials", self.trials)
        COUNT.require("search.startup", self.startup)
        WHOLE.require("search.seed", self.seed)
        require("search.prune", type(self.prune) is bool, self.prune, "true or false")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.MedianPruner(self.startup) if self.prune else optuna.pruners.NopPruner()
        with one_at_a_time(self.folder / ".lock"):
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{(self.folder / 'search.db').resolve()}",
                engine_kwargs={"connect_args": {"timeout": 60}},  # seconds that one process waits for another one
            )
            self.study = optuna.create_study(
                storage=storage,
                study_name="search",
                direction="minimize" if self.lower_is_better else "maximize",
                pruner=pruner,
                load_if_exists=True,
            )
            now, before = self.task.record(), self.study.user_attrs
            if not before:
                for key, value in now.items():
                    self.study.set_user_attr(key, value)
            elif changed := next((key for key in now if before[key] != now[key]), None):
                raise ConfigError(
                    f"{self.folder} holds a search with the {changed} {before[changed]}, not {now[changed]}: choose "
                    "another search.folder="
                )

    @contextmanager
    def next_trial(self) -> Iterator[optuna.Trial | None]:
        """The next trial, for this process alone while the block lasts; None if the search is complete."""
        with ExitStack() as held:
            with one_at_a_time(self.folder / ".lock"):
                trial = self._next(held)
            yield trial

    def _next(self, held: ExitStack) -> optuna.Trial | None:
        from optuna import Trial
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        known = self.study.get_trials(deepcopy=False)
        for one in known:
            if one.state == TrialState.RUNNING:
                try:
                    held.enter_context(one_at_a_time(self._lock(one.number), wait=False))
                except Locked:
                    continue
                return Trial(self.study, one._trial_id)  # its process was killed
        counted = [one for one in known if one.state != TrialState.FAIL]
        if len(counted) + self.failed >= self.trials:
            return None
        # A sampler for each trial: what it proposes depends on the trials there are, and not on the process.
        self.study.sampler = TPESampler(
            n_startup_trials=self.startup,
            multivariate=len(self.task.space) > 1,
            constant_liar=True,
            seed=int(np.random.SeedSequence([self.seed, len(known)]).generate_state(1)[0]),
        )
        trial = self.study.ask()
        held.enter_context(one_at_a_time(self._lock(trial.number)))
        return trial

    def _lock(self, number: int) -> Path:
        return self.folder / f"trial{number}" / ".lock"

    def choose(self, trial: optuna.Trial) -> dict[str, Any]:
        """The settings of a trial. A trial that is taken up has those that it had."""
        return {key: suggest(trial, key, override) for key, override in self.task.space.items()}

    @contextmanager
    def watched(self, trial: optuna.Trial, folders: Sequence[Path], updates: int) -> Iterator[threading.Event]:
        """Report a trial's evaluations while it runs, and stop it if the median of the others is better.

        Args:
            folders: of its runs.
            updates: of each run. The last evaluation stops nothing.

        Yields:
            is set when the trial is stopped.
        """
        over, pruned, failures = threading.Event(), threading.Event(), list[Exception]()
        reported = self._intermediate(trial)

        def watch() -> None:
            while not over.wait(_SECONDS):
                for k, value in means(folders).items():
                    if k in reported or not 0 < k < updates:
                        continue
                    reported.add(k)
                    trial.report(value, k)
                    if trial.should_prune() and not over.is_set() and signals.received() is None:
                        pruned.set()
                        signals.end_early()
                        return

        def guarded() -> None:
            try:
                watch()
            except Exception as error:  # raised below, where it is seen: in a thread it would only be printed
                failures.append(error)
                signals.end_early()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        try:
            yield pruned
        finally:
            over.set()
            thread.join()
        if failures:
            raise failures[0]

    def _intermediate(self, trial: optuna.Trial) -> set[int]:
        """The updates of which a trial has reported an evaluation, in an earlier process too."""
        return {*self.study.get_trials(deepcopy=False)[trial.number].intermediate_values}

    def end(self, trial: optuna.Trial, folders: Sequence[Path], pruned: bool) -> None:
        """Record how a trial has ended: with the mean score of its runs, pruned, or failed."""
        from optuna.trial import TrialState

        runs = [read_run(folder) for folder in folders]
        known = self._intermediate(trial)
        for k, value in means(
            folders
        ).items():  # those since the watch looked last; later trials are compared with them
            if k > 0 and k not in known:
                trial.report(value, k)
        if all(run.status == FINISHED for run in runs):
            key = main_score(runs[0].result["final"])
            self.study.set_user_attr("score", key)
            self.study.tell(trial, sum(run.result["final"][key] for run in runs) / len(runs))
        else:
            self.failed += not pruned
            self.study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def any_complete(self) -> bool:
        """Whether a trial is complete, of any process."""
        return any(one.state.name == "COMPLETE" for one in self.study.get_trials(deepcopy=False))

    def outcome(self, trial: optuna.Trial) -> str:
        """How a trial has ended, in words."""
        one = self.study.get_trials(deepcopy=False)[trial.number]
        if one.value is None or one.state.name != "COMPLETE":
            return one.state.name.lower()
        key = self.study.user_attrs["score"]
        return f"{score_name(key)} {format_score(key, one.value)}, mean of {len(self.task.seeds)} seeds"

    def print(self, console: Console) -> None:
        """Print the trials, the best one first, the importance of the settings, and how to run the best one again."""
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        done = [one for one in trials if one.state == TrialState.COMPLETE]
        done.sort(key=lambda one: one.value if self.lower_is_better else -one.value)
        others = [one for one in trials if one.state != TrialState.COMPLETE]
        key = self.study.user_attrs.get("score", "score")
        table = Table(title=f"{len(trials)} trials in {escape(str(self.folder))}")
        for heading in ("trial", *self.task.space, "", f"{score_name(key)}, mean of {len(self.task.seeds)} seeds"):
            table.add_column(escape(heading), overflow="fold")
        for one in [*done, *others]:
            chosen = [one.params.get(setting, "") for setting in self.task.space]
            settings = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in chosen]
            value = format_score(key, one.value) if one.value is not None and one in done else ""
            table.add_row(str(one.number), *map(escape, settings), one.state.name.lower(), value)
        console.print(table, highlight=False)
        counts = [sum(one.state == state for one in trials) for state in TrialState]
        named = [f"{count} {state.name.lower()}" for count, state in zip(counts, TrialState, strict=True) if count]
        console.print(f"{', '.join(named)}; tuned on the seeds {', '.join(map(str, self.task.seeds))}")
        if not done:
            return
        if len({one.value for one in done}) > 1:
            shares = get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator()).items()
            console.print(f"importance  {', '.join(f'{name} {share:.2f}' for name, share in shares)}")
        console.print(escape(f"best        {self.rerun(done[0].number, done[0].params)}"))
        console.print(escape(f"compare     {pasted('mfrl', 'report', self._again(done[0].number))}"))

    def rerun(self, number: int, chosen: Mapping[str, Any]) -> str:
        """The command that trains a trial's settings with seeds that were not tuned on, in a folder of their own."""
        own = ("sweep", "search", "pack", "run_dir", "existing")
        kept = [text for key, text in self.task.fixed.items() if not matches_any(key, own)]
        first = max(self.task.seeds) + 1
        seeds = f"seed={','.join(str(first + k) for k in range(_NEW_SEEDS))}"
        settings = [*kept, *_overrides(chosen), seeds, f"pack={_NEW_SEEDS}", "existing=continue"]
        return pasted("mfrl", "train", "-m", *settings, f"run_dir={self._again(number)}/seed${{seed}}")

    def _again(self, number: int) -> Path:
        """The folder for runs of a trial's settings with new seeds."""
        return self.folder / "again" / f"trial{number}"


@contextmanager
def telling_of_storage(folder: str | Path) -> Iterator[None]:
    """Say in a sentence what is the matter with a search's file, such as a full disk or damage.

    Args:
        folder: of the search.

    Raises:
        MfrlError: SQLite or Optuna cannot use the file.
    """
    require_packages("sweep=search", {"optuna": "optuna", "sqlalchemy": "sqlalchemy"})
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        reason = first_line(cause.orig if isinstance(cause, DBAPIError) and cause.orig else cause)
        raise MfrlError(
            f"{Path(folder) / 'search.db'}: {reason}. Trained runs are as they were; once the file can be used, the "
            "same command goes on. If it cannot, begin again with another search.folder="
        ) from error


def means(folders: Sequence[Path]) -> dict[int, float]:
    """The mean main score of several runs at each update at which all of them have been evaluated."""
    evaluations = [evaluations_in(folder / "eval.jsonl")[0] for folder in folders]
    curves = [score_curve(lines, count=1) if lines else {} for lines in evaluations]
    shared = set.intersection(*map(set, curves))
    return {k: sum(curve[k] for curve in curves) / len(curves) for k in sorted(shared)}
