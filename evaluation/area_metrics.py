"""Scores of areas: what the people who plan with a map read off it first.

Three choices define this file. A predicted area is the sum of probabilities (or shares) times land, not the land above
a threshold, so that a calibrated map has no bias. Errors are given by the unit that a table lists (county, state), in
the unit of land that came in. The northern limit is where the mean probability of bands of latitude falls through one
half; a limit that lies beyond the data is NaN and not the edge of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from processing.errors import AgriClipError, nearest

__all__ = ["AreaScores", "AreaTable", "area_table", "latitude_limit", "latitude_limits", "score_areas"]

_SIDES = {"north": 1.0, "south": -1.0}


@dataclass(frozen=True)
class AreaTable:
    """Observed and predicted area of each unit.

    Attributes:
        unit: (U,) names, sorted.
        observed: (U,) observed area, in the unit of land.
        predicted: (U,) predicted area.
        land: (U,) land of the unit.
    """

    unit: np.ndarray
    observed: np.ndarray
    predicted: np.ndarray
    land: np.ndarray


@dataclass(frozen=True)
class AreaScores:
    """How well areas are predicted.

    Attributes:
        observed: Observed area in all, in the unit of land.
        predicted: Predicted area in all.
        bias: ``predicted - observed``.
        relative_bias: ``bias / observed``; NaN where nothing was observed.
        rmse: Root mean squared error of the areas of units.
        r2: Share of the variance of observed areas between units that is explained (1 - residual / total sum of
            squares, below 0 if worse than their mean); NaN for fewer than two units or equal areas.
        units: Number of units.
    """

    observed: float
    predicted: float
    bias: float
    relative_bias: float
    rmse: float
    r2: float
    units: int


def area_table(
    observed: np.ndarray,
    predicted: np.ndarray,
    land: np.ndarray | None = None,
    unit: np.ndarray | None = None,
) -> AreaTable:
    """Areas of units from shares or probabilities of places.

    Args:
        observed: (N,) observed share of the land of each place (0 or 1 for a cell), NaN where unknown.
        predicted: (N,) predicted share or probability, NaN where unknown.
        land: (N,) land of each place in any unit of area, or None for equal land of 1.
        unit: (N,) name of the unit that holds each place, or None for every place its own unit.

    Returns:
        The table; a place that lacks either value counts in neither area, so that a gap is no bias.

    Raises:
        AgriClipError: Lengths that differ, shares outside 0 to 1, land that is negative, or no place with both values.
    """
    a, b = (np.asarray(values, dtype=np.float64).ravel() for values in (observed, predicted))
    ground = np.ones_like(a) if land is None else np.asarray(land, dtype=np.float64).ravel()
    names = np.arange(a.size) if unit is None else np.asarray(unit).ravel()
    if not a.size == b.size == ground.size == names.size:
        raise AgriClipError(
            f"Areas need one value per place, but there are {a.size} observed and {b.size} predicted shares, "
            f"{ground.size} areas of land and {names.size} units."
        )
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        raise AgriClipError("No place has both an observed and a predicted share, so there are no areas to compare.")
    a, b, ground, names = a[known], b[known], ground[known], names[known]
    if min(a.min(), b.min()) < 0 or max(a.max(), b.max()) > 1:
        raise AgriClipError("Shares and probabilities must lie between 0 and 1; divide areas by the land first.")
    if not np.isfinite(ground).all() or ground.min() < 0:
        raise AgriClipError("The land of a place must be a number of 0 or more; check that column.")
    units, place = np.unique(names, return_inverse=True)
    place = place.ravel()
    return AreaTable(
        unit=units,
        observed=np.bincount(place, weights=a * ground),
        predicted=np.bincount(place, weights=b * ground),
        land=np.bincount(place, weights=ground),
    )


def score_areas(
    observed: np.ndarray,
    predicted: np.ndarray,
    land: np.ndarray | None = None,
    unit: np.ndarray | None = None,
) -> AreaScores:
    """Bias of the whole area, and error of the areas of units.

    Args:
        observed: (N,) observed share of the land of each place, NaN where unknown.
        predicted: (N,) predicted share or probability, NaN where unknown.
        land: (N,) land of each place, or None for equal land of 1.
        unit: (N,) name of the unit that holds each place, or None for every place its own unit.

    Returns:
        The scores, areas in the unit of land.

    Raises:
        AgriClipError: As :func:`area_table`.
    """
    from sklearn.metrics import r2_score, root_mean_squared_error

    table = area_table(observed, predicted, land, unit)
    there, told = float(table.observed.sum()), float(table.predicted.sum())
    varied = table.unit.size > 1 and np.ptp(table.observed) > 0
    return AreaScores(
        observed=there,
        predicted=told,
        bias=told - there,
        relative_bias=(told - there) / there if there > 0 else math.nan,
        rmse=float(root_mean_squared_error(table.observed, table.predicted)),
        r2=float(r2_score(table.observed, table.predicted)) if varied else math.nan,
        units=int(table.unit.size),
    )


def latitude_limit(
    latitude: np.ndarray,
    probability: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    level: float = 0.5,
    band: float = 0.5,
    side: str = "north",
) -> float:
    """Latitude at which the mean probability of bands falls through a level, coming from the suitable side.

    Bands are ``band`` degrees high and start at multiples of that. Seen from outside, the first band that reaches the
    level is suitable; the limit lies between it and its outer neighbour, by linear interpolation between the mean
    latitudes of their places.

    Args:
        latitude: (N,) latitudes in degrees; cells or places in any order.
        probability: (N,) probability or share, NaN where unknown.
        weight: (N,) weights (land area), or None.
        level: The level, 0.5 for the line where suitable and unsuitable are equally likely.
        band: Height of a band in degrees.
        side: ``north`` or ``south``: the limit on that side.

    Returns:
        The latitude in degrees; NaN if no band reaches the level, or the outermost does (the limit lies beyond).

    Raises:
        AgriClipError: Lengths that differ, or an unknown side.
    """
    sign = _SIDES.get(side)
    if sign is None:
        raise AgriClipError(f"A limit of latitude has no side '{side}'; {nearest(side, _SIDES)}.")
    if not band > 0:
        raise AgriClipError(f"Bands of latitude must be higher than 0 degrees, not {band:g}.")
    lat, p, w = _places(latitude, probability, weight)
    if not lat.size:
        return math.nan
    _, place = np.unique(np.floor(lat / band), return_inverse=True)
    mass = np.bincount(place, weights=w)
    centre, mean = np.bincount(place, weights=w * lat) / mass, np.bincount(place, weights=w * p) / mass
    order = np.argsort(-sign * centre)
    centre, mean = centre[order], mean[order]
    reached = np.flatnonzero(mean >= level)
    if not reached.size or reached[0] == 0:
        return math.nan
    inner, outer = reached[0], reached[0] - 1
    part = (mean[inner] - level) / (mean[inner] - mean[outer])
    return float(centre[inner] + part * (centre[outer] - centre[inner]))


def latitude_limits(
    latitude: np.ndarray,
    longitude: np.ndarray,
    probability: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    strip: float = 1.0,
    level: float = 0.5,
    band: float = 0.5,
    side: str = "north",
) -> tuple[np.ndarray, np.ndarray]:
    """The limit of :func:`latitude_limit` in strips of longitude, so that two maps can be compared along it.

    Args:
        latitude: (N,) latitudes in degrees.
        longitude: (N,) longitudes in degrees.
        probability: (N,) probability or share, NaN where unknown.
        weight: (N,) weights (land area), or None.
        strip: Width of a strip in degrees; strips start at multiples of it.
        level: The level.
        band: Height of a band in degrees.
        side: ``north`` or ``south``.

    Returns:
        (S,) western edge of each strip that holds a place, and (S,) its limit, NaN where there is none.

    Raises:
        AgriClipError: Lengths that differ, or an unknown side.
    """
    if not strip > 0:
        raise AgriClipError(f"Strips of longitude must be wider than 0 degrees, not {strip:g}.")
    lat, p = np.asarray(latitude, dtype=np.float64).ravel(), np.asarray(probability, dtype=np.float64).ravel()
    w = np.ones_like(lat) if weight is None else np.asarray(weight, dtype=np.float64).ravel()
    lon = np.asarray(longitude, dtype=np.float64).ravel()
    if not lat.size == p.size == w.size == lon.size:
        raise AgriClipError("Latitudes, longitudes, probabilities and weights must be one per place.")
    known = np.isfinite(lon)
    lat, lon, p, w = lat[known], lon[known], p[known], w[known]
    edges, place = np.unique(np.floor(lon / strip), return_inverse=True)
    limits = [
        latitude_limit(lat[place == s], p[place == s], w[place == s], level=level, band=band, side=side)
        for s in range(edges.size)
    ]
    return edges * strip, np.array(limits)


def _places(
    latitude: np.ndarray, probability: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latitudes, probabilities and weights of the places where all three are known and the weight is above zero."""
    lat, p = np.asarray(latitude, dtype=np.float64).ravel(), np.asarray(probability, dtype=np.float64).ravel()
    w = np.ones_like(lat) if weight is None else np.asarray(weight, dtype=np.float64).ravel()
    if not lat.size == p.size == w.size:
        raise AgriClipError(
            f"There are {lat.size} latitudes, {p.size} probabilities and {w.size} weights; give one of each per place."
        )
    known = np.isfinite(lat) & np.isfinite(p) & np.isfinite(w) & (w > 0)
    return lat[known], p[known], w[known]
