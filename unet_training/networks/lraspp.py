"""SAM ViT + LRASPP, the paper's comparison: a small head on SAM's frozen image encoder (custom_arcitecture/lraspp.py of
the authors' branch master)."""
import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from unet_training.networks.network import Network
from utils.datasets.annotated import AnnotatedImages
from utils.errors import InputError
from utils.options import option, options_from, positive_int
from utils.paths import DATA


@dataclass(frozen=True)
class LrasppOptions:
    """sam_type, sam_checkpoint: SAM and its weights file (left out: at its default place)."""

    n_last_channel: int = option(64, "channels before the last convolution", type=positive_int)
    sam_pixels: str = option("released", "grey values as SAM's encoder under LR-ASPP sees them: in [0, 1] as in the "
                             "released code, or with SAM's mean and std", choices=("released", "normalized"))
    sam_type: str = "vit_h"
    sam_checkpoint: Path | None = None


class FrozenEncoder:
    """SAM's image encoder without its absolute positional embedding, for grey images of one size.

    The longest side is resized to that of the encoder's input; nothing is padded, so the features aren't square.
    It is no `nn.Module`, so that its weights belong to no model's parameters and to no file.
    """

    def __init__(self, sam_type: str, checkpoint: Path, input_size: tuple[int, int], normalize: bool):
        """
        Args:
            sam_type, checkpoint: SAM and its weights file
            input_size: (H, W) of the images
            normalize: with SAM's mean and std, or else grey values stay in [0, 1]
        Raises:
            InputError: the checkpoint can't be used, or SAM's preprocessing isn't that type's.
        """
        # here, because SAM takes a second to import, and the registry names this module for a U-Net too
        from segment_anything.checkpoints import identify
        from segment_anything.embeddings import IMAGES_AT_ONCE
        from segment_anything.fast.image_encoder import accelerate
        from segment_anything.registry import get_sam_type, load_sam
        from segment_anything.resize import fit_longest_side
        if get_sam_type(sam_type).preprocessing != "longest_side":
            raise InputError(f"SAM type {sam_type}: LR-ASPP is for SAM's own preprocessing; give another --sam_type")
        self.sam = load_sam(sam_type, checkpoint)
        self.notice = get_sam_type(sam_type).notice
        self.checkpoint = identify(checkpoint)
        self.normalize = normalize
        self.side = self.sam.image_encoder.img_size
        self.resized = fit_longest_side(input_size, self.side)
        self.channels = self.sam.prompt_encoder.embed_dim
        self.images_at_once = IMAGES_AT_ONCE
        self.sam.image_encoder.pos_embed = None  # vit_t and demo have none
        accelerate(self.sam.image_encoder, input_size=self.resized)

    def __deepcopy__(self, memo: dict) -> "FrozenEncoder":
        return self

    def __call__(self, grey: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) grey values in [0, 1] -> (B, D, h, w) features; ViT-H, 384 x 224: (B, 256, 64, 37)."""
        sam = self.sam.to(grey.device)
        pixels = F.interpolate(grey, self.resized, mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
        if self.normalize:
            pixels = (255 * pixels - sam.pixel_mean) / sam.pixel_std
        portions = pixels.split(self.images_at_once[pixels.device.type])
        return torch.cat([sam.image_encoder(portion) for portion in portions])


class ResidualBlock(nn.Module):
    """Twice (3x3 convolution, instance norm), leaky ReLU between and after them; a 1x1 convolution past a stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.InstanceNorm2d(out_channels, affine=True), nn.LeakyReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.InstanceNorm2d(out_channels, affine=True))
        self.past = nn.Identity() if stride == 1 else nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.InstanceNorm2d(out_channels, affine=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.convs(x) + self.past(x))


