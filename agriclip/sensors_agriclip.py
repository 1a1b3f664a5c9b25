"""Sensors as tables of described channels: what a pixel measures, where in the spectrum, and in which units.

Every channel carries what turns its stored numbers into physics (`physical = stored * scale + offset`) and physics
into standard scores (mean, std). Two choices define the file: surface reflectance is standardised by one curve of
wavelength that all optical sensors share, so that the same field gives the same number whichever satellite saw it; and
a channel is passed on as four integers (kind, wavelength, month, variable), so what can be described can be used.
"""

import difflib
import zlib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

CHANNEL_KINDS = (
    "unknown",
    "reflectance",
    "thermal",
    "backscatter",
    "index",
    "elevation",
    "terrain",
    "cover_fraction",
    "climate",
    "soil",
    "mask",
)

# Mean and standard deviation of surface reflectance over growing-season farmland at centre wavelengths in nm. The rows
# at the six Landsat bands are those of 30 Landsat 8 tiles of the northern US plains (September 2015), visible bands
# raised a little for bare soil; the other rows follow the usual vegetation and soil spectra between them.
_SURFACE_CURVE = (
    # nm, mean, std
    (443.0, 0.040, 0.025),
    (490.0, 0.045, 0.025),
    (560.0, 0.075, 0.032),
    (610.0, 0.080, 0.042),
    (665.0, 0.080, 0.050),
    (705.0, 0.125, 0.050),
    (740.0, 0.220, 0.065),
    (783.0, 0.265, 0.080),
    (842.0, 0.280, 0.085),
    (865.0, 0.285, 0.085),
    (945.0, 0.290, 0.090),
    (1240.0, 0.280, 0.085),
    (1610.0, 0.230, 0.082),
    (2130.0, 0.145, 0.072),
    (2200.0, 0.140, 0.070),
)
# Top-of-atmosphere reflectance adds the path radiance of clear air, strongest in the blue (the darkest pixels of clear
# Sentinel-2 L1C chips show it); water vapour takes most of the 945 nm and nearly all of the 1375 nm band.
_TOA_CURVE = (
    (443.0, 0.135, 0.030),
    (490.0, 0.115, 0.032),
    (560.0, 0.110, 0.036),
    (665.0, 0.100, 0.052),
    (705.0, 0.140, 0.052),
    (740.0, 0.220, 0.065),
    (783.0, 0.260, 0.078),
    (842.0, 0.270, 0.082),
    (865.0, 0.275, 0.085),
    (945.0, 0.090, 0.040),
    (1375.0, 0.004, 0.006),
    (1610.0, 0.215, 0.080),
    (2200.0, 0.130, 0.068),
)


