"""Facts of a tile to captions: a short line, tags, plain sentences, a report with numbers, question and answer.

Three choices: a caption says only what the facts hold, in words that can be counted again on the mask; every number
carries its unit in the form that the number reader knows; and a caption is drawn from the seed alone, so the same tile
gives the same captions wherever they are written. Compass directions can be left out, because a tile that is mirrored
or turned in training makes them false.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from processing.captions.crops import find_crop
from processing.captions.facts import ClassFacts, TileFacts
from processing.errors import AgriClipError, nearest

CAPTION_STYLES = ("short", "tags", "plain", "report", "question")
LEAST_SHARE = 0.01  # a class below one percent of the tile is not told
_TRIES = 30  # draws for one more caption that is not there yet
_SIDES = {"north", "south", "east", "west"}


def write_captions(
    facts: TileFacts,
    style: str | Sequence[str] = "plain",
    count: int = 1,
    seed: int | str = 0,
    *,
    directions: bool = True,
) -> list[str]:
    """Write captions of a tile; the same arguments give the same captions.

    Args:
        facts: What `describe` measured.
        style: One of `CAPTION_STYLES`, several to take in turn, or `mixed` for all of them in turn.
        count: How many; different from each other as long as the style has something else to say.
        seed: Which words.
        directions: Whether to name compass directions; leave them out if tiles are mirrored or turned in training.

    Raises:
        AgriClipError: For an unknown style, or a count below 1.
    """
    styles = CAPTION_STYLES if style == "mixed" else (style,) if isinstance(style, str) else tuple(style)
    for one in styles or ("",):
        if one not in CAPTION_STYLES:
            raise AgriClipError(f"There is no style of caption '{one}'; {nearest(one, (*CAPTION_STYLES, 'mixed'))}")
    if count < 1:
        raise AgriClipError(f"{count} captions were asked for; ask for 1 or more.")
    written: list[str] = []
    for place in range(count):
        caption = ""
        for attempt in range(_TRIES):
            draw = random.Random(f"{seed}/{place}/{attempt}")
            caption = _WRITERS[styles[place % len(styles)]](_Teller(facts, draw, directions))
            if caption not in written:
                break
        written.append(caption)
    return written


class _Teller:
    """Facts in words, one name for each class throughout a caption."""

    def __init__(self, facts: TileFacts, draw: random.Random, directions: bool) -> None:
        self.facts = facts
        self.draw = draw
        self.directions = directions
        self.told = [one for one in facts.classes if one.share >= LEAST_SHARE] or list(facts.classes[:1])
        self._names: dict[str, str] = {}
        found = (find_crop(name) for name in (*(one.name for one in facts.classes), *facts.absent))
        self._crops = [crop.name for crop in found if crop is not None]

    @property
    def is_largest(self) -> bool:
        """Whether the main class is surely the largest of the tile: what is not named could hold a larger one."""
        return bool(self.told) and self.told[0].share >= self.facts.unlisted

    @property
    def main(self) -> ClassFacts | None:
        """The largest class; None where no class of the table is in the tile."""
        return self.told[0] if self.told else None

    def name(self, class_name: str) -> str:
        """A name of a class that is true of all of it; as the class table writes it where crops.yaml has no words."""
        if class_name not in self._names:
            crop = find_crop(class_name)
            plain = " ".join(class_name.lower().replace("/", " ").replace("_", " ").split())
            # two classes of the table that crops.yaml has one name for keep their own
            alone = crop is not None and self._crops.count(crop.name) == 1
            self._names[class_name] = self.draw.choice(crop.said) if crop is not None and alone else plain
        return self._names[class_name]

    def of(self, one: ClassFacts) -> str:
        return self.name(one.name)

    def choose(self, *variants: str) -> str:
        return self.draw.choice([variant for variant in variants if variant])

    def season(self) -> str:
        """The season or the part of the month, empty without a date."""
        date = self.facts.date
        if date is None or self.facts.season is None:
            return ""
        part = "early" if date.day <= 10 else "mid" if date.day <= 20 else "late"
        return self.draw.choice((self.facts.season, f"{part} {_MONTHS[date.month - 1]}"))

    def scene(self) -> str:
        """A word for the whole: farmland where most of it is sown or mown, else what most of it is."""
        if self.facts.farmed >= 0.5:
            return self.draw.choice(("farmland", "farm fields"))
        return self.of(self.told[0]) if self.told and self.told[0].share >= 0.5 else "mixed land"

    def place(self, one: ClassFacts) -> str:
        """Where a class lies, empty if there is nothing to say."""
        if one.place is None:
            return ""
        if one.place in _PLACES:
            return self.draw.choice(_PLACES[one.place])
        if self.directions:
            return f"mostly in the {one.place}"
        return "mostly in one corner" if "-" in one.place else "mostly on one side"

    def spread(self, one: ClassFacts) -> str:
        """How a class is cut up."""
        count = one.patches.count
        if not count:
            return ""
        if one.dispersion == "contiguous":
            whole = f"contiguous, {_percent(one.largest_share)} of it in one patch"
            return self.draw.choice(("mostly in one block", whole)) if count > 1 else "in one block"
        if one.dispersion == "scattered":
            return self.draw.choice((f"scattered over {count} patches", f"scattered in {count} patches"))
        return f"in {_counted(count, 'patch')}"

    def neighbours(self, one: ClassFacts, most: int = 2, least: float = 0.05) -> list[tuple[str, float]]:
        """Names and shares of what borders most on a class."""
        return [(self.name(name), share) for name, share in one.neighbours if share >= least][:most]

    def stage(self, one: ClassFacts) -> str:
        return f"likely {one.stage}" if one.stage else ""


def _short(teller: _Teller) -> str:
    main, season = teller.main, teller.season()
    during = f" in {season}" if season else ""
    if main is None:
        return f"A satellite image{during} of land in none of the named classes."
    name, rest = teller.of(main), [teller.of(one) for one in teller.told[1:3]]
    listed = ", ".join(f"{teller.of(one)} {_percent(one.share)}" for one in teller.told[:4])
    variants = [f"a satellite image of {teller.scene()}{during}: {listed}", f"{listed}"]
    if main.share >= 0.5:
        with_rest = f" with some {_join(rest)}" if rest else ""
        variants += [f"mostly {name}{with_rest}", f"mostly {name}{during}{with_rest}"]
    elif rest:
        variants += [f"a mixture of {_join([name, *rest])}", f"{_join([name, *rest])}{during}"]
    if teller.facts.area is not None:
        variants.append(f"{name} {_verb(name, 'covers')} {_percent(main.share)} of {_area(teller.facts.area)}")
    if main.greenness not in (None, "water"):
        variants.append(f"{main.greenness} {name}{during}, {_percent(main.share)} of the tile")
    beside = teller.neighbours(main, most=1)
    if beside:
        fields = f"fields of {name}" if main.crop is not None and main.crop.is_farmed else name
        variants.append(f"{fields} bordering on {beside[0][0]}{during}")
    place = teller.place(main)
    if place:
        variants.append(f"{name} {place}{during}, {_percent(main.share)} of the image")
    return _sentence(teller.draw.choice(variants))


def _tags(teller: _Teller) -> str:
    facts, main = teller.facts, teller.main
    tags = [f"{teller.of(one)} {_percent(one.share)}" for one in teller.told[:5]] or ["no named class"]
    if main is not None:
        more = []
        if main.ndvi is not None:
            more.append(teller.choose(_green_words(main), f"NDVI {_index(main.ndvi.median)}"))
        more += [teller.stage(main), main.dispersion or "", main.shape or "", teller.place(main)]
        if main.patches.count:
            more.append(_counted(main.patches.count, "patch"))
        beside = [name for name, _ in teller.neighbours(main)]
        more += [f"next to {_join(beside)}"] if beside else []
        more = [tag for tag in more if tag]
        tags += teller.draw.sample(more, k=min(len(more), 4))
    tags += [tag for tag in (teller.season(), facts.terrain.word if facts.terrain else "") if tag]
    if facts.area is not None:
        tags.append(_area(facts.area))
    return teller.draw.choice(("; ", ", ")).join(tags)


def _plain(teller: _Teller) -> str:
    facts, main, season = teller.facts, teller.main, teller.season()
    if main is None:
        return _short(teller)
    name, sentences = teller.of(main), []
    how = ", ".join(part for part in (teller.spread(main), teller.place(main)) if part)
    verb = _verb(name, "covers")
    whole = _area(facts.area) if facts.area is not None else "the tile"
    largest = "class" if teller.is_largest else "of the named classes"
    first = teller.choose(
        f"{name} {verb} {_percent(main.share)} of {whole}",
        f"{_percent(main.share)} of {whole} is {name}",
        f"the largest {largest} is {name} with {_percent(main.share)} of {whole}",
    )
    rest = [f"{teller.of(one)} ({_percent(one.share)})" for one in teller.told[1:4]]
    sentences.append(f"{first}{', ' + how if how else ''}")
    if rest:
        many = len(rest) > 1 or _plural(teller.of(teller.told[1]))
        sentences.append(teller.choose(
            f"next {'come' if many else 'comes'} {_join(rest)}", f"there {'are' if many else 'is'} also {_join(rest)}"
        ))  # fmt: skip
    during = f"in {season} " if season else ""
    looks = [part for part in (_green_words(main), teller.stage(main)) if part]
    if looks:
        sentences.append(f"{during}the {name} {_verb(name, 'is')} {' and '.join(looks)}")
    elif season:
        sentences.append(f"the image was taken in {season}")
    inherent = _outline_words(main, name)
    if inherent:
        sentences.append(inherent)
    beside = [word for word, _ in teller.neighbours(main)]
    if beside and sum(share for _, share in teller.neighbours(main)) < 0.5:
        sentences.append(f"{name} {_verb(name, 'borders')} on {_join(beside)} and others")
    elif beside:
        lies = "lie" if len(beside) > 1 else _verb(beside[0], "lies")
        sentences.append(
            teller.choose(
                f"{name} {_verb(name, 'borders')} mostly on {_join(beside)}",
                f"beside the {name} {lies} mainly {_join(beside)}",
            )
        )
    if facts.terrain is not None:
        sentences.append(teller.choose(f"the ground is {facts.terrain.word}", f"the terrain is {facts.terrain.word}"))
    # the first sentence stays, and of the others any may be left out
    kept = sentences[:1] + [one for one in sentences[1:] if teller.draw.random() < 0.8]
    return " ".join(_sentence(one) for one in kept)


def _report(teller: _Teller) -> str:
    facts, season = teller.facts, teller.season()
    head = [teller.choose("land cover report", "crop report", "field report")]
    head += [season] if season else []
    if facts.area is not None and facts.gsd is not None:
        head.append(f"{_area(facts.area)} seen at {facts.gsd:g} m per pixel")
    sentences = [", ".join(head)]
    for rank, one in enumerate(teller.told[:3]):
        sentences.append(_class_report(teller, one, whole=rank == 0))
    small = [f"{teller.of(one)} {_percent(one.share)}" for one in teller.told[3:7]]
    if small:
        sentences.append(f"also {_join(small)}")
    if facts.unlisted >= LEAST_SHARE:
        sentences.append(f"{_percent(facts.unlisted)} of the area is in none of the named classes")
    if facts.ndvi is not None:
        sentences.append(f"NDVI of the whole tile {_index(facts.ndvi.median)}")
    if facts.terrain is not None:
        land = facts.terrain
        sentences.append(
            f"{land.word} terrain with a mean slope of {land.slope:.1f} degrees, a tenth of it above "
            f"{land.steepest:.1f} degrees, and a relief of {land.relief:.0f} m"
        )
    return " ".join(_sentence(one) for one in sentences)


def _class_report(teller: _Teller, one: ClassFacts, whole: bool) -> str:
    """One class with its numbers; the largest class with all of them."""
    name = teller.of(one)
    area = f" ({_area(one.area)})" if one.area is not None else ""
    parts = [f"{name}: {_percent(one.share)} of the area{area}"]
    if one.patches.count:
        patch = f"in {_counted(one.patches.count, 'patch')}"
        if whole and teller.facts.gsd is not None and one.patches.count > 1:
            hectares = teller.facts.gsd**2 / 1e4
            patch += f", the largest {_area(one.patches.largest * hectares)}"
            patch += f", the median {_area(one.patches.median * hectares)}"
        parts.append(patch)
    place = teller.place(one)
    parts += [place] if place else []
    if one.ndvi is not None:
        parts.append(f"NDVI {_index(one.ndvi.median)}")
        if whole:
            parts[-1] += f" (middle four fifths from {_index(one.ndvi.low)} to {_index(one.ndvi.high)})"
    if whole and one.ndwi is not None:
        parts.append(f"NDWI {_index(one.ndwi.median)}")
    if whole and one.moisture is not None:
        parts.append(f"moisture index {_index(one.moisture.median)}")
    if one.stage:
        parts.append(f"stage {teller.stage(one)}")
    if whole and one.patches.count:
        parts.append(f"shape index {one.patches.shape_index:.1f}")
    beside = [f"{word} {_percent(share)}" for word, share in teller.neighbours(one, most=3 if whole else 1)]
    if beside:
        parts.append(f"border with {_join(beside)}")
    return ", ".join(parts)


def _question(teller: _Teller) -> str:
    facts, main = teller.facts, teller.main
    pairs: list[tuple[str, str]] = []
    if main is None:
        return "Question: is any of the named classes in this image? Answer: no."
    name = teller.of(main)
    if teller.is_largest:
        asked = teller.choose(
            "which cover takes up the largest part of the tile", "what is the main class in this image"
        )
        pairs.append((asked, f"{name}, {_percent(main.share)}"))
    one = teller.draw.choice(teller.told)
    said, area = teller.of(one), f", {_area(one.area)}" if one.area is not None else ""
    pairs.append((f"how much of the tile is {said}", f"{_percent(one.share)}{area}"))
    pairs.append((f"{_verb(said, 'is')} there any {said} in this image", f"yes, {_percent(one.share)}"))
    if facts.absent:
        missing = teller.name(teller.draw.choice(facts.absent))
        pairs.append((f"{_verb(missing, 'is')} there any {missing} in this image", "no"))
    if one.neighbours and one.neighbours[0][1] >= one.unnamed_border:
        word, share = teller.neighbours(one, most=1, least=0.0)[0]
        pairs.append((f"what borders most on the {said}", f"{word}, along {_percent(share)} of its border"))
    if one.stage:
        pairs.append((f"at what stage {_verb(said, 'is')} the {said} at this date", teller.stage(one)))
    if one.ndvi is not None and one.greenness != "water":
        pairs.append((f"how green {_verb(said, 'is')} the {said}", f"{one.greenness}, NDVI {_index(one.ndvi.median)}"))
    place = teller.place(one)
    if place:
        pairs.append((f"where {_verb(said, 'is')} the {said}", place))
    if one.patches.count:
        size = f"{facts.smallest} pixels"
        if facts.gsd is not None:
            size = _area(facts.smallest * facts.gsd**2 / 1e4)
        answer = f"{one.patches.count}, counting those of {size} or more"
        pairs.append((f"in how many patches {_verb(said, 'is')} the {said}", answer))
    if facts.terrain is not None:
        answer = f"{facts.terrain.word}, with a mean slope of {facts.terrain.slope:.1f} degrees"
        pairs.append(("how steep is the ground", answer))
    if len(teller.told) > 1:
        two = teller.draw.sample(teller.told, 2)
        more, less = sorted(two, key=lambda each: -each.share)
        if _percent(more.share) != _percent(less.share):
            asked = " or more ".join(teller.of(each) for each in two)
            pairs.append((f"is there more {asked}", f"more {teller.of(more)}"))
    question, answer = teller.draw.choice(pairs)
    form = teller.draw.choice(("Question: {}? Answer: {}.", "{}? {}."))
    return form.replace("{}", _capital(question) if form[0] == "{" else question, 1).replace(
        "{}", _capital(answer) if form[0] == "{" else answer, 1
    )


_WRITERS: dict[str, Callable[[_Teller], str]] = {
    "short": _short,
    "tags": _tags,
    "plain": _plain,
    "report": _report,
    "question": _question,
}
_MONTHS = "January February March April May June July August September October November December".split()
_PLACES = {
    "middle": ("mostly in the middle", "mostly near the center"),
    "edges": ("along the edges",),
    "throughout": ("throughout the tile", "in every quarter of the tile"),
}
_PLURAL_VERBS = {"covers": "cover", "borders": "border", "is": "are", "lies": "lie"}


def _green_words(one: ClassFacts) -> str:
    return "" if one.greenness in (None, "water") else str(one.greenness)


def _outline_words(one: ClassFacts, name: str) -> str:
    """Shape and edge of the patches."""
    shape = {
        "rectangular": f"patches of {name} are nearly rectangular",
        "irregular": f"patches of {name} are irregular in outline",
    }
    shape["branching"] = f"patches of {name} join into a branching outline"
    edge = {"sharp": "sharp edges against what lies beside", "faint": "faint edges against what lies beside"}
    parts = [shape.get(one.shape or "", ""), edge.get(one.outline or "", "")]
    if all(parts):
        return f"{parts[0]}, with {parts[1]}"
    return parts[0] or (f"patches of {name} have {parts[1]}" if parts[1] else "")


def _plural(name: str) -> bool:
    last = name.split()[-1]
    return last.endswith("s") and not last.endswith("ss") and name != "other classes"


def _verb(name: str, verb: str) -> str:
    return _PLURAL_VERBS[verb] if _plural(name) else verb


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else f"{100 * share:.1f} %"


def _area(hectares: float) -> str:
    if hectares >= 100:
        return f"{hectares / 100:.{2 if hectares < 1000 else 1}f} km2"
    return f"{hectares:.1f} ha" if hectares < 10 else f"{hectares:.0f} ha"


def _index(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}es"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    return f"{_capital(text)}."


__all__ = ["CAPTION_STYLES", "LEAST_SHARE", "write_captions"]
