"""The command line, `mfrl COMMAND [overrides]`. Most commands are Hydra applications, each with a file in conf/."""

from __future__ import annotations

import logging
import re
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any, NoReturn

import hydra

# Hydra's own flags (--cfg, --config-dir, -m) are read here, before Hydra takes over, to know whether the command runs
# something or only prints. Hydra does not export its parser: this is the only import of its internals.
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from mfrl.app.overrides import SEARCH_PATH, Composer, expand_seeds, parse
from mfrl.app.refusals import check_overrides
from mfrl.app.sweep import attempt, this_process
from mfrl.errors import ConfigError, InterruptedRun, MfrlError, did_you_mean, refused_by_system
from mfrl.system import signals
from mfrl.system.importing import without_collection
from mfrl.system.paths import CONFIG_DIR, take_as_they_are

USAGE = """mfrl: one-step generative policies for offline RL

  mfrl train   [overrides]                    train; -m sweeps over comma-separated values
  mfrl train   seeds=8 [overrides]            eight seeds in one process
  mfrl train   sweep=reformulation env=...    every variant, several seeds, side by side
  mfrl train   sweep=search env=...           search for the best alpha, or another setting
  mfrl train   resume=RUN [online.steps=N]    go on with a run; with online.steps in its environment
  mfrl eval    ckpt=PATH [episodes=50]        evaluate a checkpoint or run folder
  mfrl export  ckpt=PATH [format=onnx]        a policy for another runtime, compared with PyTorch before it is written
  mfrl tasks   [--available] [NAME...]        what can be trained on, and whether its data are here
  mfrl collect env=ogbench/DATASET            collect a dataset in the simulator, by the benchmark's own script
  mfrl collect env=... policy=random          the same with random actions, or policy=ckpt:RUN, a trained policy's
  mfrl download env=SUITE/DATASET             fetch a dataset from the server that offers it
  mfrl report  RUNS... [--out report]         tables, intervals and figures from run folders

Overrides are Hydra's: env=ogbench/cube-single-play env.task=2 seed=1. `mfrl COMMAND --cfg job` shows the
composed configuration, `mfrl COMMAND --help` what can be overridden."""


def train(cfg: DictConfig) -> Any:
    with without_collection():
        from mfrl.app.train import train

    quiet_lightning()
    quiet_threads()
    signals.obey()  # training forgets what stopped an earlier run
    return train(cfg, list(HydraConfig.get().overrides.task))


def evaluate(cfg: DictConfig) -> Any:
    with without_collection():
        from mfrl.app.evaluate import evaluate_checkpoint

    return evaluate_checkpoint(cfg)


def export(cfg: DictConfig) -> Any:
    with without_collection():
        from mfrl.app.export import export_checkpoint

    return export_checkpoint(cfg)


def collect(cfg: DictConfig) -> Any:
    with without_collection():
        from mfrl.app.collect import collect

    collect(cfg, list(HydraConfig.get().overrides.task))


def download(cfg: DictConfig) -> Any:
    from mfrl.runs.targets import build

    build(cfg.data).download(**({} if cfg.mirrors is None else {"mirrors": list(cfg.mirrors)}))


#: By name, which is that of the command's file in conf/ too.
COMMANDS: dict[str, Callable[[DictConfig], Any]] = {
    "train": train,
    "eval": evaluate,
    "export": export,
    "collect": collect,
    "download": download,
}


INTERRUPTED = 128 + signal.SIGINT  # exit status, as shells define it


def main() -> None:
    """The entry point of the console command `mfrl`."""
    try:
        run(sys.argv[1:])
    except KeyboardInterrupt:
        fail("interrupted; nothing half-written bears a file's name", INTERRUPTED)


