"""Networks against references written from their description, and what they leave out against what it would do."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny import ACTION_DIM, OBSERVATION_DIM, randn, randomise_, times, tiny_critic, tiny_dit, tiny_mlp
from torch import Tensor, nn
from torch.nn import functional as F

from mfrl.meanflow import Times
from mfrl.networks import primitives
from mfrl.networks.critic import QEnsemble
from mfrl.networks.dit import DiT
from mfrl.networks.dual import Dual, variance_scaling_
from mfrl.networks.encoder import EncodedNetwork
from mfrl.networks.mlp import MLP
from mfrl.networks.time import TimeEmbedding

BATCH, WIDTH, HEADS = 5, 16, 2


def build(make: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise_(make(OBSERVATION_DIM, ACTION_DIM).double(), seed)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ---- the attention that is not computed


def full_attention(h: Tensor, layers: dict[str, Tensor], qk_norm: bool = True) -> Tensor:
    """Multi-head self-attention with q/k norm over tokens ``(batch, tokens, width)``."""
    q, k, v = (F.linear(h, layers[f"{n}.weight"], layers[f"{n}.bias"]) for n in ("query", "key", "value"))
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    if qk_norm:
        q, k = F.rms_norm(q, q.shape[-1:], layers["gain_q"]), F.rms_norm(k, k.shape[-1:], layers["gain_k"])
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    return F.linear(mixed, layers["out.weight"], layers["out.bias"])


def layers_of(block: nn.Module, seed: int) -> dict[str, Tensor]:
    """The block's value and output projections, with arbitrary query and key beside them."""
    drawn = {f"{n}.weight": randn(WIDTH, WIDTH, seed=seed + i) for i, n in enumerate(("query", "key"))}
    drawn |= {f"{n}.bias": randn(WIDTH, seed=seed + 5 + i) for i, n in enumerate(("query", "key"))}
    drawn |= {f"gain_{n}": randn(WIDTH // HEADS, seed=seed + 8 + i) for i, n in enumerate("qk")}
    for name, layer in (("value", block.attention_value), ("out", block.attention_out)):
        drawn |= {f"{name}.weight": layer.weight.detach().clone(), f"{name}.bias": layer.bias.detach().clone()}
    return {name: x.requires_grad_() for name, x in drawn.items()}


def test_over_one_token_attention_is_its_value_and_output_projections():
    block = build(tiny_dit).blocks[0]
    h = randn(BATCH, WIDTH, seed=1)
    ours = block.attention_out(block.attention_value(Dual(h))).value
    for seed in (10, 20):
        torch.testing.assert_close(full_attention(h[:, None], layers_of(block, seed))[:, 0], ours, rtol=0, atol=1e-12)

    # PyTorch's own layer says the same.
    layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    theirs = layers_of(block, 30)
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.cat([theirs[f"{n}.weight"] for n in ("query", "key", "value")]))
        layer.in_proj_bias.copy_(torch.cat([theirs[f"{n}.bias"] for n in ("query", "key", "value")]))
        layer.out_proj.weight.copy_(block.attention_out.weight)
        layer.out_proj.bias.copy_(block.attention_out.bias)
    output, weights = layer(h[:, None], h[:, None], h[:, None])
    assert torch.equal(weights, torch.ones_like(weights))
    torch.testing.assert_close(output[:, 0], ours, rtol=0, atol=1e-12)
    output.square().sum().backward()
    of_query, of_key, of_value = layer.in_proj_weight.grad.chunk(3)
    assert of_query.abs().max() < 1e-12
    assert of_key.abs().max() < 1e-12
    assert of_value.abs().max() > 1e-3


def test_query_and_key_of_one_token_get_no_gradient_but_those_of_two_do():
    block, h = build(tiny_dit).blocks[0], randn(BATCH, 2, WIDTH, seed=2)
    for tokens in (1, 2):
        layers = layers_of(block, 10)
        full_attention(h[:, :tokens], layers).square().sum().backward()
        for name in ("query.weight", "query.bias", "key.weight", "gain_q", "gain_k"):
            size = layers[name].grad.abs().max()
            assert size < 1e-12 if tokens == 1 else size > 1e-6, name
        assert layers["value.weight"].grad.abs().max() > 1e-3


# ---- the actor


def reference_dit(network: DiT, s: Tensor, a: Tensor, t: Tensor) -> Tensor:
    """The published actor in plain PyTorch, attention over its one token included."""

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain * math.sqrt(WIDTH)

    def lin(layer: nn.Module, x: Tensor) -> Tensor:
        return x @ layer.weight.T + layer.bias

    half = 128
    w = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    features = torch.cat([(t * w).cos(), (t * w).sin()], -1)
    embedded = lin(network.time.out, F.silu(lin(network.time.hidden, features)))
    c = F.silu(embedded)
    x = lin(network.embed, torch.cat([s, a], -1)) + network.offset
    for i, block in enumerate(network.blocks):
        shift1, scale1, gate1, shift2, scale2, gate2 = lin(block.modulation.linear, c).chunk(6, -1)
        h = norm(x, block.norm1.gain) * (1 + scale1) + shift1
        y = x + gate1 * full_attention(h[:, None], layers_of(block, 40 + i))[:, 0]
        h = norm(y, block.norm2.gain) * (1 + scale2) + shift2
        y = y + gate2 * lin(block.mlp_out, F.gelu(lin(block.mlp_in, h), approximate="tanh"))
        x = x + 0.1 * (y - x)
    shift, scale = lin(network.final_modulation.linear, c).chunk(2, -1)
    return lin(network.head, norm(x, network.final_norm.gain) * (1 + scale) + shift)


def test_dit_is_the_published_actor_with_its_attention_written_out():
    network = build(tiny_dit)
    s, a, t = randn(BATCH, OBSERVATION_DIM, seed=3), randn(BATCH, ACTION_DIM, seed=4), times(BATCH).t
    with torch.no_grad():
        # The frequencies are kept in float32.
        network.time.frequencies.copy_(10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128))
        expected = reference_dit(network, s, a, t)
        assert expected.std() > 0.1
        torch.testing.assert_close(network(s, a, Times(t)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [tiny_dit, tiny_mlp])
def test_an_actor_starts_at_zero_for_every_input(make: type[nn.Module]):
    network = make(OBSERVATION_DIM, ACTION_DIM)
    output = network(
        torch.randn(BATCH, OBSERVATION_DIM), 10 * torch.randn(BATCH, ACTION_DIM), Times(torch.rand(BATCH, 1))
    )
    assert torch.equal(output, torch.zeros(BATCH, ACTION_DIM))
    for name, p in network.named_parameters():
        if "modulation" in name or "head" in name:
            assert not p.any(), name


@pytest.mark.parametrize("make", [tiny_dit, tiny_mlp])
def test_candidates_of_an_observation_are_computed_as_a_flat_batch_would(make: type[nn.Module]):
    network = build(make)
    s, a, time = randn(BATCH, OBSERVATION_DIM, seed=5), randn(3, BATCH, ACTION_DIM, seed=6), times(1)
    flat = network(s.repeat(3, 1), a.flatten(0, 1), time)
    torch.testing.assert_close(network(s, a, time), flat.view(3, BATCH, ACTION_DIM), rtol=0, atol=1e-12)
    assert (flat.view(3, BATCH, -1).std((0, 1)) > 1e-3).all()


def test_dit_has_the_published_size_less_what_has_no_effect():
    width, ours = 256, DiT(28, 5)
    query_and_key = 3 * 2 * (width * width + width)
    qk_norm = 3 * 2 * (width // 2)
    assert count(ours) == 3_430_917
    assert round((count(ours) + query_and_key + qk_norm) / 1e6, 2) == 3.83
    assert len(ours.blocks) == 3
    assert ours.blocks[0].mlp_in.weight.shape == (1024, 256)
    assert ours.residual_scale == 0.1


def test_time_features_are_cosines_and_sines_of_the_published_frequencies():
    embedding = TimeEmbedding(8).double()
    with torch.no_grad():
        embedding.hidden.weight.zero_()
        embedding.hidden.weight[:, [0, 127, 128, 255]] = torch.eye(8, 4, dtype=torch.float64)
        embedding.out.weight.copy_(torch.eye(8))
    t = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    slowest = 10_000.0 ** (-127 / 128)
    features = torch.cat([t.cos(), (slowest * t).cos(), t.sin(), (slowest * t).sin()], -1)
    torch.testing.assert_close(embedding(Times(t)).value[:, :4], F.silu(features), rtol=1e-6, atol=1e-9)


def test_a_larger_offset_lets_a_dit_tell_states_on_one_ray_apart():
    # Two states in one direction from the mean: to a network that sees directions alone they are the same.
    near, far = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.2, 1.6]])
    still, one = torch.zeros(1, 2), Times(torch.ones(1, 1))

    def difference(offset_std: float) -> float:
        torch.manual_seed(0)
        network = DiT(2, 2, width=64, depth=1, offset_std=offset_std)
        torch.nn.init.normal_(network.head.weight)
        with torch.no_grad():
            g_near, g_far = network(near, still, one), network(far, still, one)
        return ((g_near - g_far).norm() / g_near.norm()).item()

    assert difference(0.005) < 0.05
    assert difference(0.2) > 0.15


