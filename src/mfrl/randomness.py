"""Random numbers as a function of (seed, purpose, update): nothing to save, nothing to restore.

The draws of update k do not depend on how many updates came before in this process, so a resumed run draws what
an uninterrupted one would have drawn, and updates can be grouped into chunks of any size.

torch's generator on the CPU begins from the lower 32 bits of a seed only. So of the streams of one run some coincide by
chance: among n of them about n^2 / 2^33 pairs, e.g. 116 pairs of batches in a million updates. On a GPU all 63 bits
count. The two kinds of generator draw different numbers from one seed.
"""

from __future__ import annotations

import zlib

import torch

_MASK = (1 << 64) - 1


def derived_seed(seed: int, purpose: str, k: int) -> int:
    """A 63-bit seed for step ``k`` of the stream ``purpose``: splitmix64 over the three, well mixed in every bit.

    How many of the bits count is up to the generator that takes it, see above.
    """
    x = (seed * 0x9E3779B97F4A7C15 + (zlib.crc32(purpose.encode()) << 32) + k) & _MASK
    for _ in range(2):
        x = (x + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return x >> 1


def generator(seed: int, purpose: str, k: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` at the start of step ``k`` of the stream ``purpose``."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, k))
