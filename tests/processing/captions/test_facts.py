import numpy as np
import pytest

from processing.captions import describe
from processing.captions.measures import (
    border_contrast,
    count_borders,
    find_patches,
    place_of,
    slope_degrees,
    spectral_layers,
)
from processing.errors import AgriClipError
from processing.sensors_agriclip import SENSORS
from tests.processing.captions.toy_tile import BANDS, CODES


def _flood(inside):
    """Patch sizes and perimeters by flood fill, independent of the labelling of the module."""
    seen, patches = np.zeros_like(inside), []
    height, width = inside.shape
    for start in np.argwhere(inside):
        if seen[tuple(start)]:
            continue
        stack, size, perimeter = [tuple(start)], 0, 0
        seen[tuple(start)] = True
        while stack:
            row, column = stack.pop()
            size += 1
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    r, c = row + down, column + right
                    there = 0 <= r < height and 0 <= c < width and inside[r, c]
                    perimeter += not there and abs(down) + abs(right) == 1
                    if there and not seen[r, c]:
                        seen[r, c] = True
                        stack.append((r, c))
        patches.append((size, perimeter))
    return patches


def test_patches_equal_a_flood_fill():
    inside = np.random.default_rng(0).random((30, 25)) < 0.35
    found, expected = find_patches(inside, 4), _flood(inside)
    kept = [(size, perimeter) for size, perimeter in expected if size >= 4]
    assert found.count == len(kept)
    assert found.largest == max(size for size, _ in expected)
    assert found.median == np.median([size for size, _ in kept])
    shape = np.average([p / (4 * np.sqrt(s)) for s, p in kept], weights=[s for s, _ in kept])
    assert found.shape_index == pytest.approx(shape)


def test_a_square_has_shape_one_and_fills_its_box():
    inside = np.zeros((12, 12), bool)
    inside[2:8, 3:9] = True
    found = find_patches(inside, 5)
    assert (found.count, found.largest, found.shape_index, found.extent) == (1, 36, 1.0, 1.0)
    assert find_patches(np.zeros((4, 4), bool), 5).count == 0


def test_borders_equal_a_loop():
    codes = np.random.default_rng(1).integers(-1, 4, (9, 11))
    expected = np.zeros((4, 4), int)
    for row in range(9):
        for column in range(11):
            for r, c in ((row + 1, column), (row, column + 1)):
                if r < 9 and c < 11 and codes[row, column] >= 0 and codes[r, c] >= 0:
                    a, b = codes[row, column], codes[r, c]
                    expected[a, b] += 1
                    if a != b:
                        expected[b, a] += 1
    np.testing.assert_array_equal(count_borders(codes, 4), expected)


@pytest.mark.parametrize(
    ("rows", "columns", "place"),
    [
        (slice(0, 10), slice(0, 40), "north"),
        (slice(30, 40), slice(0, 40), "south"),
        (slice(0, 40), slice(25, 40), "east"),
        (slice(0, 10), slice(0, 10), "north-west"),
        (slice(30, 38), slice(21, 38), "south-east"),
        (slice(12, 28), slice(12, 28), "middle"),
        (slice(0, 40), slice(0, 40), "throughout"),
    ],
)
def test_places(rows, columns, place):
    inside = np.zeros((40, 40), bool)
    inside[rows, columns] = True
    assert place_of(inside) == place


def test_edges_and_no_place():
    inside = np.ones((40, 40), bool)
    inside[3:-3, 3:-3] = False
    assert place_of(inside) == "edges"
    assert place_of(np.zeros((8, 8), bool)) is None
    diagonal = np.zeros((40, 40), bool)
    diagonal[:20, :20] = diagonal[22:, 22:] = True
    assert place_of(diagonal) is None


def test_slope_of_a_plane_and_of_the_axes():
    rows, columns = np.mgrid[:10, :12]
    np.testing.assert_allclose(slope_degrees(3.0 * columns, 30), np.degrees(np.arctan(0.1)))
    np.testing.assert_allclose(slope_degrees(3.0 * columns + 4.0 * rows, 10), np.degrees(np.arctan(0.5)))
    assert slope_degrees(3.0 * columns, 30).shape == (8, 10)


def test_facts_of_the_toy_tile(mask, pixels):
    facts = describe(mask, CODES, pixels, BANDS, gsd=30, date="2015-09-02", latitude=46)
    assert [one.name for one in facts.classes] == ["spring wheat", "soybean", "corn", "water", "forest"]
    assert facts.absent == ("rice",)
    wheat, soybean, corn, water, forest = facts.classes
    assert (soybean.pixels, soybean.share, soybean.area) == (400, 0.25, pytest.approx(36.0))
    assert facts.area == pytest.approx(144.0) and facts.unlisted == 0 and facts.known == 1
    assert (wheat.place, soybean.place, corn.place, water.place) == ("north", "south-west", "south-east", "north-west")
    assert soybean.shape == forest.shape == "rectangular" and soybean.dispersion == "contiguous"
    # soybean: 20 edges along the wheat, 20 along the corn
    assert dict(soybean.neighbours) == {"spring wheat": 0.5, "corn": 0.5}
    assert forest.neighbours == (("spring wheat", 1.0),)
    assert soybean.ndvi.median == pytest.approx((0.40 - 0.04) / 0.44)
    assert soybean.ndwi.median == pytest.approx((0.06 - 0.40) / 0.46)
    assert soybean.moisture.median == pytest.approx((0.40 - 0.20) / 0.60)
    assert soybean.brightness.median == pytest.approx(0.13 / 3)
    assert (soybean.greenness, wheat.greenness, water.greenness) == ("densely green", "sparsely green", "water")
    assert (soybean.stage, wheat.stage, corn.stage) == ("filling pods", "harvested", "filling grain")
    assert soybean.outline == "sharp" and facts.season == "late summer" and facts.terrain is None
    assert soybean.largest_share == 1 and facts.of("rice") is None
    assert facts.farmed == pytest.approx(1 - 48 / 1600 - 40 / 1600)


