"""The sensor table: what its channels say of themselves, and how names are found."""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from processing.sensors_agriclip import (
    CHANNEL_KINDS,
    SENSORS,
    ChannelSpec,
    detect_sentinel2_offset,
    find_channel,
    get_sensor,
    resolve_channels,
)

BAND_COUNTS = {
    "rgb": 3,
    "landsat5": 6,
    "landsat7": 6,
    "landsat8": 7,
    "landsat9": 7,
    "sentinel2_l1c": 13,
    "sentinel2_l2a": 12,
    "sentinel1": 2,
    "modis": 7,
    "modis_vi": 6,
    "hls": 6,
    "planetscope": 4,
    "planetscope8": 8,
    "dem": 1,
    "ndvi_monthly": 12,
    "generic": 0,
}


def test_every_sensor_has_its_bands() -> None:
    assert {name: len(sensor.channels) for name, sensor in SENSORS.items()} == BAND_COUNTS


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=SENSORS)
def test_channels_are_plausible(sensor) -> None:  # noqa: ANN001
    assert sensor.gsd > 0
    assert len(set(sensor.channel_names)) == len(sensor.channels)
    for channel in sensor.channels:
        assert channel.valid_min <= channel.mean <= channel.valid_max
        assert 0 < channel.std < channel.valid_max - channel.valid_min
        if channel.kind == "reflectance":
            assert 400 < channel.wavelength_nm < 2500
        if channel.nodata is not None and channel.kind == "reflectance":
            # A fill value must not be a reading that occurs: scaled, it lies at or below black.
            assert channel.nodata * channel.scale + channel.offset <= 0


def test_the_same_wavelength_has_the_same_statistics_on_every_surface_sensor() -> None:
    landsat, sentinel = find_channel("landsat8", "nir"), find_channel("sentinel2_l2a", "B8A")
    assert landsat.mean == pytest.approx(sentinel.mean, abs=0.002)
    # The atmosphere brightens the blue: top-of-atmosphere statistics must not be those of the surface.
    assert find_channel("sentinel2_l1c", "B02").mean > 2 * find_channel("sentinel2_l2a", "B02").mean


def test_codes() -> None:
    assert find_channel("sentinel2_l2a", "red").code() == [CHANNEL_KINDS.index("reflectance"), 665, 0, 0]
    variable = 1 + zlib.crc32(b"ndvi") % 255
    assert find_channel("ndvi_monthly", "jul").code() == [CHANNEL_KINDS.index("index"), 0, 7, variable]
    assert find_channel("sentinel1", "VV").code() == [
        CHANNEL_KINDS.index("backscatter"),
        0,
        0,
        1 + zlib.crc32(b"vv") % 255,
    ]
    # An undescribed channel is not the all-zero row that means padding.
    assert any(ChannelSpec("x", "unknown").code())


def test_names_aliases_and_suggestions() -> None:
    assert get_sensor("Sentinel-2 L2A").name == "sentinel2_l2a"
    assert find_channel("sentinel2_l2a", "b4") == find_channel("sentinel2_l2a", "RED")
    assert find_channel("landsat9", "SR_B5").name == "nir"
    with pytest.raises(ValueError, match="did you mean 'landsat8'"):
        get_sensor("landsat_88")
    with pytest.raises(ValueError, match="did you mean 'swir1'"):
        find_channel("hls", "swri1")
    with pytest.raises(ValueError, match="it has vv, vh"):
        find_channel("sentinel1", "elevation")


def test_channels_may_be_names_specs_or_dictionaries() -> None:
    sensor = get_sensor("sentinel2_l2a")
    own = ChannelSpec("woody", "cover_fraction", variable="woody_cover", mean=20, std=10, unit="%")
    specs = resolve_channels(["B08", own, {"name": "B04", "mean": 0.2}, own.to_dict()], sensor)
    assert specs == (find_channel(sensor, "nir"), own, replace(find_channel(sensor, "red"), mean=0.2), own)
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        resolve_channels([{"name": "B04", "meen": 0.2}], sensor)
    with pytest.raises(ValueError, match="did you mean 'reflectance'"):
        ChannelSpec("red", "reflectence")


@pytest.mark.parametrize(("std", "month"), [(0.0, None), (1.0, 13)])
def test_impossible_channels_are_refused(std: float, month: int | None) -> None:
    with pytest.raises(ValueError, match="'x' has"):
        ChannelSpec("x", "index", std=std, month=month)


def test_sentinel2_offset_is_decided_from_the_pixels() -> None:
    rng = np.random.default_rng(0)
    blue = rng.normal(430, 60, (40, 40)).clip(150)
    nir = rng.normal(3000, 400, (40, 40))
    removed = np.stack([blue, nir])
    inside = removed + 1000
    assert detect_sentinel2_offset(removed[0], removed) == 0.0
    assert detect_sentinel2_offset(inside[0], inside) == -1000.0
    # A cloud makes every blue pixel bright; dark shortwave pixels still tell that the offset is gone.
    cloud = np.stack([blue + 3000, rng.normal(300, 40, (40, 40))])
    assert detect_sentinel2_offset(cloud[0]) == -1000.0
    assert detect_sentinel2_offset(cloud[0], cloud) == 0.0
    # Nodata says nothing, and neither do a handful of pixels.
    inside[:, :20] = 0
    assert detect_sentinel2_offset(inside[0], inside) == -1000.0
    assert detect_sentinel2_offset(np.zeros((8, 8))) == 0.0
