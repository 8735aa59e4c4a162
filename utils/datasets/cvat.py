"""Annotations in CVAT's format "for images 1.1", as the XML file or the ZIP file that CVAT exports.

One `<image name width height>` per radiograph, with its shapes as children: `<polygon points="x,y;x,y;...">`,
`<mask rle left top width height>`, `<box xtl ytl xbr ybr rotation>` or `<ellipse cx cy rx ry rotation>`, with rotations
in degrees, clockwise. What a shape shows is said by one of its `<attribute name="...">` children, or by its `label`
where the annotators used none.
"""
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from lxml import etree

from utils.datasets.image_files import IN_FOLDERS, make_stem
from utils.errors import InputError
from utils.names import plain

MEMBER = "annotations.xml"  # of CVAT's ZIP files


@dataclass(frozen=True)
class RunLengths:
    """Run lengths, starting with background, row by row inside the box of `width` x `height` pixels at left, top."""
    runs: tuple[int, ...]
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Ellipse:
    """Center x, y and radii in pixels; rotation in degrees, clockwise."""
    x: float
    y: float
    radius_x: float
    radius_y: float
    rotation: float


class Shape(Protocol):
    """One drawn shape; `content` is what it is drawn from, with another drawing another text."""
    anatomy: str

    @property
    def content(self) -> object: ...

    def draw(self, mask: np.ndarray) -> None:
        """Sets the pixels of the shape in `mask`, bool, (H, W). What lies beyond its border is left out."""


@dataclass(frozen=True)
class CvatShape:
    """One drawn shape: `polygon`, float64, (N, 2) as x, y in pixels, `rle` or `ellipse` is given."""
    anatomy: str
    polygon: np.ndarray | None = None
    rle: RunLengths | None = None
    ellipse: Ellipse | None = None

    @property
    def content(self) -> object:
        return self.polygon.tobytes() if self.polygon is not None else self.rle or self.ellipse

    def draw(self, mask: np.ndarray) -> None:
        """As `draw_shape`."""
        draw_shape(self, mask)


@dataclass(frozen=True)
class CvatImage:
    """One annotated image, of any format. `name` is what the annotation calls it; its `stem`, without extension,
    identifies it.

    Attributes:
        unused: how many shapes of which labels were left out, as nobody asked for those
        skipped: how many shapes of which kinds were left out, as was asked for
    """
    stem: str
    name: str
    width: int
    height: int
    subset: str | None
    shapes: tuple[Shape, ...]
    unused: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)


def parse_cvat(path: Path, attribute: str | None = "Anatomie", labels: Collection[str] | None = None,
               skip_shapes: Collection[str] = (), subfolders: bool = False) -> list[CvatImage]:
    """Reads all images of one file, in the file's order.

    Names are compared without spaces around them and in one Unicode form.

    Args:
        attribute: name of the attribute that says what a shape shows; None: the shape's label says it
        labels: shapes of others are counted, and not read; None: all are read
        skip_shapes: kinds of shapes ("points", "polyline", ...) that are counted, and not read
        subfolders: whether the stem of an image has its folders, see `make_stem`
    Raises:
        InputError: the file is missing, truncated, not of this format, names an image twice, or holds a shape that is
            malformed, outside its image, or has no area. The message names file and image.
    """
    labels = None if labels is None else {plain(label): label for label in labels}
    images: dict[str, CvatImage] = {}
    for element in _read_root(path).iterfind("image"):
        try:
            image = _read_image(element, attribute, labels, skip_shapes, subfolders)
        except ValueError as error:
            raise InputError(f"{path}: image {element.get('name')!r}: {error}") from None
        twin = images.get(image.stem, image)
        if twin is not image and (twin.name != image.name or bool(twin.shapes) == bool(image.shapes)):
            raise InputError(f"{path}: image {image.stem} appears twice ({twin.name!r} and {image.name!r}); " + (
                "delete one of them in CVAT, and export it again" if subfolders or twin.name == image.name else
                f"where these are two images, {IN_FOLDERS}, else delete one in CVAT, and export it again"))
        images[image.stem] = image if image.shapes else twin
    if not images:
        raise InputError(f"{path}: holds no <image>; export the task as 'CVAT for images 1.1'")
    return list(images.values())


def find_label(path: Path, attribute: str) -> str | None:
    """CVAT's label of most shapes that have this attribute; None where none has it. Raises InputError as `parse_cvat`.
    """
    labels = Counter(shape.get("label") for shape in _read_root(path).iterfind("image/*")
                     if _attribute(shape, attribute) is not None)
    return max(labels, key=labels.get, default=None)


