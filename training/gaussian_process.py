"""The Gaussian process beside a fitted network: its places, and a kernel of the greatest likelihood."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_agriclip.gaussian_process_agriclip import AgriClipGaussianProcess
from modeling_agriclip.vision_agriclip import mean_of_channels
from training.study_dataset import SiteTensors

# Time grows with the cube of the places: so many are remembered, and fewer are asked for the kernel.
MOST, ASKED = 2048, 500
# With fewer places than this the likelihood says nothing of a kernel.
LEAST = 20


def add_gaussian_process(
    model: Any, sites: SiteTensors, index: NDArray[np.int64], labels: NDArray[np.float64], seed: int = 0
) -> bool:
    """Put a Gaussian process over log share beside a fitted suitability model, in place.

    Args:
        model: The model; one wrapped by adapters, or of another likelihood than `share`, is left as it is.
        sites: Inputs of all N sites.
        index: Sites that the model was fitted to.
        labels: (N,) shares; NaN = no label.
        seed: Which places are remembered when there are more than 2,048.

    Returns:
        Whether it was added: there must be one report for all sites with numbers in it, and 20 labels.
    """
    index = index[np.isfinite(labels[index])]
    likelihood = model.config.suitability_likelihood
    if likelihood != "share" or hasattr(model, "peft_config") or sites.input_ids.dim() != 1 or len(index) < LEAST:
        return False
    slots = torch.nonzero(sites.input_ids == sites.number_token_id)[:, 0]
    if not len(slots):
        return False
    rng = np.random.default_rng((seed, 11))
    index = np.sort(rng.permutation(index)[:MOST])
    inputs = sites.numeric_values[index][:, slots].double().numpy()
    channels = torch.zeros(0, 4, dtype=torch.long)
    if sites.pixel_values is not None and sites.pixel_mask is not None and sites.channels is not None:
        channels = sites.channels
        valid = sites.pixel_mask[index].unsqueeze(1).double()
        means, present = mean_of_channels(sites.pixel_values[index].unsqueeze(1).double().nan_to_num(), valid)
        inputs = np.concatenate([inputs, means.masked_fill(~present, torch.nan).numpy()], axis=1)
    with warnings.catch_warnings():
        # A number that is missing everywhere has no mean, and takes no part.
        warnings.simplefilter("ignore", RuntimeWarning)
        center, spread = (np.nan_to_num(of(inputs, axis=0)) for of in (np.nanmean, np.nanstd))
    spread[spread < 1e-9] = 1.0
    places = np.nan_to_num((inputs - center) / spread)
    shares = np.log(np.maximum(labels[index], 0) + model.config.share_floor)
    scale = np.array([shares.mean(), max(float(shares.std()), 1e-6)])
    targets = (shares - scale[0]) / scale[1]
    asked = np.sort(rng.permutation(len(places))[:ASKED])
    sizes = (len(slots), places.shape[1])
    kernels = np.stack([_fit_kernel(places[asked, :size], targets[asked]) for size in sizes])
    config = model.config
    config.gp_places, config.gp_numbers = len(places), len(slots)
    config.gp_channels, config.gp_tokens = len(channels), len(sites.input_ids)
    process = AgriClipGaussianProcess(config)
    values = {
        "report_ids": sites.input_ids,
        "slots": slots,
        "channels": channels,
        "center": center,
        "spread": spread,
        "places": places,
        "targets": targets,
        "scale": scale,
        "kernels": kernels,
    }
    for name, value in values.items():
        buffer = getattr(process, name)
        buffer.copy_(torch.as_tensor(value).to(buffer))
    model.gaussian_process = process.to(model.device)
    return True


def _fit_kernel(inputs: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of amplitude, length and noise at the greatest marginal likelihood."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    start = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(10.0, (0.1, 1e3), nu=1.5) + WhiteKernel(0.1, (1e-3, 1e1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = GaussianProcessRegressor(start).fit(inputs, targets)
    return np.asarray(found.kernel_.theta, dtype=np.float64)


__all__ = ["add_gaussian_process"]
