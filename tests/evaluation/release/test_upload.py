"""Uploading, against a Hub on this machine that speaks the client's own HTTP."""

import pytest

from evaluation.release.upload import check_repo_name, logged_in, plan_upload, remote_files, upload
from processing.errors import AgriClipError


@pytest.fixture
def folder(tmp_path):
    """A release in small: text, weights, a picture, hidden results, and what must not go along."""
    root = tmp_path / "release"
    for name, content in {
        "README.md": b"---\nlicense: apache-2.0\n---\n# Card\n",
        "config.json": b"{}\n",
        "model.safetensors": bytes(range(256)) * 40,
        "members/fold_1/model.safetensors": b"\x01\x02" * 500,
        "pictures/present.png": b"\x89PNG\r\n\x1a\n\0\0\0",
        ".eval_results/toy_suitability.yaml": b"- value: 1\n",
        "empty.txt": b"",
        "__pycache__/x.pyc": b"x",
        ".DS_Store": b"x",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_the_plan_is_exactly_what_arrives(folder, hub):
    planned = plan_upload(folder)
    done = upload(folder, "ada/tiny", token="hf_writer", message="First")
    repository = hub.repositories["model:ada/tiny"]
    arrived = {path: content for path, content in repository.files.items() if path != ".gitattributes"}
    assert {file.path for file in planned} == set(arrived)
    assert {file.path: file.storage for file in planned} == repository.stored
    assert {file.path: file.size for file in planned} == {path: len(content) for path, content in arrived.items()}
    assert all((folder / path).read_bytes() == content for path, content in arrived.items())
    assert repository.stored["pictures/present.png"] == "lfs" and repository.stored["empty.txt"] == "regular"
    assert len(repository.commits) == 1 and repository.commits[0]["summary"] == "First"
    assert done.commit == repository.commits[0]["oid"] and done.url.endswith("/ada/tiny") and done.deleted == ()
    assert not repository.private


def test_a_second_release_deletes_what_is_stale_in_one_commit(folder, hub):
    upload(folder, "fields/tiny", token="hf_writer", private=True)
    repository = hub.repositories["model:fields/tiny"]
    assert repository.private
    (folder / "members/fold_1/model.safetensors").unlink()
    (folder / "config.json").write_text('{"a": 1}')
    done = upload(folder, "fields/tiny", token="hf_writer")
    assert done.deleted == ("members/fold_1/model.safetensors",)
    assert len(repository.commits) == 2 and ".gitattributes" in repository.files
    assert "members/fold_1/model.safetensors" not in repository.files
    assert repository.files["config.json"] == b'{"a": 1}'


def test_data_sets_are_repositories_of_their_own(folder, hub):
    upload(folder, "ada/study", token="hf_writer", repo_type="dataset")
    assert set(hub.repositories) == {"dataset:ada/study"}
    assert "README.md" in remote_files("ada/study", "hf_writer", "dataset")
    assert remote_files("ada/study", "hf_writer") is None


def test_who_may_not_is_told_in_a_sentence(folder, hub, monkeypatch):
    cases = [
        (None, "ada/tiny", "not logged in to the Hub; run `hf auth login`"),
        ("hf_stranger", "ada/tiny", "does not know your token|Invalid user token"),
        ("hf_writer", "bob/tiny", "logged in as ada, who may not write to 'bob'; use one of: ada, fields"),
        ("hf_reader", "ada/tiny", "Your token may not write to 'ada/tiny'"),
    ]
    for token, repo, told in cases:
        with pytest.raises(AgriClipError, match=told) as error:
            upload(folder, repo, token=token)
        assert "\n" not in str(error.value)
    assert hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert logged_in()["name"] == "ada"


def test_what_the_hub_refuses_is_told(folder, hub):
    (folder / "README.md").write_text("---\ntags: [x]\n---\n")
    with pytest.raises(AgriClipError, match="does not accept the card: .*license is missing"):
        upload(folder, "ada/tiny", token="hf_writer")
    assert hub.repositories["model:ada/tiny"].commits == []
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    hub.fail_commit = 429
    with pytest.raises(AgriClipError, match="no more requests|status 429"):
        upload(folder, "ada/tiny", token="hf_writer")


def test_no_network_is_told(folder, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for ask in (lambda: logged_in("hf_writer"), lambda: upload(folder, "ada/tiny", token="hf_writer")):
        with pytest.raises(
            AgriClipError, match="The Hub is not in reach .*; check the network, or HF_ENDPOINT"
        ) as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no slash", "tiny", "a/b/c", "ada/ti ny", "ada/tiny..x", "../etc", "-ada/tiny-", ""])
def test_names_that_the_hub_would_not_take(name, folder, hub):
    with pytest.raises(AgriClipError, match="is no name of a repository"):
        check_repo_name(name)
    assert hub.requests == []


def test_an_empty_folder_is_no_release(tmp_path):
    with pytest.raises(AgriClipError, match="nothing to upload"):
        plan_upload(tmp_path)
