"""Labels that overlap as classes of which a pixel has one (paper's comparison, nnU-Net).

A table, bool, (K + 1, C), says which labels each class of an label map stands for; class 0, background, for none.

    combinations    one table; a class for every combination of labels that occurs
    groups          a table for each group of labels that never overlap; a class for each label of the group
"""
from collections.abc import Callable, Sequence

import numpy as np

from utils.errors import InputError

MOST_LABELS = 64  # bits of a code


def combination_table(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The one table of all combinations in the masks, each bool, (C, H, W); C is 64 at most."""
    found = np.unique(np.concatenate([np.unique(_codes(mask)) for mask in masks]))
    bits = np.arange(len(masks[0]), dtype=np.uint64)
    return [np.union1d(np.uint64(0), found)[:, None] >> bits & np.uint64(1) > 0]


def group_tables(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
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
    return [np.eye(len(together), dtype=bool)[[0, *sorted(group)]] & (np.arange(len(group) + 1) > 0)[:, None]
            for group in groups]


ENCODINGS: dict[str, Callable[[Sequence[np.ndarray]], list[np.ndarray]]] = {
    "combinations": combination_table, "groups": group_tables}


def encode(mask: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The classes of a mask, bool, (C, H, W) -> (H, W), uint8, or uint16 if there are more than 256.

    Raises:
        ValueError: the table has no class for a combination of its labels in the mask.
    """
    classes, codes = _codes(table.T), _codes(mask & table.any(axis=0)[:, None, None])
    index = np.searchsorted(classes, codes).clip(max=len(classes) - 1)
    if (classes[index] != codes).any():
        raise ValueError("the mask shows labels together for which the table has no class")
    return index.astype(np.uint8 if len(table) <= 256 else np.uint16)


def decode(index: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The mask of an image's classes, (H, W) -> bool, (C, H, W). Raises IndexError for a class beyond the table."""
    return np.ascontiguousarray(np.moveaxis(table[index], -1, 0))


def _codes(labels: np.ndarray) -> np.ndarray:
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
