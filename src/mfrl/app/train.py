"""`mfrl train`: datamodule, module, callbacks, loggers, trainer, fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfrl.algorithms.base import Algorithm
from mfrl.app.collect import collect_missing
from mfrl.app.config import build_algorithm, refuse_settings_of_another_algorithm, refuse_settings_of_another_evaluation
from mfrl.callbacks.checkpoint import Checkpoint
from mfrl.callbacks.evaluation import episodes_on_the_way
from mfrl.callbacks.interruption import Interruption
from mfrl.callbacks.monitor import Monitor
from mfrl.callbacks.population import Spread
from mfrl.callbacks.progress import Progress
from mfrl.data.module import OfflineData
from mfrl.envs.vector import WorkerError, refuse_unguarded_script
from mfrl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InterruptedRun,
    MfrlError,
    RefusedRun,
    refused_by_system,
)
from mfrl.learning.compiling import check_compile, choose
from mfrl.learning.training import Trained, Training
from mfrl.report.groups import SCORES, known_metric, unsteady
from mfrl.report.tables import DEPENDS_ON_WHEN
from mfrl.runs.checkpoint import find_checkpoint, load_checkpoint
from mfrl.runs.folder import RunFolder, read_evaluations, versions
from mfrl.runs.jobs import JobConsole
from mfrl.runs.loggers import MetricsCSV, RunEvents, compared, log_outcome
from mfrl.runs.read import FINISHED, flatten, read_run
from mfrl.runs.resumable import BOOKKEEPING, JUDGED_BY, RESUMABLE, among
from mfrl.runs.saved import WHOLE, Saved, refuse_incomplete, settle, settled
from mfrl.runs.scores import averaged, format_score, format_seconds, score_name
from mfrl.runs.targets import build
from mfrl.study.toys import find_toy
from mfrl.system import signals
from mfrl.system.files import one_at_a_time
from mfrl.system.paths import literal, pasted, run_folder

EXISTING = ("new", "continue")
PRECISIONS = ("32-true", "bf16-mixed")


def train(cfg: DictConfig, overrides: list[str], console: Console | None = None) -> dict[str, Any]:
    """Train as configured and return what result.json holds.

    Args:
        cfg: the composed configuration (conf/train.yaml).
        overrides: what the user changed, for overrides.yaml.
        console: where to tell about it; None: on stderr.
    """
    refuse_unguarded_script()
    signals.forget()
    console = console or Console(stderr=True)
    settle(cfg)
    check_existing(cfg)
    if resumed := cfg.resume:
        checkpoint = find_checkpoint(cfg.resume)
        run = RunFolder.of(checkpoint)
        saved = load_checkpoint(checkpoint)
        cfg, trusted = continued(run, checkpoint, saved, cfg, overrides), tuple(cfg.trust)
    else:
        check_run(cfg, overrides)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    if resumed:
        parts = restored(cfg, trusted, overrides, console)
        with run.locked():
            return fit(cfg, overrides, console, run, checkpoint, saved, parts)
    if cfg.existing == "new":
        return fit(cfg, overrides, console)
    run = RunFolder(run_folder(cfg.run_dir))
    with run.locked():  # from before the decision, so that two processes never both go on
        if result := finished(cfg):
            console.print(f"finished before: {escape(str(run.path))}", highlight=False, soft_wrap=True)
            return result
        saved = left_in(run)
        return fit(cfg, overrides, console, run, run.last_checkpoint if saved else None, saved)


def fit(
    cfg: DictConfig,
    overrides: list[str],
    console: Console,
    run: RunFolder | None = None,
    checkpoint: Path | None = None,
    saved: dict[str, Any] | None = None,
    parts: Parts | None = None,
) -> dict[str, Any]:
    """Build everything, train and evaluate.

    Args:
        cfg, overrides, console: as for :func:`train`.
        run: the folder to train in, locked; None: a new one.
        checkpoint, saved: to go on from: the file and what is in it.
        parts: what builds data, algorithm and evaluation of a configuration that is not the user's own but the
            checkpoint's; None: Hydra, from ``cfg``.
    """
    data = prepare(cfg, parts, console)
    provenance = data.provenance()
    algorithm, why = build_run(cfg, data, provenance, saved, parts)
    module = Training(algorithm, cfg.batch_size, cfg.compile)

    # Everything that can be refused has been looked at: now the run leaves its first trace.
    lock = nullcontext() if run else (run := RunFolder.create(cfg.run_dir)).locked()
    first_update = saved["updates"] if saved else 0
    progress = Progress(cfg.eval.every, final_share(cfg), console)
    begun = begin(cfg, overrides, console, run, first_update, data, provenance, module, progress, parts)
    # The checkpoint comes before the evaluation, so that a failing simulator costs no updates.
    callbacks = [begun.monitor, Interruption(), begun.checkpoints, begun.evaluate, progress]
    trainer = build_trainer(cfg, run.checkpoints, callbacks, begun.loggers)
    announce(console, cfg, str(run.path), first_update, why)
    with lock, signals.handled_by(signals.note_once), telling_how_to_go_on(run, module, begun.checkpoints):
        try:
            run_trainer(trainer, module, data, begun.evaluate, first_update, checkpoint)
        except (signals.Interrupted, SystemExit, KeyboardInterrupt):  # SystemExit: Lightning's answer to Ctrl-C
            raise InterruptedRun(how_to_go_on(run, module.updates, begun.checkpoints), signals.received()) from None

    result = begun.finish(module)
    if not isinstance(console, JobConsole):  # a sweep ends in a table of its own
        summarise(console, run, result)
    return result


def prepare(cfg: DictConfig, parts: Parts | None, console: Console) -> OfflineData:
    """The data of a run, read and checked, and what it is to be evaluated by looked at.

    Raises:
        DataError, EnvError, ConfigError: of what cannot be.
    """
    L.seed_everything(cfg.seed, verbose=False)
    if parts is None:
        data = build(cfg.data)
        fetch_missing(cfg, data, console)
    else:
        data = parts["data"]()  # and what is not there is not fetched: where from and where to, the user has to say
    data.setup()
    for warning in data.warnings:
        console.print(f"[bold red]warning[/] {escape(warning)}", highlight=False)
    # What evaluates is built when training starts.
    if "episodes" in cfg.eval:
        data.env.check()
    if "samples" in cfg.eval:
        find_toy(data.env.env_id)
    if data.val is None and cfg.eval._target_ == "mfrl.callbacks.held_out.EvaluateHeldOut":
        raise ConfigError(f"evaluation=held_out: nothing of {data.dataset} is held out; set env.val_fraction=0.05, say")
    return data


def build_run(
    cfg: DictConfig,
    data: OfflineData,
    provenance: dict[str, Any],
    saved: dict[str, Any] | None,
    parts: Parts | None,
) -> tuple[Algorithm, str]:
    """The algorithm of a run, and why it is compiled or not; what was chosen is noted in ``cfg``.

    Raises:
        RefusedRun: it goes on, and its data are not those it began with.
    """
    if saved:
        refuse_other_data(saved["mfrl"]["provenance"], provenance)
    L.seed_everything(cfg.seed, verbose=False)  # again: initial weights do not depend on what was drawn for the data
    algorithm = parts["algo"](spec=data.spec) if parts else build_algorithm(cfg, data.spec)
    cfg.compile, why = choose(cfg.compile, cfg.updates)  # for good: a resumed run goes on as it began
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.tf32
    return algorithm, why


@dataclass
class Begun:
    """A run that has a folder: what watches its training, and what its result is made of."""

    cfg: DictConfig
    overrides: list[str]
    run: RunFolder
    data: OfflineData
    monitor: Monitor
    checkpoints: Checkpoint
    evaluate: L.Callback
    loggers: list[Logger]
    started: float

    def finish(self, module: Trained) -> dict[str, Any]:
        """Write result.json, and return what it holds."""
        cfg, run = self.cfg, self.run
        result = {
            "env": self.data.env.env_id,
            "dataset": self.data.dataset,
            "algo": cfg.algo_name,
            "variant": cfg.variant.name,
            **({"alpha": cfg.algo.alpha} if "alpha" in cfg.algo else {}),
            "seed": cfg.seed,
            "data": self.checkpoints.extra["provenance"]["source"],
            "updates": module.updates,
            **final_scores(run),
            "seconds": round(time.perf_counter() - self.started, 2),
            "updates_per_second": round(self.monitor.updates / max(self.monitor.seconds, 1e-9), 3),
            "compiled": cfg.compile,
            "matmul": "tf32" if cfg.tf32 and module.learner.device.type == "cuda" else "float32",
            "warnings": [*self.data.warnings, *self.monitor.explosions.warnings],
            "versions": versions(),
        }
        with telling_how_to_go_on(run, module, self.checkpoints):
            over = averaged(self.data.env.suite, self.data.dataset)
            log_outcome(run, compared(cfg, self.overrides), over)
            run.write_result(result)
        return result


def begin(
    cfg: DictConfig,
    overrides: list[str],
    console: Console,
    run: RunFolder,
    first_update: int,
    data: OfflineData,
    provenance: dict[str, Any],
    module: Trained,
    progress: Progress | Spread,
    parts: Parts | None,
) -> Begun:
    """Write down what a run is, and make what watches it."""
    cfg.run_dir = literal(str(run.path))
    cfg.data_dir = data.data_dir and literal(str(data.data_dir.resolve()))
    run.write_config(cfg, overrides)
    run.write_provenance(provenance)
    extra = {
        "config": OmegaConf.to_container(cfg, resolve=False),
        "spec": data.spec.to_dict(),
        "env": asdict(data.env),
        "action_bounds": data.action_bounds,
        "provenance": provenance,
        "versions": versions(),
    }
    evaluation = parts["eval"] if parts else build(cfg.eval)
    checkpoints = Checkpoint(run.checkpoints, extra=extra, **cfg.checkpoint)
    rank_zero_only.rank = 0  # read off a cluster's variables, of several runs all but one would log nothing
    with telling_how_to_go_on(run, module, checkpoints):
        tensorboard = RunEvents(run.path, purge_step=first_update + 1 if first_update else None)
        loggers = [tensorboard, MetricsCSV(run.path, first_update)]
    return Begun(
        cfg,
        overrides,
        run,
        data,
        Monitor(cfg.log.every, console),
        checkpoints,
        evaluation(spec=data.env, run_dir=run.path, progress=progress, **processes(cfg)),
        loggers,
        time.perf_counter(),
    )


def build_trainer(cfg: DictConfig, root: Path, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    """A trainer of one process, whatever a cluster's variables say.

    With them Lightning also takes up what it finds in its root.
    """
    alone = {"plugins": LightningEnvironment(), "default_root_dir": root}
    return build(cfg.trainer)(callbacks=callbacks, logger=loggers, **alone)


def run_trainer(
    trainer: L.Trainer,
    module: Training,
    data: OfflineData,
    evaluate: L.Callback,
    first_update: int,
    checkpoint: Path | None = None,
) -> None:
    """Train to the last update, from a checkpoint where there is one; from the last update on only evaluate."""
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if first_update == module.total_updates:  # stopped after its last update: Lightning's loop does not start
        module.to(trainer.strategy.root_device)  # from where Lightning has put it
        try:
            evaluate.on_train_start(trainer, module)
        finally:
            evaluate.teardown(trainer, module, "fit")


def announce(console: Console, cfg: DictConfig, where: str, first_update: int, why: str) -> None:
    """What is going to be done, in three lines."""
    env, what = (escape(str(name)) for name in (cfg.env.name, f"{cfg.algo_name} · {cfg.variant.name} → {where}"))
    console.print(f"[bold]{env}[/] · {what}", highlight=False, soft_wrap=True)
    console.print(escape(plan(cfg, first_update)), highlight=False, soft_wrap=True)
    console.print(escape(f"{'compiled' if cfg.compile else 'eager'}: {why}"), highlight=False, soft_wrap=True)


def final_share(cfg: DictConfig) -> float:
    """How many times as long the last evaluation is as one on the way."""
    return cfg.eval.episodes / interim_episodes(cfg) if "episodes" in cfg.eval else 1.0


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


def interim_episodes(cfg: DictConfig) -> int:
    """Episodes of an evaluation on the way."""
    return episodes_on_the_way(cfg.eval.episodes, cfg.eval.get("interim_episodes"))


def plan(cfg: DictConfig, first_update: int) -> str:
    """What a run is going to do, in a line."""
    updates = f"{cfg.updates - first_update:,} updates" + (f" after {first_update:,}" if first_update else "")
    over = ""
    if "episodes" in cfg.eval:
        interim = interim_episodes(cfg)
        over = f" over {interim} episodes" + (f", {cfg.eval.episodes} at the end" * (interim != cfg.eval.episodes))
    return f"{updates} of batch {cfg.batch_size}, evaluated every {cfg.eval.every:,}{over}"


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


def check_existing(cfg: DictConfig) -> None:
    if cfg.existing not in EXISTING:
        raise ConfigError(f"existing={cfg.existing} must be {' or '.join(EXISTING)}")


def check_run(cfg: DictConfig, overrides: list[str]) -> None:
    """Refuse settings that no run can be made of, and those of another algorithm or evaluation.

    Raises:
        ConfigError: naming the setting.
    """
    check_settings(cfg)
    refuse_settings_of_another_algorithm(cfg, overrides)
    refuse_settings_of_another_evaluation(cfg, overrides)


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


def check_settings(cfg: DictConfig) -> None:
    """Refuse what no run can be made of.

    Raises:
        ConfigError: naming the setting.
    """
    counts = [f"eval.{name}" for name in ("every", "episodes", "num_envs", "samples") if name in cfg.eval]
    for key in ("updates", "batch_size", "chunk", "pack", "log.every", *counts, "checkpoint.every"):
        value = OmegaConf.select(cfg, key)
        if type(value) is not int or value < 1:  # True is no number
            raise ConfigError(f"{key}={value} must be a whole number of at least 1")
    if (interim := cfg.eval.get("interim_episodes")) is not None and (type(interim) is not int or interim < 1):
        raise ConfigError(f"eval.interim_episodes={interim} must be null or a whole number of at least 1")
    if (minutes := cfg.checkpoint.get("minutes")) is not None and not (type(minutes) in (int, float) and minutes > 0):
        raise ConfigError(f"checkpoint.minutes={minutes} must be null or a positive number")
    check_compile(cfg.compile)
    if type(cfg.tf32) is not bool:
        raise ConfigError(f"tf32={cfg.tf32} must be true or false")
    if cfg.threads is not None and (type(cfg.threads) is not int or cfg.threads < 1):
        raise ConfigError(f"threads={cfg.threads} must be null or a whole number of at least 1")
    if (precision := cfg.trainer.precision) not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision={precision} must be {' or '.join(PRECISIONS)}: with 16-mixed gradients are scaled when "
            "they are clipped, which then keeps next to nothing of them, and nothing else was tried"
        )
    # The trainer takes it in, and builds what it names: out of a checkpoint it could name anything.
    if not isinstance(cfg.accelerator, str):
        raise ConfigError(f"accelerator={cfg.accelerator} must be a name, e.g. auto, cpu or gpu")
    here = {name for name in AcceleratorRegistry if AcceleratorRegistry[name]["accelerator"].is_available()}
    here |= {"auto"} | ({"gpu"} if here & {"cuda", "mps"} else set())
    if cfg.accelerator not in here:
        raise ConfigError(f"accelerator={cfg.accelerator} is not on this machine ({', '.join(sorted(here))} are)")


def processes(cfg: DictConfig) -> dict[str, int]:
    """The simulator's share of ``threads``, unless it has a number of processes of its own or there is none."""
    if cfg.threads is None or "workers" not in cfg.eval or cfg.eval.workers is not None:
        return {}
    return {"workers": cfg.threads if cfg.threads > 1 else 0}


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
        new = key not in before and OmegaConf.select(cfg, key) is None  # a setting that came later, and is off
        if now.get(key) != before.get(key) and not new:
            raise RefusedRun(
                f"{path} holds a run with {key}={before.get(key)}, not {now.get(key)}: choose another run_dir, or "
                "move the folder away to begin anew"
            )
    return run.result if run.status == FINISHED else None


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
    plain = Saved(saved["mfrl"]["config"]).plain("")  # whatever is read of it from here on is a plain value
    refuse_incomplete(plain, path)
    old = OmegaConf.create(saved["mfrl"]["config"])
    for key in RESUMABLE:
        if "." not in key and key not in old:  # a setting that came later
            old[key] = cfg[key]
    for part in ("log", "checkpoint"):
        if unknown := old[part].keys() - cfg[part].keys():
            raise CheckpointError(f"{path} has the setting {part}.{min(unknown)}, which this version of mfrl does not")
        old[part] = OmegaConf.merge(cfg[part], old[part])  # with what came later, as it is by default
    if "_target_" not in old.eval:  # a run from before there was a choice
        old.eval = {"_target_": "mfrl.callbacks.evaluation.Evaluate", "_partial_": True, **old.eval}
    OmegaConf.set_struct(old.eval, True)  # of the run's environment: `cfg` may have been composed for another
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if override.is_delete():
            raise RefusedRun(f"{override.input_line}: a resumed run keeps every setting it has")
        if not among(key, RESUMABLE):
            raise RefusedRun(f"{key} cannot change in a resumed run ({', '.join(RESUMABLE[1:])} can): start a new one")
        if key == "resume":
            continue
        try:
            OmegaConf.update(old, key, settled(cfg, key, override.value()))
        except OmegaConfBaseException as error:
            names = ", ".join(name for name in old.eval if not name.startswith("_"))
            raise RefusedRun(f"{override.input_line} is no setting of this run's evaluation ({names} are)") from error
    # Of this installation and of the user, not out of the file.
    old.trainer, old.trust = cfg.trainer, cfg.trust
    check_settings(old)
    complete = read_run(run.path).status == FINISHED
    if saved["updates"] > old.updates or (saved["updates"] == old.updates and complete):
        raise RefusedRun(f"{path} is at update {saved['updates']} of {old.updates}; raise updates= to go on")
    return old


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


