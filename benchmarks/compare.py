r"""What every algorithm costs: updates a second, memory, and the time that an action takes.

    python benchmarks/compare.py [--sizes published|small] [--algorithms fql rebrac] [--modes eager compiled bf16]
                                 [--rounds 5] [--seconds 1] [--out benchmarks/results/compare]

With --fql-code CHECKOUT --fql-python PYTHON, FQL's own JAX code (github.com/seohongpark/fql) is a row of the same run,
of its own networks' sizes. PYTHON has jax, flax, distrax, optax and ml_collections; it need not have mfrl.

Data are random, of cube-single's sizes: observations of 28 numbers, actions of 5, batches of 256. "published" are the
networks and settings of an algorithm's presets, "small" those of network=small. Each algorithm trains in the learner,
as `mfrl train` calls it. All are made first. Then they take turns, so that a machine whose speed wanders wanders for
all alike; of the rounds the fastest and the median are kept. Beside other work the fastest is the one to compare.

updates/s    of turns of about so many seconds, in multiples of the eight updates whose random numbers are drawn at
             once; "bf16" (compiled, with bf16=true) is for a CPU with AMX, "captured" (compile=captured) for a GPU
parameters   that take steps, in millions, and all that the learner holds, target networks too
peak         MiB that eight eager updates take at most: on a CPU what the process has above a small learner of the same
             algorithm (VmHWM), on a GPU what PyTorch's allocator held
evaluations  of the policy's networks for one action: passes of an actor or critic, each for one candidate
ms           an action takes for a batch of so many observations, with what is constant folded, noise at hand
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import hydra
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from timing import median_seconds
from torch import Tensor
from train_step import MODES, arithmetic, device, seconds_of_updates

from mfrl.algorithms.base import Algorithm
from mfrl.app.parts import build_algorithm
from mfrl.data.batch import Batch, DataSpec
from mfrl.learning.learner import DRAWN_TOGETHER, Learner
from mfrl.networks.encoder import EncodedNetwork
from mfrl.runs.folder import versions
from mfrl.system.drawing import look_of, new_figure
from mfrl.system.files import replacing, write_text
from mfrl.system.paths import CONFIG_DIR

OBSERVATION, ACTION, BATCH = 28, 5, 256
ALGORITHMS = sorted(path.stem for path in (CONFIG_DIR / "algo").glob("*.yaml"))
#: Of these cube-single has a preset; the others' defaults are those that their presets restate.
PRESETS = {"meanflowql": "paper/cube-single-play-task2", "fql": "fql/cube-single-play-task2"}
BATCHES = (1, 50, 1000)
CROSSES = {"bf16": "+", "captured": "x"}  # in the figure
THEIRS = "FQL's JAX code"
HERE = Path(__file__).parent


def build(name: str, sizes: str, seed: int = 0) -> Algorithm:
    """An algorithm for random data of cube-single's sizes."""
    overrides = [f"experiment={PRESETS[name]}"] if name in PRESETS else [f"algo={name}", "env=ogbench/cube-single-play"]
    overrides += ["network=small"] if sizes == "small" else []
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = hydra.compose("train", [*overrides, "updates=1_000_000"])
    torch.manual_seed(seed)
    spec = DataSpec(OBSERVATION, ACTION, (0.0,) * OBSERVATION, (1.0,) * OBSERVATION, reward_min=-1.0, reward_max=0.0)
    return build_algorithm(cfg, spec).to(device())


def random_batch(algorithm: Algorithm, seed: int) -> Batch:
    draw = torch.Generator(device()).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=draw, device=device())

    ones = torch.ones(BATCH, device=device())
    actions, following = normal(ACTION).tanh(), normal(ACTION).tanh() if algorithm.next_actions else None
    return Batch(normal(OBSERVATION), actions, -ones, ones, normal(OBSERVATION), 0.99 * ones, following)


