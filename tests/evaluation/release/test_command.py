"""`agriclip publish` from its arguments to what it prints."""

import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from evaluation.release import clean_process
from evaluation.release.checks import Check
from evaluation.release.command import publish

from .conftest import STUDY


@pytest.fixture
def run(monkeypatch):
    """The command, with the clean process left to the tests of the folder; returns exit code and output."""
    monkeypatch.setattr(clean_process, "check_clean_process", lambda release: Check("clean process", True, "left out"))
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(publish)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return result.exit_code, result.stdout, result.exception

    return call


def test_a_dry_run_lists_exactly_what_the_upload_sends(run, fitted, hub, tmp_path):
    code, said, _ = run(
        fitted, "--repo", "ada/tiny", "--output", tmp_path / "r", "--token", "hf_writer", "--dry-run", "--json"
    )
    assert code == 0
    told = json.loads(said)
    assert told["url"] is None and told["commit"] is None and hub.repositories == {}
    assert [check["check"] for check in told["checks"]][-1] == "clean process"
    code, said, _ = run(fitted, "--repo", "ada/tiny", "--output", tmp_path / "r", "--token", "hf_writer", "--json")
    done = json.loads(said)
    assert code == 0 and done["files"] == told["files"]
    repository = hub.repositories["model:ada/tiny"]
    assert {row["path"]: row["storage"] for row in told["files"]} == repository.stored
    assert {row["path"]: row["size"] for row in told["files"]} == {
        path: len(repository.files[path]) for path in repository.stored
    }
    assert done["commit"] == repository.commits[0]["oid"] and len(repository.commits) == 1
    # A smaller release later: the dry run says what would go.
    repository.files["members/fold_11/config.json"] = b"{}"
    code, said, _ = run(
        fitted, "--repo", "ada/tiny", "--output", tmp_path / "r", "--token", "hf_writer", "--dry-run", "--json"
    )
    assert json.loads(said)["deleted"] == ["members/fold_11/config.json"]


def test_a_study_is_published_as_a_data_set(run, fitted, hub, tmp_path):
    file = tmp_path / "toy.yaml"
    file.write_text(STUDY.format(data=tmp_path))  # its data are not there
    code, said, _ = run(
        fitted, "--repo", "fields/tiny", "-o", tmp_path / "r", "--study", file, "--token", "hf_writer", "--private"
    )
    assert code == 0, said
    assert set(hub.repositories) == {"model:fields/tiny", "dataset:fields/toy-soybean"}
    assert all(repository.private for repository in hub.repositories.values())
    study = hub.repositories["dataset:fields/toy-soybean"]
    assert set(study.files) == {".gitattributes", "README.md", "study.yaml", "LICENSE"}
    card = hub.repositories["model:fields/tiny"].files["README.md"].decode()
    assert "- fields/toy-soybean" in card and "fields/tiny" in said and "Published" in said


def test_without_a_network_a_dry_run_still_tells(run, fitted, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, said, _ = run(fitted, "--repo", "ada/tiny", "--output", tmp_path / "r", "--dry-run", "--json")
    told = json.loads(said)
    assert code == 0 and told["files"] and "is not known: The Hub is not in reach" in told["unknown"]
    code, said, _ = run(fitted, "--dry-run", "--output", tmp_path / "r")
    assert code == 0 and "Nothing was uploaded. The release lies in" in said and "model.safetensors" in said


def test_mistakes_are_told_before_anything_is_made(run, fitted, hub, tmp_path):
    for arguments, told in (
        ([fitted], "Give the name of the repository: --repo owner/name"),
        ([fitted, "--repo", "a b/c"], "is no name of a repository"),
        ([fitted, "--repo", "ada/tiny"], "You are not logged in"),
        ([tmp_path / "nowhere", "--dry-run"], "does not exist"),
    ):
        code, _, error = run(*arguments, "--output", tmp_path / "r")
        assert code != 0 and told in str(error) and "\n" not in str(error)
    assert not (tmp_path / "r").exists() and hub.repositories == {}


def test_a_failed_check_stops_the_upload(run, fitted, hub, tmp_path, monkeypatch):
    bad = Check("clean process", False, "outputs differ by 0.5 in output.probabilities", "prepare the release again")
    monkeypatch.setattr(clean_process, "check_clean_process", lambda release: bad)
    code, _, error = run(fitted, "--repo", "ada/tiny", "--output", tmp_path / "r", "--token", "hf_writer")
    assert code != 0 and "not in order: outputs differ by 0.5" in str(error) and hub.repositories == {}


def test_the_command_is_light_to_import():
    import subprocess

    code = "import sys, evaluation.release.command; print({'torch', 'transformers', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
