import csv
import re
import unicodedata
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.draw import polygon2mask

from utils.datasets.cvat import CvatImage, CvatShape, RunLengths, draw_masks, parse_cvat
from utils.errors import InputError

ATTRIBUTE = '<attribute name="Anatomie">{}</attribute>'
POLYGON = f'<polygon label="Knochen" points="{{}}">{ATTRIBUTE}</polygon>'
MASK = f'<mask label="Knochen" rle="{{}}" left="{{}}" top="{{}}" width="{{}}" height="{{}}">{ATTRIBUTE}</mask>'
BOX = f'<box label="Knochen" xtl="{{}}" ytl="{{}}" xbr="{{}}" ybr="{{}}" rotation="{{}}">{ATTRIBUTE}</box>'
ELLIPSE = f'<ellipse label="Knochen" cx="{{}}" cy="{{}}" rx="{{}}" ry="{{}}" rotation="{{}}">{ATTRIBUTE}</ellipse>'
TRIANGLE = POLYGON.format("1,1;9.5,1;1,6.25", "Radius")


def write_cvat(path: Path, *images: str) -> Path:
    path.write_text(f"<?xml version='1.0' encoding='UTF-8'?><annotations><version>1.1</version>{''.join(images)}"
                    "</annotations>", encoding="utf-8")
    return path


def image_xml(shapes: str, name: str = "a.png", width: int = 30, height: int = 20) -> str:
    return f'<image id="0" name="{name}" width="{width}" height="{height}">{shapes}</image>'


def test_reads_names_sizes_subsets_and_shapes(tmp_path):
    path = write_cvat(tmp_path / "a.xml", image_xml(TRIANGLE, "job_1/left.hand/0001_01.v2.jpeg"),
                      '<image id="1" name="folder\\b.png" subset="Validation" width="7" height="8"/>')
    first, second = parse_cvat(path)
    assert (first.stem, first.width, first.height, first.subset) == ("0001_01.v2", 30, 20, None)
    assert first.shapes[0].anatomy == "Radius"
    np.testing.assert_array_equal(first.shapes[0].polygon, [[1, 1], [9.5, 1], [1, 6.25]])
    assert (second.stem, second.subset, second.shapes) == ("b", "Validation", ())


def test_draws_union_of_shapes_and_drops_other_anatomies(tmp_path):
    rle = MASK.format("1, 2, 3", 20, 4, 3, 2, "Radius") + MASK.format("5, 1", 1, 1, 3, 2, "Radius")  # .XX/... .../..X
    path = write_cvat(tmp_path / "a.xml", image_xml(TRIANGLE + rle + POLYGON.format("0,0;29,0;0,19", "Sonstiges")))
    masks = draw_masks(parse_cvat(path)[0], ["Ulna", "Radius"])
    expected = polygon2mask((20, 30), np.array([[1, 1], [1, 9.5], [6.25, 1]]))
    expected[4, 21:23] = True
    expected[2, 3] = True
    assert masks.shape == (2, 20, 30) and masks.dtype == bool
    assert not masks[0].any()
    np.testing.assert_array_equal(masks[1], expected)


def test_label_names_the_anatomy_without_an_attribute(tmp_path):
    path = write_cvat(tmp_path / "a.xml", image_xml('<polygon label="heart" points="1,1;5,1;1,5"/>'))
    assert parse_cvat(path, attribute=None)[0].shapes[0].anatomy == "heart"


