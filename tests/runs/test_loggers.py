"""What TensorBoard is given: names, columns, charts and the score. How its tabs show them: tests/app/test_sweep.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny import compose

from mfrl import algorithms
from mfrl.report.groups import score_of
from mfrl.runs.loggers import compared_settings, layout, tag
from mfrl.runs.read import FINISHED, Run
from mfrl.runs.scores import protocol_evaluations, score_curve

ALGORITHMS = Path(algorithms.__file__).parent
LOSS = re.compile(r'"((?!q_)\w+_loss)"')  # q_loss is -Q, which is shown
COLUMNS = [
    "actor_lr",
    "actor_grad_norm",
    "flow_error",
    "policy_q",
    "q_max",
    "q_min",
    "target",
    "critic_lr",
    "student_lr",
]


def test_stable_names_keep_theirs_and_the_others_are_grouped_by_whose_they_are() -> None:
    stable = ["eval/success", "eval/return", "train/critic_loss", "train/flow_loss", "train/q", "train/alpha"]
    for name in [*stable, "perf/updates_per_second", "val/flow_loss"]:
        assert tag(name) == name
    tags = [tag(f"train/{name}") for name in COLUMNS]
    assert tags[:3] == ["actor/lr", "actor/grad_norm", "actor/flow_error"]
    assert tags[3:] == [
        "critic/policy_q",
        "critic/q_max",
        "critic/q_min",
        "critic/target",
        "critic/lr",
        "actor/student_lr",
    ]
    assert len(set(tags)) == len(tags)


def test_no_chart_is_laid_out_without_a_curve_and_none_holds_training_and_held_out_together() -> None:
    tags = ["train/flow_loss", "val/flow_loss", "critic/policy_q", "actor/q_loss", "eval/return"]
    charts = [patterns for category in layout(tags).values() for _, patterns in category.values()]
    shown = [sorted(tag for tag in tags if any(re.fullmatch(p, tag) for p in patterns)) for patterns in charts]
    assert sorted(shown) == [["critic/policy_q"], ["eval/return"], ["train/flow_loss"], ["val/flow_loss"]]
    assert layout([]) == {}


def test_what_is_learned_online_has_charts_of_its_own() -> None:
    scores = {"online/success", "online/return", "online/length"}
    found = layout(scores | {"perf/interaction_share", "online/steps", "online/episodes"})
    assert found.keys() == {"online", "speed"}
    shown = [pattern.strip("^$") for _, patterns in found["online"].values() for pattern in patterns]
    assert sorted(shown) == sorted(scores)
    assert [patterns for _, patterns in found["speed"].values()] == [["^perf/interaction_share$"]]


@pytest.mark.parametrize("name", sorted({n for p in ALGORITHMS.glob("*.py") for n in LOSS.findall(p.read_text())}))
def test_every_loss_of_every_algorithm_has_a_chart_in_training_and_held_out(name: str) -> None:
    assert len(layout([tag(f"train/{name}"), f"val/{name}"])) == 2


def columns(*overrides: str) -> dict[str, float | str]:
    return {
        setting.name.strip(): setting.value for setting in compared_settings(compose("train", *overrides), overrides)
    }


def test_runs_that_differ_by_a_default_have_the_same_columns() -> None:
    plain = columns("experiment=quickstart")
    algo = ("algo.alpha=3", "algo.tau=0.2", "algo.actor_average=null")
    online = ("online.steps=9", "online.alpha=3", "online.balanced=true", "online.workers=2")
    for override in (*algo, *online, "network.actor.width=32", "updates=9"):
        changed = columns("experiment=quickstart", override)
        assert changed.keys() == plain.keys()
        (key,) = [key for key in plain if plain[key] != changed[key]]
        assert key == override.partition("=")[0]
        assert type(plain[key]) is type(changed[key]) or {type(plain[key]), type(changed[key])} == {int, float}
    every = {f"algo.{key}" for key in compose("train", "experiment=quickstart").algo} - {"algo.seed", "algo.updates"}
    assert {
        key for key in every if key.rpartition(".")[2] in ("discount", "bound_weight", "clip_targets")
    } <= plain.keys()


def test_what_was_overridden_comes_first_after_variant_seed_environment_and_alpha() -> None:
    overrides = ["env=ogbench/cube-single-play", "env.task=2", "algo.tau=0.1", "eval.every=7", "seed=3"]
    settings = compared_settings(compose("train", *overrides), overrides)
    first = {setting.name: setting.value for setting in settings if setting.first}
    assert [name.strip() for name in sorted(first)] == ["variant", "seed", "env", "algo.alpha", "algo.tau"]
    assert [first[name] for name in sorted(first)][:3] == ["residual", 3, "cube-single-play task 2"]
    assert len({setting.name for setting in settings}) == len(settings)


@pytest.mark.parametrize(
    ("chosen", "told"), [("variant=velocity", "velocity"), ("algo=fql", "fql"), ("algo=sac", "sac")]
)
def test_the_first_column_tells_the_method_also_of_an_algorithm_without_a_variant(chosen: str, told: str) -> None:
    assert columns(chosen)["variant"] == told


@pytest.mark.parametrize(
    ("suite", "dataset", "final"),
    [
        ("ogbench", "cube-single-play-v0", 0.5),
        ("ogbench", "visual-cube-single-play-v0", 0.9),
        ("minari", "a/b-v0", 0.9),
    ],
)
def test_the_score_is_what_the_report_counts(suite: str, dataset: str, final: float) -> None:
    evaluations = [
        {"updates": k, "eval/return": -1.0, "eval/success": success, "episodes": 1}
        for k, success in ((10, 0.0), (20, 0.2), (30, 0.4), (40, 0.9))
    ]
    curve = score_curve(evaluations, protocol_evaluations(suite, dataset))
    assert list(curve) == [10, 20, 30, 40]
    assert curve[40] == pytest.approx(final)
    run = Run("run", FINISHED, config={"env.suite": suite}, result={"dataset": dataset}, evaluations=evaluations)
    assert score_of(run).value == pytest.approx(100 * final)
    del evaluations[0]["eval/success"]
    assert score_curve(evaluations, 1)[40] == -1.0, "of what every evaluation has"


def test_the_curve_of_the_score_has_update_0_by_itself_as_the_score_of_a_run_has() -> None:
    evaluations = [{"updates": k, "eval/success": success} for k, success in ((0, 0.0), (5, 0.5), (10, 1.0))]
    assert score_curve(evaluations, 3) == {0: 0.0, 5: 0.5, 10: 0.75}
