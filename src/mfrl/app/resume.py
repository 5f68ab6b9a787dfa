"""Resuming runs: which checkpoint a run resumes from, which settings may change, and how to resume a stopped run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from mfrl.app.checks import EVALUATION, check_settings, total_updates
from mfrl.app.parts import Parts, trains_on_gpu
from mfrl.callbacks.checkpoint import Checkpoint
from mfrl.data.module import OfflineData
from mfrl.envs.vector import WorkerError
from mfrl.errors import CheckpointError, InterruptedRun, MfrlError, RefusedRun, refused_by_system
from mfrl.learning.training import Trained
from mfrl.runs.checkpoint import find_checkpoint, load_checkpoint
from mfrl.runs.folder import RunFolder
from mfrl.runs.former import LATER_SETTINGS, with_later_settings
from mfrl.runs.read import FINISHED, flatten, read_run
from mfrl.runs.resumable import BOOKKEEPING, JUDGED_BY, RESUMABLE, matches_any
from mfrl.runs.saved import PART_CLASSES, Saved, refuse_incomplete, resolve_interpolations, resolved_value
from mfrl.runs.targets import plain_settings
from mfrl.system import signals
from mfrl.system.paths import pasted, run_folder

# A resumed run takes these settings from the command line and never from its checkpoint: a file must not choose which
# callbacks and loggers are built, or which packages are trusted.
USER_PARTS = ("trainer", "callbacks", "logger")
USER_SETTINGS = (*USER_PARTS, "trust")


@dataclass
class Start:
    """What a run starts with.

    Attributes:
        cfg: its configuration.
        parts: functions that build its data, algorithm and evaluation.
        run: its folder; None if the folder is still to be made.
        saved: the content of the checkpoint that it resumes from; None for a run that starts at update 0.
        named: the checkpoint file that the user named; None stands for the folder's last checkpoint.
    """

    cfg: DictConfig
    parts: Parts
    run: RunFolder | None = None
    saved: dict[str, Any] | None = None
    named: Path | None = None

    @property
    def updates(self) -> int:
        """The number of updates it starts after."""
        return self.saved["updates"] if self.saved else 0

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint file that it resumes from, or None."""
        if not self.saved:
            return None
        assert self.run is not None, "a run that resumes has a folder"
        return self.named or self.run.last_checkpoint


def resumed_start(cfg: DictConfig, overrides: list[str], console: Console) -> Start:
    """The start of the run that ``resume=`` names: the settings it had, changed by today's overrides.

    Raises:
        ConfigError, CheckpointError: see :func:`resumed_config` and :func:`resumed_parts`.
    """
    checkpoint = find_checkpoint(cfg.resume)
    run = RunFolder.of(checkpoint)
    saved = load_checkpoint(checkpoint)
    old = resumed_config(run, checkpoint, saved, cfg, overrides)
    return Start(old, resumed_parts(old, tuple(cfg.trust), overrides, console), run, saved, checkpoint)


def finished_result(cfg: DictConfig) -> dict[str, Any] | None:
    """The result of the run in ``run_dir`` if that run is finished, else None.

    Args:
        cfg: the configuration that the run must have. :func:`resolve_interpolations` is applied to it.

    Raises:
        RefusedRun: the folder holds something other than a run, or a run with other settings. The message names the
            first setting that differs.
    """
    path = run_folder(cfg.run_dir)
    if not (path / "config.yaml").exists():
        if others := sorted(p.name for p in path.glob("[!.]*") if p != RunFolder(path).error):
            raise RefusedRun(f"{path} holds {others[0]}, but no run (no config.yaml): choose another run_dir")
        return None
    run = read_run(path)
    if not run.config:
        raise RefusedRun(f"{path}: {run.reason}; move the folder away to begin anew")
    resolve_interpolations(cfg)
    now, before = with_later_settings(flatten(plain_settings(cfg, resolve=False))), run.config
    for key in now | before:
        if matches_any(key, (*RESUMABLE, *BOOKKEEPING)) and key not in JUDGED_BY:
            continue
        new = key not in before and OmegaConf.select(cfg, key) is None  # added to mfrl after the run, and still null
        if now.get(key) != before.get(key) and not new:
            raise RefusedRun(
                f"{path} holds a run with {key}={before.get(key)}, not {now.get(key)}: choose another run_dir, or "
                "move the folder away to begin anew"
            )
    return run.result if run.status == FINISHED else None


