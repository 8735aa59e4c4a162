"""Annotations of labelme: one JSON file an image, with `shapes` of a `label`, `shape_type` and `points` (x, y)."""
import base64
import io
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from utils.datasets.coco import read_json
from utils.datasets.cvat import CvatImage
from utils.datasets.image_files import make_stem
from utils.errors import InputError
from utils.names import plain

AREAS = {"polygon": 3, "rectangle": 2, "oriented_rectangle": 4, "circle": 2, "mask": 2,
         "rotation": 4}  # shapes with an area (X-AnyLabeling's, too) -> least number of points


@dataclass(frozen=True)
class LabelmeShape:
    """One shape. `points` are x, y in pixels; `mask`, where it is one, is the PNG file of its box as base64."""
    anatomy: str
    kind: str
    points: tuple[tuple[float, float], ...]
    mask: str | None = None

    @property
    def content(self) -> object:
        return self.kind, self.points, self.mask

    def draw(self, mask: np.ndarray) -> None:
        """Sets its pixels in `mask`, bool, (H, W): those that labelme's own label maps have, its outline too."""
        if self.kind == "mask":
            (left, top), *_ = ((round(x), round(y)) for x, y in self.points)
            box = np.asarray(Image.open(io.BytesIO(base64.b64decode(self.mask)))) > 0
            seen = mask[max(top, 0):top + box.shape[0], max(left, 0):left + box.shape[1]]
            seen |= box[max(-top, 0):, max(-left, 0):][:seen.shape[0], :seen.shape[1]]
            return
        canvas = Image.new("L", mask.shape[::-1])
        pen = ImageDraw.Draw(canvas)
        if self.kind == "circle":  # its center, and a point on it
            (x, y), (edge_x, edge_y) = self.points[:2]
            radius = math.hypot(x - edge_x, y - edge_y)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
        elif self.kind == "rectangle" and len(self.points) == 2:  # opposite corners
            (x1, y1), (x2, y2) = self.points
            pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=1, fill=1)
        else:
            pen.polygon(self.points, outline=1, fill=1)
        mask |= np.asarray(canvas) > 0


def is_labelme(table: Any) -> bool:
    """Whether what a JSON file holds looks like labelme's format."""
    return isinstance(table, dict) and isinstance(table.get("shapes"), list) and "imagePath" in table


def parse_labelme(path: Path, name: str, labels: Collection[str] | None = None) -> CvatImage:
    """Reads the file of one image. Its stem is that of `name`, the file as seen from the folder of annotations.

    Shapes without an area (points, lines) are counted, and not read.

    Args:
        labels: shapes of others are counted, and not read; None: all are read
    Raises:
        InputError: the file is missing, not of this format, or holds a malformed shape.
    """
    table = read_json(path)
    if not is_labelme(table):
        raise InputError(f"{path}: is not one of labelme's files; take it out of this folder")
    wanted = None if labels is None else {plain(label): label for label in labels}
    shapes, unused, skipped = [], Counter(), Counter()
    try:
        height, width = int(table["imageHeight"]), int(table["imageWidth"])
        for shape in table["shapes"]:
            label, kind = plain(str(shape["label"])), shape.get("shape_type") or "polygon"
            if wanted is not None and label not in wanted:
                unused[label] += 1
            elif kind not in AREAS:
                skipped[kind] += 1
            else:
                points = tuple((float(x), float(y)) for x, y in shape["points"])
                if (len(points) < AREAS[kind] or not np.isfinite(points).all()
                        or (kind == "rectangle" and len(points) not in (2, 4))):
                    raise ValueError(f"a {kind} ({label}) of {len(points)} points")
                mask = shape["mask"] if kind == "mask" else None
                if mask is not None:
                    Image.open(io.BytesIO(base64.b64decode(mask))).verify()
                shapes.append(LabelmeShape(label if wanted is None else wanted[label], kind, points, mask))
    except (KeyError, TypeError, ValueError, AttributeError, OSError, SyntaxError) as error:
        raise InputError(f"{path}: lacks what labelme writes ({type(error).__name__}: {error}); correct it in labelme, "
                         "and save it again") from None
    return CvatImage(make_stem(name, True), str(table["imagePath"]), width, height, None, tuple(shapes), unused,
                     skipped)
