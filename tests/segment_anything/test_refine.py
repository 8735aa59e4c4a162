"""Refinement against the package's own predictor, class by class."""
import argparse
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything import SamPredictor
from segment_anything.checkpoints import CheckpointId, identify
from segment_anything.embeddings import compute_embedding
from segment_anything.refinement.cleaning import apply_morphology
from segment_anything.refinement.prompts import PROMPTS, ClassPrompt, extract_prompts
from segment_anything.refinement.refine import (
    RefinementOptions,
    clean_and_prompt,
    decode_all,
    refine,
    refine_all,
)
from segment_anything.registry import load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from tests.segment_anything.test_cleaning import scipy_clean
from tests.segment_anything.test_prompts import brute_force
from tests.small_sam import register_small_sam
from tests.torch_threads import torch_threads
from utils.errors import InputError
from utils.options import add_options, options_from

PROMPT_SETS = [
    (("box",), ("pos_points", "neg_points")),
    (("box",), ()),
    (("pos_points",), ("box",)),
    (("pos_points", "neg_points"), ("neg_points",)),
    (("box", "pos_points", "neg_points"), ("neg_points", "box")),
    (("box", "mask"), ()),
    (("pos_points", "mask"), ("box",)),
]


class Upstream:
    """The package's whole SAM, prompted for one image as its predictor does it."""

    def __init__(self, sam_type: str, checkpoint, grey: np.ndarray):
        self.predictor = SamPredictor(load_sam(sam_type, checkpoint))
        self.predictor.set_image(np.repeat(grey[..., None], 3, axis=2))

    def prompt(self, masks: np.ndarray, channel: int, names: tuple[str, ...], mask_input=None):
        """Upscaled logits (H, W), predicted IoU and low-resolution logits; None where there is nothing to ask."""
        boxes, centroids = brute_force(masks)
        scale = np.array([self.predictor.input_size[1] / masks.shape[2], self.predictor.input_size[0] / masks.shape[1]])
        points = [(centroids[channel], 1)] if "pos_points" in names else []
        if "neg_points" in names:
            points += [(point, 0) for index, point in enumerate(centroids) if point is not None and index != channel]
        box = np.array(boxes[channel]) * np.tile(scale, 2) if "box" in names else None
        if box is None and not points:
            return None
        logits, iou, low = self.predictor.predict_torch(
            torch.tensor(np.array([[point for point, _ in points]]) * scale, dtype=torch.float32) if points else None,
            torch.tensor([[label for _, label in points]]) if points else None,
            None if box is None else torch.tensor(box[None], dtype=torch.float32),
            mask_input, multimask_output=False, return_logits=True)
        return logits[0, 0].numpy(), iou.item(), low

    def mask_input(self, mask: np.ndarray, probability: np.ndarray) -> torch.Tensor:
        """Logits (1, 1, 4h, 4w) of the U-Net inside the image, resized by Pillow; 0 in the padding."""
        probability = np.where((probability > 0.5) & ~mask, 0, probability.astype(np.float64))
        logits = -np.log(1 / np.clip(probability, 1e-30, None) - 1 + 1e-30).clip(-16, 16)
        side = self.predictor.model.prompt_encoder.mask_input_size[0]
        height, width = (round(length * side / self.predictor.model.image_encoder.img_size)
                         for length in self.predictor.input_size)
        resized = Image.fromarray(logits.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.pad(resized, ((0, side - height), (0, side - width))))[None, None]

    def refine(self, masks: np.ndarray, channel: int, options: RefinementOptions, probability: np.ndarray):
        given = self.mask_input(masks[channel], probability) if "mask" in options.prompt1st else None
        first = self.prompt(masks, channel, options.prompt1st, given)
        return self.prompt(masks, channel, options.prompt2nd, first[2]) or first


def nearest_centre(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int)
                     for old, new in zip(mask.shape, size, strict=True))
    return mask[np.ix_(rows, columns)]


def random_probabilities(seed: int, height: int = 48, width: int = 36, classes: int = 5) -> np.ndarray:
    """Blurred blobs that overlap, with stray components; the last class is empty."""
    rng = np.random.default_rng(seed)
    probabilities = np.zeros((classes, height, width), np.float32)
    for probability in probabilities[:-1]:
        for radius, value in [(8, 0.95), (3, 0.7)]:
            center = (int(rng.integers(width)), int(rng.integers(height)))
            cv2.circle(probability, center, radius, value, -1)
    return cv2.GaussianBlur(probabilities.transpose(1, 2, 0), (0, 0), 1).transpose(2, 0, 1).copy()


