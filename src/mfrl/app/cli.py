"""`mfrl <command> [overrides]`: each command is a Hydra application with its own file in conf/."""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from mfrl.app.presets import refuse_taken_names
from mfrl.app.sweep import attempt
from mfrl.catalogue import spelled
from mfrl.errors import ConfigError, InterruptedRun, MfrlError, did_you_mean, refused_by_system, require
from mfrl.runs.targets import settings_of
from mfrl.system import signals
from mfrl.system.paths import CONFIG_DIR, refuse_groups, run_folder, take_as_they_are

USAGE = """mfrl: one-step generative policies for offline RL

  mfrl train   [overrides]                    train; -m sweeps over comma-separated values
  mfrl train   sweep=reformulation env=...    every variant, several seeds, side by side
  mfrl eval    ckpt=PATH [episodes=50]        evaluate a checkpoint or run folder
  mfrl tasks   [--available] [NAME...]        what can be trained on, and whether its data are here
  mfrl collect env=ogbench/DATASET            collect a dataset in the simulator, by the benchmark's own script
  mfrl collect env=... policy=random          the same with random actions, or policy=ckpt:RUN, a trained policy's
  mfrl download env=SUITE/DATASET             fetch a dataset from the server that offers it
  mfrl report  RUNS... [--out report]         tables, intervals and figures from run folders

Overrides are Hydra's: env=ogbench/cube-single-play env.task=2 seed=1. `mfrl COMMAND --cfg job` shows the
composed configuration, `mfrl COMMAND --help` what can be overridden."""


def train(cfg: DictConfig) -> Any:
    from mfrl.app.train import train

    quiet_lightning()
    quiet_threads()
    signals.obey()  # training forgets what stopped an earlier run
    return train(cfg, list(HydraConfig.get().overrides.task))


def evaluate(cfg: DictConfig) -> Any:
    from mfrl.app.evaluate import evaluate_checkpoint

    return evaluate_checkpoint(cfg)


def collect(cfg: DictConfig) -> Any:
    from mfrl.app.collect import collect

    collect(cfg, list(HydraConfig.get().overrides.task))


def download(cfg: DictConfig) -> Any:
    from mfrl.runs.targets import build

    build(cfg.data).download(**({} if cfg.mirrors is None else {"mirrors": list(cfg.mirrors)}))


COMMANDS: dict[str, tuple[Callable[[DictConfig], Any], str]] = {
    "train": (train, "train"),
    "eval": (evaluate, "eval"),
    "collect": (collect, "collect"),
    "download": (download, "download"),
}


SEARCH_PATH = "hydra.searchpath"
INTERRUPTED = 128 + signal.SIGINT  # exit status, as shells have it


def main() -> None:
    """Entry point of the console command."""
    try:
        run(sys.argv[1:])
    except KeyboardInterrupt:
        fail("interrupted; nothing half-written bears a file's name", INTERRUPTED)


