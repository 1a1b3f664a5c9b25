"""The part of a study that its agronomic layers are made of: monthly climate, and how a scenario changes it.

A scenario's change is found by the files of its `delta`: those of the monthly rasters where they are predictors
themselves, else the bioclimatic variables that `bioclim` names.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from .study_parts import Part, Range, Unit


class MonthlyPart(Part):
    """Twelve bands of a raster, January to December.

    Attributes:
        file: Raster.
        unit: Unit of the stored values.
        bands: Band numbers or descriptions; the first twelve, of a file that has twelve, by default.
        scale: Factor on the stored values, on top of the raster's own scale tag.
    """

    file: str
    unit: Unit
    bands: tuple[int | str, ...] | None = Field(default=None, min_length=12, max_length=12)
    scale: float = Field(default=1.0, gt=0)


class BioclimPart(Part):
    """Bioclimatic variables whose change moves the months: a predictor file of the study, and three of its bands.

    Attributes:
        file: Predictor file that the scenarios' `delta` changes.
        bands: Bands of the mean temperature of the warmest and coldest quarter (degC) and of annual rain (mm).
    """

    file: str
    bands: tuple[int | str, int | str, int | str] = ("bio10", "bio11", "bio12")


class NdviPart(Part):
    """Monthly NDVI of the present, for the two-peak rule.

    Attributes:
        file: Raster of twelve bands.
        scale: Factor on the stored values, on top of the raster's own scale tag.
        valid_range: NDVI outside counts as missing.
    """

    file: str
    scale: float = Field(default=1.0, gt=0)
    valid_range: Range = None


class AgronomyPart(Part):
    """What the heat-unit rule, the climate envelope and the two-peak rule are asked about.

    Attributes:
        precipitation: Monthly precipitation.
        mean_temperature: Monthly mean temperature; or the next two, or all three.
        minimum_temperature: Monthly mean of the daily minimum.
        maximum_temperature: Monthly mean of the daily maximum.
        diurnal_range: Daily maximum less minimum in degC, where they are not given.
        irrigated: Rain is not asked for.
        ndvi: NDVI of the present.
        bioclim: Where scenarios have bioclimatic variables only.
    """

    precipitation: MonthlyPart
    mean_temperature: MonthlyPart | None = None
    minimum_temperature: MonthlyPart | None = None
    maximum_temperature: MonthlyPart | None = None
    diurnal_range: float = Field(default=11.0, gt=0, le=25)
    irrigated: bool = False
    ndvi: NdviPart | None = None
    bioclim: BioclimPart | None = None

    @model_validator(mode="after")
    def _temperature(self) -> Self:
        if (self.minimum_temperature is None) != (self.maximum_temperature is None):
            raise ValueError("give `minimum_temperature` and `maximum_temperature`, or neither")
        if self.mean_temperature is None and self.minimum_temperature is None:
            raise ValueError("give `mean_temperature`, or `minimum_temperature` and `maximum_temperature`")
        return self

    def monthly(self) -> dict[str, MonthlyPart]:
        """The monthly rasters that are given, by name."""
        names = ("precipitation", "mean_temperature", "minimum_temperature", "maximum_temperature")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


__all__ = ["AgronomyPart", "BioclimPart", "MonthlyPart", "NdviPart"]
