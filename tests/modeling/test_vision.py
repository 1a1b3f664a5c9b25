"""What is masked is absent, what is permuted is the same, and any sensor goes in."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_agriclip import AgriClipConfig, AgriClipVisionModel

from .conftest import image_inputs

TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture
def model(build):
    return build(AgriClipVisionModel)


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs)


def assert_same(one, other):
    torch.testing.assert_close(one.last_hidden_state, other.last_hidden_state, **TOLERANCE)
    torch.testing.assert_close(one.pooler_output, other.pooler_output, **TOLERANCE)


def test_channel_order_does_not_matter(model):
    inputs, order = image_inputs(), torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = inputs | {"pixel_values": inputs["pixel_values"][:, :, order], "channels": inputs["channels"][:, order]}
    assert_same(run(model, inputs), run(model, shuffled))


def test_channel_description_does_matter(model):
    inputs = image_inputs()
    other = inputs | {"channels": inputs["channels"].flip(1)}
    assert not torch.allclose(run(model, inputs).last_hidden_state, run(model, other).last_hidden_state, atol=1e-2)


def test_masked_band_is_absent_band(model):
    inputs = image_inputs()
    mask = torch.ones_like(inputs["pixel_values"])
    mask[:, :, 3] = 0
    keep = [0, 1, 2, 4, 5]
    without = inputs | {"pixel_values": inputs["pixel_values"][:, :, keep], "channels": inputs["channels"][:, keep]}
    assert_same(run(model, inputs | {"pixel_mask": mask}), run(model, without))


@pytest.mark.parametrize("dates", [2, 3])
def test_masked_date_is_absent_date(model, dates):
    inputs = image_inputs(dates=dates)
    mask = torch.ones_like(inputs["pixel_values"])
    mask[:, -1] = 0
    without = inputs | {"pixel_values": inputs["pixel_values"][:, :-1], "dates": inputs["dates"][:, :-1]}
    assert_same(run(model, inputs | {"pixel_mask": mask}), run(model, without))


def test_one_date_is_the_same_in_training_and_evaluation(model):
    inputs = image_inputs(dates=1)
    expected = run(model, inputs)
    assert_same(run(model.train(), inputs), expected)


def test_value_of_a_masked_pixel_does_not_matter(model):
    inputs = image_inputs()
    mask = torch.rand_like(inputs["pixel_values"]) > 0.3
    expected = run(model, inputs | {"pixel_mask": mask.long()})
    for filler in (0.0, 1e6, torch.nan):
        filled = torch.where(mask, inputs["pixel_values"], filler)
        assert_same(run(model, inputs | {"pixel_mask": mask.long(), "pixel_values": filled}), expected)


@pytest.mark.parametrize("size", [(33, 41), (48, 48), (64, 128)])
def test_masked_padding_is_absent(model, size):
    inputs = image_inputs()
    padded = torch.randn(2, 2, 6, *size)
    padded[..., :32, :40] = inputs["pixel_values"]
    mask = torch.zeros_like(padded)
    mask[..., :32, :40] = 1
    one, other = run(model, inputs), run(model, inputs | {"pixel_values": padded, "pixel_mask": mask})
    columns = -(-size[1] // 4)
    inside = other.last_hidden_state.unflatten(1, (-1, columns))[:, :8, :10].flatten(1, 2)
    torch.testing.assert_close(inside, one.last_hidden_state, **TOLERANCE)
    torch.testing.assert_close(other.pooler_output, one.pooler_output, **TOLERANCE)
    assert other.last_hidden_state[other.cell_mask == 0].abs().max() == 0


def test_everything_masked_is_finite_and_flagged(model):
    inputs = image_inputs()
    mask = torch.ones_like(inputs["pixel_values"])
    mask[1] = 0
    output = run(model, inputs | {"pixel_mask": mask})
    assert output.image_valid.tolist() == [1, 0]
    assert all(value.isfinite().all() for value in output.values() if torch.is_tensor(value))
    assert output.last_hidden_state[1].abs().max() == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (17, 5), (31, 33)])
def test_odd_and_narrow_images(model, size):
    output = run(model, image_inputs(height=size[0], width=size[1]))
    assert output.last_hidden_state.shape[1] == -(-size[0] // 4) * -(-size[1] // 4)
    assert output.last_hidden_state.isfinite().all()


def test_ground_sample_distance_matters(model):
    inputs = image_inputs()
    coarse = run(model, inputs | {"gsd": torch.full((2,), 250.0)})
    assert not torch.allclose(run(model, inputs).pooler_output, coarse.pooler_output, atol=1e-4)


def test_scale_weights_start_equal_and_sum_to_one(model):
    output = run(AgriClipVisionModel(model.config).eval(), image_inputs())
    torch.testing.assert_close(output.scale_weights, torch.full_like(output.scale_weights, 1 / 3))
    shaken_weights = run(model, image_inputs()).scale_weights
    torch.testing.assert_close(shaken_weights.sum(-1), torch.ones(2, 80))
    assert shaken_weights.std() > 0


def test_hidden_states_shrink_and_widen(model):
    states = run(model, image_inputs() | {"output_hidden_states": True}).hidden_states
    assert [tuple(state.shape) for state in states] == [(2, 8, 10, 48), (2, 8, 10, 48), (2, 4, 5, 96)]


@pytest.mark.parametrize(("size", "edge"), [("tiny", 96), ("tiny", 128), ("small", 128), ("small", 256)])
def test_three_scales_cost_little_more_than_one(size, edge):
    inputs, flops = image_inputs(batch=1, dates=1, height=edge, width=edge), []
    for scales in (1, 3):
        config = AgriClipConfig.from_size(size, vision_config={"num_scales": scales}).vision_config
        model = AgriClipVisionModel(config).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs)
        flops.append(counter.get_total_flops())
    assert flops[1] <= 1.34 * flops[0]


def test_sizes_keep_their_promises():
    def count(size):
        model = AgriClipVisionModel(AgriClipConfig.from_size(size).vision_config)
        return sum(parameter.numel() for parameter in model.parameters())

    assert count("tiny") < 2e6
    assert count("small") < 8e6


def test_missing_channels_are_refused(model):
    inputs = image_inputs()
    with pytest.raises(ValueError, match="`channels` is required"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="describes 5 channels, but `pixel_values` has 6"):
        model(pixel_values=inputs["pixel_values"], channels=inputs["channels"][:, :5])