def check_against_upstream(upstream, decoder, embedding, probabilities, options, tolerance):
    """Masks equal, low-resolution logits and IoU close; returns the largest difference of the logits."""
    refined = refine(probabilities, embedding, decoder, options)
    cleaned = scipy_clean(probabilities, "highest_probability")
    np.testing.assert_array_equal(refined.cleaned, cleaned)
    shapes = cleaned
    if options.morphology == "paper":
        shapes = apply_morphology(cleaned, options.morphology_operation, options.morphology_element,
                                  options.morphology_radius)
    prompts = extract_prompts(shapes, probabilities)
    low_logits, our_ious = decode_all(decoder, [embedding], [prompts], options).get(0, ((), ()))
    decoded = dict(zip(np.flatnonzero(prompts.valid), zip(low_logits, our_ious, strict=True), strict=True))
    largest = 0.0
    for channel, point in enumerate(brute_force(shapes)[1]):
        if point is None:
            np.testing.assert_array_equal(refined.mask[channel], cleaned[channel])
            assert np.isnan(refined.estimated_dice[channel])
            continue
        logits, iou, low = upstream.refine(shapes, channel, options, probabilities[channel])
        ours, our_iou = decoded[channel]
        largest = max(largest, (ours - low[0]).abs().max().item())
        np.testing.assert_array_equal(refined.mask[channel], nearest_centre(logits > 0, cleaned.shape[1:]))
        assert our_iou.item() == pytest.approx(iou, abs=tolerance)
        assert refined.estimated_dice[channel] == pytest.approx(2 * iou / (1 + iou), abs=tolerance)
    assert largest < tolerance
    return largest


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Upstream's way, our decoder, and the embedding of one non-square image."""
    checkpoint = register_small_sam(monkeypatch, tmp_path)
    grey = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (110, 83), np.uint8), (0, 0), 2)
    embedding = compute_embedding(load_sam("small", checkpoint), grey, "longest_side", identify(checkpoint))
    return Upstream("small", checkpoint, grey), StoredEmbeddingDecoder.load("small", checkpoint), embedding


@pytest.mark.parametrize(("prompt1st", "prompt2nd"), PROMPT_SETS)
def test_equals_upstream_for_every_prompt_set(small, prompt1st, prompt2nd):
    _, decoder, _ = small
    for seed, decoder.objects_at_once in enumerate((1, 3, 32)):
        check_against_upstream(*small, random_probabilities(seed), RefinementOptions(prompt1st, prompt2nd), 1e-6)


def test_images_that_share_calls_are_refined_as_each_alone(small, monkeypatch):
    """Images of two sizes; two of them have as many classes, one has none."""
    _, decoder, embedding = small
    flipped = {"image": embedding.features["image"].flip(2)}
    wide = replace(embedding, features=flipped, original_size=(83, 110), input_size=(97, 128))
    images = [(random_probabilities(0), embedding), (random_probabilities(1, 36, 48)[1:], wide),
              (np.zeros((2, 48, 36), np.float32), embedding), (random_probabilities(2, 36, 48), wide)]
    alone = [refine(*image, decoder, RefinementOptions()) for image in images]
    calls, decode = [], decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda *given: calls.append(given) or decode(*given))
    for decoder.objects_at_once, decoder.images_at_once, expected in [(1, 1, 22), (3, 4, 8), (32, 4, 4), (32, 3, 6)]:
        calls.clear()
        together = list(refine_all(iter(images), decoder, RefinementOptions()))
        assert len(calls) == expected
        for ours, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(ours.mask, one.mask)
            np.testing.assert_array_equal(ours.cleaned, one.cleaned)
            np.testing.assert_allclose(ours.estimated_dice, one.estimated_dice, rtol=0, atol=1e-6)


