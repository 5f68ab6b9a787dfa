r"""Data on a line whose flow is known exactly. They show what each reformulation asks of its network.

    data and noise    a ~ 1/K sum_k N(mu_k, sd^2),  e ~ N(0, 1)
    path              a_t = (1 - t) a + t e  ~  1/K sum_k N((1 - t) mu_k, S_t^2),   S_t^2 = (1 - t)^2 sd^2 + t^2
    flow              F_b(a_b) = F_t(a_t) with the distribution functions F: on a line, points keep their order
    average velocity  u(a_t, 0, t) = (a_t - a_0) / t

In a product of such lines, as the toy ``grid`` is, each coordinate flows by itself. Arrays broadcast; t is in (0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from mfrl.errors import ConfigError


@dataclass(frozen=True)
class LineMixture:
    """K equally likely Gaussians on a line.

    Args:
        means: mu_k.
        sd: standard deviation of each.

    Raises:
        ConfigError: no mean at all, or an sd that is not positive.
    """

    means: tuple[float, ...]
    sd: float

    def __post_init__(self) -> None:
        if not self.means or not self.sd > 0.0:
            raise ConfigError(f"means={self.means} must name a place and sd={self.sd} be positive")

    def scale(self, t: ArrayLike) -> np.ndarray:
        """S_t."""
        return np.hypot((1.0 - np.asarray(t)) * self.sd, t)

    def density(self, x: ArrayLike, t: ArrayLike) -> np.ndarray:
        """The density of a_t at x."""
        return np.exp(-0.5 * self._standard(x, t) ** 2).mean(-1) / (np.sqrt(2.0 * np.pi) * self.scale(t))

    def cdf(self, x: ArrayLike, t: ArrayLike) -> np.ndarray:
        """F_t(x)."""
        return ndtr(self._standard(x, t)).mean(-1)

    def quantile(self, share: ArrayLike, t: ArrayLike) -> np.ndarray:
        """The x with F_t(x) = share, for shares in (0, 1), by bisection."""
        share, t = np.broadcast_arrays(np.asarray(share, float), np.asarray(t, float))
        # It lies between the quantiles of the outermost Gaussians.
        spread = self.scale(t) * ndtri(share)
        low, high = (1.0 - t) * min(self.means) + spread, (1.0 - t) * max(self.means) + spread
        for _ in range(48):
            middle = 0.5 * (low + high)
            below = self.cdf(middle, t) < share
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return 0.5 * (low + high)

    def flow(self, x: ArrayLike, t: ArrayLike, b: ArrayLike = 0.0) -> np.ndarray:
        """The point a_b at time b of the flow line that passes through x at time t."""
        return self.quantile(self.cdf(x, t), b)

    def average_velocity(self, x: ArrayLike, t: ArrayLike) -> np.ndarray:
        """u(x, 0, t), for t > 0."""
        return (np.asarray(x) - self.flow(x, t)) / t

    def expected_action(self, x: ArrayLike, t: ArrayLike) -> np.ndarray:
        """E[a | a_t = x]."""
        weights, means = self._posterior(x, t)
        return (weights * means).sum(-1)

    def expected_noise(self, x: ArrayLike, t: ArrayLike) -> np.ndarray:
        """E[e | a_t = x], for t > 0."""
        return (x - (1.0 - np.asarray(t)) * self.expected_action(x, t)) / t

    def noise_deviation(self, x: ArrayLike, t: ArrayLike) -> np.ndarray:
        """The standard deviation of e given a_t = x, for t > 0: the spread of the noises whose paths meet in x."""
        weights, means = self._posterior(x, t)
        between = (weights * (means - self.expected_action(x, t)[..., None]) ** 2).sum(-1)
        within = (self.sd * np.asarray(t) / self.scale(t)) ** 2
        return (1.0 - np.asarray(t)) / np.asarray(t) * np.sqrt(within + between)

    def settled_action(self, e: ArrayLike, nodes: int = 80) -> np.ndarray:
        """The action on which `noise_residual` settles: g(e, 1) of its only self-consistent function of (a_t, t).

        With p = 0, q = -1, s = 1 the mean of its target is g = E[a | a_t] - t dg/dt, i.e. d(t g)/dt = E[a | a_t] along
        a flow line, so

            g(e, 1) = integral_0^1 E[a | a_t] dt,

        which is the expected action averaged over the path, instead of the end a_0 of the path. A network learns this
        with the plain squared error (gamma_adaptive = 1); adaptive weights make the mean a weighted one.

        Args:
            e: noise.
            nodes: number of nodes of the Gauss-Legendre quadrature.
        """
        e = np.asarray(e, float)
        places, weights = np.polynomial.legendre.leggauss(nodes)
        times = 0.5 * (places + 1.0)
        share = self.cdf(e, 1.0)
        return np.asarray(
            sum(0.5 * w * self.expected_action(self.quantile(share, t), t) for w, t in zip(weights, times, strict=True))
        )

    def _standard(self, x: ArrayLike, t: ArrayLike) -> np.ndarray:
        """(x - (1 - t) mu_k) / S_t, ``(..., K)``."""
        x, t = np.asarray(x, float)[..., None], np.asarray(t, float)[..., None]
        return (x - (1.0 - t) * np.array(self.means)) / self.scale(t)

    def _posterior(self, x: ArrayLike, t: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """The probability of each Gaussian given a_t = x, and the mean of its a: ``(..., K)`` each."""
        standard = self._standard(x, t)
        power = -0.5 * standard**2
        weights = np.exp(power - power.max(-1, keepdims=True))
        t = np.asarray(t, float)[..., None]
        means = np.array(self.means) + (1.0 - t) * self.sd**2 / self.scale(t) * standard
        return weights / weights.sum(-1, keepdims=True), means