@dataclass(frozen=True)
class ChannelSpec:
    """One channel of an image: what it measures and how its stored numbers become physical.

    Attributes:
        name: Name in files and messages, e.g. `B04` or `red`.
        kind: One of `CHANNEL_KINDS`.
        wavelength_nm: Centre wavelength in nanometres, for reflectance and thermal channels.
        month: Month 1-12 when the channel is a monthly layer.
        variable: What is measured when no wavelength says it, e.g. `ndvi`, `vv`; the name serves when it is not given.
        mean: Mean in physical units, for standardising.
        std: Standard deviation in physical units, for standardising.
        valid_min: Lowest plausible physical value; below it a warning is logged.
        valid_max: Highest plausible physical value; above it a warning is logged.
        unit: Physical unit.
        scale: Factor from stored to physical numbers.
        offset: Added after `scale`, in physical units.
        aliases: Other names, compared without regard to case.
        nodata: Stored number that means nothing was measured (the product's own fill value).
    """

    name: str
    kind: str
    wavelength_nm: float | None = None
    month: int | None = None
    variable: str | None = None
    mean: float = 0.0
    std: float = 1.0
    valid_min: float | None = None
    valid_max: float | None = None
    unit: str = "1"
    scale: float = 1.0
    offset: float = 0.0
    aliases: tuple[str, ...] = ()
    nodata: float | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be coded or standardised.

        Raises:
            ValueError: For an unknown kind, a month outside 1-12 or a standard deviation that is not positive.
        """
        if self.kind not in CHANNEL_KINDS:
            raise ValueError(
                f"Channel '{self.name}' has the unknown kind '{self.kind}'; {_nearest(self.kind, CHANNEL_KINDS)}"
            )
        if self.month is not None and not 1 <= self.month <= 12:
            raise ValueError(f"Channel '{self.name}' has month {self.month}; give a month from 1 to 12.")
        if not self.std > 0:
            raise ValueError(f"Channel '{self.name}' has standard deviation {self.std}; give a number above 0.")
        if not isinstance(self.aliases, tuple):
            object.__setattr__(self, "aliases", tuple(self.aliases))

    def code(self) -> list[int]:
        """Return `[kind id, centre wavelength in nm, month, variable id]`, with 0 for what does not apply.

        The variable id is 0 where the wavelength says it all, else `1 + crc32(name of the variable) % 255`.
        """
        nanometres = 0 if self.wavelength_nm is None else round(self.wavelength_nm)
        if nanometres and self.kind in ("reflectance", "thermal"):
            variable = 0
        else:
            variable = 1 + zlib.crc32((self.variable or self.name).lower().encode()) % 255
        return [CHANNEL_KINDS.index(self.kind), nanometres, self.month or 0, variable]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, ready for JSON."""
        defaults = {field.name: field.default for field in fields(self)}
        values = {key: value for key, value in asdict(self).items() if value != defaults[key]}
        if "aliases" in values:
            values["aliases"] = list(values["aliases"])
        return values


@dataclass(frozen=True)
class SensorSpec:
    """A sensor or product: its channels in file order, and the ground sample distance in metres."""

    name: str
    channels: tuple[ChannelSpec, ...]
    gsd: float
    title: str

    @property
    def channel_names(self) -> list[str]:
        """Names of the channels in file order."""
        return [channel.name for channel in self.channels]


def _optical(
    name: str,
    nanometres: float,
    *aliases: str,
    scale: float = 1e-4,
    offset: float = 0.0,
    nodata: float | None = 0,
    toa: bool = False,
) -> ChannelSpec:
    curve = np.asarray(_TOA_CURVE if toa else _SURFACE_CURVE)
    mean, std = (round(float(np.interp(nanometres, curve[:, 0], curve[:, column])), 4) for column in (1, 2))
    return ChannelSpec(
        name,
        "reflectance",
        wavelength_nm=nanometres,
        mean=mean,
        std=std,
        # Snow and sun glint pass 1; atmospheric correction over dark water goes a little below 0.
        valid_min=-0.05,
        valid_max=1.6,
        scale=scale,
        offset=offset,
        aliases=aliases,
        nodata=nodata,
    )


def _landsat(number: int) -> SensorSpec:
    """Collection 2 Level 2 surface reflectance: 2.75e-5 * DN - 0.2, fill 0 (USGS Collection 2 product guide)."""
    oli = number >= 8
    bands = (
        [("coastal", 443), ("blue", 482), ("green", 561), ("red", 655), ("nir", 865), ("swir1", 1609), ("swir2", 2201)]
        if oli
        else [("blue", 485), ("green", 560), ("red", 660), ("nir", 830), ("swir1", 1650), ("swir2", 2215)]
    )
    numbers = ["1", "2", "3", "4", "5", "6", "7"] if oli else ["1", "2", "3", "4", "5", "7"]
    channels = tuple(
        _optical(name, nm, f"SR_B{band}", f"B{band}", f"B0{band}", scale=2.75e-5, offset=-0.2)
        for (name, nm), band in zip(bands, numbers, strict=True)
    )
    return SensorSpec(f"landsat{number}", channels, 30.0, f"Landsat {number} surface reflectance, Collection 2")


