"""Prompts from multi-label masks: boxes, points, and the masks themselves; `PROMPTS` holds the kinds of prompts, by
their names on the command line.

    prompts = extract_prompts(masks)                                      # bool (C, H, W)
    prompt = select_prompt(prompts, 0, ("box", "neg_points"), (1024, 853))
"""
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from segment_anything.embeddings import ImageEmbedding
from utils.boxes import bounding_boxes

MOST_CERTAIN = 16.0  # largest logit of a mask prompt; float32 doesn't tell probabilities above sigmoid(16.6) from 1


@dataclass(frozen=True)
class Prompts:
    """What the prompts of all classes of one image are taken from, in pixels of its masks.

    Attributes:
        masks: bool, (C, H, W)
        boxes: float64, (C, 4) x0, y0, x1, y1 of the outermost pixels, inclusive; NaN for an empty mask
        centroids: float64, (C, 2) x, y of the positive point, whole numbers; NaN where the class isn't valid
        valid: bool, (C,); whether the class has pixels that belong to no other class, and so may be prompted
        probabilities: of the U-Net, float, (C, H, W); None where no mask is asked for
    """

    masks: np.ndarray
    boxes: np.ndarray
    centroids: np.ndarray
    valid: np.ndarray
    probabilities: np.ndarray | None = None


@dataclass(frozen=True)
class ClassPrompt:
    """What SAM is asked for one class. None: that kind of prompt is absent.

    Attributes:
        box: float64, (4,) x0, y0, x1, y1
        points: float64, (N, 2) x, y
        labels: int, (N,) 1 for positive, 0 for negative points
        logits: of a mask, float32, (H, W) of the masks; or (4h, 4w) as `fit_to_sam` brings them to SAM
    """

    box: np.ndarray | None = None
    points: np.ndarray | None = None
    labels: np.ndarray | None = None
    logits: np.ndarray | None = None

    @property
    def shape(self) -> tuple[bool, int, bool]:
        """Whether it has a box, its number of points, and whether it has a mask: prompts of one shape can be decoded
        together."""
        return self.box is not None, 0 if self.points is None else len(self.points), self.logits is not None

    @property
    def empty(self) -> bool:
        return not any(self.shape)


def extract_prompts(masks: np.ndarray, probabilities: np.ndarray | None = None) -> Prompts:
    """Boxes and positive points of every class.

    The positive point is the centroid (mean pixel coordinates, rounded half to even) of the class's overlap-free area,
    the pixels that belong to this class alone.

    Args:
        masks: bool, (C, H, W)
        probabilities: of the U-Net, float, (C, H, W), in [0, 1]; the prompt `mask` alone needs them
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
    return Prompts(masks, boxes, centroids, valid, probabilities)


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


def _mask(prompts: Prompts, channel: int) -> ClassPrompt:
    """The U-Net's logits; what it took for the object and is no part of the mask is certain background."""
    probabilities = prompts.probabilities[channel].astype(np.float32, copy=False)
    logits = to_logits(probabilities)
    logits[(probabilities > 0.5) & ~prompts.masks[channel]] = -MOST_CERTAIN
    return ClassPrompt(logits=logits)


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """The logits of probabilities, within `MOST_CERTAIN`."""
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) - np.log1p(-probabilities)
    return logits.clip(-MOST_CERTAIN, MOST_CERTAIN)


# Each makes of the prompts of an image, and of a valid class, that class's prompt in pixels of the masks.
PROMPTS: dict[str, Callable[[Prompts, int], ClassPrompt]] = {
    "box": _box, "pos_points": _positive_point, "neg_points": _negative_points, "mask": _mask}
# None of them can be asked alone: negative points only say where the object isn't, and in SAM's training a mask always
# came with a box or points.
NOT_ALONE = {"neg_points", "mask"}
FIRST_PASS = {"mask"}  # a second pass has the first one's logits in its place


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
    box, points, labels, logits = None, [], [], None
    for part in parts:
        if part.box is not None:
            box = part.box * np.tile(scale, 2)
        if part.points is not None:
            points.append(part.points * scale)
            labels.append(part.labels)
        if part.logits is not None:
            logits = part.logits
    joined = (np.concatenate(points), np.concatenate(labels)) if points else (None, None)
    return ClassPrompt(box, *joined, logits)


def fit_to_sam(prompt: ClassPrompt, embedding: ImageEmbedding) -> ClassPrompt:
    """The prompt with its mask, if it has one, as SAM's low-resolution logits (4h, 4w) of the image, 0 in its padding.

    SAM was trained on its own logits of a pass before: of that resolution, smooth, and on chest radiographs within -18
    and 10 (MobileSAM; SAM 2's are clamped to 32). A U-Net's are as large (-10 to 13), so they are resized as they are,
    without a threshold, and bilinearly, as SAM resizes its own.
    """
    if prompt.logits is None:
        return prompt
    side, size = mask_geometry(embedding)
    logits = torch.from_numpy(prompt.logits)[None, None]
    resized = F.interpolate(logits, size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    return replace(prompt, logits=F.pad(resized, (0, side - size[1], 0, side - size[0])).numpy())


def mask_geometry(embedding: ImageEmbedding) -> tuple[int, tuple[int, int]]:
    """Side of a mask prompt in SAM's low resolution, and (height, width) that the image takes up in it."""
    side = 4 * embedding.features["image"].shape[-1]
    height, width = (max(1, round(length * side / embedding.encoder_input_size)) for length in embedding.input_size)
    return side, (height, width)
