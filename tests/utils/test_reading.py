"""What is read of a data set as people have them, and that the rest is said: names, suffixes, folders, frames that
nobody annotated, tables with gaps, HDF5 files of other programs."""
import unicodedata
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from skimage.draw import polygon2mask

from tests.conftest import OWN_DESCRIPTION
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.datasets.description import OWN, load_description
from utils.datasets.image_files import find_files
from utils.errors import InputError

HEAD = OWN_DESCRIPTION.partition("[masks]")[0] + "mean = 0.5\nstd = 0.25\npos_weight = [1.0, 1.0]\n"
CVAT = """[masks]
kind = "cvat"
train = [{ file = "all.xml", subset = "train" }]
val = [{ file = "all.xml", subset = "val" }]
test = [{ file = "all.xml", subset = "test" }]
"""
SQUARE = '<polygon label="{}" points="5,4;20,4;20,15;5,15"/>'
HEART = SQUARE.format("heart")
NAMES = {"a.png": "train", "b.png": "train", "c.png": "val", "d.png": "test"}


def describe(data_dir: Path, *lines: str, masks: str = CVAT) -> None:
    (data_dir / "mine").mkdir(exist_ok=True)
    (data_dir / "mine" / OWN).write_text("\n".join(lines) + HEAD + masks, encoding="utf-8")


def annotate(data_dir: Path, shapes: dict[str, str], splits: dict[str, str] = NAMES, size: tuple[int, int] = (36, 60)
             ) -> None:
    """Writes a CVAT file of images (name -> shapes), with the split of each."""
    size = f'width="{size[1]}" height="{size[0]}"'
    images = "".join(f'<image name="{name}" subset="{splits[name]}" {size}>{shape}</image>'
                     for name, shape in shapes.items())
    text = f"<annotations><version>1.1</version>{images}</annotations>"
    (data_dir / "mine" / "all.xml").write_text(text, encoding="utf-8")


def put_images(data_dir: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = data_dir / "mine" / "img" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((36, 60), 10 * number + 50, np.uint8)).save(path)


@pytest.fixture
def mine(tmp_path) -> Path:
    """A data folder with four annotated images and one other."""
    describe(tmp_path)
    annotate(tmp_path, dict.fromkeys(NAMES, HEART))
    put_images(tmp_path, *NAMES, "e.png")
    return tmp_path


def splits(data: AnnotatedImages) -> list[list[str]]:
    return [data.stems(split) for split in ("train", "val", "test")]


def others(data: AnnotatedImages) -> list[str]:
    return data.unlabeled_stems(len(data.stems("train")), False, 0)


def test_reading_ends_with_one_line_once(mine, capsys):
    annotate(mine, dict.fromkeys(NAMES, HEART) | {"b.png": HEART + SQUARE.format("lung") + HEART})
    for _ in range(3):
        open_dataset("mine", mine)
    assert capsys.readouterr().err.splitlines() == [
        "mine: 2 training, 1 validation, 1 test images, 1 not annotated; 2 labels in 6 shapes (from 1 of lung to 5 of "
        "heart)"]
    annotate(mine, dict.fromkeys(NAMES, HEART))
    open_dataset("mine", mine)
    assert "from 0 of lung to 4 of heart" in capsys.readouterr().err


def test_frames_that_nobody_annotated_are_unlabeled(mine, capsys):
    shapes = {"a.png": "", "b.png": HEART, "c.png": HEART, "d.png": HEART}
    annotate(mine, shapes)
    data = open_dataset("mine", mine)
    assert splits(data) == [["b"], ["c"], ["d"]] and others(data) == ["a", "e"]
    assert "left out: 1 images without a shape of these labels (a): they count as not" in capsys.readouterr().err
    describe(mine, masks=CVAT + 'without_shapes = "empty"\n')
    data = open_dataset("mine", mine)
    assert splits(data)[0] == ["a", "b"] and others(data) == ["e"] and not data.mask("a").any()
    describe(mine)
    annotate(mine, shapes | {"d.png": '<tag label="seen"/>' + SQUARE.format("Heart")})
    with pytest.raises(InputError, match=r"no image is left in the test split of mine.*left out: 1 shapes of 1 labels "
                                         r"that the description lacks: Heart \(heart\?\) 1"):
        open_dataset("mine", mine)


