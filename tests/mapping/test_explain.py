"""Explanations against direct calls of the networks with the same thing hidden."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mapping.explain import explain_region, explain_site
from mapping.explain_figures import explanation_figure
from mapping.explanation import Contribution, Explanation
from mapping.outputs import write_cog
from mapping.predictor import SuitabilityPredictor
from modeling_agriclip import AgriClipForSuitability, Calibration
from processing.errors import AgriClipError
from processing.study import load_study
from processing.study_data import StudyData
from tests.mapping.toy_study import STUDY, build_study
from training.fit import build_config, build_processor

PLACE = (-90.1, 37.6)
EXTRA = """
imagery:
  - file: image.tif
    channels:
      - {band: 1, kind: index, variable: ndvi, month: 4}
      - {band: 2, kind: index, variable: ndvi, month: 7}
      - {band: 3, kind: cover_fraction, variable: woody_cover, month: 7}
chip: {size: 4}
report: {sentences: ["Heat: annual mean {warmth}.", "Water: {rain} of rain in a year; above 300 m."]}
model: {overrides: {projection_dim: 16, decoder_size: 16}}
"""


def make_explained_study(folder: Path) -> SimpleNamespace:
    """The toy study with imagery of two months, and an ensemble of two networks that nobody has fitted."""
    toy = build_study(folder)
    x, y = toy.grid.cell_centres()
    image = np.stack([np.sin(x), np.cos(y), np.sin(x + y)]).astype("float32")
    image[:, :, :3] = np.nan  # no imagery in the far west
    write_cog(folder / "image.tif", image, toy.grid)
    (folder / "seen.yaml").write_text(STUDY + EXTRA)
    study = load_study(folder / "seen.yaml")
    model, processor = folder / "model", build_processor()
    for name, seed in ((".", 9), ("members/fold_1", 1), ("members/fold_2", 2)):
        torch.manual_seed(seed)
        network = AgriClipForSuitability(build_config(study, processor))
        for key, parameter in network.named_parameters():
            # Windows that leave an image of one cell make the network jump, and no integral follows a jump.
            if not parameter.any() and "window_head" not in key:
                nn.init.normal_(parameter, std=0.2)
        network.save_pretrained(model / name)
    Calibration("platt", scale=1.5, shift=0.3).save(model / "members/fold_1")
    processor.save_pretrained(model)
    data = StudyData(study)
    labels, folds = data.labels(), np.minimum(data.folds(), 1)  # two members, so two folds
    rows = [f"{name},{x},{y},{fold}" for name, x, y, fold in zip(labels.ids, labels.x, labels.y, folds, strict=True)]
    (model / "heldout_predictions.csv").write_text("id,x,y,fold\n" + "\n".join(rows) + "\n")
    predictor = SuitabilityPredictor(model)
    return SimpleNamespace(study=study, data=data, model=model, predictor=predictor, folds=folds)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_explained_study(tmp_path_factory.mktemp("explained"))


@pytest.fixture(scope="module")
def explained(made):
    return explain_site(made.predictor, made.data, *PLACE)


def ask_directly(made, place=PLACE, values=None, mask=None, keep=(0, 1, 2), scores=False):
    """Calibrated answer (2,) of the members to one report and one image, without any of the code under test."""
    data, processor = made.data, made.predictor.processor
    tokens = data.template.tokenise(processor)
    row = data.template.values(data.predictors([place[0]], [place[1]])) if values is None else values
    chips, valid = data.chips([place[0]], [place[1]])
    pixels, valid = processor.image_processor.normalize_values(chips, data.channels, valid)
    shown = torch.as_tensor(valid).bool() & torch.tensor([c in keep for c in range(3)])[None, :, None, None]
    answers = []
    for member in made.predictor.members:
        with torch.no_grad():
            out = member.model(
                input_ids=torch.from_numpy(tokens.input_ids)[None],
                attention_mask=torch.from_numpy(tokens.attention_mask if mask is None else mask)[None],
                numeric_values=torch.from_numpy(tokens.numeric_values(row)),
                pixel_values=torch.as_tensor(pixels, dtype=torch.float32),
                pixel_mask=shown,
                channels=torch.tensor([channel.code() for channel in data.channels]),
                gsd=torch.tensor([data.gsd]),
            )
        chance = out.logits if scores else out.probabilities
        answers.append(float(chance if scores or member.calibration is None else member.calibration.apply(chance)))
    return np.array(answers)


def part_of(explained, kind, name):
    (found,) = [part for part in explained.contributions if (part.kind, part.name) == (kind, name)]
    return found


def check(part, full, without):
    assert part.probability == pytest.approx(without.mean(), abs=2e-6)
    assert part.delta == pytest.approx((full - without).mean(), abs=2e-6)
    assert part.spread == pytest.approx((full - without).std(ddof=1), abs=2e-6)
    logit = [np.log(p / (1 - p)) for p in (full.mean(), without.mean())]
    assert part.delta_logit == pytest.approx(logit[0] - logit[1], abs=3e-5)


def test_answer_is_that_of_the_ensemble(made, explained):
    full = ask_directly(made)
    assert explained.probability == pytest.approx(full.mean(), abs=2e-6)
    assert explained.std == pytest.approx(full.std(ddof=1), abs=2e-6)
    assert explained.report == made.data.template.render(made.data.predictors(*([v] for v in PLACE))[0])


def test_hidden_sentence_equals_a_masked_report(made, explained):
    tokens = made.data.template.tokenise(made.predictor.processor)
    words = made.predictor.processor.tokenizer.convert_ids_to_tokens(tokens.input_ids)
    end = words.index(".")
    for number, hidden in (("1", range(1, end + 1)), ("2", range(end + 1, len(words) - 1))):
        mask = tokens.attention_mask.copy()
        mask[list(hidden)] = 0
        check(part_of(explained, "sentence", number), ask_directly(made), ask_directly(made, mask=mask))
    warmth, rain = made.data.predictors([PLACE[0]], [PLACE[1]])[0]
    assert part_of(explained, "sentence", "1").title == f"Heat: annual mean {warmth:.1f} degC"
    assert part_of(explained, "sentence", "2").title == f"Water: {rain:.0f} mm of rain in a year; above 300 m"


def test_missing_number_equals_nan(made):
    explained = explain_site(made.predictor, made.data, *PLACE, absent="missing", gradients=False, attention=False)
    values = made.data.template.values(made.data.predictors([PLACE[0]], [PLACE[1]]))
    for slot, name in enumerate(("warmth", "rain")):
        gone = values.copy()
        gone[0, slot] = np.nan
        check(part_of(explained, "number", name), ask_directly(made), ask_directly(made, values=gone))
    assert part_of(explained, "number", "rain").told == f"{values[0, 1]:.0f} mm"
    assert any("number_dropout" in note for note in explained.notes)


def test_swapped_number_is_the_mean_over_labelled_sites(made):
    labels = made.data.labels()
    options = {"donors": 8, "seed": 5, "gradients": False, "attention": False}
    explained = explain_site(made.predictor, made.data, *PLACE, **options)
    assert explained.absent == "swapped"  # the study's fit knew no missing numbers
    donors = np.random.default_rng(5).permutation(len(labels))[:8]
    swapped = np.repeat(made.data.template.values(made.data.predictors([PLACE[0]], [PLACE[1]])), 8, axis=0)
    swapped[:, 1] = made.data.template.values(made.data.predictors(labels.x[donors], labels.y[donors]))[:, 1]
    without = np.mean([ask_directly(made, values=row[None]) for row in swapped], axis=0)
    check(part_of(explained, "number", "rain"), ask_directly(made), without)
    other = explain_site(made.predictor, made.data, *PLACE, **options | {"seed": 6})
    assert part_of(other, "number", "rain").probability != part_of(explained, "number", "rain").probability


def test_hidden_bands_and_months_equal_a_masked_image(made, explained):
    full = ask_directly(made)
    names = [channel.name for channel in made.data.channels]
    for index, name in enumerate(names):
        check(part_of(explained, "band", name), full, ask_directly(made, keep=[c for c in range(3) if c != index]))
    check(part_of(explained, "month", "04"), full, ask_directly(made, keep=(1, 2)))
    check(part_of(explained, "month", "07"), full, ask_directly(made, keep=(0,)))
    check(part_of(explained, "image", "image"), full, ask_directly(made, keep=()))
    assert explained.without_image == pytest.approx(ask_directly(made, keep=()).mean(), abs=2e-6)


def test_integrated_gradients_are_complete(made, explained):
    assert explained.score == pytest.approx(ask_directly(made, scores=True).mean(), abs=1e-5)
    shares = {(part.kind, part.name): part.attribution for part in explained.gradients}
    total = sum(share for (kind, _), share in shares.items() if kind in ("number", "band"))
    assert total + explained.baseline_score == pytest.approx(explained.score, abs=2e-4)
    assert explained.completeness_gap == pytest.approx(total - explained.score + explained.baseline_score, abs=1e-5)
    assert abs(explained.score - explained.baseline_score) > 0.05
    # Each sentence tells one number here.
    assert shares["sentence", "1"] == pytest.approx(shares["number", "warmth"], abs=1e-6)
    assert shares["sentence", "2"] == pytest.approx(shares["number", "rain"], abs=1e-6)


def test_path_through_values_is_offered_and_tells_its_gap(made):
    found = explain_site(made.predictor, made.data, *PLACE, path="value", steps=8, attention=False)
    total = sum(part.attribution for part in found.gradients if part.kind in ("number", "band"))
    assert found.completeness_gap == pytest.approx(total - found.score + found.baseline_score, abs=1e-4)


def test_what_the_network_ignores_counts_nothing(made):
    kept = [member.model.image_effect_head.out_proj for member in made.predictor.members]
    before = [(head.weight.detach().clone(), head.bias.detach().clone()) for head in kept]
    try:
        with torch.no_grad():
            for head in kept:
                head.weight.zero_()
                head.bias.zero_()
        blind = explain_site(made.predictor, made.data, *PLACE, attention=False)
    finally:
        with torch.no_grad():
            for head, (weight, bias) in zip(kept, before, strict=True):
                head.weight.copy_(weight)
                head.bias.copy_(bias)
    assert {part.delta for part in blind.of_kind("band", "month", "image")} == {0.0}
    assert {part.attribution for part in blind.gradients if part.kind == "band"} == {0.0}
    assert any(part.delta for part in blind.of_kind("number"))


def test_attention_adds_up_and_leaves_the_network_as_it_was(made, explained):
    assert sum(explained.looked.values()) == pytest.approx(1.0, abs=1e-5)
    assert set(explained.looked) == {"nothing", "ends of the report", "sentence 1", "sentence 2"}
    for member in made.predictor.members:
        layer = member.model.fuser.layers[0].attention
        assert layer.config._attn_implementation != "eager"
        assert not layer._forward_hooks and not member.model.text_model.number_embedding._forward_hooks


def test_region_is_the_mean_of_its_places(made):
    x, y = [PLACE[0], -86.4], [PLACE[1], 40.2]
    options = {"steps": 4}
    region = explain_region(made.predictor, made.data, x, y, **options)
    sites = [explain_site(made.predictor, made.data, *place, **options) for place in zip(x, y, strict=True)]
    assert region.places == 2
    for key in ("probability", "score", "completeness_gap"):
        assert getattr(region, key) == pytest.approx(np.mean([getattr(site, key) for site in sites]))
    for part in region.contributions:
        single = [part_of(site, part.kind, part.name) for site in sites]
        assert part.delta == pytest.approx(np.mean([one.delta for one in single]))
        assert not part.told
    assert [part.title for part in region.contributions if part.kind == "sentence"] == ["Heat", "Water"]
    assert region.sentence.startswith("On average over 2 places the probability")


def test_scenario_and_place_without_imagery(made):
    warm = explain_site(made.model, made.study, *PLACE, "warm", gradients=False, attention=False)
    values = made.data.template.values(made.data.predictors([PLACE[0]], [PLACE[1]], "warm"))
    assert warm.probability == pytest.approx(ask_directly(made, values=values).mean(), abs=2e-6)
    assert " under warm the probability" in warm.sentence
    bare = explain_site(made.predictor, made.data, -94.9, 37.6, steps=4)
    assert not bare.of_kind("band", "month", "image")
    assert bare.probability == bare.without_image
    assert any("no valid imagery" in note for note in bare.notes)


def test_shown_as_json_table_and_picture(made, explained, tmp_path):
    told = json.loads(json.dumps(explained.as_dict()))
    assert told["sentence"] == explained.sentence and len(told["contributions"]) == len(explained.contributions)
    console = Console(width=200, record=True, file=open(tmp_path / "log", "w"))
    console.print(explained.table())
    text = console.export_text()
    assert "annual rain" in text and "April, all bands" in text and "without it" in text
    path = explanation_figure(explained, tmp_path / "why.png")
    assert path.stat().st_size > 20_000 and [file.name for file in tmp_path.glob("*.png")] == ["why.png"]


def made_up(probability, *deltas):
    parts = tuple(
        Contribution("number", f"v{i}", f"thing {i}", "1 mm", 0.5, delta, logit, 0.0)
        for i, (delta, logit) in enumerate(deltas)
    )
    return Explanation(1, 10.0, 50.0, None, probability, 0.0, probability, "", parts, "swapped")


def test_sentence_says_what_spoke_for_and_against():
    found = made_up(0.7, (0.2, 1.0), (-0.05, -0.3), (0.001, 0.0), (0.3, 1.5)).sentence
    assert found == (
        "At 10, 50 the probability of suitability is 70.0 %; for it spoke: thing 3 1 mm (+30.0 points), thing 0 1 mm "
        "(+20.0 points); against it: thing 1 1 mm (-5.0 points)."
    )
    assert made_up(1e-6, (-1e-7, -2.0)).sentence == (
        "At 10, 50 the probability of suitability is below 0.1 %; against it: thing 0 1 mm (-2.00 on the logit scale)."
    )
    assert made_up(0.5).sentence.endswith("50.0 %; no single number or band moves it.")


def test_captum_is_asked_for_in_a_sentence(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(AgriClipError, match=r"agriclip\[explain\]"):
        explain_site(made.predictor, made.data, *PLACE)
    assert explain_site(made.predictor, made.data, *PLACE, gradients=False, attention=False).gradients is None


@pytest.mark.parametrize(
    ("place", "options", "said"),
    [
        ((-120.0, 37.0), {}, "no value of warmth, rain at -120, 37"),
        ((-94.9, 41.9), {}, "no value of warmth at"),
        (([], []), {}, "at least 1"),
        (([1.0, 2.0], [1.0]), {}, "one length"),
        (PLACE, {"absent": "mising"}, "did you mean 'missing'"),
        (PLACE, {"path": "values"}, "did you mean 'value'"),
        (PLACE, {"scenario": "warn"}, "did you mean 'warm'"),
    ],
)
def test_bad_input(made, place, options, said):
    with pytest.raises(AgriClipError, match=said):
        explain_region(made.predictor, made.data, *place, **options)
