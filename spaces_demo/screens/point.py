"""Screen 2: one place. Probability now and in each scenario with its range, when to trust it, planting window, why."""

from __future__ import annotations

from html import escape
from typing import Any

from spaces_demo import snippets
from spaces_demo.example import PRESENT, Example, percent, verdict
from spaces_demo.map_widget import clicked, map_value, map_widget
from spaces_demo.page import MODEL, Page, guarded, message, said, snippet
from spaces_demo.pictures import draw_overlay, ranges_svg
from spaces_demo.planting import card_html

__all__ = ["build", "report_html", "why_html"]


def report_html(example: Example, longitude: float, latitude: float) -> str:
    """The report of a place."""
    point = example.point(longitude, latitude)
    now = point["present"]
    mood = "ac-note" if "as a guess" in point["trust"] or point["trust"].startswith("Do not") else "ac-ok"
    rows, named = "", any(climate.climate_model for climate in example.climates.values())
    for one in point["scenarios"]:
        for name, answer in one["models"].items():
            novelty = f"{answer['mess']:.0f} %" if answer["mess"] == answer["mess"] else ""
            unusual = answer.get("most_unusual", "") if answer["mess"] < 0 else ""
            trust = "outside" if answer["outside"] else "inside"
            who = (one["title"], name) if named else (name,)
            cells = (*who, percent(answer["probability"]), f"± {100 * answer['std']:.0f}", trust, novelty, unusual)
            rows += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            *(("climate", "climate model") if named else ("climate",)),
            *("probability", "members", "applicability", "novelty", "most unusual"),
        )
    )
    every = "Every climate model" if named else "Every climate"
    return (
        f'<div class="ac-report"><div class="ac-figure"><span>{percent(now["probability"])}</span>'
        f"<small>{verdict(now['probability'])} today</small></div><p class='ac-lead'>{escape(point['sentence'])}</p>"
        f"{ranges_svg(point)}"
        f'<div class="ac-message {mood}">{escape(point["trust"])}</div>'
        f'<p class="ac-note">{escape(point["quantity"][:1].upper() + point["quantity"][1:])}. Cell of '
        f"{point['cell_ha'] / 100:,.0f} km² ({point['cell_ha']:,.0f} ha). Suitable is not sown: price, insurance and "
        "habit decide what is planted.</p>"
        f"<details><summary>{every}</summary><div class='ac-scroll'><table class='ac-table'><thead><tr>"
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div></details></div>"
    )


def why_html(explanation: Any) -> str:
    """What moved the answer, as bars."""
    parts = [p for kind in ("number", "sentence", "band", "image") for p in explanation.of_kind(kind)[:6]]
    largest = max((abs(part.delta) for part in parts), default=0.0) or 1.0
    titles = {
        "number": "Numbers of the report, each swapped for those of other places",
        "sentence": "Sentences, each left away",
        "band": "Bands of the image, each hidden",
        "image": "The image as a whole",
    }
    body = ""
    for kind, title in titles.items():
        rows = ""
        for part in (p for p in parts if p.kind == kind):
            width = 48 * abs(part.delta) / largest
            side = f"left:50%;width:{width:.1f}%" if part.delta >= 0 else f"right:50%;width:{width:.1f}%"
            colour = "ac-for" if part.delta >= 0 else "ac-against"
            words = f"{part.title} {part.told}".strip()
            words = words if len(words) <= 90 else words[:88] + "…"
            rows += (
                f'<tr><th>{escape(words)}</th><td class="ac-bar"><i class="{colour}" style="{side}"></i></td>'
                f"<td>{100 * part.delta:+.1f}</td></tr>"
            )
        if rows:
            body += f'<h5>{title}</h5><table class="ac-table ac-bars"><tbody>{rows}</tbody></table>'
    notes = "".join(f"<li>{escape(note)}</li>" for note in explanation.notes)
    sentence = explanation.sentence.partition("probability of suitability is")[2]
    return (
        f'<div class="ac-card"><h4>Why: without a part, the answer moves by so many points</h4>'
        f"<p>The probability is{escape(sentence)}</p>{body}<p class='ac-note'>Blue speaks for suitability, orange "
        f"against it. These are not causes.</p><ul class='ac-note'>{notes}</ul></div>"
    )


