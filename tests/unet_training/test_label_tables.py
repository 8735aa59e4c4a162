"""Overlapping labels as classes and regions, against brute force."""
from itertools import combinations

import numpy as np
import pytest

from unet_training.nnunet.label_tables import (
    decode,
    decode_regions,
    encode,
    list_regions,
    tabulate_combinations,
    tabulate_groups,
)
from utils.errors import InputError

HEIGHT, WIDTH = 9, 14


def boxes(seed: int, labels: int, images: int = 3) -> list[np.ndarray]:
    """Masks, bool, (labels, 9, 14), with a random box for most labels; label 1 is nowhere."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((images, labels, HEIGHT, WIDTH), bool)
    for image, label in rng.permutation(list(np.ndindex(images, labels)))[:images * labels * 3 // 4]:
        top, left = rng.integers(HEIGHT), rng.integers(WIDTH)
        masks[image, label, top:top + rng.integers(1, 5), left:left + rng.integers(1, 6)] = True
    masks[:, 1] = False
    return list(masks)


def label_sets(masks: list[np.ndarray]) -> set[tuple[int, ...]]:
    return {tuple(np.flatnonzero(mask[:, row, column])) for mask in masks
            for row, column in np.ndindex(HEIGHT, WIDTH)}


@pytest.mark.parametrize(("seed", "labels"), [(0, 5), (1, 17), (2, 32), (3, 64)])
def test_a_class_for_every_combination_that_occurs(seed, labels):
    masks = boxes(seed, labels)
    [table] = tabulate_combinations(masks)
    classes = [tuple(np.flatnonzero(row)) for row in table]
    assert classes[0] == ()
    assert len(classes) == len(set(classes)) and set(classes) == label_sets(masks)
    for mask in masks:
        index = encode(mask, table)
        for row, column in np.ndindex(HEIGHT, WIDTH):
            assert classes[index[row, column]] == tuple(np.flatnonzero(mask[:, row, column]))
        np.testing.assert_array_equal(decode(index, table), mask)


@pytest.mark.parametrize(("seed", "labels"), [(0, 7), (1, 17), (2, 32)])
def test_no_two_labels_of_a_group_share_a_pixel(seed, labels):
    masks = boxes(seed, labels)
    collisions = {pair for labels_there in label_sets(masks) for pair in combinations(labels_there, 2)}
    tables = tabulate_groups(masks)
    groups = [[np.flatnonzero(row).tolist() for row in table] for table in tables]
    assert all(group[0] == [] and all(len(row) == 1 for row in group[1:]) for group in groups)
    members = [[row[0] for row in group[1:]] for group in groups]
    shown = [label for label in range(labels) if any(mask[label].any() for mask in masks)]
    assert sorted(label for group in members for label in group) == shown
    assert collisions and not any(pair in collisions for group in members for pair in combinations(group, 2))
    most = max(sum(label in pair for pair in collisions) for label in range(labels))
    assert 1 < len(groups) <= most + 1  # what a greedy coloring guarantees
    for mask in masks:
        parts = [decode(encode(mask, table), table) for table in tables]
        np.testing.assert_array_equal(np.any(parts, axis=0), mask)
    for table, again in zip(tables, tabulate_groups(masks), strict=True):
        np.testing.assert_array_equal(table, again)


@pytest.mark.parametrize(("seed", "labels"), [(0, 5), (1, 17), (3, 64)])
def test_a_region_for_every_label_that_occurs(seed, labels):
    masks = boxes(seed, labels)
    [table] = tabulate_combinations(masks)
    regions = list_regions(table)
    assert list(regions) == [label for label in range(labels) if any(mask[label].any() for mask in masks)]
    assert all(len(classes) > 1 for classes in regions.values())
    for mask in masks:
        index = encode(mask, table)
        for label, classes in regions.items():
            np.testing.assert_array_equal(np.isin(index, classes), mask[label])
        probabilities = np.random.default_rng(seed).uniform(size=(len(regions), HEIGHT, WIDTH)).astype(np.float32)
        decoded = decode_regions(probabilities, table)
        assert decoded.dtype == bool and decoded.shape == mask.shape
        for label in range(labels):
            expected = probabilities[list(regions).index(label)] > 0.5 if label in regions else False
            np.testing.assert_array_equal(decoded[label], np.broadcast_to(expected, (HEIGHT, WIDTH)))


def test_labels_that_never_overlap_are_regions_of_more_than_one_class():
    mask = np.zeros((3, 4, 6), bool)
    mask[0, 1], mask[2, 3, :2] = True, True
    [table] = tabulate_combinations([mask])
    assert list_regions(table) == {0: [1, 1], 2: [2, 2]}


def test_many_classes_need_sixteen_bits():
    mask = np.zeros((9, 2, 256), bool)
    mask[:8] = np.arange(256) >> np.arange(8)[:, None, None] & 1
    [table] = tabulate_combinations([mask])
    assert len(table) == 256 and encode(mask, table).dtype == np.uint8
    mask[8, 1, 7] = True
    [table] = tabulate_combinations([mask])
    index = encode(mask, table)
    assert len(table) == 257 and index.dtype == np.uint16
    np.testing.assert_array_equal(decode(index, table), mask)


def test_what_no_class_stands_for_is_an_error():
    masks = boxes(0, 5)
    [table] = tabulate_combinations(masks)
    unseen = np.ones((5, HEIGHT, WIDTH), bool)
    with pytest.raises(ValueError, match="no class"):
        encode(unseen, table)
    with pytest.raises(IndexError):
        decode(np.full((HEIGHT, WIDTH), len(table), np.uint8), table)
    with pytest.raises(InputError, match="65 labels"):
        tabulate_combinations([np.zeros((65, 2, 3), bool)])


def test_without_any_label_there_is_no_class():
    empty = [np.zeros((4, 3, 2), bool)]
    assert [table.tolist() for table in tabulate_combinations(empty)] == [[[False] * 4]]
    assert tabulate_groups(empty) == []
