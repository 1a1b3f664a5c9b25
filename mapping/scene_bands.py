"""Which band of a scene is which channel of the model, and how stored numbers become physical ones.

Three choices define this file. Bands are found by name, by the rules of the image processor. Scale, offset and the
mean and spread to standardise by are decided once for the scene, from pixels all over it, and not by each window for
itself. And what the processor would refuse of an image (numbers out of range, dates that are none) it refuses of
these pixels, before anything is mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from processing.bands_agriclip import BandStack, _ground_sample_distance
from processing.errors import AgriClipError
from processing.rasters import open_raster
from processing.sensors_agriclip import ChannelSpec, detect_sentinel2_offset, get_sensor, resolve_channels

try:
    from rasterio.errors import RasterioError
    from rasterio.windows import Window
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Describing a scene needs rasterio: pip install 'agriclip[maps]'.") from error

__all__ = ["Scene", "describe_scene"]

_SAMPLE = 192  # pixels along an edge of each part of the sample


@dataclass(frozen=True)
class Scene:
    """The bands of a scene as the model takes them: T dates of C channels.

    Attributes:
        path: The raster.
        numbers: Band in the file of each date and channel (T * C,), from 1.
        specs: The C channels.
        scale: From stored to physical numbers (T, C, 1, 1).
        offset: Added after it.
        fills: Stored number that means nothing was measured, or None, of each band (T * C,).
        days: Days from 1 January (T,), 0 = undated.
        gsd: Metres per pixel.
        sensor: Name of the sensor.
    """

    path: str
    numbers: list[int]
    specs: tuple[ChannelSpec, ...]
    scale: Tensor
    offset: Tensor
    fills: list[float | None]
    days: Tensor
    gsd: float
    sensor: str


def describe_scene(
    path: str | Path,
    processor: Any,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    dates: Sequence[str | int] | None = None,
    gsd: float | None = None,
) -> Scene:
    """Find the bands of a raster by the rules of an `AgriClipImageProcessor`, and decide scale and offset once.

    Args:
        path: The raster.
        processor: The image processor.
        sensor: Name of the sensor; the processor's by default.
        bands: Names of the channels; by default those of the sensor that the file names.
        dates: One date for each of the series that the bands consist of.
        gsd: Metres per pixel; from the file, or else from the sensor.

    Raises:
        AgriClipError: The bands do not fit.
    """
    if getattr(processor, "do_resize", False):
        raise AgriClipError("The model's processor resizes images, but a map keeps its pixels; save it without.")
    times, expected = len(dates) if dates else 1, ()
    with open_raster(path) as source:
        if source.count % times:
            raise AgriClipError(
                f"'{path}' has {source.count} bands, which are no {times} equal series; check the dates."
            )
        try:
            spec = get_sensor(sensor or processor.sensor)
            expected = spec.channels if bands is None else resolve_channels(list(bands), spec)
            found = [
                _series(source, path, slice(t * source.count // times, (t + 1) * source.count // times), processor)
                for t in range(times)
            ]
            taken = [processor.process_image(stack, expected, spec, bands is not None) for stack in found]
            seen = [_sample(source, [int(n) for n in stack.values.flatten()]) for stack, _ in taken]
            stacks = [replace(stack, values=v, valid=m) for (stack, _), (v, m) in zip(taken, seen, strict=True)]
            names = list(taken[0][1])
            # Says of the sample what it would say of an image: numbers out of range, dates that are none.
            days = processor([stacks], sensor=spec.name, channels=names, dates=[list(dates)] if dates else None)[
                "dates"
            ]
        except AgriClipError:
            raise
        except ValueError as error:
            series = times == 1 and expected and source.count > len(expected) and source.count % len(expected) == 0
            advice = f" (or are its {source.count} bands several dates? then name these)" if series else ""
            raise AgriClipError(f"'{path}' does not fit the model's processor: {error}{advice}") from error
        metres = gsd or _ground_sample_distance(source) or spec.gsd
    scaled = [_scale(stack, names, spec.name, processor) for stack in stacks]
    scale, offset = (torch.tensor([pair[i] for pair in scaled])[:, :, None, None] for i in (0, 1))
    fills = [channel.nodata if processor.do_rescale else None for channel in names] * times
    return Scene(
        path=str(path),
        numbers=[int(n) for stack, _ in taken for n in stack.values.flatten()],
        specs=_standardised(names, processor),
        scale=scale,
        offset=offset,
        fills=fills,
        days=torch.as_tensor(days)[0],
        gsd=float(metres),
        sensor=spec.name,
    )


def _series(source: Any, path: str | Path, part: slice, processor: Any) -> BandStack:
    """The bands of one date as a stack whose only pixel is the number of the band in the file."""
    numbers = torch.arange(part.start + 1, part.stop + 1, dtype=torch.float32)[:, None, None]
    names = [name or "" for name in source.descriptions[part]]
    scales = [(float(s), float(o)) for s, o in zip(source.scales[part], source.offsets[part], strict=True)]
    colours = [colour.name for colour in source.colorinterp[part]]
    return BandStack(
        numbers,
        torch.ones_like(numbers, dtype=torch.bool),
        names,
        scales if any(pair != (1.0, 0.0) for pair in scales) else None,
        _ground_sample_distance(source),
        f"'{path}'",
        colours.index("alpha") if "alpha" in colours else None,
    )


def _sample(source: Any, numbers: list[int], edge: int = _SAMPLE) -> tuple[Tensor, Tensor]:
    """Some pixels from all over the raster, side by side: stored numbers (C, h, w), and where they are valid.

    Raises:
        AgriClipError: Nothing of it can be read.
    """
    height, width = min(edge, source.height), min(edge, source.width)
    parts: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
    for row in dict.fromkeys(np.linspace(0, source.height - height, 4).round().astype(int)):
        for column in dict.fromkeys(np.linspace(0, source.width - width, 4).round().astype(int)):
            window = Window(int(column), int(row), width, height)
            try:
                values = source.read(numbers, window=window).astype(np.float32)
                parts.append((values, source.read_masks(numbers, window=window) > 0))
            except RasterioError:
                continue  # it will be named when it is mapped
    if not parts and edge > 8:
        return _sample(source, numbers, edge // 4)  # between what is damaged
    if not parts:
        raise AgriClipError(f"'{source.name}' cannot be read anywhere; is it whole?")
    values, valid = (np.concatenate([part[i] for part in parts], axis=2) for i in (0, 1))
    return torch.from_numpy(values), torch.from_numpy(valid)


def _scale(
    stack: BandStack, specs: Sequence[ChannelSpec], sensor: str, processor: Any
) -> tuple[list[float], list[float]]:
    """Scale and offset from stored to physical numbers: the file's, or else the sensor's."""
    if not processor.do_rescale:
        return [1.0] * len(specs), [0.0] * len(specs)
    if stack.scales is not None:
        return [pair[0] for pair in stack.scales], [pair[1] for pair in stack.scales]
    added = 0.0
    if sensor.startswith("sentinel2"):
        given, blue = processor.sentinel2_offset, [i for i, spec in enumerate(specs) if spec.name == "B02"]
        if given not in (None, "auto"):
            added = float(given)
        elif blue:
            stored = torch.where(stack.valid, stack.values, 0.0).numpy()
            added = detect_sentinel2_offset(stored[blue[0]], stored)
    return [spec.scale for spec in specs], [spec.offset + added * spec.scale for spec in specs]


def _standardised(specs: Sequence[ChannelSpec], processor: Any) -> tuple[ChannelSpec, ...]:
    """Channels with the mean and spread that the processor standardises by."""
    if not processor.do_normalize:
        return tuple(replace(spec, mean=0.0, std=1.0) for spec in specs)
    changed = list(specs)
    for key, given in (("mean", processor.image_mean), ("std", processor.image_std)):
        if given is not None:
            values = [given] * len(specs) if isinstance(given, int | float) else list(given)
            changed = [replace(spec, **{key: float(v)}) for spec, v in zip(changed, values, strict=True)]
    return tuple(changed)
