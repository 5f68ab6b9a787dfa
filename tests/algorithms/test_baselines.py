"""Behaviour cloning: losses and samplers against closed forms, who learns when, and runs that can be repeated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from app.test_train import assert_equal, compose, resume, weights
from conftest import DATASET
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import (
    ACTION_DIM,
    OBSERVATION_DIM,
    RESIDUAL,
    SPEC,
    Chunks,
    algorithm,
    batch,
    doubled,
    noise_of,
    randn,
    randomise_,
    snapshot,
    times,
    tiny_dit,
    tiny_mlp,
    trainer,
)
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.flow_bc import FlowBC
from mfrl.algorithms.flow_distilled import FlowDistilled
from mfrl.algorithms.flow_matching import euler, flow_matching_loss
from mfrl.algorithms.gaussian_bc import GaussianBC, negative_log_likelihood
from mfrl.algorithms.meanflow_bc import MeanFlowBC
from mfrl.app.evaluate import evaluate_checkpoint
from mfrl.app.parts import build_algorithm
from mfrl.app.train import train
from mfrl.callbacks.monitor import Monitor
from mfrl.data.storage import Transitions
from mfrl.errors import ConfigError, DivergedError
from mfrl.learning.learner import Learner
from mfrl.learning.training import Training
from mfrl.meanflow import Times, meanflow_loss
from mfrl.networks.gaussian import GaussianMLP
from mfrl.reformulation import Reformulation
from mfrl.runs.load import load_algorithm
from mfrl.schedules import warmup_cosine

SIZE = 6
TWO_TIMES = Reformulation(1.0, -1.0, instant_share=0.5)

tiny_gaussian = partial(GaussianMLP, hidden=[16, 12])
ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "meanflow_bc": partial(MeanFlowBC, SPEC, tiny_dit, RESIDUAL),
    "gaussian_bc": partial(GaussianBC, SPEC, tiny_gaussian),
    "flow_bc": partial(FlowBC, SPEC, tiny_dit),
    "flow_distilled": partial(FlowDistilled, SPEC, tiny_dit),
}
each_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def build(name: str, **settings: Any) -> Algorithm:
    """In float64, every parameter moved away from its start."""
    torch.manual_seed(0)
    module = ALGORITHMS[name](**{"updates": 12} | settings)
    return doubled(randomise_(module, seed=1))


# ---- Gaussian


def test_the_likelihood_is_that_of_a_normal_distribution():
    a, mean, log_std = (randn(SIZE, ACTION_DIM, seed=k) for k in range(3))
    wanted = -torch.distributions.Normal(mean, log_std.exp()).log_prob(a).sum(-1)
    torch.testing.assert_close(negative_log_likelihood(a, mean, log_std), wanted, rtol=1e-12, atol=0)


def test_gaussian_bc_finds_mean_and_deviation_of_each_state():
    torch.manual_seed(0)
    constant = {"actor_lr": 2e-2, "actor_warmup": 0.0, "actor_lr_floor": 1.0, "max_grad_norm": math.inf}
    module = GaussianBC(SPEC, partial(GaussianMLP, hidden=[32]), updates=400, **constant)
    n = 2048
    state = torch.randint(2, (n, 1)).float()
    mean = torch.where(state == 1, torch.tensor([0.5, -0.2]), torch.tensor([-0.3, 0.1]))
    std = torch.where(state == 1, torch.tensor([0.1, 0.4]), torch.tensor([0.3, 0.2]))
    b = batch(n, dtype=torch.float32)._replace(
        observations=state.expand(n, OBSERVATION_DIM), actions=mean + std * torch.randn(n, ACTION_DIM)
    )
    learner = Learner([module], n)
    for _ in range(400):
        learner.update(b)
    for value in (0.0, 1.0):
        rows = (state == value)[:, 0]
        s = torch.full((1, OBSERVATION_DIM), value)
        with torch.no_grad():
            got_mean, got_log_std = module.actor(s)
            sample = module.policy().unclipped(s, torch.randn(20_000, 1, ACTION_DIM))[:, 0]
        # The maximum of the likelihood is the sample's own mean and deviation.
        torch.testing.assert_close(got_mean[0], b.actions[rows].mean(0), rtol=0, atol=0.01)
        torch.testing.assert_close(got_log_std[0].exp(), b.actions[rows].std(0), rtol=0.05, atol=0)
        torch.testing.assert_close(sample.mean(0), mean[rows][0], rtol=0, atol=0.03)
        torch.testing.assert_close(sample.std(0), std[rows][0], rtol=0.1, atol=0)


def test_the_deviation_stays_within_its_bounds():
    network = randomise_(GaussianMLP(OBSERVATION_DIM, ACTION_DIM, [8], -2.0, 1.0), scale=30.0)
    mean, log_std = network(100.0 * randn(200, OBSERVATION_DIM).float())
    assert mean.shape == log_std.shape == (200, ACTION_DIM)
    assert log_std.min().item() == pytest.approx(-2.0)
    assert log_std.max().item() == pytest.approx(1.0)


# ---- flow matching


class GaussianFlow(nn.Module):
    """E[e - a | a_t] where a ~ N(m, s^2) and e ~ N(0, 1), a_t and e - a being jointly Gaussian."""

    m, s = 0.4, 0.3

    def forward(self, observations: Tensor, a_t: Tensor, time: Times) -> Tensor:
        t = time.t
        variance, covariance = (1 - t) ** 2 * self.s**2 + t**2, t - (1 - t) * self.s**2
        return -self.m + covariance / variance * (a_t - (1 - t) * self.m)


def test_euler_steps_along_the_exact_field_reproduce_a_gaussian():
    flow, e = GaussianFlow(), torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    s = torch.zeros(61, 1, dtype=torch.float64)
    wanted = flow.m + flow.s * e  # in one dimension the flow is the monotone map, here a linear one
    errors = [(euler(flow, s, e, steps) - wanted).abs().max().item() for steps in (10, 100, 200, 400)]
    assert errors[0] < 0.25
    assert errors[-1] < 0.005
    assert errors[2] / errors[3] == pytest.approx(2.0, rel=0.05), "Euler's method is of first order"


@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_the_exact_field_leaves_the_conditional_variance_and_no_field_less(t: float):
    flow, n = GaussianFlow(), 200_000
    a, e = flow.m + flow.s * randn(n, 1, seed=1), randn(n, 1, seed=2)
    time = Times(torch.full((1, 1), t, dtype=torch.float64))

    def loss(factor: float, shift: float) -> float:
        return flow_matching_loss(lambda *x: factor * flow(*x) + shift, torch.zeros(n, 1), a, e, time).item()

    variance, covariance = (1 - t) ** 2 * flow.s**2 + t**2, t - (1 - t) * flow.s**2
    least = 1 + flow.s**2 - covariance**2 / variance
    assert loss(1.0, 0.0) == pytest.approx(least, rel=0.02)
    # Everything else is worse, by as much as it is off.
    assert loss(1.0, 0.1) == pytest.approx(least + 0.01, rel=0.02)
    assert loss(-1.0, 0.0) > loss(0.9, 0.0) > loss(1.0, 0.0) < loss(1.1, 0.0)


@pytest.mark.parametrize("steps", [1, 10])
def test_the_field_of_a_single_action_leads_there_exactly(steps: int):
    wanted, e = torch.tensor([0.7, -0.4], dtype=torch.float64), 3.0 * randn(5, SIZE, ACTION_DIM)
    s = torch.zeros(SIZE, OBSERVATION_DIM, dtype=torch.float64)

    def flow(observations: Tensor, a_t: Tensor, time: Times) -> Tensor:
        return (a_t - wanted) / time.t

    torch.testing.assert_close(euler(flow, s, e, steps), wanted.expand_as(e), rtol=0, atol=1e-12)
    loss = flow_matching_loss(flow, s, wanted.expand(SIZE, ACTION_DIM), e[0], times(SIZE))
    assert loss.item() == pytest.approx(0, abs=1e-9)


def test_euler_visits_the_times_from_noise_to_data():
    visited = []

    def flow(observations: Tensor, a_t: Tensor, time: Times) -> Tensor:
        visited.append(time.t.item())
        return torch.ones_like(a_t)

    a = euler(flow, torch.zeros(2, 3), torch.zeros(4, 2, 2), 4)
    assert visited == [1.0, 0.75, 0.5, 0.25]
    assert torch.equal(a, -torch.ones(4, 2, 2))


# ---- MeanFlow


@pytest.mark.parametrize("actor", [tiny_dit, tiny_mlp])
@pytest.mark.parametrize(
    "variant",
    [RESIDUAL, Reformulation(0.0, 1.0), Reformulation(0.5, [-0.5, -1.0], 0.25), Reformulation(1.0, [0, -1]), TWO_TIMES],
    ids=["residual", "velocity", "with noise", "endpoint", "two times"],
)
def test_meanflow_bc_minimises_the_flow_loss_of_meanflowql(variant: Reformulation, actor: Callable[..., nn.Module]):
    settings = {"gamma_adaptive": 0.6, "c_adaptive": 1e-2, "target_clip": 0.8}
    ql = algorithm(reformulation=variant, actor=actor, **settings)
    bc = doubled(MeanFlowBC(SPEC, actor, variant, updates=10, **settings))
    bc.actor.load_state_dict(ql.actor.state_dict())
    b, n = batch(SIZE), noise_of(bc, 0, SIZE)
    loss, metrics = bc.loss(b, n, bc.trained)
    s = ql.actor.encode(b.observations)
    wanted, error = meanflow_loss(ql.actor, ql.reformulation, s, b.actions, n["flow"], n["time"], ql.settings)
    assert torch.equal(loss, wanted)
    assert metrics == {"flow_loss": wanted, "flow_error": error}
    got, expected = (torch.autograd.grad(x, list(m.actor.parameters())) for x, m in ((loss, bc), (wanted, ql)))
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
    s, noise = b.observations, randn(3, SIZE, ACTION_DIM, seed=4)
    assert torch.equal(bc.policy().candidates(s, noise), ql.policy().candidates(s, noise))


# ---- distillation


def test_the_student_is_regressed_onto_the_end_of_the_euler_steps():
    module, b = build("flow_distilled", flow_steps=4), batch(SIZE)
    n = noise_of(module, 0, SIZE)
    target = e = n["flow"]
    for t in (1.0, 0.75, 0.5, 0.25):
        target = target - module.flow(b.observations, target, Times(torch.full((SIZE, 1), t).double())) / 4
    assert (target.abs() > 1).any(), "the target is not clipped"
    mu = module.student(b.observations, e, Times(torch.ones(SIZE, 1).double()))
    loss, metrics = module.loss(b, n, ["student"])
    torch.testing.assert_close(loss, (mu - target).square().mean(), rtol=1e-12, atol=0)
    assert metrics == {"distillation_loss": loss}
    loss, metrics = module.loss(b, n, ["flow"])
    assert torch.equal(loss, flow_matching_loss(module.flow, *b[:2], e, n["time"]))
    assert metrics == {"flow_loss": loss}


@pytest.mark.parametrize(("learner", "other"), [("flow", "student"), ("student", "flow")])
def test_each_stage_trains_its_network_and_not_the_other(learner: str, other: str):
    module = build("flow_distilled")
    module.loss(batch(SIZE), noise_of(module, 0, SIZE), [learner])[0].backward()
    assert all(p.grad.abs().max() > 0 for p in getattr(module, learner).parameters())
    assert all(p.grad is None for p in getattr(module, other).parameters())


def test_flow_then_student_act():
    module = build("flow_distilled", updates=12, flow_share=0.25)
    raw, e = randn(SIZE, OBSERVATION_DIM, seed=1), randn(3, SIZE, ACTION_DIM, seed=2)
    s = module.normalizer(raw)
    flow = euler(module.flow, s, e, 10)
    student = module.student(s, e, Times(torch.ones(1, 1).double()))
    for k, wanted in ((0, flow), (3, flow), (4, student), (12, student)):
        module.k = k
        assert torch.equal(module.policy().unclipped(s, e), wanted)


# ---- what all of them share


@each_algorithm
def test_policies_normalise_and_clip_and_keep_the_shape_of_the_noise(name: str):
    module = build(name)
    policy = module.policy()
    raw, e = 3.0 * randn(SIZE, OBSERVATION_DIM, seed=1), 3.0 * randn(4, SIZE, ACTION_DIM, seed=2)
    s = (raw - torch.tensor(SPEC.observation_mean)) / torch.tensor(SPEC.observation_std)
    free = policy.unclipped(s, e)
    assert free.shape == e.shape
    assert (free.abs() > 1).any()
    torch.testing.assert_close(policy.unclipped(s, e[2]), free[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(policy.candidates(s, e), free.clamp(-1, 1), rtol=0, atol=0)
    torch.testing.assert_close(policy.act(raw, e[:1]), free[0].clamp(-1, 1), rtol=0, atol=1e-12)
    assert (policy.action_dim, policy.num_candidates) == (ACTION_DIM, 1)
    assert policy.critic is None
    with pytest.raises(ConfigError, match="num_candidates=4"):
        policy.act(raw, e)


@pytest.mark.parametrize("name", ["meanflow_bc", "flow_bc", "flow_distilled"])
def test_noise_depends_on_seed_and_update_alone_and_has_the_deviation_sigma(name: str):
    def draw(k: int, seed: int = 3) -> list[Tensor]:
        n = noise_of(ALGORITHMS[name](updates=12, seed=seed, sigma=0.5), k, 20_000)
        return [n["flow"], n["time"].t]

    assert all(torch.equal(x, y) for x, y in zip(draw(7), draw(7), strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(draw(7), draw(8), strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(draw(7), draw(7, seed=4), strict=True))
    e, t = draw(7)
    assert e.std().item() == pytest.approx(0.5, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([*e.T, t[:, 0]])) - torch.eye(3)).max() < 0.05
    acting = ALGORITHMS[name](updates=12, sigma=0.5).policy()
    assert acting.sample_noise((20_000, 2), torch.Generator().manual_seed(0)).std().item() == pytest.approx(0.5, 0.02)


def test_a_variant_with_a_second_time_draws_it():
    module = MeanFlowBC(SPEC, tiny_dit, TWO_TIMES, updates=10)
    time = noise_of(module, 0, 1000)["time"]
    assert 0.4 < (time.b == time.t).float().mean() < 0.6


@each_algorithm
def test_held_out_losses_use_the_same_noise_each_time_and_keep_no_graph(name: str):
    module = Training(ALGORITHMS[name](updates=12), SIZE)
    b = batch(SIZE, dtype=torch.float32)
    first = module.held_out(b)
    module.algorithm.k = 5
    assert first == module.held_out(b)
    assert not any(value.requires_grad for value in first.values())


def test_held_out_losses_of_both_stages_are_known_in_either():
    module = Training(fresh("flow_distilled"), SIZE)
    assert set(module.held_out(batch(SIZE, dtype=torch.float32))) == {"flow_loss", "distillation_loss"}


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("gaussian_bc", {"updates": -1}, r"updates=-1 must be .*at least 0"),
        ("gaussian_bc", {"actor_lr": 0.0}, "algo.actor_lr=0.0 must be positive"),
        ("gaussian_bc", {"actor_warmup": 1.0}, "algo.actor_warmup=1.0"),
        ("gaussian_bc", {"actor_lr_floor": -0.1}, "algo.actor_lr_floor=-0.1"),
        ("gaussian_bc", {"max_grad_norm": 0.0}, "algo.max_grad_norm=0.0"),
        ("meanflow_bc", {"time_steps": 0}, "algo.time_steps=0"),
        ("meanflow_bc", {"c_adaptive": 0.0}, "algo.c_adaptive=0.0"),
        ("meanflow_bc", {"gamma_adaptive": math.nan}, "algo.gamma_adaptive=nan"),
        ("meanflow_bc", {"target_clip": 0.0}, "algo.target_clip=0.0"),
        ("meanflow_bc", {"sigma": 0.0}, "algo.sigma=0.0"),
        ("flow_bc", {"flow_steps": 0}, "algo.flow_steps=0"),
        ("flow_bc", {"time_steps": 0}, "algo.time_steps=0"),
        ("flow_bc", {"sigma": -1.0}, "algo.sigma=-1.0"),
        ("flow_distilled", {"flow_share": 1.0}, "algo.flow_share=1.0 must be between 0 and 1"),
        ("flow_distilled", {"flow_steps": 0}, "algo.flow_steps=0"),
        ("flow_distilled", {"time_steps": 0}, "algo.time_steps=0"),
        ("flow_distilled", {"sigma": 0.0}, "algo.sigma=0.0"),
        ("flow_distilled", {"updates": 1}, "updates=1 must be enough to leave one for each of the two stages"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, setting: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        build(name, **setting)


# ---- updates in a real Trainer

ACTION = torch.tensor([0.8, -0.7])


def one_action(updates: int, chunk: int, batch_size: int = 16) -> Chunks:
    """Data with one action everywhere."""
    b = batch(200, dtype=torch.float32)
    data = Transitions(b.observations, ACTION.expand(200, 2), b.rewards, b.masks, torch.arange(199))
    return Chunks(data, updates, chunk, batch_size, discount=1.0)


class Recorder(L.Callback):
    """Parameters and the first moments of Adam before and after every chunk, and the rates before it."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.moments: list[dict[str, Tensor]] = []
        self.rates: list[dict[str, float]] = []

    def _look(self, training: Training) -> None:
        self.states.append(snapshot(training))
        adam = training.learner.state_dict()["adam"]
        self.moments.append({name: torch.cat([m.flatten() for m in a["exp_avg"].values()]) for name, a in adam.items()})

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        self._look(pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        self.rates.append(pl_module.learner.rates())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        self._look(pl_module)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The networks with a parameter that changed."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def fresh(name: str, **settings: Any) -> Algorithm:
    torch.manual_seed(0)
    return ALGORITHMS[name](**{"updates": 12, "actor_lr": 1e-2} | settings)


def fit(name: str, last: int, chunk: int, **settings: Any) -> tuple[Training, Recorder]:
    training, recorder = Training(fresh(name, **settings), 16), Recorder()
    trainer(recorder).fit(training, datamodule=one_action(last, chunk))
    assert training.updates == last
    return training, recorder


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("ERROR", logger="lightning.pytorch"):
        yield


@each_algorithm
def test_chunks_of_any_size_and_a_break_anywhere_give_the_same_parameters_bit_for_bit(name: str, tmp_path: Path):
    straight = snapshot(fit(name, 12, 1)[0])
    assert_equal(snapshot(fit(name, 12, 8)[0]), straight)
    for at in (4, 6, 9):  # of a distillation: in its first stage, between the two, in its second
        half, first = fresh(name), trainer()
        first.fit(Training(half, 16), datamodule=one_action(at, 3))
        first.save_checkpoint(tmp_path / "half.ckpt")
        assert moved(snapshot(half), straight)
        again = fresh(name)
        data, half_way = one_action(12, 5), tmp_path / "half.ckpt"
        trainer().fit(Training(again, 16), datamodule=data, ckpt_path=half_way, weights_only=True)
        assert_equal(snapshot(again), straight)


def test_the_flow_stands_still_while_the_student_learns_and_the_other_way_round():
    _, recorder = fit("flow_distilled", 12, 1, flow_share=0.25, actor_warmup=0.0)
    pairs = zip(recorder.states[:-1], recorder.states[1:], strict=True)
    assert [moved(*pair) for pair in pairs] == 3 * [{"flow"}] + 9 * [{"student"}]


def test_rates_follow_their_schedules_within_their_stages():
    settings = {"actor_warmup": 0.25, "actor_lr": 1e-2, "actor_lr_floor": 0.2, "updates": 16}
    rates = fit("flow_distilled", 16, 1, **settings)[1].rates
    one = [1e-2 * warmup_cosine(torch.tensor(k), 8, 0.25, 0.2).item() for k in range(9)]
    assert one[:3] == pytest.approx([0.0, 5e-3, 1e-2])
    assert one[8] == pytest.approx(2e-3)
    assert [r["flow"] for r in rates] == pytest.approx(one[:8] + 8 * one[8:])
    assert [r["student"] for r in rates] == pytest.approx(8 * one[:1] + one[:8])
    rates = fit("flow_bc", 16, 1, **settings)[1].rates
    whole = [1e-2 * warmup_cosine(torch.tensor(k), 16, 0.25, 0.2).item() for k in range(16)]
    assert [r["actor"] for r in rates] == pytest.approx(whole)


def test_a_diverging_run_is_given_no_advice_about_a_critic_it_lacks():
    diverging = Training(fresh("flow_bc", actor_lr=1e30, actor_warmup=0.0), 16)
    with pytest.raises(DivergedError, match=r"Try a smaller learning rate\.$"):
        trainer(Monitor(1)).fit(diverging, datamodule=one_action(12, 1))


def test_gradients_are_clipped():
    def norms(limit: float) -> list[float]:
        """Of the gradients that Adam was given, as its first moment m <- 0.9 m + 0.1 g tells."""
        moments = [m["actor"] for m in fit("flow_bc", 3, 1, max_grad_norm=limit)[1].moments]
        return [((m - 0.9 * before) / 0.1).norm().item() for before, m in pairwise(moments)]

    assert min(norms(1e9)) > 1e-2
    assert norms(1e-2) == pytest.approx(3 * [1e-2], rel=1e-3)


class Popped(L.Callback):
    """The scalars of every update by itself."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Training, *_: Any) -> None:
        self.metrics.append(pl_module.pop_metrics())


def test_in_a_window_that_holds_both_stages_each_has_the_means_of_its_own_updates():
    popped = Popped()
    trainer(popped).fit(Training(fresh("flow_distilled", flow_share=0.25), 16), datamodule=one_action(12, 1))
    flow, student = ["flow_loss", "flow_grad_norm"], ["distillation_loss", "student_grad_norm"]
    assert [sorted(metrics) for metrics in popped.metrics] == 3 * [sorted(flow)] + 9 * [sorted(student)]
    first, second = popped.metrics[:3], popped.metrics[3:]
    wanted = {name: sum(m[name] for m in first) / 3 for name in flow}
    wanted |= {name: sum(m[name] for m in second) / 9 for name in student}
    window = fit("flow_distilled", 12, 12, flow_share=0.25)[0]
    assert window.pop_metrics() == pytest.approx(wanted)
    assert window.pop_metrics() == {}


@each_algorithm
def test_training_learns_the_action_of_a_dataset_with_one(name: str):
    times = {"gaussian_bc": {}, "meanflow_bc": {"time_steps": 4}}.get(name, {"time_steps": 4, "flow_steps": 4})
    module = fresh(name, updates=500, **times)
    s, e = batch(256, dtype=torch.float32).observations, torch.randn(256, ACTION_DIM)

    def distance() -> float:
        with torch.no_grad():
            return (module.policy().unclipped(s, e) - ACTION).square().mean().sqrt().item()

    assert distance() > 0.7
    trainer().fit(Training(module, 64), datamodule=one_action(500, 50, batch_size=64))
    assert distance() < 0.2


@pytest.mark.slow
@each_algorithm
def test_the_compiled_update_is_the_eager_one(name: str):
    def updated(compiled: bool) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        module = build(name, updates=4)  # of a distillation, two in each stage
        learner = Learner([module], 16, compiled)
        values = [dict(zip(*learner.update(batch(16, seed=k)), strict=True)) for k in range(4)]
        return snapshot(module), values

    eager, fast = updated(False), updated(True)
    assert moved(snapshot(build(name, updates=4)), eager[0]) == set(build(name).trained)
    torch.testing.assert_close(fast, eager, rtol=1e-6, atol=1e-8)


# ---- in the real simulator

TINY = [
    f"env=ogbench/{DATASET}",
    "network=small",
    "network.actor.width=16",
    "batch_size=8",
    "updates=24",
    "log.every=6",
    "checkpoint.every=12",
    "checkpoint.keep_all=true",
    "eval.every=24",
    "eval.episodes=2",
    "eval.num_envs=2",
    "eval.workers=0",
    "accelerator=cpu",
]
FEW_STEPS = {name: ["algo.flow_steps=2"] for name in ("flow_bc", "flow_distilled")}


@each_algorithm
@pytest.mark.usefixtures("short_episodes")
def test_a_run_in_the_simulator_leaves_what_is_promised_and_can_be_evaluated_and_resumed(
    name: str, data_dir: Path, tmp_path: Path
):
    path = tmp_path / "run"
    changes = [*TINY, f"algo={name}", f"data_dir={data_dir}", f"run_dir={path}", *FEW_STEPS.get(name, [])]
    result = train(compose("train", *changes), changes)
    assert (result["algo"], result["variant"]) == (name, "residual" if name == "meanflow_bc" else "none")
    assert json.loads((path / "result.json").read_text()) == result
    events = EventAccumulator(str(path), size_guidance={"images": 0})
    events.Reload()
    images = set(events.Tags()["images"])
    assert {"figures/samples", "figures/paths"} <= images
    assert "figures/value" not in images, "there is no critic to value anything"

    module, _ = load_algorithm(path)
    assert type(module) is type(ALGORITHMS[name](updates=2))
    last = json.loads((path / "eval.jsonl").read_text().splitlines()[-1])
    assert evaluate_checkpoint(compose("eval", f"ckpt={path}"))["returns"] == last["returns"]
    with pytest.raises(ConfigError, match="no critic to choose by"):
        evaluate_checkpoint(compose("eval", f"ckpt={path}", "num_candidates=4"))

    whole = weights(path)
    (path / "checkpoints" / "update=12.ckpt").replace(path / "checkpoints" / "last.ckpt")
    assert resume(path)["updates"] == 24
    assert_equal(weights(path), whole)


@pytest.mark.parametrize("name", ["gaussian_bc", "flow_bc", "flow_distilled"])
def test_what_has_no_flow_to_reformulate_has_no_variant(name: str):
    cfg = compose("train", f"algo={name}")
    assert cfg.variant == {"name": "none"}
    assert OmegaConf.to_container(cfg, resolve=False)["run_dir"].startswith("${runs}/${env.name}/${algo_name}-")
    build_algorithm(cfg, SPEC)
    for further in ("variant=residual", "variant.name=mine"):
        with pytest.raises(ConfigError, match="variant="):
            build_algorithm(compose("train", f"algo={name}", further), SPEC)