class Training:
    """A learner on random batches, and the seconds that its turns took for an update.

    Attributes:
        first: seconds of the first update, in which a compiled one is compiled.
    """

    def __init__(self, algorithm: Algorithm, mode: str, seconds: float) -> None:
        self.learner, self.mode = Learner([algorithm], BATCH, MODES[mode]), mode
        self.batches = [random_batch(algorithm, seed) for seed in range(DRAWN_TOGETHER)]
        self.seconds: list[float] = []
        self.first = self.run(1)
        self.run(DRAWN_TOGETHER)
        self.updates = DRAWN_TOGETHER * max(1, round(seconds / self.run(DRAWN_TOGETHER)))

    def turn(self) -> None:
        self.seconds.append(self.run(self.updates) / self.updates)

    def run(self, updates: int) -> float:
        with arithmetic(self.mode):
            return seconds_of_updates(self.learner, cycle(self.batches), updates)


class Acting:
    """A policy, and the seconds that an action took in each round, by size of the batch."""

    def __init__(self, algorithm: Algorithm) -> None:
        policy = algorithm.policy()
        self.evaluations = evaluations(algorithm)
        self.policy = policy.folded().eval()
        draw = torch.Generator(device()).manual_seed(0)
        self.inputs = {
            batch: (
                torch.randn(batch, OBSERVATION, generator=draw, device=device()),
                policy.sample_noise((policy.num_candidates, batch, ACTION), draw),
            )
            for batch in BATCHES
        }
        self.seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}

    def turn(self) -> None:
        with arithmetic("eager"):
            for batch, (observations, noise) in self.inputs.items():
                self.seconds[batch].append(median_seconds(lambda o=observations, e=noise: self.act(o, e)))

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        return self.policy.act(observations, noise).cpu()


def evaluations(algorithm: Algorithm) -> dict[str, int]:
    """How often each of the policy's networks is evaluated for one action: its passes, each once for a candidate."""
    policy, counts = algorithm.policy(), {}
    handles = []
    for name, network in policy.named_children():
        if isinstance(network, EncodedNetwork):

            def count(_: Any, __: Any, output: Any, name: str = name) -> None:
                values = output[0] if isinstance(output, tuple) else output  # of a Gaussian, the mean
                rows = values[0].numel() if name == "critic" else values.numel() // ACTION
                counts[name] = counts.get(name, 0) + rows

            handles.append(network.register_forward_hook(count))
    with torch.no_grad():
        noise = policy.sample_noise((policy.num_candidates, 1, ACTION), torch.Generator(device()).manual_seed(0))
        policy.act(torch.zeros(1, OBSERVATION, device=device()), noise)
    for handle in handles:
        handle.remove()
    return counts


def peak_memory(name: str, sizes: str) -> float:
    """MiB that eight eager updates take, in a process of their own."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_peak_memory, args=(name, sizes, sender))
    child.start()
    child.join()
    return receiver.recv() if receiver.poll() else float("nan")


def _peak_memory(name: str, sizes: str, sender: Any) -> None:
    def eight_updates(sizes: str) -> None:
        Training(build(name, sizes), "eager", seconds=0.0)

    eight_updates("small")  # loads what the libraries load
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        eight_updates(sizes)
        sender.send(torch.cuda.max_memory_allocated() / 2**20)
        return
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    eight_updates(sizes)
    sender.send(memory("VmHWM") - before)


def memory(field: str) -> float:
    """MiB of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 2**10


class Theirs:
    """FQL's JAX code in a process of its own, which waits while others have their turn."""

    def __init__(self, python: str, code: Path, hidden: int, depth: int, seconds: float) -> None:
        command = [python, str(HERE / "fql_jax.py"), str(code), "--hidden", *[str(hidden)] * depth]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started = self.ask({"updates": 1})
        self.first, self.versions = started["seconds"], started["versions"]
        self.parameters = started["parameters"]
        self.ask({"updates": DRAWN_TOGETHER})
        once = self.ask({"updates": DRAWN_TOGETHER})["seconds"]
        self.updates = DRAWN_TOGETHER * max(1, round(seconds / once))
        self.seconds: list[float] = []
        self.acting: dict[int, list[float]] = {batch: [] for batch in BATCHES}

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(what), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{THEIRS} ended; its error stands above")
        return json.loads(answer)

    def turn(self) -> None:
        self.seconds.append(self.ask({"updates": self.updates})["seconds"] / self.updates)

    def act(self) -> None:
        for batch in BATCHES:
            self.acting[batch].append(self.ask({"act": batch})["seconds"])


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"fastest": min(seconds), "median": statistics.median(seconds)}


