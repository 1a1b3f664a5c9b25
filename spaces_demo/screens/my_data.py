"""Screen 4: a visitor's own GeoTIFF or CSV. A table of checks first, then a map, a table, or a text asked of it."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from processing.errors import AgriClipError
from spaces_demo import snippets
from spaces_demo.answers import Answered, answer_upload, segment_upload
from spaces_demo.page import MODEL, Page, message, said, snippet, table_html
from spaces_demo.uploads import Upload, check_table, look_at, take_file

__all__ = ["PURPOSES", "answered_html", "build", "checks_html"]

PURPOSES = {"Find out": "auto", "Predictors, one a band": "predictors", "An image, to search by text": "image"}
_SENSORS = ["the model's own", "sentinel2_l2a", "sentinel2_l1c", "landsat8_oli", "hls", "modis_mod13"]


def checks_html(upload: Upload) -> str:
    """The table of checks."""
    rows = check_table(upload.checks)
    kinds = {
        "predictors": "a raster of predictors",
        "image": "an image",
        "points": "a table of places",
        "reports": "a table of reports",
    }
    verdict = message(
        f"{upload.name} is taken as {kinds[upload.kind]}." if upload.usable else upload.refusal,
        "ok" if upload.usable else "stop",
    )
    states = [f"row-{check.state}" for check in upload.checks]
    return verdict + table_html(["check", "found", "judgement", "what to do"], rows, "ac-checks", states)


def answered_html(answered: Answered) -> str:
    """What came out: a sentence, a picture and the first rows."""
    picture = ""
    if answered.picture is not None and answered.picture.is_file():
        data = base64.b64encode(answered.picture.read_bytes()).decode("ascii")
        picture = f'<img class="ac-picture" alt="The map that was made" src="data:image/png;base64,{data}">'
    table = table_html(answered.header, answered.rows, "ac-numbers") if answered.rows else ""
    return f'<div class="ac-report"><p class="ac-lead">{escape(answered.sentence)}</p>{picture}{table}</div>'


def build(page: Page) -> None:
    """Lay the screen out."""
    import gradio as gr

    upload = gr.State(None)
    example = page.example
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            names = ", ".join(variable["name"] for variable in example.variables)
            gr.Markdown(
                "A **GeoTIFF** with the study's predictors as named bands, or an image; or a **CSV** with `lon`, "
                f"`lat` (and predictors), or a column `report`. Predictors: {names}."
            )
            file = gr.File(
                label="GeoTIFF or CSV, at most 200 MB", file_count="single", elem_id="data-file", height=130
            )
            purpose = gr.Radio(list(PURPOSES), value="Find out", label="What are a raster's bands?")
            go = gr.Button("Predict", variant="primary", elem_id="data-go")
            with gr.Accordion("Search an image by text", open=False):
                queries = gr.Textbox("soybean fields", label="What to look for, separated by commas", max_length=800)
                sensor = gr.Dropdown(_SENSORS, value=_SENSORS[0], label="Sensor", allow_custom_value=True)
                search = gr.Button("Search", elem_id="data-search")
        with gr.Column(scale=5, min_width=320):
            checks = gr.HTML(
                '<div class="ac-hint">Choose a file: it is checked here before the model is asked. It is kept in a '
                "folder of your visit and removed when you leave.</div>",
                elem_id="data-checks",
                apply_default_css=False,
            )
            result = gr.HTML(elem_id="data-result", apply_default_css=False)
            files = gr.File(label="Download", file_count="multiple", visible=False, elem_id="data-files")
    command = snippet(snippets.for_raster("my_file.tif"))

    def look(given: str | None, what: str, session: Any) -> tuple[Any, ...]:
        if not given:
            return None, "", "", gr.update(visible=False, value=None), gr.skip()
        try:
            path, called, kind = take_file(given, session, Path(given).name)
            found = look_at(path, called, kind, example.variables, PURPOSES.get(what, "auto"))
            told = snippets.for_raster(called) if found.kind != "image" else snippets.for_segment(called, ["soybean"])
            return found, checks_html(found), "", gr.update(visible=False, value=None), told
        except Exception as error:
            return None, message(said(error)), "", gr.update(visible=False, value=None), gr.skip()

    def predict(found: Upload | None, session: Any) -> tuple[str, Any]:
        try:
            if found is None or not found.path.is_file():
                raise AgriClipError("There is no file to ask about; choose a GeoTIFF or a CSV.")
            answered = answer_upload(found, page.engine, session.fresh("answers"))
            return answered_html(answered), gr.update(visible=True, value=[str(path) for path in answered.files])
        except Exception as error:
            return message(said(error)), gr.update(visible=False, value=None)

    def seek(found: Upload | None, asked: str, which: str, session: Any) -> tuple[str, Any, str]:
        texts = [text for text in asked.split(",") if text.strip()]
        try:
            if found is None or not found.path.is_file():
                raise AgriClipError("There is no image to search; choose a GeoTIFF.")
            if found.kind != "image":
                raise AgriClipError("This file was not taken as an image; choose 'An image, to search by text' above.")
            chosen = None if which == _SENSORS[0] else which
            answered = segment_upload(found, texts, page.engine, session.fresh("answers"), chosen)
            told = snippets.for_segment(found.name, texts)
            return answered_html(answered), gr.update(visible=True, value=[str(p) for p in answered.files]), told
        except Exception as error:
            return message(said(error)), gr.update(visible=False, value=None), gr.skip()

    quiet = {"api_visibility": "private", "show_progress": "minimal"}
    taken = [upload, checks, result, files, command]
    file.change(look, [file, purpose, page.session], taken, **quiet)
    purpose.input(look, [file, purpose, page.session], taken, **quiet)
    go.click(predict, [upload, page.session], [result, files], api_visibility="private", **MODEL)
    search.click(seek, [upload, queries, sensor, page.session], [result, files, command],
                 api_visibility="private", **MODEL)  # fmt: skip
