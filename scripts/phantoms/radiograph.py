"""Draws a radiograph from annotated shapes, as if X-rays had passed through bones and soft tissue.

Attenuations add up along each ray, so overlapping bones come out brighter. Lengths are in widths of the distal radius
(`unit` pixels), attenuations in natural logarithms. All arithmetic is float64, and OpenCV's processor-dependent code
paths are switched off, so the same bytes come out on every machine.
"""
from dataclasses import dataclass

import cv2
import numpy as np

from scripts.phantoms.geometry import exposed_field, fill_polygon, generator
from scripts.phantoms.marker import draw_marker
from scripts.phantoms.textures import Textures, blur, distance_inside, distance_to
from utils.datasets.cvat import CvatImage, CvatShape, draw_shape
from utils.errors import InputError

LONG_BONES = ("Radius", "Ulna", "Ossa", "Phalanx")


@dataclass(frozen=True)
class Exposure:
    """What differs from one examination to the next."""
    dose_noise: float       # relative noise of the bare beam
    bone_density: float
    soft_density: float
    contrast: float
    flatten: float          # share of the coarse brightness that the detector software takes away
    brightness: float
    sharpness: float        # standard deviation of the blur in pixels
    edge_glow: float        # bright seam along the collimator
    slope: tuple[float, float]  # change of brightness across and along the image
    cast: bool


def sample_exposure(rng: np.random.Generator) -> Exposure:
    return Exposure(dose_noise=float(rng.uniform(0.02, 0.08)), bone_density=float(rng.uniform(0.7, 1.2)),
                    soft_density=float(rng.uniform(0.75, 1.35)), contrast=float(rng.uniform(0.75, 1.3)),
                    flatten=float(rng.uniform(0.2, 0.7)), brightness=float(rng.normal(0, 0.05)),
                    sharpness=float(rng.choice([0.6, 0.8, 1.0, 1.7], p=[0.25, 0.35, 0.25, 0.15])),
                    edge_glow=float(rng.uniform(0, 0.35)), cast=bool(rng.random() < 0.12),
                    slope=(float(rng.normal(0, 0.06)), float(rng.normal(0, 0.06))))


def render(image: CvatImage) -> np.ndarray:
    """The radiograph of an annotated wrist, uint8, (H, W), not mirrored. The same input gives the same bytes.

    Raises:
        InputError: no radius is annotated (it sets the scale).
    """
    with _portable_opencv():
        rng = generator("radiograph", image.stem)
        exposure = sample_exposure(rng)
        field = fill_polygon(exposed_field(image.stem, image.width, image.height), (image.height, image.width))
        masks = [(shape.anatomy, _mask(shape, field.shape)) for shape in image.shapes]
        unit = _radius_width(masks, image.name)
        textures = Textures(rng, field.shape, unit)
        depth = _soft_tissue_depth(masks, field, unit, textures)
        attenuation = exposure.soft_density * _soft_tissue(depth, unit, textures)
        for anatomy, mask in masks:
            _add_bone(attenuation, anatomy, mask, field, unit, exposure.bone_density, textures)
        if exposure.cast:
            attenuation += _plaster(masks, field, unit, textures)
        grey = _develop(attenuation, field, unit, exposure, rng)
        free = field & (depth == 0)
        draw_marker(grey, "R" if "-R1_" in image.stem else "L", free, _union(masks, field.shape), unit, rng)
        grey = np.where(field, grey, 0.012 + 0.004 * textures.coarse(1.0))
        return np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)


class _portable_opencv:
    """Switches off OpenCV's code for particular processors, whose last bits differ, while it is open."""

    def __enter__(self) -> None:
        self._before = cv2.useOptimized()
        cv2.setUseOptimized(False)

    def __exit__(self, *_) -> None:
        cv2.setUseOptimized(self._before)


def _mask(shape: CvatShape, size: tuple[int, int]) -> np.ndarray:
    if shape.polygon is not None:
        return fill_polygon(shape.polygon, size)
    mask = np.zeros(size, bool)
    draw_shape(shape, mask)
    return mask


