"""Linear layers for many rows, as fast as the processor allows: same weights, same result up to rounding."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PARTS = 16  # with one thread, PyTorch leaves convolutions of at least as many images to oneDNN


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`, (..., in) -> (..., out).

    In float32 on a CPU it becomes a 1x1 convolution with the rows as pixels. PyTorch leaves those to oneDNN, but matrix
    products to MKL, which on an AMD processor uses half the width of its vector units.
    """
    count = rows.shape[:-1].numel()
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or count % PARTS:
        return F.linear(rows, weight, bias)
    pixels = rows.reshape(PARTS, 1, count // PARTS, -1).permute(0, 3, 1, 2)  # in memory they stay as they are
    return F.conv2d(pixels, weight[..., None, None], bias).permute(0, 2, 3, 1).reshape(*rows.shape[:-1], -1)


class FastLinear(nn.Module):
    """Stands for a linear layer; for inference only."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, rows: Tensor) -> Tensor:
        return linear(rows, self.weight, self.bias)


def replace_linear_layers(module: nn.Module) -> None:
    """Puts a `FastLinear` in the place of every linear layer inside `module`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, FastLinear(child))
