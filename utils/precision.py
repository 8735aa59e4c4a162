"""Float32 that is float32."""
import threading
from contextlib import AbstractContextManager, ContextDecorator, ExitStack

import torch


class _FullFloat32(ContextDecorator):
    """The setting is the process's: of several threads the first sets it, and the last restores it."""

    def __init__(self):
        self._lock, self._within, self._setting = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._setting.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._setting.close()


_FULL_FLOAT32 = _FullFloat32()


def full_float32() -> AbstractContextManager:
    """Within it, or within a function decorated with it, convolutions on a GPU keep all 24 bits of float32.

    By default cuDNN rounds what they multiply to 11 bits (TF32), which moves the edges of masks, and differently on
    each GPU.
    """
    return _FULL_FLOAT32
