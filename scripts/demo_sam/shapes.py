"""Random images of shapes that look like radiographs in general: what the demo SAM is trained on.

A scene is a dim background with soft gradients, and brighter objects on it: blobs, polygons with rounded corners, long
bars with flared ends, cells packed side by side, bars in line with narrow gaps between them. Where objects overlap,
their brightness adds up. Blur, noise, texture, exposure and lettering vary. Nothing in here is drawn after an anatomy.

Coordinates are x, y in pixels; all randomness comes from the generator that is passed in.
"""
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

MIN_AREA = 24  # pixels; smaller remains (cut at the border) are drawn, but nobody is asked for them
SUBPIXEL_BITS = 4  # OpenCV's fixed-point coordinates


@dataclass(frozen=True)
class Scene:
    """`image` uint8, (H, W); `masks` bool, (N, H, W): the whole extent of each object, overlaps included; N >= 1."""
    image: np.ndarray
    masks: np.ndarray


def random_scene(rng: np.random.Generator, longest_side: int = 256, hard: bool = False) -> Scene:
    """One random scene whose longer side is `longest_side` pixels; the aspect ratio is random.

    `hard` scenes show more of what is easily confused: long bars side by side, thin caps, packed objects.
    """
    while True:
        height, width = _random_size(rng, longest_side)
        outlines = [outline for layout in _random_layouts(rng, hard) for outline in layout(rng, height, width)]
        coverages = [_coverage(outline, height, width) for outline in outlines]
        masks = [coverage >= 0.5 for coverage in coverages]
        asked = [mask for mask in masks if np.count_nonzero(mask) >= MIN_AREA]
        if asked:
            return Scene(_draw(rng, coverages, height, width), np.stack(asked))


def _random_size(rng: np.random.Generator, longest_side: int) -> tuple[int, int]:
    shorter = round(longest_side * rng.uniform(0.42, 1))
    return (longest_side, shorter) if rng.random() < 0.65 else (shorter, longest_side)


def _random_layouts(rng: np.random.Generator, hard: bool) -> list:
    layouts = [scatter, pack_blobs, pack_cells, long_bars if hard else bars_in_line]
    count = rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2])
    chances = [0.15, 0.35, 0.1, 0.4] if hard else [0.25, 0.3, 0.15, 0.3]
    return [layouts[index] for index in rng.choice(4, size=count, p=chances)]


# Outlines: float64, (K, 2), closed polygons.

def blob(rng: np.random.Generator) -> np.ndarray:
    """A smooth closed curve around the origin, about 1 long: an ellipse with random low harmonics."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.ones_like(angle)
    for order in range(2, 6):
        radius += rng.normal(0, 0.22 / order) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    stretch = rng.uniform(0.45, 1)
    return 0.5 * np.maximum(radius, 0.35)[:, None] * np.stack([np.cos(angle), stretch * np.sin(angle)], axis=1)


def round_polygon(rng: np.random.Generator) -> np.ndarray:
    """A polygon of 3 to 7 corners around the origin, about 1 long, its corners cut smooth."""
    count = rng.integers(3, 8)
    angle = np.sort((np.arange(count) + rng.uniform(-0.35, 0.35, count)) * 2 * np.pi / count)
    radius = rng.uniform(0.38, 0.58, count)
    points = radius[:, None] * np.stack([np.cos(angle), rng.uniform(0.5, 1) * np.sin(angle)], axis=1)
    return _cut_corners(points, rounds=3)


def bar(rng: np.random.Generator) -> np.ndarray:
    """A long rod along x from -0.5 to 0.5: bent, flared or tapered towards its ends, ends rounded."""
    along = np.linspace(-1, 1, 25)
    thickness = rng.uniform(0.06, 0.17) * (1 + rng.uniform(-0.25, 0.25) * along)
    flare, sharpness = rng.uniform(-0.2, 1.0), rng.uniform(2, 6)
    half = thickness * (1 + flare * np.abs(along) ** sharpness) / (1 + max(flare, 0) / 2)
    half *= np.clip(1 - np.abs(along) ** rng.uniform(8, 40), 0.25, 1)
    bend = rng.normal(0, 0.04) * (1 - along ** 2)
    upper, lower = np.stack([along / 2, bend + half], 1), np.stack([along / 2, bend - half], 1)
    return _cut_corners(np.concatenate([upper, lower[::-1]]), rounds=2)


def _cut_corners(points: np.ndarray, rounds: int) -> np.ndarray:
    """Chaikin's scheme: every edge keeps its middle half, the corners go."""
    for _ in range(rounds):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return points


