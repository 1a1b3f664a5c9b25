"""Pictures of how a fit went and what it is worth: losses, reliability, agreement with a known truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mapping.figures import INK, STYLE, save_figure

__all__ = ["loss_figure", "reliability_figure", "scatter_figure"]


def loss_figure(histories: Mapping[str, Sequence[Mapping[str, float]]], output: str | Path) -> Path | None:
    """Draws the loss of every fit, and the weighted terms it is the sum of as means over fits.

    Args:
        histories: For each fit what was logged: `epoch` with `loss`, `weighted/<term>` or `eval_log_loss`.
        output: PNG to write.

    Returns:
        The PNG; None where nothing was logged.
    """
    logged = {name: [entry for entry in entries if "loss" in entry] for name, entries in histories.items()}
    logged = {name: entries for name, entries in logged.items() if entries}
    if not logged:
        return None
    terms = list(dict.fromkeys(key for rows in logged.values() for row in rows for key in row if "weighted/" in key))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.8), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for name, rows in logged.items():
            left.plot([row["epoch"] for row in rows], [row["loss"] for row in rows], linewidth=1.3, label=name)
            watched = [row for row in histories[name] if "eval_log_loss" in row]
            if watched:
                epochs, losses = ([row[key] for row in watched] for key in ("epoch", "eval_log_loss"))
                left.plot(epochs, losses, ".:", color=left.lines[-1].get_color(), label=f"{name}, watched blocks")
        left.set(title="Loss of each fit", xlabel="epoch")
        left.legend(fontsize=7, frameon=False)
        steps = min(len(rows) for rows in logged.values())
        epochs = [row["epoch"] for row in next(iter(logged.values()))[:steps]]
        for term in terms:
            values = np.mean([[row.get(term, np.nan) for row in rows[:steps]] for rows in logged.values()], axis=0)
            right.plot(epochs, values, linewidth=1.3, label=term.removeprefix("weighted/").replace("_", " "))
        right.set(title="Its terms, weighted", xlabel="epoch")
        right.legend(fontsize=7, frameon=False)
        for axes in (left, right):
            axes.grid(color="#e4e7e5", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        return save_figure(figure, output)


def reliability_figure(
    curve: Any,
    probability: np.ndarray,
    output: str | Path,
    *,
    title: str = "Does the probability mean what it says?",
    label: str = "predicted probability",
    observed_label: str = "observed frequency",
) -> Path:
    """Draws observed frequency against predicted probability, and below it how often each probability is predicted.

    Args:
        curve: The bins: `predicted`, `observed`, `count` and `calibration_error` (an
            ``evaluation.metrics.ReliabilityCurve``).
        probability: (N,) predictions, for the histogram.
        output: PNG to write.
        title: Title.
        label: Label of the horizontal axis.
        observed_label: Label of the vertical axis.

    Returns:
        The PNG.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 6.2), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        upper.plot([0, 1], [0, 1], color="#8a938e", linestyle=(0, (4, 3)), linewidth=1, label="perfect")
        upper.plot(curve.predicted, curve.observed, "o-", color="#1b7837", linewidth=1.6, markersize=6)
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel=observed_label)
        upper.set_title(title)
        upper.text(
            0.03,
            0.95,
            f"mean gap to the line {curve.calibration_error:.3f}\n{int(curve.count.sum()):,} places",
            transform=upper.transAxes,
            va="top",
        )
        upper.grid(color="#e4e7e5", linewidth=0.6)
        flat = np.asarray(probability, dtype=float).ravel()
        lower.hist(flat, bins=np.linspace(0, 1, 21), color="#8fb59b", edgecolor="white", linewidth=0.5)
        lower.set(xlabel=label, ylabel="places")
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
        return save_figure(figure, output)


def scatter_figure(
    truth: np.ndarray,
    predicted: np.ndarray,
    output: str | Path,
    *,
    title: str,
    label: str = "true probability",
    predicted_label: str = "mapped probability",
    note: str = "",
) -> Path:
    """Draws predicted against true values as a density of cells.

    Args:
        truth: True values, any shape; pairs with a NaN are left out.
        predicted: Predictions, same shape.
        output: PNG to write.
        title: Title.
        label: Label of the horizontal axis.
        predicted_label: Label of the vertical axis.
        note: Text in the corner, for example the root mean squared error.

    Returns:
        The PNG.
    """
    a, b = np.ravel(truth), np.ravel(predicted)
    known = np.isfinite(a) & np.isfinite(b)
    counts, edges, _ = np.histogram2d(a[known], b[known], bins=50, range=[[0, 1], [0, 1]])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 5.2), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        shown = np.where(counts > 0, counts, np.nan).T
        mesh = axes.pcolormesh(edges, edges, shown, cmap="YlGn", norm=LogNorm(vmin=0.5))
        axes.plot([0, 1], [0, 1], color=INK, linestyle=(0, (4, 3)), linewidth=1)
        axes.set(xlabel=label, ylabel=predicted_label, xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_title(title)
        axes.text(0.04, 0.94, note, transform=axes.transAxes, va="top")
        axes.spines[["top", "right"]].set_visible(False)
        figure.colorbar(mesh, ax=axes, label="cells", shrink=0.8).outline.set_visible(False)
        return save_figure(figure, output)
