"""Pipelines for rasters of any bands: against the model asked by hand, with georeference, and as remote code."""

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from transformers import AutoModelForSequenceClassification, pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_agriclip import (
    AgriClipConfig,
    AgriClipEnsemble,
    AgriClipForSemanticSegmentation,
    AgriClipForSuitability,
    AgriClipModel,
    Calibration,
    ConformalLevel,
)
from processing import pipelines_agriclip as pipelines
from processing.georeference_agriclip import resized
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.pipelines_agriclip import custom_pipelines, numbers_in, read_georeference, write_geotiff
from processing.processing_agriclip import AgriClipProcessor
from processing.tokenizer import build_tokenizer

REPORT = "Annual precipitation 45 in; annual mean temperature 59 F."
BANDS = ["B02", "B03", "B04", "B08", "B11", "B12"]
ZERO_SHOT, SEGMENTATION = pipelines.ZERO_SHOT, pipelines.SEGMENTATION
FEATURES, SUITABILITY = pipelines.FEATURES, pipelines.SUITABILITY


@pytest.fixture(scope="module")
def processor() -> AgriClipProcessor:
    return AgriClipProcessor(AgriClipImageProcessor(sensor="sentinel2_l2a"), build_tokenizer(vocab_size=900))


def make(cls, processor, seed=0, **overrides):
    torch.manual_seed(seed)
    model = cls(AgriClipConfig.from_size("tiny", vocab_size=len(processor.tokenizer), **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # what starts at zero would hide a part of the network
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.05)
    return model


def saved(folder, cls, processor, **options):
    make(cls, processor, **options).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def suitability(tmp_path_factory, processor) -> Path:
    """One model with a calibration beside it."""
    folder = saved(tmp_path_factory.mktemp("suitability"), AgriClipForSuitability, processor)
    Calibration("temperature", scale=0.5, shift=0.3, levels=(ConformalLevel(0.1, (0.9, 0.2)),)).save(folder)
    return folder


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory, processor) -> Path:
    """Three members, and a root with weights of its own."""
    folder = saved(tmp_path_factory.mktemp("ensemble"), AgriClipForSuitability, processor, seed=9)
    members = [make(AgriClipForSuitability, processor, seed=seed) for seed in range(3)]
    own = [Calibration("temperature", scale=0.5 + 0.2 * number) for number in range(3)]
    AgriClipEnsemble(members, own, Calibration(levels=(ConformalLevel(0.1, (0.8, 0.7)),))).save_pretrained(folder)
    return folder


@pytest.fixture
def scene(tmp_path) -> Path:
    """Six Sentinel-2 bands of a UTM scene, two pixels without data."""
    values = np.random.default_rng(1).integers(200, 4000, (6, 20, 24)).astype(np.uint16)
    values[:, 0, :2] = 0
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 6, "height": 20, "width": 24, "nodata": 0}
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500_000, 0, -10, 5_300_000)}
    with rasterio.open(path, "w", **profile, **place) as raster:
        raster.write(values)
        raster.descriptions = BANDS
    return path


def test_tasks_are_registered_by_the_package():
    for task in (SUITABILITY, ZERO_SHOT, SEGMENTATION, FEATURES):
        assert PIPELINE_REGISTRY.check_task(task)[1]["impl"].__name__.startswith("AgriClip")
    before = dict(PIPELINE_REGISTRY.supported_tasks)
    pipelines.register_pipelines()  # again: nothing is overwritten, nothing is logged
    assert PIPELINE_REGISTRY.supported_tasks == before


def test_suitability_of_one_model_is_its_calibrated_answer(suitability, processor):
    pipe = pipeline(SUITABILITY, model=str(suitability), device="cpu")
    answer = pipe(REPORT)
    model = AgriClipForSuitability.from_pretrained(suitability).eval()
    with torch.no_grad():
        raw = model(**processor(text=[REPORT])).probabilities
    expected = float(Calibration.load(suitability).apply(raw))
    assert answer["probability"] == answer["report_probability"] == expected
    assert 0 < expected < 1 and expected != float(raw)
    assert answer["std"] is None and answer["member_probabilities"] == [] and answer["image_used"] is False
    ruled_in = (expected <= 0.9 + 1e-6, 1 - expected <= 0.2 + 1e-6)
    assert answer["sets"] == {"90%": pipelines._SETS[ruled_in]}
    json.dumps(answer, allow_nan=False)


