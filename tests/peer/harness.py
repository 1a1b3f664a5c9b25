"""Run transformers' own common tests against a model that lives outside transformers.

    from harness import ModelSpec, model_tests
    AgriClipModelTest = model_tests(ModelSpec(
        name="AgriClipModelTest", config=lambda: AgriClipConfig(...tiny...), model_classes=(AgriClipModel,),
        base_classes=(AgriClipModel,), inputs=lambda config: {...tensors, batch first...}, num_hidden_layers=2))

`base_classes` are the classes without a training loss of their own (as in MODEL_MAPPING); the training tests leave
them out. For every other class `labels(model_class, config, inputs)` returns what to add so that `.loss` is there.
Importing this module downloads the tests once; where that fails, the test module that imports it is skipped.
"""

import dataclasses
import inspect
import sys
import types
import unittest
from collections.abc import Callable
from typing import Any

import torch
from peer_package import import_peer
from transformers.testing_utils import torch_device

common: Any = import_peer("test_modeling_common")
ConfigTester: Any = import_peer("test_configuration_common").ConfigTester


@dataclasses.dataclass
class ModelSpec:
    """What the common tests need to know of a model.

    Attributes:
        name: Name of the test class.
        config: Makes a tiny configuration.
        model_classes: Classes to test.
        inputs: Makes the tensors of a call, batch first, from the configuration.
        base_classes: Those of `model_classes` that have no training loss.
        labels: What to add to the inputs of a class so that it returns a loss.
        batch_size: Batch size of `inputs`.
        seq_length: Length of the token sequence, if the tests should check shapes against it.
        num_hidden_layers: Layers, as the tests read them.
        hidden_size: Width, as the tests read it.
        num_attention_heads: Heads, as the tests read them.
        config_kwargs: A valid setting or two that differ from the default, for `ConfigTester`.
        input_embeddings: Type that `get_input_embeddings()` returns.
        is_training: Whether the training tests run.
        composite: Whether the model is made of sub-models with configurations of their own.
        has_text_modality: Whether the configuration has a vocabulary.
        text_tester: Specification of the text tower, for `get_text_features`.
        vision_tester: Specification of the image tower, for `get_image_features`.
        config_common_properties: Properties that `ConfigTester` reads.
        flags: Class attributes of `ModelTesterMixin`.
        attributes: Further attributes of the model tester.
        skip: Names of tests to leave out, with the reason.
    """

    name: str
    config: Callable[[], Any]
    model_classes: tuple[type, ...]
    inputs: Callable[[Any], dict[str, Any]]
    base_classes: tuple[type, ...] = ()
    labels: Callable[[type, Any, dict[str, Any]], dict[str, Any]] | None = None
    batch_size: int = 3
    seq_length: int | None = None
    num_hidden_layers: int | None = 2
    hidden_size: int | None = 32
    num_attention_heads: int | None = 4
    config_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    input_embeddings: type = torch.nn.Module
    is_training: bool = True
    composite: bool = False
    has_text_modality: bool = True
    text_tester: "ModelSpec | None" = None
    vision_tester: "ModelSpec | None" = None
    config_common_properties: list[str] | None = None
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    skip: dict[str, str] = dataclasses.field(default_factory=dict)


class _Tester:
    """The `model_tester` that the common tests ask for configurations and inputs."""

    def __init__(self, spec: ModelSpec, parent: Any = None) -> None:
        self.spec, self.parent = spec, parent
        self.batch_size, self.is_training = spec.batch_size, spec.is_training
        for key in ("seq_length", "num_hidden_layers", "hidden_size", "num_attention_heads"):
            if getattr(spec, key) is not None:
                setattr(self, key, getattr(spec, key))
        if spec.text_tester is not None:
            self.text_model_tester = _Tester(spec.text_tester, parent)
            self.text_kwargs: dict[str, Any] = {}
        if spec.vision_tester is not None:
            self.vision_model_tester = _Tester(spec.vision_tester, parent)
            self.vision_kwargs: dict[str, Any] = {}
        for key, value in spec.attributes.items():
            setattr(self, key, value)

    def get_config(self) -> Any:
        return self.spec.config()

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        config = self.get_config()
        inputs = {k: v.to(torch_device) if torch.is_tensor(v) else v for k, v in self.spec.inputs(config).items()}
        return config, inputs

    def prepare_config_and_inputs(self) -> tuple[Any, dict[str, Any]]:
        return self.prepare_config_and_inputs_for_common()


def model_tests(spec: ModelSpec) -> type[unittest.TestCase]:
    """Return a TestCase class that runs ModelTesterMixin and ConfigTester on `spec`."""
    # Several tests ask "is it a base model, which head is it" by class *name*, through these name mappings.
    for klass in spec.base_classes:
        common.MODEL_MAPPING_NAMES.setdefault(f"peer_{klass.__name__}", klass.__name__)

    def setUp(self: Any) -> None:  # noqa: N802
        self.model_tester = _Tester(spec, self)
        self.config_tester = ConfigTester(
            self,
            config_class=type(spec.config()),
            has_text_modality=spec.has_text_modality,
            common_properties=spec.config_common_properties,
            **spec.config_kwargs,
        )

    def _prepare_for_class(self: Any, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        inputs = common.ModelTesterMixin._prepare_for_class(self, inputs_dict, model_class, return_labels)
        if return_labels and spec.labels is not None and model_class not in spec.base_classes:
            inputs.update(spec.labels(model_class, self.model_tester.get_config(), inputs))
        return inputs

    def test_config(self: Any) -> None:
        self.config_tester.run_common_tests()

    # As upstream's vision tests have it: not every tower embeds with nn.Embedding.
    def test_model_get_set_embeddings(self: Any) -> None:
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), spec.input_embeddings)
            out = model.get_output_embeddings()
            self.assertTrue(out is None or isinstance(out, torch.nn.Linear))

    def test_forward_signature(self: Any) -> None:
        for model_class in self.all_model_classes:
            names = [name for name in inspect.signature(model_class.forward).parameters if name != "self"]
            self.assertIn(model_class.main_input_name, names)

    body: dict[str, Any] = {
        "all_model_classes": tuple(spec.model_classes),
        "_is_composite": spec.composite,
        # Upstream a "# Copyright 20xx" line in the configuration file decides whether this test runs.
        "test_can_init_all_missing_weights_before_2023": True,
        "setUp": setUp,
        "_prepare_for_class": _prepare_for_class,
        "test_config": test_config,
        "test_model_get_set_embeddings": test_model_get_set_embeddings,
        "test_forward_signature": test_forward_signature,
        "__module__": sys._getframe(1).f_globals["__name__"],
        **spec.flags,
    }
    for test, reason in spec.skip.items():
        body[test] = unittest.skip(reason)(lambda self: None)
    bases = (common.ModelTesterMixin, unittest.TestCase)
    return types.new_class(spec.name, bases, {}, lambda namespace: namespace.update(body))


ids_tensor: Any = common.ids_tensor
floats_tensor: Any = common.floats_tensor
random_attention_mask: Any = common.random_attention_mask
