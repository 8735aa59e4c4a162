"""Small plane geometry for the phantoms: smooth outlines, clipping, the exposed field, seeded random numbers.

Only elementary float64 arithmetic is used, so that the same numbers come out on every machine.
"""
import math
import zlib

import numpy as np

DATA_SEED = 20240607


def generator(purpose: str, name: str) -> np.random.Generator:
    """Random numbers that depend on the data seed, what they are for and for which image, and on nothing else."""
    return np.random.default_rng([DATA_SEED, zlib.crc32(f"{purpose}/{name}".encode())])


def smooth(control: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Chaikin's corner cutting of a closed polygon, (N, 2) -> (N * 2**rounds, 2)."""
    for _ in range(rounds):
        following = np.concatenate([control[1:], control[:1]])
        pairs = np.stack([0.75 * control + 0.25 * following, 0.25 * control + 0.75 * following], axis=1)
        control = pairs.reshape(-1, 2)
    return control


def turn(points: np.ndarray, degrees: float, center: tuple[float, float] | np.ndarray) -> np.ndarray:
    """Rotates (N, 2) points about `center`, from the first axis to the second."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = points[:, 0] - center[0], points[:, 1] - center[1]
    return np.stack([center[0] + cos * x - sin * y, center[1] + sin * x + cos * y], axis=1)


def polygon_area(points: np.ndarray) -> float:
    """Area of a simple polygon, (N, 2)."""
    x, y = points.T
    return 0.5 * abs(float(np.sum(x * np.concatenate([y[1:], y[:1]]) - y * np.concatenate([x[1:], x[:1]]))))


def fill_polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose center a polygon (N, 2) holds, bool, (H, W): an odd number of edges lies to their left.

    Does what `skimage.draw.polygon2mask` does, except for centers on the outline, and takes a tenth of the time.
    """
    left, top = (max(0, math.floor(low)) for low in points.min(axis=0))
    right = max(left, min(size[1], math.ceil(points[:, 0].max()) + 1))
    bottom = max(top, min(size[0], math.ceil(points[:, 1].max()) + 1))
    box = np.zeros((bottom - top, right - left + 1), np.uint8)
    x, y = points.T.tolist()
    for start, end in zip(range(len(x)), [*range(1, len(x)), 0], strict=True):
        low, high = (start, end) if y[start] < y[end] else (end, start)
        first, last = max(top, math.ceil(y[low])), min(bottom, math.ceil(y[high]))
        if first < last:
            rows = np.arange(first, last)
            columns = np.ceil(x[low] + (rows - y[low]) / (y[high] - y[low]) * (x[high] - x[low])).astype(int)
            box[rows - top, np.minimum(np.maximum(columns - left, 0), right - left)] += 1
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = np.cumsum(box[:, :-1], axis=1, dtype=np.uint8) & 1
    return mask


def clip(polygon: np.ndarray, field: np.ndarray) -> np.ndarray:
    """The part of a polygon inside a convex field (Sutherland and Hodgman); both (N, 2); (0, 2) if nothing is left.

    The corners of `field` run so that its inside lies at positive cross products (clockwise on the screen).
    """
    for start, end in zip(field, np.roll(field, -1, axis=0), strict=True):
        side = (end[0] - start[0]) * (polygon[:, 1] - start[1]) - (end[1] - start[1]) * (polygon[:, 0] - start[0])
        kept: list[np.ndarray] = []
        for i in range(len(polygon)):
            before = i - 1
            if (side[i] >= 0) != (side[before] >= 0):
                share = side[before] / (side[before] - side[i])
                kept.append(polygon[before] + share * (polygon[i] - polygon[before]))
            if side[i] >= 0:
                kept.append(polygon[i])
        polygon = np.array(kept).reshape(-1, 2)
        if len(polygon) < 3:
            return np.empty((0, 2))
    return polygon


def exposed_field(stem: str, width: int, height: int) -> np.ndarray:
    """The four corners (x, y) of what the collimator let through: a rectangle, a little smaller and turned.

    It depends on the image's name and size only, so the renderer and the annotation agree on it.
    """
    rng = generator("field", stem)
    left, right, top, bottom = rng.uniform(0.0, 0.035, 4)
    angle = float(rng.normal(0, 1.6)) if rng.random() < 0.75 else 0.0
    corners = np.array([[left * width, top * width], [(1 - right) * width, top * width],
                        [(1 - right) * width, height - bottom * width], [left * width, height - bottom * width]])
    turned = turn(corners, max(-4.0, min(4.0, angle)), (width / 2, height / 2))
    return clip(turned, np.array([[0, 0], [width, 0], [width, height], [0, height]], float))