def test_suitability_of_an_ensemble(ensemble, processor, scene):
    pipe = pipeline(SUITABILITY, model=str(ensemble), device="cpu")
    answer = pipe(REPORT, image=str(scene))
    inputs = processor(text=[REPORT], images=[str(scene)])
    expected = AgriClipEnsemble.from_pretrained(ensemble).predict(**inputs)
    assert answer["probability"] == float(expected.probabilities)
    assert answer["std"] == float(expected.std) > 0
    assert answer["member_probabilities"] == expected.member_probabilities[:, 0].tolist()
    assert answer["report_probability"] == float(expected.report_probabilities) != answer["probability"]
    assert answer["image_used"] is True and set(answer["sets"]) == {"90%"}
    alone = pipeline(SUITABILITY, model=str(ensemble), members=False, device="cpu")(REPORT, image=str(scene))
    root = AgriClipForSuitability.from_pretrained(ensemble).eval()
    with torch.no_grad():
        assert alone["probability"] == float(root(**inputs).probabilities)
    assert alone["std"] is None


def test_every_way_to_give_a_place(ensemble, scene):
    pipe = pipeline(SUITABILITY, model=str(ensemble), device="cpu")
    both = pipe(REPORT, image=str(scene))
    listed = pipe([{"text": REPORT, "image": str(scene)}, REPORT])
    assert listed == [both, pipe(REPORT)]
    with rasterio.open(scene) as raster:
        array = raster.read()
    given = pipe({"text": REPORT, "image": array}, channels=BANDS, gsd=10.0)
    # The array does not know which pixels were not measured; the sensor's own fill value, 0, says so.
    assert given["probability"] == both["probability"]
    assert pipe({"text": REPORT, "image": torch.from_numpy(array.astype(np.int32))}, channels=BANDS, gsd=10.0) == given
    image_only = pipe(image=str(scene))
    assert image_only["numbers"] == [] and image_only["image_used"]


def test_numbers_are_told_as_written_and_as_read():
    found = numbers_in(f"{REPORT} Soil pH [NUM].")
    assert [(n["text"], n["canonical_value"], n["canonical_unit"]) for n in found[:2]] == [
        ("45 in", 1143.0, "mm"),
        ("59 F", 15.0, "degC"),
    ]
    assert found[0]["value"] == 45.0 and REPORT[found[0]["start"] : found[0]["end"]] == "45 in"
    assert found[2]["value"] is None and found[2]["canonical_value"] is None


def test_an_edited_number_moves_the_answer_and_another_unit_does_not(ensemble):
    pipe = pipeline(SUITABILITY, model=str(ensemble), device="cpu")
    same, other = pipe(REPORT.replace("45 in", "1143 mm")), pipe(REPORT.replace("45 in", "20 in"))
    assert same["probability"] == pipe(REPORT)["probability"] != other["probability"]


def test_zero_shot_is_the_softmax_of_the_similarities(tmp_path, processor, scene):
    folder = saved(tmp_path, AgriClipModel, processor)
    labels = ["soybean field", "forest", "lake"]
    found = pipeline(ZERO_SHOT, model=str(folder), device="cpu")(str(scene), candidate_labels=labels)
    with torch.no_grad():
        inputs = processor(images=[str(scene)], text=[f"a satellite image of {label}" for label in labels])
        expected = AgriClipModel.from_pretrained(folder).eval()(**inputs).logits_per_image.softmax(dim=-1)[0]
    assert [one["score"] for one in found] == sorted(expected.tolist(), reverse=True)
    assert {one["label"]: one["score"] for one in found} == dict(zip(labels, expected.tolist(), strict=True))
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    told = pipeline(ZERO_SHOT, model=str(folder), device="cpu")(
        [photograph, photograph], candidate_labels="forest", sensor="rgb", hypothesis_template="{}"
    )
    assert told == [[{"score": 1.0, "label": "forest"}]] * 2


