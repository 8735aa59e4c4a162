"""Figures of images: masks over radiographs, the prompts that SAM was given, saved pseudo labels.

    masks = {"ground truth": data.mask(stem), "U-Net": store.mask(stem)}
    figure = overlays({"": panels(to_grey(data.read_grey(stem)), masks)}, labels, stem, width=3)
    scripts.study.figures.save_figure(folder / stem, figure)
"""
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scripts.study.figures import legend_columns, new_figure
from segment_anything.refinement.prompts import ClassPrompt, Prompts, select_prompt
from utils.errors import InputError
from utils.mask_store import MaskStore
from utils.overlay import class_colors, overlay, shrink

if TYPE_CHECKING:  # imported where a figure is made: they take seconds
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 640  # pixels of a picture's longer side in a figure
MASK_COLOR = np.array([[86, 180, 233]], np.uint8)  # of a mask that stands alone
BOX = {"edgecolor": "#FFD700", "linewidth": 1.2}
POSITIVE = {"marker": "o", "color": "#00E000", "markeredgecolor": "black", "markersize": 5}
NEGATIVE = {"marker": "X", "color": "#FF2020", "markeredgecolor": "white", "markersize": 5, "markeredgewidth": 0.5}
POINTS = {1: ("positive point", POSITIVE), 0: ("negative points", NEGATIVE)}  # by their label
PROMPT_TITLES = {"pos_points": "positive point", "neg_points": "negative points"}  # others are called by their name


def panels(grey: np.ndarray, masks: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """A row for `overlays`: the radiograph, and the same under masks, each with its caption.

    Args:
        grey: uint8, (H, W)
        masks: caption -> bool (C, h, w)
    """
    grey = shrink(grey, LONGEST)
    return [("radiograph", overlay(grey, ())), *((caption, overlay(grey, mask)) for caption, mask in masks.items())]


def overlays(pictures: Mapping[str, Sequence[tuple[str, np.ndarray]]], labels: Sequence[str], title: str,
             width: float = 1.8) -> "Figure":
    """A row of captioned RGB pictures for each image, and a legend of the classes' colors.

    Args:
        pictures: name of the row -> (caption, uint8 (H, W, 3)), the same number in each row
        width: of a picture in inches
    """
    from matplotlib.patches import Patch
    rows = list(pictures.values())
    columns, aspects = len(rows[0]), [row[0][1].shape[0] / row[0][1].shape[1] for row in rows]
    figure = new_figure(width * columns, 1.2 + sum(0.4 + width * aspect for aspect in aspects))
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=aspects)
    for row_axes, (name, row) in zip(grid, pictures.items(), strict=True):
        for axes, (caption, picture) in zip(row_axes, row, strict=True):
            lines = [textwrap.fill(line, int(width / 0.07)) for line in caption.splitlines()]  # inches of a letter
            _show(axes, picture, "\n".join(lines))
        row_axes[0].set_ylabel(name)
    figure.suptitle(title, fontsize="medium", wrap=True)
    patches = [Patch(color=color / 255, label=label)
               for label, color in zip(labels, class_colors(len(labels)), strict=True)]
    figure.legend(handles=patches, ncols=legend_columns(width * columns, labels), fontsize="small",
                  loc="outside lower center")
    return figure


def prompts_figure(grey: np.ndarray, probabilities: np.ndarray, cleaned: np.ndarray, prompts: Prompts,
                   prompt_sets: Sequence[Sequence[str]], refined: np.ndarray, estimated_dice: np.ndarray,
                   labels: Sequence[str], title: str) -> "Figure":
    """Why SAM draws what it draws: of each class that the U-Net shows its mask, the cleaned mask with the prompts that
    it gives, and SAM's mask with its estimate.

    Args:
        grey: uint8, (H, W), of any size
        probabilities: of the U-Net, float, (C, h, w), in [0, 1]
        cleaned: bool, (C, h, w)
        prompts: in pixels of the masks, h x w
        prompt_sets: the names of the prompts of the first and of the second pass; those of both are drawn
        refined: bool, (C, h, w)
        estimated_dice: (C,), in [0, 1], NaN where SAM was not asked
    """
    grey, masks = shrink(grey, LONGEST), probabilities > 0.5
    channels, names = np.flatnonzero(masks.any(axis=(1, 2))), sum(map(tuple, prompt_sets), ())
    asked = {channel: select_prompt(prompts, channel, names) for channel in channels if prompts.valid[channel]}
    passes = [f"{order} pass: {', '.join(PROMPT_TITLES.get(name, name) for name in names)}"
              for order, names in zip(("first", "second"), prompt_sets, strict=True) if names]
    figure, blocks = _draw_blocks(len(channels), 3, grey.shape, f"{title}\n{'; '.join(passes)}")
    for axes, channel in zip(blocks, channels, strict=True):
        captions = ["U-Net", "cleaned, prompts" if channel in asked else "cleaned, no prompt",
                    f"SAM, {_describe(estimated_dice[channel])}"]
        for panel, mask, caption in zip(axes, (masks, cleaned, refined), captions, strict=True):
            _show(panel, overlay(grey, mask[[channel]], MASK_COLOR), caption)
        axes[0].set_ylabel(labels[channel], fontsize="small")
        if channel in asked:
            _draw_prompt(axes[1], asked[channel], np.divide(grey.shape, masks.shape[1:])[::-1])
    figure.legend(handles=_prompt_handles(asked.values()), ncols=3, fontsize="small", loc="outside lower center")
    return figure


