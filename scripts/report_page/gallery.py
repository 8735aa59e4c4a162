"""The images of a report with what became of them: a row of panels an image.

    gallery = Gallery(data, "test", stems, (Column("initial U-Net", predicted(model)), ...))
    pictures = gallery.draw(gallery.choose(40), pixels=640)
"""
import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import cv2
import msgspec
import numpy as np
import torch

from scripts.report_page.outlines import png_of, svg_path
from scripts.study.pictures import PROMPT_TITLES
from segment_anything.refinement.prompts import Prompts, select_prompt
from segment_anything.refinement.recommended import Calibration, prompt_calibrated
from segment_anything.refinement.refine import RefinementOptions, clean_and_prompt
from unet_training.models import TrainedModel
from unet_training.pseudo_labels import Mask
from utils.datasets.annotated import AnnotatedImages
from utils.dice import multilabel_dice
from utils.mask_store import MaskStore
from utils.overlay import add_class_legend, class_colors, overlay, shrink, shrink_to_panel, side_by_side, to_grey
from utils.records import read_record

QUALITY = 85  # of JPEG
MEAN, TRUTH = "mean", "ground truth"
Values = Mapping[str, Mapping[str, float]]  # stem -> label, or `MEAN` -> percent


class Prompting(NamedTuple):
    """How prompts are taken from a network's probabilities, and which of them each pass of SAM is given."""

    extract: Callable[[np.ndarray], Prompts]
    passes: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return sum(self.passes, ())

    @property
    def text(self) -> str:
        return "; then ".join(" + ".join(PROMPT_TITLES.get(name, name) for name in names)
                              for names in self.passes if names)


@dataclass(frozen=True)
class Column:
    """What is shown of every image: masks, or the prompts that are taken from them.

    Attributes:
        masks: yields the masks of these images, in their order
        dice, estimates: what is known of the masks in percent; Dice that isn't is computed where there is ground truth
        prompting: of prompts, which are drawn over the masks that they are taken from, in the place of `masks`
    """

    title: str
    masks: Callable[[Sequence[str]], Iterable[Mask]]
    dice: Values = field(default_factory=dict)
    estimates: Values = field(default_factory=dict)
    prompting: "tuple[Prompting, TrainedModel] | None" = None


class Shape(NamedTuple):
    """A class in a panel: `path` as of `svg_path`, or `png` of speckles as of `png_of`, both "" where nothing is drawn;
    Dice and estimate in percent, None where there is none."""

    channel: int
    path: str
    png: str
    dice: float | None
    estimate: float | None


class PromptMarks(NamedTuple):
    """The prompts of a class in pixels of the picture: box (x, y, width, height), points (x, y)."""

    channel: int
    box: tuple[float, ...] | None
    positive: list[tuple[float, ...]]
    negative: list[tuple[float, ...]]


class Panel(NamedTuple):
    """One picture of a row; masks are in `size` (height, width), means in percent. Without shapes it is the image."""

    title: str
    size: tuple[int, int]
    shapes: list[Shape]
    prompts: list[PromptMarks]
    note: str = ""
    dice: float | None = None
    estimate: float | None = None

    @property
    def is_truth(self) -> bool:
        return self.title == TRUTH


@dataclass
class Picture:
    """One image: its size in pixels, its JPEG file in base64, and its panels, the first being the image alone.

    `overlay` is RGB, uint8 (H, W, 3), of those that are asked for.
    """

    stem: str
    height: int
    width: int
    jpeg: str
    panels: list[Panel]
    overlay: np.ndarray | None = None

    def values(self) -> dict[str, float]:
        """What it can be sorted by: title -> percent."""
        found = {}
        for panel in self.panels:
            if panel.dice is not None:
                found[f"Dice: {panel.title}"] = panel.dice
            if panel.estimate is not None:
                found[f"estimated Dice: {panel.title}"] = panel.estimate
        return found


