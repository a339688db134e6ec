"""Rate-distortion plots of a summary, as PNG and SVG: sizes in bytes below, in bits per pixel above."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titokc.bench.columns import OF_GROUPS, used
from titokc.bench.rows import FLOOR
from titokc.bench.summary import Group, curve_of
from titokc.files import write_atomic
from titokc.judge.table import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can tell apart; models first.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F", "#8C564B")
MARKERS = "osD^vPX*h"
FLOORS_WITHIN = 3  # times the largest budget: farther ones would squeeze everything else together


def plotted(summary: dict[str, Any]) -> list[str]:
    """The metrics that some codec has values of."""
    return used([name for name in OF_GROUPS if name in METRICS], (group["mean"] for group in summary["groups"]))


def draw(summary: dict[str, Any], name: str, formats: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """The plot of one metric -> its file in each format."""
    import matplotlib as mpl
    from matplotlib import ticker
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    codecs = list(
        dict.fromkeys(group["codec"] for group in sorted(summary["groups"], key=lambda each: each["kind"] != "model"))
    )
    for number, codec in enumerate(codecs):
        _draw_codec(axes, summary["groups"], codec, name, number)
    metric = METRICS[name]
    axes.set_xscale("log")
    axes.set_xlabel("bytes a picture (whole file)")
    axes.set_ylabel(f"{metric.label}, {'higher' if metric.higher_is_better else 'lower'} is better")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
    axes.set_title(f"{summary['pictures']} pictures, crop: {summary['crop']}", fontsize="medium", loc="left")
    if per_pixel := _bpp_of_a_byte(summary["groups"]):
        above = axes.secondary_xaxis("top", functions=(_times(per_pixel), _times(1 / per_pixel)))
        above.set_xlabel("bits per pixel")
        above.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
        above.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
        above.xaxis.set_minor_formatter(ticker.NullFormatter())
    files = {}
    with mpl.rc_context({"svg.hashsalt": "titokc"}):
        for kind in formats:
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
            files[kind] = stream.getvalue()
    return files


def write_plots(folder: Path, summary: dict[str, Any]) -> list[Path]:
    """plots/METRIC.png and .svg for every metric with values."""
    paths = []
    for name in plotted(summary):
        for kind, data in draw(summary, name).items():
            paths.append(folder / "plots" / f"{name}.{kind}")
            write_atomic(paths[-1], data)
    return paths


def _draw_codec(axes: Axes, groups: Sequence[Group], codec: str, name: str, number: int) -> None:
    """A line through the budgets, with intervals where there are any; the floor of a format as a hollow mark."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    points = curve_of(groups, codec, name)
    widest = FLOORS_WITHIN * max((group["budget"] or 0 for group in groups), default=0)
    floors = [
        group
        for group in groups
        if (group["codec"], group["view"]) == (codec, FLOOR)
        and name in group["mean"]
        and group["mean"]["bytes"] <= widest
    ]
    ours = any(group["codec"] == codec and group["kind"] == "model" for group in groups)
    if points:
        sizes = [size for size, _ in points]
        means = [group["mean"][name] for _, group in points]
        style: dict[str, Any] = {"color": colour, "marker": marker, "label": codec, "linewidth": 2.4 if ours else 1.3}
        if all(name in group["interval"] for _, group in points):
            ends = [group["interval"][name] for _, group in points]
            below = [max(0, mean - low) for mean, (low, _) in zip(means, ends, strict=True)]
            above = [max(0, high - mean) for mean, (_, high) in zip(means, ends, strict=True)]
            axes.errorbar(sizes, means, yerr=[below, above], capsize=3, elinewidth=0.7, **style)
        else:
            axes.plot(sizes, means, **style)
    for group in floors:
        label = None if points else f"{codec} (native size)"
        x, y = group["mean"]["bytes"], group["mean"][name]
        axes.plot([x], [y], label=label, markerfacecolor="none", linestyle="none", color=colour, marker=marker)


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda value: value * factor


def _bpp_of_a_byte(groups: Sequence[Group]) -> float | None:
    """Bits per pixel of one byte, if all pictures are of one size."""
    factors = {round(group["mean"]["bpp"] / group["mean"]["bytes"], 9) for group in groups if "bpp" in group["mean"]}
    return factors.pop() if len(factors) == 1 else None
