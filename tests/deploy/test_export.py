"""Exported policies: every algorithm acts in onnxruntime as in PyTorch, and what does not is not published."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import test_pixels
import torch
from learning.test_learner import ALGORITHMS, make
from omegaconf import DictConfig
from test_pixels import ALGORITHMS as OF_PIXELS
from tiny import SPEC, compose, mfrl, randomise_
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.policy import MeanPolicy, Policy
from mfrl.app.evaluate import evaluate_checkpoint
from mfrl.app.export import export_checkpoint
from mfrl.deploy.acting import FromNoise
from mfrl.deploy.export import ExportError, export
from mfrl.deploy.formats import FORMATS
from mfrl.deploy.interface import Interface
from mfrl.deploy.parity import Played, largest_difference, random_observations
from mfrl.deploy.policy import LoadedPolicy
from mfrl.errors import ConfigError

LOW, HIGH = (-2.0, 0.5), (3.0, 0.7)


def loaded(module: Algorithm, policy: Policy | None = None) -> LoadedPolicy:
    """As `mfrl.load` makes it of a checkpoint, for an environment with uneven bounds."""
    interface = Interface(module.spec, "Somewhere-v0", LOW, HIGH)
    origin = {"ckpt": "last.ckpt", "algorithm": "any", "updates": 8, "provenance": {"dataset": "some"}}
    return LoadedPolicy(policy or module.policy().folded(), interface, origin)


def trained(name: str) -> Algorithm:
    return randomise_(make(name), seed=1, scale=0.1).eval().requires_grad_(False)


def in_onnxruntime(path: Path, **inputs: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (action,) = session.run(["action"], {name: x.numpy() for name, x in inputs.items()})
    return action


def assert_acts_as(module: Algorithm, path: Path, rows: int = 7) -> None:
    """The exported file gives the actions of the policy as it was trained: unfolded, in float32, scaled by hand."""
    policy = module.policy()
    observations = random_observations(module.spec, rows, seed=5)
    noise = torch.randn(rows, policy.num_candidates, 2, generator=torch.Generator().manual_seed(6))
    x = policy.act(observations, policy.sigma * noise.transpose(0, 1)).double().numpy()
    expected = np.array(LOW) + (x + 1.0) / 2.0 * (np.array(HIGH) - np.array(LOW))
    inputs = {"observation": observations} | ({} if policy.deterministic else {"noise": noise})
    np.testing.assert_allclose(in_onnxruntime(path, **inputs), expected, atol=1e-4)
    assert np.ptp(x, axis=0).max() > 1e-3, "the observation and the noise decide"


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("meanflowql", "iql", "ifql", "sac") else pytest.param(name, marks=pytest.mark.slow)
        for name in ALGORITHMS
    ],
)
def test_every_algorithm_acts_in_onnxruntime_as_in_pytorch(name: str, tmp_path: Path) -> None:
    module = trained(name)
    said = export(loaded(module), tmp_path / "policy.onnx")
    assert said["compared"]["largest_difference"] <= 1e-5
    assert_acts_as(module, tmp_path / "policy.onnx")


@pytest.mark.parametrize(
    "name", [name if name == "bc" else pytest.param(name, marks=pytest.mark.slow) for name in OF_PIXELS]
)
def test_every_algorithm_acts_on_images_in_onnxruntime_as_in_pytorch(name: str, tmp_path: Path) -> None:
    module = test_pixels.algorithm(name).eval().requires_grad_(False)
    said = export(loaded(module), tmp_path / "policy.onnx")
    assert said["inputs"]["observation"]["type"] == "uint8"
    assert said["inputs"]["observation"]["shape"] == ["batch", *test_pixels.SHAPE]
    assert_acts_as(module, tmp_path / "policy.onnx")


@pytest.mark.parametrize("format", ["onnx", "torch", pytest.param("aoti", marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", ["input", pytest.param("seed", marks=pytest.mark.slow)])
def test_every_format_gives_the_actions_of_the_loaded_policy(format: str, noise: str, tmp_path: Path) -> None:
    policy = loaded(trained("meanflowql"))
    path = tmp_path / f"policy{FORMATS[format].suffix}"
    said = export(policy, path, format, noise, num_candidates=3)
    assert said["num_candidates"] == 3
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f"{path.name}.json"}
    run, observations = FORMATS[format].open(path), random_observations(SPEC, 5, seed=5)
    drawn = {"noise": policy.acting(3).drawn(9, 5)} if noise == "input" else {"seed": torch.tensor(9)}
    actions = run({"observation": observations} | drawn)
    np.testing.assert_allclose(actions, policy(observations, seed=9, num_candidates=3), atol=5e-5)


def test_noise_is_drawn_inside_from_a_seed(tmp_path: Path) -> None:
    policy = loaded(trained("gaussian_bc"))
    export(policy, tmp_path / "policy.onnx", noise="seed", opset=20)
    observations = random_observations(SPEC, 5, seed=5)
    actions = {
        seed: in_onnxruntime(tmp_path / "policy.onnx", observation=observations, seed=torch.tensor(seed))
        for seed in (0, 1, 2**62 + 1)
    }
    for seed, action in actions.items():
        np.testing.assert_allclose(action, policy(observations, seed=seed), atol=5e-5)
    assert (actions[0] != actions[1]).any()
    assert (actions[1] != actions[2**62 + 1]).any(), "all 63 bits of a seed count"
    (opset,) = onnx.load(tmp_path / "policy.onnx").opset_import
    assert opset.version == 20


def test_the_file_and_the_one_beside_it_say_what_goes_in_and_comes_out(tmp_path: Path) -> None:
    export(loaded(trained("meanflowql")), tmp_path / "policy.onnx")
    said = json.loads((tmp_path / "policy.onnx.json").read_text())
    model = onnx.load(tmp_path / "policy.onnx")
    onnx.checker.check_model(model, full_check=True)
    inside = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert inside == {name: value for name, value in said.items() if name != "compared"}
    assert said["compared"]["batches"] == [1, 3, 50]
    assert said["opset"] == model.opset_import[0].version == 18
    assert said["provenance"] == {"dataset": "some"}
    assert said["versions"]["onnxruntime"] == onnxruntime.__version__
    assert [said["outputs"]["action"][end] for end in ("low", "high")] == [list(LOW), list(HIGH)]

    def shapes(values: Any) -> dict[str, list[Any]]:
        return {x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in values}

    assert shapes(model.graph.input) == {name: part["shape"] for name, part in said["inputs"].items()}
    assert shapes(model.graph.output) == {"action": ["batch", 2]}
    assert list(said["inputs"]) == ["observation", "noise"]
    assert not any(node.metadata_props for node in model.graph.node)  # no lines of this machine's sources


class Traced(MeanPolicy):
    """Acts otherwise where it is traced, as a branch on the compiler may by mistake."""

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        wrong = 1e-3 if torch.compiler.is_compiling() else 0.0
        return 0.5 * super().unclipped(observations, noise) + wrong


def test_what_acts_otherwise_is_refused_and_nothing_is_published(tmp_path: Path) -> None:
    module = trained("bc")
    policy = Traced(module.actor, module.normalizer, 2)
    (tmp_path / "policy.onnx").write_text("an earlier one")
    with pytest.raises(ExportError, match=r"differ by up to 0\.001 .*policy\.onnx is not written"):
        export(loaded(module, policy), tmp_path / "policy.onnx")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["an earlier one"]


class Unlike(MeanPolicy):
    """Asks for what no graph can hold."""

    def unclipped(self, observations: Tensor, noise: Tensor) -> Tensor:
        return super().unclipped(observations, noise) * float(observations.sum() > 0)


def test_what_cannot_be_exported_ends_in_a_sentence(tmp_path: Path) -> None:
    module = trained("bc")
    with pytest.raises(ExportError, match=r"last\.ckpt cannot be exported as format=torch: "):
        export(loaded(module, Unlike(module.actor, module.normalizer, 2)), tmp_path / "policy.pt2", "torch")
    assert not list(tmp_path.iterdir())


class Indifferent(nn.Module):
    """A critic to which two actions are worth the same, or, with a ``preference``, the second one of them less."""

    def __init__(self, preference: float) -> None:
        super().__init__()
        self.preference = preference

    def encode(self, observations: Tensor) -> Tensor:
        return observations

    def forward(self, features: Tensor, actions: Tensor) -> Tensor:
        less = self.preference * torch.arange(len(actions))[None, :, None]
        return -70.0 - less.expand(2, -1, actions.shape[1])


@pytest.mark.parametrize(("preference", "accepted"), [(0.0, True), (1e-4, True), (0.01, False)])
def test_of_candidates_that_are_equally_good_either_is_right_and_no_other(preference: float, accepted: bool) -> None:
    policy = loaded(trained("meanflowql"))
    policy.policy.critic = Indifferent(preference)
    graph = FromNoise(policy.acting(2))

    def takes(candidate: int) -> Callable[[dict[str, Tensor]], Tensor]:
        def run(inputs: dict[str, Tensor]) -> Tensor:
            noise = graph.acting.policy_noise(inputs["noise"])[candidate : candidate + 1]
            return graph.acting.in_units(policy.policy.act(inputs["observation"], noise))

        return run

    assert largest_difference(graph, takes(0)) < 1e-6
    assert (largest_difference(graph, takes(1)) < 1e-6) == accepted
    assert largest_difference(graph, lambda inputs: takes(0)(inputs) * torch.nan) == float("inf")
    assert largest_difference(graph, lambda inputs: takes(0)(inputs)[:1, :1]) == float("inf")


@pytest.mark.parametrize(
    ("exported", "pytorch", "agrees"),
    [
        ([1, 1, 0, 1] * 5, [1, 1, 0, 1] * 5, True),
        ([1, 1, 0, 0] + [1, 1, 0, 1] * 4, [1, 1, 0, 1] * 5, True),  # one episode that rounding decided
        ([0] * 20, [1, 1, 0, 1] * 5, False),
        ([-100.0, -90.0, -80.01], [-100.0, -90.0, -80.0], True),
        ([-110.0, -99.0, -88.0], [-100.0, -90.0, -80.0], False),
    ],
)
def test_episodes_agree_where_chance_explains_the_difference(exported: list, pytorch: list, agrees: bool) -> None:
    played = Played("success", *(np.array(scores, np.float64) for scores in (exported, pytorch)))
    assert played.agrees == agrees


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "onx"}, r"format=onx.*did you mean onnx.*torch, aoti"),
        ({"noise": "inside"}, r"noise=inside.*input, seed"),
        ({"num_candidates": 0}, "num_candidates=0 must be a whole number"),
        ({"num_candidates": 4}, "num_candidates=4 must be 1"),
        ({"opset": 17}, "opset=17 must be"),
        ({"path": Path("policy.pt2")}, r"out=policy\.pt2 must be a file whose name ends in \.onnx"),
    ],
)
def test_what_cannot_be_asked_for_is_said(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export(loaded(trained("bc")), **{"path": tmp_path / "policy.onnx"} | settings)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="needs onnxscript and onnxruntime: pip install onnxscript onnxruntime"):
        export(loaded(trained("bc")), Path("policy.onnx"))


# ---- the command


def settings(run: Path, *overrides: str) -> DictConfig:
    return compose("export", f"ckpt={run}", "trust=[arm]", "workers=0", *overrides)


def test_the_command_plays_the_runs_own_episodes_and_says_where_the_file_is(
    arm_runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = arm_runs["meanflowql"]
    said = export_checkpoint(settings(run, f"out={tmp_path}/arm.onnx", "verify_env=true", "num_candidates=3"))
    evaluated = evaluate_checkpoint(
        compose("eval", f"ckpt={run}", f"out={tmp_path}/eval", "trust=[arm]", "num_candidates=3")
    )
    assert said["played"]["episodes"] == 4
    assert said["played"]["pytorch"] == pytest.approx(evaluated["eval/success"])
    assert said["played"]["exported"] == pytest.approx(evaluated["eval/success"], abs=0.3)
    assert [file.name for file in (tmp_path / "eval").iterdir()] == [
        "evaluation-last-num_candidates=3-seed=1000-episodes=4.json"
    ]
    assert said["inputs"]["observation"]["entries"] == [
        {"name": "joints", "shape": [2, 2]},
        {"name": "goal", "shape": [1]},
    ]
    assert said["outputs"]["action"]["high"] == [3.0, 1.0]
    assert said["provenance"]["dataset"] == "my/arm-v0"
    assert said["algorithm"] == "meanflowql"
    told = capfd.readouterr().err
    for part in ("largest difference", "success, onnx", "success, PyTorch", f"{tmp_path}/arm.onnx"):
        assert part in told


def test_a_policy_that_plays_otherwise_is_not_published(arm_runs: dict[str, Path], tmp_path: Path) -> None:
    from mfrl.deploy.policy import load

    worse = Played("success", np.zeros(20), np.ones(20))
    with pytest.raises(ExportError, match=r"success 0 over 20 episodes, and 1 in PyTorch.*not written"):
        export(load(arm_runs["bc"]), tmp_path / "arm.onnx", play=lambda graph, run: worse)
    assert not list(tmp_path.iterdir())


def test_a_run_that_plays_no_episodes_has_none_to_verify(tmp_path: Path) -> None:
    earlier = Path(__file__).parents[1] / "fixtures" / "earlier" / "fql.ckpt"
    done = mfrl("export", f"ckpt={earlier}", f"out={tmp_path}/policy.onnx", "--verify-env")
    assert done.returncode == 1
    assert "judged by its samples, and plays no episodes" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())
