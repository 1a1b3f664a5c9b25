"""The map: Leaflet in a `gr.HTML`, with its scripts in the page, so that nothing is fetched from elsewhere.

The component's value is a JSON text that `static/map.js` draws; its template does not depend on it, so the map stays
where a visitor has moved it. A click comes back as longitude and latitude.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from spaces_demo.pictures import Overlay

__all__ = ["STATIC", "clicked", "map_value", "map_widget", "page_head"]

STATIC = Path(__file__).resolve().parent / "static"


@cache
def page_head() -> str:
    """Scripts and styles of the map, inline."""
    leaflet = (STATIC / "leaflet" / "leaflet.js").read_text(encoding="utf-8")
    style = (STATIC / "leaflet" / "leaflet.css").read_text(encoding="utf-8")
    # Pictures of controls that are not used: they would be looked for beside the page.
    style = re.sub(r"url\((?:images/|#)[^)]*\)", "none", style)
    leaflet = leaflet.partition("//# sourceMappingURL")[0]
    own = (STATIC / "map.js").read_text(encoding="utf-8")
    return f"<style>{style}</style>\n<script>{leaflet}</script>\n<script>{own}</script>"


def map_value(
    first: Overlay,
    second: Overlay | None = None,
    labels: tuple[str, str] | None = None,
    marker: tuple[float, float] | None = None,
    streets: bool = False,
    towns: bool = True,
) -> str:
    """What a map shows.

    Args:
        first: The overlay, or the left of two.
        second: The right one.
        labels: What stands at the left and the right of the divider.
        marker: Longitude and latitude of the pin.
        streets: Draw a street map from the internet below.
        towns: Name some towns; not on a landscape that is invented.
    """
    south, west, north, east = first.bounds
    told = {
        "bounds": [[south, west], [north, east]],
        "first": first.url,
        "second": None if second is None else second.url,
        "labels": labels,
        "marker": marker,
        "streets": streets,
        "towns": towns,
    }
    return json.dumps(told)


def map_widget(value: str, elem_id: str, height: int = 460) -> Any:
    """A map as a Gradio component with a `click` event."""
    import gradio as gr

    return gr.HTML(
        value=value,
        html_template=f'<div class="ac-map" style="height:{int(height)}px" aria-label="Map; click a place"></div>',
        css_template="",
        js_on_load="window.agriclipMap && window.agriclipMap(element, props, trigger, watch);",
        elem_id=elem_id,
        apply_default_css=False,
    )


def clicked(event: Any) -> tuple[float, float]:
    """Longitude and latitude of a click; NaN for what is none."""
    data = getattr(event, "_data", None) or {}
    found = []
    for name in ("longitude", "latitude"):
        try:
            found.append(float(data.get(name)))
        except (TypeError, ValueError, AttributeError):
            found.append(math.nan)
    return found[0], found[1]
