"""STAC: items found by place, time and cloud; scenes in reflectance without offset and clouds; addresses that fail."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from processing.errors import AgriClipError
from processing.rasters import Grid, read_band_info, read_to_grid

pystac = pytest.importorskip("pystac", reason="needs agriclip[stac]")
pytest.importorskip("pystac_client", reason="needs agriclip[stac]")
pytest.importorskip("odc.stac", reason="needs agriclip[stac]")

from mapping import stac  # noqa: E402
from processing.sentinel2_offset import OffsetDecision  # noqa: E402

CRS = "EPSG:32633"
WEST, NORTH, SIZE = 500_000, 5_300_000, 120  # 120 x 120 pixels of 10 m
GRID = Grid(CRS, Affine(10, 0, WEST, 0, -10, NORTH), SIZE, SIZE)
BANDS = {"blue": "B02", "red": "B04", "nir": "B08"}


def land(seed: int) -> dict[str, np.ndarray]:
    """Reflectance of fields, blue darkest."""
    rng = np.random.default_rng(seed)
    shape = (SIZE, SIZE)
    return {
        "blue": rng.uniform(0.02, 0.08, shape),
        "red": rng.uniform(0.03, 0.12, shape),
        "nir": rng.uniform(0.2, 0.5, shape),
    }


def write_item(
    folder: Path,
    name: str,
    day: str,
    reflectance: dict[str, np.ndarray],
    *,
    scl: np.ndarray | None = None,
    inside: bool = False,
    shift: int = 0,
    cloud: float | None = 5.0,
    common: bool = True,
    properties: dict[str, Any] | None = None,
) -> Any:
    """Write a synthetic Sentinel-2 item: numbers of 10 m, classification of 20 m, `shift` pixels to the east."""
    folder.mkdir(parents=True, exist_ok=True)
    transform = GRID.transform @ Affine.translation(shift, 0)
    moment = datetime.fromisoformat(day).replace(tzinfo=UTC, hour=10)
    bounds = rasterio.warp.transform_bounds(
        CRS, "EPSG:4326", WEST + 10 * shift, NORTH - 10 * SIZE, WEST + 10 * (shift + SIZE), NORTH
    )
    west, south, east, north = bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item = pystac.Item(
        name,
        {"type": "Polygon", "coordinates": [ring]},
        list(bounds),
        moment,
        {"platform": "sentinel-2a", **({} if cloud is None else {"eo:cloud_cover": cloud}), **(properties or {})},
    )
    profile: dict[str, Any] = {"driver": "GTiff", "count": 1, "crs": CRS}
    for band, values in reflectance.items():
        file = folder / f"{name}_{band}.tif"
        stored = np.round(values * 1e4) + (1000 if inside else 0)
        stored[np.isnan(values)] = 0
        with rasterio.open(
            file, "w", dtype="uint16", height=SIZE, width=SIZE, transform=transform, nodata=0, **profile
        ) as raster:
            raster.write(stored.astype(np.uint16), 1)
        extra = {"eo:bands": [{"name": BANDS[band], "common_name": band}]} if common else {}
        item.add_asset(BANDS[band], pystac.Asset(f"./{file.name}", roles=["data"], extra_fields=extra))
    classes = np.full((SIZE // 2, SIZE // 2), 4, dtype=np.uint8) if scl is None else scl
    with rasterio.open(
        folder / f"{name}_scl.tif",
        "w",
        dtype="uint8",
        height=SIZE // 2,
        width=SIZE // 2,
        transform=transform @ Affine.scale(2),
        nodata=0,
        **profile,
    ) as raster:
        raster.write(classes, 1)
    item.add_asset("SCL", pystac.Asset(f"./{name}_scl.tif", roles=["data"]))
    picture = {"eo:bands": [{"common_name": "red"}, {"common_name": "green"}, {"common_name": "blue"}]}
    item.add_asset("visual", pystac.Asset("./none.tif", extra_fields=picture))
    path = folder / f"{name}.json"
    item.set_self_href(str(path))
    path.write_text(json.dumps(item.to_dict(include_self_link=False)))
    return item


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three dates: without the offset, with it, and with it and a cloud; the second in two items."""
    root = tmp_path_factory.mktemp("stac")
    write_item(root, "a", "2023-06-01", land(1))
    half = {band: values.copy() for band, values in land(2).items()}
    for values in half.values():
        values[:, 60:] = np.nan
    write_item(root, "b", "2023-06-11", half, inside=True, common=False)
    write_item(root, "b2", "2023-06-11", land(3), shift=30)  # another processing, without the offset
    scl = np.full((60, 60), 5, dtype=np.uint8)
    scl[30, 30] = 9
    scl[:3, :] = 3
    cloudy = {band: values.copy() for band, values in land(4).items()}
    for values in cloudy.values():
        values[60:62, 60:62] = 0.9
    write_item(root / "later", "c", "2023-07-01", cloudy, scl=scl, inside=True, cloud=40.0)
    return root


