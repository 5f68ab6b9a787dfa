"""Checkpoints from before there was a learner: their policies act as they did, and no run goes on from them.

``fixtures/earlier`` holds two of them, of eight updates on ``toy/grid_conditional``, and beside each what the code that
wrote it made of it: actions, values and the scores of its evaluation.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from app.test_train import compose
from omegaconf import OmegaConf

from mfrl.app.evaluate import evaluate_checkpoint
from mfrl.app.train import train
from mfrl.errors import RefusedRun
from mfrl.runs.load import load_algorithm

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
NAMES = ["meanflowql", "fql"]


@pytest.fixture(params=NAMES)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A run folder with a checkpoint of then, and what was recorded of it."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    checkpoint = Path(shutil.copy(EARLIER / f"{request.param}.ckpt", run / "checkpoints" / "last.ckpt"))
    config = torch.load(checkpoint, weights_only=True)["mfrl"]["config"]
    OmegaConf.save(OmegaConf.create(config), run / "config.yaml")
    return run, json.loads((EARLIER / f"{request.param}.json").read_text())


def test_the_policy_of_an_earlier_checkpoint_acts_as_it_did(earlier: tuple[Path, dict[str, Any]]) -> None:
    run, recorded = earlier
    algorithm, _ = load_algorithm(run)
    policy = algorithm.policy()
    observations, noise = torch.tensor(recorded["observations"]), torch.tensor(recorded["noise"])
    assert policy.num_candidates == len(noise)
    normalised = policy.normalizer(observations)
    now = {
        "actions": policy.act(observations, noise),
        "unclipped": policy.unclipped(normalised, noise),
        "values": policy.value(observations, noise),
    }
    for name, x in now.items():
        torch.testing.assert_close(x, torch.tensor(recorded[name]), rtol=1e-5, atol=1e-6, msg=name)
    # What was trained decides about the actions: they are not those of zeros or of the noise.
    assert len(now["actions"].unique(dim=0)) == len(observations)
    assert (now["unclipped"] - noise).abs().min() > 1e-4


def test_every_weight_of_an_earlier_checkpoint_is_taken_over_and_none_made_up(
    earlier: tuple[Path, dict[str, Any]],
) -> None:
    run, _ = earlier
    algorithm, _ = load_algorithm(run)
    written = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    now = algorithm.state_dict()
    assert algorithm.k == 8
    of_alpha = {"alpha.alpha", "alpha.start"}  # FQL's had been a setting and no buffer
    assert {name.replace(".network.", ".") for name in now} - of_alpha == written.keys() - of_alpha
    assert now["alpha.start"] > 0
    for name, x in written.items():
        network, _, rest = name.partition(".")
        taken_over = now[name] if name in now else now[f"{network}.network.{rest}"]
        torch.testing.assert_close(taken_over, x, rtol=0, atol=0, equal_nan=True)


def test_an_earlier_checkpoint_is_evaluated_to_the_scores_it_had(
    earlier: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, recorded = earlier
    report = evaluate_checkpoint(compose("eval", f"ckpt={run}", f"out={tmp_path / 'out'}"))
    assert report["updates"] == 8
    assert {key: value for key, value in report.items() if key.startswith("eval/")} == pytest.approx(
        recorded["scores"], rel=1e-4, abs=1e-6
    )


def test_no_run_goes_on_from_an_earlier_checkpoint(earlier: tuple[Path, dict[str, Any]]) -> None:
    run, _ = earlier
    before = sorted(path.name for path in run.rglob("*"))
    for changes in ([f"resume={run}"], [f"resume={run}", "updates=16"]):
        with pytest.raises(RefusedRun, match="mfrl eval"):
            train(compose("train", *changes), changes)
    config = OmegaConf.load(run / "config.yaml")
    changes = ["env=toy/grid_conditional", f"algo={config.algo_name}", f"run_dir={run}", "existing=continue"]
    with pytest.raises(RefusedRun):
        train(compose("train", *changes), changes)
    assert sorted(path.name for path in run.rglob("*")) in (before, sorted([*before, ".lock"]))