class FeatureHead(nn.Module):
    """What is trained: two residual blocks, and LR-ASPP (Howard et al. 2019) on SAM's features (low) and theirs (high).

    As in the released code, instance norm and leaky ReLU stand for LR-ASPP's batch norm and ReLU.

    Args:
        channels: of SAM's features, 256; the blocks have twice as many
        n_classes: output channels
        n_last_channel: width of the branch of the high features
        size: (H, W) of the logits
    """

    def __init__(self, channels: int, n_classes: int, n_last_channel: int, size: tuple[int, int]):
        super().__init__()
        high = 2 * channels
        self.size = size
        self.blocks = nn.Sequential(ResidualBlock(channels, high, stride=2), ResidualBlock(high, high))
        self.branch = nn.Sequential(nn.Conv2d(high, n_last_channel, kernel_size=1, bias=False),
                                    nn.InstanceNorm2d(n_last_channel, affine=True), nn.LeakyReLU(inplace=True))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, n_last_channel, kernel_size=1, bias=False),
                                  nn.Sigmoid())
        self.out_low = nn.Conv2d(channels, n_classes, kernel_size=1)
        self.out_high = nn.Conv2d(n_last_channel, n_classes, kernel_size=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) -> (B, C, H, W) logits, float32, resized bilinearly."""
        high = self.blocks(features)
        gated = F.interpolate(self.branch(high) * self.gate(high), features.shape[2:], mode="bilinear")
        logits = self.out_low(features) + self.out_high(gated)
        return F.interpolate(logits.float(), self.size, mode="bilinear")


class LrasppOnSam(Network):
    """`head` alone is trained and saved, on the features that `encode` gives.

    Args:
        n_classes: output channels
        input_size: (H, W) of the images
        mean, std: with which they were normalized
        sam_type, sam_checkpoint, n_last_channel, sam_pixels: see `LrasppOptions`
        sam_sha256: of the weights file, where no other will do; such a file may also lie at its default place
    """

    architecture = "lraspp_on_sam"
    options = LrasppOptions

    def __init__(self, n_classes: int, input_size: tuple[int, int], mean: float, std: float, sam_type: str,
                 sam_checkpoint: str | Path | None = None, n_last_channel: int = 64, sam_pixels: str = "released",
                 sam_sha256: str | None = None):
        """Raises InputError if the checkpoint is missing, can't be used, or isn't the one of `sam_sha256`."""
        super().__init__()
        input_size = tuple(input_size)
        path = _find_checkpoint(sam_type, sam_checkpoint, anywhere=sam_sha256 is not None)
        self.encoder = FrozenEncoder(sam_type, path, input_size, normalize=sam_pixels == "normalized")
        if sam_sha256 not in (None, self.encoder.checkpoint.sha256):
            raise InputError(f"{path}: not the SAM checkpoint that the model was trained on (sha256 "
                             f"{sam_sha256[:12]}...); put that one at {sam_checkpoint}")
        self.config = {"n_classes": n_classes, "input_size": input_size, "mean": mean, "std": std,
                       "sam_type": sam_type, "sam_checkpoint": str(path.absolute()), "n_last_channel": n_last_channel,
                       "sam_pixels": sam_pixels, "sam_sha256": self.encoder.checkpoint.sha256}
        self.head = FeatureHead(self.encoder.channels, n_classes, n_last_channel, input_size)

    @classmethod
    def options_from_args(cls, args: argparse.Namespace, data: AnnotatedImages) -> LrasppOptions:
        from segment_anything.options import EncoderOptions, Sam  # as in FrozenEncoder
        sam = Sam.choose(options_from(EncoderOptions, args), data)
        return options_from(LrasppOptions, args, sam_type=sam.type_name, sam_checkpoint=sam.checkpoint)

    @classmethod
    def build(cls, n_classes: int, input_size: tuple[int, int], mean: float, std: float,
              options: LrasppOptions) -> Self:
        """A new head on SAM. Raises InputError if SAM's checkpoint is missing or can't be used."""
        return cls(n_classes, input_size, mean, std, **asdict(options))

    @property
    def notice(self) -> str:
        return self.encoder.notice

    @property
    def features_name(self) -> str:
        from segment_anything.registry import get_sam_type  # as in FrozenEncoder
        (height, width), digest = self.config["input_size"], self.config["sam_sha256"]
        published = get_sam_type(self.config["sam_type"]).sha256
        weights = "" if published in (None, digest) else f"_{digest[:12]}"
        return f"{self.config['sam_type']}{weights}_lraspp_{self.config['sam_pixels']}_{height}x{width}"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) normalized grey values -> (B, D, h, w) features."""
        return self.encoder(images * self.config["std"] + self.config["mean"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) normalized grey values -> (B, C, H, W) logits."""
        return self.head(self.encode(images))


def _find_checkpoint(sam_type: str, path: str | Path | None, anywhere: bool) -> Path:
    """The given path; SAM's default place if there is none, or nothing lies there and it may lie `anywhere`."""
    from segment_anything.registry import default_checkpoint
    if path is None or (anywhere and not Path(path).is_file()):
        return default_checkpoint(sam_type, DATA)
    return Path(path)
