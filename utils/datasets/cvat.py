"""Annotations in CVAT's format "for images 1.1".

One `<image name width height>` per radiograph, with its shapes as children: `<polygon points="x,y;x,y;...">` or
`<mask rle left top width height>`. What a shape shows is said by one of its `<attribute name="...">` children, or by
its `label` where the annotators used none.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from lxml import etree

from utils.errors import InputError


@dataclass(frozen=True)
class RunLengths:
    """Run lengths, starting with background, row by row inside the box of `width` x `height` pixels at left, top."""
    runs: tuple[int, ...]
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class CvatShape:
    """One drawn shape; either `polygon`, float64, (N, 2) as x, y in pixels, or `rle` is given."""
    anatomy: str
    polygon: np.ndarray | None = None
    rle: RunLengths | None = None


@dataclass(frozen=True)
class CvatImage:
    """One annotated image. `name` is what CVAT calls it; its `stem`, without folder and extension, identifies it."""
    stem: str
    name: str
    width: int
    height: int
    subset: str | None
    shapes: tuple[CvatShape, ...]


def parse_cvat(path: Path, attribute: str | None = "Anatomie") -> list[CvatImage]:
    """Reads all images of one file, in the file's order.

    Args:
        attribute: name of the attribute that says what a shape shows; None: the shape's label says it
    Raises:
        InputError: the file is missing, truncated, not of this format, names an image twice, or holds a shape that is
            malformed, a mask outside its image, or neither polygon nor mask. The message names file and image.
    """
    images: dict[str, CvatImage] = {}
    for element in _read_root(path).iterfind("image"):
        try:
            image = _read_image(element, attribute)
        except ValueError as error:
            raise InputError(f"{path}: image {element.get('name')!r}: {error}; export it again from CVAT") from None
        if image.stem in images:
            raise InputError(f"{path}: image {image.stem} appears twice ({images[image.stem].name!r} and "
                             f"{image.name!r}); keep one of them")
        images[image.stem] = image
    if not images:
        raise InputError(f"{path}: holds no <image>; export the task as 'CVAT for images 1.1'")
    return list(images.values())


def draw_masks(image: CvatImage, labels: Sequence[str]) -> np.ndarray:
    """Draws the shapes of an image; those of one label are united, other anatomies dropped.

    Args:
        labels: the anatomies in channel order
    Returns:
        bool, (C, H, W), at the image's original size
    """
    masks = np.zeros((len(labels), image.height, image.width), bool)
    channels = {label: channel for channel, label in enumerate(labels)}
    for shape in image.shapes:
        if shape.anatomy in channels:
            draw_shape(shape, masks[channels[shape.anatomy]])
    return masks


def draw_shape(shape: CvatShape, mask: np.ndarray) -> None:
    """Sets the pixels of a shape in `mask`, bool, (H, W). Polygons are clipped at its border.

    A polygon covers the same pixels as scikit-image's `polygon2mask` gives.
    """
    if shape.polygon is not None:
        from skimage.draw import polygon as polygon_pixels  # slow to import
        x, y = shape.polygon.T
        mask[polygon_pixels(y, x, mask.shape)] = True
        return
    rle = shape.rle
    values = np.arange(len(rle.runs)) % 2 == 1
    box = np.repeat(values, rle.runs).reshape(rle.height, rle.width)
    mask[rle.top:rle.top + rle.height, rle.left:rle.left + rle.width] |= box


def _read_root(path: Path) -> etree._Element:
    if not path.is_file():
        raise InputError(f"{path}: no such annotations; see data/README.md for what goes where")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(path.read_bytes(), parser)
    except etree.XMLSyntaxError as error:
        raise InputError(f"{path}: not readable as XML ({error}), is it truncated? Export it again from CVAT") from None
    if root.getroottree().docinfo.internalDTD is not None:  # the only place where entities can be declared
        raise InputError(f"{path}: declares a document type or entities, which CVAT never writes; "
                         "export it again from CVAT")
    if root.tag != "annotations" or root.findtext("version") != "1.1" or root.find("track") is not None:
        raise InputError(f"{path}: is not in the format 'CVAT for images 1.1'; export the task in that format")
    return root


def _read_image(element: etree._Element, attribute: str | None) -> CvatImage:
    name = element.get("name", "")
    stem = PurePosixPath(name.replace("\\", "/")).stem
    width, height = _integer(element, "width"), _integer(element, "height")
    if not stem or width < 1 or height < 1:
        raise ValueError(f"needs a name and a size of at least one pixel, has {width} x {height}")
    shapes = [_read_shape(child, attribute, width, height) for child in element.iterchildren(etree.Element)
              if child.tag != "tag"]
    return CvatImage(stem, name, width, height, element.get("subset"), tuple(shapes))


def _read_shape(element: etree._Element, attribute: str | None, width: int, height: int) -> CvatShape:
    anatomy = element.get("label") if attribute is None else _attribute(element, attribute)
    if not anatomy:
        raise ValueError(f"a <{element.tag}> without {'label' if attribute is None else f'attribute {attribute!r}'}")
    if element.tag == "polygon":
        return CvatShape(anatomy, polygon=_read_points(element))
    if element.tag == "mask":
        return CvatShape(anatomy, rle=_read_run_lengths(element, width, height))
    raise ValueError(f"a <{element.tag}> ({anatomy}) where only polygons and masks are understood")


def _read_points(element: etree._Element) -> np.ndarray:
    text = element.get("points", "")
    try:
        points = np.array([[float(value) for value in point.split(",")] for point in text.split(";")])
    except ValueError:
        points = np.empty(0)
    if points.ndim != 2 or points.shape[0] < 3 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"malformed points {_shorten(text)!r} of a polygon (needs x,y;x,y;x,y...)")
    return points


def _read_run_lengths(element: etree._Element, image_width: int, image_height: int) -> RunLengths:
    text = element.get("rle", "")
    left, top, width, height = (_integer(element, name) for name in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(width, height) < 1 or left + width > image_width or top + height > image_height:
        raise ValueError(f"a mask outside the image of {image_width} x {image_height} pixels "
                         f"(left {left}, top {top}, {width} x {height})")
    try:
        runs = tuple(int(run) for run in text.split(","))
    except ValueError:
        raise ValueError(f"malformed rle {_shorten(text)!r} of a mask") from None
    if min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(f"an rle of {sum(runs)} pixels for a mask of {width} x {height}")
    return RunLengths(runs, left, top, width, height)


def _attribute(element: etree._Element, name: str) -> str | None:
    return next((child.text for child in element.iterfind("attribute") if child.get("name") == name), None)


def _integer(element: etree._Element, name: str) -> int:
    try:
        return int(element.get(name, ""))
    except ValueError:
        raise ValueError(f"<{element.tag}> has {name} {element.get(name)!r}, which is not a whole number") from None


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
