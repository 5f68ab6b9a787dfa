"""Distances between samples and a distribution, as pure functions of one or two point clouds ``(n, dim)``.

Two draws of one distribution have a positive distance too, which shrinks with the number of samples. Compare every
distance with this floor: see :meth:`mfrl.study.evaluate.SampleEvaluator.floor`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

BANDWIDTHS = (0.1, 0.2, 0.5)  # from the width of a mode to the distance between modes in [-1, 1]^2


def wasserstein2(x: np.ndarray, y: np.ndarray) -> float:
    """2-Wasserstein distance of two clouds of n points each, exact: sqrt(min over matchings of mean |x_i - y_j|^2).

    Optimal transport between equally many points of equal weight is a matching, which
    :func:`scipy.optimize.linear_sum_assignment` finds exactly, in about n^3 time.

    Raises:
        ValueError: the clouds differ in shape.
    """
    if x.shape != y.shape:
        raise ValueError(f"clouds of shapes {x.shape} and {y.shape}; exact matching needs as many points in both")
    square = cdist(x, y, "sqeuclidean")
    # Subtracting a number from a whole row or column does not change which matching is best. It makes a cloud that
    # has collapsed into one point, as of a policy before its first update, cost no time.
    cost = square - square.min(axis=0)
    cost -= cost.min(axis=1, keepdims=True)
    return float(np.sqrt(square[linear_sum_assignment(cost)].mean()))


def mmd(x: np.ndarray, y: np.ndarray, bandwidths: Sequence[float] = BANDWIDTHS) -> float:
    """Maximum mean discrepancy, the biased estimate: sqrt(mean k(x, x') + mean k(y, y') - 2 mean k(x, y)).

    k is the mean of Gaussian kernels exp(-|x - y|^2 / (2 h^2)) over the bandwidths h. Biased means that a point
    is also compared with itself: the estimate is never negative and 0 for equal clouds, but about sqrt(2 / n) times
    a constant below 1 for two draws of the same distribution.
    """
    square = _mean_kernel(x, x, bandwidths) + _mean_kernel(y, y, bandwidths) - 2.0 * _mean_kernel(x, y, bandwidths)
    return float(np.sqrt(max(square, 0.0)))  # rounding can leave it just below 0


def _mean_kernel(x: np.ndarray, y: np.ndarray, bandwidths: Sequence[float]) -> float:
    square = cdist(x, y, "sqeuclidean")
    return float(np.mean([np.exp(square / (-2.0 * h * h)).mean() for h in bandwidths]))


def nearest_mode(x: np.ndarray, centres: np.ndarray, radius: float, order: float = 2.0) -> np.ndarray:
    """The number of the nearest centre for each point, ``(n,)``; -1 where it is farther away than ``radius``.

    Args:
        centres: ``(modes, dim)``.
        order: of the norm that measures distances; with 2 modes are discs, with ``inf`` squares.
    """
    way = np.linalg.norm(x[:, None] - centres, ord=order, axis=-1)
    return np.where(way.min(1) <= radius, way.argmin(1), -1)


def mode_coverage(modes: np.ndarray, count: int, share: float = 0.5) -> float:
    """The share of ``count`` equally likely modes that receive at least ``share`` times the samples they should.

    Args:
        modes: ``(n,)`` from :func:`nearest_mode`; samples in no mode count among the n.
    """
    received = np.bincount(modes[modes >= 0], minlength=count)
    return float(np.mean(received >= share * len(modes) / count))


def off_mode(modes: np.ndarray) -> float:
    """The share of samples in no mode."""
    return float(np.mean(modes < 0))


def out_of_bounds(x: np.ndarray) -> float:
    """The share of points with a coordinate outside [-1, 1]."""
    return float(np.mean(np.abs(x).max(1) > 1.0))
