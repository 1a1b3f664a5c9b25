"""Maps in windows: identity survives bit for bit, whatever the size, the interruptions and the number of processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from mapping.outputs import file_sha256
from mapping.streaming import ClassLayer, FailedTiles, MapLayer, stream_map
from mapping.tiling import Accumulator, TilePlan, window_origins, window_weights
from processing.errors import AgriClipError

ROOT = Path(__file__).resolve().parents[2]
T = 16
PLACE = Affine(30.0, 0.0, 500_000.0, 0.0, -30.0, 4_400_000.0)
STRIDES = (5, 8, 11, 16)


def write_raster(path, values, nodata=None, crs="EPSG:32614", transform=PLACE, **profile):
    profile = {"driver": "GTiff", "count": len(values), "dtype": values.dtype.name, "nodata": nodata, **profile}
    height, width = values.shape[1:]
    with rasterio.open(path, "w", height=height, width=width, crs=crs, transform=transform, **profile) as file:
        file.write(values)
    return path


def any_bits(shape, seed=0):
    """Random float32 of every magnitude and sign, both zeros and numbers below the smallest normal one included."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(1.5))
    values.reshape(-1)[:: max(1, values.size // 7)] = -0.0
    values.reshape(-1)[-1] = 1e-42
    return values


def first_band(pixels, valid):
    return pixels[:, :1]


def bits(array):
    return np.ascontiguousarray(array).view(np.uint32)


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def sizes(stride):
    wanted = {1, T - 1, T, T + 1, *(k * stride + d for k in (3, 4) for d in (-1, 0, 1))}
    return sorted(wanted)


@pytest.mark.parametrize("holes", [False, True], ids=["whole", "nodata"])
@pytest.mark.parametrize("stride", STRIDES)
def test_identity_gives_the_input_back_bit_for_bit(tmp_path, stride, holes):
    for number, size in enumerate(sizes(stride)):
        shape = (size, sizes(stride)[-1 - number])
        values = any_bits((2, *shape), number)
        gone = np.zeros(shape, bool)
        if holes:
            rng = np.random.default_rng(number)
            gone_by_band = rng.random((2, *shape)) < 0.2
            values[gone_by_band] = -9999.0
            gone = gone_by_band.any(axis=0)
        source = write_raster(tmp_path / f"{number}.tif", values, nodata=-9999.0 if holes else None)
        layer = MapLayer(tmp_path / f"{number}_out.tif", "value")
        stream_map(source, first_band, [layer], tile=T, stride=stride, quiet=True, disagreement=True)
        found, spread = read(layer.path), read(tmp_path / f"{number}_out_disagreement.tif")
        assert np.array_equal(np.isnan(found), gone), "nodata exactly where a required band is"
        assert np.array_equal(bits(found[~gone]), bits(values[0][~gone]))
        assert np.array_equal(np.isnan(spread), gone) and (spread[~gone] == 0).all()
        with rasterio.open(source) as a, rasterio.open(layer.path) as b:
            assert a.crs == b.crs and a.transform == b.transform and a.shape == b.shape


@pytest.mark.parametrize("stride", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 40, 57])
def test_windows_cover_every_pixel_and_stay_inside(size, stride):
    origins = window_origins(size, T, stride)
    assert origins == sorted(set(origins)) and origins[0] == 0
    covered = np.zeros(size, int)
    for origin in origins:
        assert origin == 0 or origin + T <= size
        covered[origin : origin + T] += 1
    assert covered.min() >= 1 and origins[-1] == max(0, size - T)
    assert all(b - a <= stride for a, b in zip(origins, origins[1:], strict=False))


@pytest.mark.parametrize(
    ("tile", "stride"), [(1, 1), (16, 16), (16, 15), (16, 8), (17, 3), (128, 96), (128, 1), (512, 2)]
)
def test_weights_are_whole_positive_symmetric_and_add_up_exactly(tile, stride):
    origins = window_origins(5 * tile + 3, tile, stride)
    weights = window_weights(tile, stride, origins)
    assert (
        (weights > 0).all() and np.array_equal(weights, np.round(weights)) and np.array_equal(weights, weights[::-1])
    )
    assert (weights == 1).all() == (tile == stride)
    total = np.zeros(5 * tile + 3)
    for origin in origins:
        total[origin : origin + tile] += weights
    assert total.max() <= 2**14, "both axes and the 24 bits of a float32 fit the 53 of a float64"
    if stride < tile:
        assert weights[tile // 2] > weights[0]


def test_sums_add_to_mean_and_variance_of_all_windows():
    rng = np.random.default_rng(0)
    seen, weights = rng.random((5, 2, 4, 6)), rng.integers(1, 200, (5, 4, 6)).astype(float)
    nothing = np.zeros_like(seen[0])
    parts = [Accumulator.of(value, weight, nothing) for value, weight in zip(seen, weights, strict=True)]
    left, right = parts[0] + parts[1], (parts[2] + parts[3]) + parts[4]
    total = left + right
    mean = np.average(seen, axis=0, weights=np.broadcast_to(weights[:, None], seen.shape))
    variance = (weights[:, None] * (seen - mean) ** 2).sum(0) / weights.sum(0)
    np.testing.assert_allclose(total.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(total.variance, variance, rtol=1e-12)
    other = right + left
    assert np.array_equal(other.mean, total.mean) and np.array_equal(other.squares, total.squares)
    again = Accumulator.of(total.mean, total.weights, total.variance)
    np.testing.assert_allclose((again + parts[0]).variance, (total + parts[0]).variance, rtol=1e-12)
    assert np.isnan(Accumulator.empty(1, 2, 2).mean).all()
    with pytest.raises(AgriClipError, match="spread=True"):
        _ = Accumulator.empty(1, 2, 2).variance


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (3, 2), (100, 100)])
def test_units_hold_every_window_once(columns, rows):
    plan = TilePlan(70, 61, T, 7)
    units = plan.units(columns, rows)
    windows = [(unit.row, column) for unit in units for column in range(unit.first, unit.stop)]
    assert len(windows) == len(set(windows)) == len(plan.tops) * len(plan.lefts)
    assert [unit.number for unit in units] == list(range(len(units)))
    total = np.zeros((70, 61))
    for unit in units:
        total[unit.rows, unit.columns] += np.outer(*plan.unit_weights(unit))
    expected = np.zeros((70, 61))
    for top in plan.tops:
        for left in plan.lefts:
            expected[top : top + T, left : left + T] += plan.window_weights
    assert np.array_equal(total, expected)


def ramp(pixels, valid):
    """Not the same from window to window: two layers that add up to one."""
    across = np.linspace(0, 1, pixels.shape[-1], dtype=np.float32)
    chance = (0.5 + 0.5 * np.sin(pixels[:, :1] + across)).astype(np.float32)
    return np.concatenate([chance, 1 - chance], axis=1)


def test_blending_is_the_weighted_mean_and_the_classes_are_the_highest(tmp_path):
    values = np.random.default_rng(1).normal(size=(1, 37, 45)).astype(np.float32)
    source = write_raster(tmp_path / "a.tif", values)
    layers = [MapLayer(tmp_path / f"{name}.tif", name, {"query": name}) for name in ("soy", "corn")]
    classes = ClassLayer(tmp_path / "classes.tif", {1: ("soy", "#1b7837"), 2: ("corn", "#e0e000")}, {"model": "x"})
    stream_map(source, ramp, layers, tile=T, stride=6, quiet=True, disagreement=True, classes=classes, batch_size=3)
    plan = TilePlan(37, 45, T, 6)
    total, weight, square = np.zeros((2, 37, 45)), np.zeros((37, 45)), np.zeros((2, 37, 45))
    for top in plan.tops:
        for left in plan.lefts:
            area = (slice(None), slice(top, top + T), slice(left, left + T))
            answer = ramp(values[area][None], None)[0].astype(float)
            total[area] += plan.window_weights * answer
            square[area] += plan.window_weights * answer**2
            weight[area[1:]] += plan.window_weights
    mean = total / weight
    for layer, expected, spread in zip(layers, mean, np.sqrt(np.maximum(square / weight - mean**2, 0)), strict=True):
        np.testing.assert_allclose(read(layer.path), expected, rtol=0, atol=2e-7)
        found = read(layer.path.with_name(f"{layer.path.stem}_disagreement.tif"))
        np.testing.assert_allclose(found, spread, rtol=0, atol=1e-6)
        assert found.max() > 0.01
    assert np.array_equal(read(classes.path), np.where(read(layers[0].path) >= read(layers[1].path), 1, 2))
    with rasterio.open(classes.path) as file:
        assert file.colormap(1)[1] == (27, 120, 55, 255) and file.tags()["model"] == "x"
        assert json.loads(file.tags()["classes"]) == {"1": "soy", "2": "corn"}
    with rasterio.open(layers[0].path) as file:
        assert file.tags()["query"] == "soy" and file.descriptions == ("soy",) and file.units == ("1",)


def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    source = write_raster(tmp_path / "a.tif", np.random.default_rng(1).normal(size=(1, 60, 700)).astype(np.float32))
    seen, hashes = set(), []

    def answer(pixels, valid):
        seen.add(threading.get_ident())
        time.sleep(0.001)
        return ramp(pixels, valid)[:, :1]

    for workers in (1, 4):
        layer = MapLayer(tmp_path / f"{workers}.tif")
        run = stream_map(source, answer, [layer], tile=T, stride=5, batch_size=2, workers=workers, quiet=True)
        hashes.append((file_sha256(layer.path), run.tiles))
    assert hashes[0] == hashes[1] and len(seen) > 2


def test_nodata_by_mask_alpha_fill_and_nan(tmp_path):
    values = np.arange(1, 401, dtype=np.uint16).reshape(1, 20, 20)
    mask = np.full((20, 20), 255, np.uint8)
    mask[3:5, 7:9] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        masked = write_raster(tmp_path / "mask.tif", values)
        with rasterio.open(masked, "r+") as file:
            file.write_mask(mask)
    alpha = write_raster(tmp_path / "alpha.tif", np.concatenate([values, mask[None].astype(np.uint16)]), alpha="YES")
    holes = values.astype(np.float32)
    holes[0, 3:5, 7:9] = np.nan
    nan = write_raster(tmp_path / "nan.tif", holes)
    filled = write_raster(tmp_path / "fill.tif", np.where(mask == 0, 65000, values).astype(np.uint16))
    for path, options in ((masked, {}), (alpha, {}), (nan, {}), (filled, {"fills": [65000]})):
        stream_map(path, first_band, [MapLayer(tmp_path / "out.tif")], tile=T, stride=9, quiet=True, **options)
        found = read(tmp_path / "out.tif")
        assert np.array_equal(np.isnan(found), mask == 0), path.name
        assert np.array_equal(found[mask > 0], values[0][mask > 0])
    # An alpha band that is asked for is data and hides nothing.
    stream_map(alpha, first_band, [MapLayer(tmp_path / "out.tif")], tile=T, bands=[1, 2], quiet=True)
    assert np.array_equal(read(tmp_path / "out.tif"), values[0])


def test_windows_without_data_are_not_asked(tmp_path):
    values = np.full((1, 64, 64), -1, np.int16)
    values[0, 40:50, 20:30] = 5
    asked = []

    def count(pixels, valid):
        asked.append(len(pixels))
        assert not pixels[~valid].any(), "what is not valid is 0"
        return pixels

    source = write_raster(tmp_path / "a.tif", values, nodata=-1)
    run = stream_map(source, count, [MapLayer(tmp_path / "o.tif")], tile=T, quiet=True)
    assert run.tiles == sum(asked) == 2
    assert np.isfinite(read(tmp_path / "o.tif")).sum() == 100


def test_a_window_that_fails_is_nodata_and_named(tmp_path):
    values = np.random.default_rng(0).random((1, 48, 48)).astype(np.float32)
    values[0, 20, 20], values[0, 0, 40] = 7.0, 9.0
    source = write_raster(tmp_path / "a.tif", values)
    broken = True

    def fails(pixels, valid):
        if broken and (pixels == 7.0).any():
            raise RuntimeError("no more\nmemory")
        return np.where((pixels == 9.0).any() & broken, np.nan, pixels)

    layer = MapLayer(tmp_path / "o.tif")
    with pytest.raises(
        FailedTiles, match=r"2 tiles failed and are nodata .* \(row 0 column 32, row 16 column 16;"
    ) as told:
        stream_map(source, fails, [layer], tile=T, quiet=True, batch_size=1)
    assert [(tile.row, tile.column) for tile in told.value.tiles] == [(0, 32), (16, 16)]
    assert told.value.tiles[1].reason == "the model failed (no more)" and told.value.paths == (layer.path,)
    lost = np.zeros((48, 48), bool)
    lost[:16, 32:] = lost[16:32, 16:32] = True
    assert np.array_equal(np.isnan(read(layer.path)), lost)
    assert np.array_equal(read(layer.path)[~lost], values[0][~lost])
    broken = False
    run = stream_map(source, fails, [layer], tile=T, quiet=True, batch_size=1)
    assert np.array_equal(read(layer.path), values[0]) and run.tiles == 6, "only the units that failed are done again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "o.tif"]


def test_one_failure_in_a_batch_costs_no_other(tmp_path):
    values = np.random.default_rng(0).random((1, 16, 160)).astype(np.float32)
    values[0, 3, 40] = 7.0
    source = write_raster(tmp_path / "a.tif", values)

    def fails(pixels, valid):
        if (pixels == 7.0).any():
            raise RuntimeError("bad")
        return pixels

    with pytest.raises(FailedTiles) as told:
        stream_map(source, fails, [MapLayer(tmp_path / "o.tif")], tile=T, quiet=True, batch_size=8)
    assert [(tile.row, tile.column) for tile in told.value.tiles] == [(0, 32)]
    assert np.isnan(read(tmp_path / "o.tif")).sum() == T * T


def test_a_file_that_is_damaged_in_part_is_mapped_in_part(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (1, 64, 64), dtype=np.uint16)
    source = write_raster(tmp_path / "a.tif", values, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    content = bytearray(source.read_bytes())
    with rasterio.open(source) as file:
        offset = int(
            file.tags(1, ns="TIFF").get("BLOCK_OFFSET_1_2") or file.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", 1)
        )
    content[offset : offset + 200] = bytes(200)
    source.write_bytes(content)
    with pytest.raises(FailedTiles, match="1 tile failed and is nodata") as told:
        stream_map(source, first_band, [MapLayer(tmp_path / "o.tif")], tile=T, quiet=True)
    (tile,) = told.value.tiles
    assert (tile.row, tile.column) == (32, 16) and "cannot be read" in tile.reason
    found = read(tmp_path / "o.tif")
    lost = np.isnan(found)
    assert lost[32:48, 16:32].all() and lost.sum() == T * T and np.array_equal(found[~lost], values[0][~lost])


def test_bad_input_is_refused_in_a_sentence(tmp_path):
    values = np.zeros((2, 20, 20), np.float32)
    layer = [MapLayer(tmp_path / "o.tif")]
    rotated = write_raster(tmp_path / "r.tif", values, transform=PLACE @ Affine.rotation(10))
    bare = write_raster(tmp_path / "b.tif", values, crs=None)
    good = write_raster(tmp_path / "g.tif", values)
    for path, options, said in (
        (rotated, {}, "is rotated"),
        (bare, {}, "has no CRS"),
        (good, {"stride": 17}, "leave gaps"),
        (good, {"bands": [3]}, "has 2 bands, no band 3"),
        (good, {"fills": [0]}, "1 fill values were given for 2 bands"),
        (tmp_path / "none.tif", {}, "does not exist"),
    ):
        with pytest.raises(AgriClipError, match=said):
            stream_map(path, first_band, layer, tile=T, quiet=True, **options)
    with pytest.raises(AgriClipError, match=r"returned \(1, 2, 16, 16\) for 1 windows"):
        stream_map(good, lambda pixels, valid: pixels, layer, tile=T, quiet=True, batch_size=1)
    assert not (tmp_path / "o.tif").exists()
    stream_map(bare, first_band, layer, tile=T, quiet=True, allow_no_crs=True, restart=True)
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.crs is None and file.transform == PLACE


def test_a_raster_that_lies_south_up_and_an_odd_crs_are_kept(tmp_path):
    crs = CRS.from_proj4("+proj=laea +lat_0=45 +lon_0=-100 +x_0=12 +y_0=0 +ellps=WGS84 +units=m +no_defs")
    place = Affine(25.0, 0.0, -1000.5, 0.0, 25.0, 2000.25)
    source = write_raster(tmp_path / "a.tif", np.ones((1, 20, 30), np.float32), crs=crs, transform=place)
    stream_map(source, first_band, [MapLayer(tmp_path / "o.tif")], tile=T, quiet=True)
    with rasterio.open(source) as a, rasterio.open(tmp_path / "o.tif") as b:
        assert a.crs == b.crs and a.transform == b.transform == place


def test_another_plan_is_refused_and_restart_begins_anew(tmp_path):
    source = write_raster(tmp_path / "a.tif", np.ones((1, 20, 30), np.float32))
    layer, folder = [MapLayer(tmp_path / "o.tif")], tmp_path / ".work"

    def stops(pixels, valid):
        raise KeyboardInterrupt

    options = {"tile": T, "quiet": True, "folder": folder}
    with pytest.raises(KeyboardInterrupt):
        stream_map(source, stops, layer, plan={"model": "a"}, **options)
    assert folder.is_dir() and not (tmp_path / "o.tif").exists()
    with pytest.raises(AgriClipError, match=r"another plan, which differs in model \(a then, b now\)"):
        stream_map(source, first_band, layer, plan={"model": "b"}, **options)
    stream_map(source, first_band, layer, plan={"model": "b"}, restart=True, **options)
    assert not folder.exists() and (read(tmp_path / "o.tif") == 1).all()


SCRIPT = """
import sys, time
import numpy as np
sys.path.insert(0, {root!r})
from mapping.streaming import ClassLayer, MapLayer, stream_map
from tests.mapping.test_streaming import ramp, T
from pathlib import Path
source, folder, pause = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])

def slow(pixels, valid):
    time.sleep(pause)
    return ramp(pixels, valid)

layers = [MapLayer(folder / (name + ".tif"), name) for name in ("soy", "corn")]
classes = ClassLayer(folder / "classes.tif", {{1: ("soy", "#1b7837"), 2: ("corn", "#e0e000")}})
run = stream_map(source, slow, layers, tile=T, stride=6, quiet=True, disagreement=True, classes=classes, batch_size=8)
# In one piece: two processes write to one pipe, and print() writes word by word where output is not buffered.
sys.stdout.write("tiles %d" % run.tiles + chr(10))
"""
OUTPUTS = ("soy.tif", "corn.tif", "soy_disagreement.tif", "corn_disagreement.tif", "classes.tif")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A raster, the script that maps it, and the hashes of what an undisturbed run writes."""
    folder = tmp_path_factory.mktemp("whole")
    values = np.random.default_rng(1).normal(size=(1, 90, 2100)).astype(np.float32)
    values[0, 30:50, 100:900] = np.nan
    source = write_raster(folder / "source.tif", values, tiled=True, blockxsize=32, blockysize=32)
    script = folder / "job.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    done = run_job(script, source, folder, 0)
    return source, script, {name: file_sha256(folder / name) for name in OUTPUTS}, tiles_of(done)


def run_job(script, source, folder, pause, launcher=()):
    command = [sys.executable, *launcher, str(script), str(source), str(folder), str(pause)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def tiles_of(output):
    return [int(line.split()[1]) for line in output.splitlines() if line.startswith("tiles")]


def test_killed_and_called_again_gives_the_same_bytes(undisturbed, tmp_path):
    source, script, hashes, (whole,) = undisturbed
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(source), str(tmp_path), "0.01"]
    job = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = tmp_path / ".soy-partial"
    give_up = time.monotonic() + 60
    while len(list(kept.glob("*.safetensors"))) < 5 and time.monotonic() < give_up:
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    job.wait()
    survivors = sorted(kept.glob("*.safetensors"))
    assert len(survivors) >= 5 and not (tmp_path / "soy.tif").exists()
    assert list(tmp_path.glob(".*.rows.partial")), "the killed job was writing"
    # One unit is torn and one damaged: both are done again.
    content = survivors[0].read_bytes()
    survivors[0].write_bytes(content[: len(content) // 2])
    content = bytearray(survivors[1].read_bytes())
    content[-100] ^= 255
    survivors[1].write_bytes(content)
    (tiles,) = tiles_of(run_job(script, source, tmp_path, 0))
    assert 0 < tiles < whole, "what was done is not done again"
    assert {name: file_sha256(tmp_path / name) for name in OUTPUTS} == hashes
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(OUTPUTS)


def test_two_processes_write_the_bytes_of_one(undisturbed, tmp_path):
    source, script, hashes, (whole,) = undisturbed
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    tiles = tiles_of(run_job(script, source, tmp_path, 0, launcher))
    assert len(tiles) == 2 and sum(tiles) == whole and min(tiles) > 0.3 * whole, "the work is shared"
    assert {name: file_sha256(tmp_path / name) for name in OUTPUTS} == hashes
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(OUTPUTS)
