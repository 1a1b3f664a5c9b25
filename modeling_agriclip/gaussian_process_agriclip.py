"""A Gaussian process over the places of a fit, beside the network: places alike have shares alike.

A network that reads reports learns shapes; from some thousand labels it learns them roughly. An exact Gaussian process
over the very numbers of the report, and the mean of each channel of the image, interpolates between the labels and
knows how far away they are: far from all of them it answers with their mean and a wide spread (Rasmussen and Williams
2006, chapter 2). Both answer with a normal distribution of a logarithm of the share, and the mean of their scores is
given. It speaks of reports in the words that it was fitted with; of others the network speaks alone.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .configuration_agriclip import AgriClipConfig

# Rows of `kernels`: from the report alone, and with the image.
REPORT, BOTH = 0, 1


class AgriClipNeighbours(NamedTuple):
    """What the Gaussian process says of B places.

    Attributes:
        mean: Mean of log(share + floor) (B,).
        sd: Its standard deviation, of a new observation (B,).
        speaks: Whether it has anything to say (B,), bool: the report is in its words and holds a number.
    """

    mean: Tensor
    sd: Tensor
    speaks: Tensor


class AgriClipGaussianProcess(nn.Module):
    """Exact regression of log(share + floor) with a Matern 3/2 kernel, on standardised numbers and channel means.

    Nothing here is trained by gradients: `add_gaussian_process` of the training package fills the buffers.

    Args:
        config: `gp_places`, `gp_numbers`, `gp_channels` and `gp_tokens` give the shapes.
    """

    report_ids: Tensor
    slots: Tensor
    channels: Tensor
    center: Tensor
    spread: Tensor
    places: Tensor
    targets: Tensor
    scale: Tensor
    kernels: Tensor

    def __init__(self, config: AgriClipConfig) -> None:
        super().__init__()
        size = config.gp_numbers + config.gp_channels
        self.numbers = config.gp_numbers
        self.register_buffer("report_ids", torch.zeros(config.gp_tokens, dtype=torch.long))
        self.register_buffer("slots", torch.zeros(config.gp_numbers, dtype=torch.long))
        self.register_buffer("channels", torch.zeros(config.gp_channels, 4, dtype=torch.long))
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.register_buffer("places", torch.zeros(config.gp_places, size))
        self.register_buffer("targets", torch.zeros(config.gp_places))
        self.register_buffer("scale", torch.tensor([0.0, 1.0]))
        # Logarithms of amplitude, length and noise, in variances and standard deviations of standardised inputs.
        self.register_buffer("kernels", torch.zeros(2, 3))
        self._solved: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(
        self, text: Any, attention_mask: Tensor | None, vision: Any | None = None
    ) -> tuple[AgriClipNeighbours, AgriClipNeighbours]:
        """Distribution of log(share + floor).

        Args:
            text: Output of the report encoder for B reports, with `input_ids` and `numeric_values`.
            attention_mask: 1 = a token (B, L); a number that is masked counts as missing.
            vision: Output of the vision tower for B images; None for the report alone.

        Returns:
            With the image, where there is one with the channels of the fit; and from the report alone.
        """
        numbers, speaks = self._numbers(text, attention_mask)
        mean, sd = self._posterior(REPORT, self._standardise(numbers, slice(0, self.numbers)))
        alone = AgriClipNeighbours(mean, sd, speaks)
        if vision is None or not self._is_known(vision):
            return alone, alone
        images = vision.channel_means.float().masked_fill(vision.channel_valid == 0, torch.nan)
        inputs = torch.cat([numbers, images], dim=1)
        with_image = self._posterior(BOTH, self._standardise(inputs, slice(None)))
        seen = vision.image_valid > 0
        mean, sd = (torch.where(seen, one, other) for one, other in zip(with_image, (mean, sd), strict=True))
        return AgriClipNeighbours(mean, sd, speaks), alone

    def _numbers(self, text: Any, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The numbers (B, K), NaN where missing, and whether each report is in the words of the fit (B,)."""
        ids, values = text.get("input_ids"), text.get("numeric_values")
        length = len(self.report_ids)
        batch = len(text.pooler_output)
        if ids is None or values is None or ids.shape[1] < length:
            silent = torch.zeros(batch, dtype=torch.bool, device=self.report_ids.device)
            return self.center.new_full((batch, self.numbers), torch.nan).float(), silent
        kept = torch.ones_like(ids) if attention_mask is None else attention_mask
        same = (ids[:, :length] == self.report_ids).all(dim=1) & (kept[:, length:] == 0).all(dim=1)
        found = values[:, self.slots].float().masked_fill(kept[:, self.slots] == 0, torch.nan)
        return found, same & found.isfinite().any(dim=1)

    def _is_known(self, vision: Any) -> bool:
        """Whether images have the channels of the fit, in their order."""
        given = vision.get("channels")
        if not len(self.channels) or given is None or vision.get("channel_means") is None:
            return False
        return given.shape[1:] == self.channels.shape and bool((given == self.channels).all())

    def _standardise(self, values: Tensor, part: slice) -> Tensor:
        """Standard scores of the places of the fit; what is missing is their mean."""
        scores = (values - self.center[part].float()) / self.spread[part].float()
        return torch.where(scores.isfinite(), scores, 0.0)

    def _posterior(self, which: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B,) of a new observation of log share."""
        with torch.autocast(inputs.device.type, enabled=False):
            amplitude, _, noise = self._exact(self.kernels[which]).exp()
            factor, weights = self._solve(which)
            cross = self._kernel(which, self._exact(inputs), self._exact(self.places[:, : inputs.shape[1]]))
            explained = torch.linalg.solve_triangular(factor, cross.t(), upper=False).square().sum(dim=0)
            # Rounding must not make a place that was fitted surer than its noise.
            variance = noise + (amplitude - explained).clamp(min=0)
            center, spread = self._exact(self.scale)
            return (cross @ weights * spread + center).float(), (variance.sqrt() * spread).float()

    def _solve(self, which: int) -> tuple[Tensor, Tensor]:
        """Cholesky factor (P, P) and weights (P,) of the places; they are few, so this is quicker than to store it."""
        if which not in self._solved:
            size = self.numbers if which == REPORT else self.places.shape[1]
            # Kept for later calls, of which one may ask for gradients: nothing of inference mode may stay.
            with torch.inference_mode(False), torch.no_grad():
                places = self._exact(self.places[:, :size])
                covariance = self._kernel(which, places, places)
                covariance.diagonal().add_(self._exact(self.kernels[which, 2]).exp())
                factor = torch.linalg.cholesky(covariance)
                weights = torch.cholesky_solve(self._exact(self.targets).unsqueeze(1), factor)[:, 0]
            self._solved[which] = (factor, weights)
        return self._solved[which]

    def _kernel(self, which: int, first: Tensor, second: Tensor) -> Tensor:
        """Matern 3/2 covariance (B, P)."""
        amplitude, length, _ = self._exact(self.kernels[which]).exp()
        # Without the expansion of the square, which loses the digits of near places.
        distance = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist") * 3**0.5 / length
        return amplitude * (1 + distance) * (-distance).exp()

    @staticmethod
    def _exact(values: Tensor) -> Tensor:
        """In double precision, where the device has it: near places make equations that single precision spoils."""
        return values.float() if values.device.type == "mps" else values.double()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # Another device or type: solved anew there.
        self._solved.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._solved.clear()
        super()._load_from_state_dict(*args, **kwargs)


__all__ = ["AgriClipGaussianProcess", "AgriClipNeighbours"]
