"""Pictures of an evaluation: confusion of classes, tiles with truth and prediction, recall by rank, images by class.

Colours tell classes apart in grey and for the colour-blind as far as eight can (Okabe & Ito 2008); further classes
repeat them, hatched in the legend by number. What is not scored is white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.vision.segmentation import Example
from mapping.scene_figure import QUERY_COLOURS

__all__ = ["confusion_figure", "scores_figure", "recall_figure", "tiles_figure"]

_SHOWN = 45  # classes whose names fit beside a matrix
_PALETTE = (*QUERY_COLOURS, "#8c564b", "#bcbd22", "#17becf", "#9467bd", "#2f4b7c", "#ffa07a", "#98df8a", "#c5b0d5")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style() -> Any:
    import matplotlib

    from mapping.figures import STYLE

    return matplotlib.rc_context(STYLE)


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else name[: most - 3].rstrip() + "..."


def confusion_figure(
    confusion: NDArray[np.int64], names: Sequence[str], output: str | Path, *, title: str, unit: str = "images"
) -> Path:
    """Draw a confusion matrix, each row in shares of the truth.

    Args:
        confusion: Counts (K, K), truth in rows.
        names: Class names.
        output: PNG to write.
        title: Title.
        unit: What is counted.
    """
    from mapping.figures import INK, save_figure

    total = confusion.sum(axis=1, keepdims=True)
    share = np.where(total > 0, confusion / np.maximum(total, 1), np.nan)
    count = len(names)
    edge = min(16.0, max(4.6, 0.46 * count + 2.6))
    with _style():
        figure = _figure(edge + 1.2, edge)
        axes = figure.add_subplot()
        image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1)
        labels = [_short(name) for name in names]
        size = 9 if count <= 20 else 6
        axes.set_xticks(range(count), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        rows = [f"{label} ({int(n):,})" for label, n in zip(labels, total[:, 0], strict=True)]
        axes.set_yticks(range(count), rows, fontsize=size)
        if count <= 20:
            for row in range(count):
                for column in range(count):
                    if share[row, column] >= 0.005:
                        ink = INK if share[row, column] > 0.55 else "white"
                        text = f"{100 * share[row, column]:.0f}"
                        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
        axes.set(xlabel="predicted", ylabel=f"truth ({unit})")
        axes.set_title(title)
        bar = figure.colorbar(image, ax=axes, shrink=0.7)
        bar.set_label("share of the truth; numbers in %" if count <= 20 else "share of the truth")
        bar.outline.set_visible(False)
        return save_figure(figure, output)


def tiles_figure(examples: Sequence[Example], names: Sequence[str], output: str | Path, *, title: str) -> Path:
    """Draw tiles: what they look like, what the mask says, and what was predicted.

    Args:
        examples: The tiles.
        names: Class names.
        output: PNG to write.
        title: Title.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    from mapping.figures import save_figure

    colours = [_PALETTE[k % len(_PALETTE)] for k in range(len(names))]
    shades = ListedColormap(["white", *colours])
    count = max(1, len(examples))
    with _style():
        figure = _figure(7.4, 2.45 * count + 1.1)
        grid = figure.subplots(count, 3, squeeze=False)
        for row, example in zip(grid, examples, strict=False):
            row[0].imshow(example.colours, interpolation="nearest")
            for axes, classes in zip(row[1:], (example.truth, example.predicted), strict=True):
                axes.imshow(classes + 1, cmap=shades, vmin=-0.5, vmax=len(names) + 0.5, interpolation="nearest")
            row[0].set_ylabel(_short(Path(example.key).stem, 22), fontsize=9)
            row[2].set_xlabel(f"{example.accuracy:.0%} of the pixels right", fontsize=8.5)
        for axes, text in zip(grid[0], ("Image", "Mask", "Predicted"), strict=True):
            axes.set_title(text, fontsize=11)
        for axes in grid.ravel():
            axes.set(xticks=[], yticks=[])
            for side in axes.spines.values():
                side.set(color="#c9c5bd", linewidth=0.6)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
        handles = [Patch(facecolor=c, label=_short(name, 44)) for c, name in zip(colours, names, strict=True)]
        handles.append(Patch(facecolor="white", edgecolor="#8a938e", label="not scored"))
        longest = max(len(handle.get_label()) for handle in handles)
        columns = 4 if longest < 18 else 3 if longest < 26 else 2
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
        return save_figure(figure, output)


def recall_figure(ways: Mapping[str, NDArray[np.int64]], sizes: Mapping[str, int], output: str | Path) -> Path:
    """Draw recall at k against k, both ways, beside what chance would find.

    Args:
        ways: Title -> rank of the best right answer of each query.
        sizes: Title -> number of answers to choose from.
        output: PNG to write.
    """
    from mapping.figures import save_figure

    with _style():
        figure = _figure(6.2, 4.2)
        axes = figure.add_subplot()
        for (name, ranks), colour in zip(ways.items(), QUERY_COLOURS[1:], strict=False):
            most = max(2, min(100, sizes[name]))
            k = np.arange(1, most + 1)
            recall = np.searchsorted(np.sort(ranks), k, side="left") / len(ranks)
            axes.plot(k, recall, color=colour, lw=2, label=name)
            axes.plot(k, k / sizes[name], color=colour, lw=1, ls=":", label=f"{name}, one right answer by chance")
        axes.set(xscale="log", xlabel="k", ylabel="recall at k", ylim=(0, 1.02))
        axes.set_title("Share of queries with a right answer among the first k")
        axes.grid(color="#e4e1da", lw=0.6)
        axes.legend(frameon=False, fontsize=8.5)
        return save_figure(figure, output)


def scores_figure(
    rows: Sequence[tuple[str, float, float | None, float | None]], output: str | Path, *, title: str
) -> Path:
    """Draw scores with their intervals, one line each.

    Args:
        rows: Title, value, low and high.
        output: PNG to write.
        title: Title.
    """
    from mapping.figures import INK, save_figure

    with _style():
        figure = _figure(7.2, 0.42 * len(rows) + 1.4)
        axes = figure.add_subplot()
        for y, (_, value, low, high) in enumerate(rows):
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color="#8a938e", lw=2.5, solid_capstyle="round")
            axes.plot(value, y, "o", color=QUERY_COLOURS[2], ms=6)
            axes.annotate(
                f"{value:.3f}", (value, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8
            )
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.7)
        axes.tick_params(colors=INK)
        axes.grid(axis="x", color="#e4e1da", lw=0.6)
        axes.set_title(title)
        axes.set_xlabel("score, with its 95 % interval over blocks")
        return save_figure(figure, output)
