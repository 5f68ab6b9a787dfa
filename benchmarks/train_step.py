r"""Updates per second of MeanFlowQL, eager and compiled, against the machine's fp32 matrix product.

    python benchmarks/train_step.py [--sizes published quickstart] [--modes eager compiled] [--out FILE.json]

Training runs through lightning.Trainer as in `mfrl train`, on random transitions of the task's size. A row reports
the median over chunks of 8 updates, once warm; "matmul" is the rate in GFLOP/s of a 2048-cubed fp32 product, measured
right after it, "share" the share of it that the necessary operations reach, "loop" the time outside the updates.

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
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from torch import nn

from mfrl.algorithms import MeanFlowQL
from mfrl.callbacks import Monitor
from mfrl.cli import quiet_lightning
from mfrl.config import CONFIG_DIR, build_algorithm
from mfrl.data.batch import DataSpec
from mfrl.data.sampling import ChunkLoader
from mfrl.data.storage import Transitions
from mfrl.run import versions

BATCH, CHUNK, ROWS = 256, 8, 100_000
# Sizes of observation and action, and the overrides of conf/train.yaml.
SIZES: dict[str, tuple[int, int, list[str]]] = {
    "published": (28, 5, ["experiment=paper/cube-double-play-task2"]),
    "published, N = 1": (28, 5, ["experiment=paper/cube-double-play-task2", "algo.num_candidates=1"]),
    "quickstart": (2, 2, ["experiment=quickstart"]),
}


class ChunkTimes(L.Callback):
    """Seconds from the start of each chunk to the start of the next."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())

    def updates_per_second(self, warm_up: int) -> float:
        seconds = [b - a for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)][warm_up:]
        return CHUNK / statistics.median(seconds)


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a 2048-cubed fp32 product, the median of 10."""
    a, b = torch.randn(2, 2048, 2048, device=device)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(seconds[2:])


def necessary_flops(module: MeanFlowQL) -> float:
    """By the formula above, from the weights of the networks."""

    def multiplications(network: nn.Module, wanted: bool) -> int:
        of_time = ("time.", "modulation")
        matrices = ((name, p) for name, p in network.named_parameters() if p.ndim >= 2 and "weight" in name)
        return sum(p.numel() for name, p in matrices if any(word in name for word in of_time) is wanted)

    A, M = multiplications(module.actor, False), multiplications(module.actor, True)
    C = multiplications(module.critic, False)
    B, N = BATCH, module.target_candidates
    T = min(module.time_steps or B, B)
    flow = 8 * (B * A + T * M)
    policy = 6 * B * A + 4 * B * C
    critic = 6 * B * C
    target = 2 * N * B * (A + C)
    return float(flow + policy + critic + target)


def build(size: str, compile: bool, updates: int) -> MeanFlowQL:
    observation_dim, action_dim, overrides = SIZES[size]
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = hydra.compose("train", [*overrides, f"updates={updates}", f"compile={str(compile).lower()}"])
    zeros, ones = (0.0,) * observation_dim, (1.0,) * observation_dim
    torch.manual_seed(0)
    return build_algorithm(cfg, DataSpec(observation_dim, action_dim, zeros, ones, reward_min=-1.0, reward_max=0.0))


def measure(size: str, compile: bool, updates: int) -> dict[str, Any]:
    module = build(size, compile, updates)
    observation_dim, action_dim, _ = SIZES[size]
    transitions = Transitions(
        torch.randn(ROWS, observation_dim),
        torch.rand(ROWS, action_dim) * 2 - 1,
        -torch.ones(ROWS),
        torch.ones(ROWS),
        torch.arange(ROWS - 1),
    )
    monitor, times = Monitor(every=updates // 2), ChunkTimes()
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=1,
        callbacks=[monitor, times],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    transitions = transitions.to(trainer.strategy.root_device)
    trainer.fit(module, ChunkLoader(transitions, BATCH, 0, 0, updates, CHUNK, (updates // 2,), module.discount))
    warm_up = 2
    return {
        "size": size,
        "mode": "compiled" if compile else "eager",
        "updates_per_second": times.updates_per_second(warm_up),
        "first_chunk_seconds": times.starts[1] - times.starts[0],
        "loop_share": monitor.loop_share,
        "gflop_per_update": necessary_flops(module) / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--updates", type=int, default=160)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    quiet_lightning()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{versions()['device']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'size':<18}{'mode':<10}{'updates/s':>10}{'GFLOP':>8}{'matmul':>8}{'share':>7}{'start-up':>10}{'loop':>7}")
    rows = []
    for size in args.sizes:
        for mode in args.modes:
            row = measure(size, mode == "compiled", args.updates)
            rate = (matmul_rate(device) + matmul_rate(device)) / 2  # just after: the machine's own speed wanders
            row["matmul_gflops"] = rate / 1e9
            row["share_of_matmul_rate"] = row["updates_per_second"] * row["gflop_per_update"] * 1e9 / rate
            rows.append(row)
            print(
                f"{size:<18}{mode:<10}{row['updates_per_second']:>10.2f}{row['gflop_per_update']:>8.2f}"
                f"{row['matmul_gflops']:>8.0f}{row['share_of_matmul_rate']:>7.2f}{row['first_chunk_seconds']:>9.1f}s{row['loop_share']:>7.1%}",
                flush=True,
            )
    if args.out:
        report = {"command": "python benchmarks/train_step.py", "versions": versions(), "rows": rows}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