def test_segmentation_comes_back_on_the_grid_of_its_file(tmp_path, processor, scene):
    folder = saved(tmp_path / "model", AgriClipForSemanticSegmentation, processor)
    pipe = pipeline(SEGMENTATION, model=str(folder), device="cpu")
    found = pipe(str(scene), queries=["soybean field", "forest"])
    with torch.no_grad():
        inputs = processor(
            images=[str(scene)], text=["a satellite image of soybean field", "a satellite image of forest"]
        )
        logits = AgriClipForSemanticSegmentation.from_pretrained(folder).eval()(**inputs).logits[0]
    expected = logits.softmax(dim=0).numpy()
    assert [one["label"] for one in found] == ["soybean field", "forest"]
    for place, one in enumerate(found):
        assert np.isnan(one["probability"][0, :2]).all() and not one["mask"][0, :2].any()
        valid = np.isfinite(one["probability"])
        assert valid.sum() == 20 * 24 - 2
        np.testing.assert_array_equal(one["probability"][valid], expected[place][valid])
    assert ((found[0]["mask"] ^ found[1]["mask"]) == valid).all()
    path = write_geotiff(found, tmp_path / "map.tif")
    with rasterio.open(path) as raster, rasterio.open(scene) as source:
        assert (raster.transform, raster.crs, raster.shape) == (source.transform, source.crs, source.shape)
        assert raster.descriptions == ("soybean field", "forest")
        np.testing.assert_array_equal(raster.read(2), found[1]["probability"])
    assert [file.name for file in tmp_path.glob("*.tif*")].count("map.tif") == 1 and not list(tmp_path.glob(".*"))


def test_one_query_is_weighed_against_other_land(tmp_path, processor, scene):
    pipe = pipeline(SEGMENTATION, model=str(saved(tmp_path, AgriClipForSemanticSegmentation, processor)), device="cpu")
    (against,) = pipe(str(scene), queries="forest")
    pair = pipe(str(scene), queries=["forest", "other land"])
    np.testing.assert_array_equal(against["probability"], pair[0]["probability"])
    (alone,) = pipe(str(scene), queries="forest", against=[], threshold=0.3)
    valid = np.isfinite(alone["probability"])
    assert (alone["mask"] == (valid & (alone["probability"] >= 0.3))).all()
    assert not np.array_equal(alone["probability"], against["probability"])
    assert pipe(np.full((6, 8, 8), 900), queries="forest", channels=BANDS)[0]["georeference"] is None


def test_features_of_images_and_texts_share_a_space(tmp_path, processor, scene):
    folder = saved(tmp_path, AgriClipModel, processor)
    pipe = pipeline(FEATURES, model=str(folder), device="cpu")
    image, text = pipe(str(scene), return_tensors=True), pipe(text="a satellite image of forest", return_tensors=True)
    with torch.no_grad():
        output = AgriClipModel.from_pretrained(folder).eval()(
            **processor(images=[str(scene)], text=["a satellite image of forest"])
        )
    torch.testing.assert_close(image, output.image_embeds[0])
    torch.testing.assert_close(text, output.text_embeds[0])
    cells = pipe(str(scene), pool=False, return_tensors=True)
    assert cells.shape == (5 * 6, 96)
    tower = pipe(str(scene), space="tower")
    assert isinstance(tower, list) and len(tower) == 96
    assert pipe([str(scene)] * 2) == [image.tolist()] * 2


def test_weights_that_were_not_fitted_to_a_task_are_refused(suitability, tmp_path, processor):
    with pytest.raises(ValueError, match="was not fitted to name what an image shows"):
        pipeline(ZERO_SHOT, model=str(suitability), device="cpu")
    folder = saved(tmp_path, AgriClipModel, processor)
    for task in (SUITABILITY, SEGMENTATION):
        with pytest.raises(ValueError, match="was not fitted to"):
            pipeline(task, model=str(folder), device="cpu")
    features = pipeline(FEATURES, model=str(suitability), device="cpu")
    with pytest.raises(ValueError, match="was not fitted to compare"):
        features(np.full((6, 8, 8), 900), channels=BANDS, space="shared")
    assert len(features(np.full((6, 8, 8), 900), channels=BANDS)) == 96


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (None, {}, "Give a report, an image"),
        ({"txt": "a"}, {}, "has `text` and `image`, not `txt`"),
        ({}, {}, "Give a report, an image"),
        (REPORT, {"sensr": "hls"}, "no option 'sensr'"),
        (REPORT, {"batch_size": 4}, "leave batch_size away"),
        (REPORT, {"image": "nowhere.tif"}, "'nowhere.tif' does not exist"),
        (REPORT, {"image": np.zeros((5, 9, 9))}, "found 5 in an array"),
        (REPORT, {"image": np.zeros((6, 9, 9)), "channels": BANDS, "max_pixels": 80}, "9 x 9 pixels, more than 80"),
        ("rain 5 mm " * 300, {}, "tokens but the limit is 512"),
    ],
)
def test_bad_input_is_told_in_one_sentence(suitability, inputs, options, message):
    pipe = pipeline(SUITABILITY, model=str(suitability), device="cpu")
    with pytest.raises(ValueError, match=message) as error:
        pipe(inputs, **options)
    assert "\n" not in str(error.value)


