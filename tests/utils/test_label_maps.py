"""Masks in image files of every kind, written by Pillow and tifffile, and read as a description says."""
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from tests.conftest import OWN_DESCRIPTION
from utils.datasets.annotated import open_dataset
from utils.datasets.description import OWN
from utils.errors import InputError

LABELS = ("heart", "lung")
HEAD = OWN_DESCRIPTION.partition("[masks]")[0] + "mean = 0.5\nstd = 0.25\npos_weight = [1.0, 1.0]\n"
MAPS = '[masks]\nkind = "label_maps"\nfolder = "masks"\ntrain = 4\nval = 1\n'


def describe(data_dir: Path, masks: str = MAPS, **changes: str) -> None:
    head = HEAD
    for old, new in changes.items():
        head = re.sub(rf"(?m)^{old} = .*$", f"{old} = {new}", head)
    (data_dir / "mine" / OWN).write_text(head + masks)


def read(data_dir: Path, stem: str = "0") -> np.ndarray:
    return open_dataset("mine", data_dir).mask(stem)


@pytest.fixture
def drawn(own) -> tuple[Path, Path, np.ndarray]:
    """The data folder, where the label map of image 0 lies, and its values: background, and two labels apart."""
    values = np.zeros((36, 60), np.uint8)
    values[3:20, 5:30] = 1
    values[22:30, 31:50] = 2
    describe(own[0])
    return own[0], own[0] / "mine" / "masks" / "0.png", values


def channels(values: np.ndarray) -> np.ndarray:
    return np.stack([values == 1, values == 2])


FORMS = {
    "three equal channels": lambda values: Image.fromarray(np.stack([values] * 3, axis=-1)),
    "and an opaque one": lambda values: Image.fromarray(np.stack([*[values] * 3, values * 0 + 255], axis=-1)),
    "grey and opaque": lambda values: Image.fromarray(np.stack([values, values * 0 + 255], axis=-1)),
    "16 bits": lambda values: Image.fromarray(values.astype(np.uint16)),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_value_in_several_channels(drawn, form):
    data_dir, path, values = drawn
    FORMS[form](values).save(path)
    np.testing.assert_array_equal(read(data_dir), channels(values))


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".gif", ".bmp", ".PNG", ".Gif"])
def test_every_lossless_format_whatever_the_case_of_its_suffix(drawn, suffix):
    data_dir, path, values = drawn
    values[values == 1] = 0  # a GIF's own palette holds the values that occur
    path.unlink()
    Image.fromarray(values).save(path.with_suffix(suffix))
    data = open_dataset("mine", data_dir)
    assert data.stems("train") == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(data.mask("0"), channels(values))


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint16, np.uint8])
def test_tiff_files_of_whole_numbers(drawn, dtype):
    data_dir, path, values = drawn
    path.unlink()
    tifffile.imwrite(path.with_suffix(".tif"), values.astype(dtype))
    np.testing.assert_array_equal(read(data_dir), channels(values))
    tifffile.imwrite(path.with_suffix(".tif"), values.astype(np.float32) / 2)
    with pytest.raises(InputError, match=r"0\.tif: a mask has whole numbers"):
        read(data_dir)


def test_values_by_a_table(drawn):
    data_dir, path, values = drawn
    stored = np.array([0, 254, 127], np.uint8)[values]
    stored[:2] = 255
    for form in (Image.fromarray(stored), Image.fromarray(np.stack([stored] * 3, axis=-1))):
        form.save(path)
        with pytest.raises(InputError, match=r"0\.png: has the value 255, but there are 2 labels; say which value"):
            read(data_dir)
        describe(data_dir, MAPS + "values = { lung = 127, heart = 254 }\n")
        with pytest.raises(InputError, match=r"0\.png: has the value 255, .*`ignore = \[255\]`"):
            read(data_dir)
        describe(data_dir, MAPS + "values = { lung = 127, heart = 254 }\nignore = [255]\n")
        np.testing.assert_array_equal(read(data_dir), channels(values))
        describe(data_dir)
    path.unlink()
    Image.fromarray(stored).save(path.with_suffix(".gif"))
    describe(data_dir, MAPS + "values = { lung = 127, heart = 254 }\nignore = [255]\n")
    np.testing.assert_array_equal(read(data_dir), channels(values))


