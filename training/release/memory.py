"""Contrast with more than the batch: pairs of the last steps, remembered.

Eight tiles a step are few to tell a caption's own tile from. Weights change slowly, so what was embedded some steps
ago still stands for what it showed (cross-batch memory, Wang et al. 2020, doi 10.1109/CVPR42600.2020.00642).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PairMemory(nn.Module):
    """The last pairs of unit embeddings, and which places they show.

    Args:
        pairs: How many are kept.
        size: Width of the embeddings.
    """

    images: Tensor
    texts: Tensor
    places: Tensor
    count: Tensor

    def __init__(self, pairs: int, size: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(pairs, size))
        self.register_buffer("texts", torch.zeros(pairs, size))
        self.register_buffer("places", torch.full((pairs,), -1))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, image: Tensor, text: Tensor, places: Tensor, scale: Tensor) -> Tensor:
        """InfoNCE both ways of a batch against itself and what is remembered; then the batch is remembered too.

        Another view of the same place is neither right nor wrong and takes no part.

        Args:
            image: Unit embeddings of images (B, P).
            text: Unit embeddings of their captions (B, P).
            places: Number of the place that each shows (B,).
            scale: Scale of the similarity.
        """
        own = torch.arange(len(image), device=image.device)
        seen = torch.cat([places, self.places])
        same = (seen == places.unsqueeze(1)) | (seen < 0)
        same[own, own] = False
        value = image.new_zeros(())
        for query, keys, kept in ((image, text, self.texts), (text, image, self.images)):
            logits = query @ torch.cat([keys, kept]).t() * scale
            value = value + nn.functional.cross_entropy(logits.masked_fill(same, -torch.inf), own) / 2
        if self.training:
            self._remember(image, text, places)
        return value

    @torch.no_grad()
    def _remember(self, image: Tensor, text: Tensor, places: Tensor) -> None:
        rows = (self.count + torch.arange(len(image), device=image.device)) % len(self.places)
        self.images[rows], self.texts[rows], self.places[rows] = image.detach(), text.detach(), places
        self.count += len(image)
