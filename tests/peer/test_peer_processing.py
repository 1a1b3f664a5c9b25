"""transformers' own tests of image processors and processors, on AgriClip's."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from harness_processing import image_processor_tests, processor_tests
from transformers import AutoImageProcessor, AutoProcessor, PreTrainedConfig

from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.tokenizer import build_tokenizer


class PeerProcessingConfig(PreTrainedConfig):
    """The auto classes find a processor through a configuration; this one stands in for the model's."""

    model_type = "agriclip_peer_processing"


AutoImageProcessor.register(
    PeerProcessingConfig,
    image_processor_classes={"torchvision": AgriClipImageProcessor, "pil": AgriClipImageProcessor},
    exist_ok=True,
)
AutoProcessor.register(PeerProcessingConfig, AgriClipProcessor, exist_ok=True)

# One class serves both names: it needs neither torchvision nor Pillow.
BACKENDS = {"torchvision": AgriClipImageProcessor, "pil": AgriClipImageProcessor}
SIZE = {"height": 18, "width": 20}


@pytest.fixture(autouse=True, scope="module")
def without_auto_map() -> Iterator[None]:
    """Classes registered for saving with their code write an entry that these tests do not expect."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AgriClipImageProcessor, "_auto_class", None)
        patch.setattr(AgriClipProcessor, "_auto_class", None)
        yield


def one_date(tester: Any, images: Any) -> tuple[int, ...]:
    """Images come out as (T, C, H, W), one date here."""
    return 1, tester.num_channels, SIZE["height"], SIZE["width"]


AgriClipPhotographTest = image_processor_tests(
    "AgriClipPhotographTest",
    BACKENDS,
    one_date,
    size=SIZE,
    do_resize=True,
    image_mean=[0.4, 0.4, 0.4],
    image_std=[0.2, 0.2, 0.2],
    skip={"test_call_numpy_4_channels": "a photograph has three named bands; a fourth is refused, not guessed"},
)

AgriClipGenericSensorTest = image_processor_tests(
    "AgriClipGenericSensorTest", BACKENDS, one_date, sensor="generic", size=SIZE, do_resize=True
)

AgriClipLandsatTest = image_processor_tests(
    "AgriClipLandsatTest",
    BACKENDS,
    one_date,
    num_channels=6,
    sensor="hls",
    size=SIZE,
    do_resize=True,
    skip={
        "test_call_pil": "Pillow holds no six-band image",
        "test_call_numpy_4_channels": "six named bands; four are refused",
        "test_backends_equivalence": "its picture has three bands",
    },
)


@cache
def small_tokenizer() -> Any:
    """Built once: the tests reload it from disk."""
    return build_tokenizer(vocab_size=1200)


AgriClipProcessorTest = processor_tests(
    "AgriClipProcessorTest",
    AgriClipProcessor,
    {"image_processor": AgriClipImageProcessor, "tokenizer": small_tokenizer},
)


def six_bands(batch_size: int | None) -> Any:
    """Images of the size upstream uses, with six bands."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 8000, (6, 30, 40)) for _ in range(batch_size or 1)]
    return images if batch_size is not None else images[0]


AgriClipSixBandProcessorTest = processor_tests(
    "AgriClipSixBandProcessorTest",
    AgriClipProcessor,
    {"image_processor": lambda: AgriClipImageProcessor(sensor="hls"), "tokenizer": small_tokenizer},
    images=six_bands,
)
