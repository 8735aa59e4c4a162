"""Box and point prompts from multi-label masks (paper, prompts)."""
from dataclasses import dataclass

import numpy as np

from utils.boxes import bounding_boxes

PROMPT_NAMES = ("box", "pos_points", "neg_points")


@dataclass(frozen=True)
class Prompts:
    """The prompts of all classes of one image, in pixels of its masks.

    Attributes:
        boxes: float64, (C, 4) x0, y0, x1, y1 of the outermost pixels, inclusive; NaN for an empty mask
        centroids: float64, (C, 2) x, y of the positive point, whole numbers; NaN where the class isn't valid
        valid: bool, (C,); whether the class has pixels that belong to no other class, and so may be prompted
    """

    boxes: np.ndarray
    centroids: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class ClassPrompt:
    """What SAM is asked for one class, in pixels of the encoder's input. None: that kind of prompt is absent.

    Attributes:
        box: float64, (4,) x0, y0, x1, y1
        points: float64, (N, 2) x, y, N > 0, the positive point first
        labels: int, (N,) 1 for positive, 0 for negative points
    """

    box: np.ndarray | None
    points: np.ndarray | None
    labels: np.ndarray | None

    @property
    def empty(self) -> bool:
        return self.box is None and self.points is None


def extract_prompts(masks: np.ndarray) -> Prompts:
    """Boxes and positive points of every class.

    The positive point is the centroid (mean pixel coordinates, rounded half to even) of the class's overlap-free area,
    the pixels that belong to this class alone.

    Args:
        masks: bool, (C, H, W)
    """
    alone = masks & (np.count_nonzero(masks, axis=0) == 1)
    columns, rows = np.count_nonzero(alone, axis=1), np.count_nonzero(alone, axis=2)  # (C, W), (C, H)
    area = rows.sum(axis=1)
    valid = area > 0
    sums = np.stack([columns @ np.arange(masks.shape[2]), rows @ np.arange(masks.shape[1])], axis=1)
    centroids = np.full((len(masks), 2), np.nan)
    centroids[valid] = np.rint(sums[valid] / area[valid, None])
    return Prompts(_boxes(masks), centroids, valid)


def _boxes(masks: np.ndarray) -> np.ndarray:
    boxes = bounding_boxes(masks).astype(np.float64)
    boxes[boxes[:, 2] < boxes[:, 0]] = np.nan
    return boxes


def scale_prompts(prompts: Prompts, mask_size: tuple[int, int], input_size: tuple[int, int]) -> Prompts:
    """Moves prompts from pixels of the masks to pixels of the encoder's input; both sizes are (H, W)."""
    scale = np.array([input_size[1] / mask_size[1], input_size[0] / mask_size[0]])
    return Prompts(prompts.boxes * np.tile(scale, 2), prompts.centroids * scale, prompts.valid)


def select_prompt(prompts: Prompts, channel: int, names: tuple[str, ...]) -> ClassPrompt:
    """The prompts of one valid class for a set of prompt names.

    Negative points are the positive points of all other valid classes; with no other one they are absent, and a set
    that then holds nothing is `empty`.
    """
    others = prompts.valid.copy()
    others[channel] = False
    positive = prompts.centroids[[channel]] if "pos_points" in names else np.empty((0, 2))
    negative = prompts.centroids[others] if "neg_points" in names else np.empty((0, 2))
    points = np.concatenate([positive, negative])
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    box = prompts.boxes[channel] if "box" in names else None
    return ClassPrompt(box, points, labels) if len(points) else ClassPrompt(box, None, None)
