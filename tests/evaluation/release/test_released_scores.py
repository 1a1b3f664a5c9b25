"""Whether a model trained anew ends where the released one did."""

from pathlib import Path

import pytest
import typer
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from benchmarks import released_scores
from evaluation.results import Score, write_results

TILES = "Landsat 8 tiles, six classes"


@pytest.fixture
def released(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a card: accuracy of 0.85 (0.83 to 0.87), and a mean IoU without an interval."""
    monkeypatch.setenv("COLUMNS", "160")  # the table is not cut
    about = {"task_type": "image-segmentation", "dataset_name": TILES, "dataset_type": "tiles"}
    ends = {"n": 180, "low": 0.8304, "high": 0.87, "level": 0.95}
    known = [
        EvalResult(metric_type="accuracy", metric_value=0.85, metric_args=ends, **about),
        EvalResult(metric_type="mean_iou", metric_value=0.7, **about),
    ]
    (tmp_path / "model").mkdir()
    data = ModelCardData(model_name="agriclip", eval_results=known)
    ModelCard(f"---\n{data}\n---\n").save(tmp_path / "model/README.md")
    return tmp_path / "model"


def results(folder: Path, accuracy: float) -> Path:
    """What `benchmarks.released` leaves, with a baseline and a difference, which the card does not hold."""
    task = ("segmentation", "tiles", "given tiles")
    scores = [
        Score(*task, "accuracy", accuracy, 0.8, 0.9, 180),
        Score(*task, "mean_iou", 0.1, 0.0, 0.2, 180),
        Score(*task, "accuracy", 0.2, 0.1, 0.3, 180, "gradient boosting on pixels"),
        Score(*task, "accuracy", 0.05, 0.0, 0.1, 180, against="gradient boosting on pixels"),
    ]
    write_results(folder / "segmentation", scores)
    return folder


@pytest.mark.parametrize("accuracy", [0.83, 0.85, 0.87])
def test_inside_the_interval_to_the_digits_shown(tmp_path, released, capsys, accuracy):
    released_scores.main(results(tmp_path / "out", accuracy), tmp_path / "card", released)
    told = capsys.readouterr().out
    assert "gradient boosting on pixels" in told and "0.850 (0.830 to 0.870)" in told and "outside" not in told
    assert (tmp_path / "card/results.json").is_file()


@pytest.mark.parametrize("accuracy", [0.8294, 0.8706])
def test_outside_of_it_the_command_fails(tmp_path, released, capsys, accuracy):
    with pytest.raises(typer.Exit) as ended:
        released_scores.main(results(tmp_path / "out", accuracy), tmp_path / "card", released)
    told = capsys.readouterr()
    assert ended.value.exit_code == 1 and "outside" in told.out
    assert told.err == f"Outside the interval of the released score, or not taken: Accuracy of {TILES}.\n"


def test_a_score_that_was_not_taken_is_missed(tmp_path, released, capsys):
    with pytest.raises(typer.Exit):
        released_scores.main(tmp_path, tmp_path / "card", released)
    assert capsys.readouterr().err.endswith(f"not taken: Accuracy of {TILES}, Mean IoU of {TILES}.\n")
