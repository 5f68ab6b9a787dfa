"""What a network is asked for, drawn for data whose flow is known (:class:`mfrl.study.exact.LineMixture`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mfrl.reformulation import Reformulation
from mfrl.study.exact import LineMixture
from mfrl.system.drawing import ACTION_LIMIT, BLACK, BLUE, OF_OBSERVATION, ORANGE, frame_actions, look_of, new_figure

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
            low, high = mixture.quantile([_TAIL, 1.0 - _TAIL], t)
            x = np.linspace(low, high, _POINTS)
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
    arrays = x, mixture.average_velocity(x, t), mixture.expected_noise(x, t)
    a_t, u, e = map(torch.from_numpy, arrays)
    return variant.output(u, a_t, e, torch.tensor(float(t))).numpy()


def settled_actions(mixture: LineMixture) -> Figure:
    """The map from noise to action that is right, and the one `noise_residual` settles on; and the actions they give.

    The second panel's densities are those of e carried along: p(a) = p(e) / (da/de).
    """
    e = np.linspace(-3.2, 3.2, 801)
    figure = new_figure(8.6, 3.2)
    mapping, density = figure.subplots(1, 2)
    settled = look_of("noise_residual").color
    maps = {"exact": (mixture.flow(e, 1.0), BLACK), "noise_residual, settled": (mixture.settled_action(e), settled)}
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


def sample_clouds(
    clouds: Mapping[str, np.ndarray], title: str = "", columns: int = 5, colors: Sequence[str] = ()
) -> Figure:
    """Clouds of actions in the plane side by side, a panel for each name, the colour saying the observation.

    Args:
        clouds: name -> ``(observations, samples, 2)``, before clipping or after; points beyond the panel are counted
            in its corner.
        colors: one for each cloud, where there is one observation and colour is free to say whose actions these are.
    """
    figure, panels = _new_panels(list(clouds), columns, title)
    for number, (axes, (name, cloud)) in enumerate(zip(panels, clouds.items(), strict=True)):
        of_cloud = colors[number : number + 1] if len(cloud) == 1 and colors else OF_OBSERVATION
        for points, color in zip(cloud, of_cloud, strict=False):
            size = max(1.0, min(6.0, 6000 / len(points) / len(cloud)))
            axes.scatter(points[:, 0], points[:, 1], s=size, color=color, alpha=0.5, linewidth=0)
        frame_actions(axes, name)
        beyond = np.mean(np.abs(cloud).max(-1) > ACTION_LIMIT)
        if beyond > 0:
            text = f"{beyond:.0%} beyond" if beyond >= 0.01 else "<1% beyond"
            axes.text(0.98, 0.02, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=7)
    return figure


def displaced_grids(maps: Mapping[str, np.ndarray], columns: int = 5) -> Figure:
    """A map from noise to action as the lines of a grid over the noise, carried along; a panel for each name.

    Where lines crowd, much noise goes to few actions; where the sheet folds or tears, one action has several noises
    or none. Darker lines pass nearer to the middle of the noise, where most of it lies.

    Args:
        maps: name -> ``(2, lines, points, 2)``: upright lines, then level ones, see
            :func:`mfrl.study.evaluate.noise_lines`. The panel of the noise itself, by the name ``noise``, is as wide as
            its lines; the others show the actions' bounds with some room around.
    """
    figure, panels = _new_panels(list(maps), columns)
    for axes, (name, lines) in zip(panels, maps.items(), strict=True):
        for family, color in zip(lines, (BLUE, ORANGE), strict=True):
            off_middle = np.abs(np.linspace(-1.0, 1.0, len(family)))
            axes.add_collection(LineCollection(family, colors=color, linewidths=0.7, alpha=0.9 - 0.6 * off_middle))
        frame_actions(axes, name)
        if name == "noise":
            reach = 1.05 * np.abs(lines).max()
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    return figure


def _new_panels(names: Sequence[str], columns: int, title: str = "") -> tuple[Figure, list[Axes]]:
    """A figure with a square panel for each name, at most ``columns`` in a row, and room for the names above them."""
    columns = min(len(names), columns)
    rows = -(-len(names) // columns)
    lines = max(name.count("\n") + 1 for name in names)
    figure = new_figure(2.4 * columns + 0.3, (2.45 + 0.2 * lines) * rows + (0.4 if title else 0.1))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=9)
    return figure, panels[: len(names)]
