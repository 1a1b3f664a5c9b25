"""Pictures of maps and of their reliability, drawn by matplotlib without a screen.

Three choices define this file. The colour bar always says which quantity is shown, because a potential suitability, a
detection and a share look alike. Colours read the same in grey and in the common forms of colour blindness (cividis,
the four change classes of `mapping.change`, purple-orange for signed values). Coast and county lines are drawn only
from a file the user gives (GeoJSON or TopoJSON): the project ships no boundaries and takes no side on them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mapping.change import CHANGE_CLASSES, ChangeSummary
from mapping.outputs import read_map
from processing.errors import AgriClipError, nearest
from processing.rasters import Grid

try:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, TwoSlopeNorm
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Drawing maps needs matplotlib: pip install 'agriclip[maps]'.") from error

__all__ = [
    "INK",
    "STYLE",
    "change_figure",
    "class_figure",
    "probability_figure",
    "read_outlines",
    "save_figure",
    "scenario_panel",
    "signed_figure",
]

_MAX_PIXELS = 1400  # along the longer side: more than any picture shows
HATCH = "#c9c5bd"  # no data is hatched, because every plain grey is also a colour of some map
INK = "#22302a"
LIGHT = "#e6e6e6"  # lines on cividis, whose low end is almost black
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#8a938e",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#5a645f",
    "ytick.color": "#5a645f",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


@dataclass(frozen=True)
class Picture:
    """One map, reduced for drawing. `extent` is (west, east, south, north) in map units."""

    values: np.ndarray
    extent: tuple[float, float, float, float]
    geographic: bool


def probability_figure(
    path: str | Path,
    output: str | Path,
    *,
    title: str,
    label: str = "probability of suitability",
    threshold: float | None = None,
    outlines: Sequence[np.ndarray] | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Path:
    """Draws a map of a continuous quantity, by default a probability.

    Args:
        path: Raster; its first band is drawn.
        output: PNG to write.
        title: Title above the map.
        label: What the colour bar shows, with the unit.
        threshold: Draws a line where the quantity crosses this value.
        outlines: Lines from :func:`read_outlines`.
        limits: Range of the colour bar.

    Returns:
        The PNG.
    """
    picture = load_picture(path)
    with matplotlib.rc_context(STYLE):
        figure, axes = _map_figure(picture)
        image = axes.imshow(
            picture.values, extent=picture.extent, cmap=_colours("cividis"), vmin=limits[0], vmax=limits[1]
        )
        if threshold is not None:
            _threshold_line(axes, picture, threshold)
        dress(axes, picture, outlines, ink=LIGHT)
        axes.set_title(title)
        _colour_bar(figure, axes, image, label, extend=_extend(picture.values, limits))
        _legend_no_data(axes, picture, threshold)
        return save_figure(figure, output)


def signed_figure(
    path: str | Path,
    output: str | Path,
    *,
    title: str,
    label: str,
    outlines: Sequence[np.ndarray] | None = None,
    limit: float | None = None,
) -> Path:
    """Draws a quantity that can be negative (novelty, image effect), white at zero, orange below and purple above.

    Args:
        path: Raster; its first band is drawn.
        output: PNG to write.
        title: Title above the map.
        label: What the colour bar shows.
        outlines: Lines from :func:`read_outlines`.
        limit: Colours run from minus to plus this value. Default: the largest magnitude, of the central 98 %.

    Returns:
        The PNG.
    """
    picture = load_picture(path)
    known = picture.values[np.isfinite(picture.values)]
    if limit is None:
        limit = float(np.abs(np.percentile(known, [1, 99])).max()) if known.size else 1.0
    limit = limit or 1.0
    with matplotlib.rc_context(STYLE):
        figure, axes = _map_figure(picture)
        norm = TwoSlopeNorm(0.0, -limit, limit)
        image = axes.imshow(picture.values, extent=picture.extent, cmap=_colours("PuOr"), norm=norm)
        dress(axes, picture, outlines)
        axes.set_title(title)
        _colour_bar(figure, axes, image, label, extend=_extend(picture.values, (-limit, limit)))
        _legend_no_data(axes, picture, None)
        return save_figure(figure, output)


def change_figure(
    path: str | Path,
    output: str | Path,
    *,
    title: str,
    summary: ChangeSummary | None = None,
    outlines: Sequence[np.ndarray] | None = None,
) -> Path:
    """Draws a map of change classes with the area of each class in the legend.

    Args:
        path: Class raster of :func:`mapping.change.change_map`.
        output: PNG to write.
        title: Title above the map.
        summary: Areas for the legend.
        outlines: Lines from :func:`read_outlines`.

    Returns:
        The PNG.
    """
    labels = {}
    for value, (name, _) in CHANGE_CLASSES.items():
        labels[value] = name if summary is None else f"{name}\n{_hectares(summary.areas_ha[name])}"
    return class_figure(path, output, title=title, classes=CHANGE_CLASSES, labels=labels, outlines=outlines)


def class_figure(
    path: str | Path,
    output: str | Path,
    *,
    title: str,
    classes: Mapping[int, tuple[str, str]],
    labels: Mapping[int, str] | None = None,
    outlines: Sequence[np.ndarray] | None = None,
) -> Path:
    """Draws a map of classes.

    Args:
        path: Class raster, 0 = no data.
        output: PNG to write.
        title: Title above the map.
        classes: Class value -> (title, ``#rrggbb``).
        labels: Words of the legend, in place of the titles.
        outlines: Lines from :func:`read_outlines`.

    Returns:
        The PNG.
    """
    picture = load_picture(path)
    values = sorted(classes)
    colours = ListedColormap([classes[value][1] for value in values])
    edges = [value - 0.5 for value in values] + [values[-1] + 0.5]
    with matplotlib.rc_context(STYLE):
        figure, axes = _map_figure(picture, bar=False)
        norm = BoundaryNorm(edges, len(values))
        axes.imshow(picture.values, extent=picture.extent, cmap=colours, norm=norm, interpolation="nearest")
        dress(axes, picture, outlines)
        axes.set_title(title)
        handles = [
            Patch(
                facecolor=classes[value][1],
                edgecolor="#8a938e",
                linewidth=0.6,
                label=(labels or {}).get(value, classes[value][0]),
            )
            for value in values
        ]
        longest = max(len(line) for handle in handles for line in handle.get_label().split("\n"))
        columns = 4 if longest <= 20 else 2
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=1.4)
        return save_figure(figure, output)


def scenario_panel(
    maps: Mapping[str, str | Path],
    output: str | Path,
    *,
    label: str = "probability of suitability",
    title: str | None = None,
    columns: int | None = None,
    outlines: Sequence[np.ndarray] | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Path:
    """Draws several maps of one quantity side by side with one colour bar.

    Args:
        maps: Title -> raster, in the order drawn.
        output: PNG to write.
        label: What the colour bar shows.
        title: Title of the whole panel.
        columns: Maps in a row. Default: up to 3.
        outlines: Lines from :func:`read_outlines`.
        limits: Range of the colour bar.

    Returns:
        The PNG.
    """
    if not maps:
        raise AgriClipError("A panel of scenarios needs at least one map.")
    pictures = {name: load_picture(path, max_size=800) for name, path in maps.items()}
    columns = columns or min(3, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    first = next(iter(pictures.values()))
    width = 11.0 / columns
    with matplotlib.rc_context(STYLE):
        height = rows * (width * shape_ratio(first) + 0.5) + 0.9 + (0.4 if title else 0.0)
        figure = Figure(figsize=(11.0, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        image: Any = None
        for index, axes in enumerate(grid.flat):
            if index >= len(pictures):
                axes.set_axis_off()
                continue
            name, picture = list(pictures.items())[index]
            image = axes.imshow(
                picture.values, extent=picture.extent, cmap=_colours("cividis"), vmin=limits[0], vmax=limits[1]
            )
            dress(axes, picture, outlines, small=True, ink=LIGHT)
            axes.set_title(name, fontsize=10.5)
        bar = figure.colorbar(image, ax=list(grid.flat), orientation="horizontal", aspect=45, shrink=0.6, pad=0.03)
        bar.set_label(label)
        bar.outline.set_visible(False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
        return save_figure(figure, output)


def read_outlines(
    path: str | Path, layer: str | None = None, crs: str = "EPSG:4326", source_crs: str = "EPSG:4326"
) -> list[np.ndarray]:
    """Reads boundary lines from GeoJSON or TopoJSON.

    Args:
        path: File with polygons or lines.
        layer: Object of a TopoJSON file, for example ``states``. Default: the first.
        crs: CRS that the lines are turned into: that of the map.
        source_crs: CRS of the file; both formats are meant for longitude and latitude.

    Returns:
        Lines, each (n, 2) x and y in ``crs``.

    Raises:
        AgriClipError: If the file is of neither format or lacks the layer.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise AgriClipError(f"{path} is not JSON (line {error.lineno}); give GeoJSON or TopoJSON outlines.") from None
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "Topology":
        lines = _topojson_lines(content, layer, path)
    elif kind in ("FeatureCollection", "Feature", "GeometryCollection") or (kind and "coordinates" in content):
        lines = [np.asarray(line, dtype=np.float64)[:, :2] for line in _geojson_lines(content)]
    else:
        raise AgriClipError(f"{path} is neither GeoJSON nor TopoJSON; give outlines in one of the two.")
    if crs == source_crs:
        return lines
    from pyproj import Transformer

    transform = Transformer.from_crs(source_crs, crs, always_xy=True).transform
    return [np.column_stack(transform(line[:, 0], line[:, 1])) for line in lines]


def _topojson_lines(topology: Mapping[str, Any], layer: str | None, path: str | Path) -> list[np.ndarray]:
    """Each arc of a layer once: arcs are delta-coded integers when the topology has a transform."""
    objects = topology.get("objects", {})
    layer = layer if layer is not None else next(iter(objects), "")
    if layer not in objects:
        raise AgriClipError(f"{path} has no layer '{layer}'; {nearest(layer, objects)}")
    used: set[int] = set()

    def collect(item: Any) -> None:
        if isinstance(item, Mapping):
            for key in ("arcs", "geometries"):
                collect(item.get(key, []))
        elif isinstance(item, list):
            for part in item:
                collect(part)
        else:
            used.add(item if item >= 0 else ~item)  # a reversed arc is stored as its complement

    collect(objects[layer])
    transform = topology.get("transform")
    lines = []
    for index in sorted(used):
        arc = np.asarray(topology["arcs"][index], dtype=np.float64)[:, :2]
        if transform is not None:
            arc = np.cumsum(arc, axis=0) * transform["scale"] + transform["translate"]
        lines.append(arc)
    return lines


def _geojson_lines(item: Mapping[str, Any]) -> list[Any]:
    """Rings and lines of any GeoJSON object."""
    for key in ("features", "geometries"):
        if key in item:
            return [line for part in item[key] for line in _geojson_lines(part)]
    if item.get("type") == "Feature":
        return _geojson_lines(item["geometry"]) if item.get("geometry") else []
    depth = {"LineString": 0, "MultiLineString": 1, "Polygon": 1, "MultiPolygon": 2}.get(item.get("type", ""))
    if depth is None:
        return []
    lines = [item["coordinates"]]
    for _ in range(depth):
        lines = [line for part in lines for line in part]
    return lines


def load_picture(path: str | Path, max_size: int = _MAX_PIXELS) -> Picture:
    grid = Grid.from_raster(path)
    west, south, east, north = grid.bounds
    return Picture(read_map(path, max_size=max_size), (west, east, south, north), grid.is_geographic)


def _colours(name: str) -> Colormap:
    return matplotlib.colormaps[name]


def shape_ratio(picture: Picture) -> float:
    """Height over width of the drawn map, degrees of longitude shortened at the middle latitude."""
    west, east, south, north = picture.extent
    return abs(north - south) / abs(east - west) * _aspect(picture)


def _aspect(picture: Picture) -> float:
    if not picture.geographic:
        return 1.0
    middle = math.radians((picture.extent[2] + picture.extent[3]) / 2)
    return 1.0 / max(math.cos(middle), 0.15)


def _map_figure(picture: Picture, bar: bool = True) -> tuple[Figure, Any]:
    ratio = shape_ratio(picture)
    width = min(9.0, max(6.8 / ratio, 4.5))  # tall maps stay on one screen
    height = min(max(width * ratio, 2.5), 12.0) + (1.4 if bar else 1.0)
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def dress(
    axes: Any,
    picture: Picture,
    outlines: Sequence[np.ndarray] | None,
    *,
    small: bool = False,
    ink: str = "#3b3b3b",
) -> None:
    """Outlines, graticule, axis labels and scale bar."""
    west, east, south, north = picture.extent
    axes.patch.set(facecolor="white", hatch="/////", edgecolor=HATCH, linewidth=0.0)
    if outlines:
        axes.add_collection(LineCollection(list(outlines), colors=ink, linewidths=0.35 if small else 0.55))
    axes.set_xlim(min(west, east), max(west, east))
    axes.set_ylim(min(south, north), max(south, north))
    axes.set_aspect(_aspect(picture))
    axes.grid(color="white", linewidth=0.4, alpha=0.45)
    axes.tick_params(length=2.5, labelsize=7.5 if small else 8.5)
    axes.locator_params(nbins=4 if small else 7)
    if picture.geographic:
        axes.xaxis.set_major_formatter(lambda value, _: degrees(value, "E", "W"))
        axes.yaxis.set_major_formatter(lambda value, _: degrees(value, "N", "S"))
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
        if not small:
            axes.set_xlabel("easting, km")
            axes.set_ylabel("northing, km")
    if not small:
        _scale_bar(axes, picture)


def _scale_bar(axes: Any, picture: Picture) -> None:
    """A bar of a round number of kilometres, true at the lower edge of the map."""
    west, east, south, north = picture.extent
    metres_per_unit = 111_320.0 * max(math.cos(math.radians(south)), 0.05) if picture.geographic else 1.0
    span = abs(east - west) * metres_per_unit / 1000.0
    exponent = 10.0 ** math.floor(math.log10(span / 4.0))
    length = max(step * exponent for step in (1, 2, 5) if step * exponent <= span / 4.0)
    start = min(west, east) + 0.03 * abs(east - west)
    stop = start + length * 1000.0 / metres_per_unit
    level = min(south, north) + 0.035 * abs(north - south)
    for colour, width in (("white", 5.0), (INK, 2.2)):
        axes.plot([start, stop], [level, level], color=colour, linewidth=width, solid_capstyle="butt", zorder=5)
    axes.annotate(
        f"{length:g} km",
        ((start + stop) / 2, level),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
        zorder=6,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.2},
    )


