"""One-step generative policies for offline RL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mfrl.deploy.policy import LoadedPolicy

__version__ = "0.1.0"


def load(path: str | Path, trust: Sequence[str] = ()) -> LoadedPolicy:
    """A trained policy, ready to act: ``action = mfrl.load("runs/x")(observation)``.

    Observations are those of the environment, one or a batch, as arrays, tensors or dictionaries. Actions are in its
    own units. :class:`mfrl.deploy.policy.LoadedPolicy` has the rest.

    Args:
        path: a run folder (its last checkpoint) or a checkpoint.
        trust: packages whose classes the checkpoint may build, besides mfrl.

    Raises:
        CheckpointError: there is none, it is damaged or not ours, or it asks to build foreign classes.
    """
    from mfrl.deploy.policy import load  # PyTorch takes seconds to import

    return load(path, trust)
