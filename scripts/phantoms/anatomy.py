"""Samples the wrist of a child as annotated shapes: which bones there are at that age, where they lie, how they look.

Everything comes from a seed: the same number always gives the same child.
"""
import math
from dataclasses import dataclass

import numpy as np

from scripts.phantoms import templates
from scripts.phantoms.geometry import clip, exposed_field, generator, polygon_area, smooth, turn
from utils.datasets.cvat import CvatImage, CvatShape, RunLengths, draw_shape

WRIST_CENTER = (-0.2, 0.85)
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Child:
    """Age in years; `bone_age` is the age at which an average boy's bones look like that."""
    number: int
    girl: bool
    right_hand: bool
    age: float
    bone_age: float

    @property
    def stem(self) -> str:
        side, sex = "R" if self.right_hand else "L", "F" if self.girl else "M"
        return f"{self.number:04d}_{self.number:010d}_01_WRI-{side}1_{sex}{int(self.age):03d}"


@dataclass(frozen=True)
class Pose:
    """How hand and forearm lie; angles in degrees, lengths in widths of the radius."""
    hand: float
    thumb: float
    spread: float
    ulna_shift: float
    ulna_angle: float
    forearm: float
    slimness: float


def sample_child(number: int) -> Child:
    """The ages of consecutive numbers are spread evenly, so that a few children already differ in age."""
    rng = generator("child", str(number))
    rank = (number * GOLDEN_RATIO + 0.35 + rng.uniform(-0.02, 0.02)) % 1.0
    age = float(np.interp(rank, [0, 0.08, 0.3, 0.6, 0.85, 1], [0.6, 3, 7, 11, 14.4, 17.8]))
    girl, right = bool(rng.random() < 0.45), bool(rng.random() < 0.46)
    advance = float(np.interp(age, [0, 4, 10, 18], [0, 0.6, 1.4, 1.6])) if girl else 0.0
    delay = float(rng.normal(0, 0.55)) * min(1.0, age / 6)
    return Child(number, girl, right, age, max(0.4, age + advance + delay))


def sample_image(number: int, subset: str | None) -> CvatImage:
    """One child's radiograph as shapes in pixels, clipped to the exposed field; right hands are not mirrored."""
    child = sample_child(number)
    rng = generator("anatomy", child.stem)
    unit = float(np.interp(child.age, [0, 1, 2, 5, 8, 11, 14, 18], [88, 106, 118, 136, 150, 168, 186, 205]))
    unit *= float(np.clip(rng.normal(1, 0.07), 0.85, 1.15))
    width = int(np.clip(unit * rng.uniform(3.3, 4.3), 400, 800))
    height = int(np.clip(width * rng.uniform(1.45, 2.05), 640, 1300))
    origin = np.array([width * rng.uniform(0.53, 0.63), height * rng.uniform(0.40, 0.55)])
    angle = float(np.clip(rng.normal(0, 4.5), -10, 10))
    field = exposed_field(child.stem, width, height)
    shapes = []
    for anatomy, outline in sample_bones(child, rng):
        points = turn(origin + unit * outline * (1, -1), angle, origin)
        if child.right_hand:
            points = np.stack([width - points[::-1, 0], points[::-1, 1]], axis=1)
        points = np.round(clip(points, field), 2)
        if len(points) >= 3 and polygon_area(points) > 12:
            shapes.append(_annotate(anatomy, points, (height, width), rng))
    return CvatImage(child.stem, f"{child.stem}.png", width, height, subset, tuple(shapes))