def unfinished_checkpoint(run: RunFolder) -> dict[str, Any] | None:
    """The content of the last checkpoint of an unfinished run. Without a checkpoint, clear the folder and return None.

    Raises:
        RefusedRun: an earlier version of mfrl wrote the checkpoint.
    """
    if not run.last_checkpoint.is_file():
        run.clear()
        return None
    saved = load_checkpoint(run.last_checkpoint)
    refuse_earlier_version(run.last_checkpoint, saved)
    return saved


def resumed_config(
    run: RunFolder, path: Path, saved: dict[str, Any], cfg: DictConfig, overrides: list[str]
) -> DictConfig:
    """The configuration of a resumed run, changed by today's overrides. Nothing in it is built or evaluated.

    Args:
        run, path, saved: the run's folder, its checkpoint, and the checkpoint's content.
        cfg, overrides: today's configuration and the user's overrides.

    Raises:
        ConfigError: see :func:`check_settings`.
        RefusedRun: an override changes a setting that must stay or that the run does not have, or the run has made all
            of its updates.
        CheckpointError: the configuration contains more than settings and references to settings.
    """
    refuse_earlier_version(path, saved)
    kept = {key: value for key, value in saved["mfrl"]["config"].items() if key not in USER_PARTS}
    refuse_incomplete(Saved(kept).plain(""), path)  # from here on, all that is read of it is known to be plain
    old = OmegaConf.create(kept)
    for key in (*RESUMABLE, *BOOKKEEPING):
        if "." not in key and key in cfg and key not in old:  # added to mfrl after the run
            old[key] = cfg[key]
    for key, value in LATER_SETTINGS.items():
        old.setdefault(key, value)
    before = old.updates
    for part in ("log", "checkpoint", "online"):
        if unknown := old[part].keys() - cfg[part].keys():
            raise CheckpointError(f"{path} has the setting {part}.{min(unknown)}, which this version of mfrl does not")
        old[part] = OmegaConf.merge(cfg[part], old[part])  # settings added after the run have their defaults
    if "_target_" not in old.eval:  # the run is older than the setting evaluation=
        old.eval = {"_target_": EVALUATION, "_partial_": True, **old.eval}
    if old.eval["_target_"] == cfg.eval["_target_"]:
        old.eval = OmegaConf.merge(cfg.eval, old.eval)
    OmegaConf.set_struct(old.eval, True)  # the run's own settings count: `cfg` may be composed for another evaluation
    changes = OverridesParser.create().parse_overrides(overrides)
    for override in changes:
        key = override.key_or_group
        if override.is_delete():
            raise RefusedRun(f"{override.input_line}: a resumed run keeps every setting it has")
        if not matches_any(key, RESUMABLE):
            raise RefusedRun(f"{key} cannot change in a resumed run ({', '.join(RESUMABLE[1:])} can): start a new one")
        if matches_any(key, ("resume", *USER_SETTINGS)):
            continue
        try:
            OmegaConf.update(old, key, resolved_value(cfg, key, override.value()))
        except OmegaConfBaseException as error:
            names = ", ".join(name for name in old.eval if not name.startswith("_"))
            raise RefusedRun(
                f"{override.input_line} is no setting of this run's evaluation, which has {names}"
            ) from error
    for key in USER_SETTINGS:
        old[key] = cfg[key]
    wanted = any(override.key_or_group == "compile" for override in changes)
    if old.compile == "captured" and not wanted and not trains_on_gpu(old):
        old.compile = True  # the same updates but for rounding
    check_settings(old)
    if "online" in saved and old.updates != before:
        raise RefusedRun(f"{path} is online since update {before}: updates={old.updates} comes too late")
    total, complete = total_updates(old), read_run(run.path).status == FINISHED
    if saved["updates"] > total or (saved["updates"] == total and complete):
        more = "online.steps" if "online" in saved else "updates= or online.steps"
        raise RefusedRun(f"{path} is at update {saved['updates']} of {total}; raise {more}= to go on")
    return old


