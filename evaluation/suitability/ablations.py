"""What each part of the input is worth: a fitted model asked again without it.

Three choices define this file. The model is not fitted again: the question is what its answers rest on, and the drop
is given beside its interval. Report and image are taken away one at a time; a shuffled report is that of another
place, so its numbers are likely ones in the wrong place. And numbers written as text are read by the tokenizer digit
by digit in the same sentence, which the model was not taught; what a model fitted on digits is worth is for a baseline
to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from evaluation.suitability.places import PlaceInputs, Sitting
from modeling_agriclip.vision_agriclip import AgriClipVisionOutput
from processing.climate_report import CONSTANT
from processing.errors import AgriClipError
from processing.numbers_agriclip import NUM_TOKEN

__all__ = ["ABLATIONS", "INTACT", "ask_without", "digit_reports"]

#: What the unchanged input is called.
INTACT = "all inputs"
NO_IMAGE, NO_REPORT = "without the image", "without the report"
SHUFFLED, DIGITS = "report of another place", "numbers as text"
#: All ablations, in the order of tables.
ABLATIONS = (NO_IMAGE, NO_REPORT, SHUFFLED, DIGITS)
_BATCH = 128


def ask_without(
    inputs: PlaceInputs,
    sittings: Sequence[Sitting],
    template: Any,
    *,
    ablations: Sequence[str] = ABLATIONS,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Asks the members about places with all inputs, and with each part of the input taken away.

    Args:
        inputs: The places.
        sittings: Which members answer for which places; every place once.
        template: The report's template (``processing.climate_report.ReportTemplate``).
        ablations: Which parts.
        seed: Seed of the shuffle.
        progress: Called with what is being asked.

    Returns:
        Name -> (N,) probability, :data:`INTACT` first; and name -> why an ablation is not possible for this model.
    """
    tell = progress or (lambda what: None)
    found: dict[str, np.ndarray] = {INTACT: np.empty(len(inputs.values))}
    impossible: dict[str, str] = {}
    if inputs.images is None:
        impossible |= {name: "the study has no imagery." for name in (NO_IMAGE, NO_REPORT)}
    texts = None
    if DIGITS in ablations:
        try:
            texts = digit_reports(inputs, template, sittings[0].predictor.processor)
        except AgriClipError as error:
            impossible[DIGITS] = str(error)
    chosen = [name for name in ablations if name not in impossible]
    found |= {name: np.empty(len(inputs.values)) for name in chosen}
    # No place keeps its own report: a cyclic shift of a random order has no fixed point.
    order = np.random.default_rng(seed).permutation(len(inputs.values))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)
    for number, (predictor, rows) in enumerate((sitting.predictor, sitting.rows) for sitting in sittings):
        tell(f"ablations, part {number + 1} of {len(sittings)}")
        images = inputs.images_at(rows)
        seen = None if images is None else predictor.look(images)
        answer = predictor.predict(inputs.tokens, inputs.values[rows], seen)
        found[INTACT][rows] = answer.probability
        if NO_IMAGE in found:
            found[NO_IMAGE][rows] = answer.without_image
        if SHUFFLED in found:
            found[SHUFFLED][rows] = predictor.predict(inputs.tokens, inputs.values[other[rows]], seen).probability
        if NO_REPORT in found and seen is not None:
            found[NO_REPORT][rows] = _image_only(predictor, seen, len(rows))
        if texts is not None:
            found[DIGITS][rows] = _from_text(predictor, [texts[row] for row in rows], seen)
    return {name: np.clip(values, 0.0, 1.0) for name, values in found.items()}, impossible


def digit_reports(inputs: PlaceInputs, template: Any, processor: Any) -> list[str]:
    """The reports with their numbers written out, the words as the model knows them.

    Args:
        inputs: The places.
        template: The report's template.
        processor: The model's processor, for the length of a report.

    Returns:
        N texts, to be tokenised as they are.

    Raises:
        AgriClipError: Written out, a report is longer than the model reads.
    """
    words = template.text.split(NUM_TOKEN)
    decimals = [None if column == CONSTANT else template.variables[column].decimals for column in template.slots]
    texts = []
    for row in inputs.values:
        numbers = [_written(float(value), digits) for value, digits in zip(row, decimals, strict=True)]
        texts.append("".join(part for pair in zip(words, [*numbers, ""], strict=True) for part in pair))
    longest = max(texts, key=len)
    length = len(processor.tokenizer(longest, truncation=False, verbose=False)["input_ids"])
    if length > processor.max_report_tokens:
        raise AgriClipError(
            f"written out, a report has {length} tokens and the model reads {processor.max_report_tokens}."
        )
    return texts


def _written(value: float, decimals: int | None) -> str:
    if not np.isfinite(value):
        return "unknown"
    return f"{value:g}" if decimals is None else f"{value:.{decimals}f}"


@torch.inference_mode()
def _image_only(predictor: Any, seen: list[AgriClipVisionOutput], count: int) -> np.ndarray:
    """(B,) mean over members of the probability from the image alone."""
    parts = []
    for member, own in zip(predictor.members, seen, strict=True):
        chances = []
        for start in range(0, count, _BATCH):
            cut = AgriClipVisionOutput(**{key: value[start : start + _BATCH] for key, value in own.items()})
            chances.append(member.model(vision_model_output=cut).probabilities)
        parts.append(_calibrated(member, torch.cat(chances)))
    return np.mean(parts, axis=0)


@torch.inference_mode()
def _from_text(predictor: Any, texts: list[str], seen: list[AgriClipVisionOutput] | None) -> np.ndarray:
    """(B,) mean over members of the probability from reports whose numbers are text."""
    tokenizer = predictor.processor.tokenizer
    parts = []
    for number, member in enumerate(predictor.members):
        chances = []
        for start in range(0, len(texts), _BATCH):
            batch = slice(start, start + _BATCH)
            encoded = tokenizer(texts[batch], padding=True, truncation=False, return_tensors="pt").to(predictor.device)
            asked = {
                "input_ids": encoded["input_ids"],
                "attention_mask": encoded["attention_mask"],
                "numeric_values": torch.zeros(encoded["input_ids"].shape, device=predictor.device),
            }
            if seen is not None:
                own = {key: value[batch] for key, value in seen[number].items()}
                asked["vision_model_output"] = AgriClipVisionOutput(**own)
            chances.append(member.model(**asked).probabilities)
        parts.append(_calibrated(member, torch.cat(chances)))
    return np.mean(parts, axis=0)


def _calibrated(member: Any, chance: torch.Tensor) -> np.ndarray:
    """(B,) probabilities of a member, by its own calibration where it has one."""
    values = chance if member.calibration is None else member.calibration.apply(chance)
    return values.double().cpu().numpy()
