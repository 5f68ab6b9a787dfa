"""Runs that go on: what they go on from, what may change, and how to go on with one that was stopped."""

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

from mfrl.app.checks import check_settings, total_updates
from mfrl.app.parts import Parts
from mfrl.callbacks.checkpoint import Checkpoint
from mfrl.data.module import OfflineData
from mfrl.envs.vector import WorkerError
from mfrl.errors import CheckpointError, RefusedRun, refused_by_system
from mfrl.learning.training import Trained
from mfrl.runs.checkpoint import find_checkpoint, load_checkpoint
from mfrl.runs.folder import RunFolder
from mfrl.runs.read import FINISHED, flatten, read_run
from mfrl.runs.resumable import BOOKKEEPING, JUDGED_BY, RESUMABLE, among
from mfrl.runs.saved import WHOLE, Saved, refuse_incomplete, settle, settled
from mfrl.system.paths import pasted, run_folder

# Of a resumed run these are what is composed now, and not what is in its checkpoint: a file names no class of theirs.
PARTS_OF_THE_USER = ("trainer", "callbacks", "logger")
OF_THE_USER = (*PARTS_OF_THE_USER, "trust")


@dataclass
class Start:
    """What a run begins with, or goes on from.

    Attributes:
        cfg: its configuration.
        parts: what builds its data, algorithm and evaluation.
        run: its folder; None: a new one.
        saved: what is in the checkpoint it goes on from; None: it begins.
        named: the file that was named to be gone on from; None: the folder's last one.
    """

    cfg: DictConfig
    parts: Parts
    run: RunFolder | None = None
    saved: dict[str, Any] | None = None
    named: Path | None = None

    @property
    def updates(self) -> int:
        """Where it goes on."""
        return self.saved["updates"] if self.saved else 0

    @property
    def checkpoint(self) -> Path | None:
        """The file it goes on from."""
        return (self.named or self.run.last_checkpoint) if self.saved else None


def resumed(cfg: DictConfig, overrides: list[str], console: Console) -> Start:
    """The run that ``resume=`` names, with the settings it had and those overridden now.

    Raises:
        ConfigError, CheckpointError: from :func:`continued` and :func:`restored`.
    """
    checkpoint = find_checkpoint(cfg.resume)
    run = RunFolder.of(checkpoint)
    saved = load_checkpoint(checkpoint)
    old = continued(run, checkpoint, saved, cfg, overrides)
    return Start(old, restored(old, tuple(cfg.trust), overrides, console), run, saved, checkpoint)


def finished(cfg: DictConfig) -> dict[str, Any] | None:
    """The result of the run in ``run_dir``, if it is finished and what ``cfg`` asks for; None: it is still to be done.

    Raises:
        RefusedRun: the folder holds a run with other settings, with the first that differs, or something else.
    """
    path = run_folder(cfg.run_dir)
    if not (path / "config.yaml").exists():
        if others := sorted(p.name for p in path.glob("[!.]*") if p != RunFolder(path).error):
            raise RefusedRun(f"{path} holds {others[0]}, but no run (no config.yaml): choose another run_dir")
        return None
    run = read_run(path)
    if not run.config:
        raise RefusedRun(f"{path}: {run.reason}; move the folder away to begin anew")
    settle(cfg)
    now, before = flatten(OmegaConf.to_container(cfg, resolve=False)), run.config
    for key in now | before:
        if among(key, (*RESUMABLE, *BOOKKEEPING)) and key not in JUDGED_BY:
            continue
        new = key not in before and OmegaConf.select(cfg, key) is None  # a setting newer than the run, left at null
        if now.get(key) != before.get(key) and not new:
            raise RefusedRun(
                f"{path} holds a run with {key}={before.get(key)}, not {now.get(key)}: choose another run_dir, or "
                "move the folder away to begin anew"
            )
    return run.result if run.status == FINISHED else None


def left_in(run: RunFolder) -> dict[str, Any] | None:
    """The checkpoint that an unfinished run goes on from; without one its folder is cleared, and it begins anew.

    Raises:
        RefusedRun: it is of an earlier version.
    """
    if not run.last_checkpoint.is_file():
        run.clear()
        return None
    saved = load_checkpoint(run.last_checkpoint)
    refuse_earlier(run.last_checkpoint, saved)
    return saved


