"""Why the map says what it says at a place: four kinds of evidence, none of which is called the cause.

What counts most is occlusion: a sentence, a number, a band or a month is hidden and the calibrated ensemble is asked
again. Integrated gradients share a network's score out over everything at once; they are taken between number
embeddings and not between numbers, because a number reaches the network as sines of periods down to 0.1, which a
straight path through values crosses thousands of times. Attention is given as "where the model looked" and no more.
A number is hidden by calling it missing only if the fit taught the model what a missing number is; else it is swapped
for those of other labelled sites and the answers averaged (Strumbelj and Kononenko 2014).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mapping.explanation import Contribution, Explanation, Gradient, mean_explanation
from mapping.predictor import Member, SuitabilityPredictor
from modeling_agriclip.vision_agriclip import AgriClipVisionOutput
from processing.climate_report import CONSTANT, ReportTokens
from processing.errors import AgriClipError, named, nearest
from processing.numbers_agriclip import NUM_TOKEN
from processing.study import Study, load_study
from processing.study_data import StudyData
from training.study_dataset import find_clauses

__all__ = ["Contribution", "Explanation", "Gradient", "explain_region", "explain_site"]

Floats = NDArray[np.float64]
Outputs = list[AgriClipVisionOutput] | None

ABSENT = ("auto", "missing", "swapped")
_BATCH = 256
_STEP_BATCH = 32
_TINY = 1e-7


def explain_site(
    model: SuitabilityPredictor | str | Path,
    study: Study | StudyData | str | Path,
    x: float,
    y: float,
    scenario: str | None = None,
    **options: Any,
) -> Explanation:
    """Explain the answer at one place; see `explain_region`, whose options it takes.

    Args:
        model: Predictor, or the folder of a fitted model.
        study: The study it was fitted to, or the path of its file.
        x: Easting or longitude in the CRS of the study's grid.
        y: Northing or latitude.
        scenario: Name of a scenario; the present by default.
        **options: As for `explain_region`.
    """
    return explain_region(model, study, [x], [y], scenario, **options)


def explain_region(
    model: SuitabilityPredictor | str | Path,
    study: Study | StudyData | str | Path,
    x: ArrayLike,
    y: ArrayLike,
    scenario: str | None = None,
    *,
    absent: str = "auto",
    gradients: bool = True,
    steps: int = 64,
    path: str = "embedding",
    attention: bool = True,
    donors: int = 24,
    seed: int = 0,
) -> Explanation:
    """Explain the answers at some places, on average.

    Args:
        model: Predictor, or the folder of a fitted model.
        study: The study it was fitted to, or the path of its file.
        x: (N,) eastings or longitudes in the CRS of the study's grid.
        y: (N,) northings or latitudes.
        scenario: Name of a scenario; the present by default.
        absent: How a number is hidden: `missing`, `swapped` for those of labelled sites, or `auto`: missing where the
            study's `training.number_dropout` taught the model what that is.
        gradients: Also integrated gradients (Sundararajan, Taly and Yan 2017); needs captum.
        steps: Points of the integral.
        path: Straight line between number `embedding`s, or between number `value`s: standard deviations give the same
            line as values do.
        attention: Also where the fusion looked in the report.
        donors: Labelled sites whose numbers are swapped in.
        seed: Seed of their choice.

    Returns:
        The explanation; for several places the means over them.

    Raises:
        AgriClipError: A place without predictors, an unknown option, or captum is not installed.
    """
    for given, known, what in ((absent, ABSENT, "absent"), (path, ("embedding", "value"), "path")):
        if given not in known:
            raise AgriClipError(f"`{what}` cannot be '{given}'; {nearest(given, known)}")
    if gradients:
        _import_captum()
    data = (
        study if isinstance(study, StudyData) else StudyData(study if isinstance(study, Study) else load_study(study))
    )
    predictor = model if isinstance(model, SuitabilityPredictor) else SuitabilityPredictor(model)
    xs, ys = np.atleast_1d(np.asarray(x, dtype=np.float64)), np.atleast_1d(np.asarray(y, dtype=np.float64))
    if xs.ndim != 1 or xs.shape != ys.shape or not len(xs):
        raise AgriClipError(f"x and y must be lists of one length, at least 1, not shapes {xs.shape} and {ys.shape}.")
    table = _predictors(data, xs, ys, scenario)
    if absent == "auto":
        absent = "missing" if data.study.training.number_dropout else "swapped"
    sites = data.labels()
    training = data.predictors(sites.x, sites.y)
    training = training[np.isfinite(training).all(axis=1)]
    site = _Site(predictor, data, training, absent, donors, seed)
    found = []
    for place in range(len(xs)):
        images = site.images(xs[place], ys[place])
        explained = site.occlude(table[place], images)
        if gradients:
            explained = site.integrate(explained, table[place], images, steps, path)
        if attention:
            explained = replace(explained, looked=site.look(table[place], images))
        found.append(replace(explained, x=float(xs[place]), y=float(ys[place]), scenario=scenario))
    return found[0] if len(found) == 1 else mean_explanation(found)


class _Site:
    """What all places of a study share: tokens and their sentences, channels, sites that lend their numbers."""

    def __init__(
        self, predictor: SuitabilityPredictor, data: StudyData, training: Floats, absent: str, donors: int, seed: int
    ) -> None:
        self.predictor, self.data, self.training, self.absent = predictor, data, training, absent
        self.tokens = data.template.tokenise(predictor.processor)
        self.slots = np.asarray(data.template.slots)
        chosen = np.random.default_rng(seed).permutation(len(training))[:donors]
        self.donors = data.template.values(training[chosen])
        self.baseline = data.template.values(np.nanmean(training, axis=0)[None])[0]
        tokenizer = predictor.processor.tokenizer
        self.offsets = tokenizer(data.template.text, return_offsets_mapping=True, truncation=False)["offset_mapping"]
        # Sentence (L,) of each token, from 1; 0 for the tokens at the report's ends.
        stop = self.tokens.input_ids == tokenizer.convert_tokens_to_ids(".")
        inside = find_clauses(torch.from_numpy(self.tokens.input_ids), predictor.processor).numpy() > 0
        self.sentences = np.where(inside, 1 + np.cumsum(stop) - stop, 0)

    def images(self, x: float, y: float) -> dict[str, Tensor] | None:
        """The standardised chip around a place (1, C, s, s) as `SuitabilityPredictor.look` takes it."""
        data, device = self.data, self.predictor.device
        if not data.channels:
            return None
        chips, valid = data.chips([x], [y])
        if not valid.any():
            return None
        pixels, mask = self.predictor.processor.image_processor.normalize_values(chips, data.channels, valid)
        return {
            "pixel_values": torch.as_tensor(pixels, dtype=torch.float32).to(device),
            "pixel_mask": torch.as_tensor(mask).bool().to(device),
            "channels": torch.tensor([channel.code() for channel in data.channels], device=device),
            "gsd": torch.tensor([data.gsd], device=device),
        }

    def occlude(self, row: Floats, images: dict[str, Tensor] | None) -> Explanation:
        """Hide every part in turn and ask the ensemble again."""
        values = self.data.template.values(row[None])[0]
        asked = _Questions(values, self.tokens.attention_mask, self.tokens)
        parts: list[tuple[str, str, str, str, slice]] = []
        for number in range(1, int(self.sentences.max()) + 1):
            span = self.sentences == number
            rows = asked.add(mask=np.where(span, 0, self.tokens.attention_mask))
            parts.append(("sentence", str(number), self._words(span, values), "", rows))
        for column, variable in enumerate(self.data.variables):
            own = self.slots == column
            if not own.any():
                continue  # no sentence tells it
            told = f"{row[column]:.{variable.decimals}f} {variable.canonical_unit}".removesuffix(" 1")
            others = self.donors[:, own] if self.absent == "swapped" else np.full((1, int(own.sum())), np.nan)
            swapped = np.repeat(values[None], len(others), axis=0)
            swapped[:, own] = others
            parts.append(("number", variable.name, variable.title, told, asked.add(values=swapped)))
        masks = []
        if images is not None:
            masks = [np.ones(len(self.data.channels), dtype=bool)]
            for kind, name, title, channels in self._bands():
                masks.append(~np.isin(np.arange(len(masks[0])), channels))
                parts.append((kind, name, title, "", asked.add(image=len(masks) - 1)))
        seen = None if images is None else self._see(images, np.stack(masks))
        chance, alone = ask(self.predictor, asked, seen)
        if images is not None:
            # The answer without the image comes with every answer.
            chance = np.concatenate([chance, alone[:, :1]], axis=1)
            parts.append(("image", "image", "the whole image", "", slice(chance.shape[1] - 1, chance.shape[1])))
        full = chance[:, 0]
        contributions = []
        for kind, name, title, told, rows in parts:
            without = chance[:, rows].mean(axis=1)
            delta = full - without
            contributions.append(
                Contribution(
                    kind,
                    name,
                    title,
                    told,
                    probability=float(without.mean()),
                    delta=float(delta.mean()),
                    delta_logit=_logit(full.mean()) - _logit(without.mean()),
                    spread=_spread(delta),
                )
            )
        return Explanation(
            places=1,
            x=math.nan,
            y=math.nan,
            scenario=None,
            probability=float(full.mean()),
            std=_spread(full),
            without_image=float(alone[:, 0].mean()),
            report=self.data.template.render(row),
            contributions=tuple(contributions),
            absent=self.absent,
            notes=self._notes(images),
        )

    def integrate(
        self, explained: Explanation, row: Floats, images: dict[str, Tensor] | None, steps: int, path: str
    ) -> Explanation:
        """Share the networks' score out over numbers and pixels."""
        values = self.data.template.values(row[None])[0]
        numbers, bands, ends = [], [], []
        for member in self.predictor.members:
            found = _attribute(member, self.tokens, images, values, self.baseline, steps, path)
            numbers.append(found[0])
            bands.append(found[1])
            ends.append(found[2])
        by_slot, by_band = np.mean(numbers, axis=0), np.mean(bands, axis=0)
        reached, started = np.mean(ends, axis=0)
        shares = []
        for column, variable in enumerate(self.data.variables):
            own = self.slots == column
            if own.any():
                shares.append(Gradient("number", variable.name, variable.title, float(by_slot[own].sum())))
        at = self.sentences[self.tokens.slot_positions]
        for number in range(1, int(self.sentences.max()) + 1):
            title = self._words(self.sentences == number, values)
            shares.append(Gradient("sentence", str(number), title, float(by_slot[at == number].sum())))
        if images is not None:
            for channel, amount in zip(self.data.channels, by_band, strict=True):
                shares.append(Gradient("band", channel.name, channel.name.replace("_", " "), float(amount)))
        total = float(by_slot.sum() + by_band.sum())
        return replace(
            explained,
            gradients=tuple(shares),
            score=float(reached),
            baseline_score=float(started),
            completeness_gap=total - float(reached - started),
        )

    def look(self, row: Floats, images: dict[str, Tensor] | None) -> dict[str, float]:
        """Where the token that stands for the place looked in the report, mean over heads, layers and members."""
        asked = _Questions(self.data.template.values(row[None])[0], self.tokens.attention_mask, self.tokens)
        everything = np.ones((1, len(self.data.channels)), dtype=bool)
        seen = None if images is None else self._see(images, everything)
        weights = []
        for number, member in enumerate(self.predictor.members):
            with _fusion_weights(member) as recorded:
                ask(self.predictor, asked, seen, only=number)
            # The fusion's last pass is the one with the image; token 0 asks for the place, key 0 is the null token.
            depth = len(member.model.fuser.layers)
            weights.append(np.mean([weight[0, :, 0].mean(axis=0) for weight in recorded[-depth:]], axis=0))
        mean = np.mean(weights, axis=0)
        looked = {"nothing": float(mean[0]), "ends of the report": float(mean[1:][self.sentences == 0].sum())}
        for number in range(1, int(self.sentences.max()) + 1):
            looked[f"sentence {number}"] = float(mean[1:][self.sentences == number].sum())
        return looked

    def _see(self, images: dict[str, Tensor], keep: NDArray[np.bool_]) -> Outputs:
        """What each member sees of a chip with only some channels (D, C)."""
        shown = torch.from_numpy(keep).to(self.predictor.device)[:, :, None, None]
        pixels = images["pixel_values"].expand(len(keep), -1, -1, -1)
        return self.predictor.look({**images, "pixel_values": pixels, "pixel_mask": images["pixel_mask"] & shown})

    def _bands(self) -> Iterator[tuple[str, str, str, list[int]]]:
        """Kind, name, title and channels of what can be hidden in an image."""
        channels = self.data.channels
        for index, channel in enumerate(channels):
            yield "band", channel.name, channel.name.replace("_", " "), [index]
        months = sorted({channel.month for channel in channels if channel.month})
        for month in months if len(months) > 1 else ():
            title = f"{_MONTHS[month - 1]}, all bands"
            yield "month", f"{month:02d}", title, [i for i, channel in enumerate(channels) if channel.month == month]

    def _words(self, span: NDArray[np.bool_], values: NDArray[np.float32]) -> str:
        """The words of some tokens as the report has them, with its numbers."""
        chosen = np.flatnonzero(span)
        words = self.data.template.text[self.offsets[chosen[0]][0] : self.offsets[chosen[-1]][1]]
        for slot in np.flatnonzero(span[self.tokens.slot_positions]):
            column = self.slots[slot]
            decimals = 6 if column == CONSTANT else self.data.variables[column].decimals
            number = f"{values[slot]:.{decimals}f}"
            words = words.replace(NUM_TOKEN, number.rstrip("0").rstrip(".") if column == CONSTANT else number, 1)
        return words.strip(" ;.")

    def _notes(self, images: dict[str, Tensor] | None) -> tuple[str, ...]:
        training, notes = self.data.study.training, []
        if self.absent == "swapped":
            notes.append(
                f"A number is hidden by swapping it for those of {len(self.donors)} labelled sites: it is compared "
                "with what is usual there."
            )
        elif not training.number_dropout:
            notes.append("The fit had no missing numbers (`training.number_dropout`), so their absence is new to it.")
        if not training.sentence_dropout:
            notes.append(
                "The fit always had all sentences (`training.sentence_dropout`), so their absence is new to it."
            )
        if self.data.channels and images is None:
            notes.append("There is no valid imagery at this place.")
        return tuple(notes)


