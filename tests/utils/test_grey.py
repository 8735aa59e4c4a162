"""The grey range of images in files of 16 bits, compared with the same images in files of 8."""
from pathlib import Path

import numpy as np
import pytest
import tifffile
from msgspec.structs import replace

from tests.conftest import OWN_DESCRIPTION
from utils import errors
from utils.datasets.annotated import load_image, open_dataset, read_scaled
from utils.datasets.description import OWN, load_description
from utils.errors import InputError
from utils.files import has_16_bits, read_grey, write_png
from utils.grey import GreyValues, find_maximum

BITS = GreyValues(range="bits")


@pytest.fixture
def scene() -> np.ndarray:
    """What a detector saw, float64, (40, 70), in [0, 1]: smooth, the whole range."""
    y, x = np.mgrid[:40, :70]
    return (np.sin(x / 9) * np.cos(y / 7) + 1) / 2


def as_stored(scene: np.ndarray, bits: int) -> np.ndarray:
    return np.round(scene * (2 ** bits - 1)).astype(np.uint16)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_images_of_any_bits_come_out_alike(tmp_path, scene, bits):
    write_png(tmp_path / "a.png", as_stored(scene, bits))
    read = read_grey(tmp_path / "a.png", BITS)
    assert np.abs(read / 65535 - scene).max() <= 1 / (2 ** bits - 1)
    if bits == 16:
        np.testing.assert_array_equal(read, as_stored(scene, 16))


def test_a_burnt_in_mark_doesnt_darken_an_image(tmp_path, scene):
    """Also a large one, of one value, and a small one with smooth edges."""
    stored = as_stored(scene, 12)
    for rows, value in ((slice(0, 1), 65535), (slice(0, 8), 65535), (slice(0, 8), 30000)):
        marked = stored.copy()
        marked[rows, 5:9] = value
        write_png(tmp_path / "a.png", marked)
        read, elsewhere = read_grey(tmp_path / "a.png", BITS), marked == stored
        assert np.abs(read / 65535 - scene)[elsewhere].max() <= 1 / 4095
        assert (read[~elsewhere] == 65535).all()
        assert len(np.unique(read // 257)) > 200  # of 256 that SAM can tell; 16 before
    marked = stored.copy()
    marked[0, :2] = 20000, 50000
    assert find_maximum(marked) == 4095


def test_bits_are_those_that_hold_all_but_a_thousandth():
    image = np.zeros((100, 100), np.uint16)
    image[:, :50] = 3000
    image[0, :10] = np.arange(5000, 5010)
    assert find_maximum(image) == 4095
    image[1, :2] = 5010, 5011  # eleven beyond the most frequent one
    assert find_maximum(image) == 16383


def test_an_image_that_would_be_saturated_is_read_with_its_own_bits_and_named(tmp_path, scene, capsys):
    values = GreyValues(4095, "bits")
    write_png(tmp_path / "b.png", as_stored(scene, 14))
    read = read_grey(tmp_path / "b.png", values)
    assert np.abs(read / 65535 - scene).max() <= 1 / 16383
    share = (as_stored(scene, 14) > 4095).mean()
    assert f"b.png: {100 * share:.1f} % of its pixels are above max_grey_value = 4095" in capsys.readouterr().err
    stored = as_stored(scene, 12) // 2  # a dark one is as bright as the description says
    write_png(tmp_path / "c.png", stored)
    np.testing.assert_allclose(read_grey(tmp_path / "c.png", values) / 65535, stored / 4095, atol=1 / 65535)
    assert not capsys.readouterr().err
    assert (read_grey(tmp_path / "b.png", GreyValues(4095, "stored")) == 65535).mean() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_percentiles_take_the_range_of_each_image(dtype):
    rng = np.random.default_rng(0)
    values = rng.permutation(np.arange(2000)).reshape(40, 50) % 100 + 50
    image = values.astype(dtype)
    image[0, 0] = np.iinfo(dtype).max
    low, high = np.sort(values.ravel())[[10, 1989]]
    expected = np.clip((values - low) / (high - low), 0, 1) * np.iinfo(dtype).max
    applied = GreyValues(range="percentiles").apply(image)
    assert applied.dtype == dtype
    assert np.abs(applied.ravel()[1:] - expected.ravel()[1:]).max() <= np.iinfo(dtype).max / 98
    flat = np.full((4, 5), 7, dtype)
    np.testing.assert_array_equal(GreyValues(range="percentiles").apply(flat), flat)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_file_whose_zero_is_white_is_read_so(tmp_path, dtype):
    shown = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 9), dtype)
    tifffile.imwrite(tmp_path / "a.tif", np.iinfo(dtype).max - shown, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "b.tif", shown, photometric="minisblack")
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(read_grey(tmp_path / name), shown)
    inverted = read_grey(tmp_path / "b.tif", GreyValues(inverted=True))
    np.testing.assert_array_equal(inverted, np.iinfo(dtype).max - shown)


