"""How far a sweep is, and which jobs it is made of."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest
from rich.console import Console
from tiny import compose

from hydra_plugins.mfrl_sweeper import combinations
from mfrl.app.overrides import parse
from mfrl.app.refusals import check_overrides
from mfrl.app.tally import VARIABLE, Tally, note_end, note_start, progress_reported
from mfrl.errors import ConfigError
from mfrl.runs.jobs import COLUMNS, FINISHED, SKIPPED, Outcome
from mfrl.system.paths import take_as_they_are

DONE, BEFORE = (Outcome(status, Path("run"), "") for status in (FINISHED, SKIPPED))


def test_what_is_left_is_the_mean_of_what_was_done() -> None:
    # Two at once; two took 100 s and 120 s, one was skipped, two have been at it for 30 s and 10 s, five wait.
    begun = {0: 0.0, 1: 0.0, 2: 100.0, 3: 101.0, 4: 121.0}
    tally = Tally(begun, {0: (100.0, 1, 0), 1: (120.0, 1, 0), 2: (100.5, 1, 1)})
    assert tally.done == 3
    assert tally.seconds_left(jobs=10, at_once=2, now=131.0) == pytest.approx((5 * 110 + 80 + 100) / 2)
    assert tally.seconds_left(jobs=5, at_once=2, now=131.0) == pytest.approx(100.0)  # the last job
    assert tally.seconds_left(jobs=5, at_once=2, now=999.0) == 0.0
    assert Tally({0: 0.0}, {}).seconds_left(jobs=5, at_once=1, now=9.0) is None
    assert Tally({0: 0.0}, {0: (1.0, 1, 1)}).seconds_left(jobs=5, at_once=1, now=9.0) is None  # skipped


def test_the_line_comes_when_a_job_is_over_and_counts_what_a_pack_stands_for(tmp_path: Path) -> None:
    said, path = io.StringIO(), tmp_path / "tally"
    with progress_reported(path, jobs=3, runs=18, console=Console(file=said, width=COLUMNS)):
        for job, outcomes in ((0, [DONE] * 8), (1, [BEFORE, DONE])):
            note_start(job)
            note_end(job, outcomes)
            wait_for(said, f"{8 + 2 * job}/18 done, left about 10 s")
        with path.open("a") as file:
            file.write("2 1.0 8")  # half a line, as one that is just being written
        time.sleep(0.6)
    assert len(said.getvalue().splitlines()) == 2
    assert not path.exists()
    assert VARIABLE not in os.environ


def test_a_job_that_is_sent_again_has_not_ended_and_a_mangled_line_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "tally"
    path.write_text("0 1.00 0 0\n1 1.00 0 0\n0 9.00 2 0\n1 9.501.00 0 0\n\0\0\0\n1 9.00 1 0\n0 11.00 0 0\n")
    assert Tally.read(path) == Tally({0: 11.0, 1: 1.0}, {1: (9.0, 1, 0)})


def test_a_job_of_no_sweep_notes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_start(0)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone" / "tally"))
    note_end(0, [DONE])  # and none fails where it cannot


def wait_for(said: io.StringIO, text: str) -> None:
    end = time.monotonic() + 20.0
    while text not in said.getvalue():
        assert time.monotonic() < end, said.getvalue()
        time.sleep(0.05)


def test_jobs_are_every_combination_and_the_last_word_on_a_key_counts() -> None:
    given = ["seed=0,1", "variant=velocity", "~eval.episodes", "seed=range(3,5)", "algo.alpha=1,10", "env.name='a, b'"]
    jobs = combinations([parse(text) for text in given])
    assert len(jobs) == 4
    assert jobs[0] == ["seed=3", "variant=velocity", "~eval.episodes", "algo.alpha=1", "env.name='a, b'"]
    assert jobs[-1] == ["seed=4", "variant=velocity", "~eval.episodes", "algo.alpha=10", "env.name='a, b'"]
    with pytest.raises(ConfigError, match=r"algo\.alpha=interval\(0,1\)"):
        combinations([parse("algo.alpha=interval(0,1)")])


@pytest.mark.parametrize("runs", ["null", "''", "{a: 1}"])
def test_runs_must_be_a_folder(runs: str) -> None:
    with pytest.raises(ConfigError, match="runs="):
        check_overrides("train", [f"runs={runs}"])


def test_the_folder_of_all_runs_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for given, folder in (("~/my runs", "/home/me/my runs"), ("a=b,c", "a=b,c"), ("${x}", "${x}")):
        cfg = compose("train", *take_as_they_are([f"runs={given}"]), "run_dir=${runs}/one")
        assert cfg.run_dir == f"{folder}/one"
