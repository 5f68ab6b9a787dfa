"""Latency of one action of the published actor, batch 1 and 50, one candidate and five.

python benchmarks/act.py
"""

from __future__ import annotations

import statistics
import time

import torch

from mfrl.algorithms.meanflowql import MeanFlowQL
from mfrl.data.batch import DataSpec
from mfrl.networks.critic import QEnsemble
from mfrl.networks.dit import DiT
from mfrl.reformulation import Reformulation
from mfrl.runs.folder import versions


def main() -> None:
    spec = DataSpec(28, 5, (0.0,) * 28, (1.0,) * 28, -1.0, 0.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = MeanFlowQL(spec, DiT, QEnsemble, Reformulation(1.0, -1.0), updates=1).to(device).eval()
    policy = module.policy().folded()
    print(f"{versions()['device']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'batch':>5}{'candidates':>12}{'median ms':>11}{'95 % ms':>9}")
    for batch in (1, 50):
        for candidates in (1, 5):
            observations = torch.randn(batch, 28)
            noise = policy.sample_noise((candidates, batch, 5), torch.Generator().manual_seed(0))
            seconds = []
            with torch.no_grad():
                for _ in range(320):
                    start = time.perf_counter()
                    policy.act(observations, noise).cpu()
                    seconds.append(time.perf_counter() - start)
            warm = sorted(seconds[20:])
            median, tail = statistics.median(warm) * 1e3, warm[int(0.95 * len(warm))] * 1e3
            print(f"{batch:>5}{candidates:>12}{median:>11.2f}{tail:>9.2f}")


if __name__ == "__main__":
    main()
