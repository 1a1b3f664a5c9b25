"""How the answer follows each predictor: response curves, permutation importance and a jackknife of predictors.

Three choices define this file. Everything goes through one adapter with scikit-learn's `predict_proba`, in which the
images of the sites stay as they are, so that any inspection tool works on it and any other estimator works here. Only
sites that a member has not seen count towards importance, and values change places between blocks of land, because a
neighbour's climate is nearly one's own. Curves run beyond the range of the labelled sites, with that range marked:
what a model does there is its own invention, and a map of another climate is made of it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mapping.predictor import SuitabilityPredictor
from modeling_agriclip.vision_agriclip import AgriClipVisionOutput
from processing.errors import AgriClipError, nearest
from processing.study_data import StudyData

__all__ = [
    "HeldOut",
    "Importance",
    "ResponseCurve",
    "SiteEstimator",
    "held_out_sites",
    "jackknife",
    "permutation_importances",
    "response_curves",
]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

HELD_OUT = "heldout_predictions.csv"  # written by training.fit beside the model
_FOLD = re.compile(r"fold_(\d+)(?:_\d+)?")
_EPSILON = 1e-6  # probabilities are kept this far from 0 and 1 in a log loss
#: Units whose zero is an end of the scale: no curve runs below it.
_FROM_ZERO = ("mm", "mm/m", "%", "degC day", "day", "m/s", "kPa", "kg/ha", "W/m2", "pH")


class SiteEstimator:
    """The suitability model as scikit-learn sees a classifier: a table of predictors in, probabilities out.

    Args:
        predictor: The members to ask.
        data: The study's data.
        x: (N,) eastings or longitudes of the sites in the grid's CRS; their images are held.
        y: (N,) northings or latitudes.

    Attributes:
        classes_: 0 and 1, as scikit-learn asks for.
    """

    _estimator_type = "classifier"

    def __init__(self, predictor: SuitabilityPredictor, data: StudyData, x: ArrayLike, y: ArrayLike) -> None:
        self.predictor, self.data = predictor, data
        self.x, self.y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        self.classes_ = np.array([0, 1])
        self._tokens = data.template.tokenise(predictor.processor)
        self._seen = self._look()

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks an estimator before it uses it."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        tags = {"target_tags": TargetTags(required=True), "input_tags": InputTags(allow_nan=True)}
        return Tags(estimator_type="classifier", transformer_tags=None, classifier_tags=ClassifierTags(), **tags)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: Any, y: Any = None) -> SiteEstimator:  # noqa: N803 - scikit-learn's name
        """Nothing: the model is fitted."""
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Calibrated probabilities, mean over members.

        Args:
            X: (k N, M) predictors in the order of the study's variables; row i belongs to site i modulo N. NaN is a
                missing number.

        Returns:
            (k N, 2) probability of unsuitable and suitable.

        Raises:
            AgriClipError: The rows are not whole copies of the sites.
        """
        table = np.asarray(X, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != len(self.data.variables) or len(table) % max(len(self.x), 1):
            raise AgriClipError(
                f"A table for {len(self.x)} sites and {len(self.data.variables)} predictors cannot be of shape "
                f"{table.shape}; give one row a site, or several times as many."
            )
        seen = None
        if self._seen is not None:
            place = torch.arange(len(table), device=self.predictor.device) % len(self.x)
            seen = [AgriClipVisionOutput(**{key: value[place] for key, value in one.items()}) for one in self._seen]
        answer = self.predictor.predict(self._tokens, self.data.template.values(table), seen)
        chance = answer.probability.astype(np.float64)
        return np.stack([1.0 - chance, chance], axis=1)

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:  # noqa: N803
        """The likelier class, 0 or 1."""
        return (self.predict_proba(X)[:, 1] >= 0.5).astype(np.int64)

    def _look(self) -> list[AgriClipVisionOutput] | None:
        """The images of the sites, encoded once."""
        if not self.data.channels:
            return None
        chips, valid = self.data.chips(self.x, self.y)
        pixels, mask = self.predictor.processor.image_processor.normalize_values(chips, self.data.channels, valid)
        device = self.predictor.device
        return self.predictor.look(
            {
                "pixel_values": torch.as_tensor(pixels, dtype=torch.float32).to(device),
                "pixel_mask": torch.as_tensor(mask).bool().to(device),
                "channels": torch.tensor([channel.code() for channel in self.data.channels], device=device),
                "gsd": torch.tensor([self.data.gsd], device=device),
            }
        )


@dataclass(frozen=True)
class ResponseCurve:
    """Probability as one predictor changes and all else stays as it is at each site.

    Attributes:
        name: The predictor.
        title: Words for it.
        unit: Its unit.
        values: (G,) values it is given.
        mean: (G,) mean over sites: the partial dependence (Friedman 2001).
        median: (G,) median over sites.
        low: (G,) tenth percentile over sites, of the individual curves (ICE; Goldstein et al. 2015).
        high: (G,) ninetieth percentile.
        training_range: Least and largest value at the labelled sites.
        quantiles: (11,) deciles at the labelled sites, from least to largest.
    """

    name: str
    title: str
    unit: str
    values: Floats
    mean: Floats
    median: Floats
    low: Floats
    high: Floats
    training_range: tuple[float, float]
    quantiles: Floats

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(self).items()}