def test_linear_maps_start_with_variance_of_a_hundredth_over_fan_in_cut_at_two_deviations():
    torch.manual_seed(0)
    network = DiT(28, 5)
    maps = [network.embed, network.time.hidden, network.time.out, network.blocks[1].attention_value]
    maps += [network.blocks[0].attention_out, network.blocks[2].mlp_in, network.blocks[2].mlp_out]
    for layer in maps:
        wanted = 0.01 / layer.weight.shape[1]
        assert layer.weight.var().item() == pytest.approx(wanted, rel=0.05)
        limit = 2 * math.sqrt(wanted) / 0.8796
        assert layer.weight.abs().max() <= limit * 1.0001
        assert layer.weight.abs().max() > 0.9 * limit
        assert not layer.bias.any()
    assert network.offset.std().item() == pytest.approx(0.005, rel=0.2)
    for norm in (network.blocks[0].norm1, network.final_norm):
        assert torch.equal(norm.gain, torch.ones(256))
    assert torch.equal(variance_scaling_(torch.ones(4, 4), 0.0, 4), torch.zeros(4, 4))


def test_mlp_layers_start_with_variance_one_over_fan_in():
    torch.manual_seed(0)
    network = MLP(28, 5, hidden=[256, 256])
    for layer in (network.input, network.hidden[0]):
        assert layer.weight.var().item() == pytest.approx(1.0 / layer.weight.shape[1], rel=0.05)


