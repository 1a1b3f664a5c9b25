"""Images of any sensor to masked, standardised tensors that carry their own description.

The channel axis is never guessed from 1, 3 or 4: the sensor (or `channels=`) says which bands there are, and a file's
bands are taken by name where it names them. Stored numbers become physical ones by the file's scale and offset tags
or else by the sensor's, then standard scores by the channel's mean and spread. What was not measured (nodata, NaN,
padding, an absent date or band) is value 0 with mask 0. Only torch is needed; rasterio only to read raster files.
"""

import datetime
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import load_image
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .bands_agriclip import BandStack, from_array, names_of, order_by_name, read_raster, subset_by_name
from .sensors_agriclip import (
    ChannelSpec,
    SensorSpec,
    detect_sentinel2_offset,
    generic_channels,
    get_sensor,
    resolve_channels,
)

logger = logging.get_logger(__name__)

_PHOTOGRAPHS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# Pillow's resampling filters by number; torch has no Lanczos, box or Hamming.
_RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


class AgriClipImageProcessorKwargs(ImagesKwargs, total=False):
    """Keyword arguments of the image processor, beside those every image processor has.

    Attributes:
        sensor: Name of a sensor of the table, or one name per image.
        channels: Names, `ChannelSpec`s or dictionaries of the bands (or one list per image), in place of all bands of
            the sensor.
        gsd: Ground sample distance in metres per pixel, one for all or one per image; from the file if not given, or
            else from the sensor.
        dates: Dates of the images: days of the year, `datetime.date`s or ISO strings; nested like the images.
        reference_year: Year whose 1 January is day 1; by default the year of each series' last date.
        sentinel2_offset: Number added to Sentinel-2's stored numbers, -1000 or 0; `"auto"` decides from the pixels.
    """

    sensor: Any
    channels: Any
    gsd: Any
    dates: Any
    reference_year: int | None
    sentinel2_offset: Any


