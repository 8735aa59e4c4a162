"""Random textures of bone and flesh, float64, about zero mean and unit spread."""
import cv2
import numpy as np


def blur(image: np.ndarray, sigma: float, sigma_y: float | None = None) -> np.ndarray:
    """Gaussian blur of a float64 image with standard deviations in pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma, sigmaY=sigma if sigma_y is None else sigma_y)


def distance_to(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel to a mask, float64, 0 inside; from whole squared distances, so exact."""
    distance = cv2.distanceTransform((~mask.astype(bool)).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.sqrt(np.rint(distance.astype(np.float64) ** 2))


def distance_inside(mask: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Distance of each pixel of a mask to its outline, 0 outside; where the field cuts a shape there is no outline."""
    return distance_to(~mask & field) * mask


class Textures:
    """The textures of one image: square patches, drawn once, that repeat where an image is larger."""

    PATCH = 512

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], unit: float):
        """`size`: (H, W) of the image; `unit`: width of the radius in pixels."""
        self._size, self._unit, self._rng = size, unit, rng
        grain = max(0.9, unit / 130)
        patch = (self.PATCH, self.PATCH)
        self._net = _ridges(blur(rng.standard_normal(patch), 1.05 * grain))
        self._streaks = _ridges(blur(rng.standard_normal(patch), 0.85 * grain, 5.0 * grain))
        self._coarse: dict[float, np.ndarray] = {}

    def net(self, window: tuple[slice, slice]) -> np.ndarray:
        """Trabeculae of compact bones: a fine irregular net."""
        rows, columns = (np.arange(side.start, side.stop) % self.PATCH for side in window)
        return self._net[rows[:, None], columns]

    def streaks(self, degrees: float, window: tuple[slice, slice] | None = None) -> np.ndarray:
        """Trabeculae along a shaft that leans by so many degrees to the right."""
        rows, columns = window or (slice(0, self._size[0]), slice(0, self._size[1]))
        center = ((columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2)
        matrix = cv2.getRotationMatrix2D(center, -degrees, 1.0)
        matrix[:, 2] -= (columns.start, rows.start)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        return cv2.warpAffine(self._streaks, matrix, size, borderMode=cv2.BORDER_REFLECT)

    def coarse(self, scale: float) -> np.ndarray:
        """Soft clouds with a size of `scale` widths of the radius."""
        if scale not in self._coarse:
            step = 8
            small = [-(-side // step) for side in self._size]
            clouds = blur(self._rng.standard_normal(small), scale * self._unit / step)
            self._coarse[scale] = cv2.resize(clouds / clouds.std(), self._size[::-1])
        return self._coarse[scale]


def _ridges(noise: np.ndarray) -> np.ndarray:
    """Thin bright lines where smooth noise crosses zero."""
    lines = 1 / (1 + 3 * noise * noise / np.mean(noise * noise))
    lines -= lines.mean()
    return lines / np.sqrt(np.mean(lines * lines))
