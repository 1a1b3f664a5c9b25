"""Pictures of what a suitability model is worth: calibration, discrimination, rejection, leads, other climates.

Two choices define this file. Our model is drawn in one colour throughout and every baseline in grey, with the best of
them named, because a reader looks for one comparison and not for twenty. Intervals are drawn wherever there are some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation.results import OURS, Score, metric_of
from evaluation.suitability.climate_models import ClimateModelResults
from evaluation.suitability.places import Predictions
from evaluation.suitability.scoring import Truth
from mapping.figures import INK, STYLE, save_figure

__all__ = ["climate_figure", "curves_figure", "lead_figure", "rejection_figure", "reliability_figure"]

_OURS, _BEST, _OTHER, _PERFECT = "#1b7837", "#762a83", "#b9c1bc", "#8a938e"
_PATHWAYS = {"26": "#4575b4", "34": "#74add1", "45": "#fdae61", "60": "#f46d43", "70": "#d73027", "85": "#7f0000"}


def reliability_figure(truth: Truth, models: Mapping[str, Predictions], output: str | Path, best: str | None) -> Path:
    """Observed frequency against predicted probability, ours and the best baseline.

    Args:
        truth: What is scored.
        models: Name -> predictions.
        output: PNG to write.
        best: Name of the baseline to draw, or None.
    """
    from evaluation.metrics import reliability_curve

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 6.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        upper.plot([0, 1], [0, 1], color=_PERFECT, linestyle=(0, (4, 3)), linewidth=1, label="perfect")
        for name, colour in ((best, _BEST), (OURS, _OURS)):
            if name is None or name not in models:
                continue
            chance = models[name].probability[truth.place]
            curve = reliability_curve(truth.outcome, chance, truth.weight)
            label = f"{name}: mean gap {curve.calibration_error:.3f}"
            upper.plot(curve.predicted, curve.observed, "o-", color=colour, linewidth=1.6, markersize=5, label=label)
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed frequency")
        upper.set_title("Does the probability mean what it says?")
        upper.grid(color="#e4e7e5", linewidth=0.6)
        upper.legend(frameon=False, fontsize=8, loc="upper left")
        chance = models[OURS].probability[truth.place]
        lower.hist(chance, bins=np.linspace(0, 1, 21), weights=truth.weight, color="#8fb59b", edgecolor="white")
        lower.set(xlabel="predicted probability", ylabel="places" if truth.weight.max() == 1 else "units")
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
        return save_figure(figure, output)


def curves_figure(truth: Truth, models: Mapping[str, Predictions], output: str | Path, best: str | None) -> Path:
    """ROC and precision-recall curves, the baselines in grey.

    Args:
        truth: What is scored.
        models: Name -> predictions.
        output: PNG to write.
        best: Name of the baseline to point out, or None.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        others = [name for name in models if name not in (OURS, best)]
        for name in (*others, best, OURS):
            if name is None or name not in models:
                continue
            colour, width = (_OURS, 2.0) if name == OURS else (_BEST, 1.6) if name == best else (_OTHER, 0.8)
            label = name if name in (OURS, best) else None
            score = models[name].ranking[truth.place]
            false, true, _ = roc_curve(truth.outcome, score, sample_weight=truth.weight)
            precision, recall, _ = precision_recall_curve(truth.outcome, score, sample_weight=truth.weight)
            left.plot(false, true, color=colour, linewidth=width, label=label)
            right.plot(recall, precision, color=colour, linewidth=width, label=label, drawstyle="steps-post")
        if others:
            left.plot([], [], color=_OTHER, linewidth=0.8, label=f"{len(others)} other baselines")
        prevalence = float(np.average(truth.outcome, weights=truth.weight))
        left.plot([0, 1], [0, 1], color=_PERFECT, linestyle=(0, (4, 3)), linewidth=1)
        right.axhline(prevalence, color=_PERFECT, linestyle=(0, (4, 3)), linewidth=1)
        left.set(title="ROC", xlabel="share of absences called present", ylabel="share of presences found")
        right.set(
            title="Precision and recall", xlabel="share of presences found", ylabel="share of calls that are right"
        )
        left.legend(frameon=False, fontsize=8, loc="lower right")
        for axes in (left, right):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axes.grid(color="#e4e7e5", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        return save_figure(figure, output)


def rejection_figure(truth: Truth, models: Mapping[str, Predictions], output: str | Path, best: str | None) -> Path:
    """Brier score of the places that are kept as the least certain are left out.

    Args:
        truth: What is scored.
        models: Name -> predictions.
        output: PNG to write.
        best: Name of the baseline to draw, or None.
    """
    from evaluation.uncertainty_metrics import risk_coverage_curve

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, colour in ((best, _BEST), (OURS, _OURS)):
            if name is None or name not in models:
                continue
            chance = models[name].probability[truth.place]
            loss = (chance - truth.outcome) ** 2
            curve = risk_coverage_curve(loss, np.maximum(chance, 1 - chance), truth.weight)
            label = f"{name}: area {curve.aurc:.4f}"
            axes.plot(curve.coverage, curve.risk, color=colour, linewidth=1.8, label=label)
        chance = models[OURS].probability[truth.place]
        plain = float(np.average((chance - truth.outcome) ** 2, weights=truth.weight))
        axes.axhline(plain, color=_PERFECT, linestyle=(0, (4, 3)), linewidth=1, label="if doubt told nothing")
        axes.set(xlim=(0, 1.01), ylim=(0, None), xlabel="share of places kept, the surest first", ylabel="Brier score")
        axes.set_title("Does it know where it may be wrong?")
        axes.grid(color="#e4e7e5", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0.0, 0.92))
        axes.spines[["top", "right"]].set_visible(False)
        return save_figure(figure, output)


