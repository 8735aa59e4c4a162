"""SAM ViT + LR-ASPP (paper's comparison): a small head on SAM's frozen image encoder.

SAM sees the network's input, not the image at its original resolution: prediction and training with augmentation have
nothing else, and stored features must be what they compute.
"""
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.models.segmentation.lraspp import LRASPPHead
from tqdm import tqdm

from segment_anything.checkpoints import identify
from segment_anything.embeddings import (
    IMAGES_AT_ONCE,
    ImageEmbedding,
    embedding_path,
    is_embedded,
    load_embedding,
    save_embedding,
)
from segment_anything.fast.image_encoder import accelerate
from segment_anything.registry import default_checkpoint, get_sam_type, load_sam
from segment_anything.utils.transforms import ResizeLongestSide
from unet_training.data import LabeledDataset
from utils.errors import InputError
from utils.paths import DATA

INTER_CHANNELS = 64


class FrozenEncoder:
    """SAM's image encoder without its absolute positional embedding.

    It is no `nn.Module`, so that its weights belong to no model's parameters and to no file.
    """

    def __init__(self, sam_type: str, checkpoint: Path):
        """Raises InputError if the checkpoint can't be used, or if SAM's preprocessing isn't that type's."""
        if get_sam_type(sam_type).preprocessing != "longest_side":
            raise InputError(f"SAM type {sam_type}: LR-ASPP is for SAM's own preprocessing; give another --sam_type")
        self.sam = load_sam(sam_type, checkpoint)
        self.checkpoint = identify(checkpoint)
        self.side = self.sam.image_encoder.img_size
        self.channels = self.sam.prompt_encoder.embed_dim
        self.sam.image_encoder.pos_embed = None  # vit_t and demo have none
        accelerate(self.sam.image_encoder)

    def __deepcopy__(self, memo: dict) -> "FrozenEncoder":
        return self

    def covered(self, size: Sequence[int]) -> tuple[int, int]:
        """(H, W) in the encoder's input that an image of `size` takes up, before padding."""
        return ResizeLongestSide.get_preprocess_shape(*size, self.side)

    def __call__(self, grey: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) grey values in [0, 255] -> (B, D, h, w) features; SAM: (B, 256, 64, 64)."""
        sam = self.sam.to(grey.device)
        resized = F.interpolate(grey, self.covered(grey.shape[2:]), mode="bilinear", antialias=True)
        pixels = sam.preprocess(resized.expand(-1, 3, -1, -1))
        return torch.cat([sam.image_encoder(some) for some in pixels.split(IMAGES_AT_ONCE[pixels.device.type])])


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
    """What is trained: two residual blocks, the LR-ASPP head on SAM's features (low) and on theirs (high).

    Args:
        channels: of SAM's features, 256; the blocks have twice as many
        n_classes: output channels
        covered: part (rows, columns) of the features that shows the image, each in (0, 1]; the rest is padding
        size: (H, W) of the logits
    """

    def __init__(self, channels: int, n_classes: int, covered: tuple[float, float], size: tuple[int, int]):
        super().__init__()
        self.blocks = nn.Sequential(ResidualBlock(channels, 2 * channels, stride=2),
                                    ResidualBlock(2 * channels, 2 * channels))
        self.lraspp = LRASPPHead(channels, 2 * channels, n_classes, INTER_CHANNELS)
        rows, columns = covered
        to_image = torch.tensor([[[columns, 0, columns - 1], [0, rows, rows - 1]]])
        grid = F.affine_grid(to_image, [1, 1, *size], align_corners=False)
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) -> (B, C, H, W) logits, float32, resized bilinearly without the padding."""
        logits = self.lraspp({"low": features, "high": self.blocks(features)}).float()
        return F.grid_sample(logits, self.grid.expand(len(logits), -1, -1, -1), padding_mode="border",
                             align_corners=False)


class LrasppOnSam(nn.Module):
    """Takes and gives what the U-Net does. `head` alone is trained and saved, on the features that `encode` gives.

    Args:
        n_classes: output channels, independent logits
        input_size: (H, W) of the images
        mean, std: with which they were normalized
        sam_type, sam_checkpoint: SAM and its weights file
        sam_sha256: that file's, where no other will do; such a file may also lie at its default place
    """

    architecture = "lraspp_on_sam"

    def __init__(self, n_classes: int, input_size: tuple[int, int], mean: float, std: float, sam_type: str,
                 sam_checkpoint: str, sam_sha256: str | None = None):
        """Raises InputError if the checkpoint is missing, can't be used, or isn't the one of `sam_sha256`."""
        super().__init__()
        path = Path(sam_checkpoint)
        if sam_sha256 and not path.is_file():
            path = default_checkpoint(sam_type, DATA)
        self.encoder = FrozenEncoder(sam_type, path)
        if sam_sha256 not in (None, self.encoder.checkpoint.sha256):
            raise InputError(f"{path}: not the SAM checkpoint that the model was trained on (sha256 "
                             f"{sam_sha256[:12]}...); put that one at {sam_checkpoint}")
        self.config = {"n_classes": n_classes, "input_size": tuple(input_size), "mean": mean, "std": std,
                       "sam_type": sam_type, "sam_checkpoint": str(path.absolute()),
                       "sam_sha256": self.encoder.checkpoint.sha256}
        rows, columns = self.encoder.covered(input_size)
        self.head = FeatureHead(self.encoder.channels, n_classes,
                                (rows / self.encoder.side, columns / self.encoder.side), tuple(input_size))

    @property
    def notice(self) -> str:
        """What must be said wherever its results are shown."""
        return get_sam_type(self.config["sam_type"]).notice

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) normalized grey values -> (B, D, h, w) features."""
        return self.encoder(255 * (images * self.config["std"] + self.config["mean"]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) normalized grey values -> (B, C, H, W) logits."""
        return self.head(self.encode(images))


class StoredFeatures(Dataset):
    """Labeled images as features: float32 (D, h, w) and bool (C, H, W). The features are computed once, into files."""

    def __init__(self, model: LrasppOnSam, labeled: LabeledDataset, folder: Path, device: torch.device):
        """Raises InputError if a file in `folder` is of another SAM checkpoint."""
        self.labeled, self.checkpoint = labeled, model.encoder.checkpoint
        self.paths = [embedding_path(folder, stem) for stem in labeled.stems]
        size = model.config["input_size"]
        missing = [index for index, path in enumerate(self.paths) if not is_embedded(path, self.checkpoint, size)]
        for index in tqdm(missing, "SAM features", unit="image", disable=not missing):
            image, _ = labeled[index]
            features = {"image": model.encode(image[None].to(device))[0].cpu()}
            save_embedding(self.paths[index], ImageEmbedding(
                features, size, model.encoder.covered(size), model.encoder.side, self.checkpoint))

    def __len__(self) -> int:
        return len(self.labeled)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return load_embedding(self.paths[index], self.checkpoint).features["image"], self.labeled[index][1]
