"""What the page draws: map overlays as PNG, legends as HTML, charts as SVG. No plotting library.

Two choices define this file. An overlay is warped to the Web Mercator pixels of the map widget with nearest
neighbours, so that a cell stays a cell and a click hits what is seen. And colours are those of the QGIS styles.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapping.change import CHANGE_CLASSES, change_classes
from mapping.layers import PROBABILITY_STOPS
from processing.grids import Grid
from spaces_demo.example import PRESENT, Example, percent

__all__ = ["LAYERS", "Overlay", "draw_overlay", "legend_html", "curve_svg", "ranges_svg"]

#: Key -> (title in the list, what it says).
LAYERS: dict[str, tuple[str, str]] = {
    "probability": ("Probability", ""),
    "change": ("Change against today", "Follows the threshold."),
    "std": ("Uncertainty", "Standard deviation over the members of the model and, for a mean, the climate models."),
    "mess": ("Novelty", "Below 0 some variable lies outside the range of the labelled sites, by that share of it."),
}
_STD_STOPS = ((0.0, "#fcfbfd"), (0.1, "#bcbddc"), (0.2, "#807dba"), (0.35, "#3f007d"))
_MESS_STOPS = ((-60.0, "#7f3b08"), (-20.0, "#e08214"), (0.0, "#f7f7f7"), (20.0, "#b2abd2"), (60.0, "#2d004b"))
_WIDEST = 1400  # pixels of an overlay


@dataclass(frozen=True)
class Overlay:
    """A picture of a layer and where it lies.

    Attributes:
        url: PNG as a data URL.
        bounds: South, west, north, east in degrees.
    """

    url: str
    bounds: tuple[float, float, float, float]


def draw_overlay(
    example: Example, key: str, layer: str, threshold: float, hatch: bool = True, outline: bool = True
) -> Overlay:
    """Draw a layer of a climate.

    Args:
        example: The example.
        key: Climate.
        layer: One of `LAYERS`.
        threshold: For the change, and for the line around suitable land.
        hatch: Hatch land outside the area of applicability.
        outline: Draw a line around suitable land.
    """
    chance = example.layer(key, "probability")
    if layer == "change":
        classes = change_classes(example.layer(PRESENT, "probability"), chance, threshold)
        colours = class_colours(classes)
    else:
        colours = stop_colours(example.layer(key, layer), _stops(layer))
    outside = example.layer(key, "applicability") == 2
    picture, bounds, index = _to_mercator(colours, example.grid)
    if hatch:
        marked = np.where(index >= 0, outside.ravel()[np.maximum(index, 0)], False)
        rows, columns = np.indices(marked.shape)
        lines = marked & ((rows + columns) % 12 < 2)
        # Dark lines on light cells and light ones on dark cells.
        light = picture[lines, :3].mean(axis=1, keepdims=True) > 100
        picture[lines, :3] = np.where(light, 50, 185).astype(np.uint8)
    if outline and layer == "probability":
        suitable = np.where(index >= 0, (chance >= threshold).ravel()[np.maximum(index, 0)], False)
        edge = _edge(suitable)
        picture[edge & (index >= 0)] = (200, 30, 45, 255)
    return Overlay(_png(picture), bounds)


def stop_colours(values: NDArray[np.float32], stops: Sequence[tuple[float, str]]) -> NDArray[np.uint8]:
    """Colours between stops, (h, w, 4); transparent where there is nothing."""
    at = np.array([value for value, _ in stops])
    rgb = np.array([_rgb(colour) for _, colour in stops], dtype=np.float64)
    known = np.isfinite(values)
    filled = np.where(known, values, at[0])
    picture = np.stack([np.interp(filled, at, rgb[:, band]) for band in range(3)] + [np.where(known, 255, 0)], axis=-1)
    return picture.round().astype(np.uint8)


def class_colours(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours of the classes of change, (h, w, 4)."""
    table = np.zeros((256, 4), dtype=np.uint8)
    for value, (_, colour) in CHANGE_CLASSES.items():
        table[value] = (*_rgb(colour), 255)
    return table[classes]


def _stops(layer: str) -> Sequence[tuple[float, str]]:
    return {"probability": PROBABILITY_STOPS, "std": _STD_STOPS, "mess": _MESS_STOPS}[layer]


