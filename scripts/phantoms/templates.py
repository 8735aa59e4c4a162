"""How the bones of a child's wrist look and when they appear: plain numbers for `scripts.phantoms.anatomy`.

The frame is that of a left hand seen from the back (p.a.), in units of the width of the distal radius: x points to the
thumb, y to the fingers, the origin lies in the middle of the distal metaphysis of the radius. Outlines are control
polygons, drawn by hand after anatomy textbooks' proportions and smoothed when they are sampled.
"""
from dataclasses import dataclass

Outline = tuple[tuple[float, float], ...]

RADIUS: Outline = (
    (-0.52, 0.02), (-0.49, 0.13), (-0.30, 0.18), (0.0, 0.21), (0.30, 0.18), (0.49, 0.12), (0.53, 0.00), (0.49, -0.20),
    (0.41, -0.55), (0.345, -0.95), (0.295, -1.6), (0.26, -2.6), (0.25, -5.0), (-0.22, -5.0), (-0.22, -2.6),
    (-0.235, -1.6), (-0.285, -0.95), (-0.375, -0.5), (-0.47, -0.18))
ULNA: Outline = (
    (-1.27, -0.06), (-1.22, 0.02), (-1.05, 0.02), (-0.85, 0.06), (-0.68, 0.02), (-0.60, -0.05), (-0.61, -0.16),
    (-0.70, -0.40), (-0.78, -0.75), (-0.81, -1.3), (-0.80, -2.4), (-0.80, -5.0), (-1.18, -5.0), (-1.17, -2.4),
    (-1.17, -1.3), (-1.19, -0.7), (-1.25, -0.35))
RADIUS_FUSED: Outline = (
    (-0.55, 0.05), (-0.57, 0.22), (-0.48, 0.34), (-0.2, 0.40), (0.18, 0.53), (0.38, 0.68), (0.50, 0.68), (0.56, 0.52),
    (0.55, 0.22), (0.53, 0.00), *RADIUS[7:-1], (-0.48, -0.18))
ULNA_FUSED: Outline = (
    (-1.26, -0.02), (-1.24, 0.20), (-1.22, 0.38), (-1.14, 0.38), (-1.10, 0.20), (-0.98, 0.17), (-0.80, 0.22),
    (-0.64, 0.16), (-0.59, 0.02), *ULNA[6:])

CARPALS: dict[str, Outline] = {
    "Epiphyse Radius": (
        (-0.53, 0.17), (-0.30, 0.24), (0.0, 0.26), (0.28, 0.235), (0.50, 0.16), (0.57, 0.22), (0.57, 0.44),
        (0.53, 0.66), (0.42, 0.69), (0.28, 0.57), (0.08, 0.48), (-0.22, 0.40), (-0.48, 0.35), (-0.59, 0.26)),
    "Epiphyse Ulna": (
        (-1.23, 0.08), (-1.05, 0.06), (-0.88, 0.10), (-0.70, 0.05), (-0.60, 0.05), (-0.60, 0.19), (-0.76, 0.26),
        (-0.94, 0.22), (-1.07, 0.23), (-1.12, 0.41), (-1.23, 0.42), (-1.27, 0.24)),
    "Os capitatum": (
        (-0.45, 1.55), (-0.30, 1.62), (-0.08, 1.60), (0.08, 1.50), (0.06, 1.33), (0.10, 1.10), (0.06, 0.84),
        (-0.10, 0.71), (-0.28, 0.75), (-0.40, 0.92), (-0.44, 1.15), (-0.49, 1.38)),
    "Os hamatum": (
        (-0.98, 1.34), (-0.90, 1.52), (-0.68, 1.60), (-0.47, 1.56), (-0.40, 1.36), (-0.38, 1.08), (-0.42, 0.88),
        (-0.52, 0.90), (-0.68, 1.04), (-0.88, 1.18)),
    "Os lunatum": (
        (-0.66, 0.48), (-0.60, 0.63), (-0.46, 0.76), (-0.30, 0.72), (-0.14, 0.72), (-0.08, 0.58), (-0.14, 0.42),
        (-0.34, 0.33), (-0.56, 0.33)),
    "Os scaphoideum": (
        (-0.11, 0.55), (-0.13, 0.73), (0.05, 0.82), (0.11, 1.00), (0.23, 1.17), (0.41, 1.17), (0.48, 1.01),
        (0.43, 0.79), (0.31, 0.58), (0.12, 0.44)),
    "Os triquetrum": (
        (-1.07, 0.82), (-1.05, 0.97), (-0.93, 1.07), (-0.77, 0.99), (-0.59, 0.85), (-0.60, 0.69), (-0.73, 0.56),
        (-0.90, 0.55), (-1.01, 0.67)),
    "Os pisiforme": (
        (-1.07, 0.78), (-1.02, 0.94), (-0.88, 1.00), (-0.75, 0.90), (-0.71, 0.74), (-0.78, 0.60), (-0.92, 0.56),
        (-1.04, 0.64)),
    "Os trapezium": (
        (0.30, 1.20), (0.32, 1.40), (0.46, 1.55), (0.66, 1.52), (0.80, 1.38), (0.80, 1.16), (0.66, 1.00), (0.46, 1.02)),
    "Os trapezoideum": (
        (0.08, 1.28), (0.08, 1.50), (0.20, 1.62), (0.40, 1.60), (0.50, 1.44), (0.46, 1.24), (0.32, 1.14), (0.16, 1.16))}


@dataclass(frozen=True)
class Metacarpal:
    """A bone of the palm: its base (x, y), the angle of its axis to the y axis (degrees, thumb side positive), length
    and half width of its base, and the length of the proximal phalanx that follows it."""
    base: tuple[float, float]
    angle: float
    length: float
    half_width: float
    phalanx: float


METACARPALS = {
    "I": Metacarpal((0.83, 1.42), 33, 1.62, 0.24, 1.05),
    "II": Metacarpal((0.30, 1.58), 9, 2.38, 0.26, 1.36),
    "III": Metacarpal((-0.16, 1.62), -2, 2.28, 0.25, 1.50),
    "IV": Metacarpal((-0.56, 1.58), -11, 2.02, 0.21, 1.40),
    "V": Metacarpal((-0.86, 1.47), -20, 1.88, 0.22, 1.10)}
# (place along the axis, half width), both as a fraction of length and of the base's half width
SHAFT_PROFILE = ((0.0, 0.55), (0.03, 0.92), (0.10, 1.02), (0.22, 0.84), (0.38, 0.68), (0.58, 0.66), (0.76, 0.80))
OPEN_END = ((0.85, 0.96), (0.885, 0.90), (0.895, 0.55))
FUSED_END = ((0.87, 0.98), (0.95, 0.96), (0.99, 0.62))
HEAD = ((0.91, 0.62), (0.92, 0.92), (0.96, 0.95), (0.99, 0.80), (1.005, 0.42))
PHALANX_BASE = ((0.0, 0.60), (0.02, 0.88), (0.06, 0.88), (0.075, 0.60))

# age in years at which the ossification center appears in boys; girls are earlier (`anatomy.sample_child`)
APPEARANCE = {"Os capitatum": 0.2, "Os hamatum": 0.3, "Epiphyse Radius": 1.0, "Os triquetrum": 2.4, "Os lunatum": 3.6,
              "Os scaphoideum": 5.0, "Os trapezium": 5.1, "Os trapezoideum": 5.3, "Epiphyse Ulna": 6.4,
              "Os pisiforme": 8.7}
HEADS_APPEAR, HEADS_FUSE = 2.2, 15.2  # epiphyses of the metacarpals
FOREARM_FUSES = 16.6
