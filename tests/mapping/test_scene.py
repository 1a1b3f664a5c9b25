"""Scenes by text: what the model says of the whole image is what the map says, on the pixels of the scene."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from mapping.mosaic import build_mosaic, open_scene
from mapping.outputs import file_sha256
from mapping.scene import ScenePredictor, map_scene
from mapping.scene_bands import describe_scene
from mapping.streaming import FailedTiles
from modeling_agriclip import AgriClipConfig, AgriClipForSemanticSegmentation, AgriClipForSuitability
from processing.errors import AgriClipError
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.tokenizer import build_tokenizer

PLACE = Affine(10.0, 0.0, 600_000.0, 0.0, -10.0, 5_300_000.0)
BANDS = ["B04", "B03", "B02", "B08"]
SMALL = {
    "vision_config": {"stage_depths": (1, 1), "stage_sizes": (12, 24), "stage_heads": (2, 4), "hidden_size": 24},
    "text_config": {"encoder_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}},
    "projection_dim": 16,
}
DATA = Path(os.environ.get("AGRICLIP_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


def save_model(folder, kind=AgriClipForSemanticSegmentation, sensor="sentinel2_l2a"):
    transformers_logging.disable_progress_bar()
    set_seed(0)
    processor = AgriClipProcessor(AgriClipImageProcessor(sensor=sensor), build_tokenizer())
    config = AgriClipConfig.from_size("tiny", vocab_size=len(processor.tokenizer), **SMALL)
    config.text_config.number_token_id = processor.num_token_id
    kind(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def write_scene(path, values, names=None, nodata=None, transform=PLACE, crs="EPSG:32633", scales=None, **options):
    profile = {"driver": "GTiff", "count": len(values), "dtype": values.dtype.name, "nodata": nodata, **options}
    height, width = values.shape[1:]
    with rasterio.open(path, "w", height=height, width=width, crs=crs, transform=transform, **profile) as file:
        file.write(values)
        if scales is not None:
            file.scales = scales
        for band, name in enumerate(names or [], 1):
            file.set_band_description(band, name)
    return path


def reflectance(count, height, width, seed=0, low=200):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(low, 4000, (count, height // 8 + 1, width // 8 + 1))
    values = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    return (values + rng.integers(0, 100, (count, height, width))).astype(np.uint16)


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def ask_directly(model_dir, images, texts, **options):
    """Logits (K, H, W) of a whole image by the processor and the model's own forward."""
    processor = AgriClipProcessor.from_pretrained(model_dir)
    model = AgriClipForSemanticSegmentation.from_pretrained(model_dir).eval()
    inputs = processor.image_processor([[str(image) for image in images]], return_tensors="pt", **options)
    prompts = processor.class_prompts(texts)
    with torch.inference_mode():
        return model(**inputs, **prompts).logits[0]