def test_a_tiff_file_may_state_its_largest_value(tmp_path, scene):
    stored = np.round(scene * 3000).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, extratags=[(281, "H", 1, 3000, True)])
    np.testing.assert_allclose(read_grey(tmp_path / "a.tif", BITS) / 65535, stored / 3000, atol=1 / 65535)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_files_are_turned(tmp_path, orientation, dtype):
    image = np.arange(6 * 9, dtype=dtype).reshape(6, 9) * 4
    upright = {1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: image.T, 6: np.rot90(image, -1),
               7: np.rot90(image, 2).T, 8: np.rot90(image)}[orientation]
    tifffile.imwrite(tmp_path / "a.tif", image, extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(read_grey(tmp_path / "a.tif"), upright)


def test_names_tell_readings_apart():
    readings = [GreyValues(*each) for each in ((None, "stored"), (None, "bits"), (4095, "bits"), (4095, "stored"),
                                               (None, "percentiles"), (None, "stored", True), (4095, "bits", True))]
    assert readings[0].name == "" and readings[2].name == "_max4095"
    assert len({reading.name for reading in readings}) == len(readings)


def describe(data_dir: Path, *lines: str) -> None:
    path = data_dir / "mine" / OWN
    path.write_text("\n".join(("mean = 0.5", "std = 0.25", "pos_weight = [1.0, 1.0]", *lines)) + OWN_DESCRIPTION)


def test_images_of_16_bits_are_read_by_those_that_they_use_unless_the_description_says_otherwise(own, scene):
    data_dir, _, _ = own
    describe(data_dir)
    assert open_dataset("mine", data_dir).description.grey == GreyValues()  # of 8 bits
    path = data_dir / "mine" / "img" / "5.png"
    write_png(path, as_stored(scene[:36, :60], 12))
    assert has_16_bits(path) and not has_16_bits(path.with_name("4.png"))
    description = open_dataset("mine", data_dir).description
    assert description.grey == BITS
    assert np.abs(read_scaled(path, description) - scene[:36, :60]).max() < 1 / 4095
    describe(data_dir, 'grey_range = "stored"', "invert = true")
    description = open_dataset("mine", data_dir).description
    np.testing.assert_allclose(read_scaled(path, description), 1 - scene[:36, :60] / 16, atol=1 / 4095)
    describe(data_dir, 'grey_range = "bit"')
    with pytest.raises(InputError, match=r"'bit' - at `\$\.grey_range` \(known: stored, bits, percentiles\)"):
        open_dataset("mine", data_dir)


def test_input_far_from_what_the_network_knows_is_said(tmp_path, capsys):
    description = replace(load_description("jsrt"), input_size=(32, 32))
    for name, value in (("dark", 4095), ("usual", 50000)):
        write_png(tmp_path / f"{name}.png", np.full((40, 30), value, np.uint16))
        load_image(tmp_path / f"{name}.png", description)
    said = capsys.readouterr().err
    distance = (description.mean - 4095 / 65535) / description.std
    assert "usual" not in said and f"dark.png: its mean as the network gets it is {distance:.1f} standard" in said


def test_many_images_are_not_all_named(capsys, monkeypatch):
    monkeypatch.setattr(errors, "_said", set())
    monkeypatch.setattr(errors, "_named", errors.Counter())
    for number in (*range(30), *range(30)):
        errors.say_once(f"image {number}", kind="odd")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [*(f"image {number}" for number in range(10)), "further images like this one are not named"]
