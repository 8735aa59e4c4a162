"""Masks as shapes of SVG, which stay sharp at any size and can be shown one by one."""
import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np

FINER = 2  # a mask is traced at so many times its size, so that its outline lies a quarter of a pixel off
TOLERANCE = 0.75  # of an outline, in pixels of the finer mask
MOST_OUTLINES = 60  # of a mask; more are speckles, of which an image takes less room


def svg_path(mask: np.ndarray) -> str:
    """The outlines of a mask, bool (H, W), holes included, as the attribute `d` of a path that is filled by the rule
    "evenodd". x and y are numbers of pixels, whole ones, in the mask at `FINER` times its size. "" for a mask that is
    empty, or has more than `MOST_OUTLINES`."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return ""
    top, left = rows[0], columns[0]
    inside = mask[top:rows[-1] + 1, left:columns[-1] + 1].astype(np.uint8)
    finer = cv2.resize(inside, None, fx=FINER, fy=FINER, interpolation=cv2.INTER_NEAREST)
    corner = (FINER * int(left), FINER * int(top))
    contours, _ = cv2.findContours(finer, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=corner)
    return "" if len(contours) > MOST_OUTLINES else "".join(map(_trace, contours))


def _trace(contour: np.ndarray) -> str:
    """A closed outline, every point as the way from the one before, which takes the fewest letters."""
    points = cv2.approxPolyDP(contour, TOLERANCE, closed=True)[:, 0]
    steps = np.diff(points, axis=0).ravel().tolist()
    return f"M{points[0, 0]} {points[0, 1]}l{' '.join(map(str, steps))}z".replace(" -", "-")


def png_of(mask: np.ndarray, color: Sequence[int]) -> str:
    """A mask, bool (H, W), as a PNG file in base64: in a color, uint8 RGB (3,), and transparent outside."""
    from PIL import Image
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, *map(int, color)])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=0, bits=1, optimize=True)
    return base64.b64encode(file.getvalue()).decode()
