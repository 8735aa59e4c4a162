"""SAM's prompt encoder and mask decoder on stored image embeddings; the image encoder is never loaded."""
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from segment_anything.checkpoints import CheckpointId, identify
from segment_anything.embeddings import ImageEmbedding, check_same_checkpoint
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.registry import load_prompt_modules
from segment_anything.single_mask import SingleMaskDecoder


class StoredEmbeddingDecoder:
    """Predicts the mask of one object at a time from prompts and a stored embedding.

    All coordinates are x, y in pixels of the encoder's input (the embedding's `input_size`).
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, checkpoint: CheckpointId,
                 device: torch.device | str = "cpu"):
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.prompt_encoder = prompt_encoder.to(device)
        self._mask_decoder = SingleMaskDecoder(mask_decoder.to(device))
        with torch.inference_mode():
            self._image_pe = prompt_encoder.get_dense_pe()  # the same for every image and prompt

    @classmethod
    def load(cls, sam_type: str, checkpoint: Path, device: torch.device | str = "cpu") -> "StoredEmbeddingDecoder":
        """Raises:
            InputError: the checkpoint is missing, isn't one, or is one of another architecture.
        """
        return cls(*load_prompt_modules(sam_type, checkpoint), identify(checkpoint), device)

    def features(self, embedding: ImageEmbedding) -> torch.Tensor:
        """The embedding as `decode` takes it, (1, D, h, w) on the decoder's device; move it there once per image.

        Raises:
            InputError: it was computed with another checkpoint than this decoder's.
        """
        check_same_checkpoint("image embedding", embedding.checkpoint, self.checkpoint)
        return embedding.embedding.to(self.device)[None]

    @torch.inference_mode()
    def decode(self, features: torch.Tensor, box: np.ndarray | None = None, points: np.ndarray | None = None,
               labels: np.ndarray | None = None, mask_input: torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
        """SAM's single-mask output for one object.

        Points without a box get SAM's padding point, a box alone or points with a box get none (prompt encoder).

        Args:
            features: of the image, (1, D, h, w)
            box: (4,) x0, y0, x1, y1
            points, labels: (N, 2) x, y and (N,) with 1 = on the object, 0 = beside it; N > 0
            mask_input: logits of an earlier call, (4h, 4w)
        Returns:
            logits (4h, 4w), float32, to be upscaled by `upscale`, and the predicted IoU
        """
        sparse, dense = self.prompt_encoder(
            points=None if points is None else (self._batch(points), self._batch(labels)),
            boxes=None if box is None else self._batch(box),
            masks=None if mask_input is None else mask_input[None, None])
        logits, iou = self._mask_decoder(features + dense, self._image_pe, sparse)
        return logits, iou.item()

    def _batch(self, coordinates: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(coordinates, dtype=torch.float32, device=self.device)[None]

    @torch.inference_mode()
    def upscale(self, logits: torch.Tensor, embedding: ImageEmbedding,
                mask_size: tuple[int, int] | None = None) -> torch.Tensor:
        """Logits (4h, 4w) -> logits (H, W) at the image's original size; the padding is cut off on the way.

        With `mask_size` only the pixels that a nearest-exact resize to that size keeps.
        """
        side, mask_size = embedding.encoder_input_size, mask_size or embedding.original_size
        rows, columns = (_upscaling_matrix(*lengths, self.device) for lengths in zip(
            logits.shape, (side, side), embedding.input_size, embedding.original_size, mask_size, strict=True))
        return rows @ logits @ columns.T


@lru_cache(maxsize=8)
def _upscaling_matrix(low: int, side: int, inside: int, original: int, final: int,
                      device: torch.device) -> torch.Tensor:
    """SAM's two bilinear resizes and the crop between them along one axis, at `final` positions: (final, low)."""
    steps = torch.eye(low, device=device)[None]
    square = F.interpolate(steps, side, mode="linear", align_corners=False)
    full = F.interpolate(square[..., :inside], original, mode="linear", align_corners=False)
    return F.interpolate(full, final, mode="nearest-exact")[0].T.contiguous()
