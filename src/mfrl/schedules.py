"""Schedules of the learning rate and of alpha, the weight of the flow loss, as functions of the update on tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def warmup_cosine(k: Tensor, total: int, warmup: float = 0.05, floor: float = 0.1) -> Tensor:
    """The factor of the base learning rate at update k of ``total`` updates.

    The factor rises linearly from 0 to 1 over the share ``warmup`` of the updates, falls along half a cosine to
    ``floor``, and stays there after ``total`` updates.
    """
    ramp = int(warmup * total)
    progress = ((k - ramp) / max(total - ramp, 1)).clamp(0.0, 1.0)
    return torch.where(k < ramp, k / max(ramp, 1), half_cosine(progress, 1.0, floor))


def half_cosine(progress: Tensor, start: float | Tensor, end: float | Tensor) -> Tensor:
    """The value at ``progress`` of half a cosine that goes from ``start`` at 0 to ``end`` at 1."""
    return end + (start - end) * 0.5 * (1.0 + (math.pi * progress).cos())


class FixedAlpha(nn.Module):
    """alpha is constant.

    Args:
        alpha: the first value.
        total: number of updates.

    Attributes:
        alpha, start: the present and the first value, each a buffer without dimensions.
    """

    alpha: Tensor
    start: Tensor

    def __init__(self, alpha: float, total: int) -> None:
        super().__init__()
        self.total = total
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("start", torch.tensor(float(alpha)))

    def after(self, k: Tensor, flow_loss: Tensor) -> dict[str, Tensor]:
        """New values of the buffers that change after update k (0-based), by name.

        Args:
            k, flow_loss: the update's number and its flow loss, tensors without dimensions.
        """
        return {}

    @torch.no_grad()
    def go_on_with(self, alpha: float) -> None:
        """Continue with this alpha, after the updates of the schedule."""
        self.alpha.fill_(alpha)
        self.start.fill_(alpha)


class CosineAlpha(FixedAlpha):
    """alpha falls from its first value to a tenth of it, along half a cosine over all updates."""

    def after(self, k: Tensor, flow_loss: Tensor) -> dict[str, Tensor]:
        progress = ((k + 1) / self.total).clamp(max=1.0)
        return {"alpha": half_cosine(progress, self.start, 0.1 * self.start)}

    def go_on_with(self, alpha: float) -> None:
        super().go_on_with(10.0 * alpha)  # of which a tenth is left
        self.alpha.fill_(alpha)


class DynamicAlpha(FixedAlpha):
    """alpha follows sudden changes of the flow loss (arXiv 2511.13035, Eq. 21).

    A check every ``every`` updates compares the flow loss with its mean over the last ``window`` checks. Above
    ``threshold`` times the mean, alpha is multiplied by 1.2; below the mean / ``threshold``, by 0.8. alpha stays within
    [0.1, 10] times its first value. Checks in the first tenth of training, and those with fewer than two earlier
    checks, only record the flow loss.
    """

    history: Tensor

    def __init__(self, alpha: float, total: int, every: int = 2000, window: int = 20, threshold: float = 5.0) -> None:
        super().__init__(alpha, total)
        self.every, self.threshold = every, threshold
        self.register_buffer("history", torch.full((window,), math.nan))

    def after(self, k: Tensor, flow_loss: Tensor) -> dict[str, Tensor]:
        check = (k > 0) & (k % self.every == 0)
        compare = check & (k >= 0.1 * self.total) & (self.history.isfinite().sum() >= 2)
        mean = self.history.nanmean()
        factor = torch.where(flow_loss > self.threshold * mean, 1.2, 1.0)
        factor = torch.where(flow_loss < mean / self.threshold, 0.8, factor)
        changed = (self.alpha * factor).clamp(0.1 * self.start, 10.0 * self.start)
        recorded = torch.cat([self.history[1:], flow_loss[None]])
        return {
            "alpha": torch.where(compare, changed, self.alpha),
            "history": torch.where(check, recorded, self.history),
        }
