"""SAM's mask decoder for the one output mask that the refinement uses: the same numbers as upstream, in less time.

Upstream's `MaskDecoder.predict_masks` computes four masks and moves each intermediate image between memory layouts.
Here the values stay in rows of one pixel each: a transposed 2x2 convolution of stride 2 is one matrix product per
pixel, and only the finished logits are put into the order of an image.

Between the few tokens (T) and the thousands of pixels (P), attention never projects the pixels: with one matrix per
head, q (W x) = (q W) x, so the projection goes to the tokens' side.
"""
import torch
from torch import Tensor
from torch.nn import functional as F

from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer


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
        tokens = torch.cat([self._output_tokens, sparse[0]])
        tokens, pixels = _two_way(self._transformer, tokens, *(each[0].flatten(1).T.contiguous()
                                                               for each in (image, image_pe)))
        coarse = torch.addmm(self._first[1], pixels, self._first[0]).view(-1, len(self._norm.weight))
        coarse = F.gelu(F.layer_norm(coarse, coarse.shape[-1:], self._norm.weight, self._norm.bias, self._norm.eps))
        fine = F.gelu(torch.addmm(self._second[1], coarse, self._second[0]))
        mask_weights = self._mask_head(tokens[1])
        logits = fine.view(-1, len(mask_weights)) @ mask_weights
        # each pixel became 2 x 2, and each of those 2 x 2: rows are (y, i, k), columns (x, j, l)
        logits = logits.view(height, width, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5)
        return logits.reshape(4 * height, 4 * width), self._iou_head(tokens[0])[0]


def _as_matrix(convolution: torch.nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Weights (in, 2 * 2 * out) and biases (2 * 2 * out) that give a pixel's 2 x 2 successors one after the other."""
    return convolution.weight.permute(0, 2, 3, 1).flatten(1).contiguous(), convolution.bias.repeat(4)


def _two_way(transformer: TwoWayTransformer, tokens: Tensor, pixels: Tensor, pixel_pe: Tensor) -> tuple[Tensor, Tensor]:
    """Upstream's `TwoWayTransformer` for one object: tokens (T, D) and pixels (P, D)."""
    queries = tokens
    for block in transformer.layers:
        queries, pixels = _block(block, queries, pixels, tokens, pixel_pe)
    attended = _tokens_to_pixels(transformer.final_attn_token_to_image, queries + tokens, pixels + pixel_pe, pixels)
    return transformer.norm_final_attn(queries + attended), pixels


def _block(block: TwoWayAttentionBlock, queries: Tensor, pixels: Tensor, query_pe: Tensor, pixel_pe: Tensor
           ) -> tuple[Tensor, Tensor]:
    batch = queries[None]
    if block.skip_first_layer_pe:
        queries = block.self_attn(batch, batch, batch)[0]
    else:
        located = batch + query_pe
        queries = queries + block.self_attn(located, located, batch)[0]
    queries = block.norm1(queries)
    located = pixels + pixel_pe
    queries = block.norm2(queries + _tokens_to_pixels(block.cross_attn_token_to_image, queries + query_pe, located,
                                                      pixels))
    queries = block.norm3(queries + block.mlp(queries))
    pixels = block.norm4(pixels + _pixels_to_tokens(block.cross_attn_image_to_token, located, queries + query_pe,
                                                    queries))
    return queries, pixels


def _tokens_to_pixels(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Tokens (T, D) look at pixels, keys and values (P, D). The keys' bias adds the same to all pixels: no effect."""
    heads, count = attention.num_heads, len(queries)
    per_head = attention.q_proj(queries).view(count, heads, -1).transpose(0, 1) / _root(attention)
    folded = torch.bmm(per_head, attention.k_proj.weight.view(heads, -1, keys.shape[1]))
    weights = (folded.flatten(0, 1) @ keys.T).softmax(dim=1)
    seen = (weights @ values).view(heads, count, -1)
    seen = torch.bmm(seen, attention.v_proj.weight.view(heads, -1, values.shape[1]).mT)
    return attention.out_proj(seen.transpose(0, 1).flatten(1) + attention.v_proj.bias)


def _pixels_to_tokens(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Pixels (P, D) look at tokens, keys and values (T, D)."""
    heads, count = attention.num_heads, len(keys)
    per_head = attention.k_proj(keys).view(count, heads, -1).transpose(0, 1) / _root(attention)
    folded = torch.bmm(per_head, attention.q_proj.weight.view(heads, -1, queries.shape[1])).flatten(0, 1)
    offset = (per_head * attention.q_proj.bias.view(heads, 1, -1)).sum(dim=2).flatten()
    weights = torch.addmm(offset, queries, folded.T).view(-1, heads, count).softmax(dim=2)
    contribution = attention.v_proj(values).view(count, heads, -1).transpose(0, 1)
    contribution = torch.bmm(contribution, attention.out_proj.weight.view(values.shape[1], heads, -1).permute(1, 2, 0))
    return torch.addmm(attention.out_proj.bias, weights.flatten(1), contribution.flatten(0, 1))


def _root(attention: Attention) -> float:
    return (attention.internal_dim / attention.num_heads) ** 0.5