@pytest.mark.parametrize("seed", range(20))
def test_polygons_equal_polygon2mask_also_across_the_border(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform((-8, -5), (38, 25), (rng.integers(3, 9), 2))
    drawn = draw_masks(CvatImage("a", "a.png", 30, 20, None, (CvatShape("x", polygon=points),)), ["x"])[0]
    np.testing.assert_array_equal(drawn, polygon2mask((20, 30), points[:, ::-1]))


@pytest.mark.parametrize("rotation", ["0", "30", "90", "-200.5"])
def test_boxes_turn_clockwise_about_their_center(tmp_path, rotation):
    path = write_cvat(tmp_path / "a.xml", image_xml(BOX.format("4.5", 6, "20.25", 13, rotation, "Radius")))
    mask = draw_masks(parse_cvat(path)[0], ["Radius"])[0]
    center = complex(12.375, 9.5)
    turn = np.exp(1j * np.radians(float(rotation)))  # y points down, so this is clockwise
    corners = np.array([4.5 + 6j, 20.25 + 6j, 20.25 + 13j, 4.5 + 13j])
    corners = center + turn * (corners - center)
    outline = np.stack([corners.imag, corners.real], axis=1)
    if rotation == "0":
        outline = np.array([[6, 4.5], [6, 20.25], [13, 20.25], [13, 4.5]])
        assert mask[6:14, 5:21].all() and mask.sum() == 8 * 16
    np.testing.assert_array_equal(mask, polygon2mask((20, 30), outline))


@pytest.mark.parametrize("rotation", [0, 25, 100])
def test_ellipses_hold_the_pixels_inside(tmp_path, rotation):
    path = write_cvat(tmp_path / "a.xml", image_xml(ELLIPSE.format("12.3", "9.1", "9.2", "3.7", rotation, "Radius")))
    mask = draw_masks(parse_cvat(path)[0], ["Radius"])[0]
    for y, x in np.ndindex(20, 30):
        offset = complex(x - 12.3, y - 9.1) * np.exp(-1j * np.radians(rotation))
        assert mask[y, x] == ((offset.real / 9.2) ** 2 + (offset.imag / 3.7) ** 2 <= 1)
    by_cv = cv2.ellipse(np.zeros((20, 30), np.uint8), ((12.3, 9.1), (18.4, 7.4), rotation), 1, -1)  # CVAT's own way
    assert 2 * (mask & (by_cv > 0)).sum() / (mask.sum() + by_cv.sum()) > 0.93


@pytest.mark.parametrize(("left", "top"), [(4, 19), (28, 3), (-1, 4), (3, -1)])
def test_a_mask_that_is_a_row_too_large_is_clipped(tmp_path, left, top):
    path = write_cvat(tmp_path / "a.xml", image_xml(MASK.format("1, 5", left, top, 3, 2, "Radius")))
    mask = draw_masks(parse_cvat(path)[0], ["Radius"])[0]
    large = np.zeros((40, 50), bool)
    large[10 + top:12 + top, 10 + left:13 + left] = [[False, True, True], [True, True, True]]
    np.testing.assert_array_equal(mask, large[10:30, 10:40])


UNUSED = [POLYGON.format("1,1;2,2", "Ulna"), MASK.format("x", "?", 0, 3, 2, "Ulna"), BOX.format(1, 1, 5, 5, 0, "Ulna"),
          f'<points label="Knochen" points="3,4">{ATTRIBUTE.format("Ulna")}</points>',
          f'<polyline label="Knochen" points="3,4;5,6">{ATTRIBUTE.format("Ulna")}</polyline>',
          '<skeleton label="hand"><points label="thumb" points="3,4" outside="0"/></skeleton>',
          '<cuboid label="cast" xtl1="1.0" ytl1="2.0"/>', '<box label="marker" xtl="1" ytl="1" xbr="9" ybr="9"/>']


@pytest.mark.parametrize("shape", UNUSED)
def test_shapes_of_labels_that_nobody_asked_for_are_counted_and_not_read(tmp_path, shape):
    path = write_cvat(tmp_path / "a.xml", image_xml(shape + TRIANGLE + shape))
    image, = parse_cvat(path, labels=("Radius",))
    name = "Ulna" if "Ulna" in shape else re.search('label="(.*?)"', shape)[1] + " (without Anatomie)"
    assert image.unused == {name: 2} and [drawn.anatomy for drawn in image.shapes] == ["Radius"]


def test_what_the_message_about_points_says_lets_them_through(tmp_path):
    points = f'<points label="Knochen" points="3,4">{ATTRIBUTE.format("Radius")}</points>'
    path = write_cvat(tmp_path / "a.xml", image_xml(points + TRIANGLE))
    with pytest.raises(InputError, match=r'which has no area; .*`skip_shapes = \["points"\]`'):
        parse_cvat(path, labels=("Radius",))
    image, = parse_cvat(path, labels=("Radius",), skip_shapes=("points",))
    assert (len(image.shapes), image.skipped) == (1, {"points": 1})


@pytest.mark.parametrize("typed", ["Os  capitatum", " Os capitatum ", "Os\ncapitatum", "\n    Os capitatum\n  "])
def test_spaces_and_line_breaks_dont_tell_labels_apart(tmp_path, typed):
    path = write_cvat(tmp_path / "a.xml", image_xml(POLYGON.format("1,1;9.5,1;1,6.25", typed)))
    assert parse_cvat(path, labels=("Os capitatum",))[0].shapes[0].anatomy == "Os capitatum"


def test_unicode_forms_dont_tell_names_apart(tmp_path):
    composed, parted = (unicodedata.normalize(form, "Schlüsselbein_é") for form in ("NFC", "NFD"))
    path = write_cvat(tmp_path / "a.xml", image_xml(POLYGON.format("1,1;9.5,1;1,6.25", parted), f"{parted}.png"))
    for label in (composed, parted):
        image, = parse_cvat(path, labels=(label,))
        assert image.stem == composed and image.shapes[0].anatomy == label and draw_masks(image, [label]).any()


@pytest.mark.parametrize("member", ["annotations.xml", "task_1/annotations.xml"])
def test_the_zip_file_that_cvat_exports_is_read(tmp_path, member):
    xml = write_cvat(tmp_path / "a.xml", image_xml(TRIANGLE)).read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, xml)
        archive.writestr("images/a.png", b"")
    assert [image.stem for image in parse_cvat(tmp_path / "a.zip")] == ["a"]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("labelmap.txt", "")
    with pytest.raises(InputError, match=r"b\.zip: holds 0 files annotations\.xml; export one task as 'CVAT for"):
        parse_cvat(tmp_path / "b.zip")
    broken = bytearray((tmp_path / "a.zip").read_bytes())
    broken[60:80] = bytes(20)
    (tmp_path / "a.zip").write_bytes(broken)
    with pytest.raises(InputError, match=r"a\.zip: not a readable ZIP file"):
        parse_cvat(tmp_path / "a.zip")