def sample_pseudo_labels(store: MaskStore, labels: Sequence[str], seed: int) -> dict[str, str]:
    """Label -> stem of a random image of those whose saved mask shows the class; a class that none shows is absent.

    Raises:
        InputError: none of the masks shows any class.
    """
    rng, stems = np.random.default_rng(seed), {}
    for channel, label in enumerate(labels):
        order = (store.stems[number] for number in rng.permutation(len(store.stems)))
        if stem := next((stem for stem in order if store.mask(stem)[channel].any()), None):
            stems[label] = stem
    if not stems:
        raise InputError(f"{store.path}: none of its {len(store.stems)} masks shows a class, so there is nothing to "
                         "draw; train the network that they are of for longer, or on more labeled images, and save "
                         "its masks")
    return stems


def pseudo_label_grid(pictures: Mapping[str, tuple[str, np.ndarray, np.ndarray, float | None]], title: str
                      ) -> "Figure":
    """One saved pseudo label of each class, with SAM's estimate.

    Args:
        pictures: label -> (stem, grey image uint8 (H, W), mask of the class bool (h, w), estimated Dice in [0, 1], NaN
            where SAM was not asked, None for masks that aren't SAM's), stems as `sample_pseudo_labels` chooses them;
            one or more
    """
    shape = next(iter(pictures.values()))[1].shape
    figure, blocks = _draw_blocks(len(pictures), 1, shape, title)
    for (axes,), (label, (stem, grey, mask, estimate)) in zip(blocks, pictures.items(), strict=True):
        picture = overlay(shrink(grey, LONGEST), mask[None], MASK_COLOR)
        _show(axes, picture, label if estimate is None else f"{label}\n{_describe(estimate)}")
        axes.set_xlabel(stem, fontsize="xx-small", wrap=True)
    return figure


def _draw_blocks(count: int, size: int, shape: tuple[int, int], title: str) -> "tuple[Figure, list[np.ndarray]]":
    """A figure, about as wide as high, and the axes of its `count` blocks of `size` pictures side by side, each of that
    shape (H, W)."""
    width, height = 2 * (shape[1] / shape[0]) ** 0.5, 2 * (shape[0] / shape[1]) ** 0.5  # inches of a picture
    columns = max(1, round((count * (height + 0.5) / (size * width)) ** 0.5))
    rows = max(1, math.ceil(count / columns))
    figure = new_figure(columns * (size * width + 0.4), 1 + rows * (height + 0.5))
    figure.suptitle(title, fontsize="medium", wrap=True)
    parts = figure.subfigures(rows, columns, squeeze=False).ravel()
    return figure, [part.subplots(1, size, squeeze=False)[0] for part in parts[:count]]


def _show(axes: "Axes", picture: np.ndarray, caption: str) -> None:
    axes.imshow(picture)
    axes.set_title(caption, fontsize="small")
    axes.set(xticks=[], yticks=[])


def _describe(estimate: float) -> str:
    return "not asked" if np.isnan(estimate) else f"estimate {100 * estimate:.1f} %"


def _draw_prompt(axes: "Axes", prompt: ClassPrompt, scale: np.ndarray) -> None:
    """`scale` is from pixels of the masks to those of the picture: x, y."""
    from matplotlib.patches import Rectangle
    if prompt.box is not None:
        first, last = prompt.box.reshape(2, 2)  # pixels, both inside
        axes.add_patch(Rectangle(first * scale - 0.5, *((last - first + 1) * scale), fill=False, **BOX))
    for label, (_, marker) in POINTS.items():
        if prompt.points is not None and (chosen := prompt.labels == label).any():
            axes.plot(*((prompt.points[chosen] + 0.5) * scale - 0.5).T, linestyle="none", **marker)


def _prompt_handles(asked: Collection[ClassPrompt]) -> "list[Artist]":
    """Of what is drawn of these prompts."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    box = [Patch(fill=False, label="box", **BOX)] if any(prompt.box is not None for prompt in asked) else []
    labels = {label for prompt in asked if prompt.labels is not None for label in prompt.labels.tolist()}
    return box + [Line2D([], [], linestyle="none", label=title, **marker)
                  for label, (title, marker) in POINTS.items() if label in labels]
