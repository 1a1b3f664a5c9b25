"""The model card and the card of a study: their code runs as pasted, their numbers are those of the files."""

import re

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from evaluation.release.card import Carbon, CardFacts, find_results, read_study, write_card
from evaluation.release.dataset_card import dataset_repo, write_dataset_folder
from evaluation.release.folder import prepare_release
from evaluation.release.sources import Source, read_sources, sources_of
from evaluation.results import write_results
from modeling_agriclip import AgriClipForSemanticSegmentation, AgriClipForSuitability
from processing.errors import AgriClipError
from processing.study import load_study

from .conftest import CHANNELS, REPO, SCORES, STUDY, make, run_clean


def blocks(card, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def test_code_on_the_card_runs_as_pasted(release, tmp_path):
    """Each block alone, in a folder that stands for the Hub, where nothing of ours is installed."""
    found = blocks((release.path / "README.md").read_text())
    assert len(found) == 4 and all(REPO in block for block in found)
    member = f"""
from transformers import AutoModelForSequenceClassification as Auto
model = Auto.from_pretrained({REPO!r}, subfolder="members/fold_2", trust_remote_code=True)
print("member", type(model).__name__, float(sum(p.detach().sum() for p in model.suitability_head.parameters())))
"""
    whole = "".join(f"exec({block!r}, {{'__name__': 'pasted'}})\nprint('== done')\n" for block in [*found, member])
    said = run_clean(whole, tmp_path, tmp_path / "modules").split("== done")
    probability, spread = re.match(r"([\d.e-]+) ([\d.e-]+) \{'90%': '\w+'\}", said[0].strip()).groups()
    assert 0 < float(probability) < 1 and float(spread) > 0
    assert "1150 mm is read as 1150.0 mm" in said[0]
    assert re.search(r"[\d.]+ with the image, [\d.]+ without", said[1])
    assert "tensor([" in said[2] and said[3].strip() == "96"
    # One copy of the code serves the members too.
    head = AgriClipForSuitability.from_pretrained(release.path / "members" / "fold_2").suitability_head
    assert said[4].split() == [
        "member",
        "AgriClipForSuitability",
        str(float(sum(p.detach().sum() for p in head.parameters()))),
    ]


def test_the_head_is_what_the_hub_reads(release):
    card = ModelCard.load(release.path / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "tabular-classification",
    )
    assert {"remote-sensing", "custom_code", "ensemble"} <= set(data["tags"]) and data["metrics"] == ["ap", "brier"]
    (index,) = data["model-index"]
    metrics = {metric["type"]: metric for result in index["results"] for metric in result["metrics"]}
    assert index["name"] == "tiny-soybean" and metrics["ap"]["value"] == 0.81
    assert metrics["ap"]["args"] == {"n": 200, "low": 0.77, "high": 0.85, "level": 0.95}
    assert data["co2_eq_emissions"]["emissions"] == 1.2  # 90 s * 100 W = 2.5 Wh, at 480 g/kWh
    (file,) = (release.path / ".eval_results").glob("*.yaml")
    assert [entry["value"] for entry in yaml.safe_load(file.read_text())] == [0.81, 0.11]


def test_the_card_says_what_a_person_must_know(release):
    text = (release.path / "README.md").read_text()
    for part in ("arxiv.org/abs/2410.01407", "10.3389/fenvs.2024.1515752", "forbidden by good practice"):
        assert part in text
    assert (
        "| annual precipitation | mm | `bio12` |" in text and "| `woody_cover` | cover fraction | % | 24.4 |" in text
    )
    assert "0.810 (0.770 to 0.850)" in text and "random forest" in text and "AgriCLIP less random forest" in text
    assert "A virtual landscape" in text and "| labels, predictors |" in text
    assert "| 90% | 90.5% | 89.0% | 20.0% |" in text
    assert "90 s measured, times 100 W" in text and "power was not metered" in text
    assert not re.search(r"\n{4,}", text) and "{{" not in text.replace("{{The AgriCLIP developers}}", "")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    before = re.findall(r"([^\n]*)\n\|[^\n]*\|\n\| ?:?---", text)
    assert before and all(line == "" for line in before)  # a table needs an empty line before it


def test_what_is_not_recorded_is_said_to_be_unknown(processor, tmp_path):
    folder = tmp_path / "model"
    make(AgriClipForSemanticSegmentation, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    made = prepare_release(folder, tmp_path / "release")
    write_card(made, "ada/maps")
    text = (made.path / "README.md").read_text()
    assert "No evaluation lies beside these weights." in text and "is not recorded in this folder" in text
    assert "so nothing is estimated" in text and "Screening: where" not in text.split("Not intended")[1]
    assert "image-segmentation" in ModelCard.load(made.path / "README.md").data.pipeline_tag
    assert not (made.path / ".eval_results").exists()


def test_results_are_found_beside_the_fit(fitted, tmp_path):
    assert find_results(fitted) == ((), ())
    write_results(tmp_path / "evaluation", SCORES)
    (tmp_path / "model").mkdir()
    (tmp_path / "fit.json").write_text('{"comparison": [{"model": "AgriCLIP", "ap": 0.5}]}')
    scores, comparison = find_results(tmp_path / "model")
    assert scores == SCORES and comparison[0]["ap"] == 0.5


def test_scores_without_intervals_say_so(release):
    write_card(release, REPO, CardFacts(comparison=({"model": "AgriCLIP", "ap": 0.5, "note": "x"},)))
    text = (release.path / "README.md").read_text()
    assert "no intervals were computed" in text and "| AgriCLIP | 0.500 |" in text


def test_carbon_is_energy_times_intensity():
    assert Carbon(3600.0, 1000.0, 480.0).grams == pytest.approx(480.0)
    assert Carbon(562.0, 100.0).grams == pytest.approx(562 / 36000 * 480.0)


def test_sources_of_files(tmp_path):
    rows = sources_of(
        {"a/double_crop_soybean.csv": "labels", "x/ndvi_monthly.tif": "images", "y/mine.tif": "images"},
        (Source(("NDVI*",), "Own NDVI", "CC BY 4.0"),),
    )
    assert [row["title"] for row in rows][1:] == ["Own NDVI", "`mine.tif`"]
    assert rows[0]["licence"].startswith("Cropland Data Layer: public domain") and "not stated" in rows[2]["licence"]
    (tmp_path / "sources.yaml").write_text("- {files: '*.tif', title: T, licence: L}\n")
    assert read_sources(None, tmp_path) == (Source(("*.tif",), "T", "L"),)
    (tmp_path / "sources.yaml").write_text("- {title: T}\n")
    with pytest.raises(AgriClipError, match="is no list of sources"):
        read_sources(tmp_path)


def test_the_card_of_a_study(tmp_path, release):
    file = tmp_path / "toy.yaml"
    file.write_text(STUDY.format(data=tmp_path))
    study = load_study(file, check_files=False)
    assert dataset_repo("ada", study) == "ada/toy-soybean"
    folder = write_dataset_folder(study, file, tmp_path / "study", "ada/toy-soybean")
    assert {path.name for path in folder.iterdir()} == {"README.md", "study.yaml", "LICENSE"}
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and card.data.pretty_name == "Soybean in a toy land"
    text = card.text
    assert "| `bio12` | annual precipitation | mm | 0 |" in text and "Annual precipitation 1150 mm." in text
    assert "2 folds" in text and "in whole blocks of land" in text and str(tmp_path) not in text
    published = load_study(folder / "study.yaml", check_files=False)
    assert published.fingerprint() == study.fingerprint()
    assert read_study(release).name == "toy_soybean"
    assert CHANNELS  # the release was made with them
