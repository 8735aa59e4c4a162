"""The recommended refinement: what it measures by brute force, and whom it trusts where the truth is known."""
import dataclasses

import numpy as np
import pytest
import torch

from segment_anything.checkpoints import identify
from segment_anything.embeddings import compute_embedding
from segment_anything.refinement import recommended
from segment_anything.refinement.recommended import (
    CUTS,
    PRIOR,
    PROMPT_SETS,
    Calibration,
    Estimate,
    dice_curve,
    refine_all_calibrated,
    refine_calibrated,
)
from segment_anything.refinement.refine import RefinementOptions, refine
from segment_anything.registry import default_checkpoint, load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from tests.torch_threads import torch_threads
from utils.dice import multilabel_dice
from utils.errors import InputError

SIZE = 48, 76


@pytest.fixture(scope="module")
def seen():
    """Embeddings of four images of a bright and a dark disk, the disks (N, 2, H, W), and the demo SAM's decoder."""
    checkpoint = default_checkpoint("demo", None)
    sam, decoder = load_sam("demo", checkpoint), StoredEmbeddingDecoder.load("demo", checkpoint)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE[0], :SIZE[1]]
    embeddings, masks = [], []
    for _ in range(4):
        centers = rng.uniform((14, 14), (34, 24), (2, 2)) + np.array([[0, 0], [0, 38]])
        disks = np.stack([np.hypot(rows - y, columns - x) < 9 for y, x in centers])
        grey = (100 + 90 * disks[0] - 70 * disks[1] + rng.normal(0, 4, SIZE)).clip(0, 255).astype(np.uint8)
        embeddings.append(compute_embedding(sam, grey, "longest_side", identify(checkpoint)))
        masks.append(disks)
    return embeddings, np.stack(masks), decoder


def probabilities_of(masks: np.ndarray, bias: float, seed: int = 0) -> np.ndarray:
    """A network that is sure of the masks, uncertain along their outlines, and says too much by `bias` logits."""
    from scipy.ndimage import distance_transform_edt
    distance = np.stack([[distance_transform_edt(mask) - distance_transform_edt(~mask) for mask in image]
                         for image in masks])
    noise = np.random.default_rng(seed).normal(0, 0.3, masks.shape)
    return (1 / (1 + np.exp(-(distance + bias + noise)))).astype(np.float32)


def calibrate(probabilities, embeddings, ground_truth, decoder) -> Calibration:
    return recommended.calibrate(lambda: iter(probabilities), lambda: zip(probabilities, embeddings, strict=True),
                                 ground_truth, decoder)


def mean_dice(masks, ground_truth) -> float:
    return multilabel_dice(torch.from_numpy(np.stack(masks)), torch.from_numpy(ground_truth)).nanmean().item()


def test_a_curve_holds_the_dice_of_every_cut():
    rng = np.random.default_rng(1)
    logits, ground_truth = rng.normal(0, 4, (3, 17, 29)), rng.random((3, 17, 29)) < 0.2
    logits[0, 0, :4] = CUTS[[3, 3, 20, 64]]  # a value on a cut isn't above it
    ground_truth[2] = False
    curves = dice_curve(logits, ground_truth, CUTS)
    for number, cut in enumerate(CUTS):
        above = logits > cut
        expected = [2 * (a & g).sum() / (a.sum() + g.sum()) for a, g in zip(above[:2], ground_truth[:2], strict=True)]
        assert curves[:2, number] == pytest.approx(expected)
    assert np.isnan(curves[2]).all()


def test_masks_that_are_too_large_are_cut_where_they_should_be(seen):
    embeddings, masks, decoder = seen
    calibration = calibrate(probabilities_of(masks, bias=3), embeddings, masks, decoder)
    assert calibration.cuts == pytest.approx((3, 3), abs=0.6)
    before, after = calibration.dice
    assert before < 0.8 and after > 0.95
    unseen = probabilities_of(masks, bias=3, seed=5)
    refined = [refine_calibrated(*pair, decoder, calibration) for pair in zip(unseen, embeddings, strict=True)]
    assert mean_dice([image.mask for image in refined], masks) > 0.95
    assert calibration.held_out_dice == pytest.approx(after, abs=0.02)
    estimates = np.stack([image.estimated_dice for image in refined])
    assert ((estimates > 0.85) & (estimates <= 1)).all()


