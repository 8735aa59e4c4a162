"""A page of annotated images with their masks, to look at before anything is trained."""
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.datasets.annotated import AnnotatedImages
from utils.overlay import class_colors, overlay, shrink, side_by_side, stack, to_grey

PICTURED, PER_ROW, HEIGHT = 12, 4, 320


def choose_pictured(shown: Mapping[str, set[str]], most: int = PICTURED) -> list[str]:
    """Stems to look at: first those that show labels not seen yet, then others, evenly from the list; sorted."""
    chosen, seen = [], set()
    for stem in sorted(shown, key=lambda stem: (-len(shown[stem]), stem)):
        if shown[stem] - seen and len(chosen) < most:
            chosen.append(stem)
            seen |= shown[stem]
    rest = [stem for stem in sorted(shown) if stem not in chosen]
    count = min(most - len(chosen), len(rest))
    return sorted([*chosen, *(rest[index] for index in np.linspace(0, len(rest) - 1, count).astype(int))])


def draw_page(data: AnnotatedImages, stems: list[str], split_of: Mapping[str, str]) -> np.ndarray:
    """The masks as the network learns them over their images, with a legend below, uint8 RGB, (H, W, 3)."""
    labels = data.description.labels
    colors, rows = class_colors(len(labels)), []
    for start in range(0, len(stems), PER_ROW):
        chosen = stems[start:start + PER_ROW]
        panels = [overlay(shrink(to_grey(data.read_grey(stem)), 2 * HEIGHT), data.mask(stem), colors)
                  for stem in chosen]
        rows.append(np.concatenate([side_by_side([panel], [f"{split_of[stem]}: {stem}"], HEIGHT)
                                    for panel, stem in zip(panels, chosen, strict=True)], axis=1))
    width = max(row.shape[1] for row in rows)
    return stack([*rows, draw_legend(labels, colors, width)])


def draw_legend(labels: tuple[str, ...], colors: np.ndarray, width: int, size: int = 16) -> np.ndarray:
    """The names of labels in their colors on black, uint8 RGB, (H, width, 3)."""
    font = ImageFont.load_default(size)
    places, x, y = [], size, size // 2
    for label in labels:
        length = round(font.getlength(label)) + 3 * size
        if x + length > width and x > size:
            x, y = size, y + 3 * size // 2
        places.append((x, y))
        x += length
    canvas = Image.new("RGB", (width, y + 2 * size))
    pen = ImageDraw.Draw(canvas)
    for label, color, (x, y) in zip(labels, colors.tolist(), places, strict=True):
        pen.rectangle((x, y + size // 4, x + size, y + size), fill=tuple(color))
        pen.text((x + 3 * size // 2, y), label, fill="white", font=font)
    return np.asarray(canvas)