def test_bad_queries_are_told(tmp_path, processor, scene):
    pipe = pipeline(SEGMENTATION, model=str(saved(tmp_path, AgriClipForSemanticSegmentation, processor)), device="cpu")
    for options, message in (({}, "queries="), ({"queries": ["a"], "template": "no place"}, "where the text goes")):
        with pytest.raises(ValueError, match=message):
            pipe(str(scene), **options)
    with pytest.raises(ValueError, match="more than 100"):
        pipe(str(scene), queries=["a"], max_pixels=100)


def test_a_raster_is_measured_before_it_is_read(scene, tmp_path):
    place = read_georeference(str(scene))
    assert place["transform"] == [10.0, 0.0, 500_000.0, 0.0, -10.0, 5_300_000.0]
    assert (place["height"], place["width"]) == (20, 24) and "32633" in place["crs"]
    (tmp_path / "text.tif").write_text("no raster")
    assert read_georeference(str(tmp_path / "text.tif")) is None  # the processor says what is wrong
    assert read_georeference(np.zeros((3, 4, 4))) is None
    half = resized(place, 10, 12)
    assert half["transform"] == [20.0, 0.0, 500_000.0, 0.0, -20.0, 5_300_000.0]
    assert math.isclose(half["transform"][0] * 12, place["transform"][0] * 24)


def test_tasks_follow_from_what_was_fitted():
    def tasks(name, **fields):
        config = AgriClipConfig(**fields)
        config.architectures = [name]
        return {task: entry["pt"] for task, entry in custom_pipelines(config).items()}

    assert tasks("AgriClipForSuitability") == {
        FEATURES: ["AutoModelForSequenceClassification"],
        SUITABILITY: ["AutoModelForSequenceClassification"],
    }
    aligned = tasks("AgriClipForSuitability", use_pretraining_heads=True, alignment_weight=1.0)
    assert set(aligned) == {FEATURES, SUITABILITY, ZERO_SHOT}
    assert set(tasks("AgriClipForPreTraining")) == set(tasks("AgriClipModel")) == {FEATURES, ZERO_SHOT}
    assert set(tasks("AgriClipForSemanticSegmentation")) == {FEATURES, SEGMENTATION}


CLEAN = """
    import json, sys

    class Blocked:
        # An editable install puts the packages on the path of every process; here they are not to be had.
        def find_spec(self, name, path=None, target=None):
            if name in ("modeling_agriclip", "processing", "training", "mapping", "evaluation"):
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    sys.meta_path.insert(0, Blocked())
    from transformers import pipeline
    pipe = pipeline("agriclip-suitability", model=sys.argv[1], trust_remote_code=True, device="cpu")
    assert type(pipe).__module__.startswith("transformers_modules"), type(pipe)
    assert type(pipe.model).__module__.startswith("transformers_modules"), type(pipe.model)
    print(json.dumps(pipe(sys.argv[2], image=sys.argv[3])))
"""


def test_remote_code_answers_the_same_where_no_package_of_ours_is(ensemble, scene, tmp_path):
    folder = tmp_path / "release"
    model = AutoModelForSequenceClassification.from_pretrained(ensemble)
    assert type(model) is AgriClipForSuitability
    model.config.custom_pipelines = custom_pipelines(model.config)
    model.save_pretrained(folder)
    pipe = pipeline(SUITABILITY, model=str(ensemble), device="cpu")
    pipe.processor.save_pretrained(folder)
    pipe.ensemble.save_pretrained(folder)
    # What nothing imports is copied by hand.
    custom_object_save(pipe, folder)
    custom_object_save(pipe.ensemble, folder)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", textwrap.dedent(CLEAN), str(folder), REPORT, str(scene)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == pipe(REPORT, image=str(scene))
