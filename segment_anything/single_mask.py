"""SAM's mask decoder for the one output mask that the refinement uses: the same numbers as upstream, in less time.

Upstream's `MaskDecoder.predict_masks` computes four masks and moves each intermediate image between memory layouts.
Here the values stay in rows of one pixel each: a transposed 2x2 convolution of stride 2 is one matrix product per
pixel, and only the finished logits are put into the order of an image.
"""
import torch
from torch import Tensor
from torch.nn import functional as F

from segment_anything.modeling import MaskDecoder


class SingleMaskDecoder:
    """A mask decoder's first mask and its predicted IoU for one object at a time.

    Args:
        decoder: on its device, in evaluation mode; its weights must not change afterwards
    """

    def __init__(self, decoder: MaskDecoder):
        self._transformer, self._iou_head = decoder.transformer, decoder.iou_prediction_head
        self._mask_head = decoder.output_hypernetworks_mlps[0]
        self._output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        first, self._norm, _, second, _ = decoder.output_upscaling
        self._first, self._second = _as_matrix(first), _as_matrix(second)

    def __call__(self, image: Tensor, image_pe: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """One object's mask.

        Args:
            image: embedding + dense prompt embedding, (1, D, h, w)
            image_pe: its positional encoding, (1, D, h, w)
            sparse: prompt embeddings, (1, N, D)
        Returns:
            logits (4h, 4w) and predicted IoU ()
        """
        height, width = image.shape[-2:]
        tokens = torch.cat([self._output_tokens[None], sparse], dim=1)
        tokens, pixels = self._transformer(image, image_pe, tokens)
        coarse = torch.addmm(self._first[1], pixels[0], self._first[0]).view(-1, len(self._norm.weight))
        coarse = F.gelu(F.layer_norm(coarse, coarse.shape[-1:], self._norm.weight, self._norm.bias, self._norm.eps))
        fine = F.gelu(torch.addmm(self._second[1], coarse, self._second[0]))
        mask_weights = self._mask_head(tokens[0, 1])
        logits = fine.view(-1, len(mask_weights)) @ mask_weights
        # each pixel became 2 x 2, and each of those 2 x 2: rows are (y, i, k), columns (x, j, l)
        logits = logits.view(height, width, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5)
        return logits.reshape(4 * height, 4 * width), self._iou_head(tokens[0, 0])[0]


def _as_matrix(convolution: torch.nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Weights (in, 2 * 2 * out) and biases (2 * 2 * out) that give a pixel's 2 x 2 successors one after the other."""
    return convolution.weight.permute(0, 2, 3, 1).flatten(1).contiguous(), convolution.bias.repeat(4)
