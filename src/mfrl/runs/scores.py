"""How scores are named and written, and which evaluations a run's score is the mean of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

Evaluation = TypeVar("Evaluation", bound=Mapping[str, Any])

#: A run's main score is the first of these that its evaluations have.
PREFERRED = ("eval/normalized_score", "eval/success", "eval/w2", "eval/return")

SCORE_FORMATS = {
    "eval/return": ".1f",
    "eval/length": ".1f",
    "eval/w2": ".3f",
    "eval/mmd": ".3f",
    "eval/w2_floor": ".3f",
}


def main_score(keys: Iterable[str]) -> str:
    """The main one of a run's scores: the first of ``PREFERRED`` that is there, else the first score.

    Args:
        keys: of evaluations, in their order; what does not begin with ``eval/`` is no score.
    """
    scores = [key for key in keys if key.startswith("eval/")]
    return next(key for key in (*PREFERRED, *scores) if key in scores)


def score_name(key: str) -> str:
    """The name of a score on the screen, e.g. "mode coverage" for ``eval/mode_coverage``."""
    return key.removeprefix("eval/").replace("_", " ")


def format_score(key: str, value: float) -> str:
    """A score as a string, with a sensible number of digits."""
    return format(value, SCORE_FORMATS.get(key, ".2f"))


def protocol_evaluations(suite: str, dataset: str) -> int:
    """The number of last evaluations that a suite's protocol averages: 3 for OGBench's states, otherwise 1."""
    return 3 if suite == "ogbench" and not dataset.startswith("visual-") else 1


def last_evaluations(evaluations: Sequence[Evaluation], count: int) -> list[Evaluation]:
    """The last ``count`` evaluations. That of update 0, before anything is learned, counts only where it is alone."""
    after = [evaluation for evaluation in evaluations if evaluation["updates"] > 0]
    return list(after or evaluations)[-count:]


def score_curve(evaluations: Sequence[Mapping[str, Any]], count: int) -> dict[int, float]:
    """A run's score at every evaluation, by its update: the mean of the last ``count`` evaluations up to there.

    Args:
        evaluations: lines of ``eval.jsonl``, at least one.
        count: number of evaluations in a mean; the first means have fewer.
    """
    key = main_score(key for key in evaluations[-1] if all(key in evaluation for evaluation in evaluations))
    curve = {}
    for k, evaluation in enumerate(evaluations, start=1):
        recent = [one[key] for one in last_evaluations(evaluations[:k], count)]
        curve[evaluation["updates"]] = sum(recent) / len(recent)
    return curve


def format_seconds(seconds: float) -> str:
    """A duration as ``2:10`` (minutes) or ``3:02:10`` (hours)."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
