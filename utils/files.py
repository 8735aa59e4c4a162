"""Reading images, and writing files that appear complete or not at all."""
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from utils.errors import InputError
from utils.locks import hold, remove_leftovers


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` (same suffix) and moves it there when the block succeeds.

    The parent folder is made. When the block raises, the temporary file is removed and `path` stays as it was. What a
    killed process left of this kind is removed, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent.absolute())
    temporary = path.with_name(f".{path.stem}.{uuid4().hex[:16]}.part{path.suffix}")
    temporary.touch(exist_ok=False)
    held = hold(temporary)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, complete or not at all. Raises OSError, which libraries that write by themselves may not."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def save_tensors(path: Path, content: Any) -> None:
    """Writes what `torch.load` reads, complete or not at all. Raises OSError."""
    import torch  # takes seconds, and most stages that write have it already
    buffer = io.BytesIO()  # a full disk makes PyTorch's own writing fail with another error
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())


@contextmanager
def explain_damage(path: Path, what: str, remedy: str) -> Iterator[None]:
    """For a block that reads a file: whatever its bytes lead to is one kind of error.

    Args:
        what: is wrong with the file then
        remedy: what to do
    Raises:
        InputError: the file is damaged, or another one.
        OSError: it can't be accessed, which says nothing about what it holds.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).strip().partition("\n")[0].removesuffix(":")
        raise InputError(f"{path}: {what} ({type(error).__name__}: {reason}); {remedy}") from error


def load_tensors(path: Path) -> Any:
    """What `save_tensors` wrote, or another PyTorch file, on the CPU: tensors and plain values, no objects.

    Raises whatever the bytes of a file that is none or damaged lead to; PyTorch itself ignores its checksums.
    """
    import torch  # as above
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():
                raise ValueError(f"{damaged} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


def read_grey(path: Path, max_grey_value: int | None = None) -> np.ndarray:
    """Reads a radiograph as grey values, (H, W), uint8 or uint16 as in the file; colors become luminance.

    Args:
        max_grey_value: the value of 16-bit files that becomes 65535, where they hold fewer bits
    Raises:
        InputError: the file is missing or isn't a readable image of 8 or 16 bits.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such image; see data/README.md for what goes where")
    encoded = np.fromfile(path, np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH) if encoded.size else None
    if image is None:
        raise InputError(f"{path}: not a readable image; replace the file or remove it")
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: has grey values of the type {image.dtype}; save it with 8 or 16 bits, unsigned")
    if max_grey_value and image.dtype == np.uint16:
        image = (np.minimum(image, max_grey_value).astype(np.uint32) * 65535 // max_grey_value).astype(np.uint16)
    return image


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) from the file's header, turned as that says, like `read_grey`. Raises InputError if it isn't an image."""
    with _open_image(path) as image:
        (tags := Image.Exif()).load(image.info.get("exif"))
        width, height = image.size
    lying = tags.get(ExifTags.Base.Orientation, 1) > 4
    return (width, height) if lying else (height, width)


def read_label_map(path: Path) -> np.ndarray:
    """The values of a label map as the file holds them, uint16, (H, W); of one with a palette its indices.

    Raises:
        InputError: it isn't a readable image of one channel and 1, 8 or 16 bits.
    """
    with _open_image(path) as image:
        stored = image.tile[0].args if image.tile else None
        values = np.asarray(image)
    if values.ndim != 2 or stored in ("L;2", "L;4"):
        raise InputError(f"{path}: a label map has one channel of 8 bits; save it so, or with a palette")
    return values.astype(np.uint16)


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path}: not a readable image ({error}); replace the file") from None


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes (H, W) grey or (H, W, 3) RGB pixels, uint8 or uint16, as PNG, complete or not at all."""
    pixels = image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
    done, encoded = cv2.imencode(".png", pixels)
    if not done:
        raise ValueError(f"{path}: OpenCV makes no PNG of {image.dtype} {image.shape}")
    write_bytes(path, encoded.tobytes())
