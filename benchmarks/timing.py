"""How long calls take. This module loads neither torch nor JAX: what is measured is loaded by those who measure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def median_seconds(action: Callable[[], Any], about: float = 0.2, most: int = 50) -> float:
    """The median over as many calls as fit into so many seconds, after one that does not count."""
    action()
    taken: list[float] = []
    while not taken or (len(taken) < most and sum(taken) < about):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
