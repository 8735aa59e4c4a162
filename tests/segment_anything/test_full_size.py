"""Refinement at the image's own size, against the same one at the network's size and against SAM's own upscaling."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segment_anything.checkpoints import identify
from segment_anything.embeddings import compute_embedding
from segment_anything.refinement.recommended import (
    Calibration,
    Estimate,
    refine_calibrated,
    refine_calibrated_full_size,
)
from segment_anything.refinement.refine import RefinementOptions, refine, refine_full_size
from segment_anything.registry import default_checkpoint, load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder

SIZE, INPUT = (93, 150), (48, 76)  # of the image and the network
OPTIONS = RefinementOptions()
CALIBRATION = Calibration((0.5, -1.0, 0.0), ("box", "mask"), (0.4, 1.0, 0.3), (-0.5, 0.25, 0.0), "largest",
                          Estimate((0.5, 0.2, 0.1, 0.1, 0.2), (0.01, 0.02, 0.03), (-2, -3, -2), (1, 1, 1)), (0.5, 0.6))


@pytest.fixture(scope="module")
def seen():
    """(probabilities at `INPUT`, embedding, decoder): two disks in an image of `SIZE`, and a class that isn't there."""
    checkpoint = default_checkpoint("demo", None)
    sam, decoder = load_sam("demo", checkpoint), StoredEmbeddingDecoder.load("demo", checkpoint)
    rows, columns = np.mgrid[:SIZE[0], :SIZE[1]]
    grey = np.full(SIZE, 90, np.uint8)
    for center, value in ((40, 190), (110, 20)):
        grey[np.hypot(rows - 50, columns - center) < 22] = value
    embedding = compute_embedding(sam, grey, "longest_side", identify(checkpoint))
    rows, columns = np.mgrid[:INPUT[0], :INPUT[1]]
    logits = np.stack([9 - np.hypot(rows - 25, columns - center) for center in (20, 56, 500)])
    return (1 / (1 + np.exp(-logits))).astype(np.float32), embedding, decoder


def at_input_size(masks: np.ndarray) -> np.ndarray:
    """The pixels that the refinement at the network's size keeps."""
    return F.interpolate(torch.from_numpy(masks)[None].float(), INPUT, mode="nearest-exact")[0].numpy() > 0


def test_sams_masks_are_those_of_the_refinement_at_more_pixels(seen):
    full, small = refine_full_size(*seen, OPTIONS), refine(*seen, OPTIONS)
    assert full.mask.shape == (3, *SIZE) and full.mask[0].any() and not full.mask[2].any()
    np.testing.assert_array_equal(at_input_size(full.mask), small.mask)
    np.testing.assert_array_equal(full.estimated_dice, small.estimated_dice)


def test_a_class_that_isnt_prompted_keeps_its_mask(seen):
    probabilities, embedding, decoder = seen
    twice = probabilities[[0, 0, 2]]  # no pixel belongs to one class alone
    masks = refine_full_size(twice, embedding, decoder, OPTIONS).mask
    resized = F.interpolate(torch.from_numpy(twice[None] > 0.5).float(), SIZE, mode="bilinear")[0].numpy() > 0.5
    assert masks.any() and np.mean(masks != resized) < 1e-4


def test_the_mixture_of_sam_alone_is_the_refinement_at_more_pixels(seen):
    alone = replace(CALIBRATION, shares=(1.0, 1.0, 1.0))
    full, small = refine_calibrated_full_size(*seen, alone), refine_calibrated(*seen, alone)
    assert full.mask[0].any()
    np.testing.assert_array_equal(at_input_size(full.mask), small.mask)
    np.testing.assert_allclose(full.estimated_dice, small.estimated_dice, atol=0.002)  # its size in more pixels


def test_the_mixture_of_the_network_alone_is_its_resized_probabilities(seen):
    masks = refine_calibrated_full_size(*seen, replace(CALIBRATION, shares=(0.0, 0.0, 0.0))).mask
    resized = F.interpolate(torch.from_numpy(seen[0])[None].double(), SIZE, mode="bilinear")[0]
    cuts = torch.tensor(CALIBRATION.cuts) + torch.tensor(CALIBRATION.mixed_cuts)
    assert np.mean(masks != (resized.logit() > cuts[:, None, None]).numpy()) < 1e-4


def test_at_the_networks_size_both_are_one(seen):
    probabilities, embedding, decoder = seen
    resized = F.interpolate(torch.from_numpy(probabilities)[None], SIZE, mode="bilinear")[0].numpy()
    for full, small, how in ((refine_full_size, refine, OPTIONS),
                             (refine_calibrated_full_size, refine_calibrated, CALIBRATION)):
        ours, expected = (make(resized, embedding, decoder, how) for make in (full, small))
        np.testing.assert_array_equal(ours.mask, expected.mask)
        np.testing.assert_array_equal(ours.estimated_dice, expected.estimated_dice)
