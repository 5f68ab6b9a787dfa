"""FQL: losses as its code writes them, with time the other way round, who learns from what, and runs that repeat."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from app.test_train import assert_equal, compose, resume, weights
from conftest import DATASET
from tiny import (
    ACTION_DIM,
    OBSERVATION_DIM,
    SPEC,
    Chunks,
    batch,
    doubled,
    noise_of,
    randn,
    randomise_,
    snapshot,
    times,
    tiny_critic,
    tiny_dit,
    tiny_mlp,
    trainer,
)
from torch import Tensor, nn

from algorithms.test_baselines import TINY, moved
from mfrl.algorithms.flow_matching import student_td_loss
from mfrl.algorithms.fql import FQL
from mfrl.app.evaluate import evaluate_checkpoint
from mfrl.app.parts import build_algorithm
from mfrl.app.train import train
from mfrl.data.batch import Batch, DataSpec
from mfrl.data.sampling import ChunkLoader
from mfrl.data.storage import Transitions
from mfrl.errors import ConfigError
from mfrl.learning.learner import Learner
from mfrl.learning.training import Training
from mfrl.meanflow import Times, path_derivative
from mfrl.networks.critic import QEnsemble
from mfrl.networks.dit import DiT
from mfrl.networks.encoder import ImpalaEncoder
from mfrl.networks.vector_field import VectorField
from mfrl.runs.load import load_algorithm

SIZE = 6
NETWORKS = ("flow", "actor", "critic", "target_critic")

tiny_field = partial(VectorField, hidden=[16, 12])


def build(actor: Callable[..., nn.Module] = tiny_field, **settings: Any) -> FQL:
    """In float64, every parameter moved away from its start, each network elsewhere."""
    torch.manual_seed(0)
    module = FQL(SPEC, actor, tiny_critic, **{"updates": 12} | settings).double()
    for seed, name in enumerate(NETWORKS):
        randomise_(getattr(module, name), seed)
    for actor in (module.flow, module.actor):
        network = actor.network
        network.head.weight.data *= 0.05 if isinstance(network, DiT) else 0.5  # some actions within the bounds
    return module


def noise(size: int = SIZE, seed: int = 5) -> dict[str, Any]:
    flow, policy, target = (randn(size, ACTION_DIM, seed=seed + k) for k in range(3))
    return {"flow": flow, "time": times(size, seed=seed), "policy": policy, "target": target}


def critic_loss(module: FQL, b: Batch, n: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        next_s = module.encode(b.next_observations, "actor", "target_critic")
    critics, s = (module.critic, module.target_critic), module.encode(b.observations, "critic")
    return student_td_loss(module.actor, critics, b, n["target"], s, next_s, module.settings, module.value_range)


def policy_loss(module: FQL, b: Batch, n: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    return module.policy_loss(b, n["policy"], module.encode(b.observations, "flow", "actor", "critic"))


# ---- losses


def losses_of_the_code(module: FQL, b: Batch, n: dict[str, Any], minimum: bool, normalize: bool) -> dict[str, Tensor]:
    """Flow Q-learning as its code has it: x_0 is noise, x_1 data, time runs from 0 to 1 and velocities to the data."""

    def velocity(s: Tensor, x: Tensor, time: Tensor) -> Tensor:
        return -module.flow(s, x, Times(1.0 - time))

    def policy(s: Tensor, z: Tensor) -> Tensor:
        return module.actor(s, z, Times(torch.ones(len(z), 1, dtype=z.dtype)))

    q_next = module.target_critic(b.next_observations, policy(b.next_observations, n["target"]).clip(-1, 1))
    q_next = torch.minimum(*q_next) if minimum else sum(q_next) / 2
    y = (b.rewards + module.discount * b.masks * q_next).detach()
    one, two = module.critic(b.observations, b.actions)
    critic_loss = (torch.nn.functional.mse_loss(one, y) + torch.nn.functional.mse_loss(two, y)) / 2

    time = 1.0 - n["time"].t
    x = (1 - time) * n["flow"] + time * b.actions
    flow_loss = torch.nn.functional.mse_loss(velocity(b.observations, x, time), b.actions - n["flow"])

    steps = module.settings.flow_steps
    target, step = n["policy"], 1 / steps
    for i in range(steps):
        target = target + step * velocity(b.observations, target, torch.full((SIZE, 1), i * step).double())
    assert (target.abs() > 1).any()
    assert (target.abs() < 1).any()
    acted = policy(b.observations, n["policy"])
    assert (acted.abs() > 1).any()
    assert (acted.abs() < 1).any()
    distillation_loss = torch.nn.functional.mse_loss(acted, target.clip(-1, 1))
    q = sum(module.critic(b.observations, acted.clip(-1, 1))) / 2
    q_loss = -q.mean() / (q.abs().mean().detach() if normalize else 1.0)
    return {
        "critic_loss": critic_loss,
        "flow_loss": flow_loss,
        "distillation_loss": distillation_loss,
        "q_loss": q_loss,
    }


@pytest.mark.parametrize("actor", [tiny_field, tiny_dit, tiny_mlp])
@pytest.mark.parametrize(("q_aggregation", "normalize_q"), [("mean", "none"), ("min", "value")])
def test_losses_are_those_of_its_code(q_aggregation: str, normalize_q: str, actor: Callable[..., nn.Module]):
    settings = {"q_aggregation": q_aggregation, "normalize_q": normalize_q}
    module, b, n = build(actor, alpha=30.0, discount=0.9, flow_steps=4, **settings), batch(SIZE, discount=0.9), noise()
    wanted = losses_of_the_code(module, b, n, q_aggregation == "min", normalize_q == "value")
    total, metrics = module.loss(b, n, module.trained)
    for name, value in wanted.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-10, atol=1e-12)
    parts = [wanted["critic_loss"], wanted["flow_loss"], 30.0 * wanted["distillation_loss"], wanted["q_loss"]]
    torch.testing.assert_close(total, sum(parts), rtol=1e-10, atol=0)

    # Each network's gradient is that of its own terms.
    total.backward()
    of = {"critic": parts[:1], "flow": parts[1:2], "actor": parts[2:]}
    for name, terms in of.items():
        parameters = list(getattr(module, name).parameters())
        expected = torch.autograd.grad(sum(terms), parameters, retain_graph=True)
        for p, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-12)
    assert all(p.grad is None for p in module.target_critic.parameters())


@pytest.mark.parametrize("normalize_q", ["none", "value", "gradient"])
def test_the_policy_loss_trains_the_policy_alone_and_the_flow_loss_the_flow(normalize_q: str):
    module, b, n = build(normalize_q=normalize_q), batch(SIZE), noise()
    policy_loss(module, b, n)[0].backward()
    assert all(p.grad.abs().max() > 0 for p in module.actor.parameters())
    assert all(
        p.grad is None for name in ("flow", "critic", "target_critic") for p in getattr(module, name).parameters()
    )
    module.zero_grad(set_to_none=True)
    critic_loss(module, b, n)[0].backward()
    assert all(p.grad.abs().max() > 0 for p in module.critic.parameters())
    assert all(
        p.grad is None for name in ("flow", "actor", "target_critic") for p in getattr(module, name).parameters()
    )


@pytest.mark.parametrize("normalize_q", ["value", "gradient"])
def test_alpha_can_be_made_independent_of_the_scale_of_q(normalize_q: str):
    b, n = batch(SIZE), noise()

    def pull(scale: float) -> list[Tensor]:
        module = build(normalize_q=normalize_q, alpha=0.0)
        module.critic.network.head_weight.data *= scale
        module.critic.network.head_bias.data *= scale
        return torch.autograd.grad(policy_loss(module, b, n)[0], list(module.actor.parameters()))

    for one, thousand in zip(pull(1.0), pull(1000.0), strict=True):
        torch.testing.assert_close(one, thousand, rtol=1e-8, atol=1e-12)


def test_targets_can_be_kept_within_what_rewards_add_up_to():
    module, b, n = build(clip_targets=True, discount=0.5), batch(SIZE, discount=0.5), noise()
    module.target_critic.network.head_bias.data += 100.0
    _, metrics = critic_loss(module, b, n)
    assert metrics["target"] == 0.0


def test_the_vector_field_is_a_plain_network_of_state_action_and_time():
    field = randomise_(VectorField(OBSERVATION_DIM, ACTION_DIM, [16, 12])).double()
    s, a, time = randn(SIZE, OBSERVATION_DIM), randn(3, SIZE, ACTION_DIM, seed=1), times(4, SIZE)
    layers = [field.input, *field.hidden, field.head]
    x = torch.cat([s.expand(3, -1, -1), a, time.t.expand(3, -1, -1)], -1)
    for layer in layers[:-1]:
        x = torch.nn.functional.gelu(x @ layer.weight.T + layer.bias, approximate="tanh")
    torch.testing.assert_close(field(s, a, time), x @ layers[-1].weight.T + layers[-1].bias, rtol=1e-10, atol=1e-12)
    # Its tangents too, so that MeanFlow can use it.
    v = randn(SIZE, ACTION_DIM, seed=2)
    mine, wanted = field.jvp(s, a[0], time, v), path_derivative(field.__call__, s, a[0], time, v)
    torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)
    two = randomise_(VectorField(OBSERVATION_DIM, ACTION_DIM, [16, 12], two_times=True)).double()
    time = Times(times(SIZE).rows, start=0.5 * times(SIZE, seed=1).rows)
    torch.testing.assert_close(
        two.jvp(s, a[0], time, v), path_derivative(two, s, a[0], time, v), rtol=1e-10, atol=1e-12
    )


def test_the_vector_field_starts_as_its_code_s():
    torch.manual_seed(0)
    field = VectorField(28, 5)
    layers = [field.input, *field.hidden, field.head]
    assert [tuple(layer.weight.shape) for layer in layers] == [(512, 34), *3 * [(512, 512)], (5, 512)]
    for layer in layers:
        out, into = layer.weight.shape
        bound = (6 / (out + into)) ** 0.5  # variance_scaling(1, fan_avg, uniform)
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not layer.bias.any()


# ---- noise, policy, settings


def test_noise_depends_on_seed_and_update_alone():
    def draw(k: int, seed: int = 3) -> list[Tensor]:
        n = noise_of(FQL(SPEC, tiny_field, tiny_critic, updates=12, seed=seed, sigma=0.5), k, 20_000)
        return [n["flow"], n["time"].t, n["policy"], n["target"]]

    assert all(torch.equal(x, y) for x, y in zip(draw(7), draw(7), strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(draw(7), draw(8), strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(draw(7), draw(7, seed=4), strict=True))
    flow, t, policy, target = draw(7)
    assert torch.stack([flow, policy, target]).std().item() == pytest.approx(0.5, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([*flow.T, *policy.T, *target.T, t[:, 0]])) - torch.eye(7)).max() < 0.05
    assert 0 < t.min() < 1e-3
    assert 1 - 1e-3 < t.max() <= 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_one_step_policy_acts_in_one_pass_and_the_critic_values_it():
    module = build()
    policy, raw, e = (
        module.policy(),
        3.0 * randn(SIZE, OBSERVATION_DIM, seed=1),
        3.0 * randn(4, SIZE, ACTION_DIM, seed=2),
    )
    s = (raw - torch.tensor(SPEC.observation_mean)) / torch.tensor(SPEC.observation_std)
    acted = module.actor(s, e, Times(torch.ones(1, 1).double())).clamp(-1, 1)
    assert policy.num_candidates == 1
    torch.testing.assert_close(policy.act(raw, e[:1]), acted[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(policy.value(raw, e[:1]), module.target_critic(s, acted[0]).mean(0), rtol=0, atol=1e-9)


def test_held_out_losses_use_the_same_noise_each_time_and_keep_no_graph():
    module, b = Training(FQL(SPEC, tiny_field, tiny_critic, updates=12), SIZE), batch(SIZE, dtype=torch.float32)
    first = module.held_out(b)
    module.algorithm.k = 5
    assert first == module.held_out(b)
    assert not any(value.requires_grad for value in first.values())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"updates": -1}, r"updates=-1 must be .*at least 0"),
        ({"discount": 1.0}, "algo.discount=1.0"),
        ({"tau": 0.0}, "algo.tau=0.0"),
        ({"alpha": -1.0}, "algo.alpha=-1.0"),
        ({"alpha": float("nan")}, "algo.alpha=nan"),
        ({"flow_steps": 0}, "algo.flow_steps=0"),
        ({"q_aggregation": "max"}, "algo.q_aggregation=max is not one of mean, min"),
        ({"normalize_q": "yes"}, "algo.normalize_q=yes is not one of none, value, gradient"),
        ({"sigma": 0.0}, "algo.sigma=0.0"),
        ({"actor_lr": 0.0}, "algo.actor_lr=0.0"),
        ({"critic_lr": 0.0}, "algo.critic_lr=0.0"),
        ({"variant": {"name": "residual"}}, "FQL has nothing to reformulate"),
        ({"encoder": ImpalaEncoder}, "observations are states"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        FQL(SPEC, tiny_field, tiny_critic, **{"updates": 12} | setting)


def test_there_is_no_variant_of_fql():
    cfg = compose("train", "algo=fql")
    assert cfg.variant == {"name": "none"}
    assert cfg.network == compose("train", "network=fql").network, "the published sizes, unless told otherwise"
    assert compose("train", "algo=fql", "network=small").network == compose("train", "network=small").network
    build_algorithm(cfg, SPEC)
    with pytest.raises(ConfigError, match="variant="):
        build_algorithm(compose("train", "algo=fql", "variant=residual"), SPEC)


# ---- images

IMAGES = DataSpec(0, ACTION_DIM, (), (), -1.0, 0.0, image_shape=(3, 8, 8, 3))
tiny_encoder = partial(ImpalaEncoder, stacks=[3], width=7)


def image_batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    s, next_s = (torch.randint(256, (SIZE, 3, 8, 8, 3), generator=g, dtype=torch.uint8) for _ in range(2))
    return batch(SIZE)._replace(observations=s, next_observations=next_s)


def test_behind_encoders_of_their_own_losses_are_the_same_and_every_image_is_encoded_once():
    torch.manual_seed(0)
    module = FQL(IMAGES, tiny_field, tiny_critic, updates=12, encoder=tiny_encoder, flow_steps=4).double()
    for seed, name in enumerate(NETWORKS):
        randomise_(getattr(module, name), seed)
    calls = []
    for name in NETWORKS:
        getattr(module, name).encoder.register_forward_hook(lambda *_, name=name: calls.append(name))
    b, n = image_batch(), noise()
    total, metrics = module.loss(b, n, module.trained)
    assert sorted(calls) == ["actor", "actor", "critic", "flow", "target_critic"]

    def features(name: str, images: Tensor) -> Tensor:
        return getattr(module, name).encoder(images)

    flow, actor, critic = (features(name, b.observations) for name in ("flow", "actor", "critic"))
    one = Times(torch.ones(1, 1).double())
    target = n["policy"]
    for t in (1.0, 0.75, 0.5, 0.25):
        target = target - module.flow(flow, target, Times(torch.full((1, 1), t).double())) / 4
    mu = module.actor(actor, n["policy"], one)
    torch.testing.assert_close(metrics["distillation_loss"], (mu - target.clip(-1, 1)).square().mean())
    torch.testing.assert_close(metrics["q_loss"], -module.critic(critic, mu.clip(-1, 1)).mean())
    next_a = module.actor(features("actor", b.next_observations), n["target"], one).clip(-1, 1)
    next_q = module.target_critic(features("target_critic", b.next_observations), next_a).mean(0)
    error = module.critic(critic, b.actions) - b.rewards - 0.99 * b.masks * next_q
    torch.testing.assert_close(metrics["critic_loss"], error.square().mean())

    # The policy's losses train its own encoder, and not the critic's or the flow's.
    policy_loss(module, b, n)[0].backward()
    assert all(p.grad.abs().max() > 0 for p in module.actor.encoder.parameters())
    assert all(p.grad is None for name in ("flow", "critic") for p in getattr(module, name).parameters())
    module.zero_grad(set_to_none=True)
    total.backward()
    assert all(p.grad is not None for name in NETWORKS[:3] for p in getattr(module, name).parameters())
    assert module.policy().act(b.observations, n["policy"][None]).shape == (SIZE, ACTION_DIM)


# ---- updates in a real Trainer


def rewarded_near_half(updates: int, chunk: int, batch_size: int = 16) -> Chunks:
    """Random actions, with a reward that grows to 0 as the action's first number comes near 0.5."""
    b = batch(500, dtype=torch.float32)
    rewards = -(b.actions[:, 0] - 0.5).square()
    data = Transitions(b.observations, b.actions, rewards, torch.zeros(500), torch.arange(499))
    return Chunks(data, updates, chunk, batch_size)


