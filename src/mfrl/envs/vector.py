"""Many environments stepped in a few processes.

gymnasium's AsyncVectorEnv gives every environment a process. These simulators step in 50 to 700 microseconds,
no more than a message to a process costs, and machines have fewer cores than an evaluation has environments.
Here W processes step N / W environments each, one after another, and one message a step goes to each process.
The arrays themselves lie in memory that all of them share: one record per environment.

Processes are spawned, not forked: torch and OpenMP threads run in the parent. A spawned process imports the
parent's main module again, so a script needs the ``if __name__ == "__main__"`` guard.

An episode depends on its seed and its actions alone. OGBench draws from NumPy's global generator when it
resets, and in the teleport mazes when it steps, so every environment owns a bit generator, which is made
NumPy's global one while that environment runs.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import current_process, get_context, reduction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from mfrl.envs import outcome
from mfrl.envs.maze import MazeLayout, maze_layout
from mfrl.envs.rendering import choose_backend
from mfrl.errors import EnvError, MfrlError
from mfrl.system import signals
from mfrl.system.processes import SINGLE_THREADED, environment, usable_cores

if TYPE_CHECKING:
    import gymnasium

_GOODBYE_SECONDS = 5.0
# Steps take milliseconds, and building a scene on a busy machine a minute: who is silent so long has stopped.
_PATIENCE_SECONDS = 600.0


class WorkerError(MfrlError, RuntimeError):
    """A worker process failed, died or hangs; its traceback is in the message where there is one."""


class Maker(Protocol):
    """Builds an environment in a worker, e.g. an :class:`mfrl.envs.spec.EnvSpec`. It must be picklable."""

    def make(self, *, render: bool = False) -> gymnasium.Env: ...


@dataclass(frozen=True)
class Signature:
    """The shapes and the properties of an environment, read off one that was built.

    Attributes:
        observation_shape, observation_dtype: uint8 for images, else float32.
        max_episode_steps: of the environment's own time limit.
        has_position: whether the agent has an (x, y) position.
        maze: walls and goal; None where there is no maze.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    action_dim: int
    max_episode_steps: int
    has_position: bool
    maze: MazeLayout | None

    @classmethod
    def of(cls, env: gymnasium.Env) -> Signature:
        """Read it off an environment; EnvError where this package cannot evaluate such a one."""
        from gymnasium.spaces import Box

        observations, actions = env.observation_space, env.action_space
        if not (isinstance(observations, Box) and isinstance(actions, Box)):
            raise EnvError(f"{env} needs Box spaces, not {observations} and {actions}")
        if env.spec is None or env.spec.max_episode_steps is None:
            raise EnvError(f"{env} has no time limit: set one with env.max_episode_steps=, or where it is registered")
        return cls(
            observation_shape=observations.shape,
            observation_dtype=np.dtype(np.uint8 if observations.dtype == np.uint8 else np.float32),
            action_dim=int(np.prod(actions.shape)),
            max_episode_steps=env.spec.max_episode_steps,
            has_position=hasattr(env.unwrapped, "get_xy"),
            maze=maze_layout(env),
        )

    @property
    def record(self) -> np.dtype:
        """One environment's share of the memory between parent and worker."""
        fields = [
            ("observation", self.observation_dtype, self.observation_shape),
            ("action", np.float32, (self.action_dim,)),
            ("position", np.float64, (2,)),
            ("reward", np.float64),
            ("active", np.bool_),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
            ("success", np.bool_),
            ("told", np.bool_),
        ]
        return np.dtype(fields, align=True)