def test_objects_share_calls_where_their_prompts_are_of_one_shape(small, monkeypatch):
    """However many classes an image has, and however many points a class gets; nothing is padded."""
    def corners(prompts, channel):
        points = np.argwhere(prompts.masks[channel])[:1 + channel % 2, ::-1].astype(float)
        return ClassPrompt(points=points, labels=np.ones(len(points), int))

    monkeypatch.setitem(PROMPTS, "corners", corners)
    _, decoder, embedding = small
    images = [(random_probabilities(0), embedding), (random_probabilities(1)[2:], embedding)]
    calls, decode = [], decoder.decode

    def record(*given):
        calls.append([None if values is None else values.shape for values in given[1:]])
        return decode(*given)

    monkeypatch.setattr(decoder, "decode", record)
    for options, shapes in [
            (RefinementOptions(("box",), ()), [[(6, 4), None, None, None]]),
            (RefinementOptions(("box", "mask"), ()), [[(6, 4), None, None, (6, 32, 32)]]),
            (RefinementOptions(("corners",), ()), [[None, (3, 1, 2), (3, 1), None], [None, (3, 2, 2), (3, 2), None]])]:
        decoder.objects_at_once = decoder.images_at_once = 1
        alone = [refine(*image, decoder, options) for image in images]
        decoder.objects_at_once = decoder.images_at_once = 32
        calls.clear()
        for together, one in zip(refine_all(images, decoder, options), alone, strict=True):
            np.testing.assert_array_equal(together.mask, one.mask)
            np.testing.assert_allclose(together.estimated_dice, one.estimated_dice, rtol=0, atol=1e-6)
        assert calls == shapes


@pytest.mark.parametrize("threads", [1, 3])
def test_images_are_refined_side_by_side_in_their_order_and_as_each_alone(small, threads):
    _, decoder, embedding = small
    images = [(random_probabilities(seed), embedding) for seed in range(7)]
    with torch_threads(1):
        alone = [refine(*image, decoder, RefinementOptions()) for image in images]
    with torch_threads(threads):
        together = list(refine_all(iter(images), decoder, RefinementOptions()))
    for ours, one in zip(together, alone, strict=True):
        for name in ("mask", "cleaned", "estimated_dice"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(one, name))


def test_morphology_is_applied_before_prompts_in_paper_mode_alone(small):
    probabilities = random_probabilities(1)
    options = RefinementOptions(morphology="paper", morphology_element="disk", morphology_radius=2)
    check_against_upstream(*small, probabilities, options, 1e-6)
    _, decoder, embedding = small
    released = refine(probabilities, embedding, decoder, RefinementOptions(morphology_radius=2))
    default = refine(probabilities, embedding, decoder, RefinementOptions())
    paper = refine(probabilities, embedding, decoder, options)
    np.testing.assert_array_equal(released.mask, default.mask)
    np.testing.assert_array_equal(paper.cleaned, default.cleaned)
    assert (paper.mask != default.mask).any()


def test_morphology_before_the_component_is_chosen(small):
    """An erosion parts the most probable component; the cleaned masks are then the chosen part."""
    _, decoder, embedding = small
    probabilities = np.zeros((1, 48, 36), np.float32)
    probabilities[0, 10:30, 4:14], probabilities[0, 10:30, 20:34], probabilities[0, 19, 14:20] = 0.9, 0.7, 0.9
    options = RefinementOptions(morphology="paper", morphology_operation="erosion", morphology_radius=2,
                                morphology_element="centered_square", morphology_order="before")
    expected = np.zeros((1, 48, 36), bool)
    expected[0, 12:28, 6:12] = True
    cleaned, prompts = clean_and_prompt(probabilities, options)
    np.testing.assert_array_equal(cleaned, expected)
    np.testing.assert_array_equal(prompts.masks, expected)
    np.testing.assert_array_equal(refine(probabilities, embedding, decoder, options).cleaned, expected)
    unchanged = replace(options, morphology="released")
    np.testing.assert_array_equal(clean_and_prompt(probabilities, unchanged)[0], probabilities > 0.5)


def test_second_pass_uses_the_first_ones_logits(small):
    _, decoder, embedding = small
    probabilities = random_probabilities(2)
    from_box = refine(probabilities, embedding, decoder, RefinementOptions(("box",), ("pos_points",)))
    from_point = refine(probabilities, embedding, decoder, RefinementOptions(("pos_points",), ("pos_points",)))
    assert not np.allclose(from_box.estimated_dice[:-1], from_point.estimated_dice[:-1], atol=1e-6)