def run(arguments: list[str]) -> None:
    """One command, e.g. ``["train", "seed=1"]``."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    if arguments[0] == "--version":
        print(metadata.version("mfrl"))
        return
    name = arguments[0]
    if name in ("report", "tasks"):  # read what is there: nothing to compose
        if name == "report":
            from mfrl.app.report import main as read
        else:
            from mfrl.app.tasks import main as read

        try:
            read(arguments[1:])
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
    function, config_name = COMMANDS[name]
    try:
        arguments = [name, *take_as_they_are(arguments[1:])]
    except MfrlError as error:
        fail(str(error), 2)
    if name == "train" and any(argument.startswith("resume=") for argument in arguments):
        # The run's own evaluation says which settings it has; the one composed here belongs to the default environment.
        arguments = [f"++{argument}" if argument.startswith("eval.") else argument for argument in arguments]
    if name == "train":
        # They are those of the dataset's collector, and not only the ones that an experiment gives.
        arguments = [f"++{a}" if re.match(r"collect[.=]", a) else a for a in arguments]
        try:
            arguments = spell_out_seeds(arguments)
        except MfrlError as error:
            fail(str(error), 2)
    signals.install(signals.leave)  # what is half done is cleaned up
    sys.argv = [f"mfrl {name}", *arguments[1:]]
    flags = get_args_parser().parse_args(arguments[1:])
    searched = [text for text in flags.overrides if text.startswith(f"{SEARCH_PATH}=")]
    try:
        # What Hydra shows of itself, and configurations that are none of ours, are left to Hydra.
        if not any((flags.help, flags.hydra_help, flags.info, flags.shell_completion, flags.config_path)):
            check_overrides(flags.config_name or config_name, flags.overrides, flags.config_dir, flags.cfg is None)
        search = Composer.of(config_name, [parse(text) for text in searched], flags.config_dir).search
    except MfrlError as error:
        fail(str(error), 2)
    if search:  # Hydra's grammar wants overrides side by side
        kept = [text for text in arguments[1:] if text not in searched]
        first = next((kept.index(text) for text in flags.overrides if text in kept), len(kept))
        sys.argv[1:] = [*kept[:first], *search, *kept[first:]]

    own_process = os.getpid()

    def task(cfg: DictConfig) -> Any:
        if name == "train" and HydraConfig.get().mode == RunMode.MULTIRUN:
            quiet_lightning()
            quiet_threads()
            return attempt(cfg, list(HydraConfig.get().overrides.task), aside=os.getpid() != own_process)
        try:
            return function(cfg)
        except (Exception, KeyboardInterrupt, signals.Interrupted) as error:
            # A signal that comes while a module in C is imported arrives as the failure of that import, or not at all
            # before somebody looks for it.
            if signals.received() and not isinstance(error, InterruptedRun):
                signals.leave(signals.received())
            refusal = error if isinstance(error, MfrlError) else refused_by_system(error)
            if refusal is None:
                raise
            # Of several runs, Hydra reports this one and goes on with what it can.
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise refusal from (None if refusal is error else error)
            fail(str(refusal), refusal.exit_status)

    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(task)()


def spell_out_seeds(arguments: list[str]) -> list[str]:
    """``seeds=8`` is short for ``-m seed=0,1,2,3,4,5,6,7 pack=8``.

    Raises:
        ConfigError: it is no whole number of at least 1, or stands beside ``seed=``.
    """
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("seeds=")]
    if not given:
        return arguments
    if not given[-1].isdecimal() or int(given[-1]) < 1:
        raise ConfigError(f"seeds={given[-1]} must be a whole number of at least 1: how many seeds, from 0 on")
    if any(argument.startswith("seed=") for argument in arguments):
        raise ConfigError(f"seeds={given[-1]} stands for seeds 0 to {int(given[-1]) - 1}: leave seed= out")
    others = [argument for argument in arguments if not argument.startswith("seeds=")]
    if {"--cfg", "-c", "--info", "-i", "--help"} & {*others}:  # of the configuration that all of them have
        return others
    count = int(given[-1])
    listed = [f"seed={','.join(str(seed) for seed in range(count))}"]
    if not any(argument.startswith("pack=") for argument in others):
        listed.append(f"pack={count}")
    many = [] if {"-m", "--multirun"} & {*others} else ["--multirun"]
    return [others[0], *many, *others[1:], *listed]


@dataclass(frozen=True)
class Composer:
    """What Hydra composes for a command: a file of conf/, and where further files may lie.

    Attributes:
        name: of the file.
        search: the override hydra.searchpath, where there are further folders, else none.
    """

    name: str
    search: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, overrides: Iterable[Override], config_dir: str | None = None) -> Composer:
        """With the folders of ``hydra.searchpath=[...]`` and ``--config-dir``.

        Raises:
            ConfigError: one of them has a table of presets by the name of one of ours.
        """
        given = [o.value() for o in overrides if o.key_or_group == SEARCH_PATH and not o.is_sweep_override()]
        folders = [folder for value in given[-1:] if isinstance(value, list) for folder in value]
        if config_dir is not None:
            folders.append(f"file://{os.path.abspath(config_dir)}")
        # Tables of presets are looked for wherever files are.
        paths = [path for folder in folders if "://" not in (path := str(folder).removeprefix("file://"))]
        for path in paths:
            refuse_taken_names(Path(path))
        folders += [f"presets://{path}" for path in paths]
        listed = ",".join(QuotedString(str(folder), Quote.single).with_quotes() for folder in folders)
        return cls(name, (f"{SEARCH_PATH}=[{listed}]",) if folders else ())

    def __call__(self, overrides: Iterable[str]) -> DictConfig:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra.compose(self.name, [*self.search, *overrides])

    def names(self, group: str, kind: ObjectType) -> list[str]:
        """Of the configurations, or of the groups, in a group."""
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            return loader.get_group_options(group, kind, self.name, list(self.search))

    def is_group(self, key: str) -> bool:
        """Whether configurations are chosen by ``key=``."""
        if not self.search:
            return (CONFIG_DIR / key).is_dir()
        return "." not in key and bool(self.names(key, ObjectType.CONFIG) or self.names(key, ObjectType.GROUP))

    def all_names(self, group: str) -> list[str]:
        """The configurations in a group and in the groups below it, by their names in the first."""
        names = self.names(group, ObjectType.CONFIG)
        for part in self.names(group, ObjectType.GROUP):
            names += [f"{part}/{name}" for name in self.all_names(f"{group}/{part}")]
        return names

    def is_choice(self, override: Override) -> bool:
        """Whether it chooses a configuration of a group, e.g. network=small."""
        return self.is_group(override.key_or_group) and isinstance(override.value(), str | list)


def parse(text: str) -> Override:
    """An override, KEY=VALUE.

    Raises:
        ConfigError: it is none.
    """
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except HydraException as error:
        known_as = spelled(text)
        hint = f"; did you mean {known_as}?" if known_as else ", e.g. env=ogbench/cube-single-play seed=1"
        raise ConfigError(f"{text!r} cannot be read as KEY=VALUE{hint}") from error
    if not override.key_or_group:
        raise ConfigError(f"{text!r} cannot be read as KEY=VALUE: there is no key")
    return override


def check_overrides(
    config_name: str, overrides: list[str], config_dir: str | None = None, complete: bool = True
) -> None:
    """Compose once up front, to say in our own words what is wrong with an override.

    Args:
        config_name: the file that the command composes.
        overrides: the user's.
        config_dir: of ``--config-dir``: a folder of the user's own configurations.
        complete: there is something to be run, and not only shown.

    Raises:
        ConfigError: with near names where a name is unknown.
    """
    if config_dir is not None and not os.path.isdir(config_dir):
        raise ConfigError(f"--config-dir {config_dir} is no folder")
    parsed = [parse(text) for text in overrides]
    composer = Composer.of(config_name, parsed, config_dir)
    choices = [values_of(override) for override in parsed if override.key_or_group != SEARCH_PATH]
    given: list[Override] = []
    composed: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any]]] = {}
    try:
        # Every value of a sweep once; shorter lists stay at their last.
        for k in range(max(map(len, choices), default=1)):
            given = [values[min(k, len(values) - 1)] for values in choices]
            lines = [o.input_line for o in given]
            chosen = tuple(o.input_line for o in given if composer.is_choice(o))
            if chosen not in composed:  # composing takes a tenth of a second, and a sweep may have a thousand seeds
                for override in given:
                    check_group(override, composer)
                check_taken_away(given, composer)
                composed[chosen] = composer(lines), dotted(composer(chosen))
            cfg, defaults = composed[chosen]
            for override in [values[k] for values in choices if 0 < k < len(values)]:
                if override.input_line not in chosen:
                    change(cfg, override)
            if complete:
                check_composed(cfg)
            check_kinds(dotted(cfg), defaults)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(str(error), composer, given)) from error


def values_of(override: Override) -> list[Override]:
    """The overrides that a sweep is made of; one that is none is the only one."""
    if not override.is_sweep_override():
        return [override]
    return [parse(f"{override.get_key_element()}={value}") for value in override.sweep_string_iterator()]


def change(cfg: DictConfig, override: Override) -> None:
    """Give another value to a setting that Hydra has composed already.

    Raises:
        ConfigError: the setting has values of another kind.
    """
    try:
        new = override.type != OverrideType.CHANGE
        OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=new)
    except OmegaConfBaseException as error:
        raise ConfigError(another_kind(override.input_line)) from error


def check_kinds(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse words for numbers, and anything for a group of settings that is none.

    Raises:
        ConfigError: naming the setting.
    """
    for key, default in defaults.items():
        value = values.get(key)
        if isinstance(default, dict) and default and not isinstance(value, dict) and "collect" not in key:
            names = ", ".join(f"{key}.{name}" for name in default if not name.startswith("_"))
            raise ConfigError(f"{key}={value} would take away the settings {names}; give those")
        if isinstance(default, int | float) and not isinstance(default, bool) and isinstance(value, str):
            require(key, "${" in value, value, f"a number, e.g. {default}")


