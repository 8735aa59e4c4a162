"""Refinement of predicted masks by SAM (utils/seg_refinement.py of the authors' code).

U-Net probabilities -> cleaned masks -> prompts -> first pass -> second pass with the first one's logits -> masks.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from segment_anything.embeddings import ImageEmbedding
from segment_anything.mask_decoder import Maps, select_images
from segment_anything.refinement.cleaning import (
    ELEMENTS,
    OPERATIONS,
    SELECTIONS,
    apply_morphology,
    clean_masks,
    select_components,
)
from segment_anything.refinement.prompts import (
    FIRST_PASS,
    NOT_ALONE,
    PROMPTS,
    ClassPrompt,
    Prompts,
    extract_prompts,
    fit_to_sam,
    select_prompt,
)
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from utils.errors import InputError
from utils.full_size import resize_masks_smoothly
from utils.options import option
from utils.overlap import batched, map_side_by_side

MORPHOLOGIES = ("released", "paper")
ORDERS = ("after", "before")
WITH_PAPER = "with --morphology paper: "


@dataclass(frozen=True)
class RefinementOptions:
    """How to refine. The defaults are those of the paper's reported numbers.

    `morphology`: the released code computes a morphology whose result it never uses ("released", no effect); the paper
    describes it as applied to the cleaned masks before prompts are taken ("paper").
    `morphology_order`: "before" changes the thresholded masks, of which a component is then chosen, as in
    seg_processing/hpo_seg_preprocess.py of the authors' code.

    Raises:
        InputError: an option has no meaning.
    """

    prompt1st: tuple[str, ...] = option(
        ("box",), f"prompts of the first pass, from {', '.join(PROMPTS)}", metavar="PROMPT")
    prompt2nd: tuple[str, ...] = option(
        ("pos_points", "neg_points"), "prompts of the second pass; nothing after the argument: no second pass",
        nargs="*", metavar="PROMPT")
    ccl_selection: str = option(
        "highest_probability", "which connected component of each class is kept", choices=SELECTIONS)
    morphology: str = option(
        "released", "released: no effect, as in the paper's released code; paper: applied, as it is described",
        metavar="BEHAVIOR")
    morphology_operation: str = option("dilation", WITH_PAPER + ", ".join(OPERATIONS), metavar="OPERATION")
    morphology_element: str = option(
        "square", f"{WITH_PAPER}{', '.join(ELEMENTS)}; square: as wide as the radius, as in the released code; "
        "centered_square: as wide as the disk", metavar="ELEMENT")
    morphology_radius: int = option(
        8, WITH_PAPER + "radius of the element", type=int, metavar="PIXELS")
    morphology_order: str = option(
        "after", WITH_PAPER + "before or after one component is chosen", metavar="ORDER")

    def __post_init__(self):
        _check_prompts("--prompt1st", self.prompt1st)
        _check_prompts("--prompt2nd", self.prompt2nd)
        if not set(self.prompt1st) - NOT_ALONE:
            alone = " or ".join(name for name in PROMPTS if name not in NOT_ALONE)
            raise InputError(f"--prompt1st: the first prompt set must say where the object is; add {alone}")
        if misplaced := FIRST_PASS & set(self.prompt2nd):
            name = misplaced.pop()
            raise InputError(f"--prompt2nd {name}: the second pass takes the first one's logits as its mask; name "
                             f"{name} in --prompt1st")
        _check_choice("--ccl_selection", self.ccl_selection, SELECTIONS)
        _check_choice("--morphology", self.morphology, MORPHOLOGIES)
        _check_choice("--morphology_operation", self.morphology_operation, OPERATIONS)
        _check_choice("--morphology_element", self.morphology_element, ELEMENTS)
        _check_choice("--morphology_order", self.morphology_order, ORDERS)
        if self.morphology_radius < 0:
            raise InputError(f"--morphology_radius {self.morphology_radius}: give 0 or more pixels")

    def name(self) -> str:
        """Distinct for distinct effects; names the result file together with the SAM type."""
        parts = ["sam", *self.prompt1st, *(["refine", *self.prompt2nd] if self.prompt2nd else []),
                 self.ccl_selection, self.morphology]
        if self.morphology == "paper":
            parts += [self.morphology_operation, self.morphology_element, str(self.morphology_radius)]
            parts += ["before"] if self.morphology_order == "before" else []
        return "_".join(parts)


def _check_prompts(argument: str, names: tuple[str, ...]) -> None:
    for name in names:
        _check_choice(argument, name, PROMPTS)
    if len(set(names)) < len(names):
        raise InputError(f"{argument} {' '.join(names)}: name each prompt once")


def _check_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise InputError(f"{argument} {value}: unknown; choose from {', '.join(choices)}")


@dataclass(frozen=True)
class Refined:
    """The refined masks of one image.

    Attributes:
        mask: bool, (C, H, W)
        estimated_dice: float64, (C,), from SAM's predicted IoU; NaN where SAM was not asked
        cleaned: bool, (C, H, W), the cleaned masks
    """

    mask: np.ndarray
    estimated_dice: np.ndarray
    cleaned: np.ndarray


def refine(probabilities: np.ndarray, embedding: ImageEmbedding, decoder: StoredEmbeddingDecoder,
           options: RefinementOptions) -> Refined:
    """Replaces the mask of each class by SAM's, prompted by the class's cleaned mask.

    A class without pixels of its own (empty, or wholly overlapped by others) isn't prompted and keeps its cleaned mask.

    Args:
        probabilities: of the U-Net, float, (C, H, W), in [0, 1]; H x W need not be the image's size
        embedding: of the same image, from the decoder's checkpoint
    Raises:
        InputError: the embedding is of another checkpoint.
    """
    return _refine_together([(probabilities, embedding)], decoder, options)[0]


def refine_full_size(probabilities: np.ndarray, embedding: ImageEmbedding, decoder: StoredEmbeddingDecoder,
                     options: RefinementOptions) -> Refined:
    """`refine` with masks of the image's own size: SAM is asked the same, and its logits are cut there. The cleaned
    mask of a class that isn't prompted is resized bilinearly."""
    cleaned, prompts = clean_and_prompt(probabilities, options)
    masks = resize_masks_smoothly(cleaned, embedding.original_size)
    estimate = np.full(len(masks), np.nan)
    for logits, iou in decode_all(decoder, [embedding], [prompts], options).values():
        for channel, of_class in zip(np.flatnonzero(prompts.valid), logits, strict=True):
            masks[channel] = (decoder.upscale(of_class[None], embedding)[0] > 0).cpu().numpy()
        iou = iou.double().cpu().numpy()
        estimate[prompts.valid] = 2 * iou / (1 + iou)
    return Refined(masks, estimate, cleaned)


