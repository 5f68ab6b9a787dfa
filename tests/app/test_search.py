"""Searches: real trials of a moment, that are shared, pruned, stopped and taken up."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import optuna
import pytest
import tiny
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from processes import Command
from tiny import TOY, mfrl

from hydra_plugins.mfrl_search import usual
from mfrl.app.overrides import parse
from mfrl.app.refusals import check_overrides
from mfrl.app.search import Search, Task, suggest, telling_of_storage
from mfrl.errors import ConfigError, MfrlError
from mfrl.runs.read import FINISHED, read_run
from mfrl.system import signals
from mfrl.system.paths import CONFIG_DIR

SEARCH = ["sweep=search", *TOY, "seed=0,1", "algo.actor_lr=tag(log,interval(1e-4,1e-2))"]
LONG = ["updates=1000", "eval.every=100", "checkpoint.every=50", "log.every=100"]
FOLDER = Path("runs/search/toy-grid/meanflow_bc-residual")


def trials(cwd: Path) -> list[FrozenTrial]:
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{cwd / FOLDER / 'search.db'}")
    return study.get_trials()


def final(cwd: Path, trial: int, seed: int) -> float:
    result = json.loads((cwd / FOLDER / f"trial{trial}" / f"seed{seed}" / "result.json").read_text())
    return result["final"]["eval/w2"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("algo.alpha=tag(log,interval(1,300))", FloatDistribution(1.0, 300.0, log=True)),
        ("algo.tau=interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("algo.num_candidates=int(interval(1,16))", IntDistribution(1, 16)),
        ("batch_size=4,8", CategoricalDistribution(("4", "8"))),
        ("batch_size=choice(4,8)", CategoricalDistribution(("4", "8"))),
        ("batch_size=range(4,7)", CategoricalDistribution(("4", "5", "6"))),
    ],
)
def test_hydras_words_say_what_is_searched(override: str, expected: object) -> None:
    trial = optuna.create_study().ask()
    key = override.partition("=")[0]
    suggest(trial, key, parse(override))
    assert trial.distributions[key] == expected


@pytest.mark.parametrize(
    ("given", "searched"),
    [
        (["algo=rebrac"], "algo.alpha=tag(log,interval(0.003333,3))"),
        (["experiment=fql/cube-single-play-task2"], "algo.alpha=tag(log,interval(10,9000))"),
        (["experiment=toy"], None),  # imitation has no alpha
    ],
)
def test_without_words_alpha_is_searched_around_what_the_algorithm_has(given: list[str], searched: str | None) -> None:
    cfg = tiny.compose("train", *given)
    params = OmegaConf.load(CONFIG_DIR / "sweep" / "search.yaml").hydra.sweeper.params
    assert usual(cfg, "algo.alpha", params["algo.alpha"]) == searched
    assert usual(cfg, "seed", params.seed) == "seed=0,1,2"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["algo.alpha=interval(1,300)"], "sweep=search"),
        (["sweep=search", "algo.alpha=tag(log,interval(0,300))"], "above 0"),
        (["sweep=search", "algo.alpha=interval(3,1)"], "below its end"),
        (["sweep=search", "algo.alhpa=interval(1,3)"], "algo.alpha"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused(given: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_overrides("train", given)


def search(folder: Path, *given: str, trials: int = 2) -> Search:
    task = Task.of([parse(text) for text in ["seed=0,1", "x=interval(0,1)", *given]])
    return Search(task, folder, lower_is_better=True, trials=trials, startup=2, prune=True, seed=0)


def test_a_trial_is_one_process_s_alone_and_is_taken_up_when_that_one_is_gone(tmp_path: Path) -> None:
    first, second = search(tmp_path), search(tmp_path)
    with first.next_trial() as one, second.next_trial() as other:
        assert (one.number, other.number) == (0, 1)
        proposed = first.choose(one)
        with search(tmp_path).next_trial() as third:
            assert third is None  # two are at work
    again = search(tmp_path)
    with again.next_trial() as one:
        assert one.number == 0
        assert again.choose(one) == proposed


def test_searches_of_other_seeds_try_other_settings(tmp_path: Path) -> None:
    tried = {}
    for seed in (0, 1):
        task = Task.of([parse(text) for text in ["seed=0,1", "x=interval(0,1)"]])
        settings = {"lower_is_better": True, "trials": 4, "startup": 4, "prune": False, "seed": seed}
        tried[seed] = []
        for _ in range(3):
            one = Search(task, tmp_path / str(seed), **settings)
            with one.next_trial() as trial:
                tried[seed].append(one.choose(trial)["x"])
                one.study.tell(trial, 0.0)
    assert not {*tried[0]} & {*tried[1]}


@pytest.mark.parametrize(("given", "told"), [("existing=new", "existing=new"), ("run_dir=runs/${seed}", "run_dir=")])
def test_a_search_that_could_not_go_on_is_refused(given: str, told: str, tmp_path: Path) -> None:
    searched = "algo.actor_lr=interval(0.001,0.01)"
    done = mfrl("train", "sweep=search", *TOY, searched, f"runs={tmp_path}/runs", given, cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not [*tmp_path.rglob("config.yaml")]


def test_a_folder_holds_one_search_whose_number_of_trials_may_grow(tmp_path: Path) -> None:
    search(tmp_path)
    search(tmp_path, "search.trials=9", "log.every=3", trials=9)
    for other, told in (("seed=0", "seeds"), ("batch_size=4", "settings"), ("x=interval(0,2)", "searched")):
        with pytest.raises(ConfigError, match=f"{told}.*search.folder="):
            search(tmp_path, other)
    with pytest.raises(ConfigError, match="nothing is searched"):
        search(tmp_path, "x=3")


def test_without_optuna_the_command_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match="pip install optuna"), telling_of_storage(tmp_path):
        search(tmp_path)


def test_a_file_that_is_no_search_is_told_of_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "search.db").write_text("no database at all" * 100)
    with pytest.raises(MfrlError, match=r"search\.db: .*not a database.*search\.folder="), telling_of_storage(tmp_path):
        search(tmp_path)
    assert (tmp_path / "search.db").read_text() == "no database at all" * 100


def test_a_full_disk_ends_a_search_with_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    full = search(tmp_path)
    with full.next_trial() as trial:
        full.choose(trial)
    with full.study._storage._backend.engine.connect() as connection:  # SQLite's own limit takes the disk's place
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    told = pytest.raises(MfrlError, match=r"full.*the same command goes on")
    with told, telling_of_storage(tmp_path):
        for k in range(100_000):
            trial.report(0.0, k)
            trial.set_user_attr(str(k), "x" * 1000)  # fills the last pages sooner
    again = search(tmp_path)
    with again.next_trial() as taken:
        assert taken.number == 0


def test_what_fails_while_a_trial_is_watched_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = search(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/eval.jsonl").write_text('{"updates": 1, "eval/w2": 0.1}\n')

    def refuse(*_: object) -> None:
        raise RuntimeError("the disk")

    def train(trial: optuna.Trial) -> None:
        with watching.watched(trial, [tmp_path / "run"], 9):
            begun = time.monotonic()
            while signals.received() is None and time.monotonic() < begun + 60:
                time.sleep(0.05)

    try:
        with watching.next_trial() as trial:
            monkeypatch.setattr(trial, "report", refuse)
            with pytest.raises(RuntimeError, match="the disk"):
                train(trial)
        assert signals.ended_early()
    finally:
        signals.forget()


def test_a_search_trains_its_trials_and_tells_the_best(tmp_path: Path) -> None:
    given = [*SEARCH, "updates=6", "eval.every=3", "search.trials=2", "search.prune=false"]
    done = mfrl("train", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = trials(tmp_path)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 2
    for trial in found:
        assert trial.value == pytest.approx((final(tmp_path, trial.number, 0) + final(tmp_path, trial.number, 1)) / 2)
        assert set(trial.intermediate_values) == {3, 6}
    best = min(found, key=lambda trial: trial.value)
    assert "2 complete; tuned on the seeds 0, 1" in done.stderr
    (command,) = [line for line in done.stderr.splitlines() if line.startswith("best")]
    assert f"algo.actor_lr={best.params['algo.actor_lr']} seed=2,3,4,5,6,7,8,9 pack=8 existing=continue" in command
    assert f"run_dir={FOLDER}/again/trial{best.number}/seed${{seed}}" in command
    assert f"mfrl report {FOLDER}/again/trial{best.number}" in done.stderr
    assert "sweep=" not in command
    assert "search." not in command


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_with_its_trial(tmp_path: Path) -> None:
    given = [*SEARCH, *LONG, "search.trials=2"]
    command = Command(["train", *given], tmp_path)
    try:
        command.wait_until((tmp_path / FOLDER / "trial0/seed1/checkpoints/last.ckpt").exists)
        command.signal(signal.SIGKILL, group=True)
        command.end()
    finally:
        command.close()
    (before,) = trials(tmp_path)
    assert before.state == TrialState.RUNNING
    done = mfrl("train", *given, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "updates after " in done.stderr  # from the checkpoint, and not from the beginning
    found = trials(tmp_path)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 2
    assert found[0].params == before.params
    runs = sorted((tmp_path / FOLDER).glob("trial*/seed*"))
    assert [read_run(run).status for run in runs] == [FINISHED] * 4
    written = {run: (run / "result.json").stat().st_mtime_ns for run in runs}
    done = mfrl("train", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {run: (run / "result.json").stat().st_mtime_ns for run in runs} == written


@pytest.mark.slow
def test_ctrl_c_stops_a_search_that_goes_on(tmp_path: Path) -> None:
    given = [*SEARCH, *LONG, "search.trials=1"]
    command = Command(["train", *given], tmp_path)
    try:
        command.wait_until((tmp_path / FOLDER / "trial0/seed1/checkpoints/last.ckpt").exists)
        command.signal(signal.SIGINT, group=True)
        assert command.end() == 128 + signal.SIGINT
        assert "the same command again" in command.said
    finally:
        command.close()
    done = mfrl("train", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [trial.state for trial in trials(tmp_path)] == [TrialState.COMPLETE]


@pytest.mark.slow
def test_two_processes_share_a_search(tmp_path: Path) -> None:
    given = ["train", *SEARCH, "search.trials=5"]
    commands = [Command(given, tmp_path) for _ in range(2)]
    try:
        assert [command.end(400) for command in commands] == [0, 0], [command.said for command in commands]
        said = [command.stderr for command in commands]
    finally:
        for command in commands:
            command.close()
    found = trials(tmp_path)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 5
    assert len({trial.params["algo.actor_lr"] for trial in found}) == 5
    assert sum(text.count(", mean of 2 seeds\n") for text in said) == 5  # each was trained by one of them


@pytest.mark.slow
def test_a_trial_worse_than_the_median_is_pruned(tmp_path: Path) -> None:
    given = [*SEARCH, *LONG, "updates=500", "eval.every=50", "search.trials=2", "search.startup=1"]
    given += ["search.seed=1"]  # which proposes the worse one second
    done = mfrl("train", *given, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    good, bad = trials(tmp_path)
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert bad.params["algo.actor_lr"] < good.params["algo.actor_lr"]  # so short a run has hardly begun with it
    assert max(bad.intermediate_values) < 500
    run = tmp_path / FOLDER / "trial1" / "seed0"
    assert not (run / "result.json").exists()
    assert (run / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_a_trial_that_fails_is_told_and_ends_a_search_that_has_no_other(tmp_path: Path) -> None:
    done = mfrl("train", *SEARCH, "algo.actor_lr=choice(1e36,1e37)", "search.trials=3", cwd=tmp_path)
    assert done.returncode == 1
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert [trial.state for trial in trials(tmp_path)] == [TrialState.FAIL]
