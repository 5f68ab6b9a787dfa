"""`mfrl.load`: a policy in two lines, in the environment's own terms, and without what only training needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tiny import compose

import mfrl
from mfrl.app.evaluate import evaluate_checkpoint
from mfrl.deploy.acting import Acting
from mfrl.deploy.policy import LoadedPolicy
from mfrl.errors import CheckpointError, ConfigError, DataError
from mfrl.runs.checkpoint import load_checkpoint

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
HEAVY = ("lightning", "pytorch_lightning", "hydra", "omegaconf", "gymnasium", "ogbench", "minari", "mujoco", "h5py")


@pytest.fixture
def policy(arm_runs: dict[str, Path]) -> LoadedPolicy:
    return mfrl.load(arm_runs["meanflowql"])


def observation(rows: int | None = None) -> dict[str, np.ndarray]:
    rng, lead = np.random.default_rng(0), () if rows is None else (rows,)
    return {"goal": rng.normal(size=(*lead, 1)), "joints": rng.normal(size=(*lead, 2, 2)), "more": np.zeros(3)}


def vector(raw: dict[str, np.ndarray]) -> np.ndarray:
    """In the order in which it was trained on."""
    lead = raw["goal"].shape[:-1]
    return np.concatenate([raw["joints"].reshape(*lead, 4), raw["goal"]], -1)


def test_a_policy_acts_in_a_process_that_loads_neither_lightning_nor_hydra_nor_a_simulator() -> None:
    script = f"""
import sys
import mfrl
assert "torch" not in sys.modules and "numpy" not in sys.modules
import numpy as np
policy = mfrl.load({str(EARLIER / "meanflowql.ckpt")!r})
action, value = policy(np.zeros(policy.interface.shape), seed=0), policy.value(np.zeros(policy.interface.shape), seed=0)
assert action.shape == (2,) and np.isfinite(value), (action, value)
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_played_by_hand_in_the_environment_itself_it_earns_what_its_evaluation_says(
    arm_runs: dict[str, Path], tmp_path: Path
) -> None:
    report = evaluate_checkpoint(compose("eval", f"ckpt={arm_runs['bc']}", f"out={tmp_path}", "trust=[arm]"))
    policy, env = mfrl.load(arm_runs["bc"]), gymnasium.make("Arm-v0")
    for seed, expected in zip(report["seeds"], report["returns"], strict=True):
        seen, _ = env.reset(seed=seed)
        earned, over = 0.0, False
        while not over:
            seen, reward, _, over, _ = env.step(policy(seen))
            earned += reward
        assert earned == pytest.approx(expected, rel=1e-5)


def test_what_comes_out_is_of_the_kind_and_number_of_what_went_in(policy: LoadedPolicy) -> None:
    one, many = observation(), observation(5)
    kinds: list[tuple[Any, type, tuple[int, ...]]] = [
        (one, np.ndarray, ()),
        (many, np.ndarray, (5,)),
        (vector(many).astype(np.float32), np.ndarray, (5,)),
        (vector(many)[:1].tolist(), np.ndarray, (1,)),
        (torch.tensor(vector(one)), torch.Tensor, ()),
        ({name: torch.tensor(x) for name, x in many.items()}, torch.Tensor, (5,)),
    ]
    for given, kind, lead in kinds:
        action, value = policy(given, seed=3), policy.value(given, seed=3)
        assert isinstance(action, kind)
        assert action.shape == (*lead, 2)
        assert tuple(value.shape) == lead
        assert action.dtype in (np.float32, torch.float32)
    for given, wanted in ((many, vector(many)), (one, torch.tensor(vector(one)))):
        np.testing.assert_array_equal(policy(given, seed=3), policy(wanted, seed=3))


