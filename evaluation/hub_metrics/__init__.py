"""Metrics for the `evaluate` library: ``evaluate.load(metric_path("suitability"))``.

Each folder is what the Hub would hold for that metric, so it can be copied there as it is.
"""

from __future__ import annotations

from pathlib import Path

from processing.errors import AgriClipError, nearest

__all__ = ["METRICS", "metric_path"]

#: Names of the metrics.
METRICS = ("suitability", "pixel_segmentation", "area_bias")


def metric_path(name: str) -> str:
    """Folder of a metric, for ``evaluate.load``.

    Args:
        name: One of :data:`METRICS`.

    Raises:
        AgriClipError: For another name.
    """
    if name not in METRICS:
        raise AgriClipError(f"There is no metric '{name}'; {nearest(name, METRICS)}.")
    return str(Path(__file__).parent / name)
