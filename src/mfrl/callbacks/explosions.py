"""Detects numbers of training that are finite but impossible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mfrl.errors import CheckpointError

#: The range of Q is what discounted rewards can add up to. Q may leave it by Q_FACTOR times its width, or by Q_SLACK if
#: that is more: where rewards are tiny, a new critic is far outside.
Q_FACTOR, Q_SLACK = 1.0, 10.0
#: A loss may be LOSS_FACTOR times its scale. The scale is the squared width of Q's range for losses of values and 1 for
#: others, because actions lie in [-1, 1]; and it is at least the loss's smallest value so far.
LOSS_FACTOR = 1000.0

_Q = ("q", "q_min", "q_max", "policy_q", "target", "v")


class Explosions:
    """Detects that Q or a loss has left every sensible range, and remembers the worst case of each kind.

    Attributes:
        warnings: one sentence for Q, and one for each loss that exploded.
    """

    def __init__(self) -> None:
        self._worst: dict[str, float] = {}
        self._sentences: dict[str, str] = {}
        self._least: dict[str, float] = {}

    @property
    def warnings(self) -> list[str]:
        return list(self._sentences.values())

    def check(
        self,
        updates: int,
        metrics: Mapping[str, float],
        value_range: tuple[float, float] | None,
        remedies: str = "Try a smaller learning rate",
    ) -> list[str]:
        """Check the means over the updates since the last call.

        Args:
            updates: number of updates made.
            metrics: the means, by the names that algorithms give them.
            value_range: the lowest and the highest discounted sum of rewards; None if no values are learned.
            remedies: advice, which ends each sentence.

        Returns:
            a sentence for each kind of explosion that is new.
        """
        before = set(self._sentences)
        if value_range is not None:
            self._look_at_q(updates, metrics, *value_range, remedies)
        width = 0.0 if value_range is None else value_range[1] - value_range[0]
        for name, value in metrics.items():
            if not name.endswith("_loss") or name == "q_loss":  # q_loss is -Q
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
        """The state as plain data, for a checkpoint."""
        return {"worst": dict(self._worst), "sentences": dict(self._sentences), "least": dict(self._least)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            CheckpointError: the state has another form.
        """
        for name, kind in {"worst": float, "sentences": str, "least": float}.items():
            values = state.get(name) if isinstance(state, dict) else None
            if not isinstance(values, dict) or not all(type(value) is kind for value in values.values()):
                raise CheckpointError(f"the checkpoint's record of warnings is not as mfrl wrote it: {name}={values!r}")
        self._worst, self._sentences = dict(state["worst"]), dict(state["sentences"])
        self._least = dict(state["least"])
