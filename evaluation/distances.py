"""Distances between places, on a plane or on the globe, for splits and their checks.

Two choices: places given in degrees are compared along great circles of a sphere of the earth's mean radius (an error
under 0.6 %), and nearest neighbours come from a tree, so that a map of a million cells can be asked about.
"""

from __future__ import annotations

import numpy as np

from processing.errors import AgriClipError

__all__ = ["box_distance", "checked_points", "chip_neighbours", "nearest_distance"]

EARTH_RADIUS = 6_371_008.8  # mean radius of the earth in metres (IUGG)
_CHUNK = 2048


def checked_points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, 2) float64 coordinates.

    Args:
        x: (N,) eastings or longitudes.
        y: (N,) northings or latitudes.

    Raises:
        AgriClipError: Lengths that differ, or coordinates that are not finite.
    """
    east, north = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if east.size != north.size:
        raise AgriClipError(f"There are {east.size} values of x and {north.size} of y; give one of each per place.")
    points = np.stack([east, north], axis=1)
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        raise AgriClipError(f"{bad} places have no finite coordinates; remove or repair them.")
    return points


def nearest_distance(points: np.ndarray, to: np.ndarray, *, geographic: bool = False) -> np.ndarray:
    """Distance of each place to the nearest one of others.

    Args:
        points: (N, 2) coordinates, x before y.
        to: (M, 2) coordinates, M > 0.
        geographic: Whether they are longitudes and latitudes in degrees.

    Returns:
        (N,) distances in units of the coordinates, or in metres if geographic.
    """
    from scipy.spatial import cKDTree

    if not geographic:
        return np.asarray(cKDTree(to).query(points)[0])
    chord = cKDTree(_on_sphere(to)).query(_on_sphere(points))[0]
    return np.asarray(2.0 * EARTH_RADIUS * np.arcsin(np.minimum(chord / 2.0, 1.0)))


def box_distance(points: np.ndarray, corners: np.ndarray, size: float, *, geographic: bool = False) -> np.ndarray:
    """Distance of each place to the nearest of some square boxes; 0 inside.

    Args:
        points: (N, 2) coordinates, x before y.
        corners: (B, 2) south-western corners of the boxes, B > 0.
        size: Edge of a box in units of the coordinates.
        geographic: Whether all are in degrees. The nearest point of a box is then found in degrees, which is exact
            on its sides and a little far at high latitudes.

    Returns:
        (N,) distances in units of the coordinates, or in metres if geographic.
    """
    distance = np.empty(len(points))
    for start in range(0, len(points), _CHUNK):
        part = points[start : start + _CHUNK, None, :]
        closest = np.clip(part, corners[None], corners[None] + size)
        if geographic:
            apart = np.linalg.norm(_on_sphere(closest) - _on_sphere(part), axis=-1)
            apart = 2.0 * EARTH_RADIUS * np.arcsin(np.minimum(apart / 2.0, 1.0))
        else:
            apart = np.linalg.norm(closest - part, axis=-1)
        distance[start : start + _CHUNK] = apart.min(axis=1)
    return distance


def chip_neighbours(points: np.ndarray, to: np.ndarray, extent: float, *, geographic: bool = False) -> np.ndarray:
    """Whether the square image chip around each place overlaps the chip of any other place.

    Args:
        points: (N, 2) coordinates, x before y.
        to: (M, 2) coordinates of the others, M > 0.
        extent: Edge of a chip in units of the coordinates, or in metres if geographic.
        geographic: Whether the coordinates are degrees.

    Returns:
        (N,) True where two chips share more than an edge.
    """
    from scipy.spatial import cKDTree

    if not geographic:
        return np.asarray(cKDTree(to).query(points, p=np.inf)[0] < extent)
    # Mercator keeps squares square: a chip of the ground is larger on it by the secant of the latitude.
    scale = EARTH_RADIUS * np.cos(np.radians(points[:, 1]))
    return np.asarray(cKDTree(_mercator(to)).query(_mercator(points), p=np.inf)[0] * scale < extent)


def _mercator(points: np.ndarray) -> np.ndarray:
    lon, lat = np.radians(points[:, 0]), np.radians(points[:, 1])
    return np.stack([lon, np.arcsinh(np.tan(lat))], axis=1)


def _on_sphere(points: np.ndarray) -> np.ndarray:
    """(..., 3) unit vectors of (..., 2) longitudes and latitudes."""
    lon, lat = np.radians(points[..., 0]), np.radians(points[..., 1])
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
