"""The report template: what a person reads, what the tokenizer gets and what the model counts are one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from processing.climate_report import CONSTANT, ReportTemplate
from processing.errors import AgriClipError
from processing.numbers_agriclip import canonicalise
from processing.study import Variable
from processing.virtual_landscape import LAND, SENTENCES, VARIABLES


def variables() -> list[Variable]:
    """Three variables in three units."""
    return [
        Variable(name="bio1", title="annual mean temperature", unit="degC", decimals=1),
        Variable(name="bio12", title="annual precipitation", unit="mm", decimals=0),
        Variable(name="ph", title="soil pH", unit="pH", decimals=2),
    ]


def test_default_clauses_and_their_text() -> None:
    template = ReportTemplate(None, variables())
    row = [14.06, 1168.4, 6.5]
    assert template.render(row) == "Annual mean temperature 14.1 degC. Annual precipitation 1168 mm. Soil pH 6.50."
    assert template.text == "Annual mean temperature [NUM] degC. Annual precipitation [NUM] mm. Soil pH [NUM]."
    assert template.slots == (0, 1, 2)


@pytest.mark.parametrize("kind", ["default", "landscape"])
def test_reading_the_rendered_report_gives_text_and_values(kind: str) -> None:
    if kind == "default":
        template = ReportTemplate(None, variables())
    else:
        rows = [Variable(name=n, title=t, unit=u, decimals=d) for n, t, u, d in VARIABLES + LAND]
        template = ReportTemplate(SENTENCES, rows)
    rng = np.random.default_rng(0)
    # signs, ties and sizes; ties are where rounding and printing usually part
    table = rng.normal(0, 1, (400, len(template.variables))) * 10.0 ** rng.integers(-2, 5, (400, 1))
    table[:100] = np.round(table[:100], 2) + 0.005
    table[100] = -0.001
    values = template.values(table)
    for row, expected in zip(table, values, strict=True):
        text, read = canonicalise(template.render(row))
        assert text == template.text
        assert np.array_equal(np.asarray(read, dtype=np.float32), expected)


def test_missing_values_keep_their_slot() -> None:
    template = ReportTemplate(None, variables())
    row = [np.nan, 800.0, 7.0]
    assert template.render(row).startswith("Annual mean temperature unknown degC.")
    text, read = canonicalise(template.render(row, missing="[NUM]"))
    assert text == template.text
    assert np.array_equal(np.float32(read), template.values([row])[0], equal_nan=True)
    assert np.isnan(template.values([row])[0, 0])


def test_variables_may_repeat_and_numbers_in_words_stay_constant() -> None:
    template = ReportTemplate(
        ["Rain {bio12} at {bio1}, base 10 degC; again {bio12}.", "No number here."],
        variables(),
    )
    assert template.slots == (1, 0, CONSTANT, 1)
    values = template.values([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert values.tolist() == [[2.0, 1.0, 10.0, 2.0], [5.0, 4.0, 10.0, 5.0]]
    assert template.render([1, 2, 3]).endswith("No number here.")


def test_units_that_the_sentence_says_are_not_said_twice() -> None:
    template = ReportTemplate(["It rains {bio12} mm; soil pH {ph}, {bio1}."], variables())
    assert template.render([1, 2, 3]) == "It rains 2 mm; soil pH 3.00, 1.0 degC."


def test_values_of_a_unit_are_canonical() -> None:
    fahrenheit = Variable(name="t", title="temperature", unit="degF", decimals=1)
    assert ReportTemplate(None, [fahrenheit]).text == "Temperature [NUM] degC."


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("Heat {boi1}.", "did you mean 'bio1'"),
        ("In B{bio12} it rains.", "not read back as a number"),
        ("It rained in the year {index}.", "not read back as a number"),
    ],
)
def test_sentences_that_cannot_be_read_back_are_refused(sentence: str, said: str) -> None:
    bare = Variable(name="index", title="index", unit="1", decimals=0)
    with pytest.raises(AgriClipError, match=said):
        ReportTemplate([sentence], [*variables(), bare])


def test_wrong_tables_are_refused() -> None:
    template = ReportTemplate(None, variables())
    with pytest.raises(AgriClipError, match="needs 3 columns"):
        template.values(np.zeros((2, 4)))
    with pytest.raises(AgriClipError, match="A row has 3 values"):
        template.render([1.0])
    with pytest.raises(AgriClipError, match="at least one variable"):
        ReportTemplate(None, [])


@dataclass
class CountingProcessor:
    """Splits at spaces; counts how often it is asked."""

    calls: int = 0

    def encode_report(self, text: str, values: list[float]) -> dict[str, np.ndarray]:
        """One id per word; values at `[NUM]`."""
        self.calls += 1
        words = text.replace(";", " ").replace(".", " ").split()
        left = iter(values)
        return {
            "input_ids": np.arange(len(words)),
            "attention_mask": np.ones(len(words), dtype=np.int64),
            "numeric_values": np.asarray([next(left) if w.startswith("[NUM]") else 0.0 for w in words]),
        }


def test_ten_thousand_cells_are_tokenised_once() -> None:
    template = ReportTemplate(None, variables())
    processor = CountingProcessor()
    tokens = template.tokenise(processor)
    table = np.random.default_rng(0).normal(size=(10_000, 3))
    numeric = tokens.numeric_values(template.values(table))
    assert processor.calls == 1
    assert numeric.shape == (10_000, len(tokens.input_ids))
    assert numeric.dtype == np.float32
    assert np.array_equal(numeric[:, tokens.slot_positions], template.values(table))
    rest = np.delete(numeric, tokens.slot_positions, axis=1)
    assert not rest.any()
    with pytest.raises(AgriClipError, match="3 numbers"):
        tokens.numeric_values(np.zeros((2, 5)))


def test_the_template_and_the_processor_agree() -> None:
    pytest.importorskip("torch")
    from processing.image_processing_agriclip import AgriClipImageProcessor
    from processing.processing_agriclip import AgriClipProcessor
    from processing.tokenizer import build_tokenizer

    processor = AgriClipProcessor(AgriClipImageProcessor(), build_tokenizer(2048))
    rows = [Variable(name=n, title=t, unit=u, decimals=d) for n, t, u, d in VARIABLES + LAND]
    template = ReportTemplate(SENTENCES, rows)
    table = np.abs(np.random.default_rng(0).normal(size=(3, len(rows)))) * 100
    tokens = template.tokenise(processor)
    read = processor(text=[template.render(row) for row in table])
    assert np.array_equal(read["input_ids"].numpy(), np.tile(tokens.input_ids, (3, 1)))
    assert np.array_equal(read["numeric_values"].numpy(), tokens.numeric_values(template.values(table)))
