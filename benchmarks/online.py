"""The online phase: steps per second against the simulator's alone, and updates per second against the offline rate.

    python benchmarks/online.py [--envs pointmaze-medium-explore cube-single-play] [--sizes small published]
                                [--num-envs 1] [--updates 500] [--rounds 4] [--data-dir DATA] [--out FILE.json]

Measures, in turns and each several times, so that a machine whose speed wanders wanders for all alike:

simulator   steps of the environment with random actions, in the evaluation's vector of environments: nothing else
offline     updates on the data alone
online      a step for each update, as `online.steps=N` trains: acting, stepping, storing, sampling, updating
overlap     the same with `online.overlap=true`: the environment steps in a process while the device updates

A row has the median over the rounds. If stepping and updating simply follow one another, the online rate is
1 / (1/simulator + 1/offline + 1/rest): "rest" is what acting and storing take of each step.
The data are a few episodes, collected into a temporary folder unless --data-dir has the dataset.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from train_step import device, seconds_of_updates

from mfrl.app.overrides import Composer
from mfrl.app.parts import build_data, build_online, composed_parts, seeded_algorithm
from mfrl.data.batch import Batch
from mfrl.data.sampling import ChunkLoader
from mfrl.envs.vector import VectorEnv
from mfrl.learning.learner import Learner
from mfrl.report.tables import markdown_table
from mfrl.runs.folder import versions

CONSOLE = Console(quiet=True)
MANY = 1_000_000  # updates that no measurement reaches
SIZES = {"small": ["network=small"], "published": []}


def compose(env: str, size: str, num_envs: int, data_dir: Path, overlap: bool) -> DictConfig:
    settings = [f"env=ogbench/{env}", f"data_dir={data_dir}", *SIZES[size], f"updates={MANY}", "algo.discount=0.99"]
    settings += [f"online.steps={MANY}", f"online.num_envs={num_envs}", f"online.overlap={overlap}"]
    return Composer("train")(settings)


class Training:
    """A run's learner and where its batches come from: the data, or the interaction.

    Args:
        phase: offline, online or overlap.
        seconds: rounds so far, of one update each.
    """

    def __init__(self, cfg: DictConfig, phase: str, folder: Path, updates: int) -> None:
        parts = composed_parts(cfg, CONSOLE)
        data = build_data(cfg, parts, CONSOLE)
        algorithm = seeded_algorithm(cfg, data, parts).to(device())
        self.learner, self.updates = Learner([algorithm], cfg.batch_size, compiled=True), updates
        self.online = build_online(cfg, data, [algorithm], [folder], CONSOLE)
        assert self.online is not None
        assert data.train is not None
        chunks: Iterable[Iterable[Batch]]
        if phase == "offline":
            arguments = {"discount": algorithm.discount, "next_actions": algorithm.next_actions}
            on_device = data.on_device(device())
            chunks = ChunkLoader(on_device, cfg.batch_size, cfg.seed, 0, MANY, 100, (), **arguments)
        else:
            chunks = self.online.chunks(MANY, 2 * MANY, 100, ())
        self.batches = chain.from_iterable(chunks)
        self.seconds: list[float] = []
        seconds_of_updates(self.learner, self.batches, 20)

    def turn(self) -> None:
        self.seconds.append(seconds_of_updates(self.learner, self.batches, self.updates) / self.updates)

    def close(self) -> None:
        assert self.online is not None
        self.online.close()


class Simulator:
    """Environments that step with random actions."""

    def __init__(self, cfg: DictConfig, num_envs: int, steps: int) -> None:
        data = build_data(cfg, composed_parts(cfg, CONSOLE), CONSOLE)
        self.env, self.rng = VectorEnv(data.env, num_envs, 0), np.random.default_rng(0)
        self.ticks = max(steps // num_envs, 1)
        self.shape = (num_envs, data.spec.action_dim)
        self.env.reset(range(num_envs), range(num_envs))
        self.seconds: list[float] = []

    def turn(self) -> None:
        start = time.perf_counter()
        for _ in range(self.ticks):
            step = self.env.step(self.rng.uniform(-1.0, 1.0, self.shape).astype(np.float32))
            ended = np.flatnonzero(step.terminated | step.truncated)
            if ended.size:
                self.env.reset(ended.tolist(), ended.tolist())
        self.seconds.append((time.perf_counter() - start) / (self.ticks * self.shape[0]))

    def close(self) -> None:
        self.env.close()


def measure(args: argparse.Namespace, env: str, size: str) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data_dir = Path(args.data_dir or folder)
        if not args.data_dir:
            from mfrl.collect.ogbench.runner import collect

            collect(env, data_dir, episodes=20, val_episodes=1, progress=False)
        parts: dict[str, Simulator | Training] = {}
        for phase in ("offline", "online", "overlap"):
            (folder / phase).mkdir()
            cfg = compose(env, size, args.num_envs, data_dir, phase == "overlap")
            parts[phase] = Training(cfg, phase, folder / phase, args.updates)
            stack.callback(parts[phase].close)
        parts["simulator"] = Simulator(cfg, args.num_envs, args.updates)
        stack.callback(parts["simulator"].close)
        for _ in range(args.rounds):
            for part in parts.values():
                part.turn()
        rates = {phase: 1.0 / statistics.median(part.seconds) for phase, part in parts.items()}
    rest = 1.0 / rates["online"] - 1.0 / rates["offline"] - 1.0 / rates["simulator"]
    return {"env": env, "sizes": size, "num_envs": args.num_envs, "per_second": rates, "rest_ms": 1e3 * rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--envs", nargs="+", default=["pointmaze-medium-explore", "cube-single-play"])
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=[*SIZES])
    parser.add_argument("--num-envs", type=int, default=1)
    parser.add_argument("--updates", type=int, default=500, help="of a round, and steps of the simulator")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--data-dir", help="where the datasets are; without it a few episodes are collected")
    parser.add_argument("--out", type=Path, help="also write the numbers into this file")
    args = parser.parse_args()
    rows = [measure(args, env, size) for env in args.envs for size in args.sizes]
    head = ["environment", "sizes", "simulator, steps/s", "offline, updates/s", "online", "overlap", "rest, ms a step"]
    body = [
        [
            row["env"],
            row["sizes"],
            *(f"{row['per_second'][phase]:.0f}" for phase in ("simulator", "offline", "online", "overlap")),
            f"{row['rest_ms']:.1f}",
        ]
        for row in rows
    ]
    print("\n".join(markdown_table(head, body)))
    if args.out:
        record = {
            "versions": versions(),
            "device": str(device()),
            "rows": rows,
            "arguments": vars(args) | {"out": None, "data_dir": None},
        }
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
