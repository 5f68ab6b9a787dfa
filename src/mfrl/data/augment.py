"""Augmentation of images on the device they train on."""

from __future__ import annotations

import torch
from torch import Tensor

from mfrl.data.batch import Batch
from mfrl.errors import require
from mfrl.randomness import indices, key_of


class RandomCrop:
    """Shifts the images of a batch by up to ``padding`` pixels and fills the gap with the image's edge.

    This is the augmentation published for OGBench's pixel tasks (utils/datasets.py of FQL's code, ``--p_aug=0.5``).
    Either the whole batch is shifted or nothing. Each transition has its own offset, uniform over all
    (2 padding + 1)^2, which its observation and its next observation share with all their frames.

    Args:
        probability: probability that a batch is shifted.
        seed: the shifts are a function of (seed, number of the update).
        padding: published: 3.

    Raises:
        ConfigError: the probability is not in [0, 1].
    """

    def __init__(self, probability: float, seed: int, padding: int = 3) -> None:
        require("env.crop_probability", 0.0 <= probability <= 1.0, probability, "in [0, 1]")
        self.probability, self.seed, self.padding = probability, seed, padding
        self._keys: dict[torch.device, torch.Tensor] = {}

    def of(self, seed: int) -> RandomCrop:
        """The same augmentation with another seed."""
        return RandomCrop(self.probability, seed, self.padding)

    def __call__(self, batch: Batch, k: int) -> Batch:
        """The batch of update ``k``, observations uint8 ``(batch, frames, height, width, channels)``."""
        # The host decides, so that updates without a shift gather nothing and no update waits for the device.
        if int(indices(key_of(self.seed), "whether to crop", torch.tensor([k]), 1, 1 << 31)) >= self.probability * (
            1 << 31
        ):
            return batch
        device, size = batch.observations.device, len(batch.observations)
        if device not in self._keys:
            self._keys[device] = key_of(self.seed).to(device)
        update = torch.full((1,), k, device=device)
        offsets = indices(self._keys[device], "crop", update, 2 * size, 2 * self.padding + 1).view(size, 2)
        pixels = _pixels(batch.observations.shape, offsets - self.padding)
        return batch._replace(
            observations=_gather(batch.observations, pixels), next_observations=_gather(batch.next_observations, pixels)
        )


def _pixels(shape: torch.Size, shift: Tensor) -> Tensor:
    """Where each pixel of ``(batch, frames, height, width, channels)`` comes from, as an index into all of them."""
    batch, frames, height, width, _ = shape
    rows = (torch.arange(height, device=shift.device) + shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=shift.device) + shift[:, 1:]).clamp(0, width - 1)
    image = torch.arange(batch * frames, device=shift.device).view(batch, frames, 1, 1)
    return ((image * height + rows[:, None, :, None]) * width + columns[:, None, None, :]).flatten()


def _gather(images: Tensor, pixels: Tensor) -> Tensor:
    return images.flatten(0, 3).index_select(0, pixels).view(images.shape)
