"""Refinement of predicted masks by SAM (paper, SAM refinement).

U-Net probabilities -> cleaned masks -> prompts -> first pass -> second pass with the first one's logits -> masks.
"""
import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segment_anything.embeddings import ImageEmbedding
from segment_anything.fast.mask_decoder import PreparedImages
from segment_anything.refinement.cleaning import ELEMENTS, OPERATIONS, SELECTIONS, apply_morphology, clean_masks
from segment_anything.refinement.prompts import (
    PROMPT_NAMES,
    ClassPrompt,
    Prompts,
    extract_prompts,
    scale_prompts,
    select_prompt,
)
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from utils.errors import InputError
from utils.overlap import batched

MORPHOLOGIES = ("released", "paper")


@dataclass(frozen=True)
class RefinementOptions:
    """How to refine. The defaults are those of the paper's reported numbers.

    `morphology`: the released code computes a morphology whose result it never uses ("released", no effect); the paper
    describes it as applied to the cleaned masks before prompts are taken ("paper"). `morphology_radius` is in pixels.

    Raises:
        InputError: an option has no meaning.
    """

    prompt1st: tuple[str, ...] = ("box",)
    prompt2nd: tuple[str, ...] = ("pos_points", "neg_points")
    ccl_selection: str = "highest_probability"
    morphology: str = "released"
    morphology_operation: str = "dilation"
    morphology_element: str = "square"
    morphology_radius: int = 8

    def __post_init__(self):
        _check_prompts("--prompt1st", self.prompt1st)
        _check_prompts("--prompt2nd", self.prompt2nd)
        if not set(self.prompt1st) & {"box", "pos_points"}:
            raise InputError("--prompt1st: the first prompt set must say where the object is; add box or pos_points")
        _check_choice("--ccl_selection", self.ccl_selection, SELECTIONS)
        _check_choice("--morphology", self.morphology, MORPHOLOGIES)
        _check_choice("--morphology_operation", self.morphology_operation, OPERATIONS)
        _check_choice("--morphology_element", self.morphology_element, ELEMENTS)
        if self.morphology_radius < 0:
            raise InputError(f"--morphology_radius {self.morphology_radius}: give 0 or more pixels")

    def name(self) -> str:
        """Distinct for distinct effects; names the result file together with the SAM type."""
        parts = ["sam", *self.prompt1st, *(["refine", *self.prompt2nd] if self.prompt2nd else []),
                 self.ccl_selection, self.morphology]
        if self.morphology == "paper":
            parts += [self.morphology_operation, self.morphology_element, str(self.morphology_radius)]
        return "_".join(parts)


def _check_prompts(argument: str, names: tuple[str, ...]) -> None:
    for name in names:
        _check_choice(argument, name, PROMPT_NAMES)
    if len(set(names)) < len(names):
        raise InputError(f"{argument} {' '.join(names)}: name each prompt once")


def _check_choice(argument: str, value: str, choices) -> None:
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
    return next(refine_all([(probabilities, embedding)], decoder, options))


def refine_all(images: Iterable[tuple[np.ndarray, ImageEmbedding]], decoder: StoredEmbeddingDecoder,
               options: RefinementOptions) -> Iterator[Refined]:
    """`refine` for (probabilities, embedding) of many images, as many at once as the decoder wants."""
    for some in batched(images, decoder.images_at_once):
        yield from _refine_together(some, decoder, options)


def _refine_together(images: Sequence[tuple[np.ndarray, ImageEmbedding]], decoder: StoredEmbeddingDecoder,
                     options: RefinementOptions) -> list[Refined]:
    cleaned, prompts = zip(*(clean_and_prompt(*image, options) for image in images), strict=True)
    results = [Refined(each.copy(), np.full(len(each), np.nan), each) for each in cleaned]
    embeddings = [embedding for _, embedding in images]
    for number, (logits, iou) in decode_all(decoder, embeddings, prompts, options).items():
        result, valid = results[number], prompts[number].valid
        masks = decoder.upscale(logits, embeddings[number], result.mask.shape[1:]) > 0
        result.mask[valid], iou = masks.cpu().numpy(), iou.double().cpu().numpy()
        result.estimated_dice[valid] = 2 * iou / (1 + iou)
    return results