@pytest.mark.parametrize("case", ["plain", "added", "scaled", "renamed"])
def test_the_map_of_one_window_is_the_models_own_answer(model_dir, tmp_path, case):
    # As the archives store it: with 1000 added to every number, with tags, or in another order of bands.
    values = reflectance(4, 64, 64, low=1200 if case == "added" else 200)
    names, scales = BANDS, None
    if case == "scaled":
        values, scales = (values // 8).astype(np.uint16), (8e-4,) * 4
    if case == "renamed":
        names = ["nir", "blue", "green", "red"]
    path = write_scene(tmp_path / "a.tif", values, names, scales=scales)
    maps = map_scene(path, model_dir, "soybean fields", tmp_path / "out", tile=64, quiet=True, preview=False)
    logits = ask_directly(model_dir, [path], ["soybean fields", "other land"])
    found = read(maps.probability["soybean fields"])
    np.testing.assert_allclose(found, logits.softmax(0)[0].numpy(), rtol=0, atol=2e-6)
    assert found.std() > 1e-3 and maps.weighed == "softmax over 'soybean fields', 'other land'"
    maps = map_scene(path, model_dir, "soybean fields", tmp_path, against=[], tile=64, quiet=True, preview=False)
    logits = ask_directly(model_dir, [path], ["soybean fields"])
    np.testing.assert_allclose(read(maps.probability["soybean fields"]), logits.sigmoid()[0].numpy(), atol=2e-6)
    assert maps.weighed.startswith("sigmoid")


def test_the_number_of_threads_does_not_change_a_byte(model_dir, tmp_path):
    path, hashes = write_scene(tmp_path / "a.tif", reflectance(4, 96, 500), BANDS), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            maps = map_scene(path, model_dir, "soy", tmp_path, tile=32, stride=24, quiet=True, preview=False)
            hashes.append(file_sha256(maps.probability["soy"]))
            assert torch.get_num_threads() == threads, "as it was found"
    finally:
        torch.set_num_threads(before)
    assert len(set(hashes)) == 1


def test_two_dates_in_one_file_are_a_series(model_dir, tmp_path):
    values = reflectance(8, 64, 64)
    path = write_scene(tmp_path / "both.tif", values)
    parts = [write_scene(tmp_path / f"{t}.tif", values[4 * t : 4 * t + 4], BANDS) for t in (0, 1)]
    dates = ["2021-04-01", "2021-07-15"]
    maps = map_scene(path, model_dir, "wheat", tmp_path, bands=BANDS, dates=dates, tile=64, quiet=True, preview=False)
    options = {"dates": [dates], "channels": BANDS}
    expected = ask_directly(model_dir, parts, ["wheat", "other land"], **options).softmax(0)[0].numpy()
    np.testing.assert_allclose(read(maps.probability["wheat"]), expected, rtol=0, atol=2e-6)
    alone = ask_directly(model_dir, parts[:1], ["wheat", "other land"], channels=BANDS).softmax(0)[0].numpy()
    assert abs(alone - expected).max() > 1e-3, "the second date is heard"
    with rasterio.open(maps.probability["wheat"]) as file:
        assert json.loads(file.tags()["dates"]) == dates and json.loads(file.tags()["bands"]) == BANDS


def test_several_queries_overlay_the_scene_and_give_classes(model_dir, tmp_path):
    values = reflectance(4, 90, 130)
    values[2, 10:20, 30:50] = 0  # the sensor's own fill, in one band
    path = write_scene(tmp_path / "a.tif", values, BANDS)
    queries = ["soybean fields", "Corn fields!", "corn-fields"]
    maps = map_scene(path, model_dir, queries, tmp_path / "out", tile=32, disagreement=True, quiet=True)
    assert [raster.name for raster in maps.probability.values()] == [
        "soybean_fields_probability.tif",
        "corn_fields_probability.tif",
        "corn_fields_2_probability.tif",
    ]
    chances = np.stack([read(raster) for raster in maps.probability.values()])
    gone = (values == 0).any(axis=0)
    assert gone.sum() == 200 and np.array_equal(np.isnan(chances), np.broadcast_to(gone, chances.shape))
    np.testing.assert_allclose(chances.sum(0)[~gone], 1, atol=1e-6)
    classes = read(maps.classes)
    assert np.array_equal(classes[~gone], chances.argmax(0)[~gone] + 1) and (classes[gone] == 0).all()
    for raster in [*maps.probability.values(), *maps.disagreement.values(), maps.classes]:
        with rasterio.open(path) as a, rasterio.open(raster) as b:
            assert (a.crs, a.transform, a.shape) == (b.crs, b.transform, b.shape)
        assert raster.with_suffix(".qml").is_file()
    with rasterio.open(maps.classes) as file:
        assert json.loads(file.tags()["classes"]) == {"1": queries[0], "2": queries[1], "3": queries[2]}
        assert file.colormap(1)[2] == (0, 158, 115, 255)
    assert np.nanmax(read(maps.disagreement[queries[0]])) > 0
    assert maps.preview.stat().st_size > 10_000 and not (tmp_path / "out" / ".segment-partial").exists()
    assert json.loads(json.dumps(maps.as_dict()))["tiles"] == maps.run.tiles


def test_several_queries_against_others_have_a_class_for_these(model_dir, tmp_path):
    path = write_scene(tmp_path / "a.tif", reflectance(4, 64, 64), BANDS)
    texts = ["soybean", "corn", "forest", "water"]
    maps = map_scene(path, model_dir, texts[:2], tmp_path, against=texts[2:], tile=64, quiet=True, preview=False)
    expected = ask_directly(model_dir, [path], texts).softmax(0).numpy()
    np.testing.assert_allclose(read(maps.probability["other"]), expected[2] + expected[3], rtol=0, atol=2e-6)
    np.testing.assert_allclose(read(maps.probability["corn"]), expected[1], rtol=0, atol=2e-6)
    with rasterio.open(maps.classes) as file:
        assert json.loads(file.tags()["classes"]) == {"1": "soybean", "2": "corn", "3": "other"}


def cut(folder, values, edge, leave_out=(), **options):
    folder.mkdir()
    for top in range(0, values.shape[1], edge):
        for left in range(0, values.shape[2], edge):
            if (top // edge, left // edge) not in leave_out:
                part = values[:, top : top + edge, left : left + edge]
                place = PLACE @ Affine.translation(left, top)
                write_scene(folder / f"{top:03d}_{left:03d}.tif", part, BANDS, transform=place, **options)
    return folder


@pytest.mark.parametrize("nodata", [None, 7], ids=["mask", "number"])
def test_tiles_with_holes_are_the_scene_they_were_cut_from(model_dir, tmp_path, nodata):
    values = reflectance(4, 96, 120)
    values[1, 40:44, 100:110] = 7
    folder = cut(tmp_path / "tiles", values, 32, leave_out={(0, 0), (1, 2)}, nodata=nodata)
    whole = values.copy()
    whole[:, :32, :32] = whole[:, 32:64, 64:96] = 7
    scene = write_scene(tmp_path / "whole.tif", whole, BANDS, nodata=7 if nodata else None)
    if nodata is None:
        with rasterio.open(scene, "r+") as file:
            file.write_mask((whole != 7).any(axis=0))
    found = map_scene(folder, model_dir, "soy", tmp_path / "a", tile=32, stride=24, quiet=True)
    expected = map_scene(scene, model_dir, "soy", tmp_path / "b", tile=32, stride=24, quiet=True, preview=False)
    with rasterio.open(found.probability["soy"]) as a, rasterio.open(expected.probability["soy"]) as b:
        assert (a.crs, a.transform, a.shape) == (b.crs, b.transform, b.shape)
        np.testing.assert_array_equal(a.read(1), b.read(1))
        assert np.isnan(a.read(1)).sum() == 2 * 32 * 32 + (40 if nodata else 0)


def test_a_mosaic_reads_as_its_tiles_with_masks_and_overlap(tmp_path):
    values = reflectance(4, 40, 60).astype(np.int16)
    folder = tmp_path / "tiles"
    folder.mkdir()
    left = write_scene(folder / "a.tif", values[:, :, :40], BANDS, scales=(0.5,) * 4)
    right = write_scene(
        folder / "b.tif", values[:, 5:, 30:] + 1, BANDS, scales=(0.5,) * 4, transform=PLACE @ Affine.translation(30, 5)
    )
    mask = np.ones((35, 30), bool)
    mask[:10, :10] = False
    with rasterio.open(right, "r+") as file:
        file.write_mask(mask)
    with open_scene([right, left]) as path, rasterio.open(path) as file:
        assert file.shape == (40, 60) and file.transform == PLACE and file.crs.to_epsg() == 32633
        assert file.descriptions == tuple(BANDS) and file.scales == (0.5,) * 4
        np.testing.assert_array_equal(file.read()[:, :, :40], values[:, :, :40])
    with open_scene([left, right]) as path, rasterio.open(path) as file:
        seen, known = file.read(), file.read_masks(1) > 0
        np.testing.assert_array_equal(seen[:, 5:15, 30:40], values[:, 5:15, 30:40], "what is masked hides nothing")
        np.testing.assert_array_equal(seen[:, 15:, 30:], values[:, 15:, 30:] + 1)
        assert known[:, :40].all() and known[5:, 40:].all() and not known[:5, 40:].any()
    assert not path.exists()


def test_tiles_that_do_not_fit_together_are_refused(tmp_path):
    values = reflectance(4, 16, 16)
    first = write_scene(tmp_path / "a.tif", values, BANDS)
    others = {
        "CRS": {"crs": "EPSG:32634"},
        "pixel size": {"transform": PLACE @ Affine.scale(2)},
        "bands": {"names": BANDS[::-1]},
        "nodata value": {"nodata": 3},
        "scale and offset": {"scales": (2.0,) * 4},
    }
    for what, options in others.items():
        other = write_scene(tmp_path / "b.tif", values, **{"names": BANDS, **options})
        with pytest.raises(AgriClipError, match=f"differ in {what}; give tiles"):
            build_mosaic([first, other])
    other = write_scene(tmp_path / "b.tif", values, BANDS, transform=PLACE @ Affine.translation(0.5, 0))
    with pytest.raises(AgriClipError, match="does not lie on the pixels of"):
        build_mosaic([first, other])
    (tmp_path / "empty").mkdir()
    for images, said in ((tmp_path / "empty", "There are no tiles"), ([], "No image was given")):
        with pytest.raises(AgriClipError, match=said), open_scene(images):
            pass


def test_a_damaged_tile_is_named_and_the_rest_is_whole(model_dir, tmp_path):
    values = reflectance(4, 64, 96)
    folder = cut(tmp_path / "tiles", values, 32, compress="deflate")
    good = map_scene(folder, model_dir, "soy", tmp_path / "a", tile=32, stride=32, quiet=True, preview=False)
    damaged = folder / "032_032.tif"
    content = bytearray(damaged.read_bytes())
    with rasterio.open(damaged) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1))
    content[offset : offset + 200] = bytes(200)
    damaged.write_bytes(content)
    with pytest.raises(FailedTiles, match=r"1 tile failed and is nodata .* \(row 32 column 32;"):
        map_scene(folder, model_dir, "soy", tmp_path / "b", tile=32, stride=32, quiet=True)
    found, expected = read(tmp_path / "b" / "soy_probability.tif"), read(good.probability["soy"])
    expected[32:64, 32:64] = np.nan
    # A batch is smaller by the tile that failed, which a matrix product shows in the last digit.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert (tmp_path / "b" / "preview.png").is_file() and (tmp_path / "b" / "soy_probability.qml").is_file()


