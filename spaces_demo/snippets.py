"""The command and the Python for what a screen shows, so that it can be done again without it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

__all__ = [
    "INVENTED",
    "REAL",
    "Made",
    "command_block",
    "for_areas",
    "for_export",
    "for_place",
    "for_raster",
    "for_segment",
    "for_text",
    "for_training",
]


@dataclass(frozen=True)
class Made:
    """Where the study of an example lies on the reader's own machine, and the command that puts it there.

    Attributes:
        study: Study file.
        output: Folder of its model and maps.
        before: Command to give first; empty where the study lies in the repository.
    """

    study: str
    output: str
    before: str = ""

    def block(self, command: str, python: str) -> str:
        """A command on the study, and its Python."""
        return command_block(f"{self.before}\n{command}".lstrip(), python)


REAL = Made("studies/us_double_crop_soybean.yaml", "out/us")
INVENTED = Made("out/demo/landscape/study.yaml", "out/demo", "agriclip demo --output out/demo")


def command_block(command: str, python: str) -> str:
    """Both as Markdown, fenced so that nothing in them is taken for markup."""
    return f"**Command**\n\n```bash\n{_fenced(command)}\n```\n\n**Python**\n\n```python\n{_fenced(python)}\n```"


def _fenced(text: str) -> str:
    return text.replace("```", "'''")


def for_areas(key: str, threshold: float, made: Made = REAL) -> str:
    """Maps of a scenario, and its areas at a threshold."""
    what = "" if key == "present" else f" --scenario {shlex.quote(key)}"
    maps = f"{made.output}/maps"
    first, second = f"{maps}/present_probability.tif", f"{maps}/{key}_probability.tif"
    python = (
        "from mapping.change import change_map\n\n"
        f'summary = change_map("{first}",\n    "{second}",\n    "change.tif", threshold={threshold:g})\n'
        "print(summary.as_dict())"
    )
    if key == "present":
        python = (
            "from mapping.change import suitable_area\n\n"
            f'print(suitable_area("{first}", threshold={threshold:g}), "ha")'
        )
    return made.block(f"agriclip map {made.study} --output {made.output}{what}", python)


def for_place(longitude: float, latitude: float, made: Made = REAL) -> str:
    """The explanation and the planting window of a place."""
    python = (
        "from mapping.explanations import explain_place\nfrom processing.study import load_study\n\n"
        f'found = explain_place(load_study("{made.study}"), "{made.output}/model", "{made.output}",\n'
        f"                      {longitude:.4f}, {latitude:.4f})\n"
        'print(found["explanation"].sentence)\nprint(found["card"].sentence)'
    )
    at = f"--at={longitude:.4f},{latitude:.4f}"
    return made.block(f"agriclip explain {made.study} --output {made.output} {at}", python)


def for_text(report: str) -> str:
    """The answer to a report."""
    quoted = json.dumps(report if len(report) <= 600 else report[:600] + " ...", ensure_ascii=False)
    python = (
        "from transformers import pipeline\n\n"
        'pipe = pipeline("agriclip-suitability", model="agriclip", trust_remote_code=True)\n'
        f"print(pipe({quoted}))"
    )
    client = (
        "python -c 'from gradio_client import Client; "
        'print(Client("http://localhost:7860").predict(input("Report: "), api_name="/predict_report"))\''
    )
    return command_block(client, python)


def for_raster(name: str) -> str:
    """A raster or a table of one's own."""
    quoted = json.dumps(name)
    python = (
        "from gradio_client import Client, handle_file\n\n"
        'client = Client("http://localhost:7860")\n'
        f'print(client.predict(handle_file({quoted}), api_name="/check_file"))\n'
        f'print(client.predict(handle_file({quoted}), api_name="/predict_file"))'
    )
    return command_block("agriclip study check my_study.yaml && agriclip map my_study.yaml --output out/mine", python)


def for_segment(name: str, queries: list[str]) -> str:
    """A text asked of an image."""
    asked = " ".join(f"--query {shlex.quote(text)}" for text in queries) or '--query "soybean fields"'
    python = (
        "from mapping.scene import map_scene\n\n"
        f'maps = map_scene({json.dumps(name)}, "agriclip", {json.dumps(queries, ensure_ascii=False)}, "out/segment")\n'
        "print(maps.as_dict())"
    )
    return command_block(f"agriclip segment {shlex.quote(name)} {asked} --model agriclip", python)


def for_training(made: Made = REAL) -> str:
    """The fit and its scores."""
    python = (
        "from processing.study import load_study\nfrom training.fit import fit_study\n\n"
        f'fit_study(load_study("{made.study}"), "{made.output}")'
    )
    return made.block(
        f"agriclip fit {made.study} --output {made.output}\n"
        f"agriclip evaluate suitability {made.study} -m {made.output}/model",
        python,
    )


def for_export(keys: list[str], layers: list[str], threshold: float, made: Made = REAL) -> str:
    """The maps of some climates."""
    chosen = "".join(f" --scenario {shlex.quote(key)}" for key in keys if key != "present")
    python = (
        "from gradio_client import Client\n\n"
        'client = Client("http://localhost:7860")\n'
        f'print(client.predict({json.dumps(keys)}, {json.dumps(layers)}, {threshold:g}, api_name="/export_maps"))'
    )
    return made.block(f"agriclip map {made.study} --output {made.output}{chosen}", python)
