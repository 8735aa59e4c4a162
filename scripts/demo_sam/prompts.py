"""Prompts for training the demo SAM, drawn from ground truth the way the refinement draws them from imperfect ones.

Coordinates are x, y in pixels of the encoder's input; points carry label 1 (positive) or 0 (negative).
"""
from dataclasses import dataclass

import cv2
import numpy as np

MAX_NEGATIVES = 16  # the refinement has at most one per other class
CONFIDENT_LOGIT = 8.0


@dataclass(frozen=True)
class ObjectPrompts:
    """For K objects of one image: everything that SAM may be given, float32.

    boxes: (K, 4) x0, y0, x1, y1; points: (K, P, 2), the first one positive, the others on other objects;
    labels: (K, P); mask_logits: (K, 1, S, S), a damaged version of the ground truth.
    """
    boxes: np.ndarray
    points: np.ndarray
    labels: np.ndarray
    mask_logits: np.ndarray


def simulate_prompts(rng: np.random.Generator, masks: np.ndarray, chosen: np.ndarray, coverage: np.ndarray
                     ) -> ObjectPrompts:
    """Prompts for the objects `chosen` (indices, (K,)) of one scene.

    Args:
        masks: bool, (N, H, W), all objects of the scene
        coverage: float32, (K, S, S), the chosen masks at the resolution of the mask prompt
    """
    boxes = np.stack([_uncertain_box(rng, tight_box(masks[index])) for index in chosen])
    points = _points(rng, masks, chosen)
    labels = np.zeros(points.shape[:2])
    labels[:, 0] = 1
    damaged = np.stack([_damage_logits(rng, mask) for mask in coverage])[:, None]
    return ObjectPrompts(*(array.astype(np.float32) for array in (boxes, points, labels, damaged)))


def tight_box(mask: np.ndarray) -> np.ndarray:
    """x0, y0, x1, y1, the inclusive extremes of the true pixels of a bool (H, W) mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], float)


def _uncertain_box(rng: np.random.Generator, box: np.ndarray) -> np.ndarray:
    """The box of an imperfect mask: tight, a little off on every side, or far off on some."""
    extent = np.tile(box[2:] - box[:2] + 1, 2)
    kind = rng.choice(3, p=[0.3, 0.45, 0.25])
    if kind == 0:
        return box
    shift = rng.uniform(-0.15, 0.15, 4) if kind == 1 else rng.uniform(-0.35, 0.35, 4) * (rng.random(4) < 0.5)
    moved = box + np.clip(shift * extent, -25, 25) + rng.uniform(-1, 1, 4)
    return np.concatenate([np.minimum(moved[:2], moved[2:] - 2), moved[2:]])


def _points(rng: np.random.Generator, masks: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(K, P, 2): a point on each chosen object, then points on others, the same number for all."""
    alone = masks & (masks.sum(axis=0) == 1)
    on_object = np.stack([_point_on(rng, own if own.any() else mask) for own, mask in zip(alone, masks, strict=True)])
    available = min(len(masks) - 1, MAX_NEGATIVES)
    count = available if rng.random() < 0.75 else int(rng.integers(0, available + 1))
    rows = []
    for index in chosen:
        others = rng.permutation(np.delete(np.arange(len(masks)), index))[:count]
        rows.append(on_object[[index, *others]])
    return np.stack(rows)


def _point_on(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """The rounded centroid, or a place between it and a random pixel of the mask."""
    rows, columns = np.nonzero(mask)
    centroid = np.array([columns.mean(), rows.mean()])
    pick = rng.integers(len(rows))
    pull = rng.uniform(0, 0.6) if rng.random() < 0.6 else 0
    return np.round(centroid + pull * (np.array([columns[pick], rows[pick]]) - centroid))


def _damage_logits(rng: np.random.Generator, coverage: np.ndarray) -> np.ndarray:
    """Logits (S, S) of a mask with bites, blots, ragged or shifted edges; sharp or soft."""
    mask = (coverage >= 0.5).astype(np.float32)
    rows, columns = np.nonzero(mask) if mask.any() else np.nonzero(coverage == coverage.max())
    size = float(max(np.ptp(rows), np.ptp(columns)) + 1)
    for _ in range(rng.integers(0, 4)):
        pick = rng.integers(len(rows))
        center = (int(columns[pick]), int(rows[pick]))
        cv2.circle(mask, center, max(1, int(size * rng.uniform(0.05, 0.3))), float(rng.random() < 0.4), -1)
    wave = cv2.resize(rng.standard_normal((9, 9), dtype=np.float32), mask.shape[::-1], interpolation=cv2.INTER_CUBIC)
    soft = cv2.GaussianBlur(mask, (0, 0), max(0.5, size * rng.uniform(0.01, 0.08)))
    logits = 2 * CONFIDENT_LOGIT * (soft - 0.5 + rng.uniform(0, 0.25) * wave * (soft > 0.02))
    if rng.random() < 0.4:
        return np.where(logits > 0, 1.0, -1.0) * rng.uniform(4, 10)
    return np.clip(logits * rng.uniform(0.5, 1.5), -12, 12)
