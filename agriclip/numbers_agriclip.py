"""Numbers and units in report text: every measurement becomes the token `[NUM]`, one canonical unit and one value.

Three choices define the file. Units are converted before the model sees them, so "15.75 in" and "400 mm" are the same
number. A change is not a level: 59 F is 15 degC, but "9 F warmer" is 5 degC. And what only looks like a number stays
text: dates, years named as years, and digits inside names such as `SSP2-4.5`, `C3` or `B04`.
"""

import math
import re
from dataclasses import dataclass

from .units_agriclip import BUSHEL_POUNDS, CANONICAL_UNITS, UNITS, canonical_unit, to_canonical

__all__ = [
    "CANONICAL_UNITS",
    "NUM_TOKEN",
    "Measurement",
    "canonical_unit",
    "canonicalise",
    "find_measurements",
    "to_canonical",
]

NUM_TOKEN = "[NUM]"

_CROP_WORD = re.compile(r"\b(soy\s?beans?|soya?|wheat|corn|maize|sorghum|milo|rye|barley|oats?)\b", re.IGNORECASE)
_CROP_OF_WORD = {"soy": "soybean", "soya": "soybean", "milo": "sorghum", "oat": "oats"}


@dataclass(frozen=True)
class Measurement:
    """One number found in a text.

    Attributes:
        start: First character, the sign included.
        end: One past the last character, the unit included.
        value: The number as written; NaN for a literal `[NUM]`.
        unit: The unit as understood, `1` for none, e.g. `degF`, `delta_degF`, `bu/ac corn`.
        canonical_value: The number in `canonical_unit`.
        canonical_unit: E.g. `degC`, `mm`, `kg/ha`, `1`.
    """

    start: int
    end: int
    value: float
    unit: str
    canonical_value: float
    canonical_unit: str


# In running text a lone letter is a unit only in its own case, and words that are rarely units are left out. The crop
# of a bushel is looked for in the sentence instead, so that its word stays in the text.
_LETTERS = {letter: UNITS[letter][0] for letter in ("C", "F", "K", "m", "t", "d", "h")}
_NOT_IN_TEXT = {"", "-", "1", "a", "s", "g", "mo", "mb", "Pa", "kn", "kt", "sec", "index", "fraction", "ratio", "none"}
_NOT_IN_TEXT |= {"count", "unitless", "dimensionless", "deg", "second", "seconds", "annum", "y", "Mg", "megagram"}
_IN_TEXT = {
    spelling.lower(): name
    for spelling, (name, _) in reversed(UNITS.items())
    if spelling not in _NOT_IN_TEXT
    and not spelling.startswith("delta_")
    and not (len(spelling) == 1 and spelling.isalpha())
    and not spelling.endswith(tuple(BUSHEL_POUNDS))
}
_LONGEST = max(map(len, _IN_TEXT))
_GAP = re.compile(r"[ \u00a0\u202f\u2009]{0,2}(?:-(?=[A-Za-z]{2}))?")


def _spelled_unit(text: str, position: int) -> tuple[str, int, int] | None:
    """Longest unit spelled at `position` of a running text: its name, its first and its last character + 1."""
    gap = _GAP.match(text, position)
    start = gap.end() if gap else position
    window = text[start : start + _LONGEST].replace("\u00a0", " ").replace("\u202f", " ")
    folded = window.lower()
    if len(folded) != len(window):  # a character whose lower case is longer: no unit has one
        folded = window
    for length in range(len(window), 0, -1):
        name = _IN_TEXT.get(folded[:length]) or (_LETTERS.get(window[0]) if length == 1 else None)
        if name is None:
            continue
        after = window[length : length + 1] or text[start + length : start + length + 1]
        if window[length - 1].isalnum() and (after.isalnum() or after in ("_", "^")) and after:
            continue
        return name, start, start + length
    return None


