"""The endpoints as MCP tools, asked by the protocol's own client: the same answers, and nothing of the page."""

import asyncio
import base64
import json
import sys
import threading
from contextlib import asynccontextmanager

import numpy as np
import pytest

from mapping.outputs import write_cog
from processing.errors import AgriClipError
from processing.grids import Grid

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'agriclip[demo]'")
from gradio_client import Client, handle_file  # noqa: E402

# Arguments by name, the same for a tool and its endpoint.
PLACE = {"longitude": -86.2, "latitude": 37.1}
CALLS = {
    "list_climates": {},
    "point_report": PLACE,
    "planting_window": {"longitude": -86.2, "latitude": 36.1, "climate": "present"},
    "areas": {"climate": "ssp585_2080", "threshold": 0.4},
    "what_if": PLACE | {"warming": 2.0},
    "explain_place": PLACE,
    "read_report": {"report": "Rain 15.75 in."},
    "predict_report": {"report": "Rain 15.75 in."},
}


@pytest.fixture(scope="module")
def address(example_dir, study_output):
    """The page, served with its tools."""
    pytest.importorskip("mcp", reason="the tools need the package mcp: pip install 'agriclip[mcp]'")
    from spaces_demo.app import build_app, serve

    demo = build_app(example_dir, study_output / "model")
    _, where, _ = serve(demo, mcp=True, wait=False)
    yield where
    demo.close()
    for thread in threading.enumerate():
        if thread.name == "load-model":
            thread.join(timeout=60)


@asynccontextmanager
async def connected(address, transport="http"):
    from mcp import ClientSession
    from mcp.client.sse import sse_client
    from mcp.client.streamable_http import streamable_http_client

    where = f"{address}gradio_api/mcp/"
    open_streams = streamable_http_client(where) if transport == "http" else sse_client(f"{where}sse")
    async with open_streams as streams, ClientSession(streams[0], streams[1]) as session:
        await session.initialize()
        yield session


def tools_of(address, transport="http"):
    async def ask():
        async with connected(address, transport) as session:
            return (await session.list_tools()).tools

    return {tool.name: tool for tool in asyncio.run(ask())}


def call(address, calls, transport="http"):
    """Whether each call was refused, and the texts it was answered with; all are asked at once."""

    async def ask():
        async with connected(address, transport) as session:
            return await asyncio.gather(*[session.call_tool(name, given) for name, given in calls])

    return [(answer.isError, [part.text for part in answer.content]) for answer in asyncio.run(ask())]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    grid = Grid.from_bounds((600000, 5290000, 600480, 5290480), 10, "EPSG:32633")
    bands = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
    values = np.random.default_rng(0).integers(300, 3000, (len(bands), *grid.shape)).astype(np.float32)
    return write_cog(tmp_path_factory.mktemp("scene") / "s2.tif", values, grid, dtype="uint16", band_names=bands)


def content(path):
    """A file as text, which is how it goes through a conversation."""
    return "data:;base64," + base64.b64encode(path.read_bytes()).decode()


def test_the_endpoints_are_the_tools_and_nothing_else_is(address, served):
    tools = tools_of(address)
    assert set(tools) == set(served[1].endpoints)
    for name, tool in tools.items():
        assert len(tool.description) > 40 and "Returns: " in tool.description and "Args:" not in tool.description
        for parameter, schema in tool.inputSchema["properties"].items():
            assert len(schema.get("description", "")) > 10 and isinstance(schema["type"], str), (name, parameter)
    assert tools["point_report"].inputSchema["required"] == ["longitude", "latitude"]
    assert tools["areas"].inputSchema["properties"]["threshold"]["type"] == "number"
    export = tools["export_maps"].inputSchema["properties"]
    assert "ssp585_2080" in export["climates"]["items"]["enum"] and "change" in export["layers"]["items"]["enum"]


def test_schemas_are_json_schemas(address):
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    for tool in tools_of(address).values():
        validator.check_schema(tool.inputSchema)


def test_a_tool_answers_as_its_endpoint_does(address):
    client = Client(address, verbose=False)
    for (name, given), (refused, texts) in zip(CALLS.items(), call(address, list(CALLS.items())), strict=True):
        assert not refused and len(texts) == 1, (name, texts)
        assert json.loads(texts[0]) == client.predict(**given, api_name=f"/{name}"), name


