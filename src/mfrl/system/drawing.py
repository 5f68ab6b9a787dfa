"""How every figure looks: palette, paper and frames.

Nothing here touches pyplot, so there is no display and nothing to close. Colours are Okabe and Ito's, which the
colour-blind can tell apart.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLUE, ORANGE, YELLOW = "#0072B2", "#D55E00", "#F0E442"
GREEN, PURPLE, SKY = "#009E73", "#CC79A7", "#56B4E9"
OF_OBSERVATION = (BLUE, ORANGE, GREEN, PURPLE, SKY)
_DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, drawn without a display."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


ACTION_LIMIT = 1.5  # of a panel of actions, which lie in [-1, 1]


def frame_actions(axes: Axes, name: str) -> None:
    """The bounds of actions as a square, with some room around."""
    axes.add_patch(Rectangle((-1, -1), 2, 2, fill=False, edgecolor="0.6", linewidth=0.8, zorder=0))
    axes.set(
        xlim=(-ACTION_LIMIT, ACTION_LIMIT),
        ylim=(-ACTION_LIMIT, ACTION_LIMIT),
        box_aspect=1,
        xticks=(-1, 0, 1),
        yticks=(-1, 0, 1),
    )
    axes.set_title(name, fontsize=9)
    axes.tick_params(labelsize=7)