def response_curves(
    estimator: Any,
    table: ArrayLike,
    training: ArrayLike,
    variables: Sequence[Any],
    *,
    points: int = 25,
    beyond: float = 0.25,
    only: Sequence[str] | None = None,
) -> list[ResponseCurve]:
    """Partial dependence and individual curves of each predictor.

    Args:
        estimator: A `SiteEstimator`, or any classifier with `predict_proba`.
        table: (S, M) predictors of a sample of sites, those of the estimator.
        training: (N, M) predictors of all labelled sites, for the range.
        variables: M variables with `name`, `title` and `canonical_unit`, as ``StudyData.variables``.
        points: Values a predictor is given.
        beyond: How far a curve runs past both ends of the range, as a share of it.
        only: Names of the predictors wanted; all by default.

    Returns:
        A curve for each predictor, in their order.

    Raises:
        AgriClipError: Tables that do not fit, an unknown name, or a predictor without values.
    """
    sites, known = _table(table, len(variables), "sites"), _table(training, len(variables), "training places")
    names = [variable.name for variable in variables]
    for name in only or ():
        if name not in names:
            raise AgriClipError(f"There is no predictor '{name}' to draw a curve of; {nearest(name, names)}")
    if points < 2 or beyond < 0:
        raise AgriClipError(f"A curve needs 2 points or more and a `beyond` from 0, not {points} and {beyond:g}.")
    curves = []
    for column, variable in enumerate(variables):
        if only is not None and variable.name not in only:
            continue
        seen = known[:, column][np.isfinite(known[:, column])]
        if not len(seen):
            raise AgriClipError(f"Predictor {variable.name} has no value at the labelled sites; leave it out.")
        low, high = float(seen.min()), float(seen.max())
        margin = beyond * ((high - low) or abs(low) or 1.0)
        start = low - margin
        if low >= 0 and variable.canonical_unit in _FROM_ZERO:
            start = max(start, 0.0)
        values = np.linspace(start, high + margin, points)
        asked = np.tile(sites, (points, 1))
        asked[:, column] = np.repeat(values, len(sites))
        chance = np.asarray(estimator.predict_proba(asked))[:, 1].reshape(points, len(sites))
        bottom, middle, top = np.quantile(chance, [0.1, 0.5, 0.9], axis=1)
        curves.append(
            ResponseCurve(
                name=variable.name,
                title=variable.title,
                unit=variable.canonical_unit,
                values=values,
                mean=chance.mean(axis=1),
                median=middle,
                low=bottom,
                high=top,
                training_range=(low, high),
                quantiles=np.quantile(seen, np.linspace(0, 1, 11)),
            )
        )
    return curves


@dataclass(frozen=True)
class HeldOut:
    """Sites that an estimator has not seen in fitting.

    Attributes:
        estimator: Classifier with `predict_proba`.
        table: (N, M) predictors.
        target: (N,) presence, or a share for models of counts.
        blocks: (N,) block of land of each site.
        weight: (N,) weight of each site.
    """

    estimator: Any
    table: Floats
    target: Floats
    blocks: Indices
    weight: Floats

    def loss(self, table: Floats) -> Floats:
        """Log loss (N,) in nats of each site, with other predictors."""
        chance = np.asarray(self.estimator.predict_proba(table))[:, 1].clip(_EPSILON, 1 - _EPSILON)
        return -(self.target * np.log(chance) + (1 - self.target) * np.log1p(-chance))


