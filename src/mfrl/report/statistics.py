"""The statistics of a report, as pure functions of arrays.

They follow Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021). Scores are a
list with one array ``(runs,)`` for each task, a *stratum*. A bootstrap sample redraws the runs of each task with
replacement and never mixes tasks, so that the arrays become ``(resamples, runs)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Strata = Sequence[np.ndarray]
Interval = tuple[float, float]

RESAMPLES, CONFIDENCE, SEED = 5000, 0.95, 0


def task_mean(scores: Strata) -> np.ndarray:
    """The mean over tasks of the mean over runs, in which every task has the same weight.

        1/T sum_t 1/n_t sum_i x_ti

    Args:
        scores: for each task ``(..., runs)``.

    Returns:
        ``(...)``.
    """
    return np.mean([np.mean(x, axis=-1) for x in scores], axis=0)


def interquartile_mean(scores: Strata) -> np.ndarray:
    """The mean of the middle half of all runs of all tasks together.

        1/(n - 2k) sum_{i=k+1}^{n-k} x_(i),    k = floor(n / 4),  x_(i) in ascending order

    This is ``scipy.stats.trim_mean(x, 0.25)``, as in rliable. With fewer than four scores it is the mean.

    Args:
        scores: for each task ``(..., runs)``.

    Returns:
        ``(...)``.
    """
    x = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    n = x.shape[-1]
    return x[..., n // 4 : n - n // 4].mean(axis=-1)


def performance_profile(scores: Strata, levels: np.ndarray, lower_is_better: bool = False) -> np.ndarray:
    """The share of runs that reach each level, in which every task has the same weight.

        F(tau) = 1/T sum_t 1/n_t sum_i 1(x_ti >= tau),    <= where lower is better

    Agarwal et al. have x > tau; with >= a run of 100 % is one that reaches 100 %. Roundings make no difference.

    Args:
        scores: for each task ``(..., runs)``.
        levels: tau ``(levels,)``.

    Returns:
        ``(..., levels)``.
    """
    sign = -1.0 if lower_is_better else 1.0
    shares = []
    for x in scores:  # the runs one by one: samples x runs x levels may be large
        reached = sum((sign * (run[..., None] - levels) >= -1e-9).astype(float) for run in np.moveaxis(x, -1, 0))
        shares.append(reached / x.shape[-1])
    return np.mean(shares, axis=0)


def deviation(scores: np.ndarray) -> float | None:
    """The sample standard deviation of scores ``(runs,)``, with n - 1; None for a single run."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def bootstrap_interval(
    statistic: Callable[[Strata], np.ndarray],
    scores: Strata,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Interval | None:
    """The percentile interval of a statistic under the stratified bootstrap.

    Args:
        statistic: a function from ``(..., runs)`` for each task to ``(...)``.
        scores: for each task ``(runs,)``.
        resamples: number of bootstrap samples.
        confidence: between 0 and 1.
        seed: seed of the bootstrap samples.

    Returns:
        the interval; None if a task has a single run, because redrawing it says nothing about other seeds.
    """
    band = bootstrap_band(statistic, scores, resamples, confidence, seed)
    return None if band is None else _interval(band)


def bootstrap_band(
    statistic: Callable[[Strata], np.ndarray],
    scores: Strata,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> np.ndarray | None:
    """:func:`bootstrap_interval` at every point of a statistic that is a curve.

    Args:
        statistic: a function from ``(..., runs)`` for each task to ``(..., points)``.

    Returns:
        ``(2, points)``, the lower and the upper ends; None if a task has a single run.
    """
    if any(len(x) < 2 for x in scores):
        return None
    rng = np.random.default_rng(seed)
    drawn = [x[rng.integers(len(x), size=(resamples, len(x)))] for x in scores]
    return _percentiles(statistic(drawn), confidence)


def probability_of_improvement(x: Strata, y: Strata) -> float:
    """The probability that a run of X scores above a run of Y on a random task. Ties count one half.

        P(X > Y) = 1/T sum_t 1/(n_t m_t) sum_i sum_j [1(x_ti > y_tj) + 1/2 1(x_ti = y_tj)]

    Args:
        x, y: for each task ``(runs,)``, with the same tasks in the same order.
    """
    return float(np.mean([_wins(a, b).mean() for a, b in zip(x, y, strict=True)]))


def improvement_interval(
    x: Strata, y: Strata, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = SEED
) -> Interval | None:
    """The percentile interval of :func:`probability_of_improvement`. It redraws the runs of X and of Y in each task.

    In a sample, runs count several times or not at all. With counts c ``(resamples, n)`` and d ``(resamples, m)`` and
    the table W ``(n, m)`` of wins, a task's probability is ``c W d / (n m)``.

    Args:
        x, y: see :func:`probability_of_improvement`.
        resamples, confidence, seed: see :func:`bootstrap_interval`.

    Returns:
        the interval; None if a task has a single run of X or of Y.
    """
    if any(len(a) < 2 for a in (*x, *y)):
        return None
    rng = np.random.default_rng(seed)
    per_task = []
    for a, b in zip(x, y, strict=True):
        n, m = len(a), len(b)
        c = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
        d = rng.multinomial(m, np.full(m, 1 / m), size=resamples)
        per_task.append(((c @ _wins(a, b)) * d).sum(axis=1) / (n * m))
    return _interval(_percentiles(np.mean(per_task, axis=0), confidence))


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The table of wins ``(n, m)``: 1 where x_i > y_j, 1/2 where they are equal up to rounding, otherwise 0."""
    difference = x[:, None] - y[None, :]
    tie = np.isclose(x[:, None], y[None, :], rtol=1e-9, atol=1e-12)
    return np.where(tie, 0.5, difference > 0)


def _percentiles(values: np.ndarray, confidence: float) -> np.ndarray:
    """The ends ``(2, ...)`` of the interval that holds so many of the samples ``(resamples, ...)``."""
    return np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


def _interval(ends: np.ndarray) -> Interval:
    low, high = ends
    return float(low), float(high)
