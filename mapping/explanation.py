"""What an explanation holds, and how it reads: parts, a sentence, a table, the mean over places.

Two choices define this file. The sentence speaks in points of probability where a part moves it, and on the logit
scale only where the answer is so sure that nothing does. And a part that only some places have counts where it is
there, and loses the numbers of a single place in the mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

__all__ = ["KINDS", "WORTH_SAYING", "Contribution", "Explanation", "Gradient", "mean_explanation"]

#: Kind of part -> how tables and figures call it.
KINDS: dict[str, str] = {
    "sentence": "sentence",
    "number": "number",
    "band": "band",
    "month": "month",
    "image": "whole image",
}
#: Changes of a probability smaller than this are not worth a word.
WORTH_SAYING = 0.005


@dataclass(frozen=True)
class Contribution:
    """What hiding one part does. Positive differences mean that the part speaks for suitability.

    Attributes:
        kind: One of `KINDS`.
        name: Variable, channel, month or number of the sentence.
        title: Words for it.
        told: What stands there, such as "14.1 degC"; empty for a region.
        probability: What the ensemble answers without the part.
        delta: Probability with the part less that without it.
        delta_logit: The same on the logit scale.
        spread: Standard deviation of `delta` over the ensemble's members; 0 for a single one.
    """

    kind: str
    name: str
    title: str
    told: str
    probability: float
    delta: float
    delta_logit: float
    spread: float


@dataclass(frozen=True)
class Gradient:
    """Integrated gradients of one part: its share of the score above that of an average place.

    Attributes:
        kind: `number`, `sentence` or `band`.
        name: As in `Contribution`.
        title: As in `Contribution`.
        attribution: In units of the score, mean over members; positive speaks for suitability.
    """

    kind: str
    name: str
    title: str
    attribution: float


@dataclass(frozen=True)
class Explanation:
    """Why the model says what it says at a place, or on average over the places of a region.

    Attributes:
        places: Number of places.
        x: Easting or longitude of the place, mean of a region.
        y: Northing or latitude.
        scenario: Name of the scenario; None for the present.
        probability: Calibrated probability of suitability, mean over members.
        std: Its standard deviation over members.
        without_image: The same from the report alone.
        report: The report of the place; empty for a region.
        contributions: Occlusion of every part.
        absent: How a number was hidden: `missing` or `swapped`.
        gradients: Integrated gradients, None if not asked for. Those of numbers and bands add up to `score` less
            `baseline_score`; those of sentences are sums of their numbers.
        score: Score of the networks before calibration, a logit (or, for shares, a standard normal quantile).
        baseline_score: The same at an average place: mean of each number over the labelled sites, mean of each band.
        completeness_gap: Sum of the attributions less the difference of the two scores: what the integral missed, for
            want of steps or because a network jumps on the way.
        looked: Share of attention on each sentence, on the report's ends and on nothing. Not an explanation.
        notes: What to keep in mind.
    """

    places: int
    x: float
    y: float
    scenario: str | None
    probability: float
    std: float
    without_image: float
    report: str
    contributions: tuple[Contribution, ...]
    absent: str
    gradients: tuple[Gradient, ...] | None = None
    score: float = math.nan
    baseline_score: float = math.nan
    completeness_gap: float = math.nan
    looked: dict[str, float] | None = None
    notes: tuple[str, ...] = ()

    def of_kind(self, *kinds: str) -> list[Contribution]:
        """The parts of these kinds, those that move the answer most first."""
        chosen = [part for part in self.contributions if part.kind in kinds]
        return sorted(chosen, key=lambda part: -abs(part.delta_logit))

    @property
    def sentence(self) -> str:
        """What spoke for and against, in plain words."""
        where = f"At {self.x:.6g}, {self.y:.6g}" if self.places == 1 else f"On average over {self.places} places"
        climate = "" if self.scenario is None else f" under {self.scenario}"
        parts = self.of_kind("number", "band")
        # Near 0 and 1 no single part moves a probability, though it may well move its logit.
        plain = max((abs(part.delta) for part in parts), default=0.0) >= WORTH_SAYING
        said = []
        for words, sign in (("for it spoke", 1.0), ("against it", -1.0)):
            moves = [(sign * (part.delta if plain else part.delta_logit), part) for part in parts]
            moves = sorted((pair for pair in moves if pair[0] >= WORTH_SAYING), key=lambda pair: -pair[0])[:3]
            amount = "{:+.1f} points" if plain else "{:+.2f} on the logit scale"
            shown = [
                f"{part.title} {part.told}".rstrip() + f" ({amount.format((100 if plain else 1) * sign * move)})"
                for move, part in moves
            ]
            said += [f"{words}: {', '.join(shown)}"] if shown else []
        what = "; ".join(said) or "no single number or band moves it"
        return f"{where}{climate} the probability of suitability is {_percent(self.probability)}; {what}."

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return {"sentence": self.sentence, **asdict(self)}

    def table(self, most: int = 12) -> Any:
        """A `rich` table of the parts that move the answer most, at most so many of each kind."""
        return _table(self, most)


def mean_explanation(found: Sequence[Explanation]) -> Explanation:
    """The mean of explanations of single places; a part counts where it is there.

    Args:
        found: Explanations of places of one study under one scenario.
    """

    def over(many: Sequence[Any], fields: Sequence[str]) -> dict[str, float]:
        return {field: float(np.mean([getattr(one, field) for one in many])) for field in fields}

    parts: dict[tuple[str, str], list[Contribution]] = {}
    shares: dict[tuple[str, str], list[Gradient]] = {}
    for one in found:
        for part in one.contributions:
            parts.setdefault((part.kind, part.name), []).append(part)
        for share in one.gradients or ():
            shares.setdefault((share.kind, share.name), []).append(share)
    effects = ("probability", "delta", "delta_logit", "spread")
    looked = [one.looked for one in found if one.looked is not None]
    fields = ("x", "y", "probability", "std", "without_image", "score", "baseline_score", "completeness_gap")
    return replace(
        found[0],
        places=len(found),
        report="",
        contributions=tuple(
            replace(same[0], title=_general(same[0]), told="", **over(same, effects)) for same in parts.values()
        ),
        gradients=tuple(
            replace(same[0], title=_general(same[0]), **over(same, ["attribution"])) for same in shares.values()
        )
        or None,
        looked={key: float(np.mean([one[key] for one in looked])) for key in looked[0]} if looked else None,
        notes=tuple(dict.fromkeys(note for one in found for note in one.notes)),
        **over(found, fields),
    )


def _general(part: Contribution | Gradient) -> str:
    """A title without one place's numbers."""
    return re.split(r"[:,]? *-?\d|:", part.title)[0] if part.kind == "sentence" else part.title


def _percent(probability: float) -> str:
    """A probability for people: 96.9 %, below 0.1 %."""
    if min(probability, 1 - probability) < 0.001:
        return "below 0.1 %" if probability < 0.5 else "above 99.9 %"
    return f"{100 * probability:.1f} %"


def _table(explanation: Explanation, most: int) -> Any:
    """A `rich` table of an explanation."""
    from rich.table import Table

    table = Table(title=explanation.sentence, caption="\n".join(explanation.notes) or None, title_justify="left")
    for column in ("hidden", "part"):
        table.add_column(column)
    for column in ("value", "without it", "difference", "members' sd", "logit", "int. gradient"):
        table.add_column(column, justify="right")
    shares = {(part.kind, part.name): part.attribution for part in explanation.gradients or ()}
    for kind, title in KINDS.items():
        for part in explanation.of_kind(kind)[:most]:
            share = shares.get((kind, part.name))
            numbers = (
                f"{part.probability:.3f}",
                f"{part.delta:+.3f}",
                f"{part.spread:.3f}",
                f"{part.delta_logit:+.2f}",
            )
            table.add_row(title, part.title, part.told, *numbers, "" if share is None else f"{share:+.2f}")
    return table