def test_one_class_alone(small):
    probabilities = random_probabilities(0)
    probabilities[1:] = 0
    for prompt2nd in [("pos_points", "neg_points"), ("neg_points",)]:
        check_against_upstream(*small, probabilities, RefinementOptions(("box",), prompt2nd), 1e-6)
    _, decoder, embedding = small
    negative_alone = refine(probabilities, embedding, decoder, RefinementOptions(("box",), ("neg_points",)))
    first_pass = refine(probabilities, embedding, decoder, RefinementOptions(("box",), ()))
    np.testing.assert_array_equal(negative_alone.mask, first_pass.mask)
    np.testing.assert_array_equal(negative_alone.estimated_dice, first_pass.estimated_dice)


def test_no_class_at_all_stays_empty(small):
    _, decoder, embedding = small
    refined = refine(np.full((3, 10, 8), 0.5, np.float32), embedding, decoder, RefinementOptions())
    assert not refined.mask.any()
    assert np.isnan(refined.estimated_dice).all()


def test_overlapped_border_and_single_pixel_classes(small):
    probabilities = np.zeros((4, 40, 30), np.float32)
    probabilities[0, :, :12] = 0.9  # touches three borders
    probabilities[1, 10:14, 3:8] = 0.8  # wholly overlapped: not prompted
    probabilities[2, 39, 29] = 0.7  # box of one pixel
    check_against_upstream(*small, probabilities, RefinementOptions(), 1e-6)
    _, decoder, embedding = small
    refined = refine(probabilities, embedding, decoder, RefinementOptions())
    np.testing.assert_array_equal(np.isnan(refined.estimated_dice), [False, True, False, True])
    np.testing.assert_array_equal(refined.mask[[1, 3]], probabilities[[1, 3]] > 0.5)


@pytest.mark.parametrize("preprocessing", ["longest_side", "squash"])
@pytest.mark.parametrize("size", [(110, 83), (60, 200), (128, 128), (300, 71)])
def test_upscaling_equals_postprocess_masks(monkeypatch, tmp_path, size, preprocessing):
    checkpoint = register_small_sam(monkeypatch, tmp_path, preprocessing=preprocessing)
    sam = load_sam("small", checkpoint)
    decoder = StoredEmbeddingDecoder.load("small", checkpoint)
    embedding = compute_embedding(sam, np.zeros(size, np.uint8), preprocessing, identify(checkpoint))
    logits = torch.randn(sam.prompt_encoder.mask_input_size, generator=torch.Generator().manual_seed(0))
    expected = sam.postprocess_masks(logits[None, None], embedding.input_size, size)[0, 0]
    assert decoder.upscale(logits[None], embedding).shape == (1, *size)
    torch.testing.assert_close(decoder.upscale(logits[None], embedding)[0], expected, rtol=0, atol=1e-5)
    kept = torch.nn.functional.interpolate(expected[None, None], (96, 56), mode="nearest-exact")[0, 0]
    torch.testing.assert_close(decoder.upscale(logits[None], embedding, (96, 56))[0], kept, rtol=0, atol=1e-5)


def test_embeddings_of_another_checkpoint_are_refused(small):
    _, decoder, embedding = small
    other = embedding.__class__(**{**vars(embedding), "checkpoint": CheckpointId("small.pth", "f" * 64)})
    with pytest.raises(InputError, match="computed with"):
        refine(random_probabilities(0), other, decoder, RefinementOptions())


@pytest.mark.parametrize(("changes", "message"), [
    ({"prompt1st": ()}, "--prompt1st: .* add box or pos_points"),
    ({"prompt1st": ("neg_points",)}, "--prompt1st: .* add box or pos_points"),
    ({"prompt1st": ("boxes",)}, "--prompt1st boxes: unknown; choose from box, pos_points, neg_points, mask"),
    ({"prompt1st": ("mask", "neg_points")}, "--prompt1st: .* add box or pos_points"),
    ({"prompt2nd": ("box", "mask")}, "--prompt2nd mask: .* name mask in --prompt1st"),
    ({"prompt2nd": ("box", "boxes")}, "--prompt2nd boxes: unknown"),
    ({"prompt2nd": ("box", "box")}, "name each prompt once"),
    ({"ccl_selection": "None"}, "--ccl_selection None: unknown; choose from highest_probability"),
    ({"morphology": "other"}, "--morphology other"),
    ({"morphology_operation": "other"}, "--morphology_operation other"),
    ({"morphology_element": "cube"}, "--morphology_element cube"),
    ({"morphology_order": "between"}, "--morphology_order between: unknown; choose from after, before"),
    ({"morphology_radius": -1}, "--morphology_radius -1")])
