"""Every command on README.md, in the book and on the Space's page is executed, or says below why it is not.

Blocks that run as a page (`test_pages_run`) are left to it. Any other command of `agriclip` runs as it is written, in
a folder where all that it names exists (`world`), unless a table below gives it another form, the test that does what
it does, or the reason why nothing does. A command that is new in a page runs, or fails here.
"""

from __future__ import annotations

import functools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import agriclip_cli
from tests.docs.commands import lines_of
from tests.docs.pages import ROOT, blocks, pages
from tests.docs.world import make_adapter, make_world, small_sources
from tests.evaluation.release.conftest import hub  # noqa: F401
from tests.processing.public_data.conftest import site  # noqa: F401

SPACE = ROOT / "spaces_demo" / "README.md"
DATA = Path(os.environ.get("AGRICLIP_DATA", ROOT.parent / "shared" / "data"))
US, SCORE = "studies/us_double_crop_soybean.yaml", "agriclip evaluate suitability STUDY"
#: Inside a sentence: commands whole enough to be typed, with a path or an option.
_INLINE = re.compile(r"(?<!`)`((?:[A-Z_]+=\S+ )?(?:agriclip|python|make) [^`]+)`(?!`)")

#: Words added to a command, or a word and what stands for it: what is left out is tested by itself, and takes minutes.
SHORTER: dict[str, tuple[str, ...] | dict[str, str]] = {
    "agriclip demo --output out/demo": ("--epochs", "1"),
    "agriclip fit STUDY --members 5 --processes 4": {"5": "2", "4": "1 --no-baselines"},
    "agriclip publish out/mystudy --repo your-name/mystudy --study practice/mystudy.yaml": {
        "your-name/mystudy": "ada/mystudy"  # who is logged in at the Hub of the tests
    },
    f"agriclip study check {US} --data /path/to/data": {"/path/to/data": str(DATA)},
    **{
        f"{SCORE} {rest}": ("--baseline", "prevalence", "--draws", "50", "--no-ablations")
        for rest in (
            "--model out/us/model --labels other_counties.csv --regions id:2",
            "--model out/us/model --holdout longitude>-90 --labels other_counties.csv",
            "--model out/us/model --scenarios other_climate_models",
        )
    },
    f"{SCORE} --model out/us/model": ("--baseline", "prevalence", "--draws", "50"),
}
#: The test that does what the command does, with fewer processes or smaller numbers.
ELSEWHERE = {
    "torchrun --nproc-per-node 8 -m agriclip_cli fit STUDY": (
        "tests/training/test_distributed.py::test_a_study_is_fitted_by_two_processes_together"
    ),
    "torchrun --nproc-per-node 4 -m agriclip_cli map STUDY": (
        "tests/mapping/test_predict.py::test_killed_shared_and_undisturbed_maps_are_equal_to_the_byte"
    ),
    "agriclip fit practice/mystudy.yaml --output out/other": (
        "tests/docs/test_mistakes.py::test_a_mistake_in_a_study"
    ),
    "agriclip demo-space": "tests/spaces_demo/test_api.py::test_the_command_opens_the_page",
    "agriclip demo-space --mcp": "tests/spaces_demo/test_mcp.py::test_the_tools_are_served_when_asked_for",
    "python spaces_demo/app.py": "tests/spaces_demo/test_mcp.py::test_the_tools_are_served_when_asked_for",
}
QUARTER = "needs the study's data and a quarter of an hour; own_study.md fits and maps a region of its own"
HOURS = "measures for minutes to hours what results.md and ablation.md tell"
#: Why no test runs it.
NEVER = {
    "pip install .[maps,train]": "installs, as the tests' own packages were installed",
    "pip install agriclip[maps,demo]": "installs from a package index",
    "agriclip fit STUDY --track tensorboard": "a package of others, which the tests' environment does not hold",
    "hf auth login": "a program of others, which asks for a secret",
    "accelerate launch --config_file training/configs/fsdp2.yaml --num_processes 8 -m agriclip_cli fit STUDY": (
        "spreads a model over eight accelerators"
    ),
    f"agriclip fit {US} --data /path/to/data --output out/us": QUARTER,
    f"agriclip map {US} --data /path/to/data --output out/us": QUARTER,
    f"agriclip map {US} --outlines us-10m.json --outline-layer states": QUARTER,
    f"agriclip evaluate suitability {US} --model MODEL": QUARTER,
    f"{SCORE} --model out/us/model --labels OTHER.csv": "runs with other_counties.csv in evaluate.md",
    "agriclip explain STUDY --at=-88.0,37.5": "runs with another place and a scenario in maps.md",
    "agriclip fit --leave-out N": "names an option only; N stands for a number",
    "python -m spaces_demo.virtual": "10 to 30 minutes; tests/spaces_demo/test_virtual.py looks at what it made",
    f"python benchmarks/ablation.py --study {US} --seeds 3 --epochs 10": HOURS,
    "python benchmarks/ablation.py --study STUDY": HOURS,
    "python benchmarks/map.py": HOURS,
    "python benchmarks/train.py": HOURS,
    "python benchmarks/ensemble_calibration.py STUDY": HOURS,
    "python -m benchmarks.released agriclip": HOURS,
    "python -m benchmarks.landsat": HOURS,
    "python -m benchmarks.landsat --folds 1 --pretrain-epochs 120 --epochs 20 --rank 2": HOURS,
}
#: What `make` would type, which runs by itself; it would install first, and `make test` would run this file again.
MAKES = {
    "demo": "bin/agriclip demo --output out/demo",
    "test": "bin/python -m pytest",
    "lint": "bin/python -m mypy",
    "format": "bin/python -m ruff format .",
    "reproduce": "bin/python -m training.release",
}


