"""Data and runs that several test files share, made once in the real simulator."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import collect_garbage, kill_what_is_left, shorten_episodes

torch.set_num_threads(1)  # tiny networks: threads only get in each other's way

# A shell that starts the tests in its background has them ignore Ctrl-C, and the commands that they start would too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATASET = "pointmaze-medium-explore"


def pytest_collection_finish() -> None:
    collect_garbage()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pointmaze dataset, collected."""
    from mfrl.collect.ogbench.runner import collect

    folder = tmp_path_factory.mktemp("data")
    collect(DATASET, folder, episodes=12, val_episodes=2, episode_steps=101, workers=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def short_episodes() -> Iterator[None]:
    """For runs that are not about their episodes."""
    before = shorten_episodes()
    yield
    shorten_episodes(before)


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """A test that fails leaves no command behind."""
    yield
    kill_what_is_left()
