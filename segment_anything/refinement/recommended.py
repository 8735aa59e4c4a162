"""The recommended refinement, which trusts neither the U-Net nor SAM alone. It isn't the paper's.

What to trust is a matter of the images, so the labeled validation images say it, for each class:
1. where to cut the U-Net's logits: a loss weighted by pos_weight makes its masks too large;
2. what to ask SAM, once a class, by the largest component of the mask that this gives (`PROMPT_SETS`);
3. how much of SAM's logits to mix in, from nothing to all, and where to cut the mixture;
4. which component of a mask to keep;
5. how good a mask is, by what the raters say of it, by how far others cover it, and by its size.

    calibration = calibrate(predict, images, ground_truth, decoder)      # of the validation images
    refined = refine_calibrated(probabilities, embedding, decoder, calibration)
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from segment_anything.embeddings import ImageEmbedding
from segment_anything.refinement.cleaning import SELECTIONS, select_components
from segment_anything.refinement.prompts import Prompts, extract_prompts, to_logits
from segment_anything.refinement.refine import Refined, RefinementOptions, decode_all, refine_in_batches
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from utils.dice import image_dice, multilabel_dice
from utils.errors import InputError
from utils.full_size import resize_map
from utils.overlap import map_side_by_side

Measured = TypeVar("Measured")
PROMPT_SETS = (("box", "mask"), ("box",), ("box", "pos_points", "mask"))
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.85, 1.0)  # of SAM's logits in the mixture
CUTS = np.arange(-6, 10.01, 0.25)  # of logits
FEATURES = ("expected", "agreement", "sam", "alone", "size")  # of a mask; see `Rated` and `_look_at`
COMPONENTS = ("none", *(name for name in SELECTIONS if name != "none"))  # the first of equally good ones is taken
RIDGE = 1.0  # of the estimated Dice
PLAIN = (1.0, 0.0, 0.0, 0.0, 0.0)  # weights of `FEATURES` that the ridge regression shrinks to
MOST = 5.0  # standard deviations that a size is off
TIE = 1e-9  # Dice that a logit between a cut and 0 costs: of equally good cuts the one nearest to 0 is taken
PRIOR = 2.0  # images whose worth the mean over all classes has in the choice of one class


@dataclass(frozen=True)
class Estimate:
    """How good a mask is, by what is known of it.

    Attributes:
        weights: of the `FEATURES` in the estimated Dice, at least 0
        offsets: of the estimated Dice, per class
        sizes: mean of the logarithm of a mask's share of the image's pixels, per class
        spreads: its standard deviation, per class
    """

    weights: tuple[float, ...]
    offsets: tuple[float, ...]
    sizes: tuple[float, ...]
    spreads: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """What the validation images said.

    Attributes:
        cuts: of the U-Net's logits, per class
        prompts: that SAM is asked with, one of `PROMPT_SETS`
        shares: of SAM's logits in the mixture with the U-Net's, less `cuts`; per class, in [0, 1]
        mixed_cuts: of the mixture, per class
        selection: which component is kept, one of `SELECTIONS`
        estimate: how good the masks are
        dice: mean Dice over the validation images, in [0, 1], of the U-Net's masks and of these
        held_out_dice: of these, where each image has the shares and mixed cuts that the others choose, as new images
            do; None if there are no others
    """

    cuts: tuple[float, ...]
    prompts: tuple[str, ...]
    shares: tuple[float, ...]
    mixed_cuts: tuple[float, ...]
    selection: str
    estimate: Estimate
    dice: tuple[float, float]
    held_out_dice: float | None = None


class Rated(NamedTuple):
    """What is known of the objects of one image.

    Attributes:
        mixture: logits, float32, (C, H, W)
        features: float64, (C, 3), the first `FEATURES`: the Dice that the mixture's probabilities expect of its mask,
            that of the U-Net's mask and SAM's, and SAM's estimate of its own; where SAM wasn't asked, what the
            probabilities expect
        cleaned: bool, (C, H, W), the U-Net's masks that SAM was asked by
    """

    mixture: np.ndarray
    features: np.ndarray
    cleaned: np.ndarray


def refine_calibrated(probabilities: np.ndarray, embedding: ImageEmbedding, decoder: StoredEmbeddingDecoder,
                      calibration: Calibration) -> Refined:
    """Masks of one image as the calibration says.

    Args:
        probabilities: of the U-Net, float, (C, H, W), in [0, 1]
        embedding: of the same image, from the decoder's checkpoint
    Returns:
        `estimated_dice` is NaN for an empty mask
    """
    return _refine_together([(probabilities, embedding)], decoder, calibration)[0]


def refine_calibrated_full_size(probabilities: np.ndarray, embedding: ImageEmbedding, decoder: StoredEmbeddingDecoder,
                                calibration: Calibration) -> Refined:
    """`refine_calibrated` with masks of the image's own size: SAM is asked the same, and the logits of both are mixed
    there, the U-Net's from its probabilities resized bilinearly. One class at a time, which bounds the memory."""
    (answer,), decoded = _decode([(probabilities, embedding)], decoder, calibration.cuts, calibration.prompts)
    asked = np.flatnonzero(~np.isnan(answer.estimate)).tolist()
    low = dict(zip(asked, decoded.get(0, ()), strict=True))
    masks = np.empty((len(probabilities), *embedding.original_size), bool)
    for channel, (cut, share, mixed_cut) in enumerate(
            zip(calibration.cuts, calibration.shares, calibration.mixed_cuts, strict=True)):
        mixture = _cut(resize_map(probabilities[channel], embedding.original_size)[None], (cut,))
        if channel in low:
            mixture = _blend(mixture, decoder.upscale(low[channel][None], embedding).cpu().numpy(), share)
        masks[channel] = _select(mixture - mixed_cut, calibration.selection)[0]
    return _estimate(masks, _mix(answer, calibration.shares, calibration.mixed_cuts), calibration)


