"""Results: what is written is read again, and the Hub's own code understands it."""

import math

import pytest
import yaml
from huggingface_hub import ModelCardData, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from evaluation.results import (
    OURS,
    Score,
    card_data,
    card_section,
    differences_markdown,
    model_index,
    read_results,
    scores_markdown,
    write_eval_results,
    write_results,
)
from processing.errors import AgriClipError

SCORES = [
    Score("suitability", "counties", "blocks", "ap", 0.93, 0.91, 0.95, 100),
    Score("suitability", "counties", "blocks", "brier", 0.05, 0.04, 0.06, 100),
    Score("suitability", "counties", "blocks", "boyce", math.nan, None, None, 100),
    Score("suitability", "counties", "blocks", "ap", 0.90, 0.88, 0.92, 100, model="forest"),
    Score("suitability", "counties", "blocks", "brier", 0.06, 0.05, 0.07, 100, model="forest"),
    Score("suitability", "counties", "blocks", "ap", 0.03, 0.01, 0.05, 100, against="forest"),
    Score("zero-shot", "EuroSAT", "test", "accuracy", 0.5, n=27000),
]


def test_results_come_back(tmp_path):
    path = write_results(tmp_path, SCORES, about={"command": "x"}, details={"places": 3})
    found, content = read_results(tmp_path)
    assert found[0] == SCORES[0] and found[-1] == SCORES[-1] and math.isnan(found[2].value)
    assert content["about"]["command"] == "x" and content["details"]["places"] == 3
    path.write_text('{"format": "other"}')
    with pytest.raises(AgriClipError, match="no results"):
        read_results(path)
    with pytest.raises(AgriClipError, match="There are no results"):
        read_results(tmp_path / "nowhere")


def test_tables_point_out_the_best_of_each_column():
    table = scores_markdown(SCORES[:5], ["ap", "brier"])
    assert table.splitlines()[2] == f"| {OURS} | **0.930 (0.910 to 0.950)** | **0.0500 (0.0400 to 0.0600)** |"
    assert "| forest | 0.900 (0.880 to 0.920) | 0.0600 (0.0500 to 0.0700) |" in table
    assert f"| {OURS} less forest | +0.030 (+0.010 to +0.050) |" in differences_markdown(SCORES)
    assert "Zero-shot image classification: EuroSAT, test (n = 27,000)" in card_section(SCORES)


def test_the_hub_reads_our_metadata_back(tmp_path):
    name, results = model_index_to_eval_results(model_index("agriclip", SCORES, {"EuroSAT": "blanchon/EuroSAT"}))
    assert name == "agriclip"
    assert [(r.metric_type, r.metric_value) for r in results] == [("ap", 0.93), ("brier", 0.05), ("accuracy", 0.5)]
    assert results[0].metric_args == {"n": 100, "low": 0.91, "high": 0.95, "level": 0.95}
    assert results[2].dataset_type == "blanchon/EuroSAT"
    text = yaml.safe_load(card_data("agriclip", SCORES, license="apache-2.0").to_yaml())
    assert ModelCardData(**text).eval_results[0].metric_value == 0.93

    files = write_eval_results(tmp_path, SCORES, {"counties": "someone/counties"}, date="2026-01-01T00:00:00Z")
    assert [file.parent.name for file in files] == [".eval_results"] * 2
    entries = [entry for file in files for entry in parse_eval_result_entries(yaml.safe_load(file.read_text()))]
    assert [(e.dataset_id, e.task_id, e.value) for e in entries] == [
        ("someone/counties", "suitability_ap", 0.93),
        ("someone/counties", "suitability_brier", 0.05),
        ("eurosat", "zero-shot_accuracy", 0.5),
    ]
    assert "0.9100 to 0.9500" in entries[0].notes
