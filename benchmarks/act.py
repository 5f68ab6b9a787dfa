"""Latency of one action of the published sizes on one core, in every runtime, and what the memory alone would take.

python benchmarks/act.py [--formats onnx torch aoti] [--candidates 1 5] [--batch 1 50]

"least" is the fastest call and "median" the middle one, in milliseconds. An action cannot be faster than its weights
are read: "limit" is how long this core takes to read as many bytes as the actor's weights have and, where it chooses
among candidates, the critic's, again and again, so that they are where the caches keep them between two actions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mfrl.algorithms.meanflowql import MeanFlowQL
from mfrl.data.batch import DataSpec
from mfrl.deploy.acting import FromNoise, FromSeed, Graph
from mfrl.deploy.export import OPSET
from mfrl.deploy.formats import FORMATS, find_format
from mfrl.deploy.interface import Interface
from mfrl.deploy.policy import LoadedPolicy
from mfrl.networks.critic import QEnsemble
from mfrl.networks.dit import DiT
from mfrl.reformulation import Reformulation
from mfrl.runs.folder import versions

OBSERVATION_DIM, ACTION_DIM = 28, 5  # of cube-double-play
SECONDS = 3.0  # for each row, after a tenth of it to get warm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=["onnx", "aoti"])
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 50])
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = DataSpec(OBSERVATION_DIM, ACTION_DIM, (0.1,) * 28, (1.5,) * 28, -1.0, 0.0)
    module = MeanFlowQL(spec, DiT, QEnsemble, Reformulation(1.0, -1.0), updates=1).eval().requires_grad_(False)
    interface = Interface(spec, "published sizes", ACTION_DIM * (-1.0,), ACTION_DIM * (1.0,))
    policy = LoadedPolicy(module.policy().folded(), interface, {"algorithm": "meanflowql", "updates": 0})
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{versions()['device']}, 1 thread of {os.cpu_count()} cores, torch {torch.__version__}, load {load}")
    print(f"{'':<24}{'candidates':>11}{'batch':>7}{'least ms':>10}{'median ms':>11}{'limit ms':>10}")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for candidates in options.candidates:
            limit = 1e3 * seconds_to_read(weights(policy, candidates))
            for name, act in ways(policy, candidates, options.formats, Path(folder)).items():
                for rows in options.batch:
                    least, median = measured(act(torch.randn(rows, OBSERVATION_DIM)))
                    print(f"{name:<24}{candidates:>11}{rows:>7}{least:>10.3f}{median:>11.3f}{limit:>10.3f}", flush=True)


def weights(policy: LoadedPolicy, candidates: int) -> int:
    """The bytes of all weights that an action needs."""
    networks: list[nn.Module] = [policy.policy.actor]
    if candidates > 1:
        assert policy.policy.critic is not None
        networks.append(policy.policy.critic)
    return sum(x.nbytes for network in networks for x in (*network.parameters(), *network.buffers()))


def seconds_to_read(count: int) -> float:
    x = torch.ones(count // 4)
    return measured(x.sum)[0] / 1e3


def ways(policy: LoadedPolicy, candidates: int, formats: list[str], folder: Path) -> dict[str, Callable[[Any], Any]]:
    """By name, what makes of observations a call to be measured."""
    acting = policy.acting(candidates)
    found: dict[str, Callable[[Any], Any]] = {
        "mfrl.load": lambda x: lambda: policy(x, num_candidates=candidates),
        "PyTorch": lambda x: bound(FromNoise(acting), lambda inputs: acting(*inputs.values()), x),
    }
    for name in formats:
        for noise, graph in (("", FromNoise(acting)), (", noise from a seed", FromSeed(acting))):
            path = folder / f"{candidates}{noise}{FORMATS[name].ending}"
            find_format(name).write(graph.eval(), path, {}, OPSET)
            run = FORMATS[name].open(path)
            found[f"{name}{noise}"] = lambda x, graph=graph, run=run: bound(graph, run, x)
    return found


def bound(graph: Graph, run: Callable[[dict[str, torch.Tensor]], Any], x: torch.Tensor) -> Callable[[], Any]:
    inputs = graph.example(x, seed=0)
    return lambda: run(inputs)


def measured(call: Callable[[], Any]) -> tuple[float, float]:
    """The least and the median time of a call, in milliseconds."""
    times: list[float] = []
    end = time.perf_counter() + 0.1 * SECONDS
    while time.perf_counter() < end:
        call()
    end = time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times), 1e3 * statistics.median(times)


if __name__ == "__main__":
    main()
