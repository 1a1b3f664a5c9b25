"""What all screens share: the example, the model, the visitor's state, and how a message or a command is shown."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from processing.errors import AgriClipError
from spaces_demo import snippets
from spaces_demo.engine import Engine
from spaces_demo.example import PRESENT, Example
from spaces_demo.planting import Planting

__all__ = ["MODEL", "Page", "message", "said", "snippet", "table_html"]

#: Events that ask the model wait for each other in this line.
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
_LOG = logging.getLogger("agriclip.space")


@dataclass
class Page:
    """What a screen is built from.

    Attributes:
        example: Precomputed maps.
        engine: The model.
        planting: Planting-window cards.
        session: State with the visitor's folder.
        place: State with the visitor's place, (longitude, latitude).
    """

    example: Example
    engine: Engine
    planting: Planting
    session: Any = None
    place: Any = None

    @property
    def made(self) -> snippets.Made:
        """Where the commands shown find the study."""
        return snippets.INVENTED if self.example.invented else snippets.REAL

    @functools.cached_property
    def start(self) -> tuple[float, float]:
        """A place to begin with: the suitable cell nearest to the middle of today's suitable land."""
        example = self.example
        summary = example.areas(PRESENT)
        chance = example.layer(PRESENT, "probability")
        x, y = example.grid.cell_centres()
        from processing.grids import transform_points

        lon, lat = (a.reshape(x.shape) for a in transform_points(x.ravel(), y.ravel(), example.grid.crs, "EPSG:4326"))
        middle = summary.centroid_present
        if middle is None:
            best = np.nanargmax(chance)
        else:
            far = np.hypot(lon - middle[0], lat - middle[1])
            best = np.where(chance >= example.threshold, far, np.inf).argmin()
        return round(float(lon.ravel()[best]), 3), round(float(lat.ravel()[best]), 3)


def message(text: str, kind: str = "stop") -> str:
    """A sentence for the visitor; `kind` is `stop`, `note` or `ok`. Whatever it quotes is escaped."""
    return f'<div class="ac-message ac-{kind}" role="status">{escape(text)}</div>' if text else ""


def said(error: BaseException) -> str:
    """An error as one sentence: ours as it is, any other without its inside."""
    if isinstance(error, AgriClipError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "That needs more memory than this page has; try something smaller."
    _LOG.exception("An event failed", exc_info=error)
    return "Something went wrong on our side; try again, and tell the owner of this page if it stays."


def guarded(count: int, place: int = 0, blank: Any = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turn an error of an event into a sentence in output `place` of `count`; the others become `blank`."""

    def wrap(event: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(event)
        def run(*given: Any) -> Any:
            try:
                return event(*given)
            except Exception as error:
                told = message(said(error))
                return told if count == 1 else tuple(told if i == place else blank for i in range(count))

        return run

    return wrap


def table_html(header: list[str], rows: list[list[Any]], classes: str = "", states: list[str] | None = None) -> str:
    """A table, everything in it escaped; `states` colours rows."""
    head = "".join(f"<th>{escape(str(name))}</th>" for name in header)
    body = ""
    for index, row in enumerate(rows):
        state = f' class="ac-{escape(states[index])}"' if states else ""
        body += f"<tr{state}>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
    return f'<div class="ac-scroll"><table class="ac-table {classes}"><thead><tr>{head}</tr></thead>' \
           f"<tbody>{body}</tbody></table></div>"  # fmt: skip


def snippet(text: str) -> Any:
    """The accordion with the command and the Python for a screen."""
    import gradio as gr

    with gr.Accordion("Show the command and the Python for this", open=False, elem_classes="ac-snippet"):
        return gr.Markdown(text, sanitize_html=True)
