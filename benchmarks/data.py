"""Time and memory to prepare, open and sample data: a million states, and images larger than memory.

    python benchmarks/data.py [--what states images] [--rows 1000000] [--batches 2000] [--folder FOLDER]

Writes files of made-up numbers in OGBench's format into a temporary folder below FOLDER and measures in fresh
processes: "states" has the sizes of cube-single-play (28 observations, 5 actions, 21 simulator states; compressed),
"images" those of visual-cube-single-play (64 x 64 x 3 bytes; a million rows take 12 GB, and as much again prepared).

prepare     the first start: read, check, label and write the cache
no cache    the same into memory
open cold   a later start, its files dropped from the system's cache before
open        and once more
sample      batches of 256 windows, drawn at random (images: 3 frames and the next one), each window checked

peak, anonymous: MiB of the process above what its imports take: everything resident, mapped pages of files included
(VmHWM); and memory of its own (RssAnon, the largest seen). Sampling runs under a limit of 4 GiB for the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

STEPS = 1001
MEASURE = """
import json, resource, sys, threading, time
from pathlib import Path
import torch
from mfrl.data.ogbench import OGBenchData
from mfrl.data.sampling import ChunkLoader

settings, batches = json.loads(sys.argv[1]), int(sys.argv[2])

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

def watch():
    global anonymous
    while True:
        anonymous = max(anonymous, memory("RssAnon"))
        time.sleep(0.01)

torch.ones(2).sum()
Path("/proc/self/clear_refs").write_text("5")        # forget the peak so far
before, own = memory("VmRSS"), memory("RssAnon")
anonymous = own
threading.Thread(target=watch, daemon=True).start()
data = OGBenchData(**settings)
start = time.perf_counter()
if batches:
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
data.setup()
opened = time.perf_counter() - start
row = {"seconds": opened}
if batches:
    places = torch.tensor([1, 256, 65536], dtype=torch.int32)
    start = time.perf_counter()
    for chunk in ChunkLoader(data.train, 256, 0, 0, batches, 8, (), discount=0.99):
        for batch in chunk:
            if batch.observations.ndim > 2:          # frames carry the number of their row
                last = batch.observations[:, -1, 0, 0].int() @ places
                after = batch.next_observations[:, -1, 0, 0].int() @ places
                assert torch.equal(last + 1, after)
    row["batches_per_second"] = batches / (time.perf_counter() - start)
row |= {"peak": memory("VmHWM") - before, "anonymous": anonymous - own, "resident": memory("VmHWM")}
row |= {"gib": data.train.nbytes() / 2**30, "mapped": data.train.pages is not None, "warnings": data.warnings}
print(json.dumps(row))
"""


def write_states(path: Path, episodes: int) -> None:
    rng, rows = np.random.default_rng(0), episodes * STEPS
    np.savez_compressed(
        path,
        observations=rng.standard_normal((rows, 28), np.float32),
        actions=rng.uniform(-1, 1, (rows, 5)).astype(np.float32),
        terminals=ends(rows),
        qpos=rng.standard_normal((rows, 21), np.float32),
        qvel=rng.standard_normal((rows, 20), np.float32),
    )


def write_images(path: Path, episodes: int) -> None:
    rng, rows = np.random.default_rng(0), episodes * STEPS
    fields = {
        "actions": rng.uniform(-1, 1, (rows, 5)).astype(np.float32),
        "terminals": ends(rows),
        "qpos": rng.standard_normal((rows, 21), np.float32),
    }
    noise = rng.integers(0, 256, (STEPS, 64, 64, 3), np.uint8)

    def frames() -> Iterator[np.ndarray]:
        for first in range(0, rows, STEPS):
            numbers = np.arange(first, first + STEPS)
            noise[:, 0, 0] = numbers[:, None] >> np.array([0, 8, 16]) & 255
            yield noise

    with zipfile.ZipFile(path, "w") as archive:
        for name, array in fields.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
        with archive.open("observations.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": (rows, *noise.shape[1:])}
            )
            for block in frames():
                file.write(block.data)


def ends(rows: int) -> np.ndarray:
    terminals = np.zeros(rows, bool)
    terminals[STEPS - 1 :: STEPS] = True
    return terminals


def drop_cache(folder: Path) -> None:
    """Have the system read the files from the disk again."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(batches: int = 0, **settings: object) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE, json.dumps(settings), str(batches)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=("states", "images"), default=["states"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where there is room; default: the system's temporary folder")
    args = parser.parse_args()
    episodes = max(10, args.rows // (STEPS - 1))
    print(f"{'':<22}{'GiB':>6}{'seconds':>9}{'batches/s':>11}{'peak':>7}{'anonymous':>11}{'resident':>10}")
    for what in args.what:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            dataset = "cube-single-play-v0" if what == "states" else "visual-cube-single-play-v0"
            write = write_states if what == "states" else write_images
            write(folder / f"{dataset}.npz", episodes)
            write(folder / f"{dataset}-val.npz", max(1, episodes // 10 if what == "states" else 1))
            settings = {"dataset": dataset, "data_dir": name, "frames": 1 if what == "states" else 3}
            runs = [("prepare", 0, {}), ("open cold", 0, {}), ("open", 0, {}), ("sample cold", args.batches, {})]
            runs += [("sample", args.batches, {})]
            if what == "states":
                runs += [("sample, mapped", args.batches, {"memory_gib": 0.05}), ("no cache", 0, {"cache": False})]
            for label, batches, extra in runs:
                if "cold" in label:
                    drop_cache(folder)
                row = measure(batches, **settings, **extra)
                rate = f"{row['batches_per_second']:.0f}" if batches else ""
                print(
                    f"{what + ', ' + label:<22}"[:22]
                    + f"{row['gib']:>6.2f}{row['seconds']:>9.2f}{rate:>11}{row['peak']:>7.0f}"
                    + f"{row['anonymous']:>11.0f}{row['resident']:>10.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
