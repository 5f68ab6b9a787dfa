"""Configurations that are not files: environments from the catalogue, and presets from tables.

Hydra finds them beside the files of conf/ and of the user's folders. It looks for plugins in this namespace only.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from mfrl.app import presets
from mfrl.catalogue import ONLINE, environments
from mfrl.errors import ConfigError
from mfrl.system.paths import CONFIG_DIR


class GeneratedConfigs(ConfigSource):
    """A source of configurations that are generated when Hydra asks for them.

    Attributes:
        package: the place of the configurations, as `# @package` gives it in a file.
    """

    package: str

    @abstractmethod
    def groups(self) -> list[str]:
        """The groups that have configurations, e.g. ``env/ogbench``."""

    @abstractmethod
    def names(self, group: str) -> list[str]:
        """The names of the configurations in a group."""

    @abstractmethod
    def generate(self, group: str, name: str) -> DictConfig:
        """Generate one configuration.

        Raises:
            ConfigError: it cannot be generated, e.g. because of an error in a table.
        """

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return any(f"{group}/".startswith(f"{config_path}/" if config_path else "") for group in self.groups())

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        return group in self.groups() and name in self.names(group)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        prefix = f"{config_path}/" if config_path else ""
        found = set()
        if results_filter != ObjectType.CONFIG:
            below = [group.removeprefix(prefix) for group in self.groups() if group.startswith(prefix)]
            found |= {group.partition("/")[0] for group in below}
        if results_filter != ObjectType.GROUP and config_path in self.groups():
            found |= {*self.names(config_path)}
        return sorted(found)

    def load_config(self, config_path: str) -> ConfigResult:
        if not self.is_config(config_path):
            raise ConfigLoadError(f"Config not found : {config_path}")
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        return ConfigResult(self.provider, self.full_path(), self.generate(group, name), {"package": self.package})


class Environments(GeneratedConfigs):
    """``env=ogbench/NAME`` and ``env=d4rl/NAME``: names from the catalogue, on top of a file in conf/env."""

    package = "env"

    @staticmethod
    def scheme() -> str:
        return "catalogue"

    def groups(self) -> list[str]:
        return ["env/ogbench", "env/d4rl"]

    def names(self, group: str) -> list[str]:
        suite = f"{group.removeprefix('env/')}/"
        return [env.removeprefix(suite) for env in (*environments(), *ONLINE) if env.startswith(suite)]

    def generate(self, group: str, name: str) -> DictConfig:
        suite = group.removeprefix("env/")
        words = name.split("-")
        if f"{suite}/{name}" in ONLINE:
            return OmegaConf.create({"defaults": ["gym/_base"], "name": name, "gym_id": ONLINE[f"{suite}/{name}"]})
        if suite == "ogbench":
            shared = "_visual" if words[0] == "visual" else "_base"
        else:  # _antmaze_large for antmaze-large-play, _pen for pen-human
            shared = "_" + "_".join(words[:2] if words[0] == "antmaze" else words[:1])
        dataset = environments()[f"{suite}/{name}"]
        return OmegaConf.create({"defaults": [f"{suite}/{shared}"], "name": name, "dataset": dataset})


class Presets(GeneratedConfigs):
    """``experiment=METHOD/TASK``: rows of the tables in a folder of configurations, see :mod:`mfrl.app.presets`."""

    package = "_global_"

    @staticmethod
    def scheme() -> str:
        return "presets"

    def _tables(self) -> dict[str, Path]:
        return {f"experiment/{method}": table for method, table in presets.tables(Path(self.path)).items()}

    def groups(self) -> list[str]:
        return [*self._tables()]

    def names(self, group: str) -> list[str]:
        return [*presets.read(self._tables()[group])]

    def generate(self, group: str, name: str) -> DictConfig:
        return presets.composed(self._tables()[group], name)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        try:
            return super().list(config_path, results_filter)
        except ConfigError:  # a table has an error, which is raised when somebody chooses one of its rows
            return []


class GeneratedConfigsSearchPath(SearchPathPlugin):
    """Adds both sources to the search path of mfrl's commands, and of no other application of Hydra."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if any(element.provider == "main" and element.path == str(CONFIG_DIR) for element in search_path.get_path()):
            search_path.append("mfrl", f"{Environments.scheme()}://")
            search_path.append("mfrl", f"{Presets.scheme()}://{CONFIG_DIR}")
