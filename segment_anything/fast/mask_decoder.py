"""SAM's mask decoder for the one output mask that the refinement uses: the same numbers as upstream, in less time.

Upstream's `MaskDecoder.predict_masks` computes four masks and moves each intermediate image between memory layouts.
Here the values stay in rows of one pixel each: a transposed 2x2 convolution of stride 2 is one matrix product per
pixel, and only the finished logits are put into the order of an image.

What doesn't depend on the prompt is computed once: the positions' share of every projection, and the image's share of
the first block's. There the prompt's mask adds to the image no more than a linear map of a few channels.
"""
import torch
from torch import Tensor
from torch.nn import functional as F

from segment_anything.fast.linear import linear
from segment_anything.mask_decoder import Maps
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock

PIXELS = 1024  # that are upscaled at once, so that they stay in the cache


class FastDecoder:
    """The twin of `PlainDecoder`; its interface is `segment_anything.mask_decoder.Decoder`.

    Shapes: B images, K objects, P = h w pixels, D channels, T tokens, I channels inside an attention.
    """

    upscales_at_once = False

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder):
        """In evaluation mode; their weights must not change afterwards."""
        self._encode_prompts, self._size = prompt_encoder, prompt_encoder.image_embedding_size
        *encoding, last = prompt_encoder.mask_downscaling
        self._encode_mask = torch.nn.Sequential(*encoding)
        self._no_mask = prompt_encoder.no_mask_embed.weight
        self._positions = _rows(prompt_encoder.get_dense_pe())
        self._blocks = mask_decoder.transformer.layers
        self._projections = [_projection(block, self._positions) for block in self._blocks]
        # what the code of a mask prompt adds to an image that has the embedding of none, and to its projection
        self._masked = last.weight.flatten(1), last.bias - self._no_mask[0]
        self._masked_projected = [self._projections[0][0] @ part for part in self._masked]
        self._final_attention = mask_decoder.transformer.final_attn_token_to_image
        self._final_norm = mask_decoder.transformer.norm_final_attn
        self._output_tokens = torch.cat([mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight])
        self._iou_head, self._mask_head = mask_decoder.iou_prediction_head, mask_decoder.output_hypernetworks_mlps[0]
        first, self._norm, _, second, _ = mask_decoder.output_upscaling
        self._first, self._second = _as_linear(first), _as_linear(second)

    def prepare(self, features: Maps) -> Maps:
        """Images without a mask prompt, (B, P, D), and the first block's projection of them, (B, P, 3 I)."""
        pixels = _rows(features["image"]) + self._no_mask
        return {"pixels": pixels, "projected": _project(pixels, self._projections[0])}

    def __call__(self, images: Maps, boxes: Tensor | None, points: Tensor | None, labels: Tensor | None,
                 masks: Tensor | None) -> tuple[Tensor, Tensor]:
        sparse, _ = self._encode_prompts(None if points is None else (points, labels), boxes, None)
        positions = torch.cat([self._output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        tokens, pixels, projected = positions, images["pixels"], images["projected"]
        if masks is not None:
            codes = _rows(self._encode_mask(masks[:, None]))
            pixels = linear(codes, *self._masked).add_(pixels)
            projected = linear(codes, *self._masked_projected).add_(projected)
        for block, projection in zip(self._blocks, self._projections, strict=True):
            if block is not self._blocks[0]:
                projected = _project(pixels, projection)
            tokens, pixels = _block(block, tokens, positions, pixels, projected)
        tokens, positions = tokens[:, :2], positions[:, :2]  # the IoU's and the first mask's
        seen = _look_once(self._final_attention, tokens + positions, pixels + self._positions, pixels)
        iou_token, mask_token = self._final_norm(tokens + seen).unbind(1)
        return self._upscale(pixels, self._mask_head(mask_token)), self._iou_head(iou_token)[:, 0]

    def _upscale(self, pixels: Tensor, mask_weights: Tensor) -> Tensor:
        """(K, P, D), and the weights of the mask's channels, (K, D / 8) -> logits (K, 4h, 4w)."""
        parts = pixels.split(PIXELS, dim=1)
        logits = torch.cat([self._upscale_part(part, mask_weights) for part in parts], dim=1)
        # each pixel became 2 x 2, and each of those 2 x 2: rows are (y, i, k), columns (x, j, l)
        height, width = self._size
        logits = logits.view(-1, height, width, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return logits.reshape(-1, 4 * height, 4 * width)

    def _upscale_part(self, pixels: Tensor, mask_weights: Tensor) -> Tensor:
        coarse = linear(pixels, *self._first).unflatten(2, (4, -1))
        coarse = F.gelu(F.layer_norm(coarse, coarse.shape[-1:], self._norm.weight, self._norm.bias, self._norm.eps))
        fine = F.gelu(linear(coarse, *self._second)).view(len(pixels), -1, mask_weights.shape[1])
        return fine @ mask_weights[..., None]


def _rows(images: Tensor) -> Tensor:
    """(K, D, h, w) -> (K, P, D)"""
    return images.flatten(2).mT.contiguous()


def _as_linear(convolution: torch.nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Weights (2 * 2 * out, in) and biases (2 * 2 * out) that give a pixel's 2 x 2 successors one after the other."""
    return convolution.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(), convolution.bias.repeat(4)


def _projection(block: TwoWayAttentionBlock, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (3 I, D) of the pixels' keys, values and queries, and what biases and positions add, (1, P, 3 I)."""
    tokens_look, pixels_look = block.cross_attn_token_to_image, block.cross_attn_image_to_token
    layers = tokens_look.k_proj, tokens_look.v_proj, pixels_look.q_proj
    added = [layer(at) for layer, at in zip(layers, (positions, torch.zeros_like(positions), positions), strict=True)]
    return torch.cat([layer.weight for layer in layers]), torch.cat(added, dim=2)


def _project(pixels: Tensor, projection: tuple[Tensor, Tensor]) -> Tensor:
    weights, added = projection
    return linear(pixels, weights).add_(added)


def _block(block: TwoWayAttentionBlock, tokens: Tensor, positions: Tensor, pixels: Tensor, projected: Tensor
           ) -> tuple[Tensor, Tensor]:
    """Upstream's block on tokens (K, T, D) and pixels (K, P, D), the latter projected already."""
    if block.skip_first_layer_pe:
        tokens = block.self_attn(tokens, tokens, tokens)
    else:
        located = tokens + positions
        tokens = tokens + block.self_attn(located, located, tokens)
    tokens = block.norm1(tokens)
    look, answer = block.cross_attn_token_to_image, block.cross_attn_image_to_token
    keys, values, queries = (_heads(rows, look) for rows in projected.chunk(3, dim=2))
    seen = F.scaled_dot_product_attention(_heads(look.q_proj(tokens + positions), look), keys, values)
    tokens = block.norm2(tokens + look.out_proj(_join_heads(seen)))
    tokens = block.norm3(tokens + block.mlp(tokens))
    keys, values = _heads(answer.k_proj(tokens + positions), answer), _heads(answer.v_proj(tokens), answer)
    # the pixels stay the last axis of the weights: on a CPU the few tokens in their place take three times as long
    weights = (keys / _root(answer) @ queries.mT).softmax(dim=2)
    seen = _join_heads(weights.mT @ values)
    return tokens, block.norm4(linear(seen, answer.out_proj.weight, answer.out_proj.bias).add_(pixels))


def _look_once(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of a few tokens (K, T, D) to pixels, keys and values (K, P, D), which aren't projected.

    With one matrix per head, q (W x) = (q W) x, so the projection goes to the tokens' side. The keys' bias adds the
    same to all pixels: no effect.
    """
    per_head = _heads(attention.q_proj(queries), attention) / _root(attention)
    to_keys, to_values = (layer.weight.unflatten(0, (attention.num_heads, -1))
                          for layer in (attention.k_proj, attention.v_proj))
    weights = ((per_head @ to_keys).flatten(1, 2) @ keys.mT).softmax(dim=2)
    seen = (weights @ values).unflatten(1, per_head.shape[1:3]) @ to_values.mT
    return attention.out_proj(_join_heads(seen) + attention.v_proj.bias)


def _heads(rows: Tensor, attention: Attention) -> Tensor:
    """(K, N, I) -> (K, heads, N, I / heads)"""
    return rows.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _join_heads(heads: Tensor) -> Tensor:
    """(K, heads, N, I / heads) -> (K, N, I)"""
    return heads.transpose(1, 2).flatten(2)


def _root(attention: Attention) -> float:
    return (attention.internal_dim / attention.num_heads) ** 0.5
