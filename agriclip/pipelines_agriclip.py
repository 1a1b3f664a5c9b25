"""Pipelines for satellite images of any bands and for reports: suitability, zero-shot labels, segmentation, features.

The pipelines of transformers take photographs only. These take what the image processor takes: the path of a GeoTIFF,
an array or tensor (C, H, W) with the names of its bands, a Pillow image, a web address. Three choices define the file.
Images go through one at a time, because their sizes and bands differ. A map comes back with the CRS and transform of
its file. And weights that were never fitted to a task are refused, in place of an answer from random numbers.
"""

import importlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForSemanticSegmentation, AutoModelForSequenceClassification, Pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.pipelines import PIPELINE_REGISTRY

from .georeference_agriclip import MAX_PIXELS, fetched, read_georeference, resized, write_geotiff
from .numbers_agriclip import find_measurements

SUITABILITY = "agriclip-suitability"
ZERO_SHOT = "agriclip-zero-shot-image-classification"
SEGMENTATION = "agriclip-image-segmentation"
FEATURES = "agriclip-feature-extraction"

OTHER_LAND = "other land"
TEMPLATE = "a satellite image of {}"
_IMAGE_OPTIONS = ("sensor", "channels", "gsd", "dates", "reference_year", "sentinel2_offset", "do_rescale")
# What `pipeline()` hands on to every pipeline although it is meant for the loading.
_OF_THE_FACTORY = ("local_files_only", "timeout")
_SETS = {(True, False): "unsuitable", (False, True): "suitable", (True, True): "undecided", (False, False): "strange"}


