"""Crops and land cover in words: many ways to say each class, and its stage of growth at a date.

Everything said here is a table, `crops.yaml`. Two choices define how it is used: a description is put together from
what a plant is, what it is for and how it looks, so that a few lines give some hundred phrases and none of them holds
the name of the class; and some phrases are held out, so that a model can be tested on words that it never saw as the
class's label.
"""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from processing.errors import AgriClipError, nearest

try:
    import yaml
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Words for crops need PyYAML; install it with: pip install 'agriclip[maps]'.") from error

TABLE = Path(__file__).with_name("crops.yaml")
SEASONS = ("spring", "summer", "late summer", "autumn", "winter")
STYLES = ("name", "land", "description", "look", "full")
_SEASON_OF_MONTH = (
    "winter winter spring spring spring summer summer late_summer late_summer autumn autumn winter".split()
)
_TOLERANCE = 0.02  # of NDVI: a hair outside a stage's range is still that stage


@dataclass(frozen=True)
class Crop:
    """One class of crop or land cover in words.

    Attributes:
        name: Its first name.
        group: `crop` (sown), `fodder` (mown) or `cover` (neither).
        codes: Codes of the Cropland Data Layer.
        names: Short names, singular and plural, common synonyms.
        said: Those of the names that are true of every field of the class, for captions.
        also: Further spellings that class tables use.
        land: Phrases for land under it.
        kinds: What it is, without its name.
        uses: What it is grown for, or how, without its name.
        looks: What is seen from above in each season, without its name.
        held_out: Descriptions for tests, never given by `class_phrases`.
        calendar: Stages of each month at the table's latitude, in their order.
    """

    name: str
    group: str
    codes: tuple[int, ...]
    names: tuple[str, ...]
    said: tuple[str, ...]
    also: tuple[str, ...]
    land: tuple[str, ...]
    kinds: tuple[str, ...]
    uses: tuple[str, ...]
    looks: Mapping[str, tuple[str, ...]]
    held_out: tuple[str, ...]
    calendar: Mapping[int, tuple[str, ...]]

    @property
    def is_farmed(self) -> bool:
        """Whether it is sown or mown, so that its patches are fields."""
        return self.group in ("crop", "fodder")


@cache
def _table() -> dict[str, Any]:
    with TABLE.open(encoding="utf-8") as file:
        table: dict[str, Any] = yaml.safe_load(file)
    return table


@cache
def crops() -> dict[str, Crop]:
    """All classes of the table by name."""
    table, found = _table(), {}
    for name, entry in table["crops"].items():
        names = tuple(entry["names"])
        said = tuple(entry.get("said", names[:2]))
        land = [phrase.replace("{}", one) for phrase in table["land_phrases"][entry["group"]] for one in said]
        # "fields of soybean" and "fields of soybeans" both, but "soybeans field" is no English
        land = [phrase for phrase in land if not re.search(r"[^s]s (field|fields|crop|farmland)$", phrase)]
        found[name] = Crop(
            name=names[0],
            group=entry["group"],
            codes=tuple(entry["codes"]),
            names=names,
            said=said,
            also=tuple(entry.get("also", ())),
            land=tuple(dict.fromkeys([*land, *entry.get("land", ())])),
            kinds=tuple(entry["kinds"]),
            uses=tuple(entry["uses"]),
            looks={season: tuple(looks) for season, looks in entry["looks"].items()},
            held_out=tuple(entry["held_out"]),
            calendar={int(month): tuple(stages) for month, stages in entry["calendar"].items()},
        )
    return found


@cache
def _index() -> dict[str | int, Crop]:
    """Every code and every spelling to its class."""
    index: dict[str | int, Crop] = {}
    for key, crop in crops().items():
        index.update(dict.fromkeys(crop.codes, crop))
        for spelling in (key, *crop.names, *crop.also):
            index.setdefault(_folded(spelling), crop)
    return index


def find_crop(name_or_code: str | int) -> Crop | None:
    """The class of a name in any known spelling or of a Cropland Data Layer code; None if there is none."""
    if isinstance(name_or_code, str):
        text = name_or_code.strip()
        return _index().get(int(text) if text.isdigit() else _folded(text))
    return _index().get(int(name_or_code))


def crop_of(name_or_code: str | int) -> Crop:
    """The class of a name or code.

    Raises:
        AgriClipError: It is not in the table; names the nearest that is.
    """
    crop = find_crop(name_or_code)
    if crop is None:
        if str(name_or_code).strip().isdigit():
            raise AgriClipError(
                f"No class of crops.yaml has the Cropland Data Layer code {name_or_code}; give its name, or add it."
            )
        near = nearest(name_or_code, (spelling for spelling in _index() if isinstance(spelling, str)))
        raise AgriClipError(f"There are no words for the class '{name_or_code}' in crops.yaml; {near}")
    return crop


def all_phrases(name_or_code: str | int, style: str | None = None, season: str | None = None) -> tuple[str, ...]:
    """Every phrase that `class_phrases` can give.

    Args:
        name_or_code: A name in any known spelling or a Cropland Data Layer code.
        style: `name` ("soya"), `land` ("cropland under soybean"), `description` (what it is and what for, without its
            name), `look` (what it is and how it looks from above), `full` (all three); None for all of them.
        season: One of `SEASONS`, so that only looks of that season are given; None for any.

    Raises:
        AgriClipError: For an unknown class, style or season.
    """
    crop = crop_of(name_or_code)
    if style is not None and style not in STYLES:
        raise AgriClipError(f"There is no style of phrase '{style}'; {nearest(style, STYLES)}")
    if season is not None and season not in SEASONS:
        raise AgriClipError(f"There is no season '{season}'; {nearest(season, SEASONS)}")
    return tuple(dict.fromkeys(phrase for one in STYLES if style in (None, one) for phrase in _of(crop, one, season)))


