"""One interface to every image-text model: AgriCLIP's own, and CLIP and SigLIP checkpoints of transformers.

Three choices define this file. Embeddings leave it as the model makes them, not normalised: protocols differ in when
they normalise. Each model sees an image as it was made to, AgriCLIP all bands with their description, a model of
photographs red, green and blue through its own processor. And dense features are what the checkpoint's own head makes
of single cells, without training: for CLIP by the value path of the last layer (Zhou, Loy & Dai 2022, MaskCLIP), for
SigLIP by its pooling head over one cell at a time.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.vision.reading import Image, to_rgb
from processing.errors import AgriClipError
from processing.numbers_agriclip import canonicalise

__all__ = ["FEATURES", "AgriClipEncoder", "Encoder", "PhotographEncoder", "load_encoder"]

FloatArray = NDArray[np.float32]
FEATURES = ("descriptor", "pooled", "projected", "cells")
MOST_EDGE = 512  # pixels: attention over a larger image would not fit in memory
TEXTS_AT_ONCE = 64


class Encoder(ABC):
    """Images and texts to one space.

    Attributes:
        name: Folder or id of the model.
        family: `agriclip`, or the `model_type` of the checkpoint.
        logit_scale: Factor of the cosine.
        logit_bias: Added to it (SigLIP), or 0.
        default_sensor: Sensor to prefer where a file leaves several open.
        truncated: How many texts were too long and were cut.
        resized: How many images were reduced because they were too large.
    """

    def __init__(self, name: str, family: str, device: str) -> None:
        self.name, self.family, self.device = name, family, torch.device(device)
        self.logit_scale, self.logit_bias = 100.0, 0.0
        self.default_sensor: str | None = None
        self.truncated = self.resized = 0

    @abstractmethod
    def encode_images(self, images: Sequence[Image], features: str = "projected") -> FloatArray:
        """Images to embeddings (B, D).

        Args:
            images: The images.
            features: `projected`: in the space of the texts; `pooled`: before the projection; `cells`: pooled, and
                mean and spread of the cells; `descriptor`: statistics of the embedded pixels by season (AgriCLIP
                with a segmentation head).
        """

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Texts to embeddings (K, P), not normalised."""

    @abstractmethod
    def encode_cells(self, images: Sequence[Image], projected: bool = False) -> list[FloatArray]:
        """Images of one size to grids of cell features (h, w, D) that cover them."""

    def segment(self, images: Sequence[Image], texts: FloatArray) -> list[FloatArray]:
        """Logits (K, H, W) of each pixel of each image for text embeddings (K, P): cells against texts, enlarged."""
        unit = torch.nn.functional.normalize(torch.from_numpy(texts), dim=-1)
        logits = []
        for image, cells in zip(images, self.encode_cells(images, projected=True), strict=True):
            known = torch.nn.functional.normalize(torch.from_numpy(cells), dim=-1)
            scores = (known @ unit.t()).permute(2, 0, 1)[None] * self.logit_scale + self.logit_bias
            grown = nn.functional.interpolate(scores, size=self._covered(image, cells), mode="bilinear")
            logits.append(grown[0, :, : image.size[0], : image.size[1]].numpy())
        return logits

    def _covered(self, image: Image, cells: FloatArray) -> tuple[int, int]:
        """Rows and columns of pixels that the cells cover: the image, or a little more where the last are cut."""
        return image.size

    @abstractmethod
    def segment_texts(self, prompts: Sequence[str]) -> FloatArray:
        """Texts to embeddings (K, P) as `segment` takes them."""

    @property
    def segments_by(self) -> str:
        """How pixels are compared with texts, in words."""
        return "cells in the space of the texts, enlarged to pixels, without training"

    @property
    def compares_pixels(self) -> bool:
        """Whether the model has learnt to compare single pixels with texts."""
        return False

    @property
    def probe_features(self) -> str:
        """What a probe sees where nothing else is asked for."""
        return "descriptor" if self.compares_pixels else "pooled"

    def _require_pixels(self) -> None:
        if not self.compares_pixels:
            raise AgriClipError(
                f"The model in '{self.name}' has no pixels' path of its own, which descriptors are made from; ask for "
                "'pooled' or 'cells'."
            )

    def told(self) -> dict[str, Any]:
        """What the results say of the model."""
        return {
            "model": self.name,
            "family": self.family,
            "logit_scale": round(self.logit_scale, 4),
            "logit_bias": round(self.logit_bias, 4),
            "texts_truncated": self.truncated,
            "images_reduced": self.resized,
        }


