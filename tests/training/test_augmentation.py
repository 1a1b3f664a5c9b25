"""Changes keep image, validity and labels together, never touch the gsd, and follow their seed."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from processing.errors import AgriClipError
from training.augmentation import Augmentation, tile_generator


def sample(dates=3, bands=4, height=8, width=8):
    """A tile in which every pixel, its validity and its code tell where it was."""
    place = torch.arange(height * width).reshape(height, width)
    valid = (place % 3 != 0).expand(dates, bands, height, width).clone()
    return {
        "pixel_values": torch.where(valid, place.float() + 1, 0.0),
        "pixel_mask": valid,
        "codes": place,
        "channels": torch.arange(4 * bands).reshape(bands, 4),
        "gsd": torch.tensor(30.0),
        "dates": torch.tensor([10, 100, 0][:dates]),
    }


def draws(augmentation, count=60, **options):
    return [augmentation(sample(**options), tile_generator(0, 0, str(i))) for i in range(count)]


def assert_aligned(found):
    codes, valid = found["codes"], found["pixel_mask"]
    assert found["pixel_values"].shape[-2:] == codes.shape == valid.shape[-2:]
    assert torch.equal(valid, (codes % 3 != 0).expand_as(valid))
    assert torch.equal(found["pixel_values"], torch.where(valid, codes.float() + 1, 0.0))


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_image_validity_and_labels_turn_together(size):
    found = draws(Augmentation.none(flip=0.5, rotate=0.75), height=size[0], width=size[1])
    for one in found:
        assert_aligned(one)
    # all eight places that a square can be put in
    assert len({tuple(one["codes"].flatten().tolist()) for one in found}) == 8


def test_a_crop_is_cut_from_all_alike():
    found = draws(Augmentation.none(crop=5, flip=0.5))
    assert all(one["codes"].shape == (5, 5) for one in found)
    for one in found:
        assert_aligned(one)
    assert len({int(one["codes"].min()) for one in found}) == 16
    assert draws(Augmentation.none(crop=50), count=1)[0]["codes"].shape == (8, 8)


def test_gsd_channels_and_the_tile_itself_stay():
    augmentation = Augmentation(
        crop=4, flip=1.0, rotate=1.0, shift_dates=1.0, noise=1.0, drop_bands=1.0, drop_dates=1.0, drop_pixels=1.0
    )
    before, given = sample(), sample()
    found = augmentation(given, tile_generator(1, 2, "a"))
    for name, tensor in before.items():
        assert torch.equal(given[name], tensor), name
    assert found["gsd"] == 30 and torch.equal(found["channels"], before["channels"])


def test_nothing_is_drawn_when_every_probability_is_zero():
    found, expected = Augmentation.none()(sample(), tile_generator(0, 0, "a")), sample()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_dates_move_together_and_undated_stays():
    found = [one["dates"] for one in draws(Augmentation.none(shift_dates=1.0, shift_days=5))]
    moves = {int(dates[0]) - 10 for dates in found}
    assert moves == set(range(-5, 6))
    assert all(int(dates[1] - dates[0]) == 90 and int(dates[2]) == 0 for dates in found)


def test_a_dated_image_never_becomes_undated():
    tile = sample() | {"dates": torch.tensor([3, 2, 0])}
    augmentation = Augmentation.none(shift_dates=1.0, shift_days=5)
    found = [augmentation(tile, tile_generator(0, 0, str(i)))["dates"] for i in range(60)]
    assert all((dates[:2] != 0).all() for dates in found)


@pytest.mark.parametrize(
    ("changes", "dim"), [({"drop_bands": 1.0, "band_share": 1.0}, 1), ({"drop_dates": 1.0, "date_share": 1.0}, 0)]
)
def test_never_all_bands_or_dates_are_dropped(changes, dim):
    for one in draws(Augmentation.none(**changes)):
        left = one["pixel_mask"].transpose(0, dim).flatten(1).any(dim=1)
        assert left.sum() == 1
        assert not one["pixel_values"][~one["pixel_mask"]].any()


def test_the_only_measured_date_is_not_dropped():
    tile = sample()
    tile["pixel_mask"][1:] = False
    found = Augmentation.none(drop_dates=1.0)(tile, tile_generator(0, 0, "a"))
    assert torch.equal(found["pixel_mask"], tile["pixel_mask"])


def test_pixels_are_hidden_at_all_bands_and_dates_alike():
    found = draws(Augmentation.none(drop_pixels=1.0, pixel_share=1.0))
    hidden = [(sample()["pixel_mask"] & ~one["pixel_mask"]) for one in found]
    assert all(torch.equal(one, one[:1, :1].expand_as(one)) for one in hidden)
    assert any(one.any() for one in hidden) and all(one["pixel_mask"].any() for one in found)


def test_noise_is_a_gain_and_an_offset_a_band():
    tile, found = sample(), draws(Augmentation.none(noise=1.0), count=1)[0]
    before, after = tile["pixel_values"][0, 0], found["pixel_values"][0, 0]
    valid = tile["pixel_mask"][0, 0]
    slope = torch.diff(after[valid]) / torch.diff(before[valid])
    assert slope.std() < 1e-3 and abs(float(slope.mean()) - 1) > 1e-4
    assert not after[~valid].any()


def test_seed_epoch_and_tile_decide():
    augmentation = Augmentation(noise=1.0)

    def pixels(*identity):
        return augmentation(sample(), tile_generator(*identity))["pixel_values"]

    assert torch.equal(pixels(0, 0, "a"), pixels(0, 0, "a"))
    for other in ((1, 0, "a"), (0, 1, "a"), (0, 0, "b")):
        assert not torch.equal(pixels(0, 0, "a"), pixels(*other))


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"rotate": "often"}, {"crop": -1}, {"shift_days": 0.5}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(StrictDataclassError):
        Augmentation(**wrong)


def test_unknown_setting_is_named():
    with pytest.raises(AgriClipError, match="no field 'flips'"):
        Augmentation.none(flips=1.0)