def fresh(**settings: Any) -> FQL:
    torch.manual_seed(0)
    return FQL(SPEC, tiny_field, tiny_critic, **{"updates": 12, "flow_steps": 3} | settings)


def train_on(data: Chunks, module: FQL, **further: Any) -> tuple[L.Trainer, Training]:
    """In a real Trainer, to the end of the data."""
    runner, training = trainer(), Training(module, data.batch_size)
    runner.fit(training, datamodule=data, **further)
    assert training.updates == data.updates
    return runner, training


def test_the_average_of_the_policy_acts_and_is_not_trained():
    module = fresh(actor_average=0.5)
    train_on(rewarded_near_half(4, 2), module)
    assert module.policy().student is module.averaged_actor
    assert not any(p.requires_grad for p in module.averaged_actor.parameters())
    pairs = zip(module.averaged_actor.parameters(), module.actor.parameters(), strict=True)
    assert all(not torch.equal(average, last) and (average - last).abs().max() < 0.1 for average, last in pairs)
    plain = fresh()
    assert plain.policy().student is plain.actor


def test_one_update_is_the_target_s_average_and_one_step_of_one_adam_without_clipping():
    b = batch(17, dtype=torch.float32)
    rewarded = Transitions(b.observations, b.actions, 100.0 * b.rewards, b.masks, torch.arange(16))
    module, twin = fresh(tau=0.25, actor_lr=1e-2, critic_lr=1e-2), fresh(tau=0.25)
    _, training = train_on(Chunks(rewarded, updates=3, chunk=1), module)
    optimizer = torch.optim.Adam([p for name in NETWORKS[:3] for p in getattr(twin, name).parameters()], lr=1e-2)
    batches = [b for chunk in ChunkLoader(rewarded, 16, 0, 0, 3, 1, (), 0.99) for b in chunk]
    assert len(batches) == 3
    for k, b in enumerate(batches):
        optimizer.zero_grad()
        twin.loss(b, noise_of(twin, k, len(b.actions)), twin.trained)[0].backward()
        with torch.no_grad():  # as FQL's code: of the critic before the step
            for t, p in zip(twin.target_critic.parameters(), twin.critic.parameters(), strict=True):
                t.copy_(0.25 * p + 0.75 * t)
        optimizer.step()
    for name in NETWORKS:
        torch.testing.assert_close(snapshot(getattr(module, name)), snapshot(getattr(twin, name)), rtol=1e-4, atol=1e-6)
    metrics = training.pop_metrics()
    assert metrics["critic_grad_norm"] > 1.0, "or else the test says nothing about clipping"
    assert {"flow_grad_norm", "actor_grad_norm", "flow_loss", "distillation_loss", "policy_q"} <= metrics.keys()
    assert metrics["alpha"] == 10.0


