"""Scores of a suitability map for the `evaluate` library.

The scores themselves are AgriCLIP's own (`evaluation.metrics` and its neighbours), so a number from
``evaluate.load`` and the same number in a table of AgriCLIP cannot differ.
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Scores of probabilities of presence against observed presence and absence: discrimination (average precision, area
under the ROC curve), error and calibration (Brier score and its parts, log loss, calibration error with 15 equal-mass
bins, slope and intercept of calibration), scores at a threshold (true skill statistic, Cohen's kappa, F1) and the
continuous Boyce index, with all places taken as the available land. Undefined scores are NaN.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of float): Probability of presence of each place.
    references (list of int): 1 where the crop is present, 0 where it is not.
    sample_weight (list of float, optional): Weight of each place.
    ranking (list of float, optional): Score used for AP, AUC and the Boyce index instead of the probability.
    threshold (float): Probability at and above which a place counts as suitable, chosen on other data. Default 0.5.
    bins (int): Equal-mass bins of the calibration error and the parts of the Brier score. Default 15.
Returns:
    dict: ap, auc, brier, brier_reliability, brier_resolution, brier_uncertainty, log_loss, ece, calibration_slope,
    calibration_intercept, tss, kappa, f1, boyce.
Examples:
    >>> metric = evaluate.load("evaluation/hub_metrics/suitability")
    >>> scores = metric.compute(predictions=[0.1, 0.4, 0.35, 0.8], references=[0, 0, 1, 1])
    >>> round(scores["auc"], 2), round(scores["ap"], 3)
    (0.75, 0.833)
"""

_CITATION = """
@article{brier1950, author = {Brier, Glenn W.}, title = {Verification of forecasts expressed in terms of probability},
  journal = {Monthly Weather Review}, volume = {78}, pages = {1--3}, year = {1950}}
@article{murphy1973, author = {Murphy, Allan H.}, title = {A new vector partition of the probability score},
  journal = {Journal of Applied Meteorology}, volume = {12}, pages = {595--600}, year = {1973}}
@article{allouche2006, author = {Allouche, Omri and Tsoar, Asaf and Kadmon, Ronen},
  title = {Assessing the accuracy of species distribution models: prevalence, kappa and the true skill statistic
  (TSS)}, journal = {Journal of Applied Ecology}, volume = {43}, pages = {1223--1232}, year = {2006}}
@article{hirzel2006, author = {Hirzel, Alexandre H. and Le Lay, Gwena{\\"e}lle and Helfer, V{\\'e}ronique and
  Randin, Christophe and Guisan, Antoine}, title = {Evaluating the ability of habitat suitability models to predict
  species presences}, journal = {Ecological Modelling}, volume = {199}, pages = {142--152}, year = {2006}}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Suitability(evaluate.Metric):
    """Discrimination, calibration, threshold scores and Boyce index of probabilities of presence."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://doi.org/10.1016/j.ecolmodel.2006.05.017"],
        )

    def _download_and_prepare(self, dl_manager: object) -> None:
        try:
            import evaluation.presence_metrics  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "The suitability metric computes with the functions of AgriCLIP, which is not installed here; install "
                "the package `agriclip` with its extra `eval`."
            ) from error

    def _compute(
        self,
        predictions: list,
        references: list,
        sample_weight: list | None = None,
        ranking: list | None = None,
        threshold: float = 0.5,
        bins: int = 15,
    ) -> dict[str, float]:
        from evaluation import metrics
        from evaluation.presence_metrics import boyce_index
        from evaluation.threshold_metrics import threshold_scores

        p, y = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        w = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        order = p if ranking is None else np.asarray(ranking, dtype=np.float64)
        parts = metrics.brier_parts(y, p, w, bins)
        line = metrics.calibration_line(y, p, w)
        binary = threshold_scores(y, p, threshold, w)
        return {
            "ap": metrics.average_precision(y, order, w),
            "auc": metrics.auc(y, order, w),
            "brier": metrics.brier(y, p, w),
            "brier_reliability": parts.reliability,
            "brier_resolution": parts.resolution,
            "brier_uncertainty": parts.uncertainty,
            "log_loss": metrics.log_loss(y, p, w),
            "ece": metrics.expected_calibration_error(y, p, w, bins),
            "calibration_slope": line.slope,
            "calibration_intercept": line.intercept,
            "tss": binary.tss,
            "kappa": binary.kappa,
            "f1": binary.f1,
            "boyce": boyce_index(y, order, w),
        }