class Step(NamedTuple):
    """One step of all environments, with a leading axis ``num_envs``; an inactive one repeats its last row.

    ``told`` says whether the environment reported a success or a failure. If it did not, ``success`` is False and
    means nothing.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    told: np.ndarray


class EnvGroup:
    """The environments of one process, stepped one after another.

    Args:
        maker: builds one of them.
        count: number of environments.
        render: prepare them for rendering.
    """

    def __init__(self, maker: Maker, count: int, render: bool) -> None:
        self._generators: list[np.random.BitGenerator] = [np.random.MT19937(0) for _ in range(count)]
        self._envs = [maker.make(render=render) for _ in range(count)]
        self.signature = Signature.of(self._envs[0])
        self._name = outcome.name_of(self._envs[0])

    def attach(self, records: np.ndarray) -> None:
        """Use ``records`` (count,) of the signature's record type for actions in and results out."""
        self._views = {name: records[name] for name in records.dtype.names or ()}

    def reset(self, seeds: Mapping[int, int]) -> None:
        """Start an episode in the environments that are keys, from the seeds that are values."""
        for i, seed in seeds.items():
            self._generators[i] = np.random.MT19937(seed)
            self._envs[i].action_space.seed(seed)
            with _as_global(self._generators[i]):
                observation, _ = self._envs[i].reset(seed=seed)
            self._write(i, observation, reward=0.0, terminated=False, truncated=False, success=None)

    def step(self) -> None:
        """Step the environments whose record is active with the action in it."""
        views = self._views
        for i in np.flatnonzero(views["active"]).tolist():
            with _as_global(self._generators[i]):
                observation, reward, terminated, truncated, info = self._envs[i].step(views["action"][i].copy())
            self._write(
                i,
                observation,
                reward=outcome.number(reward, f"the reward of {self._name}"),
                terminated=outcome.truth(terminated, f"'terminated' of {self._name}"),
                truncated=outcome.truth(truncated, f"'truncated' of {self._name}"),
                success=outcome.success(info, self._name),
            )

    def render(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Frames, uint8 ``(height, width, 3)``."""
        frames: list[Any] = [self._envs[i].render() for i in indices]
        for frame in frames:
            if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.dtype != np.uint8:
                what = f"an array {frame.shape} of {frame.dtype}" if isinstance(frame, np.ndarray) else repr(frame)[:80]
                raise EnvError(
                    f"{self._envs[0]} cannot be filmed: its render() gives {what}, and not a picture (height, width, "
                    "colours) of bytes. Do without a film (eval.videos=0, or video=false of mfrl eval), or have the "
                    "environment heed render_mode=rgb_array"
                )
        return frames

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()

    def _write(
        self, i: int, observation: np.ndarray, reward: float, terminated: bool, truncated: bool, success: bool | None
    ) -> None:
        views = self._views
        views["observation"][i] = observation
        views["reward"][i] = reward
        views["terminated"][i] = terminated
        views["truncated"][i] = truncated
        views["success"][i] = bool(success)
        views["told"][i] = success is not None
        if self.signature.has_position:
            maze: Any = self._envs[i].unwrapped
            views["position"][i] = maze.get_xy()


class VectorEnv:
    """``num_envs`` environments with one call for all of them. Episodes do not restart by themselves.

    Args:
        maker: builds one environment.
        num_envs: N.
        workers: processes; 0 steps the environments here, None takes one a core (N at most).
        render: prepare for :meth:`render`; takes worker processes, in which MuJoCo is not imported yet.
        patience: a worker that has built its environments and does not answer for so many seconds counts as dead.

    Raises:
        EnvError: the environment cannot be built.
        WorkerError: here or in any later call, when a worker fails or dies; only ``close`` is left then.
    """

    def __init__(
        self,
        maker: Maker,
        num_envs: int,
        workers: int | None = None,
        *,
        render: bool = False,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        if num_envs < 1 or (workers is not None and workers < 0):
            raise EnvError(f"need num_envs >= 1 and workers >= 0, not {num_envs} and {workers}")
        workers = min(num_envs, usable_cores() if workers is None else workers)
        if render:
            workers = max(workers, 1)
            choose_backend()
        self._crew = _Crew(maker, num_envs, workers, render, patience) if workers else _Solo(maker, num_envs)
        self.num_envs, self.workers, self.signature = num_envs, workers, self._crew.signature

    def reset(self, slots: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in each slot from its seed; the observations of all slots ``(num_envs, ...)``."""
        self._crew.reset(dict(zip(slots, seeds, strict=True)))
        return self._crew.records["observation"].copy()

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        """Step the active environments, by default all, with their rows of ``(num_envs, action_dim)``."""
        self.start_step(actions, active)
        return self.finish_step()

    def start_step(self, actions: np.ndarray, active: np.ndarray | None = None) -> None:
        """Begin a :meth:`step`; worker processes are at it until :meth:`finish_step`."""
        self._crew.records["action"] = actions
        self._crew.records["active"] = True if active is None else active
        self._crew.start_step()

    def finish_step(self) -> Step:
        """Wait for the step that :meth:`start_step` has begun, which without workers is made only now."""
        self._crew.finish_step()
        names = ("observation", "reward", "terminated", "truncated", "success", "told")
        return Step(*(self._crew.records[name].copy() for name in names))

    @property
    def positions(self) -> np.ndarray:
        """Where each agent is, ``(num_envs, 2)``; meaningful if ``signature.has_position``."""
        return self._crew.records["position"].copy()

    def render(self, slots: Sequence[int]) -> list[np.ndarray]:
        """A frame of each slot, uint8 ``(height, width, 3)``."""
        return self._crew.render(slots)

    def close(self) -> None:
        """Stop the workers and free the memory; more than once is fine."""
        self._crew.close()

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Solo:
    """All environments in this process."""

    def __init__(self, maker: Maker, num_envs: int) -> None:
        with global_state_kept():
            self._group = EnvGroup(maker, num_envs, render=False)
        self.signature = self._group.signature
        self.records = np.zeros(num_envs, self.signature.record)
        self._group.attach(self.records)
        self.render, self.close = self._group.render, self._group.close

    def reset(self, seeds: Mapping[int, int]) -> None:
        with global_state_kept():
            self._group.reset(seeds)

    def start_step(self) -> None:
        pass

    def finish_step(self) -> None:
        with global_state_kept():
            self._group.step()


class _Crew:
    """Worker processes, their pipes and the memory they share.

    Slot s lives in worker s mod W: this spreads out the first slots, which are filmed, and the last episodes.
    """

    def __init__(self, maker: Maker, num_envs: int, workers: int, render: bool, patience: float) -> None:
        refuse_unguarded_script()
        context = get_context("spawn")
        self._patience = _PATIENCE_SECONDS
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._memory: list[_SharedRecords] = []
        # Also runs when the crew is collected or Python ends, should nobody have called close.
        self.close = weakref.finalize(self, _dismiss, self._processes, self._pipes, self._memory)
        # Without frames to render, OpenGL is not even looked for, which without a display would warn.
        variables = SINGLE_THREADED | ({} if render else {"MUJOCO_GL": "disabled"})
        # A signal to the whole group is for the parent, which then closes the pipes.
        with environment(variables), signals.withheld():
            for w in range(workers):
                pipe, far_end = context.Pipe()
                count = len(range(w, num_envs, workers))
                process = context.Process(target=_work, args=(far_end, maker, count, render), daemon=True)
                process.start()
                far_end.close()  # so that the worker's death closes the pipe
                self._processes.append(process)
                self._pipes.append(pipe)
        signatures = [self._receive(w) for w in range(workers)]
        self._patience = patience
        self.signature: Signature = signatures[0]
        self._memory.append(_SharedRecords(num_envs, self.signature.record))
        for w in range(workers):
            self._hand_over(w)
            self._send(w, (num_envs, slice(w, None, workers)))
        self._memory[0].give_away()

    @property
    def records(self) -> np.ndarray:
        """One record per slot, shared with the workers."""
        if not self._memory:
            raise WorkerError("the environments have been closed")
        return self._memory[0].array

    def reset(self, seeds: Mapping[int, int]) -> None:
        shares: dict[int, dict[int, int]] = {}
        for slot, seed in seeds.items():
            index, w = divmod(slot, len(self._pipes))
            shares.setdefault(w, {})[index] = seed
        self._call("reset", shares)

    def start_step(self) -> None:
        for w in range(len(self._pipes)):
            self._send(w, ("step", ()))

    def finish_step(self) -> None:
        for w in range(len(self._pipes)):
            self._receive(w)

    def render(self, slots: Sequence[int]) -> list[np.ndarray]:
        shares: dict[int, list[int]] = {}
        for slot in slots:
            index, w = divmod(slot, len(self._pipes))
            shares.setdefault(w, []).append(index)
        frames = {w: iter(part) for w, part in self._call("render", shares).items()}
        return [next(frames[slot % len(self._pipes)]) for slot in slots]

    def _call(self, method: str, arguments: Mapping[int, Any] | None = None) -> dict[int, Any]:
        """Call an EnvGroup method in every worker, or in those that are keys, with the value as argument."""
        workers = range(len(self._pipes)) if arguments is None else list(arguments)
        for w in workers:
            self._send(w, (method, () if arguments is None else (arguments[w],)))
        return {w: self._receive(w) for w in workers}

    def _send(self, w: int, message: object) -> None:
        try:
            self._pipes[w].send(message)
        except OSError as error:
            raise self._death(w) from error

    def _hand_over(self, w: int) -> None:
        descriptor = self._memory[0].descriptor
        assert descriptor is not None, "it is given away when every worker has it"
        try:
            reduction.send_handle(self._pipes[w], descriptor, self._processes[w].pid)
        except OSError as error:
            raise self._death(w) from error

    def _receive(self, w: int) -> Any:
        try:
            if not self._pipes[w].poll(self._patience):
                raise self._silence(w)
            error, value = self._pipes[w].recv()
        except (EOFError, OSError) as lost:
            raise self._death(w) from lost
        if error is not None:
            self.close()
            raise error(value)
        return value

    def _silence(self, w: int) -> WorkerError:
        number = self._processes[w].pid
        self._processes[w].kill()  # it would not leave by itself, as the others do
        self.close()
        return WorkerError(
            f"environment worker {w} (process {number}) gave no answer for {self._patience:g} s: it was stopped, or "
            "its environment hangs; it has been killed"
        )

    def _death(self, w: int) -> WorkerError:
        process = self._processes[w]
        process.join(_GOODBYE_SECONDS)
        code = process.exitcode
        self.close()
        cause = f"exit code {code}"
        if code is not None and code < 0:
            cause = f"killed by signal {-code}, perhaps for memory"
        elif not self._memory:
            cause += f", before it had built its environment. {_GUARD}"
        return WorkerError(f"environment worker {w} ended unexpectedly: {cause}")


class _SharedRecords:
    """An array of records in memory that processes share.

    The memory has no name, so that the system frees it when the last process that uses it ends in any way.

    Args:
        descriptor: of memory that another process made; None makes it.
    """

    def __init__(self, num_envs: int, record: np.dtype, descriptor: int | None = None) -> None:
        size = num_envs * record.itemsize
        self.descriptor: int | None = _nameless_file(size) if descriptor is None else descriptor
        self._memory = mmap.mmap(self.descriptor, size)
        self.array: np.ndarray = np.ndarray(num_envs, record, self._memory)

    def give_away(self) -> None:
        """Close the descriptor: everybody has mapped the memory, or has a descriptor of their own."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def close(self) -> None:
        self.give_away()
        del self.array
        self._memory.close()


def _nameless_file(size: int) -> int:
    """A descriptor of so many zero bytes, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("mfrl")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _dismiss(processes: list[BaseProcess], pipes: list[Connection], memory: list[_SharedRecords]) -> None:
    for pipe in pipes:
        pipe.close()  # a worker leaves when its pipe closes
    end = time.monotonic() + _GOODBYE_SECONDS
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    while memory:
        memory.pop().close()


def _work(pipe: Connection, maker: Maker, count: int, render: bool) -> None:
    """Body of a worker: report the environment's signature, take a share of the memory, then obey."""
    try:
        group = EnvGroup(maker, count, render)
        pipe.send((None, group.signature))
        descriptor = reduction.recv_handle(pipe)
        num_envs, share = pipe.recv()
        shared = _SharedRecords(num_envs, group.signature.record, descriptor)
        shared.give_away()
        group.attach(shared.array[share])
        while True:
            method, arguments = pipe.recv()
            pipe.send((None, getattr(group, method)(*arguments)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has closed the pipe, or is gone
    except EnvError as error:
        pipe.send((EnvError, str(error)))
    except BaseException:
        pipe.send((WorkerError, f"an environment worker failed:\n{traceback.format_exc()}"))
    finally:
        pipe.close()
        os._exit(0)  # the system frees memory and OpenGL contexts; their destructors complain at exit


_GUARD = (
    'In a script, what trains or evaluates has to stand under  if __name__ == "__main__":  for worker processes import '
    "the script again"
)


def refuse_unguarded_script() -> None:
    """End a worker process that imports a script without the ``__main__`` guard and would repeat its parent's work."""
    if getattr(current_process(), "_inheriting", False):  # as multiprocessing itself finds it out, but before any work
        raise SystemExit(_GUARD)


@contextmanager
def _as_global(generator: np.random.BitGenerator) -> Iterator[None]:
    outer = np.random.get_bit_generator()  # type: ignore[attr-defined]  # missing from NumPy's types
    np.random.set_bit_generator(generator)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        np.random.set_bit_generator(outer)  # type: ignore[attr-defined]


@contextmanager
def global_state_kept() -> Iterator[None]:
    """A context that restores NumPy's global generator, so that draws inside do not change the caller's."""
    # Exchanging bit generators drops the normal variate that NumPy's global generator may hold back.
    state = np.random.get_state()  # noqa: NPY002 - the caller's stream, not ours
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
