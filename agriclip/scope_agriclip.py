"""What a batch is part of: the other processes of a distributed run, the other chunks of a batch too large for memory.

A mean over what several processes see is not the mean of their means: each divides by a count that only all of them
know, and a contrast compares with the embeddings of all. What a loss cannot know of the whole it asks the
[`LossScope`] in force, so that N processes and N chunks give the loss and the gradients of one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Called with this batch's images and texts, all images, all texts, the facts of all pairs, the place of its first row,
# and what is learnt beside the embeddings.
AlignmentLoss = Callable[..., Tensor]


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, in their order; the gradient of a row is the sum of what all processes ask of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(whole)
        first = torch.distributed.get_rank() * ctx.count
        return whole[first : first + ctx.count]


class LossScope:
    """By default the batches that all processes of a distributed run see in one step.

    Such a run averages gradients over its processes; so a denominator is the mean of theirs.
    """

    @property
    def processes(self) -> int:
        """Processes that share a step; 1 where nothing is learnt, so that each may evaluate what it likes."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return torch.distributed.get_world_size() if distributed and torch.is_grad_enabled() else 1

    def total(self, part: Tensor) -> Tensor:
        """What to divide by, where this batch alone would divide by `part`; never differentiated."""
        if self.processes == 1:
            return part.detach()
        whole = part.detach().clone()
        torch.distributed.all_reduce(whole)
        return whole / self.processes

    def alignment(
        self, image: Tensor, text: Tensor, facts: Tensor, learnt: tuple[Tensor, ...], loss: AlignmentLoss
    ) -> Tensor:
        """The contrast of this batch's pairs with those of all processes, which must have as many.

        Args:
            image: Unit embeddings of images (B, P).
            text: Unit embeddings of their reports (B, P).
            facts: What else is known of each pair, without gradient (B, K).
            learnt: What is learnt beside the embeddings, such as the similarity's scale.
            loss: Makes the loss of a batch's rows within all rows.
        """
        if self.processes == 1:
            return loss(image, text, image, text, facts, 0, *learnt)
        first = torch.distributed.get_rank() * len(image)
        images, texts, facts = (_GatherRows.apply(rows) for rows in (image, text, facts))
        return loss(image, text, images, texts, facts, first, *learnt)


class LocalScope(LossScope):
    """This batch alone, whatever else runs."""

    @property
    def processes(self) -> int:
        """One."""
        return 1


_scopes: list[LossScope] = [LossScope()]


@contextmanager
def loss_scope(scope: LossScope) -> Iterator[None]:
    """Have all losses ask `scope` for what they cannot know."""
    _scopes.append(scope)
    try:
        yield
    finally:
        _scopes.pop()


def current_scope() -> LossScope:
    """The scope in force."""
    return _scopes[-1]