# ---- the critic


def member(critic: QEnsemble, i: int) -> nn.Sequential:
    """Member i as a network of its own."""
    modules: list[nn.Module] = []
    for w, b, gain, shift in zip(critic.weights, critic.biases, critic.gains, critic.shifts, strict=True):
        linear, norm = nn.Linear(*w.shape[1:]), nn.LayerNorm(w.shape[2], eps=1e-6)
        linear.weight, linear.bias = nn.Parameter(w[i].T), nn.Parameter(b[i, 0])
        norm.weight, norm.bias = nn.Parameter(gain[i, 0]), nn.Parameter(shift[i, 0])
        modules += [linear, nn.GELU(approximate="tanh"), norm]
    head = nn.Linear(critic.head_weight.shape[1], 1)
    head.weight, head.bias = nn.Parameter(critic.head_weight[i].T), nn.Parameter(critic.head_bias[i, 0])
    return nn.Sequential(*modules, head)


def test_ensemble_members_are_separate_networks():
    critic = build(lambda s, a: QEnsemble(s, a, hidden=[16, 12, 8], ensemble=3))
    s, a = randn(BATCH, OBSERVATION_DIM, seed=7), randn(BATCH, ACTION_DIM, seed=8)
    expected = torch.stack([member(critic, i)(torch.cat([s, a], -1))[:, 0] for i in range(3)])
    assert (expected[0] - expected[1]).abs().min() > 1e-3
    torch.testing.assert_close(critic(s, a), expected, rtol=0, atol=1e-12)
    critic(s, a)[1].sum().backward()
    for p in critic.parameters():
        assert not p.grad[[0, 2]].any(), "a member's value must not train another member"
        assert p.grad[1].any()