def resumed_parts(cfg: DictConfig, trusted: tuple[str, ...], overrides: list[str], console: Console) -> Parts:
    """Functions that build the parts of a resumed run, after each part was checked.

    The data are read from where the run had them, unless the user gives ``data_dir=`` now. A file names that place, so
    mfrl reads there and writes nothing. Data that must be prepared again go below ``$XDG_CACHE_HOME``, unless the user
    names another place with ``data.cache=``.

    Args:
        cfg: the result of :func:`resumed_config`.
        trusted: packages that the user trusts.
        overrides: the user's, given now.

    Raises:
        CheckpointError: an interpolation is not a reference, or a class is not allowed in a checkpoint.
    """
    saved = Saved(plain_settings(cfg, resolve=False), trusted)
    parts = {part: saved.check(part) for part in PART_CLASSES}
    given = {text.lstrip("+").partition("=")[0] for text in overrides}
    build_data, cache = parts["data"], saved.plain("data").get("cache")
    if "data.cache" in given or ("data_dir" in given and not isinstance(cache, str)):
        return parts
    if isinstance(cache, str):
        console.print(
            escape(f"what is prepared in {cache} is read; to write there as well, say data.cache={cache}"),
            highlight=False,
            soft_wrap=True,
        )

    def read_only() -> OfflineData:
        data = build_data()
        data.writes_apart = True
        return data

    return parts | {"data": read_only}


def refuse_earlier_version(path: Path, saved: dict[str, Any]) -> None:
    """Refuse to resume from a checkpoint that was written before :mod:`mfrl.learning.learner` existed.

    Raises:
        RefusedRun: the checkpoint is that old.
    """
    if "learner" not in saved:
        raise RefusedRun(
            f"{path} was written by an earlier version of mfrl, whose updates drew other random numbers: mfrl eval "
            "takes it, but no run goes on from it"
        )


def refuse_other_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume a run with other data files than it began with.

    Args:
        before, now: provenance of the data, as the checkpoint has it and as it is today.

    Raises:
        RefusedRun: a file is missing, is new, or has another checksum. The message names it.
    """
    if other := before["files"].keys() ^ now["files"].keys():
        name = min(other)
        change = "has gone since" if name in before["files"] else "was not there when"
        raise RefusedRun(f"{name} {change} this run began, so that it would go on with other data; start a new run")
    for name, file in before["files"].items():
        if file["sha256"] != now["files"][name]["sha256"]:
            raise RefusedRun(f"{name} is not the file this run began with (its checksum differs); start a new run")


def how_to_resume(run: RunFolder, update: int, checkpoints: Checkpoint, told: str = "") -> str:
    """A sentence on a stopped run: the update, whether it is saved, and the command that resumes it.

    Args:
        told: an error message that the user sees beside this sentence. If it contains the reason why the run was not
            saved, the reason is not repeated.
    """
    where = f"stopped at update {update:,}"
    if checkpoints.saved not in (None, update):  # None: training did not start, the run only evaluated
        why = "either" if checkpoints.problem in told else f"({checkpoints.problem})"
        where += f", which could not be saved {why}" if checkpoints.problem else ", unsaved"
    if not run.last_checkpoint.is_file():
        return f"{where}; there is no checkpoint, so it has to begin anew"
    return f"{where}; go on with:  {pasted('mfrl', 'train', resume=run.path)}"


@contextmanager
def ending_resumably(run: RunFolder, module: Trained, checkpoints: Checkpoint) -> Iterator[None]:
    """Train in the block: however training stops, the error says how to resume the run.

    A signal is noted, for the callback that saves and then stops; another Ctrl-C stops at once.

    Raises:
        InterruptedRun: a signal stopped training.
        MfrlError: it ended before its last update, or see :func:`telling_how_to_resume`.
    """
    with signals.handled_by(signals.note_once), telling_how_to_resume(run, module, checkpoints):
        try:
            yield
        except (signals.Interrupted, SystemExit, KeyboardInterrupt):  # SystemExit: Lightning's answer to Ctrl-C
            stopped = how_to_resume(run, module.updates, checkpoints)
            raise InterruptedRun(stopped, signals.received()) from None
    if module.updates < module.total_updates:
        left = how_to_resume(run, module.updates, checkpoints)
        raise MfrlError(f"a callback, or a setting trainer.*, ended training early: {left}")


@contextmanager
def telling_how_to_resume(run: RunFolder, module: Trained, checkpoints: Checkpoint) -> Iterator[None]:
    """Add :func:`how_to_resume` to errors that the machine caused: a full disk, a simulator process that died.

    Raises:
        MfrlError: of the same class, with the longer message.
    """
    try:
        yield
    except Exception as error:
        refusal = error if isinstance(error, WorkerError) else refused_by_system(error, run.path)
        if refusal is None:
            raise
        left = how_to_resume(run, module.updates, checkpoints, str(refusal))
        raise type(refusal)(f"{refusal}. The run {left}") from error
