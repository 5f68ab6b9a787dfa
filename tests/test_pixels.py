"""Images: the encoder, who encodes and learns what how often, crops, stacked frames, collection, and runs on them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from app.test_train import assert_equal, compose, resume, weights
from envs.test_ogbench import backend_or_skip
from pixels import replay
from tiny import ACTION_DIM, RESIDUAL, doubled, noise_of, randomise_, tiny_critic, tiny_dit
from torch import Tensor, nn

from mfrl.algorithms.base import Algorithm
from mfrl.algorithms.bc import BC
from mfrl.algorithms.driftql import DriftQL
from mfrl.algorithms.fbrac import FBRAC
from mfrl.algorithms.flow_bc import FlowBC
from mfrl.algorithms.flow_distilled import FlowDistilled
from mfrl.algorithms.fql import FQL
from mfrl.algorithms.gaussian_bc import GaussianBC
from mfrl.algorithms.ifql import IFQL
from mfrl.algorithms.iql import IQL
from mfrl.algorithms.meanflow_bc import MeanFlowBC
from mfrl.algorithms.meanflow_distill import MeanFlowDistill
from mfrl.algorithms.meanflowql import MeanFlowQL
from mfrl.algorithms.rebrac import ReBRAC
from mfrl.algorithms.sac import SAC
from mfrl.app.evaluate import evaluate_checkpoint
from mfrl.app.parts import build_algorithm
from mfrl.app.train import train
from mfrl.catalogue import generation_settings
from mfrl.collect.ogbench.runner import collect
from mfrl.data.augment import RandomCrop
from mfrl.data.batch import Batch, DataSpec
from mfrl.data.ogbench import OGBenchData
from mfrl.data.sampling import ChunkLoader
from mfrl.data.storage import Transitions
from mfrl.envs.rendering import choose_backend
from mfrl.envs.vector import VectorEnv
from mfrl.errors import CollectError, ConfigError
from mfrl.learning.learner import Learner
from mfrl.learning.training import Training
from mfrl.meanflow import meanflow_loss
from mfrl.networks.critic import StateValue
from mfrl.networks.encoder import EncodedNetwork, ImpalaEncoder, max_pool
from mfrl.networks.gaussian import GaussianMLP, SquashedGaussianMLP
from mfrl.networks.mean import MeanMLP
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.runs.load import load_algorithm
from mfrl.system.paths import CONFIG_DIR

SIZE = 6
SHAPE = (2, 8, 6, 3)  # frames, height, width, channels
SPEC = DataSpec(0, ACTION_DIM, (), (), reward_min=-1.0, reward_max=0.0, image_shape=SHAPE)
STATES = DataSpec(3, ACTION_DIM, (0.0,) * 3, (1.0,) * 3, reward_min=-1.0, reward_max=0.0)

tiny_encoder = partial(ImpalaEncoder, stacks=[2, 3], width=5)
tiny_gaussian = partial(GaussianMLP, hidden=[16])
tiny_mean = partial(MeanMLP, hidden=[16])
tiny_squashed = partial(SquashedGaussianMLP, hidden=[16])
tiny_value = partial(StateValue, hidden=[16])

#: Every algorithm of conf/algo, by its name.
ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "meanflowql": partial(MeanFlowQL, actor=tiny_dit, critic=tiny_critic, reformulation=RESIDUAL),
    "fql": partial(FQL, actor=tiny_dit, critic=tiny_critic, flow_steps=2),
    "meanflow_bc": partial(MeanFlowBC, actor=tiny_dit, reformulation=RESIDUAL),
    "flow_bc": partial(FlowBC, actor=tiny_dit),
    "gaussian_bc": partial(GaussianBC, actor=tiny_gaussian),
    "flow_distilled": partial(FlowDistilled, actor=tiny_dit),
    "bc": partial(BC, actor=tiny_mean),
    "iql": partial(IQL, actor=tiny_mean, critic=tiny_critic, value=tiny_value),
    "ifql": partial(IFQL, actor=tiny_dit, critic=tiny_critic, value=tiny_value, flow_steps=2),
    "rebrac": partial(ReBRAC, actor=tiny_mean, critic=tiny_critic, alpha_critic=0.1),
    "fbrac": partial(FBRAC, actor=tiny_dit, critic=tiny_critic, flow_steps=2),
    "meanflow_distill": partial(MeanFlowDistill, actor=tiny_dit, critic=tiny_critic, reformulation=RESIDUAL),
    "driftql": partial(DriftQL, actor=tiny_dit, critic=tiny_critic, num_generated=3),
    "sac": partial(SAC, actor=tiny_squashed, critic=tiny_critic),
    "rlpd": partial(SAC, actor=tiny_squashed, critic=tiny_critic, target_aggregation="mean_minus_std"),
}


def test_no_algorithm_is_missing_here():
    assert ALGORITHMS.keys() == {path.stem for path in CONFIG_DIR.glob("algo/*.yaml")}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def batch(size: int = SIZE, seed: int = 0) -> Batch:
    """Two views of one window of frames, as the data give them."""
    g = torch.Generator().manual_seed(seed)
    window = images(size, SHAPE[0] + 1, *SHAPE[1:], seed=seed)
    actions = 1.8 * torch.rand(size, ACTION_DIM, generator=g) - 0.9
    masks = (torch.arange(size) % 3 > 0).float()
    return Batch(window[:, :-1], actions, masks * -1.0, masks, window[:, 1:], 0.99 * masks, actions.flip(0))


def double(b: Batch) -> Batch:
    """What is no image in float64."""
    return Batch(*(x.double() if x is not None and x.is_floating_point() else x for x in b))


def algorithm(name: str = "meanflowql", **settings: Any) -> Algorithm:
    """With every parameter away from its start."""
    torch.manual_seed(0)
    return randomise_(ALGORITHMS[name](SPEC, updates=12, encoder=tiny_encoder, **settings), seed=1, scale=0.2)


def encoders(module: nn.Module) -> dict[str, ImpalaEncoder]:
    """By the name of the network each belongs to."""
    return {
        name.removesuffix(".encoder"): part for name, part in module.named_modules() if isinstance(part, ImpalaEncoder)
    }


def calls(module: nn.Module, action: Callable[[], Any]) -> dict[str, int]:
    """How often each encoder was asked meanwhile."""
    counts = dict.fromkeys(encoders(module), 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    hooks = [part.register_forward_hook(count(name)) for name, part in encoders(module).items()]
    action()
    for hook in hooks:
        hook.remove()
    return counts


# ---- the encoder


def test_the_published_encoder_has_the_published_shapes_and_parameters():
    encoder = ImpalaEncoder((3, 64, 64, 3))
    assert encoder(images(2, 3, 64, 64, 3)).shape == (2, 512)
    # 3 x 3 kernels; frames and channels enter side by side, and three poolings take 64 to 8.
    convolutions = [(9, 16), (16, 16), (16, 16), (16, 32), (32, 32), (32, 32), (32, 32), (32, 32), (32, 32)]
    expected = sum(9 * i * o + o for i, o in convolutions) + (8 * 8 * 32 * 512 + 512)
    assert sum(p.numel() for p in encoder.parameters()) == expected == 1_105_920


def test_weights_are_xavier_uniform_and_biases_zero():
    torch.manual_seed(0)
    encoder = ImpalaEncoder((3, 16, 16, 3))
    for name, p in encoder.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all()
            continue
        kernel = p[0, 0].numel()  # 9, or 1 where linear
        bound = (6 / (kernel * (p.shape[0] + p.shape[1]))) ** 0.5
        assert 0.95 * bound < p.abs().max() <= bound, name
        assert p.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name


def pooled(x: np.ndarray, out: int) -> np.ndarray:
    """SAME maximum over windows of 3 in steps of 2 along the last axis, from the definition of its padding."""
    n = x.shape[-1]
    before = max((out - 1) * 2 + 3 - n, 0) // 2
    windows = [[j for j in range(2 * i - before, 2 * i - before + 3) if 0 <= j < n] for i in range(out)]
    return np.stack([x[..., window].max(-1) for window in windows], -1)


@pytest.mark.parametrize("height", range(1, 10))
@pytest.mark.parametrize("width", [1, 4, 7, 64])
def test_pooling_pads_as_jax_does(height, width):
    x = np.random.default_rng(0).normal(size=(2, 3, height, width)) - 5.0  # zeros would win
    expected = pooled(pooled(x, -(-width // 2)).swapaxes(-1, -2), -(-height // 2)).swapaxes(-1, -2)
    np.testing.assert_array_equal(max_pool(torch.from_numpy(x)).numpy(), expected)


def convolved(x: np.ndarray, convolution: nn.Conv2d) -> np.ndarray:
    """Of ``(batch, height, width, channels)``: the sum over the nine shifts of the zero-padded image."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = convolution.weight.detach().numpy()
    shifts = [(i, j) for i in range(3) for j in range(3)]
    parts = (padded[:, i : i + height, j : j + width] @ kernel[:, :, i, j].T for i, j in shifts)
    return sum(parts) + convolution.bias.detach().numpy()


