"""The lead letter that says which hand a radiograph shows."""
import cv2
import numpy as np

from scripts.phantoms.textures import blur, distance_to

STEP = 4  # places are looked for on every fourth pixel


def draw_marker(grey: np.ndarray, letter: str, free: np.ndarray, bones: np.ndarray, unit: float,
                rng: np.random.Generator) -> None:
    """Draws a letter on its plate beside the arm, or where there is no room, far from the bones; in place.

    Args:
        grey: float64, (H, W), in about [0, 1]
        free: bool, (H, W), what is exposed and not covered by the arm
        bones: bool, (H, W)
        unit: width of the radius in pixels
    """
    plate = _plate(letter, max(24, int(0.32 * unit)), rng)
    height, width = plate.shape
    rows = np.arange(height // 2, grey.shape[0] - height, STEP)
    columns = np.arange(width // 2, grey.shape[1] - width, STEP)
    to_arm, to_bone = (STEP * distance_to(mask[::STEP, ::STEP])[np.ix_(rows // STEP, columns // STEP)]
                       for mask in (~free, bones))
    score = np.minimum(to_arm, 0.6 * height) + 0.2 * np.minimum(to_bone, height)
    score += 0.1 * height * rng.random(score.shape)
    pick = np.unravel_index(int(score.argmax()), score.shape)
    top, left = rows[pick[0]] - height // 2, columns[pick[1]] - width // 2
    part = grey[top:top + height, left:left + width]
    np.maximum(part, part + 0.06 * (plate >= 0) + (0.98 - part) * np.maximum(plate, 0), out=part)


def _plate(letter: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A letter (1) on its plate (0), -1 around it; turned a little."""
    canvas = np.zeros((int(1.9 * size), int(1.6 * size)), np.uint8)
    font, thick = cv2.FONT_HERSHEY_SIMPLEX, max(3, size // 7)
    scale = size / cv2.getTextSize("L", font, 1.0, 1)[0][1]
    cv2.putText(canvas, letter, (int(0.35 * size), int(1.45 * size)), font, scale, 255, thick)
    canvas = np.pad(blur(canvas / 255.0, 0.7) + 1, int(0.2 * size))
    turned = cv2.warpAffine(canvas, cv2.getRotationMatrix2D((canvas.shape[1] / 2, canvas.shape[0] / 2),
                                                            float(rng.normal(0, 6)), 1.0), canvas.shape[::-1])
    return turned - 1