def test_options_without_meaning(changes, message):
    with pytest.raises(InputError, match=message):
        RefinementOptions(**changes)


def test_arguments_and_names():
    def options(*arguments):
        parser = argparse.ArgumentParser()
        add_options(parser, RefinementOptions)
        return options_from(RefinementOptions, parser.parse_args(arguments))

    assert options() == RefinementOptions()
    assert options().name() == "sam_box_refine_pos_points_neg_points_highest_probability_released"
    assert options("--prompt2nd").name() == "sam_box_highest_probability_released"
    assert options("--prompt2nd", "box", "neg_points").prompt2nd == ("box", "neg_points")
    assert options("--morphology_radius", "3", "--morphology_order", "before").name() == options().name()
    distinct = [
        options(), options("--prompt2nd"), options("--prompt1st", "box", "pos_points"), options("--prompt2nd", "box"),
        options("--ccl_selection", "largest"), options("--ccl_selection", "none"), options("--morphology", "paper"),
        options("--morphology", "paper", "--morphology_radius", "3"),
        options("--morphology", "paper", "--morphology_order", "before"),
        options("--morphology", "paper", "--morphology_element", "disk"),
        options("--morphology", "paper", "--morphology_operation", "opening")]
    assert len({each.name() for each in distinct}) == len(distinct)


JSRT_CLASSES = {"right_lung": 44, "left_lung": 50, "heart": 26, "right_clavicle": 23, "left_clavicle": 23}
CROP = slice(10, 250), slice(20, 220)  # rows, columns: non-square


@pytest.fixture(scope="module")
def mobile_sam():
    """Upstream's way, our decoder, embedding and ground truth of one cropped chest radiograph."""
    from tests.conftest import SHARED
    checkpoint = SHARED / "weights" / "mobile_sam.pt"
    image = next((SHARED / "data" / "jsrt" / "images").glob("*.png"))
    contours = np.load(SHARED / "data" / "jsrt" / "landmarks" / f"{image.stem}.npy")
    masks = np.zeros((len(JSRT_CLASSES), 256, 256), np.uint8)
    ends = np.cumsum(list(JSRT_CLASSES.values()))
    for mask, contour in zip(masks, np.split(contours, ends[:-1]), strict=True):
        cv2.fillPoly(mask, [np.rint(contour).astype(np.int32)], 1)
    grey = np.ascontiguousarray(cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)[CROP])
    embedding = compute_embedding(load_sam("vit_t", checkpoint), grey, "longest_side", identify(checkpoint))
    decoder = StoredEmbeddingDecoder.load("vit_t", checkpoint)
    return Upstream("vit_t", checkpoint, grey), decoder, embedding, masks[:, *CROP].astype(bool)


@pytest.mark.shared
def test_tiny_vit_encodes_and_a_true_box_finds_the_lungs(mobile_sam):
    _, decoder, embedding, masks = mobile_sam
    assert embedding.features["image"].shape == (256, 64, 64)
    assert embedding.input_size == (1024, 853)
    refined = refine(masks[:2].astype(np.float32), embedding, decoder, RefinementOptions(prompt2nd=()))
    both = (refined.mask & masks[:2]).sum(axis=(1, 2))
    dice = 2 * both / (refined.mask.sum(axis=(1, 2)) + masks[:2].sum(axis=(1, 2)))
    assert (dice > 0.85).all()


@pytest.mark.shared
@pytest.mark.parametrize(("prompt1st", "prompt2nd", "at_once"), [(*PROMPT_SETS[0], 1), (*PROMPT_SETS[4], 3),
                                                              (("box", "mask"), ("pos_points", "neg_points"), 3)])
def test_mobile_sam_equals_upstream_class_by_class(mobile_sam, monkeypatch, prompt1st, prompt2nd, at_once):
    *ways, masks = mobile_sam
    monkeypatch.setattr(ways[1], "objects_at_once", at_once)
    probabilities = np.stack([cv2.GaussianBlur(cv2.resize(mask.astype(np.float32), (88, 112)), (0, 0), 2)
                              for mask in masks])
    probabilities[0, 100:106, 70:76] = 0.6  # a stray component
    check_against_upstream(*ways, probabilities, RefinementOptions(prompt1st, prompt2nd), 1e-4)