@pytest.mark.parametrize(("table", "message"), [
    ("values = { heart = 1 }", r"`values` in \[masks\]: lacks the label 'lung'"),
    ("values = { heart = 1, lungs = 2 }", r"lacks the label 'lung' \(lungs\?\)"),
    ("values = { heart = 1, lung = 2, rib = 3 }", "names 'rib', which is no label"),
    ("colors = { heart = [255, 0, 0] }", r"`colors` in \[masks\]: lacks the label 'lung'"),
    ('colors = "labelmap.txt"', r"labelmap\.txt: no such table of colors"),
])
def test_tables_that_dont_fit_the_labels(drawn, table, message):
    describe(drawn[0], MAPS + table)
    with pytest.raises(InputError, match=message):
        open_dataset("mine", drawn[0])


def test_white_is_the_only_label(drawn):
    data_dir, path, values = drawn
    for number in range(6):
        Image.fromarray((values == 1) * np.uint8(255)).save(path.with_name(f"{number}.png"))
    describe(data_dir, labels='["heart"]', pos_weight="[1.0]")
    np.testing.assert_array_equal(read(data_dir), channels(values)[:1])
    describe(data_dir, MAPS + "ignore = [255]\n", labels='["heart"]', pos_weight="[1.0]")
    assert not read(data_dir).any()


COLORS = np.array([[0, 0, 0], [61, 245, 61], [140, 120, 240]], np.uint8)
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nlung:140,120,240::\nheart:61,245,61::\nrib:1,2,3::\n"


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("table", [
    '"labelmap.txt"', "{ heart = [61, 245, 61], lung = [140, 120, 240], rib = [1, 2, 3] }"])
def test_colors_by_a_table(drawn, palette, table):
    """Also where a palette was made of them, whose indices then mean nothing."""
    data_dir, path, values = drawn
    colored = COLORS[values]
    colored[0, :7] = 1, 2, 3
    image = Image.fromarray(colored)
    (image.quantize(8) if palette else image).save(path)
    describe(data_dir, MAPS)
    message = r"0\.png: (.* covers|has the value)" if palette else (
        r"0\.png: is in color; say which color .* `colors = .*\"labelmap\.txt\"`")
    with pytest.raises(InputError, match=message):
        read(data_dir)
    (data_dir / "mine" / "labelmap.txt").write_text(LABELMAP, encoding="utf-8-sig")
    describe(data_dir, MAPS + f"colors = {table}\n")
    np.testing.assert_array_equal(read(data_dir), channels(values))
    colored[5, 6:9] = 61, 245, 62
    Image.fromarray(colored).save(path)
    with pytest.raises(InputError, match=r"0\.png: 3 pixels have the color \[61, 245, 62\], which no label has"):
        read(data_dir)


@pytest.mark.parametrize("line", ["heart", "heart:1,2", "heart:1,2,256::", ":1,2,3::", "heart 1,2,3"])
def test_a_wrong_line_in_a_table_of_colors(drawn, line):
    (drawn[0] / "mine" / "labelmap.txt").write_text(LABELMAP + line)
    describe(drawn[0], MAPS + 'colors = "labelmap.txt"\n')
    with pytest.raises(InputError, match=rf"labelmap\.txt: line 6 is '{line}'"):
        open_dataset("mine", drawn[0])


def test_a_label_that_covers_most_of_an_image(drawn):
    """As after an exchange of background and label; what the message says to write lets it through."""
    data_dir, path, values = drawn
    exchanged = np.array([2, 1, 0], np.uint8)[values]
    Image.fromarray(exchanged).save(path)
    share = 100 * (exchanged == 2).mean()
    with pytest.raises(InputError, match=rf"0\.png: lung covers {share:.0f} % of the image") as caught:
        read(data_dir)
    remedy = re.search(r"`(large_labels = .*?)`", str(caught.value))[1]
    describe(data_dir, MAPS + remedy)
    np.testing.assert_array_equal(read(data_dir), channels(exchanged))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_are_turned_alike(drawn, orientation):
    data_dir, path, values = drawn
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    for place in (path, data_dir / "mine" / "img" / "0.png"):
        Image.fromarray(values).save(place, exif=tags)
    upright = {1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 5: values.T,
               6: np.rot90(values, -1), 7: np.rot90(values, 2).T, 8: np.rot90(values)}[orientation]
    describe(data_dir, input_size=str(list(upright.shape)))
    np.testing.assert_array_equal(read(data_dir), channels(upright))
    assert open_dataset("mine", data_dir).stems("train")
    tifffile.imwrite(path.with_suffix(".tif"), values, extratags=[(274, "H", 1, orientation, True)])
    path.unlink()
    np.testing.assert_array_equal(read(data_dir), channels(upright))