class AgriClipImageProcessor(BaseImageProcessor):
    """Turn images of any sensor into the tensors of the model.

    Takes a path, NumPy array, tensor or Pillow image; a list of them (a batch); a list of lists or 4-D arrays (a batch
    of dated series); a 4-D array with `dates` (one series) or without (a batch); or a 5-D array.

    Returns a `BatchFeature` with

    * `pixel_values` (B, T, C, H, W) float32, standardised, 0 where masked
    * `pixel_mask` (B, T, C, H, W) int64, 1 = measured
    * `channels` (B, C, 4) int64: kind, wavelength in nm, month, variable; all-zero rows are padding
    * `gsd` (B,) float32, metres per pixel
    * `dates` (B, T) int64, days counted from 1 January of the reference year, 0 = undated

    Raises `ValueError` with one sentence for a wrong number of bands, an unknown sensor or band, or a missing file.
    """

    model_input_names = ["pixel_values", "pixel_mask", "channels", "gsd", "dates"]
    valid_kwargs = AgriClipImageProcessorKwargs
    sensor = "rgb"
    sentinel2_offset = "auto"
    do_resize = False
    do_rescale = True
    # The channels carry scale and offset; this factor comes on top of them.
    rescale_factor = 1.0
    do_normalize = True
    resample = 2

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)

    @property
    def backend(self) -> str:
        """What the images are processed with."""
        return "torch"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, ready for JSON."""
        settings: dict[str, Any] = super().to_dict()
        if settings.get("channels") is not None:
            settings["channels"] = _plain(settings["channels"])
        return settings

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Read paths (and lists of paths) into `BandStack`s, web addresses into photographs; pass the rest through.

        Raises:
            ValueError: For a file that is missing or cannot be read.
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if not isinstance(image_url_or_urls, str | os.PathLike):
            return image_url_or_urls
        path = os.fspath(image_url_or_urls)
        if path.startswith(("http://", "https://", "data:")):
            return load_image(path)
        if not os.path.isfile(path):
            raise ValueError(f"Image file '{path}' does not exist; check the path.")
        if path.lower().endswith(_PHOTOGRAPHS):
            return load_image(path)
        return read_raster(path)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        standard: dict[str, Any] = super()._standardize_kwargs(**kwargs)
        if standard.get("channels") is not None:
            standard["channels"] = _plain(standard["channels"])
        return standard

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:  # type: ignore[override]
        # Mean, spread and factor come from the channels, so the base class's demand for them does not apply.
        if kwargs.get("do_resize") and not kwargs.get("size"):
            raise ValueError("do_resize needs a size, for example size={'height': 224, 'width': 224}.")
        if kwargs.get("do_center_crop"):
            raise ValueError("do_center_crop is not offered; read the window of the raster that is wanted instead.")

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: Any, *args: Any, **kwargs: Any
    ) -> BatchFeature:
        series = _as_series(self.fetch_images(images), kwargs.get("dates"))
        sensors = _per_image(kwargs.pop("sensor", None) or self.sensor, len(series), "sensor")
        channels = _channels_per_image(kwargs.pop("channels", None), len(series))
        days = _days(kwargs.pop("dates", None), series, kwargs.pop("reference_year", None))
        samples: list[tuple[list[BandStack], tuple[ChannelSpec, ...], SensorSpec]] = []
        for images_of_one, name, chosen in zip(series, sensors, channels, strict=True):
            sensor = get_sensor(name)
            specs = sensor.channels if chosen is None else resolve_channels(chosen, sensor)
            stacks: list[BandStack] = []
            used: tuple[ChannelSpec, ...] | None = None
            for image in images_of_one:
                stack, found = self.process_image(
                    image, specs, sensor, chosen is not None, kwargs.get("input_data_format")
                )
                if used is not None and [c.name for c in found] != [c.name for c in used]:
                    raise ValueError(
                        f"The dates of one series differ in their bands ({names_of(used)}, then {names_of(found)} in "
                        f"{stack.source}); name those to use with channels=[...]."
                    )
                used = found
                stacks.append(stack)
            samples.append((stacks, specs if used is None else used, sensor))
        return self._preprocess(samples, days, **kwargs)

    def process_image(
        self,
        image: Any,
        specs: Sequence[ChannelSpec],
        sensor: SensorSpec,
        chosen: bool = False,
        input_data_format: Any = None,
    ) -> tuple[BandStack, tuple[ChannelSpec, ...]]:
        """Bring one image to channels-first float32, with its bands in the order of `specs`.

        Args:
            image: Pillow image, array, tensor or `BandStack`.
            specs: Channels expected; empty for a generic sensor.
            sensor: The sensor, for names of bands.
            chosen: Whether the user chose the channels, so that all of them must be there.
            input_data_format: `channels_first` or `channels_last`, where the number of bands does not tell.

        Returns:
            The bands, and their channels (fewer than `specs` when a file names only some of the sensor's bands).

        Raises:
            ValueError: For a wrong number of bands.
        """
        stack = image if isinstance(image, BandStack) else from_array(image, len(specs), input_data_format)
        stack = stack.without_alpha(len(specs))
        if not specs:
            return stack, generic_channels(stack.values.shape[0])
        specs = tuple(specs)
        order = order_by_name(stack.names, specs)
        if order is None and not chosen and any(stack.names):
            specs, order = subset_by_name(stack.names, sensor, specs)
        if order is not None:
            stack = stack.take(order)
        if stack.values.shape[0] != len(specs):
            raise ValueError(
                f"Expected {len(specs)} bands for sensor '{sensor.name}' ({names_of(specs)}), found "
                f"{stack.values.shape[0]} in {stack.source}; choose the sensor that fits or name the bands with "
                "channels=[...]."
            )
        return stack, specs

    def _preprocess(
        self,
        samples: list[tuple[list[BandStack], tuple[ChannelSpec, ...], SensorSpec]],
        days: list[list[int]],
        do_resize: bool | None = None,
        size: Any = None,
        resample: Any = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: Any = None,
        image_std: Any = None,
        pad_size: Any = None,
        gsd: Any = None,
        sentinel2_offset: Any = None,
        return_tensors: Any = None,
        device: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Scale, resize, standardise and pad the images to one batch."""
        given_gsd = _per_image(gsd, len(samples), "gsd")
        ready: list[list[tuple[Tensor, Tensor]]] = []
        distances: list[float] = []
        complaints: dict[str, str] = {}
        for (stacks, specs, sensor), own in zip(samples, given_gsd, strict=True):
            mean, std = _statistics(specs, image_mean, image_std)
            dates: list[tuple[Tensor, Tensor]] = []
            distance = float(own) if own is not None else next((s.gsd for s in stacks if s.gsd), sensor.gsd)
            for t, stack in enumerate(stacks):
                values, valid = stack.values, stack.valid & torch.isfinite(stack.values)
                if do_rescale:
                    values, valid = _to_physical(values, valid, stack, specs, sensor, sentinel2_offset)
                    if rescale_factor is not None and rescale_factor != 1.0:
                        values = values * rescale_factor
                _check_range(values, stack.values, valid, specs, stack, bool(do_rescale), complaints)
                values = torch.where(valid, values, 0.0)
                if do_resize:
                    height, width = values.shape[-2:]
                    values, valid = _resize(values, valid, size, resample)
                    if t == 0:
                        distance *= math.sqrt(height / values.shape[-2] * width / values.shape[-1])
                if do_normalize:
                    values = torch.where(valid, (values - mean[:, None, None]) / std[:, None, None], 0.0)
                dates.append((values, valid))
            ready.append(dates)
            distances.append(distance)
        if complaints:
            first, *others = complaints.values()
            more = f" (and {len(others)} more channels like it)" if others else ""
            logger.warning(f"{first}{more}.")

        sizes = [values.shape for dates in ready for values, _ in dates]
        if not sizes:
            raise ValueError("No image was given in any of the series; give at least one.")
        height, width = max(s[-2] for s in sizes), max(s[-1] for s in sizes)
        if pad_size:
            if pad_size["height"] < height or pad_size["width"] < width:
                raise ValueError(
                    f"pad_size {dict(pad_size)} is smaller than the images, which are {height} x {width}."
                )
            height, width = pad_size["height"], pad_size["width"]
        times = max(len(dates) for dates in ready)
        bands = max(len(specs) for _, specs, _ in samples)
        pixel_values = torch.zeros(len(ready), times, bands, height, width)
        pixel_mask = torch.zeros(len(ready), times, bands, height, width, dtype=torch.long)
        channels = torch.zeros(len(ready), bands, 4, dtype=torch.long)
        day = torch.zeros(len(ready), times, dtype=torch.long)
        for b, (dates, (_, specs, _)) in enumerate(zip(ready, samples, strict=True)):
            if specs:
                channels[b, : len(specs)] = torch.tensor([spec.code() for spec in specs])
            for t, (values, valid) in enumerate(dates):
                c, h, w = values.shape
                pixel_values[b, t, :c, :h, :w] = values
                pixel_mask[b, t, :c, :h, :w] = valid.long()
                day[b, t] = days[b][t]
        data = {
            "pixel_values": pixel_values,
            "pixel_mask": pixel_mask,
            "channels": channels,
            "gsd": torch.tensor(distances, dtype=torch.float32),
            "dates": day,
        }
        if device is not None:
            data = {key: value.to(device) for key, value in data.items()}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def normalize_values(self, values: Any, channels: Any, valid: Any = None) -> tuple[Any, Any]:
        """Standardise a block of images that are already in physical units.

        Args:
            values: Physical values (N, C, h, w) or any (..., C, h, w), array or tensor.
            channels: The C channels: `ChannelSpec`s, dictionaries or names of this processor's sensor.
            valid: Where something was measured, broadcastable to `values`; everywhere if not given.

        Returns:
            Standard scores (float32, 0 where invalid) and where they are valid (bool), of the kind `values` is of.
            What is not finite is not valid.

        Raises:
            ValueError: If the channels do not number C.
        """
        specs = resolve_channels(channels, get_sensor(self.sensor))
        if values.ndim < 3 or values.shape[-3] != len(specs):
            raise ValueError(
                f"Expected {len(specs)} bands ({names_of(specs)}) on the third axis from the end, found shape "
                f"{tuple(values.shape)}; give as many channels as bands."
            )
        mean, std = ([getattr(spec, key) for spec in specs] for key in ("mean", "std"))
        if isinstance(values, Tensor):
            keep = torch.isfinite(values)
            if valid is not None:
                keep = keep & torch.as_tensor(valid, device=values.device).bool()
            centre, spread = (torch.tensor(x, device=values.device)[:, None, None] for x in (mean, std))
            return torch.where(keep, (values.float() - centre) / spread, 0.0), keep
        known = np.isfinite(values)
        if valid is not None:
            known = known & np.asarray(valid, dtype=bool)
        scores = np.where(known, values, 0.0).astype(np.float32)
        scores -= np.asarray(mean, dtype=np.float32)[:, None, None]
        scores /= np.asarray(std, dtype=np.float32)[:, None, None]
        return np.where(known, scores, np.float32(0.0)), known


def _plain(channels: Any) -> Any:
    """Channels as JSON can hold them."""
    if hasattr(channels, "to_dict"):
        return channels.to_dict()
    if isinstance(channels, list | tuple):
        return [_plain(channel) for channel in channels]
    return channels


def _as_series(images: Any, dates: Any) -> list[list[Any]]:
    """Bring any accepted nesting to a list (batch) of lists (dates)."""
    if isinstance(images, list | tuple):
        if any(isinstance(image, list | tuple) for image in images):
            return [list(image) if isinstance(image, list | tuple) else [image] for image in images]
        nested = isinstance(dates, list | tuple) and len(dates) == 1 and isinstance(dates[0], list | tuple)
        if nested and len(dates[0]) == len(images) > 1:  # a flat list with one list of dates: one series
            return [list(images)]
        return [list(image) if getattr(image, "ndim", 3) == 4 else [image] for image in images]
    dimensions = getattr(images, "ndim", 3)
    if dimensions == 5:
        return [list(image) for image in images]
    if dimensions == 4:
        flat = None if dates is None else np.asarray(dates, dtype=object).ravel()
        return [list(images)] if flat is not None and len(flat) == len(images) else [[image] for image in images]
    return [[images]]


def _per_image(value: Any, count: int, what: str) -> list[Any]:
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{len(value)} values of {what} were given for {count} images; give one for all or one each.")
    return list(value)


def _channels_per_image(channels: Any, count: int) -> list[Any]:
    if channels is None:
        return [None] * count
    if isinstance(channels, list | tuple) and channels and all(isinstance(c, list | tuple) for c in channels):
        return _per_image(list(channels), count, "channels")
    return [channels] * count


def _days(dates: Any, series: list[list[Any]], reference_year: int | None) -> list[list[int]]:
    """Dates nested as the images are, as days from 1 January of the reference year."""
    if dates is None:
        return [[0] * len(images) for images in series]
    if isinstance(dates, Tensor | np.ndarray):
        dates = dates.tolist()
    if not isinstance(dates, list | tuple):
        dates = [dates]
    if not any(isinstance(date, list | tuple) for date in dates):
        if len(series) == 1:
            dates = [dates]
        elif all(len(images) <= 1 for images in series):
            dates = [[date] for date in dates]
    counts = [len(date) if isinstance(date, list | tuple) else 1 for date in dates]
    if len(dates) != len(series) or any(
        images and count != len(images) for count, images in zip(counts, series, strict=False)
    ):
        raise ValueError(
            f"The dates ({', '.join(map(str, counts))} per image) do not match the images "
            f"({', '.join(str(len(images)) for images in series)}); give one date for each image of each series."
        )
    return [_day_numbers(list(date) if isinstance(date, list | tuple) else [date], reference_year) for date in dates]


def _day_numbers(dates: list[Any], reference_year: int | None) -> list[int]:
    parsed: list[Any] = []
    for date in dates:
        if isinstance(date, str):
            try:
                date = datetime.date.fromisoformat(date[:10])
            except ValueError as error:
                raise ValueError(
                    f"'{date}' is not a date; write it as 2024-06-30 or give the day of the year."
                ) from error
        elif isinstance(date, datetime.datetime):
            date = date.date()
        parsed.append(date)
    years = [date.year for date in parsed if isinstance(date, datetime.date)]
    first = datetime.date(reference_year or (years[-1] if years else 1970), 1, 1)
    numbers: list[int] = []
    for date in parsed:
        if isinstance(date, datetime.date):
            # 0 says undated, so the last day of the year before is told as the first of January.
            numbers.append((date - first).days + 1 or 1)
        elif date is None or (isinstance(date, float) and math.isnan(date)):
            numbers.append(0)
        else:
            numbers.append(int(date))
    return numbers


def _to_physical(
    values: Tensor,
    valid: Tensor,
    stack: BandStack,
    specs: Sequence[ChannelSpec],
    sensor: SensorSpec,
    sentinel2_offset: Any,
) -> tuple[Tensor, Tensor]:
    """Apply the file's scale and offset, or the sensor's where the file has none."""
    fill = torch.tensor([math.nan if spec.nodata is None else float(spec.nodata) for spec in specs])
    valid = valid & (values != fill[:, None, None])
    if stack.scales is not None:
        scale, offset = (torch.tensor([pair[i] for pair in stack.scales]) for i in (0, 1))
        return values * scale[:, None, None] + offset[:, None, None], valid
    if sensor.name.startswith("sentinel2"):
        added = _sentinel2_added(values, valid, specs, sensor, sentinel2_offset)
        if added:
            values = values + added
    scale, offset = (torch.tensor([getattr(spec, key) for spec in specs]) for key in ("scale", "offset"))
    return values * scale[:, None, None] + offset[:, None, None], valid


def _sentinel2_added(
    values: Tensor, valid: Tensor, specs: Sequence[ChannelSpec], sensor: SensorSpec, wanted: Any
) -> float:
    if wanted is not None and wanted != "auto":
        return float(wanted)
    blue = next((i for i, spec in enumerate(specs) if spec.name == "B02"), None)
    if blue is None:
        return 0.0
    stored = torch.where(valid, values, 0.0).numpy()
    added = detect_sentinel2_offset(stored[blue], stored)
    logger.info(f"{sensor.name}: offset {added:g} decided from the pixels.")
    return added


def _statistics(specs: Sequence[ChannelSpec], image_mean: Any, image_std: Any) -> tuple[Tensor, Tensor]:
    result = []
    for given, key in ((image_mean, "mean"), (image_std, "std")):
        if given is None:
            values = [getattr(spec, key) for spec in specs]
        else:
            values = [given] * len(specs) if isinstance(given, int | float) else list(given)
        if len(values) != len(specs):
            raise ValueError(
                f"image_{key} has {len(values)} numbers for {len(specs)} bands ({names_of(specs)}); give one per band."
            )
        result.append(torch.tensor(values, dtype=torch.float32))
    return result[0], result[1]


def _check_range(
    values: Tensor,
    stored: Tensor,
    valid: Tensor,
    specs: Sequence[ChannelSpec],
    stack: BandStack,
    rescaled: bool,
    complaints: dict[str, str],
) -> None:
    """Note channels whose bulk (2nd to 98th percentile) lies outside what their unit allows."""
    for i, spec in enumerate(specs):
        if spec.name in complaints or (spec.valid_min is None and spec.valid_max is None):
            continue
        step = max(1, values[i].numel() // 4096)  # a sample of the pixels is enough for two percentiles
        keep = valid[i].flatten()[::step]
        seen = values[i].flatten()[::step][keep]
        if seen.numel() == 0:
            continue
        low, high = (float(torch.quantile(seen, q)) for q in (0.02, 0.98))
        raw = stored[i].flatten()[::step][keep]
        fractional = bool((raw != raw.round()).any())
        if rescaled and stack.scales is None and spec.scale <= 0.01 and fractional and float(raw.abs().max()) <= 2:
            complaints[spec.name] = (
                f"Channel '{spec.name}' of {stack.source} holds {float(raw.min()):.3g} to {float(raw.max()):.3g}, "
                "which looks physical already: pass do_rescale=False"
            )
        elif (spec.valid_max is not None and high > spec.valid_max) or (
            spec.valid_min is not None and low < spec.valid_min
        ):
            complaints[spec.name] = (
                f"Channel '{spec.name}' of {stack.source} ranges from {low:.4g} to {high:.4g} ({spec.kind}, unit "
                f"{spec.unit}), outside {spec.valid_min} to {spec.valid_max}: check sensor, scale and unit"
            )


def _resize(values: Tensor, valid: Tensor, size: Any, resample: Any) -> tuple[Tensor, Tensor]:
    """Resample only from valid pixels; a pixel more than half of which was not measured is not valid."""
    height, width = _target(values.shape[-2], values.shape[-1], size)
    if (height, width) == tuple(values.shape[-2:]):
        return values, valid
    mode = _RESAMPLING.get(int(getattr(resample, "value", resample)) if resample is not None else 2)
    if mode is None:
        raise ValueError(f"resample={resample} is not offered; use nearest (0), bilinear (2) or bicubic (3).")
    options: dict[str, Any] = {} if mode == "nearest-exact" else {"antialias": True, "align_corners": False}
    weight = valid.float()
    both = torch.stack([values * weight, weight])
    resized, share = F.interpolate(both, size=(height, width), mode=mode, **options)
    keep = share > 0.5
    return torch.where(keep, resized / share.clamp(min=0.5), 0.0), keep


def _target(height: int, width: int, size: Any) -> tuple[int, int]:
    size = dict(size)
    if "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    if "shortest_edge" in size:
        factor = size["shortest_edge"] / min(height, width)
        if "longest_edge" in size:
            factor = min(factor, size["longest_edge"] / max(height, width))
    elif "longest_edge" in size:
        factor = size["longest_edge"] / max(height, width)
    else:
        raise ValueError(f"size {size} is not offered; give height and width, shortest_edge or longest_edge.")
    return max(1, round(height * factor)), max(1, round(width * factor))