def sample_bones(child: Child, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """All bones of a left hand, as (anatomy, smooth outline (N, 2) as x, y in widths of the radius)."""
    pose = Pose(hand=float(rng.normal(0, 6)), thumb=float(rng.normal(0, 8)), spread=float(rng.uniform(0.75, 1.35)),
                ulna_shift=float(rng.normal(0, 0.05)), ulna_angle=float(rng.normal(-1, 1.5)),
                forearm=float(rng.normal(2, 3)), slimness=float(rng.normal(1, 0.05)))
    return _forearm(child, pose, rng) + _carpals(child, pose, rng) + _palm(child, pose, rng)


def _vary(control: np.ndarray, rng: np.random.Generator, amount: float = 1.0) -> np.ndarray:
    """A bone of another person: shifted, turned, stretched, and each control point moved a little."""
    center = control.mean(axis=0)
    scale = 1 + amount * rng.normal(0, 0.045, 2)
    shifted = center + (control - center) * scale + amount * rng.normal(0, 0.018, 2)
    return turn(shifted, amount * rng.normal(0, 3.5), center) + amount * rng.normal(0, 0.009, control.shape)


def _forearm(child: Child, pose: Pose, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    fused = child.bone_age > templates.FOREARM_FUSES
    bones = []
    for name, outline in (("Radius", templates.RADIUS_FUSED if fused else templates.RADIUS),
                          ("Ulna", templates.ULNA_FUSED if fused else templates.ULNA)):
        control = np.array(outline) + rng.normal(0, 0.008, (len(outline), 2))
        control[:, 0] += 0.02 * rng.normal() * (control[:, 1] / 2) ** 2  # bowed shaft
        if name == "Ulna":
            control = _move_ulna(control, pose)
        bones.append((name, smooth(turn(control, pose.forearm, (0, 0)))))
    return bones


def _move_ulna(control: np.ndarray, pose: Pose) -> np.ndarray:
    return turn(control + np.array([pose.ulna_shift, 0.6 * pose.ulna_shift]), pose.ulna_angle, (-0.93, 0))


def _carpals(child: Child, pose: Pose, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Carpal bones and the epiphyses of the forearm: ossification centers that grow from round to their final shape."""
    bones = []
    for name, outline in templates.CARPALS.items():
        years = child.bone_age - templates.APPEARANCE[name] - 0.35 * rng.normal()
        epiphysis = name.startswith("Epiphyse")
        if years <= 0 or (epiphysis and child.bone_age > templates.FOREARM_FUSES):
            continue
        grown = 1.02 * (1 - 0.66 * math.exp(-years / 2.8))
        control = _grow(_vary(np.array(outline), rng, 0.5 if epiphysis else 1.0), grown, flat=epiphysis)
        if name == "Epiphyse Ulna":
            control = _move_ulna(control, pose)
        control = turn(control, pose.forearm, (0, 0)) if epiphysis else turn(control, -0.5 * pose.hand, WRIST_CENTER)
        bones.append((name, smooth(control)))
    return bones


def _grow(control: np.ndarray, grown: float, flat: bool) -> np.ndarray:
    """Shrinks an outline to a young, rounder one about its center; epiphyses keep near their growth plate."""
    center = control.mean(axis=0)
    offset = control - center
    ellipse = np.sqrt(2 * (offset ** 2).mean(axis=0)) * _round_trip(offset)
    roundness = min(1.0, max(0.0, (2.2 if flat else 1.35) * (1.02 - grown)))
    shape = (1 - roundness) * offset + roundness * ellipse
    if not flat:
        return center + grown * shape
    young = shape * (0.25 + 0.75 * grown, 0.18 + 0.82 * grown) + np.array([0.12 * max(0.0, 1 - grown), 0])
    bottom = control[:, 1].min() + 0.16 * max(0.0, 1 - grown)
    return young + np.array([center[0], bottom - young[:, 1].min()])


def _round_trip(outline: np.ndarray) -> np.ndarray:
    """For each point of an outline about the origin, the point of the unit circle that is as far along it."""
    following = np.concatenate([outline[1:], outline[:1]])
    steps = np.sqrt(((following - outline) ** 2).sum(axis=1))
    sense = np.sign(np.sum(outline[:, 0] * following[:, 1] - outline[:, 1] * following[:, 0]))
    traveled = np.concatenate([[0], np.cumsum(steps)[:-1]]) / steps.sum()
    angle = np.arctan2(outline[0, 1], outline[0, 0]) + sense * 2 * np.pi * traveled
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _palm(child: Child, pose: Pose, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    fused = child.bone_age > templates.HEADS_FUSE
    lift = 0.14 * math.exp(-child.bone_age / 3)  # the cartilage of young carpals keeps the palm away
    bones = []
    for finger, bone in templates.METACARPALS.items():
        angle = bone.angle * pose.spread + rng.normal(0, 1.5) + (pose.thumb if finger == "I" else 0)
        length, half = bone.length * rng.normal(1, 0.03), bone.half_width * pose.slimness * rng.normal(1, 0.04)
        base = turn(np.array([bone.base]) + rng.normal(0, 0.02, 2) + np.array([0, lift]), -pose.hand, WRIST_CENTER)[0]
        angle += pose.hand
        for name, profile in _metacarpal_parts(finger, fused, child.bone_age):
            bones.append((name, smooth(_tube(profile, base, angle, length, half, rng))))
        tip = _along(base, angle, length * 1.03)
        bend = angle + rng.normal(0, 4)
        for name, profile in _phalanx_parts(finger, fused, child.bone_age):
            bones.append((name, smooth(_tube(profile, tip, bend, bone.phalanx, 0.85 * half, rng))))
    return bones


def _metacarpal_parts(finger: str, fused: bool, age: float) -> list[tuple[str, tuple]]:
    """The first metacarpal grows at its base, the others at their heads."""
    whole = templates.SHAFT_PROFILE + templates.FUSED_END
    if fused:
        return [(f"Ossa metacarpalia {finger}", whole)]
    parts = [(f"Ossa metacarpalia {finger}", templates.SHAFT_PROFILE + templates.OPEN_END)]
    if finger == "I":
        parts = [(f"Ossa metacarpalia {finger}", _mirror(templates.SHAFT_PROFILE + templates.OPEN_END))]
    if age > templates.HEADS_APPEAR:
        share = min(1.0, 0.45 + 0.08 * (age - templates.HEADS_APPEAR))
        head = tuple((0.91 + (t - 0.91) * share, w * share) for t, w in templates.HEAD)
        parts.append((f"E Ossa metacarpalia {finger}", _mirror(head) if finger == "I" else head))
    return parts


def _phalanx_parts(finger: str, fused: bool, age: float) -> list[tuple[str, tuple]]:
    shaft = tuple((0.09 + 0.91 * t, w) for t, w in templates.SHAFT_PROFILE + templates.FUSED_END)
    parts = [(f"Phalanx proximalis {finger}", shaft)]
    if age > templates.HEADS_APPEAR and not fused:
        parts.append((f"E Phalanx proximalis {finger}", templates.PHALANX_BASE))
    return parts


def _mirror(profile: tuple) -> tuple:
    return tuple((1 - t, w) for t, w in reversed(profile))


def _along(start: np.ndarray, degrees: float, distance: float) -> np.ndarray:
    return start + distance * np.array([math.sin(math.radians(degrees)), math.cos(math.radians(degrees))])


def _tube(profile: tuple, base: np.ndarray, degrees: float, length: float, half: float,
          rng: np.random.Generator) -> np.ndarray:
    """Control polygon of a long bone: both sides of its axis, each a little different."""
    along = np.array([t for t, _ in profile]) * length
    sides = [np.array([w for _, w in profile]) * half * rng.normal(1, 0.05, len(profile)) for _ in range(2)]
    control = np.concatenate([np.stack([sides[0], along], axis=1), np.stack([-sides[1], along], axis=1)[::-1]])
    return turn(control, -degrees, (0, 0)) + base


def _annotate(anatomy: str, points: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> CvatShape:
    """Most shapes are polygons; a few small bones were painted, and a few others were not recognized."""
    if anatomy.startswith(("E Ossa", "Phalanx")) and rng.random() < 0.06:
        anatomy = "Sonstiges"
    if anatomy in templates.CARPALS and rng.random() < 0.07:
        return CvatShape(anatomy, rle=_run_lengths(points, size))
    return CvatShape(anatomy, polygon=points)


def _run_lengths(points: np.ndarray, size: tuple[int, int]) -> RunLengths:
    mask = np.zeros(size, bool)
    draw_shape(CvatShape("", polygon=points), mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    box = mask[top:rows[-1] + 1, left:columns[-1] + 1]
    changes = np.flatnonzero(np.diff(np.concatenate([[False], box.ravel()]))).tolist()
    ends = [*changes, box.size]
    runs = tuple(end - start for start, end in zip([0, *changes], ends, strict=True))
    return RunLengths(runs, left, top, box.shape[1], box.shape[0])
