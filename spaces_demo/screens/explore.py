"""Screen 1: the maps. Pathway, period and climate model from lists, a threshold, areas, a divider between climates."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from typing import Any

from mapping.change import ACRES_PER_HA, CHANGE_CLASSES
from spaces_demo import snippets
from spaces_demo.example import MEAN, PRESENT, Climate, Example, percent, verdict
from spaces_demo.map_widget import clicked, map_value, map_widget
from spaces_demo.page import Page, guarded, message, said, snippet
from spaces_demo.pictures import LAYERS, Overlay, draw_overlay, legend_html
from spaces_demo.snippets import INVENTED, REAL

__all__ = ["areas_html", "build", "explore"]

TODAY = "Today"
BESIDE, ALONE = "Today | scenario, with a divider", "One map"


class Painter:
    """Overlays of an example, the last ones kept."""

    def __init__(self, example: Example) -> None:
        self.example = example
        self.draw = lru_cache(maxsize=96)(self._draw)

    def _draw(self, key: str, layer: str, threshold: float, hatch: bool) -> Overlay:
        return draw_overlay(self.example, key, layer, threshold, hatch)


def explore(
    painter: Painter,
    pathway: str,
    period: str,
    model: str,
    layer: str,
    threshold: float,
    mode: str,
    hatch: bool,
    streets: bool,
    marker: tuple[float, float] | None,
) -> tuple[str, str, str, str]:
    """What the screen shows for its controls: map, legend, areas, and the command for it."""
    example = painter.example
    climate = example.find("" if pathway == TODAY else pathway, period, model)
    name = next((key for key, (title, _) in LAYERS.items() if title == layer), "probability")
    threshold = min(max(float(threshold), 0.01), 0.99)
    if name == "change" and climate.key == PRESENT:
        name = "probability"
    first, second, labels = painter.draw(climate.key, name, threshold, hatch), None, None
    if mode == BESIDE and climate.key != PRESENT and name != "change":
        first, second = painter.draw(PRESENT, name, threshold, hatch), first
        labels = (TODAY, _short(climate))
    value = map_value(first, second, labels, marker, streets, towns=not example.invented)
    return (
        value,
        legend_html(name, hatch, example.quantity, threshold),
        areas_html(example, climate, threshold),
        snippets.for_areas(climate.key, threshold, INVENTED if example.invented else REAL),
    )


def _short(climate: Climate) -> str:
    return f"{climate.pathway} {climate.period}".strip() or climate.title


def areas_html(example: Example, climate: Climate, threshold: float) -> str:
    """Areas in km2, ha and acres at a threshold, the shift of the centre, and how much is not to be trusted."""
    summary = example.areas(climate.key, threshold)

    def row(title: str, hectares: float, colour: str = "", sign: str = "") -> str:
        mark = f'<i style="background:{colour}"></i>' if colour else ""
        cells = "".join(
            f"<td>{value:{sign},.0f}</td>" for value in (hectares / 100, hectares, hectares * ACRES_PER_HA)
        )
        return f"<tr><th>{mark}{escape(title)}</th>{cells}</tr>"

    rows = [row("Suitable today", summary.present_ha)]
    words = f"{percent(example.outside_share(climate.key))} of the land is hatched: not to be trusted there."
    if climate.key != PRESENT:
        rows.append(row(f"Suitable, {_short(climate)}", summary.future_ha))
        rows.append(row("Change", summary.net_ha, sign="+"))
        rows += [row(title, summary.areas_ha[title], colour) for title, colour in CHANGE_CLASSES.values()]
        if summary.shift_km and summary.compass:
            words = (
                f"The centre of suitable land moves {summary.shift_km:,.0f} km to the {summary.compass}. In this "
                f"climate {words}"
            )
    return (
        f'<div class="ac-areas"><h4>Areas at {percent(threshold)} or more <small>{escape(climate.title)}</small></h4>'
        '<table class="ac-table ac-numbers"><thead><tr><th></th><th>km²</th><th>ha</th><th>acres</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table><p>{escape(words)}</p></div>"
    )


def place_html(example: Example, longitude: float, latitude: float) -> str:
    """The short card of a clicked place."""
    point = example.point(longitude, latitude)
    now = point["present"]
    items = [("Today", now["probability"], now["outside"])]
    items += [(one["title"], one["mean"], not one["trusted"]) for one in point["scenarios"]]
    chips = "".join(
        f'<span class="ac-chip{" ac-doubted" if doubt else ""}"><small>{escape(title)}</small>{percent(chance)}'
        f"{' ?' if doubt else ''}</span>"
        for title, chance, doubt in items
    )
    return (
        f'<div class="ac-place"><h4>{abs(latitude):.2f}°{"N" if latitude >= 0 else "S"}, {abs(longitude):.2f}°'
        f"{'E' if longitude >= 0 else 'W'}: {verdict(now['probability'])} today</h4>"
        f'<div class="ac-chips">{chips}</div>'
        f"<p>{escape(point['trust'])} The next tab tells the rest about this place.</p></div>"
    )


def build(page: Page) -> None:
    """Lay the screen out."""
    import gradio as gr

    example = page.example
    painter = Painter(example)
    pathways = example.pathways
    start_path = pathways[len(pathways) // 2] if pathways else TODAY
    periods = example.periods(start_path) if pathways else [""]
    models = example.models(start_path, periods[-1]) if pathways else [""]
    layers = [title for title, _ in LAYERS.values()]
    opening = explore(
        painter, start_path, periods[-1], models[0], layers[0], example.threshold, BESIDE, True, False, None
    )  # fmt: skip
    with gr.Row(elem_classes="ac-explore"):
        with gr.Column(scale=5, min_width=320):
            view = map_widget(opening[0], "explore-map", 470)
            legend = gr.HTML(opening[1], elem_id="explore-legend", apply_default_css=False)
            place = gr.HTML(
                '<div class="ac-place ac-hint">Click the map to ask about a place.</div>',
                elem_id="explore-place",
                apply_default_css=False,
            )
        with gr.Column(scale=3, min_width=300):
            pathway = gr.Radio([TODAY, *pathways], value=start_path, label="Climate", elem_id="explore-pathway")
            period = gr.Radio(
                periods, value=periods[-1], label="Period", elem_id="explore-period", visible=periods != [""]
            )
            model = gr.Dropdown(
                models, value=models[0], label="Climate model", elem_id="explore-model", visible=len(models) > 1
            )
            layer = gr.Radio(layers, value=layers[0], label="Show", elem_id="explore-layer")
            threshold = gr.Slider(
                0.05, 0.95, value=example.threshold, step=0.05, label="Called suitable from this probability",
                elem_id="explore-threshold",
            )  # fmt: skip
            mode = gr.Radio([BESIDE, ALONE], value=BESIDE, label="Maps", elem_id="explore-mode")
            hatch = gr.Checkbox(True, label="Hatch land where the model should not be trusted")
            streets = gr.Checkbox(
                False, label="Street map below (fetched from the internet)", visible=not example.invented
            )
            areas = gr.HTML(opening[2], elem_id="explore-areas", apply_default_css=False)
    command = snippet(opening[3])
    controls = [pathway, period, model, layer, threshold, mode, hatch, streets, page.place]

    @guarded(4, 2)
    def redraw(*given: Any) -> tuple[str, str, str, str]:
        return explore(painter, *given[:-1], given[-1])

    def lists(chosen: str, now: str) -> tuple[Any, Any]:
        if chosen == TODAY:
            return gr.update(interactive=False), gr.update(interactive=False)
        found = example.periods(chosen)
        when = now if now in found else found[-1]
        names = example.models(chosen, when)
        return (
            gr.update(choices=found, value=when, interactive=True, visible=found != [""]),
            gr.update(
                choices=names, value=MEAN if MEAN in names else names[0], interactive=True, visible=len(names) > 1
            ),
        )

    outputs = [view, legend, areas, command]
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    pathway.input(lists, [pathway, period], [period, model], **quiet).then(redraw, controls, outputs, **quiet)
    gr.on(
        [period.input, model.input, layer.input, threshold.release, mode.input, hatch.input, streets.input],
        redraw, controls, outputs, trigger_mode="always_last", **quiet,
    )  # fmt: skip

    def click(event: Any) -> tuple[Any, str]:
        longitude, latitude = clicked(event)
        try:
            return (longitude, latitude), place_html(example, longitude, latitude)
        except Exception as error:
            return gr.skip(), message(said(error), "note")

    click.__annotations__["event"] = gr.EventData  # Gradio finds the event by its type
    view.click(click, None, [page.place, place], **quiet)
