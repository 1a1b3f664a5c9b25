"""`python -m training.release`: what it does, and what it does not do again."""

import pytest
import typer
from typer.testing import CliRunner

from training.release import __main__ as command


@pytest.fixture
def asked(monkeypatch):
    """What was asked of the trainings, each of which leaves a configuration only."""
    asked = []

    def leave(name, folder, **options):
        asked.append((name, options))
        folder.mkdir(parents=True)
        (folder / "config.json").touch()

    monkeypatch.setattr(command, "train", lambda study, tiles, output, settings, **options: leave("root", output))
    monkeypatch.setattr(
        command, "fit_study", lambda study, folder, **options: leave("ensemble", folder / "model", **options)
    )
    monkeypatch.setattr(command, "add_ensemble", lambda *folders: asked.append(("both", {})) or 2**20)
    return asked


def release(landscape, folder, *options):
    app = typer.Typer()
    app.command()(command.main)
    words = [
        "--study",
        str(landscape),
        "--data",
        str(landscape.parent),
        "--output",
        str(folder / "agriclip"),
        *options,
    ]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    return found.output


def test_members_are_fitted_two_at_a_time(asked, landscape, tmp_path):
    assert "1.0 MiB of weights" in release(landscape, tmp_path)
    ensemble = ("ensemble", {"processes": 2, "quiet": False})
    assert asked == [("root", {}), ensemble, ("both", {})]
    # What is done is not done again.
    asked.clear()
    release(landscape, tmp_path)
    assert asked == [("both", {})]


def test_or_as_many_as_are_asked_for(asked, landscape, tmp_path):
    release(landscape, tmp_path, "--processes", "5", "--quiet")
    assert ("ensemble", {"processes": 5, "quiet": True}) in asked
