"""Reading images, and writing files that appear complete or not at all."""
import errno
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
from PIL import ExifTags, Image

from utils.errors import InputError
from utils.grey import STORED, GreyValues
from utils.locks import hold, remove_leftovers

OF_THE_BYTES = (None, errno.EINVAL)  # errors of what a file says, such as a place that can't be
MAX_SAMPLE_VALUE, PHOTOMETRIC_INTERPRETATION, BITS_PER_SAMPLE = 281, 262, 258  # tags of TIFF


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


def check_zip(path: Path) -> None:
    """Compares the contents of a ZIP archive with its checksums. Raises ValueError."""
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            raise ValueError(f"{damaged} is damaged")


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
        if isinstance(error, OSError) and error.errno not in OF_THE_BYTES:
            raise
        reason = str(error).strip().partition("\n")[0].removesuffix(":")
        raise InputError(f"{path}: {what} ({type(error).__name__}: {reason}); {remedy}") from error


def load_tensors(path: Path) -> Any:
    """What `save_tensors` wrote, or another PyTorch file, on the CPU: tensors and plain values, no objects.

    Raises whatever the bytes of a file that is none or damaged lead to; PyTorch itself ignores its checksums.
    """
    import torch  # as above
    if zipfile.is_zipfile(path):
        check_zip(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def read_grey(path: Path, values: GreyValues = STORED) -> np.ndarray:
    """Reads a radiograph as grey values, (H, W), uint8 or uint16 as in the file; colors become luminance.

    It is turned as its header says. Of TIFF files that say that 0 is white the negative is taken.

    Args:
        values: how the file's values are meant; left out: as they are
    Raises:
        InputError: the file is missing or isn't a readable image of 8 or 16 bits.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such image; see data/README.md for what goes where")
    encoded = np.fromfile(path, np.uint8)
    negative, stated = _read_header(path)
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH) if encoded.size else None
    except cv2.error as error:  # such as more than 2 ** 30 pixels
        raise InputError(f"{path}: not a readable image ({error.err}); replace the file or remove it") from None
    if image is None:
        raise InputError(f"{path}: not a readable image of 8 or 16 bits; replace the file or remove it")
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: has grey values of the type {image.dtype}; save it with 8 or 16 bits, unsigned")
    negative = negative and image.dtype == np.uint16  # OpenCV sees to it in files of 8 bits
    return values.apply(image, path, negative, stated)


def _read_header(path: Path) -> tuple[bool, int | None]:
    """Whether 0 is white in a TIFF file, and its largest value by its own account; False and None for others.

    Raises:
        InputError: what says how the image is turned is damaged, or there are several images.
    """
    try:
        with Image.open(path) as image:
            tags = getattr(image, "tag_v2", {})
            read_orientation(path, image)
            _check_single(path, image)
    except InputError:
        raise
    except Exception:  # OpenCV decides: it reads more kinds of files, and larger ones
        return False, None
    largest = tags.get(MAX_SAMPLE_VALUE)
    largest = largest[0] if isinstance(largest, tuple) else largest
    return tags.get(PHOTOMETRIC_INTERPRETATION) == 0, largest if isinstance(largest, int) and largest > 0 else None


def _check_single(path: Path, image: Image.Image) -> None:
    """Raises an InputError for a stack of images; a smaller second one is a preview."""
    count, size = getattr(image, "n_frames", 1), image.size
    if count == 1:
        return
    image.seek(1)
    if image.width >= size[0] and image.height >= size[1]:
        raise InputError(f"{path}: holds {count} images; save each of them as a file of its own")
    image.seek(0)


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) from the file's header, turned as that says, like `read_grey`. Raises InputError if it isn't an image."""
    with open_image(path) as image:
        width, height = image.size
        turned = image.format != "TIFF" and read_orientation(path, image) > 4  # Pillow turns the size of a TIFF itself
    return (width, height) if turned else (height, width)


def read_orientation(path: Path, image: Image.Image) -> int:
    """How the header says that the image is to be turned: 1 to 8 as in EXIF. Raises InputError if that is damaged."""
    try:
        (tags := Image.Exif()).load(image.info.get("exif"))
        orientation = tags.get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # Pillow raises whatever the damage leads to
        orientation = error
    if not isinstance(orientation, int):
        raise InputError(f"{path}: its EXIF data, which say how it is turned, are damaged ({orientation}); save the "
                         "image again without them")
    return orientation


def has_16_bits(path: Path) -> bool:
    """Whether an image file holds more than 8 bits a pixel, by its header. False for what isn't an image."""
    if path.suffix.lower() in (".jpg", ".jpeg", ".bmp", ".gif"):
        return False
    with path.open("rb", buffering=0) as file:
        start = file.read(25)
    if start.startswith(b"\x89PNG"):
        return start[24:] == b"\x10"
    try:
        with open_image(path) as image:
            bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, 8)  # Pillow has colors of 8 only
            return image.mode.startswith("I") or bool(np.max(bits) > 8)
    except InputError:
        return start[:2] in (b"II", b"MM")  # of 10 or 14 bits, which Pillow doesn't know


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image by its header, not yet decoded. Raises InputError, also for what happens while it is open, and for
    a file that holds several."""
    try:
        with Image.open(path) as image:
            _check_single(path, image)
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: too large ({error}); save it with fewer pixels") from None
    except Exception as error:  # Pillow raises whatever the damage leads to
        raise InputError(f"{path}: not a readable image ({error}); replace the file") from None


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes (H, W) grey or (H, W, 3) RGB pixels, uint8 or uint16, as PNG, complete or not at all."""
    pixels = image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
    done, encoded = cv2.imencode(".png", pixels)
    if not done:
        raise ValueError(f"{path}: OpenCV makes no PNG of {image.dtype} {image.shape}")
    write_bytes(path, encoded.tobytes())