_SENTINEL2_BANDS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("B01", 442.7, ("B1", "coastal")),
    ("B02", 492.4, ("B2", "blue")),
    ("B03", 559.8, ("B3", "green")),
    ("B04", 664.6, ("B4", "red")),
    ("B05", 704.1, ("B5", "rededge1")),
    ("B06", 740.5, ("B6", "rededge2")),
    ("B07", 782.8, ("B7", "rededge3")),
    ("B08", 832.8, ("B8", "nir")),
    ("B8A", 864.7, ("B08A", "nir08", "narrow_nir")),
    ("B09", 945.1, ("B9", "nir09", "water_vapour")),
    ("B10", 1373.5, ("cirrus",)),
    ("B11", 1613.7, ("swir16", "swir1")),
    ("B12", 2202.4, ("swir22", "swir2")),
)


def _sentinel2(level: str) -> SensorSpec:
    toa = level == "l1c"
    channels = tuple(
        _optical(name, nm, *aliases, toa=toa) for name, nm, aliases in _SENTINEL2_BANDS if toa or name != "B10"
    )
    title = "Sentinel-2 Level-1C, top of atmosphere" if toa else "Sentinel-2 Level-2A, surface reflectance"
    return SensorSpec(f"sentinel2_{level}", channels, 10.0, title)


def _photograph() -> SensorSpec:
    # Means and spread of aerial and satellite photographs in 0..1: farmland scenes lie near these (EuroSAT RGB does).
    channels = tuple(
        ChannelSpec(
            name,
            "reflectance",
            wavelength_nm=nm,
            mean=mean,
            std=0.2,
            valid_min=0.0,
            valid_max=1.0,
            scale=1 / 255,
            aliases=(name[0],),
        )
        for name, nm, mean in (("red", 660, 0.35), ("green", 550, 0.38), ("blue", 470, 0.36))
    )
    return SensorSpec("rgb", channels, 1.0, "RGB photograph, 8 bit")


def _radar() -> SensorSpec:
    # Means and spread of gamma-nought in dB over five Sentinel-1 RTC chips (cropland, forest, town).
    channels = tuple(
        ChannelSpec(name, "backscatter", variable=name, mean=mean, std=4.0, valid_min=-60.0, valid_max=30.0, unit="dB")
        for name, mean in (("vv", -12.0), ("vh", -18.5))
    )
    return SensorSpec("sentinel1", channels, 10.0, "Sentinel-1 backscatter in decibels")


def _modis() -> tuple[SensorSpec, SensorSpec]:
    bands = (
        ("red", 645),
        ("nir", 858),
        ("blue", 469),
        ("green", 555),
        ("nir2", 1240),
        ("swir1", 1640),
        ("swir2", 2130),
    )
    surface = tuple(
        _optical(name, nm, f"sur_refl_b0{i}", f"b0{i}", f"b{i}", nodata=-28672)
        for i, (name, nm) in enumerate(bands, 1)
    )
    # Means over 1,892 Mato Grosso cropland and pasture series of MOD13Q1 are 0.56 (NDVI) and 0.38 (EVI).
    indices = tuple(
        ChannelSpec(
            name,
            "index",
            variable=name,
            mean=mean,
            std=std,
            valid_min=-0.3,
            valid_max=1.0,
            scale=1e-4,
            aliases=(f"250m_16_days_{name}",),
            nodata=-3000,
        )
        for name, mean, std in (("ndvi", 0.55, 0.22), ("evi", 0.37, 0.2))
    )
    vegetation = (
        *indices,
        *(_optical(name, nm, nodata=-1000) for name, nm in (("red", 645), ("nir", 858), ("blue", 469), ("mir", 2130))),
    )
    return (
        SensorSpec("modis", surface, 500.0, "MODIS 8-day surface reflectance (MOD09A1)"),
        SensorSpec("modis_vi", vegetation, 250.0, "MODIS 16-day vegetation indices and reflectance (MOD13Q1)"),
    )