def test_the_encoder_is_the_published_function_of_stacked_frames():
    encoder = randomise_(ImpalaEncoder(SHAPE, stacks=[4, 3], blocks=2, width=7).double())
    observations = images(SIZE, *SHAPE).numpy()
    x = np.concatenate([observations[:, k] for k in range(SHAPE[0])], axis=-1) / 255.0  # the oldest first
    for stack in encoder.stacks:
        x = convolved(x, stack.convolution).transpose(0, 3, 1, 2)
        x = pooled(pooled(x, -(-x.shape[-1] // 2)).swapaxes(-1, -2), -(-x.shape[-2] // 2)).transpose(0, 3, 2, 1)
        for block in stack.blocks:
            x = x + convolved(np.maximum(convolved(np.maximum(x, 0), block.first), 0), block.second)
    x = np.maximum(x, 0).reshape(SIZE, -1) @ encoder.head.weight.detach().numpy().T + encoder.head.bias.detach().numpy()
    expected = 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(encoder(torch.from_numpy(observations)).detach().numpy(), expected, rtol=0, atol=1e-12)


def test_a_network_without_an_encoder_takes_observations_as_they_are():
    states = torch.randn(4, 3)
    assert EncodedNetwork(nn.Linear(3, 2)).encode(states) is states


# ---- who encodes what how often, and who learns from it


def test_every_network_has_an_encoder_of_its_own():
    found = encoders(algorithm())
    assert set(found) == {"actor", "critic", "target_critic"}
    parameters = [id(p) for encoder in found.values() for p in encoder.parameters()]
    assert len(set(parameters)) == len(parameters)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_images_without_an_encoder_and_states_with_one_are_refused(name):
    with pytest.raises(ConfigError, match="choose encoder=impala"):
        ALGORITHMS[name](SPEC, updates=4)
    with pytest.raises(ConfigError, match="leave encoder= out"):
        ALGORITHMS[name](STATES, updates=4, encoder=tiny_encoder)


VALUES = {"actor": 2, "critic": 1, "target_critic": 1}
IMPLICIT = {"value": 2, "critic": 1, "target_critic": 1, "actor": 1}
ONCE = {
    "meanflowql": VALUES,
    "fql": {"flow": 1, **VALUES},
    "flow_distilled": {"flow": 1, "student": 0},
    "iql": IMPLICIT,
    "ifql": IMPLICIT,
    "rebrac": {"actor": 1, "critic": 1, "target_actor": 1, "target_critic": 1},
    "fbrac": VALUES,
    "meanflow_distill": {"flow": 1, **VALUES},
    "driftql": VALUES,
    "sac": VALUES,
    "rlpd": VALUES,
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_update_encodes_every_image_once_for_each_network_that_sees_it(name):
    module, b = algorithm(name), batch()
    noise = noise_of(module, 0, SIZE)
    trained = ["flow"] if name == "flow_distilled" else module.trained
    assert calls(module, lambda: module.loss(b, noise, trained)) == ONCE.get(name, {"actor": 1})
    if name == "flow_distilled":
        assert calls(module, lambda: module.loss(b, noise, ["student"])) == {"flow": 1, "student": 1}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_acting_encodes_an_image_once_however_many_candidates_there_are(name):
    module = algorithm(name)
    policy = module.policy()
    noise = policy.sample_noise((policy.num_candidates, SIZE, ACTION_DIM), torch.Generator().manual_seed(0))
    seen = calls(module, lambda: policy.act(batch().observations, noise))
    choosing = {"meanflowql": ["actor", "target_critic"], "ifql": ["actor", "critic"]}
    acting = (choosing | {"flow_distilled": ["flow"]}).get(name, ["actor"])
    assert seen == {network: int(network in acting) for network in seen}
    actions = policy.act(batch().observations, noise)
    assert actions.shape == (SIZE, ACTION_DIM)
    assert actions.abs().max() <= 1


def test_images_are_not_normalised():
    observations = batch().observations
    assert algorithm().normalizer(observations) is observations


def parts(module: MeanFlowQL, b: Batch, n: dict[str, Any]) -> dict[str, Tensor]:
    """Of the loss, each from images encoded for itself alone."""
    with torch.no_grad():
        next_s = module.encode(b.next_observations, "actor", "target_critic")
    return {
        "critic": module.critic_loss(b, n["target"], module.encode(b.observations, "critic"), next_s)[0],
        "policy": module.policy_loss(b, n["policy"], module.encode(b.observations, "actor", "critic"))[0],
        "flow": meanflow_loss(
            module.actor,
            module.reformulation,
            module.actor.encode(b.observations),
            b.actions,
            n["flow"],
            n["time"],
            module.settings,
        )[0],
    }


def test_the_loss_is_the_sum_of_parts_that_encode_for_themselves():
    module, b = algorithm(alpha=3.0), batch()
    n = noise_of(module, 0, SIZE)
    part = parts(module, b, n)
    total = part["critic"] + part["policy"] + 3.0 * part["flow"]
    torch.testing.assert_close(module.loss(b, n, module.trained)[0], total)


def learning(module: nn.Module, loss: Tensor) -> set[str]:
    """The networks whose encoders the loss has a gradient for."""
    module.zero_grad()
    loss.backward()
    moved = {
        name: any(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())
        for name, encoder in encoders(module).items()
    }
    return {name for name, moves in moved.items() if moves}


@pytest.mark.parametrize("normalize_q", ["none", "value", "gradient"])
def test_an_encoder_learns_from_the_losses_of_its_own_network_alone(normalize_q):
    module, b = algorithm(normalize_q=normalize_q), batch()
    n = noise_of(module, 0, SIZE)
    part = parts(module, b, n)
    assert learning(module, part["critic"]) == {"critic"}
    assert learning(module, part["flow"]) == {"actor"}
    assert learning(module, part["policy"]) == {"actor"}
    assert learning(module, module.loss(b, n, module.trained)[0]) == {"actor", "critic"}


def test_what_is_seen_after_a_step_keeps_no_graph():
    module, b, seen = algorithm(), batch(), {}
    whole = module.encode

    def encode(observations: Tensor, *networks: str) -> dict[str, Tensor]:
        found = whole(observations, *networks)
        seen["after" if observations is b.next_observations else "before"] = found
        return found

    module.encode = encode
    module.loss(b, noise_of(module, 0, SIZE), module.trained)
    assert all(features.requires_grad for features in seen["before"].values())
    assert set(seen["after"]) == {"actor", "target_critic"}
    assert not any(features.requires_grad for features in seen["after"].values())


@pytest.mark.parametrize("network", ["flow", "student"])
def test_flow_and_student_have_an_encoder_each_and_train_one_at_a_time(network):
    module = algorithm("flow_distilled")
    loss = module.loss(batch(), noise_of(module, 0, SIZE), [network])[0]
    assert learning(module, loss) == {network}


def transitions(rows: int = 40, seed: int = 0) -> Transitions:
    """Trajectories of 1, 2 and more rows."""
    g = torch.Generator().manual_seed(seed)
    ends = torch.tensor([0, 2, 9, 10, rows - 1])
    firsts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1] + 1])
    lengths = ends - firsts + 1
    starts = torch.tensor([row for row in range(rows) if row not in ends])
    actions = 1.8 * torch.rand(rows, ACTION_DIM, generator=g) - 0.9
    masks = (torch.rand(rows, generator=g) > 0.3).float()
    frames = SHAPE[0]
    return Transitions(
        images(rows, *SHAPE[1:], seed=seed), actions, -masks, masks, starts, firsts.repeat_interleave(lengths), frames
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_updates_train_every_encoder_and_repeat(name):
    def trained() -> Algorithm:
        torch.manual_seed(0)
        module = ALGORITHMS[name](SPEC, updates=4, encoder=tiny_encoder, seed=3)
        crop, following = RandomCrop(0.5, 3), module.next_actions
        loader = ChunkLoader(transitions(), SIZE, 3, 0, 4, 2, (), 0.99, crop, following)
        options = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **options).fit(Training(module, SIZE), loader)
        return module

    torch.manual_seed(0)
    before = ALGORITHMS[name](SPEC, updates=4, encoder=tiny_encoder, seed=3)
    module = trained()
    for network, encoder in encoders(module).items():
        assert not torch.equal(encoder.head.weight, encoders(before)[network].head.weight), network
    for one, other in zip(module.parameters(), trained().parameters(), strict=True):
        assert torch.equal(one, other)
    if name == "meanflowql":  # the target's encoder follows the critic's
        start, now, target = (
            encoders(m)[n].head.weight for m, n in ((before, "critic"), (module, "critic"), (module, "target_critic"))
        )
        moved = (target - start).norm() / (now - start).norm()
        assert 0 < moved < 4 * module.settings.tau


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meanflowql", "flow_bc"])
def test_the_compiled_update_is_the_same(name):
    def updated(compiled: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        module = doubled(algorithm(name))
        names, values = Learner([module], SIZE, compiled).update(double(batch()))
        return {key: x.clone() for key, x in module.state_dict().items()}, dict(zip(names, values, strict=True))

    torch.testing.assert_close(updated(True), updated(False), rtol=1e-6, atol=1e-8, equal_nan=True)  # no history yet


# ---- crops


def shifted(stack: np.ndarray, dy: int, dx: int, padding: int) -> np.ndarray:
    """Of ``(frames, height, width, channels)``: a window of the edge-padded image."""
    height, width = stack.shape[1:3]
    padded = np.pad(stack, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="edge")
    return padded[:, dy : dy + height, dx : dx + width]


def offsets_of(before: Tensor, after: Tensor, padding: int = 3) -> list[tuple[int, int]]:
    """By which window each stack was cropped; there must be exactly one."""
    found = []
    every = [(dy, dx) for dy in range(2 * padding + 1) for dx in range(2 * padding + 1)]
    for old, new in zip(before.numpy(), after.numpy(), strict=True):
        fits = [d for d in every if np.array_equal(shifted(old, *d, padding), new)]
        assert len(fits) == 1
        found.append(fits[0])
    return found


def test_crops_are_windows_of_the_padded_images_the_same_before_and_after_a_step():
    crop = RandomCrop(1.0, seed=0)
    seen = []
    for k in range(6):
        b = batch(32, seed=k)
        cropped = crop(b, k)
        offsets = offsets_of(b.observations, cropped.observations)
        assert offsets == offsets_of(b.next_observations, cropped.next_observations)
        assert cropped.observations.dtype == torch.uint8
        for field in ("actions", "rewards", "masks", "discounts"):
            assert getattr(cropped, field) is getattr(b, field)
        seen += offsets
    for axis in zip(*seen, strict=True):  # 192 draws: each of the 7 values about 27 times
        counts = np.bincount(axis, minlength=7)
        assert len(counts) == 7
        assert counts.min() > 10
    assert len(set(seen)) > 40  # of 49 pairs: the axes are drawn apart


def test_a_batch_is_cropped_with_the_given_probability_as_a_whole():
    b = batch(2)
    cropped = [RandomCrop(0.3, seed=1)(b, k).observations is not b.observations for k in range(2000)]
    assert np.mean(cropped) == pytest.approx(0.3, abs=0.04)
    assert not any(RandomCrop(0.0, seed=1)(b, k) is not b for k in range(50))
    assert all(RandomCrop(1.0, seed=1)(b, k) is not b for k in range(50))


def test_crops_depend_on_the_seed_and_the_update_alone():
    b = batch(16)

    def crop(seed: int, k: int) -> Tensor:
        return RandomCrop(1.0, seed)(b, k).observations

    first = crop(0, 7)
    torch.rand(5)
    assert torch.equal(crop(0, 7), first)
    assert not torch.equal(crop(0, 8), first)
    assert not torch.equal(crop(1, 7), first)


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_a_probability_outside_its_range_is_refused(probability):
    with pytest.raises(ConfigError, match=r"env\.crop_probability"):
        RandomCrop(probability, seed=0)


# ---- stacked frames


def test_stacks_end_at_their_row_and_repeat_a_trajectorys_first_image():
    data = transitions()
    data.frames = 3
    b = data[torch.arange(len(data))]
    ends = [0, 2, 9, 10, 39]
    for i, row in enumerate(data.starts.tolist()):
        first = max([0, *(end + 1 for end in ends if end < row)])
        for stack, last in ((b.observations[i], row), (b.next_observations[i], row + 1)):
            assert torch.equal(stack, data.observations[[max(last - k, first) for k in (2, 1, 0)]])


# ---- the simulator

DATASET = "visual-cube-single-play-v0"
STEPS, EPISODES = 6, 2


@pytest.fixture(scope="module")
def pixel_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend_or_skip()
    folder = tmp_path_factory.mktemp("pixels")
    sizes = {"episodes": EPISODES, "val_episodes": 1, "episode_steps": STEPS}
    collect(DATASET, folder, **sizes, workers=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def replayed(pixel_dir: Path) -> np.ndarray:
    """In a process of its own: MuJoCo takes the rendering back end in force when it is imported."""
    choose_backend()
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(replay, (dataclasses.replace(generation_settings(DATASET), episode_steps=STEPS),))


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_a_pixel_file_has_ogbenchs_fields_and_types(pixel_dir):
    rows = EPISODES * STEPS
    expected = {
        "observations": (np.uint8, (rows, 64, 64, 3)),
        "actions": (np.float32, (rows, 5)),
        "terminals": (np.bool_, (rows,)),
        "qpos": (np.float32, (rows, 21)),
        "qvel": (np.float32, (rows, 20)),
    }
    file = arrays(pixel_dir / f"{DATASET}.npz")
    assert {name: (array.dtype.type, array.shape) for name, array in file.items()} == expected
    np.testing.assert_array_equal(np.flatnonzero(file["terminals"]), [STEPS - 1, 2 * STEPS - 1])
    assert len(arrays(pixel_dir / f"{DATASET}-val.npz")["observations"]) == STEPS


def test_collected_images_are_byte_for_byte_those_of_ogbenchs_own_environment(pixel_dir, replayed):
    observations = arrays(pixel_dir / f"{DATASET}.npz")["observations"]
    np.testing.assert_array_equal(observations[:STEPS], replayed[:STEPS, -1])
    assert (observations[1:STEPS] != observations[: STEPS - 1]).any(axis=(1, 2, 3)).all()  # things move


def test_training_sees_the_stacks_that_evaluation_will(pixel_dir, replayed):
    data = OGBenchData(DATASET, data_dir=str(pixel_dir), frames=3)
    data.setup()
    assert data.spec.image_shape == (3, 64, 64, 3)
    b = data.train[torch.arange(STEPS - 1)]
    np.testing.assert_array_equal(b.observations.numpy(), replayed[: STEPS - 1])
    np.testing.assert_array_equal(b.next_observations.numpy(), replayed[1:STEPS])


def test_puzzles_record_their_buttons(tmp_path):
    backend_or_skip()
    sizes = {"episodes": 1, "val_episodes": 1, "episode_steps": 2}
    collect("visual-puzzle-3x3-noisy", tmp_path, **sizes, workers=1, progress=False)
    file = arrays(tmp_path / "visual-puzzle-3x3-noisy-v0.npz")
    assert file["observations"].shape == (2, 64, 64, 3)
    assert (file["button_states"].dtype, file["button_states"].shape) == (np.dtype(np.int64), (2, 9))


def test_pixel_datasets_have_the_published_settings_of_their_states():
    for name in ("cube-double-play", "scene-noisy", "puzzle-4x4-noisy", "antmaze-large-explore"):
        pixels, states = generation_settings(f"visual-{name}"), generation_settings(name)
        assert pixels.renders
        assert not states.renders
        renamed = {"dataset": f"visual-{states.dataset}", "env_id": f"visual-{states.env_id}"}
        assert pixels == dataclasses.replace(states, **renamed)


@pytest.mark.parametrize("dataset", ["visual-humanoidmaze-medium-navigate-v0", "visual-humanoidmaze-large-stitch"])
def test_pixel_mazes_are_for_download_only(dataset):
    with pytest.raises(CollectError, match="no scripted policy"):
        generation_settings(dataset)


@pytest.mark.parametrize(("gpu", "first"), [(True, "egl"), (False, "osmesa")])
def test_a_gpu_is_tried_before_software(monkeypatch, gpu, first):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("mfrl.envs.rendering._has_gpu", lambda: gpu)
    monkeypatch.setattr("mfrl.envs.rendering._renders", lambda backend: True)
    assert choose_backend() == first


# ---- runs

RUN = [
    f"env=ogbench/{DATASET.removesuffix('-v0')}",
    "network=small",
    "encoder=tiny",
    "batch_size=4",
    "updates=4",
    "log.every=2",
    "checkpoint.every=2",
    "eval.every=4",
    "accelerator=cpu",
]


def test_a_policy_trained_on_images_acts_on_those_of_its_environment(pixel_dir):
    cfg = compose("train", *RUN, f"data_dir={pixel_dir}")
    assert (cfg.env.frames, cfg.env.crop_probability) == (3, 0.5)
    data = OGBenchData(DATASET, data_dir=str(pixel_dir), frames=3, crop_probability=0.5, batch_size=4, updates=4)
    data.setup()
    module = build_algorithm(cfg, data.spec)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    fit = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **options).fit
    fit(Training(module, 4), datamodule=data)
    policy = module.policy()
    with VectorEnv(data.env, num_envs=1, workers=0, render=data.env.observes_pixels) as env:
        observations = env.reset([0], [0])
        assert observations.shape == (1, *data.spec.image_shape)
        for _ in range(2):
            noise = policy.sample_noise((policy.num_candidates, 1, policy.action_dim), torch.Generator().manual_seed(0))
            with torch.no_grad():
                step = env.step(policy.act(torch.from_numpy(observations), noise).numpy())
            assert (step.observations[:, :-1] == observations[:, 1:]).all()
            observations = step.observations


def run(pixel_dir: Path, path: Path, *overrides: str) -> dict[str, Any]:
    changes = [*RUN, f"data_dir={pixel_dir}", f"run_dir={path}", *overrides]
    return train(compose("train", *changes), changes)


@pytest.mark.slow
def test_a_run_on_images_goes_online_and_comes_back_to_the_same_weights(pixel_dir, tmp_path):
    path, online = tmp_path / "run", ["evaluation=held_out", "checkpoint.keep_all=true", "logger=csv"]
    result = run(pixel_dir, path, *online, "online.steps=6", "online.num_envs=2")
    assert result["updates"] == 10
    whole = load_checkpoint(path / "checkpoints" / "last.ckpt")
    (path / "result.json").unlink()
    os.replace(path / "checkpoints" / "update=8.ckpt", path / "checkpoints" / "last.ckpt")
    changes = [f"resume={path}", "logger=csv"]
    train(compose("train", *changes), changes)
    again = load_checkpoint(path / "checkpoints" / "last.ckpt")
    for name, tensor in whole["state_dict"].items():
        assert tensor.numpy().tobytes() == again["state_dict"][name].numpy().tobytes()
    assert torch.equal(whole["online"]["observations"], again["online"]["observations"])
    assert whole["online"]["checksum"] == again["online"]["checksum"]


def test_an_interrupted_run_on_images_goes_on_to_the_same_weights(pixel_dir, tmp_path):
    path = tmp_path / "run"
    result = run(pixel_dir, path, "evaluation=held_out", "checkpoint.keep_all=true", "algo.alpha_schedule=cosine")
    assert result["updates"] == 4
    assert load_algorithm(path)[0].spec.image_shape == (3, 64, 64, 3)
    whole = weights(path)
    os.replace(path / "checkpoints" / "update=2.ckpt", path / "checkpoints" / "last.ckpt")
    assert not torch.equal(whole["actor.encoder.head.weight"], weights(path)["actor.encoder.head.weight"])
    resume(path)
    assert_equal(whole, weights(path))


@pytest.mark.slow
def test_a_run_on_images_is_evaluated_in_its_simulator_then_and_later(pixel_dir, tmp_path):
    path = tmp_path / "run"
    result = run(pixel_dir, path, "eval.episodes=1", "eval.num_envs=1")
    assert 0 < result["final"]["eval/length"] <= 200
    report = evaluate_checkpoint(compose("eval", f"ckpt={path}"))
    assert report["returns"] == [result["final"]["eval/return"]]