def test_an_interrupted_mosaic_goes_on_and_ends_with_the_same_bytes(model_dir, tmp_path, monkeypatch):
    folder = cut(tmp_path / "tiles", reflectance(4, 96, 96), 32)
    options = {"tile": 32, "batch_size": 2, "quiet": True, "preview": False}
    whole = map_scene(folder, model_dir, "soy", tmp_path / "a", **options)
    answer, calls = ScenePredictor.__call__, []

    def stops(self, pixels, valid):
        calls.append(len(pixels))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return answer(self, pixels, valid)

    monkeypatch.setattr(ScenePredictor, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        map_scene(folder, model_dir, "soy", tmp_path / "b", **options)
    assert (tmp_path / "b" / ".segment-partial").is_dir() and not (tmp_path / "b" / "soy_probability.tif").exists()
    with pytest.raises(AgriClipError, match="another plan, which differs in prompts"):
        map_scene(folder, model_dir, "wheat", tmp_path / "b", **options)
    again = map_scene(folder, model_dir, "soy", tmp_path / "b", **options)
    assert again.run.tiles < whole.run.tiles
    assert file_sha256(again.probability["soy"]) == file_sha256(whole.probability["soy"])


def test_bad_input_is_refused_in_a_sentence(model_dir, tmp_path):
    path = write_scene(tmp_path / "a.tif", reflectance(4, 16, 16), BANDS)
    bare = write_scene(tmp_path / "b.tif", reflectance(8, 16, 16))
    wrong = save_model(tmp_path / "wrong", AgriClipForSuitability)
    cases = (
        (path, tmp_path / "none", "soy", {}, "There is no model in"),
        (path, wrong, "soy", {}, "was not fitted to segment: it lacks segmentation_head"),
        (path, model_dir, [], {}, "Nothing was asked for"),
        (path, model_dir, ["soy", " "], {}, "Nothing was asked for"),
        (path, model_dir, ["soy", "soy"], {}, "'soy' is asked for twice"),
        (path, model_dir, "soy", {"against": ["soy"]}, "weighed against itself"),
        (path, model_dir, "soy", {"template": "no place"}, "cannot take the queries"),
        (path, model_dir, "soy", {"sensor": "landsat88"}, "does not fit the model's processor: Unknown sensor"),
        (path, model_dir, "soy", {"bands": ["B04", "B99"]}, "has no channel 'B99'"),
        (path, model_dir, "soy", {"dates": [1, 2, 3]}, "4 bands, which are no 3 equal series"),
        (bare, model_dir, "soy", {"bands": BANDS}, r"found 8 .*are its 8 bands several dates"),
        (tmp_path / "no.tif", model_dir, "soy", {}, "does not exist"),
    )
    for images, model, query, options, said in cases:
        with pytest.raises(AgriClipError, match=said):
            map_scene(images, model, query, tmp_path / "out", tile=16, quiet=True, **options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.tif"))


def test_ground_sample_distance_comes_from_the_raster(model_dir, tmp_path):
    processor = AgriClipImageProcessor(sensor="sentinel2_l2a")
    values = reflectance(4, 16, 16)
    metres = write_scene(tmp_path / "a.tif", values, BANDS, transform=PLACE @ Affine.scale(2))
    degrees = write_scene(
        tmp_path / "b.tif", values, BANDS, crs="EPSG:4326", transform=Affine(1e-4, 0, 10.0, 0, -1e-4, 60.0)
    )
    assert describe_scene(metres, processor).gsd == pytest.approx(20.0)
    assert describe_scene(degrees, processor).gsd == pytest.approx(111_320 * 1e-4 * 0.5**0.5, rel=1e-3)
    assert describe_scene(metres, processor, gsd=3.0).gsd == 3.0


@pytest.mark.realdata
def test_real_scenes_are_overlaid_exactly(model_dir, tmp_path):
    scene = DATA / "sentinel2_farmland" / "two_date_scene.tif"
    tiles = sorted((DATA / "landsat8_cdl" / "images").glob("1[23]_*.tif"))[:12]
    if not scene.is_file() or not tiles:
        pytest.skip(f"the real data are not in '{DATA}'; set AGRICLIP_DATA")
    dates = ["2021-04-01", "2021-07-15"]
    maps = map_scene(scene, model_dir, "soybean fields", tmp_path, bands=BANDS, dates=dates, quiet=True)
    with rasterio.open(scene) as a, rasterio.open(maps.probability["soybean fields"]) as b:
        assert (a.crs, a.transform, a.shape) == (b.crs, b.transform, b.shape)
        assert np.array_equal(np.isfinite(b.read(1)), (a.read() > 0).all(axis=0))
    landsat = save_model(tmp_path / "landsat", sensor="landsat8")
    maps = map_scene(
        tiles, landsat, ["soybean", "corn"], tmp_path / "l", tile=64, stride=64, allow_no_crs=True, quiet=True
    )
    with rasterio.open(maps.classes) as found:
        classes, t = found.read(1), found.transform
        expected = np.zeros(found.shape, bool)
    for tile in tiles:
        with rasterio.open(tile) as file:
            row, column = round((t.f - file.transform.f) / 30), round((file.transform.c - t.c) / 30)
            expected[row : row + 128, column : column + 128] = (file.read() != 0).all(axis=0)
    assert expected.any() and np.array_equal(classes > 0, expected)
