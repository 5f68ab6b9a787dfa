"""Schedules of the learning rate and of alpha, the weight of the flow loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def warmup_cosine(k: int, total: int, warmup: float = 0.05, floor: float = 0.1) -> float:
    """Factor of the base learning rate at update k of ``total`` offline updates.

    Rises linearly from 0 over the share ``warmup`` of them, then falls along half a cosine to ``floor``, and stays
    there beyond ``total`` (the online phase).
    """
    ramp = int(warmup * total)
    if k < ramp:
        return k / ramp
    progress = min((k - ramp) / max(total - ramp, 1), 1.0)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


class FixedAlpha(nn.Module):
    """alpha stays what it is."""

    def __init__(self, alpha: float, total: int) -> None:
        super().__init__()
        self.start, self.total = alpha, total
        self.register_buffer("alpha", torch.tensor(float(alpha)))

    def step(self, k: int, flow_loss: Tensor) -> None:
        """Called after update k (0-based) with its flow loss, a tensor without gradient."""


class CosineAlpha(FixedAlpha):
    """alpha falls from its start to a tenth of it along half a cosine over the offline updates."""

    def step(self, k: int, flow_loss: Tensor) -> None:
        low = 0.1 * self.start
        progress = min((k + 1) / self.total, 1.0)
        self.alpha.fill_(low + (self.start - low) * 0.5 * (1.0 + math.cos(math.pi * progress)))


class DynamicAlpha(FixedAlpha):
    """alpha answers to sudden changes of the flow loss (arXiv 2511.13035, Eq. 21).

    Every ``every`` updates the flow loss is compared with its mean over the last ``window`` such checks: above
    ``threshold`` times the mean, alpha *= 1.2; below the mean / ``threshold``, alpha *= 0.8; kept within [0.1, 10]
    times its start. During the first tenth of training checks are only recorded; at least two are needed to compare.
    """

    def __init__(self, alpha: float, total: int, every: int = 2000, window: int = 20, threshold: float = 5.0) -> None:
        super().__init__(alpha, total)
        self.every, self.threshold = every, threshold
        self.register_buffer("history", torch.full((window,), math.nan))

    def step(self, k: int, flow_loss: Tensor) -> None:
        if k == 0 or k % self.every:
            return
        if k >= 0.1 * self.total:
            enough = self.history.isfinite().sum() >= 2
            mean = self.history.nanmean()
            factor = torch.where(flow_loss > self.threshold * mean, 1.2, 1.0)
            factor = torch.where(flow_loss < mean / self.threshold, 0.8, factor)
            alpha = (self.alpha * torch.where(enough, factor, 1.0)).clamp(0.1 * self.start, 10.0 * self.start)
            self.alpha.copy_(alpha)
        self.history.copy_(self.history.roll(-1))
        self.history[-1] = flow_loss
