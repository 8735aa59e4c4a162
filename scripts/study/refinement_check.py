"""Whether a refinement helps: what it makes of the labeled validation images, before anything is trained on it.

    check = check_refinement("refined", 1, labels, model, Selection(), Path("results"))
    check.print()
    write_checks(Path("results/refinement_check.csv"), [check])
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scripts.evaluate import Evaluation
from unet_training.models import Selection, TrainedModel
from unet_training.pseudo_labels import NNUNetMasks, PseudoLabels, Raw, Recommended, SamRefined
from unet_training.saved_masks import open_saved_masks
from utils.names import name_some
from utils.tables import read_rows, write_rows

FEW = 0.8  # share of the masks that could be
POOR, MUCH = 50, 5  # points of Dice
ALL_LABELS = "all labels"


class LabelCheck(NamedTuple):
    """One label on the validation images, before and after the refinement.

    Attributes:
        shown: images whose ground truth shows it
        found: those of them with a mask of the U-Net
        drawn: images with a mask that the refinement drew
        dice_before, dice_after: mean over the images that show it, in percent; NaN if none does
        false_before, false_after: images with a mask whose ground truth doesn't show it, which the Dice doesn't count
    """

    label: str
    shown: int
    found: int
    drawn: int
    dice_before: float
    dice_after: float
    false_before: int
    false_after: int


@dataclass(frozen=True)
class RefinementCheck:
    """What was measured.

    Attributes:
        way: how tables call the refinement
        number: of the round, from 1
        labels: the refinement
        num_images: validation images
        of_labels: each label, and at last all of them, whose Dice is the mean over images of each image's mean
        held_out: the last Dice after, where what the refinement does to an image was chosen on the others; None where
            nothing is chosen, or there are no others
    """

    way: str
    number: int
    labels: PseudoLabels
    num_images: int
    of_labels: Sequence[LabelCheck]
    held_out: float | None = None

    def print(self) -> None:
        width = max(len(row.label) for row in self.of_labels)
        print(f"\nDoes the refinement help? {self.num_images} labeled validation images, the U-Net's masks -> those of "
              f"{self.labels.title}\n{'':{width}}  images    U-Net  masks       Dice in %     masks of labels\n"
              f"{'':{width}}    with    finds  drawn                     that aren't there")
        for row in self.of_labels:
            print(f"{row.label:{width}}{row.shown:8}{row.found:9}{row.drawn:7}"
                  f"{f'{row.dice_before:.1f} -> {row.dice_after:.1f}':>16}"
                  f"{f'{row.false_before} -> {row.false_after}':>16}")
        for line in self.advise():
            print(f"- {line}")

    def advise(self) -> Iterator[str]:
        """What follows, and what to do about it."""
        total, is_recommended = self.of_labels[-1], isinstance(self.labels, Recommended)
        others = ["another --sam_type"] if isinstance(self.labels, SamRefined | Recommended) else []
        if not is_recommended:
            others.append("--refinement recommended, which asks these images whom to trust")
        instead = " or ".join(others)
        masks = total.found + total.false_before
        gain = (total.dice_after if self.held_out is None else self.held_out) - total.dice_before
        is_bound = not isinstance(self.labels, Recommended | NNUNetMasks)  # to the U-Net's masks
        if total.found < FEW * total.shown and is_bound:
            yield (f"the U-Net finds {total.found} of {total.shown}, and what it doesn't find can't be refined: train "
                   "longer (--epochs), or label more images")
        if total.drawn < FEW * masks and isinstance(self.labels, SamRefined):
            yield (f"{total.drawn} masks were drawn of the U-Net's {masks}; the others lie wholly under masks of other "
                   "labels: it makes them too large; train longer (--epochs), or give --initial_training recommended")
        elif total.drawn < FEW * masks:
            yield f"the refinement makes {total.drawn} masks, the U-Net {masks}"
        if total.dice_before < POOR:
            yield "the U-Net's masks are poor: train longer (--epochs) before anything else, or label more images"
        if gain < 0:
            yield (f"the refinement makes masks worse, by {-gain:.1f} points of Dice: keep the U-Net's (--pseudo_label "
                   f"raw), or try {instead}")
        else:
            yield f"the refinement gains {gain:.1f} points of Dice"
        if worse := [row.label for row in self.of_labels[:-1] if row.dice_after < row.dice_before - MUCH]:
            yield f"it loses more than {MUCH} of {name_some(worse)}: try {instead}"
        if self.held_out is not None:
            yield (f"it was chosen on these images, so the gain counts the Dice of {self.held_out:.1f} that they have "
                   "when each is left out of the choice")
        elif is_recommended:
            yield "it was chosen on the same image, so these numbers are too good"


def check_refinement(way: str, number: int, labels: PseudoLabels, model: TrainedModel, selection: Selection,
                     results_dir: Path) -> RefinementCheck:
    """Measures a model's masks of the validation images before and after; tables and overlays of both, as of
    scripts.evaluate, lie in the folder. What was measured before is read."""
    evaluations = [Evaluation(model, kind, "val", selection, results_dir) for kind in (Raw(), labels)]
    summaries = [evaluation.run_if_missing() for evaluation in evaluations]
    before, after = (evaluation.of_labels() for evaluation in evaluations)
    drawn = [of.found + of.false_positives for of in after]
    if "estimated_dice" in evaluations[1].tables:  # only what was drawn has an estimate
        rows = read_rows(evaluations[1].tables["estimated_dice"], ["stem"])
        drawn = [sum(bool(row[of.label]) for row in rows) for of in after]
    of_labels = [LabelCheck(old.label, old.shown, old.found, count, old.dice, new.dice, old.false_positives,
                            new.false_positives) for old, new, count in zip(before, after, drawn, strict=True)]
    counts = {name: sum(getattr(row, name) for row in of_labels)
              for name in ("shown", "found", "drawn", "false_before", "false_after")}
    total = LabelCheck(ALL_LABELS, dice_before=summaries[0].mean, dice_after=summaries[1].mean, **counts)
    held_out = labels.calibrate(model).held_out_dice if isinstance(labels, Recommended) else None
    return RefinementCheck(way, number, labels, len(evaluations[0].stems), [*of_labels, total],
                           held_out and 100 * held_out)


def write_checks(path: Path, checks: Sequence[RefinementCheck]) -> None:
    """As CSV, a row a label and all of them; Dice in percent, empty where no image shows the label."""
    rows = [[check.way, check.number, *(f"{value:.4f}" if isinstance(value, float) else value for value in row)]
            for check in checks for row in check.of_labels]
    write_rows(path, [["refinement", "round", *LabelCheck._fields],
                      *([("" if cell == "nan" else cell) for cell in row] for row in rows)])


def describe_drawn(labels: PseudoLabels, model: TrainedModel, stems: Sequence[str]) -> str:
    """How many of these images' saved masks SAM drew, and why not the others; of recommended ones, how many there are,
    whoever drew them; "" if it isn't SAM that refines."""
    if labels.kind != "sam":
        return ""
    store = open_saved_masks(labels, model)
    found = np.stack([store.mask(stem).any(axis=(1, 2)) for stem in stems])
    if not isinstance(labels, SamRefined):
        return (f"{np.count_nonzero(found)} of {found.size} masks of {len(stems)} images aren't empty"
                + _name_absent(model.data.description.labels, found))
    drawn = ~np.isnan([store.estimated_dice(stem) for stem in stems])
    kept, empty = found & ~drawn, np.count_nonzero(~found & ~drawn)
    return (f"SAM drew {np.count_nonzero(drawn)} of {drawn.size} masks of {len(stems)} images"
            + (f"; of {empty} the U-Net found nothing" if empty else "")
            + (f"; {np.count_nonzero(kept)} of the U-Net's lie wholly under its masks of other labels, and stay as "
               "they are" if kept.any() else "")
            + _name_absent(model.data.description.labels, drawn))


def _name_absent(labels: Sequence[str], present: np.ndarray) -> str:
    """The labels that no image has, of bool (N, C); "" if there is none."""
    absent = [label for label, is_present in zip(labels, present.any(axis=0), strict=True) if not is_present]
    return f"; none of {len(absent)} labels: {name_some(absent)}" if absent else ""
