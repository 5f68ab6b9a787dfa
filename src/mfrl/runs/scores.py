"""Scores in words: their names and how they are written."""

from __future__ import annotations

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


def format_seconds(seconds: float) -> str:
    """``2:10`` or ``3:02:10``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
