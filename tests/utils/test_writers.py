"""Annotations that were written, against our reader, OpenCV, and pycocotools."""
import json

import cv2
import numpy as np
import pytest
from lxml import etree

from utils.datasets.cvat import draw_masks, find_label, parse_cvat
from utils.datasets.writers import CvatLabels, ExportedImage, run_lengths, write_coco, write_cvat

LABELS = ("heart", "Os längst", "lung", "rib")
SIZE = 211, 340


@pytest.fixture(scope="module")
def image() -> ExportedImage:
    """Blobs of several components; a ring, a line and a pixel; an empty mask; one that fills the image."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).random(SIZE), (0, 0), 9)
    masks = np.zeros((4, *SIZE), bool)
    masks[0] = noise > np.quantile(noise, 0.8)
    odd = np.zeros(SIZE, np.uint8)
    cv2.circle(odd, (100, 90), 40, 1, 12)
    cv2.line(odd, (200, 20), (330, 200), 1, 1)
    odd[0, -1] = odd[200, 3] = 1
    masks[1], masks[3] = odd > 0, True
    return ExportedImage("AP/1 ä.png", masks, np.array([0.75, np.nan, np.nan, 1]))


def dice(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return 2 * (first & second).sum(axis=(1, 2)) / np.maximum((first.sum(axis=(1, 2)) + second.sum(axis=(1, 2))), 1)


@pytest.mark.parametrize("label", [CvatLabels(LABELS), CvatLabels(LABELS, "organ", "which")])
def test_masks_pixel_by_pixel_come_back_exactly(tmp_path, image, label):
    write_cvat(tmp_path / "a.xml", [image], label, tolerance=None)
    read, = parse_cvat(tmp_path / "a.xml", label.attribute, LABELS, subfolders=True)
    assert (read.stem, read.name, read.subset) == ("AP__1 ä", image.name, None)
    np.testing.assert_array_equal(draw_masks(read, LABELS), image.masks)
    if label.attribute:
        assert find_label(tmp_path / "a.xml", "which") == "organ"


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 5.0])
def test_outlines_give_the_masks_back(tmp_path, image, tolerance):
    write_cvat(tmp_path / "a.xml", [image], CvatLabels(LABELS), tolerance)
    read, = parse_cvat(tmp_path / "a.xml", None, LABELS)
    drawn = draw_masks(read, LABELS)
    assert dice(drawn, image.masks)[[0, 1, 3]].min() >= 0.99 and not drawn[2].any()
    np.testing.assert_array_equal(drawn[1, 45:135, 55:145], image.masks[1, 45:135, 55:145])
    outlines = cv2.findContours(image.masks[0].view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    polygons = [shape.polygon for shape in read.shapes if shape.anatomy == "heart" and shape.polygon is not None]
    assert len(polygons) == len(outlines) and sum(map(len, polygons)) < sum(map(len, outlines)) / 2


def test_cvat_files_have_what_cvat_reads(tmp_path, image):
    """Its importer takes the name, label, occluded, and an attribute that the label has."""
    labels = CvatLabels(LABELS, "organ", "which")
    write_cvat(tmp_path / "a.xml", [image, image._replace(name="b.png")], labels)
    root = etree.parse(tmp_path / "a.xml").getroot()
    assert [element.get("id") for element in root.findall("image")] == ["0", "1"]
    described = {attribute["name"] for label in labels.describe() for attribute in label["attributes"]}
    assert described == {"which", "estimated_dice"} == set(root.xpath("meta//attribute/name/text()"))
    shapes = root.findall("image/*")
    assert {shape.tag for shape in shapes} == {"polygon", "mask"}
    for shape in shapes:
        assert shape.get("label") == "organ" and shape.get("occluded") == "0"
        attributes = {each.get("name"): each.text for each in shape}
        assert attributes.get("estimated_dice") == {"heart": "0.7500", "rib": "1.0000"}.get(attributes["which"])


def test_run_lengths_add_up():
    assert run_lengths(np.array([0, 0, 1, 0, 1, 1], bool)) == (2, 1, 1, 2)
    assert run_lengths(np.array([1, 1, 0], bool)) == (0, 2, 1)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_loads_what_was_written(tmp_path, image):
    COCO = pytest.importorskip("pycocotools.coco", reason="pycocotools isn't installed").COCO
    write_coco(tmp_path / "a.json", [image, image._replace(name="b.png", masks=image.masks[:, :50])], LABELS)
    coco = COCO(tmp_path / "a.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(LABELS)
    assert [(each["file_name"], each["height"]) for each in coco.loadImgs([1, 2])] == [(image.name, 211), ("b.png", 50)]
    from pycocotools import mask as coco_masks
    for annotation in coco.loadAnns(coco.getAnnIds()):
        expected = image.masks[annotation["category_id"] - 1][:211 if annotation["image_id"] == 1 else 50]
        np.testing.assert_array_equal(coco.annToMask(annotation), expected)
        encoded = coco.annToRLE(annotation)
        assert annotation["area"] == coco_masks.area(encoded)
        assert annotation["bbox"] == coco_masks.toBbox(encoded).tolist()
    scores = [each.get("score") for each in json.loads((tmp_path / "a.json").read_text())["annotations"][:3]]
    assert scores == [0.75, None, 1.0]
