"""Figure of a scan of learning rates: the losses of every size at its rates, and the best rate against size."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from varscale_analysis.figures.style import INK, ORANGE, count_ticks, label, loss_ticks, panels, short, size_colours
from varscale_analysis.lr import LearningRateScan


def rates_figure(scan: LearningRateScan) -> Figure:
    """Loss against peak rate, one colour a size; the best rate of each against N, open where it is at an edge."""
    colours = size_colours(np.array([profile.n for profile in scan.profiles]))
    with panels(2, height=5.2) as (figure, (top, bottom)):
        top.set_xscale("log")
        for profile in scan.profiles:
            there = np.isfinite(profile.loss_R)
            colour = colours[profile.n]
            top.plot(
                profile.rate_R[there], profile.loss_R[there], ".-", color=colour, label=short(profile.n), linewidth=0.8
            )
            best = int(np.argmin(profile.loss_R))
            face = "white" if profile.edge is not None else colour
            top.plot(profile.rate_R[best], profile.loss, "o", color=colour, markerfacecolor=face, zorder=3)
            bottom.plot(profile.n, profile.best, "o", color=INK, markerfacecolor="white" if profile.edge else INK)
        top.set_xlabel("peak learning rate")
        top.set_ylabel(label(scan.y))
        low, high = top.get_ylim()
        top.set_ylim(low, high + 0.35 * (high - low))  # room for the legend above the curves
        top.legend(title="N", ncols=3, loc="upper center")
        bottom.set_xscale("log")
        bottom.set_yscale("log")
        if scan.exponent is not None:
            n = np.array([scan.profiles[0].n, scan.profiles[-1].n])
            bottom.plot(n, [scan.predict(float(size)) for size in n], color=ORANGE, linewidth=0.9)
        bottom.set_xlabel(label(scan.n))
        bottom.set_ylabel("best peak rate")
        count_ticks(bottom.xaxis)
        loss_ticks(bottom.yaxis)
    return figure
