r"""Compares all algorithms that learn from data alone on one task, with as many settings tried for each.

    python benchmarks/baselines.py pointmaze|cube|antmaze [--algorithms fql rebrac] [--runs FOLDER] [SETTING ...]

Data, batches, updates, learning rates, discount and evaluation are the same for all. Networks are those of
network=small: critics of 2 x 256 for all, a DiT block (in antmaze of width 128) for policies that map noise to actions,
an MLP of the critics' widths for those that give a mean. Settings that several algorithms have are the same where they
have them: the normalisation of Q, the bound of the Bellman targets, the average of weights that acts. In pointmaze
they, the learning rates and tau are those of the quickstart, which were found for MeanFlowQL in this maze; in antmaze
most of them are those of the run of MeanFlowQL in docs/ant_data.md. ReBRAC alone keeps its own normalisation (`value`)
and its minimum over critics. The rest are an algorithm's defaults, among them the five candidates of MeanFlowQL and
what IFQL chooses from.

Each has one setting to tune: alpha, but for IFQL, which has none, the number of candidates. Eight values, two in a
decade, train with a seed that the comparison does not use, and are tried in 30 episodes. The value of the highest
success trains eight seeds; where successes are equal, that of the highest return; where nothing tells the values
apart, the algorithm's default. One seed is a noisy guide where seeds collapse. Behaviour cloning has nothing to tune. A
variant of MeanFlowQL counts as an algorithm.

Each line that begins with `mfrl train -m` is a command that this program gives, with packs where it can. Given again,
it does what is missing. `mfrl report runs/baselines/TASK/final --score final` reads the result. SETTINGs of `mfrl
train`, as data_dir=data or threads=1, are added to every command.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mfrl.app.notebook import compose
from mfrl.runs.read import FINISHED, Run, find_runs

TUNING_SEEDS, SEEDS = range(100, 101), range(8)


@dataclass(frozen=True)
class Task:
    """What is the same for all algorithms: settings of the run, and those of ``algo`` that an algorithm has."""

    run: str
    every: int  # updates between the evaluations of ten episodes
    algo: dict[str, str]
    values: dict[str, Sequence[float]] = field(
        default_factory=dict
    )  # an algorithm's, where they are not its usual ones


@dataclass(frozen=True)
class Contestant:
    """An algorithm, perhaps with a variant, and the values of the one setting that is tuned."""

    algo: str
    tuned: str = "alpha"
    values: Sequence[float] = ()
    settings: dict[str, str] = field(default_factory=dict)
    variant: str | None = None

    @property
    def name(self) -> str:
        return f"{self.algo}-{self.variant}" if self.variant else self.algo


SHARED = {
    "discount": "0.99",
    "normalize_q": "gradient",
    "clip_targets": "true",
    "clip_candidates": "true",
    "actor_average": "0.005",
    "alpha_schedule": "fixed",
}
WEIGHTS, CANDIDATES = (0.1, 0.3, 1, 3, 10, 30, 100, 300), (1, 2, 4, 8, 16, 32, 64, 128)
SMALL_WEIGHTS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
TASKS = {
    # ReBRAC's alpha_critic is that of FQL's commands: 0.01 in its maze, 0 for its cube.
    "pointmaze": Task(
        "env=ogbench/pointmaze-medium-navigate collect={seed:0} updates=6000 batch_size=128",
        2000,
        SHARED
        | {"q_aggregation": "min", "tau": "0.1", "actor_lr": "1e-3", "critic_lr": "1e-3", "alpha_critic": "0.01"},
        # Beside Q / |Q|, whose gradient is far below one there: of 0.01 to 30 none let ReBRAC reach the goal.
        {"rebrac": SMALL_WEIGHTS},
    ),
    "cube": Task(
        "env=ogbench/cube-single-play collect={seed:0,episodes:400} updates=5000 batch_size=128",
        2500,
        SHARED | {"q_aggregation": "mean", "tau": "0.02", "actor_lr": "5e-4", "critic_lr": "5e-4"},
    ),
    "antmaze": Task(
        "env=ogbench/antmaze-medium-navigate collect={seed:0} network.actor.width=128 updates=30_000 batch_size=128",
        15_000,
        SHARED
        | {"q_aggregation": "mean", "tau": "0.01", "actor_lr": "5e-4", "critic_lr": "1e-3", "alpha_critic": "0.01"},
        {"rebrac": SMALL_WEIGHTS},  # published for visual-antmaze-medium is 0.01, below the usual values
    ),
}
CONTESTANTS = (
    Contestant("meanflowql", values=WEIGHTS, variant="residual"),
    Contestant("meanflowql", values=WEIGHTS, variant="noise_residual"),
    Contestant("fql", values=WEIGHTS),
    Contestant("meanflow_distill", values=WEIGHTS),
    Contestant("driftql", values=WEIGHTS),
    Contestant("fbrac", values=WEIGHTS),
    Contestant("ifql", "num_candidates", CANDIDATES),
    Contestant("iql", values=WEIGHTS),
    Contestant("rebrac", values=WEIGHTS, settings={"normalize_q": "value", "q_aggregation": "min"}),
    Contestant("meanflow_bc", variant="residual"),
    Contestant("flow_bc"),
    Contestant("flow_distilled"),
    Contestant("bc"),
    Contestant("gaussian_bc"),
)


def train(
    folder: Path, task: Task, contestant: Contestant, seeds: range, values: Sequence[float], more: list[str]
) -> None:
    """Give the command that trains an algorithm for every seed and value, in packs, and wait for it."""
    chosen = ["network=small", f"algo={contestant.algo}"]
    chosen += [f"variant={contestant.variant}"] if contestant.variant else []
    has = compose(*chosen).algo
    own = {name: value for name, value in (task.algo | contestant.settings).items() if name in has}
    run_dir = f"{folder}/{contestant.name}/" + (f"${{algo.{contestant.tuned}}}-" if values else "") + "${seed}"
    command = [
        *("mfrl", "train", "-m"),
        *task.run.split(),
        *chosen,
        *(f"algo.{name}={value}" for name, value in own.items()),
    ]
    command += [f"algo.{contestant.tuned}={','.join(map(str, values))}"] if values else []
    command += [
        f"seed={','.join(map(str, seeds))}",
        "pack=8",
        "existing=continue",
        f"run_dir={run_dir}",
        *more,
    ]
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command], check=False)  # it has said which of its runs failed


def success_and_return(run: Run) -> tuple[float, float]:
    return run.result["final"]["eval/success"], run.result["final"]["eval/return"]


def best_value(folder: Path, contestant: Contestant) -> float:
    """The tuned setting's value whose runs have the highest mean success, then the highest mean return.

    A value counts if all of its runs have finished. Where all are equal, it is the algorithm's default.
    """
    key, scores = f"algo.{contestant.tuned}", {}
    for run in find_runs([folder / contestant.name]):
        if run.status == FINISHED:
            scores.setdefault(run.config[key], []).append(success_and_return(run))
    whole = {value: runs for value, runs in scores.items() if len(runs) == len(TUNING_SEEDS)}
    if not whole:
        raise SystemExit(f"{contestant.name}: no value of {key} has finished all of its runs in {folder}")
    means = {value: tuple(statistics.fmean(part) for part in zip(*runs, strict=True)) for value, runs in whole.items()}
    for value, (success, undiscounted) in sorted(means.items()):
        print(f"{contestant.name} {key}={value:g}: success {success:.2f}, return {undiscounted:.1f}", flush=True)
    if len(set(means.values())) == 1:
        print(f"{contestant.name}: nothing tells the values of {key} apart; taken is the default", flush=True)
        return compose("network=small", f"algo={contestant.algo}").algo[contestant.tuned]
    return max(means, key=lambda value: means[value])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--algorithms", nargs="+", choices=names, default=names)
    parser.add_argument("--runs", type=Path, default=Path("runs/baselines"))
    parser.add_argument("settings", nargs="*", help="of mfrl train, e.g. threads=1")
    given = parser.parse_intermixed_args()
    task, runs = TASKS[given.task], given.runs / given.task
    for contestant in (contestant for contestant in CONTESTANTS if contestant.name in given.algorithms):
        values: list[float] = []
        if contestant.values:
            seldom = ["eval.every=1_000_000", "eval.episodes=30", *given.settings]
            tried = task.values.get(contestant.algo, contestant.values)
            train(runs / "tuning", task, contestant, TUNING_SEEDS, tried, seldom)
            values = [best_value(runs / "tuning", contestant)]
        now_and_then = [f"eval.every={task.every}", "eval.interim_episodes=10", *given.settings]
        train(runs / "final", task, contestant, SEEDS, values, now_and_then)


if __name__ == "__main__":
    main()