def build(page: Page, tab: Any) -> None:
    """Lay the screen out."""
    import gradio as gr

    example, start = page.example, page.start
    overlay = draw_overlay(example, PRESENT, "probability", example.threshold)
    planted = page.planting.possible

    def pinned(where: tuple[float, float]) -> str:
        return map_value(overlay, marker=where, towns=not example.invented)

    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            view = map_widget(pinned(start), "point-map", 340)
            with gr.Row():
                longitude = gr.Number(start[0], label="Longitude", precision=4, elem_id="point-lon", min_width=100)
                latitude = gr.Number(start[1], label="Latitude", precision=4, elem_id="point-lat", min_width=100)
            go = gr.Button("Report", variant="primary", elem_id="point-go")
            climate = gr.Dropdown(
                page.planting.climates, value=PRESENT, label="Planting window in", elem_id="point-climate",
                visible=planted,
            )  # fmt: skip
            card = gr.HTML(elem_id="point-card", apply_default_css=False, visible=planted)
        with gr.Column(scale=5, min_width=320):
            report = gr.HTML(report_html(example, *start), elem_id="point-report", apply_default_css=False)
            ask = gr.Button("Why? Ask the model (some seconds)", elem_id="point-why")
            why = gr.HTML(elem_id="point-why-answer", apply_default_css=False)
    command = snippet(snippets.for_place(*start, page.made))
    quiet = {"api_visibility": "private", "show_progress": "hidden"}

    def tell(lon: float, lat: float) -> tuple[str, str, str]:
        lon, lat = _number(lon), _number(lat)
        return report_html(example, lon, lat), snippets.for_place(lon, lat, page.made), ""

    told = guarded(3)(tell)

    @guarded(1)
    def plant(lon: float, lat: float, key: str) -> str:
        return card_html(page.planting.card(_number(lon), _number(lat), key)) if planted else ""

    def click(event: Any) -> tuple[Any, ...]:
        lon, lat = clicked(event)
        try:
            example.cell(lon, lat)
        except Exception as error:
            return (gr.skip(), gr.skip(), gr.skip(), message(said(error), "note"), gr.skip(), gr.skip())
        return (round(lon, 4), round(lat, 4), (lon, lat), *told(lon, lat))

    def typed(lon: float, lat: float) -> tuple[Any, ...]:
        found = told(lon, lat)
        try:
            example.cell(_number(lon), _number(lat))
        except Exception:
            return (gr.skip(), gr.skip(), *found)
        where = (_number(lon), _number(lat))
        return (where, pinned(where), *found)

    def arrive(where: tuple[float, float]) -> tuple[Any, ...]:
        lon, lat = where
        found = told(lon, lat)
        return (round(lon, 4), round(lat, 4), pinned(where), *found)

    @guarded(1)
    def explain(lon: float, lat: float) -> str:
        return why_html(page.engine.explain(_number(lon), _number(lat)))

    click.__annotations__["event"] = gr.EventData  # Gradio finds the event by its type
    card_of = {"fn": plant, "inputs": [longitude, latitude, climate], "outputs": card}
    view.click(click, None, [longitude, latitude, page.place, report, command, why], **quiet).then(**card_of, **quiet)
    typing = [page.place, view, report, command, why]
    go.click(typed, [longitude, latitude], typing, **quiet).then(**card_of, **quiet)
    for number in (longitude, latitude):
        number.submit(typed, [longitude, latitude], typing, **quiet).then(**card_of, **quiet)
    tab.select(arrive, page.place, [longitude, latitude, view, report, command, why], **quiet).then(**card_of, **quiet)
    climate.input(**card_of, **quiet)
    ask.click(explain, [longitude, latitude], why, api_visibility="private", **MODEL)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
