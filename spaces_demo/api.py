"""Named endpoints for programs: what the screens tell, as plain numbers. Also the tools of the MCP server.

Three choices define this file. An endpoint answers with numbers and sentences, never with markup. Files go through
components of Gradio, which refuse any path that was not uploaded by a caller. And every call with a file has a folder
of its own: the callers of the MCP server share one visit, and would else remove each other's files.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from processing.errors import AgriClipError
from spaces_demo.answers import answer_upload, segment_upload
from spaces_demo.downloads import area_rows, export_zip
from spaces_demo.page import MODEL, Page, said
from spaces_demo.screens.text import number_rows
from spaces_demo.screens.what_if import answer as what_if_answer
from spaces_demo.sessions import Session, root_folder
from spaces_demo.uploads import check_table, look_at, take_file
from spaces_demo.whatif import Changes

__all__ = ["add_endpoints", "answer_in_json", "plain"]

#: Seconds after which the folder of a call goes; Gradio has copied what is answered when the endpoint returns.
KEPT = 300


def plain(value: Any) -> Any:
    """Numbers, strings, lists and dictionaries only; what is not a number is None."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _told(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of an endpoint reach its caller as one sentence."""

    @functools.wraps(endpoint)
    def run(*given: Any, **named: Any) -> Any:
        import gradio as gr

        try:
            return endpoint(*given, **named)
        except Exception as error:
            raise gr.Error(said(error), print_exception=False) from None

    return run


class Endpoints:
    """The endpoints, bound to a page.

    Args:
        page: The page.
    """

    def __init__(self, page: Page) -> None:
        self._page = page

    def list_climates(self) -> dict:
        """Climates that are mapped: the present, and scenarios by pathway, period and climate model.

        Returns:
            `climates` with key and title each, `quantity` (what a probability is of) and `threshold`.
        """
        example = self._page.example
        climates = [{"key": key, "title": c.title} for key, c in example.climates.items()]
        return {"climates": climates, "quantity": example.quantity, "threshold": example.threshold}

    def point_report(self, longitude: float, latitude: float) -> dict:
        """Probability of suitability at a place, today and in each scenario with its range over climate models.

        Args:
            longitude: Degrees east, from -180 to 180.
            latitude: Degrees north, from -90 to 90.

        Returns:
            `present`, `scenarios`, a plain `sentence`, and `trust`: when not to believe it.
        """
        return plain(self._page.example.point(float(longitude), float(latitude)))

    def planting_window(self, longitude: float, latitude: float, climate: str = "present") -> dict:
        """Dates of ripe wheat, sowing and killing freeze at a place, and years in ten in which both crops ripen.

        Args:
            longitude: Degrees east.
            latitude: Degrees north.
            climate: Key of a climate, see list_climates.

        Returns:
            The card, by the heat-unit rule.
        """
        return plain(self._page.planting.card(float(longitude), float(latitude), climate).as_dict())

    def areas(self, climate: str = "present", threshold: float = 0.5) -> list:
        """Areas of a map at a threshold: stable, gain, loss; in ha, km2 and acres.

        Args:
            climate: Key of a climate, see list_climates.
            threshold: Probability from which land is called suitable, between 0 and 1.

        Returns:
            One row a class.
        """
        return plain(area_rows(self._page.example, [climate], float(threshold)))

    def what_if(
        self,
        longitude: float,
        latitude: float,
        warming: float = 0.0,
        winter_warming: float = 0.0,
        precipitation: float = 0.0,
        summer_rain: float = 0.0,
    ) -> dict:
        """Probability at a place if its climate changed, asked of the model live.

        Args:
            longitude: Degrees east.
            latitude: Degrees north.
            warming: degC added to all temperatures, -2 to 8.
            winter_warming: degC added to winter on top, -3 to 5.
            precipitation: Percent by which all rain changes, -50 to 50.
            summer_rain: Percent by which the rain of the warmest quarter changes on top, -50 to 50.

        Returns:
            `probability`, `std` over members, `today`, `without_image`, and the `report` that was asked.
        """
        changes = Changes(float(warming), float(winter_warming), float(precipitation), float(summer_rain))
        found = what_if_answer(self._page, float(longitude), float(latitude), changes, "warming")
        return plain(found)

    def explain_place(self, longitude: float, latitude: float) -> dict:
        """What speaks for and against suitability at a place: each number, sentence and band hidden in turn.

        Args:
            longitude: Degrees east.
            latitude: Degrees north.

        Returns:
            A `sentence` and `contributions`.
        """
        return plain(self._page.engine.explain(float(longitude), float(latitude)).as_dict())

    def read_report(self, report: str) -> list:
        """Numbers found in a report, with units, and what the model reads.

        Args:
            report: Text, for example "Annual precipitation 45 in; annual mean temperature 57 F."

        Returns:
            Rows of text found, value, unit, and the canonical value with its unit.
        """
        from spaces_demo.engine import check_report

        check_report(report)
        return plain(number_rows(report))

    def predict_report(self, report: str) -> dict:
        """Probability of suitability from a report of climate and soil alone.

        Args:
            report: Text with numbers in any units.

        Returns:
            `probability`, `std`, `low` and `high` over members, `share`, and the `numbers` found.
        """
        answer = self._page.engine.ask_texts([report])[0]
        return plain({**vars(answer), "numbers": number_rows(report)})

    # -- files ------------------------------------------------------------------------------------------------------

    def check_file(self, file: str | None) -> dict:
        """Check a GeoTIFF or CSV: size, CRS, bands, units, range against training, nodata.

        Args:
            file: The GeoTIFF or CSV. An MCP client gives its https address, or its content as data:;base64,...

        Returns:
            `kind`, `usable`, and `checks`: what, found, judgement, what to do.
        """
        visit = Session()
        try:
            upload = self._look(file, visit)
        finally:
            visit.remove()
        return plain({"kind": upload.kind, "usable": upload.usable, "checks": check_table(upload.checks)})

    def predict_file(self, file: str | None) -> tuple[dict, list[str]]:
        """Predict a GeoTIFF of predictors, a CSV of places or a CSV of reports.

        Args:
            file: The GeoTIFF or CSV. An MCP client gives its https address, or its content as data:;base64,...

        Returns:
            A `sentence`, and files: COGs with styles, or a CSV.
        """
        visit = _visit()
        answered = answer_upload(self._look(file, visit), self._page.engine, visit.fresh("answers"))
        return {"sentence": answered.sentence}, [str(path) for path in answered.files]

    def segment_image(self, file: str | None, queries: str) -> tuple[dict, list[str]]:
        """Map what texts ask for on the pixels of a GeoTIFF.

        Args:
            file: The image, a GeoTIFF. An MCP client gives its https address, or its content as data:;base64,...
            queries: What to look for, separated by commas, for example "soybean fields, forest".

        Returns:
            A `sentence`, and a COG for each text.
        """
        visit = _visit()
        upload = self._look(file, visit, "image")
        texts = [text for text in str(queries).split(",") if text.strip()]
        answered = segment_upload(upload, texts, self._page.engine, visit.fresh("answers"))
        return {"sentence": answered.sentence}, [str(path) for path in answered.files]

    def export_maps(self, climates: list[str], layers: list[str], threshold: float) -> str:
        """Maps as a zip: COGs, QGIS styles, areas as CSV, manifest.

        Args:
            climates: Keys of climates, see list_climates.
            layers: Of probability, std, mess, change.
            threshold: Probability from which land is called suitable, between 0 and 1.

        Returns:
            The zip.
        """
        keys, kinds = list(dict.fromkeys(climates or [])), list(dict.fromkeys(layers or []))
        return str(export_zip(self._page.example, keys, kinds, float(threshold), _visit().fresh("export")))

    def _look(self, file: str | None, visit: Session, purpose: str = "auto") -> Any:
        path, called, kind = take_file(file, visit, Path(file).name if file else None)
        upload = look_at(path, called, kind, self._page.example.variables, purpose)
        if not upload.usable and purpose == "image":
            raise AgriClipError(upload.refusal)
        return upload