_BODY = r"(?:\d{1,3}(?:[,\u00a0\u202f\u2009]\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][+\-−]?\d+(?!\w))?"
_FRACTION = r"(?:\d+[ -])?\d/(?:2|3|4|8|16)(?![\d/])|\d*[½¼¾]"
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)"
)
_YEAR = r"(?:1[89]|2[01])\d\d"
_MASTER = re.compile(
    rf"(?P<slot>\[NUM\])"
    # dates, times, version numbers
    rf"|(?P<date>(?<![\w.])(?:\d{{4}}-\d{{1,2}}-\d{{1,2}}(?!\d)|\d{{1,2}}:\d\d(?::\d\d)?(?!\d)|\d+(?:\.\d+){{2,}}"
    rf"|\d{{1,2}}/\d{{1,2}}/\d{{2,4}}(?!\d)|{_YEAR}s?[ ]?[-–/][ ]?(?:{_YEAR}|\d\d)s?(?![\w%.,]\d|\w)"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {_MONTH}\b(?:,? {_YEAR}\b)?))"
    # names: a letter, then anything word-like, e.g. SSP2-4.5, GFDL-ESM4, RCP8.5, B8A
    rf"|(?P<fraction>(?<![\w./]){_FRACTION})"
    rf"|(?P<word>[^\W\d_]\w*(?:(?<=\d)\.\d+)*(?:-\w+(?:\.\d+)*)*)"
    rf"|(?P<number>(?:(?<![\w.)\]%°\"])[+\-−])?(?<![\w])(?:{_BODY}))"
)
_SIGNED = re.compile(rf"[+\-−]?(?:{_BODY})")
_RANGE = re.compile(r"[ ]?(?:-|–|—)[ ]?|\s+(?:to|through)\s+|(?P<and>\s+and\s+)")
_MONTH_BEFORE = re.compile(rf"\b{_MONTH}\.?\s*$")
_MONTH_AFTER = re.compile(rf"(?:st|nd|rd|th)?(?: of)?[ -]{_MONTH}\b")
_YEAR_BEFORE = re.compile(
    rf"(?:\b(?:in|by|since|during|until|till|year|years|circa|early|late|mid|around)\s*|{_MONTH}\.?,?\s*\d{{0,2}},?\s*"
    rf"|{_YEAR}\s*(?:and|to|or|,|vs\.?)\s*)$",
    re.IGNORECASE,
)
_NAMED_BEFORE = re.compile(
    r"\b(?:landsat|sentinel|ssp|rcp|cmip|band|figure|fig\.|table|version)\s*[- ]?$", re.IGNORECASE
)
_PH_BEFORE = re.compile(r"\bpH(?:\s+(?:of|is|was|=|about|near|around|from|to|between))?\s*[:=~<>]?\s*$")
_CHANGE_BEFORE = re.compile(
    r"(?:\b(?:warm(?:ed|ing)|cool(?:ed|ing)|ris(?:e|es|ing|en)|rose|fell|fall(?:s|ing|en)?|increas\w*|decreas\w*|drop\w*"
    r"|declin\w*|chang\w*|anomal\w*|departures?|deviation|difference|differ\w*|shift\w*|gain\w*|delta|up|down|spread"
    r"|within|range)(?:\s+in\s+[a-z]+(?:\s[a-z]+){0,2}?)?\s*(?:by|of|:|is|was|=)?\s*(?:about|around|some|roughly|[~≈])?"
    r"\s*|±\s*)$",
    re.IGNORECASE,
)
_CHANGE_AFTER = re.compile(
    r"[\s-]*(?:warmer|cooler|hotter|colder|higher|lower|above|below|more|less|(?:of )?(?:warming|cooling)|rise"
    r"|increase|decrease|drop|anomaly|departure|change|range|difference|swing)\b",
    re.IGNORECASE,
)
# "in" is inches unless it begins a prepositional phrase: after it only these words, punctuation or the end may come.
_INCHES_AFTER = re.compile(
    r"""\.?\s*(?:$|[.,;:)\]/"!?%]|-\s|–
    |(?:of|per|above|below|more|less|deep|wide|tall|long|high|thick|rain|rainfall|rains|snow|snowfall|precip\w*
    |irrigat\w*|water|rows?|spacing|or|but|to|from|than|is|was|were|fell|fall|falls|annual\w*|yearly|monthly|daily|each|total
    |while|when|on|over|under|between|during|for|with|at|by|and(?!\s+around)|short|wetter|drier
    |a\s+(?:year|month|week|day|season))\b)""",
    re.IGNORECASE | re.VERBOSE,
)


