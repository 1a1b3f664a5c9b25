"""What the book asks a reader to run is run, as written, page after page in one workspace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, README, ROOT, blocks

# Page -> page whose work it goes on with.
ORDER = {"own_study.md": None, "lora.md": None, "data.md": "lora.md", "publish.md": "own_study.md"}
MADE = {
    "own_study.md": (
        "out/mystudy/report.html",
        "out/mystudy/maps/warm_probability.tif",
        "out/mystudy/pictures/responses.png",
        "out/mystudy/evaluation/results.json",
    ),
    "lora.md": (
        "out/fields/adapter/adapter_model.safetensors",
        "out/fields/model/model.safetensors",
        "out/fields/map/classes.tif",
    ),
    "data.md": ("captions/metadata.jsonl",),
    "publish.md": ("out/mystudy/release/README.md",),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


def test_every_page_with_something_to_run_is_run():
    assert {page.name for page in DOCS.rglob("*.md") if any(block.runs for block in blocks(page))} == set(ORDER)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ORDER)
def test_a_page_runs_as_written(name, workspace, monkeypatch):
    before = ORDER[name]
    if before and not all((workspace / made).exists() for made in MADE[before]):
        pytest.skip(f"it goes on with {before}, which has not run")
    monkeypatch.chdir(workspace)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(DOCS / name):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
        elif block.runs and block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)
        elif block.runs:
            done = subprocess.run(
                ["bash", "-e", "-c", block.text], env=environment, capture_output=True, text=True, timeout=1800
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    missing = [made for made in MADE[name] if not (workspace / made).exists()]
    assert not missing, sorted(str(path.relative_to(workspace)) for path in workspace.rglob("*.*"))


FIRST = [
    block for page in (README, DOCS / "quickstart.md") for block in blocks(page) if "out/demo/model" in block.text
]


@pytest.mark.parametrize("block", [block for block in FIRST if block.language == "python"], ids=str)
def test_a_first_answer_runs_on_a_tiny_model(block, tmp_path, monkeypatch, capsys):
    import torch

    from modeling_agriclip import AgriClipConfig, AgriClipForSuitability
    from processing import AgriClipImageProcessor, AgriClipProcessor
    from processing.tokenizer import build_tokenizer

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    processor = AgriClipProcessor(AgriClipImageProcessor(), build_tokenizer(vocab_size=900))
    model = AgriClipForSuitability(AgriClipConfig.from_size("tiny", vocab_size=len(processor.tokenizer)))
    model.save_pretrained("out/demo/model")
    processor.save_pretrained("out/demo/model")
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
    assert re.search(r"\d\.\d+", capsys.readouterr().out)
