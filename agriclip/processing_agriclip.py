"""Images and reports to the tensors of the model, in one call.

A report is read by `numbers_agriclip` before it is tokenised: each measurement becomes one `[NUM]` token and a
canonical unit, and its value goes to `numeric_values` at the place of the token. The call itself is transformers' own;
only its two text hooks are used. A report longer than the model can read is refused, never cut in silence.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .image_processing_agriclip import AgriClipImageProcessorKwargs
from .numbers_agriclip import NUM_TOKEN, canonicalise


class AgriClipProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of a call, by modality.

    Attributes:
        images_kwargs: Those of the image processor: sensor, channels, gsd, dates, ...
    """

    images_kwargs: AgriClipImageProcessorKwargs  # type: ignore[misc]


class CanonicalReport(str):
    """A report with `[NUM]` in place of its numbers, and the numbers beside it."""

    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, text: str, values: Iterable[float]) -> "CanonicalReport":
        """Return the text with its values."""
        report = cls(text)
        report.values = tuple(values)
        return report


class AgriClipProcessor(ProcessorMixin):
    """Image processor and tokenizer of AgriCLIP in one.

    `processor(images=..., text=..., sensor=..., channels=..., gsd=..., dates=...)` returns a `BatchFeature` with
    `pixel_values`, `pixel_mask`, `channels`, `gsd`, `dates` for images (see `AgriClipImageProcessor`), and for reports

    * `input_ids`, `attention_mask` (B, L) int64
    * `numeric_values` (B, L) float32: the canonical value at each `[NUM]` token, 0 elsewhere; NaN where the report
      itself says `[NUM]`, a number that is missing

    Args:
        image_processor: An `AgriClipImageProcessor`.
        tokenizer: Any fast tokenizer. If it has no token `[NUM]`, one is added to it as a special token; the text
            encoder's embeddings must then be resized to `len(processor.tokenizer)`.
        max_report_tokens: Longest report, special tokens included; a longer one raises `ValueError` unless the call
            says `truncation=True`.
    """

    valid_processor_kwargs = AgriClipProcessorKwargs  # type: ignore[assignment]
    # truncation=False and not None: some tokenizer files carry a truncation of their own, which None would obey.
    text_kwargs = {"padding": True, "truncation": False, "verbose": False, "return_tensors": "pt"}

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, max_report_tokens: int = 512) -> None:
        super().__init__(image_processor, tokenizer)
        self.max_report_tokens = max_report_tokens
        if tokenizer.tokenize(NUM_TOKEN) != [NUM_TOKEN]:
            tokenizer.add_special_tokens({"extra_special_tokens": [NUM_TOKEN]}, replace_extra_special_tokens=False)

    @property
    def num_token_id(self) -> int:
        """Id of the token `[NUM]`."""
        return int(self.tokenizer.convert_tokens_to_ids(NUM_TOKEN))

    @property
    def unused_input_names(self) -> list[str]:
        """What tokenizers return and the model does not take: a report is one segment."""
        return ["token_type_ids"]

    @property
    def model_input_names(self) -> list[str]:
        """Names of all tensors a call with images and text returns."""
        return [*super().model_input_names, "numeric_values"]

    def get_text_with_replacements(self, text: Any, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        """Put `[NUM]` and canonical units in place of the numbers (called by `__call__` before tokenising)."""
        if isinstance(text, str):
            return _canonical(text), []
        return [_canonical(report) for report in text], []

    def _check_special_mm_tokens(self, text: Any, text_inputs: Any, modalities: list[str]) -> None:
        """Check the lengths and lay the values beside the tokens (called by `__call__` after tokenising)."""
        reports = [text] if isinstance(text, str) else list(text)
        ids = text_inputs["input_ids"]
        flat = not hasattr(ids, "tolist") and len(ids) > 0 and not isinstance(ids[0], list | tuple)
        rows = [ids] if flat else (ids.tolist() if hasattr(ids, "tolist") else ids)
        if len(rows) != len(reports):
            raise ValueError("return_overflowing_tokens is not offered; split long reports into sentences instead.")
        values = [
            self._place(report, row, i, len(rows)) for i, (report, row) in enumerate(zip(reports, rows, strict=True))
        ]
        if isinstance(ids, torch.Tensor):
            text_inputs["numeric_values"] = torch.tensor(np.stack(values))
        elif isinstance(ids, np.ndarray):
            text_inputs["numeric_values"] = np.stack(values)
        else:
            lists = [row.tolist() for row in values]
            text_inputs["numeric_values"] = lists[0] if flat else lists

    def _place(self, report: str, ids: Sequence[int], index: int, count: int) -> Any:
        """Values of one report at the places of its `[NUM]` tokens, (L,) float32."""
        row = np.asarray(ids)
        length = int((row != self.tokenizer.pad_token_id).sum())
        if length > self.max_report_tokens:
            which = "The report" if count == 1 else f"Report {index + 1} of {count}"
            raise ValueError(
                f"{which} has {length} tokens but the limit is {self.max_report_tokens}; shorten it, split it into "
                "several reports, or pass truncation=True to cut its end."
            )
        values = np.asarray(getattr(report, "values", ()), dtype=np.float32)
        places = np.flatnonzero(row == self.num_token_id)
        if len(places) > len(values):
            raise ValueError(f"The report has {len(places)} [NUM] tokens but {len(values)} values; give one for each.")
        # Fewer tokens than values only where the caller asked to truncate.
        kept = (
            values[len(values) - len(places) :] if self.tokenizer.truncation_side == "left" else values[: len(places)]
        )
        result = np.zeros(len(row), dtype=np.float32)
        result[places] = kept
        return result

    def encode_report(self, text: str, values: Sequence[float] | None = None) -> BatchFeature:
        """Tokenise one canonical report, in which `[NUM]` already stands for each number.

        For templates: tokenised once, its `slot_positions` say where the values of every further row go.

        Args:
            text: The report, e.g. "Annual precipitation [NUM] mm."; digits in it are left as text.
            values: Canonical values in the order of the tokens; all missing (NaN) if not given.

        Returns:
            1-D tensors `input_ids`, `attention_mask` (L,), `numeric_values` (L,) and `slot_positions` (n,).

        Raises:
            ValueError: If the values do not number the tokens or the report is too long.
        """
        encoded = self.tokenizer(text, truncation=False, padding=False, verbose=False)
        ids = encoded["input_ids"]
        slots = [place for place, token in enumerate(ids) if token == self.num_token_id]
        given = [float("nan")] * len(slots) if values is None else [float(value) for value in values]
        if len(given) != len(slots):
            raise ValueError(f"The report has {len(slots)} [NUM] tokens but {len(given)} values; give one for each.")
        data = {
            "input_ids": torch.tensor(ids, dtype=torch.long),
            "attention_mask": torch.ones(len(ids), dtype=torch.long),
            "numeric_values": torch.from_numpy(self._place(CanonicalReport.of(text, given), ids, 0, 1)),
            "slot_positions": torch.tensor(slots, dtype=torch.long),
        }
        return BatchFeature(data=data)

    def class_prompts(self, labels: Iterable[str], template: str = "a satellite image of {}") -> BatchFeature:
        """Tokenise one prompt per class, for zero-shot classification and text-queried segmentation.

        Args:
            labels: Names of the classes.
            template: The prompt, with `{}` where the name goes.

        Returns:
            `input_ids`, `attention_mask` and `numeric_values`, each (K, L).

        Raises:
            ValueError: If there is no label, or no `{}` in the template.
        """
        names = [labels] if isinstance(labels, str) else list(labels)
        if not names or "{}" not in template:
            raise ValueError("class_prompts needs at least one label and a template with {} where the label goes.")
        prompts: BatchFeature = self(text=[template.replace("{}", str(name)) for name in names])
        return prompts


def _canonical(text: str) -> CanonicalReport:
    if isinstance(text, CanonicalReport):
        return text
    return CanonicalReport.of(*canonicalise(text))
