"""Scores in words, their names and how they are written; and which evaluations a run's score is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What a run is judged by: the first of these that it was evaluated by.
PREFERRED = ("eval/normalized_score", "eval/success", "eval/w2", "eval/return")

SCORE_FORMATS = {
    "eval/return": ".1f",
    "eval/length": ".1f",
    "eval/w2": ".3f",
    "eval/mmd": ".3f",
    "eval/w2_floor": ".3f",
}


def score_name(key: str) -> str:
    """How a score is called on the screen: ``eval/mode_coverage`` is "mode coverage"."""
    return key.removeprefix("eval/").replace("_", " ")


def format_score(key: str, value: float) -> str:
    """A score with as many digits as say something."""
    return format(value, SCORE_FORMATS.get(key, ".2f"))


def averaged(suite: str, dataset: str) -> int:
    """Over how many evaluations, the last ones, a suite's protocol averages: OGBench over three, but not on pixels."""
    return 3 if suite == "ogbench" and not dataset.startswith("visual-") else 1


def score_curve(evaluations: Sequence[Mapping[str, Any]], over: int) -> dict[int, float]:
    """By update, what a run's score would be if that evaluation were its last.

    Args:
        evaluations: lines of ``eval.jsonl``, at least one.
        over: so many evaluations, or as many as there were, are averaged.
    """
    keys = [key for key in (*PREFERRED, *evaluations[-1]) if key.startswith("eval/")]
    key = next(key for key in keys if all(key in evaluation for evaluation in evaluations))
    values = [evaluation[key] for evaluation in evaluations]
    recent = [values[max(0, k + 1 - over) : k + 1] for k in range(len(values))]
    return {e["updates"]: sum(some) / len(some) for e, some in zip(evaluations, recent, strict=True)}


def format_seconds(seconds: float) -> str:
    """``2:10`` or ``3:02:10``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