def test_images_of_one_name_in_two_folders(tmp_path):
    """What the message says lets them through."""
    path = write_cvat(tmp_path / "a.xml", image_xml(TRIANGLE, "p1/AP.png"), image_xml(TRIANGLE, "p2/AP.png"))
    with pytest.raises(InputError, match=r"image AP appears twice .*`subfolders = true`"):
        parse_cvat(path)
    assert [image.stem for image in parse_cvat(path, subfolders=True)] == ["p1__AP", "p2__AP"]
    frame = image_xml("", "AP.png")
    again = write_cvat(tmp_path / "b.xml", frame, image_xml(TRIANGLE, "AP.png"), frame)
    assert [(image.stem, len(image.shapes)) for image in parse_cvat(again)] == [("AP", 1)]  # a frame of another job


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_give_back_a_random_mask(seed):
    box = np.random.default_rng(seed).random((5, 7)) < 0.5
    runs, current = [0], False
    for value in box.ravel():
        if value != current:
            runs.append(0)
            current = value
        runs[-1] += 1
    shape = CvatShape("x", rle=RunLengths(tuple(runs), left=4, top=9, width=7, height=5))
    mask = draw_masks(CvatImage("a", "a.png", 30, 20, None, (shape,)), ["x"])[0]
    np.testing.assert_array_equal(mask[9:14, 4:11], box)
    assert mask.sum() == box.sum()


