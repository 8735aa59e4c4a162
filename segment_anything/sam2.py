"""SAM 2's image model (types `sam2_...` of version 2.0 and `sam21_...` of 2.1), built by the optional package
`transformers`.

Ravi et al. 2024, "SAM 2: Segment Anything in Images and Videos". What remembers earlier frames of a video is left out.
"""
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from segment_anything.mask_decoder import Maps
from utils.errors import InputError

IMAGE_SIZE = 1024
MOST_LOGIT = 32  # of a mask prompt, as SAM 2's own predictor clamps it
OF_VIDEOS = re.compile("memory_|mask_downsample|object_pointer|no_object_pointer|temporal_positional|"
                       "no_memory_positional|occlusion_spatial")


@dataclass(frozen=True)
class Hiera:
    """One size of the image encoder: what SAM 2's published configurations (sam2/configs of its repository) say of it.

    Attributes:
        channels, heads: of the first stage; each later one has twice as many
        blocks: of each stage
        global_blocks: whose attention has no windows, counted over all stages
        windows: side of the attention windows of each stage, patches
        background: side of the coarse one of the two embeddings of positions
    """

    channels: int
    heads: int
    blocks: tuple[int, ...]
    global_blocks: tuple[int, ...]
    windows: tuple[int, ...] = (8, 4, 14, 7)
    background: int = 7


SIZES = {"t": Hiera(96, 1, (1, 2, 7, 2), (5, 7, 9)),
         "s": Hiera(96, 1, (1, 2, 11, 2), (7, 10, 13)),
         "b": Hiera(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14),
         "l": Hiera(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8))}


def check_installed() -> None:
    """Raises:
        InputError: `transformers` isn't installed.
    """
    if not find_spec("transformers"):
        raise InputError("SAM 2: the package transformers isn't installed; "
                         "run `python -m pip install -r requirements_sam2.txt`")


class NoPositions(nn.Module):
    """In the place of the neck's encodings of positions, which only videos need and which take as long as the neck."""

    def forward(self, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.empty(0, dtype=dtype, device=device)


class Sam2Encoder(nn.Module):
    """Image encoder: (B, 3, 1024, 1024) float32, normalized -> the maps that the decoder takes: "image"
    (B, 256, 64, 64), "stride_8" (B, 64, 128, 128) and "stride_4" (B, 32, 256, 256)."""

    img_size = IMAGE_SIZE

    def __init__(self, backbone: nn.Module, neck: nn.Module, conv_s0: nn.Module, conv_s1: nn.Module,
                 no_memory_embedding: nn.Parameter):
        super().__init__()
        self.backbone, self.neck, self.conv_s0, self.conv_s1 = backbone, neck, conv_s0, conv_s1
        self.no_memory_embedding = no_memory_embedding

    def forward(self, image: Tensor) -> Maps:
        stages = self.backbone(image).intermediate_hidden_states
        _, coarse, middle, fine = self.neck(stages)[0]  # the coarsest one first, which only the second has a part of
        return {"image": coarse + self.no_memory_embedding.view(1, -1, 1, 1), "stride_8": self.conv_s1(middle),
                "stride_4": self.conv_s0(fine)}


class Sam2(nn.Module):
    """The image model by its parts; `positions` encodes where the pixels of an image are."""

    def __init__(self, image_encoder: Sam2Encoder, prompt_encoder: nn.Module, mask_decoder: nn.Module,
                 positions: nn.Module):
        super().__init__()
        self.image_encoder, self.prompt_encoder, self.mask_decoder = image_encoder, prompt_encoder, mask_decoder
        self.positions = positions

    @property
    def device(self) -> torch.device:
        return self.image_encoder.no_memory_embedding.device


def build_sam2(size: str) -> Sam2:
    """SAM 2 with random weights, in eval mode; `size` is a key of `SIZES`. Raises InputError as `check_installed`."""
    check_installed()
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig  # takes seconds
    hiera = SIZES[size]
    channels, heads = ([number * 2 ** stage for stage in range(4)] for number in (hiera.channels, hiera.heads))
    backbone = Sam2HieraDetConfig(
        hidden_size=hiera.channels, num_attention_heads=hiera.heads, blocks_per_stage=list(hiera.blocks),
        embed_dim_per_stage=channels, num_attention_heads_per_stage=heads, window_size_per_stage=list(hiera.windows),
        global_attention_blocks=list(hiera.global_blocks),
        window_positional_embedding_background_size=[hiera.background] * 2)
    vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=channels[::-1])
    model = Sam2Model(Sam2Config(vision_config=vision))
    neck, decoder = model.vision_encoder.neck, model.mask_decoder
    neck.position_encoding = NoPositions()
    encoder = Sam2Encoder(model.vision_encoder.backbone, neck, decoder.conv_s0, decoder.conv_s1,
                          model.no_memory_embedding)
    del decoder.conv_s0, decoder.conv_s1  # of the image alone, whose encoder has them now
    return Sam2(encoder, model.prompt_encoder, decoder, model.shared_image_embedding).eval()


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the keys of the published `model.safetensors` to those of `Sam2`; what is of videos is dropped."""
    renamed = {}
    for key, tensor in state_dict.items():
        if not OF_VIDEOS.match(key):
            key = re.sub(r"^(vision_encoder\.|mask_decoder\.(?=conv_s[01]\.)|(?=no_memory_embedding$))",
                         "image_encoder.", key)
            renamed[key.replace("shared_image_embedding.", "positions.")] = tensor
    return renamed


class Sam2Decoder:
    """SAM 2's prompt encoder and mask decoder; its interface is `segment_anything.mask_decoder.Decoder`.

    The mask is the decoder's single one or, where that changes much with the threshold, that of its three others with
    the highest predicted IoU, as in SAM 2's own predictor.
    """

    upscales_at_once = True

    def __init__(self, prompt_encoder: nn.Module, mask_decoder: nn.Module, positions: nn.Module):
        self._encode_prompts, self._decode = prompt_encoder, mask_decoder
        height, width = prompt_encoder.image_embedding_size
        rows, columns = ((torch.arange(side, device=positions.positional_embedding.device) + 0.5) / side
                         for side in (height, width))
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # x, y of each pixel's middle
        self._positions = positions(grid).permute(2, 0, 1)[None]

    def prepare(self, features: Maps) -> Maps:
        return features

    def __call__(self, images: Maps, boxes: Tensor | None, points: Tensor | None, labels: Tensor | None,
                 masks: Tensor | None) -> tuple[Tensor, Tensor]:
        points, labels, boxes, masks = (None if given is None else given[:, None]  # one object of each image
                                        for given in (points, labels, boxes, masks))
        sparse, dense = self._encode_prompts(points, None if labels is None else labels.int(), boxes,
                                             None if masks is None else masks.clamp(-MOST_LOGIT, MOST_LOGIT))
        image, *fine = (images[name].expand(len(sparse), -1, -1, -1) for name in ("image", "stride_4", "stride_8"))
        logits, iou, *_ = self._decode(image, self._positions.expand_as(image), sparse, dense, multimask_output=False,
                                       high_resolution_features=fine)
        return logits[:, 0, 0], iou[:, 0, 0]
