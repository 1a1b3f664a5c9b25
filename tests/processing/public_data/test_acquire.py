"""From a name to data: the terms, the network, a Hub, a folder, the command line."""

import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
import typer
from typer.testing import CliRunner

from processing.errors import AgriClipError
from processing.public_data import acquire as module
from processing.public_data.acquire import acquire, check_folder, require_whole
from processing.public_data.command import data_app
from processing.public_data.download import LOCK
from processing.public_data.registry import HubDataset, Licence, Prepared, RemoteFile, get_source


def tif(value):
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", count=3, height=4, width=4, dtype="uint8") as out:
            out.write(np.full((3, 4, 4), value, dtype=np.uint8))
        return memory.read()


def zipped(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def scenes(site, make_source):
    """A source of two classes in an archive, with a list beside it."""
    site.files["scenes.zip"] = zipped({"all/forest/a.tif": tif(1), "all/river/b.tif": tif(2)})
    site.files["train.txt"] = b"a.tif\nb.tif\n"
    return make_source(
        files=(
            site.file("scenes.zip", unpack=True),
            site.file("train.txt"),
            site.file("more.zip", unpack=True, default=False),
        ),
        loader="class_folders",
        options={"sensor": "rgb", "inside": "all", "splits": {"train": "train.txt"}},
    )


def test_fetched_unpacked_converted_and_checked(scenes, site, tmp_path):
    steps = []
    result = acquire(scenes, tmp_path / "d", step=steps.append)
    assert (result.rows, result.tiles) == (2, tmp_path / "d" / "tiles")
    assert [f.verified for f in result.files] == ["first download"] * 2
    assert any("Unpacking" in step for step in steps) and json.dumps(result.as_dict())
    from training.tile_dataset import load_tiles

    assert load_tiles(result.tiles, split="train")["label"] == [0, 1]
    require_whole(tmp_path / "d", check_folder(tmp_path / "d"))
    site.seen.clear()
    assert acquire(scenes, tmp_path / "d").rows == 2 and site.seen == []  # nothing is fetched twice


def test_check_finds_what_is_spoilt(scenes, tmp_path):
    acquire(scenes, tmp_path)
    (tmp_path / "source" / "files" / "train.txt").write_bytes(b"b.tif\na.tif\n")
    (tmp_path / "source" / "files" / "scenes.zip").unlink()
    (tmp_path / "tiles" / "images" / "river" / "b.tif").unlink()
    problems = {row["path"]: row["problem"] for row in check_folder(tmp_path) if row["problem"]}
    assert problems == {
        "source/files/scenes.zip": "is missing",
        "source/files/train.txt": "has another checksum",
        "tiles/metadata.jsonl": "names 1 files that are missing (images/river/b.tif)",
    }
    with pytest.raises(AgriClipError, match=r"scenes.zip is missing; .* \(2 more\)") as caught:
        require_whole(tmp_path, check_folder(tmp_path))
    assert len(caught.value.problems) == 3
    with pytest.raises(AgriClipError, match="has no agriclip-data.json"):
        check_folder(tmp_path / "source")


def test_terms_are_accepted_before_anything_is_fetched(scenes, site, tmp_path):
    for terms in (
        Licence(name="CC-BY-NC-4.0", train="no", redistribute="yes", non_commercial=True),
        Licence(name=None, train="unclear", redistribute="unclear"),
    ):
        source = scenes.model_copy(update={"licence": terms})
        with pytest.raises(AgriClipError, match="if you accept these terms give --accept-licence"):
            acquire(source, tmp_path / "d")
        assert site.seen == [] and not (tmp_path / "d").exists()
    acquire(source, tmp_path / "d", accept_licence=True)
    assert json.loads((tmp_path / "d" / LOCK).read_text())["licence_accepted"]


def test_only_some_files(scenes, site, tmp_path):
    site.files["more.zip"] = zipped({"x.txt": b"1"})
    result = acquire(scenes, tmp_path, only=["more"], convert=False)
    assert [f.path.name for f in result.files] == ["more.zip"]
    assert (tmp_path / "source" / "unpacked" / "more" / "x.txt").read_bytes() == b"1"
    with pytest.raises(AgriClipError, match="No file of 'toy' matches mroe; did you mean 'more.zip'"):
        acquire(scenes, tmp_path, only=["mroe"])


def test_one_folder_one_source_and_no_room(scenes, site, tmp_path):
    acquire(scenes, tmp_path, convert=False)
    with pytest.raises(AgriClipError, match="holds 'toy' already"):
        acquire(scenes.model_copy(update={"name": "other"}), tmp_path)
    with pytest.raises(AgriClipError, match="needs 5,000 bytes, but only 100 are free"):
        acquire(scenes.model_copy(update={"size_about": 5000}), tmp_path / "x", disk_usage=lambda _: (0, 0, 100))


def test_what_has_no_address_says_where_to_go(make_source, tmp_path):
    with pytest.raises(AgriClipError, match="not handed out as files: served by a catalogue; see https://example.org"):
        acquire(make_source(note="served by a catalogue."), tmp_path)
    source = make_source(files=(RemoteFile(path="a", url=None), RemoteFile(path="b", url="https://example.org/b")))
    with pytest.raises(AgriClipError, match="a of 'toy' has no address"):
        acquire(source, tmp_path)


def test_downloads_in_a_local_folder_are_verified_and_linked(scenes, site, tmp_path):
    local = tmp_path / "mine" / "deep"
    local.mkdir(parents=True)
    for name in ("scenes.zip", "train.txt"):
        (local / name).write_bytes(site.files[name])
    result = acquire(scenes, tmp_path / "d", local=tmp_path / "mine")
    assert result.rows == 2 and site.seen == []
    assert (tmp_path / "d" / "source" / "files" / "train.txt").samefile(local / "train.txt")
    known = scenes.files[0].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(AgriClipError, match="SHA-256"):
        acquire(scenes.model_copy(update={"files": (known, *scenes.files[1:])}), tmp_path / "e", local=local)
    assert not (tmp_path / "e" / "source" / "files" / "scenes.zip").exists() and (local / "scenes.zip").exists()
    (local / "train.txt").unlink()
    with pytest.raises(AgriClipError, match="train.txt of 'toy' is not in"):
        acquire(scenes, tmp_path / "f", local=local)
    with pytest.raises(AgriClipError, match="does not exist"):
        acquire(scenes, tmp_path / "f", local=tmp_path / "nowhere")


def test_a_folder_unpacked_by_hand_is_read_where_it_lies(make_source, tmp_path):
    source = make_source(
        files=(RemoteFile(path="x.zip", url=None),), loader="class_folders", options={"sensor": "rgb"}
    )
    for name, value in (("forest/a.tif", 1), ("river/b.tif", 2)):
        (tmp_path / "mine" / name).parent.mkdir(parents=True)
        (tmp_path / "mine" / name).write_bytes(tif(value))
    assert acquire(source, tmp_path / "d", local=tmp_path / "mine").rows == 2
    with pytest.raises(AgriClipError, match="None of the files of 'toy'"):
        acquire(source.model_copy(update={"loader": None}), tmp_path / "e", local=tmp_path / "mine")


def test_a_prepared_form_is_found_by_its_folder(make_source, tmp_path):
    form = Prepared(folder="counties", files=("*.csv",), study={"labels": {"table": "a.csv", "id": "GEOID"}})
    source = make_source(loader="study", study={"labels": {"table": "raw.csv"}}, prepared=(form,))
    (tmp_path / "all" / "counties").mkdir(parents=True)
    (tmp_path / "all" / "counties" / "a.csv").write_text("GEOID\n1\n")
    for i, local in enumerate((tmp_path / "all", tmp_path / "all" / "counties")):
        result = acquire(source, tmp_path / f"d{i}", local=local)
        assert result.study["labels"] == {"table": "counties/a.csv", "id": "GEOID"}
        assert (Path(result.study["data"]) / result.study["labels"]["table"]).read_text() == "GEOID\n1\n"
        assert [row["problem"] for row in check_folder(tmp_path / f"d{i}")] == [""]


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one data set, `o/r`, served by HTTP."""
    files: dict[str, bytes] = {}
    sha = "a" * 40

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path, headers, content = self.path.split("?")[0], {}, None
            if path.startswith("/api/datasets/o/r/revision/"):
                content = json.dumps({"id": "o/r", "sha": sha, "siblings": [{"rfilename": f} for f in files]}).encode()
            elif path.startswith("/api/datasets/o/r/tree/"):
                entries = [{"type": "file", "path": f, "size": len(c), "oid": "0" * 40} for f, c in files.items()]
                content = json.dumps(entries).encode()
            elif path.startswith(f"/datasets/o/r/resolve/{sha}/"):
                content = files.get(path.split(f"{sha}/")[1])
                headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content or b"").hexdigest()}"'}
            self.send_response(200 if content is not None else 404)
            if content is None:
                headers = {"X-Error-Code": "RepoNotFound"}
            for name, value in (headers | {"Content-Length": str(len(content or b""))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET" and content:
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield files
    server.shutdown()
    server.server_close()


def test_a_data_set_of_the_hub(hub, make_source, tmp_path):
    hub["chips.zip"] = zipped({"forest/a.tif": tif(1), "river/b.tif": tif(2)})
    hub["README.md"] = b"no data"
    source = make_source(
        hub=HubDataset(repo="o/r", files=("*.zip",), unpack=("*.zip",)),
        loader="class_folders",
        options={"sensor": "rgb", "ending": ".tif"},
    )
    result = acquire(source, tmp_path / "d")
    assert result.rows == 2
    assert [f.path.relative_to(tmp_path / "d").as_posix() for f in result.files] == ["source/files/chips.zip"]
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "chips.zip").write_bytes(hub["chips.zip"])
    assert acquire(source, tmp_path / "e", local=tmp_path / "snapshot").rows == 2
    with pytest.raises(AgriClipError, match="The Hub has no data set 'o/none'"):
        acquire(source.model_copy(update={"hub": HubDataset(repo="o/none")}), tmp_path / "f")
    with pytest.raises(AgriClipError, match="has no file like"):
        acquire(source, tmp_path / "g", only=["*.parquet"])


def test_archives_that_cannot_be_unpacked_are_told_first(site, make_source, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    with pytest.raises(AgriClipError, match="Zstandard"):
        acquire(make_source(files=(site.file("x.tar.zst", unpack=True),)), tmp_path)
    assert site.seen == []


def test_every_source_can_be_asked_for(tmp_path):
    """Without a network: a source that has no address says so, in one sentence, and leaves no data."""
    for name in ("cil-gdpcir", "isimip3b", "seifert-lobell", "mato-grosso-modis", "lant", "rsicap", "gf1-wfv", "aid"):
        with pytest.raises(AgriClipError, match="--from"):
            acquire(get_source(name), tmp_path / name, accept_licence=True)


app = typer.Typer()
app.add_typer(data_app, name="data")


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_the_commands_list_info_cite():
    assert "eurosat-ms-spatial" in run("list").output
    listed = json.loads(run("list", "--json", "--task", "captions").output)
    assert {source["name"] for source in listed} == {"farmseg-vl", "rsicap", "rsieval", "rsicd", "rsitmd"}
    assert "did you mean 'captions'" in str(run("list", "--task", "caption").exception)
    told = run("info", "cdl").output
    assert "public domain" in told and "and 0 more" not in told
    assert json.loads(run("info", "cdl", "--json").output)["files"][1]["md5"] == "8c7685d6278d50c554f934b16a6076b7"
    assert "@misc{fick2017worldclim," in run("cite", "worldclim").output
    assert json.loads(run("cite", "worldclim", "--json").output)["doi"] == "10.1002/joc.5086"
    assert "did you mean 'worldclim'" in str(run("info", "worldclin").exception)


def test_the_commands_get_and_check(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("processing.public_data.registry.load_registry", lambda: {"toy": scenes})
    result = run("get", "toy", "--output", tmp_path / "d")
    assert result.exit_code == 0, result.output
    assert "(2)" in result.output and "Doe, Jane" in result.output
    document = json.loads(run("get", "toy", "--output", tmp_path / "d", "--json").stdout)
    assert document["rows"] == 2 and len(document["files"]) == 2
    assert "is whole: 3 files" in run("check", tmp_path / "d").output
    assert json.loads(run("check", tmp_path / "d", "--json").output)["problems"] == []
    (tmp_path / "d" / "source" / "files" / "train.txt").unlink()
    assert "train.txt is missing" in str(run("check", tmp_path / "d").exception)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["us-double-crop-counties", "isimip-bioclim", "ftw-crop-calendar"])
def test_prepared_study_data(name, tmp_path, real_data):
    block = acquire(get_source(name), tmp_path, local=real_data).study
    from processing.public_data.converters_study import snippet
    from processing.study import load_study

    text = "name: toy\ngrid: {bounds: [-100, 30, -80, 45], crs: 'EPSG:4326', resolution: 0.5}\n" + snippet(block)
    if "predictors" not in block:
        other = acquire(get_source("ftw-crop-calendar"), tmp_path / "more", local=real_data).study
        for group in other["predictors"]:
            group["file"] = str(Path(other["data"]) / group["file"])
        text += snippet({"predictors": other["predictors"]})
    (tmp_path / "study.yaml").write_text(text)
    assert len(load_study(tmp_path / "study.yaml").variables) in (4, 19)


@pytest.mark.realdata
def test_prepared_sentinel_examples(tmp_path, real_data):
    from training.tile_dataset import load_tiles

    result = acquire(get_source("terramind-examples"), tmp_path, local=real_data)
    table = load_tiles(result.tiles)
    assert len(table) == 5 and set(table["sensor"]) == {"sentinel2_l2a"}
