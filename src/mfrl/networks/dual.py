r"""Forward-mode differentiation by hand: a layer maps a value and its derivative along the path together.

The MeanFlow identity needs dg/dt as a number, and g with a gradient. `torch.func.jvp` gives both, but in eager mode it
uses slow Python decompositions and keeps a graph for the derivative too. In this module each layer applies its own
rule to the tangent, without a graph, so that one pass through the network gives g and dg/dt. A :class:`Dual` whose
tangent is None is a plain value, and the same code is then the plain forward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfrl.meanflow import Times
from mfrl.networks import primitives
from mfrl.networks.primitives import affine, gelu_tangent


class Dual(NamedTuple):
    """x and dx/dt, of one shape. ``tangent=None`` means that dx/dt is zero or that nobody asks for it."""

    value: Tensor
    tangent: Tensor | None = None


def linear(x: Dual, weight: Tensor, bias: Tensor | None = None) -> Dual:
    """W x + b;  d = W dx."""
    value = affine(x.value, weight, bias)
    if x.tangent is None:
        return Dual(value)
    with torch.no_grad():
        return Dual(value, affine(x.tangent, weight))


def gelu(x: Dual) -> Dual:
    """GELU in its tanh form."""
    return Dual(primitives.gelu(x.value), None if x.tangent is None else gelu_tangent(x.value, x.tangent))


def silu(x: Dual) -> Dual:
    """x sigmoid(x). The tangent silu'(x) dx is PyTorch's backward kernel of SiLU applied to dx."""
    value = F.silu(x.value)
    if x.tangent is None:
        return Dual(value)
    with torch.no_grad():
        return Dual(value, torch.ops.aten.silu_backward(x.tangent, x.value))


def add(x: Dual, y: Dual) -> Dual:
    """x + y; a tangent of None counts as zero."""
    if x.tangent is None or y.tangent is None:
        return Dual(x.value + y.value, x.tangent if y.tangent is None else y.tangent)
    value = x.value + y.value
    with torch.no_grad():
        return Dual(value, x.tangent + y.tangent)


def rms_normalize(x: Dual, gain: Tensor, eps: float = 1e-6) -> Dual:
    """gain x r with r = (mean x^2 + eps)^(-1/2);  d = gain r (dx - x r^2 mean(x dx))."""
    value = F.rms_norm(x.value, gain.shape, gain, eps)
    if x.tangent is None:
        return Dual(value)
    with torch.no_grad():
        r = torch.rsqrt(x.value.square().mean(-1, keepdim=True) + eps)
        shrink = r.square() * (x.value * x.tangent).mean(-1, keepdim=True)
        return Dual(value, gain * r * torch.addcmul(x.tangent, x.value, shrink, value=-1.0))


def modulate(x: Dual, scale: Dual, shift: Dual) -> Dual:
    """x (1 + scale) + shift;  d = dx (1 + scale) + x dscale + dshift."""
    value = torch.addcmul(x.value + shift.value, x.value, scale.value)
    if x.tangent is None:
        return Dual(value)
    assert scale.tangent is not None
    assert shift.tangent is not None
    with torch.no_grad():
        tangent = torch.addcmul(x.tangent + shift.tangent, x.tangent, scale.value)
        return Dual(value, torch.addcmul(tangent, x.value, scale.tangent))


def add_gated(x: Dual, gate: Dual, y: Dual) -> Dual:
    """x + gate y;  d = dx + gate dy + dgate y."""
    value = torch.addcmul(x.value, gate.value, y.value)
    if x.tangent is None:
        return Dual(value)
    assert gate.tangent is not None
    assert y.tangent is not None
    with torch.no_grad():
        tangent = torch.addcmul(x.tangent, gate.value, y.tangent)
        return Dual(value, torch.addcmul(tangent, gate.tangent, y.value))


def lerp(x: Dual, y: Dual, weight: float) -> Dual:
    """x + weight (y - x)."""
    value = torch.lerp(x.value, y.value, weight)
    if x.tangent is None or y.tangent is None:
        return Dual(value)
    with torch.no_grad():
        return Dual(value, torch.lerp(x.tangent, y.tangent, weight))


class DualNetwork(nn.Module):
    """An actor whose layers map duals, so that one pass gives g, or g and its derivative along the path.

    A subclass defines :meth:`run`, and :meth:`folded` if it can be folded.
    """

    def forward(self, observations: Tensor, actions: Tensor, times: Times) -> Tensor:
        """g ``(..., batch, action_dim)``.

        Args:
            observations: ``(batch, observation_dim)``.
            actions: ``(..., batch, action_dim)``; all leading axes (candidates) share the observations.
            times: of each sample; one row where actions have leading axes.
        """
        return self.run(observations, Dual(actions), times).value

    def jvp(self, observations: Tensor, actions: Tensor, times: Times, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """g, and its derivative along the path without a graph; the tangents of (a_t, t) are (velocity, 1)."""
        g = self.run(observations, Dual(actions, velocity), times)
        assert g.tangent is not None
        return g.value, g.tangent

    def folded(self, times: Times) -> nn.Module:
        """A faster network for one time, called in the same way: everything that depends on time alone is constant.

        Args:
            times: one row.
        """
        raise NotImplementedError

    def run(self, observations: Tensor, actions: Dual, times: Times) -> Dual:
        """The forward pass. If the actions have a tangent, so does the result; the tangent of t is then 1."""
        raise NotImplementedError


class Linear(nn.Linear):
    """`nn.Linear` on duals. Weights start truncated normal with variance ``scale / fan_in``, biases at zero."""

    def __init__(self, in_features: int, out_features: int, scale: float = 0.01) -> None:
        self.scale = scale
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        variance_scaling_(self.weight, self.scale, self.in_features)
        nn.init.zeros_(self.bias)

    def forward(self, x: Dual) -> Dual:  # type: ignore[override]  # layers here take and give duals
        return linear(x, self.weight, self.bias)


def variance_scaling_(weight: Tensor, scale: float, fan_in: int) -> Tensor:
    """Fill from a normal of variance scale / fan_in, truncated at two standard deviations; scale 0 gives zeros."""
    if scale == 0.0:
        return nn.init.zeros_(weight)
    # 0.8796... is the standard deviation of a standard normal truncated at +-2.
    std = (scale / fan_in) ** 0.5 / 0.87962566103423978
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
