"""How the maps of a scene are shown: colours in QGIS, and a picture of the scene beside its map.

Two choices define this file. The scene is drawn in its natural colours, as far as it has them, so that fields can be
recognised. And where the map holds no data it is hatched, because any plain colour could be read as a value.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mapping.layers import PROBABILITY_STOPS
from mapping.outputs import read_map, write_qgis_style
from mapping.scene_bands import Scene
from processing.rasters import open_raster

try:
    from rasterio.errors import RasterioError
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Drawing a scene needs rasterio: pip install 'agriclip[maps]'.") from error

if TYPE_CHECKING:
    from mapping.scene import SceneMaps

__all__ = ["QUERY_COLOURS", "draw_preview", "write_styles"]

#: Colours of the classes, then repeated: as far as so many can be, told apart in grey and by the colour-blind (Okabe
#: & Ito 2008).
QUERY_COLOURS = ("#e69f00", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#6b6b6b")
_SPREAD = ((0.0, "#fcfbfd"), (0.1, "#bcbddc"), (0.3, "#54278f"))
_PICTURE = 900  # pixels along an edge of the preview


def write_styles(maps: SceneMaps, legend: dict[int, tuple[str, str]]) -> None:
    """Write the QGIS style of every raster beside it.

    Args:
        maps: What was written of a scene.
        legend: Title and colour of each class.
    """
    for raster in maps.probability.values():
        write_qgis_style(raster, stops=PROBABILITY_STOPS)
    for raster in maps.disagreement.values():
        write_qgis_style(raster, stops=_SPREAD)
    if maps.classes is not None:
        write_qgis_style(maps.classes, classes=legend)


def draw_preview(
    path: str | Path, scene: Scene, maps: SceneMaps, legend: dict[int, tuple[str, str]], output: str | Path
) -> Path:
    """Draw the scene in its natural colours, as far as it has them, and the map beside it.

    Args:
        path: The scene.
        scene: Its bands.
        maps: What was written of it.
        legend: Title and colour of each class.
        output: PNG to write.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from mapping.figures import STYLE, save_figure

    picture, names = _natural(path, scene)
    ratio = picture.shape[0] / picture.shape[1]
    width = min(11.0, max(6.5, 16.0 / (1 + ratio)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, width / 2 * ratio + 1.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        left.imshow(picture, interpolation="nearest")
        left.set_title(f"Scene ({names})")
        right.patch.set(facecolor="white", hatch="/////", edgecolor="#c9c5bd", linewidth=0.0)
        if maps.classes is not None:
            values = read_map(maps.classes, max_size=_PICTURE)
            shades = ListedColormap([colour for _, colour in legend.values()])
            right.imshow(values, cmap=shades, norm=BoundaryNorm(np.arange(0.5, len(legend) + 1), len(legend)))
            right.set_title("Likeliest of the queries")
            handles = [Patch(facecolor=colour, label=text) for text, colour in legend.values()]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
        else:
            (query, raster), *_ = maps.probability.items()
            values = read_map(raster, max_size=_PICTURE)
            image = right.imshow(values, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            right.set_title(query[:1].upper() + query[1:])
            bar = figure.colorbar(image, ax=[left, right], orientation="horizontal", aspect=60, shrink=0.7)
            bar.set_label(f"probability: {maps.weighed}")
            bar.outline.set_visible(False)
        if np.isnan(values).any():
            empty = Patch(facecolor="white", edgecolor="#c9c5bd", hatch="/////", linewidth=0.0, label="no data")
            right.legend(handles=[empty], loc="lower right", fontsize=8.5, framealpha=0.85, edgecolor="none")
        for axes in (left, right):
            axes.set(xticks=[], yticks=[])
        return save_figure(figure, output)


def _natural(path: str | Path, scene: Scene) -> tuple[NDArray[np.float32], str]:
    """Red, green and blue of the first date (h, w, 3), stretched, white where not measured; or one band in grey."""
    chosen: list[int] = []
    for wanted in (660.0, 555.0, 480.0):
        apart = [abs((spec.wavelength_nm or math.inf) - wanted) for spec in scene.specs]
        if min(apart) < 45:
            chosen.append(apart.index(min(apart)))
    chosen = chosen if len(set(chosen)) == 3 else [0, 0, 0]
    numbers = [scene.numbers[i] for i in chosen]
    with open_raster(path) as source:
        factor = min(1.0, _PICTURE / max(source.shape))
        shape = (3, *(max(1, round(edge * factor)) for edge in source.shape))
        try:
            values = source.read(numbers, out_shape=shape).astype(np.float32)
            known = source.read_masks(numbers, out_shape=shape) > 0
        except RasterioError:  # a part of it is damaged; the map says which
            return np.ones((*shape[1:], 3), np.float32), "damaged in part, not drawn"
    for band, i in enumerate(chosen):
        fill = scene.fills[i]
        known[band] &= np.isfinite(values[band]) & (True if fill is None else values[band] != fill)
        seen = values[band][known[band]]
        low, high = np.percentile(seen, (2, 98)) if seen.size else (0.0, 1.0)
        values[band] = np.clip((values[band] - low) / max(high - low, 1e-9), 0, 1)
    values[:, ~known.all(axis=0)] = 1.0
    names = dict.fromkeys(scene.specs[i].name for i in chosen)
    return values.transpose(1, 2, 0), ", ".join(names)