def rate(seconds: Sequence[float]) -> dict[str, float]:
    return {name: 1.0 / value for name, value in spread(seconds).items()}


def millions(algorithm: Algorithm) -> dict[str, float]:
    trained = [algorithm.get_submodule(name) for name in algorithm.trained]
    return {
        "trained": sum(p.numel() for network in trained for p in network.parameters()) / 1e6,
        "all": sum(p.numel() for p in algorithm.parameters()) / 1e6,
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each algorithm."""
    peaks = {name: peak_memory(name, args.sizes) for name in args.algorithms}  # first: later, threads forbid a fork
    theirs = None
    if args.fql_code:
        hidden, depth = (512, 4) if args.sizes == "published" else (256, 2)
        theirs = Theirs(args.fql_python, args.fql_code, hidden, depth, args.seconds)
    training: dict[tuple[str, str], Training] = {}
    acting: dict[str, Acting] = {}
    rows: list[dict[str, Any]] = []
    for name in args.algorithms:
        for mode in args.modes:
            training[name, mode] = Training(build(name, args.sizes), mode, args.seconds)
            print(f"{name} {mode}: first update {training[name, mode].first:.1f} s", flush=True)
        acting[name] = Acting(build(name, args.sizes))
    for number in range(args.rounds):
        for one in (*training.values(), *([theirs] if theirs else [])):
            one.turn()
        for policy in acting.values():
            policy.turn()
        if theirs:
            theirs.act()
        print(f"round {number + 1} of {args.rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
    for name in args.algorithms:
        rows.append(
            {
                "algorithm": name,
                "parameters_millions": millions(build(name, args.sizes)),
                "updates_per_second": {mode: rate(training[name, mode].seconds) for mode in args.modes},
                "first_update_seconds": {mode: training[name, mode].first for mode in args.modes},
                "peak_mib": peaks[name],
                "evaluations": acting[name].evaluations,
                "action_ms": {b: {k: 1e3 * v for k, v in spread(s).items()} for b, s in acting[name].seconds.items()},
            }
        )
    if theirs:
        rows.append(
            {
                "algorithm": THEIRS,
                "versions": theirs.versions,
                "parameters_millions": theirs.parameters,
                "updates_per_second": {"compiled": rate(theirs.seconds)},
                "first_update_seconds": {"compiled": theirs.first},
                "action_ms": {b: {k: 1e3 * v for k, v in spread(s).items()} for b, s in theirs.acting.items()},
            }
        )
    return rows


def modes_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [mode for mode in MODES if any(mode in row["updates_per_second"] for row in rows)]


def table(rows: Sequence[dict[str, Any]], which: str) -> list[str]:
    """The lines of a Markdown table of the fastest or the median of the rounds."""
    modes = modes_of(rows)
    head = ["algorithm", "parameters, M", *(f"updates/s {mode}" for mode in modes), "peak, MiB"]
    head += ["evaluations an action"]
    head += [f"ms, batch {batch}" for batch in BATCHES]
    body = []
    for row in rows:
        rates = [row["updates_per_second"].get(mode) for mode in modes]
        counted = row.get("evaluations", {})
        actor = sum(count for name, count in counted.items() if name != "critic")
        critic = f" + {counted['critic']} of Q" if "critic" in counted else ""
        body.append(
            [
                row["algorithm"],
                f"{row['parameters_millions']['trained']:.2f}",
                *(f"{r[which]:.1f}" if r else "-" for r in rates),
                f"{row['peak_mib']:.0f}" if "peak_mib" in row else "-",
                f"{actor}{critic}" if counted else "-",
                *(f"{row['action_ms'][batch][which]:.2f}" for batch in BATCHES),
            ]
        )
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Updates a second, in each mode's mark, and the milliseconds of an action, of the fastest rounds."""
    drawn = new_figure(9.5, 0.9 + 0.3 * len(rows))
    left, right = drawn.subplots(1, 2, sharey=True)
    for place, row in enumerate(rows):
        look = look_of(row["algorithm"])
        rates = {mode: r["fastest"] for mode, r in row["updates_per_second"].items()}
        left.plot(list(rates.values()), [place] * len(rates), color=look.color, linewidth=1)
        for mode, value in rates.items():
            fill = "white" if mode == "eager" else look.color
            left.plot(value, place, marker=look.marker, color=look.color, markerfacecolor=fill)
            if mode in CROSSES:
                left.plot(value, place, marker=CROSSES[mode], markersize=10, color=look.color)
        times = [row["action_ms"][batch]["fastest"] for batch in BATCHES]
        right.plot(times, [place] * len(times), color=look.color, linewidth=1, zorder=1)
        for batch, value, size in zip(BATCHES, times, (3, 6, 9), strict=True):
            label = f"batch {batch}" if place == 0 else None
            right.plot(value, place, "o", color=look.color, markersize=size, label=label)
    left.set_yticks(range(len(rows)), [row["algorithm"] for row in rows])
    left.invert_yaxis()
    crossed = "".join(f", {mode} crossed" for mode in modes_of(rows) if mode in CROSSES)
    left.set(xlabel=f"updates/s: eager hollow{crossed}", xscale="log")
    right.set(xlabel="milliseconds for an action", xscale="log")
    right.legend(fontsize=7, frameon=False)
    for axes in (left, right):
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(labelsize=8)
    return drawn


def ratio(rows: Sequence[dict[str, Any]]) -> str:
    """How many times as fast as their code ours trains."""
    by_name = {row["algorithm"]: row["updates_per_second"] for row in rows}
    if not {"fql", THEIRS} <= by_name.keys():
        return ""
    parts = []
    for mode, ours in by_name["fql"].items():
        theirs = by_name[THEIRS]["compiled"]
        fastest, median = (ours[which] / theirs[which] for which in ("fastest", "median"))
        parts.append(f"{mode} {fastest:.2f} times theirs by the fastest round, {median:.2f} by the median")
    return f"fql to {THEIRS}: " + "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=["published", "small"], default="published")
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS, metavar="NAME")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=MODES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn of training, about")
    parser.add_argument("--fql-code", type=Path, help="a checkout of github.com/seohongpark/fql")
    parser.add_argument("--fql-python", default="python", help="a Python with JAX")
    parser.add_argument("--out", type=Path, help="without its ending: .json, .md and .png are written")
    args = parser.parse_args()
    start = time.perf_counter()
    rows = measure(args)
    where = f"{versions()['device']}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    seconds = time.perf_counter() - start
    lines = [f"{where}; load {', '.join(f'{load:.1f}' for load in os.getloadavg())} (1, 5, 15 minutes) at the end."]
    lines += [f"{args.sizes} sizes, the fastest of {args.rounds} rounds, {seconds / 60:.1f} minutes in all.", ""]
    lines += [*table(rows, "fastest"), "", "The medians:", "", *table(rows, "median")]
    lines += ["", ratio(rows)] if ratio(rows) else []
    print("\n".join(lines))
    if args.out:
        given = {name: value for name, value in vars(args).items() if not name.startswith("fql") and name != "out"}
        report = {"command": "python benchmarks/compare.py", "settings": given, "versions": versions(), "rows": rows}
        report |= {"load": os.getloadavg(), "threads": torch.get_num_threads(), "seconds": seconds}
        write_text(args.out.with_suffix(".json"), json.dumps(report, indent=2) + "\n")
        write_text(args.out.with_suffix(".md"), "\n".join(lines) + "\n")
        with replacing(args.out.with_suffix(".png")) as temporary:
            figure(rows).savefig(temporary, format="png")


if __name__ == "__main__":
    main()
