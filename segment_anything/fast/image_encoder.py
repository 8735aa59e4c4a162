"""The blocks of SAM's ViT image encoders, arranged for speed: same weights, same result up to rounding."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Block, get_rel_pos

QUERIES = 512  # that attend at once, for the sake of memory


def accelerate(encoder: nn.Module, dtype: torch.dtype = torch.float32,
               input_size: tuple[int, int] | None = None) -> None:
    """Replaces the blocks of an `ImageEncoderViT` in place, and what TinyViT can do without; others stay as they are.

    Args:
        encoder: with its weights loaded, on its device; for inference only afterwards
        dtype: of the blocks' matrix products and attention; everything else stays float32
        input_size: (H, W) of the images that it will see, where that isn't its own square
    """
    if isinstance(encoder, ImageEncoderViT):
        patch = encoder.patch_embed.proj.kernel_size[0]
        patches = [side // patch for side in input_size] if input_size else None
        encoder.blocks = nn.ModuleList(FastBlock(block, dtype, patches) for block in encoder.blocks)
        return
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Sequential) and [type(part) for part in child] == [nn.Conv2d, nn.BatchNorm2d]:
                setattr(module, name, fuse_conv_bn_eval(*child))
        if getattr(module, "fused_attn", False) and module.attention_biases.device.type == "cpu":
            module.fused_attn = False  # with a bias PyTorch's own attention takes longer there than its parts


class FastBlock(nn.Module):
    """Stands for one block of `ImageEncoderViT`: (B, H, W, C) float32 -> the same.

    Relative positions enter attention as the bias of its scores. Windows are padded after the projection to queries,
    keys and values, which makes of upstream's zeros just its bias. `patches` are the H and W of tokens where there are
    no windows (left out: the square that the block was trained on).
    """

    def __init__(self, block: Block, dtype: torch.dtype, patches: Sequence[int] | None = None):
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attn, self.mlp = block.attn.to(dtype), block.mlp.to(dtype)
        self.window_size, self.dtype = block.window_size, dtype
        if self.attn.use_rel_pos:
            for axis, (name, positions) in enumerate((("along_y", self.attn.rel_pos_h),
                                                      ("along_x", self.attn.rel_pos_w))):
                side = patches[axis] if patches and not self.window_size else (len(positions) + 1) // 2
                self.register_buffer(name, get_rel_pos(side, side, positions), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._attention(self.norm1(tokens).to(self.dtype))
        return tokens + self.mlp(self.norm2(tokens).to(self.dtype))

    def _attention(self, tokens: Tensor) -> Tensor:
        batch, height, width, _ = tokens.shape
        side_y, side_x = (self.window_size,) * 2 if self.window_size else (height, width)
        rows, columns = -(-height // side_y), -(-width // side_x)
        qkv = self.attn.qkv(tokens)
        if missing := (rows * side_y - height, columns * side_x - width) != (0, 0):
            padded = self.attn.qkv.bias.expand(batch, rows * side_y, columns * side_x, -1).clone()
            padded[:, :height, :width] = qkv
            qkv = padded
        # (q/k/v, batch, row and column of the window, head, y, x, channel)
        qkv = qkv.view(batch, rows, side_y, columns, side_x, 3, self.attn.num_heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
        seen = self._attend(*qkv.reshape(3, batch * rows * columns, *qkv.shape[4:]))
        seen = seen.view(batch, rows, columns, *seen.shape[1:]).permute(0, 1, 4, 2, 5, 3, 6)
        seen = seen.reshape(batch, rows * side_y, columns * side_x, -1)
        return self.attn.proj(seen[:, :height, :width] if missing else seen)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """All (windows, heads, y, x, channel)."""
        flat = [rows.flatten(2, 3) for rows in (queries, keys, values)]
        if not self.attn.use_rel_pos:
            return F.scaled_dot_product_attention(*flat).view_as(queries)
        along_y = torch.einsum("bnyxc,ykc->bnyxk", queries, self.along_y).flatten(2, 3)
        along_x = torch.einsum("bnyxc,xkc->bnyxk", queries, self.along_x).flatten(2, 3)
        portions = zip(*(rows.split(QUERIES, dim=2) for rows in (flat[0], along_y, along_x)), strict=True)
        attend = F.scaled_dot_product_attention if queries.is_cuda else _attend_on_cpu
        return torch.cat([attend(portion, *flat[1:], (y[..., :, None] + x[..., None, :]).flatten(3))
                          for portion, y, x in portions], dim=2).view_as(queries)


def _attend_on_cpu(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Scaled dot product attention, all (windows, heads, tokens, channel); bias (windows, heads, queries, keys).

    PyTorch's own takes twice as long in bfloat16 there, and a tenth less in float32.
    """
    scaled = queries * queries.shape[-1] ** -0.5
    scores = torch.baddbmm(*(rows.flatten(0, 1) for rows in (bias, scaled, keys.mT)))
    return (scores.softmax(dim=2) @ values.flatten(0, 1)).view_as(queries)
