"""An ensemble is its calibrated members' mean, says how far they disagree, and loads as it was saved."""

import copy
import json
import math

import pytest
import torch

from modeling_agriclip import AgriClipForSuitability
from modeling_agriclip.calibration_agriclip import Calibration, ConformalLevel
from modeling_agriclip.ensemble_agriclip import AgriClipEnsemble, mutual_information

from .conftest import image_inputs, report_inputs

CALIBRATIONS = [
    Calibration("platt", scale=0.5, shift=0.3, fitted_on=100),
    Calibration("isotonic", x=(0.2, 0.6, 0.9), y=(0.1, 0.5, 0.95), epsilon=0.01),
    Calibration(),
]
OF_MEAN = Calibration(
    "temperature", scale=1.4, levels=(ConformalLevel(0.1, (0.6, 0.45), {"kansas": (0.7, 0.4)}),), counts=(50, 40)
)


@pytest.fixture
def members(build):
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        found.append(build(AgriClipForSuitability))
    return found


@pytest.fixture
def batch():
    torch.manual_seed(7)
    return image_inputs(batch=3, height=16, width=16) | report_inputs(batch=3)


@torch.no_grad()
def single(member, batch):
    return member(**batch).probabilities


def assert_equal_outputs(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_mean_of_calibrated_members_and_their_spread(members, batch):
    ensemble = AgriClipEnsemble(members, CALIBRATIONS, OF_MEAN)
    output = ensemble.predict(**batch)
    every = torch.stack([c.apply(single(m, batch)) for m, c in zip(members, CALIBRATIONS, strict=True)])
    assert torch.equal(output.member_probabilities, every)
    assert torch.equal(output.probabilities, OF_MEAN.apply(every.mean(dim=0)))
    p = every.double()
    torch.testing.assert_close(output.std.double(), ((p - p.mean(0)).square().sum(0) / 2).sqrt(), rtol=1e-5, atol=0)
    entropy = [-(q * q.log() + (1 - q) * (1 - q).log()) for q in (p.mean(0), p)]
    torch.testing.assert_close(output.mutual_information.double(), entropy[0] - entropy[1].mean(0), rtol=0, atol=1e-6)
    assert (output.mutual_information > 1e-4).all()
    assert output.share is None
    assert not output.probabilities.requires_grad
    sets = ensemble.prediction_sets(output, 0.1, group="kansas")
    median = OF_MEAN.apply(output.member_probabilities.quantile(0.5, dim=0))
    assert torch.equal(sets, OF_MEAN.prediction_sets(median, 0.1, group="kansas"))
    assert sets.shape == (3, 2)


def test_members_that_agree_tell_nothing_of_each_other(members, batch):
    output = AgriClipEnsemble([members[0], copy.deepcopy(members[0])])(**batch)
    torch.testing.assert_close(output.probabilities, single(members[0], batch))
    assert output.std.abs().max() < 1e-6
    assert (output.mutual_information >= 0).all()
    assert output.mutual_information.max() < 1e-6


def test_mutual_information_has_its_bounds():
    certain = torch.tensor([[0.0, 0.5, 0.3], [1.0, 0.5, 0.3]])
    assert mutual_information(certain).tolist() == pytest.approx([math.log(2), 0.0, 0.0], abs=1e-6)
    many = torch.rand(5, 10_000)
    assert mutual_information(many).min() >= 0
    # Rounding alone would make some of these negative.
    assert mutual_information(many[:1].repeat(3, 1)).min() >= 0


def test_one_member_is_that_member(members, batch):
    output = AgriClipEnsemble(members[:1])(**batch)
    assert torch.equal(output.probabilities, single(members[0], batch))
    assert output.std.tolist() == [0, 0, 0]
    assert output.mutual_information.abs().max() < 1e-6


def test_a_masked_image_leaves_the_answer_to_the_report(members, batch):
    ensemble = AgriClipEnsemble(members, CALIBRATIONS, OF_MEAN)
    mask = torch.ones_like(batch["pixel_values"], dtype=torch.bool)
    mask[1] = False
    output = ensemble(**batch, pixel_mask=mask)
    blind = ensemble(**{key: value for key, value in batch.items() if key in report_inputs(1)})
    assert output.image_valid.tolist() == [1, 0, 1]
    for value in output.values():
        assert value.isfinite().all()
    torch.testing.assert_close(output.probabilities[1], blind.probabilities[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(output.report_probabilities, blind.probabilities, rtol=0, atol=1e-6)
    assert (output.probabilities[[0, 2]] - blind.probabilities[[0, 2]]).abs().min() > 1e-4


def test_labels_are_passed_over_and_encodings_refused(members, batch):
    ensemble = AgriClipEnsemble(members)
    labelled = ensemble(**batch, labels=torch.ones(3), label_weights=torch.ones(3))
    assert_equal_outputs(labelled, ensemble(**batch))
    with pytest.raises(ValueError, match="`text_model_output` belongs to the towers of one member"):
        ensemble(**batch, text_model_output=members[0].text_model(batch["input_ids"]))


def test_members_that_take_turns_answer_alike(members, batch):
    ensemble = AgriClipEnsemble(members, CALIBRATIONS)
    together = ensemble(**batch)
    assert_equal_outputs(ensemble.to("cpu", in_turn=True)(**batch), together)
    # On a device without data only the placement can be seen.
    waiting = ensemble.to("meta", in_turn=True)
    assert waiting.device.type == "meta"
    assert {member.device.type for member in waiting} == {"cpu"}


@pytest.mark.parametrize("likelihood", ["share", "regression"])
def test_other_likelihoods(build, batch, likelihood):
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        members.append(build(AgriClipForSuitability, suitability_likelihood=likelihood))
    output = AgriClipEnsemble(members)(**batch)
    if likelihood == "share":
        with torch.no_grad():
            shares = torch.stack([member(**batch).share for member in members])
        assert torch.equal(output.share, shares.mean(dim=0))
        assert (output.mutual_information >= 0).all()
    else:
        assert output.mutual_information is None
        torch.testing.assert_close(output.probabilities, sum(single(member, batch) for member in members) / 2)
        with pytest.raises(ValueError, match="have no probabilities to calibrate"):
            AgriClipEnsemble(members, calibration=OF_MEAN)


def test_members_that_do_not_belong_together_are_refused(build, members):
    share = build(AgriClipForSuitability, suitability_likelihood="share")
    with pytest.raises(
        ValueError, match="Member 1 predicts by binary likelihood, member 2 a share above 0.02; an ens"
    ):
        AgriClipEnsemble([members[0], share])
    above = build(AgriClipForSuitability, suitability_likelihood="share", share_threshold=0.05)
    with pytest.raises(ValueError, match="Member 1 predicts a share above 0.02, member 2 a share above 0.05"):
        AgriClipEnsemble([share, above])
    with pytest.raises(ValueError, match="at least one member"):
        AgriClipEnsemble([])
    with pytest.raises(ValueError, match="1 calibrations for 3 members"):
        AgriClipEnsemble(members, CALIBRATIONS[:1])
    wide = build(AgriClipForSuitability, vision_config={"hidden_size": 48})
    assert len(AgriClipEnsemble([members[0], wide])) == 2


def test_saved_and_loaded_answer_alike(members, batch, tmp_path):
    ensemble = AgriClipEnsemble(members, CALIBRATIONS, OF_MEAN)
    ensemble.save_pretrained(tmp_path)
    loaded = AgriClipEnsemble.from_pretrained(tmp_path)
    assert loaded.member_calibrations == CALIBRATIONS
    assert loaded.calibration == OF_MEAN
    assert not any(member.training for member in loaded)
    assert_equal_outputs(loaded(**batch), ensemble(**batch))
    # A member is an ordinary model folder, and with its calibration an ensemble of one.
    alone = AgriClipEnsemble.from_pretrained(tmp_path / "members" / "member_1")
    assert torch.equal(alone(**batch).probabilities, CALIBRATIONS[0].apply(single(members[0], batch)))
    # A smaller ensemble saved over it is not joined by the members left from before.
    AgriClipEnsemble(members[1:]).save_pretrained(tmp_path)
    again = AgriClipEnsemble.from_pretrained(tmp_path)
    assert len(again) == 2
    assert again.calibration == Calibration()
    assert_equal_outputs(again(**batch), AgriClipEnsemble(members[1:])(**batch))


def test_folds_of_a_fit_are_its_members_in_order(members, batch, tmp_path):
    # The layout of `fit_study`: the model on all sites, and the folds beside it.
    model = tmp_path / "model"
    members[2].save_pretrained(model)
    for name, member in (("fold_10", members[1]), ("fold_2", members[0])):
        member.save_pretrained(model / "members" / name)
    (model / "members" / "notes").mkdir()
    OF_MEAN.save(model)
    CALIBRATIONS[0].save(model / "members" / "fold_2")
    expected = AgriClipEnsemble(members[:2], [CALIBRATIONS[0], Calibration()], OF_MEAN)(**batch)
    for folder in (tmp_path, model):
        assert_equal_outputs(AgriClipEnsemble.from_pretrained(folder)(**batch), expected)


def test_an_ensemble_on_the_hub_is_fetched_once(members, batch, tmp_path, monkeypatch):
    AgriClipEnsemble(members[:2]).save_pretrained(tmp_path)
    asked = []

    def fetch(name, revision=None):
        asked.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr("modeling_agriclip.ensemble_agriclip.snapshot_download", fetch)
    loaded = AgriClipEnsemble.from_pretrained("someone/soybean", revision="v1")
    assert asked == [("someone/soybean", "v1")]
    assert_equal_outputs(loaded(**batch), AgriClipEnsemble(members[:2])(**batch))


def test_damaged_folders_are_told_in_one_sentence(members, tmp_path):
    AgriClipEnsemble(members[:1]).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "ensemble.json"
    content = json.loads(path.read_text())
    damaged = [
        ("is not JSON", "{"),
        ("`members` is missing", json.dumps({"format": content["format"]})),
        ("`members` is empty", json.dumps(content | {"members": []})),
        ("no model in its member 'members/member_9'", json.dumps(content | {"members": ["members/member_9"]})),
        ("no model in its member '../saved/members", json.dumps(content | {"members": ["../saved/members/member_1"]})),
        ("`format` is not", json.dumps(content | {"format": "zip"})),
    ]
    for message, text in damaged:
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"ensemble\.json' is not an ensemble: .*{message}") as caught:
            AgriClipEnsemble.from_pretrained(tmp_path / "saved")
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps(content))
    (tmp_path / "saved" / "members" / "member_1" / "calibration.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a calibration: `format` is missing"):
        AgriClipEnsemble.from_pretrained(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There is no ensemble in"):
        AgriClipEnsemble.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such folder, nor a repository in reach"):
        AgriClipEnsemble.from_pretrained(tmp_path / "no" / "where")
