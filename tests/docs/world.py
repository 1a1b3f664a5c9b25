"""A folder in which everything that the book's commands name exists, as small as it can be: `STUDY`, `tiles`, ..."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from affine import Affine
from PIL import Image as Picture

from processing.virtual_landscape import make_virtual_landscape
from tests.docs.pages import ROOT
from tests.evaluation.vision.conftest import BANDS, write_agriclip, write_clip, write_photograph, write_tile

#: Metres in EPSG:5070: 90 W and the place 88 W, 37 N lie in the landscape.
MIDDLE = (590_000.0, 1_590_000.0)
SCENARIO = "ssp585_2080_gfdl-esm4"


def make_world(folder: Path) -> None:
    """Write everything that the commands read."""
    _study(folder)
    write_agriclip(folder / "out/fields/model")
    for name in ("agriclip", "MODEL"):
        (folder / name).symlink_to(folder / "out/fields/model")
    write_clip(folder / "openai/clip-vit-base-patch32")
    _tiles(folder)
    (folder / "studies").symlink_to(ROOT / "studies")
    (folder / "DATA").symlink_to(folder)
    for name, colour in (("a", (20, 30, 200)), ("b", (30, 30, 190)), ("c", (20, 160, 30))):
        write_photograph(folder / f"rsitmd/images/{name}.png", colour)
    sentences = [("a.png", "blue water"), ("b.png", "a wide river"), ("c.png", "many trees")]
    records = [{"filename": name, "split": "test", "sentences": [{"raw": said}]} for name, said in sentences]
    (folder / "rsitmd/dataset_RSITMD.json").write_text(json.dumps({"images": records}))
    (folder / "downloads/million-aid").mkdir(parents=True)
    (folder / "downloads/million-aid/train.zip").write_bytes(_archive("train", ".jpg"))


def _study(folder: Path) -> None:
    """A landscape around `MIDDLE` whose first scenario is that of a climate model, in `STUDY`."""
    path = make_virtual_landscape(folder, seed=3, height=16, width=24, sites=90)
    with rasterio.open(folder / "climate_present.tif") as raster:
        old = raster.bounds
    east, north = MIDDLE[0] - (old.left + old.right) / 2, MIDDLE[1] - (old.bottom + old.top) / 2
    for name in folder.glob("*.tif"):
        with rasterio.open(name, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as raster:
            raster.transform = Affine.translation(east, north) @ raster.transform
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (folder / "labels.csv").unlink()
    for row in rows:
        row["x"], row["y"] = str(float(row["x"]) + east), str(float(row["y"]) + north)
    _table(folder / "places.csv", rows)
    # Between the fitted places lie others, of another table.
    for number, row in enumerate(rows):
        row["id"], row["x"] = f"{number % 4}{number:03d}", str(float(row["x"]) + 10_000)
    _table(folder / "other_counties.csv", rows)
    content = yaml.safe_load(path.read_text())
    content |= {"name": "us", "data": ".", "scenarios": content["scenarios"][:1]}
    content["scenarios"][0] |= {"name": SCENARIO, "ssp": "ssp585", "period": 2080, "climate_model": "GFDL-ESM4"}
    content["labels"]["table"] = "places.csv"
    content["training"] |= {"epochs": 1, "members": 2, "preset": "light"}
    (folder / "STUDY").write_text(yaml.safe_dump(content, sort_keys=False))
    # The same study, under the name that one page has for it.
    (folder / "practice").mkdir()
    (folder / "practice/mystudy.yaml").write_text(yaml.safe_dump(content | {"data": ".."}, sort_keys=False))
    [future] = content["scenarios"][0]["replace"].values()
    others = folder / "other_climate_models"
    others.mkdir()
    for pathway in ("ssp126", "ssp585"):
        shutil.copyfile(folder / future, others / f"climate_ukesm1-0-ll_{pathway}_2080.tif")


def _table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _tiles(folder: Path) -> None:
    """Tiles of six bands with masks of two classes, a scene, a table of labels, and a series of an index."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(10):
        soybean = random.random((32, 32)) < (0.2, 0.8)[number % 2]
        bands = np.where(soybean, 0.35, 0.1) + random.normal(0, 0.02, (len(BANDS), 32, 32))
        origin = (960.0 * number, 4_000_000.0)
        write_tile(folder / f"tiles/{number}.tif", bands.astype(np.float32), origin=origin, crs="EPSG:32616")
        write_tile(folder / f"masks/{number}.tif", soybean.astype(np.uint8)[None], origin=origin, names=None)
        rows.append({"image": f"{number}.tif", "label": ("fallow", "soybean")[number % 2]})
    _table(folder / "labels.csv", rows)
    (folder / "classes.csv").write_text("code,name\n0,fallow\n1,soybean\n")
    (folder / "train.txt").write_text("".join(f"{number}\n" for number in range(6)))
    (folder / "test.txt").write_text("".join(f"{number}\n" for number in range(6, 10)))
    scene = random.uniform(0.05, 0.4, (len(BANDS), 48, 48)).astype(np.float32)
    write_tile(folder / "scene.tif", scene, origin=(0.0, 4_000_000.0), crs="EPSG:32616")
    (folder / "IMAGE").symlink_to(folder / "scene.tif")
    (folder / "TILES").symlink_to(folder / "tiles")
    x = random.uniform(0.05, 0.6, (30, 4, 3)).astype(np.float32)
    dates = np.array([["2013-11-17", "2013-12-31", "2014-01-01", "2014-02-02"]] * 30)
    names = {"bands": np.array(["NIR", "RED", "NDVI"]), "label": np.array(["Soy", "Corn"] * 15)}
    np.savez(folder / "modis.npz", x=x, dates=dates, lon=np.arange(30.0) * 2, lat=np.zeros(30), **names)


