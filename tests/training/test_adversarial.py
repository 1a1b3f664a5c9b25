"""The attack moves inputs by what their sensor may err, uphill, and leaves no trace in the model."""

import copy

import pytest
import torch

from processing.sensors_agriclip import ChannelSpec, get_sensor
from tests.training.small_model import SENSOR, model_of
from training.adversarial import OTHER_NOISE, REFLECTANCE_FLOOR, REFLECTANCE_SLOPE, Attack, SensorNoise


def prediction_of(model, batch):
    model.eval()
    with torch.no_grad():
        return model(**batch).loss_dict["prediction"]


def test_an_attack_raises_the_loss(batch):
    model = model_of("paper_f22")
    moved = Attack(SensorNoise(SENSOR.channels), torch.full((9,), 1e-3))(model, batch)
    plain = {key: value for key, value in batch.items() if key not in ("noise", "detection_labels")}
    before = prediction_of(model, plain)
    names = {"pixel_values": "attacked_pixel_values", "numeric_values": "attacked_numeric_values"}
    for changed in (["pixel_values"], ["numeric_values"], ["pixel_values", "numeric_values"]):
        after = prediction_of(model, plain | {name: moved[names[name]] for name in changed})
        assert after > before, changed


def test_pixels_move_by_the_noise_of_their_band(batch):
    model = model_of("paper_f22")
    moved = Attack(SensorNoise(SENSOR.channels))(model, batch)
    assert set(moved) == {"attacked_pixel_values"}
    step = (moved["attacked_pixel_values"] - batch["pixel_values"]).abs()
    assert step[~batch["pixel_mask"]].max() == 0
    for band, spec in enumerate(SENSOR.channels):
        if spec.kind != "reflectance":
            continue
        reflectance = batch["pixel_values"][:, band] * spec.std + spec.mean
        expected = (REFLECTANCE_FLOOR + REFLECTANCE_SLOPE * reflectance.abs()) / spec.std
        inside = (
            (reflectance - spec.valid_min > 0.1) & (reflectance < spec.valid_max - 0.1) & batch["pixel_mask"][:, band]
        )
        # The place without a label has nothing to climb.
        inside[3] = False
        assert inside.any()
        torch.testing.assert_close(step[:, band][inside], expected[inside], atol=1e-5, rtol=1e-4)
    assert step[3].max() == 0


def test_the_valid_range_is_kept(batch):
    model = model_of("paper_f22")
    spec = ChannelSpec("red", "reflectance", wavelength_nm=655, mean=0.1, std=0.1, valid_min=0.0, valid_max=0.2)
    one = batch | {
        "channels": torch.tensor([spec.code()]).expand(4, 1, 4),
        "pixel_values": torch.linspace(-1, 1, 256).reshape(4, 1, 8, 8),
        "pixel_mask": torch.ones(4, 1, 8, 8, dtype=torch.bool),
    }
    moved = Attack(SensorNoise([spec]), strength=50.0)(model, one)["attacked_pixel_values"]
    assert moved.min() >= -1 - 1e-6 and moved.max() <= 1 + 1e-6
    assert (moved[:3] - one["pixel_values"][:3]).abs().mean() > 0.5
    # What lies outside already is not pulled in by an attack that cannot step further out.
    one["pixel_values"] = torch.full((4, 1, 8, 8), 3.0)
    assert Attack(SensorNoise([spec]))(model, one)["attacked_pixel_values"].max() <= 3.0


def test_missing_numbers_and_channels_without_a_sensor(batch):
    model = model_of("paper_f22")
    batch["numeric_values"][0, 0] = torch.nan
    moved = Attack(SensorNoise(()), torch.full((9,), 0.1))(model, batch)
    assert torch.equal(moved["attacked_numeric_values"].isnan(), batch["numeric_values"].isnan())
    step = (moved["attacked_pixel_values"] - batch["pixel_values"]).abs()
    assert step.max() == pytest.approx(OTHER_NOISE, rel=1e-4)


def test_no_trace_in_the_parameters(batch):
    model = model_of("paper_f22")
    attack = Attack(SensorNoise(SENSOR.channels), torch.full((9,), 0.1))
    before = copy.deepcopy(model.state_dict())
    weights = {name: value for name, value in vars(model.config).items() if name.endswith("_weight")}
    moved = attack(model, batch)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert weights == {name: value for name, value in vars(model.config).items() if name.endswith("_weight")}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(value.requires_grad for value in moved.values())

    # Gradients of a loss that was already there are those of that loss alone, whether or not an attack came between.
    def gradients(with_attack):
        model.zero_grad()
        loss = model(**batch).loss
        if with_attack:
            attack(model, batch)
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_dated_images_are_attacked_a_date_at_a_time(batch):
    model = model_of("paper_f22")
    dated = batch | {
        "pixel_values": batch["pixel_values"].unsqueeze(1).repeat(1, 3, 1, 1, 1),
        "pixel_mask": batch["pixel_mask"].unsqueeze(1).repeat(1, 3, 1, 1, 1),
        "dates": torch.tensor([[10, 100, 200]]).repeat(4, 1),
    }
    moved = Attack(SensorNoise(get_sensor("landsat8").channels))(model, dated)["attacked_pixel_values"]
    assert moved.shape == dated["pixel_values"].shape
    assert (moved != dated["pixel_values"])[:3].any(dim=(0, 2, 3, 4)).all()
