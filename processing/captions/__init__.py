"""Captions and reports for imagery: from masks, spectra and season to words that are true of the tile.

Importing the package loads nothing heavy; each public name is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from processing.captions.crops import all_phrases, class_phrases, held_out_phrases
    from processing.captions.facts import ClassFacts, TileFacts, describe
    from processing.captions.table import write_caption_table
    from processing.captions.writing import write_captions

_HOMES = {
    "ClassFacts": "facts",
    "TileFacts": "facts",
    "all_phrases": "crops",
    "class_phrases": "crops",
    "describe": "facts",
    "held_out_phrases": "crops",
    "write_caption_table": "table",
    "write_captions": "writing",
}

__all__ = [
    "ClassFacts",
    "TileFacts",
    "all_phrases",
    "class_phrases",
    "describe",
    "held_out_phrases",
    "write_caption_table",
    "write_captions",
]


def __getattr__(name: str) -> Any:
    """Load the module that holds `name` at its first use."""
    if name in _HOMES:
        return getattr(import_module(f"processing.captions.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'processing.captions' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted(__all__)
