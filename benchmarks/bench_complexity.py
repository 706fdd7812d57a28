"""Next-scale and raster order against the grid's side n, with and without cache: pairs, passes, FLOPs, seconds.

    python benchmarks/bench_complexity.py [--threads 2] [--depth 4] [--sides 2 4 8 12 16 20 24] [--quick]

One image is drawn map by map through the real blocks and the real cache: the maps of a pyramid that ends at n x n, or
n^2 single tokens. Without a cache every pass computes the whole prefix again, densely masked. Inputs are random;
drawing, embeddings, head and decoder are left out. Pairs and FLOPs are those of ``varscale.models.complexity``, and up
to n = 16 must equal what torch counts in the same loop on the meta device; with and without a cache the blocks must put
out the same. Seconds are medians over rounds in which all four ways take turns.

Prints its conclusion; writes JSON, a figure and a report, ``complexity_<hardware>_<date>``, into ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from varscale.models.complexity import generation_cost, next_scale_schedule, raster_schedule
from varscale.nn.attention import KeyValueCache
from varscale.nn.blocks import Block
from varscale.schedule import ScaleSchedule
from varscale.training.device import synchronize

HEAD_DIM = 64
ORDERS: dict[str, Callable[[int], ScaleSchedule]] = {"next-scale": next_scale_schedule, "raster": raster_schedule}
WAYS = [(order, cache) for cache in (True, False) for order in ORDERS]
COLOURS = {"next-scale": "#0072b2", "raster": "#d55e00"}  # of the Okabe-Ito palette
GUIDE = "#666666"
QUANTITIES = {
    "attention_pairs": "query-key pairs of a head and block (1)",
    "passes": "sequential forward passes (1)",
    "flops": "FLOPs of the blocks (FLOP)",
    "seconds": "time of an image in the blocks (s)",
}
COUNTED_TO = 16  # the largest side that torch counts: a pass of tensors without storage takes as long as a real one
FAR = 64  # a side beyond those that are measured
LEAST_ROUNDS, SECONDS_A_SIDE = 3, 12.0


@dataclass(frozen=True)
class Measurement:
    """One way of drawing one image of side n."""

    side: int
    order: str
    cache: bool
    schedule: str
    tokens_of_the_image: int
    passes: int
    tokens: int  # through the blocks, over all passes
    attention_pairs: int
    flops: int  # AdaLN once an image
    seconds: float  # median
    seconds_all: list[float]


class Stack:
    """Blocks of the depth rule's widths for one schedule, with random weights, and one image's random inputs."""

    def __init__(self, schedule: ScaleSchedule, depth: int, width: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.schedule, self.depth, self.width, self.device = schedule, depth, width, device
        dense = schedule.num_tokens  # all L x L scores, as one group
        with device:
            blocks = [Block(width, width // HEAD_DIM, schedule, group_tokens=dense) for _ in range(depth)]
            self.blocks = [block.eval() for block in blocks]
            self.x_BLD = torch.randn(1, schedule.num_tokens, width)
            self.cond_BD = torch.randn(1, width)

    @torch.no_grad()
    def draw(self, cache: bool) -> Tensor:
        """One image, map by map; the blocks' output for every token (1, L, D)."""
        return self._cached() if cache else self._recomputed()

    def _cached(self) -> Tensor:
        shape = (1, self.width // HEAD_DIM, self.schedule.num_tokens, HEAD_DIM)
        kept = KeyValueCache(self.depth, shape, dtype=torch.float32, device=self.device)
        modulations = [block.norms(self.cond_BD) for block in self.blocks]
        out = []
        for part in self.schedule.slices:
            x = self.x_BLD[:, part]
            for i, block in enumerate(self.blocks):
                x = block.step(x, modulations[i], kept, i, part)
            out.append(x)
        return torch.cat(out, dim=1)

    def _recomputed(self) -> Tensor:
        for part in self.schedule.slices:
            x = self.x_BLD[:, : part.stop]
            for block in self.blocks:
                x = block(x, self.cond_BD)
        return x


def main() -> None:
    """Measure, print the conclusion, write the files."""
    options = parse()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rows = [row for side in tqdm(options.sides, desc="sides", unit="side") for row in measure(side, options, device)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"threads: {options.threads}"
    conditions = f"{options.hardware} ({name}), torch {torch.__version__}, fp32, batch 1, depth {options.depth}, "
    conditions += f"width {64 * options.depth}"
    text = conclusion(rows)
    stem = options.out / f"complexity_{options.hardware}_{datetime.now(UTC):%Y-%m-%d}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    result = {**settings, "torch": torch.__version__, "results": [asdict(row) for row in rows]}
    Path(f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(rows, conditions).savefig(f"{stem}.png", dpi=200)
    Path(f"{stem}.md").write_text(report(rows, conditions, text, stem.name))
    print(f"{text}\n\nwritten: {stem}.json, .png, .md")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[2, 4, 8, 12, 16, 20, 24])
    parser.add_argument("--depth", type=int, default=4, help="of the blocks; their width is 64 times that")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--hardware", default=f"{platform.machine()}-cpu", help="a word for the names of the files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--quick", action="store_true", help="one block, sides up to 12, one round: to try it")
    options = parser.parse_args()
    if options.quick:
        options.depth, options.sides = 1, [side for side in options.sides if side <= 12]
    if len(options.sides) < 2:
        parser.error("give at least two sides; the figure and the exponents need them")
    options.sides = sorted(set(options.sides))
    return options


def measure(side: int, options: argparse.Namespace, device: torch.device) -> list[Measurement]:
    """All four ways at one side, in turns, until the time for a side is spent."""
    width = HEAD_DIM * options.depth
    schedules = {order: build(side) for order, build in ORDERS.items()}
    stacks = {order: Stack(schedule, options.depth, width, device) for order, schedule in schedules.items()}
    for stack in stacks.values():  # also warms up
        torch.testing.assert_close(stack.draw(cache=True), stack.draw(cache=False), atol=1e-4, rtol=1e-4)
    seconds: dict[tuple[str, bool], list[float]] = {way: [] for way in WAYS}
    rounds, started = 1 if options.quick else LEAST_ROUNDS, time.perf_counter()
    while len(seconds[WAYS[0]]) < rounds or (not options.quick and time.perf_counter() - started < SECONDS_A_SIDE):
        for order, cache in WAYS:
            synchronize(device)
            begin = time.perf_counter()
            stacks[order].draw(cache)
            synchronize(device)
            seconds[order, cache].append(time.perf_counter() - begin)
    rows = []
    for order, cache in WAYS:
        schedule = schedules[order]
        cost = generation_cost(schedule, cache=cache)
        if side <= COUNTED_TO:
            check_counts(schedule, cache, width)
        rows.append(
            Measurement(
                side=side,
                order=order,
                cache=cache,
                schedule=str(schedule) if order == "next-scale" else f"{side * side} single tokens",
                tokens_of_the_image=schedule.num_tokens,
                passes=cost.passes,
                tokens=cost.tokens,
                attention_pairs=cost.attention_pairs,
                flops=cost.flops(options.depth, width),
                seconds=statistics.median(seconds[order, cache]),
                seconds_all=seconds[order, cache],
            )
        )
    return rows


def check_counts(schedule: ScaleSchedule, cache: bool, width: int) -> None:
    """Let torch count the matrix products of one block on the meta device; asserts that the formulas say the same."""
    stack = Stack(schedule, 1, width, torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        stack.draw(cache)
    cost, by_operator = generation_cost(schedule, cache=cache), counter.get_flop_counts()["Global"]
    linears = sum(by_operator.get(operator, 0) for operator in (torch.ops.aten.mm, torch.ops.aten.addmm))
    attention = counter.get_total_flops() - linears
    assert attention == 4 * width * cost.attention_pairs
    repeated = 0 if cache else (cost.passes - 1) * 12 * width**2  # AdaLN of every pass, which the rule counts once
    assert linears + attention - repeated == cost.flops(1, width)


def conclusion(rows: list[Measurement]) -> str:
    """What the measurement says at the side of VAR-256 if it was taken, else at the largest."""
    sides = {row.side for row in rows}
    n = 16 if 16 in sides else max(sides)
    at = {(row.order, row.cache): row for row in rows if row.side == n}
    pyramid, raster = at["next-scale", True], at["raster", True]
    pyramid_again, raster_again = at["next-scale", False], at["raster", False]
    lines = [
        f"At n = {n}, without a cache: raster order takes {raster_again.attention_pairs:,} query-key pairs, next-scale "
        f"{pyramid_again.attention_pairs:,}. From n = {_span(rows)[0]} to {_span(rows)[1]} they grow as "
        f"n^{exponent(rows, 'raster', False, 'attention_pairs'):.2f} and "
        f"n^{exponent(rows, 'next-scale', False, 'attention_pairs'):.2f}: the published O(n^6) against O(n^4) is this "
        f"comparison, without a cache (counted on from n = {FAR} to {2 * FAR}, where the sides grow geometrically, the "
        f"exponents are {_far('raster'):.2f} and {_far('next-scale'):.2f}). FLOPs, linear layers "
        f"included, grow as n^{exponent(rows, 'raster', False, 'flops'):.2f} and "
        f"n^{exponent(rows, 'next-scale', False, 'flops'):.2f}.",
        f"With a cache: raster {raster.attention_pairs:,} pairs and {raster.flops / 1e9:.2f} GFLOP, next-scale "
        f"{pyramid.attention_pairs:,} and {pyramid.flops / 1e9:.2f} GFLOP. Raster order does "
        f"{pyramid.attention_pairs / raster.attention_pairs:.1f} times less attention and "
        f"{pyramid.flops / raster.flops:.1f} times less arithmetic, and both grow as n^"
        f"{exponent(rows, 'raster', True, 'attention_pairs'):.2f} and "
        f"n^{exponent(rows, 'next-scale', True, 'attention_pairs'):.2f}.",
        f"The gain of next-scale with a cache is sequential steps: {pyramid.passes} against {raster.passes}. In time "
        f"that is {pyramid.seconds:.3g} s against {raster.seconds:.3g} s an image on this machine "
        f"({raster.seconds / pyramid.seconds:.2g} x); without a cache {pyramid_again.seconds:.3g} s against "
        f"{raster_again.seconds:.3g} s ({raster_again.seconds / pyramid_again.seconds:.2g} x).",
    ]
    return "\n\n".join(lines)


def _far(order: str) -> float:
    """Exponent of the pairs without a cache, beyond what is measured."""
    near, far = (generation_cost(ORDERS[order](side), cache=False).attention_pairs for side in (FAR, 2 * FAR))
    return math.log2(far / near)


def _span(rows: list[Measurement]) -> tuple[int, int]:
    """The largest side, and the one measured nearest to its half: single steps depend on where a scale is added."""
    *others, last = sorted({row.side for row in rows})
    return min(others, key=lambda side: abs(side - last / 2)), last


def exponent(rows: list[Measurement], order: str, cache: bool, quantity: str) -> float:
    """p in quantity ~ n^p over about the last doubling of n."""
    values = {row.side: getattr(row, quantity) for row in rows if (row.order, row.cache) == (order, cache)}
    before, last = _span(rows)
    return math.log(values[last] / values[before]) / math.log(last / before)


def figure(rows: list[Measurement], conditions: str) -> Figure:
    """Pairs, passes, FLOPs and seconds against n, log-log; dotted: n^4 and n^6 through the largest point."""
    with mpl.rc_context(
        {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    ):
        drawn = Figure(figsize=(7.0, 5.6), layout="constrained")
        FigureCanvasAgg(drawn)
        panels = drawn.subplots(2, 2, sharex=True).flat
        sides = sorted({row.side for row in rows})
        for ax, (quantity, label) in zip(panels, QUANTITIES.items(), strict=True):
            largest = {order: max(getattr(row, quantity) for row in rows if row.order == order) for order in ORDERS}
            for order, cache in WAYS:
                values = [getattr(row, quantity) for row in rows if (row.order, row.cache) == (order, cache)]
                style = "-o" if cache else "--s"
                name = f"{order}, {'with cache' if cache else 'without cache'}"
                ax.plot(sides, values, style, color=COLOURS[order], markersize=3.5, linewidth=1.1, label=name)
            if quantity != "passes":
                for order, power in (("next-scale", 4), ("raster", 6)):
                    reach = [sides[-1] / 3, sides[-1] * 1.3]
                    guide = [largest[order] * (n / sides[-1]) ** power for n in reach]
                    ax.plot(reach, guide, ":", color=GUIDE, linewidth=1.0, zorder=1)
                    end = {"xytext": (2, 0), "textcoords": "offset points", "va": "center", "color": GUIDE}
                    ax.annotate(f"$n^{power}$", (reach[1], guide[1]), **end)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks(sides, [str(side) for side in sides])
            ax.set_xlim(sides[0] / 1.15, sides[-1] * 1.6)
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_ylabel(label)
        for ax in drawn.axes[2:]:
            ax.set_xlabel("side n of the finest token map")
        drawn.axes[0].legend(fontsize=7, loc="upper left")
        drawn.suptitle(f"{conditions}; dotted: $n^4$ and $n^6$ through the largest point", fontsize=8)
    return drawn


def report(rows: list[Measurement], conditions: str, text: str, stem: str) -> str:
    """The report in markdown."""
    head = "| n | order | cache | tokens | passes | pairs | GFLOP | s an image |\n|---|---|---|---|---|---|---|---|"
    table = [
        f"| {row.side} | {row.order} | {'yes' if row.cache else 'no'} | {row.tokens_of_the_image:,} | {row.passes:,} | "
        f"{row.attention_pairs:,} | {row.flops / 1e9:.3g} | {row.seconds:.3g} |"
        for row in rows
    ]
    growth = [
        f"| {order} | {'yes' if cache else 'no'} | "
        + " | ".join(f"{exponent(rows, order, cache, quantity):.2f}" for quantity in QUANTITIES)
        + " |"
        for order, cache in WAYS
    ]
    before, last = _span(rows)
    return "\n".join(
        [
            "# Next-scale and raster order: cost of an image against the side of its grid",
            "",
            f"{conditions}. What is measured stands at the top of the script.",
            "",
            f"    python benchmarks/{' '.join([Path(__file__).name, *sys.argv[1:]])}",
            "",
            text,
            "",
            f"![pairs, passes, FLOPs and seconds against n]({stem}.png)",
            "",
            "Pairs are of one head and block; FLOPs of all blocks, AdaLN once an image; torch's own count, taken up "
            f"to n = {COUNTED_TO}, is the same. "
            "Without a cache the prefix is computed again, densely masked. Seconds: medians, the four ways in turns, "
            "blocks only.",
            "",
            head,
            *table,
            "",
            f"Exponents p of ~ n^p between n = {before} and {last}:",
            "",
            "| order | cache | pairs | passes | FLOPs | seconds |\n|---|---|---|---|---|---|",
            *growth,
            "",
        ]
    )


if __name__ == "__main__":
    main()