class _Ranges(SimpleHTTPRequestHandler):
    """Files with byte ranges, which GDAL asks for; refuses what has no token if the server wants one."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        status = self.server.refuse(self.path)  # type: ignore[attr-defined]
        if status:
            self.send_error(status)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, span = path.read_bytes(), self.headers.get("Range")
        first, last = 0, len(content) - 1
        if span:
            start, _, stop = span.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(stop or last), last)
        part = content[first : last + 1]
        self.send_response(206 if span else 200)
        self.send_header("Content-Type", "application/json" if path.suffix == ".json" else "image/tiff")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., str]]:
    """Function that serves the folder and returns its address; `refuse` gives the error of a path, if any."""
    servers = []

    def start(refuse: Callable[[str], int] = lambda _: 0, root: Path = folder) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Ranges, directory=str(root)))
        server.refuse, server.asked = refuse, []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        start.server = server  # type: ignore[attr-defined]
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ids(items: list[Any]) -> list[str]:
    """Ids, in order."""
    return [item.id for item in items]


# -- finding items ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["a", "b", "b2", "c"]),
        ({"datetime": "2023-06"}, ["a", "b", "b2"]),
        ({"datetime": "2023-06-11"}, ["b", "b2"]),
        ({"datetime": "2023-06-02/2023-07-01"}, ["b", "b2", "c"]),
        ({"datetime": "../2023-06-01"}, ["a"]),
        ({"datetime": "2023-06-11T10:00:00Z/.."}, ["b", "b2", "c"]),
        ({"max_cloud": 20}, ["a", "b", "b2"]),
        ({"bbox": (15.0, 47.8, 15.001, 47.86)}, ["a", "b", "c"]),  # west of b2
        ({"bbox": (375.0, 47.8, 375.001, 47.86)}, ["a", "b", "c"]),
        ({"bbox": (16.0, 47.8, 17.0, 47.9)}, []),
        ({"collections": ["landsat"]}, []),
        ({"datetime": "2022"}, []),
    ],
)
def test_items_of_a_folder_are_found(folder: Path, asked: dict[str, Any], expected: list[str]) -> None:
    found = stac.search_items(folder, **asked)
    assert ids(found) == expected
    assert all(Path(item.assets["B02"].href).is_file() for item in found)


def test_catalogues_on_disk_and_behind_an_address(folder: Path, tmp_path: Path, serve: Callable[..., str]) -> None:
    catalogue = pystac.Catalog("fields", "synthetic")
    for item in stac.search_items(folder):
        catalogue.add_item(item)
    catalogue.normalize_hrefs(str(tmp_path))
    catalogue.make_all_asset_hrefs_relative()
    catalogue.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)
    for source in (tmp_path, tmp_path / "catalog.json", f"{serve(root=tmp_path)}/catalog.json"):
        assert ids(stac.search_items(source, datetime="2023-06-11/..", max_cloud=10)) == ["b", "b2"]


def test_what_cannot_be_searched_is_told(tmp_path: Path, folder: Path, serve: Callable[..., str]) -> None:
    with pytest.raises(AgriClipError, match="does not exist; give a STAC address"):
        stac.search_items(tmp_path / "none")
    with pytest.raises(AgriClipError, match="no date or period"):
        stac.search_items(folder, datetime="June")
    with pytest.raises(AgriClipError, match="no date or period"):
        stac.search_items(folder, datetime="2023-07/2023-06")
    with pytest.raises(AgriClipError, match="west, south, east, north"):
        stac.search_items(folder, bbox=(1, 2))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(AgriClipError, match="cannot be read as STAC"):
        stac.search_items(tmp_path)
    with pytest.raises(AgriClipError, match="does not answer as a catalogue"):
        stac.search_items(f"{serve()}/none.json", retries=0)
    with pytest.raises(AgriClipError, match="'http://127.0.0.1:9/' does not answer"):
        stac.search_items("http://127.0.0.1:9/", retries=0)


# -- reading scenes ---------------------------------------------------------------------------------------------


def test_dates_become_reflectance_files(folder: Path, tmp_path: Path) -> None:
    scenes = stac.load_scene(stac.search_items(folder), ["blue", "red", "nir"], tmp_path, GRID)
    assert [scene.date for scene in scenes] == ["2023-06-01", "2023-06-11", "2023-07-01"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{scene.date}.tif" for scene in scenes]
    info = read_band_info(scenes[0].path)
    assert info.descriptions == ("blue", "red", "nir")
    with rasterio.open(scenes[0].path) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert json.loads(source.tags()["items"]) == ["a"]
    values, valid = read_to_grid(scenes[0].path, None, GRID)
    assert valid.all()
    for index, band in enumerate(("blue", "red", "nir")):
        assert np.allclose(values[index], np.round(land(1)[band], 4), atol=1e-6)
    assert scenes[0].valid == 1.0

    # the offset is in one of the two items of the second date, found from the pixels; the first item has the say
    offsets = {name: verdict for scene in scenes for name, verdict in scene.offsets.items()}
    assert {name: verdict.decision for name, verdict in offsets.items()} == {
        "a": OffsetDecision.REMOVED,
        "b": OffsetDecision.INSIDE,
        "b2": OffsetDecision.REMOVED,
        "c": OffsetDecision.INSIDE,
    }
    values, valid = read_to_grid(scenes[1].path, None, GRID)
    assert np.allclose(values[2, :, :60], np.round(land(2)["nir"], 4)[:, :60], atol=1e-6)
    assert np.allclose(values[2, :, 60:], np.round(land(3)["nir"], 4)[:, 30:90], atol=1e-6)
    assert scenes[1].items == ("b", "b2")


def test_clouds_and_their_rim_are_missing(folder: Path, tmp_path: Path) -> None:
    items = stac.search_items(folder, datetime="2023-07")
    (scene,) = stac.load_scene(items, ["nir"], tmp_path / "masked", GRID, block_rows=17)
    values, valid = read_to_grid(scene.path, None, GRID)
    # a cloud of 2 x 2 pixels of 10 m and a shadow along the first 6 rows, and what lies within 60 m of either
    rows, columns = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(
        np.maximum(np.maximum(60 - rows, rows - 61), 0), np.maximum(np.maximum(60 - columns, columns - 61), 0)
    )
    expected = (distance > 6) & (rows > 5 + 6)
    assert np.array_equal(valid[0], expected)
    assert scene.valid == pytest.approx(expected.mean())
    assert values[valid].max() < 0.6
    (whole,) = stac.load_scene(items, ["nir"], tmp_path / "whole", GRID, mask_clouds=False, block_rows=120)
    unmasked, _ = read_to_grid(whole.path, None, GRID)
    assert unmasked.max() > 0.89
    assert np.array_equal(unmasked[valid], values[valid])


def test_the_median_of_dates(folder: Path, tmp_path: Path) -> None:
    items = stac.search_items(folder)
    (scene,) = stac.load_scene(items, ["red"], tmp_path / "a", GRID, composite="median")
    assert (scene.path.name, scene.date) == ("median.tif", None)
    (narrow,) = stac.load_scene(items, ["red"], tmp_path / "b", GRID, composite="median", block_rows=50)
    values, _ = read_to_grid(scene.path, None, GRID)
    assert np.array_equal(values, read_to_grid(narrow.path, None, GRID)[0], equal_nan=True)
    dates = stac.load_scene(items, ["red"], tmp_path / "c", GRID)
    stack = np.stack([read_to_grid(date.path, None, GRID)[0][0] for date in dates])
    assert np.allclose(values[0], np.nanmedian(stack, axis=0), atol=1e-7)
    assert np.isnan(stack).any()


def test_any_grid_and_a_grid_from_the_items(folder: Path, tmp_path: Path) -> None:
    items = stac.search_items(folder, datetime="2023-06-01")
    (scene,) = stac.load_scene(items, ["nir"], tmp_path, resolution=20, crs="EPSG:3035", resampling="average")
    grid = Grid.from_raster(scene.path)
    assert grid.crs == "EPSG:3035"
    assert [bound % 20 for bound in grid.bounds] == [0, 0, 0, 0]
    values, valid = read_to_grid(scene.path, None, grid)
    assert values[valid].mean() == pytest.approx(land(1)["nir"].mean(), abs=0.005)
    # 120 x 120 pixels of 10 m are 3,600 cells of 20 m
    assert valid.sum() == pytest.approx(3600, rel=0.05)
    with pytest.raises(AgriClipError, match="both `resolution` and `crs`"):
        stac.load_scene(items, ["nir"], tmp_path, resolution=20)


def test_a_hazy_scene_is_held_against_its_time_series(tmp_path: Path) -> None:
    hazy = {band: values + 0.045 for band, values in land(5).items()}  # P1 of blue between the limits
    write_item(tmp_path / "s", "clear", "2023-06-01", land(1))
    write_item(tmp_path / "s", "hazy", "2023-06-06", hazy, properties={"s2:processing_baseline": "05.09"})
    (_, scene) = stac.load_scene(stac.search_items(tmp_path / "s"), ["blue"], tmp_path / "out", GRID)
    verdict = scene.offsets["hazy"]
    assert 600 < verdict.percentile < 1000
    assert (verdict.decision, "time series" in verdict.reason) == (OffsetDecision.REMOVED, True)
    # alone, the metadata are believed
    alone = stac.search_items(tmp_path / "s", datetime="2023-06-06")
    (scene,) = stac.load_scene(alone, ["blue"], tmp_path / "out", GRID)
    assert scene.offsets["hazy"].decision is OffsetDecision.INSIDE
    assert "metadata are trusted" in scene.offsets["hazy"].reason


def test_other_sensors_need_their_scale(tmp_path: Path) -> None:
    item = write_item(tmp_path, "l8", "2023-06-01", land(1), inside=True)
    item.properties["platform"] = "landsat-8"
    item.make_asset_hrefs_absolute()
    with pytest.raises(AgriClipError, match="does not say its scale"):
        stac.load_scene([item], ["nir"], tmp_path, GRID)
    item.assets["B08"].extra_fields["raster:bands"] = [{"scale": 2e-4, "offset": -0.2, "nodata": 0}]
    (scene,) = stac.load_scene([item], ["nir"], tmp_path, GRID)
    stored = np.round(land(1)["nir"] * 1e4) + 1000
    assert np.allclose(read_to_grid(scene.path, 1, GRID)[0][0], stored * 2e-4 - 0.2, atol=1e-6)
    assert scene.offsets == {}


def test_what_cannot_be_loaded_is_told_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    items = stac.search_items(folder, datetime="2023-06-01")
    with pytest.raises(AgriClipError, match="no items to load"):
        stac.load_scene([], ["blue"], tmp_path, GRID)
    with pytest.raises(AgriClipError, match="No bands are asked for"):
        stac.load_scene(items, [], tmp_path, GRID)
    with pytest.raises(AgriClipError, match="'a' has no band 'bleu'; did you mean 'blue'"):
        stac.load_scene(items, ["bleu"], tmp_path, GRID)
    items[0].assets.pop("SCL")
    with pytest.raises(AgriClipError, match="no scene classification .* mask_clouds=False"):
        stac.load_scene(items, ["blue"], tmp_path, GRID)
    items[0].assets["B08"].href = str(folder / "gone.tif")
    with pytest.raises(AgriClipError, match="'nir' of 'a' cannot be read from .*gone.tif"):
        stac.load_scene(items, ["blue", "nir"], tmp_path, GRID, mask_clouds=False, retries=0)
    assert list(tmp_path.iterdir()) == []


def moved(items: list[Any], address: str) -> list[Any]:
    """Items whose files lie behind an address."""
    copies = [item.clone() for item in items]
    for item in copies:
        for asset in item.assets.values():
            asset.href = f"{address}/{Path(asset.href).name}"
    return copies


def test_files_behind_an_address_are_read_and_asked_for_again(
    folder: Path, tmp_path: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stac.GDAL_OPTIONS, "GDAL_HTTP_RETRY_DELAY", "0.05")
    local = stac.search_items(folder, datetime="2023-06-01")
    busy = iter([503, 503])
    items = moved(local, serve(lambda path: next(busy, 0) if path.startswith("/a_nir") else 0))
    (scene,) = stac.load_scene(items, ["nir"], tmp_path, GRID)
    assert next(busy, None) is None
    assert np.allclose(read_to_grid(scene.path, "nir", GRID)[0][0], np.round(land(1)["nir"], 4), atol=1e-6)
    gone = moved(local, serve(lambda _: 503))
    with pytest.raises(
        AgriClipError, match="'blue' of 'a' cannot be read from http://127.0.0.1:.*/a_blue.tif .* answers"
    ):
        stac.load_scene(gone, ["nir"], tmp_path / "no", GRID, retries=1)
    assert not (tmp_path / "no").exists()


def test_addresses_are_signed_and_signed_again_when_a_token_ran_out(
    folder: Path, tmp_path: Path, serve: Callable[..., str]
) -> None:
    address = serve(lambda path: 0 if "token=2" in path else 403)
    items = moved(stac.search_items(folder, datetime="2023-06-01"), address)
    tokens: dict[str, int] = {}

    def sign(url: str) -> str:
        tokens[url] = tokens.get(url, 0) + 1
        return f"{url}?token={min(tokens[url], 2)}"

    with pytest.raises(AgriClipError, match="needs `sign`"):
        stac.load_scene(items, ["blue"], tmp_path, GRID)
    (scene,) = stac.load_scene(items, ["blue", "nir"], tmp_path, GRID, sign=sign)
    assert np.allclose(read_to_grid(scene.path, "nir", GRID)[0][0], np.round(land(1)["nir"], 4), atol=1e-6)
    assert set(tokens) == {f"{address}/a_{name}.tif" for name in ("blue", "nir", "scl")}
    with rasterio.open(scene.path) as source:
        assert "token" not in json.dumps(source.tags())


def test_a_raster_behind_an_address_may_be_named_in_a_study(serve: Callable[..., str]) -> None:
    address = f"{serve()}/a_nir.tif"
    assert read_band_info(address).count == 1
    assert read_band_info(Path(address)).width == SIZE  # a Path halves the slashes