def read_attributes(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The label of each shape of a file, with its attributes. Raises InputError as `parse_cvat`."""
    return [(plain(shape.get("label")),
             {plain(child.get("name")): plain(child.text) for child in shape.iterfind("attribute")})
            for shape in _read_root(path).iterfind("image/*") if shape.tag != "tag"]


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
            shape.draw(masks[channels[shape.anatomy]])
    return masks


def draw_shape(shape: CvatShape, mask: np.ndarray) -> None:
    """Sets the pixels of a shape in `mask`, bool, (H, W). What lies beyond its border is left out.

    A polygon covers the same pixels as scikit-image's `polygon2mask` gives; an ellipse those whose x, y it holds.
    """
    if shape.polygon is not None:
        from skimage.draw import polygon as polygon_pixels  # slow to import
        x, y = shape.polygon.T
        mask[polygon_pixels(y, x, mask.shape)] = True
    elif shape.ellipse is not None:
        mask |= _inside(shape.ellipse, mask.shape)
    else:
        rle = shape.rle
        values = np.arange(len(rle.runs)) % 2 == 1
        box = np.repeat(values, rle.runs).reshape(rle.height, rle.width)
        top, left = max(rle.top, 0), max(rle.left, 0)
        seen = mask[top:rle.top + rle.height, left:rle.left + rle.width]
        seen |= box[top - rle.top:, left - rle.left:][:seen.shape[0], :seen.shape[1]]


def _inside(ellipse: Ellipse, size: tuple[int, int]) -> np.ndarray:
    y, x = np.ogrid[:size[0], :size[1]]
    along, across = _rotate(x - ellipse.x, y - ellipse.y, -ellipse.rotation)
    return (along / ellipse.radius_x) ** 2 + (across / ellipse.radius_y) ** 2 <= 1


def _rotate(x: np.ndarray, y: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Clockwise, as y points down."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return cosine * x - sine * y, sine * x + cosine * y


CORRECT = "correct or delete this shape in CVAT, and export the task again"


def _read_root(path: Path) -> etree._Element:
    if not path.is_file():
        raise InputError(f"{path}: no such annotations; see data/README.md for what goes where")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(_read_bytes(path), parser)
    except etree.XMLSyntaxError as error:
        raise InputError(f"{path}: not readable as XML ({error}), is it truncated? Export it again from CVAT") from None
    if root.getroottree().docinfo.internalDTD is not None:  # the only place where entities can be declared
        raise InputError(f"{path}: declares a document type or entities, which CVAT never writes; "
                         "export it again from CVAT")
    if root.tag != "annotations" or root.findtext("version") != "1.1" or root.find("track") is not None:
        raise InputError(f"{path}: is not in the format 'CVAT for images 1.1'; export the task in that format")
    return root


def _read_bytes(path: Path) -> bytes:
    """The XML text of a file, or of the one in a ZIP file."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if Path(name).name == MEMBER]
            if len(members) != 1:
                raise InputError(f"{path}: holds {len(members)} files {MEMBER}; export one task as 'CVAT for "
                                 "images 1.1'")
            return archive.read(members[0])
    except InputError:
        raise
    except Exception as error:  # whatever the damage leads to
        raise InputError(f"{path}: not a readable ZIP file ({error}); export it again from CVAT") from None


def _read_image(element: etree._Element, attribute: str | None, labels: Mapping[str, str] | None,
                skip_shapes: Collection[str], subfolders: bool) -> CvatImage:
    name = element.get("name", "")
    stem = make_stem(name, subfolders)
    width, height = _integer(element, "width"), _integer(element, "height")
    if not stem or width < 1 or height < 1:
        raise ValueError(f"needs a name and a size of at least one pixel, has {width} x {height}; export it again from "
                         "CVAT")
    shapes, unused, skipped = [], Counter(), Counter()
    for child in element.iterchildren(etree.Element):
        if child.tag == "tag":
            continue
        anatomy = _read_anatomy(child, attribute, labels)
        if labels is not None and anatomy not in labels:
            unused[anatomy] += 1
        elif child.tag in skip_shapes:
            skipped[child.tag] += 1
        else:
            shapes.append(_read_shape(child, anatomy if labels is None else labels[anatomy], width, height))
    return CvatImage(stem, name, width, height, element.get("subset"), tuple(shapes), unused, skipped)


def _read_anatomy(element: etree._Element, attribute: str | None, labels: Mapping[str, str] | None) -> str:
    """What a shape shows. CVAT writes an attribute for every shape whose label has it, so one without it is of a label
    that nobody asked for."""
    label = plain(element.get("label"))
    text = label if attribute is None else _attribute(element, attribute)
    if text is None and labels is not None and label not in labels:
        return f"{label} (without {attribute})"
    if not plain(text):
        what = "label" if attribute is None else f"attribute {attribute!r}"
        raise ValueError(f"a <{element.tag}> without {what}; give it one in CVAT or delete this shape, and export the "
                         "task again")
    return plain(text)


def _read_shape(element: etree._Element, anatomy: str, width: int, height: int) -> CvatShape:
    if element.tag not in DRAWN:
        raise ValueError(f"a <{element.tag}> ({anatomy}), which has no area; draw a polygon, mask, box or ellipse in "
                         f'CVAT instead, or leave such shapes out: `skip_shapes = ["{element.tag}"]` in [masks] of the '
                         "description")
    shape = DRAWN[element.tag](element, anatomy)
    left, top, right, bottom = _extent(shape)
    if right < 0 or bottom < 0 or left > width - 1 or top > height - 1:
        raise ValueError(f"a <{element.tag}> ({anatomy}) outside the image of {width} x {height} pixels; {CORRECT}")
    return shape


def _extent(shape: CvatShape) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels, roughly that of an ellipse."""
    if shape.polygon is not None:
        return *shape.polygon.min(axis=0), *shape.polygon.max(axis=0)
    if shape.ellipse is not None:
        ellipse = shape.ellipse
        reach = max(ellipse.radius_x, ellipse.radius_y)
        return ellipse.x - reach, ellipse.y - reach, ellipse.x + reach, ellipse.y + reach
    rle = shape.rle
    return rle.left, rle.top, rle.left + rle.width - 1, rle.top + rle.height - 1


def _read_polygon(element: etree._Element, anatomy: str) -> CvatShape:
    text = element.get("points", "")
    try:
        points = np.array([[float(value) for value in point.split(",")] for point in text.split(";")])
    except ValueError:
        points = np.empty(0)
    if points.ndim != 2 or points.shape[0] < 3 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"malformed points {_shorten(text)!r} of a polygon (needs x,y;x,y;x,y...); {CORRECT}")
    return CvatShape(anatomy, polygon=points)


def _read_box(element: etree._Element, anatomy: str) -> CvatShape:
    """As a polygon of its corners; it turns about its center."""
    left, top, right, bottom = (_number(element, name) for name in ("xtl", "ytl", "xbr", "ybr"))
    center = np.array([left + right, top + bottom]) / 2
    x, y = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]).T - center[:, None]
    rotation = _number(element, "rotation", "0")
    corners = np.stack([x, y] if rotation == 0 else _rotate(x, y, rotation), axis=1) + center
    return CvatShape(anatomy, polygon=corners)


def _read_ellipse(element: etree._Element, anatomy: str) -> CvatShape:
    x, y, radius_x, radius_y = (_number(element, name) for name in ("cx", "cy", "rx", "ry"))
    if min(radius_x, radius_y) <= 0:
        raise ValueError(f"an ellipse with radii of {radius_x} and {radius_y} pixels; {CORRECT}")
    return CvatShape(anatomy, ellipse=Ellipse(x, y, radius_x, radius_y, _number(element, "rotation", "0")))


def _read_run_lengths(element: etree._Element, anatomy: str) -> CvatShape:
    text = element.get("rle", "")
    left, top, width, height = (_integer(element, name) for name in ("left", "top", "width", "height"))
    try:
        runs = tuple(int(run) for run in text.split(","))
    except ValueError:
        raise ValueError(f"malformed rle {_shorten(text)!r} of a mask; {CORRECT}") from None
    if min(width, height) < 1 or min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(f"an rle of {sum(runs)} pixels for a mask of {width} x {height}; {CORRECT}")
    return CvatShape(anatomy, rle=RunLengths(runs, left, top, width, height))


DRAWN = {"polygon": _read_polygon, "mask": _read_run_lengths, "box": _read_box, "ellipse": _read_ellipse}


def _attribute(element: etree._Element, name: str) -> str | None:
    """Its text, "" where it is empty; None where there is no such attribute."""
    texts = (child.text or "" for child in element.iterfind("attribute") if plain(child.get("name")) == plain(name))
    return next(texts, None)


def _integer(element: etree._Element, name: str) -> int:
    try:
        return int(element.get(name, ""))
    except ValueError:
        raise ValueError(f"<{element.tag}> has {name} {element.get(name)!r}, which is not a whole number; {CORRECT}"
                         ) from None


def _number(element: etree._Element, name: str, default: str = "") -> float:
    try:
        value = float(element.get(name, default))
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"<{element.tag}> has {name} {element.get(name)!r}, which is not a number; {CORRECT}")
    return value


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
