"""Screen 5: a report as text. The numbers found in it with their units, to be edited, and the answer that moves."""

from __future__ import annotations

import math
import re
from html import escape
from typing import Any

from processing.errors import AgriClipError
from processing.numbers_agriclip import find_measurements
from processing.units_agriclip import to_canonical
from spaces_demo import snippets
from spaces_demo.engine import TextAnswer, check_report
from spaces_demo.example import percent, verdict
from spaces_demo.page import MODEL, Page, message, said, snippet

__all__ = ["HEADER", "build", "edit_report", "number_rows", "sentences_of"]

HEADER = ["found", "value", "unit", "read as"]
_NUMBER = re.compile(r"[+\-−]?(?:\d[\d,\u00a0\u202f\u2009]*(?:\.\d+)?|\.\d+)(?:[eE][+\-−]?\d+)?")
_MOST_SENTENCES = 8
#: Standard deviation over members from which a report is said to be too little to go by.
DISAGREE = 0.2


def sample_report(page: Page) -> str:
    """A report to begin with: that of the place the page opens on, its first numbers in units of the United States."""
    from processing.climate_report import ReportTemplate

    study = page.planting.study
    row, column = page.example.cell(*page.start)
    template = ReportTemplate(study.report.sentences, study.variables)
    text = template.render(page.example.predictors[:, row, column])
    items = find_measurements(text)
    for item in reversed([*items[:1], *[i for i in items if i.canonical_unit == "mm"][:1]]):
        if item.unit == "degC":
            text = f"{text[: item.start]}{item.value * 1.8 + 32:.1f} F{text[item.end :]}"
        elif item.unit == "mm":
            text = f"{text[: item.start]}{item.value / 25.4:.1f} in{text[item.end :]}"
    return text


def number_rows(text: str) -> list[list[Any]]:
    """The numbers of a report: as written, value, unit, and what the model reads."""
    rows: list[list[Any]] = []
    for item in find_measurements(text):
        value = "" if math.isnan(item.value) else f"{item.value:g}"
        read = "missing" if math.isnan(item.canonical_value) else f"{item.canonical_value:g} {item.canonical_unit}"
        unit = item.unit.removeprefix("delta_")
        rows.append([text[item.start : item.end], value, "" if unit == "1" else unit, read.removesuffix(" 1")])
    return rows


def edit_report(text: str, rows: list[list[Any]]) -> str:
    """Write edited values and units back into a report.

    Args:
        text: The report.
        rows: `number_rows(text)`, with other values or units.

    Returns:
        The report with the new numbers.

    Raises:
        AgriClipError: A value is no number, or a unit is unknown.
    """
    items = find_measurements(text)
    if len(rows) != len(items):
        raise AgriClipError("The table no longer fits the text; read the text again.")
    before = number_rows(text)
    pieces, position = [], 0
    for item, old, new in zip(items, before, rows, strict=True):
        written = text[item.start : item.end]
        value, unit = (
            str(new[1] if new[1] is not None else "").strip(),
            str(new[2] if new[2] is not None else "").strip(),
        )
        pieces.append(text[position : item.start])
        position = item.end
        if _same(value, old[1]) and unit == old[2]:
            pieces.append(written)
            continue
        try:
            number = float(value.replace("−", "-").replace(",", ""))
        except ValueError:
            raise AgriClipError(f"'{value[:40]}' is no number; write one such as 12.5.") from None
        if not math.isfinite(number) or abs(number) > 1e9:
            raise AgriClipError(f"'{value[:40]}' is no number that can be read; write one such as 12.5.")
        if unit:
            try:
                to_canonical(number, unit)
            except ValueError as error:
                raise AgriClipError(str(error)[:200]) from None
        shown = f"{number:.10g}"
        match = _NUMBER.match(written)
        if unit == old[2] and match is not None:
            pieces.append(shown + written[match.end() :])
        else:
            pieces.append(f"{shown} {unit}".strip())
    edited = "".join([*pieces, text[position:]])
    if len(find_measurements(edited)) != len(items):
        raise AgriClipError("With that value the sentence cannot be read back; edit the text itself.")
    return edited