def test_unlisted_codes_count_in_shares_and_nodata_does_not(mask):
    mask[0:2] = 0  # nothing known
    mask[38:40] = 77  # another class
    facts = describe(mask, CODES)
    assert facts.known == pytest.approx(38 / 40)
    assert facts.unlisted == pytest.approx(2 / 38)
    assert facts.of("soybean").share == pytest.approx(18 * 20 / (38 * 40))
    # the unlisted class has its part of the border, without a name
    shares = dict(facts.of("soybean").neighbours)
    assert set(shares) == {"spring wheat", "corn"} and sum(shares.values()) == pytest.approx(38 / 58)
    assert describe(mask, {**CODES, 0: "bare"}).of("bare").pixels == 80


def test_codes_of_one_name_are_one_class():
    mask = np.array([[195, 190, 111], [195, 190, 111]])
    facts = describe(mask)
    assert [(one.name, one.pixels) for one in facts.classes] == [("wetland", 4), ("water", 2)]
    assert dict(facts.classes[0].neighbours) == {"water": 1.0}


def test_nothing_is_guessed(mask):
    facts = describe(mask, CODES)
    one = facts.classes[0]
    absent = (facts.area, facts.season, facts.terrain, facts.ndvi, one.area, one.ndvi, one.stage, one.outline)
    assert absent == (None,) * 8
    assert one.greenness is None


def test_masked_pixels_are_left_out(mask, pixels):
    hidden = np.ma.masked_array(pixels, np.broadcast_to(mask == 5, pixels.shape))
    assert describe(mask, CODES, hidden, BANDS).of("soybean").ndvi is None
    facts = describe(np.ma.masked_array(mask, mask == 5), CODES)
    assert facts.of("soybean") is None and facts.known == 0.75
    pixels[:, mask == 1] = np.nan
    assert describe(mask, CODES, pixels, BANDS).of("corn").ndvi is None


def test_bands_by_name_by_sentinel_name_and_by_wavelength(pixels):
    plain = spectral_layers(pixels, BANDS)
    sentinel = spectral_layers(pixels, ("B02", "B03", "B04", "B8A", "B11"))
    landsat = {channel.name: channel for channel in SENSORS["landsat8"].channels}
    channels = spectral_layers(pixels, [landsat[name] for name in BANDS])
    for name in ("ndvi", "ndwi", "ndmi", "brightness"):
        np.testing.assert_array_equal(plain[name], sentinel[name])
        np.testing.assert_array_equal(plain[name], channels[name])
    assert set(spectral_layers(pixels[2:4], ("red", "nir"))) == {"ndvi"}
    assert np.isnan(spectral_layers(np.zeros((2, 3, 3)), ("red", "nir"))["ndvi"]).all()


def test_contrast_is_the_step_across_the_border():
    codes = np.zeros((4, 6), int)
    codes[:, 3:] = 1
    layer = np.where(codes == 1, 0.7, 0.3)
    assert border_contrast(codes, 1, layer) == pytest.approx(0.4)
    assert np.isnan(border_contrast(np.zeros((4, 6), int), 0, layer))


@pytest.mark.parametrize(("rise", "word"), [(0.5, "flat"), (3.0, "rolling"), (9.0, "steep")])
def test_terrain(mask, rise, word):
    dem = rise * np.arange(40.0)[None, :].repeat(40, axis=0)
    terrain = describe(mask, CODES, gsd=30, dem=dem).terrain
    assert terrain.word == word
    assert terrain.slope == pytest.approx(np.degrees(np.arctan(rise / 30)))
    assert terrain.relief == pytest.approx(rise * 39 * 0.96, rel=0.05)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mask": np.zeros((3, 4, 4))}, "rows and columns"),
        ({"mask": np.zeros((4, 4))}, "No pixel of the mask is known"),
        ({"gsd": -1}, "above 0"),
        ({"latitude": 91}, "between -90 and 90"),
        ({"date": "yesterday"}, "'yesterday' is no date"),
        ({"bands": None}, "without the names of their bands"),
        ({"bands": ("a", "b")}, "5, 40, 40"),
        ({"bands": ("a", "b", "c", "d", "e")}, "red and near infrared"),
        ({"pixels": np.full((5, 40, 40), 3000.0)}, "no reflectance"),
        ({"pixels": np.ones((5, 40, 41))}, "cut both alike"),
        ({"dem": np.ones((3, 3))}, "cut both alike"),
        ({"dem": np.ones((40, 40)), "gsd": None}, "give `gsd`"),
    ],
)
def test_bad_input_is_one_sentence(mask, pixels, change, sentence):
    arguments = {"mask": mask, "classes": CODES, "pixels": pixels, "bands": BANDS, "gsd": 30} | change
    with pytest.raises(AgriClipError, match=sentence) as caught:
        describe(**arguments)
    assert "\n" not in str(caught.value)