def refine_all(images: Iterable[tuple[np.ndarray, ImageEmbedding]], decoder: StoredEmbeddingDecoder,
               options: RefinementOptions) -> Iterator[Refined]:
    """`refine` for (probabilities, embedding) of many images, as many at once as the decoder wants; on a CPU side by
    side, with the same results whatever the number of cores."""
    return refine_in_batches(images, decoder, partial(_refine_together, decoder=decoder, options=options))


def refine_in_batches(images: Iterable[tuple[np.ndarray, ImageEmbedding]], decoder: StoredEmbeddingDecoder,
                      refine_together: Callable[[Sequence[tuple[np.ndarray, ImageEmbedding]]], list[Refined]]
                      ) -> Iterator[Refined]:
    """What `refine_together` makes of images, as many at once as the decoder wants, side by side on a CPU."""
    map_batches = map_side_by_side if decoder.device.type == "cpu" else map
    yield from chain.from_iterable(map_batches(refine_together, batched(images, decoder.images_at_once)))


def _refine_together(images: Sequence[tuple[np.ndarray, ImageEmbedding]], decoder: StoredEmbeddingDecoder,
                     options: RefinementOptions) -> list[Refined]:
    cleaned, prompts = zip(*(clean_and_prompt(probabilities, options) for probabilities, _ in images), strict=True)
    results = [Refined(masks.copy(), np.full(len(masks), np.nan), masks) for masks in cleaned]
    embeddings = [embedding for _, embedding in images]
    for number, (logits, iou) in decode_all(decoder, embeddings, prompts, options).items():
        result, valid = results[number], prompts[number].valid
        masks = decoder.upscale(logits, embeddings[number], result.mask.shape[1:]) > 0
        result.mask[valid], iou = masks.cpu().numpy(), iou.double().cpu().numpy()
        result.estimated_dice[valid] = 2 * iou / (1 + iou)
    return results


