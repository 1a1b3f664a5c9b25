"""The precomputed example: maps of every climate, and what they say of a place or of an area.

Two choices define this file. Everything here is read from small rasters with NumPy, so a click is answered without the
model and without torch. And what a place is told is made once, as plain numbers: the page, the endpoints and the
tests read the same dictionary.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapping.change import ChangeSummary, summarise_change
from processing.errors import AgriClipError, nearest
from processing.grids import Grid, transform_points

__all__ = ["PRESENT", "Climate", "Example", "default_example"]

PRESENT = "present"
MEAN = "Mean of the climate models"
_OUTSIDE = 2  # class of the area of applicability
_HERE = Path(__file__).resolve().parent


def default_example() -> Path:
    """The example that the page opens on: that of a real study, `example/`, or the invented one that is shipped."""
    real = _HERE / "example"
    return real if (real / "summary.json").is_file() else _HERE / "virtual"


@dataclass(frozen=True)
class Climate:
    """A climate that was mapped.

    Attributes:
        key: Name in file names.
        title: Words for it.
        pathway: Emission pathway; empty for the present.
        period: Year or years; empty for the present.
        climate_model: Name; empty for the present and for a mean.
        members: Keys of the climates that a mean is of.
        layers: Rasters of it that are there.
    """

    key: str
    title: str
    pathway: str
    period: str
    climate_model: str = ""
    members: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


class Example:
    """A folder of `spaces_demo.build_example`.

    Args:
        folder: The folder.

    Attributes:
        folder: As given.
        summary: `summary.json`.
        climates: By key, the present first.
        grid: Grid of all maps.

    Raises:
        AgriClipError: There is no example in the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / "summary.json"
        if not file.is_file():
            raise AgriClipError(
                f"There is no example in '{folder}'; make one with `python -m spaces_demo.build_example STUDY_OUTPUT`."
            )
        self.summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = Climate.__dataclass_fields__
        self.climates: dict[str, Climate] = {}
        for told in self.summary["climates"]:
            kept = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items() if k in known}
            self.climates[told["key"]] = Climate(**kept)
        self.grid = Grid.from_raster(self.folder / "maps" / f"{PRESENT}_probability.tif")
        self._read: dict[tuple[str, str], NDArray[np.float32]] = {}

    # -- lists ------------------------------------------------------------------------------------------------------

    @property
    def threshold(self) -> float:
        """Probability from which land is called suitable, as the study says."""
        return float(self.summary["threshold"])

    @property
    def invented(self) -> bool:
        """Whether the landscape exists nowhere."""
        return bool(self.summary.get("invented", False))

    @property
    def model_dir(self) -> Path | None:
        """The model that made the maps, where it lies in the example."""
        folder = self.folder / "model"
        return folder if (folder / "config.json").is_file() else None

    @property
    def quantity(self) -> str:
        """What a probability is of."""
        return str(self.summary["quantity"])

    @property
    def variables(self) -> list[dict[str, Any]]:
        """Predictors: name, title, unit, decimals, and low, median and high over the labelled sites."""
        return list(self.summary["variables"])

    @property
    def pathways(self) -> list[str]:
        """Pathways, in the order of the study."""
        return list(dict.fromkeys(c.pathway for c in self.climates.values() if c.pathway))

    def periods(self, pathway: str) -> list[str]:
        """Periods of a pathway."""
        return sorted({c.period for c in self.climates.values() if c.pathway == pathway})

    def models(self, pathway: str, period: str) -> list[str]:
        """Climate models of a pathway and period, their mean first where there is one."""
        found = [c for c in self.climates.values() if (c.pathway, c.period) == (pathway, period)]
        means = [MEAN] if any(c.members for c in found) else []
        return means + [c.climate_model or c.title for c in found if not c.members]

    def find(self, pathway: str, period: str = "", model: str = "") -> Climate:
        """The climate of three lists; the present where no pathway is chosen."""
        if not pathway or pathway == self.climates[PRESENT].title:
            return self.climates[PRESENT]
        found = [c for c in self.climates.values() if (c.pathway, c.period) == (pathway, period)]
        for climate in found:
            if model == (MEAN if climate.members else climate.climate_model or climate.title):
                return climate
        if found:
            return next((c for c in found if c.members), found[0])
        raise AgriClipError(f"There is no map of {pathway} {period}; {nearest(pathway, self.pathways)}.")

    def climate(self, key: str) -> Climate:
        """A climate by key."""
        if key not in self.climates:
            raise AgriClipError(f"There is no climate '{str(key)[:60]}'; {nearest(str(key)[:60], self.climates)}.")
        return self.climates[key]

    # -- rasters ----------------------------------------------------------------------------------------------------

    def layer(self, key: str, name: str) -> NDArray[np.float32]:
        """A layer of a climate, (h, w), NaN where there is nothing.

        A mean of climate models has the mean of their novelty, and lies outside where most of them do.
        """
        place = (self.climate(key).key, name)
        if place not in self._read:
            self._read[place] = self._layer(self.climates[key], name)
        return self._read[place]

    def _layer(self, climate: Climate, name: str) -> NDArray[np.float32]:
        if name in climate.layers:
            return self._raster(self.folder / "maps" / f"{climate.key}_{name}.tif")[0]
        if climate.members:
            stack = np.stack([self.layer(member, name) for member in climate.members])
            if name == "applicability":
                known = np.isfinite(stack).all(axis=0)
                outside = 2 * (stack == _OUTSIDE).sum(axis=0) > len(stack)
                return np.where(known, np.where(outside, _OUTSIDE, 1), np.nan).astype(np.float32)
            if name in ("std", "std_total"):
                return self.layer(climate.key, "std_total") if name == "std" else stack.mean(axis=0)
            return stack.mean(axis=0, dtype=np.float32)
        if name == "std_total":
            return self.layer(climate.key, "std")
        raise AgriClipError(f"There is no layer '{name}' of {climate.title}; {nearest(name, climate.layers)}.")

    @staticmethod
    def _raster(path: Path) -> NDArray[np.float32]:
        """All bands in physical units, (C, h, w)."""
        import rasterio

        with rasterio.open(path) as raster:
            stored = raster.read()
            scales = np.asarray(raster.scales, dtype=np.float64)[:, None, None]
            values = np.where(stored == raster.nodata, np.nan, stored * scales)
        return values.astype(np.float32)

    @cached_property
    def predictors(self) -> NDArray[np.float32]:
        """(M, h, w) predictors of the present climate."""
        return self._raster(self.folder / "predictors.tif")

    # -- places -----------------------------------------------------------------------------------------------------

    def cell(self, longitude: float, latitude: float) -> tuple[int, int]:
        """Row and column of the cell that holds a place.

        Raises:
            AgriClipError: No place, outside the map, or a cell without an answer.
        """
        if not (math.isfinite(longitude) and math.isfinite(latitude)):
            raise AgriClipError("A place needs a longitude and a latitude; give both in degrees.")
        if not (-180 <= longitude <= 180 and -90 <= latitude <= 90):
            raise AgriClipError(
                f"{longitude:g}, {latitude:g} is no place; longitude comes first, from -180 to 180, then latitude."
            )
        x, y = transform_points([longitude], [latitude], "EPSG:4326", self.grid.crs)
        row, column = (int(index[0]) for index in self.grid.cell_of(x, y))
        west, south, east, north = self.grid.bounds_in("EPSG:4326")
        if not (0 <= row < self.grid.height and 0 <= column < self.grid.width):
            raise AgriClipError(
                f"{longitude:.2f}, {latitude:.2f} lies outside the map, which covers longitudes {west:g} to {east:g} "
                f"and latitudes {south:g} to {north:g}; choose a place inside."
            )
        if not np.isfinite(self.layer(PRESENT, "probability")[row, column]):
            raise AgriClipError(
                f"There is no data at {longitude:.2f}, {latitude:.2f} (water, or outside the study); click on "
                "coloured land."
            )
        return row, column

    def point(self, longitude: float, latitude: float) -> dict[str, Any]:
        """What all maps say of a place.

        Returns:
            `longitude`, `latitude`, `cell_ha`; `present`; `scenarios`, one for each pathway and period with `mean`,
            `low` and `high` over climate models and `models`; `sentence`, `trust`.
        """
        row, column = self.cell(longitude, latitude)
        answers = {key: self._answer(key, row, column) for key in self.climates}
        groups: dict[tuple[str, str], list[Climate]] = {}
        for climate in self.climates.values():
            if climate.pathway and not climate.members:
                groups.setdefault((climate.pathway, climate.period), []).append(climate)
        scenarios = []
        for (pathway, period), climates in groups.items():
            chances = [answers[climate.key]["probability"] for climate in climates]
            if not all(math.isfinite(chance) for chance in chances):
                continue
            outside = sum(answers[climate.key]["outside"] for climate in climates)
            scenarios.append(
                {
                    "pathway": pathway,
                    "period": period,
                    "title": f"{pathway}, {period}" if period else pathway,
                    "mean": float(np.mean(chances)),
                    "low": min(chances),
                    "high": max(chances),
                    "outside": outside,
                    "climate_models": len(climates),
                    "trusted": 2 * outside <= len(climates),
                    "models": {c.climate_model or c.title: answers[c.key] for c in climates},
                }
            )
        found = {
            "longitude": float(longitude),
            "latitude": float(latitude),
            "row": row,
            "column": column,
            "cell_ha": float(self.grid.cell_areas_ha(slice(row, row + 1))[0, column]),
            "quantity": self.quantity,
            "present": answers[PRESENT],
            "scenarios": scenarios,
        }
        return {**found, "sentence": self._sentence(found), "trust": self._trust(found)}

    def _answer(self, key: str, row: int, column: int) -> dict[str, Any]:
        """What one climate's layers say of a cell."""
        told: dict[str, Any] = {}
        for name in ("probability", "std", "mess", "applicability", "limiting_factor"):
            try:
                told[name] = float(self.layer(key, name)[row, column])
            except AgriClipError:
                told[name] = math.nan
        told["outside"] = told.pop("applicability") == _OUTSIDE
        told["limiting_factor"] = int(told["limiting_factor"]) if math.isfinite(told["limiting_factor"]) else None
        if "mess_variable" in self.climates[key].layers:
            index = self.layer(key, "mess_variable")[row, column]
            known = np.isfinite(index) and 0 <= int(index) < len(self.variables)
            told["most_unusual"] = self.variables[int(index)]["title"] if known else ""
        return told

    def _sentence(self, point: dict[str, Any]) -> str:
        """The place in plain words: today, and where it goes under the farthest scenarios."""
        now = point["present"]
        text = f"Today this land is {verdict(now['probability'])}: {percent(now['probability'])}"
        if now["std"] >= 0.005:
            text += f" (give or take {100 * now['std']:.0f} points between the members of the model)"
        last = {s["pathway"]: s for s in point["scenarios"]}  # the last period of each pathway
        parts = []
        for one in last.values():
            move = one["mean"] - now["probability"]
            word = "stays near" if abs(move) < 0.05 else "rises to" if move > 0 else "falls to"
            spread = f" ({percent(one['low'])} to {percent(one['high'])} between climate models)"
            when = f" by {one['period']}" if one["period"] else ""
            where = _named(one["pathway"], "the scenario ")
            spread = spread if one["climate_models"] > 1 else ""
            parts.append(f"it {word} {percent(one['mean'])}{spread} under {where}{when}")
        return f"{text}. " + (f"{_capital('; '.join(parts))}." if parts else "")

    def _trust(self, point: dict[str, Any]) -> str:
        """When not to trust the place's numbers."""
        doubted = [s for s in point["scenarios"] if not s["trusted"]]
        now = point["present"]
        if now["outside"]:
            why = f" (most unusual: {now['most_unusual']})" if now.get("most_unusual") else ""
            return f"Do not trust this place: even today's climate here is unlike every labelled site{why}."
        if doubted:
            titles = [f"{_named(s['pathway'])}{', ' if s['period'] else ''}{s['period']}" for s in doubted]
            who = "most climate models are" if any(s["climate_models"] > 1 for s in doubted) else "the climate is"
            return f"Read {' and '.join(titles)} as a guess: {who} then outside what the model was fitted on."
        return "This climate, today's and the later ones, resembles places that the model was fitted on."

    # -- areas ------------------------------------------------------------------------------------------------------

    def areas(self, key: str, threshold: float | None = None) -> ChangeSummary:
        """Areas of change between the present and a climate at a threshold, on the ellipsoid.

        For the present itself nothing changes.
        """
        present, future = self.layer(PRESENT, "probability"), self.layer(key, "probability")
        return summarise_change(present, future, self.grid, self.threshold if threshold is None else float(threshold))

    def outside_share(self, key: str) -> float:
        """Share of the land whose climate is outside the area of applicability."""
        classes = self.layer(key, "applicability")
        areas = self.grid.cell_areas_ha()
        known = np.isfinite(classes)
        return float(areas[known & (classes == _OUTSIDE)].sum() / max(areas[known].sum(), 1e-9))


def verdict(probability: float) -> str:
    """A probability in words."""
    for limit, words in ((0.1, "very unlikely to suit"), (0.33, "unlikely to suit"), (0.66, "borderline")):
        if probability < limit:
            return words
    return "likely to suit" if probability < 0.9 else "very likely to suit"


def percent(probability: float) -> str:
    """`63 %`, `below 1 %`."""
    if probability < 0.01:
        return "below 1 %"
    return "above 99 %" if probability > 0.99 else f"{100 * probability:.0f} %"


def _named(pathway: str, kind: str = "") -> str:
    """A pathway in a sentence: SSP5-8.5 as it is, words such as 'warmer, drier summers' in quotes."""
    return f"{kind}“{pathway}”" if " " in pathway else pathway


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
