"""AgriCLIP: a remote-sensing vision-language model for agriculture, native to Hugging Face.

Importing this package registers the classes, so that `AutoModel.from_pretrained("agriclip")` works without remote
code. It needs torch, transformers and safetensors, and nothing else.
"""

from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    AutoModelForSequenceClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    PreTrainedConfig,
)

from .calibration_agriclip import Calibration, ConformalLevel
from .configuration_agriclip import AgriClipConfig, AgriClipFuserConfig, AgriClipTextConfig, AgriClipVisionConfig
from .ensemble_agriclip import AgriClipEnsemble, AgriClipEnsembleOutput
from .modeling_agriclip import (
    AgriClipForImageClassification,
    AgriClipForPreTraining,
    AgriClipForSemanticSegmentation,
    AgriClipForSuitability,
    AgriClipModel,
    AgriClipPreTrainedModel,
    AgriClipTextModel,
    AgriClipVisionModel,
)


def _register() -> None:
    """Enter all classes in transformers' automatic ones, and have saved folders carry the code they need."""
    for config in (AgriClipConfig, AgriClipVisionConfig, AgriClipTextConfig, AgriClipFuserConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        config.register_for_auto_class()
    entries: list[tuple[Any, type[PreTrainedConfig], type[AgriClipPreTrainedModel]]] = [
        (AutoModel, AgriClipVisionConfig, AgriClipVisionModel),
        (AutoModel, AgriClipTextConfig, AgriClipTextModel),
        (AutoModel, AgriClipConfig, AgriClipModel),
        (AutoModelForImageClassification, AgriClipConfig, AgriClipForImageClassification),
        (AutoModelForPreTraining, AgriClipConfig, AgriClipForPreTraining),
        (AutoModelForSemanticSegmentation, AgriClipConfig, AgriClipForSemanticSegmentation),
        # Of all automatic classes the one that a report goes into; pipelines load a model by such a class only.
        (AutoModelForSequenceClassification, AgriClipConfig, AgriClipForSuitability),
        (AutoModelForZeroShotImageClassification, AgriClipConfig, AgriClipModel),
    ]
    for auto, config_class, model in entries:
        auto.register(config_class, model, exist_ok=True)
    for auto, _, model in reversed(entries):
        model.register_for_auto_class(auto.__name__)


def _register_processor() -> None:
    """The same for the processor, where the `processing` folder is installed beside this one."""
    try:
        from processing.image_processing_agriclip import AgriClipImageProcessor
        from processing.pipelines_agriclip import register_pipelines
        from processing.processing_agriclip import AgriClipProcessor
    except ImportError:
        return
    backends: dict[str, type] = {"torchvision": AgriClipImageProcessor, "pil": AgriClipImageProcessor}
    AutoImageProcessor.register(AgriClipConfig, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(AgriClipConfig, AgriClipProcessor, exist_ok=True)
    AgriClipImageProcessor.register_for_auto_class("AutoImageProcessor")
    AgriClipProcessor.register_for_auto_class("AutoProcessor")
    register_pipelines()


_register()
_register_processor()

__all__ = [
    "AgriClipConfig",
    "AgriClipEnsemble",
    "AgriClipEnsembleOutput",
    "AgriClipForImageClassification",
    "AgriClipForPreTraining",
    "AgriClipForSemanticSegmentation",
    "AgriClipForSuitability",
    "AgriClipFuserConfig",
    "AgriClipModel",
    "AgriClipPreTrainedModel",
    "AgriClipTextConfig",
    "AgriClipTextModel",
    "AgriClipVisionConfig",
    "AgriClipVisionModel",
    "Calibration",
    "ConformalLevel",
]
