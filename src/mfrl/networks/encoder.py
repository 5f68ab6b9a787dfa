"""From images to the vectors that actors and critics take for observations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfrl.meanflow import Time, path_derivative
from mfrl.networks.dual import DualNetwork


class Sees(nn.Module):
    """A network that sees its observations through an encoder of its own, or, of states, as they are.

    Of images, the features ``(batch, width)`` are costly: :meth:`see` makes them once, and the network is called with
    them as often as needed.

    Args:
        network: called with what :meth:`see` gives in place of observations.
        encoder: of images; None where observations are states.
    """

    def __init__(self, network: nn.Module, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.network = encoder, network

    def see(self, observations: Tensor) -> Tensor:
        """What :meth:`forward` takes in place of these observations."""
        return observations if self.encoder is None else self.encoder(observations)

    def forward(self, seen: Tensor, *inputs: Any) -> Any:
        return self.network(seen, *inputs)

    def jvp(self, seen: Tensor, actions: Tensor, time: Time, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Of an actor: g and its derivative along the path, see :func:`mfrl.meanflow.path_derivative`."""
        if isinstance(self.network, DualNetwork):
            return self.network.jvp(seen, actions, time, velocity)
        return path_derivative(self.network, seen, actions, time, velocity)

    def folded(self, time: Time) -> Sees:
        """Of an actor: for this one time alone, see :meth:`DualNetwork.folded`; another network stays as it is."""
        return Sees(self.network.folded(time), self.encoder) if isinstance(self.network, DualNetwork) else self


class ImpalaEncoder(nn.Module):
    """The convolutional network of IMPALA (arXiv 1802.01561), in the form FQL published for OGBench's pixel tasks.

    Pixels / 255 -> per stack (convolution, max pooling by 2, residual blocks) -> ReLU -> linear, GELU. Every
    convolution is 3 x 3; all weights are Xavier uniform, all biases zero (FQL's utils/encoders.py and networks.py,
    ``impala_small``, where no layer is normalised).

    Args:
        image_shape: ``(frames, height, width, channels)`` of an observation; frames are channels to the network,
            the oldest first.
        stacks: channels of each stack; published: 16, 32, 32.
        blocks: residual blocks a stack; published: 1.
        width: of the features; published: 512.
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
        # Frames and channels side by side in memory, behind height and width: the layout convolutions are fast in.
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

    JAX's SAME padding: where a side is even, all of its one row of padding lies behind; PyTorch's ``padding=1`` would
    lie before and shift the windows by a pixel.
    """
    return F.max_pool2d(x, 3, stride=2, padding=(x.shape[-2] % 2, x.shape[-1] % 2), ceil_mode=True)