def held_out_sites(
    model_dir: str | Path, data: StudyData, predictor: SuitabilityPredictor | None = None, most: int | None = None
) -> list[HeldOut]:
    """The members of a fit, each with the labelled sites it left out.

    Args:
        model_dir: Folder of a fit with its held-out predictions.
        data: The study's data.
        predictor: The members of that folder, if they are loaded already.
        most: At most so many sites of each member, chosen by chance with seed 0.

    Raises:
        AgriClipError: The folder tells of no held-out sites, or they are not those of the study.
    """
    path = Path(model_dir) / HELD_OUT
    if not path.is_file():
        raise AgriClipError(f"There are no held-out predictions '{path}'; fit with `splits` and several folds.")
    predictor = predictor or SuitabilityPredictor(model_dir)
    with path.open(newline="", encoding="utf-8") as stream:
        folds = {row["id"]: int(row["fold"]) for row in csv.DictReader(stream)}
    labels = data.labels()
    place = {str(name): i for i, name in enumerate(labels.ids)}
    if unknown := next((name for name in folds if name not in place), None):
        raise AgriClipError(f"'{path}' names the site {unknown}, which the study does not have; fit again.")
    table = data.predictors(labels.x, labels.y)
    counts = data.study.predicts_counts
    target = labels.share if counts else labels.presence.astype(np.float64)
    weight = labels.weight * (labels.total if counts else 1.0)
    splits = data.study.splits
    blocks = np.arange(len(labels)) if splits is None or splits.size is None else data.blocks()
    parts = []
    for member in predictor.members:
        match = _FOLD.fullmatch(member.path.name)
        wanted = None if match is None else int(match[1]) - 1
        rows = np.array(sorted(place[name] for name, fold in folds.items() if wanted in (None, fold)), dtype=np.int64)
        rows = rows[np.isfinite(table[rows]).all(axis=1)]
        if most is not None and len(rows) > most:
            rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
        if not len(rows):
            continue
        alone = copy(predictor)
        alone.members = [member]
        estimator = SiteEstimator(alone, data, labels.x[rows], labels.y[rows])
        parts.append(HeldOut(estimator, table[rows], target[rows], blocks[rows], weight[rows]))
    if not parts:
        raise AgriClipError(f"None of the sites in '{path}' has all predictors; check the study's rasters.")
    return parts


@dataclass(frozen=True)
class Importance:
    """What a predictor is worth, in nats of log loss on held-out sites.

    Attributes:
        name: The predictor.
        title: Words for it.
        increase: Mean increase of the log loss when its values change places; 0 for one that is ignored.
        sd: Standard deviation of that over repeats.
        only: Gain over no number at all (all missing, or all swapped together) with this one alone; None if not asked
            for.
        without: The same gain with all others; None if not asked for.
        everything: The same gain with all; None if not asked for.
    """

    name: str
    title: str
    increase: float
    sd: float
    only: float | None = None
    without: float | None = None
    everything: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return asdict(self)


def exchange_blocks(blocks: ArrayLike, generator: np.random.Generator) -> Indices:
    """A permutation of sites that moves whole blocks: site i gets the values of site `result[i]`.

    Blocks are laid out in a new order over the sites in their old order of blocks, so that what belongs together moves
    together and every value is used once.

    Args:
        blocks: (N,) block of each site.
        generator: Source of chance.
    """
    ids = np.unique(np.asarray(blocks), return_inverse=True)[1].reshape(-1)
    rank = generator.permutation(ids.max() + 1) if len(ids) else ids
    # Ties within a block are broken by chance as well, or else one block alone would stay as it is.
    shuffle = generator.permutation(len(ids))
    source = shuffle[np.argsort(rank[ids[shuffle]], kind="stable")]
    result = np.empty(len(ids), dtype=np.int64)
    result[np.argsort(ids, kind="stable")] = source
    return result