_SENTENCE_GOES_ON = re.compile(r"\s+[a-z]|\s*[,;)]")
_YEARS = re.compile(rf"({_YEAR})[ ]?[-–][ ]?({_YEAR})")
_SPACED_THOUSANDS = re.compile(r"(?: \d{3})+(?!\d|[.,]\d)")
_GLUED_NAME = re.compile(r"[^\W\d]\w*(?:-\w+)*|(?:/\d+)+")
_BETWEEN = re.compile(r"\bbetween\s*$", re.IGNORECASE)


def _value(written: str) -> float:
    text = re.sub(r"[,\u00a0\u202f\u2009]", "", written).replace("−", "-")
    if re.fullmatch(r"[+-]?\d{1,3}(?: \d{3})+", text):
        text = text.replace(" ", "")
    for sign, part in (("½", 0.5), ("¼", 0.25), ("¾", 0.75)):
        if sign in text:
            return float(text.replace(sign, "") or 0) + part
    if "/" in text:
        whole, _, fraction = text.replace("-", " ").rpartition(" ")
        top, bottom = fraction.split("/")
        return float(whole or 0) + float(top) / float(bottom)
    return float(text)


def _bushel_crop(text: str, start: int, end: int) -> str:
    """Nearest crop named in the same sentence; a crop before the number wins a tie."""
    before = re.split(r"[.;\n](?:\s|$)", text[max(0, start - 80) : start])[-1]
    after = re.split(r"[.;\n]", text[end : end + 40])[0]
    found: list[tuple[int, str]] = [(len(before) - m.end(), m.group()) for m in _CROP_WORD.finditer(before)]
    found += [(m.start() + 1, m.group()) for m in _CROP_WORD.finditer(after)]
    if not found:
        return ""
    word = re.sub(r"\s", "", min(found)[1].lower())
    word = "soybean" if word.startswith("soyb") else word
    return _CROP_OF_WORD.get(word, word)


def _unit_at(text: str, start: int, end: int, quoted: bool, second: bool = False) -> tuple[str, int]:
    """Unit of the number in `text[start:end]`: its name (`1` for none) and where it ends.

    `quoted` says that a quotation mark is open; `second` that the number ends a range, so that words and signs before
    it tell nothing about change.
    """
    match = _spelled_unit(text, end)
    before = text[max(0, start - 60) : start]
    if match is None:
        return ("pH" if _PH_BEFORE.search(before) else "1"), end
    name, first, stop = match
    spelling = text[first:stop].lower()
    if spelling == '"' and (quoted or first > end):
        return "1", end  # a closing or opening quotation mark
    # A full stop is part of the abbreviation only inside a sentence.
    if spelling.endswith(".") and not _SENTENCE_GOES_ON.match(text, stop):
        spelling, stop = spelling[:-1], stop - 1
    if spelling in ("in", "in.") and not _INCHES_AFTER.match(text, stop):
        return "1", end
    if name in ("degC", "C", "degF", "F", "K"):
        name = {"C": "degC", "F": "degF"}.get(name, name)
        # no report speaks of an air of less than 100 kelvins
        change = (name == "K" and abs(_value(text[start:end])) < 100) or _CHANGE_AFTER.match(text, stop)
        if change or (not second and _is_change(text, start)):
            name = _as_change(name)
    if name in ("bu/ac", "bu/ha"):
        name = f"{name} {_bushel_crop(text, start, stop)}".strip()
    return name, stop


def _is_change(text: str, start: int, first_of_range: bool = False) -> bool:
    """Whether the sign or the words before the number at `start` make it a change rather than a level."""
    if text[start] == "+":
        return True
    match = _CHANGE_BEFORE.search(text[max(0, start - 60) : start])
    # "range 50 to 60 F" is two levels, "range of 10 F" one difference
    return match is not None and not (first_of_range and "range" in match.group().lower())


def _as_change(unit: str) -> str:
    return {"degF": "delta_degF", "degC": "delta_degC", "K": "delta_degC"}.get(unit, unit)


def _is_date(text: str, start: int, end: int) -> bool:
    """Whether the unitless whole number in `text[start:end]` is a day of a month, a year or part of a name."""
    written, before = text[start:end], text[max(0, start - 40) : start]
    if not written.isdigit():
        return False
    if len(written) <= 2 and 1 <= int(written) <= 31:
        if _MONTH_BEFORE.search(before) or _MONTH_AFTER.match(text, end):
            return True
    if re.fullmatch(_YEAR, written) and _YEAR_BEFORE.search(before):
        return True
    return bool(_NAMED_BEFORE.search(before))


