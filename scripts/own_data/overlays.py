"""A page of annotated images with their masks, to look at before anything is trained."""
from collections.abc import Mapping

import numpy as np

from utils.datasets.annotated import AnnotatedImages
from utils.overlay import add_class_legend, class_colors, overlay, shrink, side_by_side, stack, to_grey

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
    """The masks as the network learns them over their images, with a legend, uint8 RGB, (H, W, 3)."""
    labels = data.description.labels
    colors, rows = class_colors(len(labels)), []
    for start in range(0, len(stems), PER_ROW):
        chosen = stems[start:start + PER_ROW]
        panels = [overlay(shrink(to_grey(data.read_grey(stem)), 2 * HEIGHT), data.mask(stem), colors)
                  for stem in chosen]
        rows.append(np.concatenate([side_by_side([panel], [f"{split_of[stem]}: {stem}"], HEIGHT)
                                    for panel, stem in zip(panels, chosen, strict=True)], axis=1))
    return add_class_legend(stack(rows), labels)
