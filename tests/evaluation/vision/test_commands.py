"""The commands: what they print, write and refuse."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from evaluation.results import read_results
from evaluation.vision import command
from evaluation.vision.encoders import load_encoder
from evaluation.vision.units import BANDS
from processing.errors import AgriClipError
from tests.evaluation.vision.conftest import write_photograph, write_scene


@pytest.fixture
def run() -> Any:
    """Calls a command and returns what it printed; errors come through."""
    app = typer.Typer(pretty_exceptions_enable=False)
    for name in ("segmentation", "zero_shot", "retrieval", "probe", "embed", "classify", "retrieve"):
        app.command(name.replace("_", "-"))(getattr(command, name))

    def call(*arguments: Any) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_commands_write_results_pictures_and_json(tmp_path: Path, agriclip_folder: Path, run: Any) -> None:
    images, masks, _ = write_scene(tmp_path)
    (tmp_path / "c.csv").write_text("code,name\n5,soybean\n111,open water\n")
    (tmp_path / "only.txt").write_text("3\n4\n5\n")
    (tmp_path / "train.txt").write_text("0\n1\n2\n")
    common = ["--model", agriclip_folder, "--images", images, "--device", "cpu"]
    out = tmp_path / "seg"
    told = json.loads(
        run(
            *(
                "segmentation",
                *common,
                "--masks",
                masks,
                "--classes",
                tmp_path / "c.csv",
                "--only",
                tmp_path / "only.txt",
            ),
            *("--train-only", tmp_path / "train.txt", "--output", out, "--json"),
        )
    )
    scores, content = read_results(out)
    assert {s.metric for s in scores} >= {"accuracy", "mean_iou", "iou_soybean", "iou_open water"}
    assert any(s.against == "gradient boosting on pixels" for s in scores)
    assert told["tiles"] == 3 and content["about"]["family"] == "agriclip"
    assert scores[0].dataset == tmp_path.name
    for name in ("results", "confusion", "tiles"):
        assert Path(told["files"][name]).stat().st_size > 500
    with pytest.raises(AgriClipError, match="both trained on and scored"):
        run(
            "segmentation",
            *common,
            "--masks",
            masks,
            "--classes",
            tmp_path / "c.csv",
            "--train-only",
            tmp_path / "train.txt",
        )
    text = run("zero-shot", *common, "--labels", masks, "--classes", tmp_path / "c.csv", "--output", tmp_path / "z")
    assert "Balanced accuracy" in text and "6 of 6 images have one" in text.replace("\n", " ")
    assert "Other land stood beside the classes" in text
    assert "other land" in read_results(tmp_path / "z")[1]["details"]["other_land_beside"]
    text = run(
        *("probe", *common, "--labels", masks, "--classes", tmp_path / "c.csv", "--chip", 8, "--block", 480),
        *("--output", tmp_path / "p", "--folds", 3),
    )
    assert "AgriCLIP less" in text.replace("\n", " ") or "band" in text
    assert {s.model for s in read_results(tmp_path / "p")[0]} >= {"AgriCLIP", "band statistics, linear"}
    run(
        *("probe", *common, "--labels", masks, "--classes", tmp_path / "c.csv", "--dense", "--output", tmp_path / "d"),
        *("--block", 480, "--json"),
    )


def test_plain_uses_write_tables(tmp_path: Path, clip_folder: Path, run: Any) -> None:
    for i in range(3):
        write_photograph(tmp_path / "i" / f"{i}.png", (80 * i, 90, 100))
    common = ["--model", clip_folder, "--images", tmp_path / "i", "--device", "cpu", "--quiet"]
    run("embed", *common, "--output", tmp_path / "e.npy")
    values = np.load(tmp_path / "e.npy")
    assert values.shape == (3, 12) and np.linalg.norm(values, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    import pandas as pd

    run("embed", *common, "--output", tmp_path / "e.parquet")
    table = pd.read_parquet(tmp_path / "e.parquet")
    assert table["image"].tolist() == ["0.png", "1.png", "2.png"]
    np.testing.assert_allclose(np.stack(table["vector"]), values, atol=1e-6)
    run("classify", *common, "--class", "soybean", "--class", "open water", "--output", tmp_path / "c.csv")
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    for row in rows:
        assert float(row["soybean"]) + float(row["open water"]) == pytest.approx(1, abs=1e-4)
        assert row["class"] == max(("soybean", "open water"), key=lambda name: float(row[name]))
    told = json.loads(
        run("retrieve", *common, "--query", "red roofs", "--top", 2, "--output", tmp_path / "r.csv", "--json")
    )
    assert [row["rank"] for row in told["found"]] == [1, 2]
    encoder = load_encoder(clip_folder, "cpu")
    text = encoder.encode_texts(["red roofs"])[0]
    cosines = values @ text / np.linalg.norm(text)
    assert told["found"][0]["cosine"] == pytest.approx(cosines.max(), abs=1e-5)
    with pytest.raises(AgriClipError, match="written as"):
        run("embed", *common, "--output", tmp_path / "e.xlsx")
    with pytest.raises(AgriClipError, match="at least two classes"):
        run("classify", *common, "--class", "soybean")


def test_retrieval_and_folders_of_classes_through_commands(tmp_path: Path, siglip_folder: Path, run: Any) -> None:
    for name, colour in (("River/a", (20, 30, 200)), ("River/b", (30, 30, 190)), ("Forest/c", (20, 160, 30))):
        write_photograph(tmp_path / "i" / f"{name}.png", colour)
    (tmp_path / "captions.csv").write_text("file,caption\na.png,blue water\nb.png,blue water\nc.png,many trees\n")
    common = ["--model", siglip_folder, "--images", tmp_path / "i", "--device", "cpu", "--json"]
    told = json.loads(run("retrieval", *common, "--captions", tmp_path / "captions.csv", "--output", tmp_path / "r"))
    assert told["texts"] == 2 and told["repeated_captions"] == 1
    assert {s["metric"] for s in told["scores"]} >= {"image_to_text_recall_at_1", "mean_recall"}
    assert {s["model"] for s in told["scores"]} == {str(siglip_folder)}
    told = json.loads(run("zero-shot", *common, "--protocol", "skyscript", "--output", tmp_path / "z"))
    assert told["protocol"]["class_strings"] == {"Forest": "forest", "River": "river"}
    assert len(told["protocol"]["templates"]) == 2
    with pytest.raises(AgriClipError, match="no protocol 'sky'"):
        run("zero-shot", *common, "--protocol", "sky")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data; the test is skipped when it is absent."""
    import os

    folder = Path(os.environ.get("AGRICLIP_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
    if not (folder / "landsat8_cdl").is_dir():
        pytest.skip(f"the real data are not in {folder}; set AGRICLIP_DATA to their folder")
    return folder


@pytest.mark.slow
@pytest.mark.realdata
def test_real_tiles_chips_and_series_go_through(
    tmp_path: Path, agriclip_folder: Path, real_data: Path, run: Any
) -> None:
    (tmp_path / "c.csv").write_text("code,name\n5,soybean\n176,grass\n23,spring wheat\n1,corn\n")
    common = ["--model", agriclip_folder, "--device", "cpu", "--json", "--output", tmp_path / "o"]
    landsat, sentinel = real_data / "landsat8_cdl", real_data / "sentinel_examples"
    told = json.loads(
        run(
            *("segmentation", *common, "--images", landsat / "images", "--masks", landsat / "masks", "--limit", 3),
            *("--classes", tmp_path / "c.csv"),
        )
    )
    assert told["tiles"] == 3 and told["pixels"] > 10_000
    (tmp_path / "l.csv").write_text("code,name\n1,water\n2,trees\n4,crops\n5,built\n7,snow\n9,rangeland\n")
    for level in ("S2L2A", "S2L1C"):
        told = json.loads(
            run(
                *("probe", *common, "--images", sentinel / level, "--labels", sentinel / "LULC", "--chip", 56),
                *("--classes", tmp_path / "l.csv", "--folds", 2),
            )
        )
        assert told["features"][BANDS] == 5 * (12 if level == "S2L2A" else 13)
    series = real_data / "mato_grosso_modis" / "samples.npz"
    told = json.loads(
        run("probe", *common, "--series", series, "--limit", 60, "--folds", 2, "--features", "projected")
    )
    assert told["units"].startswith("60 series of 23 dates")
