"""`mfrl <command> [overrides]`: each command is a Hydra application with its own file in conf/."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from mfrl.config import CONFIG_DIR
from mfrl.errors import ConfigError, MfrlError, did_you_mean, require
from mfrl.sweep import attempt
from mfrl.tasks import spelled

USAGE = """mfrl: one-step generative policies for offline RL

  mfrl train   [overrides]                    train; -m sweeps over comma-separated values
  mfrl train   sweep=reformulation env=...    every variant, several seeds, side by side
  mfrl eval    ckpt=PATH [episodes=50]        evaluate a checkpoint or run folder
  mfrl tasks   [--available] [NAME...]        what can be trained on, and whether its data are here
  mfrl collect env=ogbench/DATASET            collect a dataset in the simulator
  mfrl download env=ogbench/DATASET           fetch a dataset from the server that offers it
  mfrl report  RUNS... [--out report]         tables, intervals and figures from run folders

Overrides are Hydra's: env=ogbench/cube-single-play env.task=2 seed=1. `mfrl COMMAND --cfg job` shows the
composed configuration, `mfrl COMMAND --help` what can be overridden."""


def train(cfg: DictConfig) -> Any:
    from mfrl.train import train

    quiet_lightning()
    return train(cfg, list(HydraConfig.get().overrides.task))


def evaluate(cfg: DictConfig) -> Any:
    from mfrl.eval import evaluate_checkpoint

    return evaluate_checkpoint(cfg)


def collect(cfg: DictConfig) -> Any:
    from mfrl.collect.command import collect

    collect(cfg, list(HydraConfig.get().overrides.task))


def download(cfg: DictConfig) -> Any:
    from mfrl.config import build

    build(cfg.data).download(**({} if cfg.mirrors is None else {"mirrors": list(cfg.mirrors)}))


COMMANDS: dict[str, tuple[Callable[[DictConfig], Any], str]] = {
    "train": (train, "train"),
    "eval": (evaluate, "eval"),
    "collect": (collect, "collect"),
    "download": (download, "download"),
}


def main() -> None:
    """Entry point of the console command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    if arguments[0] == "--version":
        print(metadata.version("mfrl"))
        return
    name = arguments[0]
    if name in ("report", "tasks"):  # read what is there: nothing to compose
        if name == "report":
            from mfrl.report import main as read
        else:
            from mfrl.tasks import main as read

        try:
            read(arguments[1:])
        except MfrlError as error:
            fail(str(error), 1)
        return
    if name not in COMMANDS:
        known = [*COMMANDS, "report", "tasks"]
        fail(f"unknown command {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}", 2)
    function, config_name = COMMANDS[name]
    if name == "train" and any(argument.startswith("resume=") for argument in arguments):
        # The run's own evaluation says which settings it has; the one composed here belongs to the default environment.
        arguments = [f"++{argument}" if argument.startswith("eval.") else argument for argument in arguments]
    # With one of Hydra's own flags, Hydra answers; without, mistakes are answered here.
    if not any(argument.startswith("-") and argument not in ("-m", "--multirun") for argument in arguments[1:]):
        try:
            check_overrides(config_name, [argument for argument in arguments[1:] if not argument.startswith("-")])
        except MfrlError as error:
            fail(str(error), 2)

    own_process = os.getpid()

    def task(cfg: DictConfig) -> Any:
        if name == "train" and HydraConfig.get().mode == RunMode.MULTIRUN:
            quiet_lightning()
            return attempt(cfg, list(HydraConfig.get().overrides.task), aside=os.getpid() != own_process)
        try:
            return function(cfg)
        except MfrlError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # Hydra reports the job and goes on with what it can
            fail(str(error), 1)

    sys.argv = [f"mfrl {name}", *arguments[1:]]
    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(task)()


def check_overrides(config_name: str, overrides: list[str]) -> None:
    """Compose once up front, to say in our own words what is wrong with an override.

    Raises:
        ConfigError: with near names where a name is unknown.
    """
    composed: list[str] = []
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        choices = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [o.input_line]
            for o in parsed
            if not o.get_key_element().startswith("hydra")
        ]
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            # Every value of a sweep once; shorter lists stay at their last.
            for k in range(max(map(len, choices), default=1)):
                composed = [values[min(k, len(values) - 1)] for values in choices]
                cfg = hydra.compose(config_name, composed)
                if missing := [key for key, value in dotted(cfg).items() if value == "???"]:
                    raise ConfigError(f"{', '.join(missing)} must be given, e.g. {missing[0]}=...")
                jobs = cfg.get("jobs", -1)
                possible = isinstance(jobs, int) and (jobs == -1 or jobs >= 1)
                require("jobs", possible, jobs, "at least 1, or -1 for as many as there are cores")
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(str(error), config_name, composed)) from error


def explain(message: str, config_name: str, overrides: Sequence[str]) -> str:
    """Hydra's message, shortened, with near names for an unknown key or choice.

    Args:
        message: Hydra's.
        config_name: what was composed.
        overrides: with which; the files they choose decide which settings there are.
    """
    if match := re.search(r"In '([^']+)': Could not override '([^'@]+)", message):
        return f"{match[1]} chooses {match[2]}, which `mfrl {config_name}` does not have: they do not go together"
    if match := re.search(r"Could not override '([^']+)'", message):
        key = match[1]
        chosen = [override for override in overrides if (CONFIG_DIR / override.lstrip("+").partition("=")[0]).is_dir()]
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            known = dotted(hydra.compose(config_name, chosen))
        return f"there is no setting {key!r}{did_you_mean(key, known)}"
    if match := re.search(r"(?:Could not find|In '[^']*': Could not find|Could not load) '([^']+)'", message):
        group, _, choice = match[1].rpartition("/")
        top = group.split("/")[0]
        known = [str(p.relative_to(CONFIG_DIR / top).with_suffix("")) for p in (CONFIG_DIR / top).rglob("*.yaml")]
        wanted = match[1].removeprefix(f"{top}/") if group else choice
        if top == "env" and (known_as := spelled(wanted)):
            return f"there is no {match[1]!r} among the configurations; it is written  {known_as}"
        if top == "env" and "powderworld" in wanted:
            return f"{wanted}: powderworld has discrete actions, and mfrl's policies are for continuous ones"
        near = did_you_mean(wanted, [name for name in known if not name.rpartition("/")[2].startswith("_")])
        return f"there is no {match[1]!r} among the configurations in {CONFIG_DIR}{near}"
    return message


def dotted(cfg: DictConfig) -> dict[str, Any]:
    """Every key of a configuration as a.b.c with its value, interpolations as written."""
    found: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        for key, value in node.items():
            found[f"{prefix}{key}"] = value
            if isinstance(value, dict):
                visit(value, f"{prefix}{key}.")

    visit(OmegaConf.to_container(cfg, resolve=False), "")
    return found


def quiet_lightning() -> None:
    """Lightning's banners and hints about data loaders speak of things that do not apply here."""
    import lightning  # noqa: F401  which sets a level of its own

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


def fail(message: str, code: int) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error[/] {escape(message)}", highlight=False)
    sys.exit(code)
