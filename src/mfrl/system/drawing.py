"""How every figure looks: palette, the look of each method, paper and frames.

Nothing here touches pyplot, so there is no display and nothing to close.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from zlib import crc32

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, YELLOW = "#0072B2", "#D55E00", "#F0E442"
GREEN, PURPLE, SKY = "#009E73", "#CC79A7", "#56B4E9"
AMBER, BLACK = "#E69F00", "#000000"
# Paul Tol's, where those are not enough.
INDIGO, WINE, OLIVE, TEAL = "#332288", "#882255", "#999933", "#44AA99"
LIME, PLUM = "#6FA512", "#7B3294"
ROSE, MAUVE, BROWN, GREY, SAND = "#CC6677", "#AA4499", "#661100", "#888888", "#DDCC77"
FOREST, PINK = "#117733", "#E7298A"
OF_OBSERVATION = (BLUE, ORANGE, GREEN, PURPLE, SKY)
_DPI = 110


@dataclass(frozen=True)
class Look:
    """What a method is known by in every figure.

    Attributes:
        color: of its lines and points.
        marker: of matplotlib.
    """

    color: str
    marker: str


#: By the name of the variant or, of an algorithm that has none, of the algorithm. The markers can be told apart on a
#: line and 5 points wide, where hexagons and octagons would be circles.
LOOKS = {
    "residual": Look(BLUE, "o"),
    "velocity": Look(ORANGE, "s"),
    "noise_residual": Look(GREEN, "^"),
    "time_residual": Look(PURPLE, "D"),
    "endpoint": Look(AMBER, "v"),
    "two_time_residual": Look(SKY, "P"),
    "flow_bc": Look(BLACK, "X"),
    "flow_distilled": Look(WINE, "<"),
    "gaussian_bc": Look(OLIVE, ">"),
    "fql": Look(INDIGO, "p"),
    "bc": Look(GREY, "$\\mathbf{L}$"),
    "iql": Look(TEAL, "*"),
    "ifql": Look(MAUVE, "d"),
    "rebrac": Look(BROWN, "$\\mathbf{K}$"),
    "fbrac": Look(ROSE, "$\\mathbf{Y}$"),
    "meanflow_distill": Look(SAND, "$\\bowtie$"),
    "sac": Look(LIME, "$\\Uparrow$"),
    "rlpd": Look(PLUM, "$\\mathbf{H}$"),
    "driftql": Look(PINK, "$\\checkmark$"),
    # These have variants, and go by their own names where only algorithms are compared.
    "meanflowql": Look(BLUE, "s"),
    "meanflow_bc": Look(FOREST, "$\\mathbf{J}$"),
}
_OTHERS = [Look(*pair) for pair in product(("#6699CC", "#8C564B", "#B07AA1"), ("*", "d", "p", "P", "X"))]


def look_of(name: str) -> Look:
    """The look of a variant or algorithm; of one that is not in the table, what its name alone determines."""
    return LOOKS.get(name) or _OTHERS[crc32(name.encode()) % len(_OTHERS)]


def new_figure(width: float, height: float, dpi: int = _DPI) -> Figure:
    """An empty figure of so many inches, drawn without a display."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
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
