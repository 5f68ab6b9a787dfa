"""Commands in processes of their own, forked from one that has imported everything: each starts in a moment.

What a command makes of its surroundings (its folder, the environment's variables, signals, a kill) is thus tested in a
process and yet in a tenth of the time. What is read while Python imports is not: `tiny.program` is for that.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from omegaconf import DictConfig

# What is imported stays: neither the tests nor the forking process look for garbage in it, see `collect_garbage`.
gc.disable()
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "processes",
        "mfrl.app.cli",
        "mfrl.app.collect",
        "mfrl.app.evaluate",
        "mfrl.app.pack",
        "mfrl.app.report",
        "mfrl.app.train",
        "mfrl.callbacks.figures",
        "mfrl.callbacks.samples",
        "tensorboard",
    ]
)


class Command:
    """``mfrl ARGUMENTS`` in a process, and a process group, of its own.

    Args:
        arguments: of the command line.
        cwd: the folder it is started in.
        prepare: called in the process first, to plant a fault.
        cfg: what the arguments compose to, to train so without the command line around it, which takes longer.
        environment: its variables; those of now where none are given.
    """

    started: ClassVar[list[Command]] = []

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        prepare: Callable[[], object] | None = None,
        cfg: DictConfig | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mfrl-command-")
        outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        self._stdout, self._stderr = outputs
        given = (list(arguments), cwd, outputs, dict(environment), prepare, cfg)
        self.process = _server.Process(target=_run, args=given)
        self.process.start()
        self.pid = self.process.pid
        Command.started.append(self)

    @property
    def stdout(self) -> str:
        return self._stdout.read_text() if self._stdout.exists() else ""

    @property
    def stderr(self) -> str:
        return self._stderr.read_text() if self._stderr.exists() else ""

    @property
    def said(self) -> str:
        """What it wrote, on one line."""
        return " ".join(f"{self.stdout} {self.stderr}".split())

    def wait_until(self, happened: Callable[[], object], seconds: float = 120.0) -> None:
        """Until something has happened while it runs."""
        end = time.monotonic() + seconds
        while not happened():
            assert self.process.is_alive(), self.said
            assert time.monotonic() < end, f"nothing happened; it said: {self.said}"
            time.sleep(0.002)

    def signal(self, number: int, group: bool = False) -> None:
        with suppress(ProcessLookupError):  # it has come to its end
            (os.killpg if group else os.kill)(self.pid, number)

    def end(self, seconds: float = 120.0) -> int:
        """Its exit status, negative where a signal killed it."""
        self.process.join(seconds)
        assert not self.process.is_alive(), f"it goes on; it said: {self.said}"
        return self.process.exitcode

    def close(self) -> None:
        """Kill what goes on, of its group too."""
        self.signal(signal.SIGKILL, group=True)
        Command.started.remove(self)


def _run(
    arguments: list[str],
    cwd: Path,
    outputs: list[Path],
    environment: dict[str, str],
    prepare: Callable[[], object] | None,
    cfg: DictConfig | None,
) -> None:
    collect_garbage()
    os.setsid()
    os.chdir(cwd)
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored where the tests themselves run in the background
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    import torch

    from mfrl.app.cli import main
    from mfrl.app.train import train

    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    if cfg is not None:
        train(cfg, arguments)
        return
    sys.argv = ["mfrl", *arguments]
    main()


def collect_garbage() -> None:
    """From now on, and in what is made from now on; a look at all that is imported takes a second each time."""
    gc.freeze()
    gc.enable()


def shorten_episodes(steps: int = 50) -> int:
    """End the episodes of the shared data's environment after so many steps; how many they were, 1000 at first."""
    import gymnasium
    import ogbench  # noqa: F401 - registers the environments

    spec = gymnasium.spec("pointmaze-medium-singletask-v0")
    before, spec.max_episode_steps = spec.max_episode_steps, steps
    return before


def kill_what_is_left() -> None:
    """Of every command of this process: a failing test leaves one that would go on for ever."""
    for command in list(Command.started):
        command.close()


def processes_of_group(group: int) -> list[int]:
    """Who is left of a process group; a process that has ended and that nobody has asked about does not count."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            left.append(int(stat.parent.name))
    return left
