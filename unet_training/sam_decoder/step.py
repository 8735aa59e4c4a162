"""One step of the fine-tuning: the objects of one image, asked as `prompts` draws it."""
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segment_anything.embeddings import ImageEmbedding
from segment_anything.mask_decoder import Maps
from segment_anything.refinement.prompts import fit_to_sam, mask_geometry, select_prompt
from segment_anything.refinement.refine import decode_prompts
from segment_anything.registry import get_sam_type
from unet_training.sam_decoder.examples import Example
from unet_training.sam_decoder.prompts import SECOND_PROMPTS, draw_groups, draw_prompts, touched

OBJECTS_AT_ONCE = 8  # whose intermediate results fit the memory; gradients are of the whole image


class TrainableDecoder:
    """`StoredEmbeddingDecoder` with gradients: they flow to the module `mask_decoder`, all others stay as they are."""

    def __init__(self, modules: Mapping[str, nn.Module], sam_type: str, device: torch.device):
        """Takes the modules over; their weights may change."""
        self.device = device
        self.modules = {name: module.to(device).requires_grad_(name == "mask_decoder")
                        for name, module in modules.items()}
        self._decoder = get_sam_type(sam_type).trainable_decoder(**self.modules)

    @property
    def trained(self) -> nn.Module:
        return self.modules["mask_decoder"]

    def prepare(self, embedding: ImageEmbedding) -> Maps:
        return self._decoder.prepare({name: features[None].to(self.device)
                                      for name, features in embedding.features.items()})

    def decode(self, images: Maps, boxes: np.ndarray | None = None, points: np.ndarray | None = None,
               labels: np.ndarray | None = None, mask_inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `StoredEmbeddingDecoder.decode`."""
        return self._decoder(images, *(self._on_device(values) for values in (boxes, points, labels)), mask_inputs)

    def _on_device(self, values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.as_tensor(values, dtype=torch.float32, device=self.device)


def train_on(example: Example, embedding: ImageEmbedding, decoder: TrainableDecoder, errors: np.ndarray,
             optimizer: torch.optim.Optimizer, rng: np.random.Generator) -> float:
    """One step on all objects of an image; returns the mean loss over objects and passes, NaN without objects.

    Args:
        errors: see `box_errors`
    """
    prompts, known = draw_prompts(example, errors, rng), touched(example)
    groups = list(draw_groups(prompts.valid, known, rng, OBJECTS_AT_ONCE))
    passes = sum(len(channels) * (1 + twice) for channels, _, twice in groups)
    if not passes:
        return float("nan")
    images, total = decoder.prepare(embedding), 0.0
    ground_truth = low_resolution(example.ground_truth, embedding).to(decoder.device)
    optimizer.zero_grad()
    for channels, names, twice in groups:
        logits = None
        for kinds in (names, SECOND_PROMPTS)[:1 + twice]:
            asked = [fit_to_sam(select_prompt(prompts, channel, kinds, embedding.input_size), embedding)
                     for channel in channels]
            logits, iou = decode_prompts(decoder, images, asked, logits)
            loss = losses(logits, iou, ground_truth[channels]).sum() / passes
            loss.backward()
            total, logits = total + loss.item(), logits.detach()
    optimizer.step()
    return total


def low_resolution(masks: np.ndarray, embedding: ImageEmbedding) -> Tensor:
    """Masks, bool (C, H, W), at the size that the image takes up in SAM's low resolution: float32 (C, h, w), how much
    of each pixel is inside."""
    _, size = mask_geometry(embedding)
    values = torch.from_numpy(masks).float()[:, None]
    return F.interpolate(values, size, mode="bilinear", align_corners=False, antialias=True)[:, 0]


def losses(logits: Tensor, iou: Tensor, ground_truth: Tensor) -> Tensor:
    """Of each object (K,): cross entropy, the soft Dice loss, and the squared error of the predicted IoU; all inside
    the image, as its padding is cut off before a mask is used.

    Args:
        logits: (K, 4h, 4w)
        iou: predicted, (K,)
        ground_truth: (K, h, w) in [0, 1], the part of the logits that is image
    """
    logits = logits[:, :ground_truth.shape[1], :ground_truth.shape[2]]
    entropy = F.binary_cross_entropy_with_logits(logits, ground_truth, reduction="none").mean(dim=(1, 2))
    probability = logits.sigmoid()
    both, total = ((values).sum(dim=(1, 2)) for values in (probability * ground_truth, probability + ground_truth))
    return entropy + 1 - (2 * both + 1) / (total + 1) + (iou - true_iou(logits, ground_truth)) ** 2


def true_iou(logits: Tensor, ground_truth: Tensor) -> Tensor:
    """(K,) of what both have on: logits above 0, and at least half of a pixel."""
    mask, target = logits > 0, ground_truth > 0.5
    both, either = ((values).sum(dim=(1, 2)) for values in (mask & target, mask | target))
    return both / either.clamp(min=1)
