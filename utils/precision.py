"""Float32 that is float32."""
from contextlib import AbstractContextManager

import torch


def full_float32() -> AbstractContextManager:
    """Within it, or within a function decorated with it, convolutions on a GPU keep all 24 bits of float32.

    By default cuDNN rounds what they multiply to 11 bits (TF32), which moves the edges of masks, and differently on
    each GPU.
    """
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
