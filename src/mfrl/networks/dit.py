r"""The published actor: a DiT over a single token, arXiv 2511.13035.

Self-attention over one token is a softmax over one element, which is 1. The output of attention is therefore the value
projection followed by the output projection, whatever query and key are. This module leaves query and key out; they
would receive no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfrl.meanflow import Times
from mfrl.networks import primitives
from mfrl.networks.dual import Dual, DualNetwork, Linear, add_gated, gelu, lerp, linear, modulate, rms_normalize, silu
from mfrl.networks.dual import add as add_duals
from mfrl.networks.time import TimeEmbedding


class RMSNorm(nn.Module):
    """RMS normalisation times a learned gain and sqrt(width), as in the published actor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Dual) -> Dual:
        return rms_normalize(x, self.gain * self.gain.numel() ** 0.5)


class Modulation(nn.Module):
    """A zero-initialised linear map of SiLU(c) to ``count`` vectors of the network's width."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = Linear(width, count * width, scale=0.0)

    def forward(self, c: Dual, times: Times) -> list[Dual]:
        # One row for each distinct time; spread() copies it to the samples of that time.
        m = self.linear(c)
        values = times.spread(m.value).chunk(self.count, -1)
        if m.tangent is None:
            return [Dual(value) for value in values]
        tangents = times.spread(m.tangent).chunk(self.count, -1)
        return [Dual(value, tangent) for value, tangent in zip(values, tangents, strict=True)]


class Block(nn.Module):
    """Attention over one token, then an MLP. Time modulates the normalised input of both and gates their output."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.modulation = Modulation(width, 6)
        self.norm1 = RMSNorm(width)
        self.attention_value = Linear(width, width)
        self.attention_out = Linear(width, width)
        self.norm2 = RMSNorm(width)
        self.mlp_in = Linear(width, hidden)
        self.mlp_out = Linear(hidden, width)

    def forward(self, x: Dual, c: Dual, times: Times) -> Dual:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c, times)
        h = modulate(self.norm1(x), scale1, shift1)
        x = add_gated(x, gate1, self.attention_out(self.attention_value(h)))
        h = modulate(self.norm2(x), scale2, shift2)
        return add_gated(x, gate2, self.mlp_out(gelu(self.mlp_in(h))))


class DiT(DualNetwork):
    """g(s, a_t, t) as a DiT over the single token [s, a_t].

    Args:
        observation_dim, action_dim: sizes of the flat inputs.
        width, depth, mlp_ratio: published: 256, 3, 4.
        residual_scale: weight of each block's change: x + residual_scale (block(x) - x).
        offset_std: standard deviation of the token's learned offset at initialisation; published: 0.005. Every layer
            normalises the token by its RMS. With a small offset the layers see only the direction of W [s, a_t], so
            that two states on one ray from the data's mean look alike. Observations of few numbers (the x and y of a
            maze) need a larger offset.
        two_times: the network takes the start b of the interval too: g(s, a_t, b, t).
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        width: int = 256,
        depth: int = 3,
        mlp_ratio: float = 4.0,
        residual_scale: float = 0.1,
        offset_std: float = 0.005,
        two_times: bool = False,
    ) -> None:
        super().__init__()
        self.observation_dim = observation_dim
        self.residual_scale = residual_scale
        self.embed = Linear(observation_dim + action_dim, width)
        self.offset = nn.Parameter(torch.randn(width) * offset_std)
        self.time = TimeEmbedding(width, two_times)
        self.blocks = nn.ModuleList(Block(width, mlp_ratio) for _ in range(depth))
        self.final_norm = RMSNorm(width)
        self.final_modulation = Modulation(width, 2)
        self.head = Linear(width, action_dim, scale=0.0)

    @torch.no_grad()
    def folded(self, times: Times) -> FoldedDiT:
        """The network at one time: modulations are folded into the weights, attention's two maps into one."""
        return FoldedDiT(self, times)

    def run(self, observations: Tensor, actions: Dual, times: Times) -> Dual:
        # [s, a_t] W^T as two products, because all candidates share s, and s has no tangent.
        w_s, w_a = self.embed.weight.split([self.observation_dim, actions.value.shape[-1]], dim=1)
        x = add_duals(linear(Dual(observations), w_s, self.embed.bias + self.offset), linear(actions, w_a))
        c = silu(self.time(times, actions.tangent is not None))
        for block in self.blocks:
            x = lerp(x, block(x, c, times), self.residual_scale)
        shift, scale = self.final_modulation(c, times)
        return self.head(modulate(self.final_norm(x), scale, shift))