def test_chunks_of_any_size_and_a_break_anywhere_give_the_same_parameters_bit_for_bit(tmp_path: Path):
    straight = fresh()
    train_on(rewarded_near_half(12, 1), straight)
    whole = fresh()
    train_on(rewarded_near_half(12, 8), whole)
    assert_equal(snapshot(whole), snapshot(straight))
    half = fresh()
    train_on(rewarded_near_half(5, 3), half)[0].save_checkpoint(tmp_path / "half.ckpt")
    assert moved(snapshot(half), snapshot(straight)) == set(NETWORKS)
    again = fresh()
    train_on(rewarded_near_half(12, 5), again, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert_equal(snapshot(again), snapshot(straight))


@pytest.mark.parametrize(
    ("alpha", "mean", "least", "most"),
    [(0.1, 0.5, 0.0, 0.25), pytest.param(100.0, 0.0, 0.3, 0.5, marks=pytest.mark.slow)],
)
def test_a_small_alpha_finds_the_best_action_and_a_large_one_stays_with_the_data(
    alpha: float, mean: float, least: float, most: float
):
    torch.manual_seed(0)
    settings = {"updates": 800, "alpha": alpha, "flow_steps": 5, "actor_lr": 3e-3, "critic_lr": 3e-3}
    module = FQL(SPEC, partial(VectorField, hidden=[32, 32]), partial(QEnsemble, hidden=[32, 32]), **settings)
    s, e = batch(256, dtype=torch.float32).observations, torch.randn(1, 256, ACTION_DIM)
    train_on(rewarded_near_half(800, 100, batch_size=64), module)
    with torch.no_grad():
        first, second = module.policy().candidates(s, e)[0].unbind(-1)
    # In the data both are uniform in [-0.9, 0.9], of mean 0 and deviation 0.52; only the first is rewarded.
    assert first.mean().item() == pytest.approx(mean, abs=0.15)
    assert least <= first.std() < most
    assert second.std() > 0.25


@pytest.mark.slow
def test_the_compiled_update_is_the_eager_one():
    def updated(compiled: bool) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        module = doubled(build(actor_average=0.5))
        learner = Learner([module], 16, compiled)
        values = [dict(zip(*learner.update(batch(16, seed=k)), strict=True)) for k in range(4)]
        return snapshot(module), values

    eager, fast = updated(False), updated(True)
    assert moved(snapshot(build(actor_average=0.5)), eager[0]) == {*NETWORKS, "averaged_actor"}
    torch.testing.assert_close(fast, eager, rtol=1e-6, atol=1e-8)


# ---- in the real simulator


@pytest.mark.usefixtures("short_episodes")
def test_a_run_in_the_simulator_leaves_what_is_promised_and_can_be_evaluated_and_resumed(
    data_dir: Path, tmp_path: Path
):
    path = tmp_path / "run"
    assert f"env=ogbench/{DATASET}" in TINY
    changes = [*TINY, "algo=fql", "algo.alpha=30", "algo.flow_steps=2", f"data_dir={data_dir}", f"run_dir={path}"]
    result = train(compose("train", *changes), changes)
    assert (result["algo"], result["variant"], result["alpha"]) == ("fql", "none", 30)
    assert json.loads((path / "result.json").read_text()) == result
    assert type(load_algorithm(path)[0]) is FQL
    last = json.loads((path / "eval.jsonl").read_text().splitlines()[-1])
    assert evaluate_checkpoint(compose("eval", f"ckpt={path}"))["returns"] == last["returns"]

    whole = weights(path)
    (path / "checkpoints" / "update=12.ckpt").replace(path / "checkpoints" / "last.ckpt")
    assert resume(path)["updates"] == 24
    assert_equal(weights(path), whole)