Parts = dict[str, Callable[..., Any]]


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


def fetch_missing(cfg: DictConfig, data: OfflineData, console: Console) -> None:
    """Collect or download what is not there yet, if asked to; of a sweep's jobs, one does."""

    def there() -> bool:
        return all(path.is_file() for path in data.paths)

    if there() or (cfg.collect is None and not cfg.download):
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(one_at_a_time(data.data_dir / f".{data.dataset.replace('/', '-')}.lock"))
        except OSError as error:
            if isinstance(error, MfrlError):  # it says what to do already
                raise
            raise DataError(
                f"{data.dataset} is not in {data.data_dir}, and cannot be put there ({error.strerror or error}): "
                "choose another folder with data_dir=, or have it put there by somebody who may"
            ) from error
        if there():
            return
        how = "downloading it" if cfg.collect is None else "collecting it in the simulator"
        what = escape(f"{data.dataset} is not in {data.data_dir}: {how}")
        console.print(what, highlight=False, soft_wrap=True)
        if cfg.collect is None:
            data.download()
        else:
            collect_missing(cfg, data)


def final_scores(run: RunFolder) -> dict[str, Any]:
    """The last evaluation and over how much it was, the mean of the last three, and the best with its update.

    The best is that of the evaluation's first number, the earliest where several are. It is there to be compared with
    the others, not to be quoted: picked among noisy evaluations, it flatters.
    """
    evaluations = read_evaluations(run)
    keys = [key for key in evaluations[-1] if key.startswith("eval/")]
    last = {key: evaluations[-1][key] for key in keys}
    recent = evaluations[-SCORES["last3"] :]
    # Some environments tell of a success only where there is one: then not every evaluation has the key.
    means = {key: float(np.mean([e[key] for e in recent])) for key in keys if all(key in e for e in recent)}
    over = {key: evaluations[-1][key] for key in ("episodes", "transitions") if key in evaluations[-1]}
    choose = min if known_metric(keys[0]).lower_is_better else max
    best = choose((e for e in evaluations if keys[0] in e), key=lambda e: e[keys[0]])
    best = {name: best[name] for name in (keys[0], "updates", "episodes") if name in best}
    return {"final": last, "mean_of_last_three": means, "best": best, **over}


