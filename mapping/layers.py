"""The layers of a suitability map: what each holds, in which unit, as which type, and in which colours.

One quantity goes in one file. A layer that says where not to trust the map stands beside the probability in every
climate: its spread, its novelty, its applicability, its prediction set.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapping.applicability import APPLICABILITY_CLASSES, SET_CLASSES
from mapping.outputs import RowBandWriter, class_raster_options, write_qgis_style
from processing.grids import Grid
from processing.study import Study
from processing.study_data import StudyData

#: Share of places whose prediction set holds the truth, on land like that of the fit.
SET_LEVEL = 0.9
_NO_COUNT = 255

#: Colours of probability maps in QGIS: cividis at five stops.
PROBABILITY_STOPS = ((0.0, "#00224e"), (0.25, "#434e6c"), (0.5, "#7d7c78"), (0.75, "#bcae6c"), (1.0, "#fee838"))
_PURPLE_ORANGE = ((-100.0, "#7f3b08"), (-20.0, "#fdb863"), (0.0, "#f7f7f7"), (20.0, "#b2abd2"), (100.0, "#2d004b"))
_EFFECT = ((-0.5, "#2166ac"), (0.0, "#f7f7f7"), (0.5, "#b2182b"))
_SPREAD = ((0.0, "#fcfbfd"), (0.1, "#bcbddc"), (0.3, "#54278f"))


@dataclass(frozen=True)
class Layer:
    """One quantity of a map.

    Attributes:
        title: What a cell holds.
        unit: Unit; `1` for numbers without one.
        dtype: NumPy type of the file.
        nodata: Value where there is no answer; NaN for numbers, 0 for classes if None.
        classes: Class value -> (title, colour) of a class raster.
        stops: (value, colour) pairs of the style of a continuous raster.
        tags: Further metadata.
    """

    title: str
    unit: str = "1"
    dtype: str = "float32"
    nodata: float | None = None
    classes: Mapping[int, tuple[str, str]] | None = None
    stops: tuple[tuple[float, str], ...] = ()
    tags: dict[str, Any] = field(default_factory=dict)

    def empty(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """An array without any answer."""
        missing = self.nodata if self.nodata is not None else (np.nan if self.dtype.startswith("float") else 0)
        return np.full(shape, missing, dtype=self.dtype)

    def open(self, stack: ExitStack, path: Path, grid: Grid, name: str, tags: Mapping[str, Any]) -> RowBandWriter:
        """A writer of this layer; what it has begun disappears if the stack ends in an error."""
        options: dict[str, Any] = {"dtype": self.dtype, "nodata": self.nodata}
        own = {"long_name": self.title, "units": self.unit, **self.tags}
        if self.classes is not None:
            options = class_raster_options(self.classes)
            own |= options.pop("tags")
        elif not self.dtype.startswith("float"):
            options["overview_resampling"] = "nearest"
        return stack.enter_context(
            RowBandWriter(path, grid, band_names=[name], units=[self.unit], tags={**tags, **own}, **options)
        )

    def write_style(self, path: Path) -> Path | None:
        """The QGIS style beside a finished raster, where the layer has one."""
        if self.classes is not None:
            return write_qgis_style(path, classes=self.classes)
        if self.stops:
            return write_qgis_style(path, stops=self.stops, unit="" if self.unit == "1" else self.unit)
        return None


def suitability_layers(study: Study, data: StudyData, shares: bool, level: float | None) -> dict[str, Layer]:
    """The layers of a study's maps.

    Args:
        study: The study.
        data: Its data.
        shares: Whether the model predicts a share of land.
        level: Coverage of the prediction sets, or None where the model has none.
    """
    what = "probability of suitability"
    if shares and study.labels is not None:
        what = f"probability that the share of land exceeds {study.labels.presence_above:g}"
    names = {i: variable.name for i, variable in enumerate(data.variables)}
    layers = {
        "probability": Layer(what, stops=PROBABILITY_STOPS),
        "probability_without_image": Layer(f"{what}, from the report alone", stops=PROBABILITY_STOPS),
        "image_effect": Layer(f"{what}: with the image less without it", stops=_EFFECT),
        "std": Layer(f"{what}: standard deviation over the ensemble's members", stops=_SPREAD),
        "mutual_information": Layer("what the disagreement of the ensemble's members leaves open", "nat"),
        "mess": Layer(
            "novelty (MESS): below 0 a variable lies outside the range of the labelled sites",
            "%",
            stops=_PURPLE_ORANGE,
        ),
        "mess_variable": Layer(
            "variable that is most unlike the labelled sites", dtype="int16", nodata=-1, tags={"classes": names}
        ),
        "out_of_range": Layer(
            "number of variables outside the range of the labelled sites", dtype="uint8", nodata=_NO_COUNT
        ),
        "dissimilarity": Layer("dissimilarity index: distance to the nearest labelled site over their mean distance"),
        "applicability": Layer("area of applicability", dtype="uint8", classes=APPLICABILITY_CLASSES),
    }
    if shares:
        layers["share"] = Layer("predicted share of land (median)", stops=PROBABILITY_STOPS)
    if level is not None:
        layers["prediction_set"] = Layer(
            f"prediction set of {100 * level:g} % coverage", dtype="uint8", classes=SET_CLASSES, tags={"level": level}
        )
    return layers


__all__ = ["PROBABILITY_STOPS", "SET_LEVEL", "Layer", "suitability_layers"]
