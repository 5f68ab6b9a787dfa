"""Numbers of training that are finite, but cannot be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mfrl.errors import CheckpointError

#: Q may leave the range of what the rewards can add up to by so many times its width, and by Q_SLACK where that is
#: more: a new critic knows nothing of rewards that are tiny.
Q_FACTOR, Q_SLACK = 1.0, 10.0
#: A loss may be so many times its scale: the square of that range's width for a value's, else 1, or its own least
#: value so far where that is more. Flow losses are about 1, as actions lie in [-1, 1].
LOSS_FACTOR = 1000.0

_Q = ("q", "q_min", "q_max", "policy_q", "target", "v")


class Explosions:
    """Notices when Q or a loss has left every sensible range, and remembers the worst of each kind.

    Attributes:
        warnings: a sentence for each kind.
    """

    def __init__(self) -> None:
        self._worst: dict[str, float] = {}
        self._sentences: dict[str, str] = {}
        self._least: dict[str, float] = {}

    @property
    def warnings(self) -> list[str]:
        return list(self._sentences.values())

    def look(
        self,
        updates: int,
        metrics: Mapping[str, float],
        value_range: tuple[float, float] | None,
        remedies: str = "Try a smaller learning rate",
    ) -> list[str]:
        """Look at the means of a window of updates that ends with ``updates``; returns sentences of kinds that are new.

        Args:
            metrics: by the names that algorithms give them.
            value_range: what rewards can add up to, discounted; None where no values are learned.
            remedies: what to try, for the sentences.
        """
        before = set(self._sentences)
        if value_range is not None:
            self._look_at_q(updates, metrics, *value_range, remedies)
        width = 0.0 if value_range is None else value_range[1] - value_range[0]
        for name, value in metrics.items():
            if not name.endswith("_loss") or name == "q_loss":  # which is -Q
                continue
            scale = max(1.0, width**2 if name in ("critic_loss", "value_loss") else 1.0, self._least.get(name, 0.0))
            if value > LOSS_FACTOR * scale:
                self._note(
                    name,
                    value,
                    f"{name} was {value:.3g} at update {updates:,}, {value / scale:,.0f} times what is usual: training "
                    f"has blown up, and what is evaluated means nothing. {remedies}",
                )
            self._least[name] = min(abs(value), self._least.get(name, abs(value)))
        return [sentence for kind, sentence in self._sentences.items() if kind not in before]

    def _look_at_q(self, updates: int, metrics: Mapping[str, float], low: float, high: float, remedies: str) -> None:
        values = [metrics[name] for name in _Q if name in metrics]
        if not values:
            return
        above, below, width = max(values) - high, low - min(values), high - low
        excess, value = (above, max(values)) if above >= below else (below, min(values))
        if excess > max(Q_FACTOR * width, Q_SLACK):
            self._note(
                "Q",
                excess,
                f"Q was {value:,.4g} at update {updates:,}, but rewards can add up to {low:,.4g} to {high:,.4g} only: "
                f"the critic has lost touch with the data. {remedies}",
            )

    def _note(self, kind: str, size: float, sentence: str) -> None:
        if size > self._worst.get(kind, 0.0):
            self._worst[kind], self._sentences[kind] = size, sentence

    def state_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"worst": dict(self._worst), "sentences": dict(self._sentences), "least": dict(self._least)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is something else.
        """
        for name, kind in {"worst": float, "sentences": str, "least": float}.items():
            values = state.get(name) if isinstance(state, dict) else None
            if not isinstance(values, dict) or not all(type(value) is kind for value in values.values()):
                raise CheckpointError(f"the checkpoint's record of warnings is not as mfrl wrote it: {name}={values!r}")
        self._worst, self._sentences = dict(state["worst"]), dict(state["sentences"])
        self._least = dict(state["least"])