def clean_and_prompt(probabilities: np.ndarray, options: RefinementOptions) -> tuple[np.ndarray, Prompts]:
    """The cleaned masks, bool (C, H, W), and what their prompts are taken from."""
    morphology = options.morphology_operation, options.morphology_element, options.morphology_radius
    if options.morphology == "released":
        cleaned = clean_masks(probabilities, options.ccl_selection)
        return cleaned, extract_prompts(cleaned, probabilities)
    if options.morphology_order == "before":
        changed = apply_morphology(probabilities > 0.5, *morphology)
        cleaned = select_components(changed, probabilities, options.ccl_selection)
        return cleaned, extract_prompts(cleaned, probabilities)
    cleaned = clean_masks(probabilities, options.ccl_selection)
    return cleaned, extract_prompts(apply_morphology(cleaned, *morphology), probabilities)


class PromptedObject(NamedTuple):
    """A valid class of an image, given by their numbers, and what SAM is asked for it in both passes."""

    image: int
    channel: int
    first: ClassPrompt
    second: ClassPrompt


def decode_all(decoder: StoredEmbeddingDecoder, embeddings: Sequence[ImageEmbedding], prompts: Sequence[Prompts],
               options: RefinementOptions) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """`two_passes` of all valid classes of several images, as many at once as the decoder wants.

    Returns:
        by number of the image, if it has a valid class: low-resolution logits (K, 4h, 4w) and predicted IoU (K,)
    """
    objects = _prompt_objects(embeddings, prompts, options)
    if not objects:
        return {}
    images, decoded = decoder.prepare(embeddings), {}
    for group in _group_by_shapes(objects):
        for batch in batched(group, decoder.objects_at_once):
            logits, iou = two_passes(decoder, images, batch)
            decoded.update({(item.image, item.channel): (logits[row], iou[row]) for row, item in enumerate(batch)})
    results = {}
    for number in {item.image for item in objects}:
        of_image = [decoded[number, channel] for channel in np.flatnonzero(prompts[number].valid)]
        results[number] = tuple(torch.stack(values) for values in zip(*of_image, strict=True))
    return results


def _prompt_objects(embeddings: Sequence[ImageEmbedding], prompts: Sequence[Prompts], options: RefinementOptions
                    ) -> list[PromptedObject]:
    objects = []
    for number, (embedding, of_image) in enumerate(zip(embeddings, prompts, strict=True)):
        for channel in np.flatnonzero(of_image.valid):
            first, second = (fit_to_sam(select_prompt(of_image, channel, names, embedding.input_size), embedding)
                             for names in (options.prompt1st, options.prompt2nd))
            objects.append(PromptedObject(number, channel, first, second))
    return objects


def _group_by_shapes(objects: Iterable[PromptedObject]) -> Iterable[list[PromptedObject]]:
    """Only objects whose prompts are of the same shapes can be decoded together."""
    groups: dict[tuple, list[PromptedObject]] = {}
    for item in objects:
        groups.setdefault((item.first.shape, item.second.shape), []).append(item)
    return groups.values()


def two_passes(decoder: StoredEmbeddingDecoder, images: Maps, objects: Sequence[PromptedObject]
               ) -> tuple[torch.Tensor, torch.Tensor]:
    """Low-resolution logits (K, 4h, 4w) and predicted IoU (K,) of objects whose prompts are of the same shapes.

    The first pass is the result where the second prompt is empty: none was asked for, or it has negative points alone
    and there is no other class.

    Args:
        images: those that the objects number, prepared by the decoder
    """
    images = select_images(images, [item.image for item in objects])
    logits, iou = decode_prompts(decoder, images, [item.first for item in objects])
    second = [item.second for item in objects]
    return (logits, iou) if second[0].empty else decode_prompts(decoder, images, second, logits)


def decode_prompts(decoder: StoredEmbeddingDecoder, images: Maps, prompts: Sequence[ClassPrompt],
                   mask_inputs: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass of objects whose prompts are of the same shape, as `StoredEmbeddingDecoder.decode`; masks of the prompts
    take the place of `mask_inputs`."""
    has_box, number_of_points, has_mask = prompts[0].shape
    boxes = np.stack([prompt.box for prompt in prompts]) if has_box else None
    points = np.stack([prompt.points for prompt in prompts]) if number_of_points else None
    labels = np.stack([prompt.labels for prompt in prompts]) if number_of_points else None
    if has_mask:
        mask_inputs = torch.from_numpy(np.stack([prompt.logits for prompt in prompts])).to(decoder.device)
    return decoder.decode(images, boxes, points, labels, mask_inputs)
