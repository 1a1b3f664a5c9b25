"""Batches of the released checkpoint: the same by number, questions that fit their labels, seasons that add up."""

import numpy as np
import pytest
import torch

from processing.captions.crops import find_crop
from processing.image_processing_agriclip import AgriClipImageProcessor
from processing.processing_agriclip import AgriClipProcessor
from processing.vocabulary import REST, default_tokenizer
from training.release.phrases import PhraseBatches
from training.release.series import ASKED, DAYS, TARGETS, YEAR, SeriesBatches, draw_places
from training.release.tiles import COMMON, IGNORE, TileBatches, Tiles


@pytest.fixture(scope="module")
def processor():
    return AgriClipProcessor(AgriClipImageProcessor(), default_tokenizer())


@pytest.fixture(scope="module")
def tiles():
    rng = np.random.default_rng(0)
    codes = rng.choice([5, 176, 23, 1, 195, 111, 42, 121, 0], size=(12, 16, 16)).astype(np.uint8)
    # The first band says the code, so that pixels and labels can be matched after turning and mirroring.
    pixels = torch.from_numpy(np.stack([codes / 100, codes * 0, codes * 0], axis=1).astype(np.float16))
    return Tiles(
        pixels=pixels,
        valid=torch.ones_like(pixels, dtype=torch.bool),
        codes=torch.from_numpy(codes),
        channels=torch.tensor([[0, 480, 0, 0], [0, 560, 0, 0], [0, 655, 0, 0]]),
        names=tuple(str(i) for i in range(12)),
        folds=np.arange(12) % 5,
        captions=tuple((f"tile {i}",) for i in range(12)),
    )


def test_a_batch_depends_on_its_number_only(tiles, processor):
    first, second = TileBatches(tiles, processor, 4, seed=3), TileBatches(tiles, processor, 4, seed=3)
    second(0)
    for name, value in first(5).items():
        assert torch.equal(value, second(5)[name])
    assert not torch.equal(first(4)["labels"], first(5)["labels"])


def test_every_tile_once_an_epoch(tiles, processor):
    source = TileBatches(tiles, processor, 4)
    assert source.steps_an_epoch() == 3
    seen = []
    for number in range(3, 6):
        texts = source(number)["input_ids"][int(source(number)["prompts"]) :]
        seen += [processor.tokenizer.decode(row, skip_special_tokens=True) for row in texts]
    assert len(seen) == 12


def test_questions_fit_their_labels(tiles, processor):
    source = TileBatches(tiles, processor, 4)
    kinds = set()
    for number in range(40):
        rng = np.random.default_rng(number)
        names, lut = source._question(rng)
        assert len(set(lut[lut != IGNORE].tolist())) <= len(names)
        assert lut[0] == lut[81] == IGNORE  # background and clouds are never asked for
        for code in COMMON:
            if lut[code] == IGNORE:
                continue
            name = names[int(lut[code])]
            crop = find_crop(code)
            rest = name in REST
            kinds.add(rest)
            # A code never answers to another common class's plain name.
            others = {plain for other, plain in COMMON.items() if find_crop(other).name != crop.name}
            assert rest or name not in others
    assert kinds == {True, False}


def test_turned_pixels_keep_their_codes(tiles, processor):
    source = TileBatches(tiles, processor, 4)
    for number in range(12):
        batch = source(number)
        if not (batch["gsd"] == 30).all():
            continue
        first = batch["pixel_values"][:, 0]
        places = batch["codes"]
        known = batch["pixel_mask"][:, 0] & (places != IGNORE)
        code = torch.tensor(source.present)[places.clamp(max=len(source.present) - 1)]
        # Gain and offset move a tile as a whole: within a tile the code still tells the value.
        for one, truth, keep in zip(first, code, known, strict=True):
            if keep.any():
                fitted = np.polyfit(truth[keep] / 100, one[keep], 1)
                np.testing.assert_allclose(np.polyval(fitted, truth[keep] / 100), one[keep], atol=2e-3)


def test_phrases_are_of_their_class(processor):
    source = PhraseBatches(processor, 16, seed=1)
    batch = source(0)
    assert batch["classes"].max() <= len(source.classes)
    assert torch.equal(batch["input_ids"], PhraseBatches(processor, 16, seed=1)(0)["input_ids"])
    held = source.held_out()
    assert len(held["classes"]) >= len(source.classes)


def test_two_crops_make_two_heights():
    places = draw_places(400, np.random.default_rng(0))
    days = np.arange(0.0, YEAR, 5.0)
    cover = places.cover(days)
    assert cover.min() >= 0 and cover.max() <= 1
    assert 0.15 < places.twice.mean() < 0.45

    def heights(curve):
        return int(((curve > np.roll(curve, 1)) & (curve >= np.roll(curve, -1)) & (curve > curve.min() + 0.15)).sum())

    once = (places.peaks > 0).sum(axis=1) == 1
    assert np.mean([heights(c) == 2 for c in cover[places.twice == 1]]) > 0.6
    assert np.mean([heights(c) == 1 for c in cover[once]]) > 0.7


def test_mixing_by_hand():
    places = draw_places(3, np.random.default_rng(1))
    leaf = places.reflectance(np.ones((3, 1)), np.array([860.0]))[:, 0, 0]
    soil = places.reflectance(np.zeros((3, 1)), np.array([860.0]))[:, 0, 0]
    half = places.reflectance(np.full((3, 1), 0.5), np.array([860.0]))[:, 0, 0]
    np.testing.assert_allclose(half, (leaf + soil) / 2)
    np.testing.assert_allclose(leaf, places.leaf[:, 8])  # 860 nm is one of the spectrum's own wavelengths


def test_series_have_the_shape_of_the_task():
    source = SeriesBatches(AgriClipImageProcessor(), 6, seed=2)
    batch = source(1)
    count, dates, channels = batch["pixel_values"].shape[:3]
    assert (count, batch["pixel_values"].shape[3:]) == (6, (1, 1))
    assert batch["dates"].shape == (6, dates) and batch["channels"].shape == (6, channels, 4)
    assert batch["targets"].shape == (6, TARGETS) and len(DAYS) * (1 + len(ASKED)) == TARGETS
    assert (batch["dates"] > 0).all() and (batch["dates"].diff(dim=1) >= 0).all()
    assert torch.isfinite(batch["pixel_values"]).all()