def _to_mercator(
    colours: NDArray[np.uint8], grid: Grid
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float], NDArray[np.int64]]:
    """Pixels of a Web Mercator picture, its bounds in degrees, and the cell of each pixel (-1: none)."""
    from processing.grids import transform_points

    west, south, east, north = grid.bounds_in("EPSG:4326")
    south, north = max(south, -85.0), min(north, 85.0)
    (left, right), (bottom, top) = transform_points([west, east], [south, north], "EPSG:4326", "EPSG:3857")
    width = int(np.clip(8 * grid.width, 300, _WIDEST))
    height = max(1, round(width * (top - bottom) / (right - left)))
    x = left + (np.arange(width) + 0.5) * (right - left) / width
    y = top - (np.arange(height) + 0.5) * (top - bottom) / height
    if grid.is_geographic:
        # Mercator keeps meridians and parallels straight: one row and one column tell all.
        lon, _ = transform_points(x, np.zeros(width), "EPSG:3857", grid.crs)
        _, lat = transform_points(np.full(height, left), y, "EPSG:3857", grid.crs)
        xs, ys = np.broadcast_arrays(lon[None, :], lat[:, None])
    else:
        mesh = np.meshgrid(x, y)
        moved = transform_points(mesh[0].ravel(), mesh[1].ravel(), "EPSG:3857", grid.crs)
        xs, ys = (axis.reshape(height, width) for axis in moved)
    row, column = grid.cell_of(np.nan_to_num(xs, nan=1e12), np.nan_to_num(ys, nan=1e12))
    inside = (row >= 0) & (row < grid.height) & (column >= 0) & (column < grid.width)
    index = np.where(inside, row * grid.width + column, -1)
    flat = colours.reshape(-1, 4)
    picture = np.where(inside[..., None], flat[np.maximum(index, 0)], 0).astype(np.uint8)
    index = np.where(picture[..., 3] > 0, index, -1)
    return picture, (south, west, north, east), index


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask at its border, two pixels wide."""
    inner = mask.copy()
    for axis in (0, 1):
        for step in (-2, -1, 1, 2):
            inner &= np.roll(mask, step, axis=axis)
    return mask & ~inner


def _png(picture: NDArray[np.uint8]) -> str:
    from PIL import Image

    stream = io.BytesIO()
    # A palette keeps the picture at some 20 kB; alpha is all or nothing.
    Image.fromarray(picture).quantize(128, method=Image.Quantize.FASTOCTREE).save(stream, "PNG", optimize=False)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


# -- legends ----------------------------------------------------------------------------------------------------------


def legend_html(layer: str, hatch: bool, quantity: str, threshold: float) -> str:
    """The legend below a map."""
    if layer == "change":
        entries = "".join(
            f'<span class="ac-key"><i style="background:{colour}"></i>{escape(title)}</span>'
            for title, colour in CHANGE_CLASSES.values()
        )
        body = f'<div class="ac-keys">{entries}</div>'
    else:
        stops = _stops(layer)
        low, high = stops[0][0], stops[-1][0]
        gradient = ", ".join(f"{colour} {100 * (value - low) / (high - low):.0f}%" for value, colour in stops)
        ticks = "".join(f"<span>{_tick(layer, value)}</span>" for value, _ in stops)
        body = (
            f'<div class="ac-ramp" style="background:linear-gradient(to right, {gradient})"></div>'
            f'<div class="ac-ticks">{ticks}</div>'
        )
    title = LAYERS[layer][0]
    note = quantity if layer == "probability" else LAYERS[layer][1]
    marks = ""
    if layer == "probability":
        marks += f'<span class="ac-key"><i class="ac-line"></i>{percent(threshold)} or more: called suitable</span>'
    if hatch:
        marks += (
            '<span class="ac-key"><i class="ac-hatch"></i>hatched: do not trust, unlike every labelled site</span>'
        )
    return (
        f'<div class="ac-legend"><b>{escape(title)}</b> <span class="ac-note">{escape(note)}</span>{body}'
        f'<div class="ac-keys">{marks}</div></div>'
    )


def _tick(layer: str, value: float) -> str:
    if layer == "probability":
        return f"{100 * value:.0f} %"
    return f"{value:g} %" if layer == "mess" else f"{value:g}"


# -- charts -----------------------------------------------------------------------------------------------------------


def ranges_svg(point: dict[str, Any]) -> str:
    """Probability now and in each scenario, with the range over climate models."""
    rows = [("Today", point["present"]["probability"], None, None, not point["present"]["outside"], [])]
    for one in point["scenarios"]:
        dots = [answer["probability"] for answer in one["models"].values()]
        rows.append((one["title"], one["mean"], one["low"], one["high"], one["trusted"], dots))
    height, width = 32, 430
    rows = [(title if len(title) <= 26 else title[:25] + "…", *rest) for title, *rest in rows]
    left = max(106, 6.8 * max(len(title) for title, *_ in rows) + 10)  # room for the longest title
    span = width - left - 58

    def at(value: float) -> float:
        return left + span * value

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="8" y2="{len(rows) * height + 8}" '
                     f'class="ac-grid"/><text x="{at(tick):.1f}" y="{len(rows) * height + 24}" '
                     f'class="ac-axis" text-anchor="middle">{100 * tick:.0f} %</text>')  # fmt: skip
    for index, (title, mean, low, high, trusted, dots) in enumerate(rows):
        y = 8 + height * (index + 0.5)
        shade = "" if trusted else ' class="ac-doubt"'
        parts.append(f'<text x="0" y="{y + 5:.1f}" class="ac-row">{escape(title)}</text>')
        group = ""
        if low is not None and high is not None:
            group += (f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{y}" y2="{y}" stroke="#8aa3b8" '
                      'stroke-width="7" stroke-linecap="round"/>')  # fmt: skip
        group += "".join(f'<circle cx="{at(v):.1f}" cy="{y}" r="3" fill="#4b6478"/>' for v in dots)
        group += f'<circle cx="{at(mean):.1f}" cy="{y}" r="7" fill="#0b4f6c" stroke="#fff" stroke-width="2"/>'
        parts.append(f"<g{shade}>{group}</g>")
        parts.append(f'<text x="{width}" y="{y + 5:.1f}" text-anchor="end" class="ac-value">{percent(mean)}'
                     f'{"" if trusted else " ?"}</text>')  # fmt: skip
    label = "Probability today and in each scenario, dots are climate models"
    return (
        f'<svg viewBox="0 0 {width} {len(rows) * height + 32}" role="img" aria-label="{label}" class="ac-chart">'
        f"{''.join(parts)}</svg>"
    )


def curve_svg(
    x: Sequence[float],
    curves: Sequence[tuple[str, Sequence[float], str]],
    at: float,
    label: str,
    band: Any = None,
    doubted: Sequence[bool] = (),
) -> str:
    """Lines of probability over a slider, with where the slider stands.

    Args:
        x: Values of the slider.
        curves: Title, probabilities and colour of each line.
        at: Where the slider stands.
        label: Words for the axis.
        band: (low, high) around the first curve.
        doubted: Whether each value lies beyond what the model was fitted on; shaded.
    """
    width, height, left, bottom, top = 440, 250, 42, 40, 12
    low, high = min(x), max(x)

    def px(value: float) -> float:
        return left + (width - left - 14) * (value - low) / max(high - low, 1e-9)

    def py(value: float) -> float:
        return top + (height - top - bottom) * (1 - min(max(value, 0.0), 1.0))

    parts = []
    half = (high - low) / max(len(x) - 1, 1) / 2
    for value, doubt in zip(x, doubted, strict=False):
        if doubt:
            a, b = px(max(value - half, low)), px(min(value + half, high))
            parts.append(
                f'<rect x="{a:.1f}" width="{b - a:.1f}" y="{top}" height="{height - top - bottom}" class="ac-beyond"/>'
            )
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{left}" x2="{width - 14}" y1="{py(tick):.1f}" y2="{py(tick):.1f}" class="ac-grid"/>'
                     f'<text x="{left - 6}" y="{py(tick) + 4:.1f}" text-anchor="end" class="ac-axis">'
                     f'{100 * tick:.0f} %</text>')  # fmt: skip
    for tick in np.linspace(low, high, 6):
        parts.append(f'<text x="{px(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle" class="ac-axis">'
                     f"{tick:+g}</text>".replace("+0<", "0<"))  # fmt: skip
    if band is not None:
        upper = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(x, band[1], strict=True))
        lower = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in reversed(list(zip(x, band[0], strict=True))))
        parts.append(f'<polygon points="{upper} {lower}" fill="#0b4f6c" opacity="0.14"/>')
    for title, values, colour in curves:
        points = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(x, values, strict=True))
        dash = ' stroke-dasharray="6 5"' if colour != "#0b4f6c" else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"{dash}>'
                     f"<title>{escape(title)}</title></polyline>")  # fmt: skip
    parts.append(f'<line x1="{px(at):.1f}" x2="{px(at):.1f}" y1="{top}" y2="{height - bottom}" class="ac-here"/>')
    keys = "".join(
        f'<span class="ac-key"><i style="background:{colour}"></i>{escape(title)}</span>'
        for title, _, colour in curves
    )
    if any(doubted):
        keys += '<span class="ac-key"><i class="ac-beyond"></i>beyond what the model was fitted on</span>'
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" class="ac-chart">'
        f'{"".join(parts)}<text x="{(width + left) / 2}" y="{height - 4}" text-anchor="middle" class="ac-axis">'
        f'{escape(label)}</text></svg><div class="ac-keys">{keys}</div>'
    )