def make_adapter(base: Path, folder: Path) -> None:
    """Write an adapter of a fitted model."""
    from modeling_agriclip import AgriClipForSuitability
    from training.lora import add_lora, save_adapter

    save_adapter(add_lora(AgriClipForSuitability.from_pretrained(base), "fusion", rank=2), folder)


def small_sources(site: Any) -> dict[str, Any]:
    """The public sources that the book fetches: their own terms, loaders and forms, and next to nothing in them."""
    from processing.public_data.registry import get_source

    sources = {}
    for name in ("eurosat-rgb", "resisc45", "million-aid", "cdl"):
        source = get_source(name)
        options = source.options or {}
        ending = options.get("ending", ".jpg")
        files = []
        for number, file in enumerate(source.files):
            if not file.path.endswith(".zip"):
                site.files[file.path] = (f"forest_1{ending}\n", f"river_1{ending}\n", "")[number % 3].encode()
            elif name == "cdl":
                site.files[file.path] = _layer(file.path.replace(".zip", ".tif"))
            else:
                site.files[file.path] = _archive(options["inside"], ending)
            known = {"unpack": file.unpack, "default": file.default}
            files.append(site.file(file.path, **known) if file.url else file.model_copy(update={"md5": None}))
        sources[name] = source.model_copy(update={"files": tuple(files)})
    return sources


def _archive(inside: str, ending: str) -> bytes:
    picture = io.BytesIO()
    Picture.fromarray(np.full((8, 8, 3), 90, dtype=np.uint8)).save(picture, "JPEG")
    return _zip({f"{inside}/{name}/{name}_1{ending}": picture.getvalue() for name in ("forest", "river")})


def _layer(name: str) -> bytes:
    codes = np.full((1, 660, 660), 26, dtype=np.uint8)
    profile = {"driver": "GTiff", "count": 1, "height": 660, "width": 660, "dtype": "uint8", "crs": "EPSG:5070"}
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile, transform=Affine(30, 0, 0, 0, -30, 0), compress="deflate") as raster:
            raster.write(codes)
        return _zip({name: memory.read()})


def _zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()
