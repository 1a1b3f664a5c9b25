"""A table of covariates told as a climate report, tokenised once however many cells there are.

The words of a template are the same in every cell and only its numbers change. Three choices: the canonical text with
`[NUM]` slots is made by running the rendered text through the same number reader that reads a user's own report, so
the two can never disagree; every value is rounded to the digits that the text shows, so the model sees what a person
reads and no more; and a missing value stays a slot, with NaN in it, instead of changing the sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import AgriClipError, nearest
from .numbers_agriclip import NUM_TOKEN, canonicalise, find_measurements
from .study import PLACEHOLDER

# Numbers that stand in for any value when a template is checked: signs, whole numbers, what could be read as a year.
_PROBES = (12.5, -3.25, 0.0, 7.0, 1950.0, 31.0, 1234567.0)
CONSTANT = -1  # slot of a number that is written in the sentence itself


class ReportVariable(Protocol):
    """What a template needs to know of a variable; `processing.study.Variable` is one."""

    @property
    def name(self) -> str:
        """Name in the sentences."""

    @property
    def title(self) -> str:
        """Words for it."""

    @property
    def canonical_unit(self) -> str:
        """Unit of its values."""

    @property
    def decimals(self) -> int:
        """Digits after the point."""


@dataclass(frozen=True)
class ReportTokens:
    """A tokenised template.

    Attributes:
        input_ids: (L,) token ids.
        attention_mask: (L,) ones.
        slot_positions: (n_slots,) positions of the `[NUM]` tokens.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    slot_positions: NDArray[np.int64]

    def numeric_values(self, values: ArrayLike) -> NDArray[np.float32]:
        """Put slot values at their tokens.

        Args:
            values: (N, n_slots) values, NaN for missing.

        Returns:
            (N, L) values at `[NUM]` tokens, 0 elsewhere.
        """
        table = np.asarray(values, dtype=np.float32)
        if table.ndim != 2 or table.shape[1] != len(self.slot_positions):
            raise AgriClipError(
                f"The report has {len(self.slot_positions)} numbers, so its values must be a table of that many "
                f"columns, not of shape {table.shape}."
            )
        out = np.zeros((len(table), len(self.input_ids)), dtype=np.float32)
        out[:, self.slot_positions] = table
        return out