def documented() -> dict[str, list[str]]:
    """Commands outside the blocks that run as a page, in the order of the pages: as text, and as words."""
    found: dict[str, list[str]] = {}
    for page in (*pages(), SPACE):
        text = page.read_text(encoding="utf-8")
        for block in blocks(page):
            text = text.replace(block.text, "\n")
            if block.language in ("sh", "bash", "shell", "console") and not block.runs:
                found |= {" ".join(words): words for words in lines_of(block.text)}
        for inline in _INLINE.findall(text):
            [words] = lines_of(inline.replace("\n", " "))
            whole = words[0] != "agriclip" or any(word.startswith("-") or "/" in word for word in words[1:])
            if whole and "..." not in words:
                found.setdefault(" ".join(words), words)
    return found


def shortened(command: str) -> list[str]:
    """The words of a command with what `SHORTER` adds or puts in their place."""
    words, shorter = COMMANDS[command], SHORTER.get(command, ())
    if not isinstance(shorter, dict):
        return [*words, *shorter]
    return [part for word in words for part in (shorter[word].split() if word in shorter else [word])]


COMMANDS = documented()
#: The fit and its maps come first, others go on with what they made.
FIRST = {
    "agriclip fit STUDY --members 5 --processes 4": "out/us/fit.json",
    "agriclip map STUDY": "out/us/report.html",
}
RUN = [*FIRST, *(command for command in COMMANDS if command not in {*FIRST, *ELSEWHERE, *NEVER})]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture
def surroundings(world, request, monkeypatch):
    """What a command finds besides its folder: sources of data and a Hub on this machine, and a small landscape."""
    monkeypatch.chdir(world)
    command = request.getfixturevalue("command")
    # Another process may have run those before this one, in a world of its own.
    for first, made in FIRST.items():
        if first == command:
            break
        if not (world / made).exists():
            with pytest.raises(SystemExit):
                agriclip_cli.main(shortened(first)[1:])
            assert (world / made).exists()
    words = COMMANDS[command]
    if words[1:3] in (["data", "get"], ["data", "check"]):
        sources = small_sources(request.getfixturevalue("site"))
        monkeypatch.setattr("processing.public_data.registry.load_registry", lambda: sources)
    elif words[1] == "demo":
        from mapping import demo

        small = functools.partial(demo.run_demo, height=16, width=24, sites=90, baselines=False)
        monkeypatch.setattr(demo, "run_demo", small)
    elif words[1] == "publish":
        from evaluation.release import clean_process
        from evaluation.release.checks import Check

        request.getfixturevalue("hub")
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        passed = Check("clean process", True, "left out")
        monkeypatch.setattr(clean_process, "check_clean_process", lambda release: passed)
        (world / "out/mystudy").is_symlink() or (world / "out/mystudy").symlink_to(world / "out/us")
        make_adapter(world / "out/us/model", world / "out/fields/adapter")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", RUN)
def test_a_command_runs(command, surroundings, monkeypatch, capsys):
    words = shortened(command)
    if words[0] == "make":
        told = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
        assert all(MAKES[target] in told.stdout for target in words[1:])
        return
    known = words[0] == "agriclip" or words[:2] == ["python", "-m"]
    assert known, f"say above how '{command}' is executed, or why it is not"
    if str(DATA) in words and not (DATA / "us_counties").is_dir():
        pytest.skip("the study's data are not here; set AGRICLIP_DATA to their folder")
    with pytest.raises(SystemExit) as ended:
        if words[0] == "agriclip":
            agriclip_cli.main(words[1:])
        monkeypatch.setattr(sys, "argv", words[2:])
        runpy.run_module(words[2], run_name="__main__")
    told = capsys.readouterr()
    assert not ended.value.code and told.out, told.err


def test_tables_name_commands_that_are_there():
    for listed in (SHORTER, ELSEWHERE, NEVER):
        assert set(listed) <= set(COMMANDS), set(listed) - set(COMMANDS)
    assert not set(ELSEWHERE) & set(NEVER)


@pytest.mark.parametrize("test", ELSEWHERE.values())
def test_what_runs_elsewhere_is_there(test):
    file, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
