r"""Reformulations of MeanFlow as data: what the network outputs is an affine image of the average velocity.

    path                a_t = (1 - t) a + t e,   v = e - a              t = 0 is data, t = 1 is noise
    average velocity    u(a_t, b, t),   a_b = a_t - (t - b) u
    MeanFlow identity   u = v - (t - b) du/dt                           d/dt = v . grad_{a_t} + d_t
    network output      g = p(t) a_t + q(t) u + s(t) e

MeanFlow: arXiv 2505.13447. The residual reformulation (p = 1, q = -1, s = 0) with Q-learning: arXiv 2511.13035.
Shapes: a_t, u, v, g, e are ``(..., action_dim)``; t and b are ``(..., 1)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from mfrl.errors import ConfigError

Coefficient = float | Tensor


@dataclass(frozen=True)
class Polynomial:
    """``c[0] + c[1] t + c[2] t^2 + ...``. A constant evaluates to a float, so that its terms cost nothing."""

    coefficients: tuple[float, ...]
    # Computed at once: torch.compile would split its graph at a property that is computed on first use.
    _slope: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        slope = tuple(k * c for k, c in enumerate(self.coefficients))[1:] or (0.0,)
        object.__setattr__(self, "_slope", slope)

    def __call__(self, t: Coefficient) -> Coefficient:
        return _horner(self.coefficients, t)

    def derivative(self, t: Coefficient) -> Coefficient:
        """The derivative's value at t."""
        return _horner(self._slope, t)

    @property
    def at_one(self) -> float:
        return sum(self.coefficients)