def test_files_by_tool(address, raster, scene):
    import httpx

    client = Client(address, verbose=False)
    mine = {"file": content(raster)}
    seek = {"file": content(scene), "queries": "soybean fields, forest"}
    export = {"climates": ["present"], "layers": ["probability"], "threshold": 0.5}
    asked = [("check_file", mine), ("predict_file", mine), ("segment_image", seek), ("export_maps", export)]
    checked, predicted, found, exported = call(address, asked)
    told = client.predict(handle_file(raster), api_name="/check_file")
    assert json.loads(checked[1][0]) == told and told["usable"]
    for given, (_, texts), name in (
        ((handle_file(raster),), predicted, "/predict_file"),
        ((handle_file(scene), seek["queries"]), found, "/segment_image"),
    ):
        sentence, files = client.predict(*given, api_name=name)
        assert json.loads(texts[0]) == sentence and len(texts) == 1 + len(files) >= 3
    for one in (*predicted[1][1:], *found[1][1:], *exported[1]):
        assert one.startswith(address) and len(httpx.get(one, timeout=60).content) > 300, one


def test_callers_do_not_remove_each_others_files(address, raster):
    export = {"climates": ["present", "ssp585_2080"], "layers": ["probability", "change"], "threshold": 0.5}
    calls = [("export_maps", export), ("predict_file", {"file": content(raster)})] * 6
    assert [texts for refused, texts in call(address, calls) if refused] == []


def test_the_older_transport(address):
    assert set(tools_of(address, "sse")) == set(tools_of(address))
    [(refused, texts)] = call(address, [("list_climates", {})], "sse")
    assert not refused and "present" in texts[0]


@pytest.mark.parametrize(
    ("tool", "given", "words"),
    [
        ("point_report", {"longitude": 999, "latitude": 0}, "is no place"),
        ("point_report", {"longitude": "west", "latitude": 0}, "not of type 'number'"),
        ("areas", {"climate": "../../etc/passwd"}, "no climate"),
        ("export_maps", {"climates": [], "layers": []}, "Nothing was chosen"),
        ("check_file", {"file": "/etc/passwd"}, "Invalid file data"),
        ("check_file", {"file": "http://127.0.0.1:22/"}, "failed validation"),
        ("segment_image", {"file": "data:text/csv;base64,YSxiCjEsMgo=", "queries": "soybean"}, "columns lon and lat"),
    ],
)
def test_mistakes_are_told(address, tool, given, words):
    [(refused, texts)] = call(address, [(tool, given)])
    assert refused and words in texts[0] and "Traceback" not in texts[0], texts


@pytest.mark.parametrize("tool", ["export_maps", "areas", "read_report", "check_file"])
def test_no_tool_takes_a_path_of_the_server(address, tool, tmp_path):
    """Gradio's own client, which answers for the tools, uploads any path that it is given as a file."""
    secret = tmp_path / "secret.csv"
    secret.write_text("lon,lat\n-86,37\n")
    given = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    shapes = {"export_maps": {"climates": [given], "layers": ["probability"]}, "areas": {"climate": given},
              "read_report": {"report": given}, "check_file": {"file": given}}  # fmt: skip
    [(refused, texts)] = call(address, [(tool, shapes[tool])])
    assert refused and "validation error" in texts[0], texts


def test_what_is_missing_is_said(example_dir, study_output, monkeypatch, capsys):
    from spaces_demo import app

    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.setattr(app, "default_example", lambda: example_dir)
    with pytest.raises(AgriClipError, match=r"need the package mcp: pip install 'agriclip\[mcp\]'"):
        app.serve(app.build_app(example_dir, study_output / "model"), mcp=True, wait=False)
    monkeypatch.setenv("AGRICLIP_MCP", "1")
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("Error: MCP tools need the package mcp")


@pytest.mark.parametrize("asked", ["environment", "option"])
def test_the_tools_are_served_when_asked_for(asked, address, example_dir, monkeypatch):
    import gradio

    import agriclip_cli
    from spaces_demo import app
    from spaces_demo.engine import Engine

    found = []

    def look(demo):
        found.append(set(tools_of(demo.local_url)))
        demo.close()

    monkeypatch.setattr(app, "default_example", lambda: example_dir)
    monkeypatch.setattr(gradio.Blocks, "block_thread", look)
    monkeypatch.setattr(Engine, "warm", lambda engine: None)
    if asked == "environment":
        monkeypatch.setenv("AGRICLIP_MCP", "1")
        app.main()
    else:
        with pytest.raises(SystemExit) as ended:
            agriclip_cli.main(["demo-space", "--mcp"])
        assert not ended.value.code
    assert found == [set(tools_of(address))]


def test_a_package_that_does_not_fit_is_said(example_dir, study_output, monkeypatch):
    from gradio import mcp as gradio_mcp

    from spaces_demo.app import build_app, serve

    pytest.importorskip("mcp", reason="the tools need the package mcp: pip install 'agriclip[mcp]'")

    def fail(self, blocks):
        raise AttributeError("no such server")

    monkeypatch.setattr(gradio_mcp.GradioMCPServer, "__init__", fail)
    demo = build_app(example_dir, study_output / "model")
    with pytest.raises(AgriClipError, match="cannot be served: .*no such server"):
        serve(demo, mcp=True, wait=False)
