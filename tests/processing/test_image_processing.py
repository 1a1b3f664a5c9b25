"""Images of any sensor to masked, standardised tensors."""

import datetime
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from transformers import BatchFeature

from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.sensors_agriclip import ChannelSpec, find_channel, get_sensor

S2 = get_sensor("sentinel2_l2a")


@pytest.fixture
def processor() -> AgriClipImageProcessor:
    return AgriClipImageProcessor(sensor="sentinel2_l2a")


def reflectance(bands: int = 12, height: int = 5, width: int = 7, seed: int = 0) -> np.ndarray:
    """Stored numbers of dark, plausible Sentinel-2 pixels without the offset of 1000."""
    return np.random.default_rng(seed).integers(200, 900, (bands, height, width)).astype(np.uint16)


def write(path: Path, values: np.ndarray, names: list[str] | None = None, **profile: object) -> Path:
    """Write a GeoTIFF; `scales` and `offsets` become GDAL tags."""
    scales, offsets = profile.pop("scales", None), profile.pop("offsets", None)
    mask = profile.pop("mask", None)
    settings = {
        "driver": "GTiff",
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "crs": "EPSG:32633",
        "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000),
        **profile,
    }
    with rasterio.open(path, "w", **settings) as file:
        file.write(values)
        for i, name in enumerate(names or [], 1):
            file.set_band_description(i, name)
        if scales:
            file.scales, file.offsets = scales, offsets or [0.0] * len(values)
        if mask is not None:
            file.write_mask(mask)
    return path


def expected(stored: np.ndarray) -> torch.Tensor:
    """Standard scores by the sensor's table, worked out by hand."""
    mean = np.array([c.mean for c in S2.channels])[:, None, None]
    std = np.array([c.std for c in S2.channels])[:, None, None]
    return torch.tensor((stored * 1e-4 - mean) / std, dtype=torch.float32)


def test_the_tensors_of_one_image(processor: AgriClipImageProcessor) -> None:
    stored = reflectance()
    out = processor(stored)
    assert isinstance(out, BatchFeature)
    assert list(out) == processor.model_input_names
    assert out["pixel_values"].shape == out["pixel_mask"].shape == (1, 1, 12, 5, 7)
    assert out["pixel_values"].dtype == torch.float32
    assert {out[key].dtype for key in ("pixel_mask", "channels", "dates")} == {torch.int64}
    torch.testing.assert_close(out["pixel_values"][0, 0], expected(stored), rtol=1e-5, atol=1e-5)
    assert out["pixel_mask"].all()
    assert out["channels"][0].tolist() == [channel.code() for channel in S2.channels]
    assert out["gsd"].tolist() == [10.0]
    assert out["dates"].tolist() == [[0]]


def test_every_form_of_the_same_image_gives_the_same_tensors(
    processor: AgriClipImageProcessor, tmp_path: Path
) -> None:
    stored = reflectance()
    path = write(tmp_path / "scene.tif", stored)
    reference = processor(stored)
    forms = [stored.transpose(1, 2, 0), torch.tensor(stored.astype(np.int32)), [stored], [[stored]], stored[None]]
    forms += [str(path), path, [path]]
    for form in forms:
        out = processor(form)
        for key, value in reference.items():
            assert torch.equal(out[key], value), key
    assert isinstance(processor(stored, return_tensors="np")["pixel_values"], np.ndarray)


def test_a_photograph_in_any_mode() -> None:
    processor = AgriClipImageProcessor()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    reference = processor(image)["pixel_values"]
    assert reference.shape == (1, 1, 3, 6, 8)
    means = [channel.mean for channel in get_sensor("rgb").channels]
    by_hand = (torch.tensor(pixels[2, 3] / 255) - torch.tensor(means)) / 0.2
    torch.testing.assert_close(reference[0, 0, :, 2, 3].double(), by_hand, rtol=1e-5, atol=1e-5)
    assert torch.equal(processor(image.convert("RGBA"))["pixel_values"], reference)
    for mode in ("L", "P"):
        assert processor(image.convert(mode))["pixel_values"].shape == reference.shape


@pytest.mark.parametrize("shape", [(5, 8, 8), (8, 8, 3), (8, 8)])
def test_a_wrong_number_of_bands_is_refused(processor: AgriClipImageProcessor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="12") as error:
        processor(np.zeros(shape, np.uint16))
    assert str(shape[0] if len(shape) == 3 and shape[0] == 5 else shape) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"Expected 12 bands .*B01, B02.* found 5"):
        processor(np.zeros((5, 8, 8), np.uint16))


