"""What may change when a run goes on, and what its settings of where and how are."""

from __future__ import annotations

from collections.abc import Iterable

# What may change when a run goes on with resume=: its length, how it is watched, and what leaves its numbers alone but
# for rounding, the accelerator among it.
RESUMABLE = (
    "resume",
    "updates",
    "chunk",
    "compile",
    "tf32",
    "accelerator",
    "threads",
    "data_dir",
    "data.cache",
    "data.memory_gib",
    "trust",
    "log",
    "eval",
    "checkpoint",
    "online",
    "callbacks",
    "logger",
)


# Of these, what a run is judged by: existing=continue, where nobody asked for a change, takes them as they were.
JUDGED_BY = (
    "updates",
    "online.steps",
    "eval.every",
    "eval.episodes",
    "eval.interim_episodes",
    "eval.samples",
    "eval.seed",
)

# Where a run lies, and how it came about.
BOOKKEEPING = ("runs", "run_dir", "existing", "jobs", "pack", "collect", "download")


def matches_any(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``names`` or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
