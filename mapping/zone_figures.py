"""Pictures of areas by zone and latitude, and of pathways by period with where not to trust them.

Three choices define this file. What climate models disagree on and what the model has never seen lies on the map
itself, as hatching and as dots, because a second map is not looked at. Zones are coloured by shares of their area,
never by areas, since a large county is not a suitable one. Pathways keep one colour and one dash in all pictures, and
both differ, so that they are told apart in grey and in the common forms of colour blindness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mapping.figures import HATCH, INK, LIGHT, STYLE, Picture, degrees, dress, load_picture, save_figure, shape_ratio
from mapping.outputs import read_map
from mapping.scenario_ensemble import ScenarioGroup, pathway_title
from mapping.zones import PRESENT, Zones
from processing.errors import AgriClipError, nearest

__all__ = ["ensemble_panel", "latitude_figure", "zone_figure"]

#: Pathway -> colour and dash: Okabe and Ito's colours, blue for the mildest to purple for the strongest.
PATHWAYS: dict[str, tuple[str, Any]] = {
    "ssp119": ("#56b4e9", (0, (1, 1))),
    "ssp126": ("#0072b2", (0, (6, 1.5))),
    "ssp245": ("#e69f00", (0, (4, 1.5, 1, 1.5))),
    "ssp370": ("#d55e00", (0, (2, 1))),
    "ssp460": ("#8a6d3b", (0, (5, 1, 1, 1, 1, 1))),
    "ssp585": ("#882e72", "solid"),
}
_OTHERS = (("#009e73", (0, (3, 1, 1, 1))), ("#cc79a7", (0, (1, 2))), ("#666666", (0, (8, 2))))
_AREAS = {"expected": "expected area", "suitable": "suitable area"}
_ZONE_VALUES = {
    "mean_probability": "mean probability of suitability",
    "suitable_share": "suitable area, % of the zone's area with data",
    "net_change": "gain less loss of suitable area, % of the zone's area with data",
    "novel_share": "area outside the training range (MESS below 0), %",
}
_MAX_PIXELS = 800


def latitude_figure(
    table: pd.DataFrame,
    output: str | Path,
    *,
    quantity: str = "expected",
    title: str | None = None,
) -> Path:
    """Draws area against latitude: the present and the groups of climate models, a panel for each period.

    Args:
        table: Table of `mapping.zones.latitude_areas`, with groups of climate models.
        output: PNG to write.
        quantity: `expected` (sum of probability times area) or `suitable` (at least the threshold).
        title: Title of the picture; the quantity if None.

    Returns:
        The PNG. Lines of groups are medians over the climate models, shades their intervals.

    Raises:
        AgriClipError: If the quantity is unknown or the table has neither the present nor a group.
    """
    if quantity not in _AREAS:
        raise AgriClipError(f"There is no area '{quantity}'; {nearest(quantity, _AREAS)}")
    groups = table[table["interval"] != ""]
    present = table[table["map"] == PRESENT]
    if groups.empty and present.empty:
        raise AgriClipError("The table has neither the present nor a group of climate models; nothing can be drawn.")
    periods = _periods(groups["period"]) or [""]
    height = float((table["north"] - table["south"]).iloc[0])
    columns = [f"{quantity}_{end}_km2" for end in ("low", "median", "high")]
    reach = pd.concat([present[f"{quantity}_km2"], *(groups[column] for column in columns)]).max()
    scale, unit = _area_unit(float(reach))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.6, 3.6 * len(periods) + 1.0), 5.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(periods), sharex=True, sharey=True, squeeze=False)[0]
        handles: dict[str, Any] = {}
        for axes, period in zip(panels, periods, strict=True):
            if not present.empty:
                handles["present"] = _profile(axes, present, f"{quantity}_km2", scale, INK, "solid", 2.0)
            here = groups[groups["period"].astype(str) == period]
            for name, rows in here.groupby("map", sort=False):
                colour, dash = _pathway_style(str(rows["ssp"].iloc[0]), groups["ssp"].unique())
                middle = (rows["south"] + rows["north"]) / 2
                low, high = rows[columns[0]] * scale, rows[columns[2]] * scale
                axes.fill_betweenx(middle, low, high, color=colour, alpha=0.16, linewidth=0)
                label = pathway_title(str(rows["ssp"].iloc[0])) or str(name)
                handles[label] = _profile(axes, rows, columns[1], scale, colour, dash, 1.6)
            axes.set_title(period, fontsize=11)
            axes.set_xlabel(f"{_AREAS[quantity]} per {height:g}°, {unit}")
            axes.grid(color="#e3e6e4", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: degrees(value, "N", "S")))
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        panels[0].set_ylabel("latitude")
        order = sorted(handles, key=lambda label: (label != "present", label))
        panels[0].set_xlim(0.0, 1.05 * float(reach) * scale or 1.0)
        panels[0].set_ylim(_lit(table, [f"{quantity}_km2", columns[2]]))
        title = title or f"{_AREAS[quantity].capitalize()} by latitude"
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
        if not groups.empty:
            order.append(_interval_words(groups))
            handles[order[-1]] = Patch(facecolor="#9aa39e", alpha=0.4, linewidth=0)
        shown = [handles[label] for label in order]
        figure.legend(shown, order, loc="outside lower center", ncols=min(len(periods) + 1, 4), frameon=False)
        return save_figure(figure, output)


def zone_figure(
    table: pd.DataFrame,
    zones: Zones,
    output: str | Path,
    *,
    name: str = PRESENT,
    value: str = "mean_probability",
    title: str | None = None,
    limit: float | None = None,
    outlines: Sequence[np.ndarray] | None = None,
) -> Path:
    """Draws zones coloured by a value of their table.

    Args:
        table: Table of `mapping.zones.zone_areas`.
        zones: Its zones.
        output: PNG to write.
        name: Map or group to draw.
        value: `mean_probability`, `suitable_share`, `net_change` (gain less loss) or `novel_share`.
        title: Title above the map; the name of the map if None.
        limit: For `net_change`, colours run from minus to plus this; the largest magnitude of the central 98 % if
            None.
        outlines: More lines, for example of states over counties, from `mapping.figures.read_outlines`.

    Returns:
        The PNG.

    Raises:
        AgriClipError: If the table has no such map or value.
    """
    if value not in _ZONE_VALUES:
        raise AgriClipError(f"Zones cannot be coloured by '{value}'; {nearest(value, _ZONE_VALUES)}")
    rows = table[table["map"] == name]
    if rows.empty:
        raise AgriClipError(f"The table has no map '{name}'; {nearest(name, table['map'].unique())}")
    values = dict(zip(rows["zone"], _zone_values(rows, value), strict=True))
    frame = zones.frame()
    frame = frame[frame["zone"].isin(values)]
    drawn = np.asarray([values[one] for one in frame["zone"]], dtype=np.float64)
    norm: Normalize = Normalize(0.0, 1.0 if value == "mean_probability" else 100.0)
    colours = matplotlib.colormaps["cividis"]
    if value == "net_change":
        known = drawn[np.isfinite(drawn)]
        if limit is None:
            limit = float(np.abs(np.percentile(known, [1, 99])).max()) if known.size else 1.0
        norm, colours = TwoSlopeNorm(0.0, -(limit or 1.0), limit or 1.0), matplotlib.colormaps["PuOr"]
    west, south, east, north = frame.total_bounds
    margin = 0.02 * max(east - west, north - south)
    extent = (west - margin, east + margin, south - margin, north + margin)
    picture = Picture(np.full((1, 1), np.nan), extent, True)
    with matplotlib.rc_context(STYLE):
        width = min(9.0, max(6.8 / shape_ratio(picture), 4.5))
        figure = Figure(figsize=(width, width * shape_ratio(picture) + 1.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        known = np.isfinite(drawn)
        shapes = [_outline(geometry) for geometry in frame.geometry]
        signed = value == "net_change"
        line = {"edgecolors": "#b8bfbb" if signed else "#ffffff66", "linewidths": 0.25 if len(shapes) > 300 else 0.5}
        filled = PathCollection([s for s, k in zip(shapes, known, strict=True) if k], cmap=colours, norm=norm, **line)
        filled.set_array(drawn[known])
        axes.add_collection(filled)
        if not known.all():
            empty = [shape for shape, k in zip(shapes, known, strict=True) if not k]
            axes.add_collection(
                PathCollection(empty, facecolors="white", edgecolors=HATCH, hatch="/////", linewidths=0.3)
            )
            handle = Patch(facecolor="white", edgecolor=HATCH, hatch="/////", linewidth=0.0, label="no data")
            axes.legend(handles=[handle], loc="lower right", fontsize=8.5, framealpha=0.85, edgecolor="none")
        dress(axes, picture, outlines, ink="#3b3b3b" if signed else LIGHT)
        axes.patch.set(hatch=None, facecolor="white")  # outside the zones there is nothing, not missing data
        axes.grid(False)
        axes.set_title(title or name)
        bar = figure.colorbar(
            filled, ax=axes, orientation="horizontal", aspect=42, shrink=0.75, pad=0.03, extend=_extend(drawn, norm)
        )
        bar.set_label(_ZONE_VALUES[value])
        bar.outline.set_visible(False)
        return save_figure(figure, output)


def ensemble_panel(
    combined: Mapping[str, Mapping[str, str | Path]],
    groups: Mapping[str, ScenarioGroup],
    output: str | Path,
    *,
    present: str | Path | None = None,
    threshold: float = 0.5,
    agree_from: float = 0.8,
    label: str = "probability of suitability, mean of the climate models",
    title: str | None = None,
    outlines: Sequence[np.ndarray] | None = None,
) -> Path:
    """Draws ensemble means with pathways as rows and periods as columns.

    Hatched is where fewer than `agree_from` of the climate models agree on whether the cell is suitable; dots are
    where at least half of them are novel.

    Args:
        combined: Group -> layer -> path, from `mapping.scenario_ensemble.combine_scenarios`.
        groups: The groups.
        output: PNG to write.
        present: Map of the present: its threshold is drawn as a line on every panel.
        threshold: Probability of that line.
        agree_from: Share of the climate models that must agree; 0.8 is usual in the IPCC's Sixth Assessment Report.
        label: What the colour bar shows.
        title: Title of the whole panel.
        outlines: Lines from `mapping.figures.read_outlines`.

    Returns:
        The PNG.

    Raises:
        AgriClipError: If there is no group, or a group has no map.
    """
    if not groups:
        raise AgriClipError("There is no group of climate models to draw; a study needs two of a pathway and period.")
    for name in groups:
        if "probability" not in combined.get(name, {}):
            raise AgriClipError(f"The group '{name}' has no map; make it with combine_scenarios first.")
    pathways = sorted({group.ssp.lower(): group.ssp for group in groups.values()}.items())
    periods = _periods(group.period for group in groups.values())
    place = {(group.ssp.lower(), group.period): name for name, group in groups.items()}
    first = load_picture(next(iter(combined[name]["probability"] for name in groups)), max_size=_MAX_PIXELS)
    before = None if present is None else load_picture(present, max_size=_MAX_PIXELS)
    width = min(5.2, 11.0 / len(periods))
    with matplotlib.rc_context({**STYLE, "hatch.linewidth": 0.55}):
        height = len(pathways) * (width * shape_ratio(first) + 0.15) + 1.5
        figure = Figure(figsize=(width * len(periods) + 0.4, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(pathways), len(periods), squeeze=False)
        image, seen = None, set()
        for row, (key, ssp) in enumerate(pathways):
            for column, period in enumerate(periods):
                axes = panels[row, column]
                if row == 0:
                    axes.set_title(period, fontsize=11, loc="center")
                name = place.get((key, period))
                if column == 0:
                    title_of_row = {"fontsize": 11, "fontweight": "bold", "ha": "right", "va": "center"}
                    axes.text(-0.12, 0.5, pathway_title(ssp), rotation=90, transform=axes.transAxes, **title_of_row)
                if name is None:
                    axes.text(0.5, 0.5, "not mapped", ha="center", va="center", transform=axes.transAxes, color=INK)
                    dress(axes, first, None, small=True)
                    axes.patch.set(hatch=None, facecolor="none")
                    axes.grid(False)
                    axes.tick_params(length=0, labelbottom=False, labelleft=False)
                    axes.spines[:].set_visible(False)
                    continue
                picture = load_picture(combined[name]["probability"], max_size=_MAX_PIXELS)
                image = axes.imshow(picture.values, extent=picture.extent, cmap="cividis", vmin=0, vmax=1)
                seen |= _doubts(axes, picture, combined[name], len(groups[name].climate_models), agree_from)
                if before is not None and _line(axes, before, threshold):
                    seen.add("present")
                dress(axes, picture, outlines, small=True, ink=LIGHT)
                axes.grid(False)
                # Degrees stand at the left and at the foot, or beside and above a panel that is not there.
                axes.tick_params(
                    labelleft=column == 0 or (key, periods[column - 1]) not in place,
                    labelbottom=row == len(pathways) - 1 or (pathways[row + 1][0], period) not in place,
                )
        bar = figure.colorbar(image, ax=list(panels.flat), orientation="horizontal", aspect=45, shrink=0.6, pad=0.02)
        bar.set_label(label)
        bar.outline.set_visible(False)
        handles = [handle for key, handle in _legend(threshold, agree_from).items() if key in seen]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
        return save_figure(figure, output)


def _doubts(axes: Any, picture: Picture, layers: Mapping[str, str | Path], models: int, agree_from: float) -> set[str]:
    """Hatching where models disagree and dots where most are novel; which of them there are."""
    seen = set()
    west, east, south, north = picture.extent
    rows, columns = picture.values.shape
    if "agreement" in layers:
        share = read_map(layers["agreement"], max_size=_MAX_PIXELS)
        # A thousandth: 4 of 5 is 0.8 only up to rounding.
        split = np.maximum(share, 1.0 - share) < agree_from - 1e-3
        boxes = [_box(picture, run) for run in _runs(split)]
        if boxes:
            seen.add("disagree")
            axes.add_collection(
                PolyCollection(boxes, facecolors="none", edgecolors="#f5f5f5", hatch="\\\\\\\\\\", linewidths=0.0)
            )
    if "novel_models" in layers:
        novel = read_map(layers["novel_models"], max_size=_MAX_PIXELS) >= models / 2.0
        step = max(1, round(columns / 40))
        down, right = np.nonzero(novel[step // 2 :: step, step // 2 :: step])
        if down.size:
            seen.add("novel")
            x = west + (right * step + step // 2 + 0.5) * (east - west) / columns
            y = north + (down * step + step // 2 + 0.5) * (south - north) / rows
            axes.scatter(x, y, s=5.0, facecolor="white", edgecolor="#1a1a1a", linewidth=0.35, zorder=3)
    return seen


def _runs(mask: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs of true cells: row, first column, column after the last."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    return [
        (int(row), int(first), int(last))
        for (row, first), (_, last) in zip(np.argwhere(edges == 1), np.argwhere(edges == -1), strict=True)
    ]


def _box(picture: Picture, run: tuple[int, int, int]) -> list[tuple[float, float]]:
    west, east, south, north = picture.extent
    rows, columns = picture.values.shape
    x = [west + column * (east - west) / columns for column in run[1:]]
    y = [north + row * (south - north) / rows for row in (run[0], run[0] + 1)]
    return [(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1])]


def _line(axes: Any, picture: Picture, threshold: float) -> bool:
    """The line where a map crosses the threshold; False where it does not."""
    values = picture.values
    known = values[np.isfinite(values)]
    if not known.size or not known.min() < threshold < known.max():
        return False
    west, east, south, north = picture.extent
    rows, columns = values.shape
    x = west + (np.arange(columns) + 0.5) * (east - west) / columns
    y = north + (np.arange(rows) + 0.5) * (south - north) / rows
    masked = np.ma.masked_invalid(values)
    axes.contour(x, y, masked, levels=[threshold], colors="white", linewidths=1.9)
    axes.contour(x, y, masked, levels=[threshold], colors="#b2182b", linewidths=0.9)
    return True


def _legend(threshold: float, agree_from: float) -> dict[str, Any]:
    return {
        "disagree": Patch(
            facecolor="#7d7c78",
            edgecolor="#f5f5f5",
            hatch="\\\\\\\\\\",
            linewidth=0.0,
            label=f"fewer than {100 * agree_from:g} % of the models agree",
        ),
        "novel": Line2D(
            [], [], linestyle="", marker="o", markersize=3, markerfacecolor="white", markeredgecolor="#1a1a1a",
            markeredgewidth=0.5, label="novel in half of the models or more",
        ),
        "present": Line2D([], [], color="#b2182b", linewidth=1.2, label=f"{threshold:g} in the present"),
    }  # fmt: skip


def _profile(axes: Any, rows: pd.DataFrame, column: str, scale: float, colour: str, dash: Any, width: float) -> Any:
    middle = (rows["south"] + rows["north"]) / 2
    return axes.plot(rows[column] * scale, middle, color=colour, linestyle=dash, linewidth=width)[0]


def _lit(table: pd.DataFrame, columns: Sequence[str]) -> tuple[float, float]:
    """South and north of the bands that hold anything to see: a hundredth of the largest area."""
    area = table[list(columns)].max(axis=1).fillna(0.0)
    lit = table[area > 0.01 * area.max()] if area.max() > 0 else table
    return float(lit["south"].min()), float(lit["north"].max())


def _area_unit(largest: float) -> tuple[float, str]:
    """Factor on km2 and words of a unit that keeps the numbers of an axis short."""
    if largest >= 2e6:
        return 1e-6, "million km²"
    return (1e-3, "thousand km²") if largest >= 2e3 else (1.0, "km²")


def _interval_words(groups: pd.DataFrame) -> str:
    text = str(groups["interval"].iloc[0]).split(" over ")[0]
    counts = sorted(set(groups["climate_models"]))
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{text} of {number} climate models (line: median)".replace("-", "–", 1)


def _periods(periods: Any) -> list[str]:
    """Each period once, in order of time."""
    return sorted({str(period) for period in periods})


def _pathway_style(ssp: str, among: Sequence[str]) -> tuple[str, Any]:
    key = ssp.lower()
    if key in PATHWAYS:
        return PATHWAYS[key]
    others = sorted({str(other).lower() for other in among} - set(PATHWAYS))
    return _OTHERS[others.index(key) % len(_OTHERS)]


def _zone_values(rows: pd.DataFrame, value: str) -> pd.Series:
    if value == "suitable_share":
        return 100.0 * rows["suitable_ha"] / rows["data_ha"]
    if value == "net_change":
        return 100.0 * (rows["gain_ha"] - rows["loss_ha"]) / rows["data_ha"]
    return rows[value] * (100.0 if value == "novel_share" else 1.0)


def _outline(geometry: Any) -> Outline:
    """A polygon or multipolygon as one path; holes run against their shell."""
    import shapely

    rings = shapely.get_rings(shapely.get_parts(shapely.orient_polygons(geometry)))
    return Outline.make_compound_path(*(Outline(shapely.get_coordinates(ring), closed=True) for ring in rings))


def _extend(values: np.ndarray, norm: Normalize) -> str:
    known = values[np.isfinite(values)]
    low, high = bool((known < norm.vmin - 1e-9).any()), bool((known > norm.vmax + 1e-9).any())
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[low, high]