def _threshold_line(axes: Any, picture: Picture, threshold: float) -> None:
    values = picture.values
    known = values[np.isfinite(values)]
    if not known.size or not known.min() < threshold < known.max():
        return
    west, east, south, north = picture.extent
    rows, columns = values.shape
    x = west + (np.arange(columns) + 0.5) * (east - west) / columns
    y = north + (np.arange(rows) + 0.5) * (south - north) / rows
    axes.contour(x, y, np.ma.masked_invalid(values), levels=[threshold], colors=["#b2182b"], linewidths=0.9)


def _legend_no_data(axes: Any, picture: Picture, threshold: float | None) -> None:
    handles: list[Any] = []
    if threshold is not None:
        handles.append(Line2D([], [], color="#b2182b", linewidth=1.2, label=f"{threshold:g}"))
    if not np.isfinite(picture.values).all():
        handles.append(Patch(facecolor="white", edgecolor=HATCH, hatch="/////", linewidth=0.0, label="no data"))
    if handles:
        axes.legend(handles=handles, loc="lower right", fontsize=8.5, framealpha=0.85, edgecolor="none")


def _colour_bar(figure: Figure, axes: Any, image: Any, label: str, extend: str) -> None:
    bar = figure.colorbar(image, ax=axes, orientation="horizontal", aspect=42, shrink=0.75, pad=0.03, extend=extend)
    bar.set_label(label)
    bar.outline.set_visible(False)


def _extend(values: np.ndarray, limits: tuple[float, float]) -> str:
    known = values[np.isfinite(values)]
    low, high = bool((known < limits[0]).any()), bool((known > limits[1]).any())
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[low, high]


def degrees(value: float, positive: str, negative: str) -> str:
    return f"{abs(value):g}°{positive if value > 0 else negative if value < 0 else ''}"


def _hectares(area: float) -> str:
    """An area for people: 1.23 Mha, 45 kha, 310 ha."""
    if abs(area) >= 1e6:
        return f"{area / 1e6:.3g} million ha"
    if abs(area) >= 1e4:
        return f"{area / 1e3:,.0f} thousand ha"
    return f"{area:,.0f} ha"


def save_figure(figure: Figure, output: str | Path) -> Path:
    """Write a figure so that the file is there whole or not at all."""
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial.png")
    try:
        figure.savefig(temporary, dpi=150, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
