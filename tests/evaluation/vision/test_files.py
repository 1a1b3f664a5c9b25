"""Images, labels, classes, captions and protocols: what files say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.vision.classes import IGNORE, ClassTable, commonest, mask_files, read_classes
from evaluation.vision.images import find_images
from evaluation.vision.labels import image_captions, image_labels, mask_labels, read_captions, relabel
from evaluation.vision.protocols import DATASETS, PROTOCOLS, class_texts, find_dataset, get_protocol
from evaluation.vision.reading import physical, to_rgb
from processing.errors import AgriClipError
from tests.evaluation.vision.conftest import write_photograph, write_tile


def test_the_templates_of_rs5m_are_105_different_ones_in_correct_english() -> None:
    templates = get_protocol("rs5m").templates["*"]
    assert len(templates) == len(set(templates)) == 105
    assert all(t.count("{}") == 1 and t.endswith(".") for t in templates)
    assert sum("aerial" in t for t in templates) == 35
    assert templates[0] == "a remote sensing image of many {}."
    assert "an aerial image of a cool {}." in templates and "a jpeg corrupted aerial image of the {}." in templates
    assert not any("a aerial" in t for t in templates)


def test_the_classes_of_the_benchmarks_are_complete() -> None:
    sizes = {name: len(classes) for name, classes in DATASETS.items()}
    assert sizes == {"EuroSAT": 10, "RESISC45": 45, "AID": 30, "UCM": 21}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["AnnualCrop", "Forest", "SeaLake", "River", "Highway"], "EuroSAT"),
        (["baseballdiamond", "denseresidential", "tenniscourt", *list(DATASETS["UCM"])], "UCM"),
        (list(DATASETS["RESISC45"].values()), "RESISC45"),
        (["soybean", "corn"], None),
        (["forest", "river"], None),
    ],
)
def test_a_benchmark_is_known_by_its_classes(names: list[str], expected: str | None) -> None:
    assert find_dataset(names) == expected


def test_strings_belong_to_names_and_not_to_places() -> None:
    names = ["SeaLake", "AnnualCrop", "Forest", "HerbaceousVegetation", "Industrial", "River"]
    said = {protocol: class_texts(get_protocol(protocol), names).strings for protocol in PROTOCOLS}
    assert said["openai"][:2] == ("lake or sea", "annual crop land")
    assert said["openai"][3] == "brushland or shrubland"
    assert said["rs5m"][:2] == ("sealake", "annualcrop")
    assert said["remoteclip"][1] == said["skyscript"][1] == "annual crop"
    templates = class_texts(get_protocol("openai"), list(DATASETS["RESISC45"])).templates
    assert len(set(templates)) == 18 and templates[0] == "satellite imagery of {}."
    prompts = class_texts(get_protocol("skyscript"), names).prompts()[1]
    assert prompts == ["a satellite photo of annual crop.", "a satellite image of annual crop"]


def test_words_are_made_of_names_of_no_benchmark() -> None:
    texts = class_texts(get_protocol("agriclip"), ["Soy_Corn", "WinterWheat", "a field of soybean plants"])
    assert texts.strings == ("soy corn", "winter wheat", "a field of soybean plants")
    with pytest.raises(AgriClipError, match="both told as"):
        class_texts(get_protocol("agriclip"), ["Soy_Corn", "soy corn"])
    with pytest.raises(AgriClipError, match="no {}"):
        class_texts(get_protocol("agriclip"), ["a", "b"], template="a satellite image")
    with pytest.raises(AgriClipError, match="skyscript"):
        get_protocol("skyscrip")


def test_captions_are_written_as_the_protocol_says() -> None:
    text = "many Green trees"
    written = {name: PROTOCOLS[name].caption(text) for name in PROTOCOLS}
    assert written["remoteclip"] == "Many green trees"
    assert written["skyscript"] == "a satellite image. many Green trees"
    assert written["rs5m"] == written["agriclip"] == text
    assert not PROTOCOLS["rs5m"].unique_texts and PROTOCOLS["skyscript"].unique_texts


def test_classes_are_read_from_any_kind_of_file(tmp_path: Path) -> None:
    files = {
        "a.csv": "code,name\n5,soybean\n83,wetland and water\n111,wetland and water\n0,ignore\n*,other\n",
        "a.json": json.dumps({"soybean": 5, "wetland and water": [83, 111], "ignore": [0], "other": "*"}),
        "b.json": json.dumps(
            {"5": "soybean", "83": "wetland and water", "111": "wetland and water", "0": "-", "*": "other"}
        ),
        "a.yaml": "5: soybean\n83: wetland and water\n111: wetland and water\n0: ignore\n'*': other\n",
    }
    codes = np.array([[5, 83, 111], [0, 7, -1]])
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        table = read_classes(tmp_path / name)
        assert table.names == ["soybean", "wetland and water", "other"], name
        expected = [[0, 1, 1], [2, 2, IGNORE]]
        expected[1][0] = table.index(np.array([0]))[0]
        np.testing.assert_array_equal(table.index(codes), expected)
        assert table.index(np.array([300, 1_000_000])).tolist() == [2, 2]
    (tmp_path / "a.txt").write_text("soybean\ncorn\n")
    assert read_classes(tmp_path / "a.txt").codes == {0: 0, 1: 1}
    (tmp_path / "cdl.csv").write_text("No.,Crop,,,,\n1,Corn,,,,\n5,Soybeans,,,,\n")
    assert read_classes(tmp_path / "cdl.csv").codes == {1: 0, 5: 1}


def test_a_code_that_is_not_scored_stays_so_beside_a_class_for_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("code,name\n5,soybean\n0,ignore\n*,other\n")
    assert read_classes(tmp_path / "a.csv").index(np.array([5, 0, 7, -1])).tolist() == [0, IGNORE, 1, IGNORE]
    (tmp_path / "b.csv").write_text("code,name\n5,soybean\n")
    assert read_classes(tmp_path / "b.csv").index(np.array([5, 0, 900])).tolist() == [0, IGNORE, IGNORE]


def test_the_commonest_class_is_of_all_pixels() -> None:
    table = ClassTable(["water", "corn"], {83: 0, 111: 0, 1: 1})
    assert commonest(np.array([83, 83, 111, 111, 1, 1, 1]), table) == 0
    assert commonest(np.array([83, 7, 7]), table) == IGNORE
    assert commonest(np.array([-1, -1, 1]), table) == 1


def test_bad_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("foo,bar\n1,2\n")
    with pytest.raises(AgriClipError, match="use code,name"):
        read_classes(tmp_path / "a.csv")
    with pytest.raises(AgriClipError, match="does not exist"):
        read_classes(tmp_path / "b.csv")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(AgriClipError, match="cannot be read"):
        read_classes(tmp_path / "c.json")


def test_labels_come_from_folders_or_tables(tmp_path: Path) -> None:
    for name in ("River/a.png", "River/b.png", "Forest/c.png"):
        write_photograph(tmp_path / "images" / name, (80, 90, 100))
    table = find_images(tmp_path / "images")
    labels = image_labels(table, None)
    assert labels.names == ["Forest", "River"] and labels.index.tolist() == [0, 1, 1]
    (tmp_path / "l.csv").write_text(
        "filename,class,lon,lat,split\nb.png,2,10,50,train\nc,10,11,51,test\nz.png,2,0,0,x\n"
    )
    labels = image_labels(table, tmp_path / "l.csv")
    assert labels.names == ["2", "10"] and labels.index.tolist() == [1, IGNORE, 0]
    assert labels.split == ["test", "", "train"] and labels.place is not None
    np.testing.assert_array_equal(labels.place[[0, 2]], [[11, 51], [10, 50]])
    assert "1 labels have no image" in labels.understood and "2 of 3" in labels.understood
    (tmp_path / "l.json").write_text(json.dumps({"River/a.png": "wet", "c.png": "dry"}))
    assert image_labels(table, tmp_path / "l.json").index.tolist() == [0, 1, IGNORE]
    (tmp_path / "n.csv").write_text("file,label\nq.png,1\n")
    with pytest.raises(AgriClipError, match="None of the 1 files"):
        image_labels(table, tmp_path / "n.csv")


def test_labels_are_merged_and_named_by_a_classes_file(tmp_path: Path) -> None:
    for name in "abc":
        write_photograph(tmp_path / f"{name}.png", (80, 90, 100))
    (tmp_path / "l.csv").write_text("file,label\na,5\nb,83\nc,7\n")
    table = find_images(tmp_path)
    classes = ClassTable(
        ["a field of soybean plants", "water"], {}, labels={"5": "a field of soybean plants", "83": "water"}
    )
    labels, left = relabel(image_labels(table, tmp_path / "l.csv"), classes)
    assert labels.names == classes.names and labels.index.tolist() == [0, 1, IGNORE]
    assert left == pytest.approx(1 / 3)
    with pytest.raises(AgriClipError, match="None of the labels"):
        relabel(image_labels(table, tmp_path / "l.csv"), ClassTable(["x"], {}, labels={"99": "x"}))


def test_masks_are_found_by_name_and_give_dominant_classes(tmp_path: Path) -> None:
    for name, code in (("a", 5), ("b", 7)):
        write_tile(tmp_path / "images" / f"{name}.tif", np.ones((6, 8, 8), np.int16))
        write_tile(tmp_path / "masks" / f"{name}.tif", np.full((1, 8, 8), code, np.uint8), names=None)
    write_tile(tmp_path / "images" / "c.tif", np.ones((6, 8, 8), np.int16))
    table = find_images(tmp_path / "images")
    assert [None if f is None else f.stem for f in mask_files(table, tmp_path / "masks")] == ["a", "b", None]
    labels = mask_labels(table, tmp_path / "masks", ClassTable(["soybean"], {5: 0}))
    assert labels.index.tolist() == [0, IGNORE, IGNORE]
    with pytest.raises(AgriClipError, match="no mask for any image"):
        mask_files(find_images(tmp_path / "images").subset([2]), tmp_path / "masks")


def test_captions_of_karpathy_json_take_the_test_split(tmp_path: Path) -> None:
    images = [
        {"filename": "a.png", "split": "test", "sentences": [{"raw": "one ."}, {"raw": "two ."}]},
        {"filename": "b.png", "split": "train", "sentences": [{"raw": "three ."}]},
    ]
    (tmp_path / "d.json").write_text(json.dumps({"images": images, "dataset": "rsicd"}))
    assert read_captions(tmp_path / "d.json")[0] == {"a.png": ["one .", "two ."]}
    assert read_captions(tmp_path / "d.json", "train")[0] == {"b.png": ["three ."]}
    with pytest.raises(AgriClipError, match="no split 'val'"):
        read_captions(tmp_path / "d.json", "val")
    (tmp_path / "d.csv").write_bytes("filename,title\na.png,多 trees\na.png,two\n".encode("gb18030"))
    assert read_captions(tmp_path / "d.csv")[0] == {"a.png": ["多 trees", "two"]}
    for name in "ab":
        write_photograph(tmp_path / f"{name}.png", (80, 90, 100))
    captions = image_captions(find_images(tmp_path), tmp_path / "d.json")
    assert captions.texts == [["one .", "two ."], []] and "1 of 2 images have none" in captions.understood


@pytest.mark.parametrize(
    ("count", "names", "dtype", "sensor"),
    [
        (13, None, "int16", "sentinel2_l1c"),
        (12, None, "uint16", "sentinel2_l2a"),
        (6, ("blue", "green", "red", "nir", "swir1", "swir2"), "int16", "landsat8"),
        (4, ("B04", "B03", "B02", "B08"), "uint16", "sentinel2_l2a"),
        (3, None, "uint8", "rgb"),
    ],
)
def test_the_file_says_what_its_bands_are(tmp_path: Path, count: int, names: object, dtype: str, sensor: str) -> None:
    values = (np.arange(count * 64).reshape(count, 8, 8) % 200 + 20).astype(dtype)
    write_tile(tmp_path / "a.tif", values, names=names)
    image = find_images(tmp_path).read(0)
    assert image is not None and image.sensor == sensor
    assert image.photograph == (sensor == "rgb")
    assert image.place == (120.0, -120.0) and image.edge == 240.0


def test_bands_that_nobody_knows_are_asked_for(tmp_path: Path) -> None:
    write_tile(tmp_path / "a.tif", np.ones((5, 8, 8), np.int16), names=None)
    with pytest.raises(AgriClipError, match="5 bands without names.*--sensor"):
        find_images(tmp_path).read(0)
    bands = ["B02", "B03", "B04", "B08", "B11"]
    image = find_images(tmp_path, sensor="sentinel2_l2a", bands=bands).read(0)
    assert image is not None and image.stack.names == bands
    with pytest.raises(AgriClipError, match="2 bands are named"):
        find_images(tmp_path, bands=["red", "nir"]).read(0)


def test_reflectance_becomes_colours_by_the_stated_rule(tmp_path: Path) -> None:
    values = np.zeros((6, 4, 4), np.int16)
    values[:3] = np.array([30, 150, 300])[:, None, None]  # blue, green, red
    write_tile(tmp_path / "a.tif", values, scale=1e-3)
    image = find_images(tmp_path).read(0)
    assert image is not None
    np.testing.assert_allclose(physical(image, ("red",))[0], 0.3, rtol=1e-6)
    # reflectance x 255 / 0.3
    assert to_rgb(image)[0, 0].tolist() == [255, round(0.15 * 255 / 0.3), round(0.03 * 255 / 0.3)]
    fractions = np.full((6, 4, 4), 0.15, np.float32)
    write_tile(tmp_path / "b.tif", fractions)
    other = find_images(tmp_path).read(1)
    assert other is not None and to_rgb(other)[0, 0].tolist() == [128, 128, 128]
    write_tile(tmp_path / "c.tif", np.ones((2, 4, 4), np.int16), names=("nir", "swir1"))
    third = find_images(tmp_path).read(2)
    assert third is not None
    with pytest.raises(AgriClipError, match="needs red, green and blue"):
        to_rgb(third)


def test_unreadable_images_are_counted_and_many_are_refused(tmp_path: Path) -> None:
    for i in range(3):
        write_photograph(tmp_path / f"{i}.png", (10, 20, 30), size=8)
    (tmp_path / "9.png").write_bytes(b"not a picture")
    table = find_images(tmp_path)
    assert [numbers for numbers, _ in table.batches(2)] == [[0, 1], [2]]
    assert [key for key, _ in table.unreadable] == ["9.png"]
    assert table.told()["unreadable"][0]["image"] == "9.png"
    (tmp_path / "8.png").write_bytes(b"")
    with pytest.raises(AgriClipError, match="2 of 5 images .* more than 1 %"):
        list(find_images(tmp_path).batches(2))


def test_images_come_from_parquet_and_saved_data_sets(tmp_path: Path) -> None:
    import datasets

    raw = write_photograph(tmp_path / "p" / "a.png", (200, 30, 30)).read_bytes()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["wet", "dry"]),
            "captions": datasets.List(datasets.Value("string")),
        }
    )
    rows = {"image": [{"bytes": raw, "path": None}] * 2, "label": [1, 0], "captions": [["x", "y"], ["z"]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "parquet" / "train.parquet")
    for folder in ("saved", "parquet"):
        table = find_images(tmp_path / folder)
        image = table.read(0)
        assert image is not None and image.photograph and to_rgb(image).shape == (32, 32, 3)
        labels = image_labels(table, None)
        assert [labels.names[i] for i in labels.index] == ["dry", "wet"]
        assert image_captions(table, None).texts == [["x", "y"], ["z"]]
    with pytest.raises(AgriClipError, match="no folder"):
        find_images(tmp_path / "nothing" / "here")
    with pytest.raises(AgriClipError, match="no images"):
        (tmp_path / "empty").mkdir()
        find_images(tmp_path / "empty")


def test_only_some_images_are_taken(tmp_path: Path) -> None:
    for i in range(9):
        write_photograph(tmp_path / f"{i}.png", (10, 20, 30), size=8)
    assert [ref.key for ref in find_images(tmp_path, limit=3).refs] == ["0.png", "4.png", "8.png"]
    assert [ref.key for ref in find_images(tmp_path, only=["3", "5.png"]).refs] == ["3.png", "5.png"]
    with pytest.raises(AgriClipError, match="None of the 1 names"):
        find_images(tmp_path, only=["x"])