def _union(masks: list[tuple[str, np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    union = np.zeros(size, bool)
    for _, mask in masks:
        union |= mask
    return union


def _radius_width(masks: list[tuple[str, np.ndarray]], name: str) -> float:
    """The largest row sum in the upper part of the radius: the unit of length, in pixels."""
    rows = sum(mask.sum(axis=1) for anatomy, mask in masks if anatomy == "Radius")
    if not np.any(rows):
        raise InputError(f"{name}: no radius is annotated, and phantoms are drawn to its scale; "
                         "restore the annotations")
    rows = rows[rows > 0]
    return float(rows[:max(1, len(rows) // 2)].max())


def _chord(distance: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Path through a cylinder at a distance from its outline."""
    inside = np.clip(distance, 0, radius)
    return 2 * np.sqrt(inside * (2 * radius - inside))


def _soft_tissue_depth(masks: list[tuple[str, np.ndarray]], field: np.ndarray, unit: float,
                       textures: Textures) -> np.ndarray:
    """Distance to the skin in pixels, 0 outside: the bones' common hull, with flesh around it."""
    step = 4
    size = (-(-field.shape[0] // step), -(-field.shape[1] // step))
    hand, fingers = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for anatomy, mask in masks:
        (fingers if "Phalanx" in anatomy else hand)[mask[::step, ::step]] = 1
    unit = unit / step
    pad = int(1.5 * unit)
    hand = _extend_shafts(np.pad(hand, pad), pad)
    closed = distance_to(distance_to(hand) > 0.85 * unit) > 0.85 * unit
    wrist = _first_row_of_radius(masks) / step + pad
    rows = np.arange(closed.shape[0])[:, None]
    flesh = 0.27 + 0.16 * np.clip((rows - wrist) / unit - 0.3, 0, 2.2) + 0.05 * np.clip((wrist - rows) / unit - 1, 0, 1)
    flesh = flesh * (1 + 0.10 * cv2.resize(textures.coarse(0.6), closed.shape[::-1]))
    body = (distance_to(closed) < flesh * unit) | (distance_to(np.pad(fingers, pad)) < 0.2 * unit)
    soft = blur(body.astype(np.float64), 0.10 * unit)[pad:pad + size[0], pad:pad + size[1]]
    soft = cv2.resize(soft, (size[1] * step, size[0] * step))[:field.shape[0], :field.shape[1]]
    return distance_inside(soft > 0.5, np.ones_like(field))


def _extend_shafts(padded: np.ndarray, pad: int) -> np.ndarray:
    """Goes on with the bones below and above the image, so that the skin does not close round their cut ends."""
    inner = padded[pad:-pad]
    rows = np.flatnonzero(inner.any(axis=1)) + pad
    padded[rows[-1] - 2:] |= padded[rows[-1] - 3]
    padded[:rows[0] + 3] |= padded[rows[0] + 3]
    return padded


def _first_row_of_radius(masks: list[tuple[str, np.ndarray]]) -> float:
    return float(min(np.flatnonzero(mask.any(axis=1))[0] for anatomy, mask in masks if anatomy == "Radius"))


def _soft_tissue(depth: np.ndarray, unit: float, textures: Textures) -> np.ndarray:
    """Skin and fat at the rim, muscle and tendons below."""
    fat = 0.10 * unit
    thickness = _chord(depth, 0.8 * unit) / unit
    muscle = _chord(np.maximum(depth - fat, 0), 0.7 * unit) / unit
    variation = 1 + 0.10 * textures.coarse(0.5) + 0.05 * textures.streaks(0.0)
    return 0.16 * thickness + 0.16 * muscle * variation


def _add_bone(attenuation: np.ndarray, anatomy: str, mask: np.ndarray, field: np.ndarray, unit: float, density: float,
              textures: Textures) -> None:
    """Adds one bone: a shell of cortex around spongiosa; in place."""
    window = _window(mask, field.shape, margin=3)
    long_bone = anatomy.startswith(LONG_BONES)
    distance = distance_inside(mask[window], field[window]) / unit
    radius = _half_width(distance, unit, long_bone)
    shell = _cortex_thickness(radius, long_bone)
    flat = np.clip(radius, 0.16, 0.30) / radius  # wide ends of bones are flatter than round, epiphyses deeper
    whole = _chord(distance, radius) * flat
    inner = _chord(np.maximum(distance - shell, 0), np.maximum(radius - shell, 1e-3)) * flat
    spongiosa = textures.streaks(_axis(mask[window]), window) if long_bone else textures.net(window)
    amount = 2.4 * (whole - inner) + 0.55 * inner * (1 + 0.34 * spongiosa)
    if not long_bone:  # the far side's cortex shows as a faint second contour
        amount += 0.10 * np.exp(-((distance - 0.45 * radius) / 0.035) ** 2) * (radius > 0.12)
    attenuation[window] += density * amount * mask[window]


def _half_width(distance: np.ndarray, unit: float, long_bone: bool) -> np.ndarray | float:
    """Local half width of a bone: for shafts the largest depth nearby, for compact bones the largest of all."""
    largest = max(float(distance.max()), 0.02)
    if not long_bone:
        return largest
    step = 4
    coarse = np.ascontiguousarray(distance[::step, ::step])
    reach = 2 * int(largest * unit / step) + 1
    local = cv2.dilate(coarse, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    local = blur(local, 0.08 * unit / step)
    return np.maximum(cv2.resize(local, distance.shape[::-1]), 0.02)


def _cortex_thickness(radius: np.ndarray | float, long_bone: bool) -> np.ndarray | float:
    """Thick in the middle of shafts, thin at wide ends and around small bones."""
    return np.clip(0.115 - 0.26 * radius, 0.026, 0.075) if long_bone else 0.024


def _axis(mask: np.ndarray) -> float:
    """Angle of a shape's long axis to the vertical, in degrees, thumb side of a left hand positive."""
    moments = cv2.moments(mask.astype(np.uint8), binaryImage=True)
    return -0.5 * float(np.degrees(np.arctan2(2 * moments["mu11"], moments["mu02"] - moments["mu20"])))


def _window(mask: np.ndarray, size: tuple[int, int], margin: int) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (slice(max(0, rows[0] - margin), min(size[0], rows[-1] + 1 + margin)),
            slice(max(0, columns[0] - margin), min(size[1], columns[-1] + 1 + margin)))


def _plaster(masks: list[tuple[str, np.ndarray]], field: np.ndarray, unit: float, textures: Textures) -> np.ndarray:
    """A cast: a bright wall round the arm and crumbly plaster over everything."""
    bones = _union(masks, field.shape)[::4, ::4].astype(np.uint8)
    distance = cv2.resize(distance_to(cv2.dilate(bones, np.ones((9, 9), np.uint8))) * 4, field.shape[::-1])
    wall = np.exp(-((distance / unit - 0.62) / 0.10) ** 2)
    covered = distance < 0.7 * unit
    plaster = 0.14 + 0.03 * textures.coarse(0.03) + 0.03 * textures.coarse(0.12) + 0.02 * textures.streaks(90.0)
    return plaster * covered + 0.32 * wall * (1 + 0.1 * textures.coarse(0.03))


def _develop(attenuation: np.ndarray, field: np.ndarray, unit: float, exposure: Exposure,
             rng: np.random.Generator) -> np.ndarray:
    """Blur, quantum noise, and the detector's processing: grey values in about [0, 1]."""
    sharp = blur(attenuation, exposure.sharpness)
    noise = blur(rng.standard_normal(field.shape), 0.55)
    signal = sharp + exposure.dose_noise * noise * (1 + 0.8 * sharp)
    coarse = cv2.resize(blur(np.ascontiguousarray(signal[::4, ::4]), 0.55 * unit / 4), field.shape[::-1])
    grey = exposure.contrast * 0.62 * (signal - exposure.flatten * coarse) + 0.10 + exposure.brightness
    rows, columns = np.linspace(-1, 1, grey.shape[0])[:, None], np.linspace(-1, 1, grey.shape[1])
    grey += 0.10 * exposure.flatten + exposure.slope[0] * columns + exposure.slope[1] * rows
    depth = distance_inside(field, field=np.ones_like(field)) / unit
    grey = grey + exposure.edge_glow / (1 + (depth / 0.05) ** 2)
    return grey / np.sqrt(1 + (np.maximum(grey, 0) / 1.25) ** 2) * 1.18  # film shoulder
