"""Screen 3: what if it were warmer, wetter or drier here? Sliders, the answer, and the curve over one of them."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from spaces_demo import snippets
from spaces_demo.example import percent
from spaces_demo.page import MODEL, Page, guarded, snippet
from spaces_demo.pictures import curve_svg
from spaces_demo.whatif import CURVES, SLIDERS, Changes, change_predictors, out_of_range, sweep

__all__ = ["answer", "answer_html", "build"]


def answer(page: Page, longitude: float, latitude: float, changes: Changes, over: str) -> dict[str, Any]:
    """Ask the model about a changed place, and along one slider.

    Returns:
        `probability`, `std`, `without_image`, `today`, `curve` (list of slider, with image, report alone, std),
        `outside` (variables out of
        the range of the labelled sites), `beyond` (which points of the curve leave that range farther) and `report`.
    """
    variables = page.example.variables
    values = page.engine.place_values(longitude, latitude)
    changed = change_predictors(values, variables, changes)
    steps, table = sweep(values, variables, changes, over)
    already = len(out_of_range(values, variables))
    # One call for the place as it is, as it is changed, and along the slider.
    found = page.engine.predict_place(longitude, latitude, np.concatenate([values[None], changed[None], table]))
    return {
        "today": float(found.probability[0]),
        "probability": float(found.probability[1]),
        "std": float(found.std[1]),
        "without_image": float(found.without_image[1]),
        "curve": [
            (float(s), float(p), float(w), float(d))
            for s, p, w, d in zip(steps, found.probability[2:], found.without_image[2:], found.std[2:], strict=True)
        ],
        "outside": out_of_range(changed, variables),
        "beyond": [len(out_of_range(row, variables)) > already for row in table],
        "report": page.engine.report_of(changed),
    }


def answer_html(found: dict[str, Any], over: str, at: float) -> str:
    """The answer and its curve."""
    move = 100 * (found["probability"] - found["today"])
    steps, chance, alone, spread = (np.array(column) for column in zip(*found["curve"], strict=True))
    title, unit, *_ = SLIDERS[over]
    chart = curve_svg(
        list(steps),
        [("with the image of today", list(chance), "#0b4f6c"), ("from the report alone", list(alone), "#c8553d")],
        at,
        f"{title} ({unit})",
        (np.clip(chance - spread, 0, 1), np.clip(chance + spread, 0, 1)),
        found["beyond"],
    )
    beyond = ""
    if found["outside"]:
        beyond = (
            '<div class="ac-message ac-note">Beyond what the model was fitted on: '
            f"{escape('; '.join(found['outside'][:3]))}"
            f"{' and more' if len(found['outside']) > 3 else ''}. Read the answer as a guess.</div>"
        )
    return (
        f'<div class="ac-report"><div class="ac-figure"><span>{percent(found["probability"])}</span><small>today '
        f"{percent(found['today'])}, {move:+.0f} points; members ± {100 * found['std']:.0f}; report alone "
        f"{percent(found['without_image'])}</small></div>{chart}{beyond}"
        f"<details><summary>The report that the model reads</summary><p>{escape(found['report'])}</p></details></div>"
    )


def build(page: Page, tab: Any) -> None:
    """Lay the screen out."""
    import gradio as gr

    start = page.start
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            gr.Markdown("Move a slider: every number of the place's report that depends on it moves along.")
            with gr.Row():
                longitude = gr.Number(start[0], label="Longitude", precision=4, elem_id="whatif-lon", min_width=100)
                latitude = gr.Number(start[1], label="Latitude", precision=4, elem_id="whatif-lat", min_width=100)
            sliders = [
                gr.Slider(low, high, value=0, step=step, label=f"{title} ({unit})", elem_id=f"whatif-{name}")
                for name, (title, unit, low, high, step) in SLIDERS.items()
            ]
            over = gr.Dropdown(list(CURVES), value=list(CURVES)[0], label="Curve over")
            back = gr.Button("Back to today", elem_id="whatif-back")
        with gr.Column(scale=4, min_width=320):
            shown = gr.HTML(
                '<div class="ac-hint">The model is asked when you come here.</div>',
                elem_id="whatif-answer",
                apply_default_css=False,
            )
    command = snippet(snippets.for_place(*start, page.made))

    @guarded(2)
    def ask(lon: Any, lat: Any, warming: float, winter: float, rain: float, summer: float, title: str) -> Any:
        lon, lat = (float("nan") if v is None else float(v) for v in (lon, lat))
        changes = Changes(warming, winter, rain, summer)
        name = CURVES.get(title, "warming")
        found = answer(page, lon, lat, changes, name)
        return answer_html(found, name, getattr(changes, name)), snippets.for_place(lon, lat, page.made)

    inputs, outputs = [longitude, latitude, *sliders, over], [shown, command]
    quiet = {"api_visibility": "private", "show_progress": "hidden", **MODEL}
    gr.on(
        [*(slider.release for slider in sliders), over.input, longitude.submit, latitude.submit],
        ask, inputs, outputs, trigger_mode="always_last", **quiet,
    )  # fmt: skip
    light = {"api_visibility": "private", "show_progress": "hidden"}
    tab.select(
        lambda where: (round(where[0], 4), round(where[1], 4)), page.place, [longitude, latitude], **light
    ).then(ask, inputs, outputs, api_visibility="private", **MODEL)
    back.click(lambda: [0, 0, 0, 0], None, sliders, **light).then(ask, inputs, outputs, **quiet)
