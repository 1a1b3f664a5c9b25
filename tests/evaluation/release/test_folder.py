"""The release folder: what goes along, what stays, what is found wrong, and that it answers the same by itself."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.release import clean_process
from evaluation.release.checks import check_files, require
from evaluation.release.clean_process import check_clean_process
from evaluation.release.folder import find_model, kind_of, open_release, prepare_release
from mapping.predictor import SuitabilityPredictor
from modeling_agriclip import AgriClipEnsemble, AgriClipForSemanticSegmentation, AgriClipForSuitability, AgriClipModel
from processing.errors import AgriClipError
from training.lora import add_lora, save_adapter

from .conftest import CHANNELS, make


def failed(folder):
    return {check.name: check.detail for check in check_files(folder) if not check.passed}


def test_an_ensemble_is_released_without_what_is_private(release, fitted):
    assert release.kind == "ensemble" and release.architecture == "AgriClipForSuitability"
    assert release.members == ("members/fold_1", "members/fold_2", "members/fold_10")
    assert set(release.tasks) == {"agriclip-suitability", "agriclip-feature-extraction"}
    names = {path.relative_to(release.path).as_posix() for path in release.path.rglob("*") if path.is_file()}
    assert not any("heldout" in name or "checkpoint" in name or name.endswith(".pt") for name in names)
    inside = {name.rpartition("/")[2] for name in names if name.startswith("members/")}
    assert inside == {"config.json", "model.safetensors", "calibration.json"}  # one copy of the code serves all
    assert {"ensemble_agriclip.py", "calibration_agriclip.py", "pipelines_agriclip.py", "LICENSE"} <= names
    for member in release.members:
        one, other = (load_file(place / member / "model.safetensors") for place in (release.path, fitted))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert json.loads((release.path / "training_summary.json").read_text())["cache"] == "x"
    assert "${AGRICLIP_DATA:-data}" in (release.path / "study.yaml").read_text()
    assert not [path for path in release.path.parent.iterdir() if path.name.startswith(".")]
    assert not json.loads((release.path / "tokenizer_config.json").read_text()).get("local_files_only")
    assert failed(release.path) == {}
    require(check_files(release.path))


def test_a_release_is_mapped_with_like_the_fit(release, fitted):
    ours, theirs = SuitabilityPredictor(fitted), SuitabilityPredictor(release.path)
    assert [m.path.name for m in ours.members] == [m.path.name for m in theirs.members]
    inputs = ours.processor(text=["Annual precipitation 900 mm."])
    answers = [AgriClipEnsemble.from_pretrained(place).predict(**inputs) for place in (fitted, release.path)]
    assert torch.equal(answers[0].member_probabilities, answers[1].member_probabilities)


def test_channels_of_the_study_become_the_usual_ones(release):
    processor = SuitabilityPredictor(release.path).processor
    x = torch.tensor([CHANNELS[0].mean + CHANNELS[0].std, CHANNELS[1].mean]).reshape(2, 1, 1).expand(2, 4, 4)
    out = processor.image_processor([x])
    torch.testing.assert_close(out["pixel_values"][0, 0, :, 0, 0], torch.tensor([1.0, 0.0]))
    assert out["channels"][0].tolist() == [spec.code() for spec in CHANNELS] and out["gsd"].tolist() == [900.0]


def test_it_answers_the_same_where_nothing_of_ours_is_installed(release):
    check = check_clean_process(release)
    assert check.passed, check.detail
    assert "differ by 0;" in check.detail and "2 pipelines compared" in check.detail


def test_other_outputs_are_found():
    tensors = {"a": torch.tensor([1.0, float("nan")]), "b": torch.zeros(2)}
    largest = clean_process._largest
    assert largest(tensors, dict(tensors)) == (0.0, "")
    gap, where = largest(tensors, tensors | {"b": torch.tensor([0.0, 1e-3])})
    assert (round(gap, 6), where) == (1e-3, "b")
    assert largest(tensors, {"a": tensors["a"]})[0] == largest(tensors, tensors | {"a": torch.zeros(2)})[0] == math.inf
    told = {"x": [1.0, {"set": "suitable"}], "n": None}
    assert clean_process._difference(told, told)[0] == 0
    assert clean_process._difference(told, told | {"x": [1.25, {"set": "suitable"}]}) == (0.25, "x")
    for other in (told | {"n": 1}, told | {"x": [1.0, {"set": "strange"}]}, told | {"x": [1.0]}):
        assert clean_process._difference(told, other)[0] == math.inf


@pytest.mark.slow
def test_code_that_needs_the_package_is_found(release):
    code = release.path / "report_agriclip.py"
    code.write_text("from modeling_agriclip import AgriClipModel\n" + code.read_text())
    assert failed(release.path) == {"code": "report_agriclip.py needs modeling_agriclip, which is not in the folder"}
    check = check_clean_process(release)
    assert not check.passed and "does not load by itself" in check.detail and "modeling_agriclip" in check.detail


@pytest.mark.parametrize(
    ("spoil", "check", "told"),
    [
        (lambda p: (p / "extra.pkl").write_bytes(b"x"), "no pickles", "extra.pkl"),
        (lambda p: (p / "innocent.txt").write_bytes(b"\x80\x04K\x01."), "no pickles", "innocent.txt"),
        (lambda p: torch.save({}, p / "weights.dat"), "no pickles", "weights.dat"),
        (lambda p: (p / "link.md").symlink_to("/etc/hostname"), "no pickles", "link.md (a link)"),
        (lambda p: (p / "LICENSE").unlink(), "complete", "LICENSE is missing"),
        (lambda p: (p / "modeling_agriclip.py").unlink(), "complete", "modeling_agriclip.py is missing"),
        (lambda p: (p / "units_agriclip.py").unlink(), "code", "numbers_agriclip.py needs .units_agriclip"),
        (lambda p: (p / "scope_agriclip.py").write_text("def f(:"), "code", "scope_agriclip.py is no Python"),
        (lambda p: (p / "README.md").write_text("# no head\n"), "card", "no metadata"),
        (lambda p: (p / "README.md").write_text("---\nlicense: x\n---\n"), "card", "lacks library_name, tags"),
        (lambda p: (p / "note.md").write_text("see /home/ada/data"), "no private traces", "note.md"),
        (lambda p: (p / "a.json").write_text('{"x": ["/srv/data/a.tif"]}'), "no private traces", "a.json"),
        (lambda p: (p / "a.json").write_text('{"x": "C:\\\\data"}'), "no private traces", "a.json"),
        (lambda p: (p / "a.json").write_text("{"), "no private traces", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(release, spoil, check, told):
    spoil(release.path)
    found = failed(release.path)
    assert told in found[check]
    with pytest.raises(AgriClipError, match="The release is not in order") as error:
        require(check_files(release.path))
    assert "\n" not in str(error.value) and len(error.value.problems) == len(found)


def test_large_files_are_named(release, monkeypatch):
    monkeypatch.setattr("evaluation.release.checks.MAX_FILE", 1000)
    assert "model.safetensors" in failed(release.path)["sizes"]


def test_a_user_name_is_found_as_part_of_a_path_only(release, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "lovelace")
    (release.path / "a.json").write_text('{"by": "lovelace", "x": "data/lovelace/a.tif"}')
    assert "data/lovelace" in failed(release.path)["no private traces"]
    (release.path / "a.json").write_text('{"by": "lovelace"}')
    assert failed(release.path) == {}


@pytest.mark.parametrize(("spoil", "told"), [("nan", "not finite"), ("double", "configuration says float32")])
def test_weights_are_looked_at(release, spoil, told):
    path = release.path / "members" / "fold_2" / "model.safetensors"
    tensors = load_file(path)
    key = sorted(tensors)[0]
    tensors[key] = tensors[key] * float("nan") if spoil == "nan" else tensors[key].double()
    save_file(tensors, path, metadata={"format": "pt"})
    detail = failed(release.path)["weights"]
    assert told in detail and "members/fold_2/model.safetensors" in detail


def test_entries_must_exist(release):
    config = json.loads((release.path / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "modeling_agriclip.Nothing"
    (release.path / "config.json").write_text(json.dumps(config))
    assert failed(release.path) == {"entries": "AutoModel (modeling_agriclip.Nothing) is named but not there"}


@pytest.mark.slow
def test_single_models_offer_what_they_were_fitted_to(processor, tmp_path):
    for cls, tasks in (
        (AgriClipModel, {"agriclip-zero-shot-image-classification", "agriclip-feature-extraction"}),
        (AgriClipForSemanticSegmentation, {"agriclip-image-segmentation", "agriclip-feature-extraction"}),
    ):  # the second is checked in a clean process
        folder = tmp_path / cls.__name__
        make(cls, processor).save_pretrained(folder)
        processor.save_pretrained(folder)
        made = prepare_release(folder, tmp_path / f"{cls.__name__}-release")
        assert made.kind == "model" and set(made.tasks) == tasks and made.members == ()
    check = check_clean_process(made)
    assert check.passed and "differ by 0;" in check.detail, check.detail


@pytest.fixture
def adapter(fitted, tmp_path) -> Path:
    base = AgriClipForSuitability.from_pretrained(fitted)
    model = add_lora(base, "fusion", rank=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return save_adapter(model, tmp_path / "adapter")


@pytest.mark.slow
def test_an_adapter_needs_a_base_that_others_can_load(adapter, tmp_path, fitted):
    assert kind_of(adapter) == "adapter"
    with pytest.raises(AgriClipError, match="which nobody else can load; publish the base and give its name: --base"):
        prepare_release(adapter, tmp_path / "release")
    made = prepare_release(adapter, tmp_path / "release", base="ada/tiny-soybean")
    assert made.base == "ada/tiny-soybean" and made.base_folder == fitted
    names = {path.name for path in made.path.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "LICENSE"}
    assert str(fitted) not in (made.path / "adapter_config.json").read_text()
    check = check_clean_process(made)
    assert check.passed and "differ by 0;" in check.detail, check.detail
    unknown = open_release(made.path)
    assert unknown.base_folder is None and "not made" in check_clean_process(unknown).detail


def test_bad_folders_are_told(tmp_path, fitted, release):
    with pytest.raises(AgriClipError, match="does not exist"):
        find_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AgriClipError, match="neither a model nor an adapter"):
        find_model(tmp_path / "empty")
    assert find_model(fitted.parent) == fitted
    with pytest.raises(AgriClipError, match="over the fitted folder"):
        prepare_release(fitted, fitted)
    with pytest.raises(AgriClipError, match="over the fitted folder"):
        prepare_release(fitted, fitted.parent)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.docx").write_text("years of work")
    with pytest.raises(AgriClipError, match="holds something that is no release"):
        prepare_release(fitted, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.docx").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(AgriClipError, match="'BertModel', which is no model of AgriCLIP"):
        prepare_release(other, tmp_path / "release2")
    shutil.copytree(fitted, tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(AgriClipError, match="cannot be loaded"):
        prepare_release(tmp_path / "torn", tmp_path / "release3")
    assert not (tmp_path / "release3").exists()


def test_an_earlier_release_is_replaced_whole(release, fitted):
    (release.path / "stale.md").write_text("old")
    again = prepare_release(fitted, release.path)
    assert not (again.path / "stale.md").exists() and not (again.path / "README.md").exists()
