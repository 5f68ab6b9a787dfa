r"""Random numbers as a function of (seed, purpose, update, element): nothing to save, nothing to restore.

What training draws comes from Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011), written on integer tensors:

    word(seed, purpose, k, i) = philox(counter = (i / 4, k, crc32(purpose), 0), key = seed)[i mod 4]

Update k therefore draws the same numbers on every device, eager or compiled, for one member of a population or many,
in chunks of any size, and in a process that did not make the updates before it. Whole numbers are the same to the last
bit. Normal numbers are the same up to the rounding of a device's logarithm and cosine.

Code outside of training (episodes, their noise, toys) draws from a generator of torch or NumPy that
:func:`derived_seed` seeds.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_LOW = (1 << 32) - 1  #: the lower of two 32-bit words
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def derived_seed(seed: int, purpose: str, k: int) -> int:
    """A 63-bit seed for step ``k`` of the stream ``purpose``, by splitmix64 over all three.

    torch's generator on the CPU uses only the lower 32 bits of a seed, so all bits have to be mixed well.
    """
    x = (seed * 0x9E3779B97F4A7C15 + (zlib.crc32(purpose.encode()) << 32) + k) & _MASK
    for _ in range(2):
        x = (x + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return x >> 1


def generator(seed: int, purpose: str, k: int) -> torch.Generator:
    """A generator on the CPU, seeded for step ``k`` of the stream ``purpose``."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, k))


def key_of(seed: int | Tensor) -> Tensor:
    """Philox's key of a seed, ``(2,)`` int64: its lower and its upper 32 bits."""
    return torch.stack([torch.as_tensor(half) for half in (seed & _LOW, (seed >> 32) & _LOW)])


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Philox4x32-10: four random 32-bit words for every counter.

    Args:
        counter: four words, int64 tensors in [0, 2^32) that broadcast against one another.
        key: two words, int64 tensors in [0, 2^32) that broadcast against the counter.

    Returns:
        int64 in [0, 2^32), with the broadcast shape of the counter and a last dimension of 4.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A product of two 32-bit words needs all 64 bits. It may be negative as a signed number; its bits are right.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) ^ c1 ^ k0) & _LOW, ((p0 >> 32) ^ c3 ^ k1) & _LOW
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)


def uniform(words: Tensor) -> Tensor:
    """float32 in (0, 1), one for each word: one of the 2^23 numbers (j + 1/2) / 2^23."""
    return (words >> 9).float() * 2.0**-23 + 2.0**-24


def normal(words: Tensor) -> Tensor:
    """Standard normal numbers by Box and Muller, one for each word; the last dimension must be even."""
    u, v = uniform(words).unflatten(-1, (-1, 2)).unbind(-1)
    radius, angle = (-2.0 * u.log()).sqrt(), 2.0 * math.pi * v
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(-2)


def below(words: Tensor, high: int) -> Tensor:
    """int64 uniform over 0 .. high - 1, one for every two words; ``high`` is at most 2^31.

    The value is floor(high x / 2^64), where x are the 64 bits of the two words. Probabilities differ by at most
    2^-64, i.e. by a relative high / 2^64.
    """
    upper, lower = words.unflatten(-1, (-1, 2)).unbind(-1)
    return (upper * high + ((lower * high) >> 32)) >> 32


class Draw(Protocol):
    """Random numbers of an update, made in two steps: :meth:`numbers` is costly, :meth:`value` is cheap."""

    @property
    def words(self) -> int:
        """Number of 32-bit words that the draw takes."""

    def numbers(self, words: Tensor) -> Tensor:
        """From int64 words ``(..., words)`` to as many numbers, for several updates and members at once."""

    def value(self, numbers: Tensor) -> Any:
        """What the loss gets, made of the ``(words,)`` numbers of one update."""


