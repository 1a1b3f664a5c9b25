"""The served page through gradio_client: every endpoint, hostile callers, a hundred at once."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spaces_demo.command import demo_space
from spaces_demo.sessions import root_folder

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'agriclip[demo]'")
from gradio_client import Client, handle_file  # noqa: E402


@pytest.fixture(scope="module")
def client(served):
    return Client(served[0], verbose=False)


def test_every_endpoint_is_named_and_described(served, client):
    told = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name.lstrip("/") for name in told} == set(served[1].endpoints)
    undescribed = [name for name, end in told.items() if len(end.get("description") or "") < 40]
    assert undescribed == []


def test_maps_without_the_model(client, example):
    climates = client.predict(api_name="/list_climates")
    assert [c["key"] for c in climates["climates"]] == list(example.climates)
    point = client.predict(-86.2, 37.1, api_name="/point_report")
    assert point["sentence"] == example.point(-86.2, 37.1)["sentence"]
    card = client.predict(-86.2, 36.1, "present", api_name="/planting_window")
    assert card["scenario"] == "Present climate"
    rows = client.predict("ssp585_2080", 0.4, api_name="/areas")
    assert sum(row["class"] == "gain" for row in rows) == 1
    json.dumps([climates, point, card, rows], allow_nan=False)


def test_the_model(client, engine):
    found = client.predict(-86.2, 37.1, 0, 0, 0, 0, api_name="/what_if")
    assert found["probability"] == pytest.approx(found["today"], abs=1e-6) and len(found["curve"]) == 21
    warmer = client.predict(-86.2, 37.1, 6, 0, 0, 0, api_name="/what_if")
    assert warmer["probability"] != pytest.approx(found["probability"], abs=1e-7)
    numbers = client.predict("Rain 15.75 in.", api_name="/read_report")
    assert numbers == [["15.75 in", "15.75", "in", "400 mm"]]
    answer = client.predict("Rain 15.75 in.", api_name="/predict_report")
    assert answer["probability"] == pytest.approx(engine.ask_texts(["Rain 400 mm."])[0].probability, abs=1e-5)
    why = client.predict(-86.2, 37.1, api_name="/explain_place")
    assert why["contributions"] and "probability of suitability" in why["sentence"]


def test_files(client, raster, tmp_path):
    told = client.predict(handle_file(raster), api_name="/check_file")
    assert told["usable"] and told["kind"] == "predictors"
    sentence, files = client.predict(handle_file(raster), api_name="/predict_file")
    assert "report alone" in sentence["sentence"] and len(files) == 5 and all(Path(f).is_file() for f in files)
    archive = client.predict(["present"], ["probability"], 0.5, api_name="/export_maps")
    assert Path(archive).stat().st_size > 500
    with pytest.raises(Exception, match="holds no|by a text|does not fit|Bands|bands"):
        client.predict(handle_file(raster), "soybean", api_name="/segment_image")


@pytest.mark.parametrize(
    ("endpoint", "given", "words"),
    [
        ("/point_report", (999.0, 0.0), "is no place"),
        ("/point_report", (0.0, 0.0), "outside the map"),
        ("/areas", ("../../etc/passwd", 0.5), "no climate"),
        ("/areas", ("present", 7.0), "threshold"),
        ("/what_if", (-86.2, 37.1, 99, 0, 0, 0), "goes from"),
        ("/predict_report", ("rain " * 20_000,), "20,000 words"),
        ("/read_report", ("",), "no text"),
        ("/export_maps", ([], [], 0.5), "Nothing was chosen"),
        ("/check_file", (None,), "no file yet"),
    ],
)
def test_mistakes_reach_the_caller_as_a_sentence(client, endpoint, given, words):
    with pytest.raises(Exception, match=words):
        client.predict(*given, api_name=endpoint)


def test_no_file_of_the_server_can_be_named(served, raster):
    """Asked without the client, which would upload a file of the caller's own under that name."""
    import httpx

    for path in ("/etc/passwd", str(raster), f"{root_folder()}/../../etc/passwd"):
        given = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
        begun = httpx.post(f"{served[0]}gradio_api/call/check_file", json=given, timeout=60).json()
        told = httpx.get(f"{served[0]}gradio_api/call/check_file/{begun['event_id']}", timeout=60).text
        assert "event: error" in told and "usable" not in told and "root:" not in told


def test_no_file_of_another_visitor_is_served(served, client, raster):
    import httpx

    client.predict(handle_file(raster), api_name="/predict_file")
    for secret in (*root_folder().rglob("*.tif"), Path("/etc/passwd"), Path(__file__)):
        answer = httpx.get(f"{served[0]}gradio_api/file={secret}", timeout=60)
        assert answer.status_code in (403, 404), secret


