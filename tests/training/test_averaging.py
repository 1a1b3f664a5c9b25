"""The running mean of the weights: against the formula, and put in their place at the end."""

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from processing.study_parts import Training
from training.averaging import WeightAveraging


@pytest.fixture
def run(tmp_path):
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    return model, args, TrainerState(max_steps=10, is_world_process_zero=True), TrainerControl()


def step(averaging, run, number):
    model, args, state, control = run
    state.global_step = number
    with torch.no_grad():
        model.weight.fill_(float(number))
    averaging.on_step_end(args, state, control, model=model)


def test_mean_by_hand_and_in_place_of_the_weights(run):
    model, args, state, control = run
    averaging = WeightAveraging(0.75, begin=0.3)
    bias = model.bias.clone()
    for number in range(1, 6):
        step(averaging, run, number)
    # Steps 1 and 2 are before the mean; 3, then 0.75 * 3 + 0.25 * 4 = 3.25, then 0.75 * 3.25 + 0.25 * 5 = 3.6875.
    averaging.on_train_end(args, state, control, model=model)
    assert torch.equal(model.weight, torch.full((1, 2), 3.6875))
    assert torch.equal(model.bias, bias)


def test_goes_on_from_a_checkpoint(run, tmp_path):
    model, args, state, control = run
    first, second = WeightAveraging(0.5, begin=0.0), WeightAveraging(0.5, begin=0.0)
    for number in range(1, 4):
        step(first, run, number)
    (tmp_path / "checkpoint-3").mkdir()
    first.on_save(args, state, control)
    second.on_train_begin(args, state, control)
    for averaging in (first, second):
        step(averaging, run, 4)
    assert torch.equal(first.mean["weight"], second.mean["weight"])


def test_a_short_fit_without_a_mean_keeps_its_weights(run):
    model, args, state, control = run
    averaging = WeightAveraging(0.5, begin=0.9)
    step(averaging, run, 2)
    averaging.on_train_end(args, state, control, model=model)
    assert torch.equal(model.weight, torch.full((1, 2), 2.0))


def test_excludes_validation():
    with pytest.raises(ValueError, match="leave one away"):
        Training(validation=0.1, average=0.9)