def _planetscope() -> tuple[SensorSpec, SensorSpec]:
    eight = (
        ("coastal", 443),
        ("blue", 490),
        ("green_i", 531),
        ("green", 565),
        ("yellow", 610),
        ("red", 665),
        ("rededge", 705),
        ("nir", 865),
    )
    four = tuple((name, nm) for name, nm in eight if name in ("blue", "green", "red", "nir"))
    return (
        SensorSpec("planetscope", tuple(_optical(*band) for band in four), 3.0, "PlanetScope, 4 bands, surface"),
        SensorSpec("planetscope8", tuple(_optical(*band) for band in eight), 3.0, "PlanetScope SuperDove, 8 bands"),
    )


def _monthly_ndvi() -> SensorSpec:
    # Mean over North American 10 arc-minute cells with more than 30 % cropland (MODIS 2001), January to December.
    means = (0.13, 0.15, 0.22, 0.34, 0.46, 0.51, 0.66, 0.65, 0.55, 0.42, 0.35, 0.33)
    months = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
    channels = tuple(
        ChannelSpec(
            f"ndvi_{month:02d}",
            "index",
            month=month,
            variable="ndvi",
            mean=means[month - 1],
            std=0.16,
            valid_min=-1.0,
            valid_max=1.0,
            aliases=(f"ndvi_{month}", f"ndvi_{short}", short),
        )
        for month, short in enumerate(months, 1)
    )
    return SensorSpec("ndvi_monthly", channels, 1000.0, "Twelve monthly NDVI layers")


def _build() -> dict[str, SensorSpec]:
    hls = tuple(
        _optical(name, nm, nodata=-9999)
        for name, nm in (("blue", 490), ("green", 560), ("red", 660), ("nir", 865), ("swir1", 1610), ("swir2", 2200))
    )
    elevation = ChannelSpec(
        "elevation",
        "elevation",
        variable="elevation",
        mean=300.0,  # cropland lies low: the five example chips average 281 m
        std=400.0,
        valid_min=-500.0,
        valid_max=9000.0,
        unit="m",
        aliases=("dem", "dsm", "height"),
        nodata=-32768,
    )
    sensors = (
        _photograph(),
        *(_landsat(number) for number in (5, 7, 8, 9)),
        _sentinel2("l1c"),
        _sentinel2("l2a"),
        _radar(),
        *_modis(),
        SensorSpec("hls", hls, 30.0, "Harmonized Landsat Sentinel-2, the six common bands"),
        *_planetscope(),
        SensorSpec("dem", (elevation,), 30.0, "Digital elevation or surface model"),
        _monthly_ndvi(),
        # No channels of its own: any number of bands, taken as they are (mean 0, standard deviation 1).
        SensorSpec("generic", (), 10.0, "Any bands, undescribed"),
    )
    return {sensor.name: sensor for sensor in sensors}


SENSORS: dict[str, SensorSpec] = _build()


def _nearest(name: str, choices: Any) -> str:
    near = difflib.get_close_matches(name.lower(), [str(choice).lower() for choice in choices], n=1, cutoff=0.5)
    if near:
        return f"did you mean '{next(c for c in choices if str(c).lower() == near[0])}'?"
    return "use one of: " + ", ".join(map(str, choices)) + "."


def get_sensor(name: str) -> SensorSpec:
    """Return the sensor called `name` (case and `-`/`_`/space do not matter).

    Raises:
        ValueError: For an unknown sensor; names the nearest known one.
    """
    plain = str(name).lower().replace("-", "_").replace(" ", "_")
    for key, sensor in SENSORS.items():
        if plain in (key, key.replace("_", "")) or plain.replace("_", "") == key.replace("_", ""):
            return sensor
    raise ValueError(f"Unknown sensor '{name}'; {_nearest(str(name), list(SENSORS))}")