def test_a_hundred_at_once(served, client):
    """All are answered, or told in a sentence to come back; the page stays up."""

    def ask(number):
        try:
            return client.predict(f"Rain {400 + number} mm.", api_name="/predict_report")["probability"]
        except Exception as error:
            return str(error)

    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(ask, range(100)))
    answered = [one for one in found if isinstance(one, float)]
    refused = {one for one in found if not isinstance(one, float)}
    assert len(answered) >= 40 and all("queue" in one.lower() for one in refused), refused
    assert client.predict("Rain 400 mm.", api_name="/predict_report")["probability"] == pytest.approx(
        found[0], abs=1e-5
    )


def test_the_command_opens_the_page(monkeypatch, capsys):
    import gradio

    from agriclip_cli import main
    from spaces_demo.engine import Engine

    answers = []

    def ask(demo):
        answers.append(Client(demo.local_url, verbose=False).predict(api_name="/list_climates"))
        demo.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", ask)
    monkeypatch.setattr(Engine, "warm", lambda engine: None)
    with pytest.raises(SystemExit) as ended:
        main(["demo-space"])
    assert not ended.value.code and "Open http://" in capsys.readouterr().out
    assert answers[0]["climates"][0]["key"] == "present"


def test_what_the_readme_asks_is_answered(served, capsys):
    import spaces_demo
    from tests.docs.pages import blocks

    [block] = [b for b in blocks(Path(spaces_demo.__file__).parent / "README.md") if b.language == "python"]
    exec(compile(block.text.replace("http://localhost:7860", served[0]), str(block), "exec"), {})
    told = capsys.readouterr().out
    assert "Today this land is" in told and "'probability': 0." in told


def test_command_says_what_is_missing(tmp_path):
    from processing.errors import AgriClipError

    with pytest.raises(AgriClipError, match="There is no model"):
        demo_space(model=tmp_path)


def test_front_matter_and_requirements():
    import yaml

    import spaces_demo

    folder = Path(spaces_demo.__file__).parent
    matter = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert matter["sdk"] == "gradio" and matter["license"] == "apache-2.0" and (folder / matter["app_file"]).is_file()
    assert len(matter["short_description"]) <= 60
    needed = (folder / "requirements.txt").read_text()
    assert "\ntorchvision" not in needed and "gradio" in needed and "torch>=" in needed
    assert (folder / "static" / "leaflet" / "LICENSE").is_file()


def test_a_bundle_is_a_whole_space(tmp_path, study_output, monkeypatch):
    """Run from its own folder it finds its packages, its example and its models there, and opens without torch."""
    import subprocess
    import sys

    from processing.errors import AgriClipError
    from spaces_demo import bundle as bundling
    from spaces_demo.virtual import FOLDER, MODEL

    monkeypatch.setattr(bundling, "default_example", lambda: FOLDER)
    monkeypatch.delenv("AGRICLIP_MODEL", raising=False)
    folder = bundling.bundle(tmp_path / "space", study_output / "model")
    assert {"app.py", "README.md", "requirements.txt", "LICENSE", "agriclip"} <= {p.name for p in folder.iterdir()}
    shipped, copied = FOLDER / MODEL, folder / "spaces_demo" / "virtual" / MODEL
    weights = [file.relative_to(shipped) for file in sorted(shipped.rglob("*.safetensors"))]
    assert weights and all((copied / file).read_bytes() == (shipped / file).read_bytes() for file in weights)
    assert not (folder / "spaces_demo" / "example").exists()
    code = (
        "import app, spaces_demo, mapping.change, sys; demo = app.build_app(); engine = demo.page.engine; "
        "print(spaces_demo.__file__, mapping.change.__file__, engine.model_dir, engine.segment_dir, "
        "demo.page.example.folder, 'torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300, check=True
    )
    *found, torch_is_there = run.stdout.split()
    assert all(place.startswith(str(folder)) for place in found) and torch_is_there == "False"
    assert found[2:4] == [str(copied), str(folder / "agriclip")]
    with pytest.raises(AgriClipError, match="not empty"):
        bundling.bundle(folder)


def test_the_page_says_that_its_landscape_is_invented(served):
    from spaces_demo.app import build_app
    from spaces_demo.virtual import FOLDER

    def words(demo):
        return " ".join(str(block.value) for block in demo.blocks.values() if hasattr(block, "value"))

    invented = build_app(FOLDER)
    assert "This landscape is invented" in words(invented) and "invented" in invented.title
    assert "This landscape is invented" not in words(served[1]) and "invented" not in served[1].title