def test_labels_that_the_description_lacks_are_counted_with_the_likely_spelling(mine, capsys):
    odd = "".join(map(SQUARE.format, ["Heart", "hearts", "heart ", "rib", "rib"]))
    annotate(mine, dict.fromkeys(NAMES, HEART) | {"a.png": odd})
    data = open_dataset("mine", mine)
    expected = polygon2mask((36, 60), np.array([[4, 5], [4, 20], [15, 20], [15, 5]]))
    np.testing.assert_array_equal(data.mask("a"), [expected, expected & False])
    assert ("left out: 4 shapes of 3 labels that the description lacks: Heart (heart?) 1, hearts (heart?) 1, rib 2"
            in capsys.readouterr().err)


def test_suffixes_count_whatever_their_case_and_the_rest_is_named(mine, capsys):
    put_images(mine, "f.PNG", "g.Png", "h.jpg", "i.JPEG", "sub/j.png", "k.tif")
    data = open_dataset("mine", mine)
    assert others(data) == ["e", "f", "g"]
    assert data.image_path("f").name == "f.PNG"
    said = capsys.readouterr().err
    assert "left out: 3 images without the suffix .png (h.jpg, i.JPEG, k.tif)" in said
    assert "left out: 1 images in folders inside it, which `subfolders = true` reads (sub/j.png)" in said
    describe(mine, 'image_suffix = [".png", ".jpg", ".tiff"]')
    data = open_dataset("mine", mine)
    assert others(data) == ["e", "f", "g", "h", "i", "k"] and data.image_path("i").name == "i.JPEG"
    put_images(mine, "k.png")
    with pytest.raises(InputError, match=r"k\.tif: names the same image as k\.png; keep one"):
        open_dataset("mine", mine)


def test_folders_inside_belong_to_the_stem_on_request(mine, capsys):
    """As in `AP.png` of several patients; CVAT may name more folders than there are."""
    describe(mine, "subfolders = true")
    names = {"task/p1/AP.png": "train", "p2/AP.png": "val", "p3\\AP.png": "test"}
    annotate(mine, dict.fromkeys(names, HEART), names)
    put_images(mine, "p1/AP.png", "p2/AP.png", "p3/AP.png", "p4/AP.png", "p4/deep/AP.png")
    data = open_dataset("mine", mine)
    assert splits(data) == [["p1__AP"], ["p2__AP"], ["p3__AP"]]
    assert others(data)[-2:] == ["p4__AP", "p4__deep__AP"]
    assert data.image_path("p4__deep__AP") == mine / "mine" / "img" / "p4" / "deep" / "AP.png"
    assert data.mask("p1__AP")[0].any()


def test_unicode_forms_of_one_name_are_one_name(mine):
    composed, parted = (unicodedata.normalize(form, "bläße") for form in ("NFC", "NFD"))
    assert composed != parted
    annotate(mine, {**dict.fromkeys(NAMES, HEART), f"{composed}.png": HEART}, NAMES | {f"{composed}.png": "test"})
    put_images(mine, f"{parted}.png")
    data = open_dataset("mine", mine)
    assert splits(data)[2] == [composed, "d"] and others(data) == ["e"]
    assert data.image_path(composed).name == f"{parted}.png" and data.mask(composed)[0].any()


