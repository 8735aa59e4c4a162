"""Box and point prompts from multi-label masks; `PROMPTS` holds the kinds of prompts, by their names on the command
line.

    prompts = extract_prompts(masks)                                      # bool (C, H, W)
    prompt = select_prompt(prompts, 0, ("box", "neg_points"), (1024, 853))
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils.boxes import bounding_boxes


@dataclass(frozen=True)
class Prompts:
    """What the prompts of all classes of one image are taken from, in pixels of its masks.

    Attributes:
        masks: bool, (C, H, W)
        boxes: float64, (C, 4) x0, y0, x1, y1 of the outermost pixels, inclusive; NaN for an empty mask
        centroids: float64, (C, 2) x, y of the positive point, whole numbers; NaN where the class isn't valid
        valid: bool, (C,); whether the class has pixels that belong to no other class, and so may be prompted
    """

    masks: np.ndarray
    boxes: np.ndarray
    centroids: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class ClassPrompt:
    """What SAM is asked for one class. None: that kind of prompt is absent.

    Attributes:
        box: float64, (4,) x0, y0, x1, y1
        points: float64, (N, 2) x, y
        labels: int, (N,) 1 for positive, 0 for negative points
    """

    box: np.ndarray | None = None
    points: np.ndarray | None = None
    labels: np.ndarray | None = None

    @property
    def shape(self) -> tuple[bool, int]:
        """Whether it has a box, and its number of points: prompts of one shape can be decoded together."""
        return self.box is not None, 0 if self.points is None else len(self.points)

    @property
    def empty(self) -> bool:
        return self.shape == (False, 0)


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
    boxes = bounding_boxes(masks).astype(np.float64)
    boxes[boxes[:, 2] < boxes[:, 0]] = np.nan
    return Prompts(masks, boxes, centroids, valid)


def _box(prompts: Prompts, channel: int) -> ClassPrompt:
    return ClassPrompt(box=prompts.boxes[channel])


def _positive_point(prompts: Prompts, channel: int) -> ClassPrompt:
    return ClassPrompt(points=prompts.centroids[[channel]], labels=np.array([1]))


def _negative_points(prompts: Prompts, channel: int) -> ClassPrompt:
    """The positive points of all other valid classes; absent where there is no other one."""
    others = prompts.valid.copy()
    others[channel] = False
    points = prompts.centroids[others]
    return ClassPrompt(points=points, labels=np.zeros(len(points), int)) if len(points) else ClassPrompt()


# Each makes of the prompts of an image, and of a valid class, that class's prompt in pixels of the masks.
PROMPTS: dict[str, Callable[[Prompts, int], ClassPrompt]] = {
    "box": _box, "pos_points": _positive_point, "neg_points": _negative_points}
ELSEWHERE = {"neg_points"}  # they only say where the object isn't: none of them can be asked alone


def select_prompt(prompts: Prompts, channel: int, names: tuple[str, ...],
                  input_size: tuple[int, int] | None = None) -> ClassPrompt:
    """The prompt of one valid class for a set of names; their points follow one another in the order of `PROMPTS`.

    Args:
        input_size: (H, W) that the image takes up in the encoder's input, in whose pixels the prompt then is; left out:
            in pixels of the masks
    Returns:
        a prompt that is `empty` where none of the names gives one
    """
    parts = [make(prompts, channel) for name, make in PROMPTS.items() if name in names]
    height, width = prompts.masks.shape[1:]
    scale = np.ones(2) if input_size is None else np.array([input_size[1] / width, input_size[0] / height])
    box, points, labels = None, [], []
    for part in parts:
        if part.box is not None:
            box = part.box * np.tile(scale, 2)
        if part.points is not None:
            points.append(part.points * scale)
            labels.append(part.labels)
    return ClassPrompt(box, np.concatenate(points), np.concatenate(labels)) if points else ClassPrompt(box)
