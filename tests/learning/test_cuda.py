"""On a GPU, where there is one: the same random numbers and updates as on the CPU, and nobody waits inside of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from learning.test_learner import ALGORITHMS, SIZE, batches, make, parameters, train
from mfrl.learning.compiling import Compiled, factors_of_products, multiplying
from mfrl.learning.learner import Learner
from mfrl.randomness import Streams, indices, key_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    with multiplying(True, tf32=False, bf16=False):
        yield


def test_random_numbers_are_those_of_the_cpu():
    k = torch.arange(3, 7)
    here = indices(key_of(5), "batch", k, 64, 1_000_003)
    there = indices(key_of(5).to(GPU), "batch", k.to(GPU), 64, 1_000_003)
    assert torch.equal(here, there.cpu())
    draws = make("meanflowql").draws(SIZE)
    drawn = [
        Streams(draws, "update", device).numbers(key_of(5).to(device), k.to(device))
        for device in (torch.device("cpu"), GPU)
    ]
    assert torch.equal(drawn[0]["time"], drawn[1]["time"].cpu())
    torch.testing.assert_close(drawn[0]["flow"], drawn[1]["flow"].cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tf32", [False, True])
def test_products_round_to_tf32_where_the_setting_says_so(tf32: bool):
    with multiplying(True, tf32=tf32, bf16=True):
        assert factors_of_products(GPU) == ("tf32" if tf32 else "float32")


@pytest.mark.parametrize("compiled", [False, True, "captured"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_updates_are_those_of_the_cpu_to_rounding(name: str, compiled: Compiled):
    torch._dynamo.reset()
    counters.clear()
    here, there = Learner([make(name)], SIZE), Learner([make(name).to(GPU)], SIZE, compiled)
    # A graph is warmed up by the first update, captured by the second and replayed from then on.
    for one, other in zip(train(here, batches(6)), train(there, [batch.to(GPU) for batch in batches(6)]), strict=True):
        for key, value in one.items():
            torch.testing.assert_close(other[key].cpu(), value, rtol=1e-3, atol=1e-4, msg=key)
    for key, value in parameters(here.algorithms[0]).items():
        mine = parameters(there.algorithms[0])[key].cpu()
        torch.testing.assert_close(mine, value, rtol=1e-3, atol=5e-4, equal_nan=True, msg=key)

    assert counters["inductor"]["cudagraph_skips"] == 0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nobody_waits_for_the_device_inside_an_update(name: str):
    learner = Learner([make(name).to(GPU)], SIZE)
    data = [batch.to(GPU) for batch in batches(4)]
    train(learner, data[:1])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in data[1:]:
            learner.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
