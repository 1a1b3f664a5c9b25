"""Zero-shot classification, retrieval and segmentation: scores against independent computation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, jaccard_score

from evaluation.vision.classes import ClassTable
from evaluation.vision.encoders import load_encoder
from evaluation.vision.images import find_images
from evaluation.vision.labels import Captions, image_labels
from evaluation.vision.protocols import class_texts, get_protocol
from evaluation.vision.retrieval import best_ranks, evaluate_retrieval, pair_captions
from evaluation.vision.scores import confusion_scores, group_blocks, pair_counts, paired_interval, score_counts
from evaluation.vision.segmentation import evaluate_segmentation, fit_pixel_baseline, predict_image
from evaluation.vision.zero_shot import class_embeddings, evaluate_zero_shot, rest_embeddings
from processing.errors import AgriClipError
from processing.vocabulary import REST
from tests.evaluation.vision.conftest import OracleEncoder, write_photograph, write_scene, write_tile

TEMPLATE = "a satellite image of {}"


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth, found = random.integers(0, 4, 500), random.integers(0, 4, 500)
    truth[:20] = -1
    known = truth >= 0
    counts = pair_counts(truth, found, 5, np.zeros(500, dtype=np.int64))[0]
    np.testing.assert_array_equal(counts[:4, :4], confusion_matrix(truth[known], found[known]))
    scores = confusion_scores(counts)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth[known], found[known]))
    assert scores["macro_f1"] == pytest.approx(f1_score(truth[known], found[known], average="macro"))
    np.testing.assert_allclose(scores["iou"][:4], jaccard_score(truth[known], found[known], average=None))
    assert np.isnan(scores["iou"][4]) and scores["mean_iou"] == pytest.approx(np.nanmean(scores["iou"]))


def test_intervals_are_those_of_drawing_blocks_one_by_one() -> None:
    random = np.random.default_rng(1)
    blocks = np.repeat(np.arange(30), 20)
    # Blocks differ in how hard they are, so single units would give too narrow an interval.
    right = random.random(600) < np.repeat(random.uniform(0.2, 1.0, 30), 20)
    truth = random.integers(0, 2, 600)
    found = np.where(right, truth, 1 - truth)
    result = score_counts(pair_counts(truth, found, 2, group_blocks(blocks)))
    share = np.array([right[blocks == b].mean() for b in range(30)])
    draws = share[random.integers(0, 30, (4000, 30))].mean(axis=1)
    assert result["accuracy"]["low"] == pytest.approx(np.quantile(draws, 0.025), abs=0.02)
    assert result["accuracy"]["high"] == pytest.approx(np.quantile(draws, 0.975), abs=0.02)
    single = score_counts(pair_counts(truth, found, 2, group_blocks(np.arange(600))))
    width = [r["accuracy"]["high"] - r["accuracy"]["low"] for r in (result, single)]
    assert width[0] > 1.5 * width[1]
    assert paired_interval(result, result, "accuracy") == (0.0, 0.0, 0.0)
    alone = score_counts(pair_counts(truth, found, 2, np.zeros(600, dtype=np.int64)))
    assert alone["accuracy"]["low"] is None


def test_many_blocks_are_joined_without_a_change_of_the_interval() -> None:
    random = np.random.default_rng(2)
    truth = random.integers(0, 2, 9000)
    found = np.where(random.random(9000) < 0.8, truth, 1 - truth)
    groups = group_blocks(np.arange(9000))
    assert groups.max() == 1999 and np.bincount(groups).min() >= 4
    value = score_counts(pair_counts(truth, found, 2, groups))["accuracy"]
    expected = 2 * 1.96 * np.sqrt(0.8 * 0.2 / 9000)
    assert value["high"] - value["low"] == pytest.approx(expected, rel=0.1)


def _oracle(folder: Path) -> tuple[OracleEncoder, Any]:
    """Four images of two classes, of which one is seen as the other class."""
    for name in ("River/a", "River/b", "Forest/c", "Forest/d"):
        write_photograph(folder / f"{name}.png", (80, 90, 100), size=8)
    seen = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [0.1, 1.0], "d": [0.0, 2.0]}
    heard = {}
    for template in ("a satellite photo of {}.", "a satellite image of {}", "a satellite photo of {}"):
        heard |= {template.format("river"): np.array([3.0, 0.0]), template.format("forest"): np.array([0.0, 5.0])}
    return OracleEncoder({k: np.array(v) for k, v in seen.items()}, heard), find_images(folder)


def test_zero_shot_chooses_the_nearest_text_whatever_its_length(tmp_path: Path) -> None:
    encoder, table = _oracle(tmp_path)
    labels = image_labels(table, None)
    for protocol in ("skyscript", "remoteclip"):
        found = evaluate_zero_shot(encoder, table, labels, get_protocol(protocol))
        assert found.confusion.tolist() == [[2, 0], [1, 1]]
        assert found.result["accuracy"]["value"] == 0.75
        assert found.result["balanced_accuracy"]["value"] == 0.75
        assert found.texts.strings == ("forest", "river")


def test_pooling_differs_between_protocols() -> None:
    class Two(OracleEncoder):
        def encode_texts(self, texts: Any) -> np.ndarray:
            # A long and a short vector: means before and after normalising point elsewhere.
            return np.array([[10.0, 0.0], [0.0, 1.0]], dtype=np.float32)[: len(texts)]

    from evaluation.vision.protocols import ClassTexts

    texts = ClassTexts(("x",), ("x",), ("{}", "a {}"), None, ())
    plain = class_embeddings(Two({}, {}), texts, "mean")[0]
    np.testing.assert_allclose(plain, np.array([10, 1]) / np.sqrt(101), atol=1e-6)
    np.testing.assert_allclose(class_embeddings(Two({}, {}), texts, "normalised")[0], np.sqrt([0.5, 0.5]), atol=1e-6)


def test_equal_captions_count_as_the_protocol_says() -> None:
    captions = [["a", "b"], ["a"], ["c", "c"]]
    kept = pair_captions(captions, get_protocol("rs5m"))
    assert kept.texts == ["a", "b", "a", "c", "c"] and kept.image.tolist() == [0, 0, 1, 2, 2]
    merged = pair_captions(captions, get_protocol("skyscript"))
    assert merged.texts == [f"a satellite image. {text}" for text in "abc"]
    assert list(zip(merged.text, merged.image, strict=True)) == [(0, 0), (1, 0), (0, 1), (2, 2)]
    assert pair_captions([["many Trees"]], get_protocol("remoteclip")).texts == ["Many trees"]


def test_ranks_are_those_of_a_stable_sort() -> None:
    random = np.random.default_rng(0)
    queries, keys = (
        random.integers(-2, 3, (40, 3)).astype(np.float32),
        random.integers(-2, 3, (25, 3)).astype(np.float32),
    )
    query, key = random.integers(0, 40, 90), random.integers(0, 25, 90)
    query[:40] = np.arange(40)
    ranks = best_ranks(queries, keys, query, key)
    for q in range(40):
        order = np.argsort(-(queries[q] @ keys.T), kind="stable")
        assert ranks[q] == min(np.flatnonzero(np.isin(order, key[query == q])))


def test_recall_is_counted_by_hand(tmp_path: Path) -> None:
    for name in "abc":
        write_photograph(tmp_path / f"{name}.png", (80, 90, 100), size=8)
    table = find_images(tmp_path)
    eye = np.eye(3)
    encoder = OracleEncoder(
        dict(zip("abc", eye, strict=True)),
        {"x": eye[0] + 0.1 * eye[1], "y": eye[2] + 0.5 * eye[1], "z": eye[2]},
    )
    captions = Captions([["x"], ["y"], ["z", "x"]], "")
    found = evaluate_retrieval(encoder, table, captions, get_protocol("agriclip"))
    # Image a finds x first, b finds y first, c finds z first; text x finds a first, which has it; y finds c before b.
    assert found.image_ranks.tolist() == [0, 0, 0] and found.text_ranks.tolist() == [0, 1, 0]
    assert found.scores["image_to_text_recall_at_1"]["value"] == 1.0
    assert found.scores["text_to_image_recall_at_1"]["value"] == pytest.approx(2 / 3)
    assert found.scores["mean_recall"]["value"] == pytest.approx((3 + 2 / 3 + 2) / 6)
    assert found.repeated == 1
    # Kept apart, the second x belongs to image c alone and finds it last.
    apart = evaluate_retrieval(encoder, table, captions, get_protocol("rs5m"))
    assert apart.texts == 4 and apart.text_ranks.tolist() == [0, 1, 0, 2]
    with pytest.raises(AgriClipError, match="defines no retrieval"):
        evaluate_retrieval(encoder, table, captions, get_protocol("openai"))


def _seg_oracle() -> OracleEncoder:
    return OracleEncoder({}, {TEMPLATE.format(name): np.zeros(2) for name in ("soybean", "water", "other land")})


def test_segmentation_counts_every_listed_pixel_once(tmp_path: Path) -> None:
    images, masks, both = write_scene(tmp_path)
    classes = ClassTable(["soybean", "water"], {5: 0, 111: 1})
    found = evaluate_segmentation(_seg_oracle(), find_images(images), masks, classes, block=480.0)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(both[:, 1].ravel(), both[:, 0].ravel()))
    assert found.pixels == 6 * 14 * 16 and found.share_ignored == pytest.approx(2 / 16)
    assert found.result["iou"]["value"] == pytest.approx(
        jaccard_score(both[:, 1].ravel(), both[:, 0].ravel(), average=None).tolist()
    )
    assert found.result["accuracy"]["low"] < found.result["accuracy"]["value"] < found.result["accuracy"]["high"]
    assert found.blocks.startswith("6 blocks")
    rest = ClassTable(["soybean", "water", "other land"], {5: 0, 111: 1}, rest=2)
    found = evaluate_segmentation(_seg_oracle(), find_images(images), masks, rest)
    assert found.share_ignored == 0 and found.confusion[2].sum() == 6 * 32
    with pytest.raises(AgriClipError, match="No pixel"):
        evaluate_segmentation(_seg_oracle(), find_images(images), masks, ClassTable(["soybean", "water"], {7: 0}))
    with pytest.raises(AgriClipError, match="no {}"):
        evaluate_segmentation(_seg_oracle(), find_images(images), masks, classes, template="x")


def test_the_pixel_baseline_is_scored_on_the_same_pixels(tmp_path: Path) -> None:
    images, masks, _ = write_scene(tmp_path, wrong=0.0)
    classes = ClassTable(["soybean", "water"], {5: 0, 111: 1})
    table = find_images(images)
    baseline = fit_pixel_baseline(table.subset([0, 1, 2]), masks, classes)
    found = evaluate_segmentation(_seg_oracle(), table.subset([3, 4, 5]), masks, classes, baseline=baseline)
    assert found.baseline_confusion is not None and found.baseline_confusion.sum() == found.confusion.sum()
    assert found.baseline["accuracy"]["value"] == 1.0  # type: ignore[index]
    assert found.differences["accuracy"][0] == 0.0 and baseline.pixels == 450


def test_a_mask_of_another_size_is_counted_as_unreadable(tmp_path: Path) -> None:
    images, masks, _ = write_scene(tmp_path)
    write_tile(masks / "0.tif", np.full((1, 10, 10), 5, np.uint8), names=None)
    table = find_images(images)
    evaluate_segmentation(_seg_oracle(), table, masks, ClassTable(["soybean", "water"], {5: 0, 111: 1}))
    assert [key for key, _ in table.unreadable] == ["0.tif"]
    write_tile(masks / "1.tif", np.full((1, 10, 10), 5, np.uint8), names=None)
    with pytest.raises(AgriClipError, match="10 x 10 pixels and the image 16 x 16"):
        evaluate_segmentation(_seg_oracle(), table, masks, ClassTable(["soybean", "water"], {5: 0, 111: 1}))


def test_windows_of_a_large_image_meet_without_a_seam(tmp_path: Path) -> None:
    seen = np.random.default_rng(0).integers(0, 3, (6, 330, 600)).astype(np.int16)
    write_tile(tmp_path / "a.tif", seen)
    image = find_images(tmp_path).read(0)
    assert image is not None
    np.testing.assert_array_equal(predict_image(_seg_oracle(), image, np.zeros((3, 2), np.float32)), seen[0])


def test_pixels_and_not_the_whole_image_under_our_own_protocol():
    from evaluation.vision.zero_shot import _share_of_pixels, compared_by

    learnt, other = SimpleNamespace(compares_pixels=True), SimpleNamespace(compares_pixels=False)
    ours, named = SimpleNamespace(name="agriclip"), SimpleNamespace(name="rs5m")
    assert compared_by(learnt, ours, "auto") and compared_by(other, named, "pixels")
    assert not compared_by(learnt, named, "auto") and not compared_by(other, ours, "auto")
    assert not compared_by(learnt, ours, "image")
    with pytest.raises(AgriClipError, match="choose auto, image or pixels"):
        compared_by(learnt, ours, "cells")
    # Three pixels for the first class, one so surely for the second that its mean logit alone would win.
    scores = np.array([[[0.0, 0.0], [0.0, 0.0]], [[-3.0, -3.0], [-3.0, 50.0]]], dtype=np.float32)
    found = np.exp(_share_of_pixels(scores, np.ones((2, 2), bool), 2))
    np.testing.assert_allclose(found, [0.75, 0.25], atol=1e-3)
    assert scores[1].mean() > scores[0].mean()


def test_land_that_is_not_asked_about_does_not_vote():
    from evaluation.vision.zero_shot import _share_of_pixels

    # Two classes and two wordings for the rest; two pixels are the first class, three are neither and like the second.
    asked, neither = [4.0, 0.0, 0.0, -1.0], [0.0, 2.0, 5.0, 6.0]
    scores = np.array([asked, asked, neither, neither, neither], dtype=np.float32).T.reshape(4, 1, 5)
    seen = np.ones((1, 5), dtype=bool)
    np.testing.assert_allclose(np.exp(_share_of_pixels(scores[:2], seen, 2)), [0.4, 0.6], atol=1e-3)
    np.testing.assert_allclose(np.exp(_share_of_pixels(scores, seen, 2)), [0.4, 0.0], atol=1e-3)
    # Where no pixel is of any class, probabilities decide.
    nothing = _share_of_pixels(scores[:, :, 2:], seen[:, 2:], 2)
    chance = np.exp(neither[:2]) / (np.exp(neither[:2]).sum() + np.exp(neither[2:]).mean())
    np.testing.assert_allclose(np.exp(nothing), 1e-3 * chance, rtol=1e-4)


def test_pixels_without_data_do_not_vote(agriclip_folder: Path, tmp_path: Path, monkeypatch):
    from evaluation.vision.zero_shot import classify_images

    values = np.full((6, 8, 8), 900, dtype=np.int16)
    values[:, :, 3:] = 0
    write_tile(tmp_path / "a.tif", values, nodata=0)
    encoder, table = load_encoder(agriclip_folder, "cpu"), find_images(tmp_path)
    # The first class where there are data, the second everywhere else, and far more surely.
    logits = np.zeros((2, 8, 8), dtype=np.float32)
    logits[0, :, :3], logits[1, :, 3:] = 1.0, 9.0
    monkeypatch.setattr(encoder, "segment", lambda images, texts: [logits for _ in images])
    some = np.zeros((2, 4), dtype=np.float32)
    _, found, _ = classify_images(encoder, table, some, rest=some[:0])
    np.testing.assert_allclose(np.exp(found), [[1.0, 0.0]], atol=1e-3)
    # Where an image holds nothing at all, what the model makes of nothing has to do.
    write_tile(tmp_path / "a.tif", np.zeros_like(values), nodata=0)
    _, found, _ = classify_images(encoder, table, some, rest=some[:0])
    np.testing.assert_allclose(np.exp(found), [[3 / 8, 5 / 8]], atol=1e-3)


def test_the_rest_has_words_of_its_own_where_pixels_were_learnt(agriclip_folder: Path, clip_folder: Path):
    encoder = load_encoder(agriclip_folder, "cpu")
    rules = get_protocol("agriclip")
    texts = class_texts(rules, ["soybean", "corn"])
    classes = class_embeddings(encoder, texts, rules.pooling, pixels=True)
    rest = rest_embeddings(encoder, texts, classes)
    expected = encoder.segment_texts([f"a satellite image of {words}" for words in REST])
    np.testing.assert_allclose(rest, expected, atol=1e-5)
    # As long as they are: the head was trained on embeddings of any length.
    assert np.ptp(np.linalg.norm(rest, axis=1)) > 0
    # A class that is the rest itself, or a model that knows no pixels: none.
    assert rest_embeddings(encoder, class_texts(rules, ["soybean", "Other land"]), classes).shape == (0, rest.shape[1])
    assert len(rest_embeddings(load_encoder(clip_folder, "cpu"), texts, classes)) == 0
