r"""Training on images: the encoder in both memory layouts, and updates per second of the published pixel setting.

    python benchmarks/pixels.py [--updates 8] [--experiment paper/visual-cube-single-play-task1] [--compile]
                                [--out FILE.json]

Batches of 256 stacks of three 64 x 64 x 3 images, random; crops, sampling and Lightning as in `mfrl train`. Seconds are
medians; memory is the most that the process, or on a GPU PyTorch's allocator, held.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch

from mfrl.app.cli import quiet_lightning
from mfrl.app.parts import build_algorithm
from mfrl.data.augment import RandomCrop
from mfrl.data.batch import DataSpec
from mfrl.data.sampling import ChunkLoader
from mfrl.data.storage import Transitions
from mfrl.learning.training import Training
from mfrl.networks.encoder import ImpalaEncoder
from mfrl.runs.folder import versions
from mfrl.system.paths import CONFIG_DIR

BATCH, ROWS, SHAPE = 256, 2000, (3, 64, 64, 3)
LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}


def seconds(action: Callable[[], Any], repeats: int = 5) -> float:
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def encoder_seconds(layout: torch.memory_format, device: torch.device) -> float:
    """Forward and backward of the convolutions, their input and weights in the given layout."""
    stacks = ImpalaEncoder(SHAPE).stacks.to(device).to(memory_format=layout)
    x = torch.rand(BATCH, SHAPE[0] * SHAPE[3], *SHAPE[1:3], device=device).contiguous(memory_format=layout)
    return seconds(lambda: stacks(x).sum().backward())


class UpdateTimes(L.Callback):
    """When each update, a chunk of its own, began."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())


def updates_per_second(experiment: str, updates: int, compiled: bool) -> float:
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = hydra.compose("train", [f"experiment={experiment}", f"updates={updates}"])
    torch.manual_seed(0)
    algorithm = build_algorithm(cfg, DataSpec(0, 5, (), (), reward_min=-1.0, reward_max=0.0, image_shape=SHAPE))
    images = torch.randint(256, (ROWS, *SHAPE[1:]), dtype=torch.uint8)
    one, starts, firsts = torch.ones(ROWS), torch.arange(ROWS - 1), torch.zeros(ROWS, dtype=torch.int64)
    data = Transitions(images, torch.rand(ROWS, 5) * 2 - 1, -one, one, starts, firsts, frames=SHAPE[0])
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    times = UpdateTimes()
    trainer = L.Trainer(accelerator="auto", devices=1, max_epochs=1, callbacks=[times], **quiet)
    crop = RandomCrop(cfg.env.crop_probability, seed=0)
    loader = ChunkLoader(data.to(trainer.strategy.root_device), BATCH, 0, 0, updates, 1, (), algorithm.discount, crop)
    trainer.fit(Training(algorithm, BATCH, compiled), loader)
    return 1 / statistics.median(b - a for a, b in zip(times.starts[1:-1], times.starts[2:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--experiment", default="paper/visual-cube-single-play-task1")
    parser.add_argument("--compile", action="store_true", help="the updates, as long runs are")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    quiet_lightning()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{versions()['device']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    layouts = {name: encoder_seconds(layout, device) for name, layout in LAYOUTS.items()}
    for name, value in layouts.items():
        print(f"convolutions, {name:<15} {value:.3f} s forward and backward", flush=True)
    rate = updates_per_second(args.experiment, args.updates, args.compile)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    how = "compiled" if args.compile else "eager"
    print(f"{args.experiment}, {how}: {rate:.2f} updates/s, at most {memory:.1f} GiB")
    if args.out:
        results = {"encoder_seconds": layouts, "updates_per_second": rate, "peak_memory_gib": memory}
        report = {"experiment": args.experiment, "compiled": args.compile, "versions": versions(), **results}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