def check_group(override: Override, composer: Composer) -> None:
    """Refuse what Hydra answers with a traceback: a group of configurations that is given none.

    Raises:
        ConfigError: with the group's configurations.
    """
    text, group = override.input_line, override.key_or_group
    if override.is_delete() or not composer.is_group(group) or isinstance(override.value(), str | list | dict):
        return
    names = composer.names(group, ObjectType.CONFIG)
    names += [f"{name}/..." for name in composer.names(group, ObjectType.GROUP)]
    known = ", ".join(sorted(name for name in names if not name.startswith("_")))
    raise ConfigError(f"{text} must be one of {known}; leave {group}= out for the default")


def check_taken_away(given: Sequence[Override], composer: Composer) -> None:
    """Let settings be taken away that nothing has a use for, as those of an evaluation that was not chosen in the end.

    Raises:
        ConfigError: the setting is needed.
    """
    gone = [o for o in given if o.is_delete() and not o.is_hydra_override()]
    if not gone:
        return
    cfg = composer([o.input_line for o in given if o not in gone])
    for override in gone:
        part, _, name = override.key_or_group.rpartition(".")
        node = OmegaConf.select(cfg, part) if part else None
        known = settings_of(node) if isinstance(node, DictConfig) and "_target_" in node else None
        if known is None or name in known:
            raise ConfigError(
                f"{override.input_line}: a setting cannot be taken away, only changed ({override.key_or_group}=...) or "
                "left as it is"
            )
        if name not in node:
            raise ConfigError(f"{override.input_line}: there is no setting {override.key_or_group} to take away")