class _AgriClipPipeline(Pipeline):
    """What the pipelines share: the processor, the options of an image and where it lies."""

    # Any: transformers annotates the switches as None.
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_video_processor: Any = False
    processor: Any
    # Options of a call beside those of an image: which step takes them.
    _options: dict[str, str] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_batch_size(kwargs.get("batch_size"))
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("The pipeline needs a processor beside the model; give processor=AutoProcessor...")
        # A fresh model in training mode would answer otherwise each time.
        self.model.eval()
        self._check_weights()

    def _check_weights(self) -> None:
        """Refuse weights that were not fitted to the task."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _check_batch_size(kwargs.get("batch_size"))
        return super().__call__(*args, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        steps: dict[str, dict[str, Any]] = {"preprocess": {}, "forward": {}, "postprocess": {}}
        for name, value in kwargs.items():
            if name in (*_IMAGE_OPTIONS, "max_pixels"):
                steps["preprocess"].setdefault("image_options", {})[name] = value
            elif name in self._options:
                steps[self._options[name]][name] = value
            elif name not in _OF_THE_FACTORY:
                known = ", ".join((*self._options, *_IMAGE_OPTIONS, "max_pixels"))
                raise ValueError(f"The pipeline has no option '{name}'; it has: {known}.")
        return steps["preprocess"], steps["forward"], steps["postprocess"]

    def _encode(self, image: Any = None, text: Any = None, image_options: dict[str, Any] | None = None) -> Any:
        """Image, report or both to the tensors of the model, and where the image lies."""
        options = dict(image_options or {})
        limit = options.pop("max_pixels", MAX_PIXELS)
        georeference = None
        given: dict[str, Any] = {}
        if image is not None:
            georeference = read_georeference(image, limit)
            given = {
                "images": [fetched(image)],
                **{key: value for key, value in options.items() if value is not None},
            }
        if text is not None:
            given["text"] = text
        inputs = self.processor(**given)
        if "pixel_values" in inputs and isinstance(self.dtype, torch.dtype):
            # Only pixels: numbers of a report lose their digits in half precision.
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        return inputs, georeference


class AgriClipSuitabilityPipeline(_AgriClipPipeline):
    """Probability that land is suitable, from a report, an image, or both.

    `pipe("Annual precipitation 45 in; ...")`, `pipe(report, image="chip.tif")`, `pipe({"text": ..., "image": ...})`,
    or a list of reports or of such dictionaries. Where the folder of the weights holds members, all of them are asked,
    each calibrated as its folder says; `members=False` asks the given model alone.

    Returns a dictionary for each place:

    * `probability` (`value` for a model of a value), and `report_probability`, the same without the image
    * `std` and `mutual_information` (nats) over the members, None for a single one; `member_probabilities`
    * `share` of land, for models of a share
    * `sets`: per coverage, which classes cannot be ruled out: suitable, unsuitable, undecided or strange
    * `image_used`: whether any pixel was valid
    * `numbers`: each number found in the report, as written and in the unit that the model reads
    """

    _options = {"image": "preprocess"}

    def __init__(self, *args: Any, members: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ensemble = self._load_ensemble(members)

    def _check_weights(self) -> None:
        if not hasattr(self.model, "suitability_head"):
            raise ValueError(
                f"'{self.model.name_or_path}' was loaded as {type(self.model).__name__}, which does not predict "
                "suitability; load AgriClipForSuitability."
            )
        fitted = _architecture(self.model.config)
        if fitted not in ("", "AgriClipForSuitability"):
            raise ValueError(f"'{self.model.name_or_path}' holds {fitted}, which was not fitted to suitability.")

    def _load_ensemble(self, members: bool) -> Any:
        """The members beside the weights, or the model with its own calibration; None where neither can be found."""
        place: str = self.model.name_or_path or ""
        revision = getattr(self.model.config, "_commit_hash", None)
        local = os.path.isdir(place)
        adapted = getattr(self.model, "_hf_peft_config_loaded", False) or hasattr(self.model, "peft_config")
        if not (local or revision):
            return None
        module = type(self.model).__module__
        if module.startswith("transformers_modules"):
            # The file was not copied with the model, which does not import it.
            chosen: Any = get_class_from_dynamic_module("ensemble_agriclip.AgriClipEnsemble", place, revision=revision)
        else:
            chosen = importlib.import_module(f"{module.rpartition('.')[0]}.ensemble_agriclip").AgriClipEnsemble
        if members and not adapted and (not local or _has_members(Path(place))):
            found = chosen.from_pretrained(place, revision=revision, dtype=self.model.dtype)
            return found.to(self.device)
        calibration: Any = sys.modules[chosen.__module__].Calibration
        own = local and members and not adapted and (Path(place) / "calibration.json").exists()
        return chosen([self.model], [calibration.load(place) if own else calibration()]).to(self.device)

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """See the class.

        Args:
            inputs: A report, a dictionary with `text` and `image`, or a list of either; None for an image alone.
            **kwargs: `image`, and the options of an image: `sensor`, `channels`, `gsd`, `dates`, ...
        """
        if inputs is None:
            if kwargs.get("image") is None:
                raise ValueError("Give a report, an image (image=...), or both.")
            inputs = {}
        return super().__call__(inputs, **kwargs)

    def preprocess(  # type: ignore[override]
        self, inputs: Any, image: Any = None, image_options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Report and image to tensors, and the numbers that the report holds."""
        given = {"text": inputs} if isinstance(inputs, str) else dict(inputs)
        unknown = set(given) - {"text", "image"}
        if unknown:
            raise ValueError(f"A place has `text` and `image`, not `{min(unknown)}`.")
        text, image = given.get("text"), given.get("image", image)
        if text is None and image is None:
            raise ValueError("Give a report, an image (image=...), or both.")
        encoded, _ = self._encode(image, None if text is None else [text], image_options)
        return {"encoded": dict(encoded), "numbers": numbers_in(text or "")}

    def _forward(self, model_inputs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        encoded = model_inputs["encoded"]
        sets = {}
        answer: Any = self.model(**encoded) if self.ensemble is None else self.ensemble.predict(**encoded)
        if self.ensemble is not None:
            # Beside a single model the calibration is its own.
            own = self.ensemble.member_calibrations[0] if len(self.ensemble) == 1 else self.ensemble.calibration
            for level in own.levels:
                chosen = own.prediction_sets(answer.median_probabilities, level.alpha)[0].tolist()
                sets[f"{1 - level.alpha:.0%}"] = _SETS[(chosen[0], chosen[1])]
        return {"answer": dict(answer), "sets": sets, "numbers": model_inputs["numbers"]}

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """The answer in plain numbers."""
        answer = model_outputs["answer"]
        several = self.ensemble is not None and len(self.ensemble) > 1
        one, all_of_them = "probability", "probabilities"
        if self.model.config.suitability_likelihood == "regression":
            one, all_of_them = "value", "values"
        return {
            one: _number(answer["probabilities"]),
            f"report_{one}": _number(answer["report_probabilities"]),
            "std": _number(answer["std"]) if several else None,
            "mutual_information": _number(answer.get("mutual_information")) if several else None,
            f"member_{all_of_them}": [float(v) for v in answer["member_probabilities"][:, 0]] if several else [],
            "share": _number(answer.get("share")),
            "sets": model_outputs["sets"],
            "image_used": bool(answer["image_valid"][0]),
            "numbers": model_outputs["numbers"],
        }


class AgriClipZeroShotImageClassificationPipeline(_AgriClipPipeline):
    """Labels of an image that no fit has named: `pipe("scene.tif", candidate_labels=["soybean field", "forest"])`.

    Returns for each image a list of `{"score", "label"}`, highest first: a softmax over the labels, or a sigmoid for
    weights of the sigmoid loss. `hypothesis_template` is the sentence around a label.
    """

    _options = {"candidate_labels": "preprocess", "hypothesis_template": "preprocess"}

    def _check_weights(self) -> None:
        _check_shared_space(self.model, "name what an image shows")

    def preprocess(  # type: ignore[override]
        self,
        inputs: Any,
        candidate_labels: Any = None,
        hypothesis_template: str = TEMPLATE,
        image_options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Image and one prompt a label to tensors."""
        labels = _texts(candidate_labels, "candidate_labels")
        _check_template(hypothesis_template)
        encoded, _ = self._encode(
            inputs, [hypothesis_template.replace("{}", label) for label in labels], image_options
        )
        return {"encoded": dict(encoded), "labels": labels}

    def _forward(self, model_inputs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        logits = self.model(**model_inputs["encoded"]).logits_per_image
        return {"logits": logits, "labels": model_inputs["labels"]}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        """Labels by their score."""
        logits = model_outputs["logits"][0].float()
        scores = logits.sigmoid() if self.model.config.alignment_loss == "sigmoid" else logits.softmax(dim=-1)
        found = zip(scores.tolist(), model_outputs["labels"], strict=True)
        return [{"score": score, "label": label} for score, label in sorted(found, key=lambda pair: -pair[0])]


class AgriClipImageSegmentationPipeline(_AgriClipPipeline):
    """Where in an image is what a text asks for: `pipe("scene.tif", queries=["soybean field", "forest"])`.

    Queries are weighed against each other and against `against` by a softmax; a single query against "other land", or
    by a sigmoid alone with `against=[]`. Returns for each image a list with an entry for each query:

    * `label`, and `score`: mean probability inside the mask, None where that is empty
    * `mask` (H, W) bool: where the query is the likeliest of all texts, or likelier than `threshold`
    * `probability` (H, W) float32, NaN where nothing was measured
    * `georeference`: `crs` (WKT), `transform` (six numbers, a b c d e f), or None for an image without

    [`write_geotiff`] writes such a list as a raster.
    """

    _options = dict.fromkeys(("queries", "against", "template"), "preprocess") | {"threshold": "postprocess"}

    def _check_weights(self) -> None:
        fitted = _architecture(self.model.config)
        if not hasattr(self.model, "segmentation_head") or fitted not in ("", "AgriClipForSemanticSegmentation"):
            raise ValueError(
                f"'{self.model.name_or_path}' holds {fitted or type(self.model).__name__}, which was not fitted to "
                "segment; choose a folder of AgriClipForSemanticSegmentation."
            )

    def preprocess(  # type: ignore[override]
        self,
        inputs: Any,
        queries: Any = None,
        against: Sequence[str] | None = None,
        template: str = TEMPLATE,
        image_options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Image and one prompt a text to tensors."""
        wanted = _texts(queries, "queries")
        _check_template(template)
        others = ([OTHER_LAND] if len(wanted) == 1 else []) if against is None else [str(text) for text in against]
        prompts = [template.replace("{}", text) for text in [*wanted, *others]]
        encoded, georeference = self._encode(inputs, prompts, image_options)
        return {"encoded": dict(encoded), "queries": wanted, "georeference": georeference}

    def _forward(self, model_inputs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        output = self.model(**model_inputs.pop("encoded"))
        return {**model_inputs, "logits": output.logits, "valid": output.pixel_valid}

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, Any], threshold: float | None = None
    ) -> list[dict[str, Any]]:
        """Masks and probabilities of the queries."""
        logits, valid = model_outputs["logits"][0].float(), model_outputs["valid"][0].bool().cpu().numpy()
        alone = len(logits) == 1
        chances = (logits.sigmoid() if alone else logits.softmax(dim=0)).cpu().numpy()
        likeliest = chances.argmax(axis=0)
        found = []
        for place, label in enumerate(model_outputs["queries"]):
            limit = 0.5 if alone and threshold is None else threshold
            mask = valid & (likeliest == place if limit is None else chances[place] >= limit)
            found.append(
                {
                    "label": label,
                    "score": float(chances[place][mask].mean()) if mask.any() else None,
                    "mask": mask,
                    "probability": np.where(valid, chances[place], np.nan).astype(np.float32),
                    "georeference": resized(model_outputs["georeference"], *mask.shape),
                }
            )
        return found


class AgriClipFeatureExtractionPipeline(_AgriClipPipeline):
    """An image or a text as a vector: `pipe("scene.tif")`, `pipe(text="a satellite image of soybean")`.

    Vectors of images and of texts are comparable (unit vectors of one space) where the weights have such a space,
    `space="shared"`; else, or with `space="tower"`, they are the tower's own. `pool=False` gives the tower's cells
    (N, D) or tokens (L, D). Lists of numbers come back, tensors with `return_tensors=True`.
    """

    _options = {"text": "preprocess", "space": "forward", "pool": "forward", "return_tensors": "postprocess"}

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """See the class."""
        if inputs is None and kwargs.get("text") is None:
            raise ValueError("Give an image, or a text (text=...).")
        if inputs is not None and kwargs.get("text") is not None:
            raise ValueError("Give an image or a text; each has a vector of its own.")
        return super().__call__({} if inputs is None else inputs, **kwargs)

    def preprocess(  # type: ignore[override]
        self, inputs: Any, text: str | None = None, image_options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Image or text to tensors."""
        image = None if text is not None else inputs
        return dict(self._encode(image, None if text is None else [text], image_options)[0])

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], space: str | None = None, pool: bool = True, **kwargs: Any
    ) -> dict[str, Any]:
        shared = has_shared_space(self.model.config) and hasattr(self.model, "visual_projection")
        if space not in (None, "shared", "tower"):
            raise ValueError(f"There is no space '{space}'; choose shared or tower.")
        if space == "shared":
            _check_shared_space(self.model, "compare images with texts")
        model: Any = self.model
        tower = model.text_model if "input_ids" in model_inputs else model.vision_model
        output = tower(**model_inputs)
        if not pool:
            return {"features": output.last_hidden_state[0]}
        vector = output.pooler_output
        if shared and space != "tower":
            head = model.text_projection if "input_ids" in model_inputs else model.visual_projection
            vector = torch.nn.functional.normalize(head(vector), dim=-1)
        return {"features": vector[0]}

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, Any], return_tensors: bool = False
    ) -> Any:
        """The vector, or the cells."""
        return model_outputs["features"] if return_tensors else model_outputs["features"].float().tolist()


# -- tasks ------------------------------------------------------------------------------------------------------------

_TASKS: dict[str, tuple[type[_AgriClipPipeline], type, str]] = {
    SUITABILITY: (AgriClipSuitabilityPipeline, AutoModelForSequenceClassification, "multimodal"),
    ZERO_SHOT: (AgriClipZeroShotImageClassificationPipeline, AutoModel, "multimodal"),
    SEGMENTATION: (AgriClipImageSegmentationPipeline, AutoModelForSemanticSegmentation, "multimodal"),
    FEATURES: (AgriClipFeatureExtractionPipeline, AutoModel, "multimodal"),
}


def register_pipelines() -> None:
    """Make the tasks known to `transformers.pipeline`, as they are named in this file."""
    for task, (pipeline_class, auto, kind) in _TASKS.items():
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline_class, pt_model=auto, type=kind)


def custom_pipelines(config: Any) -> dict[str, dict[str, Any]]:
    """The entry `custom_pipelines` of a `config.json`: the tasks that its weights were fitted to.

    With it, and with this file in the folder, `pipeline(task, model=folder, trust_remote_code=True)` needs no package.
    """
    fitted = _architecture(config)
    # The features are those of the class that the weights are of, so that nothing is missing when they are loaded.
    own = {
        "AgriClipForSuitability": "AutoModelForSequenceClassification",
        "AgriClipForSemanticSegmentation": "AutoModelForSemanticSegmentation",
        "AgriClipForImageClassification": "AutoModelForImageClassification",
    }
    tasks = {FEATURES: "AutoModel" if has_shared_space(config) else own.get(fitted, "AutoModel")}
    if has_shared_space(config):
        tasks[ZERO_SHOT] = "AutoModel"
    if fitted == "AgriClipForSuitability":
        tasks[SUITABILITY] = own[fitted]
    if fitted == "AgriClipForSemanticSegmentation":
        tasks[SEGMENTATION] = own[fitted]
    return {
        task: {"impl": f"pipelines_agriclip.{_TASKS[task][0].__name__}", "pt": [auto], "type": _TASKS[task][2]}
        for task, auto in sorted(tasks.items())
    }


def has_shared_space(config: Any) -> bool:
    """Whether weights were fitted to compare images with texts."""
    fitted = _architecture(config)
    if fitted == "AgriClipForSuitability":
        return bool(config.use_pretraining_heads and config.alignment_weight)
    return fitted in ("", "AgriClipModel", "AgriClipForPreTraining")


# -- what goes in -----------------------------------------------------------------------------------------------------


def numbers_in(report: str) -> list[dict[str, Any]]:
    """Numbers of a report, in its order.

    Returns:
        For each `text`, `start`, `end`, `value` and `unit` as written, `canonical_value` and `canonical_unit` as the
        model reads them. A number that is missing (`[NUM]`) has the value None.
    """
    return [
        {
            "text": report[found.start : found.end],
            "start": found.start,
            "end": found.end,
            "value": None if math.isnan(found.value) else found.value,
            "unit": found.unit,
            "canonical_value": None if math.isnan(found.canonical_value) else found.canonical_value,
            "canonical_unit": found.canonical_unit,
        }
        for found in find_measurements(report)
    ]


def _texts(given: Any, name: str) -> list[str]:
    texts = [given] if isinstance(given, str) else [str(text) for text in given or ()]
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"Give one or more texts, {name}=['soybean field', 'forest'] for instance.")
    return texts


def _check_template(template: str) -> None:
    if "{}" not in template:
        raise ValueError(f"The template '{template}' has no {{}} where the text goes.")


def _check_batch_size(size: Any) -> None:
    if size not in (None, 1):
        raise ValueError("Images go through one at a time, because sizes and bands differ; leave batch_size away.")


# -- the weights ------------------------------------------------------------------------------------------------------


def _architecture(config: Any) -> str:
    """Class that the weights were saved of; empty for a model that was never saved."""
    return str((getattr(config, "architectures", None) or [""])[0])


def _check_shared_space(model: Any, purpose: str) -> None:
    if not hasattr(model, "visual_projection") or not has_shared_space(model.config):
        raise ValueError(
            f"'{model.name_or_path}' holds {_architecture(model.config) or type(model).__name__}, which was not "
            f"fitted to {purpose}; choose weights of AgriClipModel or AgriClipForPreTraining."
        )


def _has_members(folder: Path) -> bool:
    return (folder / "ensemble.json").exists() or any((folder / "members").glob("*/config.json"))


def _number(values: Any) -> float | None:
    return None if values is None else float(values[0])


__all__ = [
    "AgriClipFeatureExtractionPipeline",
    "AgriClipImageSegmentationPipeline",
    "AgriClipSuitabilityPipeline",
    "AgriClipZeroShotImageClassificationPipeline",
    "custom_pipelines",
    "register_pipelines",
    "write_geotiff",
]