def refine_all_calibrated(images: Iterable[tuple[np.ndarray, ImageEmbedding]], decoder: StoredEmbeddingDecoder,
                          calibration: Calibration) -> Iterator[Refined]:
    """`refine_calibrated` for many images, as `refine_all`."""
    return refine_in_batches(images, decoder, partial(_refine_together, decoder=decoder, calibration=calibration))


def _refine_together(images: Sequence[tuple[np.ndarray, ImageEmbedding]], decoder: StoredEmbeddingDecoder,
                     calibration: Calibration) -> list[Refined]:
    answers = _ask_sam(images, decoder, calibration.cuts, calibration.prompts)
    rated = (_mix(answer, calibration.shares, calibration.mixed_cuts) for answer in answers)
    return [_estimate(_select(each.mixture, calibration.selection), each, calibration) for each in rated]


def _estimate(masks: np.ndarray, rated: Rated, calibration: Calibration) -> Refined:
    """The masks, of any size, with what is known of them."""
    estimate = calibration.estimate
    features = _join_features(rated.features, _look_at(masks), estimate.sizes, estimate.spreads)
    return Refined(masks, (features @ np.array(estimate.weights) + estimate.offsets).clip(0, 1), rated.cleaned)


def _look_at(masks: np.ndarray) -> np.ndarray:
    """Of each mask the share that no other one covers, and the logarithm of its share of the image, (C, 2); NaN for an
    empty one."""
    single = masks.sum(axis=0, dtype=np.uint16) == 1
    areas = np.array([(np.count_nonzero(mask & single), np.count_nonzero(mask)) for mask in masks], float)
    alone, whole = np.where(areas[:, 1:] > 0, areas, np.nan).T
    return np.stack([alone / whole, np.log(whole / single.size)], axis=1)


def _join_features(rated: np.ndarray, seen: np.ndarray, sizes: Sequence[float], spreads: Sequence[float]
                   ) -> np.ndarray:
    """All `FEATURES`, of those of `Rated` (..., C, 3) and `_look_at` (..., C, 2). The size is 0 where it's the usual
    one of the class, and -1 where it's off by `MOST` standard deviations or more."""
    off = np.abs(seen[..., 1] - sizes) / spreads
    return np.concatenate([rated, seen[..., :1], -np.minimum(off, MOST)[..., None] / MOST], axis=-1)


class Answer(NamedTuple):
    """What both raters say of one image.

    Attributes:
        unet: logits less their cuts, float32, (C, H, W)
        cleaned: bool, (C, H, W), the masks that SAM was asked by
        sam: logits, float32, (C, H, W); NaN for a class without a mask
        estimate: SAM's of its Dice, float64, (C,); NaN likewise
    """

    unet: np.ndarray
    cleaned: np.ndarray
    sam: np.ndarray
    estimate: np.ndarray