def test_whoever_is_right_is_trusted(seen):
    """The ground truth is what SAM draws, or else what the network says."""
    embeddings, masks, decoder = seen
    probabilities = probabilities_of(np.roll(masks, 3, axis=2), bias=0)
    options = RefinementOptions(prompt1st=("box",), prompt2nd=())
    drawn = np.stack([refine(*pair, decoder, options).mask for pair in zip(probabilities, embeddings, strict=True)])
    assert mean_dice(probabilities > 0.5, drawn) < 0.95  # they differ
    of_sam = calibrate(probabilities, embeddings, drawn, decoder)
    assert min(of_sam.shares) >= 0.3 and of_sam.dice[1] > of_sam.dice[0] + 0.02
    of_network = calibrate(probabilities, embeddings, probabilities > 0.5, decoder)
    assert of_network.shares == (0, 0) and of_network.dice[1] == 1


def test_a_class_that_few_images_show_goes_by_the_others(seen):
    embeddings, masks, decoder = seen
    probabilities, ground_truth = probabilities_of(masks, bias=3), masks.copy()
    ground_truth[1:, 1] = False
    ground_truth[0, 1] = probabilities[0, 1] > 0.999  # one odd image isn't enough
    calibration = calibrate(probabilities, embeddings, ground_truth, decoder)
    assert abs(calibration.cuts[1] - calibration.cuts[0]) <= 1.5
    unseen = calibrate(probabilities, embeddings, masks & np.array([True, False])[:, None, None], decoder)
    assert np.isfinite([*unseen.cuts, *unseen.estimate.offsets, *unseen.estimate.weights]).all()


def test_an_image_held_out_has_the_choice_of_the_others():
    tables = np.random.default_rng(3).random((5, 3, 2, len(CUTS)))
    tables[1, 2] = tables[4, 0] = np.nan  # labels that the images don't show
    for number, chosen in enumerate(recommended._hold_out(tables)):
        others = np.delete(tables, number, axis=0)
        total, count = np.nansum(others, axis=0), np.isfinite(others[..., 0, 0]).sum(axis=0)[:, None, None]
        shrunk = (total + PRIOR * total.sum(axis=0) / count.sum()) / (count + PRIOR)
        assert chosen.tolist() == shrunk.reshape(3, -1).argmax(axis=1).tolist()


def test_many_images_are_refined_as_one_and_an_empty_mask_stays_empty(seen):
    embeddings, masks, decoder = seen
    probabilities = probabilities_of(masks, bias=1)
    probabilities[2, 0] = 0
    estimate = Estimate((0.5, 0.3, 0.1, 0.1, 0.2), (0.1, 0.1), (-2.0, -2.0), (1.0, 0.5))
    calibration = Calibration((1.0, 0.5), PROMPT_SETS[0], (0.5, 1.0), (0.0, 0.25), "largest", estimate, (0.0, 0.0))
    with torch_threads(2):
        together = list(refine_all_calibrated(zip(probabilities, embeddings, strict=True), decoder, calibration))
    for number, pair in enumerate(zip(probabilities, embeddings, strict=True)):
        with torch_threads(1):  # as each worker
            alone = refine_calibrated(*pair, decoder, calibration)
        assert np.array_equal(alone.mask, together[number].mask)
        assert np.array_equal(alone.estimated_dice, together[number].estimated_dice, equal_nan=True)
    assert not together[2].mask[0].any() and np.isnan(together[2].estimated_dice[0])
    assert np.isfinite(together[2].estimated_dice[1])


def test_of_equally_good_cuts_the_one_nearest_to_zero_is_taken(seen):
    """A network that is very sure: any cut gives the same masks, so that noise in other images stays below it."""
    embeddings, masks, decoder = seen
    calibration = calibrate(np.where(masks, 0.99999, 0.00001).astype(np.float32), embeddings, masks, decoder)
    assert (calibration.cuts, calibration.shares, calibration.mixed_cuts) == ((0, 0), (0, 0), (0, 0))


def test_a_single_image_that_shows_a_label_is_not_held_against_it(seen):
    embeddings, masks, decoder = seen
    ground_truth = masks[:2].copy()
    ground_truth[1] = False
    calibration = calibrate(probabilities_of(masks[:2], bias=0), embeddings[:2], ground_truth, decoder)
    assert calibration.held_out_dice > 0.9
    alone = calibrate(probabilities_of(masks[:1], bias=0), embeddings[:1], masks[:1], decoder)
    assert alone.held_out_dice is None
    with pytest.raises(InputError, match="no validation image shows any label"):
        calibrate(probabilities_of(masks, bias=0), embeddings, np.zeros_like(masks), decoder)


