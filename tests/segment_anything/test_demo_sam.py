"""The demo SAM's weights on unseen shapes and on phantom bones, always through the installed package's predictor."""
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from scripts.demo_sam.prompts import tight_box
from scripts.demo_sam.shapes import random_scene
from scripts.phantoms.radiograph import render
from segment_anything import SamPredictor
from segment_anything.demo_sam import DEMO_SAM_WEIGHTS, IMAGE_SIZE, build_demo_sam
from segment_anything.refinement.prompts import extract_prompts
from segment_anything.registry import load_sam
from utils.datasets.cvat import draw_masks, parse_cvat
from utils.datasets.description import load_description
from utils.dice import multilabel_dice

UNSEEN = 987_654  # the training draws its scenes from (seed, step, rank)


@pytest.fixture(scope="module")
def predictor() -> SamPredictor:
    return SamPredictor(load_sam("demo", DEMO_SAM_WEIGHTS))


def _show(predictor: SamPredictor, image: np.ndarray) -> None:
    predictor.set_image(np.repeat(image[..., None], 3, axis=2))


def _dice(mask: np.ndarray, ground_truth: np.ndarray) -> float:
    return multilabel_dice(torch.from_numpy(mask), torch.from_numpy(ground_truth[None])).item()


def _points(masks: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive point of one object and those of all others, as the refinement takes them."""
    prompts = extract_prompts(masks)
    others = [other for other in range(len(masks)) if other != index and prompts.valid[other]]
    return prompts.centroids[[index, *others]], np.array([1] + [0] * len(others))


def _answers(predictor: SamPredictor, masks: np.ndarray, loosen: float = 0, seed: int = 0) -> np.ndarray:
    """For each object that isn't wholly overlapped: Dice of box, box then points, points; the box's predicted IoU."""
    rng, rows = np.random.default_rng(seed), []
    for index in np.flatnonzero(extract_prompts(masks).valid):
        box = tight_box(masks[index])
        box = box + rng.uniform(-loosen, loosen, 4) * np.tile(box[2:] - box[:2] + 1, 2)
        points, labels = _points(masks, index)
        first, quality, logits = predictor.predict(box=box, multimask_output=False)
        second, _, _ = predictor.predict(points, labels, mask_input=logits, multimask_output=False)
        alone, _, _ = predictor.predict(points, labels, multimask_output=False)
        rows.append([_dice(mask, masks[index]) for mask in (first, second, alone)] + [float(quality[0])])
    return np.array(rows)


@pytest.fixture(scope="module")
def answers(predictor: SamPredictor) -> np.ndarray:
    """On 12 unseen scenes."""
    rows = []
    for number in range(12):
        scene = random_scene(np.random.default_rng((UNSEEN, number)), IMAGE_SIZE)
        _show(predictor, scene.image)
        rows.append(_answers(predictor, scene.masks[:12]))
    return np.concatenate(rows)


def test_is_small():
    assert sum(parameter.numel() for parameter in build_demo_sam().parameters()) <= 2_000_000
    assert DEMO_SAM_WEIGHTS.stat().st_size <= 4_000_000


def test_file_says_how_it_was_trained():
    with safe_open(DEMO_SAM_WEIGHTS, "pt") as file:
        metadata = file.metadata()
        assert all(file.get_tensor(name).dtype == torch.float16 for name in file.keys())  # noqa: SIM118
    assert {"trained_by", "trained_on", "notice", "torch", "steps", "batch_size", "seed", "lr"} <= set(metadata)
    assert metadata["steps_done"] == metadata["steps"]


def test_weights_fit_the_architecture_and_are_float32():
    sam = load_sam("demo", DEMO_SAM_WEIGHTS)
    assert all(tensor.dtype == torch.float32 for tensor in sam.state_dict().values())
    assert not sam.training


def test_an_object_looks_the_same_in_any_window(predictor: SamPredictor):
    """Shifted by one large window, an image has the same embedding away from the borders."""
    image = np.full((IMAGE_SIZE, IMAGE_SIZE), 60, np.uint8)
    image[20:100, 30:90] = 180
    shifted = np.roll(image, 128, axis=1)
    encoder = predictor.model.image_encoder
    with torch.inference_mode():
        one, other = (encoder(predictor.model.preprocess(torch.from_numpy(pixels).expand(1, 3, -1, -1)))
                      for pixels in (image, shifted))
    torch.testing.assert_close(one[..., 1:-1, 1:15], other[..., 1:-1, 17:31], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_box_prompts(answers: np.ndarray):
    assert answers[:, 0].mean() > 0.8


@pytest.mark.slow
def test_second_pass_with_points_keeps_the_quality(answers: np.ndarray):
    assert answers[:, 1].mean() > answers[:, 0].mean() - 0.01


@pytest.mark.slow
def test_points_alone(answers: np.ndarray):
    assert answers[:, 2].mean() > 0.7


@pytest.mark.slow
def test_predicted_iou_follows_the_true_one(answers: np.ndarray):
    true_iou = answers[:, 0] / (2 - answers[:, 0])
    assert np.corrcoef(true_iou, answers[:, 3])[0, 1] > 0.5
    assert abs(true_iou.mean() - answers[:, 3].mean()) < 0.08


@pytest.mark.slow
def test_mask_prompts(predictor: SamPredictor):
    """A mask alone, even one with a corner cut off, says which object is meant."""
    answers = []
    for number in range(6):
        scene = random_scene(np.random.default_rng((UNSEEN, number)), IMAGE_SIZE)
        _show(predictor, scene.image)
        for mask in scene.masks[:8]:
            x0, y0, x1, y1 = tight_box(mask)
            damaged = mask.copy()
            damaged[:int(y0 + 0.45 * (y1 - y0)), :int(x0 + 0.45 * (x1 - x0))] = False
            if _dice(damaged[None], mask) > 0.9:
                continue
            padded = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
            padded[:mask.shape[0], :mask.shape[1]] = damaged
            logits = np.where(padded[::2, ::2], 7, -7).astype(np.float32)[None]
            answer, _, _ = predictor.predict(mask_input=logits, multimask_output=False)
            answers.append(_dice(answer, mask))
    assert len(answers) > 5
    assert np.mean(answers) > 0.75


@pytest.mark.slow
def test_phantom_bones():
    """Bones that it never saw, with tight boxes, and with boxes that are up to 15 % off on every side."""
    predictor = SamPredictor(load_sam("demo", DEMO_SAM_WEIGHTS))
    tight, loose = [], []
    for image in parse_cvat(Path(__file__).parents[2] / "annotations_test.xml")[:4]:
        masks = draw_masks(image, load_description("phantom").labels)
        masks = masks[masks.any(axis=(1, 2))]
        _show(predictor, render(image))
        tight.append(_answers(predictor, masks))
        loose.append(_answers(predictor, masks, loosen=0.15))
    tight, loose = np.concatenate(tight), np.concatenate(loose)
    assert tight[:, 0].mean() >= 0.85
    assert tight[:, 1].mean() >= tight[:, 0].mean() - 0.01
    assert loose[:, 0].mean() >= 0.8
