"""What a mask decoder is asked while it is fine-tuned: prompts that err as the initial network does."""
from collections.abc import Iterable, Iterator

import numpy as np

from segment_anything.refinement.prompts import Prompts, extract_prompts
from unet_training.sam_decoder.examples import Example

SLIGHT, STRONG = 0.08, 0.25  # standard deviation of a box's sides, in its widths and heights
PREDICTED, SLIGHTLY, STRONGLY, AS_PREDICTED = range(4)
SOURCES = (0.4, 0.25, 0.1, 0.25)  # how often a box is the network's, or the object's and off slightly, strongly, or so
MASKED = 0.5  # share of the objects with a mask as a prompt, where the network has one
WITH_MASK = {("box", "mask"): 0.8, ("box", "pos_points", "mask"): 0.2}
WITHOUT_MASK = {("box",): 0.7, ("box", "pos_points"): 0.15, ("pos_points",): 0.15}
SECOND_PASS, SECOND_PROMPTS = 0.25, ("pos_points", "neg_points")  # how often there is one; with the first one's logits


def box_errors(examples: Iterable[Example]) -> np.ndarray:
    """By how much the networks' boxes are off, (N, 4): of each side in widths and heights of the object's box, over all
    objects that they touch."""
    errors = [np.zeros((0, 4))]
    for example in examples:
        if example.predicted is not None:
            boxes, chosen = extract_prompts(example.ground_truth).boxes, touched(example)
            errors.append(((example.predicted.boxes - boxes) / _sizes(boxes))[chosen])
    return np.concatenate(errors)


def touched(example: Example) -> np.ndarray:
    """Which classes the network has a mask of that overlaps the object, bool (C,)."""
    if example.predicted is None:
        return np.zeros(len(example.ground_truth), bool)
    return (example.predicted.masks & example.ground_truth).any(axis=(1, 2)) & example.predicted.valid


def draw_prompts(example: Example, errors: np.ndarray, rng: np.random.Generator) -> Prompts:
    """Prompts of each object that the image shows, at random; their masks are right for `touched` ones alone."""
    exact, known = extract_prompts(example.ground_truth), touched(example)
    predicted = example.predicted or exact
    height, width = example.ground_truth.shape[1:]
    boxes = np.full_like(exact.boxes, np.nan)
    for channel in np.flatnonzero(exact.valid):
        source = rng.choice(len(SOURCES), p=SOURCES)
        if source == PREDICTED and known[channel]:
            boxes[channel] = predicted.boxes[channel]
            continue
        error = rng.normal(0, STRONG if source == STRONGLY else SLIGHT, 4)
        if source == AS_PREDICTED and len(errors):
            error = errors[rng.integers(len(errors))]
        x0, y0, x1, y1 = exact.boxes[channel] + error * _sizes(exact.boxes)[channel]
        (x0, x1), (y0, y1) = sorted((x0, x1)), sorted((y0, y1))
        boxes[channel] = np.clip([x0, y0, x1, y1], 0, [width - 1, height - 1] * 2)
    centroids = np.where(known[:, None], predicted.centroids, exact.centroids)
    return Prompts(predicted.masks, boxes, centroids, exact.valid, predicted.probabilities)


def draw_groups(valid: np.ndarray, known: np.ndarray, rng: np.random.Generator, most: int
                ) -> Iterator[tuple[list[int], tuple[str, ...], bool]]:
    """The valid classes in groups of up to `most`, in random order: their numbers, which prompts they get, and whether
    a second pass follows."""
    masked = known & (rng.random(len(known)) < MASKED)
    for members, kinds in ((valid & masked, WITH_MASK), (valid & ~masked, WITHOUT_MASK)):
        order = rng.permutation(np.flatnonzero(members))
        for first in range(0, len(order), most):
            names = list(kinds)[rng.choice(len(kinds), p=list(kinds.values()))]
            yield order[first:first + most].tolist(), names, rng.random() < SECOND_PASS


def _sizes(boxes: np.ndarray) -> np.ndarray:
    """(N, 4): width, height, width, height in pixels."""
    return np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)
