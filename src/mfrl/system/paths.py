"""Paths on the command line: taken as they are, and printed so that they can be pasted back.

Three readers stand between the keyboard and a setting that is a path. The shell is the user's business. Hydra's grammar
has no ``=``, ``(``, ``[``, ``,`` or umlaut in a text without quotes, and OmegaConf takes ``${`` for a reference to
another setting. Neither is what somebody means who names a file, so these settings are quoted before Hydra sees them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mfrl.errors import ConfigError, require

_PACKAGE = Path(__file__).parents[1]
#: Hydra's configurations: beside the sources in a checkout, inside the package where it is installed.
CONFIG_DIR = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if folder.is_dir())

#: Settings of the commands that are paths, and what may stand there instead of one.
PATHS: dict[str, tuple[str, ...]] = {
    "ckpt": (),
    "resume": ("null",),
    "runs": ("null",),  # refused later, in its own words
    "run_dir": ("null",),  # refused later, in its own words
    "data_dir": ("null",),
    "out": ("null",),
    "data.cache": ("null", "true", "false"),
}
#: Settings that are a path after this prefix, and something else without.
_POLICIES, _CHECKPOINT = ("policy", "collect.policy"), "ckpt:"
#: Of these, ``-m`` takes several, separated by commas.
_SEVERAL = ("ckpt", "resume")
#: Of this one, ``${...}`` names other settings: conf/train.yaml has such a default.
_REFERENCES = ("run_dir",)


def take_as_they_are(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, in which every path is what stands there, whatever characters it has.

    What the user has quoted for Hydra is left alone. ``run_dir`` may refer to settings (``runs/${algo_name}``). With
    ``-m``, commas separate several checkpoints or runs in ``ckpt=`` and ``resume=``; one that holds a comma is to be
    quoted then. The other paths are one each.

    Raises:
        ConfigError: a path is empty, as where a variable of the shell was not set.
    """
    several = any(argument in ("-m", "--multirun") for argument in arguments)
    return [_as_it_is(argument, several) for argument in arguments]


def _as_it_is(argument: str, several: bool) -> str:
    match = re.fullmatch(r"(?P<plus>\+{0,2})(?P<key>[a-z_.]+)=(?P<value>.*)", argument, re.DOTALL)
    if match is None:
        return argument
    key, value = match["key"], match["value"]
    if key == "runs":  # other settings are made of it, Hydra's own among them, which take `~` for a name
        value = str(Path(value).expanduser()) if value.startswith("~") else value
    of_checkpoint = key in _POLICIES and value.startswith(_CHECKPOINT)
    if not (of_checkpoint or key in PATHS) or value.lower() in PATHS.get(key, ()):
        return argument
    if not (value.removeprefix(_CHECKPOINT) if of_checkpoint else value).strip(", "):
        raise ConfigError(f"{key}= is empty: give a path (is a variable of the shell not set?), or leave {key}= out")
    values = _COMMAS.findall(value) if several and key in _SEVERAL else [value]
    return f"{match['plus']}{key}={','.join(_quoted(key, part) for part in values)}"


#: The parts of a text between commas; a comma in quotes separates nothing.
_COMMAS = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,])+""", re.DOTALL)


def _quoted(key: str, value: str) -> str:
    """A value that Hydra reads as just this text."""
    read = _read_by_hydra(f"{key}={value}")
    if isinstance(read, QuotedString):
        return value
    if not (key in _REFERENCES and _refers(value)):
        value = literal(value)
    # What is read as it stands stays as it stands: it is in folders' names and in overrides.yaml.
    return value if read == value and isinstance(read, str) else QuotedString(value, Quote.single).with_quotes()


def _refers(value: str) -> bool:
    """Whether every ``${`` begins a reference, as OmegaConf's grammar has them."""
    try:
        OmegaConf.create([value])
    except OmegaConfBaseException:
        return False
    return True


def _read_by_hydra(override: str) -> object:
    """The value of an override as Hydra's grammar has it; None where it is no override."""
    try:
        return OverridesParser.create().parse_override(override)._value
    except HydraException:
        return None


def run_folder(run_dir: Any) -> Path:
    """The folder that the setting ``run_dir`` names, whether it is there or not.

    Raises:
        ConfigError: it names none that a run could have for itself.
    """
    possible = isinstance(run_dir, str) and run_dir.strip() != ""
    require("run_dir", possible, run_dir, "a folder for the run, e.g. runs/first; leave run_dir= out for the default")
    path = Path(run_dir).expanduser()
    if path.name in ("", ".."):  # of `.`, `..` and `/`: what they are called
        path = path.resolve()
    if not path.name:
        raise ConfigError(f"run_dir={run_dir} is the root of all folders; a run needs one of its own below it")
    return path


def refuse_groups(cfg: DictConfig, key: str) -> None:
    """Refuse a path in which a whole group of settings would be written out, as ``${algo}`` is one.

    Args:
        cfg: what is composed.
        key: of the setting that is a path.

    Raises:
        ConfigError: naming the group, and what of it is a name.
    """
    written = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))[key]
    for name in re.findall(r"(?<!\\)\$\{([\w.]+)\}", str(written)):
        if isinstance(OmegaConf.select(cfg, name), DictConfig | ListConfig):
            names = [other for other in (f"{name}.name", f"{name}_name") if OmegaConf.select(cfg, other) is not None]
            known = f"; ${{{names[0]}}} is one" if names else ""
            raise ConfigError(f"{key}={written}: ${{{name}}} is a group of settings and no name{known}")


def literal(text: str) -> str:
    """A text that OmegaConf resolves to ``text``, in which ``${`` would refer to a setting."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", text)


def pasted(*words: str | Path, **path: str | Path) -> str:
    """A command for the user's shell, to be pasted.

    Args:
        words: of the command, as its program is to see them.
        path: at most one setting of mfrl, with the path that it is to have.
    """
    overrides = [f"{key}={_unmistakable(key, str(value))}" for key, value in path.items()]
    return shlex.join([*map(str, words), *overrides])


def _unmistakable(key: str, path: str) -> str:
    """A path that :func:`take_as_they_are` takes for one: no home folder, nothing quoted, no other word."""
    if path.startswith(("~", "'", '"')) or path.lower() in PATHS.get(key, ()):
        path = str(Path(path).absolute())
    return literal(path) if key in _REFERENCES else path
