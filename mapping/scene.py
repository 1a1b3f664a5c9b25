"""`agriclip segment IMAGE "soybean fields"`: where in a scene is what a text asks for?

Three choices define this file. A scene is a raster or many tiles that a virtual raster lays side by side, so nothing
is read before its window is mapped. Bands are found by name, and stored numbers become the model's inputs, by the
rules of the image processor, decided once for the scene and not by each window for itself. And the probability says
against what it was weighed: among several queries each against the others, a single one against "other land".
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoProcessor
from transformers.utils import logging as transformers_logging

from mapping.band_store import fingerprint_code, process_state
from mapping.outputs import file_sha256, read_map, write_qgis_style
from mapping.streaming import ClassLayer, FailedTiles, MapLayer, MapRun, stream_map
from modeling_agriclip import AgriClipForSemanticSegmentation
from processing.bands_agriclip import BandStack, _ground_sample_distance
from processing.errors import AgriClipError
from processing.rasters import open_raster
from processing.sensors_agriclip import ChannelSpec, detect_sentinel2_offset, get_sensor, resolve_channels

try:
    import rasterio
    from rasterio.windows import Window
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("Mapping a scene needs rasterio: pip install 'agriclip[maps]'.") from error

OTHER_LAND = "other land"
_ENDINGS = (".tif", ".tiff", ".vrt")
_GDAL_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "float32": "Float32",
    "float64": "Float64",
}
# Told apart in grey and by the colour-blind as far as so many can be (Okabe & Ito 2008), then repeated.
_COLOURS = ("#e69f00", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#6b6b6b")
_CIVIDIS = ((0.0, "#00224e"), (0.25, "#434e6c"), (0.5, "#7d7c78"), (0.75, "#bcae6c"), (1.0, "#fee838"))
_MOST_THREADS = 16  # each holds the activations of a batch
_PICTURE, _SAMPLE = 900, 192  # pixels along an edge of the preview, and of each part of the sample
_SPREAD = ((0.0, "#fcfbfd"), (0.1, "#bcbddc"), (0.3, "#54278f"))


@dataclass(frozen=True)
class SceneMaps:
    """What [`map_scene`] wrote.

    Attributes:
        probability: Raster of each query, 0 to 1.
        disagreement: Its standard deviation over windows, where asked for.
        classes: The likeliest query of each pixel, where there are several.
        preview: Picture of the scene and the map.
        weighed: How the probability was formed, in words.
        run: Tiles and seconds.
    """

    probability: dict[str, Path]
    disagreement: dict[str, Path]
    classes: Path | None
    preview: Path | None
    weighed: str
    run: MapRun | None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        run = self.run
        return {
            "probability": {query: str(path) for query, path in self.probability.items()},
            "disagreement": {query: str(path) for query, path in self.disagreement.items()},
            "classes": None if self.classes is None else str(self.classes),
            "preview": None if self.preview is None else str(self.preview),
            "weighed": self.weighed,
            **({} if run is None else {"tiles": run.tiles, "seconds": round(run.seconds, 2)}),
        }


def map_scene(
    images: str | Path | Sequence[str | Path],
    model_dir: str | Path,
    query: str | Sequence[str],
    output_dir: str | Path,
    *,
    against: Sequence[str] | None = None,
    template: str = "a satellite image of {}",
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    dates: Sequence[str | int] | None = None,
    gsd: float | None = None,
    tile: int = 128,
    stride: int | None = None,
    batch_size: int = 8,
    disagreement: bool = False,
    allow_no_crs: bool = False,
    restart: bool = False,
    preview: bool = True,
    quiet: bool = False,
) -> SceneMaps:
    """Map what texts ask for, on the pixels of the scene.

    Args:
        images: A raster, a folder of tiles, or tiles that share CRS, pixel size and bands.
        model_dir: Folder of a fitted `AgriClipForSemanticSegmentation` with its processor.
        query: What is looked for, e.g. "soybean fields"; or several, weighed against each other.
        output_dir: `<query>_probability.tif`, `classes.tif`, styles and `preview.png` go there.
        against: Further texts that the queries are weighed against. By default "other land" for a single query and
            nothing for several; an empty list gives a single query the sigmoid of its own similarity, which means
            something only for a model fitted with one prompt.
        template: The prompt, with `{}` where the text goes; as the model was fitted with.
        sensor: Name of the sensor, by default the processor's.
        bands: Names of the channels; by default those of the sensor that the file names.
        dates: One date (ISO or day of the year) for each of the series that a file's bands consist of, oldest first.
        gsd: Metres per pixel, by default from the raster's transform.
        tile: Edge of a window in pixels; a multiple of the coarsest cell loses no rim.
        stride: Step between windows; three quarters of the edge by default.
        batch_size: Windows a step.
        disagreement: Write the standard deviation over overlapping windows too.
        allow_no_crs: Take a scene without CRS, and keep its georeference as it is.
        restart: Throw away what an interrupted call left, instead of going on with it.
        preview: Draw the picture.
        quiet: No progress bar.

    Returns:
        What was written. A pixel is nodata in every raster where any band was not measured.

    Raises:
        AgriClipError: There is no such model, its processor does not fit the bands, or the tiles do not fit together.
        FailedTiles: Some windows failed; everything is written nevertheless.
    """
    queries, others = _texts(query, against)
    state, workers = process_state(), model_threads()
    with open_scene(images) as path, _threads_restored():
        model = QueryModel(model_dir, [*queries, *others], template, state)
        scene = describe_scene(path, model.image_processor, sensor, bands, dates, gsd)
        predictor = ScenePredictor(model, scene, len(queries))
        folder = Path(output_dir)
        named = [*queries, "other"] if predictor.sums_others else queries
        tags = {
            "model_sha256": model.hash,
            "weighed": predictor.weighed,
            "prompt": template,
            "sensor": scene.sensor,
            "bands": [spec.name for spec in scene.specs],
            "dates": list(dates or []),
            "gsd": scene.gsd,
            "software": "AgriCLIP",
        }
        layers = [
            MapLayer(
                folder / f"{name}_probability.tif",
                text,
                {**tags, "query": text, "long_name": f"probability of {text}: {predictor.weighed}"},
            )
            for name, text in zip(_file_names(named), named, strict=True)
        ]
        legend = {i: (text, _COLOURS[(i - 1) % len(_COLOURS)]) for i, text in enumerate(named, 1)}
        classes = None
        if len(named) > 1:
            classes = ClassLayer(folder / "classes.tif", legend, {**tags, "long_name": "likeliest of the queries"})
        run, failed = None, None
        try:
            run = stream_map(
                path,
                predictor,
                layers,
                tile=tile,
                stride=stride or max(1, 3 * tile // 4),
                bands=scene.numbers,
                fills=scene.fills,
                batch_size=batch_size,
                workers=workers,
                classes=classes,
                disagreement=disagreement,
                plan=predictor.plan(),
                folder=folder / ".segment-partial",
                allow_no_crs=allow_no_crs,
                restart=restart,
                quiet=quiet,
                state=state,
            )
        except FailedTiles as error:
            failed = error
        spread = {layer.name: layer.path.with_name(f"{layer.path.stem}_disagreement.tif") for layer in layers}
        maps = SceneMaps(
            {layer.name: layer.path for layer in layers},
            spread if disagreement else {},
            None if classes is None else classes.path,
            folder / "preview.png" if preview else None,
            predictor.weighed,
            run,
        )
        if state is None or state.is_main_process:
            _write_styles(maps, legend)
            if maps.preview is not None:
                draw_preview(path, scene, maps, legend, maps.preview)
        if state is not None:
            state.wait_for_everyone()
    if failed is not None:
        raise failed
    return maps


class QueryModel:
    """A segmentation model whose texts are encoded once.

    Args:
        model_dir: Its folder.
        texts: What is asked for, and what it is weighed against.
        template: The prompt.
        state: The processes that share the work; each takes its own device.

    Raises:
        AgriClipError: There is no such model in the folder.
    """

    def __init__(self, model_dir: str | Path, texts: Sequence[str], template: str, state: Any = None) -> None:
        folder = Path(model_dir)
        if not (folder / "config.json").exists():
            raise AgriClipError(f"There is no model in '{folder}'; give the folder that a fit has written.")
        transformers_logging.disable_progress_bar()
        try:
            processor = AutoProcessor.from_pretrained(folder)
            prompts = processor.class_prompts(texts, template)
        except (OSError, ValueError, AttributeError) as error:
            raise AgriClipError(
                f"The processor in '{folder}' cannot take the queries ({error}); save it beside the model."
            ) from error
        model, loading = AgriClipForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
        if loading["missing_keys"]:
            lacking = min(loading["missing_keys"])
            raise AgriClipError(
                f"The model in '{folder}' was not fitted to segment: it lacks {lacking}; choose one that was."
            )
        fallback = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(fallback) if state is None else state.device
        self.model = model.eval().to(self.device)
        self._use_one_thread()
        self.image_processor = processor.image_processor
        self.texts = list(texts)
        self.hash = file_sha256(folder / "model.safetensors")
        # The texts as the model hears them: what a template or a tokenizer changes, this shows.
        said = [prompts[name].tolist() for name in ("input_ids", "numeric_values")]
        self.tokens = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
        with torch.inference_mode():
            encoded = self.model.text_model(**{name: value.to(self.device) for name, value in prompts.items()})
            self.prompts: Tensor = self.model.text_projection(encoded.pooler_output)

    def _use_one_thread(self) -> None:
        # The last digit of a matrix product depends on how many threads share it, and a map must not: threads take a
        # batch each instead, which is as fast.
        if self.device.type == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, valid: Tensor, channels: Tensor, gsd: float, dates: Tensor) -> Tensor:
        """Logits (B, K, h, w) of standardised pixels (B, T, C, h, w), as the model's own `forward` gives them."""
        self._use_one_thread()
        tower, batch = self.model.vision_model, len(pixels)
        inputs = tower.prepare(
            pixels.to(self.device),
            valid.to(self.device),
            channels.to(self.device),
            torch.full((batch,), gsd, device=self.device),
            dates.to(self.device).expand(batch, -1),
        )
        seen = tower(*inputs)
        image, mask, described = inputs[0], inputs[1], inputs[2]
        prompts = self.prompts.expand(batch, -1, -1)
        logits, _ = self.model.segmentation_head(
            seen.last_hidden_state, seen.pooler_output, image, mask, described, prompts
        )
        return logits


