"""The progress bar's rate and what it says is left."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from mfrl.callbacks import progress
from mfrl.callbacks.progress import Progress
from mfrl.runs.scores import format_seconds


@dataclass
class Module:
    """What the bar reads of the module being trained."""

    total_updates: int
    updates: int = 0
    seconds_aside: float = 0.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "perf_counter", clock)
    return clock


def started(module: Module, **settings: float) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    bar = Progress(**{"every": 100} | settings, console=Console(file=out, width=120))
    bar.on_train_start(None, module)
    return bar, out


def chunk(bar: Progress, module: Module, clock: Clock, updates: int, seconds: float, aside: float = 0.0) -> str:
    """So many updates in so many seconds, and an evaluation of ``aside`` more; the bar's note afterwards."""
    clock.now += seconds + aside
    module.updates += updates
    module.seconds_aside += aside
    bar.on_train_batch_end(None, module)
    return bar.bar.tasks[0].fields["note"]


def test_the_rate_is_that_of_training_and_leaves_evaluations_out(clock: Clock):
    module = Module(total_updates=1000)
    bar, _ = started(module)
    assert chunk(bar, module, clock, 10, 30.0) == ""  # compiled, perhaps: it opens the window and counts for nothing
    assert chunk(bar, module, clock, 10, 0.5).startswith("20.0 updates/s")
    assert chunk(bar, module, clock, 10, 0.5, aside=40.0).startswith("20.0 updates/s")


def test_what_is_left_includes_the_evaluations_due_the_longer_last_one_too(clock: Clock):
    module = Module(total_updates=1000)
    bar, out = started(module, every=300, final_share=5.0)
    chunk(bar, module, clock, 10, 1.0)
    # Before the first evaluation nobody knows how long one takes: at 300, 600, 900 and 1000.
    assert chunk(bar, module, clock, 40, 4.0).endswith("left 1:35 and 4 evaluations")
    assert "10.0 updates/s, left about 1:35 and 4 evaluations" in out.getvalue()
    chunk(bar, module, clock, 250, 25.0)
    bar.report(300, {"eval/success": 0.5, "eval/length": 9.0}, seconds=6.0)
    # 700 updates at 10 a second, evaluations at 600 and 900 of 6 s each and the last of 30 s.
    assert chunk(bar, module, clock, 0, 0.0).endswith("left 1:52  success [bold]0.50[/]")
    chunk(bar, module, clock, 650, 65.0)
    assert "left 0:35" in chunk(bar, module, clock, 0, 0.0)  # at 950: 5 s of training and the last evaluation
    assert "left 0:00" in chunk(bar, module, clock, 50, 5.0)  # the last one has been
    assert out.getvalue().count("left about") == 1


def test_a_resumed_run_counts_from_where_it_goes_on(clock: Clock):
    module = Module(total_updates=1000, updates=900)
    bar, _ = started(module)
    chunk(bar, module, clock, 10, 1.0)
    assert chunk(bar, module, clock, 40, 2.0) == "20.0 updates/s  left 0:02 and 1 evaluation"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (130, "2:10"), (10930, "3:02:10")])
def test_seconds_are_told_as_minutes_and_hours(seconds: float, text: str):
    assert format_seconds(seconds) == text