def lead_figure(scores: Sequence[Score], output: str | Path, title: str, metrics: Sequence[str]) -> Path | None:
    """Differences with their intervals, a panel for each metric; on the green side ours is better.

    Args:
        scores: Scores, the differences among them.
        output: PNG to write.
        title: Title.
        metrics: Metrics, each a panel.

    Returns:
        The PNG; None without a difference.
    """
    paired = [score for score in scores if score.against is not None and score.metric in metrics]
    shown = [metric for metric in metrics if any(score.metric == metric for score in paired)]
    if not shown:
        return None
    first = [score for score in paired if score.metric == shown[0]]
    names = [str(s.against) for s in sorted(first, key=lambda s: s.value)]
    with matplotlib.rc_context(STYLE):
        height = 1.3 + 0.28 * len(names)
        figure = Figure(figsize=(3.2 + 2.6 * len(shown), height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
        for axes, metric in zip(panels, shown, strict=True):
            lower = metric_of(metric).better == "lower"
            rows = {s.against: s for s in paired if s.metric == metric}
            for place, name in enumerate(names):
                score = rows.get(name)
                if score is None or not np.isfinite(score.value):
                    continue
                ends = [score.low, score.high] if score.low is not None and score.high is not None else None
                clear = ends is not None and (ends[1] < 0 if lower else ends[0] > 0)
                worse = ends is not None and (ends[0] > 0 if lower else ends[1] < 0)
                colour = _OURS if clear else "#b2182b" if worse else INK
                if ends is not None:
                    axes.plot(ends, [place, place], color=colour, linewidth=1.4)
                axes.plot([score.value], [place], "o", color=colour, markersize=4.5)
            axes.axvline(0, color=_PERFECT, linewidth=1)
            low, high = axes.get_xlim()
            axes.axvspan(*((min(low, 0), 0) if lower else (0, max(high, 0))), color="#e8f2ea", zorder=0)
            axes.set_xlim(min(low, 0), max(high, 0))
            axes.set_title(metric_of(metric).title, fontsize=9)
            axes.tick_params(labelsize=8)
            axes.grid(axis="x", color="#e4e7e5", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_yticks(range(len(names)), names, fontsize=8)
        panels[0].set_ylim(-0.6, len(names) - 0.4)
        figure.suptitle(title, fontsize=11)
        return save_figure(figure, output)


def climate_figure(results: ClimateModelResults, output: str | Path) -> Path:
    """Centroid latitude of the suitable land by climate model, period and pathway, with the image and without.

    Args:
        results: Results of other climate models.
        output: PNG to write.
    """
    groups = list(dict.fromkeys((row.climate_model, row.period) for row in results.rows))
    ways = list(dict.fromkeys(row.with_image for row in results.rows))
    pathways = sorted({row.pathway for row in results.rows}, key=lambda name: name[-2:])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 + 3.2 * len(ways), 1.6 + 0.34 * len(groups)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = np.atleast_1d(figure.subplots(1, len(ways), sharey=True, sharex=True))
        for axes, with_image in zip(panels, ways, strict=True):
            rows = [row for row in results.rows if row.with_image == with_image]
            now = next((row.present_latitude for row in rows if row.present_latitude is not None), None)
            if now is not None:
                axes.axvline(now, color=_PERFECT, linestyle=(0, (4, 3)), linewidth=1, label="now")
            for pathway in pathways:
                points = [
                    (r.future_latitude, groups.index((r.climate_model, r.period)))
                    for r in rows
                    if r.pathway == pathway
                ]
                known = [(x, y) for x, y in points if x is not None]
                colour = _PATHWAYS.get(pathway[-2:], INK)
                axes.plot([x for x, _ in known], [y for _, y in known], "o", color=colour, markersize=6, label=pathway)
            axes.set(title="With the image" if with_image else "Without the image", xlabel="latitude of the centroid")
            axes.grid(color="#e4e7e5", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_yticks(range(len(groups)), [f"{model} {period}" for model, period in groups], fontsize=8)
        panels[0].set_ylim(-0.6, len(groups) - 0.4)
        panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return save_figure(figure, output)