def test_actions_are_the_policys_in_the_environments_units(policy: LoadedPolicy) -> None:
    many = observation(50)
    acting = policy.acting(4)
    noise = acting.policy_noise(acting.drawn(3, 50))
    x = policy.policy.act(torch.tensor(vector(many)).float(), noise).double().numpy()
    expected = policy.low + (x + 1.0) / 2.0 * (policy.high - policy.low)
    actions = policy(many, seed=3, num_candidates=4)
    np.testing.assert_allclose(actions, expected, atol=1e-6)
    assert (policy.low.tolist(), policy.high.tolist()) == ([-2.0, 0.0], [3.0, 1.0])
    ends = acting.in_units(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert ends.tolist() == [[-2.0, 0.0], [3.0, 1.0]]
    near = acting.in_units(1.0 - torch.logspace(-9, 0, 2001)[:, None].expand(-1, 2))
    assert ((near >= acting.low) & (near <= acting.high)).all()
    np.testing.assert_allclose(acting.in_unit_bounds(torch.tensor(actions)), x, atol=1e-6)


def test_a_seed_gives_the_same_action_and_another_or_none_a_new_one(policy: LoadedPolicy) -> None:
    one, many = observation(), observation(5)
    assert (policy(one, seed=1) == policy(one, seed=np.int64(1))).all()
    assert (policy(one, seed=1) != policy(one, seed=2)).any()
    assert (policy(one) != policy(one)).any()
    torch.manual_seed(0)
    first = policy(one)
    torch.manual_seed(0)
    assert (policy(one) == first).all()
    rows = {name: np.repeat(x[None], 3, 0) for name, x in one.items()}
    assert len(np.unique(policy(rows, seed=1), axis=0)) == 3  # each row has noise of its own
    np.testing.assert_allclose(policy(many, seed=1)[0], policy({k: x[0] for k, x in many.items()}, seed=1), atol=1e-5)
    for wrong in (-1, 2**63, 1.5, True):
        with pytest.raises(ConfigError, match=f"seed={str(wrong).lower()}"):
            policy(one, seed=wrong)


def test_noise_from_a_seed_is_standard_normal_and_a_candidates_own(policy: LoadedPolicy) -> None:
    drawn = policy.acting(5).drawn(7, 4000)
    assert drawn.shape == (4000, 5, 2)
    flat = drawn.flatten(1)
    assert flat.mean(0).abs().max() < 0.08
    assert (flat.T.cov() - torch.eye(10)).abs().max() < 0.12
    assert torch.equal(policy.acting(2).drawn(7, 10), drawn[:10, :2])


def test_more_candidates_are_worth_more(policy: LoadedPolicy) -> None:
    many = observation(20)
    few, several = (policy.value(many, seed=1, num_candidates=n) for n in (1, 32))
    assert (several >= few).all()
    assert several.mean() > few.mean()


def test_what_cannot_be_observed_is_said_with_the_entry(policy: LoadedPolicy) -> None:
    one = observation()
    wrong = {
        "no entry 'goal'.*gaol": {"joints": one["joints"], "gaol": one["goal"]},
        r"joints, goal.*\(2, 2\), \(2,\)": one | {"goal": np.zeros(2)},
        r"joints, goal.*\(3, 2, 2\), \(1,\)": one | {"joints": np.zeros((3, 2, 2))},
        "NaN": one | {"goal": np.array([np.nan])},
        r"shape \(4,\); this policy takes one of shape \(5,\)": np.zeros(4),
        "no array of numbers": np.array(["a"]),
        "the observation is no array": [[0.0, 1.0], [2.0]],
    }
    for message, given in wrong.items():
        with pytest.raises(DataError, match=message):
            policy(given)


def test_a_policy_that_imitates_has_no_values_and_nothing_to_choose(arm_runs: dict[str, Path]) -> None:
    policy = mfrl.load(arm_runs["bc"])
    with pytest.raises(ConfigError, match="bc learns no values"):
        policy.value(observation())
    with pytest.raises(ConfigError, match="num_candidates=2 must be 1"):
        policy(observation(), num_candidates=2)


def test_a_checkpoint_says_what_the_environment_shows_and_takes(arm_runs: dict[str, Path], tmp_path: Path) -> None:
    path = arm_runs["meanflowql"] / "checkpoints" / "last.ckpt"
    record = load_checkpoint(path)["mfrl"]
    assert json.loads(json.dumps(record["action_bounds"])) == [[-2.0, 0.0], [3.0, 1.0]]
    assert record["observation_shapes"] == [[2, 2], [1]]
    one = observation()
    for number, (change, message) in enumerate(
        (
            ({"action_bounds": [[-1.0], [1.0]]}, "actions"),
            ({"action_bounds": "ab"}, "actions"),
            ({"action_bounds": None}, "earlier version.*resume"),
            ({"observation_shapes": [[2, 2]]}, "observations"),
            ({"observation_shapes": 3}, "observations"),
        )
    ):
        checkpoint = load_checkpoint(path)
        checkpoint["mfrl"] |= change
        torch.save(checkpoint, tmp_path / f"{number}.ckpt")
        with pytest.raises(CheckpointError, match=message):
            mfrl.load(tmp_path / f"{number}.ckpt")
    checkpoint = load_checkpoint(path)
    del checkpoint["mfrl"]["observation_shapes"]  # as earlier ones: entries are vectors then
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    earlier, flat = mfrl.load(tmp_path / "earlier.ckpt"), {"joints": one["joints"].ravel(), "goal": one["goal"]}
    np.testing.assert_array_equal(earlier(flat, seed=0), mfrl.load(path)(one, seed=0))


def test_images_are_taken_as_bytes(tmp_path: Path) -> None:
    from test_pixels import SHAPE, algorithm, images

    from mfrl.deploy.interface import Interface

    module = algorithm("meanflowql")
    interface = Interface(module.spec, "somewhere", (-1.0, -1.0), (1.0, 1.0))
    policy = LoadedPolicy(module.policy().folded(), interface, {"algorithm": "meanflowql", "updates": 0})
    batch = images(3, *SHAPE)
    actions = policy(batch, seed=0)
    assert actions.shape == (3, 2)
    np.testing.assert_allclose(policy(batch[0].numpy(), seed=0), actions[0], atol=1e-5)
    assert isinstance(policy.acting(), Acting)
    with pytest.raises(DataError, match="uint8"):
        policy(batch.float())
    with pytest.raises(DataError, match=r"\(2, 8, 6, 3\)"):
        policy(batch[0, 0])
