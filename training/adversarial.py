"""Adversarial fitting (F20, F21): inputs moved by as much as their sensor may err, in the direction that hurts most.

    delta = epsilon sign(d L_pred / d input)

epsilon is a band's own: the noise of the sensor, for reflectance 0.005 + 0.05 rho. What is attacked stays in the
band's valid range, and what is masked stays as it is. The numbers of a report move by their own standard error; its
words do not move. The attack differentiates with respect to its inputs only, and looks at the model as it will be used
(no dropout), so nothing of it reaches the gradients of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modeling_agriclip.scope_agriclip import LocalScope, loss_scope
from processing.sensors_agriclip import ChannelSpec

# Noise of a surface reflectance: a floor, and a share of the reflectance itself (Sentinel-2, 10 m bands).
REFLECTANCE_FLOOR, REFLECTANCE_SLOPE = 0.005, 0.05
# Other channels, in their standard deviations over the data; what their sensors err by is not known here.
OTHER_NOISE = 0.05


class SensorNoise:
    """Standard error of a pixel and the range it must stay in, by channel.

    Args:
        channels: Every channel that a batch may hold, as it was standardised.
    """

    def __init__(self, channels: Sequence[ChannelSpec]) -> None:
        self.rows = {tuple(spec.code()): _noise_row(spec) for spec in channels}

    def table(self, codes: Tensor) -> Tensor:
        """Floor, slope, mean, lowest and highest value of each channel, in standard scores.

        Args:
            codes: Channel descriptions (B, C, 4) or (C, 4).

        Returns:
            (B or 1, C, 5), on the device of `codes`; a channel that is not known has `OTHER_NOISE` and no bounds.
        """
        codes = codes if codes.dim() == 3 else codes.unsqueeze(0)
        unknown = (OTHER_NOISE, 0.0, 0.0, -math.inf, math.inf)
        rows = [[self.rows.get(tuple(code), unknown) for code in image] for image in codes.tolist()]
        return torch.tensor(rows, device=codes.device)


def _noise_row(spec: ChannelSpec) -> tuple[float, float, float, float, float]:
    """(floor, slope, mean / std, lowest, highest) of one channel, in standard scores."""
    if spec.kind == "reflectance":
        floor, slope = REFLECTANCE_FLOOR / spec.std, REFLECTANCE_SLOPE
    else:
        floor, slope = OTHER_NOISE, 0.0
    low = -math.inf if spec.valid_min is None else (spec.valid_min - spec.mean) / spec.std
    high = math.inf if spec.valid_max is None else (spec.valid_max - spec.mean) / spec.std
    return floor, slope, spec.mean / spec.std, low, high


class Attack:
    """One step of the fast gradient sign method on a batch.

    Args:
        noise: Standard error of pixels.
        number_noise: Standard error of each number of the report, in its own unit (L,); numbers stay if None.
        strength: Steps in standard errors.
    """

    def __init__(self, noise: SensorNoise, number_noise: Tensor | None = None, strength: float = 1.0) -> None:
        self.noise = noise
        self.number_noise = number_noise
        self.strength = strength

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Attack `batch`.

        Args:
            model: The suitability model, bare of what distributes it.
            batch: Its inputs, with `pixel_values` and `labels`.

        Returns:
            `attacked_pixel_values`, and `attacked_numeric_values` where numbers are attacked.
        """
        pixels = batch["pixel_values"].detach().clone().requires_grad_()
        numbers = batch.get("numeric_values")
        sources = [pixels]
        if numbers is not None and self.number_noise is not None:
            numbers = numbers.detach().clone().requires_grad_()
            sources.append(numbers)
        skip = ("noise", "report_keys", "detection_labels")
        inputs = {key: value for key, value in batch.items() if key not in skip}
        # The sign of a sample's gradient does not depend on what else is in the batch, or in other processes.
        with torch.enable_grad(), _predicting(model), loss_scope(LocalScope()):
            loss = model(**inputs | {"pixel_values": pixels, "numeric_values": numbers}).loss
            gradients = torch.autograd.grad(loss, sources, allow_unused=True)
        moved = {"attacked_pixel_values": self._move_pixels(pixels.detach(), gradients[0], batch)}
        if len(sources) == 2:
            moved["attacked_numeric_values"] = self._move_numbers(sources[1].detach(), gradients[1])
        return moved

    def _move_pixels(self, pixels: Tensor, gradient: Tensor | None, batch: dict[str, Any]) -> Tensor:
        """Step along the sign, by the band's standard error, within its valid range."""
        if gradient is None:
            return pixels
        table = self.noise.table(batch["channels"])[..., None, None]  # (B, C, 5, 1, 1)
        floor, slope, centre, low, high = table.to(pixels.dtype).unbind(2)
        if pixels.dim() == 5:  # dated: (B, T, C, H, W)
            floor, slope, centre, low, high = (part.unsqueeze(1) for part in (floor, slope, centre, low, high))
        epsilon = floor + slope * (pixels + centre).abs()
        step = self.strength * epsilon * gradient.sign()
        mask = batch.get("pixel_mask")
        if mask is not None:
            step = step * mask.to(step.dtype)
        # A value that lies outside its range already is not pulled in: only the step is cut.
        moved = (pixels + step).clamp(min=torch.minimum(low, pixels), max=torch.maximum(high, pixels))
        return torch.where(pixels.isfinite(), moved, pixels)

    def _move_numbers(self, numbers: Tensor, gradient: Tensor | None) -> Tensor:
        """Step along the sign, by each number's standard error; a missing number stays missing."""
        if gradient is None or self.number_noise is None:
            return numbers
        return numbers + self.strength * self.number_noise.to(numbers) * gradient.nan_to_num().sign()


@contextmanager
def _predicting(model: nn.Module) -> Iterator[None]:
    """The model as it is used, with nothing in its loss but the prediction."""
    config: Any = model.config
    names = [name for name in vars(config) if name.endswith("_weight")]
    before, training = {name: getattr(config, name) for name in names}, model.training
    model.eval()
    try:
        for name in names:
            setattr(config, name, 0.0)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
        model.train(training)


__all__ = ["Attack", "SensorNoise"]