def clean_and_prompt(probabilities: np.ndarray, embedding: ImageEmbedding, options: RefinementOptions
                     ) -> tuple[np.ndarray, Prompts]:
    """The cleaned masks, bool (C, H, W), and the prompts that they give, in pixels of the encoder's input."""
    cleaned = clean_masks(probabilities, options.ccl_selection)
    shapes = cleaned if options.morphology == "released" else apply_morphology(
        cleaned, options.morphology_operation, options.morphology_element, options.morphology_radius)
    return cleaned, scale_prompts(extract_prompts(shapes), cleaned.shape[1:], embedding.input_size)


def decode_all(decoder: StoredEmbeddingDecoder, embeddings: Sequence[ImageEmbedding], prompts: Sequence[Prompts],
               options: RefinementOptions) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """`two_passes` of all valid classes of several images, as many at once as the decoder wants.

    Returns:
        by number of the image, if it has a valid class: low-resolution logits (K, 4h, 4w) and predicted IoU (K,)
    """
    counts, results = [int(each.valid.sum()) for each in prompts], {}
    for count in set(counts) - {0}:  # an object's negative points are the image's other valid classes
        numbers = [number for number, each in enumerate(counts) if each == count]
        images = decoder.prepare([embeddings[number] for number in numbers])
        alike = [prompts[number] for number in numbers]
        objects = [(image, channel) for image, each in enumerate(alike) for channel in np.flatnonzero(each.valid)]
        decoded = [two_passes(decoder, images, alike, some, options)
                   for some in batched(objects, decoder.objects_at_once)]
        of_images = zip(*(torch.cat(each).split(count) for each in zip(*decoded, strict=True)), strict=True)
        results.update(zip(numbers, of_images, strict=True))
    return results


def two_passes(decoder: StoredEmbeddingDecoder, images: PreparedImages, prompts: Sequence[Prompts],
               objects: Sequence[tuple[int, int]], options: RefinementOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Low-resolution logits (K, 4h, 4w) and predicted IoU (K,) of objects, each the number of its image and its class.

    The first pass is the result where the second set is empty: none was asked for, or it has negative points alone and
    there is no other class.

    Args:
        prompts: of each image, in pixels of the encoder's input; all have as many valid classes
    """
    images = images.of([number for number, _ in objects])
    first, second = ([select_prompt(prompts[number], channel, names) for number, channel in objects]
                     for names in (options.prompt1st, options.prompt2nd))
    logits, iou = _decode(decoder, images, first)
    return (logits, iou) if second[0].empty else _decode(decoder, images, second, logits)


def _decode(decoder: StoredEmbeddingDecoder, images: PreparedImages, prompts: list[ClassPrompt],
            mask_inputs: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """All prompts at once, which are of the same kinds and numbers."""
    boxes, points, labels = (None if values[0] is None else np.stack(values) for values in
                             zip(*((each.box, each.points, each.labels) for each in prompts), strict=True))
    return decoder.decode(images, boxes, points, labels, mask_inputs)


def add_refinement_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `options_from` reads."""
    default = RefinementOptions()
    group = parser.add_argument_group("refinement")
    group.add_argument("--prompt1st", nargs="+", default=list(default.prompt1st), metavar="PROMPT",
                       help=f"prompts of the first pass, from {', '.join(PROMPT_NAMES)}")
    group.add_argument("--prompt2nd", nargs="*", default=list(default.prompt2nd), metavar="PROMPT",
                       help="prompts of the second pass; nothing after the argument: no second pass")
    add_ccl_argument(group)
    group.add_argument("--morphology", default=default.morphology, metavar="BEHAVIOR",
                       help="released: no effect, as in the paper's released code; paper: applied, as it is described")
    group.add_argument("--morphology_operation", default=default.morphology_operation, metavar="OPERATION",
                       help=f"with --morphology paper: {', '.join(OPERATIONS)}")
    group.add_argument("--morphology_element", default=default.morphology_element, metavar="ELEMENT",
                       help=f"with --morphology paper: {', '.join(ELEMENTS)}")
    group.add_argument("--morphology_radius", type=int, default=default.morphology_radius, metavar="PIXELS",
                       help="with --morphology paper: radius of the element")


def add_ccl_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--ccl_selection", choices=SELECTIONS, default=RefinementOptions().ccl_selection,
                        help="which connected component of each class is kept")


def options_from(args: argparse.Namespace) -> RefinementOptions:
    """Raises:
        InputError: an option has no meaning.
    """
    return RefinementOptions(tuple(args.prompt1st), tuple(args.prompt2nd), args.ccl_selection, args.morphology,
                             args.morphology_operation, args.morphology_element, args.morphology_radius)