class AgriClipEncoder(Encoder):
    """AgriCLIP's towers, and its segmentation head where it has one.

    Args:
        source: Folder or Hub id.
        device: Where it runs.
        size: Edge in pixels that images are resized to (the shorter one); by default they stay as they are up to 512.
    """

    def __init__(self, source: str, device: str = "cpu", size: int | None = None) -> None:
        from transformers import AutoProcessor

        from modeling_agriclip import AgriClipModel

        super().__init__(source, "agriclip", device)
        self.size = size
        self._told_a_doubt = False
        self.model, missing = _load(AgriClipModel, source)
        self.aligned = not missing & {"visual_projection", "text_projection", "logit_scale"}
        if missing & {"vision_model", "text_model"}:
            raise AgriClipError(f"The model in '{source}' lacks {', '.join(sorted(missing))}; it cannot be scored.")
        self.model.eval().to(self.device)
        try:
            self.processor = AutoProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise AgriClipError(f"The model in '{source}' has no processor ({error}); save it beside it.") from error
        self.default_sensor = self.processor.image_processor.sensor
        if self.aligned:
            with torch.no_grad():
                self.logit_scale = float(self.model.logit_scale())
                self.logit_bias = 0.0 if self.model.logit_bias is None else float(self.model.logit_bias())

    @cached_property
    def segmenter(self) -> Any:
        """The model with its segmentation head, or None where it was not fitted."""
        from modeling_agriclip import AgriClipForSemanticSegmentation

        model, lacking = _load(AgriClipForSemanticSegmentation, self.name)
        return None if lacking & {"segmentation_head", "text_projection"} else model.eval().to(self.device)

    def inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """Tensors of a batch of images; the smaller ones are padded, and masked there."""
        options: dict[str, Any] = {"sensor": [image.sensor for image in images], "return_tensors": "pt"}
        largest = max(max(image.size) for image in images)
        own = self.processor.image_processor.do_resize
        if self.size is not None:
            options |= {"do_resize": True, "size": {"shortest_edge": self.size}}
        elif largest > MOST_EDGE and not own:
            self.resized += len(images)
            options |= {"do_resize": True, "size": {"longest_edge": MOST_EDGE}}
        try:
            with self._telling_once():
                batch = self.processor.image_processor([image.stack for image in images], **options)
        except ValueError as error:
            raise AgriClipError(f"The images do not fit the model's processor: {error}") from error
        return {name: value.to(self.device) for name, value in batch.items()}

    @contextmanager
    def _telling_once(self) -> Iterator[None]:
        """A doubt about the units of a band is told for the first batch, not for each of ten thousand tiles."""
        logger = logging.getLogger(type(self.processor.image_processor).__module__)
        logger.addFilter(self._not_told_before)
        try:
            yield
        finally:
            logger.removeFilter(self._not_told_before)

    def _not_told_before(self, record: logging.LogRecord) -> bool:
        before, self._told_a_doubt = self._told_a_doubt, True
        return not before

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image], features: str = "projected") -> FloatArray:
        """Images to embeddings (B, D)."""
        return self.encode_tensors(self.inputs(images), features)

    @torch.inference_mode()
    def encode_tensors(self, inputs: dict[str, Tensor], features: str) -> FloatArray:
        """Tensors of the model to embeddings (B, D)."""
        if features == "descriptor":
            self._require_pixels()
            return _numpy(self.segmenter.get_image_descriptors(**inputs))
        seen = self.model.vision_model(**inputs)
        if features == "projected":
            self._require_alignment()
            return _numpy(self.model.visual_projection(seen.pooler_output))
        if features == "pooled":
            return _numpy(seen.pooler_output)
        return _numpy(_with_cells(seen.pooler_output, seen.last_hidden_state, seen.cell_mask))

    def _require_alignment(self) -> None:
        if not self.aligned:
            raise AgriClipError(
                f"The model in '{self.name}' was not trained to align images with texts; score it with `evaluate "
                "probe`, or choose one that was."
            )

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Texts to embeddings (K, P)."""
        self._require_alignment()
        return self._texts(self.model, texts)

    def _texts(self, model: Any, texts: Sequence[str]) -> FloatArray:
        found = []
        siglip = model.config.text_config.encoder_config.model_type == "siglip_text_model"
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = list(texts[start : start + TEXTS_AT_ONCE])
            options: dict[str, Any] = {"padding": "max_length", "max_length": 64} if siglip else {}
            plain = [canonicalise(text)[0] for text in part]
            lengths = [
                len(ids) for ids in self.processor.tokenizer(plain, truncation=False, verbose=False)["input_ids"]
            ]
            most = 64 if siglip else self.processor.max_report_tokens
            over = sum(length > most for length in lengths)
            self.truncated += over
            if over:
                options |= {"truncation": True, "max_length": most}
            batch = self.processor(text=part, **options)
            if siglip:
                batch.pop("attention_mask")
            encoded = model.text_model(**{name: value.to(self.device) for name, value in batch.items()})
            found.append(_numpy(model.text_projection(encoded.pooler_output)))
        return np.concatenate(found)

    @torch.inference_mode()
    def encode_cells(self, images: Sequence[Image], projected: bool = False) -> list[FloatArray]:
        """Images to grids of cell features (h, w, D)."""
        inputs = self.inputs(images)
        cells = self.model.vision_model(**inputs).last_hidden_state
        if projected:
            self._require_alignment()
            cells = self.model.visual_projection(cells)
        patch = self.model.config.vision_config.patch_size
        height, width = inputs["pixel_values"].shape[-2:]
        rows, columns = math.ceil(height / patch), math.ceil(width / patch)
        return list(_numpy(cells).reshape(len(images), rows, columns, -1))

    def _covered(self, image: Image, cells: FloatArray) -> tuple[int, int]:
        patch = self.model.config.vision_config.patch_size
        own = self.processor.image_processor.do_resize
        if self.size is not None or own or max(image.size) > MOST_EDGE:
            return image.size
        return cells.shape[0] * patch, cells.shape[1] * patch

    @property
    def segments_by(self) -> str:
        """How pixels are compared with texts, in words."""
        return super().segments_by if self.segmenter is None else "the segmentation head"

    @property
    def compares_pixels(self) -> bool:
        """Whether the folder has a segmentation head."""
        return self.segmenter is not None

    def segment_texts(self, prompts: Sequence[str]) -> FloatArray:
        """Text embeddings (K, P) as the segmentation head takes them."""
        if self.segmenter is None:
            return self.encode_texts(prompts)
        with torch.inference_mode():
            return self._texts(self.segmenter, prompts)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image], texts: FloatArray) -> list[FloatArray]:
        """Logits (K, H, W) of each pixel of each image."""
        if self.segmenter is None:
            return super().segment(images, texts)
        model, inputs = self.segmenter, self.inputs(images)
        prepared = model.vision_model.prepare(*(inputs[name] for name in _IMAGE))
        seen = model.vision_model(*prepared)
        prompts = torch.from_numpy(texts).to(self.device).expand(len(images), -1, -1)
        logits, _ = model.segmentation_head(
            seen.last_hidden_state, seen.pooler_output, prepared[0], prepared[1], prepared[2], prompts
        )
        found = []
        for image, scores in zip(images, logits, strict=True):
            if self.size is not None or self.processor.image_processor.do_resize or max(image.size) > MOST_EDGE:
                scores = nn.functional.interpolate(scores[None], size=image.size, mode="bilinear")[0]
            found.append(_numpy(scores[:, : image.size[0], : image.size[1]]))
        return found


_IMAGE = ("pixel_values", "pixel_mask", "channels", "gsd", "dates")


class PhotographEncoder(Encoder):
    """A CLIP or SigLIP checkpoint of transformers, which sees red, green and blue.

    Args:
        source: Folder or Hub id.
        device: Where it runs.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        try:
            model = AutoModel.from_pretrained(source, dtype=torch.float32)
            self.image_processor = AutoImageProcessor.from_pretrained(source)
            self.tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            raise AgriClipError(
                f"'{source}' cannot be loaded as a model with its processor ({' '.join(str(error).split())[:200]})."
            ) from error
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise AgriClipError(
                f"'{source}' is a {model.config.model_type} model, which does not pair images and texts."
            )
        super().__init__(source, model.config.model_type, device)
        self.model: Any = model.eval().to(self.device)
        self.default_sensor = "rgb"
        self.siglip = self.family.startswith("siglip")
        self.length = int(model.config.text_config.max_position_embeddings)
        with torch.no_grad():
            self.logit_scale = float(model.logit_scale.exp())
            self.logit_bias = float(model.logit_bias) if hasattr(model, "logit_bias") else 0.0

    def _pixels(self, images: Sequence[Image]) -> Tensor:
        from PIL import Image as Picture

        pictures = [Picture.fromarray(to_rgb(image)) for image in images]
        return self.image_processor(images=pictures, return_tensors="pt")["pixel_values"].to(self.device)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image], features: str = "projected") -> FloatArray:
        """Images to embeddings (B, D)."""
        if features == "descriptor":
            self._require_pixels()
        pixels = self._pixels(images)
        if features == "projected":
            return _numpy(_embedding(self.model.get_image_features(pixel_values=pixels)))
        seen = self.model.vision_model(pixel_values=pixels)
        if features == "pooled":
            return _numpy(seen.pooler_output)
        cells = self._without_class(seen.last_hidden_state)
        return _numpy(_with_cells(seen.pooler_output, cells, torch.ones_like(cells[..., 0])))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Texts to embeddings (K, P)."""
        found = []
        # SigLIP was trained on texts padded to their full length, without a mask.
        padding = "max_length" if self.siglip else True
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = list(texts[start : start + TEXTS_AT_ONCE])
            lengths = [len(ids) for ids in self.tokenizer(part, truncation=False, verbose=False)["input_ids"]]
            self.truncated += sum(length > self.length for length in lengths)
            batch = self.tokenizer(
                part, padding=padding, truncation=True, max_length=self.length, return_tensors="pt", verbose=False
            )
            kept = {"input_ids"} if self.siglip else {"input_ids", "attention_mask"}
            inputs = {name: value.to(self.device) for name, value in batch.items() if name in kept}
            found.append(_numpy(_embedding(self.model.get_text_features(**inputs))))
        return np.concatenate(found)

    def segment_texts(self, prompts: Sequence[str]) -> FloatArray:
        """Text embeddings (K, P) for dense comparison."""
        return self.encode_texts(prompts)

    def _without_class(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) without the class token that CLIP puts before them."""
        return tokens if self.siglip else tokens[:, 1:]

    @torch.inference_mode()
    def encode_cells(self, images: Sequence[Image], projected: bool = False) -> list[FloatArray]:
        """Images to grids of cell features (h, w, D)."""
        pixels, tower = self._pixels(images), self.model.vision_model
        if not projected:
            cells = self._without_class(tower(pixel_values=pixels).last_hidden_state)
        elif self.siglip:
            tokens = tower(pixel_values=pixels).last_hidden_state
            cells = tower.head(tokens.flatten(0, 1).unsqueeze(1)).view(*tokens.shape[:2], -1)
        else:
            states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
            layer = tower.encoder.layers[-1]
            values = layer.self_attn.out_proj(layer.self_attn.v_proj(layer.layer_norm1(states)))
            states = states + values
            states = states + layer.mlp(layer.layer_norm2(states))
            cells = self.model.visual_projection(tower.post_layernorm(self._without_class(states)))
        patch = self.model.config.vision_config.patch_size
        rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        return list(_numpy(cells).reshape(len(images), rows, columns, -1))


