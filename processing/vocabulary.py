"""The tokenizer that every model of ours starts with: words of the field, and every word crops are described in.

One vocabulary for all: members of an ensemble, a model that segments by text and one that reads climate reports take
the same token ids, so the processor of one is that of any other.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from processing.captions.crops import all_phrases, crops, held_out_phrases
from processing.tokenizer import build_tokenizer

#: What a class's name or description is put into when an image is asked for it.
TEMPLATES = (
    "{}",
    "a satellite image of {}",
    "a satellite photo of {}.",
    "a satellite image of {}.",
    "an aerial image of {}",
    "a Landsat image of {}",
    "this is {}",
    "land covered by {}",
)
#: What stands for everything that is not asked for.
REST = ("other land", "anything else", "other land cover", "something else", "none of these")


def default_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; the same at every call."""
    phrases = [phrase for name in crops() for phrase in (*all_phrases(name), *held_out_phrases(name))]
    return build_tokenizer(extra_texts=[*phrases, *REST, *TEMPLATES])


__all__ = ["REST", "TEMPLATES", "default_tokenizer"]