def _place(outline: np.ndarray, center: np.ndarray, size: float, angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return center + size * outline @ np.array([[cosine, sine], [-sine, cosine]])


# Layouts: each gives the outlines of some objects of one scene.

def scatter(rng: np.random.Generator, height: int, width: int) -> Iterator[np.ndarray]:
    """Objects of all kinds and sizes anywhere, also across the border."""
    kinds = [blob, round_polygon, bar]
    for _ in range(rng.integers(3, 11)):
        kind = kinds[rng.choice(3, p=[0.4, 0.25, 0.35])]
        smallest = 0.16 if kind is bar else 0.045
        size = max(height, width) * np.exp(rng.uniform(np.log(smallest), np.log(0.7)))
        center = rng.uniform(-0.05, 1.05, 2) * (width, height)
        yield _place(kind(rng), center, size, rng.uniform(0, 2 * np.pi))


def pack_blobs(rng: np.random.Generator, height: int, width: int) -> Iterator[np.ndarray]:
    """Compact objects side by side, some overlapping, some with a narrow gap."""
    sites = _spread_sites(rng, height, width, count=rng.integers(4, 13))
    tightness = rng.uniform(0.85, 1.3)
    for index, site in enumerate(sites):
        nearest = np.sort(np.linalg.norm(np.delete(sites, index, axis=0) - site, axis=1))[:2].mean()
        kind = blob if rng.random() < 0.6 else round_polygon
        size = nearest * tightness * rng.uniform(0.8, 1.25)
        yield _place(kind(rng), site, size, rng.uniform(0, 2 * np.pi))


def pack_cells(rng: np.random.Generator, height: int, width: int) -> Iterator[np.ndarray]:
    """The cells of a Voronoi diagram with rounded corners, drawn apart by a narrow gap or into an overlap."""
    sites = _spread_sites(rng, height, width, count=rng.integers(5, 14))
    scale = rng.uniform(0.85, 1.12)
    subdivision = cv2.Subdiv2D((-2 * width, -2 * height, 6 * width, 6 * height))
    subdivision.insert([tuple(map(float, site)) for site in sites])
    spacing = np.median(np.linalg.norm(sites[:, None] - sites, axis=2) + 1e9 * np.eye(len(sites)), axis=1).min()
    for cell, center in zip(*subdivision.getVoronoiFacetList([]), strict=True):
        reach = np.linalg.norm(cell - center, axis=1, keepdims=True)
        limited = center + (cell - center) * np.minimum(1, 0.8 * spacing / np.maximum(reach, 1e-6))
        yield _cut_corners(center + scale * rng.uniform(0.94, 1.06) * (limited - center).astype(float), rounds=2)


def long_bars(rng: np.random.Generator, height: int, width: int) -> Iterator[np.ndarray]:
    """As `bars_in_line`, up to longer than the image and further apart."""
    return bars_in_line(rng, height, width, longest=1.15, widest_step=0.42)


def bars_in_line(rng: np.random.Generator, height: int, width: int, longest: float = 0.75, widest_step: float = 0.32
                 ) -> Iterator[np.ndarray]:
    """Neighboring bars that fan out, each cut into one to three parts with narrow gaps between them.

    `longest` is relative to the image's longer side, `widest_step` from bar to bar to the bars' length.
    """
    count, direction = rng.integers(1, 7), rng.uniform(0, 2 * np.pi)
    along, across = np.array([np.cos(direction), np.sin(direction)]), np.array([-np.sin(direction), np.cos(direction)])
    length = max(height, width) * rng.uniform(0.25, longest)
    step = length * rng.uniform(0.14, widest_step)
    center, fan = rng.uniform(0.15, 0.85, 2) * (width, height), rng.normal(0, 0.12)
    for index in range(count):
        offset = index - (count - 1) / 2
        middle = center + across * step * offset + along * length * rng.normal(0, 0.06)
        yield from _segments(rng, middle, length * rng.uniform(0.8, 1.15), direction + fan * offset)


def _segments(rng: np.random.Generator, middle: np.ndarray, length: float, angle: float) -> Iterator[np.ndarray]:
    """A bar, or a bar with one or two short caps before its ends."""
    gap, caps = rng.uniform(0.01, 0.04), rng.integers(0, 3)
    axis = np.array([np.cos(angle), np.sin(angle)])
    yield _place(bar(rng), middle, length, angle)
    for side in (1, -1)[:caps]:
        short = rng.uniform(0.06, 0.14)
        cap = (blob if rng.random() < 0.5 else round_polygon)(rng) * (1, rng.uniform(1.2, 2.5))
        yield _place(cap, middle + side * axis * length * (0.5 + gap + short / 2), length * short, angle)


def _spread_sites(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """Points (count, 2) in a random ellipse of the image that keep away from each other."""
    extent = rng.uniform(0.2, 0.55, 2) * max(height, width)
    center = rng.uniform(0.2, 0.8, 2) * (width, height)
    sites = np.empty((0, 2))
    for _ in range(count):
        angle, radius = rng.uniform(0, 2 * np.pi, 12), np.sqrt(rng.uniform(0, 1, 12))
        candidates = center + extent * radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        distance = np.linalg.norm(candidates[:, None] - sites, axis=2).min(axis=1) if len(sites) else np.ones(12)
        sites = np.concatenate([sites, candidates[[distance.argmax()]]])
    return sites


# Drawing: float32 images, (H, W), about 0 to 1 until the exposure is set.

def _coverage(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """How much of each pixel lies inside, float32, (H, W), 0 to 1."""
    canvas = np.zeros((height, width), np.uint8)
    points = np.round((outline - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(canvas, [points], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas.astype(np.float32) / 255


def _draw(rng: np.random.Generator, coverages: list[np.ndarray], height: int, width: int) -> np.ndarray:
    image = _background(rng, height, width)
    grain = 1 + rng.uniform(0, 0.3) * _field(rng, height, width, rng.uniform(1.5, 8))
    contrast, style = rng.uniform(0.15, 0.55), rng.uniform(0, 1, 3)
    for coverage in coverages:
        image += contrast * rng.uniform(0.65, 1.35) * _object(rng, coverage, style) * grain
    if rng.random() < 0.4:
        _write_letters(rng, image)
    return _expose(rng, image)


def _object(rng: np.random.Generator, coverage: np.ndarray, style: np.ndarray) -> np.ndarray:
    """Brightness of one object: interior, bright rim, a vault, a gradient; `style` is shared within a scene."""
    depth = cv2.distanceTransform((coverage >= 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    thickness = max(float(depth.max()), 1.0)
    rim = np.exp(-depth / rng.uniform(0.8, 1 + 3 * style[0]))
    vault = np.sqrt(np.clip(depth / (thickness * rng.uniform(0.5, 1)), 0, 1))
    inside = rng.uniform(0.25, 1) + 1.1 * style[1] * rim + 0.7 * style[2] * vault
    if rng.random() < 0.5:
        inside = inside * (1 + 0.25 * _slope(rng, *coverage.shape))
    return inside * coverage / (0.4 + 0.5 * style[1] + 0.5 * style[2])


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Soft tissue: a wide strip or blob with soft edges on dark ground, with slow waves and faint strands."""
    longest = max(height, width)
    outline = (blob if rng.random() < 0.5 else bar)(rng) * (1, rng.uniform(1, 3))
    center = rng.uniform(0.35, 0.65, 2) * (width, height)
    size, angle = longest * rng.uniform(0.7, 1.8), rng.uniform(0, 2 * np.pi)
    tissue = _coverage(_place(outline, center, size, angle), height, width)
    tissue = cv2.GaussianBlur(tissue, (0, 0), rng.uniform(1.5, 14))
    for _ in range(rng.integers(0, 4)):  # unsharp shadows that are no objects
        outline, center = blob(rng), rng.uniform(0, 1, 2) * (width, height)
        shadow = _coverage(_place(outline, center, longest * rng.uniform(0.1, 0.6), angle=0), height, width)
        tissue += rng.uniform(-0.35, 0.35) * cv2.GaussianBlur(shadow, (0, 0), longest * rng.uniform(0.02, 0.08))
    waves = 0.5 * _slope(rng, height, width) + 0.5 * _field(rng, height, width, longest / rng.uniform(2, 12))
    return rng.uniform(0, 0.15) + rng.uniform(0.05, 0.35) * tissue * (1 + 0.3 * waves)


def _slope(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A linear gradient in a random direction, -1 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    return (np.cos(angle) * x[None] + np.sin(angle) * y[:, None]).astype(np.float32) / np.sqrt(2)


def _field(rng: np.random.Generator, height: int, width: int, grain: float) -> np.ndarray:
    """Smooth noise whose structures are about `grain` pixels wide, standard deviation about 1."""
    coarse = rng.standard_normal((int(height / grain) + 2, int(width / grain) + 2), dtype=np.float32)
    return 1.3 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _write_letters(rng: np.random.Generator, image: np.ndarray) -> None:
    height, width = image.shape
    for _ in range(rng.integers(1, 4)):
        text = "".join(rng.choice(list("ABCDEFGHKLMPRSTUX0123456789"), rng.integers(1, 5)))
        where = (int(rng.uniform(0, 0.9) * width), int(rng.uniform(0.05, 1) * height))
        cv2.putText(image, text, where, cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.3, 1.1), rng.uniform(0.6, 1.2),
                    int(rng.integers(1, 3)), cv2.LINE_AA)


def _expose(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Blur, exposure, gamma and noise; uint8, (H, W)."""
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.3))
    low, high = np.percentile(image, [1, 99.5])
    image = np.clip((image - low) / max(high - low, 1e-3), 0, 1.2) ** rng.uniform(0.6, 1.5)
    noise = rng.uniform(0, 0.05) * rng.standard_normal(image.shape, dtype=np.float32)
    if rng.random() < 0.5:
        noise = cv2.GaussianBlur(noise, (0, 0), 0.7) * 1.5
    black, white = rng.uniform(0, 50), rng.uniform(150, 255)
    return np.clip(black + (white - black) * (image + noise), 0, 255).astype(np.uint8)
