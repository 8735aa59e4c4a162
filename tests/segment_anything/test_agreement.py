"""SAM's agreement against the package's own modules, used directly."""
import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segment_anything import SamPredictor
from segment_anything.checkpoints import identify
from segment_anything.embeddings import compute_embedding
from segment_anything.refinement.agreement import extreme_points, mask_prompt, sam_agreement
from segment_anything.registry import load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from tests.small_sam import register_small_sam


@pytest.mark.parametrize("objects_at_once", [1, 32])
def test_agreement_equals_the_packages_predictor(monkeypatch, tmp_path, objects_at_once):
    checkpoint = register_small_sam(monkeypatch, tmp_path)
    grey = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (110, 80), np.uint8), (0, 0), 2)
    sam = load_sam("small", checkpoint)
    embedding = compute_embedding(sam, grey, "longest_side", identify(checkpoint))
    rows, columns = np.mgrid[:55, :40]
    probabilities = np.stack([np.exp(-np.hypot(rows - 20, columns - 12) / 12),
                              np.exp(-np.hypot(rows - 40, columns) / 9), np.full((55, 40), 0.2)]).astype(np.float32)
    decoder = StoredEmbeddingDecoder.load("small", checkpoint)
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


def test_extreme_points_are_x_y_of_the_first_extremes():
    probability = np.full((4, 6), 0.5)
    probability[2, 5] = probability[3, 1] = 0.9
    probability[1, 4] = 0.1
    np.testing.assert_array_equal(extreme_points(probability), [[5, 2], [4, 1]])


def test_the_mask_prompt_is_zero_in_the_padding(monkeypatch, tmp_path):
    checkpoint = register_small_sam(monkeypatch, tmp_path)
    embedding = compute_embedding(load_sam("small", checkpoint), np.zeros((40, 80), np.uint8), "longest_side",
                                  identify(checkpoint))
    prompt = mask_prompt(np.eye(4, 8, dtype=bool), embedding)
    assert prompt.shape == (32, 32) and (prompt[16:] == 0).all()
    np.testing.assert_allclose(np.unique(prompt[:16]), [-np.log(999), np.log(999)], rtol=1e-6)
