"""Annotations in COCO's JSON format: `images`, `categories`, and `annotations`, whose `segmentation` is a list of
polygons, or run lengths. pycocotools draws them."""
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.cvat import CvatImage
from utils.datasets.image_files import IN_FOLDERS, make_stem
from utils.errors import InputError
from utils.names import plain

LEAST_NUMBERS = 6  # of a polygon: three corners
CORRECT = "correct it in the tool that wrote the file, and export it again"


@dataclass(frozen=True)
class CocoShape:
    """One annotation: `counts` are COCO's compressed run lengths of an image of (H, W) = `size`. `of_box`: it has
    nothing else than a box."""
    anatomy: str
    counts: bytes
    size: tuple[int, int]
    of_box: bool = False

    @property
    def content(self) -> object:
        return self.counts

    def draw(self, mask: np.ndarray) -> None:
        """Sets the pixels of the annotation in `mask`, bool, (H, W)."""
        from pycocotools.mask import decode  # which other formats do without
        mask |= decode({"counts": self.counts, "size": list(self.size)}).astype(bool)


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError if it is missing or isn't one."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such annotations; see data/README.md for what goes where") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}), is it truncated? Export it again") from None


def is_coco(table: Any) -> bool:
    """Whether what a JSON file holds looks like COCO's format."""
    return isinstance(table, dict) and all(isinstance(table.get(key), list) for key in ("images", "annotations"))


def is_panoptic(table: Any) -> bool:
    """Whether that is COCO's panoptic format, whose masks are colors of other files."""
    return is_coco(table) and any(isinstance(annotation, dict) and "segments_info" in annotation
                                  for annotation in table["annotations"][:1])


def parse_coco(path: Path, labels: Collection[str] | None = None, subfolders: bool = False) -> list[CvatImage]:
    """Reads all images of one file, in the file's order.

    An annotation is drawn from its `segmentation`, or from its `bbox` where that has no area.

    Args:
        labels: annotations of other categories are counted, and not read; None: all are read
        subfolders: whether the stem of an image has its folders and that of the file, see `make_stem`
    Raises:
        InputError: the file is missing, not of this format, or names an image twice, or an annotation is malformed or
            of no image or category that there is.
    """
    table = read_json(path)
    if not is_coco(table) or is_panoptic(table) or not isinstance(table.get("categories"), list):
        raise InputError(f"{path}: is not in COCO's format, which has `images`, `categories` and `annotations`; export "
                         "it as COCO instances")
    wanted = None if labels is None else {plain(label): label for label in labels}
    try:
        names = {category["id"]: plain(str(category["name"])) for category in table["categories"]}
        used = {annotation["image_id"] for annotation in table["annotations"]}
        images_of = [image for image in table["images"] if image["id"] in used or image.get("width")]  # else unseen
        sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in images_of}
        shapes, unused = {number: [] for number in sizes}, {number: Counter() for number in sizes}
        for annotation in table["annotations"]:
            number, name = annotation["image_id"], names[annotation["category_id"]]
            if wanted is not None and name not in wanted:
                unused[number][name] += 1
            else:
                shapes[number].append(_read_shape(path, annotation, name if wanted is None else wanted[name],
                                                  sizes[number]))
        folder = f"{path.parent.name}/" if subfolders else ""
        images = {}
        for image in images_of:
            number, name = image["id"], str(image["file_name"])
            read = CvatImage(make_stem(folder + name, subfolders), name, sizes[number][1], sizes[number][0], None,
                             tuple(shapes[number]), unused[number])
            twin = images.get(read.stem, read)
            if twin is not read and (twin.name != name or bool(twin.shapes) == bool(read.shapes)):
                raise InputError(f"{path}: image {read.stem} appears twice ({twin.name!r} and {name!r}); " + (
                    CORRECT if subfolders or twin.name == name else
                    f"where these are two images, {IN_FOLDERS}, else {CORRECT}"))
            images[read.stem] = read if read.shapes else twin
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: lacks what COCO's format has ({type(error).__name__}: {error}); {CORRECT}") from None
    if not images:
        raise InputError(f"{path}: holds no image; {CORRECT}")
    return list(images.values())


def _read_shape(path: Path, annotation: dict[str, Any], name: str, size: tuple[int, int]) -> CocoShape:
    from pycocotools.mask import frPyObjects, merge  # which other formats do without
    drawn, polygons = annotation.get("segmentation"), []
    try:
        if isinstance(drawn, dict):
            if list(drawn["size"]) != list(size):
                raise ValueError(f"run lengths for {drawn['size']}, its image has {list(size)}")
            rle = frPyObjects(drawn, *size) if isinstance(drawn["counts"], list) else drawn
        elif polygons := [points for points in drawn or () if len(points) >= LEAST_NUMBERS]:
            rle = merge(frPyObjects(polygons, *size))
        else:
            rle, = frPyObjects(np.array([annotation["bbox"]], float), *size)
    except Exception as error:  # whatever pycocotools raises
        raise InputError(f"{path}: annotation {annotation.get('id')} ({name}) can't be drawn ({error}); {CORRECT}"
                         ) from None
    counts = rle["counts"]
    of_box = not isinstance(drawn, dict) and not polygons
    return CocoShape(name, counts.encode() if isinstance(counts, str) else bytes(counts), size, of_box)
