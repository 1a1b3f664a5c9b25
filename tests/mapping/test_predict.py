"""Maps of a study: whole whatever interrupts them, the same whoever makes them, nodata where an input is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate

from mapping import predict
from mapping.layers import SET_LEVEL
from mapping.outputs import read_map
from mapping.predict import UNFINISHED, map_study
from mapping.predictor import SuitabilityPredictor
from modeling_agriclip.calibration_agriclip import Calibration, ConformalLevel
from processing.errors import AgriClipError
from processing.study import load_study
from processing.study_data import StudyData
from processing.virtual_landscape import make_virtual_landscape
from training.fit import fit_study

SCRIPT = """
import sys
from mapping.predict import map_study
from processing.study import load_study
study = load_study(sys.argv[1])
study = study.model_copy(update={"map": study.map.model_copy(update={"block_rows": 2})})
map_study(study, sys.argv[2], sys.argv[3], scenarios=["warm"], quiet=True)
"""


@pytest.fixture(scope="module")
def landscape(tmp_path_factory):
    return make_virtual_landscape(tmp_path_factory.mktemp("landscape"), seed=2, height=24, width=24, sites=120)


@pytest.fixture(scope="module")
def model(landscape, tmp_path_factory):
    study = load_study(landscape)
    training = study.training.model_copy(update={"members": 2, "epochs": 1, "preset": "light"})
    folder = tmp_path_factory.mktemp("fit")
    return Path(fit_study(study.model_copy(update={"training": training}), folder, quiet=True)["model_dir"])


def begin(arguments, tmp_path, launcher=()):
    script = tmp_path / "map.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment)


def files_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "maps").iterdir()}


def test_killed_shared_and_undisturbed_maps_are_equal_to_the_byte(landscape, model, tmp_path):
    study = load_study(landscape)
    study = study.model_copy(update={"map": study.map.model_copy(update={"block_rows": 2})})
    map_study(study, model, tmp_path / "whole", scenarios=["warm"], quiet=True)
    whole = files_of(tmp_path / "whole")
    assert len([name for name in whole if name.endswith(".tif")]) == 2 * 10

    process = begin([landscape, model, tmp_path / "killed"], tmp_path)
    partial, end = tmp_path / "killed" / UNFINISHED, time.monotonic() + 120
    while not list(partial.glob("0*.safetensors")):
        assert process.poll() is None and time.monotonic() < end, "the map could not be killed in its middle"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "maps").exists()
    assert begin([landscape, model, tmp_path / "killed"], tmp_path).wait() == 0
    assert not partial.exists()
    assert files_of(tmp_path / "killed") == whole

    two = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29631")
    assert begin([landscape, model, tmp_path / "two"], tmp_path, two).wait() == 0
    assert files_of(tmp_path / "two") == whole


def test_another_plan_is_refused_and_can_be_begun_anew(landscape, model, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    study = load_study(landscape)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict, "_assemble", stop)
        map_study(study, model, tmp_path, scenarios=["warm"], quiet=True)
    with monkeypatch.context() as patch, pytest.raises(AgriClipError, match="another plan, which differs in code"):
        patch.setattr(predict, "fingerprint_code", lambda *parts: "other code")
        map_study(study, model, tmp_path, scenarios=["warm"], quiet=True)
    with pytest.raises(AgriClipError, match=r"another plan, which differs in scenarios .*--restart"):
        map_study(study, model, tmp_path, scenarios=["hot"], quiet=True)
    maps = map_study(study, model, tmp_path, scenarios=["hot"], restart=True, quiet=True)
    assert set(maps) == {"present", "hot"}
    assert not (tmp_path / UNFINISHED).exists()


def test_layers_are_valid_share_nodata_and_say_what_they_are(landscape, model, tmp_path):
    study = load_study(landscape)
    climate = study.path(next(group.file for group in study.predictors))
    before = climate.read_bytes()
    try:
        with rasterio.open(climate, "r+") as raster:
            band = raster.read(2)
            band[3:5, 7:11] = raster.nodata
            raster.write(band, 2)
        data = StudyData(study)
        missing = ~np.isfinite(data.predictor_grid()).all(axis=0)
        maps = map_study(study, model, tmp_path, scenarios=[], quiet=True)
    finally:
        climate.write_bytes(before)
    assert missing[3:5, 7:11].all()
    for layer, path in maps["present"].items():
        assert cog_validate(path, quiet=True)[0], layer
        with rasterio.open(path) as raster:
            assert raster.transform == data.grid.transform
            assert raster.tags()["model_sha256"] == SuitabilityPredictor(model).hash
            assert raster.tags()["long_name"] and raster.tags()["units"]
            np.testing.assert_array_equal(raster.dataset_mask() == 0, missing, err_msg=layer)
    classes = read_map(maps["present"]["applicability"])
    far = read_map(maps["present"]["dissimilarity"])
    with rasterio.open(maps["present"]["applicability"]) as raster:
        threshold = float(raster.tags()["threshold"])
    np.testing.assert_array_equal(classes[~missing] == 2, far[~missing] > np.float32(threshold))


def test_prediction_sets_are_mapped_where_the_model_has_thresholds(landscape, model, tmp_path):
    level = ConformalLevel(alpha=round(1 - SET_LEVEL, 6), pooled=(0.5, 0.7))
    Calibration(levels=(level,), counts=(50, 50)).save(model)
    try:
        maps = map_study(load_study(landscape), model, tmp_path, scenarios=[], quiet=True)
    finally:
        (model / "calibration.json").unlink()
    sets, chance = (read_map(maps["present"][layer]) for layer in ("prediction_set", "probability"))
    # Of two members the median is the mean.
    unsuitable, suitable = chance <= 0.5, 1 - chance <= 0.7
    wanted = np.select([unsuitable & suitable, suitable, unsuitable], [3, 2, 1], default=4)
    clear = np.isfinite(chance) & (np.abs(chance - 0.5) > 1e-5) & (np.abs(chance - 0.3) > 1e-5)
    np.testing.assert_array_equal(sets[clear], wanted[clear])
