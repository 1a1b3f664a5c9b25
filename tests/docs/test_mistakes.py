"""The sentences that the book says are printed are printed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from agriclip_cli import main
from processing.virtual_landscape import make_virtual_landscape
from tests.docs.mistakes import MISTAKES
from tests.docs.pages import DOCS, blocks

_ROW = re.compile(r"^\| ([^|]+?) \| `` (.+?) `` \|$", re.M)
STUDY, DATA = DOCS / "own_study.md", DOCS / "data.md"
TOLD = dict(_ROW.findall(STUDY.read_text(encoding="utf-8")))
TOLD_DATA = dict(_ROW.findall(DATA.read_text(encoding="utf-8")))
OF_DATA = {
    "a name": ("data", "info", "eurosat-rbg"),
    "terms": ("data", "get", "resisc45", "--quiet"),
    "a folder that was not fetched": ("data", "check", "tiles"),
}


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The practice region and the study that the page writes."""
    folder = tmp_path_factory.mktemp("region")
    make_virtual_landscape(folder / "practice", seed=3, height=24, width=32, sites=160)
    [study] = [block for block in blocks(STUDY) if block.file]
    (folder / study.file).write_text(study.text)
    return folder / "practice"


def complaint(arguments, capsys) -> str:
    """The sentence that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert stop.value.code == 2 and len(said) == 1, said
    return said[0].removeprefix("Error: ")


def agrees(told: str, said: str) -> bool:
    """Whether a sentence is as told, `...` standing for anything and the last mark for any."""
    parts = [re.escape(part) for part in told.rstrip("?.").split("...")]
    return re.fullmatch(".*".join(parts), said.rstrip("?.")) is not None


def test_every_row_is_tested():
    assert set(TOLD) == set(MISTAKES) and set(TOLD_DATA) == set(OF_DATA)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_study(name, region, tmp_path, monkeypatch, capsys):
    shutil.copytree(region, tmp_path / "practice")
    monkeypatch.chdir(tmp_path)
    MISTAKES[name].spoil()
    said = complaint(MISTAKES[name].command, capsys)
    assert agrees(TOLD[name], said), said
    assert not Path("out").exists() or not any(path.is_file() for path in Path("out").rglob("*"))


@pytest.mark.parametrize("name", OF_DATA)
def test_a_mistake_with_public_data(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tiles").mkdir()
    said = complaint(OF_DATA[name], capsys)
    assert agrees(TOLD_DATA[name], said), said


def test_agreement_is_of_the_whole_sentence():
    assert agrees("'.../a.tif' is bad.", "'/x/y/a.tif' is bad.") and agrees("did you mean 'a'?", "did you mean 'a'?.")
    assert not agrees("'a.tif' is bad.", "'a.tif' is very bad.") and not agrees("is bad.", "'a.tif' is bad.")
