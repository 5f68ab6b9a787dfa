"""Image encoders, and the pair of a network and its encoder that algorithms hold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfrl.meanflow import Times, path_derivative
from mfrl.networks.dual import DualNetwork


class EncodedNetwork(nn.Module):
    """An actor or a critic with its own image encoder, or without one where observations are states.

    Features of images are costly: call :meth:`encode` once, then call the network with the features as often as
    needed.

    Args:
        network: takes features ``(batch, width)`` (or states) in place of observations.
        encoder: from images to features; None where observations are states.
    """

    def __init__(self, network: nn.Module, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.network = encoder, network

    def encode(self, observations: Tensor) -> Tensor:
        """The features that :meth:`forward` and :meth:`jvp` take; states stay as they are."""
        return observations if self.encoder is None else self.encoder(observations)

    def forward(self, features: Tensor, *inputs: Any) -> Any:
        return self.network(features, *inputs)

    def jvp(self, features: Tensor, actions: Tensor, times: Times, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """An actor's g and its derivative along the path, see :func:`mfrl.meanflow.path_derivative`."""
        if isinstance(self.network, DualNetwork):
            return self.network.jvp(features, actions, times, velocity)
        return path_derivative(self.network, features, actions, times, velocity)

    def folded(self, times: Times) -> EncodedNetwork:
        """An actor folded for one time, see :meth:`DualNetwork.folded`; a network of another class stays as it is."""
        if not isinstance(self.network, DualNetwork):
            return self
        return EncodedNetwork(self.network.folded(times), self.encoder)


class ImpalaEncoder(nn.Module):
    """The convolutional network of IMPALA (arXiv 1802.01561), in the form FQL published for OGBench's pixel tasks.

    Pixels / 255 -> for each stack (convolution, max pooling by 2, residual blocks) -> ReLU -> linear, GELU. Every
    convolution is 3 x 3. Weights start Xavier uniform, biases at zero. No layer is normalised (``impala_small`` in
    FQL's utils/encoders.py and networks.py).

    Args:
        image_shape: ``(frames, height, width, channels)`` of an observation. The network takes frames as channels,
            the oldest first.
        stacks: channels of each stack; published: 16, 32, 32.
        blocks: residual blocks in each stack; published: 1.
        width: number of features; published: 512.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int, int],
        stacks: Sequence[int] = (16, 32, 32),
        blocks: int = 1,
        width: int = 512,
    ) -> None:
        super().__init__()
        frames, h, w, c = image_shape
        channels = [frames * c, *stacks]
        self.stacks = nn.Sequential(*(Stack(i, o, blocks) for i, o in pairwise(channels)))
        for _ in stacks:
            h, w = (h + 1) // 2, (w + 1) // 2
        self.head = nn.Linear(h * w * channels[-1], width)
        self.width = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                assert module.bias is not None
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's types

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``(batch, frames, height, width, channels)`` -> features ``(batch, width)``."""
        # Memory holds frames and channels last, the layout in which convolutions are fast.
        x = images.permute(0, 2, 3, 1, 4).flatten(3).to(self.head.weight.dtype) / 255.0
        x = F.relu(self.stacks(x.permute(0, 3, 1, 2)))
        return F.gelu(self.head(x.permute(0, 2, 3, 1).flatten(1)), approximate="tanh")


class Stack(nn.Module):
    """Convolution, max pooling that halves height and width, and residual blocks."""

    def __init__(self, channels_in: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(max_pool(self.convolution(x)))


class ResidualBlock(nn.Module):
    """x + convolution(relu(convolution(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def max_pool(x: Tensor) -> Tensor:
    """Maximum over 3 x 3 windows in steps of 2, ``(..., h, w)`` -> ``(..., ceil(h / 2), ceil(w / 2))``.

    The padding is JAX's SAME: an even side gets one row of padding at its end. PyTorch's ``padding=1`` would put it at
    the start and shift the windows by a pixel.
    """
    return F.max_pool2d(x, 3, stride=2, padding=(x.shape[-2] % 2, x.shape[-1] % 2), ceil_mode=True)
