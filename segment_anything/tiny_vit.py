"""The SAMs whose image encoder is TinyViT-5M, built from timm's: MobileSAM (`vit_t`) and LiteMedSAM (`medsam_lite`)."""
import re
from collections.abc import Mapping

import timm
import torch
from timm.models.tiny_vit import ConvNorm
from torch import nn

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d

CHANNELS = 256


class TinyVitEncoder(nn.Module):
    """Image encoder: (B, 3, S, S) float32, normalized, padded -> (B, 256, S / 4p, S / 4p), S = `img_size`.

    The classifier's body is kept, its head dropped, its last downsampling undone; SAM's neck follows. A patch is
    p = `patch_size` pixels wide: 4 as in the classifier, or 1, with an embedding of each pixel by itself.
    """

    def __init__(self, img_size: int, patch_size: int, out_chans: int = CHANNELS):
        super().__init__()
        self.img_size = img_size
        body = timm.create_model("tiny_vit_5m_224", num_classes=0)
        body.stages[-1].downsample.conv2.conv.stride = (1, 1)
        if patch_size == 1:
            first, second = (layer.conv for layer in (body.patch_embed.conv1, body.patch_embed.conv2))
            body.patch_embed.conv1 = ConvNorm(first.in_channels, first.out_channels)
            body.patch_embed.conv2 = ConvNorm(second.in_channels, second.out_channels)
        self.patch_embed, self.stages = body.patch_embed, body.stages
        self.neck = nn.Sequential(
            nn.Conv2d(body.num_features, out_chans, kernel_size=1, bias=False), LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False), LayerNorm2d(out_chans))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.neck(self.stages(self.patch_embed(image)))


def build_sam_vit_t() -> Sam:
    """MobileSAM with random weights, in eval mode: TinyViT, and SAM's own prompt encoder and mask decoder."""
    return _build(TinyVitEncoder(img_size=1024, patch_size=4))


def build_medsam_lite() -> Sam:
    """LiteMedSAM with random weights, in eval mode; as MobileSAM, but for images of 256 pixels, each a patch."""
    return _build(TinyVitEncoder(img_size=256, patch_size=1))


def _build(encoder: TinyVitEncoder) -> Sam:
    transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, num_heads=8, mlp_dim=2048)
    return Sam(
        encoder,
        PromptEncoder(CHANNELS, image_embedding_size=(64, 64), input_image_size=(encoder.img_size,) * 2,
                      mask_in_chans=16),
        MaskDecoder(transformer_dim=CHANNELS, transformer=transformer)).eval()


def from_public(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the keys of the public checkpoints to timm's; the classifier's `norm_head` and `head` are dropped."""
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