def _of(crop: Crop, style: str, season: str | None) -> list[str]:
    looks = [look for when, those in crop.looks.items() if season in (None, when) for look in those]
    if style == "name":
        return list(crop.names)
    if style == "land":
        return list(crop.land)
    if style == "description":
        return [f"{kind}, {use}" for kind in crop.kinds for use in crop.uses]
    if style == "look":
        return [f"{kind}: {look}" for kind in crop.kinds for look in looks]
    return [f"{kind}, {use}: {look}" for kind in crop.kinds for use in crop.uses for look in looks]


def class_phrases(name_or_code: str | int, style: str | None = None, seed: int = 0, season: str | None = None) -> str:
    """One way to say a class; the same arguments give the same phrase.

    Args:
        name_or_code: A name in any known spelling or a Cropland Data Layer code.
        style: As of `all_phrases`; None draws the style first, so that the many long phrases do not crowd out names.
        seed: Which phrase.
        season: Only looks of this season.

    Raises:
        AgriClipError: For an unknown class, style or season.
    """
    crop = crop_of(name_or_code)
    draw = random.Random(f"{seed}/{crop.name}/{style}/{season}")
    if style is None:
        style = draw.choice([one for one in STYLES if _of(crop, one, season)])
    phrases = all_phrases(crop.name, style, season)
    return draw.choice(phrases or all_phrases(crop.name, "description"))


def held_out_phrases(name_or_code: str | int) -> tuple[str, ...]:
    """Descriptions of a class that `class_phrases` never gives and that do not hold its name, for tests.

    Raises:
        AgriClipError: For an unknown class.
    """
    return crop_of(name_or_code).held_out


def parse_date(date: str | datetime.date | None) -> datetime.date | None:
    """A date from ISO text.

    Raises:
        AgriClipError: The text is no date.
    """
    if date is None or isinstance(date, datetime.date):
        return date
    try:
        return datetime.date.fromisoformat(str(date)[:10])
    except ValueError as error:
        raise AgriClipError(f"'{date}' is no date; write it as 2015-09-02.") from error


def season_of(date: datetime.date, latitude: float | None = None) -> str:
    """Season of a date in the hemisphere of a latitude, north if None: one of `SEASONS`."""
    month = date.month if latitude is None or latitude >= 0 else (date.month + 5) % 12 + 1
    return _SEASON_OF_MONTH[month - 1].replace("_", " ")


def stage_of(crop: Crop, date: datetime.date, latitude: float | None = None, ndvi: float | None = None) -> str | None:
    """Stage of growth that the calendar gives at a date, as far as what is seen agrees with it.

    Of the stages of the month, those whose range of NDVI holds `ndvi` stay; the one nearest to the day of the month is
    taken. Spring runs four days later for each degree of latitude (Hopkins 1918); the shift fades out from July to
    September, since crops of the south are sown earlier but are of longer season.

    Args:
        crop: The class.
        date: When it was seen.
        latitude: Degrees north; south of the equator the calendar is half a year off. None for the table's own.
        ndvi: Median NDVI of the class, or None to take the calendar's word.

    Returns:
        E.g. "filling pods"; None where there is no calendar, in the tropics and near the pole, or if the NDVI fits no
        stage of the month.
    """
    table = _table()
    here = table["latitude"] if latitude is None else abs(latitude)
    if not crop.calendar or not table["least_latitude"] <= here <= table["most_latitude"]:
        return None
    day = date.timetuple().tm_yday + (182 if latitude is not None and latitude < 0 else 0)
    day = (day - 1) % 365 + 1
    fading = min(1.0, max(0.0, (244 - day) / (244 - 182)))  # whole until 1 July, none from 1 September
    moved = (day - 1 + fading * table["days_per_degree"] * (table["latitude"] - here)) % 365
    when = datetime.date(2001, 1, 1) + datetime.timedelta(days=moved)
    first = when.replace(day=1)
    length = ((first + datetime.timedelta(days=32)).replace(day=1) - first).days
    stages = crop.calendar[when.month]
    # each stage of the month stands at the middle of its share of the month
    distance = {
        stage: abs((place + 0.5) / len(stages) - (when.day - 0.5) / length) for place, stage in enumerate(stages)
    }
    if ndvi is not None:
        ranges = table["stages"]
        distance = {
            stage: far
            for stage, far in distance.items()
            if ranges[stage][0] - _TOLERANCE <= ndvi <= ranges[stage][1] + _TOLERANCE
        }
    return min(distance, key=distance.__getitem__) if distance else None


def cdl_classes() -> dict[int, str]:
    """Name of each Cropland Data Layer code that the table has words for."""
    return {code: crop.name for crop in crops().values() for code in crop.codes}


def _folded(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())


__all__ = [
    "SEASONS",
    "STYLES",
    "Crop",
    "all_phrases",
    "cdl_classes",
    "class_phrases",
    "crop_of",
    "crops",
    "find_crop",
    "held_out_phrases",
    "parse_date",
    "season_of",
    "stage_of",
]
