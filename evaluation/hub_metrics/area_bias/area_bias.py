"""Bias of predicted areas for the `evaluate` library; needs nothing but `evaluate` and NumPy."""

import math

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Predicted against observed area of a crop: the sum of predicted shares (or probabilities) times land, less the same sum
of observed shares, in the unit of land and relative to the observed area; and root mean squared error and R2 of the
areas of units (counties, states). A relative bias without observed area, and an R2 without differences, are NaN.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of float): Predicted share of the land of each place, or probability, 0 to 1.
    references (list of float): Observed share of the land of each place, 0 to 1.
    land (list of float, optional): Land of each place in any unit of area; equal land of 1 if not given.
    unit (list of str, optional): Unit that holds each place; every place is its own if not given.
Returns:
    dict: predicted_area, observed_area, area_bias, relative_area_bias, area_rmse, area_r2.
Examples:
    >>> metric = evaluate.load("evaluation/hub_metrics/area_bias")
    >>> scores = metric.compute(predictions=[0.5, 0.25], references=[0.25, 0.25], land=[4.0, 8.0])
    >>> scores["area_bias"], round(scores["relative_area_bias"], 3)
    (1.0, 0.333)
"""

_CITATION = """
@article{olofsson2014, author = {Olofsson, Pontus and Foody, Giles M. and Herold, Martin and Stehman, Stephen V. and
  Woodcock, Curtis E. and Wulder, Michael A.}, title = {Good practices for estimating area and assessing accuracy of
  land change}, journal = {Remote Sensing of Environment}, volume = {148}, pages = {42--57}, year = {2014}}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AreaBias(evaluate.Metric):
    """Bias, RMSE and R2 of predicted areas."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
            reference_urls=["https://doi.org/10.1016/j.rse.2014.02.015"],
        )

    def _compute(
        self, predictions: list, references: list, land: list | None = None, unit: list | None = None
    ) -> dict[str, float]:
        predicted, observed = (np.asarray(values, dtype=np.float64) for values in (predictions, references))
        if not all(((shares >= 0) & (shares <= 1)).all() for shares in (predicted, observed)):
            raise ValueError("Shares must lie between 0 and 1 and not be NaN; divide areas by the land first.")
        ground = np.ones_like(observed) if land is None else np.asarray(land, dtype=np.float64)
        names = np.arange(observed.size) if unit is None else np.asarray(unit)
        if not ground.size == names.size == observed.size:
            raise ValueError(
                f"There are {observed.size} places, {ground.size} areas of land and {names.size} units; give one each."
            )
        _, place = np.unique(names, return_inverse=True)
        told, there = (np.bincount(place, weights=shares * ground) for shares in (predicted, observed))
        residual, spread = ((told - there) ** 2).sum(), ((there - there.mean()) ** 2).sum()
        bias = float(told.sum() - there.sum())
        return {
            "predicted_area": float(told.sum()),
            "observed_area": float(there.sum()),
            "area_bias": bias,
            "relative_area_bias": bias / float(there.sum()) if there.sum() > 0 else math.nan,
            "area_rmse": float(np.sqrt(residual / there.size)),
            "area_r2": float(1.0 - residual / spread) if spread > 0 else math.nan,
        }