def find_measurements(text: str) -> list[Measurement]:
    """Find every number in `text`, with its unit.

    A range shares its unit ("10-15 mm", "1.1 to 2.3 degC"); a number without a unit has unit `1`; a literal `[NUM]` is
    a number that is missing (NaN). Dates, years named as years ("in 2050", "2041-2060") and digits in names are not
    measurements. A bushel weighs 60 lb unless the same sentence names a crop of another weight (corn, barley, ...).

    Returns:
        Measurements in the order of the text, not overlapping.
    """
    found: list[Measurement] = []
    position, quotes = 0, 0
    changes: set[int] = set()  # starts of numbers that a range has made a change
    while (match := _MASTER.search(text, position)) is not None:
        quotes += text.count('"', position, match.start())
        quoted = quotes % 2 == 1
        start, end = match.span()
        position = end
        if match.lastgroup == "slot":
            found.append(Measurement(start, end, math.nan, "1", math.nan, "1"))
            continue
        if match.lastgroup == "word":
            continue
        if match.lastgroup == "date":
            years = _YEARS.fullmatch(match.group())
            if years is None or _unit_at(text, start + years.start(2), end, quoted)[0] == "1":
                continue
            position = end = start + years.end(1)  # "1850-2050 GDD": two measurements after all
        unit, stop = _unit_at(text, start, end, quoted)
        if stop == end and (blocks := _SPACED_THOUSANDS.match(text, end)) and end - start <= 4:
            wide_unit, wide_stop = _unit_at(text, start, blocks.end(), quoted)
            if wide_stop > blocks.end():  # "1 000 mm": only a unit tells one number from two
                unit, end, stop = wide_unit, blocks.end(), wide_stop
        if stop == end and match.lastgroup != "fraction":
            name = _GLUED_NAME.match(text, end)  # 3rd, 1990s, 2x, 6/15, 50/50
            if name is not None:
                position = name.end()
                continue
            if _is_date(text, start, end):
                continue
        partner = _range_partner(text, start, stop, quoted)
        if partner is not None:
            second_start, second_unit = partner
            if stop == end and unit == "1":
                unit = second_unit
            if start in changes or second_unit.startswith("delta_") or _is_change(text, start, True):
                changes |= {start, second_start}
        if start in changes:
            unit = _as_change(unit)
        written = text[start:end]
        value = _value(written)
        if not math.isfinite(value):
            continue
        canonical_value, canonical = to_canonical(value, unit, written)
        found.append(Measurement(start, stop, value, unit, canonical_value, canonical))
        position = stop
    return found


def _range_partner(text: str, start: int, stop: int, quoted: bool) -> tuple[int, str] | None:
    """Second number of the range whose first number is `text[start:stop]`: where it starts, and its unit."""
    separator = _RANGE.match(text, stop)
    if separator is None:
        return None
    if separator.group("and") and not _BETWEEN.search(text[max(0, start - 12) : start]):
        return None
    second = _SIGNED.match(text, separator.end())
    if second is None:
        return None
    unit, _ = _unit_at(text, second.start(), second.end(), quoted, second=True)
    return None if unit == "1" else (second.start(), unit)


def canonicalise(text: str) -> tuple[str, list[float]]:
    """Replace every measurement by `[NUM]` and its canonical unit.

    Returns:
        The text, e.g. "Rain [NUM] mm; frost on [NUM] day.", and the canonical values in the order of the tokens.
    """
    pieces: list[str] = []
    values: list[float] = []
    position = 0
    for item in find_measurements(text):
        pieces.append(text[position : item.start])
        # No unit is written for a bare number; pH stands before its number in English and is not said twice.
        bare = item.canonical_unit == "1" or (item.canonical_unit == "pH" and text[item.end - 1].isdigit())
        pieces.append(NUM_TOKEN if bare else f"{NUM_TOKEN} {item.canonical_unit}")
        values.append(item.canonical_value)
        position = item.end
    pieces.append(text[position:])
    return "".join(pieces), values
