"""`agriclip segment IMAGE "soybean fields"`: where in a scene is what a text asks for?

Three choices define this file. Texts are encoded once, and the pixels of every window are compared with them. The
probability says against what it was weighed: among several queries each against the others, a single one against
"other land". And threads take a batch each instead of sharing one, so that their number does not change a byte.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoProcessor
from transformers.utils import logging as transformers_logging

from mapping.band_store import process_state
from mapping.mosaic import open_scene
from mapping.outputs import file_sha256
from mapping.scene_bands import Scene, describe_scene
from mapping.scene_figure import QUERY_COLOURS, draw_preview, write_styles
from mapping.streaming import ClassLayer, FailedTiles, MapLayer, MapRun, stream_map
from modeling_agriclip import AgriClipForSemanticSegmentation
from processing.errors import AgriClipError
from processing.plans import fingerprint_code

__all__ = ["QueryModel", "SceneMaps", "ScenePredictor", "map_scene", "model_threads"]

OTHER_LAND = "other land"
# What decides the result, beside the raster, the model and the settings.
_CODE = (
    "mapping/mosaic.py",
    "mapping/scene.py",
    "mapping/scene_bands.py",
    "mapping/streaming.py",
    "mapping/strips.py",
    "mapping/tiling.py",
    "modeling_agriclip",
)
_MOST_THREADS = 16  # each holds the activations of a batch


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
        legend = {i: (text, QUERY_COLOURS[(i - 1) % len(QUERY_COLOURS)]) for i, text in enumerate(named, 1)}
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
            write_styles(maps, legend)
            if maps.preview is not None:
                draw_preview(path, scene, maps, legend, maps.preview)
        if state is not None:
            state.wait_for_everyone()
    if failed is not None:
        raise failed
    return maps


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
            "code": fingerprint_code(*_CODE),
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
