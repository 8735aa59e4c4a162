"""Masks drawn over radiographs, for people to look at."""
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from PIL import ImageFont

FILL = 0.4  # share of the class color inside a mask
PANEL_HEIGHT = 480  # pixels
LEGEND_LINE = 21  # pixels
TITLE_SIZES = range(14, 8, -1)  # pixels, the largest that fits


def class_colors(count: int) -> np.ndarray:
    """`count` well-separated colors, uint8 RGB, (count, 3); the same channel always has the same one.

    The next color is the one farthest in CIE L*a*b* from all before it, of those that stand out from grey.
    """
    colors = np.array(list(itertools.product(range(0, 256, 51), repeat=3)), np.uint8)
    colors = colors[(np.ptp(colors, axis=1) >= 102) & (colors.max(axis=1) >= 153)]
    lab = cv2.cvtColor(np.float32(colors[None]) / 255, cv2.COLOR_RGB2LAB)[0]
    chosen, distances = [int(np.flatnonzero((colors == (255, 51, 51)).all(axis=1))[0])], np.full(len(colors), np.inf)
    while len(chosen) < count:
        distances = np.minimum(distances, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(distances.argmax()))
    return colors[chosen[:count]]


def to_grey(image: np.ndarray) -> np.ndarray:
    """Stretches an (H, W) image of any range to uint8."""
    return cv2.normalize(image.astype(np.float32), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def shrink(grey: np.ndarray, longest: int) -> np.ndarray:
    """An (H, W) image whose longer side has at most `longest` pixels."""
    factor = longest / max(grey.shape)
    size = [max(1, round(factor * side)) for side in grey.shape[::-1]]
    return grey if factor >= 1 else cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def shrink_to_panel(grey: np.ndarray) -> np.ndarray:
    """An (H, W) image that is hardly larger than a panel of `side_by_side` shows: drawing on it takes less time."""
    return shrink(grey, 2 * PANEL_HEIGHT)


def overlay(grey: np.ndarray, masks: np.ndarray, colors: np.ndarray | None = None) -> np.ndarray:
    """Fills and outlines each class in its color.

    Args:
        grey: uint8, (H, W)
        masks: bool, (C, h, w), brought to the image's size
        colors: uint8 RGB, (C, 3); left out: `class_colors`
    Returns:
        uint8 RGB, (H, W, 3)
    """
    canvas = np.repeat(grey[..., None], 3, axis=-1)
    colors = class_colors(len(masks)) if colors is None else colors
    sized = [cv2.resize(mask.astype(np.uint8), grey.shape[::-1], interpolation=cv2.INTER_NEAREST) for mask in masks]
    for pixels, color in zip(sized, colors, strict=True):
        filled = ((1 - FILL) * np.arange(256)[:, None] + FILL * color).astype(np.uint8)  # of each value of a pixel
        cv2.copyTo(cv2.LUT(canvas, filled[None]), pixels, canvas)
    for pixels, color in zip(sized, colors, strict=True):  # last, so that no fill hides an outline
        outlines, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, color.tolist(), 1)
    return canvas


def add_legend(picture: np.ndarray, entries: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """A picture, uint8 RGB (H, W, 3), with a strip to the right that names colors: (text, uint8 RGB (3,)) each. In
    columns where there are more than its height holds."""
    from PIL import Image, ImageDraw
    if not entries:
        return picture
    font = _font(LEGEND_LINE * 2 // 3)
    lines = max(1, picture.shape[0] // LEGEND_LINE)
    columns = [entries[start:start + lines] for start in range(0, len(entries), lines)]
    widths = [LEGEND_LINE * 2 + round(max(font.getlength(text) for text, _ in column)) for column in columns]
    strip = Image.new("RGB", (sum(widths), picture.shape[0]))
    draw = ImageDraw.Draw(strip)
    for left, column in zip(itertools.accumulate([0, *widths]), columns, strict=False):
        for number, (text, color) in enumerate(column):
            top = number * LEGEND_LINE
            square = left + 6, top + 5, left + LEGEND_LINE - 4, top + LEGEND_LINE - 5
            draw.rectangle(square, fill=tuple(color.tolist()))
            draw.text((left + LEGEND_LINE + 2, top + 3), text, font=font)
    return np.concatenate([picture, np.asarray(strip)], axis=1)


def add_class_legend(picture: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """A picture of overlays, uint8 RGB (H, W, 3), with the names of all classes in their `class_colors`."""
    return add_legend(picture, list(zip(labels, class_colors(len(labels)), strict=True)))


def _font(size: int) -> "ImageFont.FreeTypeFont":
    import matplotlib  # has a font of all alphabets, but isn't needed elsewhere in this module
    from PIL import ImageFont
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Joins RGB pictures top to bottom, filled up with black to the widest."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0))) for picture in pictures])


def side_by_side(panels: Sequence[np.ndarray], titles: Sequence[str], height: int = PANEL_HEIGHT) -> np.ndarray:
    """Joins RGB panels of one size left to right under their titles, scaled to `height` pixels."""
    scaled = []
    for panel, title in zip(panels, titles, strict=True):
        width = max(1, round(panel.shape[1] * height / panel.shape[0]))
        picture = cv2.resize(panel, (width, height), interpolation=cv2.INTER_CUBIC)
        picture = cv2.copyMakeBorder(picture, 28, 4, 4, 4, cv2.BORDER_CONSTANT)
        scaled.append(_write_title(picture, title))
    return np.concatenate(scaled, axis=1)


def _write_title(picture: np.ndarray, title: str) -> np.ndarray:
    """In the strip above a picture, in the largest letters that fit; what doesn't fit in the smallest ones is cut."""
    from PIL import Image, ImageDraw
    image, width = Image.fromarray(picture), picture.shape[1] - 8
    font = next((font for font in map(_font, TITLE_SIZES) if font.getlength(title) <= width), _font(TITLE_SIZES[-1]))
    while title and font.getlength(title) > width:
        title = title.removesuffix("…")[:-1] + "…" if len(title) > 1 else ""
    ImageDraw.Draw(image).text((6, 14), title, font=font, anchor="lm")
    return np.asarray(image)