class FoldedDiT(nn.Module):
    """A DiT at one time. With r(x) = x / rms(x), a block is two affine maps of r and one of a GELU:

        h = A r(x) + a,    m = Q gelu(P r(x + h) + p) + q,    x <- x + residual_scale (h + m)

    The constructor folds the weights in float64. The output equals the DiT's up to rounding.

    Args:
        dit: the network to fold. Later changes of its weights have no effect on the folded one.
        times: one row.
    """

    w_s: Tensor
    w_a: Tensor
    averaging: Tensor
    eps: Tensor
    bias: Tensor

    def __init__(self, dit: DiT, times: Times) -> None:
        super().__init__()
        self.residual_scale = dit.residual_scale
        width = dit.embed.out_features
        w_s, w_a = dit.embed.weight.split([dit.observation_dim, dit.embed.in_features - dit.observation_dim], dim=1)
        self.register_buffer("w_s", w_s.detach().clone())
        self.register_buffer("w_a", w_a.detach().clone())
        self.register_buffer("averaging", w_s.new_full((1, width), 1.0 / width))
        self.register_buffer("eps", w_s.new_full((1,), 1e-6))
        self.register_buffer("bias", (dit.embed.bias + dit.offset).detach().clone())
        c = silu(dit.time(times))
        maps: list[tuple[Tensor, Tensor]] = []
        for block in dit.blocks:
            assert isinstance(block, Block)
            shift1, scale1, gate1, shift2, scale2, gate2 = (m.value[0].double() for m in block.modulation(c, times))
            weight, bias = (x.double() for x in (block.attention_value.weight, block.attention_value.bias))
            out, out_bias = (x.double() for x in (block.attention_out.weight, block.attention_out.bias))
            maps += [
                _fold(out @ weight, out @ bias + out_bias, block.norm1, scale1, shift1, gate1),
                _fold(block.mlp_in.weight, block.mlp_in.bias, block.norm2, scale2, shift2, None),
                (gate2[:, None] * block.mlp_out.weight, gate2 * block.mlp_out.bias),
            ]
        shift, scale = (m.value[0].double() for m in dit.final_modulation(c, times))
        maps.append(_fold(dit.head.weight, dit.head.bias, dit.final_norm, scale, shift, None))
        self.weights = nn.ParameterList(nn.Parameter(w.to(w_s.dtype), False) for w, _ in maps)
        self.biases = nn.ParameterList(nn.Parameter(b.to(w_s.dtype), False) for _, b in maps)

    def forward(self, observations: Tensor, actions: Tensor, times: Times | None = None) -> Tensor:
        """g ``(..., batch, action_dim)``, like :meth:`DiT.forward`, at the time of folding; ``times`` is ignored."""
        x = F.linear(observations, self.w_s, self.bias) + F.linear(actions, self.w_a)
        affine = iter(zip(self.weights, self.biases, strict=True))
        for _ in range(len(self.weights) // 3):
            h = F.linear(self._r(x), *next(affine))
            m = F.linear(primitives.gelu(F.linear(self._r(x + h), *next(affine))), *next(affine))
            x = torch.add(x, h + m, alpha=self.residual_scale)
        return F.linear(self._r(x), *next(affine))

    def _r(self, x: Tensor) -> Tensor:
        # A matrix product computes the mean: four operations, where F.rms_norm takes ten on a CPU.
        return x * F.linear(x * x, self.averaging, self.eps).rsqrt_()


def _fold(
    weight: Tensor, bias: Tensor, norm: RMSNorm, scale: Tensor, shift: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """gate (W (gain sqrt(width) r (1 + scale) + shift) + b) as a weight and a bias for r."""
    gain = norm.gain.double() * norm.gain.numel() ** 0.5
    weight, bias = weight.double() * (gain * (1.0 + scale)), weight.double() @ shift + bias.double()
    return (weight, bias) if gate is None else (gate[:, None] * weight, gate * bias)
