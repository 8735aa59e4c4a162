"""SAM's agreement against the package's own modules, used directly."""
import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segment_anything import SamPredictor
from segment_anything.checkpoints import identify
from segment_anything.embeddings import compute_embedding
from segment_anything.refinement.agreement import AgreementOptions, extreme_points, mask_prompt, sam_agreement
from segment_anything.registry import load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from tests.small_sam import register_small_sam


def probabilities_of_three_classes(height: int, width: int) -> np.ndarray:
    """Two blobs around (x, y) = (12, 20) and (0, 40), and a class without a mask."""
    rows, columns = np.mgrid[:height, :width]
    blobs = [np.exp(-np.hypot(rows - 20, columns - 12) / 12), np.exp(-np.hypot(rows - 40, columns) / 9)]
    return np.stack([*blobs, np.full((height, width), 0.2)]).astype(np.float32)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A whole SAM, a grey image of 110 x 80 pixels, its embedding, and our decoder."""
    checkpoint = register_small_sam(monkeypatch, tmp_path)
    grey = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (110, 80), np.uint8), (0, 0), 2)
    sam = load_sam("small", checkpoint)
    embedding = compute_embedding(sam, grey, "longest_side", identify(checkpoint))
    return sam, grey, embedding, StoredEmbeddingDecoder.load("small", checkpoint)


@pytest.mark.parametrize("objects_at_once", [1, 32])
def test_agreement_equals_the_packages_predictor(small, objects_at_once):
    sam, grey, embedding, decoder = small
    probabilities = probabilities_of_three_classes(55, 40)
    decoder.objects_at_once = objects_at_once
    agreement = sam_agreement(probabilities, embedding, decoder)
    predictor = SamPredictor(sam)
    predictor.set_image(np.repeat(grey[..., None], 3, axis=2))
    for channel, positive in enumerate([(12, 20), (0, 40)]):
        mask = probabilities[channel] > 0.5
        lowest = np.unravel_index(probabilities[channel].argmin(), (55, 40))
        points = np.array([positive, lowest[::-1]]) * 2.0  # the image is twice as large
        low = torch.zeros(32, 32)
        inside = F.interpolate(torch.from_numpy(mask)[None, None].float(), (32, 23), mode="nearest-exact")[0, 0]
        low[:, :23] = torch.where(inside > 0, 1.0, -1.0) * np.log(999)
        sams, _, _ = predictor.predict(points, np.array([1, 0]), mask_input=low[None].numpy(), multimask_output=False)
        sams = sams[0][1::2, 1::2]  # nearest-exact to half the size
        expected = 2 * (sams & mask).sum() / (sams.sum() + mask.sum())
        np.testing.assert_allclose(agreement[channel], expected, atol=1e-6)
    assert np.isnan(agreement[2])
    assert 0 < agreement[0] < 1


def test_released_agreement_is_that_of_a_mask_without_batch_axis(small):
    """Step by step with the package's modules, as the released code takes them, at a network input of another aspect
    than the image's: 60 x 30 pixels."""
    sam, _, embedding, decoder = small
    probabilities = probabilities_of_three_classes(60, 30)
    agreement = sam_agreement(probabilities, embedding, decoder, AgreementOptions("released"))
    for channel, positive in enumerate([(12, 20), (0, 40)]):
        mask = torch.from_numpy(probabilities[channel]) > 0.5
        logits = torch.where(mask, np.log(999), -np.log(999)).float()[None, None]
        logits = F.interpolate(logits, (32, 16), mode="bilinear", align_corners=False, antialias=True)[0]
        lowest = np.unravel_index(probabilities[channel].argmin(), (60, 30))
        points = torch.tensor(np.array([positive, lowest[::-1]]) * [93 / 30, 128 / 60], dtype=torch.float32)
        sparse, dense = sam.prompt_encoder((points[None], torch.tensor([[1, 0]])), None, F.pad(logits, (0, 16)))
        low, _ = sam.mask_decoder(embedding.features["image"][None], sam.prompt_encoder.get_dense_pe(), sparse, dense,
                                  multimask_output=False)
        sams = sam.postprocess_masks(low, (128, 93), (110, 80)) > 0
        sams = F.interpolate(sams.float(), (60, 30), mode="nearest-exact")[0, 0] > 0
        expected = 2 * (sams & mask).sum() / (sams.sum() + mask.sum())
        assert agreement[channel] == pytest.approx(expected.item(), abs=1e-6)
    assert np.isnan(agreement[2])
    assert not np.allclose(agreement[:2], sam_agreement(probabilities, embedding, decoder)[:2], atol=1e-3)
    assert AgreementOptions("released").name() == "agreement_released" != AgreementOptions().name()


def test_extreme_points_are_x_y_of_the_first_extremes():
    probability = np.full((4, 6), 0.5)
    probability[2, 5] = probability[3, 1] = 0.9
    probability[1, 4] = 0.1
    np.testing.assert_array_equal(extreme_points(probability), [[5, 2], [4, 1]])


def test_the_mask_prompt_is_zero_in_the_padding(small):
    sam, _, embedding, _ = small
    embedding = compute_embedding(sam, np.zeros((40, 80), np.uint8), "longest_side", embedding.checkpoint)
    prompt = mask_prompt(np.eye(4, 8, dtype=bool), embedding)
    assert prompt.shape == (32, 32) and (prompt[16:] == 0).all()
    np.testing.assert_allclose(np.unique(prompt[:16]), [-np.log(999), np.log(999)], rtol=1e-6)