@dataclass(frozen=True)
class Normal:
    """Normal numbers of mean 0 and standard deviation ``std``, in the given shape."""

    shape: tuple[int, ...]
    std: float = 1.0

    @property
    def words(self) -> int:
        count = math.prod(self.shape)
        return count + count % 2

    def numbers(self, words: Tensor) -> Tensor:
        return self.std * normal(words)

    def value(self, numbers: Tensor) -> Tensor:
        return numbers[: math.prod(self.shape)].view(self.shape)


class Streams:
    """All random numbers of an update, from one call of Philox.

    Args:
        draws: the draws, by name; each name is a stream of its own.
        purpose: e.g. "update" or "held out"; draws of the same name for different purposes are independent.
        device: the device that draws.
    """

    def __init__(self, draws: Mapping[str, Draw], purpose: str, device: torch.device | str = "cpu") -> None:
        self._draws = dict(draws)
        self._blocks = [-(-draw.words // 4) for draw in self._draws.values()]
        streams = [zlib.crc32(f"{purpose}/{name}".encode()) for name in self._draws]
        sizes = torch.tensor(self._blocks, dtype=torch.int64)
        self._block = torch.cat([torch.arange(n) for n in [*self._blocks, 0]]).to(device)
        self._stream = torch.tensor(streams, dtype=torch.int64).repeat_interleave(sizes).to(device)

    def numbers(self, key: Tensor, k: Tensor) -> dict[str, Tensor]:
        """The numbers of updates ``k``, by the names of the draws.

        Args:
            key: ``(2,)`` int64 from :func:`key_of`; ``(members, 2)`` for several seeds.
            k: ``(updates,)`` int64, in [0, 2^32).

        Returns:
            ``(updates, words)`` for one seed, ``(updates, members, words)`` for several.
        """
        if not self._draws:
            return {}
        parts = _words(key, k, self._block, self._stream).split(self._blocks, -2)
        return {
            name: draw.numbers(part.flatten(-2)[..., : draw.words])
            for (name, draw), part in zip(self._draws.items(), parts, strict=True)
        }

    def values(self, numbers: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the loss gets, made of the ``(words,)`` numbers of one update of one member."""
        return {name: draw.value(numbers[name]) for name, draw in self._draws.items()}


def indices(key: Tensor, purpose: str, k: Tensor, count: int, high: int) -> Tensor:
    """``count`` indices for each update, with replacement, int64 in [0, high).

    Args:
        key, purpose, k, count: see :func:`index_words`.
        high: number of things to choose from.

    Returns:
        ``(updates, count)`` for one seed, ``(updates, members, count)`` for several.
    """
    return below(index_words(key, purpose, k, count), high)


def index_words(key: Tensor, purpose: str, k: Tensor, count: int) -> Tensor:
    """The words of which :func:`below` makes ``count`` indices for each update.

    Args:
        key: ``(2,)`` int64 from :func:`key_of`; ``(members, 2)`` for several seeds.
        purpose: names the stream.
        k: ``(updates,)`` int64, the numbers of the updates.
        count: indices for each update.

    Returns:
        ``(updates, 2 count)`` for one seed, ``(updates, members, 2 count)`` for several.
    """
    block = torch.arange(-(-count // 2), device=k.device)
    stream = torch.full((), zlib.crc32(purpose.encode()), device=k.device)
    return _words(key, k, block, stream).flatten(-2)[..., : 2 * count]


def _words(key: Tensor, k: Tensor, block: Tensor, stream: Tensor) -> Tensor:
    """The words ``(updates, blocks, 4)`` for one seed, ``(updates, members, blocks, 4)`` for several.

    Args:
        key: ``(2,)`` or ``(members, 2)``.
        k: ``(updates,)``.
        block, stream: ``(blocks,)``; one stream for all blocks may have no axis.
    """
    low, high = key.unbind(-1)
    counter = block, k.view(-1, *[1] * key.ndim), stream, torch.zeros((), dtype=torch.int64, device=k.device)
    return philox(counter, (low[..., None], high[..., None]))
