"""The running mean of the weights, which takes their place when a fit is done.

On a few thousand noisy labels the last steps of a fit still wander; their mean is a better model than any of them
(Polyak and Juditsky 1992; exponential as in Tarvainen and Valpola 2017). Nothing else of the fit changes: the mean
is not trained on, is saved with each checkpoint, and an interrupted fit ends with the same one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FILE = "averaged.safetensors"
# The first weights have nothing to do with the last ones.
BEGIN = 0.3


class WeightAveraging(TrainerCallback):
    """Keeps an exponential mean of the trained weights, and puts it in their place at the end.

    It must stand before whatever marks a checkpoint as complete.

    Args:
        decay: Share of the mean that each step keeps, between 0 and 1.
        begin: Share of the fit after which the mean begins.
    """

    def __init__(self, decay: float, begin: float = BEGIN) -> None:
        self.decay, self.begin = decay, begin
        self.mean: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the mean up again where a checkpoint left it."""
        path = _file(args, state)
        self.mean = load_file(path) if state.global_step and path.is_file() else {}

    @torch.no_grad()
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Move the mean a little towards the weights."""
        if model is None or state.global_step < self.begin * state.max_steps:
            return
        for name, weight in _trained(model).items():
            if name in self.mean:
                self.mean[name] = self.mean[name].to(weight.device).lerp_(weight, 1 - self.decay)
            else:
                self.mean[name] = weight.clone()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the mean beside the weights of a checkpoint."""
        if self.mean and state.is_world_process_zero:
            save_file({name: value.contiguous() for name, value in self.mean.items()}, _file(args, state))

    @torch.no_grad()
    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Let the mean take the place of the weights."""
        if model is not None:
            for name, weight in _trained(model).items():
                if name in self.mean:
                    weight.copy_(self.mean[name])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / FILE


__all__ = ["WeightAveraging"]
