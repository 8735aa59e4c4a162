"""Masks as paths of SVG, which stay sharp at any size and can be shown one by one."""
import cv2
import numpy as np

FINER = 2  # a mask is traced at so many times its size, so that its outline lies a quarter of a pixel off
TOLERANCE = 0.75  # of an outline, in pixels of the finer mask


def svg_path(mask: np.ndarray) -> str:
    """The outlines of a mask, bool (H, W), holes included, as the attribute `d` of a path that is filled by the rule
    "evenodd"; x and y in pixels of the mask, (0, 0) being the corner of the first one. "" for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return ""
    top, left = rows[0], columns[0]
    inside = mask[top:rows[-1] + 1, left:columns[-1] + 1].astype(np.uint8)
    finer = cv2.resize(inside, None, fx=FINER, fy=FINER, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(finer, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    paths = []
    for contour in contours:
        outline = cv2.approxPolyDP(contour, TOLERANCE, closed=True)
        points = (outline[:, 0] + 0.5) / FINER + (left, top)
        paths.append("M" + " ".join(f"{x:g},{y:g}" for x, y in points.tolist()) + "Z")
    return "".join(paths)
