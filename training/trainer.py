"""`Trainer` with what AgriCLIP's objective needs beyond it; everything else is the stock class.

Four additions: the attack behind the adversarial term; gradient caching, for contrasts over batches larger than
memory; the epoch told to a dataset whose noise depends on it; every term of the loss in the log, raw and weighted. A
plain `Trainer` fits the same model to the same sum without the adversarial term.
"""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer

from processing.errors import AgriClipError
from training.adversarial import Attack
from training.gradient_caching import cached_backward, split_batch
from training.progress import EpochTeller


class AgriClipTrainer(Trainer):
    """Trainer of any AgriCLIP model.

    Args:
        *args: As for `Trainer`.
        attack: Makes the attacked inputs, where the model's `adversarial_weight` is not 0.
        chunk_size: Rows in memory at a time; a larger batch is run chunk by chunk, with the gradients of the whole.
        step_epochs: With `lr_scheduler_type="constant"`, epochs after which the learning rate falls to a tenth, again
            and again; None keeps it.
        failure_dir: Where the batch and the weights go when a loss is no number; `output_dir` if None.
        **kwargs: As for `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        attack: Attack | None = None,
        chunk_size: int | None = None,
        step_epochs: int | None = None,
        failure_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.attack = attack
        self.chunk_size = chunk_size
        self.step_epochs = step_epochs
        self.failure_dir = failure_dir
        self._terms: dict[str, list[Tensor]] = defaultdict(list)
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(EpochTeller(self.train_dataset))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The model's own loss, on inputs that an attack was added to where one is asked for."""
        if model.training:
            inputs = self._attacked(model, inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            self._note_terms(outputs)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward pass; chunk by chunk where the batch is larger than `chunk_size`."""
        rows = len(next(value for value in inputs.values() if isinstance(value, Tensor)))
        if self.chunk_size is None or rows <= self.chunk_size:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._cached_step(model, inputs)
        # On an accelerator to look at the loss is to wait for it: there only as often as it is logged.
        look = loss.device.type == "cpu" or self.state.global_step % max(1, int(self.args.logging_steps)) == 0
        if look and not torch.isfinite(loss):
            self._stop_at(inputs, float(loss))
        return loss

    def _cached_step(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """A step with gradient caching."""
        model.train()
        chunks = split_batch(self._prepare_inputs(inputs), self.chunk_size)
        # The first pass, without gradient, must not wake what gathers gradients.
        bare = self.accelerator.unwrap_model(model)

        def run(chunk: int) -> Tensor:
            learning = torch.is_grad_enabled()
            if not learning:
                chunks[chunk] = self._attacked(model, chunks[chunk])
            with self.compute_loss_context_manager():
                outputs = (model if learning else bare)(**chunks[chunk])
            if learning:
                self._note_terms(outputs, part=chunk > 0)
            return outputs.loss

        def backward(loss: Tensor, last: bool) -> None:
            with nullcontext() if last else self.accelerator.no_sync(model):
                self.accelerator.backward(loss / self.current_gradient_accumulation_steps)

        devices = [self.args.device.index or 0] if self.args.device.type == "cuda" else []
        loss = cached_backward(run, backward, len(chunks), devices)
        return loss / self.current_gradient_accumulation_steps

    def _stop_at(self, inputs: dict[str, Any], loss: float) -> None:
        """Save the batch and the weights that gave a loss that is no number, and say so."""
        step, terms = self.state.global_step + 1, []
        for name, values in self._terms.items():
            if values and not torch.isfinite(values[-1]):
                terms.append(name)
        folder = Path(self.failure_dir or self.args.output_dir or ".") / f"failed_step_{step}"
        if self.is_world_process_zero():
            # Another fit that failed a moment ago may end this process: no half of a folder is left.
            half = folder.with_name(f".{folder.name}")
            self.accelerator.unwrap_model(self.model).save_pretrained(half)
            batch = {key: value.contiguous().cpu() for key, value in inputs.items() if isinstance(value, Tensor)}
            save_file(batch, half / "batch.safetensors")
            shutil.rmtree(folder, ignore_errors=True)
            half.rename(folder)
        named = f" in the term{'s' * (len(terms) > 1)} {', '.join(terms)}" if terms else ""
        raise AgriClipError(
            f"The loss became {loss}{named} in step {step} of {self.state.max_steps}; its batch and weights are in "
            f"'{folder}': lower `training.learning_rate` (now {self.args.learning_rate:g})."
        )

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule that the arguments name, or steps to a tenth every `step_epochs`."""
        if self.step_epochs is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        steps = max(1, math.ceil(num_training_steps * self.step_epochs / self.args.num_train_epochs))
        self.lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer or self.optimizer, steps, gamma=0.1)
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of every term since the last time: raw, and times its weight."""
        if "loss" in logs and self._terms:
            names = sorted(self._terms)
            means = torch.stack([torch.stack(self._terms[name]).mean() for name in names])
            means = self.accelerator.reduce(means, reduction="mean")
            config = self.accelerator.unwrap_model(self.model).config
            for name, value in zip(names, means.tolist(), strict=True):
                logs[f"terms/{name}"] = value
                logs[f"weighted/{name}"] = value * float(getattr(config, f"{name}_weight", 1.0))
            self._terms.clear()
        super().log(logs, start_time)

    def _attacked(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with an attack on them, unless there is none to add."""
        bare = self.accelerator.unwrap_model(model)
        wanted = self.attack is not None and getattr(bare.config, "adversarial_weight", 0.0)
        if not wanted or "attacked_pixel_values" in inputs or inputs.get("pixel_values") is None:
            return inputs
        assert self.attack is not None
        return inputs | self.attack(bare, self._prepare_inputs(inputs))

    def _note_terms(self, outputs: Any, part: bool = False) -> None:
        """Keep each raw term of the loss for the log; `part` adds to the last one, for chunks of one batch."""
        for name, value in (outputs.get("loss_dict") or {}).items():
            if part:
                self._terms[name][-1] = self._terms[name][-1] + value.detach().float()
            else:
                self._terms[name].append(value.detach().float())


__all__ = ["AgriClipTrainer"]