def check_composed(cfg: DictConfig) -> None:
    """Refuse settings that no part of the program would answer for in words of its own.

    Raises:
        ConfigError: naming the setting.
    """
    if missing := [key for key, value in dotted(cfg).items() if value == "???"]:
        raise ConfigError(f"{', '.join(missing)} must be given, e.g. {missing[0]}=...")
    if "run_dir" in cfg:
        try:
            refuse_groups(cfg, "run_dir")
            run_folder(cfg.run_dir)
        except OmegaConfBaseException as error:
            raise ConfigError(f"run_dir={dotted(cfg)['run_dir']}: {str(error).splitlines()[0]}") from error
    jobs = cfg.get("jobs", -1)
    possible = isinstance(jobs, int) and (jobs == -1 or jobs >= 1)
    require("jobs", possible, jobs, "at least 1, or -1 for as many as there are cores")
    seed = cfg.get("seed")
    if "updates" in cfg:  # `mfrl train`; the others say it themselves
        require("seed", type(seed) is int and 0 <= seed < 2**32, seed, "a whole number from 0 to 4294967295")
    task = OmegaConf.select(cfg, "env.task")
    if task is not None and cfg.env.suite != "ogbench":
        raise ConfigError(f"env.task={task}: {cfg.env.dataset} has one task only; leave env.task= out")
    if "updates" in cfg and cfg.get("collect") is not None:  # of `mfrl train`
        check_collect(cfg)