def _visit() -> Session:
    """A folder for one call, which goes by itself, or with the program."""
    visit = Session()
    weakref.finalize(visit, shutil.rmtree, root_folder() / visit.name, ignore_errors=True)
    timer = threading.Timer(KEPT, visit.remove)
    timer.daemon = True
    timer.start()
    return visit


def add_endpoints(page: Page) -> list[str]:
    """Add the endpoints to the page that is being built; returns their names."""
    import gradio as gr

    ends = Endpoints(page)
    asked = {"what_if", "explain_place", "predict_report"}
    names = []
    for name in ("list_climates", "point_report", "planting_window", "areas", "what_if", "explain_place",
                 "read_report", "predict_report"):  # fmt: skip
        endpoint = _told(getattr(ends, name))
        gr.api(endpoint, api_name=name, **(MODEL if name in asked else {"concurrency_limit": 4}))
        names.append(name)
    # Components that are not shown: their types check what comes in, and hand files back as downloads.
    given, several = gr.File(visible=False, label="file"), gr.File(visible=False, file_count="multiple", label="files")
    one, told = gr.File(visible=False, label="zip"), gr.JSON(visible=False, label="told")
    queries = gr.Textbox(visible=False, label="queries")
    # Named choices, so that the schema of the MCP tool lists them; and text only, which no caller can pass a path in.
    climates = gr.CheckboxGroup(list(page.example.climates), visible=False, label="climates")
    layers = gr.CheckboxGroup(["probability", "std", "mess", "change"], visible=False, label="layers")
    threshold = gr.Number(visible=False, value=0.5, label="threshold")
    for name, inputs, outputs, limit in (
        ("check_file", [given], told, {"concurrency_limit": 2}),
        ("predict_file", [given], [told, several], MODEL),
        ("segment_image", [given, queries], [told, several], MODEL),
        ("export_maps", [climates, layers, threshold], one, {"concurrency_limit": 2}),
    ):
        gr.Button(visible=False).click(_told(getattr(ends, name)), inputs, outputs, api_name=name, **limit)
        names.append(name)
    return names


def answer_in_json(tools: Any) -> None:
    """Let the MCP server of Gradio answer in JSON, and with the address of a file.

    By itself it answers as Python prints, and puts the pixels of a GeoTIFF into the conversation.

    Args:
        tools: `mcp_server_obj` of the page, once it is launched.
    """
    from gradio.processing_utils import add_root_url
    from gradio_client.utils import is_file_obj_with_meta

    as_printed = tools.postprocess_output_data

    def as_json(data: Any, root_url: str) -> Any:
        # The queue hands over several outputs as one tuple.
        outputs = [part for one in data for part in (one if isinstance(one, tuple) else (one,))]
        texts: list[str] = []
        for output in add_root_url(outputs, root_url, None):
            files = output if isinstance(output, list) and output else [output]
            if all(is_file_obj_with_meta(file) for file in files):
                texts.extend(file["url"] for file in files)
            else:
                texts.append(json.dumps(output, ensure_ascii=False))
        return as_printed(texts, root_url)

    tools.postprocess_output_data = as_json
