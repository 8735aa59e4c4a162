"""MobileSAM's image encoder (`vit_t`), built from timm's TinyViT-5M."""
import re
from collections.abc import Mapping

import timm
import torch
from torch import nn

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d

IMAGE_SIZE, PATCH_SIZE, CHANNELS = 1024, 16, 256


class TinyVitEncoder(nn.Module):
    """Image encoder: (B, 3, S, S) float32, normalized, padded -> (B, 256, S / 16, S / 16), S = `img_size`.

    The classifier's body is kept, its head dropped, its last downsampling undone; SAM's neck follows.
    """

    def __init__(self, img_size: int = IMAGE_SIZE, out_chans: int = CHANNELS):
        super().__init__()
        self.img_size = img_size
        body = timm.create_model("tiny_vit_5m_224", num_classes=0)
        body.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.patch_embed, self.stages = body.patch_embed, body.stages
        self.neck = nn.Sequential(
            nn.Conv2d(body.num_features, out_chans, kernel_size=1, bias=False), LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False), LayerNorm2d(out_chans))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.neck(self.stages(self.patch_embed(image)))


def build_sam_vit_t() -> Sam:
    """MobileSAM with random weights, in eval mode: TinyViT, and SAM's own prompt encoder and mask decoder."""
    grid = IMAGE_SIZE // PATCH_SIZE
    transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, num_heads=8, mlp_dim=2048)
    return Sam(
        TinyVitEncoder(),
        PromptEncoder(CHANNELS, image_embedding_size=(grid, grid), input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
                      mask_in_chans=16),
        MaskDecoder(transformer_dim=CHANNELS, transformer=transformer)).eval()


def from_mobile_sam(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the keys of the public `mobile_sam.pt` to timm's; the classifier's `norm_head` and `head` are dropped."""
    prefix = "image_encoder."
    renamed = {}
    for key, tensor in state_dict.items():
        if key.startswith((f"{prefix}norm_head.", f"{prefix}head.")):
            continue
        renamed[prefix + _timm_key(key.removeprefix(prefix)) if key.startswith(prefix) else key] = tensor
    return renamed


def _timm_key(key: str) -> str:
    key = re.sub(r"^patch_embed\.seq\.([02])\.", lambda match: f"patch_embed.conv{int(match[1]) // 2 + 1}.", key)
    # timm counts a downsampling to the stage that follows it
    key = re.sub(r"^layers\.(\d)\.downsample\.", lambda match: f"stages.{int(match[1]) + 1}.downsample.", key)
    return re.sub(r"^layers\.", "stages.", key).replace(".c.", ".conv.")
