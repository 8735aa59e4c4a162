import csv
import re
from pathlib import Path

import numpy as np
import pytest
from skimage.draw import polygon2mask

from utils.datasets.cvat import CvatImage, CvatShape, RunLengths, draw_masks, parse_cvat
from utils.errors import InputError

ATTRIBUTE = '<attribute name="Anatomie">{}</attribute>'
POLYGON = f'<polygon label="Knochen" points="{{}}">{ATTRIBUTE}</polygon>'
MASK = f'<mask label="Knochen" rle="{{}}" left="{{}}" top="{{}}" width="{{}}" height="{{}}">{ATTRIBUTE}</mask>'
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
    (MASK.format("1, 5", 28, 0, 3, 2, "Radius"), "outside the image"),
    (MASK.format("1, 5", 0, 19, 3, 2, "Radius"), "outside the image"),
    (MASK.format("1, 5", -1, 0, 3, 2, "Radius"), "outside the image"),
    (MASK.format("1, 5", "left", 0, 3, 2, "Radius"), "not a whole number"),
    (f'<ellipse label="Knochen" cx="3" cy="3" rx="1" ry="1">{ATTRIBUTE.format("Radius")}</ellipse>', "<ellipse>"),
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