def _ask_sam(images: Sequence[tuple[np.ndarray, ImageEmbedding]], decoder: StoredEmbeddingDecoder,
             cuts: Sequence[float], names: tuple[str, ...]) -> list[Answer]:
    return _decode(images, decoder, cuts, names)[0]


def _decode(images: Sequence[tuple[np.ndarray, ImageEmbedding]], decoder: StoredEmbeddingDecoder,
            cuts: Sequence[float], names: tuple[str, ...]) -> tuple[list[Answer], dict[int, torch.Tensor]]:
    """The answers, and by number of the image SAM's low-resolution logits (K, 4h, 4w) of the classes that it was asked
    for."""
    embeddings = [embedding for _, embedding in images]
    unet = [_cut(probabilities, cuts) for probabilities, _ in images]
    prompts = [_prompt(logits) for logits in unet]
    answers = [Answer(logits, of_image.masks, np.full(logits.shape, np.nan, np.float32), np.full(len(logits), np.nan))
               for logits, of_image in zip(unet, prompts, strict=True)]
    options = RefinementOptions(prompt1st=names, prompt2nd=())
    decoded = {}
    for number, (low, iou) in decode_all(decoder, embeddings, prompts, options).items():
        answer, valid = answers[number], prompts[number].valid
        answer.sam[valid] = decoder.upscale(low, embeddings[number], answer.unet.shape[1:]).cpu().numpy()
        iou = iou.double().cpu().numpy()
        answer.estimate[valid] = 2 * iou / (1 + iou)
        decoded[number] = low
    return answers, decoded


def prompt_calibrated(probabilities: np.ndarray, calibration: Calibration) -> Prompts:
    """What SAM's prompts are taken from in `refine_calibrated`."""
    return _prompt(_cut(probabilities, calibration.cuts))


def _prompt(logits: np.ndarray) -> Prompts:
    return extract_prompts(_select(logits, "largest"), _sigmoid(logits))


def _mix(answer: Answer, shares: Sequence[float], cuts: Sequence[float]) -> Rated:
    unet, cleaned, sam, estimate = answer
    mixture = _blend_and_cut(unet, sam, shares, cuts)
    probabilities, masks = _sigmoid(mixture), mixture > 0
    inside, total = (values.sum(axis=(1, 2), dtype=np.float64) for values in (probabilities * masks, probabilities))
    expected = 2 * inside / np.maximum(total + masks.sum(axis=(1, 2)), 1e-9)
    agreement = multilabel_dice(torch.from_numpy(sam > 0), torch.from_numpy(cleaned)).double().numpy()
    asked = ~np.isnan(estimate)
    features = [expected, np.where(asked, agreement, expected), np.where(asked, estimate, expected)]
    return Rated(mixture, np.stack(features, axis=1), cleaned)


