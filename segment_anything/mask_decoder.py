"""What makes masks of an image's feature maps and prompts: the interface, and SAM's own modules behind it.

A type of SAM names its decoder in `registry`; `fast/mask_decoder.py` is the twin of the one here for SAM 1.
"""
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from segment_anything.modeling import MaskDecoder, PromptEncoder

Maps = dict[str, Tensor]  # by name, of B images or of K objects: the first axis


class Decoder(Protocol):
    """Made of the modules of SAM that are not its image encoder, by their names; on their device.

    `upscales_at_once`: whether logits are brought to the image's size in one bilinear step; SAM 1 goes by its
    encoder's input.
    """

    upscales_at_once: bool

    def prepare(self, features: Maps) -> Maps:
        """What can be computed of B images before their prompts are known; `features` as the image encoder gives."""

    def __call__(self, images: Maps, boxes: Tensor | None, points: Tensor | None, labels: Tensor | None,
                 masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """The single mask of K objects that have the same kinds and numbers of prompts.

        Args:
            images: prepared ones, of each object or one of all (first axis K or 1)
            boxes: (K, 4) x0, y0, x1, y1 in pixels of the encoder's input
            points, labels: (K, N, 2) x, y and (K, N) with 1 = on the object, 0 = beside it; N > 0
            masks: logits of an earlier call, (K, 4h, 4w)
        Returns:
            logits (K, 4h, 4w) and predicted IoU (K,)
        """


def select_images(images: Maps, numbers: Sequence[int]) -> Maps:
    """The image of each of K objects, or the one that all of them show (first axis 1)."""
    chosen = slice(numbers[0], numbers[0] + 1) if len(set(numbers)) == 1 else list(numbers)
    return {name: values[chosen] for name, values in images.items()}


class PlainDecoder:
    """The package's prompt encoder and mask decoder as they are, for one feature map, "image": (B, D, h, w)."""

    upscales_at_once = False

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder):
        self.prompt_encoder, self.mask_decoder = prompt_encoder, mask_decoder
        self.positions = prompt_encoder.get_dense_pe()

    def prepare(self, features: Maps) -> Maps:
        return features

    def __call__(self, images: Maps, boxes: Tensor | None, points: Tensor | None, labels: Tensor | None,
                 masks: Tensor | None) -> tuple[Tensor, Tensor]:
        sparse, dense = self.prompt_encoder(None if points is None else (points, labels), boxes, None)
        if masks is not None:
            dense = self.encode_masks(masks)
        image = images["image"]
        if len(image) == 1:
            return self._decode(image, sparse, dense)
        objects = zip(image.split(1), sparse.split(1), dense.split(1), strict=True)  # of one image each
        logits, iou = zip(*(self._decode(*one) for one in objects), strict=True)
        return torch.cat(logits), torch.cat(iou)

    def encode_masks(self, masks: Tensor) -> Tensor:
        """(K, 4h, 4w) logits -> (K, D, h, w)"""
        return self.prompt_encoder.mask_downscaling(masks[:, None])

    def _decode(self, image: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        logits, iou = self.mask_decoder(image, self.positions, sparse, dense, multimask_output=False)
        return logits[:, 0], iou[:, 0]