def test_specks_are_dropped_where_the_images_say_so(seen):
    embeddings, masks, decoder = seen
    masks = np.roll(masks, 5, axis=2)  # not what SAM sees, so that it can't mend them
    probabilities = probabilities_of(masks, bias=0)
    probabilities[:, :, :6, :6] = 0.9999  # surer than any outline, so that no cut drops it
    calibration = calibrate(probabilities, embeddings, masks, decoder)
    assert calibration.selection != "none" and calibration.dice[1] > calibration.dice[0] + 0.03
    assert calibration.held_out_dice == pytest.approx(calibration.dice[1], abs=0.02)
    wanted = masks.copy()
    wanted[:, :, :6, :6] = True
    assert calibrate(probabilities, embeddings, wanted, decoder).selection == "none"


@pytest.mark.parametrize("wanted", PROMPT_SETS)
def test_the_prompts_that_sam_answers_best_are_taken(seen, wanted):
    embeddings, masks, decoder = seen
    probabilities = probabilities_of(np.roll(masks, 5, axis=2), bias=0)
    options = RefinementOptions(prompt1st=wanted, prompt2nd=())
    drawn = np.stack([refine(*pair, decoder, options).mask for pair in zip(probabilities, embeddings, strict=True)])
    assert calibrate(probabilities, embeddings, drawn, decoder).prompts == wanted


def test_the_estimate_follows_what_tells_the_dice():
    rng = np.random.default_rng(7)
    rated, weights, offsets = rng.random((400, 2, 3)), np.array([0.5, 0.3, 0.1]), np.array([0.05, -0.1])
    alone, sizes = rng.random((400, 2)), rng.normal((-3, -1), (0.2, 0.6), (400, 2))
    off = np.abs(sizes - sizes.mean(axis=0)) / sizes.std(axis=0) / 5
    dice = rated @ weights + offsets + 0.15 * alone - 0.2 * off
    dice[::7, 1] = np.nan
    seen = np.stack([alone, sizes], axis=2)
    found = recommended._fit_estimate(rated, seen, dice)
    assert found.weights == pytest.approx([*weights, 0.15, 0.2], abs=0.03)
    assert found.offsets == pytest.approx(offsets, abs=0.03)
    assert found.sizes == pytest.approx((-3, -1), abs=0.1) and found.spreads == pytest.approx((0.2, 0.6), abs=0.05)

    against = recommended._fit_estimate(rated, seen, 1 - rated @ weights)  # no feature speaks against a mask
    assert min(against.weights) >= 0
    few = recommended._fit_estimate(rated[:1], seen[:1], rated[:1, :, 0])
    assert few.weights == pytest.approx((1, 0, 0, 0, 0), abs=0.1) and np.isfinite([*few.offsets, *few.sizes]).all()
    none = recommended._fit_estimate(rated[:3], seen[:3], np.full((3, 2), np.nan))
    assert none.weights == (1, 0, 0, 0, 0) and none.offsets == (0, 0)


@pytest.mark.parametrize(("weights", "as_good"), [((0, 0, 0, 0, 1), (1, 1)), ((0, 0, 0, 1, 0), (0.5, 0.5))])
def test_a_mask_of_an_unusual_size_or_under_another_one_is_thought_worse(seen, weights, as_good):
    embeddings, masks, decoder = seen
    estimate = Estimate(weights, (1, 1), tuple(np.log(masks[0].mean(axis=(1, 2)))), (0.1, 0.1))
    if weights[3]:
        estimate = dataclasses.replace(estimate, offsets=(-0.5, -0.5))
    calibration = Calibration((0, 0), PROMPT_SETS[0], (0, 0), (0, 0), "none", estimate, (0, 0))

    def estimate_dice(image: np.ndarray) -> np.ndarray:
        probabilities = np.where(image, 0.9, 0.1).astype(np.float32)
        return refine_calibrated(probabilities, embeddings[0], decoder, calibration).estimated_dice

    assert estimate_dice(masks[0]) == pytest.approx(as_good)
    odd = masks[0] & (np.arange(SIZE[1]) % 3 == 0) if weights[4] else np.stack([masks[0][0], masks[0].any(axis=0)])
    assert (estimate_dice(odd) < np.array(as_good) - 0.1).tolist() == [True, True]