class ReportTemplate:
    """Sentences with `{variable}` slots, and the variables that fill them.

    Args:
        sentences: Sentences; None makes one clause per variable from its title.
        variables: The variables, in the order of the columns of a table of values.

    Attributes:
        text: Canonical text with `[NUM]`, as the tokenizer gets it.
        slots: Column of the table for each `[NUM]`, or `CONSTANT` for a number written in a sentence.

    Raises:
        AgriClipError: For an unknown variable in a sentence, or a number that the reader would not find again.
    """

    def __init__(self, sentences: Sequence[str] | None, variables: Sequence[ReportVariable]) -> None:
        self.variables = tuple(variables)
        if not self.variables:
            raise AgriClipError("A report needs at least one variable; list them under `predictors`.")
        index = {variable.name: column for column, variable in enumerate(self.variables)}
        if sentences is None:
            sentences = [f"{_capital(variable.title)} {{{variable.name}}}." for variable in self.variables]
        self.sentences = tuple(sentences)
        # literal text and columns in turn: text, column, text, column, ..., text
        self._literals: list[str] = [""]
        self._columns: list[int] = []
        for sentence in self.sentences:
            parts = PLACEHOLDER.split(sentence)
            self._literals[-1] += (" " if self._literals[-1] or self._columns else "") + parts[0]
            for name, literal in zip(parts[1::2], parts[2::2], strict=True):
                if name not in index:
                    raise AgriClipError(f"The report uses the unknown variable '{name}'; {nearest(name, index)}.")
                self._columns.append(index[name])
                self._literals.append(literal)
        self._units = [self._unit(place) for place in range(len(self._columns))]
        self.text, self.slots, self._constants = self._slots()

    def render(self, row: ArrayLike, missing: str = "unknown") -> str:
        """Write the report of one cell.

        Args:
            row: (M,) values in canonical units.
            missing: What to write for NaN. With `[NUM]` the text can be read back with the gap kept.

        Returns:
            E.g. "Annual mean temperature 14.1 degC. Annual precipitation 1168 mm."
        """
        values = np.asarray(row, dtype=np.float64)
        if values.shape != (len(self.variables),):
            raise AgriClipError(f"A row has {len(self.variables)} values here, not the shape {values.shape}.")
        return self._render([values[column] for column in self._columns], missing)[0]

    def values(self, table: ArrayLike) -> NDArray[np.float32]:
        """Fill the slots of many cells.

        Args:
            table: (N, M) values in canonical units, NaN for missing.

        Returns:
            (N, n_slots) values, each rounded to its variable's decimals.
        """
        values = np.asarray(table, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.variables):
            raise AgriClipError(
                f"The report's table needs {len(self.variables)} columns, one per variable, not the shape "
                f"{values.shape}."
            )
        out = np.empty((len(values), len(self.slots)), dtype=np.float32)
        for slot, column in enumerate(self.slots):
            if column == CONSTANT:
                out[:, slot] = self._constants[slot]
            else:
                out[:, slot] = _rounded(values[:, column], self.variables[column].decimals)
        return out

    def tokenise(self, processor: Any) -> ReportTokens:
        """Tokenise the template once.

        Args:
            processor: An `AgriClipProcessor`.

        Raises:
            AgriClipError: The report is longer than the model reads.
        """
        # any finite, distinct values: only their positions are used
        filler = [float(slot + 1) for slot in range(len(self.slots))]
        try:
            encoded = processor.encode_report(self.text, filler)
        except ValueError as error:
            too_long = str(error).partition(";")[0]
            raise AgriClipError(f"{too_long}; leave out sentences or variables of the study's `report`.") from error
        ids, mask, numbers = (
            np.asarray(encoded[key]).reshape(-1) for key in ("input_ids", "attention_mask", "numeric_values")
        )
        positions = np.flatnonzero(numbers != 0)
        if not np.array_equal(numbers[positions], np.asarray(filler, dtype=numbers.dtype)):
            raise AgriClipError(
                f"The tokenizer keeps {len(positions)} of the report's {len(self.slots)} numbers; it needs the token "
                f"{NUM_TOKEN}."
            )
        return ReportTokens(ids.astype(np.int64), mask.astype(np.int64), positions.astype(np.int64))

    def _unit(self, place: int) -> str:
        """Unit to write after a number: none where the sentence says it, as in "soil pH {ph}" or "{share} %"."""
        unit = self.variables[self._columns[place]].canonical_unit
        before, after = self._literals[place].rstrip().lower(), self._literals[place + 1].lstrip()
        said = unit == "1" or (unit == "pH" and before.endswith("ph")) or after.lower().startswith(unit.lower())
        return "" if said else f" {unit}"

    def _render(self, values: Sequence[float], missing: str) -> tuple[str, list[tuple[int, int]]]:
        """Return the text and where each number stands in it."""
        text, spans = self._literals[0], []
        for place, value in enumerate(values):
            decimals = self.variables[self._columns[place]].decimals
            number = missing if np.isnan(value) else f"{float(_rounded(np.asarray(value), decimals)):.{decimals}f}"
            spans.append((len(text), len(text) + len(number)))
            unit = self._units[place]
            # people say 131 days; the number reader knows both
            plural = "s" if unit == " day" and number != "1" else ""
            text += number + unit + plural + self._literals[place + 1]
        return text, spans

    def _slots(self) -> tuple[str, tuple[int, ...], tuple[float, ...]]:
        """Find the slots by reading rendered probes back."""
        text = ""
        slots: list[int] = []
        constants: list[float] = []
        for probe in _PROBES:
            rendered, spans = self._render([probe] * len(self._columns), "")
            by_start = {start: place for place, (start, _) in enumerate(spans)}
            found = find_measurements(rendered)
            slots, constants, seen = [], [], set()
            for item in found:
                place = by_start.get(item.start)
                column = CONSTANT if place is None else self._columns[place]
                if place is not None and item.value == float(rendered[slice(*spans[place])]):
                    seen.add(place)
                    unit = self.variables[column].canonical_unit
                    # a bare number after "pH" may be told apart by its word or not; it is the same number
                    if item.canonical_unit == unit or unit in ("1", "pH"):
                        slots.append(column)
                        constants.append(float("nan"))
                        continue
                elif place is None:
                    slots.append(CONSTANT)
                    constants.append(item.canonical_value)
                    continue
                raise self._unreadable(by_start[item.start], rendered, item.canonical_unit)
            lost = [place for place in range(len(spans)) if place not in seen]
            if lost:
                raise self._unreadable(lost[0], rendered, None)
            read, _ = canonicalise(rendered)
            if text and read != text:
                raise AgriClipError(
                    f"The report's words change with its numbers ('{_difference(text, read)}'); put other words next "
                    "to that number."
                )
            text = read
        return text, tuple(slots), tuple(constants)

    def _unreadable(self, place: int, rendered: str, unit: str | None) -> AgriClipError:
        variable = self.variables[self._columns[place]]
        what = "is not read back as a number"
        if unit is not None:
            what = f"is read back in {unit}, not {variable.canonical_unit}"
        return AgriClipError(
            f"In the report, {{{variable.name}}} {what} in '...{self._literals[place][-30:]}{{{variable.name}}}"
            f"{self._literals[place + 1][:20]}...'; put other words next to it."
        )


def _rounded(values: NDArray[np.float64], decimals: int) -> NDArray[np.float64]:
    """Round, without negative zeros. Text is made from the rounded number, so text and value agree on ties too."""
    return np.asarray(np.round(values, decimals) + 0.0, dtype=np.float64)


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _difference(one: str, other: str) -> str:
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return other[max(0, start - 20) : start + 20]