class Reformulation:
    """One member of the family ``g = p(t) a_t + q(t) u + s(t) e``.

    Where q vanishes at t = 0, g(a, 0) = p(0) a says nothing about u, and a constant satisfies the identity at every
    time. This class then *pins* that boundary. The network gives f instead of g, and

        g = p a_t + q/q(1) (f - p(1) a_t),    i.e.  f = p(1) a_t + q(1) u,  where s = 0,

    so that g(a, 0) = p(0) a whatever f is, and g = f at t = 1. Every other variant's network gives g itself.

    Args:
        p, q, s: polynomial coefficients in ascending powers of t; a number stands for a constant.
        instant_share: None keeps the interval's start at b = 0. A number makes b a second time that the network
            takes. In this share of the samples b = t, and u is the instantaneous velocity; in the others b < t.

    Raises:
        ConfigError: q vanishes somewhere in (0, 1], so that g does not determine u; or q vanishes at 0 faster than s,
            so that no function of (a_t, t) has the boundary values; or instant_share is not in [0, 1]; or
            instant_share is set although q vanishes at 0.
    """

    def __init__(
        self,
        p: float | Sequence[float],
        q: float | Sequence[float],
        s: float | Sequence[float] = 0.0,
        instant_share: float | None = None,
    ) -> None:
        self.p, self.q, self.s = (_polynomial(name, c) for name, c in (("p", p), ("q", q), ("s", s)))
        if not any(self.q.coefficients):
            raise ConfigError("q is zero everywhere: the output g then says nothing about the average velocity u")
        # q = t^m r(t) with r(0) != 0 gives  t q'/q = m + t r'/r,  which is finite at t = 0 too.
        self._zeros_at_0 = _zeros_at_0(self.q)
        self._r = Polynomial(self.q.coefficients[self._zeros_at_0 :])
        size = sum(abs(c) for c in self._r.coefficients)
        roots = (float(t) for t in np.roots(self._r.coefficients[::-1]).real if 0.0 < t <= 1.0)
        # A multiple root comes out of np.roots as near misses off the real line, so the value decides.
        if zeros := [t for t in (1.0, *roots) if abs(float(self._r(t))) <= 1e-9 * size]:
            raise ConfigError(
                f"q(t) with coefficients {list(self.q.coefficients)} is zero at t = {zeros[0]:g}: "
                "u = (g - p a_t - s e) / q cannot be recovered there"
            )
        if self.is_pinned and any(self.s.coefficients) and _zeros_at_0(self.s) < self._zeros_at_0:
            raise ConfigError(
                f"q(t) with coefficients {list(self.q.coefficients)} vanishes at t = 0 faster than s(t) with "
                f"{list(self.s.coefficients)}: near t = 0 the output g = p a_t + s e then contains the noise, which no "
                "function of (a_t, t) can give"
            )
        if instant_share is not None and not (type(instant_share) in (int, float) and 0.0 <= instant_share <= 1.0):
            raise ConfigError(f"instant_share={instant_share} must be in [0, 1], or null for b = 0")
        if instant_share is not None and self.is_pinned:
            raise ConfigError(
                f"q(t) with coefficients {list(self.q.coefficients)} vanishes at t = 0, so g cannot tell the velocity "
                "at b = t = 0: leave instant_share null, or choose q(0) != 0"
            )
        self.instant_share = instant_share
        # g = skip(t) a_t + out(t) f
        out = Polynomial(tuple(c / self.q.at_one for c in self.q.coefficients))
        self._out, self._skip = out, _difference(self.p, out, self.p.at_one)

    def __repr__(self) -> str:
        p, q, s = (list(c.coefficients) for c in (self.p, self.q, self.s))
        share = "" if self.instant_share is None else f", instant_share={self.instant_share}"
        return f"Reformulation(p={p}, q={q}, s={s}{share})"

    @property
    def two_times(self) -> bool:
        """Whether the network takes the interval's start b as a second time."""
        return self.instant_share is not None

    @property
    def is_pinned(self) -> bool:
        """Whether q(0) = 0, so that the network gives f and g = p a_t + q/q(1) (f - p(1) a_t)."""
        return self._zeros_at_0 > 0

    @property
    def is_direct(self) -> bool:
        """Whether the output at t = 1 is the action itself: q(1) = -1 and p(1) + s(1) = 1."""
        return self.q.at_one == -1.0 and self.p.at_one + self.s.at_one == 1.0

    def pinned(self, f: Tensor, dfdt: Tensor, a_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """g and dg/dt from the network's output f and its derivative df/dt along the path.

        With k = q/q(1) and c = p - k p(1), a pinned variant has

            g = c a_t + k f,    dg/dt = c' a_t + c v + k' f + k df/dt.

        A variant that is not pinned has g = f.
        """
        if not self.is_pinned:
            return f, dfdt
        c, k, dc, dk = self._skip(t), self._out(t), self._skip.derivative(t), self._out.derivative(t)
        return _sum((c, a_t), (k, f)), _sum((dc, a_t), (c, v), (dk, f), (k, dfdt))

    def output(self, u: Tensor, a_t: Tensor, e: Tensor, t: Tensor) -> Tensor:
        """g = p a_t + q u + s e."""
        return _sum((self.p(t), a_t), (self.q(t), u), (self.s(t), e))

    def average_velocity(self, g: Tensor, a_t: Tensor, e: Tensor, t: Tensor) -> Tensor:
        """u = (g - p a_t - s e) / q, for t > 0."""
        return _sum((1.0, g), (-self.p(t), a_t), (-self.s(t), e)) / self.q(t)

    def target(
        self, g: Tensor, dgdt: Tensor, v: Tensor, a_t: Tensor, e: Tensor, t: Tensor, b: Tensor | float = 0.0
    ) -> Tensor:
        """The MeanFlow identity written for g: with u_tgt = v - (t - b) du/dt,

            g_tgt = p a_t + q u_tgt + s e
            q du/dt = dg/dt - p' a_t - p v - s' e - q' u       (e does not change along a path)

        The term (t - b) q' u = (t - b) q'/q (g - p a_t - s e) is computed in the form that is finite at t = 0.

        Args:
            g, dgdt: the output and its total derivative along the path, both without gradient.
            v: e - a, the velocity of the path.
            b: start of the interval.
        """
        p, q, s = self.p(t), self.q(t), self.s(t)
        dp, ds = self.p.derivative(t), self.s.derivative(t)
        qdudt = _sum((1.0, dgdt), (-dp, a_t), (-p, v), (-ds, e))
        g_tgt = _sum((p, a_t), (q, v), (s, e)) - (t - b) * qdudt
        if len(self.q.coefficients) > 1:
            qu = _sum((1.0, g), (-p, a_t), (-s, e))
            g_tgt = g_tgt + self._relative_slope(t, b) * qu
        return g_tgt

    def action(self, g: Tensor, e: Tensor) -> Tensor:
        """The action one step from the noise e: a = e - u(e, 0, 1) = ((q + p + s) e - g) / q with all at t = 1.

        A direct variant has a = g. A pinned variant's network gives f = g at t = 1, so that ``g`` is what any
        variant's network gives there.
        """
        p, q, s = self.p.at_one, self.q.at_one, self.s.at_one
        return g if self.is_direct else _sum(((p + q + s) / q, e), (-1.0 / q, g))

    def _relative_slope(self, t: Tensor, b: Tensor | float) -> Coefficient:
        """(t - b) q'(t) / q(t) = (1 - b/t) (m + t r'/r)."""
        slope = self._zeros_at_0 + t * self._r.derivative(t) / self._r(t)
        # b <= t, so b/t at t = 0 stands for 0/0: its value with b = 0 is meant.
        return slope if isinstance(b, float) and b == 0.0 else slope * (1.0 - b / t.clamp_min(1e-12))


def _polynomial(name: str, coefficients: float | Sequence[float]) -> Polynomial:
    values = list(coefficients) if isinstance(coefficients, Sequence) else [coefficients]
    if not values or not all(type(c) in (int, float) and np.isfinite(c) for c in values):
        raise ConfigError(
            f"{name} must be finite polynomial coefficients in ascending powers of t, got {coefficients!r}"
        )
    while len(values) > 1 and values[-1] == 0:
        values.pop()
    return Polynomial(tuple(float(c) for c in values))


def _horner(coefficients: Sequence[float], t: Coefficient) -> Coefficient:
    value: Coefficient
    *lower, value = coefficients
    for c in reversed(lower):
        value = value * t + c
    return value


def _zeros_at_0(c: Polynomial) -> int:
    """The order of the zero at t = 0."""
    return next(k for k, value in enumerate(c.coefficients) if value != 0.0)


def _difference(p: Polynomial, k: Polynomial, factor: float) -> Polynomial:
    """p - factor k."""
    size = max(len(p.coefficients), len(k.coefficients))
    padded = (c.coefficients + (0.0,) * (size - len(c.coefficients)) for c in (p, k))
    return Polynomial(tuple(a - factor * b for a, b in zip(*padded, strict=True)))


def _sum(*terms: tuple[Coefficient, Tensor]) -> Tensor:
    """sum_k c_k x_k, without the terms whose coefficient is zero and without multiplications by one."""
    total: Tensor | None = None
    for c, x in terms:
        if isinstance(c, float) and c == 0.0:
            continue
        if isinstance(c, float) and abs(c) == 1.0:
            total = (x if c > 0 else -x) if total is None else (total + x if c > 0 else total - x)
        else:
            total = c * x if total is None else total + c * x
    assert total is not None, "every coefficient is zero"
    return total
