"""Batches larger than memory, with the gradients of the whole batch (Gao et al. 2021, GradCache).

A contrast couples all pairs of a batch, so it cannot be summed over chunks like other losses. Here every chunk runs
twice: first without gradient, to learn its embeddings and what its losses divide by; then, when the contrast's
gradient at every embedding is known, with gradient, one chunk in memory at a time. The losses need not know: they ask
the [`LossScope`](../modeling_agriclip/scope_agriclip.py) in force, which first records and then replays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modeling_agriclip.scope_agriclip import AlignmentLoss, LossScope, loss_scope

# Runs one chunk and returns its loss; called twice for each.
RunChunk = Callable[[int], Tensor]


@dataclass
class _Contrast:
    """One contrast of the objective: its rows chunk by chunk, and, once it is known, its gradient."""

    loss: AlignmentLoss
    learnt: tuple[Tensor, ...]
    rows: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    value: Tensor = field(default_factory=lambda: torch.zeros(()))
    gradients: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    learnt_gradients: tuple[Tensor, ...] = ()


class _Recording(LossScope):
    """First pass: sums what losses divide by, keeps embeddings, and lets losses be whatever they are."""

    def __init__(self) -> None:
        self.totals: list[Tensor] = []
        self.contrasts: list[_Contrast] = []
        self.begin()

    def begin(self) -> None:
        """Begin a chunk; every chunk asks the same questions in the same order."""
        self.asked, self.compared = 0, 0

    def total(self, part: Tensor) -> Tensor:
        part = part.detach()
        if self.asked == len(self.totals):
            self.totals.append(part.clone())
        else:
            self.totals[self.asked] += part
        self.asked += 1
        return part

    def alignment(
        self, image: Tensor, text: Tensor, facts: Tensor, learnt: tuple[Tensor, ...], loss: AlignmentLoss
    ) -> Tensor:
        if self.compared == len(self.contrasts):
            self.contrasts.append(_Contrast(loss, tuple(value.detach() for value in learnt)))
        self.contrasts[self.compared].rows.append((image.detach(), text.detach(), facts.detach()))
        self.compared += 1
        return image.new_zeros(())

    def finish(self) -> None:
        """Take totals over all processes, and differentiate each contrast with respect to its embeddings."""
        everyone = LossScope()
        with torch.enable_grad(), loss_scope(everyone):
            self.totals = [everyone.total(total) for total in self.totals]
            for contrast in self.contrasts:
                self._differentiate(contrast, everyone)

    @staticmethod
    def _differentiate(contrast: _Contrast, everyone: LossScope) -> None:
        counts = [len(image) for image, _, _ in contrast.rows]
        image, text, facts = (torch.cat(parts) for parts in zip(*contrast.rows, strict=True))
        learnt = [value.detach().requires_grad_() for value in contrast.learnt]
        leaves = [image.requires_grad_(), text.requires_grad_(), *learnt]
        value = everyone.alignment(image, text, facts, tuple(learnt), contrast.loss)
        gradients = torch.autograd.grad(value, leaves)
        contrast.value = value.detach()
        contrast.gradients = list(zip(gradients[0].split(counts), gradients[1].split(counts), strict=True))
        contrast.learnt_gradients = gradients[2:]


class _Replay(LossScope):
    """Second pass: gives every chunk the totals of all, and a contrast's value with the gradient it should have."""

    def __init__(self, recorded: _Recording, chunks: int) -> None:
        self.recorded, self.chunks, self.chunk = recorded, chunks, 0
        self.begin(0)

    def begin(self, chunk: int) -> None:
        """Begin chunk number `chunk`."""
        self.chunk, self.asked, self.compared = chunk, 0, 0

    def total(self, part: Tensor) -> Tensor:
        self.asked += 1
        return self.recorded.totals[self.asked - 1]

    def alignment(
        self, image: Tensor, text: Tensor, facts: Tensor, learnt: tuple[Tensor, ...], loss: AlignmentLoss
    ) -> Tensor:
        contrast = self.recorded.contrasts[self.compared]
        self.compared += 1
        of_image, of_text = contrast.gradients[self.chunk]
        slopes = [(image, of_image), (text, of_text)]
        # What is learnt beside the embeddings has one gradient for all chunks: each brings its part.
        slopes += [
            (value, slope / self.chunks) for value, slope in zip(learnt, contrast.learnt_gradients, strict=True)
        ]
        value = contrast.value / self.chunks
        for rows, slope in slopes:
            value = value + ((rows - rows.detach()) * slope).sum()
        return value


def split_batch(batch: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """Chunks of at most `size` rows; what is not a tensor with the batch's rows goes to all of them."""
    rows = next(len(batch[key]) for key in ("labels", "input_ids", "pixel_values") if batch.get(key) is not None)
    starts = range(0, rows, size)

    def cut(value: Any, start: int) -> Any:
        whole = isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
        return value[start : start + size] if whole else value

    return [{key: cut(value, start) for key, value in batch.items()} for start in starts]


def cached_backward(
    run: RunChunk, backward: Callable[[Tensor, bool], None], chunks: int, devices: Sequence[int] = ()
) -> Tensor:
    """Gradients of a batch's loss, one chunk in memory at a time.

    Args:
        run: Runs chunk number i and returns its loss.
        backward: Called with a chunk's loss and whether it is the last one, when processes exchange gradients.
        chunks: Number of chunks.
        devices: CUDA devices in use, whose random numbers repeat in the second pass like those of the processor.

    Returns:
        The loss of the whole batch, without gradient.
    """
    recording, states = _Recording(), []
    for chunk in range(chunks):
        states.append(_random_state(devices))
        recording.begin()
        with torch.no_grad(), loss_scope(recording):
            run(chunk)
    recording.finish()
    replay, after = _Replay(recording, chunks), _random_state(devices)
    losses = []
    for chunk in range(chunks):
        _set_random_state(states[chunk], devices)
        replay.begin(chunk)
        with loss_scope(replay):
            loss = run(chunk)
        backward(loss, chunk == chunks - 1)
        losses.append(loss.detach())
    _set_random_state(after, devices)
    return torch.stack(losses).sum()


def _random_state(devices: Sequence[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _set_random_state(states: Sequence[Tensor], devices: Sequence[int]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


__all__ = ["cached_backward", "split_batch"]
