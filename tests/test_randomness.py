"""Random numbers depend on (seed, purpose, update) and on nothing else."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import Tensor

from mfrl.randomness import (
    Draw,
    Normal,
    Streams,
    below,
    derived_seed,
    generator,
    indices,
    key_of,
    normal,
    philox,
    uniform,
)

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


# ---- Philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_words(counter: str, key: str, words: str) -> None:
    """Random123's known answers for philox4x32 of ten rounds."""

    def of(text: str) -> list[Tensor]:
        return [torch.tensor(int(word, 16)) for word in text.split()]

    assert philox(tuple(of(counter)), tuple(of(key))).tolist() == [int(word, 16) for word in words.split()]


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """On Python's whole numbers, which know no overflow."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q % 2**32, (p >> 32) ^ d ^ m, p % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def test_philox_of_many_counters_at_once_is_that_of_each() -> None:
    g = torch.Generator().manual_seed(0)
    counters, keys = (torch.randint(1 << 32, (300, n), generator=g) for n in (4, 2))
    words = philox(tuple(counters.unbind(1)), tuple(keys.unbind(1)))
    expected = [plain_philox(c, k) for c, k in zip(counters.tolist(), keys.tolist(), strict=True)]
    assert words.tolist() == expected


def test_a_seed_of_64_bits_is_both_words_of_the_key() -> None:
    assert key_of(0x123456789ABCDEF0).tolist() == [0x9ABCDEF0, 0x12345678]
    assert key_of(2**63 - 1).tolist() == [2**32 - 1, 2**31 - 1]
    assert key_of(3).tolist() == [3, 0]


# ---- the streams of an update


@dataclass(frozen=True)
class Words:
    """The words themselves."""

    words: int

    def numbers(self, words: Tensor) -> Tensor:
        return words

    def value(self, numbers: Tensor) -> Tensor:
        return numbers


def drawn(draws: dict[str, Draw], seed: int = 0, k: int = 0, purpose: str = "update") -> dict[str, Tensor]:
    """As an update is given them."""
    streams = Streams(draws, purpose)
    return streams.values({name: x[0] for name, x in streams.numbers(key_of(seed), torch.tensor([k])).items()})


def test_the_words_of_an_update_are_where_the_docstring_has_them() -> None:
    words = drawn({"first": Words(3), "second": Words(10)}, seed=2**40 + 7, k=12)
    for name, size in (("first", 3), ("second", 10)):
        stream = zlib.crc32(f"update/{name}".encode())
        expected = [word for i in range(3) for word in plain_philox((i, 12, stream, 0), (7, 2**8))]
        assert words[name].tolist() == expected[:size]


def test_what_is_drawn_under_a_name_depends_on_no_other_name() -> None:
    every: dict[str, Draw] = {"a": Normal((5, 3)), "b": Words(7), "c": Normal((2,), 0.5), "nothing": Words(0)}
    together = drawn(every, seed=1, k=3)
    for name, draw in every.items():
        assert torch.equal(together[name], drawn({name: draw}, seed=1, k=3)[name])
    turned = drawn(dict(reversed(every.items())), seed=1, k=3)
    assert all(torch.equal(together[name], x) for name, x in turned.items())
    assert drawn({}) == {}


def test_names_purposes_updates_and_seeds_have_numbers_of_their_own() -> None:
    def of(name: str, **where: int | str) -> Tensor:
        return drawn({name: Words(400)}, **where)[name]

    streams = [of("a"), of("b"), of("a", purpose="held out"), of("a", k=1), of("a", seed=1), of("a", seed=2**32)]
    seen = torch.cat(streams).tolist()
    assert len(seen) - len(set(seen)) <= 2  # of 2400 numbers of 32 bits, two are equal with probability 1 / 1500


def test_a_smaller_batch_has_the_beginning_of_a_larger_one_s_numbers() -> None:
    small, large = (drawn({"e": Normal((rows, 3)), "w": Words(rows)}, k=5) for rows in (7, 64))
    for name in small:
        assert torch.equal(small[name], large[name][:7])
    rows = torch.arange(4)
    assert torch.equal(indices(key_of(2), "batch", rows, 7, 1000), indices(key_of(2), "batch", rows, 64, 1000)[:, :7])


def test_updates_and_members_drawn_together_are_those_drawn_one_at_a_time() -> None:
    draws: dict[str, Draw] = {"w": Words(11), "e": Normal((6, 3), 0.7)}
    seeds, updates, streams = [0, 5, 2**40, 2**63 - 1], [0, 1, 17, 2**32 - 1], Streams(draws, "update")
    k = torch.tensor(updates)
    together = streams.numbers(torch.stack([key_of(seed) for seed in seeds]), k)
    for member, seed in enumerate(seeds):
        alone = streams.numbers(key_of(seed), k)
        for i, update in enumerate(updates):
            (words,), (noise,) = streams.numbers(key_of(seed), torch.tensor([update])).values()
            assert torch.equal(together["w"][i, member], words)
            assert torch.equal(alone["w"][i], words)
            # The logarithm and the cosine of a vector's end are other instructions than those of its middle.
            torch.testing.assert_close(together["e"][i, member], noise, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(alone["e"][i], noise, rtol=1e-5, atol=1e-6)


def test_indices_of_updates_drawn_together_are_those_drawn_one_at_a_time() -> None:
    key, updates = key_of(9), torch.tensor([0, 3, 4, 2**32 - 1])
    for count in (1, 2, 255):
        together = indices(key, "batch", updates, count, 1_000_003)
        assert together.shape == (4, count)
        for i, k in enumerate(updates):
            assert torch.equal(together[i], indices(key, "batch", k[None], count, 1_000_003)[0])
    keys = torch.stack([key_of(9), key_of(2**40 + 1)])
    of_both = indices(keys, "batch", updates, 255, 1_000_003)
    assert torch.equal(of_both, torch.stack([indices(key, "batch", updates, 255, 1_000_003) for key in keys], 1))


# ---- from words to numbers

COUNT = 200_000
LEAST = 1e-4  # of a fixed seed's p-value: what is wrong falls below it by far


def words(purpose: str, count: int = COUNT) -> Tensor:
    return drawn({"w": Words(count)}, purpose=purpose)["w"]


def moments(x: Tensor) -> list[float]:
    """The first four, each of the numbers themselves."""
    return [x.double().pow(n).mean().item() for n in (1, 2, 3, 4)]


def within(found: list[float], expected: list[float], of_squares: list[float]) -> bool:
    """Five standard deviations of a mean."""
    deviations = [math.sqrt((square - mean**2) / COUNT) for mean, square in zip(expected, of_squares, strict=True)]
    return all(abs(f - e) < 5 * d for f, e, d in zip(found, expected, deviations, strict=True))


def test_normal_numbers_are_normal() -> None:
    x = normal(words("normal"))
    assert (x.dtype, x.shape) == (torch.float32, (COUNT,))
    assert within(moments(x), [0, 1, 0, 3], [1, 3, 15, 105])
    assert stats.kstest(x.double().numpy(), "norm").pvalue > LEAST
    # Each pair comes from one radius and one angle; they are independent all the same, and so are neighbours.
    for a, b in ((x[::2], x[1::2]), (x[1:-1:2], x[2::2])):
        for f in (lambda y: y, torch.square, torch.abs):
            assert abs(torch.corrcoef(torch.stack([f(a), f(b)]))[0, 1]) < 5 / math.sqrt(len(a))
    assert 4 < x.abs().max() < 6


def test_uniform_numbers_are_uniform() -> None:
    x = uniform(words("uniform"))
    assert (x.dtype, x.shape) == (torch.float32, (COUNT,))
    assert within(moments(x), [1 / 2, 1 / 3, 1 / 4, 1 / 5], [1 / 3, 1 / 5, 1 / 7, 1 / 9])
    assert stats.kstest(x.double().numpy(), "uniform").pvalue > LEAST
    assert abs(torch.corrcoef(torch.stack([x[1:], x[:-1]]))[0, 1]) < 5 / math.sqrt(COUNT)


ENDS = torch.tensor([0, 2**32 - 1])


def test_no_uniform_number_is_an_end_and_no_normal_one_infinite() -> None:
    first, last = uniform(ENDS).tolist()
    assert 0 < first == 2.0**-24
    assert first == 1 - last < 1
    pairs = torch.cartesian_prod(ENDS, ENDS)
    for x in (normal(pairs), normal(pairs.flatten())):
        assert x.isfinite().all()
        assert 5.7 < x.abs().max() < 5.8  # sqrt(-2 log 2^-24): the longest there is


@pytest.mark.parametrize("high", [1, 2, 3, 5, 10, 1000])
def test_numbers_below_a_small_end_are_all_equally_likely(high: int) -> None:
    x = below(words(f"below {high}", 2 * COUNT), high)
    assert (x.dtype, x.shape) == (torch.int64, (COUNT,))
    counts = torch.bincount(x, minlength=high)
    assert len(counts) == high
    if high > 1:
        assert stats.chisquare(counts.numpy()).pvalue > LEAST


@pytest.mark.parametrize("high", [3 * 2**20 + 1, 3 * 2**29, 2**31 - 1, 2**31])
def test_numbers_below_a_large_end_fill_its_range(high: int) -> None:
    x = below(words(f"below {high}", 2 * COUNT), high)
    assert ((x >= 0) & (x < high)).all()
    assert stats.kstest((x.double() / high).numpy(), "uniform").pvalue > LEAST
    # Of 32 bits alone, every third number below 3 * 2^29 would be likelier than the others, or none below others.
    counts = torch.bincount(x % 3, minlength=3)
    assert stats.chisquare(counts.numpy()).pvalue > LEAST
    assert stats.chisquare(torch.bincount(x % 8, minlength=8).numpy()).pvalue > LEAST


@pytest.mark.parametrize("high", [1, 3, 1000, 2**31 - 1, 2**31])
def test_below_is_the_product_of_its_64_bits(high: int) -> None:
    pairs = torch.cat([torch.cartesian_prod(ENDS, ENDS), words("pairs", 600).view(-1, 2)])
    expected = [((upper << 32) + lower) * high >> 64 for upper, lower in pairs.tolist()]
    assert below(pairs.flatten(), high).tolist() == expected
    assert below(pairs, high).flatten().tolist() == expected
    assert (min(expected), max(expected)) == (0, high - 1)


@pytest.mark.parametrize("make", [uniform, normal, lambda x: below(x, 1000)])
def test_one_element_s_numbers_in_consecutive_updates_are_uncorrelated(make: Callable[[Tensor], Tensor]) -> None:
    streams, k = Streams({"w": Words(2)}, "update"), torch.arange(20_000)
    x = make(streams.numbers(key_of(0), k)["w"])[:, 0].double()
    assert abs(torch.corrcoef(torch.stack([x[1:], x[:-1]]))[0, 1]) < 5 / math.sqrt(len(x))


def test_a_normal_draw_has_its_shape_and_its_deviation() -> None:
    for shape in ((3,), (5, 1), (4, 3, 2), ()):
        assert drawn({"e": Normal(shape)})["e"].shape == shape
    wide, narrow = (drawn({"e": Normal((COUNT,), std)})["e"] for std in (1.0, 0.25))
    torch.testing.assert_close(narrow, 0.25 * wide, rtol=1e-6, atol=0)
