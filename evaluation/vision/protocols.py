"""Named evaluation protocols with frozen class strings and templates.

The same weights score 20 points apart on the same images under another prompt, so a zero-shot number means something
only together with its protocol. Three choices define this file. Strings and templates are data, written down once and
never derived from a model. Classes are matched by name and never by index, because the published lists are not in
alphabetical order. And where a source does not say what it used, the protocol says so in its notes, which travel with
the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from processing.errors import AgriClipError, nearest

__all__ = ["DATASETS", "PROTOCOLS", "ClassTexts", "Protocol", "class_texts", "find_dataset", "get_protocol", "plain"]


def plain(name: object) -> str:
    """A class name without case, blanks and punctuation: `AnnualCrop`, `annual_crop` and `annual crop` are one."""
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


_EUROSAT = (
    "annual crop, forest, herbaceous vegetation, highway, industrial, pasture, permanent crop, residential, river, "
    "sea lake"
)
_RESISC45 = (
    "airplane, airport, baseball diamond, basketball court, beach, bridge, chaparral, church, circular farmland, "
    "cloud, commercial area, dense residential, desert, forest, freeway, golf course, ground track field, harbor, "
    "industrial area, intersection, island, lake, meadow, medium residential, mobile home park, mountain, overpass, "
    "palace, parking lot, railway, railway station, rectangular farmland, river, roundabout, runway, sea ice, ship, "
    "snowberg, sparse residential, stadium, storage tank, tennis court, terrace, thermal power station, wetland"
)
_AID = (
    "airport, bare land, baseball field, beach, bridge, center, church, commercial, dense residential, desert, "
    "farmland, forest, industrial, meadow, medium residential, mountain, park, parking, playground, pond, port, "
    "railway station, resort, river, school, sparse residential, square, stadium, storage tanks, viaduct"
)
_UCM = (
    "agricultural, airplane, baseball diamond, beach, buildings, chaparral, dense residential, forest, freeway, golf "
    "course, harbor, intersection, medium residential, mobile home park, overpass, parking lot, river, runway, sparse "
    "residential, storage tanks, tennis court"
)


def _by_name(words: str) -> dict[str, str]:
    return {plain(word): word for word in (part.strip() for part in words.split(","))}


#: Classes of each benchmark: plain name -> the name in words.
DATASETS: Mapping[str, Mapping[str, str]] = {
    "EuroSAT": _by_name(_EUROSAT),
    "RESISC45": _by_name(_RESISC45),
    "AID": _by_name(_AID),
    "UCM": _by_name(_UCM),
}

# The class strings of the CLIP paper for EuroSAT, in an order of their own.
_EUROSAT_CLIP = {
    "forest": "forest",
    "permanentcrop": "permanent crop land",
    "residential": "residential buildings or homes or apartments",
    "river": "river",
    "pasture": "pasture land",
    "sealake": "lake or sea",
    "herbaceousvegetation": "brushland or shrubland",
    "annualcrop": "annual crop land",
    "industrial": "industrial buildings or commercial buildings",
    "highway": "highway or road",
}
_CENTRED = tuple(f"a centered satellite photo of {article}{{}}." for article in ("", "a ", "the "))
_SIX_VIEWS = tuple(
    f"{view} of {article}{{}}."
    for article in ("", "a ", "the ")
    for view in (
        "satellite imagery",
        "aerial imagery",
        "satellite photo",
        "aerial photo",
        "satellite view",
        "aerial view",
    )
)


def _rs5m_templates() -> tuple[str, ...]:
    """35 phrases for each of three kinds of image, 105 templates in the order of their source."""
    templates: list[str] = []
    for kind, article in (("remote sensing image", "a"), ("aerial image", "an"), ("satellite image", "a")):
        templates += [f"{article} {kind} of {what} {{}}." for what in ("many", "a", "the", "the hard to see")]
        templates.append(f"{article} {kind} of a hard to see {{}}.")
        for quality in (
            "low resolution",
            "bad",
            "cropped",
            "bright",
            "dark",
            "close-up",
            "black and white",
            "jpeg corrupted",
            "blurry",
            "good",
        ):
            templates += [f"a {quality} {kind} of {which} {{}}." for which in ("the", "a")]
        for size in ("large", "nice", "small", "weird", "cool"):
            templates += [f"{article} {kind} of {which} {size} {{}}." for which in ("the", "a")]
    return tuple(templates)


@dataclass(frozen=True)
class Protocol:
    """How classes become text vectors and captions become queries.

    Attributes:
        name: Name on the command line.
        templates: Templates by benchmark; `*` for every other.
        pooling: `mean`: the templates' embeddings are averaged as they are and then normalised; `normalised`: each is
            normalised, then averaged, then normalised again.
        strings: Class strings by benchmark and plain name; classes that are not listed are named in words.
        folder_strings: Classes are named as their folders are, in lower case, `_` and `/` as blanks.
        caption_prefix: Put before every caption.
        capitalise: Captions are capitalised as `str.capitalize` does (the rest in lower case).
        unique_texts: Equal captions are one text, right for every image that has it; otherwise each is a text of its
            own, right for its own image alone.
        recalls: The k of R@k.
        retrieval: Whether the source defines retrieval.
        source: Where the rules were read.
        notes: What the source leaves open of classification.
        caption_notes: What it leaves open of retrieval.
    """

    name: str
    templates: Mapping[str, tuple[str, ...]]
    pooling: str
    source: str
    strings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    folder_strings: bool = False
    caption_prefix: str = ""
    capitalise: bool = False
    unique_texts: bool = True
    recalls: tuple[int, ...] = (1, 5, 10)
    retrieval: bool = True
    notes: tuple[str, ...] = ()
    caption_notes: tuple[str, ...] = ()

    def templates_for(self, dataset: str | None) -> tuple[str, ...]:
        """Templates of a benchmark."""
        return self.templates.get(dataset or "*", self.templates["*"])

    def caption(self, text: str) -> str:
        """A caption as the protocol writes it."""
        return self.caption_prefix + (text.capitalize() if self.capitalise else text)


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "agriclip",
            {"*": ("a satellite image of {}",)},
            "normalised",
            "this project: the prompt that its models are trained with",
            caption_notes=("equal captions are one text, right for every image that has it",),
        ),
        Protocol(
            "rs5m",
            {"*": _rs5m_templates()},
            "mean",
            "om-ai-lab/RS5M, inference/inference_tool.py and classname_and_prompt",
            folder_strings=True,
            unique_texts=False,
            notes=(
                "class strings are the folder names in lower case (EuroSAT gives 'annualcrop'); whether the authors "
                "renamed their folders is not known",
                "all images of a benchmark are scored, without a split",
            ),
            caption_notes=("captions are taken as the authors' tables write them; JSON files may differ in case",),
        ),
        Protocol(
            "remoteclip",
            {"*": ("a satellite photo of {}",)},
            "normalised",
            "ChenDelong1999/RemoteCLIP, retrieval.py; template and top-1 from its issues 11 and 18",
            capitalise=True,
            unique_texts=False,
            notes=(
                "class strings are not published; the plain names in words are used",
                "where a benchmark has no official split, the authors score the last 20 % of each class by file name",
            ),
            caption_notes=("the models of the authors were trained on the training parts of RSICD, RSITMD and UCM",),
        ),
        Protocol(
            "skyscript",
            {"*": ("a satellite photo of {}.", "a satellite image of {}")},
            "normalised",
            "wangzhecheng/SkyScript, prompt_templates.py and cross_modal_retrieval.ipynb",
            caption_prefix="a satellite image. ",
            recalls=(1, 5, 10, 100),
            notes=(
                "the authors' classnames.txt is not in their repository; the plain names in words are used",
                "the authors score their own test lists of AID and EuroSAT and all images of RESISC45",
            ),
            caption_notes=("a text counts as found where any image that has it is among the first k",),
        ),
        Protocol(
            "openai",
            {"*": _CENTRED, "EuroSAT": _CENTRED, "RESISC45": _SIX_VIEWS},
            "normalised",
            "openai/CLIP, data/prompts.md",
            strings={"EuroSAT": _EUROSAT_CLIP},
            retrieval=False,
            notes=("only EuroSAT and RESISC45 are in the source; other sets take EuroSAT's three templates",),
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        AgriClipError: There is none; the nearest name is told.
    """
    found = PROTOCOLS.get(str(name).lower())
    if found is None:
        raise AgriClipError(f"There is no protocol '{name}'; {nearest(name, PROTOCOLS)}.")
    return found


