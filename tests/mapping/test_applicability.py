"""Area of applicability against distances worked out by hand and by brute force; conformal sets as classes."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from mapping import applicability
from mapping.applicability import (
    APPLICABILITY_CLASSES,
    SET_CLASSES,
    ApplicabilityReference,
    prediction_set_layer,
)
from mapping.outputs import class_raster_options
from modeling_agriclip.calibration_agriclip import Calibration, ConformalLevel
from processing.errors import AgriClipError
from processing.study_data import StudyData

# One predictor at 0, 1, 2, 7: mean 2.5, variance (6.25 + 2.25 + 0.25 + 20.25) / 3 = 29 / 3. Distances between pairs:
# 1, 2, 7, 1, 6, 5 = 22 / 6 on average. With folds {0, 1} and {2, 7} the nearest place of the other fold is at 2 and
# 1 for the first, at 1 and 6 for the second. Scaling by the deviation cancels in the index.
LINE = np.array([[0.0], [1.0], [2.0], [7.0]])
FOLDS = [0, 0, 1, 1]


def test_worked_example_of_one_predictor():
    reference = ApplicabilityReference(LINE, FOLDS)
    assert reference.mean_distance == pytest.approx(22 / 6 / np.sqrt(29 / 3))
    np.testing.assert_allclose(reference.training_dissimilarity, np.array([2, 1, 1, 6]) / (22 / 6))
    # Quartiles of 1, 1, 2, 6 are 1 and 3, so the fence is 3 + 1.5 x 2 = 6 and the largest index stays.
    assert reference.threshold == pytest.approx(6 / (22 / 6))
    found = reference.score([[4.5], [13.0], [13.1], [np.nan], [-6.5]])
    np.testing.assert_allclose(found.dissimilarity, np.array([2.5, 6, 6.1, np.nan, 6.5]) / (22 / 6), rtol=1e-6)
    assert found.dissimilarity.dtype == np.float32
    assert found.inside.tolist() == [True, True, False, False, False]
    assert found.classes.tolist() == [1, 1, 2, 0, 2]


def test_outlier_is_removed_from_the_threshold():
    table = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [100.0]])
    reference = ApplicabilityReference(table)  # each place its own fold: five distances of 1, one of 96
    assert reference.training_dissimilarity.max() > 2
    assert reference.threshold == pytest.approx(1.0 / pdist(table).mean())


def test_weights_stretch_a_predictor():
    # Both predictors have the same spread; the second counts three times as much.
    table = np.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
    spread = np.sqrt(4 / 3)
    reference = ApplicabilityReference(table, weights=[1.0, 3.0])
    # Pairs: two of 2, two of 6, two diagonals of sqrt(40), all over the deviation.
    mean = (2 * 2 + 2 * 6 + 2 * np.sqrt(40)) / 6
    assert reference.mean_distance == pytest.approx(mean / spread)
    found = reference.score([[5.0, 2.0], [2.0, 5.0]]).dissimilarity
    np.testing.assert_allclose(found, [3 / mean, 9 / mean], rtol=1e-6)


def test_matches_brute_force_and_is_zero_at_training_places():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(900, 7)) * [1, 5, 0.1, 100, 1, 2, 3] + [0, 5, 3, -40, 0, 1, 1]
    folds, weights = rng.integers(0, 5, 900), rng.uniform(0, 2, 7)
    reference = ApplicabilityReference(table, folds, weights)
    scaled = (table - table.mean(0)) / table.std(0, ddof=1) * weights
    distances = np.sqrt(((scaled[:, None] - scaled[None]) ** 2).sum(-1))
    mean = distances[np.triu_indices(900, 1)].mean()
    assert reference.mean_distance == pytest.approx(mean, rel=1e-10)
    other = np.where(folds[:, None] != folds[None], distances, np.inf).min(1) / mean
    np.testing.assert_allclose(reference.training_dissimilarity, other, rtol=1e-9)
    low, high = np.percentile(other, [25, 75])
    assert reference.threshold == pytest.approx(other[other <= high + 1.5 * (high - low)].max())
    assert not reference.score(table).dissimilarity.any()
    inside = (reference.training_dissimilarity <= reference.threshold).mean()
    assert 0.9 < inside < 1.0
    new = rng.normal(size=(3, 4, 7))
    found = reference.score(new)
    assert found.dissimilarity.shape == found.inside.shape == (3, 4)
    place = (new[1, 2] - table.mean(0)) / table.std(0, ddof=1) * weights
    expected = np.sqrt(((scaled - place) ** 2).sum(-1)).min() / mean
    assert found.dissimilarity[1, 2] == pytest.approx(expected, rel=1e-5)


def test_missing_and_idle_predictors():
    table = np.column_stack([[0.0, 1.0, 2.0, np.nan], [5.0] * 4, [1.0, 9.0, 2.0, 4.0]])
    reference = ApplicabilityReference(table, weights=[1.0, 1.0, -0.2], names=["warmth", "flat", "idle"])
    assert reference.used.tolist() == [True, False, False]
    assert len(reference.training_dissimilarity) == 3
    # What has no weight may be missing; what has may not.
    found = reference.score([[1.0, np.nan, np.nan], [np.nan, 5.0, 1.0], [1.5, -3.0, 0.0]])
    np.testing.assert_allclose(found.dissimilarity, [0.0, np.nan, 0.5 / (4 / 3)], rtol=1e-6)
    assert found.inside.tolist() == [True, False, True]


def test_new_combination_inside_the_ranges_is_seen():
    line = np.linspace(0, 1, 50)
    reference = ApplicabilityReference(np.column_stack([line, line]), np.arange(50) % 5)
    assert reference.score([[0.51, 0.52], [0.1, 0.9]]).inside.tolist() == [True, False]


def test_sample_stands_in_for_all_pairs(monkeypatch):
    table = np.random.default_rng(1).normal(size=(700, 3))
    exact = ApplicabilityReference(table)
    monkeypatch.setattr(applicability, "_EXACT_PLACES", 400)
    sampled = ApplicabilityReference(table, seed=3)
    assert (exact.sampled, sampled.sampled) == (0, 400)
    assert sampled.mean_distance == pytest.approx(exact.mean_distance, rel=0.05)
    assert sampled.mean_distance == ApplicabilityReference(table, seed=3).mean_distance != exact.mean_distance


def test_reference_of_a_study(toy):
    data = StudyData(toy.study)
    reference = ApplicabilityReference.of_study(data)
    assert reference.names == ["warmth", "rain"]
    present, dry = (
        reference.score(np.moveaxis(data.predictor_grid(slice(6, 30), name), 0, -1)) for name in (None, "dry")
    )
    assert present.inside.mean() > 0.9 > 0.7 > dry.inside.mean()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([1.0, 2.0],), "shape"),
        ((LINE, [0, 1]), "one fold a place"),
        ((LINE, [1, 1, 1, 1]), "at least 2 folds"),
        ((np.full((4, 1), np.nan),), "at least 2 folds"),
        ((LINE, FOLDS, [1.0, 2.0]), "one for each"),
        ((LINE, FOLDS, [np.nan]), "not a number"),
        ((LINE, FOLDS, [0.0]), "varies"),
        ((np.ones((4, 2)), FOLDS), "varies"),
        ((LINE, FOLDS, None, ["a", "b"]), "2 names"),
    ],
)
def test_bad_reference(arguments, said):
    with pytest.raises(AgriClipError, match=said):
        ApplicabilityReference(*arguments)


def test_bad_places():
    with pytest.raises(AgriClipError, match="1 predictors"):
        ApplicabilityReference(LINE, FOLDS).score(np.zeros((3, 2)))


CALIBRATION = Calibration(levels=(ConformalLevel(0.1, (0.3, 0.6), {"north": (0.9, 0.5)}), ConformalLevel(0.2, (0, 0))))


def test_prediction_sets_become_classes():
    # `unsuitable` belongs to the set up to p = 0.3 and `suitable` from p = 1 - 0.6 on.
    probability = np.array([[0.1, 0.3, 0.35], [0.4, 0.9, np.nan]])
    layer = prediction_set_layer(CALIBRATION, probability)
    assert layer.dtype == np.uint8
    assert layer.tolist() == [[1, 1, 4], [2, 2, 0]]
    assert prediction_set_layer(CALIBRATION, probability, group="north").tolist() == [[1, 1, 1], [1, 3, 0]]
    assert prediction_set_layer(CALIBRATION, [0.0, 0.5, 1.0], level=0.8).tolist() == [1, 4, 2]


def test_classes_make_class_rasters():
    for classes in (SET_CLASSES, APPLICABILITY_CLASSES):
        options = class_raster_options(classes)
        assert len(set(options["colours"].values())) == len(classes) + 1


@pytest.mark.parametrize(
    ("probability", "level", "said"),
    [([0.5], 0.7, "use one of: 0.1, 0.2"), ([1.5], 0.9, "between 0 and 1"), ([0.5], 1.0, "0.9 is usual")],
)
def test_bad_prediction_sets(probability, level, said):
    with pytest.raises(AgriClipError, match=said):
        prediction_set_layer(CALIBRATION, probability, level)
