"""Pictures of an explanation, of response curves and of what each predictor is worth.

Two choices define this file. Purple speaks for suitability and orange against, as in all signed pictures here.
Attention is drawn in grey under the words "where the model looked", because it is no cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from mapping.explanation import WORTH_SAYING, Contribution, Explanation
from processing.errors import AgriClipError

if TYPE_CHECKING:
    from mapping.responses import Importance, ResponseCurve

__all__ = ["explanation_figure", "importance_figure", "response_figure"]


def explanation_figure(
    explanation: Explanation, output: str | Path, *, title: str | None = None, most: int = 12
) -> Path:
    """Draws an explanation as horizontal bars.

    Args:
        explanation: What `mapping.explain` found.
        output: PNG to write.
        title: Title; the explanation's sentence by default.
        most: Bars of a panel.

    Returns:
        The PNG.
    """
    # So sure an answer hardly moves, but its logit does.
    sure = max((abs(part.delta) for part in explanation.contributions), default=0.0) < WORTH_SAYING

    def bars(parts: list[Contribution]) -> list[_Bar]:
        if sure:
            return [_Bar(_bar_name(part), part.delta_logit) for part in parts[:most]]
        parts = sorted(parts, key=lambda part: -abs(part.delta))[:most]
        return [_Bar(_bar_name(part), 100 * part.delta, 100 * part.spread) for part in parts]

    moved = f"what it adds to the {'logit' if sure else 'probability, points'}"
    if not sure and any(part.spread for part in explanation.contributions):
        moved += " (line: sd of members)"
    panels = [
        ("Without each number", moved, bars(explanation.of_kind("number"))),
        (
            "Without each sentence, band or month",
            moved,
            bars(explanation.of_kind("sentence", "band", "month", "image")),
        ),
    ]
    if explanation.gradients is not None:
        shares = sorted(
            (part for part in explanation.gradients if part.kind != "sentence"),
            key=lambda part: -abs(part.attribution),
        )
        label = f"share of the score; completeness gap {explanation.completeness_gap:+.2g}"
        panels.append(("Integrated gradients", label, [_Bar(part.title, part.attribution) for part in shares[:most]]))
    if explanation.looked is not None:
        looked = [_Bar(_looked_name(key, explanation), 100 * value) for key, value in explanation.looked.items()]
        panels.append(("Where the model looked (not a cause)", "share of attention, %", looked))
    matplotlib, figures = _drawing()
    with matplotlib.rc_context(figures.STYLE):
        rows = (len(panels) + 1) // 2
        figure, grid = _figure((11.5, 1.2 + rows * (0.9 + 0.27 * max(len(bars) for *_, bars in panels))), rows, 2)
        for axes, (name, label, found) in zip(grid, panels, strict=False):
            _draw_bars(axes, found, neutral="looked" in name)
            axes.set_title(name, fontsize=10.5)
            axes.set_xlabel(label, fontsize=8.5)
        for axes in grid[len(panels) :]:
            axes.remove()
        figure.suptitle(fill(title or explanation.sentence, 125), fontsize=10.5, x=0.01, ha="left")
        if explanation.notes:
            figure.supxlabel(fill(" ".join(explanation.notes), 165), fontsize=7.5, x=0.01, ha="left", color="#5a645f")
        return figures.save_figure(figure, output)


def response_figure(
    curves: Sequence[ResponseCurve], output: str | Path, *, title: str = "How the probability follows each predictor"
) -> Path:
    """Draws response curves as small multiples, the range of the labelled sites shaded and their deciles as a rug.

    Args:
        curves: From `mapping.responses.response_curves`.
        output: PNG to write.
        title: Title.

    Returns:
        The PNG.

    Raises:
        AgriClipError: There is no curve.
    """
    if not curves:
        raise AgriClipError("There is no response curve to draw; ask for at least one predictor.")
    matplotlib, figures = _drawing()
    with matplotlib.rc_context(figures.STYLE):
        columns = min(len(curves), 3 if len(curves) in (5, 6, 9) else 4)
        rows = -(-len(curves) // columns)
        figure, grid = _figure((2.8 * columns + 0.6, 2.1 * rows + 1.1), rows, columns, sharey=True)
        for place, (axes, curve) in enumerate(zip(grid, curves, strict=False)):
            axes.axvspan(*curve.training_range, color="#d5e3d9", linewidth=0, label="range of the labelled sites")
            axes.fill_between(
                curve.values,
                curve.low,
                curve.high,
                color="#8073ac",
                alpha=0.35,
                linewidth=0,
                label="10-90 % of places",
            )
            axes.plot(curve.values, curve.median, color="#5e3c99", linewidth=1.6, label="median place")
            axes.plot(
                curve.values,
                curve.mean,
                color=figures.INK,
                linewidth=1.0,
                linestyle=(0, (3, 2)),
                label="mean of places",
            )
            axes.plot(
                curve.quantiles,
                np.zeros(len(curve.quantiles)),
                "|",
                color="#5a645f",
                markersize=7,
                clip_on=False,
                label="deciles of the labelled sites",
            )
            axes.set(ylim=(0, 1), xlim=(curve.values[0], curve.values[-1]))
            unit = "" if curve.unit == "1" else f", {curve.unit}"
            axes.set_xlabel(fill(f"{curve.title}{unit}", 34), fontsize=7.5)
            if place % columns == 0:
                axes.set_ylabel("probability", fontsize=8)
            axes.tick_params(labelsize=7.5, length=2.5)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in grid[len(curves) :]:
            axes.remove()
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(5, 2 * columns), frameon=False, fontsize=8
        )
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
        return figures.save_figure(figure, output)


def importance_figure(
    importances: Sequence[Importance], output: str | Path, *, title: str = "What each predictor is worth"
) -> Path:
    """Draws permutation importance, and beside it the jackknife where there is one.

    Args:
        importances: From `mapping.responses.permutation_importances` or `jackknife`.
        output: PNG to write.
        title: Title.

    Returns:
        The PNG.

    Raises:
        AgriClipError: There is no predictor.
    """
    if not importances:
        raise AgriClipError("There is no importance to draw; compute that of at least one predictor.")
    ranked = sorted(importances, key=lambda one: -one.increase)
    matplotlib, figures = _drawing()
    with matplotlib.rc_context(figures.STYLE):
        both = ranked[0].only is not None
        figure, grid = _figure((10.5 if both else 6.8, 1.3 + 0.3 * len(ranked)), 1, 2 if both else 1, sharey=True)
        _draw_bars(grid[0], [_Bar(one.title, one.increase, one.sd) for one in ranked], width=34)
        grid[0].set_title("Its values exchanged between blocks", fontsize=10.5)
        grid[0].set_xlabel("increase of the held-out log loss, nats (line: sd of repeats)", fontsize=8.5)
        if both:
            place = np.arange(len(ranked))
            grid[1].barh(place - 0.19, [one.only for one in ranked], 0.36, color="#5e3c99", label="it alone")
            grid[1].barh(place + 0.19, [one.without for one in ranked], 0.36, color="#b2abd2", label="all but it")
            everything = ranked[0].everything
            grid[1].axvline(everything, color=figures.INK, linewidth=1, linestyle=(0, (4, 3)), label="all predictors")
            grid[1].axvline(0, color="#8a938e", linewidth=0.8)
            grid[1].set_title("Jackknife", fontsize=10.5)
            grid[1].set_xlabel("gain in held-out log loss over no predictor, nats", fontsize=8.5)
            figure.legend(
                *grid[1].get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False, fontsize=8
            )
            grid[1].spines[["top", "right"]].set_visible(False)
            grid[1].tick_params(labelsize=8, length=2.5)
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
        return figures.save_figure(figure, output)


@dataclass(frozen=True)
class _Bar:
    name: str
    size: float
    spread: float = 0.0


def _drawing() -> tuple[Any, Any]:
    """Matplotlib and the house style; importing explanations must not need them."""
    import matplotlib

    from mapping import figures

    return matplotlib, figures


def _figure(size: tuple[float, float], rows: int, columns: int, **options: Any) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.ravel(figure.subplots(rows, columns, squeeze=False, **options)))


def _draw_bars(axes: Any, bars: Sequence[_Bar], *, neutral: bool = False, width: int = 42) -> None:
    """Bars from the top down, purple for and orange against, with a line for the spread over members or repeats."""
    place = np.arange(len(bars))
    sizes, spreads = np.array([bar.size for bar in bars]), np.array([bar.spread for bar in bars])
    colours = ["#9aa39e" if neutral else "#5e3c99" if size >= 0 else "#e66101" for size in sizes]
    axes.barh(place, sizes, 0.66, color=colours, xerr=spreads if spreads.any() else None, ecolor="#5a645f", capsize=2)
    axes.axvline(0, color="#8a938e", linewidth=0.8)
    axes.set_yticks(place, [fill(bar.name, width) for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.tick_params(labelsize=8, length=2.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e7e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _bar_name(part: Contribution) -> str:
    if part.kind == "sentence":
        return f"sentence {part.name}: {_short(part.title)}"
    return f"{part.title} {part.told}".rstrip()


def _looked_name(key: str, explanation: Explanation) -> str:
    """A sentence's number with its first words."""
    for part in explanation.contributions:
        if part.kind == "sentence" and key == f"sentence {part.name}":
            return _bar_name(part)
    return key


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " ..."
