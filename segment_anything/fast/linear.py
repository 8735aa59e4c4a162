"""A linear layer for many rows, as fast as the processor allows."""
import torch
from torch import Tensor
from torch.nn import functional as F

PARTS = 16  # with one thread, PyTorch leaves convolutions of at least as many images to oneDNN


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`, (..., in) -> (..., out), up to rounding.

    In float32 on a CPU it becomes a 1x1 convolution with the rows as pixels. PyTorch leaves those to oneDNN, but matrix
    products to MKL, which took twice as long on the AMD processor where both were measured.
    """
    count = rows.shape[:-1].numel()
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or count % PARTS:
        return F.linear(rows, weight, bias)
    pixels = rows.reshape(PARTS, 1, count // PARTS, -1).permute(0, 3, 1, 2)  # in memory they stay as they are
    return F.conv2d(pixels, weight[..., None, None], bias).permute(0, 2, 3, 1).reshape(*rows.shape[:-1], -1)
