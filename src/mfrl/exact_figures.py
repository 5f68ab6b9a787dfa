"""What a network is asked for, drawn for data whose flow is known (:class:`mfrl.exact.LineMixture`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from mfrl.exact import LineMixture
from mfrl.figures import BLUE, ORANGE, new_figure
from mfrl.reformulation import Reformulation

TIMES = (0.001, 0.25, 0.5, 0.75, 1.0)
_TAIL = 0.002  # of the distribution of a_t on either side is left out
_POINTS = 401


def outputs(mixture: LineMixture, variants: Mapping[str, Reformulation], times: Sequence[float] = TIMES) -> Figure:
    """The exact output g against a_t, a panel for each variant, a line for each time.

    Where s is not zero the line is the mean over the noise, and the band around it one standard deviation: what no
    function of (a_t, t) can give.
    """
    figure = new_figure(2.6 * len(variants) + 0.5, 3.2)
    panels = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    colors = mpl.colormaps["viridis"](np.linspace(0.0, 0.9, len(times)))
    for axes, (name, variant) in zip(panels, variants.items(), strict=True):
        for t, color in zip(times, colors, strict=True):
            x = np.linspace(*mixture.quantile([_TAIL, 1.0 - _TAIL], t), _POINTS)
            g = exact_output(mixture, variant, x, t)
            axes.plot(x, g, color=color, linewidth=1.5, label=f"t = {t:g}")
            spread = abs(float(variant.s(t))) * mixture.noise_deviation(x, t)
            if spread.any():
                axes.fill_between(x, g - spread, g + spread, color=color, alpha=0.15, linewidth=0)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("$a_t$")
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("network output $g$")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(times), frameon=False, fontsize=9)
    return figure


def exact_output(mixture: LineMixture, variant: Reformulation, x: np.ndarray, t: float) -> np.ndarray:
    """g(x, t) = p x + q u + s E[e | a_t = x] of the exact average velocity u(x, 0, t), ``(n,)`` like x; t > 0."""
    u, noise = mixture.average_velocity(x, t), mixture.expected_noise(x, t)
    a_t, u, e = map(torch.from_numpy, (x, u, noise))
    return variant.output(u, a_t, e, torch.tensor(float(t))).numpy()


def settled_actions(mixture: LineMixture) -> Figure:
    """The map from noise to action that is right, and the one `noise_residual` settles on; and the actions they give.

    The second panel's densities are those of e carried along: p(a) = p(e) / (da/de).
    """
    e = np.linspace(-3.2, 3.2, 801)
    figure = new_figure(8.6, 3.2)
    mapping, density = figure.subplots(1, 2)
    maps = {"exact": (mixture.flow(e, 1.0), BLUE), "noise_residual, settled": (mixture.settled_action(e), ORANGE)}
    for name, (a, color) in maps.items():
        mapping.plot(e, a, color=color, linewidth=1.6, label=name)
        density.plot(a, mixture.density(e, 1.0) / np.gradient(a, e), color=color, linewidth=1.6, label=name)
    mapping.set(xlabel="noise $e$", ylabel="action", title="from noise to action")
    density.set(xlabel="action", ylabel="density", title="the actions that come out")
    density.set_ylim(bottom=0.0)
    for axes in (mapping, density):
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    handles, names = mapping.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
