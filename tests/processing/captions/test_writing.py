"""Captions are read again and what they say is counted on the mask, by other code than that which measured it."""

import random
import re

import numpy as np
import pytest

from processing.captions import describe, write_captions
from processing.captions.crops import find_crop
from processing.captions.writing import CAPTION_STYLES
from processing.errors import AgriClipError
from processing.numbers_agriclip import find_measurements
from tests.processing.captions.toy_tile import BANDS, CODES, spectra_of

_NAMES = {
    said: name for name in CODES.values() for said in find_crop(name).said
}  # every name that a caption may use, to the class table's
_NAME = "|".join(sorted(map(re.escape, _NAMES), key=len, reverse=True))


def _tiles(count=12):
    """Random mosaics of fields, with holes and an unlisted code, and elevation."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        codes = rng.choice([*CODES, 24, 0], size=(8, 8), p=[0.3, 0.2, 0.2, 0.08, 0.08, 0.02, 0.06, 0.06])
        mask = np.kron(codes, np.ones((6, 6), int))
        mask[rng.random(mask.shape) < 0.05] = codes[0, 0]
        yield mask, np.outer(np.arange(48.0), rng.random(48) * seed)


def _facts(mask, dem=None, **more):
    return describe(mask, CODES, spectra_of(mask), BANDS, gsd=30, date="2015-09-02", latitude=46, dem=dem, **more)


def _counted(mask):
    known = mask != 0
    return {name: float((mask[known] == code).mean()) for code, name in CODES.items()}


@pytest.mark.parametrize("style", CAPTION_STYLES)
def test_shares_in_captions_are_those_of_the_mask(style):
    checked = 0
    for mask, dem in _tiles():
        shares, facts = _counted(mask), _facts(mask, dem)
        for text in write_captions(facts, style, 8, seed=1):
            # borders and largest patches have percentages of their own
            plain = re.sub(r"border with [^.]*(?:\.|$)|, along \d+ %.*|contiguous, \d+ % of it", "", text.lower())
            said = re.findall(rf"\b({_NAME})(?::| \(| with| covers?)? ?(\d+) %", plain)
            said += [(b, a) for a, b in re.findall(rf"(\d+) % of [\d.]+ (?:km2|ha) (?:is|are) ({_NAME})\b", plain)]
            said += re.findall(
                rf"(?:is|there any|tile\? |image\? |answer:) ?({_NAME})[^?]*[?,] (?:answer: |yes, )*(\d+) %", plain
            )
            for name, percent in said:
                assert abs(float(percent) - 100 * shares[_NAMES[name]]) <= 0.5 + 1e-9, text
                checked += 1
    assert checked > 20


def test_the_largest_class_is_the_largest():
    for mask, _ in _tiles():
        shares = _counted(mask)
        largest = max(shares, key=shares.get)
        for text in write_captions(_facts(mask), "plain", 6, seed=2):
            first = re.search(rf"\b({_NAME})\b", text.lower()).group(1)
            assert _NAMES[first] == largest, text


def test_questions_are_answered_from_the_mask():
    kinds = set()
    for mask, dem in _tiles():
        shares, facts = _counted(mask), _facts(mask, dem)
        for text in write_captions(facts, "question", 25, seed=3):
            plain = text.lower()
            if found := re.search(rf"there any ({_NAME}) .*\? (?:answer: )?(yes|no)", plain):
                assert (shares[_NAMES[found.group(1)]] > 0) == (found.group(2) == "yes"), text
                kinds.add(found.group(2))
            elif found := re.search(rf"there more ({_NAME}) or more ({_NAME})\? (?:answer: )?more ({_NAME})", plain):
                one, other, answer = (shares[_NAMES[name]] for name in found.groups())
                assert answer == max(one, other), text
                kinds.add("more")
            elif found := re.search(rf"borders most on the ({_NAME})\? (?:answer: )?({_NAME}), along (\d+) %", plain):
                inner, outer, percent = _NAMES[found.group(1)], _NAMES[found.group(2)], float(found.group(3))
                assert abs(percent - 100 * _border(mask, inner, outer)) <= 0.5 + 1e-9, text
                kinds.add("border")
            elif found := re.search(
                rf"how much of the tile is ({_NAME})\? (?:answer: )?(\d+) %, ([\d.]+) (ha|km2)", plain
            ):
                hectares = float(found.group(3)) * (100 if found.group(4) == "km2" else 1)
                assert hectares == pytest.approx((mask == _code(found.group(1))).sum() * 0.09, rel=0.06), text
                kinds.add("area")
    assert kinds == {"yes", "no", "more", "border", "area"}


def _code(said):
    return next(code for code, name in CODES.items() if name == _NAMES[said])


def _border(mask, inner, outer):
    """Share of the pixel edges around one class that lie along another, counted pixel by pixel."""
    code = {name: code for code, name in CODES.items()}
    edges = along = 0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            if mask[row, column] != code[inner]:
                continue
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= r < mask.shape[0] and 0 <= c < mask.shape[1] and mask[r, c] not in (0, code[inner]):
                    edges += 1
                    along += mask[r, c] == code[outer]
    return along / edges


def test_directions_are_true_and_can_be_left_out(mask, pixels):
    facts = describe(mask, CODES, pixels, BANDS, gsd=30)
    with_them = " ".join(write_captions(facts, "mixed", 60, seed=0)).lower()
    for name in ("spring wheat|spring sown wheat", "soybeans?", "corn|maize"):
        for direction in re.findall(
            rf"where (?:is|are) the (?:{name})\? (?:answer: )?mostly in the ([a-z-]+)", with_them
        ):
            assert direction == {"s": {"p": "north", "o": "south-west"}.get(name[1]), "c": "south-east"}[name[0]]
    assert re.search(r"\b(north|south|east|west)", with_them)
    without = " ".join(write_captions(facts, "mixed", 60, seed=0, directions=False)).lower()
    assert not re.search(r"\b(north|south|east|west)", without)
    assert "corner" in without or "on one side" in without


def test_a_caption_without_directions_is_true_of_a_turned_tile(mask):
    upright, turned = _facts(mask), _facts(np.rot90(mask).copy())
    for style in CAPTION_STYLES:
        assert write_captions(upright, style, 5, directions=False) == write_captions(
            turned, style, 5, directions=False
        )


@pytest.mark.parametrize("style", CAPTION_STYLES)
def test_every_number_is_read_with_its_unit(style):
    units = set()
    for mask, dem in _tiles(6):
        for text in write_captions(_facts(mask, dem), style, 8, seed=5):
            found = find_measurements(text)
            numerals = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", re.sub(r"\b(?:km|m)2\b", "", text))
            assert [float(one) for one in numerals] == [one.value for one in found], text
            for one, written in zip(
                found, re.finditer(r"(?<![\w.])-?\d+(?:\.\d+)?(?: ?(km2|ha|%|m\b|degrees))?", text), strict=True
            ):
                unit = {"km2": "ha", None: "1", "degrees": "degree"}.get(written.group(1), written.group(1))
                assert one.canonical_unit == unit, text
            units |= {one.canonical_unit for one in found}
    assert "%" in units


def test_report_numbers_are_those_of_the_facts(mask):
    dem = np.arange(40.0)[None, :].repeat(40, axis=0) * 3
    facts = _facts(mask, dem)
    text = write_captions(facts, "report")[0]
    wheat = facts.of("spring wheat")
    values = {(round(one.canonical_value, 3), one.canonical_unit) for one in find_measurements(text)}
    expected = {
        (round(100 * wheat.share), "%"),
        (144, "ha"),
        (30, "m"),
        (round(wheat.ndvi.median, 2), "1"),
        (round(wheat.moisture.median, 2), "1"),
        (round(float(np.degrees(np.arctan(0.1))), 1), "degree"),
    }
    assert expected <= values
    assert "rolling terrain" in text.lower() and "filling pods" in text


def test_silence_about_what_is_not_known(mask):
    text = " ".join(write_captions(describe(mask, CODES), "mixed", 80, seed=0)).lower()
    for word in ("ndvi", "terrain", "ground", "km2", " ha", "september", "summer", "likely", "green", "moisture"):
        assert word not in text, word


def test_the_seed_alone_decides(mask):
    facts = _facts(mask)
    random.seed(0)
    first = write_captions(facts, "mixed", 10, seed=4)
    random.seed(1)
    assert write_captions(facts, "mixed", 10, seed=4) == first
    assert write_captions(facts, "mixed", 10, seed=5) != first
    assert write_captions(facts, "mixed", 20, seed=4)[:10] == first  # more captions do not change those before
    assert len(set(write_captions(facts, "short", 8, seed=0))) == 8


def test_tiles_of_one_class_of_none_and_of_specks():
    lake = np.full((20, 20), 111)
    for text in write_captions(describe(lake, CODES), "mixed", 15):
        assert ("water" in text.lower() or text.lower().endswith("no.")) and "None" not in text
    other = np.full((20, 20), 77)
    facts = describe(other, CODES)
    assert facts.classes == () and facts.unlisted == 1
    for text in write_captions(facts, "mixed", 5):
        assert text and not re.search(_NAME, text.lower())
    specks = np.full((20, 20), 5)
    specks[::4, ::4] = 1
    facts = describe(specks, CODES)
    assert facts.of("corn").patches.count == 0
    assert all("0 patch" not in text for text in write_captions(facts, "mixed", 40))


def test_classes_without_words_keep_their_names():
    mask = np.repeat([[1], [2]], 10, axis=1).repeat(8, axis=0)
    facts = describe(mask, {1: "Tram_Depot", 2: "Developed/Open Space", 3: "Developed/Low Intensity"})
    text = " ".join(write_captions(facts, "mixed", 20)).lower()
    assert "tram depot" in text
    assert "developed open space" in text and "built up" not in text  # two classes of one word keep their own


def test_no_caption_holds_a_coordinate(mask):
    facts = describe(mask, CODES, gsd=30, date="2015-09-02", latitude=46.8765)
    for text in write_captions(facts, "mixed", 40):
        assert "46" not in text and "latitude" not in text


@pytest.mark.parametrize(
    ("style", "count", "sentence"), [("haiku", 1, "no style of caption 'haiku'"), ("short", 0, "1 or more")]
)
def test_bad_input_is_one_sentence(mask, style, count, sentence):
    with pytest.raises(AgriClipError, match=sentence):
        write_captions(describe(mask, CODES), style, count)


def test_what_is_not_named_may_be_larger():
    mask = np.full((20, 20), 77)
    mask[:5, :10] = 5
    mask[:5, 10:12] = 1
    facts = describe(mask, CODES)
    assert facts.of("soybean").unnamed_border == pytest.approx(10 / 15)
    text = " ".join(write_captions(facts, "mixed", 150, seed=0)).lower()
    for claim in ("largest class", "largest part", "main class", "borders mostly", "border mostly", "lies mainly"):
        assert claim not in text, claim
    assert "largest of the named classes" in text and "and others" in text
    assert "borders most on the soybean" not in text and "borders most on the corn" not in text
