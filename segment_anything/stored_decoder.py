"""SAM on stored image embeddings: masks of objects from prompts; the image encoder is never loaded."""
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from segment_anything.checkpoints import CheckpointId, identify
from segment_anything.embeddings import ImageEmbedding, check_same_checkpoint
from segment_anything.mask_decoder import Decoder, Maps
from segment_anything.registry import get_sam_type, load_prompt_modules
from utils.precision import full_float32


class StoredEmbeddingDecoder:
    """Predicts the masks of objects from prompts and stored embeddings of their images.

    All coordinates are x, y in pixels of the encoder's input (the embedding's `input_size`).

    Attributes:
        objects_at_once: how many objects `decode` should be for: many keep a GPU busy; on a CPU a few, because calls
            from several threads wait for the interpreter in between, and more take memory
        images_at_once: from how many images such objects should be gathered
        modules: of SAM, those beside its image encoder, by name
    """

    def __init__(self, modules: Mapping[str, nn.Module], decoder: Callable[..., Decoder], checkpoint: CheckpointId,
                 device: torch.device | str = "cpu"):
        """`decoder` is what a type of SAM says of its own."""
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.objects_at_once, self.images_at_once = (32, 8) if self.device.type == "cuda" else (4, 1)
        self.modules = {name: module.to(device) for name, module in modules.items()}
        with torch.inference_mode():
            self._decoder = decoder(**self.modules)

    @classmethod
    def load(cls, sam_type: str, checkpoint: Path, device: torch.device | str = "cpu") -> "StoredEmbeddingDecoder":
        """Raises:
            InputError: the checkpoint is missing, isn't one, or is one of another architecture.
        """
        modules = load_prompt_modules(sam_type, checkpoint)
        return cls(modules, get_sam_type(sam_type).decoder, identify(checkpoint), device)

    @torch.inference_mode()
    def prepare(self, embeddings: Sequence[ImageEmbedding]) -> Maps:
        """Images as `select_images` and `decode` take them, on the decoder's device; once per image.

        Raises:
            InputError: an embedding was computed with another checkpoint than this decoder's.
        """
        for embedding in embeddings:
            check_same_checkpoint("image embedding", embedding.checkpoint, self.checkpoint)
        return self._decoder.prepare({
            name: torch.stack([embedding.features[name] for embedding in embeddings]).to(self.device)
            for name in embeddings[0].features})

    @full_float32()
    @torch.inference_mode()
    def decode(self, images: Maps, boxes: np.ndarray | None = None, points: np.ndarray | None = None,
               labels: np.ndarray | None = None, mask_inputs: torch.Tensor | None = None
               ) -> tuple[torch.Tensor, torch.Tensor]:
        """SAM's single-mask output for K objects with the same kinds and numbers of prompts.

        Points without a box get SAM's padding point, a box alone or points with a box get none (prompt encoder).

        Args:
            images: of each object, or one of all
            boxes: (K, 4) x0, y0, x1, y1
            points, labels: (K, N, 2) x, y and (K, N) with 1 = on the object, 0 = beside it; N > 0
            mask_inputs: logits of an earlier call, (K, 4h, 4w)
        Returns:
            logits (K, 4h, 4w), float32, to be upscaled by `upscale`, and the predicted IoU (K,), on the device
        """
        return self._decoder(images, *(self._on_device(values) for values in (boxes, points, labels)), mask_inputs)

    def _on_device(self, values: np.ndarray | None) -> torch.Tensor | None:
        return None if values is None else torch.as_tensor(values, dtype=torch.float32, device=self.device)

    @torch.inference_mode()
    def upscale(self, logits: torch.Tensor, embedding: ImageEmbedding,
                mask_size: tuple[int, int] | None = None) -> torch.Tensor:
        """Logits (K, 4h, 4w) -> logits (K, H, W) at the image's original size; the padding is cut off on the way.

        With `mask_size` only the pixels that a nearest-exact resize to that size keeps.
        """
        low, side, inside = logits.shape[1], embedding.encoder_input_size, embedding.input_size
        if self._decoder.upscales_at_once:
            side, inside = low, tuple(round(length * low / side) for length in inside)
        rows, columns = (_upscaling_matrix(low, side, *lengths, self.device) for lengths in zip(
            inside, embedding.original_size, mask_size or embedding.original_size, strict=True))
        return rows @ logits @ columns.T


@lru_cache(maxsize=8)
def _upscaling_matrix(low: int, side: int, inside: int, original: int, final: int,
                      device: torch.device) -> torch.Tensor:
    """SAM's two bilinear resizes and the crop between them along one axis, at `final` positions: (final, low)."""
    steps = torch.eye(low, device=device)[None]
    square = F.interpolate(steps, side, mode="linear", align_corners=False)
    full = F.interpolate(square[..., :inside], original, mode="linear", align_corners=False)
    return F.interpolate(full, final, mode="nearest-exact")[0].T.contiguous()