def continued(run: RunFolder, path: Path, saved: dict[str, Any], cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the run that is resumed, with what is overridden now; nothing in it is built or evaluated.

    Args:
        run, path, saved: the run's folder, the checkpoint and what is in it.
        cfg, overrides: what is composed and given now.

    Raises:
        ConfigError: from :func:`check_settings`.
        RefusedRun: for overrides that would make it another run or that it has no use for, or where there is nothing
            left to do.
        CheckpointError: for a configuration that is more than settings and references among them.
    """
    refuse_earlier(path, saved)
    kept = {key: value for key, value in saved["mfrl"]["config"].items() if key not in PARTS_OF_THE_USER}
    plain = Saved(kept).plain("")  # whatever is read of it from here on is a plain value
    refuse_incomplete(plain, path)
    old = OmegaConf.create(kept)
    for key in (*RESUMABLE, *BOOKKEEPING):
        if "." not in key and key in cfg and key not in old:  # a setting newer than the run
            old[key] = cfg[key]
    before = old.updates
    for part in ("log", "checkpoint", "online"):
        if unknown := old[part].keys() - cfg[part].keys():
            raise CheckpointError(f"{path} has the setting {part}.{min(unknown)}, which this version of mfrl does not")
        old[part] = OmegaConf.merge(cfg[part], old[part])  # settings newer than the run, at their defaults
    if "_target_" not in old.eval:  # a run from before there was a choice
        old.eval = {"_target_": "mfrl.callbacks.evaluation.Evaluate", "_partial_": True, **old.eval}
    OmegaConf.set_struct(old.eval, True)  # of the run's environment: `cfg` may have been composed for another
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if override.is_delete():
            raise RefusedRun(f"{override.input_line}: a resumed run keeps every setting it has")
        if not among(key, RESUMABLE):
            raise RefusedRun(f"{key} cannot change in a resumed run ({', '.join(RESUMABLE[1:])} can): start a new one")
        if among(key, ("resume", *OF_THE_USER)):
            continue
        try:
            OmegaConf.update(old, key, settled(cfg, key, override.value()))
        except OmegaConfBaseException as error:
            names = ", ".join(name for name in old.eval if not name.startswith("_"))
            raise RefusedRun(
                f"{override.input_line} is no setting of this run's evaluation, which has {names}"
            ) from error
    for key in OF_THE_USER:
        old[key] = cfg[key]
    check_settings(old)
    if "online" in saved and old.updates != before:
        raise RefusedRun(f"{path} is online since update {before}: updates={old.updates} comes too late")
    total, complete = total_updates(old), read_run(run.path).status == FINISHED
    if saved["updates"] > total or (saved["updates"] == total and complete):
        more = "online.steps" if "online" in saved else "updates= or online.steps"
        raise RefusedRun(f"{path} is at update {saved['updates']} of {total}; raise {more}= to go on")
    return old


def restored(cfg: DictConfig, trusted: tuple[str, ...], overrides: list[str], console: Console) -> Parts:
    """What builds the parts of a resumed run, each of them checked.

    The data are looked for where the run had them, unless ``data_dir=`` is given now, so that a run goes on without
    being told again. But that place is named by a file: it is read and not written to. Prepared data that are not there
    are kept below ``$XDG_CACHE_HOME``, unless the user names another place with ``data.cache=``.

    Args:
        cfg: from :func:`continued`.
        trusted: packages of the user.
        overrides: what is given now.

    Raises:
        CheckpointError: for an interpolation that is no reference, or a class that a checkpoint may not build.
    """
    saved = Saved(OmegaConf.to_container(cfg, resolve=False), trusted)
    parts = {part: saved.check(part) for part in WHOLE}
    named = {text.lstrip("+").partition("=")[0] for text in overrides}
    build_data, cache = parts["data"], saved.plain("data").get("cache")
    if "data.cache" in named or ("data_dir" in named and not isinstance(cache, str)):
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


def refuse_earlier(path: Path, saved: dict[str, Any]) -> None:
    """No run goes on from a checkpoint of a version before there was a learner.

    Raises:
        RefusedRun: it is one.
    """
    if "learner" not in saved:
        raise RefusedRun(
            f"{path} was written by an earlier version of mfrl, whose updates drew other random numbers: mfrl eval "
            "takes it, but no run goes on from it"
        )


def refuse_other_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A run goes on with the files it began with.

    Raises:
        RefusedRun: naming the file whose checksum differs.
    """
    if other := before["files"].keys() ^ now["files"].keys():
        name = min(other)
        change = "has gone since" if name in before["files"] else "was not there when"
        raise RefusedRun(f"{name} {change} this run began, so that it would go on with other data; start a new run")
    for name, file in before["files"].items():
        if file["sha256"] != now["files"][name]["sha256"]:
            raise RefusedRun(f"{name} is not the file this run began with (its checksum differs); start a new run")


def how_to_go_on(run: RunFolder, update: int, checkpoints: Checkpoint, told: str = "") -> str:
    """Where a run was stopped, what of it is saved, and the command that goes on.

    Args:
        told: what is told already; it may be what kept the run from being saved as well.
    """
    where = f"stopped at update {update:,}"
    if checkpoints.saved not in (None, update):  # None: it only evaluated
        why = "either" if checkpoints.problem in told else f"({checkpoints.problem})"
        where += f", which could not be saved {why}" if checkpoints.problem else ", unsaved"
    if not run.last_checkpoint.is_file():
        return f"{where}; there is no checkpoint, so it has to begin anew"
    return f"{where}; go on with:  {pasted('mfrl', 'train', resume=run.path)}"


@contextmanager
def telling_how_to_go_on(run: RunFolder, module: Trained, checkpoints: Checkpoint) -> Iterator[None]:
    """Where the machine and not the training was the trouble, say as well what is left of the run."""
    try:
        yield
    except Exception as error:
        refusal = error if isinstance(error, WorkerError) else refused_by_system(error, run.path)
        if refusal is None:
            raise
        left = how_to_go_on(run, module.updates, checkpoints, str(refusal))
        raise type(refusal)(f"{refusal}. The run {left}") from error