def _embedding(output: Any) -> Tensor:
    """What `get_*_features` returns: a tensor, or an output with `pooler_output`."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _with_cells(pooled: Tensor, cells: Tensor, mask: Tensor) -> Tensor:
    """Pooled embedding (B, D) with mean and standard deviation of the valid cells (B, N, D)."""
    weight = mask.unsqueeze(-1).to(cells.dtype)
    count = weight.sum(dim=1).clamp(min=1)
    mean = (cells * weight).sum(dim=1) / count
    spread = (((cells - mean[:, None]) ** 2 * weight).sum(dim=1) / count).sqrt()
    return torch.cat([pooled, mean, spread], dim=-1)


def _numpy(tensor: Tensor) -> FloatArray:
    return tensor.float().cpu().numpy()


def _load(kind: Any, source: str) -> tuple[Any, set[str]]:
    """A model in single precision, and which of its parts the checkpoint lacks."""
    try:
        model, loading = kind.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise AgriClipError(
            f"'{source}' cannot be loaded as a model ({' '.join(str(error).split())[:200]})."
        ) from error
    return model, {name.split(".")[0] for name in loading["missing_keys"]}


def load_encoder(source: str | Path, device: str | None = None, size: int | None = None) -> Encoder:
    """The encoder of a model, whichever kind it is.

    Args:
        source: Folder or Hub id of an AgriCLIP, CLIP or SigLIP model.
        device: `cpu`, `cuda`, ...; the first GPU by default, if there is one.
        size: Edge in pixels that images are resized to before AgriCLIP sees them.

    Raises:
        AgriClipError: There is no such model.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    import modeling_agriclip  # noqa: F401 - registers the classes

    where = str(source)
    folder = Path(where).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise AgriClipError(f"There is no model in the folder '{where}'; give one with config.json.")
    if not folder.exists() and (where.count("/") != 1 or where.startswith((".", "/", "~"))):
        raise AgriClipError(
            f"There is no model '{where}'; give a folder, or a Hub id such as openai/clip-vit-base-patch32."
        )
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise AgriClipError(
            f"'{where}' is no model that can be loaded ({' '.join(str(error).split())[:200]})."
        ) from error
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if config.model_type == "agriclip":
        return AgriClipEncoder(where, chosen, size)
    return PhotographEncoder(where, chosen)
