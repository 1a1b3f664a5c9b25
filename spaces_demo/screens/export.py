"""Screen 7: maps to take home, as a zip of cloud-optimised GeoTIFFs, QGIS styles, a CSV of areas and a manifest."""

from __future__ import annotations

from typing import Any

from spaces_demo import snippets
from spaces_demo.downloads import EXPORTS, export_zip
from spaces_demo.example import PRESENT
from spaces_demo.page import Page, message, said, snippet

__all__ = ["build"]


def build(page: Page) -> None:
    """Lay the screen out."""
    import gradio as gr

    example = page.example
    choices = [(climate.title, key) for key, climate in example.climates.items()]
    parts = {key for climate in example.climates.values() for key in climate.members}
    whole = [key for key in example.climates if key not in parts]  # a mean in place of its climate models
    layers = {
        "Probability": "probability",
        "Uncertainty": "std",
        "Novelty": "mess",
        "Change against today": "change",
    }
    assert set(layers.values()) == set(EXPORTS)
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            climates = gr.Dropdown(choices, value=whole, multiselect=True, label="Climates", elem_id="export-climates")
            kinds = gr.CheckboxGroup(
                list(layers.items()), value=["probability", "change"], label="Layers", elem_id="export-layers"
            )
            threshold = gr.Slider(
                0.05, 0.95, value=example.threshold, step=0.05, label="Called suitable from this probability"
            )
            go = gr.Button("Make the zip", variant="primary", elem_id="export-go")
        with gr.Column(scale=3, min_width=300):
            gr.Markdown(
                "Each map is a cloud-optimised GeoTIFF with its unit, climate and model in the tags. The `.qml` "
                "beside it is its style: QGIS loads it by itself. `areas.csv` holds hectares, km² and acres of every "
                "class, `manifest.json` the hash of every file."
            )
            told = gr.HTML(elem_id="export-told", apply_default_css=False)
            file = gr.File(label="Download", visible=False, elem_id="export-file")
    command = snippet(snippets.for_export([PRESENT], ["probability"], example.threshold, page.made))

    def make(keys: list[str], chosen: list[str], at: float, session: Any) -> tuple[str, Any, Any]:
        try:
            path = export_zip(example, keys, chosen, float(at), session.fresh("export"))
            size = path.stat().st_size / 1024
            done = message(f"{path.name} holds {len(keys)} climates, {size:,.0f} kB.", "ok")
            command_for = snippets.for_export(keys, chosen, float(at), page.made)
            return done, gr.update(value=str(path), visible=True), command_for
        except Exception as error:
            return message(said(error)), gr.update(value=None, visible=False), gr.skip()

    go.click(
        make, [climates, kinds, threshold, page.session], [told, file, command],
        api_visibility="private", show_progress="minimal", concurrency_limit=2,
    )  # fmt: skip