def find_channel(sensor: SensorSpec | str, name: str) -> ChannelSpec:
    """Return the channel of `sensor` called `name`, by its name or an alias, whatever the case.

    Raises:
        ValueError: For an unknown channel; names the nearest known one.
    """
    spec = get_sensor(sensor) if isinstance(sensor, str) else sensor
    plain = str(name).strip().lower()
    for channel in spec.channels:
        if plain == channel.name.lower() or plain in (alias.lower() for alias in channel.aliases):
            return channel
    known = [channel.name for channel in spec.channels] + [a for channel in spec.channels for a in channel.aliases]
    if not known:
        raise ValueError(f"Sensor '{spec.name}' has no named channels; describe '{name}' as a ChannelSpec or a dict.")
    near = _nearest(str(name), known)
    hint = near if near.startswith("did") else f"it has {', '.join(spec.channel_names)}."
    raise ValueError(f"Sensor '{spec.name}' has no channel '{name}'; {hint}")


def generic_channels(count: int) -> tuple[ChannelSpec, ...]:
    """Return `count` undescribed channels `band_1`, `band_2`, ... that are passed on as they are."""
    return tuple(ChannelSpec(f"band_{i}", "unknown") for i in range(1, count + 1))


def resolve_channels(channels: Any, sensor: SensorSpec) -> tuple[ChannelSpec, ...]:
    """Turn names, `ChannelSpec`s and dictionaries into `ChannelSpec`s.

    A dictionary with only a `name`, or with a `name` the sensor knows and no `kind`, starts from the sensor's channel.

    Raises:
        ValueError: For an unknown name, key or kind.
    """
    if isinstance(channels, str | ChannelSpec | dict):
        channels = [channels]
    specs: list[ChannelSpec] = []
    allowed = [field.name for field in fields(ChannelSpec)]
    for channel in channels:
        # A class loaded as remote code twice has two identities: ask for the shape, not for the class.
        if hasattr(channel, "code") and hasattr(channel, "wavelength_nm"):
            specs.append(ChannelSpec(**{key: getattr(channel, key) for key in allowed}))
        elif isinstance(channel, dict):
            for key in channel:
                if key not in allowed:
                    raise ValueError(f"Channel {channel} has the unknown key '{key}'; {_nearest(str(key), allowed)}")
            if "name" not in channel:
                raise ValueError(f"Channel {channel} has no name; add one, for example name: red.")
            if "kind" in channel:
                specs.append(ChannelSpec(**channel))
            else:
                changed = {key: value for key, value in channel.items() if key != "name"}
                specs.append(replace(find_channel(sensor, channel["name"]), **changed))
        elif isinstance(channel, str):
            specs.append(find_channel(sensor, channel))
        else:
            raise ValueError(
                f"A channel is a name, a ChannelSpec or a dictionary, not {type(channel).__name__} ({channel!r})."
            )
    return tuple(specs)


def detect_sentinel2_offset(blue_dn: Any, darkest_dn: Any = None) -> float:
    """Decide from the pixels whether Sentinel-2's offset of -1000 is still inside the digital numbers.

    Since processing baseline 04.00 (and in reprocessed older scenes) 1000 is added to every number so that dark pixels
    stay above zero; archives differ in whether they removed it, and metadata in whether they tell. With the offset
    inside, nothing is darker than about 900; without it, some pixel of some band is below 600. The blue band alone is
    deceived by a cloud or by the haze of Level-1C, so the other bands are asked too when given.

    Args:
        blue_dn: Stored numbers of the blue band (B02), 0 = nodata.
        darkest_dn: Stored numbers of all bands, (C, ...), 0 = nodata.

    Returns:
        -1000.0 to be added to the stored numbers, or 0.0.
    """
    blue = np.asarray(blue_dn, dtype=np.float64).ravel()
    blue = blue[np.isfinite(blue) & (blue > 0)]
    if blue.size < 16:  # too few pixels to speak of percentiles
        return 0.0
    darkest = float(np.percentile(blue, 1))
    if darkest_dn is not None:
        bands = np.asarray(darkest_dn, dtype=np.float64)
        for band in bands.reshape(bands.shape[0], -1):
            band = band[np.isfinite(band) & (band > 0)]
            if band.size >= 16:
                darkest = min(darkest, float(np.percentile(band, 0.5)))
    # Between 600 and 900 neither is sure; leaving the numbers alone is then the smaller mistake.
    return -1000.0 if darkest >= 900.0 else 0.0
