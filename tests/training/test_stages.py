"""Two stages, starts from a model, adapters, schedules, early stopping: what a study's `training` asks for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from mapping.outputs import read_map
from mapping.predict import map_study
from modeling_agriclip import AgriClipConfig, AgriClipForPreTraining, AgriClipForSuitability
from processing.errors import AgriClipError
from processing.study import load_study
from processing.study_data import StudyData
from processing.study_parts import Training
from training.fit import build_config, build_processor, fit_study
from training.single_fit import FitJob, FitTask, make_trainer, run_fit, split_sites
from training.study_dataset import SiteNoise, SuitabilityDataset, read_sites
from training.unlabelled import sample_unlabelled

SMALL = {
    "vision_config": {"stage_depths": (1, 1), "stage_sizes": (12, 24), "stage_heads": (2, 4), "hidden_size": 24},
    "text_config": {"encoder_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}},
}


def study_of(landscape, **training):
    study = load_study(landscape)
    return study.model_copy(
        update={
            "training": study.training.model_copy(update=training),
            "model": study.model.model_copy(update={"overrides": SMALL}),
        }
    )


@pytest.fixture
def task_of(landscape, tmp_path):
    def make(**training):
        study = study_of(landscape, **training)
        data, processor = StudyData(study), build_processor()
        table = data.labels()
        task = FitTask(
            study=study,
            sites=read_sites(data, processor, table.x, table.y),
            config=build_config(study, processor),
            labels=table.share,
            weights=table.weight / table.weight.mean(),
            epochs=2,
            blocks=data.blocks(),
            channels=tuple(data.channels),
            checkpoint_seconds=1e9,
        )
        job = FitJob("Fitting", data.folds() != 0, 0, tmp_path / "model", tmp_path / "scratch")
        return task, job

    return make


def silent(step, steps, logs=None):
    pass


def test_pretraining_sees_unlabelled_places_and_its_weights_are_fitted_on(landscape, tmp_path, monkeypatch):
    seen = []
    load = AgriClipForSuitability.from_pretrained.__func__

    def watched(cls, start, *args, **kwargs):
        if Path(start).name == "pretrained":
            config = AgriClipConfig.from_pretrained(start)
            seen.append((config.architectures, load_file(Path(start) / "model.safetensors")))
        return load(cls, start, *args, **kwargs)

    monkeypatch.setattr(AgriClipForSuitability, "from_pretrained", classmethod(watched))
    study = study_of(landscape, members=1, pretraining_epochs=2, learning_rate=1e-9, weight_decay=0.0)
    result = fit_study(study, tmp_path, epochs=1, quiet=True)
    [(architectures, pretrained)] = seen
    assert architectures == ["AgriClipForPreTraining"]
    assert any(name.startswith("decoder.") for name in pretrained)
    fitted = load_file(Path(result["model_dir"]) / "model.safetensors")
    shared = [name for name in fitted if name.split(".")[0] in ("vision_model", "text_model", "fuser")]
    assert len(shared) > 50
    for name in shared:  # the learning rate was next to nothing
        torch.testing.assert_close(fitted[name], pretrained[name], atol=1e-6, rtol=1e-5)


def test_words_are_masked_and_asked_for(landscape, task_of):
    task, job = task_of(pretraining_epochs=1, weights={"masked_language": 0.5})
    asked = []
    forward = AgriClipForPreTraining.forward

    def watched(self, **inputs):
        output = forward(self, **inputs)
        asked.append((inputs["language_labels"], inputs["input_ids"], output.loss_dict["masked_language"]))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AgriClipForPreTraining, "forward", watched)
        trainer = make_trainer(task, job, silent)
    labels, tokens = (torch.cat([entry[i] for entry in asked]) for i in (0, 1))
    words = (task.sites.clauses > 0) & (task.sites.input_ids != build_processor().num_token_id)
    masked = labels != -100
    assert masked[:, ~words].sum() == 0
    assert masked[:, words].float().mean() == pytest.approx(0.15, abs=0.03)
    assert (tokens[masked] == build_processor().tokenizer.mask_token_id).all()
    assert (torch.where(masked, labels, tokens) == task.sites.input_ids).all()
    assert all(torch.isfinite(loss) for *_, loss in asked)
    # The fit that follows has nothing to do with it.
    assert "language_labels" not in trainer.train_dataset[0]


def test_unlabelled_places_share_the_fold_of_their_block(landscape):
    data = StudyData(load_study(landscape))
    table, folds = data.labels(), data.folds()
    extra = sample_unlabelled(data, table, folds, 200, seed=0)
    assert len(extra.x) == 200
    size = data.study.splits.size
    block = {(y // size, x // size): fold for x, y, fold in zip(table.x, table.y, folds, strict=True)}
    for x, y, fold in zip(extra.x, extra.y, extra.fold, strict=True):
        assert block.get((y // size, x // size), -1) == fold
    job = FitJob("", folds != 1, 0, Path(), Path())
    assert (extra.seen_by(job, folds) == (extra.fold != 1)).all()
    assert 0 < extra.seen_by(job, folds).sum() < 200


@pytest.mark.parametrize("unlabelled", [0.0, 0.5])
def test_unlabelled_places_are_mixed_in_only_when_asked_for(landscape, task_of, unlabelled):
    task, job = task_of(unlabelled=unlabelled)
    task.labels[::3] = np.nan
    trainer = make_trainer(task, job, silent)
    labels = torch.stack([trainer.train_dataset[i]["labels"] for i in range(len(trainer.train_dataset))])
    assert labels.isnan().any() == bool(unlabelled)
    run_fit(task, job, silent)
    assert all(torch.isfinite(x).all() for x in load_file(job.folder / "model.safetensors").values())


def test_a_fit_starts_from_a_model(landscape, tmp_path):
    first = fit_study(study_of(landscape, members=1), tmp_path / "first", epochs=1, quiet=True)
    study = study_of(landscape, members=1, start=first["model_dir"], learning_rate=1e-9, weight_decay=0.0)
    with pytest.raises(AgriClipError, match="leave `model.overrides` away"):
        fit_study(study, tmp_path / "second", epochs=1, quiet=True)
    study = study.model_copy(update={"model": study.model.model_copy(update={"overrides": {}})})
    second = fit_study(study, tmp_path / "second", epochs=1, quiet=True)
    before, after = (load_file(Path(r["model_dir"]) / "model.safetensors") for r in (first, second))
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=1e-5)
    with pytest.raises(AgriClipError, match="is neither a model folder nor a model on the Hub"):
        fit_study(study_of(landscape, start=str(tmp_path / "nowhere")), tmp_path / "third", quiet=True)


@pytest.mark.parametrize("pretraining_epochs", [0, 1])
def test_a_fit_starts_from_a_sentence_encoder(landscape, tiny_encoder, tmp_path, pretraining_epochs):
    still = {"learning_rate": 1e-9, "weight_decay": 0.0, "members": 1, "pretraining_epochs": pretraining_epochs}
    study = study_of(landscape, report_encoder=str(tiny_encoder), **still)
    result = fit_study(study, tmp_path, epochs=1, quiet=True)
    given = load_file(tiny_encoder / "model.safetensors")
    found = load_file(Path(result["model_dir"]) / "model.safetensors")
    name = "encoder.layer.1.attention.output.dense.weight"
    torch.testing.assert_close(found[f"text_model.encoder.{name}"], given[name], atol=1e-6, rtol=1e-5)
    processor = AutoProcessor.from_pretrained(result["model_dir"])
    words = "embeddings.word_embeddings.weight"
    assert len(processor.tokenizer) == len(found[f"text_model.encoder.{words}"]) < len(given[words])
    maps = map_study(study, result["model_dir"], tmp_path, scenarios=[], quiet=True)
    assert np.isfinite(read_map(maps["present"]["probability"])).any()


def test_a_start_brings_its_own_report_encoder():
    with pytest.raises(ValueError, match="leave `report_encoder` away"):
        Training(start="model", report_encoder="all-MiniLM-L6-v2")


@pytest.mark.parametrize("tuning", ["lora", "frozen"])
def test_only_adapters_and_heads_are_fitted(task_of, tmp_path, tuning):
    if tuning == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    task, job = task_of(tuning=tuning)
    torch.manual_seed(0)
    trainer = make_trainer(task, job, silent)
    before = {name: x.clone() for name, x in trainer.model.named_parameters()}
    trainable = {name for name, x in trainer.model.named_parameters() if x.requires_grad}
    assert 0 < len(trainable) < len(before)
    trainer.train()
    changed = {name for name, x in trainer.model.named_parameters() if not torch.equal(x, before[name])}
    assert changed <= trainable and changed
    run_fit(task, job, silent)
    model = AgriClipForSuitability.from_pretrained(job.folder).eval()
    if tuning == "lora":
        assert (job.folder / "adapter" / "adapter_model.safetensors").exists()
        assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"schedule": "cosine"}, lambda rates: rates[-1] < 0.01 * max(rates)),
        (
            {"schedule": "step", "step_epochs": 2},
            lambda rates: {round(r / max(rates), 3) for r in rates} == {1.0, 0.1},
        ),
        (
            {"schedule": "plateau", "validation": 0.2, "learning_rate": 1e-6},
            lambda rates: min(rates) < 0.2 * max(rates),
        ),
    ],
)
def test_schedules(task_of, training, expected):
    task, job = task_of(**training)
    trainer = make_trainer(replace(task, epochs=4), job, silent)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert expected(rates), rates


def test_early_stopping_watches_whole_blocks(task_of):
    task, job = task_of(validation=0.25, patience=1, learning_rate=1e-12)
    split = split_sites(task, job)
    assert not set(task.blocks[split.fitted]) & set(task.blocks[split.watched])
    assert 0.15 < len(split.watched) / job.inside.sum() < 0.5
    trainer = make_trainer(replace(task, epochs=9), job, silent)
    trainer.train()
    assert trainer.state.epoch <= 3  # nothing is learnt, so the second look is no better than the first
    log = [entry for entry in trainer.state.log_history if "eval_log_loss" in entry]
    model = trainer.model.eval()
    rows = [task.dataset(split.watched)[i] for i in range(len(split.watched))]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0] if "label" not in key}
    with torch.no_grad():
        chance = model(**batch).probabilities
    labels = torch.stack([row["labels"] for row in rows])
    expected = torch.nn.functional.binary_cross_entropy(chance, labels)
    assert log[-1]["eval_log_loss"] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patience": 3}, "`patience` needs blocks to watch"),
        ({"schedule": "plateau"}, "`schedule: plateau` needs blocks to watch"),
        ({"weights": {"masked_language": 0.1}}, "belongs to the first stage"),
        ({"start": "somewhere", "pretraining_epochs": 2}, "leave `pretraining_epochs` away"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Training(**fields)


def test_noise_belongs_to_seed_epoch_and_site(landscape):
    data = StudyData(load_study(landscape))
    table = data.labels()
    sites = read_sites(data, build_processor(), table.x, table.y)
    noise = SiteNoise(0.3, 0.4, 0.2, torch.ones(sites.numeric_values.shape[1]), 0.1, 0.5, True)
    forwards = SuitabilityDataset(sites, table.share, table.weight, np.arange(20), noise, seed=3)
    backwards = SuitabilityDataset(sites, table.share, table.weight, np.arange(20)[::-1], noise, seed=3)

    def same(a, b):
        return all(torch.equal(torch.nan_to_num(a[key]), torch.nan_to_num(b[key])) for key in a)

    first = [forwards[i] for i in range(20)]
    assert all(same(first[i], backwards[19 - i]) for i in range(20))
    assert not any(
        same(first[i], SuitabilityDataset(sites, table.share, table.weight, np.arange(20), noise, seed=4)[i])
        for i in range(3)
    )
    forwards.set_epoch(1)
    assert not any(same(first[i], forwards[i]) for i in range(20))
    # Whole clauses are silent, and never all of them.
    masks = torch.stack([row["attention_mask"] for row in first])
    for clause in range(1, int(sites.clauses.max()) + 1):
        of_clause = masks[:, sites.clauses == clause]
        assert ((of_clause == of_clause[:, :1]).all(dim=1)).all()
    assert masks[:, sites.clauses == 0].all()
    assert (masks[:, sites.clauses > 0].sum(dim=1) > 0).all() and not masks.all()
