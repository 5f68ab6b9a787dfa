"""Time and peak memory to load a million transitions of 28 + 5 numbers in OGBench's format, cold and again.

    python benchmarks/data.py

Writes a cube-single-play file of random numbers (its real sizes: 28 observations, 5 actions, 21 + 20 simulator
states) into a temporary folder, compressed as OGBench's own, and loads it in fresh processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

EPISODES, STEPS = 1000, 1001
LOAD = """
import json, sys, time
import torch
from pathlib import Path
from mfrl.data import ogbench
from mfrl.envs.ogbench import make

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

env_id = "cube-single-singletask-v0"
env = make(env_id)
env.reset()                                          # builds the simulator, whose memory is not what is measured
torch.ones(2).sum()
Path("/proc/self/clear_refs").write_text("5")        # forget the peak so far
before, start = memory("VmRSS"), time.perf_counter()
parts = [ogbench.read_transitions(path, env_id, env) for path in map(Path, sys.argv[1:])]
spec = ogbench.summarise(parts[0], normalize=True)
for part in parts:
    ogbench.normalize_(part.observations, spec)
seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
arrays = sum(part.nbytes() for part in parts) / 2**20
print(json.dumps({"seconds": seconds, "peak_mib": peak, "arrays_mib": arrays}))
"""


def write(folder: Path) -> None:
    for name, episodes in (
        ("cube-single-play-v0.npz", EPISODES),
        ("cube-single-play-v0-val.npz", EPISODES // 10),
    ):
        rng, rows = np.random.default_rng(0), episodes * STEPS
        terminals = np.zeros(rows, bool)
        terminals[STEPS - 1 :: STEPS] = True
        np.savez_compressed(
            folder / name,
            observations=rng.standard_normal((rows, 28), np.float32),
            actions=rng.uniform(-1, 1, (rows, 5)).astype(np.float32),
            terminals=terminals,
            qpos=rng.standard_normal((rows, 21), np.float32),
            qvel=rng.standard_normal((rows, 20), np.float32),
        )


def drop_cache(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        print(f"{'':<8}{'seconds':>8}{'peak MiB':>10}{'arrays MiB':>12}{'peak / arrays':>15}")
        for label in ("cold", "again"):
            if label == "cold":
                drop_cache(folder)
            files = [str(path) for path in sorted(folder.iterdir(), key=lambda path: "val" in path.name)]
            out = subprocess.run(
                [sys.executable, "-c", LOAD, *files], check=True, capture_output=True, text=True
            ).stdout
            row = json.loads(out.splitlines()[-1])
            ratio = row["peak_mib"] / row["arrays_mib"]
            print(f"{label:<8}{row['seconds']:>8.2f}{row['peak_mib']:>10.0f}{row['arrays_mib']:>12.0f}{ratio:>15.2f}")


if __name__ == "__main__":
    main()