def model_threads() -> int:
    """How many batches to predict at once: as many as torch has threads, or one on a GPU."""
    return 1 if torch.cuda.is_available() else max(1, min(_MOST_THREADS, torch.get_num_threads()))


@contextmanager
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


class ScenePredictor:
    """Stored numbers to probabilities: what [`stream_map`] asks.

    Args:
        model: The model with its texts.
        scene: The bands.
        queries: How many of the texts are queries; the rest is what they are weighed against.

    Attributes:
        weighed: How the probability is formed, in words.
        sums_others: Whether the last layer is the sum of what several queries are weighed against.
    """

    def __init__(self, model: QueryModel, scene: Scene, queries: int) -> None:
        self.model, self.scene, self.queries = model, scene, queries
        self.sums_others = 1 < queries < len(model.texts)
        self.channels = torch.tensor([spec.code() for spec in scene.specs])
        if len(model.texts) == 1:
            self.weighed = "sigmoid of the similarity of the pixel and the query"
        else:
            self.weighed = f"softmax over {', '.join(repr(text) for text in model.texts)}"

    def plan(self) -> dict[str, Any]:
        """What decides the result beside the raster and the windows."""
        scene = self.scene
        return {
            "model": self.model.hash,
            "prompts": self.model.texts,
            "tokens": self.model.tokens,
            "channels": [spec.to_dict() for spec in scene.specs],
            "scale": [scene.scale.flatten().tolist(), scene.offset.flatten().tolist()],
            "days": scene.days.tolist(),
            "gsd": scene.gsd,
            "code": fingerprint_code(
                "mapping/scene.py", "mapping/streaming.py", "mapping/tiling.py", "modeling_agriclip"
            ),
            "torch": torch.__version__,
            "device": self.model.device.type,
        }

    def standardise(self, pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        """Stored numbers (B, T * C, h, w) to standard scores (B, T, C, h, w), and where they are valid."""
        shape = (len(self.scene.days), len(self.scene.specs))
        values = torch.from_numpy(pixels).unflatten(1, shape) * self.scene.scale + self.scene.offset
        factor = self.model.image_processor.rescale_factor
        if self.model.image_processor.do_rescale and factor not in (None, 1.0):
            values = values * factor
        known = torch.from_numpy(valid).unflatten(1, shape)
        return self.model.image_processor.normalize_values(values, list(self.scene.specs), known)

    def __call__(self, pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> Tensor:
        """Probability (B, K, h, w) of each layer."""
        scores, known = self.standardise(pixels, valid)
        logits = self.model(scores, known, self.channels, self.scene.gsd, self.scene.days)
        if logits.shape[1] == 1:
            return logits.sigmoid()
        chances = logits.softmax(dim=1)
        if not self.sums_others:
            return chances[:, : self.queries]
        return torch.cat([chances[:, : self.queries], chances[:, self.queries :].sum(dim=1, keepdim=True)], dim=1)


@contextmanager
def open_scene(images: str | Path | Sequence[str | Path]) -> Iterator[Path]:
    """One raster for whatever a scene is: itself, or a virtual raster of its tiles that exists meanwhile.

    Raises:
        AgriClipError: There are no tiles, or they do not fit together.
    """
    if isinstance(images, str | Path):
        folder = Path(images)
        files = [folder]
        if folder.is_dir():
            files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
            if not files:
                raise AgriClipError(f"There are no tiles ({', '.join(_ENDINGS)}) in the folder '{folder}'.")
    else:
        files = [Path(image) for image in images]
        if not files:
            raise AgriClipError("No image was given; name a raster, several tiles or a folder of tiles.")
    if len(files) == 1:
        yield files[0]
        return
    with tempfile.TemporaryDirectory() as place:
        mosaic = Path(place) / "mosaic.vrt"
        mosaic.write_text(build_mosaic(files))
        yield mosaic


def build_mosaic(files: Sequence[str | Path]) -> str:
    """A GDAL virtual raster (VRT) that lays tiles side by side; where they overlap the later one is seen.

    Args:
        files: Tiles of one CRS, pixel size, type and set of bands, on one raster of pixels.

    Returns:
        Its XML. Holes between the tiles are nodata.

    Raises:
        AgriClipError: A tile differs from the first.
    """
    tiles: list[tuple[str, int, int, int, int, tuple[int, int], bool]] = []
    first: dict[str, Any] = {}
    for file in files:
        with open_raster(file) as source:
            t = source.transform
            said = {
                "CRS": source.crs,
                "pixel size": (t.a, t.b, t.d, t.e),
                "bands": (source.descriptions, source.dtypes),
                "scale and offset": (source.scales, source.offsets),
                "nodata value": tuple(map(repr, source.nodatavals)),
                "units": source.units,
            }
            first = first or {**said, "origin": (t.c, t.f)}
            for what, value in said.items():
                if value != first[what]:
                    raise AgriClipError(f"'{file}' and '{files[0]}' differ in {what}; give tiles that are cut alike.")
            column, row = (t.c - first["origin"][0]) / t.a, (t.f - first["origin"][1]) / t.e
            if max(abs(column - round(column)), abs(row - round(row))) > 1e-3 or t.b or t.d:
                raise AgriClipError(f"'{file}' does not lie on the pixels of '{files[0]}'; warp it onto them first.")
            flags = {flag.name for band in source.mask_flag_enums for flag in band}
            masked = bool(flags - {"all_valid"})
            place = (round(column), round(row), source.width, source.height)
            tiles.append((str(Path(file).absolute()), *place, source.block_shapes[0], masked))
    left, top = min(tile[1] for tile in tiles), min(tile[2] for tile in tiles)
    width = max(tile[1] + tile[3] for tile in tiles) - left
    height = max(tile[2] + tile[4] for tile in tiles) - top
    return _mosaic_xml(
        first, [(tile[0], tile[1] - left, tile[2] - top, *tile[3:]) for tile in tiles], (left, top), (width, height)
    )


def _mosaic_xml(first: dict[str, Any], tiles: list[Any], corner: tuple[int, int], size: tuple[int, int]) -> str:
    root = ElementTree.Element("VRTDataset", rasterXSize=str(size[0]), rasterYSize=str(size[1]))
    if first["CRS"] is not None:
        ElementTree.SubElement(root, "SRS").text = first["CRS"].to_wkt()
    a, _, _, e = first["pixel size"]
    x, y = first["origin"][0] + a * corner[0], first["origin"][1] + e * corner[1]
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in (x, a, 0, y, 0, e))
    names, dtypes = first["bands"]
    for number, (name, dtype) in enumerate(zip(names, dtypes, strict=True), start=1):
        band = ElementTree.SubElement(root, "VRTRasterBand", dataType=_GDAL_TYPES[dtype], band=str(number))
        if name:
            ElementTree.SubElement(band, "Description").text = name
        nodata = first["nodata value"][number - 1]
        if nodata != "None":
            ElementTree.SubElement(band, "NoDataValue").text = nodata
        for key, value in zip(
            ("Scale", "Offset"), (part[number - 1] for part in first["scale and offset"]), strict=True
        ):
            ElementTree.SubElement(band, key).text = repr(value)
        for tile in tiles:
            _add_source(band, tile, str(number), nodata)
    if "None" in first["nodata value"]:
        # No number says what was not measured, so a mask says it: that of the tiles, and nothing between them.
        mask = ElementTree.SubElement(ElementTree.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        for tile in tiles:
            _add_source(mask, tile, "mask,1", "None")
    return ElementTree.tostring(root, encoding="unicode")


def _add_source(band: Any, tile: Any, number: str, nodata: str) -> None:
    path, column, row, width, height, block, masked = tile
    source = ElementTree.SubElement(band, "ComplexSource" if nodata != "None" or masked else "SimpleSource")
    ElementTree.SubElement(source, "SourceFilename", relativeToVRT="0").text = path
    ElementTree.SubElement(source, "SourceBand").text = number
    shape = {"RasterXSize": width, "RasterYSize": height, "BlockXSize": block[1], "BlockYSize": block[0]}
    dtype = band.get("dataType")
    ElementTree.SubElement(source, "SourceProperties", {key: str(v) for key, v in shape.items()}, DataType=dtype)
    size = {"xSize": str(width), "ySize": str(height)}
    ElementTree.SubElement(source, "SrcRect", xOff="0", yOff="0", **size)
    ElementTree.SubElement(source, "DstRect", xOff=str(column), yOff=str(row), **size)
    if nodata != "None":
        ElementTree.SubElement(source, "NODATA").text = nodata
    elif masked:
        ElementTree.SubElement(source, "UseMaskBand").text = "true"


def draw_preview(
    path: str | Path, scene: Scene, maps: SceneMaps, legend: dict[int, tuple[str, str]], output: str | Path
) -> Path:
    """Draw the scene in its natural colours, as far as it has them, and the map beside it.

    Args:
        path: The scene.
        scene: Its bands.
        maps: What was written of it.
        legend: Title and colour of each class.
        output: PNG to write.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from mapping.figures import STYLE, save_figure

    picture, names = _natural(path, scene)
    ratio = picture.shape[0] / picture.shape[1]
    width = min(11.0, max(6.5, 16.0 / (1 + ratio)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, width / 2 * ratio + 1.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        left.imshow(picture, interpolation="nearest")
        left.set_title(f"Scene ({names})")
        right.patch.set(facecolor="white", hatch="/////", edgecolor="#c9c5bd", linewidth=0.0)
        if maps.classes is not None:
            values = read_map(maps.classes, max_size=_PICTURE)
            shades = ListedColormap([colour for _, colour in legend.values()])
            right.imshow(values, cmap=shades, norm=BoundaryNorm(np.arange(0.5, len(legend) + 1), len(legend)))
            right.set_title("Likeliest of the queries")
            handles = [Patch(facecolor=colour, label=text) for text, colour in legend.values()]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
        else:
            (query, raster), *_ = maps.probability.items()
            values = read_map(raster, max_size=_PICTURE)
            image = right.imshow(values, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            right.set_title(query[:1].upper() + query[1:])
            bar = figure.colorbar(image, ax=[left, right], orientation="horizontal", aspect=60, shrink=0.7)
            bar.set_label(f"probability: {maps.weighed}")
            bar.outline.set_visible(False)
        if np.isnan(values).any():
            empty = Patch(facecolor="white", edgecolor="#c9c5bd", hatch="/////", linewidth=0.0, label="no data")
            right.legend(handles=[empty], loc="lower right", fontsize=8.5, framealpha=0.85, edgecolor="none")
        for axes in (left, right):
            axes.set(xticks=[], yticks=[])
        return save_figure(figure, output)


def _natural(path: str | Path, scene: Scene) -> tuple[NDArray[np.float32], str]:
    """Red, green and blue of the first date (h, w, 3), stretched, white where not measured; or one band in grey."""
    chosen: list[int] = []
    for wanted in (660.0, 555.0, 480.0):
        apart = [abs((spec.wavelength_nm or math.inf) - wanted) for spec in scene.specs]
        if min(apart) < 45:
            chosen.append(apart.index(min(apart)))
    chosen = chosen if len(set(chosen)) == 3 else [0, 0, 0]
    numbers = [scene.numbers[i] for i in chosen]
    with open_raster(path) as source:
        factor = min(1.0, _PICTURE / max(source.shape))
        shape = (3, *(max(1, round(edge * factor)) for edge in source.shape))
        try:
            values = source.read(numbers, out_shape=shape).astype(np.float32)
            known = source.read_masks(numbers, out_shape=shape) > 0
        except rasterio.errors.RasterioError:  # a part of it is damaged; the map says which
            return np.ones((*shape[1:], 3), np.float32), "damaged in part, not drawn"
    for band, i in enumerate(chosen):
        fill = scene.fills[i]
        known[band] &= np.isfinite(values[band]) & (True if fill is None else values[band] != fill)
        seen = values[band][known[band]]
        low, high = np.percentile(seen, (2, 98)) if seen.size else (0.0, 1.0)
        values[band] = np.clip((values[band] - low) / max(high - low, 1e-9), 0, 1)
    values[:, ~known.all(axis=0)] = 1.0
    names = dict.fromkeys(scene.specs[i].name for i in chosen)
    return values.transpose(1, 2, 0), ", ".join(names)


def _write_styles(maps: SceneMaps, legend: dict[int, tuple[str, str]]) -> None:
    for raster in maps.probability.values():
        write_qgis_style(raster, stops=_CIVIDIS)
    for raster in maps.disagreement.values():
        write_qgis_style(raster, stops=_SPREAD)
    if maps.classes is not None:
        write_qgis_style(maps.classes, classes=legend)


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
            except rasterio.errors.RasterioError:
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


def _texts(query: str | Sequence[str], against: Sequence[str] | None) -> tuple[list[str], list[str]]:
    queries = [text.strip() for text in ([query] if isinstance(query, str) else query)]
    others = ([OTHER_LAND] if len(queries) == 1 else []) if against is None else [text.strip() for text in against]
    texts = [*queries, *others]
    if not queries or not all(texts):
        raise AgriClipError('Nothing was asked for; give at least one query, such as "soybean fields".')
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise AgriClipError(f"'{twice}' is asked for twice, or weighed against itself; name it once.")
    return queries, others


def _file_names(texts: Sequence[str]) -> list[str]:
    """A file name of each text, no two alike."""
    names: list[str] = []
    for text in texts:
        plain = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60] or "query"
        number = sum(re.fullmatch(re.escape(plain) + r"(_\d+)?", name) is not None for name in names)
        names.append(f"{plain}_{number + 1}" if number else plain)
    return names


__all__ = [
    "QueryModel",
    "Scene",
    "SceneMaps",
    "ScenePredictor",
    "build_mosaic",
    "describe_scene",
    "draw_preview",
    "map_scene",
    "model_threads",
    "open_scene",
]
