"""MESS against examples worked out by hand and against a plain loop."""

import numpy as np
import pytest

from mapping.novelty import MessReference, mess
from processing.errors import AgriClipError

TRAINING = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, -25.0),  # below: 100 (0 - 1) / (5 - 1)
        (1.0, 0.0),  # at the minimum nothing lies below: 100 (1 - 1) / 4
        (1.5, 40.0),  # 20 % below: 2 x 20
        (3.0, 80.0),  # 40 % below
        (3.5, 80.0),  # 60 % below: 2 (100 - 60)
        (5.0, 40.0),  # 80 % below
        (6.0, -25.0),  # above: 100 (5 - 6) / 4
        (9.0, -100.0),
    ],
)
def test_one_variable_by_hand(value, expected):
    assert mess(TRAINING, np.array([[value]]))[0] == pytest.approx(expected)


def by_loop(training, place):
    scores = []
    for column, p in zip(training.T, place, strict=True):
        f = 100.0 * np.mean(column < p)
        low, high = column.min(), column.max()
        if f == 0:
            scores.append(100 * (p - low) / (high - low))
        elif f <= 50:
            scores.append(2 * f)
        elif f < 100:
            scores.append(2 * (100 - f))
        else:
            scores.append(100 * (high - p) / (high - low))
    return scores, sum(score < 0 for score in scores)


def test_many_variables_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    training, places = rng.normal(size=(83, 4)), rng.normal(scale=2.0, size=(7, 11, 4))
    result = MessReference(training).score(places)
    assert result.mess.shape == result.variable.shape == (7, 11)
    for index in np.ndindex(7, 11):
        scores, count = by_loop(training, places[index])
        assert result.mess[index] == pytest.approx(min(scores), rel=1e-5, abs=1e-4)
        # Two variables can tie but for rounding: the one named must be among the lowest.
        assert scores[result.variable[index]] == pytest.approx(min(scores), rel=1e-5, abs=1e-4)
        assert result.out_of_range[index] == count


def test_training_places_are_never_novel():
    training = np.random.default_rng(1).normal(size=(50, 3))
    assert mess(training, training).min() >= 0


def test_missing_values_are_left_out():
    training = np.array([[1.0, 10.0], [2.0, np.nan], [3.0, 30.0]])
    result = MessReference(training, ["a", "b"]).score(np.array([[np.nan, 50.0], [np.nan, np.nan], [2.0, np.nan]]))
    assert result.mess[0] == pytest.approx(-100.0) and result.variable[0] == 1
    assert np.isnan(result.mess[1]) and result.variable[1] == -1 and result.out_of_range[1] == 0
    assert result.mess[2] == pytest.approx(2 * 100 / 3, rel=1e-5) and result.variable[2] == 0


def test_constant_variable_stays_finite():
    scores = mess(np.full((5, 1), 4.0), np.array([[4.0], [5.0], [2.0]]))
    assert scores == pytest.approx([0.0, -25.0, -50.0])


@pytest.mark.parametrize(
    ("training", "names", "said"),
    [
        (np.zeros(3), None, "training table"),
        (np.zeros((0, 2)), None, "training table"),
        (np.full((3, 1), np.nan), ["rain"], "rain is missing"),
        (np.zeros((3, 2)), ["rain"], "names"),
    ],
)
def test_bad_training_tables_are_refused(training, names, said):
    with pytest.raises(AgriClipError, match=said):
        MessReference(training, names)


def test_wrong_number_of_variables_is_refused():
    with pytest.raises(AgriClipError, match="1 variables, not 2"):
        mess(TRAINING, np.zeros((3, 2)))
