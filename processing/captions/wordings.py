"""Many ways to say each class, to teach an encoder to read: the words of `crops.yaml` and those of `wordings.yaml`.

The second table holds words only. Nothing that writes captions reads it, and the tokenizer is not made of it, so that
it can grow without changing either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from processing.captions.crops import SEASONS, crop_of
from processing.errors import AgriClipError, nearest

try:
    import yaml
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Words for crops need PyYAML; install it with: pip install 'agriclip[maps]'.") from error

TABLE = Path(__file__).with_name("wordings.yaml")
# Shares of names and of phrases about land; the rest is description, of up to so many things.
_NAMES, _LAND, _MOST = 0.35, 0.2, 3
# Of wordings of so many words and more, the share that lose some, and the share of words that are lost.
_LONG, _LOSSY, _LOST = 6, 0.4, 0.15


@dataclass(frozen=True)
class Wordings:
    """What a class is called and described by.

    Attributes:
        names: Its names.
        land: Phrases for land under it.
        things: What it is, what it is for, how it looks; none holds its name.
    """

    names: tuple[str, ...]
    land: tuple[str, ...]
    things: tuple[str, ...]


@cache
def _table() -> dict[str, dict[str, Any]]:
    with TABLE.open(encoding="utf-8") as file:
        table: dict[str, dict[str, Any]] = yaml.safe_load(file)
    return table


@cache
def wordings(name_or_code: str | int, seasons: tuple[str, ...] = SEASONS) -> Wordings:
    """All words for a class.

    Args:
        name_or_code: A name in any known spelling or a Cropland Data Layer code.
        seasons: Only looks of these, of `crops.SEASONS`.

    Raises:
        AgriClipError: For an unknown class or season.
    """
    crop = crop_of(name_or_code)
    for season in seasons:
        if season not in SEASONS:
            raise AgriClipError(f"There is no season '{season}'; {nearest(season, SEASONS)}")
    more = _table().get(crop.name, {})
    looks = [look for season in seasons for look in (*crop.looks.get(season, ()), *more.get(season, ()))]
    return Wordings(
        names=(*crop.names, *more.get("names", ())),
        land=(*crop.land, *more.get("land", ())),
        things=(*crop.kinds, *more.get("kinds", ()), *crop.uses, *more.get("uses", ()), *looks),
    )


def draw_wording(name_or_code: str | int, rng: np.random.Generator, seasons: tuple[str, ...] = SEASONS) -> str:
    """A name of a class, a phrase about land under it, or up to three things it is described by.

    Long ones lose a word now and then, so that no single word is leant on.

    Args:
        name_or_code: As of `wordings`.
        rng: Draws.
        seasons: As of `wordings`.

    Raises:
        AgriClipError: For an unknown class or season.
    """
    words = wordings(name_or_code, seasons)
    kind = rng.random()
    if kind < _NAMES + _LAND:
        return str(rng.choice(words.names if kind < _NAMES else words.land))
    count = min(len(words.things), int(rng.integers(1, _MOST + 1)))
    said = ", ".join(words.things[i] for i in rng.choice(len(words.things), size=count, replace=False))
    each = said.split()
    if len(each) < _LONG or rng.random() >= _LOSSY:
        return said
    return " ".join(word for word in each if rng.random() >= _LOST) or said


__all__ = ["Wordings", "draw_wording", "wordings"]