_MONTHS = "January February March April May June July August September October November December".split()


class _Questions:
    """Rows to ask the ensemble: the place itself first, then what is changed in it."""

    def __init__(self, values: NDArray[np.float32], mask: NDArray[np.int64], tokens: ReportTokens) -> None:
        self.tokens, self._plain = tokens, (values, mask)
        self._values, self._masks, self._images = [values], [mask], [0]

    def add(self, values: Any = None, mask: Any = None, image: int = 0) -> slice:
        """Add one row, or as many as `values` (V, n_slots) has; which rows they are."""
        rows = self._plain[0][None] if values is None else values
        start = len(self._values)
        self._values += list(rows)
        self._masks += [self._plain[1] if mask is None else mask] * len(rows)
        self._images += [image] * len(rows)
        return slice(start, len(self._values))

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers (V, L), attention masks (V, L) and which image each row shows (V,)."""
        numbers = torch.from_numpy(self.tokens.numeric_values(np.stack(self._values)))
        masks, images = torch.from_numpy(np.stack(self._masks)), torch.tensor(self._images)
        return numbers.to(device), masks.to(device), images.to(device)


@torch.inference_mode()
def ask(
    predictor: SuitabilityPredictor, questions: _Questions, seen: Outputs, only: int | None = None
) -> tuple[Floats, Floats]:
    """Calibrated probabilities of every member (K, V), with the image and from the report alone."""
    numbers, masks, images = questions.tensors(predictor.device)
    ids = torch.from_numpy(questions.tokens.input_ids).to(predictor.device)
    answers: list[Tensor] = []
    for number, member in enumerate(predictor.members):
        if only is not None and number != only:
            continue
        parts = []
        for start in range(0, len(numbers), _BATCH):
            cut = slice(start, start + _BATCH)
            asked: dict[str, Any] = {"attention_mask": masks[cut], "numeric_values": numbers[cut]}
            if seen is not None:
                shown = {key: value[images[cut]] for key, value in seen[number].items()}
                asked["vision_model_output"] = AgriClipVisionOutput(**shown)
            out = member.model(input_ids=ids.expand(len(asked["numeric_values"]), -1), **asked)
            parts.append(torch.stack([out.probabilities, out.report_probabilities]))
        chance = torch.cat(parts, dim=1)
        answers.append(chance if member.calibration is None else member.calibration.apply(chance))
    both = torch.stack(answers, dim=1).double().cpu().numpy()
    return both[0], both[1]


def _attribute(
    member: Member,
    tokens: ReportTokens,
    images: dict[str, Tensor] | None,
    values: NDArray[np.float32],
    baseline: NDArray[np.float32],
    steps: int,
    path: str,
) -> tuple[Floats, Floats, tuple[float, float]]:
    """Integrated gradients of a member's score: by slot (n_slots,), by channel (C,), and the score at both ends."""
    model, device = member.model, member.model.device
    places = torch.from_numpy(tokens.slot_positions).to(device)
    ids, mask = (torch.from_numpy(part).to(device) for part in (tokens.input_ids, tokens.attention_mask))
    embedding = model.text_model.number_embedding

    def score(numbers: Tensor, pixels: Tensor | None = None) -> Tensor:
        count = len(numbers)
        asked = {"input_ids": ids.expand(count, -1), "attention_mask": mask.expand(count, -1)}
        # Of numbers that are put in as embeddings the Gaussian process knows nothing: they are missing to it.
        asked["numeric_values"] = torch.full((count, len(ids)), torch.nan, device=device)
        if pixels is not None and images is not None:
            asked |= {**images, "pixel_values": pixels, "pixel_mask": images["pixel_mask"].expand_as(pixels)}
        if path == "value":
            asked["numeric_values"] = asked["numeric_values"].index_copy(1, places, numbers)
            return model(**asked).logits
        hook = embedding.register_forward_hook(lambda module, given, out: out.index_copy(1, places, numbers))
        try:
            return model(**asked).logits
        finally:
            hook.remove()

    ends = [torch.from_numpy(part)[None].to(device) for part in (values, baseline)]
    if path == "embedding":
        with torch.no_grad():
            ends = [embedding(part) for part in ends]
    # Pixels are standardised, so 0 is the mean of their band.
    shown = () if images is None else (images["pixel_values"],)
    inputs, origin = (ends[0], *shown), (ends[1], *(torch.zeros_like(part) for part in shown))
    found = _import_captum()(score).attribute(inputs, origin, n_steps=steps, internal_batch_size=_STEP_BATCH)
    with torch.no_grad():
        reached, started = (float(score(*point)) for point in (inputs, origin))
    shares = [part.detach().double().cpu().numpy()[0] for part in found]
    by_slot = shares[0].reshape(len(places), -1).sum(axis=1)
    by_band = shares[1].sum(axis=(1, 2)) if images is not None else np.zeros(0)
    return by_slot, by_band, (reached, started)