def find_dataset(names: Iterable[str]) -> str | None:
    """The benchmark whose classes these names are: all of them, and not fewer than half of the benchmark's."""
    given = {plain(name) for name in names}
    known = {dataset: given & set(classes) for dataset, classes in DATASETS.items()}
    fits = [name for name, found in known.items() if found == given and 2 * len(found) >= len(DATASETS[name])]
    return max(fits, key=lambda name: len(known[name]) / len(DATASETS[name]), default=None)


@dataclass(frozen=True)
class ClassTexts:
    """What stands for each class.

    Attributes:
        names: Class names as the labels give them.
        strings: What goes into the templates, in the same order.
        templates: The templates.
        dataset: The benchmark that the names belong to, or None.
        notes: What should be known beside the score.
    """

    names: tuple[str, ...]
    strings: tuple[str, ...]
    templates: tuple[str, ...]
    dataset: str | None
    notes: tuple[str, ...]

    def prompts(self) -> list[list[str]]:
        """Every template of every class."""
        return [[template.replace("{}", text) for template in self.templates] for text in self.strings]


def class_texts(
    protocol: Protocol, names: Sequence[str], described: Mapping[str, str] | None = None, template: str | None = None
) -> ClassTexts:
    """Strings and templates for some classes.

    Args:
        protocol: The rules.
        names: Class names as the labels give them.
        described: What is to be said for a class in place of the protocol's string.
        template: A template in place of the protocol's, with `{}` where the string goes.

    Raises:
        AgriClipError: The template has no `{}`, or two classes would be told in the same words.
    """
    if template is not None and "{}" not in template:
        raise AgriClipError(f"The template '{template}' has no {{}} where the class goes; add it.")
    dataset = find_dataset(names)
    given = {plain(name): text for name, text in (described or {}).items()}
    frozen = protocol.strings.get(dataset or "", {})
    words = DATASETS.get(dataset or "", {})
    strings = []
    for name in names:
        if plain(name) in given:
            strings.append(given[plain(name)])
        elif protocol.folder_strings:
            strings.append(str(name).replace("_", " ").replace("/", " ").lower())
        else:
            strings.append(frozen.get(plain(name)) or words.get(plain(name)) or _in_words(str(name)))
    twice = next((text for text in strings if strings.count(text) > 1), None)
    if twice is not None:
        raise AgriClipError(f"Two classes are both told as '{twice}'; name them apart in the classes file.")
    notes = list(protocol.notes)
    if described or template:
        notes.append("class strings or template were given by the user and are not the protocol's own")
    return ClassTexts(
        tuple(names),
        tuple(strings),
        (template,) if template else protocol.templates_for(dataset),
        dataset,
        tuple(notes),
    )


def _in_words(name: str) -> str:
    """`WinterWheat`, `winter_wheat` and `Soy_Corn` in words and lower case; what has blanks stays as it is."""
    if " " in name.strip():
        return name.strip()
    parted = "".join(
        f" {letter}" if i and letter.isupper() and name[i - 1].islower() else letter for i, letter in enumerate(name)
    )
    return parted.replace("_", " ").replace("/", " ").strip().lower()