def test_lossy_formats_are_no_label_maps(drawn):
    """Also under a name of another format; PNG gets through."""
    data_dir, path, values = drawn
    for form in ("JPEG", "WEBP"):
        Image.fromarray(values).save(path, format=form)
        with pytest.raises(InputError, match=rf"0\.png: is a {form} file, which keeps values only roughly"):
            read(data_dir)
    for suffix in (".jpg", ".JPEG"):
        path.unlink(missing_ok=True)
        Image.fromarray(values).save(path.with_suffix(suffix), format="JPEG")
        with pytest.raises(InputError, match=rf"masks: 0\{suffix}: such files keep values only roughly"):
            open_dataset("mine", data_dir)
        Image.fromarray(values).save(path)
        np.testing.assert_array_equal(read(data_dir), channels(values))  # the other one is a picture of it
        path.with_suffix(suffix).unlink()


def test_several_frames_and_transparency_tell_no_label(drawn):
    data_dir, path, values = drawn
    Image.fromarray(np.stack([*[values] * 3, values * 100], axis=-1)).save(path)
    with pytest.raises(InputError, match=r"0\.png: is transparent in places"):
        read(data_dir)
    path.unlink()
    tifffile.imwrite(path.with_suffix(".tif"), np.stack([values, values]), photometric="minisblack")
    with pytest.raises(InputError, match=r"0\.tif: holds 2 images"):
        read(data_dir)


def test_endings_of_names(drawn):
    """`_mask` of masks, nnU-Net's `_0000` of images."""
    data_dir, path, values = drawn
    Image.fromarray(values).save(path)
    for folder, ending in (("masks", "_mask"), ("img", "_0000")):
        for file in (data_dir / "mine" / folder).iterdir():
            file.rename(file.with_stem(file.stem + ending))
    describe(data_dir, 'image_ending = "_0000"\n' + MAPS + 'ending = "_mask"\n')
    data = open_dataset("mine", data_dir)
    assert data.stems("train") == ["0", "1", "2", "3"] and data.image_path("2").name == "2_0000.png"
    np.testing.assert_array_equal(data.mask("0"), channels(values))


FILES = """[masks]
kind = "label_files"
train = 2
val = 1
files = { heart = "*/heart/{stem}.gif", lung = "{stem}_lung.png" }
"""


@pytest.fixture
def files(drawn) -> tuple[Path, np.ndarray]:
    """One file per label and image, in two folds as SCR has them, of the images 0 to 3."""
    data_dir, _, values = drawn
    for number in range(4):
        heart = data_dir / "mine" / f"fold{number % 2}" / "heart" / f"{number}.gif"
        heart.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(values == 1, number) * np.uint8(255)).save(heart)
        Image.fromarray(np.roll(values == 2, number) * np.uint8(1)).save(data_dir / "mine" / f"{number}_LUNG.PNG")
    describe(data_dir, FILES)
    return data_dir, values


def test_one_file_per_label(files):
    data_dir, values = files
    data = open_dataset("mine", data_dir)
    assert [data.stems(split) for split in ("train", "val", "test")] == [["0", "1"], ["2"], ["3"]]
    for number in range(4):
        np.testing.assert_array_equal(data.mask(str(number)), channels(np.roll(values, number)))
    (data_dir / "mine" / "3_LUNG.PNG").unlink()
    with pytest.raises(InputError, match=r"1 of 4 images have no file \{stem\}_lung\.png \(3\); .* `missing_files = "):
        open_dataset("mine", data_dir)
    describe(data_dir, FILES + 'missing_files = "empty"')
    assert read(data_dir, "3").any(axis=(1, 2)).tolist() == [True, False]


@pytest.mark.parametrize(("old", "new", "message"), [
    ("{stem}_lung.png", "lung.png", r"has 'lung\.png'; write \{stem\} once"),
    ("{stem}_lung.png", "{stem}_lungs.png", r"holds no file \{stem\}_lungs\.png"),
    ("lung =", "lungs =", r"`files` in \[masks\]: lacks the label 'lung' \(lungs\?\)"),
])
def test_names_of_files_that_dont_fit(files, old, new, message):
    describe(files[0], FILES.replace(old, new))
    with pytest.raises(InputError, match=message):
        open_dataset("mine", files[0])


def test_a_file_of_one_label_has_two_values(files):
    data_dir, values = files
    path = data_dir / "mine" / "0_LUNG.PNG"
    Image.fromarray(values).save(path)
    with pytest.raises(InputError, match=r"0_LUNG\.PNG: has 3 grey values"):
        read(data_dir)
    Image.fromarray(values < 2).save(path)
    with pytest.raises(InputError, match=r"0_LUNG\.PNG: lung covers 93 % of the image"):
        read(data_dir)
    Image.fromarray(values[1:] == 2).save(path)
    with pytest.raises(InputError, match=r"0_LUNG\.PNG: is 60 x 35 pixels, another mask of this image 60 x 36"):
        read(data_dir)