def permutation_importances(
    held_out: Sequence[HeldOut], variables: Sequence[Any], *, repeats: int = 5, seed: int = 0
) -> list[Importance]:
    """Increase of the held-out log loss when the values of a predictor change places between blocks (Breiman 2001).

    Args:
        held_out: From `held_out_sites`.
        variables: M variables with `name` and `title`.
        repeats: Permutations of each predictor.
        seed: Seed of the first; the permutations are the same for all predictors.

    Returns:
        One for each predictor, in their order.

    Raises:
        AgriClipError: No sites, or no repeats.
    """
    _check_parts(held_out, len(variables), repeats)
    plain = _pooled(held_out, lambda part, _: part.table)
    rises = np.empty((repeats, len(variables)))
    for repeat in range(repeats):
        orders = _orders(held_out, seed + repeat)
        for column in range(len(variables)):
            rises[repeat, column] = _pooled(held_out, _mixer(orders, [column])) - plain
    sd = rises.std(axis=0, ddof=1) if repeats > 1 else np.zeros(len(variables))
    means = rises.mean(axis=0)
    return [Importance(v.name, v.title, float(m), float(s)) for v, m, s in zip(variables, means, sd, strict=True)]


def jackknife(
    held_out: Sequence[HeldOut],
    variables: Sequence[Any],
    *,
    absent: str = "swapped",
    repeats: int = 5,
    seed: int = 0,
) -> list[Importance]:
    """Importance of each predictor, with the gain of it alone and of all but it, as MaxEnt's jackknife has them.

    Args:
        held_out: From `held_out_sites`.
        variables: M variables with `name` and `title`.
        absent: How a predictor is taken away: `missing` numbers, for models fitted with `training.number_dropout`, or
            `swapped` between blocks.
        repeats: Permutations of each predictor.
        seed: Seed of the first.

    Returns:
        One for each predictor, with `only`, `without` and `everything`.

    Raises:
        AgriClipError: No sites, no repeats, or an unknown `absent`.
    """
    if absent not in ("missing", "swapped"):
        raise AgriClipError(f"`absent` cannot be '{absent}'; {nearest(absent, ('missing', 'swapped'))}")
    rises = permutation_importances(held_out, variables, repeats=repeats, seed=seed)
    everything = range(len(variables))
    full = _pooled(held_out, lambda part, _: part.table)

    def lost(columns: Sequence[int]) -> float:
        """Log loss without these columns."""
        if absent == "missing":
            return _pooled(held_out, lambda part, _: _replaced(part.table, columns, np.nan))
        draws = [_orders(held_out, seed + repeat) for repeat in range(repeats)]
        return float(np.mean([_pooled(held_out, _mixer(orders, columns)) for orders in draws]))

    nothing = lost(list(everything))
    return [
        Importance(
            name=rise.name,
            title=rise.title,
            increase=rise.increase,
            sd=rise.sd,
            only=nothing - lost([other for other in everything if other != column]),
            without=nothing - lost([column]),
            everything=nothing - full,
        )
        for column, rise in enumerate(rises)
    ]


Change = Callable[[HeldOut, int], Floats]


def _orders(parts: Sequence[HeldOut], seed: int) -> list[Indices]:
    """One permutation for the sites of each part."""
    return [exchange_blocks(part.blocks, np.random.default_rng([seed, i])) for i, part in enumerate(parts)]


def _mixer(orders: Sequence[Indices], columns: Sequence[int]) -> Change:
    """Predictors with some columns taken, together, from the sites that `orders` names."""
    return lambda part, i: _replaced(part.table, columns, part.table[orders[i]][:, columns])


def _replaced(table: Floats, columns: Sequence[int], values: Any) -> Floats:
    changed = table.copy()
    changed[:, list(columns)] = values
    return changed


def _pooled(parts: Sequence[HeldOut], change: Change) -> float:
    """Weighted mean log loss over the sites of all parts."""
    losses = np.concatenate([part.loss(change(part, i)) for i, part in enumerate(parts)])
    return float(np.average(losses, weights=np.concatenate([part.weight for part in parts])))


def _check_parts(parts: Sequence[HeldOut], width: int, repeats: int) -> None:
    if not parts or not sum(float(part.weight.sum()) for part in parts):
        raise AgriClipError("Importance needs held-out sites of positive weight; fit with several folds.")
    if repeats < 1:
        raise AgriClipError(f"Importance needs 1 repeat or more, not {repeats}.")
    for part in parts:
        _table(part.table, width, "held-out sites")


def _table(values: ArrayLike, width: int, what: str) -> Floats:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != width or not len(table):
        raise AgriClipError(
            f"The table of {what} must have {width} columns, one a predictor, not shape {table.shape}."
        )
    return table