def test_a_missing_file_and_a_broken_file_are_told(processor: AgriClipImageProcessor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.tif' does not exist"):
        processor(str(tmp_path / "gone.tif"))
    (tmp_path / "broken.tif").write_bytes(b"not a raster")
    with pytest.raises(ValueError, match="cannot be read as a raster"):
        processor(tmp_path / "broken.tif")


def test_bands_of_a_file_are_taken_by_name(processor: AgriClipImageProcessor, tmp_path: Path) -> None:
    stored = reflectance()
    order = np.random.default_rng(1).permutation(12)
    names = [S2.channels[i].name.lower() for i in order]
    shuffled = write(tmp_path / "shuffled.tif", stored[order], names)
    assert torch.equal(processor(shuffled)["pixel_values"], processor(stored)["pixel_values"])
    # Channels chosen by the user are found among more bands; their order is the user's.
    chosen = processor(shuffled, channels=["nir", "B04"])
    assert chosen["channels"][0].tolist() == [find_channel(S2, "B08").code(), find_channel(S2, "B04").code()]
    whole = processor(stored)["pixel_values"]
    assert torch.equal(chosen["pixel_values"], whole[:, :, [7, 3]])
    # A file that names some of the sensor's bands is an image of those bands.
    some = write(tmp_path / "some.tif", stored[[7, 3, 1]], ["nir", "red", "blue"])
    out = processor(some)
    assert torch.equal(out["pixel_values"], whole[:, :, [1, 3, 7]])
    with pytest.raises(ValueError, match="named 'red' but channel 2 of 2"):
        processor(write(tmp_path / "half.tif", stored[:2], ["red", ""]), channels=["blue", "red"])


def test_scale_and_offset_tags_of_the_file_win(tmp_path: Path) -> None:
    stored = np.full((6, 4, 4), 250, np.int16)
    processor = AgriClipImageProcessor(sensor="landsat8", do_normalize=False)
    names = ["blue", "green", "red", "nir", "swir1", "swir2"]
    tagged = write(tmp_path / "tagged.tif", stored, names, scales=[8e-4] * 6, offsets=[0.01] * 6)
    torch.testing.assert_close(processor(tagged)["pixel_values"], torch.full((1, 1, 6, 4, 4), 0.21))
    plain = write(tmp_path / "plain.tif", np.full((6, 4, 4), 10_000, np.int16), names)
    torch.testing.assert_close(processor(plain)["pixel_values"], torch.full((1, 1, 6, 4, 4), 0.075))


def test_nodata_mask_and_nan_become_value_0_and_mask_0(processor: AgriClipImageProcessor, tmp_path: Path) -> None:
    stored = reflectance()
    stored[3, 0, 0] = 65535
    out = processor(write(tmp_path / "nodata.tif", stored, nodata=65535))
    assert out["pixel_mask"].sum() == stored.size - 1
    assert out["pixel_values"][0, 0, 3, 0, 0] == 0
    # A mask in the file hides the pixel in every band.
    shape = np.full(stored.shape[1:], 255, np.uint8)
    shape[4, 6] = 0
    masked = processor(write(tmp_path / "masked.tif", reflectance(), mask=shape))
    assert masked["pixel_mask"].sum() == stored.size - 12
    # The product's own fill value counts although no tag says so.
    stored = reflectance()
    stored[:, 2, 2] = 0
    assert processor(stored)["pixel_mask"][0, 0, :, 2, 2].sum() == 0
    floats = reflectance().astype(np.float64)
    floats[0, 1, 1], floats[1, 1, 1] = np.nan, np.inf
    out = processor(floats)
    assert out["pixel_mask"].sum() == floats.size - 2
    assert torch.isfinite(out["pixel_values"]).all()
    hidden = np.ma.masked_array(reflectance(), mask=np.zeros((12, 5, 7), bool))
    hidden.mask[5, 0, 0] = True
    assert processor(hidden)["pixel_mask"].sum() == hidden.size - 1


def test_an_alpha_band_is_a_mask_and_not_a_band(tmp_path: Path) -> None:
    pixels = np.full((4, 6, 6), 100, np.uint8)
    pixels[3, :3] = 0
    pixels[3, 3:] = 255
    path = write(tmp_path / "rgba.tif", pixels, photometric="RGB", alpha="YES")
    out = AgriClipImageProcessor()(path)
    assert out["pixel_values"].shape == (1, 1, 3, 6, 6)
    assert out["pixel_mask"].sum() == 3 * 3 * 6
    # GDAL calls the fourth of four bands alpha by default: where four bands are expected it is the near infrared.
    four = AgriClipImageProcessor(sensor="planetscope", do_rescale=False)(path)
    assert four["pixel_values"].shape == (1, 1, 4, 6, 6)
    assert four["pixel_mask"].all()


def test_series_are_padded_in_time_bands_and_size() -> None:
    processor = AgriClipImageProcessor()
    rng = np.random.default_rng(0)
    first = [rng.integers(200, 900, (12, 4, 6)) for _ in range(3)]
    second = [rng.normal(-12, 2, (2, 5, 5))]
    out = processor([first, second], sensor=["sentinel2_l2a", "sentinel1"], dates=[["2024-06-01", 160, None], [170]])
    assert out["pixel_values"].shape == (2, 3, 12, 5, 6)
    assert out["pixel_mask"][0].sum() == 3 * 12 * 4 * 6
    assert out["pixel_mask"][1].sum() == 2 * 5 * 5
    assert (out["pixel_values"][out["pixel_mask"] == 0] == 0).all()
    assert (out["channels"][1, 2:] == 0).all() and (out["channels"][1, :2] != 0).any(-1).all()
    assert out["dates"].tolist() == [[153, 160, 0], [170, 0, 0]]
    # Each sample is what it is alone.
    alone = processor([second], sensor="sentinel1")["pixel_values"]
    assert torch.equal(out["pixel_values"][1:, :1, :2, :5, :5], alone)


def test_a_series_without_images_is_all_masked() -> None:
    out = AgriClipImageProcessor()([[], [np.zeros((3, 4, 4))]])
    assert out["pixel_mask"][0].sum() == 0
    assert out["channels"][0].any()
    with pytest.raises(ValueError, match="No image"):
        AgriClipImageProcessor()([[], []])


def test_dates(processor: AgriClipImageProcessor) -> None:
    cube = np.stack([reflectance(seed=i) for i in range(3)])
    series = processor(cube, dates=["2023-11-01", datetime.date(2024, 1, 1), datetime.datetime(2024, 12, 31)])
    assert series["pixel_values"].shape == (1, 3, 12, 5, 7)
    # Days count from 1 January of the year of the last date, and may lie before it.
    assert series["dates"].tolist() == [[-60, 1, 366]]
    fixed = processor(cube, dates=["2023-11-01", "2024-01-01", "2024-12-31"], reference_year=2023)
    assert fixed["dates"].tolist() == [[305, 366, 731]]
    assert processor(cube)["pixel_values"].shape == (3, 1, 12, 5, 7)
    assert processor(list(cube), dates=[10, 20, 30])["dates"].tolist() == [[10], [20], [30]]
    assert processor(list(cube), dates=[[10, 20, 30]])["dates"].tolist() == [[10, 20, 30]]
    # 0 means undated: the day before the reference year is told as its first.
    assert processor(reflectance(), dates="2023-12-31", reference_year=2024)["dates"].tolist() == [[1]]
    with pytest.raises(ValueError, match="do not match"):
        processor([list(cube)], dates=[[1, 2]])
    with pytest.raises(ValueError, match="'June 3' is not a date"):
        processor(reflectance(), dates=["June 3"])


def test_ground_sample_distance(processor: AgriClipImageProcessor, tmp_path: Path) -> None:
    stored = reflectance()
    assert processor(stored, gsd=30)["gsd"].tolist() == [30.0]
    assert processor([stored, stored], gsd=[5, 20])["gsd"].tolist() == [5.0, 20.0]
    utm = write(tmp_path / "utm.tif", stored, transform=Affine(20, 0, 5e5, 0, -20, 5e6))
    assert processor(utm)["gsd"].tolist() == [20.0]
    degrees = write(tmp_path / "degrees.tif", stored, crs="EPSG:4326", transform=Affine(0.5, 0, 10, 0, -0.5, 61.25))
    # At 60 N half a degree is 55.66 km along the meridian and half of that along the parallel.
    assert processor(degrees)["gsd"].item() == pytest.approx(55_660 * 0.5**0.5, rel=1e-3)
    feet = write(tmp_path / "feet.tif", stored, crs="EPSG:2263", transform=Affine(100, 0, 9e5, 0, -100, 2e5))
    assert processor(feet)["gsd"].item() == pytest.approx(30.48, rel=1e-3)
    with pytest.raises(ValueError, match="2 values of gsd"):
        processor(stored, gsd=[1, 2])


def test_resizing_keeps_the_mean_the_mask_and_the_metres(processor: AgriClipImageProcessor) -> None:
    stored = reflectance(height=8, width=16).astype(np.float64)
    stored[:, :, :8] = np.nan
    out = processor(stored, do_resize=True, size={"height": 4, "width": 8}, do_normalize=False)
    assert out["pixel_values"].shape[-2:] == (4, 8)
    assert out["gsd"].tolist() == [20.0]
    mask = out["pixel_mask"][0, 0, 0]
    assert mask[:, :4].sum() == 0 and mask[:, 4:].all()
    # What is left is made of measured pixels only: no dark seam along the edge of the nodata.
    low, high = np.nanmin(stored) * 1e-4, np.nanmax(stored) * 1e-4
    kept = out["pixel_values"][0, 0, :, :, 4:]
    assert kept.min() >= low - 1e-6 and kept.max() <= high + 1e-6
    assert processor(stored, do_resize=True, size={"shortest_edge": 4})["pixel_values"].shape[-2:] == (4, 8)
    with pytest.raises(ValueError, match="needs a size"):
        processor(stored, do_resize=True)


def test_the_offset_of_sentinel2_is_removed_when_it_is_inside(processor: AgriClipImageProcessor) -> None:
    stored = reflectance(height=10, width=10)
    reference = processor(stored)["pixel_values"]
    assert torch.allclose(processor(stored + 1000)["pixel_values"], reference, atol=1e-5)
    kept = processor(stored + 1000, sentinel2_offset=0, do_normalize=False)["pixel_values"]
    assert kept.min() > 0.1


@pytest.mark.parametrize(
    ("image", "sensor", "told"),
    [
        (np.random.default_rng(0).random((3, 9, 9)), "rgb", "looks physical already"),
        (np.random.default_rng(0).random((12, 9, 9)) * 8000, "ndvi_monthly", "outside -1.0 to 1.0"),
        (np.full((2, 9, 9), 0.05), "sentinel1", None),
        (np.full((1, 9, 9), 30_000), "dem", "ranges from 3e.04 to 3e.04"),
    ],
)
def test_a_range_that_looks_wrong_is_told_once(
    image: np.ndarray, sensor: str, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        AgriClipImageProcessor()([image, image], sensor=sensor)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == (told is not None)
    if told is not None:
        assert re.search(told, messages[0])


def test_physical_values_and_own_channels() -> None:
    processor = AgriClipImageProcessor()
    woody = ChannelSpec("woody", "cover_fraction", variable="woody_cover", mean=20.0, std=10.0, unit="%")
    out = processor(np.full((1, 3, 3), 35.0), channels=[woody])
    assert (out["pixel_values"] == 1.5).all()
    assert out["channels"][0].tolist() == [woody.code()]
    both = {"name": "woody", "kind": "cover_fraction", "variable": "woody_cover", "mean": 20.0, "std": 10.0}
    again = AgriClipImageProcessor(channels=[both])(np.full((1, 3, 3), 35.0))
    assert torch.equal(again["pixel_values"], out["pixel_values"])
    raw = processor(np.full((3, 4, 4), 0.55), do_rescale=False)
    assert raw["pixel_values"][0, 0, 0, 0, 0].item() == pytest.approx(1.0)


def test_normalize_values_of_arrays_and_tensors() -> None:
    processor = AgriClipImageProcessor(sensor="hls")
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 0.4, (5, 6, 4, 4)).astype(np.float32)
    values[0, 0, 0, 0] = np.nan
    valid = rng.random((5, 6, 4, 4)) > 0.2
    scores, known = processor.normalize_values(values, get_sensor("hls").channels, valid)
    assert scores.dtype == np.float32 and known.dtype == bool
    assert (scores[~known] == 0).all() and np.isfinite(scores).all()
    assert not known[0, 0, 0, 0]
    tensor_scores, tensor_known = processor.normalize_values(
        torch.tensor(values), list(get_sensor("hls").channels), valid
    )
    np.testing.assert_allclose(tensor_scores.numpy(), scores, rtol=1e-5, atol=1e-6)
    assert (tensor_known.numpy() == known).all()
    # The same numbers come out of the call.
    out = processor(values[1], do_rescale=False)
    every = processor.normalize_values(values[1:2], get_sensor("hls").channels)[0]
    np.testing.assert_allclose(out["pixel_values"][0, 0].numpy(), every[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="Expected 6 bands"):
        processor.normalize_values(values[:, :3], get_sensor("hls").channels)


def test_saved_and_loaded(tmp_path: Path) -> None:
    own = ChannelSpec("woody", "cover_fraction", variable="woody_cover", mean=20.0, std=10.0, aliases=("trees",))
    processor = AgriClipImageProcessor(sensor="hls", channels=["red", own], do_resize=True, size=32)
    processor.save_pretrained(tmp_path)
    loaded = AgriClipImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    image = np.full((2, 8, 8), 300.0)
    first, second = processor(image), loaded(image)
    assert all(torch.equal(first[key], second[key]) for key in first)
