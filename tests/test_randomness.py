"""Random numbers depend on (seed, purpose, update) and on nothing else."""

from __future__ import annotations

import itertools
import math

import torch

from mfrl.randomness import derived_seed, generator

LOW = (1 << 32) - 1  # what a CPU generator uses of its seed


def test_seeds_fit_a_generator():
    for seed, k in itertools.product((0, 1, 2**31, 2**63 - 1, -5), (0, 1, 10**7, 2**40)):
        x = derived_seed(seed, "update", k)
        assert 0 <= x < 2**63
        torch.Generator().manual_seed(x)


def test_seeds_are_the_same_in_every_process():
    # Written down once: a resumed run, on another machine, must draw the same.
    assert [derived_seed(0, "update", 0), derived_seed(3, "batch", 1_000_000)] == [
        5566247847469387759,
        8642971439901979651,
    ]


def test_no_two_updates_purposes_or_seeds_share_a_seed():
    keys = list(itertools.product(range(-3, 20), ("update", "batch", "eval", "updatf", ""), range(400)))
    assert len({derived_seed(*key) for key in keys}) == len(keys)
    # Swapping what belongs to seed and to k, or shifting one against the other, leads elsewhere.
    assert derived_seed(1, "update", 2) != derived_seed(2, "update", 1)


def test_consecutive_updates_differ_in_the_bits_cpu_generators_use():
    n = 100_000
    for seed in (0, 1):
        low = [derived_seed(seed, "update", k) & LOW for k in range(n)]
        # n^2 / 2^33, about 1.2, pairs would coincide by chance; a poor mix would give many, or none ever.
        assert n - len(set(low)) <= 8
        # Each of the 32 bits is set half of the time, within five standard deviations.
        share = torch.tensor(low)[:, None] >> torch.arange(32) & 1
        assert ((share.double().mean(0) - 0.5).abs() < 5 * 0.5 / math.sqrt(n)).all()


def test_neighbouring_updates_differ_in_half_of_the_bits():
    flips = [bin(derived_seed(0, "update", k) ^ derived_seed(0, "update", k + 1)).count("1") for k in range(2000)]
    assert abs(sum(flips) / len(flips) - 31.5) < 0.5
    assert min(flips) >= 12


def test_draws_of_neighbouring_updates_are_uncorrelated_and_standard_normal():
    x = torch.stack([torch.randn(64, generator=generator(0, "update", k)) for k in range(4000)])
    assert abs(x.mean()) < 5 / math.sqrt(x.numel())
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / x.numel())
    assert abs((x[1:] * x[:-1]).mean()) < 5 / math.sqrt(x.numel())


def test_an_update_s_draws_do_not_depend_on_what_was_drawn_before():
    early = generator(7, "update", 4)
    others = [generator(7, "update", k) for k in range(5)]
    for other in others[:4]:
        torch.rand(100, generator=other)
    assert torch.equal(torch.rand(100, generator=early), torch.rand(100, generator=others[4]))


def test_streams_of_other_purposes_and_seeds_draw_something_else():
    def draw(seed: int, purpose: str, k: int) -> list[float]:
        return torch.rand(4, generator=generator(seed, purpose, k)).tolist()

    draws = [draw(*key) for key in ((0, "update", 0), (0, "update", 1), (1, "update", 0), (0, "batch", 0))]
    assert all(a != b for a, b in itertools.combinations(draws, 2))