def check_collect(cfg: DictConfig) -> None:
    """Refuse what a dataset's collector does not know.

    Raises:
        ConfigError: with near names.
    """
    if not isinstance(cfg.collect, DictConfig):
        raise ConfigError(f"collect={cfg.collect} must be null or settings of `mfrl collect`, e.g. collect={{seed: 0}}")
    from mfrl.app.collect import collector

    function = collector(cfg.env.suite)
    if function is None:
        raise ConfigError(f"collect={cfg.collect}: there is nothing to collect of {cfg.env.name}; leave collect= out")
    known = inspect.signature(function).parameters.keys() - {"dataset", "data_dir", "env", "progress"}
    for name in cfg.collect:
        if name not in known:
            raise ConfigError(
                f"collect.{name} is no setting of collecting {cfg.env.dataset}{did_you_mean(str(name), known)}; known: "
                f"{', '.join(sorted(known))}"
            )


def explain(message: str, composer: Composer, given: Sequence[Override]) -> str:
    """Hydra's message, shortened, with near names for an unknown key or choice.

    Args:
        message: Hydra's.
        composer: of what was composed.
        given: with which overrides; the files they choose decide which settings there are.
    """
    if match := re.search(r"In '([^']+)': Could not override '([^'@]+)", message):
        if match[1].startswith("env/toy") and composer.name == "collect":
            return "env=toy/... are known distributions, whose data are drawn as training starts: nothing to collect"
        return f"{match[1]} chooses {match[2]}, which `mfrl {composer.name}` does not have: they do not go together"
    if match := re.search(r"Could not override '([^']+)'", message):
        chosen = [o for o in given if composer.is_choice(o) and o.key_or_group != match[1].partition("@")[0]]
        known = dotted(composer([o.input_line for o in chosen]))
        keys = [match[1]]
        for override in given:  # of a dictionary, what is wrong is in it
            if override.key_or_group == match[1] and isinstance(override.value(), dict):
                keys = [key for name in override.value() if (key := f"{match[1]}.{name}") not in known] or keys
        return f"there is no setting {keys[0]!r}{did_you_mean(keys[0], known)}"
    if match := re.fullmatch(r"Error merging override (.*)", message.splitlines()[0]):
        return another_kind(match[1])
    if match := re.search(r"(?:Could not find|In '[^']*': Could not find|Could not load) '([^']+)'", message):
        group, _, choice = match[1].rpartition("/")
        top = group.split("/")[0]
        known = composer.all_names(top)
        wanted = match[1].removeprefix(f"{top}/") if group else choice
        if top == "env" and (known_as := spelled(wanted)):
            return f"there is no {match[1]!r} among the configurations; it is written  {known_as}"
        if top == "env" and "powderworld" in wanted:
            return f"{wanted}: powderworld has discrete actions, and mfrl's policies are for continuous ones"
        near = did_you_mean(wanted, [name for name in known if not name.rpartition("/")[2].startswith("_")])
        return f"there is no {match[1]!r} among the configurations in {CONFIG_DIR}{near}"
    return message


def another_kind(override: str) -> str:
    return f"{override}: its value is of another kind than the setting's (a number, a name, a list, {{key: value}})"


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


def quiet_threads() -> None:
    """What the system refuses to TensorBoard's writing thread is raised in the main one as well, and is told there."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is None or refused_by_system(arguments.exc_value) is None:
            before(arguments)

    threading.excepthook = hook


def fail(message: str, code: int) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error[/] {escape(message)}", highlight=False)
    sys.exit(code)