@dataclass(frozen=True)
class Gallery:
    """The images of one split with the columns that are shown of them."""

    data: AnnotatedImages
    split: str
    stems: Sequence[str]
    columns: Sequence[Column]

    @property
    def deciding(self) -> tuple[str, Values]:
        """What images are chosen by: the last column's Dice, else the last estimates; ("", {}) where nothing is known.
        """
        for name in ("dice", "estimates"):
            for column in reversed(self.columns):
                if any(MEAN in of_image for of_image in getattr(column, name).values()):
                    return f"{'Dice' if name == 'dice' else 'estimated Dice'}: {column.title}", getattr(column, name)
        return "", {}

    def choose(self, most: int) -> "Choice":
        """The worst, median and best of all images, a third each where there are more than `most`."""
        by, values = self.deciding
        ranked = sorted(self.stems, key=lambda stem: values.get(stem, {}).get(MEAN, -1))
        if not by or len(ranked) <= most:
            return Choice(by, ranked[:most])
        median = most // 3
        worst = best = (most - median) // 2
        worst += (most - median) % 2
        middle = max(worst, min((len(ranked) - median) // 2, len(ranked) - best - median))
        chosen = [*ranked[:worst], *ranked[middle:middle + median], *(ranked[-best:] if best else [])]
        return Choice(by, chosen, (worst, median, best))

    def draw(self, chosen: Sequence[str], pixels: int, kept: Iterable[str] = ()) -> list[Picture]:
        """The pictures of these images, whose longer side has at most so many pixels; `kept` ones with an overlay."""
        pictures, kept = {}, {stem: {} for stem in kept}
        for stem in chosen:
            grey = shrink(to_grey(self.data.read_grey(stem)), pixels)
            height, width = grey.shape
            jpeg = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
            pictures[stem] = Picture(stem, height, width, base64.b64encode(jpeg).decode(),
                                     [Panel("image", grey.shape, [], [])])
        for column in self.columns:
            for stem, panel, masks in self._draw_column(column, chosen, pictures):
                pictures[stem].panels.append(panel)
                if stem in kept and column.prompting is None:
                    kept[stem][column.title] = masks
        for stem in chosen:
            if self.data.has_ground_truth(stem):
                masks = self.data.mask(stem)
                pictures[stem].panels.append(Panel(TRUTH, masks.shape[1:], make_shapes(masks), []))
                if stem in kept:
                    kept[stem][TRUTH] = masks
        for stem, masks in kept.items():
            pictures[stem].overlay = self._draw_overlay(stem, masks)
        return list(pictures.values())

    def _draw_column(self, column: Column, chosen: Sequence[str], pictures: Mapping[str, Picture]
                     ) -> Iterator[tuple[str, Panel, np.ndarray]]:
        labels = self.data.description.labels
        if column.prompting is not None:
            prompting, model = column.prompting
            for stem, probabilities in model.probabilities(chosen):
                prompts = prompting.extract(probabilities)
                size = pictures[stem].height, pictures[stem].width
                shapes, marks = make_shapes(prompts.masks), mark_prompts(prompts, prompting.names, size)
                yield stem, Panel(column.title, prompts.masks.shape[1:], shapes, marks, prompting.text), prompts.masks
            return
        for stem, masks, estimated in column.masks(chosen):
            dice = column.dice.get(stem) or self._measure(stem, masks)
            estimates = column.estimates.get(stem) or in_percent(estimated, labels)
            shapes = make_shapes(masks, *([each.get(label) for label in labels] for each in (dice, estimates)))
            means = dice.get(MEAN), estimates.get(MEAN)
            yield stem, Panel(column.title, masks.shape[1:], shapes, [], "", *means), masks

    def _measure(self, stem: str, masks: np.ndarray) -> dict[str, float]:
        """Dice, as far as the ground truth is known."""
        if not self.data.has_ground_truth(stem):
            return {}
        dice = multilabel_dice(torch.from_numpy(masks), torch.from_numpy(self.data.mask(stem)))
        return in_percent(dice.numpy(), self.data.description.labels)

    def _draw_overlay(self, stem: str, masks: Mapping[str, np.ndarray]) -> np.ndarray:
        grey = shrink_to_panel(to_grey(self.data.read_grey(stem)))
        panels = [overlay(grey, mask) for mask in ((), *masks.values())]
        return add_class_legend(side_by_side(panels, [stem, *masks]), self.data.description.labels)


class Choice(NamedTuple):
    """The images that are shown, worst first; `by` what, and where not all are, how many of each: worst, median, best.
    """

    by: str
    stems: list[str]
    counts: tuple[int, int, int] | None = None


def predicted(model: TrainedModel) -> Callable[[Sequence[str]], Iterator[Mask]]:
    """The masks of a network, as they are."""
    return lambda stems: (Mask(stem, probabilities > 0.5) for stem, probabilities in model.probabilities(stems))


def saved(store: MaskStore) -> Callable[[Sequence[str]], Iterator[Mask]]:
    """The masks of a file."""
    return lambda stems: (Mask(stem, store.mask(stem), store.estimated_dice(stem)) for stem in stems)


def saved_estimates(store: MaskStore, stems: Sequence[str], labels: Sequence[str]) -> Values:
    """What SAM thinks of the masks of a file; nothing of masks that aren't its own."""
    return {stem: values for stem in stems if (values := in_percent(store.estimated_dice(stem), labels))}


def prompting_of(store: MaskStore) -> Prompting | None:
    """How SAM was prompted for the masks of a file; None for masks that aren't SAM's.

    Raises:
        InputError: they were refined in the recommended way, and what the validation images said is gone.
    """
    parameters: dict[str, Any] = json.loads(store.attributes.get("refine_params", "{}"))
    if not parameters:
        return None
    if "prompt1st" in parameters:
        options = msgspec.convert(parameters, RefinementOptions)
        return Prompting(lambda probabilities: clean_and_prompt(probabilities, options)[1],
                         (options.prompt1st, options.prompt2nd))
    known = read_record(store.path.with_suffix(".json"), dict[str, Any])["calibration"]
    calibration = msgspec.convert(known, Calibration)
    return Prompting(partial(prompt_calibrated, calibration=calibration), (calibration.prompts,))


def in_percent(values: np.ndarray | None, labels: Sequence[str]) -> dict[str, float]:
    """Values in [0, 1], (C,), by label, with their mean; without those that are NaN."""
    if values is None:
        return {}
    known = {label: 100 * float(value) for label, value in zip(labels, values, strict=True) if not np.isnan(value)}
    return {MEAN: float(np.mean(list(known.values()))), **known} if known else {}


def make_shapes(masks: np.ndarray, dice: Sequence[float | None] | None = None,
                estimates: Sequence[float | None] | None = None) -> list[Shape]:
    """The classes of an image, bool (C, H, W): those that are drawn, or of which something is known."""
    nothing, colors, shapes = [None] * len(masks), class_colors(len(masks)), []
    for channel, (mask, *values) in enumerate(zip(masks, dice or nothing, estimates or nothing, strict=True)):
        path = svg_path(mask)
        png = png_of(mask, colors[channel]) if not path and mask.any() else ""
        if path or png or values[0] is not None:
            shapes.append(Shape(channel, path, png, *values))
    return shapes


def mark_prompts(prompts: Prompts, names: tuple[str, ...], size: tuple[int, int]) -> list[PromptMarks]:
    """The prompts of these names of all valid classes, in a picture of that size (height, width)."""
    scale = np.divide(size, prompts.masks.shape[1:])[::-1]
    marks = []
    for channel in np.flatnonzero(prompts.valid).tolist():
        prompt, box, points = select_prompt(prompts, channel, names), None, {0: [], 1: []}
        if prompt.box is not None:
            first, last = prompt.box.reshape(2, 2)  # pixels, both inside
            box = tuple(np.concatenate([first * scale, (last - first + 1) * scale]).round(1).tolist())
        if prompt.points is not None:
            for point, label in zip(((prompt.points + 0.5) * scale).round(1).tolist(), prompt.labels.tolist(),
                                    strict=True):
                points[label].append(tuple(point))
        marks.append(PromptMarks(channel, box, points[1], points[0]))
    return marks