@pytest.mark.parametrize(("shapes", "message"), [
    (POLYGON.format("1,1;2,2", "Radius"), "malformed points"),
    (POLYGON.format("1,1;2,2;3", "Radius"), "malformed points"),
    (POLYGON.format("1,1;2,x;3,3", "Radius"), "malformed points"),
    (POLYGON.format("1,1;2,nan;3,3", "Radius"), "malformed points"),
    (POLYGON.format("", "Radius"), "malformed points"),
    (POLYGON.format("1,1;2,2;3,3", ""), "without attribute 'Anatomie'"),
    ('<polygon label="Radius" points="1,1;2,2;3,1"/>', "without attribute 'Anatomie'"),
    (MASK.format("1, a", 0, 0, 3, 2, "Radius"), "malformed rle"),
    (MASK.format("1, 2", 0, 0, 3, 2, "Radius"), "rle of 3 pixels"),
    (MASK.format("-1, 7", 0, 0, 3, 2, "Radius"), "rle of 6 pixels"),
    (MASK.format("1, 5", 30, 0, 3, 2, "Radius"), "outside the image"),
    (MASK.format("1, 5", 0, 20, 3, 2, "Radius"), "outside the image"),
    (MASK.format("1, 5", -3, 0, 3, 2, "Radius"), "outside the image"),
    (POLYGON.format("31,1;33,1;32,3", "Radius"), "outside the image"),
    (BOX.format(1, 2, 3, "x", 0, "Radius"), "has ybr 'x', which is not a number"),
    (ELLIPSE.format(1, 2, 0, 3, 0, "Radius"), "radii of 0.0 and 3.0"),
    (ELLIPSE.format(1, 2, 3, 3, "inf", "Radius"), "has rotation 'inf'"),
    (MASK.format("1, 5", "left", 0, 3, 2, "Radius"), "not a whole number"),
    (f'<points label="Knochen" points="3,4">{ATTRIBUTE.format("Radius")}</points>', "(Radius), which has no area"),
])
def test_malformed_shapes_name_file_and_image(tmp_path, shapes, message):
    path = write_cvat(tmp_path / "odd.xml", image_xml("", "fine.png"), image_xml(shapes, "bad.png"))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        parse_cvat(path)
    assert "odd.xml" in str(caught.value) and "bad.png" in str(caught.value)


ENTITY = '<!DOCTYPE annotations [<!ENTITY e SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(("text", "message"), [
    ("", "not readable as XML"),
    ("<annotations><version>1.1</version><image", "truncated"),
    ("<annotations><version>1.1</version></annotations>", "holds no <image>"),
    ("<annotations><version>1.0</version></annotations>", "CVAT for images 1.1"),
    ("<annotation><filename>a.png</filename></annotation>", "CVAT for images 1.1"),
    ('<annotations><version>1.1</version><track id="0"/></annotations>', "CVAT for images 1.1"),
    (f"{ENTITY}<annotations><version>1.1</version><image>&e;</image></annotations>", "entities"),
    ('<annotations><version>1.1</version><image name="a.png" width="0" height="3"/></annotations>', "a size"),
    ('<annotations><version>1.1</version><image name="a.png" width="3"/></annotations>', "height None"),
])
def test_refuses_other_files(tmp_path, text, message):
    path = tmp_path / "odd.xml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        parse_cvat(path)


def test_refuses_a_missing_file_and_an_image_named_twice(tmp_path):
    with pytest.raises(InputError, match=r"absent\.xml"):
        parse_cvat(tmp_path / "absent.xml")
    path = write_cvat(tmp_path / "twice.xml", image_xml("", "x/a.png"), image_xml("", "a.jpg"))
    with pytest.raises(InputError, match="appears twice"):
        parse_cvat(path)


@pytest.mark.shared
def test_real_annotations_are_read_completely(shared):
    images = [image for path in sorted((shared / "data/graz/annotations").glob("*.xml")) for image in parse_cvat(path)]
    shapes = [shape for image in images for shape in image.shapes]
    assert (len(images), len({image.stem for image in images})) == (84, 84)
    assert sum(shape.rle is not None for shape in shapes) == 13 + 7 + 34
    assert sum(shape.polygon is not None for shape in shapes) == 249 + 574 + 469 + 235


@pytest.mark.shared
def test_the_stem_tells_the_laterality(shared):
    with (shared / "data/graz/dataset.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20327
    assert [row["filestem"] for row in rows if f"_WRI-{row['laterality']}" not in row["filestem"]] == []
