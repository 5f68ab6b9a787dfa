r"""Updates per second of MeanFlowQL, eager and compiled, alone and as a population, against fp32 matrix products.

    python benchmarks/train_step.py [--sizes published quickstart] [--modes eager compiled] [--members 1 8]

The learner is called as training calls it, on random batches of the task's size. All of them are made first, and then
measured in turns, so that a machine whose speed wanders wanders for all alike; a row reports the median over the turns
of the updates of all members together, "to eager" is its ratio to one member's eager rate at that size, "matmul" the
rate in GFLOP/s of a 2048-cubed fp32 product (on a GPU in TF32, as `mfrl train` computes there), "share" the share of it
that the necessary operations reach, "start-up" the first update, and "kernels" how many operations that are no views an
eager update dispatches, or how many loops torch.compile generated, matrix products not counted. The mode "bf16" is
compiled, with bf16=true.

Necessary floating-point operations of one update (2 per multiplication with addition; normalisations, activations and
optimisers not counted), B = batch, N = candidates, A = multiplications of the actor for one sample without its
modulations, M = multiplications of the modulations and the time embedding for one time, C = multiplications of the
whole critic ensemble for one sample, T = min(time steps, batch):

    flow loss      2 B A (value) + 2 B A (tangent) + 4 B A (backward);  modulations the same with T rows of M
    policy loss    2 B A + 4 B A through the actor, 2 B C + 2 B C (input gradients only) through the critic
    critic loss    2 B C + 4 B C
    Bellman target 2 N B (A + C)

A backward pass costs a product with the weights for the input's gradient and one for the weights'; the first layers
need no gradient of their input, which is neglected.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import hydra
import torch
from torch import Tensor, nn
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode

from mfrl.algorithms.meanflowql import MeanFlowQL
from mfrl.app.parts import build_algorithm
from mfrl.data.batch import Batch, DataSpec
from mfrl.learning.compiling import Compiled, multiplying
from mfrl.learning.learner import Learner
from mfrl.runs.folder import versions
from mfrl.system.paths import CONFIG_DIR

BATCH = 256
MODES: dict[str, Compiled] = {"eager": False, "compiled": True, "bf16": True, "captured": "captured"}
# Sizes of observation and action, and the overrides of conf/train.yaml.
SIZES: dict[str, tuple[int, int, list[str]]] = {
    "published": (28, 5, ["experiment=paper/cube-double-play-task2"]),
    "published, N = 1": (28, 5, ["experiment=paper/cube-double-play-task2", "algo.num_candidates=1"]),
    "quickstart": (2, 2, ["experiment=quickstart"]),
}


class Kernels(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


class Measured:
    """A learner with batches to train on, and what was measured of it."""

    def __init__(self, size: str, mode: str, members: int, updates: int) -> None:
        self.size, self.mode, self.members, self.updates = size, mode, members, updates
        algorithms = [build(size, seed) for seed in range(members)]
        self.gflop = necessary_flops(algorithms[0]) / 1e9
        self.learner = Learner(algorithms, BATCH, MODES[mode])
        self.batches = [batch(size, members, seed) for seed in range(8)]
        before = metrics.generated_kernel_count
        self.start_up = self.run(1)
        self.run(5)
        if mode != "eager":
            self.kernels = metrics.generated_kernel_count - before
        else:
            with Kernels() as counted:
                self.run(1)
            self.kernels = counted.count
        self.seconds: list[float] = []

    def turn(self) -> None:
        self.seconds.append(self.run(self.updates) / self.updates)

    def run(self, updates: int) -> float:
        with arithmetic(self.mode):
            return seconds_of_updates(self.learner, cycle(self.batches), updates)

    def row(self, alone: float | None, matmul: float) -> dict[str, Any]:
        rate = self.members / statistics.median(self.seconds)
        return {
            "size": self.size,
            "mode": self.mode,
            "members": self.members,
            "updates_per_second": rate,
            "to_eager": rate / alone if alone else None,
            "fastest": self.members / min(self.seconds),
            "slowest": self.members / max(self.seconds),
            "gflop_per_update": self.gflop,
            "matmul_gflops": matmul,
            "share_of_matmul_rate": rate * self.gflop / matmul,
            "first_update_seconds": self.start_up,
            "kernels": self.kernels,
        }


def seconds_of_updates(learner: Learner, batches: Iterable[Batch], updates: int) -> float:
    """The seconds that so many updates take, with what it takes to come by their batches."""
    synchronise()
    start = time.perf_counter()
    for batch in islice(batches, updates):
        learner.update(batch)
    synchronise()
    return time.perf_counter() - start


def arithmetic(mode: str) -> AbstractContextManager[None]:
    """That of `mfrl train` in a mode."""
    return multiplying(torch.cuda.is_available(), tf32=True, bf16=mode == "bf16")


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def matmul_gflops() -> float:
    """GFLOP/s of a 2048-cubed product."""
    a, b = torch.randn(2, 2048, 2048, device=device())
    products = 50 if torch.cuda.is_available() else 1  # one takes a GPU less time than its launch and the wait for it
    a @ b
    synchronise()
    start = time.perf_counter()
    for _ in range(products):
        a @ b
    synchronise()
    return products * 2 * 2048**3 / (time.perf_counter() - start) / 1e9


def necessary_flops(algorithm: MeanFlowQL) -> float:
    """By the formula above, from the weights of the networks."""

    def multiplications(network: nn.Module, wanted: bool) -> int:
        of_time = ("time.", "modulation")
        matrices = ((name, p) for name, p in network.named_parameters() if p.ndim >= 2 and "weight" in name)
        return sum(p.numel() for name, p in matrices if any(word in name for word in of_time) is wanted)

    A, M = multiplications(algorithm.actor, False), multiplications(algorithm.actor, True)
    C = multiplications(algorithm.critic, False)
    settings = algorithm.settings
    B, N = BATCH, settings.target_candidates or settings.num_candidates
    T = min(settings.time_steps or B, B)
    flow = 8 * (B * A + T * M)
    policy = 6 * B * A + 4 * B * C
    critic = 6 * B * C
    target = 2 * N * B * (A + C)
    return float(flow + policy + critic + target)


def build(size: str, seed: int) -> MeanFlowQL:
    observation_dim, action_dim, overrides = SIZES[size]
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = hydra.compose("train", [*overrides, f"seed={seed}"])
    zeros, ones = (0.0,) * observation_dim, (1.0,) * observation_dim
    torch.manual_seed(seed)
    spec = DataSpec(observation_dim, action_dim, zeros, ones, reward_min=-1.0, reward_max=0.0)
    return build_algorithm(cfg, spec).to(device())


def batch(size: str, members: int, seed: int) -> Batch:
    observation_dim, action_dim, _ = SIZES[size]
    lead = (BATCH,) if members == 1 else (members, BATCH)
    draw = torch.Generator(device()).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=draw, device=device())

    ones = torch.ones(lead, device=device())
    return Batch(normal(observation_dim), normal(action_dim).tanh(), -ones, ones, normal(observation_dim), 0.99 * ones)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=MODES)
    parser.add_argument("--members", nargs="+", type=int, default=[1], help="of populations")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, about")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print(f"{versions()['device']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{'size':<18}{'mode':<10}{'members':>8}{'updates/s':>10}{'to eager':>10}{'GFLOP':>7}{'matmul':>8}{'share':>7}"
        f"{'start-up':>10}{'kernels':>9}"
    )
    rows = []
    for size in args.sizes:
        measured = []
        for mode in args.modes:
            for members in args.members:
                one = Measured(size, mode, members, updates=1)
                one.updates = max(1, round(args.seconds / one.run(4) * 4))
                measured.append(one)
        matmul = []
        for _ in range(args.turns):
            for one in measured:
                one.turn()
                with arithmetic("eager"):
                    matmul.append(matmul_gflops())
        alone = [m for m in measured if (m.mode, m.members) == ("eager", 1)]
        for one in measured:
            rate = statistics.median(matmul)
            row = one.row(1.0 / statistics.median(alone[0].seconds) if alone else None, rate)
            rows.append(row)
            ratio = "" if row["to_eager"] is None else f"{row['to_eager']:.2f}"
            print(
                f"{size:<18}{one.mode:<10}{one.members:>8}{row['updates_per_second']:>10.2f}{ratio:>10}{one.gflop:>7.2f}"
                f"{rate:>8.0f}{row['share_of_matmul_rate']:>7.2f}{one.start_up:>9.1f}s{one.kernels:>9}",
                flush=True,
            )
    if args.out:
        report = {"command": "python benchmarks/train_step.py", "versions": versions(), "rows": rows}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