def test_hidden_files_and_those_of_other_programs_dont_count(tmp_path):
    for name in ("a.png", ".b.png", "._a.png", "__MACOSX/a.png", "notes.txt", "Thumbs.db", "c.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "again").symlink_to(tmp_path)
    found = find_files(tmp_path, [".png"], subfolders=True)
    assert found.paths == {"a": tmp_path / "a.png"}
    assert found.left_out == {"without the suffix .png": ["c.bmp"]}


def test_a_mask_a_row_larger_than_the_image_is_clipped(mine):
    annotate(mine, dict.fromkeys(NAMES, HEART), size=(37, 61))
    expected = polygon2mask((36, 60), np.array([[4, 5], [4, 20], [15, 20], [15, 5]]))
    np.testing.assert_array_equal(open_dataset("mine", mine).mask("a")[0], expected)
    for size in ((38, 60), (36, 59)):
        annotate(mine, dict.fromkeys(NAMES, HEART), size=size)
        with pytest.raises(InputError, match="the image is 60 x 36 pixels, its annotation says"):
            open_dataset("mine", mine).stems("train")


TABLE = """
[metadata]
file = "table.csv"
stem_column = "stem"
keep = { projection = "1" }
mirror = { side = "R" }
as_is = { side = "L" }
"""


def with_table(data_dir: Path, **sides: str) -> AnnotatedImages:
    """The data set where all images are frontal and left but for what `sides` has for their row."""
    describe(data_dir, masks=CVAT + TABLE)
    rows = [f"{stem},{sides.get(stem, 'L,1')}" for stem in "abcde"]
    (data_dir / "mine" / "table.csv").write_text("\n".join(["stem,side,projection", *rows, ",,"]), encoding="utf-8")
    return open_dataset("mine", data_dir)


def test_cells_of_tables_are_compared_as_they_are_meant(mine, capsys):
    drawn = with_table(mine).mask("a")
    assert drawn[0, 4:16, 5:21].all()
    for cell in ("R,1", "r,1", "R ,1 ", " R,1.0", "R,01"):
        np.testing.assert_array_equal(with_table(mine, a=cell).mask("a"), drawn[..., ::-1])
    data = with_table(mine, a="L,2", e="L,3", b="l,1")
    assert splits(data) == [["b"], ["c"], ["d"]]
    np.testing.assert_array_equal(data.mask("b"), drawn)
    said = capsys.readouterr().err
    assert "left out: 1 annotated images that the table of images doesn't keep (a)" in said
    assert "left out: 1 images that the table of images doesn't keep (e)" in said


@pytest.mark.parametrize(("cells", "message"), [
    ({"b": ",1"}, r"table\.csv: row 3 \(b\) has nothing in the column 'side'; fill it in"),
    ({"b": "  ,1"}, r"row 3 \(b\) has nothing in the column 'side'"),
    ({"e": "L,"}, r"row 6 \(e\) has nothing in the column 'projection'"),
    ({"c": "right,1"}, r"row 4 \(c\) has 'right' in the column 'side', which is neither 'R' nor 'L'; correct it"),
    ({"c": "L,1\nc,R,1"}, r"row 5 \(c\) contradicts another row of this image"),
])
def test_a_cell_that_decides_nothing_is_an_error(mine, cells, message):
    with pytest.raises(InputError, match=message):
        with_table(mine, **cells).mask("a")


def test_an_image_that_doesnt_count_may_have_any_side(mine):
    assert with_table(mine, e=",2").mask("a")[0].any()


def test_a_description_may_begin_with_a_byte_order_mark(mine):
    path = mine / "mine" / OWN
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert open_dataset("mine", mine).description.labels == ("heart", "lung")


@pytest.mark.parametrize("name", ["dental", "graz", "jsrt", "phantom"])
def test_a_name_that_is_taken(mine, name):
    (mine / "mine").rename(mine / name)
    with pytest.raises(InputError, match=rf"{name}/description\.toml: would not be read, since '{name}' is the name"):
        load_description(name, mine)
    (mine / name).rename(mine / "mine")  # what the message says to do
    assert splits(open_dataset("mine", mine))[0] == ["a", "b"]


STORE = '[masks]\nkind = "mask_store"\nfile = "masks.h5"\ntrain = 2\nval = 1\n'


def store(data_dir: Path, masks: dict[str, object], labels: object = '{"heart": 0, "lung": 1}') -> None:
    """A file of masks as another program might write it, with h5py alone."""
    with h5py.File(data_dir / "mine" / "masks.h5", "w") as file:
        file.attrs["labels"] = labels
        for stem, mask in masks.items():
            file[f"segmentation_mask/{stem}"] = mask
    describe(data_dir, masks=STORE)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_masks_of_an_hdf5_file_of_any_type(mine, dtype):
    masks = np.random.default_rng(0).random((4, 2, 36, 60)) < 0.3
    store(mine, dict(zip("abcd", masks.astype(dtype), strict=True)))
    data = open_dataset("mine", mine)
    for stem, mask in zip("abcd", masks, strict=True):
        np.testing.assert_array_equal(data.mask(stem), mask)


@pytest.mark.parametrize(("mask", "message"), [
    (np.zeros((1, 36, 60), bool), r"of shape \(1, 36, 60\) .* it must be \(2, H, W\)"),
    (np.zeros((3, 36, 60), bool), r"of shape \(3, 36, 60\)"),
    (np.zeros((36, 60), np.uint8), r"of shape \(36, 60\)"),
    (np.full((2, 36, 60), 255, np.uint8), "holds other numbers than 0 and 1, such as 255"),
    (np.full((2, 36, 60), 0.25, np.float32), "holds other numbers than 0 and 1, such as 0.25"),
    (np.full((2, 36, 60), np.nan), "holds other numbers than 0 and 1, such as nan"),
    (np.full((2, 3, 4), b"x"), "of shape .* and type"),
])
def test_masks_of_another_form_in_an_hdf5_file(mine, mask, message):
    store(mine, dict.fromkeys("abcd", mask))
    with pytest.raises(InputError, match=rf"masks\.h5: the mask of a (is )?{message}"):
        open_dataset("mine", mine).mask("a")


@pytest.mark.parametrize("labels", ["[]", "{", "3", 3, np.arange(3), b"\xff"])
def test_a_malformed_hdf5_file_is_one_line(mine, labels):
    store(mine, dict.fromkeys("abcd", np.zeros((2, 36, 60), bool)), labels)
    with pytest.raises(InputError, match=r"masks\.h5: "):
        open_dataset("mine", mine)


def test_parts_of_an_hdf5_file_that_are_something_else(mine):
    with h5py.File(mine / "mine" / "masks.h5", "w") as file:
        file.attrs["labels"] = '{"heart": 0, "lung": 1}'
        file["segmentation_mask"] = np.zeros(3)
    describe(mine, masks=STORE)
    with pytest.raises(InputError, match=r"masks\.h5: "):
        open_dataset("mine", mine)
    store(mine, {f"{stem}/deep": np.zeros(3) for stem in "abcd"})
    with pytest.raises(InputError, match=r"masks\.h5: the mask of a is not readable"):
        open_dataset("mine", mine).mask("a")


@pytest.mark.parametrize("line", ["skip_shapes = ['polygon']", "without_shapes = 'none'", "grey_range = 'bit'"])
def test_a_wrong_choice_lists_the_right_ones(mine, line):
    masks = CVAT + line if "shapes" in line else CVAT
    describe(mine, "" if "shapes" in line else line, masks=masks)
    with pytest.raises(InputError, match=r"\(known: (points, polyline|unlabeled, empty|stored, bits)"):
        open_dataset("mine", mine)


def test_lists_of_stems_as_people_save_them(mine):
    describe(mine, masks=CVAT + '[training_order]\nfile = "order.csv"\ncolumn = "stem"\n')
    for text in ("stem\n b \na\n", "number;stem\n1;b.png\n2;a.PNG\n;\n", "number\tstem\n1\tb\n2\ta\n"):
        (mine / "mine" / "order.csv").write_text(text, encoding="utf-8-sig")
        assert splits(open_dataset("mine", mine))[0] == ["b", "a"]