@contextmanager
def _fusion_weights(member: Member) -> Iterator[list[NDArray[np.float32]]]:
    """Record the attention of the fusion's layers, each (B, heads, 1 + N, 1 + L); fast attention keeps none."""
    layers = [layer.attention for layer in member.model.fuser.layers]
    before = [layer.config._attn_implementation for layer in layers]
    recorded: list[NDArray[np.float32]] = []
    hooks = []
    try:
        for layer in layers:
            layer.config._attn_implementation = "eager"
            hooks.append(
                layer.register_forward_hook(lambda module, given, out: recorded.append(out[1].float().cpu().numpy()))
            )
        yield recorded
    finally:
        for layer, name in zip(layers, before, strict=True):
            layer.config._attn_implementation = name
        for hook in hooks:
            hook.remove()


def _import_captum() -> Any:
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise AgriClipError(
            "Integrated gradients need captum: pip install 'agriclip[explain]', or ask for `gradients=False`."
        ) from error
    return IntegratedGradients


def _predictors(data: StudyData, x: Floats, y: Floats, scenario: str | None) -> Floats:
    """Predictors (N, M) at places that must have all of them."""
    table = data.predictors(x, y, scenario)
    for place in np.flatnonzero(~np.isfinite(table).all(axis=1)):
        missing = [v.name for v, value in zip(data.variables, table[place], strict=True) if not np.isfinite(value)]
        raise AgriClipError(
            f"There is no value of {named(missing)} at {x[place]:.6g}, {y[place]:.6g}; choose a place on land inside "
            f"the grid, in its own coordinates ({data.grid.crs})."
        )
    return table


def _logit(probability: float) -> float:
    inside = min(max(float(probability), _TINY), 1.0 - _TINY)
    return math.log(inside / (1.0 - inside))


def _spread(values: Floats) -> float:
    """Standard deviation over members; 0 for a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
