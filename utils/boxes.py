"""Where in an image a mask lies."""
import numpy as np


def bounding_boxes(masks: np.ndarray) -> np.ndarray:
    """Boxes around masks, bool, (..., H, W) -> int64, (..., 4) x0, y0, x1, y1 of the outermost pixels, inclusive.

    An empty mask has x1 < x0.
    """
    height, width = masks.shape[-2:]
    columns, rows = masks.any(axis=-2), masks.any(axis=-1)
    first_x, first_y = columns.argmax(axis=-1), rows.argmax(axis=-1)
    last_x = width - 1 - columns[..., ::-1].argmax(axis=-1)
    last_y = height - 1 - rows[..., ::-1].argmax(axis=-1)
    boxes = np.stack([first_x, first_y, last_x, last_y], axis=-1)
    boxes[~rows.any(axis=-1)] = 0, 0, -1, -1
    return boxes


def bounding_slices(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the box around a mask, bool, (H, W), that has a pixel."""
    x0, y0, x1, y1 = bounding_boxes(mask).tolist()
    return slice(y0, y1 + 1), slice(x0, x1 + 1)
