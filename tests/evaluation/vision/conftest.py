"""Tiny models of three families and an encoder that knows the answers, for the evaluation of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image as Picture
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, SiglipConfig, SiglipImageProcessor, SiglipModel

from evaluation.vision.encoders import Encoder
from modeling_agriclip import AgriClipConfig, AgriClipForSemanticSegmentation, AgriClipModel
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.tokenizer import build_tokenizer
from tests.training.small_model import SMALL

BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")


def shake(model: torch.nn.Module) -> torch.nn.Module:
    """Moves what starts at nothing off it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.fixture(scope="session")
def agriclip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_agriclip(tmp_path_factory.mktemp("agriclip"))


def write_agriclip(folder: Path) -> Path:
    """Writes a tiny AgriCLIP that aligns and segments, with its processor."""
    processor = AgriClipProcessor(AgriClipImageProcessor(sensor="landsat8"), build_tokenizer(vocab_size=2000))
    torch.manual_seed(0)
    config = AgriClipConfig.from_size("tiny", vocab_size=len(processor.tokenizer), **SMALL)
    config.text_config.number_token_id = processor.num_token_id
    shake(AgriClipModel(config)).save_pretrained(folder)
    head = shake(AgriClipForSemanticSegmentation(config)).state_dict()
    weights = load_file(folder / "model.safetensors")
    weights |= {name: value for name, value in head.items() if name.startswith("segmentation_head")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    processor.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path, length: int, pad: str) -> int:
    tokenizer = build_tokenizer(vocab_size=2000)
    tokenizer.model_max_length = length
    tokenizer.eos_token, tokenizer.bos_token = "[SEP]", "[CLS]"
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def write_clip(folder: Path) -> Path:
    """Writes a tiny CLIP with its processor."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": _tokenizer(folder, 32, "[PAD]"), "max_position_embeddings": 32, "eos_token_id": 3}
    config = CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=12
    )
    shake(CLIPModel(config)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SigLIP with its processor."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": _tokenizer(folder, 16, "[PAD]"), "max_position_embeddings": 16}
    config = SiglipConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8})
    shake(SiglipModel(config)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


class OracleEncoder(Encoder):
    """Sees the mean of the red band as a class, and hears the class from a table of texts."""

    def __init__(self, vectors: dict[str, np.ndarray], heard: dict[str, np.ndarray]) -> None:
        super().__init__("oracle", "clip", "cpu")
        self.vectors, self.heard, self.asked = vectors, heard, []

    def encode_images(self, images: Any, features: str = "projected") -> np.ndarray:
        return np.stack([self.vectors[Path(image.key).stem] for image in images]).astype(np.float32)

    def encode_texts(self, texts: Any) -> np.ndarray:
        self.asked += list(texts)
        return np.stack([self.heard[text] for text in texts]).astype(np.float32)

    def segment_texts(self, prompts: Any) -> np.ndarray:
        return self.encode_texts(prompts)

    def encode_cells(self, images: Any, projected: bool = False) -> list[np.ndarray]:
        # A cell is the pair of a pixel block's first two bands.
        return [image.stack.values[:2, ::4, ::4].permute(1, 2, 0).numpy() for image in images]

    def segment(self, images: Any, texts: Any) -> list[np.ndarray]:
        # The first band holds the class: 1 where it agrees with the number of the text.
        return [
            np.stack([(image.stack.values[0].numpy() == k).astype(np.float32) for k in range(len(texts))])
            for image in images
        ]


def write_tile(
    path: Path, values: Any, *, origin: tuple[float, float] | None = (0.0, 0.0), names: Any = BANDS, **tags: Any
) -> Path:
    """Writes an array (C, h, w) as a GeoTIFF of 30 m pixels without a CRS."""
    array = np.asarray(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": array.dtype.name, "count": len(array)}
    profile |= {"height": array.shape[1], "width": array.shape[2]}
    if origin is not None:
        profile["transform"] = Affine(30.0, 0.0, origin[0], 0.0, -30.0, origin[1])
    with rasterio.open(path, "w", **profile, **{k: v for k, v in tags.items() if k in ("crs", "nodata")}) as raster:
        raster.write(array)
        if names is not None:
            raster.descriptions = names
        if "scale" in tags:
            raster.scales = [tags["scale"]] * len(array)
    return path


def write_photograph(path: Path, colour: tuple[int, int, int], size: int = 32) -> Path:
    """Writes a PNG of one colour with a little noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.stem)).integers(0, 20, (size, size, 3))
    Picture.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)
    return path


def write_scene(folder: Path, tiles: int = 6, wrong: float = 0.25) -> tuple[Path, Path, np.ndarray]:
    """Tiles whose first band is the class that an oracle sees, and masks that agree on part of the pixels."""
    random = np.random.default_rng(0)
    masks = []
    for i in range(tiles):
        seen = random.integers(0, 2, (16, 16))
        truth = np.where(random.random((16, 16)) < wrong, 1 - seen, seen)
        codes = np.where(truth == 0, 5, 111).astype(np.uint8)
        codes[:2] = 99
        values = np.stack([seen, *[seen * 100 + j for j in range(5)]]).astype(np.int16)
        write_tile(folder / "images" / f"{i}.tif", values, origin=(480.0 * i, 0.0), scale=1e-3)
        write_tile(folder / "masks" / f"{i}.tif", codes[None], origin=(480.0 * i, 0.0), names=None)
        masks.append(np.stack([seen, truth])[:, 2:])
    return folder / "images", folder / "masks", np.stack(masks)