def summarise(console: Console, run: RunFolder, result: dict[str, Any]) -> None:
    """The closing table: the scores and where everything lies."""
    table = Table(title=result["env"], show_header=False)
    for key, value in result["final"].items():
        table.add_row(score_name(key), f"[bold]{format_score(key, value)}[/]")
    key = next(iter(result["final"]))
    if key in result["mean_of_last_three"]:
        table.add_row(f"{score_name(key)}, mean of last three", format_score(key, result["mean_of_last_three"][key]))
    best = result["best"]
    over = f" ({best['episodes']} episodes)" if "eval/return" in result["final"] else ""
    table.add_row(f"{score_name(key)}, best", f"{format_score(key, best[key])} at update {best['updates']:,}{over}")
    kind = "episodes" if "eval/return" in result["final"] else "samples"
    over = f"{result['transitions']:,} transitions" if "transitions" in result else f"{result['episodes']} {kind}"
    table.add_row("evaluated over", over)
    table.add_row("algo, variant", f"{result['algo']}, {result['variant']}")
    if "alpha" in result:
        table.add_row("alpha", f"{result['alpha']:g}")
    table.add_row("seed", f"{result['seed']}")
    table.add_row("updates", f"{result['updates']:,} at {result['updates_per_second']:.1f} per second")
    table.add_row("time", f"{format_seconds(result['seconds'])}, evaluations included")
    table.add_row("data", f"{result['dataset']} ({result['data']})")
    console.print(table, highlight=False)
    if found := unsteady(read_evaluations(run)):
        console.print(f"[bold yellow]{found}[/]. {DEPENDS_ON_WHEN}", highlight=False)
    for warning in result["warnings"]:
        console.print(f"[bold red]warning[/] {escape(warning)}", highlight=False, soft_wrap=True)
    # Below the table and unwrapped: these lines are there to be copied.
    for what in (
        f"run folder  {run.path}",
        f"look        {pasted('tensorboard', '--logdir', run.path)}",
        f"evaluate    {pasted('mfrl', 'eval', ckpt=run.path)}",
    ):
        console.print(escape(what), highlight=False, soft_wrap=True)