def run(arguments: list[str]) -> None:
    """Run one command, e.g. ``["train", "seed=1"]``. Errors are printed, and the process exits with a status."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    if arguments[0] == "--version":
        print(metadata.version("mfrl"))
        return
    name = arguments[0]
    if name in ("report", "tasks"):  # these read files only, and have no configuration
        try:
            if name == "report":
                with without_collection():
                    from mfrl.app import report

                report.main(arguments[1:])
            else:
                from mfrl.app import tasks

                tasks.main(arguments[1:])
        except MfrlError as error:
            fail(str(error), 1)
        except OSError as error:
            if (refusal := refused_by_system(error)) is None:
                raise
            fail(str(refusal), 1)
        return
    if name not in COMMANDS:
        known = [*COMMANDS, "report", "tasks"]
        fail(f"unknown command {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}", 2)
    try:
        arguments = [name, *take_as_they_are(arguments[1:])]
    except MfrlError as error:
        fail(str(error), 2)
    if name == "export":
        flag = ("--verify-env", "--verify_env")
        arguments = ["verify_env=true" if argument in flag else argument for argument in arguments]
    if name == "train" and any(argument.startswith("resume=") for argument in arguments):
        # The configuration composed here has the evaluation of the default environment. The run may have another one
        # with other settings, so Hydra must accept them; mfrl.app.resume checks them.
        arguments = [f"++{argument}" if argument.startswith("eval.") else argument for argument in arguments]
    if name == "train":
        # Each collector has settings of its own, so Hydra must accept all; mfrl.app.refusals checks them.
        arguments = [f"++{a}" if re.match(r"collect[.=]", a) else a for a in arguments]
        try:
            arguments = expand_seeds(arguments)
        except MfrlError as error:
            fail(str(error), 2)
    signals.install(signals.leave)  # a signal ends the command by an exception, so that it cleans up
    sys.argv = [f"mfrl {name}", *arguments[1:]]
    flags = get_args_parser().parse_args(arguments[1:])
    searched = [text for text in flags.overrides if text.startswith(f"{SEARCH_PATH}=")]
    try:
        # Hydra's own pages (--help, --info, completion) and other configurations (--config-path) are left to Hydra.
        if not any((flags.help, flags.hydra_help, flags.info, flags.shell_completion, flags.config_path)):
            check_overrides(flags.config_name or name, flags.overrides, flags.config_dir, flags.cfg is None)
        composer = Composer.of(name, [parse(text) for text in searched], flags.config_dir)
    except MfrlError as error:
        fail(str(error), 2)
    # For conf/hydra/help. Hydra resolves it whenever it composes, and only --help shows it.
    names = partial(list_names, composer) if flags.help else lambda *groups: ""
    OmegaConf.register_new_resolver("mfrl.names", names, replace=True)
    if composer.search:  # Hydra's parser wants all overrides side by side
        kept = [text for text in arguments[1:] if text not in searched]
        first = next((kept.index(text) for text in flags.overrides if text in kept), len(kept))
        sys.argv[1:] = [*kept[:first], *composer.search, *kept[first:]]

    sweep_process = this_process()

    def task(cfg: DictConfig) -> Any:
        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        if name == "train" and multirun:
            quiet_lightning()
            quiet_threads()
            return attempt(cfg, list(HydraConfig.get().overrides.task), own_process=this_process() != sweep_process)
        try:
            launcher = HydraConfig.get().runtime.choices.get("hydra/launcher", "basic")
            if launcher != "basic" and not multirun:
                raise ConfigError(f"hydra/launcher={launcher} starts the jobs of a sweep: add -m, or sweep=...")
            return COMMANDS[name](cfg)
        except (Exception, KeyboardInterrupt, signals.Interrupted) as error:
            # A signal during the import of a module in C makes that import fail, or is only noted.
            received = signals.received()
            if received and not isinstance(error, InterruptedRun):
                signals.leave(received)
            refusal = error if isinstance(error, MfrlError) else refused_by_system(error)
            if refusal is None:
                raise
            # In a multirun, Hydra reports this error and runs the other jobs.
            if multirun:
                raise refusal from (None if refusal is error else error)
            fail(str(refusal), refusal.exit_status)

    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(task)()


def list_names(composer: Composer, *groups: str) -> str:
    """The configurations that each group offers, those of the user's folders too, as lines of Hydra's help."""
    lines = []
    for group in groups:
        found = []
        for kind, ending in ((ObjectType.GROUP, "/..."), (ObjectType.CONFIG, "")):
            names = composer.listed(group, kind)
            found += [f"{name}{ending}" for name in names if not name.startswith("_")]
        lines += textwrap.wrap(", ".join(found), 116, initial_indent=f"  {group:<12}", subsequent_indent=" " * 14)
    return "\n".join(lines)


def quiet_lightning() -> None:
    """Silence Lightning's banners and its hints about data loaders, which do not apply here."""
    with without_collection():
        import lightning  # noqa: F401 - its import sets a level

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


def quiet_threads() -> None:
    """Silence errors of the system (a full disk) in TensorBoard's thread: the main thread raises them too."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is None or refused_by_system(arguments.exc_value) is None:
            before(arguments)

    threading.excepthook = hook


def fail(message: str, code: int) -> NoReturn:
    """Print an error and exit with a status."""
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error[/] {escape(message)}", highlight=False)
    sys.exit(code)
