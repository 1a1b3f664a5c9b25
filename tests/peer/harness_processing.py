"""The processor-side common tests of transformers, for classes that live outside it.

The mix-ins are upstream's; only the look-ups that go through a test file's place in their repository are replaced.
"""

import sys
import types
import unittest
from collections.abc import Callable
from typing import Any

from peer_package import import_peer

image_common: Any = import_peer("test_image_processing_common")
processing_common: Any = import_peer("test_processing_common")


def image_processor_tests(
    name: str,
    classes: dict[str, type],
    expected_shape: Callable[[Any, Any], tuple[int, ...]] | None = None,
    skip: dict[str, str] | None = None,
    **tester_kwargs: Any,
) -> type[unittest.TestCase]:
    """Return a TestCase class that runs ImageProcessingTestMixin.

    Args:
        name: Name of the test class.
        classes: Backend name to image-processor class.
        expected_shape: Shape of one image's `pixel_values` from the tester and the images, if not (C, H, W).
        skip: Names of tests to leave out, with the reason.
        tester_kwargs: Arguments of `ImageProcessingTester` and settings of the image processor.
    """

    class Tester(image_common.ImageProcessingTester):  # type: ignore[misc]
        def __init__(self, parent: Any) -> None:
            super().__init__(parent, **tester_kwargs)

        def _get_image_processing_classes(self) -> dict[str, type]:
            return dict(classes)

        def expected_output_image_shape(self, images: Any) -> Any:
            if expected_shape is None:
                return super().expected_output_image_shape(images)
            return expected_shape(self, images)

    body: dict[str, Any] = {
        "image_processor_tester_class": Tester,
        "__module__": sys._getframe(1).f_globals["__name__"],
    }
    for test, reason in (skip or {}).items():
        body[test] = unittest.skip(reason)(lambda self: None)
    bases = (image_common.ImageProcessingTestMixin, unittest.TestCase)
    return types.new_class(name, bases, {}, lambda namespace: namespace.update(body))


def processor_tests(
    name: str,
    processor_class: type,
    components: dict[str, Callable[[], Any]],
    images: Callable[[int | None], Any] | None = None,
    skip: dict[str, str] | None = None,
    **attributes: Any,
) -> type[unittest.TestCase]:
    """Return a TestCase class that runs ProcessorTesterMixin.

    Args:
        name: Name of the test class.
        processor_class: The processor.
        components: Name of each sub-processor to a function that makes it.
        images: Makes image inputs for a batch size, or one image for None; upstream's photographs if not given.
        skip: Names of tests to leave out, with the reason.
        attributes: Class attributes of the mix-in.
    """

    def maker(make: Callable[[], Any]) -> Any:
        return classmethod(lambda cls: make())

    body: dict[str, Any] = {
        "processor_class": processor_class,
        "__module__": sys._getframe(1).f_globals["__name__"],
        **attributes,
    }
    for attribute, make in components.items():
        body[f"_setup_{attribute}"] = maker(make)
    if images is not None:
        body["prepare_images_inputs"] = lambda self, batch_size=None, nested=False: images(batch_size)
    for test, reason in (skip or {}).items():
        body[test] = unittest.skip(reason)(lambda self: None)
    bases = (processing_common.ProcessorTesterMixin, unittest.TestCase)
    return types.new_class(name, bases, {}, lambda namespace: namespace.update(body))
