"""A report says what its runs say: figures worked out by hand on made-up run folders."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from mfrl.app.report import main, report
from mfrl.catalogue import environments, plain_name
from mfrl.report import figures as report_figures
from mfrl.report import statistics as st
from mfrl.report.documents import escape
from mfrl.report.groups import curve, group_runs, labels
from mfrl.report.published import before, both_phases, differences, of_task, published_scores
from mfrl.report.summary import Bootstrap, over_tasks, per_group
from mfrl.report.tables import ranges
from mfrl.runs.read import ReportError, find_runs
from mfrl.runs.scores import last_evaluations
from mfrl.system import drawing
from mfrl.system.paths import CONFIG_DIR

QUIET = Console(file=open(os.devnull, "w"))  # noqa: SIM115
SHA = {"explore": "a" * 64, "navigate": "b" * 64}


def make_run(
    path: Path,
    scores: list[float] = (0.0, 0.5, 1.0),
    seed: int = 0,
    variant: str = "residual",
    dataset: str = "pointmaze-medium-explore",
    task: int | None = None,
    source: str = "collected",
    sha: str = "a" * 64,
    overrides: dict[str, Any] | None = None,
    finished: bool = True,
    updates: int = 3000,
    metrics: dict[str, list[float]] | None = None,
    every: int = 1000,
) -> Path:
    """A run folder as `mfrl train` leaves it, evaluated every so many updates with 10 episodes."""
    path.mkdir(parents=True)
    config = {
        "seed": seed,
        "updates": updates,
        "accelerator": "auto",
        "chunk": 8,
        "run_dir": str(path),
        "data": {"seed": "${seed}", "dataset": "${env.dataset}"},
        "eval": {"every": 1000, "num_envs": 10, "seed": 1000},
        "env": {"suite": "ogbench", "name": dataset, "dataset": f"{dataset}-v0", "task": task},
        "variant": {"name": variant, "p": 1.0 if variant == "residual" else 0.0},
        "algo_name": "meanflowql",
        "network": {"critic": {"ensemble": 2}},
        "algo": {
            "_target_": "mfrl.algorithms.meanflowql.MeanFlowQL",
            "critic": "${network.critic}",
            "alpha": 1.0,
            "seed": "${seed}",
        },
    }
    for key, value in (overrides or {}).items():
        *sections, leaf = key.split(".")
        node = config
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "overrides.yaml").write_text(yaml.safe_dump([f"seed={seed}", "experiment=quickstart", f"run_dir={path}"]))
    provenance = {
        "dataset": f"{dataset}-v0",
        "source": source,
        "generator": {"package": "mfrl", "version": "0.1.0", "function": "mfrl.collect.ogbench.runner.collect"},
        "noise": 0.5,
        "files": {f"{dataset}-v0.npz": {"sha256": sha}, f"{dataset}-v0-val.npz": {"sha256": "e" * 64}},
        "created": str(path),
    }
    if source != "collected":
        del provenance["generator"]
    (path / "provenance.json").write_text(json.dumps(provenance))
    columns = {"eval/success": list(scores)} | (metrics or {})
    online = (overrides or {}).get("online.steps", 0)  # an update each, before the last evaluation
    evaluations = [
        {
            "updates": every * (k + 1) + online * (k + 1 == len(scores)),
            **{name: v[k] for name, v in columns.items()},
            "episodes": 10,
            "returns": [0.0] * 10,
        }
        for k in range(len(scores))
    ]
    (path / "eval.jsonl").write_text("".join(json.dumps(e) + "\n" for e in evaluations))
    if finished:
        env = dataset.rpartition("-")[0] + "-singletask" + (f"-task{task}" if task else "") + "-v0"
        last = {key: value for key, value in evaluations[-1].items() if key.startswith("eval/")}
        result = {"env": env, "dataset": f"{dataset}-v0", "seed": seed, "updates": evaluations[-1]["updates"]}
        result |= {"final": last, "versions": {"torch": "2.13"}, "seconds": 1.0}
        (path / "result.json").write_text(json.dumps(result))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- statistics -----------------------------------------------------------------------------------------------


def test_interquartile_mean_drops_a_quarter_at_each_end_over_all_tasks_together():
    # sorted together: 0 1 2 3 | 4 5 6 100; a quarter of eight is two: (2 + 3 + 4 + 5) / 4
    assert st.interquartile_mean([np.array([100.0, 0, 3, 4]), np.array([6.0, 5, 1, 2])]) == 3.5
    # five: floor(5 / 4) = 1 at each end
    assert st.interquartile_mean([np.array([9.0, 1, 2, 3, -50])]) == 2.0
    # three: nothing is dropped
    assert st.interquartile_mean([np.array([0.0, 1, 5])]) == 2.0


def test_interquartile_mean_is_scipys_trimmed_mean():
    stats = pytest.importorskip("scipy.stats")
    for n in range(1, 20):
        x = np.random.default_rng(n).normal(size=n)
        np.testing.assert_allclose(st.interquartile_mean([x]), stats.trim_mean(x, 0.25))


def test_mean_over_tasks_gives_every_task_the_same_weight():
    assert st.task_mean([np.array([1.0, 1, 1, 1]), np.array([0.0])]) == 0.5


def test_deviation_divides_by_n_minus_one():
    assert st.deviation(np.array([1.0, 2.0, 3.0])) == 1.0
    assert st.deviation(np.array([1.0])) is None


def test_probability_of_improvement_counts_pairs_with_ties_as_half_and_averages_tasks():
    # task 1: 1 > 0, 1 = 1, 2 > 0, 2 > 1: 3.5 / 4; task 2: 0 < 3: 0
    x, y = [np.array([1.0, 2.0]), np.array([0.0])], [np.array([0.0, 1.0]), np.array([3.0])]
    assert st.probability_of_improvement(x, y) == (3.5 / 4 + 0) / 2
    assert st.probability_of_improvement(y, x) == 1 - (3.5 / 4) / 2
    rounded = [np.array([100 * (0.1 + 0.2)])]  # is not 30.0 in floating point
    assert st.probability_of_improvement(rounded, [np.array([30.0])]) == 0.5


def test_a_performance_profile_is_the_share_of_runs_that_reach_a_level_and_tasks_weigh_alike():
    scores = [np.array([0.0, 50.0, 100 * (0.1 + 0.2), 100.0]), np.array([30.0])]
    levels = np.array([0.0, 30.0, 50.0, 100.0])
    # task 1: 4, 3, 2, 1 of 4; task 2: 1, 1, 0, 0
    np.testing.assert_allclose(st.performance_profile(scores, levels), [1.0, 0.875, 0.25, 0.125])
    # at most: 1, 2, 3, 4 of 4; 0, 1, 1, 1
    at_most = st.performance_profile(scores, levels, lower_is_better=True)
    np.testing.assert_allclose(at_most, [0.125, 0.75, 0.875, 1.0])


def test_the_band_of_a_curve_is_the_interval_at_each_of_its_points():
    scores = [np.array([0.0, 10.0, 40.0]), np.array([20.0, 30.0])]
    levels = np.array([5.0, 25.0])
    band = st.bootstrap_band(lambda x: st.performance_profile(x, levels), scores)
    for k in range(2):
        point = st.bootstrap_interval(lambda x, k=k: st.performance_profile(x, levels)[..., k], scores)
        assert tuple(band[:, k]) == point
    assert band[0, 0] < 5 / 6 < band[1, 0] == 1.0, "two thirds of one task's runs and all of the other's"
    assert st.bootstrap_band(st.task_mean, [np.array([1.0])]) is None


def test_bootstrap_of_two_runs_has_the_binomial_percentiles():
    # The mean of two redrawn from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    scores = [np.array([0.0, 1.0])]
    assert st.bootstrap_interval(st.task_mean, scores, confidence=0.6) == (0.0, 1.0)
    assert st.bootstrap_interval(st.task_mean, scores, confidence=0.4) == (0.5, 0.5)


def test_bootstrap_redraws_within_tasks_only():
    # Each task is constant, so redrawing within tasks changes nothing; across tasks it would.
    scores = [np.full(5, 10.0), np.full(5, 90.0)]
    assert st.bootstrap_interval(st.task_mean, scores) == (50.0, 50.0)
    assert st.bootstrap_interval(st.interquartile_mean, scores) == (50.0, 50.0)


def test_bootstrap_agrees_with_scipys_percentile_interval():
    stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(0).normal(size=12)
    ours = st.bootstrap_interval(st.interquartile_mean, [x], resamples=20_000)

    def iqm(sample: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(sample, 0.25, axis=axis)

    theirs = stats.bootstrap((x,), iqm, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_the_evaluation_of_update_0_is_in_no_mean_but_its_own():
    lines = [{"updates": k} for k in (0, 5, 10)]
    assert last_evaluations(lines, 3) == lines[1:]
    assert last_evaluations(lines, 1) == lines[2:]
    assert last_evaluations(lines[:1], 3) == lines[:1]


def test_a_single_seed_gets_no_interval():
    assert st.bootstrap_interval(st.task_mean, [np.array([1.0, 2.0]), np.array([1.0])]) is None
    assert st.improvement_interval([np.array([1.0, 2.0])], [np.array([1.0])]) is None


def test_interval_of_improvement_equals_redrawing_the_runs_themselves():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 7) / 5, rng.integers(0, 5, 6) / 5
    i, j = rng.integers(7, size=(20_000, 7)), rng.integers(6, size=(20_000, 6))
    a, b = x[i][:, :, None], y[j][:, None, :]
    drawn = ((a > b) + 0.5 * (a == b)).mean(axis=(1, 2))
    ours = st.improvement_interval([x], [y], resamples=20_000)
    np.testing.assert_allclose(ours, np.quantile(drawn, [0.025, 0.975]), atol=0.02)


# --- which runs count -----------------------------------------------------------------------------------------


def test_only_finished_runs_are_averaged_and_the_others_are_listed_with_their_reason(tmp_path: Path):
    runs = tmp_path / "runs"
    make_run(runs / "deep" / "below" / "s0", [0.2, 0.4, 0.6], seed=0)  # 40 %
    make_run(runs / "s1", [0.5, 0.8, 0.8], seed=1)  # 70 %
    make_run(runs / "running", [0.9], seed=2, finished=False)
    make_run(runs / "started", [], seed=3, finished=False)
    make_run(runs / "truncated", [1, 1, 1], seed=4)
    (runs / "truncated" / "result.json").write_text('{"env": "pointm')
    make_run(runs / "extended", [1, 1, 1], seed=5, updates=9000)
    make_run(runs / "no_origin", [1, 1, 1], seed=6)
    (runs / "no_origin" / "provenance.json").unlink()
    make_run(runs / "torn", [1, 1, 1], seed=7)
    (runs / "torn" / "eval.jsonl").write_text((runs / "torn" / "eval.jsonl").read_text()[:-40])
    make_run(runs / "pieced", [1, 1, 1], seed=8)
    (runs / "pieced" / "eval.jsonl").write_text((runs / "s1" / "eval.jsonl").read_text())
    make_run(runs / "diverged", [1, 1, float("nan")], seed=9)
    make_run(runs / "config", [1, 1, 1], seed=10)
    (runs / "config" / "config.yaml").write_text("seed: [0")
    made = report([runs], tmp_path / "out", console=QUIET)

    (row,) = made.rows
    assert (row.runs, row.groups[0].seeds) == (2, [0, 1])
    assert row.mean == pytest.approx(55.0)
    assert row.std == pytest.approx(np.sqrt(2 * 15.0**2))
    listed = {run.path.name: (run.status, run.reason) for run in made.grouping.excluded}
    expected = {
        "running": ("unfinished", "no result.json; last evaluation at update 1,000 of 3,000, success 0.90"),
        "started": ("unfinished", "no evaluation yet"),
        "truncated": ("failed", "result.json cannot be read"),
        "extended": ("unfinished", "result.json is of update 3,000, config.yaml asks for 9,000"),
        "no_origin": ("failed", "provenance.json is missing"),
        "torn": ("failed", "eval.jsonl cannot be read: line 3"),
        "pieced": ("failed", "eval/success is 1 in result.json, but 0.8 in eval.jsonl"),
        "diverged": ("failed", "eval/success is nan"),
        "config": ("failed", "config.yaml cannot be read"),
    }
    assert listed.keys() == expected.keys()
    for name, (status, reason) in expected.items():
        assert listed[name][0] == status, name
        assert reason in listed[name][1], name
    text = (tmp_path / "out" / "report.md").read_text()
    assert "2 finished runs counted; 3 unfinished, not counted; 6 failed, not counted" in text
    assert all(str(runs / name) in text for name in expected)
    statuses = [line["status"] for line in rows_of(tmp_path / "out" / "runs.csv")]
    assert sorted(statuses) == ["failed"] * 6 + ["finished"] * 2 + ["unfinished"] * 3


def test_a_run_that_is_there_twice_counts_once_and_the_newest_wins(tmp_path: Path):
    old = make_run(tmp_path / "b-old", [0, 0, 0], seed=0)
    new = make_run(tmp_path / "a-new", [1, 1, 1], seed=0, overrides={"chunk": 1, "accelerator": "gpu"})
    other = make_run(tmp_path / "c", [0.5, 0.5, 0.5], seed=1)
    os.utime(old / "result.json", (1000, 1000))
    os.utime(new / "result.json", (2000, 2000))
    (tmp_path / "link").symlink_to(other)
    grouping = group_runs(find_runs([tmp_path, tmp_path / "c", tmp_path / "link"]))
    (group,) = grouping.groups
    assert [run.path.name for run in group.runs] == ["a-new", "c"]
    assert group.values.tolist() == [100.0, 50.0]
    (twice,) = grouping.excluded
    assert (twice.path.name, twice.status) == ("b-old", "duplicate")
    assert str(new) in twice.reason


def test_folders_without_runs_are_an_error_that_says_what_a_run_is(tmp_path: Path):
    with pytest.raises(ReportError, match=r"no run folder in or below .*config\.yaml"):
        report([tmp_path], tmp_path / "out")
    with pytest.raises(ReportError, match="is not a folder"):
        report([tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_of_unfinished_runs_alone_lists_them(tmp_path: Path):
    make_run(tmp_path / "a", [0.5], finished=False)
    console = Console(file=io.StringIO(), width=120)
    made = report([tmp_path], tmp_path / "out", console=console)
    assert made.rows == []
    assert "nothing to average; the report lists 1" in console.file.getvalue()
    assert "No run is finished" in (tmp_path / "out" / "report.md").read_text()


# --- groups ---------------------------------------------------------------------------------------------------


def test_runs_on_different_data_are_never_pooled(tmp_path: Path):
    make_run(tmp_path / "a", [1, 1, 1], seed=0)
    make_run(tmp_path / "b", [0, 0, 0], seed=1, sha="c" * 64)
    make_run(tmp_path / "c", [0, 0, 0], seed=2, source="official")
    grouping = group_runs(find_runs([tmp_path]))
    assert [len(group.runs) for group in grouping.groups] == [1, 1, 1]
    names = {group.task.name for group in grouping.groups}
    base = "pointmaze-medium-explore"
    assert names == {f"{base} (collected aaaaaaaa)", f"{base} (collected cccccccc)", f"{base} (official aaaaaaaa)"}


def test_swept_settings_split_groups_and_only_they_are_shown(tmp_path: Path):
    for alpha in (1, 10.0):
        for seed in (0, 1):
            overrides = {"algo.alpha": alpha, "eval.num_envs": 3 + seed, "trainer": {"accelerator": str(seed)}}
            make_run(tmp_path / f"{alpha}-{seed}", seed=seed, overrides=overrides)
    make_run(tmp_path / "int", seed=2, overrides={"algo.alpha": 10})
    grouping = group_runs(find_runs([tmp_path]))
    assert grouping.keys == ["algo.alpha"]
    assert [(g.settings["algo.alpha"], g.seeds) for g in grouping.groups] == [(1, [0, 1]), (10, [0, 1, 2])]
    assert labels(grouping.groups) == ["alpha=1", "alpha=10"]


def test_a_variants_own_coefficients_are_not_a_sweep_but_a_custom_variants_are(tmp_path: Path):
    make_run(tmp_path / "r")
    make_run(tmp_path / "v", variant="velocity")
    assert group_runs(find_runs([tmp_path])).keys == []
    make_run(tmp_path / "c1", variant="custom", overrides={"variant.p": [0.0, 1.0]})
    make_run(tmp_path / "c2", variant="custom", overrides={"variant.p": [0.0, 2.0]})
    grouping = group_runs(find_runs([tmp_path]))
    assert grouping.keys == ["variant.p"]
    assert [g.method.variant for g in grouping.groups] == ["residual", "custom", "custom", "velocity"]


def test_a_setting_chosen_for_each_task_does_not_split_a_method_over_tasks(tmp_path: Path):
    for seed in (0, 1):
        make_run(tmp_path / f"e{seed}", seed=seed)
        make_run(
            tmp_path / f"n{seed}",
            seed=seed,
            dataset="pointmaze-medium-navigate",
            sha=SHA["navigate"],
            overrides={"algo.alpha": 3.0},
        )
    grouping = group_runs(find_runs([tmp_path]))
    assert grouping.keys == ["algo.alpha"]
    ((method, groups),) = grouping.methods.items()
    assert method.swept == ()
    assert [g.settings["algo.alpha"] for g in groups] == [1.0, 3.0]


def test_how_the_data_and_the_loggers_came_about_tells_no_group(tmp_path: Path):
    make_run(tmp_path / "a")
    came = {"collect": {"seed": 0}, "download": True, "logger": {}, "data.cache": "elsewhere", "trust": ["mine"]}
    make_run(tmp_path / "b", seed=1, overrides=came)
    make_run(tmp_path / "c", seed=2, overrides={"collect": None, "download": False, "data.memory_gib": 1.0})
    (group,) = group_runs(find_runs([tmp_path])).groups
    assert group.seeds == [0, 1, 2]


def test_rounded_products_are_another_group_and_runs_from_before_rounded_none(tmp_path: Path):
    make_run(tmp_path / "before")
    make_run(tmp_path / "exact", seed=1, overrides={"bf16": False})
    make_run(tmp_path / "rounded", overrides={"bf16": True})
    grouping = group_runs(find_runs([tmp_path]))
    assert grouping.keys == ["bf16"]
    assert sorted(group.seeds for group in grouping.groups) == [[0], [0, 1]]


def test_other_evaluation_episodes_are_another_group(tmp_path: Path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", overrides={"eval.seed": 7})
    assert group_runs(find_runs([tmp_path])).keys == ["eval.seed"]


# --- scores ---------------------------------------------------------------------------------------------------


def test_score_is_the_last_three_evaluations_on_ogbench_and_the_final_one_elsewhere(tmp_path: Path):
    scores = [0.0, 0.1, 0.2, 0.6]
    path = make_run(tmp_path / "o", scores, updates=4000)
    (group,) = group_runs(find_runs([path])).groups
    assert group.values == pytest.approx([30.0])
    assert (group.episodes, group.scores[0].evaluations) == (30, 3)
    (group,) = group_runs(find_runs([path]), score="final").groups
    assert (group.values[0], group.episodes) == (60.0, 10)
    for name, settings in {
        "d": {"overrides": {"env.suite": "d4rl"}},
        "p": {"dataset": "visual-cube-single-play"},
    }.items():
        path = make_run(tmp_path / name, scores, updates=4000, **settings)
        (group,) = group_runs(find_runs([path])).groups
        assert group.values[0] == 60.0


def test_metric_is_the_normalised_score_where_there_is_one_and_can_be_chosen(tmp_path: Path):
    metrics = {"eval/normalized_score": [1.0, 2.0, 90.0], "eval/return": [-3.0, -2.0, -1.0]}
    make_run(tmp_path / "a", metrics=metrics)
    runs = find_runs([tmp_path])
    assert group_runs(runs, score="final").groups[0].values[0] == 90.0
    assert group_runs(runs, metric="eval/return").groups[0].values[0] == -2.0
    with pytest.raises(ReportError, match=r"eval/wasserstein.*eval/return.*--metric"):
        group_runs(runs, metric="eval/wasserstein")


def test_curves_are_taken_where_every_seed_was_evaluated(tmp_path: Path):
    make_run(tmp_path / "a", [0.1, 0.2, 0.3], seed=0)
    b = make_run(tmp_path / "b", [0.5, 0.6, 0.7], seed=1)
    lines = (b / "eval.jsonl").read_text().splitlines(keepends=True)
    (b / "eval.jsonl").write_text("".join(lines[1:]))
    (group,) = group_runs(find_runs([tmp_path])).groups
    updates, values = curve(group)
    assert updates.tolist() == [2000, 3000]
    np.testing.assert_allclose(values, [[20.0, 60.0], [30.0, 70.0]])
    figure = report_figures.learning_curves([group], Bootstrap())
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[2000, 40.0], [3000, 50.0]])


# --- figures --------------------------------------------------------------------------------------------------

NAMES = sorted(path.stem for path in (CONFIG_DIR / "variant").glob("*.yaml") if path.stem != "custom")
WITHOUT_VARIANT = sorted(
    path.stem for path in (CONFIG_DIR / "algo").glob("*.yaml") if "override /variant: null" in path.read_text()
)


def test_every_method_is_told_by_its_own_colour_and_marker():
    known = [drawing.look_of(name) for name in (*NAMES, *WITHOUT_VARIANT)]
    assert len({look.color for look in known}) == len({look.marker for look in known}) == len(known)
    every = {path.stem for path in (CONFIG_DIR / "algo").glob("*.yaml")} | {*NAMES}
    assert every <= drawing.LOOKS.keys()
    assert len({*drawing.LOOKS.values()}) == len(drawing.LOOKS)
    assert drawing.look_of("meanflowql").color == drawing.look_of("residual").color, "of the same method"
    own = drawing.look_of("a variant of somebody's")
    assert own == drawing.look_of("a variant of somebody's")
    assert own not in known


def coloured(figure) -> dict[str, set[tuple[str, str]]]:
    """Colours and markers of the lines of each panel, those in grey left out."""
    return {
        axes.get_title().split("\n")[0]: {
            (line.get_color(), line.get_marker()) for line in axes.lines if not line.get_color().startswith("0.")
        }
        for axes in figure.axes
        if axes.get_visible()
    }


def test_a_method_looks_the_same_alone_among_few_among_many_and_beside_its_interval(tmp_path: Path):
    for variant in NAMES:
        for seed in (0, 1):
            make_run(tmp_path / variant / str(seed), [0.1, 0.2, 0.3 + 0.1 * seed], seed, variant)
    groups = group_runs(find_runs([tmp_path])).groups
    looks = {g.method.variant: (g.method.variant, drawing.look_of(g.method.variant)) for g in groups}
    pairs = {name: (look.color, look.marker) for name, look in looks.values()}
    many = report_figures.learning_curves(groups, Bootstrap(resamples=50))
    assert coloured(many) == {name: {pair} for name, pair in pairs.items()}
    for k, group in enumerate(groups):
        few = report_figures.learning_curves([group, groups[k - 1]], Bootstrap(resamples=50))
        assert coloured(few) == {group.task.name: {pairs[group.method.variant], pairs[groups[k - 1].method.variant]}}
    rows = per_group(group_runs(find_runs([tmp_path])), Bootstrap(resamples=50))
    for axes in report_figures.score_intervals(rows, 1, Bootstrap(resamples=50)).axes:
        marks = [(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() != "None"]
        assert marks == [pairs[row.method.variant] for row in rows]


def test_bands_overlap_in_no_panel_of_many_methods_and_titles_have_the_deviation(tmp_path: Path):
    for k, variant in enumerate(("residual", "velocity", "endpoint", "half")):
        for seed in (0, 1):
            make_run(tmp_path / variant / str(seed), [0.1, 0.2, 0.3 + 0.1 * seed + 0.01 * k], seed, variant)
    figure = report_figures.learning_curves(group_runs(find_runs([tmp_path]), score="final").groups, Bootstrap())
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [len(axes.collections) for axes in panels] == [1, 1, 1, 1]
    assert panels[0].get_title() == "residual\n35.0 ± 7.1"


def test_settings_of_one_method_are_told_by_dashes_that_the_legend_shows(tmp_path: Path):
    for variant in ("residual", "velocity"):
        for alpha in (1.0, 10.0):
            path = tmp_path / variant / str(alpha)
            make_run(path, variant=variant, overrides={"algo.alpha": alpha, "algo.tau": 0.1})
    figure = report_figures.learning_curves(group_runs(find_runs([tmp_path])).groups, Bootstrap())
    for axes in figure.axes:
        lines = [line for line in axes.lines if not line.get_color().startswith("0.")]
        assert len({str(line._dash_pattern) for line in lines}) == 2
        legend = axes.get_legend()
        assert [text.get_text().split(":")[0] for text in legend.get_texts()] == ["alpha=1", "alpha=10"]
        assert legend.handlelength >= 4.0, "several dashes long"


def test_profiles_show_the_share_of_runs_and_bands_of_a_few_methods(tmp_path: Path):
    for variant in NAMES:
        for seed in (0, 1):
            make_run(tmp_path / variant / str(seed), [0.1 + 0.2 * seed], seed, variant, updates=1000)
    rows = per_group(group_runs(find_runs([tmp_path]), score="final"), Bootstrap(resamples=50))
    many = report_figures.performance_profiles(rows, Bootstrap(resamples=50), False).axes[0]
    assert [line.get_label() for line in many.lines] == [row.method.variant for row in rows]
    assert not many.collections, "no overlapping bands"
    first = dict(zip(*many.lines[0].get_data(), strict=True))
    assert (first[10.0], first[11.0], first[30.0], first[31.0]) == (100.0, 50.0, 50.0, 0.0)
    few = report_figures.performance_profiles(rows[:2], Bootstrap(resamples=50), False).axes[0]
    assert len(few.collections) == 2
    one = report([tmp_path / NAMES[0]], tmp_path / "out", console=QUIET)
    assert not one.profiled, "a method alone is compared with nothing"
    assert not (tmp_path / "out" / "profiles.png").exists()


def test_axes_of_distances_say_to_what_and_which_way_is_better(tmp_path: Path):
    metrics = {"eval/w2": [0.5, 0.4, 0.3]}
    make_run(tmp_path / "run", metrics=metrics, overrides={"env.suite": "toy"})
    grouping = group_runs(find_runs([tmp_path]), "eval/w2")
    figures = [report_figures.learning_curves(grouping.groups, Bootstrap())]
    figures.append(report_figures.score_intervals(per_group(grouping, Bootstrap()), 1, Bootstrap()))
    said = [figures[0].axes[0].get_ylabel(), figures[1].axes[0].get_xlabel()]
    assert all("to the data" in label and "lower is better" in label for label in said)


def test_a_label_says_the_algorithm_only_where_the_variant_does_not_tell_it(tmp_path: Path):
    make_run(tmp_path / "a", variant="residual")
    make_run(tmp_path / "c", variant="none", overrides={"algo_name": "gaussian_bc"})
    assert labels(group_runs(find_runs([tmp_path])).groups) == ["gaussian_bc", "meanflowql"]
    make_run(tmp_path / "b", variant="velocity")
    assert labels(group_runs(find_runs([tmp_path])).groups) == ["gaussian_bc", "residual", "velocity"]
    make_run(tmp_path / "d", variant="velocity", overrides={"algo_name": "meanflow_bc"})
    assert sorted(labels(group_runs(find_runs([tmp_path])).groups)) == [
        "gaussian_bc",
        "meanflow_bc",
        "meanflowql residual",
        "meanflowql velocity",
    ]


# --- a whole report -------------------------------------------------------------------------------------------


@pytest.fixture
def two_tasks(tmp_path: Path) -> Path:
    """Two variants on two tasks of humanoidmaze, two seeds each; scores in percent:

    residual  task 1: 80, 100   task 2: 40, 60
    velocity  task 1: 60, 80    task 2: 60, 20
    """
    table = {
        ("residual", 1): (0.8, 1.0),
        ("residual", 2): (0.4, 0.6),
        ("velocity", 1): (0.6, 0.8),
        ("velocity", 2): (0.6, 0.2),
    }
    for (variant, task), scores in table.items():
        for seed, score in enumerate(scores):
            make_run(
                tmp_path / "runs" / f"{variant}-{task}-{seed}",
                [score] * 3,
                seed=seed,
                variant=variant,
                dataset="humanoidmaze-medium-navigate",
                task=task,
            )
    return tmp_path / "runs"


def test_a_report_over_tasks_has_the_numbers_worked_out_by_hand(two_tasks: Path, tmp_path: Path):
    made = report([two_tasks], tmp_path / "out", console=QUIET)
    residual, velocity = made.overall
    # residual: (90 + 50) / 2; sorted 40 60 80 100, the middle two; seeds' means 60 and 80
    assert (residual.mean, residual.iqm, residual.runs) == pytest.approx((70.0, 70.0, 4))
    assert residual.std == pytest.approx(np.sqrt(200.0))
    # velocity: (70 + 40) / 2; sorted 20 60 60 80; seeds' means 60 and 50
    assert (velocity.mean, velocity.iqm) == pytest.approx((55.0, 60.0))
    assert velocity.std == pytest.approx(np.sqrt(50.0))
    # Each task's mean is one of three values with probability 1/4, 1/2, 1/4, so the extremes hold 1/16 > 2.5 %.
    assert residual.mean_interval == pytest.approx((60.0, 80.0))
    (pair,) = made.improvements
    # task 1: 80 > 60, 80 = 80, 100 > 60, 100 > 80: 3.5 / 4; task 2: 40 < 60, 40 > 20, 60 = 60, 60 > 20: 2.5 / 4
    assert pair.probability == pytest.approx((3.5 / 4 + 2.5 / 4) / 2)
    assert pair.tasks == 2
    assert pair.interval[0] < pair.probability < pair.interval[1]

    lines = rows_of(tmp_path / "out" / "report.csv")
    assert [(x["task"][-6:], x["variant"], float(x["mean"])) for x in lines] == [
        ("task 1", "residual", pytest.approx(90.0)),
        ("task 1", "velocity", pytest.approx(70.0)),
        ("task 2", "residual", pytest.approx(50.0)),
        ("task 2", "velocity", pytest.approx(40.0)),
    ]
    assert float(lines[0]["std"]) == pytest.approx(np.sqrt(200.0))
    assert (lines[0]["n"], lines[0]["seeds"], lines[0]["episodes"]) == ("2", "0 1", "60")
    (line,) = rows_of(tmp_path / "out" / "improvement.csv")
    assert (line["x"], line["y"], float(line["probability"])) == ("residual", "velocity", 0.75)

    text = (tmp_path / "out" / "report.md").read_text()
    assert "| meanflowql | residual | 2 (0-1) | 90.0 ± 14.1 | 90.0 [80.0, 100.0] | 60 (2x3x10) |" in text
    assert "| residual | velocity | 2 | 0.75 [" in text
    assert (
        "collected by mfrl.collect.ogbench.runner.collect (mfrl 0.1.0), sha256 aaaaaaaaaaaa; not the official data set"
        in text
    )
    assert "mfrl train -m experiment=quickstart seed=0,1" in text
    for name in ("curves-humanoidmaze-medium-navigate-task-1.png", "intervals.png", "profiles.png"):
        assert f"({name})" in text
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    latex = (tmp_path / "out" / "report.tex").read_text()
    assert r"meanflowql & residual & 2 (0-1) & 90.0 $\pm$ 14.1 & 90.0 [80.0, 100.0] & 60 (2x3x10)" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1
    assert not list((tmp_path / "out").glob(".*"))


def test_runs_whose_score_depends_on_when_one_looks_are_told_with_both_numbers(tmp_path: Path):
    for seed, scores in enumerate([(1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (0.8, 0.9, 1.0), (0.1, 0.2, 0.6)]):
        make_run(tmp_path / "runs" / str(seed), scores, seed=seed)
    said = io.StringIO()
    report([tmp_path / "runs"], out=tmp_path / "out", console=Console(file=said, width=150))
    text = (tmp_path / "out" / "report.md").read_text()
    wanted = [
        "meanflowql residual, seed 1: success (%): 0.0 at the end, 66.7 in the mean of the last three evaluations",
        "meanflowql residual, seed 3: success (%): 60.0 at the end, 30.0 in the mean of the last three evaluations",
    ]
    for place in (text, said.getvalue()):
        assert "depends on when one looks" in place
        assert [line for line in wanted if line in place] == wanted
        assert "seed 0:" not in place
        assert "seed 2:" not in place


def test_no_deviation_over_tasks_where_their_seeds_differ(two_tasks: Path):
    for path in two_tasks.glob("residual-2-1"):
        for name in ("config.yaml", "result.json"):
            text = (path / name).read_text()
            (path / name).write_text(text.replace("seed: 1\n", "seed: 7\n").replace('"seed": 1,', '"seed": 7,'))
    residual, velocity = over_tasks(group_runs(find_runs([two_tasks])), Bootstrap())
    assert (residual.std, residual.mean) == (None, pytest.approx(70.0))
    assert velocity.std == pytest.approx(np.sqrt(50.0))


MILLION: dict[str, Any] = {"updates": 1_000_000, "every": 250_000, "scores": [0.0, 0.5, 1.0, 0.9]}


def make_published(path: Path, critics: int = 2, **more: Any) -> Path:
    """A run of a million updates on official data, as most published scores are reached."""
    settings = {"network.critic.ensemble": critics} | more.pop("overrides", {})
    return make_run(path, **{**MILLION, "source": "official", "overrides": settings, **more})


def test_published_scores_stand_beside_the_task_they_match_with_the_caution_they_need(tmp_path: Path):
    task = {"dataset": "humanoidmaze-medium-navigate", "source": "collected"}
    for number in (1, 2):
        make_published(tmp_path / "runs" / str(number), task=number, **task)
    made = report([tmp_path / "runs"], tmp_path / "out", console=QUIET)
    first, second = made.rows
    (known,) = first.published
    assert (known.score, known.spread, known.phase) == (94.0, 3.0, "offline")
    assert "not the official data" in first.remark
    assert second.published == []  # task 2 alone was not published
    assert made.overall[0].published == []  # nor the mean of tasks 1 and 2
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 94 ± 3* |" in text
    assert "arXiv 2511.13035" in text


def test_published_means_need_all_tasks_and_default_tasks_need_no_number(tmp_path: Path):
    for task in range(1, 6):
        make_published(tmp_path / "five" / str(task), dataset="cube-double-play", task=task)
    grouping = group_runs(find_runs([tmp_path / "five"]))
    (row,) = over_tasks(grouping, Bootstrap())
    assert [(p.score, p.spread) for p in row.published] == [(3.0, 2.0)]
    assert row.remark == ""
    make_published(tmp_path / "default", dataset="cube-double-play", source="unrecorded")
    made = report([tmp_path / "default"], tmp_path / "out", console=QUIET)
    assert [(p.score, p.spread) for p in made.rows[0].published] == [(2.0, 1.0)]  # task 2 is the default
    assert "not known" in made.rows[0].remark


def test_published_scores_of_d4rl_match_in_minaris_names_and_d4rls(tmp_path: Path):
    for name, metrics, expected in (
        ("D4RL/pen/cloned", {"eval/normalized_score": [70.0] * 4}, [79.0]),
        ("pen-cloned", {"eval/normalized_score": [70.0] * 4}, [79.0]),
        ("pen-cloned", {}, []),  # a success is not a normalised score
        ("antmaze-umaze", {"eval/normalized_score": [70.0] * 4}, [98.0]),
    ):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        make_published(path, dataset=name, metrics=metrics, overrides={"env.suite": "d4rl"})
        made = report([path], tmp_path / "out", console=QUIET)
        assert [p.score for p in made.rows[0].published] == expected, name


@pytest.mark.parametrize(
    ("run", "score", "beside"),
    [
        ({"critics": 10}, "final", [34.5]),  # of qam, which has rho = 0 for the humanoid
        ({"critics": 10}, None, []),  # which scores its final evaluation
        ({"critics": 2}, "final", []),
        ({"critics": 10, "scores": [0.0, 0.9], "updates": 500_000}, "final", []),
        ({"critics": 10, "overrides": {"online.steps": 500_000}}, "final", [74.2]),
        ({"critics": 10, "overrides": {"online.steps": 1_000_000}}, "final", []),
        ({"critics": 10, "overrides": {"algo.target_aggregation": "mean_minus_std", "algo.rho": 0.5}}, "final", []),
    ],
)
def test_no_published_score_stands_beside_runs_of_another_protocol(
    run: dict[str, Any], score: str | None, beside: list[float], tmp_path: Path
):
    overrides = {"algo_name": "fql"} | run.pop("overrides", {})
    make_published(tmp_path / "run", dataset="humanoidmaze-medium-navigate", task=1, overrides=overrides, **run)
    made = report([tmp_path / "run"], tmp_path / "out", console=QUIET, score=score)
    assert [p.score for p in made.rows[0].published] == beside
    apart = (tmp_path / "out" / "report.md").read_text().split("## Published scores")[1].split("##")[0]
    fql = next(p for p in of_task(made.rows[0].groups) if (p.method, p.protocol) == ("FQL", "B"))
    assert (differences(fql, made.rows[0].groups[0]) == []) is bool(beside)
    assert f"FQL {both_phases(fql)}" in apart  # it is listed, with what differs
    make_published(tmp_path / "bc", dataset="humanoidmaze-medium-navigate", overrides={"algo_name": "meanflow_bc"})
    assert report([tmp_path / "bc"], tmp_path / "out", console=QUIET).rows[0].published == []  # of another algorithm


def test_scores_of_other_rewards_or_other_data_are_of_another_task(tmp_path: Path):
    for dataset in ("scene-play", "cube-quadruple-play", "cube-triple-play"):
        make_published(tmp_path / dataset, dataset=dataset, task=1)
    made = report([tmp_path], tmp_path / "out", console=QUIET)
    found = {row.groups[0].task.dataset: {p.protocol for p in of_task(row.groups)} for row in made.rows}
    assert found == {"scene-play-v0": set(), "cube-quadruple-play-v0": set(), "cube-triple-play-v0": {"B", "qc"}}
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| B | actions at once: 5 there, 1 here; critics: 10 there, 2 here; " in text
    assert "| qc | critics: not said there, 2 here; " in text


def test_scores_on_sparse_rewards_are_of_the_tasks_of_runs_with_sparse_rewards(tmp_path: Path):
    overrides = {"algo_name": "fql", "data.sparse": True}
    make_published(tmp_path / "run", dataset="scene-play", task=1, overrides=overrides)
    made = report([tmp_path / "run"], tmp_path / "out", console=QUIET, score="final")
    assert {p.rewards for p in of_task(made.rows[0].groups)} == {"sparse"}
    assert [(p.method, p.protocol) for p in made.rows[0].published] == [("FQL", "qc")]


def test_a_published_score_of_the_online_phase_knows_where_it_began() -> None:
    known = published_scores()
    pairs = {
        (p.method, p.protocol): (b and b.score, p.score)
        for p in known
        if p.what == "D4RL/pen/cloned" and (b := before(p))
    }
    assert pairs[("MeanFlowQL", "A")] == (79.0, 151.0)
    assert pairs[("FQL", "A")] == (53.0, 149.0)
    online = [p for p in known if p.phase == "online" and p.protocol == "B"]
    assert {p.method for p in online if before(p) is None} == {"RLPD"}
    (qam_e,) = (p for p in online if p.method == "QAM-E" and p.dataset == "50 tasks of Set B")
    assert (before(qam_e).score, qam_e.score) == (45.7, 84.7)
    assert both_phases(qam_e) == f"45.7 → {qam_e}"


def test_published_scores_are_whole_sorted_and_of_tasks_that_there_are() -> None:
    known = published_scores()
    per_task = [p for p in known if len(p.tasks) == 1]
    set_b = [p for p in per_task if p.protocol == "B"]
    assert len({p.method for p in set_b}) == 17
    assert len({(p.dataset, p.tasks) for p in set_b}) == 50
    assert len(set_b) == 50 * (16 * 2 + 1)  # RLPD has no offline phase
    assert len([p for p in per_task if p.protocol == "qc"]) == 25 * 25
    assert {p.seeds for p in set_b} == {12}
    assert {p.rewards for p in known} == {"", "sparse"}
    assert len({(p.what, p.rewards, p.phase, p.method, p.source, p.updates, p.online_steps) for p in known}) == len(
        known
    )
    assert known == tuple(
        sorted(known, key=lambda p: (p.suite, p.dataset, len(p.tasks), sorted(p.tasks), p.rewards, p.phase))
    )
    named = {plain_name(id) for id in environments().values()}
    assert {plain_name(p.dataset) for p in known if p.tasks or p.suite == "d4rl"} <= named
    for p in known:
        assert p.source
        assert p.protocol
        assert p.unit in ("success %", "normalized score")
        assert (p.low is None) == (p.high is None)
        assert p.low is None or p.low <= p.score <= p.high, p
        assert p.unit != "success %" or 0.0 <= p.score <= 100.0
        assert (p.online_steps == 0) == (p.phase == "offline")


def test_command_line_prints_the_table_and_what_was_left_out(
    two_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    make_run(two_tasks / "late", [0.5], seed=9, finished=False)
    main([str(two_tasks), "--out", str(tmp_path / "o"), "--score", "final", "--resamples", "200"])
    shown = capsys.readouterr().out
    assert "90.0 ± 14.1" in shown
    assert "sha256 aaaaaaaaaaaa" in " ".join(shown.split())  # lines fold at the width of the table
    assert "over tasks" in shown
    assert f"unfinished {two_tasks / 'late'} (seed 9)" in shown
    assert "the final evaluation" in (tmp_path / "o" / "report.md").read_text()


def test_lower_is_better_turns_the_comparison_around(two_tasks: Path, tmp_path: Path):
    made = report([two_tasks], tmp_path / "out", console=QUIET, lower_is_better=True)
    assert made.improvements[0].probability == pytest.approx(0.25)


def test_methods_with_different_tasks_are_said_to_be_so(two_tasks: Path, tmp_path: Path):
    for seed in (0, 1):
        make_run(
            two_tasks / f"r3-{seed}",
            seed=seed,
            dataset="humanoidmaze-medium-navigate",
            task=3,
            overrides={"algo.alpha": 2},
        )
    made = report([two_tasks], tmp_path / "out", console=QUIET)
    assert [len(row.groups) for row in made.overall] == [3, 2]
    assert "compare only rows with the same tasks" in (tmp_path / "out" / "report.md").read_text()


def test_text_for_latex_and_ranges():
    assert escape("a_b & 5 %") == r"a\_b \& 5 \%"
    assert ranges([5, 0, 1, 2]) == "0-2, 5"


def test_reading_a_run_leaves_it_as_it_was(tmp_path: Path):
    path = make_run(tmp_path / "a")
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    runs = find_runs([tmp_path])
    config = copy.deepcopy(runs[0].config)
    group_runs(runs)
    assert runs[0].config == config
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_a_toy_study_is_scored_by_its_distance_and_less_is_better(tmp_path: Path):
    for variant, w2 in (("residual", 0.1), ("velocity", 0.3), ("none", 0.2)):
        for seed in (0, 1):
            metrics = {"eval/w2": [0.5, 0.5, w2 + 0.01 * seed], "eval/mode_coverage": [0.0, 0.5, 1.0]}
            path = make_run(
                tmp_path / f"{variant}{seed}",
                seed=seed,
                variant=variant,
                metrics=metrics,
                overrides={"env.suite": "toy"},
            )
            without_success(path)
    made = report([tmp_path], tmp_path / "out", console=QUIET)
    assert made.lower_is_better
    got = {row.method.variant: row.mean for row in made.rows}
    assert got == pytest.approx({"residual": 0.105, "velocity": 0.305, "-": 0.205})
    pair = next(p for p in made.improvements if {p.x.variant, p.y.variant} == {"residual", "velocity"})
    assert pair.probability == (1.0 if pair.x.variant == "residual" else 0.0)
    other = report([tmp_path], tmp_path / "o", console=QUIET, metric="eval/mode_coverage")
    assert not other.lower_is_better


def test_a_task_s_protocol_is_not_repeated_in_its_rows(tmp_path: Path):
    for task, every in ((1, 1000), (2, 500)):
        for alpha in (1.0, 3.0):
            settings = {"eval.every": every, "algo.alpha": alpha}
            make_run(tmp_path / f"{task}-{alpha}", dataset="cube-double-play", task=task, overrides=settings)
    made = group_runs(find_runs([tmp_path]))
    assert made.keys == ["algo.alpha"]
    make_run(tmp_path / "odd", dataset="cube-double-play", task=1, overrides={"eval.every": 100})
    assert group_runs(find_runs([tmp_path])).keys == ["algo.alpha", "eval.every"]


def test_a_report_names_folders_as_seen_from_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "late", seed=1, finished=False)
    monkeypatch.chdir(tmp_path)
    report([tmp_path / "runs"], Path("out"), console=QUIET, command="mfrl report runs")
    assert {row["folder"] for row in rows_of(Path("out/runs.csv"))} == {"runs/a", "runs/late"}
    assert str(tmp_path) not in (tmp_path / "out" / "report.md").read_text()


def test_jobs_of_a_sweep_that_failed_are_listed_with_their_reason(tmp_path: Path):
    trace = "Traceback (most recent call last):\n  ...mfrl.errors.ConfigError: algo.actor_lr=-1 must be positive\n"
    make_run(tmp_path / "good")
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "error.txt").write_text(trace)
    (make_run(tmp_path / "broken", seed=1, finished=False) / "error.txt").write_text("ValueError: in the middle\n")
    failed = {run.path.name: run for run in find_runs([tmp_path]) if run.status == "failed"}
    assert set(failed) == {"refused", "broken"}
    assert "algo.actor_lr=-1 must be positive" in failed["refused"].reason
    assert "in the middle; last evaluation at update 3,000" in failed["broken"].reason
    made = report([tmp_path], tmp_path / "out", console=QUIET)
    assert [group.seeds for row in made.rows for group in row.groups] == [[0]]
    assert "algo.actor_lr=-1" in (tmp_path / "out" / "report.md").read_text()


def without_success(path: Path) -> None:
    """A run of a suite that has no episodes to succeed in."""
    lines = [json.loads(line) for line in (path / "eval.jsonl").read_text().splitlines()]
    result = json.loads((path / "result.json").read_text())
    for scores in (*lines, result["final"]):
        del scores["eval/success"]
    (path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "result.json").write_text(json.dumps(result))
