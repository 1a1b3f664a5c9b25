"""Files and text to tensors: sensors, numbers in reports, rasters and study files.

Importing the package loads nothing heavy; each public name is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from processing.errors import AgriClipError
    from processing.image_processing_agriclip import AgriClipImageProcessor
    from processing.processing_agriclip import AgriClipProcessor
    from processing.sensors_agriclip import SENSORS, ChannelSpec, SensorSpec

_HOMES = {
    "AgriClipError": "errors",
    "AgriClipImageProcessor": "image_processing_agriclip",
    "AgriClipProcessor": "processing_agriclip",
    "ChannelSpec": "sensors_agriclip",
    "SENSORS": "sensors_agriclip",
    "SensorSpec": "sensors_agriclip",
}

__all__ = [
    "SENSORS",
    "AgriClipError",
    "AgriClipImageProcessor",
    "AgriClipProcessor",
    "ChannelSpec",
    "SensorSpec",
]


def __getattr__(name: str) -> Any:
    """Load the module that holds `name` at its first use."""
    if name in _HOMES:
        return getattr(import_module(f"processing.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'processing' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted(__all__)
