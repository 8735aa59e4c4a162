"""Refinement by a random walk on the image instead of SAM (Grady 2006; the paper's comparison)."""
from dataclasses import dataclass

import cv2
import numpy as np
import skimage.morphology
from scipy import sparse
from scipy.sparse.linalg import splu

DIAGONAL = 1e-5  # added to the Laplacian, so that pixels far from every seed have a solution


@dataclass(frozen=True)
class Settings:
    """radius: of the background's erosion, see `seeded_pixels`; sigma: of the weights, see `random_walk`."""

    radius: int
    sigma: float


SETTINGS = {"released": Settings(1, 19.87), "active": Settings(8, 19.87)}  # the released code's never erode


def random_walk_masks(grey: np.ndarray, cleaned: np.ndarray, settings: Settings) -> np.ndarray:
    """Lets cleaned masks grow into the ring between them and the background, along the image's edges.

    Args:
        grey: 0..255, (H, W), at the masks' size
        cleaned: bool, (C, H, W)
    Returns:
        bool, (C, H, W)
    """
    seeded, masks = seeded_pixels(cleaned, settings.radius), cleaned.copy()
    if not seeded.all():
        masks[:, ~seeded] = random_walk(grey, seeded, cleaned, settings.sigma) > 0.5
    return masks


def seeded_pixels(cleaned: np.ndarray, radius: int) -> np.ndarray:
    """The masks, and everything outside all of them, eroded by a disk of `radius` pixels; bool, (C, H, W) -> (H, W).

    At radius 0 and 1 nothing is eroded, as in the released code: no pixel is left to decide.
    """
    foreground = cleaned.any(axis=0)
    if radius <= 1:
        return np.ones_like(foreground)
    disk = skimage.morphology.disk(radius).astype(np.uint8)
    return foreground | (cv2.dilate(foreground.astype(np.uint8), disk) == 0)


def random_walk(grey: np.ndarray, seeded: np.ndarray, seeds: np.ndarray, sigma: float) -> np.ndarray:
    """Probability that a random walk from each unseeded pixel reaches a seed of each class first; the exact solution.

    Steps go to the four neighbors, with weights exp(-(difference of grey values)^2 / sigma^2).

    Args:
        grey: (H, W)
        seeded: bool, (H, W); pixels whose classes are given
        seeds: bool, (C, H, W); the classes of seeded pixels, several or none (background) of them
    Returns:
        float64, (C, N) for the N unseeded pixels in row-major order
    """
    free = ~seeded.ravel()
    start, end, weights = _steps_from(free, grey.astype(np.float64), sigma)
    number = np.cumsum(free) - 1  # of each free pixel among them
    count, inner = int(free.sum()), free[end]
    degrees = np.bincount(number[start], weights, count) + DIAGONAL
    between = sparse.coo_array((weights[inner], (number[start[inner]], number[end[inner]])), (count, count))
    bordering, position = np.unique(end[~inner], return_inverse=True)
    to_seeds = sparse.coo_array((weights[~inner], (number[start[~inner]], position)), (count, len(bordering)))
    right = to_seeds.tocsr() @ seeds.reshape(len(seeds), -1)[:, bordering].T.astype(np.float64)
    return splu((sparse.diags_array(degrees) - between).tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0,
                options={"SymmetricMode": True}).solve(right).T


def _steps_from(free: np.ndarray, grey: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixel numbers of the start and the end of every step from a free pixel to a neighbor, and the step's weight."""
    index, values = np.arange(grey.size).reshape(grey.shape), grey.ravel()
    pairs = [(index[:, :-1], index[:, 1:]), (index[:-1], index[1:])]
    one, other = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    start, end = np.concatenate([one, other]), np.concatenate([other, one])
    start, end = start[free[start]], end[free[start]]
    return start, end, np.exp(-((values[start] - values[end]) ** 2) / sigma ** 2)
