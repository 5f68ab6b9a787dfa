"""Which settings may change when a run is resumed, and which do not belong to the experiment at all."""

from __future__ import annotations

from collections.abc import Iterable

#: The settings that may change with resume=: the length of the run, how it is watched, and what changes its numbers by
#: rounding at most, such as the accelerator.
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


#: The resumable settings that decide what a score means. With existing=continue they must be those of the run in the
#: folder; to change them, the user resumes that run with resume=.
JUDGED_BY = (
    "updates",
    "online.steps",
    "eval.every",
    "eval.episodes",
    "eval.interim_episodes",
    "eval.samples",
    "eval.seed",
)

#: Settings of where a run lies and how it is started. They do not belong to the experiment.
BOOKKEEPING = ("runs", "run_dir", "existing", "jobs", "pack", "collect", "download", "search")


def matches_any(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``names``, or is inside a group that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
