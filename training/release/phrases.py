"""What crops and land cover are called and how they are described, as a task of its own for the report encoder.

Pixels cannot learn from questions that are not understood. So the encoder first learns, from text alone, which of many
wordings mean the same class; and keeps being asked while pixels are trained on its answers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from processing.captions.crops import crops, held_out_phrases
from processing.captions.wordings import draw_wording
from processing.processing_agriclip import AgriClipProcessor
from processing.vocabulary import REST, TEMPLATES

OTHER = "other"
SCALE = 20.0
#: The seasons whose looks are said: the tiles are of early September.
SEEN = ("summer", "late summer")


class PhraseBatches:
    """Endless batches of phrases; batch number n is the same whenever it is asked for.

    Args:
        processor: Tokenises.
        batch: Phrases a batch.
        seed: Seed of all that is drawn.
    """

    def __init__(self, processor: AgriClipProcessor, batch: int, seed: int = 0) -> None:
        self.processor, self.batch, self.seed = processor, batch, seed
        # Not "wetland and water", which is two classes, and `other` has words of its own here.
        self.classes = [name for name, crop in crops().items() if crop.codes and " and water" not in name]

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Tokens and `classes` (B,), the index of each phrase's class; the last index is anything else."""
        rng = np.random.default_rng((self.seed, 13, number))
        classes = rng.integers(0, len(self.classes) + 1, self.batch)
        texts = [str(rng.choice(TEMPLATES)).replace("{}", self._phrase(int(index), rng)) for index in classes]
        return {**self.processor(text=texts, return_tensors="pt"), "classes": torch.from_numpy(classes)}

    def _phrase(self, index: int, rng: np.random.Generator) -> str:
        if index == len(self.classes):
            return str(rng.choice(REST))
        return draw_wording(self.classes[index], rng, SEEN)

    def held_out(self) -> dict[str, Tensor]:
        """The descriptions that are kept from training."""
        pairs = [(text, place) for place, name in enumerate(self.classes) for text in held_out_phrases(name)]
        texts = [TEMPLATES[1].replace("{}", text) for text, _ in pairs]
        return {**self.processor(text=texts, return_tensors="pt"), "classes": torch.tensor([p for _, p in pairs])}


class PhraseTask(nn.Module):
    """Embeddings of phrases against a learned prototype of each class.

    Args:
        classes: How many, `other` included.
        size: Width of the shared image-text space.
    """

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(classes, size))

    def forward(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        """Cross-entropy of the class of each phrase (B,) given its embedding (B, P)."""
        return nn.functional.cross_entropy(self.logits(embeddings), classes)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Scaled cosines (B, classes)."""
        units = (nn.functional.normalize(x.float(), dim=-1) for x in (embeddings, self.prototypes))
        phrases, prototypes = units
        return SCALE * phrases @ prototypes.t()