def _same(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def sentences_of(text: str, ends: str = ".;") -> list[str]:
    """Sentences of a report, or its clauses, without cutting a number at its point."""
    return [part.strip() for part in re.split(rf"(?<=[{ends}\n])\s+(?=\S)", text) if part.strip(" .;\n")]


def text_html(answer: TextAnswer, before: float | None, parts: list[tuple[str, float]], count: int) -> str:
    """The answer to a report, and what each sentence does."""
    moved = ""
    if before is not None and abs(before - answer.probability) >= 0.0005:
        moved = f"; {100 * (answer.probability - before):+.1f} points against before the edit"
    share = "" if answer.share is None else f"; expected share of the land {100 * answer.share:.1f} %"
    rows = ""
    largest = max((abs(delta) for _, delta in parts), default=0) or 1
    for words, delta in parts:
        width = 48 * abs(delta) / largest
        side = f"left:50%;width:{width:.1f}%" if delta >= 0 else f"right:50%;width:{width:.1f}%"
        colour = "ac-for" if delta >= 0 else "ac-against"
        short = words if len(words) <= 100 else words[:98] + "…"
        rows += (
            f'<tr><th>{escape(short)}</th><td class="ac-bar"><i class="{colour}" style="{side}"></i></td>'
            f"<td>{100 * delta:+.1f}</td></tr>"
        )
    why = f"<h5>What each sentence does to the answer, in points</h5><table class='ac-table ac-bars'><tbody>{rows}" \
          "</tbody></table>" if rows else ""  # fmt: skip
    few = (
        '<div class="ac-message ac-note">No number was found, so the model has words only; add some such as 45 in or '
        "14 degC.</div>"
        if not count
        else ""
    )
    if count and answer.std > DISAGREE:
        few = (
            '<div class="ac-message ac-note">The members of the model disagree: the report says too little, or is '
            "unlike those that they were fitted on.</div>"
        )
    return (
        f'<div class="ac-report"><div class="ac-figure"><span>{percent(answer.probability)}</span>'
        f"<small>{verdict(answer.probability)}; members {percent(answer.low)} to {percent(answer.high)}{share}{moved}"
        f"</small></div>{few}{why}<p class='ac-note'>From the report alone: no place, no image. A report unlike "
        "those of the fit (there: temperature and rain of seasons) is answered all the same, and means less.</p></div>"
    )


def build(page: Page) -> None:
    """Lay the screen out."""
    import gradio as gr

    sample = sample_report(page)
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            text = gr.Textbox(
                sample, lines=6, max_lines=14, label="Report of climate and soil, in any units", elem_id="text-report"
            )
            read = gr.Button("Read and ask", variant="primary", elem_id="text-go")
            table = gr.Dataframe(
                number_rows(sample), headers=HEADER, datatype=["str", "str", "str", "str"], type="array",
                interactive=True, static_columns=[0, 3], column_count=4, row_count=len(number_rows(sample)),
                label="Numbers found: edit a value or a unit", elem_id="text-numbers", max_height=340,
            )  # fmt: skip
        with gr.Column(scale=4, min_width=320):
            shown = gr.HTML(
                '<div class="ac-hint">Press “Read and ask”, or edit a number.</div>',
                elem_id="text-answer",
                apply_default_css=False,
            )
    command = snippet(snippets.for_text(sample))
    last = gr.State(None)

    def ask(report: str, before: float | None) -> tuple[Any, ...]:
        check_report(report)
        parts = sentences_of(report)
        if len(parts) > _MOST_SENTENCES:
            parts = sentences_of(report, ".")
        kept: list[str] = [report]
        if 1 < len(parts) <= _MOST_SENTENCES:
            kept += [" ".join(part for j, part in enumerate(parts) if j != i) for i in range(len(parts))]
        answers = page.engine.ask_texts(kept)
        moves = [
            (part, answers[0].probability - without.probability)
            for part, without in zip(parts, answers[1:], strict=False)
        ]
        rows = number_rows(report)
        page_html = text_html(answers[0], before, moves, len(rows))
        return report, rows, page_html, answers[0].probability, snippets.for_text(report)

    def fresh(report: str) -> tuple[Any, ...]:
        try:
            return ask(report, None)
        except Exception as error:
            return gr.skip(), gr.skip(), message(said(error)), None, gr.skip()

    def edited(report: str, rows: list[list[Any]], before: float | None) -> tuple[Any, ...]:
        try:
            return ask(edit_report(report, rows), before)
        except Exception as error:
            return gr.skip(), gr.skip(), message(said(error)), gr.skip(), gr.skip()

    outputs = [text, table, shown, last, command]
    options = {"api_visibility": "private", "show_progress": "minimal", **MODEL}
    read.click(fresh, text, outputs, **options)
    table.input(edited, [text, table, last], outputs, **options)
