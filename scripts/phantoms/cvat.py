"""Writes annotated images in CVAT's format "for images 1.1", as the export of a project does."""
from collections.abc import Sequence
from pathlib import Path

from lxml import etree

from utils.datasets.cvat import CvatImage, CvatShape
from utils.files import atomic_path

LABEL, ATTRIBUTE = "Knochen", "Anatomie"
DATE = "2024-06-07 12:00:00.000000+00:00"
FINGERS = ("I", "II", "III", "IV", "V")
ANATOMIES = (
    "Sonstiges", "Radius", "Ulna", "Os scaphoideum", "Os lunatum", "Os triquetrum", "Os pisiforme", "Os trapezium",
    "Os trapezoideum", "Os capitatum", "Os hamatum", *(f"Ossa metacarpalia {finger}" for finger in FINGERS),
    "Epiphyse Radius", "Epiphyse Ulna", *(f"Phalanx proximalis {finger}" for finger in FINGERS),
    *(f"E Ossa metacarpalia {finger}" for finger in FINGERS), *(f"E Phalanx proximalis {finger}" for finger in FINGERS))


def write_cvat(path: Path, images: Sequence[CvatImage]) -> None:
    """Writes all images into one file, complete or not at all. Equal images give equal bytes.

    Coordinates are written with two decimals, which is all that CVAT keeps.
    """
    subsets = list(dict.fromkeys(image.subset for image in images))
    root = etree.Element("annotations")
    _text(root, "version", "1.1")
    _write_meta(etree.SubElement(root, "meta"), path.stem, images, subsets)
    for number, image in enumerate(images):
        element = etree.SubElement(root, "image", id=str(number), name=image.name, subset=image.subset or "default",
                                   task_id=str(subsets.index(image.subset) + 1), width=str(image.width),
                                   height=str(image.height))
        for shape in image.shapes:
            _write_shape(element, shape)
    with atomic_path(path) as temporary:
        etree.ElementTree(root).write(str(temporary), encoding="utf-8", xml_declaration=True, pretty_print=True)


def _write_meta(meta: etree._Element, name: str, images: Sequence[CvatImage], subsets: list[str | None]) -> None:
    project = etree.SubElement(meta, "project")
    for tag, text in (("id", "1"), ("name", name), ("bugtracker", None), ("created", DATE), ("updated", DATE)):
        _text(project, tag, text)
    tasks = etree.SubElement(project, "tasks")
    for number, subset in enumerate(subsets, start=1):
        size = sum(image.subset == subset for image in images)
        _write_task(etree.SubElement(tasks, "task"), number, size, subset or "default")
    _write_labels(etree.SubElement(project, "labels"))
    _text(project, "subsets", "\n".join(subset or "default" for subset in subsets))
    _text(meta, "dumped", DATE)


def _write_task(task: etree._Element, number: int, size: int, subset: str) -> None:
    for tag, text in (("id", str(number)), ("name", f"phantoms {subset}"), ("size", str(size)), ("mode", "annotation"),
                      ("overlap", "0"), ("bugtracker", None), ("created", DATE), ("updated", DATE), ("subset", subset),
                      ("start_frame", "0"), ("stop_frame", str(size - 1)), ("frame_filter", None)):
        _text(task, tag, text)
    segment = etree.SubElement(etree.SubElement(task, "segments"), "segment")
    for tag, text in (("id", str(number)), ("start", "0"), ("stop", str(size - 1)), ("url", None)):
        _text(segment, tag, text)


def _write_labels(labels: etree._Element) -> None:
    label = etree.SubElement(labels, "label")
    for tag, text in (("name", LABEL), ("color", "#c130e1"), ("type", "any")):
        _text(label, tag, text)
    attribute = etree.SubElement(etree.SubElement(label, "attributes"), "attribute")
    for tag, text in (("name", ATTRIBUTE), ("mutable", "True"), ("input_type", "select"),
                      ("default_value", ANATOMIES[0]), ("values", "\n".join(ANATOMIES))):
        _text(attribute, tag, text)


def _write_shape(image: etree._Element, shape: CvatShape) -> None:
    if shape.polygon is not None:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in shape.polygon)
        element = etree.SubElement(image, "polygon", label=LABEL, source="manual", occluded="0", points=points)
    else:
        rle = shape.rle
        element = etree.SubElement(image, "mask", label=LABEL, source="manual", occluded="0",
                                   rle=", ".join(map(str, rle.runs)), left=str(rle.left), top=str(rle.top),
                                   width=str(rle.width), height=str(rle.height))
    element.set("z_order", "0")
    etree.SubElement(element, "attribute", name=ATTRIBUTE).text = shape.anatomy


def _text(parent: etree._Element, tag: str, text: str | None) -> None:
    etree.SubElement(parent, tag).text = text
