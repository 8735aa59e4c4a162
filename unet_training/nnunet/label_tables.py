"""Labels that overlap as classes of which a pixel has one, since nnU-Net takes nothing else.

A table, bool, (K + 1, C), says which labels each class of a label map stands for; class 0, background, for none.

    combinations    one table; a class for every combination of labels that occurs, as the authors'
                    nnUNet/generate_nnUnet_bce_lbl.py has it
    groups          a table for each group of labels that never overlap; a class for each label of the group
    regions         the table of `combinations`; the network has an output with a sigmoid for each label, which is the
                    region of all classes that contain it, and nnU-Net's own loss for regions, Dice and BCE
    regions_bce     the same, with BCE alone: nearest to the paper's "nnU-Net BCE", whose trainer is not published
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError

MOST_LABELS = 64  # bits of a code


def tabulate_combinations(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The one table of all combinations in the masks, each bool, (C, H, W); C is 64 at most."""
    codes = np.unique(np.concatenate([np.unique(_compute_codes(mask)) for mask in masks]))
    bits = np.arange(len(masks[0]), dtype=np.uint64)
    return [np.union1d(np.uint64(0), codes)[:, None] >> bits & np.uint64(1) > 0]


def tabulate_groups(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A table for each group of labels no two of which share a pixel of the masks, each bool, (C, H, W).

    A greedy coloring of the labels, those that collide with most others first. A label that no mask shows has no
    group.
    """
    together = np.any([_share_a_pixel(mask) for mask in masks], axis=0)
    groups: list[list[int]] = []
    for label in np.argsort(-together.sum(axis=1), kind="stable"):
        fitting = (group for group in groups if not together[label, group].any())
        if together[label, label]:
            group = next(fitting, None)
            if group is None:
                groups.append(group := [])
            group.append(label)
    return [_tabulate_group(group, len(together)) for group in groups]


def _tabulate_group(group: list[int], num_labels: int) -> np.ndarray:
    """The table with a class for each label of a group, in the labels' order."""
    table = np.zeros((len(group) + 1, num_labels), dtype=bool)
    table[np.arange(1, len(table)), sorted(group)] = True
    return table


@dataclass(frozen=True)
class Encoding:
    """How nnU-Net learns labels that overlap.

    Attributes:
        make_tables: of the labeled masks, each bool, (C, H, W); an nnU-Net is trained for each table
        regions: the network's outputs are the labels that occur, with sigmoids, not the classes, with a softmax
        trainer: a class of trainer/trainers.py; "" is nnU-Net's own, or `ShorterTrainer`
    """

    make_tables: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
    regions: bool = False
    trainer: str = ""


ENCODINGS = {
    "combinations": Encoding(tabulate_combinations),
    "groups": Encoding(tabulate_groups),
    "regions": Encoding(tabulate_combinations, regions=True),
    "regions_bce": Encoding(tabulate_combinations, regions=True, trainer="BCETrainer"),
}


def encode(mask: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The classes of a mask, bool, (C, H, W) -> (H, W), uint8, or uint16 if there are more than 256.

    Raises:
        ValueError: the table has no class for a combination of its labels in the mask.
    """
    classes, codes = _compute_codes(table.T), _compute_codes(mask & table.any(axis=0)[:, None, None])
    index = np.searchsorted(classes, codes).clip(max=len(classes) - 1)
    if (classes[index] != codes).any():
        raise ValueError("the mask shows labels together for which the table has no class")
    return index.astype(np.uint8 if len(table) <= 256 else np.uint16)


def decode(index: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The mask of an image's classes, (H, W) -> bool, (C, H, W). Raises IndexError for a class beyond the table."""
    return np.ascontiguousarray(np.moveaxis(table[index], -1, 0))


def list_regions(table: np.ndarray) -> dict[int, list[int]]:
    """The classes that contain a label, by the label, for those that occur; always two or more.

    nnU-Net takes a data set for one with regions only if it sees a region of several classes, so a single class is
    listed twice.
    """
    regions = {int(label): np.flatnonzero(table[:, label]).tolist() for label in np.flatnonzero(table.any(axis=0))}
    return {label: classes if len(classes) > 1 else classes * 2 for label, classes in regions.items()}


def decode_regions(probabilities: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The mask of an image's probabilities, one for each of `list_regions`: float, (R, H, W) -> bool, (C, H, W)."""
    mask = np.zeros((table.shape[1], *probabilities.shape[1:]), dtype=bool)
    mask[list(list_regions(table))] = probabilities > 0.5
    return mask


def _compute_codes(labels: np.ndarray) -> np.ndarray:
    """Which labels are set, as bits: bool, (C, ...) -> uint64, (...)."""
    if len(labels) > MOST_LABELS:
        raise InputError(f"{len(labels)} labels: nnU-Net's classes are made of {MOST_LABELS} at most; leave labels out")
    codes = np.zeros(labels.shape[1:], np.uint64)
    for bit, label in enumerate(labels):
        codes |= label.astype(np.uint64) << np.uint64(bit)
    return codes


def _share_a_pixel(mask: np.ndarray) -> np.ndarray:
    """Which labels overlap, bool, (C, H, W) -> (C, C); the diagonal says which are there at all."""
    pixels = mask.reshape(len(mask), -1).astype(np.float32)
    return pixels @ pixels.T > 0