def test_the_critic_values_candidates_as_a_flat_batch_would():
    critic = build(tiny_critic)
    s, a = randn(BATCH, OBSERVATION_DIM, seed=9), randn(4, BATCH, ACTION_DIM, seed=10)
    q = critic(s, a)
    assert q.shape == (2, 4, BATCH)
    one_by_one = torch.stack([critic(s, a_k) for a_k in a], dim=1)
    torch.testing.assert_close(q, one_by_one, rtol=0, atol=1e-12)
    deeper = critic(s, a.view(2, 2, BATCH, ACTION_DIM))
    torch.testing.assert_close(deeper, q.view(2, 2, 2, BATCH), rtol=0, atol=1e-12)


def test_the_critic_has_the_published_size():
    critic = QEnsemble(28, 5)
    assert count(critic) == 2 * ((33 * 512 + 512) + 3 * (512 * 512 + 512) + 4 * 2 * 512 + (512 + 1)) == 1_619_970


def test_each_critic_member_starts_as_a_xavier_network_of_its_own():
    torch.manual_seed(0)
    critic = QEnsemble(28, 5)
    for w in [*critic.weights, critic.head_weight]:
        bound = math.sqrt(6.0 / (w.shape[1] + w.shape[2]))
        assert w.abs().max() <= bound
        for one in w:
            assert one.abs().max() > 0.98 * bound
            assert one.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06)
        assert not torch.equal(w[0], w[1])
    assert not any(b.any() for b in [*critic.biases, *critic.shifts, critic.head_bias])
    assert all((g == 1).all() for g in critic.gains)


# ---- what compiled code computes in another form

X = 3.0 * randn(40, 6, seed=11)
PRIMITIVES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "gelu": (primitives.gelu, (X,)),
    "gelu_tangent": (primitives.gelu_tangent, (X, randn(40, 6, seed=12))),
    "affine": (primitives.affine, (X, randn(3, 6, seed=13), randn(3, seed=14))),
    "batched_affine": (primitives.batched_affine, (X.view(2, 20, 6), randn(2, 6, 3, seed=15), randn(2, 1, 3, seed=16))),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_a_layer_s_compiled_form_is_the_eager_one(name: str):
    function, inputs = PRIMITIVES[name]
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    torch._dynamo.reset()
    eager, compiled = function(*inputs), torch.compile(function, backend="eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-13)
    assert compiled.requires_grad == eager.requires_grad == (name != "gelu_tangent")
    if eager.requires_grad:
        weights = randn(*eager.shape, seed=17)
        wanted = torch.autograd.grad((weights * eager).sum(), inputs)
        for mine, other in zip(torch.autograd.grad((weights * compiled).sum(), inputs), wanted, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


# ---- a network and its encoder


def test_an_encoded_network_takes_states_as_they_are_and_images_through_its_encoder():
    s, a, time = randn(BATCH, OBSERVATION_DIM, seed=18), randn(BATCH, ACTION_DIM, seed=19), times(1)
    of_states = EncodedNetwork(build(tiny_dit))
    assert of_states.encode(s) is s
    assert torch.equal(of_states(s, a, time), of_states.network(s, a, time))
    encoder = nn.Linear(7, OBSERVATION_DIM).double()
    of_images, seen = EncodedNetwork(build(tiny_mlp), encoder), randn(BATCH, 7, seed=20)
    features = of_images.encode(seen)
    assert torch.equal(features, encoder(seen))
    of_images(features, a, time).sum().backward()
    assert encoder.weight.grad.abs().max() > 0
    assert {name.partition(".")[0] for name in of_images.state_dict()} == {"network", "encoder"}