def calibrate(predict: Callable[[], Iterable[np.ndarray]],
              images: Callable[[], Iterable[tuple[np.ndarray, ImageEmbedding]]],
              ground_truth: Sequence[np.ndarray], decoder: StoredEmbeddingDecoder) -> Calibration:
    """What images say that the U-Net wasn't trained on. They are gone through three times, so that not all are held in
    memory.

    Args:
        predict: gives the probabilities of each image, float, (C, H, W), in [0, 1]
        images: gives the same with the embedding of each image
        ground_truth: of each image, bool, (C, H, W)
    Raises:
        InputError: no image shows any class.
    """
    if not any(masks.any() for masks in ground_truth):
        raise InputError("no validation image shows any label, so nothing can be chosen by them; annotate some, or "
                         "leave the recommended refinement out")
    raw, curves = [], []
    for probabilities, masks in zip(predict(), ground_truth, strict=True):
        raw.append(_dice(probabilities > 0.5, masks))
        curves.append(dice_curve(_cut(probabilities, (0.0,) * len(masks)), masks, CUTS))
    cuts = CUTS[_choose(_shrink(np.stack(curves)))]

    def measure_prompts(image: tuple[np.ndarray, ImageEmbedding, np.ndarray]) -> list[np.ndarray]:
        return [_curves_of_shares(_ask_sam([image[:2]], decoder, cuts, names)[0], image[2]) for names in PROMPT_SETS]

    measured = _map_images(measure_prompts, images(), decoder, "choosing prompts", ground_truth)
    tables = [np.stack(table) for table in zip(*measured, strict=True)]  # (N, C, shares, T)
    scores = [_shrink(table) for table in tables]
    best = int(np.argmax([score.max(axis=(1, 2)).mean() for score in scores]))  # the first of equally good ones
    shares, mixed_cuts = _read_choice(_choose(scores[best]))

    def measure_masks(image: tuple[np.ndarray, ImageEmbedding, np.ndarray, np.ndarray]
                      ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        answer = _ask_sam([image[:2]], decoder, cuts, PROMPT_SETS[best])[0]
        rated = _mix(answer, shares, mixed_cuts)
        held_out = _blend_and_cut(answer.unet, answer.sam, *_read_choice(image[3]))
        masks, masks_held_out = ([_select(mixture, name) for name in COMPONENTS]
                                 for mixture in (rated.mixture, held_out))
        return (rated.features, [_look_at(each) for each in masks], [_dice(each, image[2]) for each in masks],
                [_dice(each, image[2]) for each in masks_held_out])

    measured = _map_images(measure_masks, images(), decoder, "rating masks", ground_truth, _hold_out(tables[best]))
    features, *by_component = zip(*measured, strict=True)
    seen, dice, held_out = (np.stack(each, axis=1) for each in by_component)  # (components, N, C, ...)
    kept = int(np.argmax([_mean(of_component) for of_component in dice]))
    return Calibration(tuple(cuts.tolist()), PROMPT_SETS[best], tuple(shares.tolist()), tuple(mixed_cuts.tolist()),
                       COMPONENTS[kept], _fit_estimate(np.stack(features), seen[kept], dice[kept]),
                       (_mean(np.stack(raw)), _mean(dice[kept])),
                       _mean(held_out[kept]) if len(ground_truth) > 1 else None)


def _read_choice(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shares and cuts at flat positions in `SHARES` x `CUTS`, int (C,); each float, (C,)."""
    share, cut = np.unravel_index(chosen, (len(SHARES), len(CUTS)))
    return np.array(SHARES)[share], CUTS[cut]


def _map_images(measure: Callable[[tuple[Any, ...]], Measured], images: Iterable[tuple[np.ndarray, ImageEmbedding]],
                decoder: StoredEmbeddingDecoder, title: str, *known: Sequence[np.ndarray]) -> Iterator[Measured]:
    """Of each image with what is `known` of it, with a progress bar; side by side on a CPU."""
    map_images = map_side_by_side if decoder.device.type == "cpu" else map
    each = ((*image, *of_image) for image, *of_image in zip(images, *known, strict=True))
    return tqdm(map_images(measure, each), title, len(known[0]), unit="image")


def _curves_of_shares(answer: Answer, ground_truth: np.ndarray) -> np.ndarray:
    """Dice of the mixture with each of `SHARES` at each of `CUTS`: (C, shares, T)."""
    mixtures = (_blend(answer.unet, answer.sam, share) for share in SHARES)
    return np.stack([dice_curve(mixture, ground_truth, CUTS) for mixture in mixtures], axis=1)


def _fit_estimate(rated: np.ndarray, seen: np.ndarray, dice: np.ndarray) -> Estimate:
    """By ridge regression with weights of at least 0, as no feature speaks against a mask.

    Few images tell little about the weights, so these are shrunk to `PLAIN`, and the offset of a class is drawn to the
    mean of all as `PRIOR` says.

    Args:
        rated: features of `Rated`, (N, C, 3)
        seen: of `_look_at`, (N, C, 2)
        dice: (N, C), NaN where there is none
    """
    from scipy.optimize import nnls  # slow to import
    shown = ~np.isnan(dice + seen[..., 1])
    sizes, spreads = _describe_sizes(np.where(shown, seen[..., 1], 0), shown)
    features = np.nan_to_num(_join_features(rated, seen, sizes, spreads))
    chosen, values = features[shown], dice[shown]
    mean, center = (chosen.mean(axis=0), values.mean()) if len(values) else (np.zeros(len(FEATURES)), 0.0)
    strength = np.sqrt(RIDGE)
    weights, _ = nnls(np.vstack([chosen - mean, strength * np.eye(len(mean))]),
                      np.concatenate([values - center, strength * np.array(PLAIN)]))
    residual = np.where(shown, dice - features @ weights - (center - mean @ weights), 0)
    offsets = center - mean @ weights + residual.sum(axis=0) / (shown.sum(axis=0) + PRIOR)
    return Estimate(*(tuple(values.tolist()) for values in (weights, offsets, sizes, spreads)))


def _describe_sizes(sizes: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of the sizes of each class, of (N, C), 0 where none is `shown`; a class of few masks goes by how
    far those of all classes spread, and one of no mask may have any size."""
    count = shown.sum(axis=0)
    means = sizes.sum(axis=0) / np.maximum(count, 1)
    squares = (np.where(shown, sizes - means, 0) ** 2).sum(axis=0)
    shared = squares.sum() / max(count.sum(), 1)
    return means, np.where(count > 0, np.sqrt((squares + PRIOR * shared) / (count + PRIOR)).clip(0.01), 1e6)


def dice_curve(logits: np.ndarray, ground_truth: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Dice of the masks `logits > cut` of each class, for all cuts in one pass.

    Args:
        logits: float, (C, H, W)
        ground_truth: bool, (C, H, W)
        cuts: ascending, (T,)
    Returns:
        float64, (C, T), NaN for a class that the ground truth doesn't show
    """
    curves = np.full((len(logits), len(cuts)), np.nan)
    for channel in np.flatnonzero(ground_truth.any(axis=(1, 2))):
        above = logits[channel] > cuts[0]  # few pixels, as most are clearly background
        passed = np.searchsorted(cuts, logits[channel][above])  # so many cuts lie below
        counts = (np.bincount(passed[chosen], minlength=len(cuts) + 1)[::-1].cumsum()[::-1][1:]
                  for chosen in (slice(None), ground_truth[channel][above]))
        predicted, both = counts
        curves[channel] = 2 * both / (predicted + np.count_nonzero(ground_truth[channel]))
    return curves


def _shrink(tables: np.ndarray) -> np.ndarray:
    """Mean over images of (N, C, ...), NaN where an image doesn't count, with the mean over all classes worth `PRIOR`
    images: a class that few images show goes by what all say."""
    shown = ~np.isnan(tables)
    return _draw_to_shared(np.where(shown, tables, 0).sum(axis=0), shown.sum(axis=0))


def _draw_to_shared(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    shared = total.sum(axis=0) / np.maximum(count.sum(axis=0), 1)
    return (total + PRIOR * shared) / (count + PRIOR)


def _hold_out(tables: np.ndarray) -> list[np.ndarray]:
    """Of each image of (N, C, ..., T), NaN where it doesn't count, what the others `_choose`."""
    shown = ~np.isnan(tables)
    values = np.where(shown, tables, 0)
    total, count = values.sum(axis=0), shown.sum(axis=0)
    return [_choose(_draw_to_shared(total - value, count - is_shown))
            for value, is_shown in zip(values, shown, strict=True)]


def _choose(scores: np.ndarray) -> np.ndarray:
    """The best position of each class in (C, ..., T) with a last axis as `CUTS`, flat, int (C,)."""
    return (scores - TIE * np.abs(CUTS)).reshape(len(scores), -1).argmax(axis=1)


def _cut(probabilities: np.ndarray, cuts: Sequence[float]) -> np.ndarray:
    return to_logits(probabilities.astype(np.float32, copy=False)) - _per_class(cuts)


def _blend_and_cut(unet: np.ndarray, sam: np.ndarray, shares: Sequence[float], cuts: Sequence[float]) -> np.ndarray:
    return _blend(unet, sam, _per_class(shares)) - _per_class(cuts)


def _blend(unet: np.ndarray, sam: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """A mixture of logits; where SAM wasn't asked, the U-Net's."""
    mixed = unet + share * (sam - unet)
    unasked = np.isnan(sam[:, 0, 0])
    mixed[unasked] = unet[unasked]
    return mixed


def _select(logits: np.ndarray, selection: str) -> np.ndarray:
    probabilities = _sigmoid(logits) if selection == "highest_probability" else logits  # others don't look at them
    return select_components(logits > 0, probabilities, selection)


def _dice(masks: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    return multilabel_dice(torch.from_numpy(masks), torch.from_numpy(ground_truth)).double().numpy()


def _mean(dice: np.ndarray) -> float:
    """Over images of each image's mean over classes, (N, C)."""
    return image_dice(torch.from_numpy(dice)).nanmean().item()


def _per_class(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, np.float32)[:, None, None]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).sigmoid().numpy()
