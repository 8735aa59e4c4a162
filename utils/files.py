"""Reading images, and writing files that appear complete or not at all."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from utils.errors import InputError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` (same suffix) and moves it there when the block succeeds.

    The parent folder is made. When the block raises, the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
    with atomic_path(path) as temporary:
        if not cv2.imwrite(str(temporary), pixels):
            raise OSError(f"{path}: OpenCV could not write this image")
