"""What a good modeller would have done without us: rules, niche models, trees, Gaussian processes.

Three choices define this package. Every baseline is an estimator of scikit-learn and is fitted on the very folds that
the model was scored on. Its probability of presence is calibrated within the training folds, never on the fold that is
scored. And each states what it looks at, so that one sees what coordinates alone, or a rule without data, would give.
"""

from evaluation.baselines.bayes import BayesianDiscriminant
from evaluation.baselines.inputs import BaselineInputs, BaselineResult, Predictions, reason_to_skip
from evaluation.baselines.niche import MaxEnt, PercentileEnvelope, QuadraticLogistic
from evaluation.baselines.registry import (
    ALL,
    BASELINES,
    COSTLY,
    DEFAULTS,
    INPUTS,
    REGISTRY,
    STANDARD,
    Baseline,
    Brought,
)
from evaluation.baselines.rules import Prevalence, RuleScore, rule_scores
from evaluation.baselines.runner import compare, comparison_table, fit_predict, out_of_fold, run_baselines
from evaluation.baselines.share import GaussianProcessOnSubset, ShareRegressor
from evaluation.baselines.study import StudyBaselines, run_study_baselines, study_inputs

__all__ = [
    "ALL",
    "BASELINES",
    "COSTLY",
    "DEFAULTS",
    "INPUTS",
    "REGISTRY",
    "STANDARD",
    "Baseline",
    "BaselineInputs",
    "BaselineResult",
    "BayesianDiscriminant",
    "Brought",
    "GaussianProcessOnSubset",
    "MaxEnt",
    "PercentileEnvelope",
    "Predictions",
    "Prevalence",
    "QuadraticLogistic",
    "RuleScore",
    "ShareRegressor",
    "StudyBaselines",
    "compare",
    "comparison_table",
    "fit_predict",
    "out_of_fold",
    "reason_to_skip",
    "rule_scores",
    "run_baselines",
    "run_study_baselines",
    "study_inputs",
]
