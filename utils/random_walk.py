"""Refinement by a random walk on the image instead of SAM (Grady 2006)."""
from dataclasses import dataclass

import cv2
import numpy as np

from utils.options import non_negative, option, positive_float

DIAGONAL = 1e-5  # added to the Laplacian, so that pixels far from every seed have a solution
PRESETS = {"released": (1, 19.87), "active": (8, 19.87)}  # radius, sigma; the released code's radius never erodes


@dataclass(frozen=True)
class RandomWalkOptions:
    """How the walk refines. `radius` and `sigma` are those of the preset where they are None."""

    random_walk: str = option("released", "preset of radius and sigma: the released code's, at which the walk never "
                                          "acts, or others", choices=tuple(PRESETS))
    walk_radius: int | None = option(None, "radius of the disk that erodes the background, in pixels (left out: the "
                                           "preset's)", type=non_negative(int), metavar="PIXELS")
    sigma: float | None = option(None, "how far grey values of neighbors may differ, of 255 (left out: the preset's)",
                                 type=positive_float)
    laplace_lambda: float = option(1.0, "weight of the graph's Laplacian beside the constant on its diagonal",
                                   type=positive_float)
    walk_seeds: str = option("probabilities", "what a seed of a class is worth: the U-Net's probability, as in the "
                                              "released code, or 1 in its cleaned mask", choices=("probabilities",
                                                                                                  "masks"))

    @property
    def radius(self) -> int:
        return PRESETS[self.random_walk][0] if self.walk_radius is None else self.walk_radius

    @property
    def edge_sigma(self) -> float:
        return PRESETS[self.random_walk][1] if self.sigma is None else self.sigma

    def name(self) -> str:
        """Distinct for distinct effects."""
        preset_radius, preset_sigma = PRESETS[self.random_walk]
        parts = ["random_walk", self.random_walk]
        if self.radius != preset_radius:
            parts.append(f"radius{self.radius}")
        if self.edge_sigma != preset_sigma:
            parts.append(f"sigma{self.edge_sigma:g}")
        if self.laplace_lambda != 1:
            parts.append(f"lambda{self.laplace_lambda:g}")
        return "_".join([*parts, "mask_seeds"] if self.walk_seeds == "masks" else parts)


def random_walk_masks(grey: np.ndarray, cleaned: np.ndarray, options: RandomWalkOptions,
                      probabilities: np.ndarray) -> np.ndarray:
    """Lets cleaned masks grow into the ring between them and the background, along the image's edges.

    Args:
        grey: 0..255, (H, W), at the masks' size
        cleaned: bool, (C, H, W)
        probabilities: of the U-Net, float, (C, H, W), in [0, 1]
    Returns:
        bool, (C, H, W)
    """
    seeded, masks = find_seeded_pixels(cleaned, options.radius), cleaned.copy()
    if not seeded.all():
        seeds = cleaned if options.walk_seeds == "masks" else np.where(cleaned, probabilities, 0)
        reached = random_walk(grey, seeded, seeds, options.edge_sigma, options.laplace_lambda)
        masks[:, ~seeded] = reached > 0.5
    return masks


def find_seeded_pixels(cleaned: np.ndarray, radius: int) -> np.ndarray:
    """The masks, and everything outside all of them, eroded by a disk of `radius` pixels; bool, (C, H, W) -> (H, W).

    At radius 0 and 1 nothing is eroded, as in the released code: no pixel is left to decide.
    """
    foreground = cleaned.any(axis=0)
    if radius <= 1:
        return np.ones_like(foreground)
    import skimage.morphology  # takes a second, and few stages walk
    disk = skimage.morphology.disk(radius).astype(np.uint8)
    return foreground | (cv2.dilate(foreground.astype(np.uint8), disk) == 0)


def random_walk(grey: np.ndarray, seeded: np.ndarray, seeds: np.ndarray, sigma: float,
                laplace_lambda: float = 1) -> np.ndarray:
    """Probability that a random walk from each unseeded pixel reaches a seed of each class first; the exact solution.

    Steps go to the four neighbors, with weights exp(-(difference of grey values)^2 / sigma^2).

    Args:
        grey: (H, W)
        seeded: bool, (H, W); pixels whose classes are given
        seeds: bool, or float in [0, 1], (C, H, W); the classes of seeded pixels, several or none (background) of them
        laplace_lambda: weight of the Laplacian beside `DIAGONAL`
    Returns:
        float64, (C, N) for the N unseeded pixels in row-major order
    """
    from scipy import sparse  # as skimage.morphology
    from scipy.sparse.linalg import splu
    free = ~seeded.ravel()
    start, end, weights = _steps_from(free, grey.astype(np.float64), sigma)
    weights = laplace_lambda * weights
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
