"""The U-Net (custom_arcitecture/classic_u_net.py of the authors)."""
from dataclasses import asdict, dataclass
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from unet_training.networks.network import Network
from utils.options import option, positive_int


@dataclass(frozen=True)
class UNetOptions:
    base_width: int = option(64, "channels of the U-Net's first level", type=positive_int)
    n_last_channel: int = option(64, "channels before the last convolution", type=positive_int)


class DoubleConv(nn.Sequential):
    """Twice (3x3 convolution, instance norm, leaky ReLU)."""

    def __init__(self, in_channels: int, out_channels: int):
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False),
                       nn.InstanceNorm2d(out_channels, affine=True),
                       nn.LeakyReLU(inplace=True)]
        super().__init__(*layers)


class Up(nn.Module):
    """Doubles the resolution, joins the skip connection, convolves."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, skip_channels, kernel_size=2, stride=2)
        self.conv = DoubleConv(2 * skip_channels, out_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        rows, columns = (s - u for s, u in zip(skip.shape[-2:], x.shape[-2:], strict=True))
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))  # odd sizes lost a line
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(Network):
    """Five levels of widths w, 2w, 4w, 8w, 16w.

    Args:
        n_classes: output channels, independent logits
        base_width: w, 64 in the paper
        n_last_channel: width of the last decoder level, 64 in the paper
    """

    architecture = "u_net"
    options = UNetOptions

    def __init__(self, n_classes: int, base_width: int = 64, n_last_channel: int = 64):
        super().__init__()
        self.config = {"n_classes": n_classes, "base_width": base_width, "n_last_channel": n_last_channel}
        widths = [base_width * 2 ** level for level in range(5)]
        self.down = nn.ModuleList(DoubleConv(i, o) for i, o in zip([1, *widths[:-1]], widths, strict=True))
        outs = [*widths[1:-1][::-1], n_last_channel]
        self.up = nn.ModuleList(Up(i, s, o) for i, s, o in
                                zip([widths[-1], *outs[:-1]], widths[-2::-1], outs, strict=True))
        self.out = nn.Conv2d(n_last_channel, n_classes, kernel_size=1)

    @classmethod
    def build(cls, n_classes: int, input_size: tuple[int, int], mean: float, std: float, options: UNetOptions) -> Self:
        """A new network; it takes images of any size."""
        return cls(n_classes, **asdict(options))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) normalized grey values -> (B, C, H, W) logits; H and W at least 32."""
        skips = []
        for level, conv in enumerate(self.down):
            x = conv(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        return self.out(x)
