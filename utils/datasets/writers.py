"""Masks as annotations that other tools load: CVAT's format "for images 1.1", and COCO's.

    image = ExportedImage("a.png", masks, estimated_dice)    # bool (C, H, W), float (C,)
    write_cvat(Path("annotations.xml"), [image], CvatLabels(("femur", "tibia")))
    write_coco(Path("annotations.json"), [image], ("femur", "tibia"))
"""
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from lxml import etree

from utils.boxes import bounding_boxes
from utils.datasets.cvat import CvatShape, RunLengths, draw_shape
from utils.files import atomic_path

ESTIMATE = "estimated_dice"  # the attribute of a shape
FAITHFUL = 0.99  # Dice of an outline with its component, else the component is written pixel by pixel


class ExportedImage(NamedTuple):
    """One image with its masks.

    Attributes:
        name: of the file, with its folders inside that of the images
        masks: bool, (C, H, W), at the size of the image
        estimated_dice: float, (C,), NaN where there is none
    """

    name: str
    masks: np.ndarray
    estimated_dice: np.ndarray


@dataclass(frozen=True)
class CvatLabels:
    """What shapes are called in CVAT: by their labels, or all by one label and by the value of its attribute."""

    names: tuple[str, ...]
    label: str | None = None
    attribute: str | None = None

    def of(self, name: str) -> str:
        return name if self.label is None else self.label

    def describe(self) -> list[dict[str, Any]]:
        """As CVAT's constructor of labels takes them (its tab "Raw")."""
        estimate = {"name": ESTIMATE, "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
        own = [] if self.attribute is None else [
            {"name": self.attribute, "mutable": False, "input_type": "select", "default_value": self.names[0],
             "values": list(self.names)}]
        return [{"name": label, "type": "any", "attributes": [*own, estimate]}
                for label in dict.fromkeys(map(self.of, self.names))]


def write_cvat(path: Path, images: Iterable[ExportedImage], labels: CvatLabels, tolerance: float | None = 1.0) -> None:
    """Writes a shape for each connected component of each mask, complete or not at all.

    Args:
        tolerance: how far in pixels an outline may lie from the component's; None: masks pixel by pixel. A component
            that no polygon gives back (with holes, or a line) is written pixel by pixel in any case
    """
    root = etree.Element("annotations")
    etree.SubElement(root, "version").text = "1.1"
    task = etree.SubElement(etree.SubElement(root, "meta"), "task")
    for number, image in enumerate(images):
        height, width = image.masks.shape[1:]
        element = etree.SubElement(root, "image", id=str(number), name=image.name, width=str(width), height=str(height))
        for name, mask, estimate in zip(labels.names, image.masks, image.estimated_dice, strict=True):
            for shape in make_shapes(name, mask, tolerance):
                _write_shape(element, shape, labels, estimate)
    _write_meta(task, labels, len(root.findall("image")))
    with atomic_path(path) as temporary:
        etree.ElementTree(root).write(str(temporary), encoding="utf-8", xml_declaration=True, pretty_print=True)


def _write_meta(task: etree._Element, labels: CvatLabels, size: int) -> None:
    for tag, text in (("name", "pseudo labels"), ("size", str(size)), ("mode", "annotation")):
        etree.SubElement(task, tag).text = text
    all_labels = etree.SubElement(task, "labels")
    for described in labels.describe():
        label = etree.SubElement(all_labels, "label")
        for tag in ("name", "type"):
            etree.SubElement(label, tag).text = described[tag]
        attributes = etree.SubElement(label, "attributes")
        for of_label in described["attributes"]:
            attribute = etree.SubElement(attributes, "attribute")
            for tag, value in of_label.items():
                etree.SubElement(attribute, tag).text = "\n".join(value) if tag == "values" else str(value)


def _write_shape(image: etree._Element, shape: CvatShape, labels: CvatLabels, estimate: float) -> None:
    common = {"label": labels.of(shape.anatomy), "source": "auto", "occluded": "0"}
    if shape.polygon is not None:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in shape.polygon)
        element = etree.SubElement(image, "polygon", **common, points=points, z_order="0")
    else:
        rle = shape.rle
        box = {name: str(getattr(rle, name)) for name in ("left", "top", "width", "height")}
        element = etree.SubElement(image, "mask", **common, rle=", ".join(map(str, rle.runs)), **box, z_order="0")
    if labels.attribute is not None:
        etree.SubElement(element, "attribute", name=labels.attribute).text = shape.anatomy
    if not np.isnan(estimate):
        etree.SubElement(element, "attribute", name=ESTIMATE).text = f"{estimate:.4f}"


def make_shapes(name: str, mask: np.ndarray, tolerance: float | None) -> Iterator[CvatShape]:
    """The connected components (8-neighborhood) of a mask, bool (H, W), as polygons or run lengths; see `write_cvat`.
    """
    count, components, boxes, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    for number, (left, top, width, height, _) in enumerate(boxes[1:count].tolist(), 1):
        component = components[top:top + height, left:left + width] == number
        outline = None if tolerance is None else _find_outline(component, tolerance)
        if outline is None:
            yield CvatShape(name, rle=RunLengths(run_lengths(component.ravel()), left, top, width, height))
        else:
            yield CvatShape(name, polygon=outline + np.array([left, top]))


def _find_outline(component: np.ndarray, tolerance: float) -> np.ndarray | None:
    """The simplest polygon, float (N, 2) as x, y, that gives a component back, bool (H, W); None where none does."""
    (contour, *_), _ = cv2.findContours(component.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for distance in (*(tolerance / 2 ** step for step in range(5)), 0):
        outline = cv2.approxPolyDP(contour, distance, closed=True)[:, 0].astype(np.float64)
        if len(outline) >= 3:
            drawn = np.zeros_like(component)
            draw_shape(CvatShape("", polygon=outline), drawn)
            if 2 * np.count_nonzero(drawn & component) >= FAITHFUL * (drawn.sum() + component.sum()):
                return outline
    return None


def run_lengths(pixels: np.ndarray) -> tuple[int, ...]:
    """Of bool (N,): how many are False, then True, then False ...; the first may be 0."""
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [len(pixels)]])).tolist()
    return (0, *runs) if pixels[0] else tuple(runs)


def write_coco(path: Path, images: Iterable[ExportedImage], labels: Sequence[str]) -> None:
    """Writes an annotation for each mask that isn't empty, as run lengths by columns, complete or not at all. Its
    `score` is the estimated Dice, where there is one."""
    listed, annotations = [], []
    for image_id, (name, masks, estimates) in enumerate(images, 1):
        height, width = masks.shape[1:]
        listed.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for category, (mask, estimate, (x0, y0, x1, y1)) in enumerate(
                zip(masks, estimates, bounding_boxes(masks).tolist(), strict=True), 1):
            if x1 < x0:
                continue
            score = {} if np.isnan(estimate) else {"score": round(float(estimate), 4)}
            segmentation = {"size": [height, width], "counts": run_lengths(mask.T.ravel())}
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category,
                                "segmentation": segmentation, "area": int(np.count_nonzero(mask)), "iscrowd": 0,
                                "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1], **score})
    categories = [{"id": category, "name": label} for category, label in enumerate(labels, 1)]
    content = {"images": listed, "categories": categories, "annotations": annotations}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
