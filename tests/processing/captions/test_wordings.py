"""Wordings for training: of every class, its own, without its name where it is described, and none held out."""

import re
from collections import defaultdict

import numpy as np
import pytest

from processing.captions.crops import SEASONS, crop_of, crops, held_out_phrases
from processing.captions.wordings import draw_wording, wordings
from processing.errors import AgriClipError

EVERY = sorted(crops())
# Two classes that hold others have no name of their own to hide.
GROUPS = {"other", "wetland and water"}


def _words(text):
    return {word.rstrip("s") for word in re.findall(r"[a-z]+", text.lower())}


@pytest.mark.parametrize("name", EVERY)
def test_more_words_than_the_table_of_crops(name):
    crop, words = crop_of(name), wordings(name)
    assert set(crop.names) < set(words.names) and set(crop.land) < set(words.land)
    assert {*crop.kinds, *crop.uses} < set(words.things)
    assert len(words.things) >= 30
    assert len(set(words.things)) == len(words.things) or name in GROUPS


def test_descriptions_hold_no_name_of_a_crop():
    named = ["soybean", "corn", "barley", "alfalfa", "sunflower", "canola", "cotton", "rice", "potatoe", "peanut"]
    for name in EVERY:
        for thing in wordings(name).things:
            assert not _words(thing) & set(named), (name, thing)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_held_out_is_never_said(name):
    held = {phrase.lower() for other in EVERY for phrase in held_out_phrases(other)}
    words = wordings(name)
    assert not held & {phrase.lower() for phrase in (*words.names, *words.land, *words.things)}


def test_a_name_is_of_one_class():
    owner = defaultdict(set)
    for name in EVERY:
        for phrase in (*wordings(name).names, *wordings(name).land):
            owner[phrase.lower()].add(name)
    assert not {phrase: names for phrase, names in owner.items() if len(names) > 1}


def test_looks_are_of_the_seasons_that_were_asked_for():
    late, spring = (set(wordings("corn", (season,)).things) for season in ("late summer", "spring"))
    assert late - spring and spring - late
    assert late | spring <= set(wordings("corn", SEASONS).things)
    with pytest.raises(AgriClipError, match="no season 'sumer'"):
        wordings("corn", ("sumer",))
    with pytest.raises(AgriClipError):
        draw_wording("no such crop", np.random.default_rng(0))


def test_draws_depend_on_the_generator_and_are_of_every_kind():
    def drawn():
        rng = np.random.default_rng(5)
        return [draw_wording(5, rng, ("late summer",)) for _ in range(400)]

    said, words = drawn(), wordings("soybean", ("late summer",))
    assert said == drawn()
    names, land = (sum(phrase in of for phrase in said) for of in (words.names, words.land))
    assert 0.15 < names / 400 < 0.35 and 0.1 < land / 400 < 0.3
    several = [phrase for phrase in said if sum(thing in phrase for thing in words.things) > 1]
    assert several
    # A wording that lost a word is none of the table's.
    lost = [
        phrase for phrase in said if not any(part in phrase for part in (*words.names, *words.land, *words.things))
    ]
    assert lost and all(phrase for phrase in lost)
